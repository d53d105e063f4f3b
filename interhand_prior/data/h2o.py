"""H2O (Kwon et al., ICCV 2021): `.../cam{k}/hand_pose_mano/{frame}.txt`, 124 numbers of a frame.

For the left and then the right hand: a flag, translation 3, pose 48, shape 10. Poses are absolute; the frame is the
camera's, in metres. Every camera has its own file of the same hands, so one camera of a recording is read: cam4, which
the person wears, or else the first. `hand_pose/{frame}.txt` beside it, where it is there, holds 21 joints of each hand:
flag, then x, y, z in OpenPose's order. A recording belongs to a split by a hash of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..convert import pair_of, wrapped
from ..hands import HandPair
from ..params import HandParams
from .base import OPENPOSE, Batch, DataSet, chunked, make_batch, stable_split

__all__ = ["H2O", "read_h2o"]


def read_h2o(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The frames of all recordings.

    Args:
        folder: holds the subjects, or any part of them.
        hands: MANO, the left hand repaired.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
        ValueError: a file is damaged or of another layout.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    cameras = sorted(place.parent for place in folder.glob("**/hand_pose_mano") if place.is_dir())
    if not cameras:
        raise FileNotFoundError(f"{folder} holds no folder hand_pose_mano, in none of its recordings")
    for recording in sorted({camera.parent for camera in cameras}):
        own = [camera for camera in cameras if camera.parent == recording]
        camera = next((c for c in own if c.name == "cam4"), own[0])
        paths = sorted((camera / "hand_pose_mano").glob("*.txt"))
        if not paths:
            raise FileNotFoundError(f"{camera / 'hand_pose_mano'} holds no .txt files")
        # The folder's own name counts where a single recording is given.
        name = "/".join(recording.parts[-3:])
        for group in chunked(paths):
            yield _batch(name, group, hands)


def _batch(name: str, paths: list[Path], hands: HandPair) -> Batch:
    rows = torch.tensor(np.stack([_numbers(path, 124) for path in paths]), dtype=torch.float32)
    sides, masks = {}, []
    for side, part in zip(("left", "right"), rows.split(62, 1), strict=True):
        masks.append(part[:, 0].numpy() > 0)
        transl, pose, betas = part[:, 1:4], part[:, 4:52], part[:, 52:]
        sides[side] = HandParams(pose[:, :3], wrapped(pose[:, 3:]), betas, transl)
    numbers = [int(path.stem) if path.stem.isdecimal() else -1 for path in paths]
    extras = {"sequence": np.full(len(paths), name), "frame": np.array(numbers, np.int64)}
    joints = np.stack([_joints(path.parents[1] / "hand_pose" / path.name) for path in paths])
    known = joints if np.isfinite(joints).any() else None
    pairs = pair_of(sides["left"], sides["right"], hands)
    return make_batch(stable_split(name), pairs, (masks[0], masks[1]), extras, known)


def _joints(path: Path) -> np.ndarray:
    """(2, 21, 3), MANO's order, NaN where a hand is not there."""
    result = np.full((2, 21, 3), np.nan, np.float32)
    if path.is_file():
        for index, hand in enumerate(_numbers(path, 128).reshape(2, 64)):
            if hand[0] > 0:
                result[index, list(OPENPOSE)] = hand[1:].reshape(21, 3)
    return result


def _numbers(path: Path, count: int) -> np.ndarray:
    try:
        values = np.array(path.read_text(encoding="utf-8").split(), np.float64)
    except ValueError:
        values = np.empty(0)
    if values.shape != (count,):
        raise ValueError(f"{path} should hold {count} numbers; it is damaged or of another layout")
    return values


H2O = DataSet(
    "h2o",
    "H2O",
    read_h2o,
    "absolute poses, left betas taken for the repaired left shapedirs, the frame of one camera per recording; splits "
    "by a hash of the recording's name",
    needs_mean=False,
    nearer_than=0.05,
)
