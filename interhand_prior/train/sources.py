"""Where hands are read from: parts of a data set, each loaded when it is needed, and checked then.

A folder holds pairs in `train-*.npz`, `val-*.npz`, `test-*.npz` and hands alone in `single-train-*.npz` and so on, as
`interhand-prior corpus` or `TwoHands.save` write them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Union

import numpy as np
import torch

from ..hands import HandPair, open_hands
from ..params import TwoHands

__all__ = [
    "Fingerprint",
    "PairSource",
    "Part",
    "check_hands",
    "chunks",
    "model_key",
    "read_parts",
    "take",
    "whole_pairs",
]

PairSource = Union[str, "os.PathLike[str]", TwoHands, Iterable[TwoHands]]

_CHUNK = 4096
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """Some of the hands of a data set.

    Attributes:
        name: what to call it in errors.
        count: of pairs and hands alone.
        load: reads them: batch shape (count,), on the CPU, without extras.
        hands: hand models they belong to; None: the open hand.
        stamp: name, bytes and time of the file, and the range of it, which change if the hands do; None: no file.
    """

    name: str
    count: int
    load: Callable[[], TwoHands]
    hands: HandPair | None
    stamp: tuple[str | int, ...] | None = None

    def cut(self, start: int, stop: int) -> Part:
        """The items start..stop-1."""
        load = self.load
        stamp = None if self.stamp is None else (*self.stamp, start, stop)
        return replace(self, count=stop - start, load=lambda: load()[start:stop], stamp=stamp)


def read_parts(
    source: PairSource,
    split: str,
    hands: HandPair | None,
    *,
    name: str = "pairs",
    optional: bool = False,
    single: bool = False,
    spool: Path | None = None,
) -> list[Part]:
    """The parts of a source.

    Args:
        source: a folder, one .npz file, TwoHands, or an iterable of them.
        split: train or val: which files of a folder.
        hands: hand models that parameters in files belong to; None: the open hand.
        name: how to call the source in errors.
        optional: a folder may lack such files.
        single: the files of hands alone. Only folders have them; they are always optional.
        spool: folder for the hands of an iterator, which can be read only once and may be larger than the memory.
            None: they are kept in memory, as a list's are.

    Raises:
        FileNotFoundError: there is no such folder or file, or nothing in it.
        ValueError: a file is damaged or an item is not TwoHands.
    """
    if isinstance(source, (str, os.PathLike)):
        return [_file_part(path, hands) for path in _shards(Path(source), split, optional, single)]
    if single:
        return []
    if isinstance(source, TwoHands):
        return [_memory_part(_flat(source), name)]
    try:
        items = iter(source)
    except TypeError:
        raise ValueError(
            f"{name} must be a folder, TwoHands or an iterable of TwoHands, got {type(source).__name__}"
        ) from None
    keep = spool is not None and not isinstance(source, Sequence)
    return [
        _spooled_part(batch, f"{name}[{number}]", spool / f"{name}-{number}.npz")
        if keep and spool is not None
        else _memory_part(batch, f"{name}[{number}]")
        for number, batch in enumerate(_batched(items, name))
    ]


def take(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    """The items start..stop-1 of all parts together."""
    taken = []
    for part in parts:
        a, b = max(start, 0), min(stop, part.count)
        if a < b:
            taken.append(part if b - a == part.count else part.cut(a, b))
        start, stop = start - part.count, stop - part.count
    return taken


def chunks(parts: Iterable[Part]) -> Iterator[TwoHands]:
    """The hands of all parts in order, a few thousand at a time, checked.

    Raises:
        ValueError: see `check_hands`.
    """
    for part in parts:
        hands = part.load().detach()
        check_hands(hands, part.name)
        for start in range(0, len(hands), _CHUNK):
            yield hands[start : start + _CHUNK]


def check_hands(hands: TwoHands, name: str) -> None:
    """Refuse what cannot be trained on.

    Args:
        hands: batch shape (N,).
        name: how to call them in errors.

    Raises:
        ValueError: a hand that is there holds NaN or infinity; a pair has neither hand.
    """
    left, right = hands.valid
    for side, there in (("left", left), ("right", right)):
        for key, value in getattr(hands, side).as_dict().items():
            bad = ~torch.isfinite(value).all(-1) & there
            if bad.any():
                raise ValueError(
                    f"{name}.{side}.{key}: {int(bad.sum())} of {len(hands)} pairs hold NaN or infinity, the first at"
                    f" index {int(bad.nonzero()[0])}. Remove them before training."
                )
    neither = ~(left | right)
    if neither.any():
        raise ValueError(
            f"{name}: {int(neither.sum())} of {len(hands)} pairs have neither a left nor a right hand, the first at"
            f" index {int(neither.nonzero()[0])}. Remove them before training."
        )


def whole_pairs(hands: TwoHands) -> TwoHands:
    """Those pairs (N,) that lack no hand."""
    if hands.left_valid is None and hands.right_valid is None:
        return hands
    left, right = hands.valid
    return replace(hands[left & right], left_valid=None, right_valid=None)


class Fingerprint:
    """A hash of hands and of their models' sizes, however they are cut into batches.

    Of what is read, not of what is computed from it, whose last bit may depend on the number of threads.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._model: str | None = None

    def add(self, hands: TwoHands) -> None:
        """Take more hands (N,) in."""
        key = model_key(hands.hands)
        if key != self._model:
            self._digest.update(key.encode())
            self._model = key
        columns = []
        for hand, there in zip((hands.left, hands.right), hands.valid, strict=True):
            values = torch.cat(list(hand.as_dict().values()), -1).detach().double()
            columns += [torch.where(there[:, None], values, 0), there[:, None].double()]
        self._digest.update(torch.cat(columns, 1).contiguous().numpy().tobytes())

    def text(self) -> str:
        """Of all that was added so far."""
        return self._digest.hexdigest()


def model_key(hands: HandPair | None) -> str:
    """What tells hand models apart: their rest joints, to a hundredth of a millimetre."""
    pair = open_hands() if hands is None else hands
    rest = [model.rest_joints(torch.zeros(10, dtype=torch.float64)).detach() for model in (pair.left, pair.right)]
    return hashlib.sha256(str([(1e5 * joints).round().long().tolist() for joints in rest]).encode()).hexdigest()


def _file_part(path: Path, hands: HandPair | None) -> Part:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            shape = torch.Size(archive["left.transl"].shape[:-1])
    except Exception:  # whatever it is, `load` says it better
        shape = TwoHands.load(path, hands=hands).batch_shape
    facts = path.stat()
    load = lambda: _flat(TwoHands.load(path, hands=hands))
    return Part(str(path), shape.numel(), load, hands, (path.name, facts.st_size, facts.st_mtime_ns))


def _memory_part(hands: TwoHands, name: str) -> Part:
    return Part(name, len(hands), lambda: hands, hands.hands)


def _spooled_part(hands: TwoHands, name: str, path: Path) -> Part:
    check_hands(hands, name)
    hands.save(path)
    count, models = len(hands), hands.hands
    return Part(name, count, lambda: TwoHands.load(path, hands=models), models)


def _flat(hands: TwoHands) -> TwoHands:
    return replace(hands, extras={}).reshape(-1).to("cpu")


def _batched(items: Iterator[TwoHands], name: str) -> Iterator[TwoHands]:
    """Join single pairs into batches, so that a million of them are not a million small tensors."""
    waiting: list[TwoHands] = []
    count = 0
    for number, item in enumerate(items):
        if not isinstance(item, TwoHands):
            raise ValueError(f"{name}[{number}] must be TwoHands, got {type(item).__name__}")
        item = _flat(item)
        if waiting and (item.hands is not waiting[0].hands or item.dtype != waiting[0].dtype or count >= _CHUNK):
            yield TwoHands.cat(waiting)
            waiting, count = [], 0
        waiting.append(item)
        count += len(item)
    if waiting:
        yield TwoHands.cat(waiting)


def _shards(path: Path, split: str, optional: bool, single: bool) -> list[Path]:
    if path.is_file():
        return [] if single else [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist. Give a corpus folder; `interhand-prior corpus {path}` makes one."
        )
    if single:
        return sorted(path.glob(f"single-{split}-*.npz"))
    shards = sorted(path.glob(f"{split}-*.npz"))
    if not shards and not optional:
        others = ("single-", *(f"{other}-" for other in _SPLITS if other != split))
        shards = sorted(file for file in path.glob("*.npz") if not file.name.startswith(others))
    if not shards and not optional:
        raise FileNotFoundError(
            f"{path} holds no {split}-*.npz. `interhand-prior corpus {path}` makes some; TwoHands.save does too."
        )
    return shards
