"""InterHand2.6M (Moon et al., ECCV 2020) with NeuralAnnot's MANO parameters, as it is distributed.

    annotations/{split}/InterHand2.6M_{split}_MANO_NeuralAnnot.json  {capture: {frame: {left, right: null or
                                                                     pose 48, shape 10, trans 3}}}
    annotations/{split}/InterHand2.6M_{split}_joint_3d.json          {capture: {frame: {world_coord 42 x 3 mm,
                                                                     joint_valid 42, hand_type, hand_type_valid}}}
    annotations/{split}/InterHand2.6M_{split}_data.json              images and annotations; only read, and then whole,
                                                                     where there is no joint_3d.json

The parameters belong to a (capture, frame) in the world, not to an image. So each is yielded once, however many cameras
saw it: a published count of samples, which counts images, is some tens of times larger. Interacting and valid means:
hand_type is interacting, hand_type_valid holds, and neither hand is null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..convert import interhand26m_to_hands
from ..hands import HandPair
from .base import CHUNK, OPENPOSE, SPLITS, Batch, DataSet, chunked, first_folder, load_json, make_batch, stacked
from .json_index import JsonIndex

__all__ = ["FIELDS", "INTERHAND26M", "read_interhand26m"]

FIELDS = {"pose": (48,), "shape": (10,), "trans": (3,)}
#: Its joints of one hand in OpenPose's order.
_GATHER = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
_MANO = "InterHand2.6M_{}_MANO_NeuralAnnot.json"


def read_interhand26m(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The frames of all splits that are there.

    Args:
        folder: the data set's folder, its `annotations`, or that of one split.
        hands: MANO, the left hand repaired.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or of another layout.
    """
    found = False
    for split in SPLITS:
        there = lambda place, split=split: (place / _MANO.format(split)).is_file()
        place = first_folder(folder, ("", split, f"annotations/{split}", "annotations"), there)
        if place is not None:
            found = True
            yield from _read_split(place, split, hands)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no {_MANO.format('train')} (nor of val, test), neither itself nor in annotations/train "
            "and so on. It is the file of MANO parameters, which is downloaded apart from the images"
        )


def _read_split(place: Path, split: str, hands: HandPair) -> Iterator[Batch]:
    joints_path = place / f"InterHand2.6M_{split}_joint_3d.json"
    data_path = place / f"InterHand2.6M_{split}_data.json"
    if not joints_path.is_file() and not data_path.is_file():
        raise FileNotFoundError(
            f"{joints_path} does not exist, nor does {data_path.name} beside it; one of them must say which frames "
            "have interacting hands"
        )
    with ExitStack() as stack:
        mano = stack.enter_context(JsonIndex(place / _MANO.format(split)))
        facts: Mapping[str, Any]
        facts = stack.enter_context(JsonIndex(joints_path)) if joints_path.is_file() else _types_of(data_path)
        for capture in mano:
            known = facts.get(capture, {})
            for frames in chunked(sorted(mano[capture].items(), key=lambda item: _number(item[0])), CHUNK):
                batch = _batch(mano.path, split, capture, frames, known, hands)
                if batch is not None:
                    yield batch


def _batch(
    path: Path, split: str, capture: str, frames: list[tuple[str, Any]], known: Mapping[str, Any], hands: HandPair
) -> Batch | None:
    skipped: Counter[str] = Counter()
    kept = []
    for frame, annotation in frames:
        if not isinstance(annotation, Mapping) or not {"left", "right"} <= set(annotation):
            raise ValueError(f"{path}: capture {capture}, frame {frame} should have the keys left and right")
        fact = known.get(frame)
        if fact is None:
            skipped["frame without a hand type"] += 1
        elif not np.all(fact.get("hand_type_valid", 0)):
            skipped["hand_type is not valid"] += 1
        else:
            kept.append((frame, annotation, fact))
    if not kept:
        return None if not skipped else _nothing(split, skipped, hands)
    sides, masks = {}, []
    for side in ("left", "right"):
        name = lambda i, side=side: f"{path}: capture {capture}, frame {kept[i][0]}, {side}"
        sides[side], mask = stacked([annotation[side] for _, annotation, _ in kept], FIELDS, name)
        masks.append(mask)
    extras = {
        "sequence": np.full(len(kept), f"capture{capture}"),
        "frame": np.array([_number(frame) for frame, _, _ in kept]),
        "interacting": np.array([fact["hand_type"] == "interacting" for _, _, fact in kept]),
    }
    joints = None
    if all("world_coord" in fact for _, _, fact in kept):
        joints = np.stack([_joints(fact, f"{path}: capture {capture}, frame {frame}") for frame, _, fact in kept])
    pairs = interhand26m_to_hands(sides, hands)
    return make_batch(split, pairs, (masks[0], masks[1]), extras, joints, skipped)


def _nothing(split: str, skipped: Counter[str], hands: HandPair) -> Batch:
    empty, mask = stacked([], FIELDS, str)
    extras = {"sequence": np.empty(0, "<U1"), "frame": np.empty(0, np.int64), "interacting": np.empty(0, bool)}
    pairs = interhand26m_to_hands({"left": empty, "right": empty}, hands)
    return make_batch(split, pairs, (mask, mask), extras, np.empty((0, 2, 21, 3), np.float32), skipped)


def _joints(fact: Mapping[str, Any], name: str) -> np.ndarray:
    """(2, 21, 3) left and right, MANO's order, metres, NaN where a joint is not valid."""
    try:
        places = np.asarray(fact["world_coord"], np.float64).reshape(42, 3) / 1000
        valid = np.asarray(fact["joint_valid"], np.float64).reshape(42) > 0
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name}: joint_3d.json should have world_coord (42, 3) and joint_valid (42)") from None
    places = np.where(valid[:, None], places, np.nan)
    result = np.empty((2, 21, 3), np.float32)
    for index, hand in enumerate((places[21:], places[:21])):
        result[index, list(OPENPOSE)] = hand[_GATHER]
    return result


def _types_of(path: Path) -> dict[str, dict[str, Any]]:
    """Hand types by capture and frame, from the annotations of images; cameras agree, so the last one counts."""
    data = load_json(path)
    try:
        images = {image["id"]: (str(image["capture"]), str(image["frame_idx"])) for image in data["images"]}
        result: dict[str, dict[str, Any]] = {}
        for annotation in data["annotations"]:
            capture, frame = images[annotation["image_id"]]
            result.setdefault(capture, {})[frame] = {key: annotation[key] for key in ("hand_type", "hand_type_valid")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of InterHand2.6M's layout ({error!r})") from None
    return result


def _number(frame: str) -> int:
    try:
        return int(frame)
    except ValueError:
        raise ValueError(f"the frame {frame!r} should be a number; the file is of another layout") from None


INTERHAND26M = DataSet(
    "interhand26m",
    "InterHand2.6M",
    read_interhand26m,
    "offsets from MANO's mean, repaired left shapedirs, world frame, its own splits; one item per (capture, frame)",
)
