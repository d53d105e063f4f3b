"""Re:InterHand (Moon et al., NeurIPS 2023): `{capture}/mano_fits/params/{frame}_{left|right}.json`.

Each file is one hand in InterHand2.6M's layout: pose 48, shape 10, trans 3, in the world. The data set has no lists of
splits on disk: a capture belongs to a split by a hash of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..convert import interhand26m_to_hands
from ..hands import HandPair
from .base import Batch, DataSet, chunked, load_json, make_batch, paths_below, stable_split, stacked
from .interhand26m import FIELDS

__all__ = ["REINTERHAND", "read_reinterhand"]


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
            yield make_batch(stable_split(capture), pairs, (masks[0], masks[1]), extras)


REINTERHAND = DataSet(
    "reinterhand",
    "Re:InterHand",
    read_reinterhand,
    "offsets from MANO's mean, repaired left shapedirs, world frame; splits by a hash of the capture's name",
    nearer_than=0.05,
)
