"""HOT3D (Banerjee et al., CVPR 2025): `{sequence}/mano_hand_pose_trajectory.jsonl`, one line per time.

    {"timestamp_ns": ..., "hand_poses": {"0": {"pose": 15 PCA coefficients, "wrist_xform": {"q_wxyz": 4, "t_xyz": 3},
                                               "betas": 10}, "1": ...}}

"0" is the left hand; a hand that is not there has no entry. MANO's mean is added to the pose; t_xyz is MANO's
translation, in the world, in metres. A sequence belongs to a split by a hash of its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..convert import intaghand_to_hands
from ..hands import HandPair
from .base import Batch, DataSet, chunked, make_batch, paths_below, stable_split, stacked

__all__ = ["HOT3D", "read_hot3d"]

_FILE = "mano_hand_pose_trajectory.jsonl"
_FIELDS = {"pose": (15,), "shape": (10,), "q": (4,), "trans": (3,)}


def read_hot3d(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The times of all sequences.

    Args:
        folder: holds the sequences, or is one.
        hands: MANO, the left hand repaired.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
        ValueError: a file is damaged or of another layout.
    """
    for path in paths_below(folder, _FILE, "sequences"):
        with open(path, encoding="utf-8") as lines:
            for group in chunked((number, line) for number, line in enumerate(lines, 1) if line.strip()):
                yield _batch(path, group, hands)


def _batch(path: Path, lines: list[tuple[int, str]], hands: HandPair) -> Batch:
    times, poses = [], []
    for number, line in lines:
        try:
            record = json.loads(line)
            times.append(int(record["timestamp_ns"]))
            poses.append({index: record["hand_poses"].get(index) for index in ("0", "1")})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is damaged or of another layout ({error!r})") from None
    sides, masks = {}, []
    for side, index in (("left", "0"), ("right", "1")):
        name = lambda i, index=index: f"{path}, line {lines[i][0]}, hand {index}"
        arrays, mask = stacked([_flat(pose[index]) for pose in poses], _FIELDS, name)
        rotation = _matrices(arrays.pop("q"), mask)
        sides[side] = {**arrays, "R": rotation}
        masks.append(mask)
    extras = {"sequence": np.full(len(times), path.parent.name), "frame": np.array(times, np.int64)}
    pairs = intaghand_to_hands(sides, hands)
    return make_batch(stable_split(path.parent.name), pairs, (masks[0], masks[1]), extras)


def _flat(hand: Any) -> Any:
    """A hand under the names of `_FIELDS`; None where there is none."""
    if not hand:
        return None
    if not isinstance(hand, Mapping) or not isinstance(hand.get("wrist_xform"), Mapping):
        return {}
    place = hand["wrist_xform"]
    found = {
        "pose": hand.get("pose"),
        "shape": hand.get("betas"),
        "q": place.get("q_wxyz"),
        "trans": place.get("t_xyz"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _matrices(quaternion: np.ndarray, there: np.ndarray) -> torch.Tensor:
    """(N, 4), real part first, of any length -> (N, 3, 3); the identity where there is no hand."""
    values = torch.as_tensor(quaternion, dtype=torch.float64)
    values[~torch.as_tensor(there)] = torch.tensor((1.0, 0, 0, 0), dtype=torch.float64)
    w, x, y, z = (values / values.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2).float()


HOT3D = DataSet(
    "hot3d",
    "HOT3D",
    read_hot3d,
    "15 PCA coefficients with the mean added, repaired left shapedirs, world frame; splits by a hash of the sequence's "
    "name",
    nearer_than=0.05,
)
