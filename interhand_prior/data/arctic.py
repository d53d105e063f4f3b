"""ARCTIC (Fan et al., CVPR 2023): hands and articulated objects.

    raw_seqs/{subject}/{seq}.mano.npy     pickled {left, right: {rot (T, 3), pose (T, 45), trans (T, 3), shape (10,)}}
    raw_seqs/{subject}/{seq}.object.npy   (T, 7): articulation rad, axis-angle, translation in MILLIMETRES
    meta/object_vtemplates/{object}       the objects' shapes (`arctic_objects`); may be missing
    splits_json/protocol_p1.json          {train, val, test: ["s05/box_use_01", ...]}

Left betas belong to the released left shapedirs. They are refitted to those of the hand models that are passed, unless
these are the released ones too (`with_released_left`). Ten frames at each end of a sequence are left out, as the
published image lists do. Extras: object_name, object_articulation, object_orient, object_transl (metres), in the frame
of the hands: `interhand_prior.objects` makes meshes and points of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..convert import arctic_to_hands, refit_left, with_released_left
from ..hands import HandPair
from ..objects import OBJECT_NAME
from ..pickles import read_npy
from .arctic_objects import read_templates
from .base import CHUNK, SPLITS, Batch, DataSet, first_folder, load_json, make_batch

__all__ = ["ARCTIC", "MARGIN", "read_arctic"]

#: Frames that are left out at each end of a sequence.
MARGIN = 10
_WIDTHS = {"rot": 3, "pose": 45, "trans": 3}


def read_arctic(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The frames of the sequences in protocol 1.

    Args:
        folder: holds raw_seqs and splits_json, itself or in arctic_data/data or data.
        hands: MANO.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a file is damaged, of another layout, or tries to run code.
    """
    raw = _raw(folder)
    lists = first_folder(raw.parent, ["splits_json", "../splits_json", "../../splits_json"], Path.is_dir)
    if lists is None or not (lists / "protocol_p1.json").is_file():
        raise FileNotFoundError(f"{raw.parent} holds no splits_json/protocol_p1.json, which says what is train and val")
    protocol = load_json(lists / "protocol_p1.json")
    if not isinstance(protocol, Mapping) or not set(SPLITS) & set(protocol):
        raise ValueError(f"{lists / 'protocol_p1.json'} should have the keys train, val and test")
    fixed = np.abs(hands.left.arrays.shapedirs[:, 0] - hands.right.arrays.shapedirs[:, 0]).sum() >= 1
    released = with_released_left(hands) if fixed else hands
    found, missing = 0, Counter[str]()
    for split in SPLITS:
        for sequence in protocol.get(split, ()):
            path = raw / f"{sequence}.mano.npy"
            if not path.is_file():
                missing["sequence in protocol_p1.json that is not in raw_seqs"] += 1
                continue
            found += 1
            for batch in _read_sequence(path, split, str(sequence), hands, released):
                batch.skipped.update(missing)
                missing.clear()
                yield batch
    if not found:
        raise FileNotFoundError(f"{raw} holds none of the sequences that {lists / 'protocol_p1.json'} lists")


def _raw(folder: Path) -> Path:
    places = ("raw_seqs", "data/raw_seqs", "arctic_data/data/raw_seqs", "data/arctic_data/data/raw_seqs")
    raw = first_folder(folder, places, Path.is_dir)
    if raw is None:
        raise FileNotFoundError(f"{folder} holds no folder raw_seqs, neither itself nor in arctic_data/data")
    return raw


def _read_sequence(path: Path, split: str, sequence: str, hands: HandPair, released: HandPair) -> Iterator[Batch]:
    content = read_npy(path)
    if not isinstance(content, Mapping) or not {"left", "right"} <= set(content):
        raise ValueError(f"{path} should hold a dictionary with the keys left and right")
    sides = {side: _side(content[side], f"{path}, {side}") for side in ("left", "right")}
    if sides["left"] is None and sides["right"] is None:
        return
    lengths = {len(side["rot"]) for side in sides.values() if side is not None}
    objects = _objects(path.with_name(path.name.replace(".mano.npy", ".object.npy")))
    if len(lengths | {len(objects)}) != 1:
        raise ValueError(
            f"{path} and its object.npy have different numbers of frames: {sorted(lengths)}, {len(objects)}"
        )
    frames = np.arange(MARGIN, max(MARGIN, len(objects) - MARGIN))
    placed = frames[np.isfinite(objects[frames]).all(1)]
    dropped = Counter({f"first and last {MARGIN} frames": len(objects) - len(frames)})
    dropped["object with NaN or infinity"] += len(frames) - len(placed)
    name = sequence.rpartition("/")[2].partition("_")[0]
    for start in range(0, len(placed), CHUNK):
        rows = placed[start : start + CHUNK]
        part = {
            side: None if data is None else {key: data[key] if key == "shape" else data[key][rows] for key in data}
            for side, data in sides.items()
        }
        pairs = arctic_to_hands(part, released)
        if hands is not released:
            pairs = refit_left(pairs, hands)
        here = objects[rows]
        extras = {
            "sequence": np.full(len(here), sequence),
            "frame": rows,
            OBJECT_NAME: np.full(len(here), name),
            "object_articulation": here[:, 0],
            "object_orient": here[:, 1:4],
            "object_transl": here[:, 4:] / 1000,
        }
        there = [np.full(len(here), sides[side] is not None) for side in ("left", "right")]
        yield make_batch(split, pairs, (there[0], there[1]), extras, skipped=dropped if start == 0 else None)


def _side(data: Any, name: str) -> dict[str, np.ndarray] | None:
    if data is None:
        return None
    try:
        result = {key: np.asarray(data[key], np.float32) for key in (*_WIDTHS, "shape")}
        good = result["shape"].shape == (10,) and len({len(result[key]) for key in _WIDTHS}) == 1
        good = good and all(result[key].shape[1:] == (width,) for key, width in _WIDTHS.items())
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"{name} should have rot (T, 3), pose (T, 45), trans (T, 3) and shape (10,)")
    return result


def _objects(path: Path) -> np.ndarray:
    """(T, 7)."""
    values = read_npy(path)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.shape[1] != 7:
        raise ValueError(f"{path} should hold an array (T, 7): articulation, axis-angle, translation in mm")
    return values.astype(np.float32)


ARCTIC = DataSet(
    "arctic",
    "ARCTIC",
    read_arctic,
    "offsets from MANO's mean, wrapped; left betas refitted from the released left shapedirs to the repaired ones; "
    "world frame; protocol 1's splits; objects' poses in extras",
    nearer_than=0.05,
    shapes=lambda folder: read_templates(_raw(folder)),
)
