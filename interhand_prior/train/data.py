"""Training data: hands -> canonical vectors (vectors.py), computed once.

`read_samples` gives samples to train a prior on: pairs and hands alone, in memory or in shards on disk (store.py) that
are made at the first run and found again by all later ones with the same data. `load_corpus` and `to_vectors` give
pairs alone, all in memory, to whatever else is trained on them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..canonical import SIZE, SLICES, Side, to_canonical
from ..hands import HandPair
from ..params import TwoHands
from .mixture import mixture
from .sources import Fingerprint, PairSource, Part, check_hands, chunks, model_key, read_parts, take, whole_pairs
from .store import FORMAT, StoreError, discard, open_samples, read_manifest, scratch_folder, shards_of, write_samples
from .vectors import Batch, Rows, Samples, VectorSamples, canonical_rows

__all__ = [
    "MEMORY_ROWS",
    "Batch",
    "PairSource",
    "Samples",
    "TrainingData",
    "Vectors",
    "fingerprint",
    "load_corpus",
    "mixture",
    "read_samples",
    "to_vectors",
]

#: Data sets of at most so many samples stay in memory, where they take 31 MB, and write no shards.
MEMORY_ROWS = 1 << 16
_CHUNK = 4096
_VAL_SHARE = 0.05
#: Hands further apart, in the median, are not in metres.
_FAR = 2.0


class TrainingData(NamedTuple):
    """What `read_samples` gives.

    Attributes:
        train: samples to train on.
        val: samples to validate on, in memory; perhaps none (`count` 0).
        held_out: the pairs among those of `val` that lack no hand.
        hands: hand models that the hands belong to (the first ones, if there are several); None: the open hand.
    """

    train: Samples
    val: Samples
    held_out: list[TwoHands]
    hands: HandPair | None


@dataclass(frozen=True)
class Vectors:
    """Pairs as canonical vectors in memory, not normalised.

    Attributes:
        anchor: (N, 64) float32.
        partner: (N, 64) float32. With both anchors, rows i and N/2 + i are the two views of pair i.
    """

    anchor: Tensor
    partner: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.partner)


def read_samples(
    source: PairSource,
    val: PairSource | None = None,
    *,
    mirror: bool = True,
    hands: HandPair | None = None,
    cache: str | os.PathLike[str] | None = None,
    max_val: int = 2000,
    memory_rows: int = MEMORY_ROWS,
) -> TrainingData:
    """Samples to train and to validate on.

    Pairs that lack a hand are samples of the other one. Data are read part by part: a file, or a few thousand pairs
    of an iterator, at a time.

    Args:
        source: a folder with `train-*.npz`, `val-*.npz` and, for hands alone, `single-train-*.npz`, `single-val-*.npz`
            as `interhand-prior corpus` or `TwoHands.save` write them (or only `*.npz`), one such file, TwoHands of any
            batch shape, or an iterable of them.
        val: validation data in the same forms. Default: the folder's; failing that, the last 5 % of the pairs.
        mirror: train on the second view of each pair, too. Validation always sees both.
        hands: hand models that parameters in files belong to; None: the open hand.
        cache: folder for shards, made if missing; may serve several data sets, runs and processes. None: all samples
            stay in memory.
        max_val: validation pairs, and validation hands alone, at most.
        memory_rows: data sets of at most so many samples stay in memory in any case.

    Raises:
        FileNotFoundError: there is no such folder or file, or nothing in it.
        ValueError: a file is damaged; an item is not TwoHands; hands hold NaN or are not in metres; a pair has neither
            hand; there is nothing to train on.
        OSError: the cache cannot be written.
    """
    folder = None if cache is None else Path(cache)
    with nullcontext() if folder is None else scratch_folder(folder) as spool:
        pairs, alone = _pairs_and_alone(source, "train", hands, "pairs", spool)
        if sum(part.count for part in [*pairs, *alone]) == 0:
            raise ValueError("pairs is empty; there is nothing to train on")
        pairs, val_pairs, val_alone = _split(source, pairs, val, hands, spool)
        train = [*pairs, *alone]
        val_pairs, val_alone = take(val_pairs, 0, max_val), take(val_alone, 0, max_val)
        return TrainingData(
            _samples(train, mirror, folder, memory_rows),
            _samples([*val_pairs, *val_alone], True, None, 0, name="val_pairs"),
            _loaded(val_pairs),
            train[0].hands if train else hands,
        )


def load_corpus(
    source: PairSource, val: PairSource | None = None, *, hands: HandPair | None = None
) -> tuple[list[TwoHands], list[TwoHands]]:
    """Training and validation pairs, in memory. Hands alone, and pairs that lack a hand, are left out.

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
    parts = read_parts(source, "train", hands)
    if not parts:
        raise ValueError("pairs is empty; there is nothing to train on")
    train, held_out, _ = _split(source, parts, val, hands, None)
    return _loaded(train), _loaded(held_out)


def to_vectors(pairs: Sequence[TwoHands], *, mirror: bool, name: str = "pairs") -> Vectors:
    """Canonical vectors of all pairs, in float32 on the CPU.

    Args:
        pairs: batches of shape (N,) that lack no hand.
        mirror: give the second view of each pair too.
        name: how to call them in errors.

    Raises:
        ValueError: a pair holds NaN or infinity or lacks a hand, or the hands are so far apart that the unit cannot be
            metres.
    """
    sides: tuple[Side, ...] = ("left", "right") if mirror else ("left",)
    anchors: dict[str, list[Tensor]] = {side: [] for side in sides}
    partners: dict[str, list[Tensor]] = {side: [] for side in sides}
    for number, part in enumerate(pairs):
        check_hands(part, f"{name}[{number}]")
        if len(whole_pairs(part)) < len(part):
            raise ValueError(f"{name}[{number}]: pairs lack a hand; `load_corpus` leaves those out")
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
        _require_metres(vectors.partner[:, SLICES["transl"]].norm(dim=-1), name)
    return vectors


def fingerprint(pairs: Sequence[TwoHands]) -> str:
    """A hash of the parameters and of the hand models' sizes: a resumed run must go on with the same ones."""
    found = Fingerprint()
    for part in pairs:
        found.add(part)
    return found.text()


def _split(
    source: PairSource, pairs: list[Part], val: PairSource | None, hands: HandPair | None, spool: Path | None
) -> tuple[list[Part], list[Part], list[Part]]:
    """Training pairs, validation pairs, and hands alone to validate on."""
    if val is not None:
        return pairs, *_pairs_and_alone(val, "val", hands, "val_pairs", spool)
    alone = read_parts(source, "val", hands, single=True)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        held_out = read_parts(source, "val", hands, optional=True)
        if held_out:
            return pairs, held_out, alone
    # A block at the end, not a random draw: neighbours in a recording are nearly equal.
    total = sum(part.count for part in pairs)
    keep = total - round(_VAL_SHARE * total)
    return take(pairs, 0, keep), take(pairs, keep, total), alone


def _pairs_and_alone(
    source: PairSource, split: str, hands: HandPair | None, name: str, spool: Path | None
) -> tuple[list[Part], list[Part]]:
    """Parts with pairs, and parts with hands alone; a folder may hold the second kind only."""
    alone = read_parts(source, split, hands, single=True)
    try:
        return read_parts(source, split, hands, name=name, spool=spool), alone
    except FileNotFoundError:
        if not alone:
            raise
        return [], alone


def _loaded(parts: list[Part]) -> list[TwoHands]:
    return [pairs for pairs in (whole_pairs(part.load()) for part in parts) if len(pairs)]


def _samples(
    parts: list[Part], mirror: bool, cache: Path | None, memory_rows: int, name: str = "pairs"
) -> VectorSamples:
    """Samples of all parts: in memory, or from the shards in `cache`, made if they are not there."""
    total = sum(part.count for part in parts) * (1 + mirror)
    print_of_data = Fingerprint()
    rows = _rows(parts, mirror, print_of_data, name)
    if cache is None or total <= memory_rows:
        blocks = list(shards_of(rows, max(total, 1)))
        return VectorSamples.of(blocks, _key(print_of_data, mirror))
    stamps = [[*part.stamp, model_key(part.hands)] for part in parts if part.stamp is not None]
    files = stamps if len(stamps) == len(parts) else None
    found = _find(cache, parts, files, mirror)
    if found is not None:
        return found

    def describe() -> tuple[str, dict[str, object]]:
        key = _key(print_of_data, mirror)
        return _name(key), {"fingerprint": key, "mirror": mirror, "files": files}

    return open_samples(write_samples(cache, rows, describe))


def _find(cache: Path, parts: list[Part], files: list[list[str | int]] | None, mirror: bool) -> VectorSamples | None:
    """The samples of these parts, if there are shards of them: by the files' stamps, or else by what is in them."""
    folders = sorted(cache.glob(_name("*")))
    if not folders:
        return None
    for folder in folders if files is not None else ():
        with suppress(StoreError, FileNotFoundError):
            manifest = read_manifest(folder)
            if manifest.get("files") == files and manifest.get("mirror") == mirror:
                return open_samples(folder)
    content = Fingerprint()
    for chunk in chunks(parts):
        content.add(chunk)
    folder = cache / _name(_key(content, mirror))
    if folder.exists():
        try:
            return open_samples(folder)
        except (StoreError, FileNotFoundError):
            discard(folder)
    return None


def _name(key: str) -> str:
    """Of the folder with the shards of that key: nothing else in a cache is looked at, or removed."""
    return f"samples-v{FORMAT}-{key[:16]}"


def _key(data: Fingerprint, mirror: bool) -> str:
    return hashlib.sha256(f"{data.text()} {mirror}".encode()).hexdigest()


def _rows(parts: list[Part], mirror: bool, data: Fingerprint, name: str) -> Iterator[Rows]:
    """Rows of all parts, whose fingerprint is taken on the way.

    Raises:
        ValueError: see `chunks`; at the end, that the hands are too far apart.
    """
    distances = []
    for chunk in chunks(parts):
        data.add(chunk)
        rows = canonical_rows(chunk, mirror=mirror)
        yield rows
        offset = rows.values[rows.flags[:, 1]][:, -3:]
        # A few of each chunk give the median well enough, and are few of any data set.
        distances.append(offset[:: 1 + len(offset) // 64].norm(dim=-1))
    if sum(map(len, distances)):
        _require_metres(torch.cat(distances), name)


def _require_metres(distances: Tensor, name: str) -> None:
    distance = float(distances.median())
    if distance > _FAR:
        raise ValueError(
            f"{name}: the hands are {distance:.0f} m apart (median). Parameters must be in metres; divide"
            " transl by 1000 if it is in millimetres."
        )
