"""H2O (Kwon et al., ICCV 2021): `.../cam{k}/hand_pose_mano/{frame}.txt`, 124 numbers of a frame.

For the left and then the right hand: a flag, translation 3, pose 48, shape 10. Poses are absolute; the frame is the
camera's, in metres. Every camera has its own file of the same hands, so one camera of a recording is read: cam4, which
the person wears, or else the first. `hand_pose/{frame}.txt` beside it, where it is there, holds 21 joints of each hand:
flag, then x, y, z in OpenPose's order. A recording belongs to a split by a hash of its name.

Objects are rigid. `obj_pose_rt/{frame}.txt` beside the hands holds 17 numbers: which object (0: none), and the matrix
4 x 4 that places it in the camera's frame, metres; `object/{name}/*.obj`, beside the subjects, is its mesh, in metres.
Where a frame has no such file it has no object. Extras: as `interhand_prior.objects` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..convert import pair_of, wrapped
from ..hands import HandPair
from ..objects import OBJECT_NAME, ObjectShape
from ..params import HandParams
from ..rotations import matrix_to_axis_angle
from .base import OPENPOSE, Batch, DataSet, Shapes, chunked, first_folder, make_batch, stable_split
from .meshes import read_obj

__all__ = ["H2O", "read_h2o"]

#: By number.
_OBJECTS = ("", "book", "espresso", "lotion", "spray", "milk", "cocoa", "chips", "cappuccino")


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
    extras |= _objects([path.parents[1] / "obj_pose_rt" / path.name for path in paths])
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


def _objects(paths: list[Path]) -> dict[str, np.ndarray]:
    """Extras of the object in each frame; the name is "" where there is none."""
    names, matrices = [], np.tile(np.eye(4), (len(paths), 1, 1))
    for index, path in enumerate(paths):
        number, *matrix = _numbers(path, 17) if path.is_file() else [0.0]
        if number > 0:
            matrices[index] = np.reshape(matrix, (4, 4))
        names.append(_OBJECTS[int(number)] if 0 <= number < len(_OBJECTS) else f"object {number:g}")
    finite = np.asarray(np.isfinite(matrices).all((1, 2)))
    turns = np.where(finite[:, None, None], matrices[:, :3, :3], 0)  # zero is no rotation
    rigid = (np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max((1, 2)) < 0.01) & (np.linalg.det(turns) > 0)
    if not (rigid & finite).all():
        raise ValueError(f"{paths[int((rigid & finite).argmin())]} should hold a number and a rigid motion (4 x 4)")
    return {
        OBJECT_NAME: np.array(names),
        "object_articulation": np.zeros(len(paths), np.float32),
        "object_orient": matrix_to_axis_angle(torch.from_numpy(turns)).float().numpy(),
        "object_transl": matrices[:, :3, 3].astype(np.float32),
    }


def _shapes(folder: Path) -> Shapes:
    """The meshes in the folder `object`, itself or beside the one that was given."""
    place = first_folder(folder, ("object", "../object"), Path.is_dir)
    if place is None:
        return Shapes({}, f"{folder / 'object'} is not there, so there are no points on objects")
    found, lacking = {}, []
    for name in _OBJECTS[1:]:
        meshes = [path for path in sorted((place / name).glob("*.obj")) if path.stem.endswith(name)]
        if not meshes:
            lacking.append(f"{place / name} holds no mesh")
            continue
        vertices, faces = read_obj(meshes[0])
        rigid = torch.zeros(len(vertices), dtype=torch.bool)
        try:
            found[name] = ObjectShape(torch.from_numpy(vertices).float(), torch.from_numpy(faces), rigid)
        except ValueError as error:
            raise ValueError(f"{meshes[0]}: {error}") from None
    return Shapes(found, "; ".join([f"{len(found)} shapes", *lacking]))


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
    "by a hash of the recording's name; objects' poses in extras",
    needs_mean=False,
    nearer_than=0.05,
    shapes=_shapes,
)
