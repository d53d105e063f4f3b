"""Re:InterHand (Moon et al., NeurIPS 2023): `{capture}/mano_fits/params/{frame}_{left|right}.json`.

Each file is one hand in InterHand2.6M's layout: pose 48, shape 10, trans 3, in the world. The data set has no lists of
splits on disk: a capture belongs to a split by a hash of its name. The same hands as meshes stand in
`mano_fits/meshes/{frame}_{left|right}.ply`, in millimetres. They tell nothing but whether the conventions are right, so
one of sixteen is read where they are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..convert import interhand26m_to_hands
from ..hands import HandPair
from .base import Batch, DataSet, chunked, load_json, make_batch, paths_below, stable_split, stacked
from .interhand26m import FIELDS
from .meshes import read_ply

__all__ = ["REINTERHAND", "read_reinterhand"]

_EVERY = 16


def read_reinterhand(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The frames of all captures.

    Args:
        folder: holds the captures, or is one.
        hands: MANO, the left hand repaired.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
        ValueError: a file is damaged or of another layout.
    """
    for place in paths_below(folder, "mano_fits/params", "captures", Path.is_dir):
        capture = place.parents[1].name
        frames = sorted({path.stem.rpartition("_")[0] for path in place.glob("*_*.json")})
        if not frames:
            raise FileNotFoundError(f"{place} holds no files like 000000_left.json")
        for group in chunked(frames):
            sides, masks = {}, []
            for side in ("left", "right"):
                paths = [place / f"{frame}_{side}.json" for frame in group]
                items = [load_json(path) if path.is_file() else None for path in paths]
                sides[side], mask = stacked(items, FIELDS, [str(path) for path in paths].__getitem__)
                masks.append(mask)
            numbers = [int(frame) if frame.isdecimal() else -1 for frame in group]
            extras = {"sequence": np.full(len(group), capture), "frame": np.array(numbers, np.int64)}
            pairs = interhand26m_to_hands(sides, hands)
            own = _vertices(place.with_name("meshes"), group)
            yield make_batch(stable_split(capture), pairs, (masks[0], masks[1]), extras, vertices=own)


def _vertices(folder: Path, frames: list[str]) -> np.ndarray | None:
    """(N, 2, 778, 3) metres, NaN where no mesh was read; None where none was."""
    known = np.full((len(frames), 2, 778, 3), np.nan, np.float32)
    for index in range(0, len(frames), _EVERY):
        for side, name in enumerate(("left", "right")):
            path = folder / f"{frames[index]}_{name}.ply"
            if path.is_file():
                mesh = read_ply(path)
                # No hand is a metre long.
                known[index, side] = mesh / 1000 if np.ptp(mesh, axis=0).max() > 1 else mesh
    return known if np.isfinite(known).any() else None


REINTERHAND = DataSet(
    "reinterhand",
    "Re:InterHand",
    read_reinterhand,
    "offsets from MANO's mean, repaired left shapedirs, world frame; splits by a hash of the capture's name",
    nearer_than=0.05,
)
