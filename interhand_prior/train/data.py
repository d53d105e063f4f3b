"""Training data: pairs of hands -> canonical vectors, computed once and kept in memory.

A pair gives two training samples (Algorithm 1, line 2): the right hand given the left one, and, seen in the mirror,
the left hand given the right one. In canonical form (Eq. 5) they are the pair with either hand as the anchor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import torch
from torch import Tensor

from ..canonical import SIZE, SLICES, Side, to_canonical
from ..hands import HandPair
from ..params import TwoHands

__all__ = ["PairSource", "Vectors", "fingerprint", "load_corpus", "to_vectors"]

PairSource = Union[str, "os.PathLike[str]", TwoHands, Iterable[TwoHands]]

_CHUNK = 4096
_VAL_SHARE = 0.05


@dataclass(frozen=True)
class Vectors:
    """Training samples, not normalised.

    Attributes:
        anchor: (N, 64) float32.
        partner: (N, 64) float32. With both anchors, rows i and N/2 + i are the two views of pair i.
    """

    anchor: Tensor
    partner: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.partner)


def load_corpus(
    source: PairSource, val: PairSource | None = None, *, hands: HandPair | None = None
) -> tuple[list[TwoHands], list[TwoHands]]:
    """Training and validation pairs.

    Args:
        source: a folder with `train-*.npz` and `val-*.npz` as `interhand-prior corpus` or `TwoHands.save` write
            them (or only `*.npz`), one such file, or TwoHands, or an iterable of them.
        val: validation pairs in the same forms. Default: the folder's `val-*.npz`; failing that, the last 5 % of
            the pairs.
        hands: hand models that the parameters in files belong to; None: the open hand.

    Raises:
        FileNotFoundError: there is no such folder or file, or nothing in it.
        ValueError: a file is damaged or an item is not TwoHands.
    """
    train = list(_read(source, "train", hands))
    if not train:
        raise ValueError("pairs is empty; there is nothing to train on")
    if val is not None:
        return train, list(_read(val, "val", hands))
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        held_out = list(_read(source, "val", hands, optional=True))
        if held_out:
            return train, held_out
    # A block at the end, not a random draw: neighbours in a recording are nearly equal.
    keep = sum(map(len, train)) - round(_VAL_SHARE * sum(map(len, train)))
    held_out, kept = [], []
    for part in train:
        kept += [part[:keep]] if keep else []
        held_out += [part[keep:]] if keep < len(part) else []
        keep -= min(keep, len(part))
    return kept, held_out


def to_vectors(pairs: list[TwoHands], *, mirror: bool, name: str = "pairs") -> Vectors:
    """Canonical vectors of all pairs, in float32 on the CPU.

    Args:
        pairs: batches of shape (N,).
        mirror: give the second view of each pair too.
        name: how to call them in errors.

    Raises:
        ValueError: a pair holds NaN or infinity, or the hands are so far apart that the unit cannot be metres.
    """
    sides: tuple[Side, ...] = ("left", "right") if mirror else ("left",)
    anchors: dict[str, list[Tensor]] = {side: [] for side in sides}
    partners: dict[str, list[Tensor]] = {side: [] for side in sides}
    for number, part in enumerate(pairs):
        _require_finite(part, f"{name}[{number}]")
        for start in range(0, len(part), _CHUNK):
            chunk = part[start : start + _CHUNK].detach().to("cpu")
            for side in sides:
                with torch.no_grad():
                    anchor, partner, _ = to_canonical(chunk, chunk.model, side)
                anchors[side].append(anchor.float())
                partners[side].append(partner.float())
    join = lambda parts: torch.cat([t for side in sides for t in parts[side]] or [torch.empty(0, SIZE)])
    vectors = Vectors(join(anchors), join(partners))
    if len(vectors):
        distance = float(vectors.partner[:, SLICES["transl"]].norm(dim=-1).median())
        if distance > 2:
            raise ValueError(
                f"{name}: the hands are {distance:.0f} m apart (median). Parameters must be in metres; divide"
                " transl by 1000 if it is in millimetres."
            )
    return vectors


def fingerprint(pairs: list[TwoHands]) -> str:
    """A hash of the parameters and of the hand models' sizes: a resumed run must go on with the same ones.

    Of what is read, not of what is computed from it, whose last bit may depend on the number of threads.
    """
    digest = hashlib.sha256()
    for part in pairs:
        for hand, model in ((part.left, part.model.left), (part.right, part.model.right)):
            for value in hand.as_dict().values():
                digest.update(value.detach().double().contiguous().numpy().tobytes())
            rest = model.rest_joints(torch.zeros(10, dtype=torch.float64))
            digest.update(str((1e5 * rest).round().long().tolist()).encode())
    return digest.hexdigest()


def _read(source: PairSource, split: str, hands: HandPair | None, optional: bool = False) -> Iterator[TwoHands]:
    if isinstance(source, TwoHands):
        yield _flat(source)
    elif isinstance(source, (str, os.PathLike)):
        for path in _shards(Path(source), split, optional):
            yield _flat(TwoHands.load(path, hands=hands))
    else:
        try:
            items = iter(source)
        except TypeError:
            raise ValueError(
                f"pairs must be a folder, TwoHands or an iterable of TwoHands, got {type(source).__name__}"
            ) from None
        yield from _batched(items)


def _batched(items: Iterator[TwoHands]) -> Iterator[TwoHands]:
    """Join single pairs into batches, so that a million of them are not a million small tensors."""
    waiting: list[TwoHands] = []
    count = 0
    for number, item in enumerate(items):
        if not isinstance(item, TwoHands):
            raise ValueError(f"pairs[{number}] must be TwoHands, got {type(item).__name__}")
        item = _flat(item)
        if waiting and (item.hands is not waiting[0].hands or item.dtype != waiting[0].dtype or count >= _CHUNK):
            yield TwoHands.cat(waiting)
            waiting, count = [], 0
        waiting.append(item)
        count += len(item)
    if waiting:
        yield TwoHands.cat(waiting)


def _flat(pairs: TwoHands) -> TwoHands:
    return TwoHands(pairs.left.reshape(-1), pairs.right.reshape(-1), pairs.hands).to("cpu")


def _shards(path: Path, split: str, optional: bool) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist. Give a corpus folder; `interhand-prior corpus {path}` makes one."
        )
    shards = sorted(path.glob(f"{split}-*.npz"))
    if not shards and not optional:
        others = tuple(f"{s}-" for s in ("train", "val", "test") if s != split)
        shards = sorted(p for p in path.glob("*.npz") if not p.name.startswith(others))
    if not shards and not optional:
        raise FileNotFoundError(
            f"{path} holds no {split}-*.npz. `interhand-prior corpus {path}` makes some; TwoHands.save does too."
        )
    return shards


def _require_finite(pairs: TwoHands, name: str) -> None:
    for side in ("left", "right"):
        for key, value in getattr(pairs, side).as_dict().items():
            bad = ~torch.isfinite(value).all(-1)
            if bad.any():
                raise ValueError(
                    f"{name}.{side}.{key}: {int(bad.sum())} of {len(pairs)} pairs hold NaN or infinity, the first at"
                    f" index {int(bad.nonzero()[0])}. Remove them before training."
                )
