"""InterHand2.6M as IntagHand (Li et al., CVPR 2022) preprocesses it: `{split}/anno/{i}.pkl`.

Each pickle holds mano_params {left, right: R (1, 3, 3), pose (1, 45) PCA coefficients, shape (1, 10), trans (1, 3)} in
the world, and the camera of one image. The same hands come once per camera; they are yielded once, told by their
numbers. All frames are interacting ones: the preprocessing chose them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..convert import intaghand_to_hands
from ..hands import HandPair
from ..pickles import read_plain
from .base import SPLITS, Batch, DataSet, chunked, first_folder, make_batch, stacked

__all__ = ["INTAGHAND", "read_intaghand"]

_FIELDS = {"R": (3, 3), "pose": (45,), "shape": (10,), "trans": (3,)}


def read_intaghand(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The annotations of all splits that are there, in the order of their numbers, in the world's frame.

    Args:
        folder: holds {split}/anno.
        hands: MANO, the left hand repaired.

    Raises:
        FileNotFoundError: no split is there, or one is empty.
        ValueError: a file is damaged, of another layout, or tries to run code.
    """
    places = {split: first_folder(folder, (f"{split}/anno",), Path.is_dir) for split in SPLITS}
    if not any(places.values()):
        raise FileNotFoundError(
            f"{folder} holds none of train/anno, val/anno, test/anno, which IntagHand's script writes"
        )
    seen: set[bytes] = set()
    for split, place in places.items():
        if place is None:
            continue
        paths = sorted(place.glob("*.pkl"), key=lambda path: (len(path.stem), path.stem))
        if not paths:
            raise FileNotFoundError(f"{place} holds no .pkl files")
        for group in chunked(paths):
            yield _batch(split, group, hands, seen)


def _batch(split: str, paths: list[Path], hands: HandPair, seen: set[bytes]) -> Batch:
    skipped: Counter[str] = Counter()
    kept: list[tuple[Path, Mapping[str, Any]]] = []
    for path in paths:
        params = _params(path)
        try:
            key = _key(params)
        except (TypeError, ValueError, KeyError):
            raise ValueError(f"{path}: mano_params should hold arrays by name, for each hand") from None
        if key in seen:
            skipped["the same hands seen by another camera"] += 1
            continue
        seen.add(key)
        kept.append((path, params))
    sides, masks = {}, []
    for side in ("left", "right"):
        name = lambda i, side=side: f"{kept[i][0]}: mano_params[{side!r}]"
        sides[side], mask = stacked([params[side] for _, params in kept], _FIELDS, name)
        sides[side]["R"][~mask] = np.eye(3)
        masks.append(mask)
    extras = {
        "sequence": np.full(len(kept), f"{split}/anno"),
        "frame": np.array([int(path.stem) if path.stem.isdecimal() else -1 for path, _ in kept], np.int64),
    }
    return make_batch(split, intaghand_to_hands(sides, hands), (masks[0], masks[1]), extras, skipped=skipped)


def _params(path: Path) -> Mapping[str, Any]:
    content = read_plain(path)
    params = content.get("mano_params") if isinstance(content, Mapping) else None
    if not isinstance(params, Mapping) or not {"left", "right"} <= set(params):
        raise ValueError(f"{path} should hold a dictionary whose mano_params have the keys left and right")
    return params


def _key(params: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for side in ("left", "right"):
        for name in sorted(params[side] or ()):
            digest.update(f"{side}.{name}".encode())
            digest.update(np.ascontiguousarray(params[side][name], np.float32).tobytes())
    return digest.digest()


INTAGHAND = DataSet(
    "intaghand",
    "InterHand2.6M as preprocessed by IntagHand",
    read_intaghand,
    "45 PCA coefficients with the mean added, repaired left shapedirs, world frame, its own splits; cameras merged",
)
