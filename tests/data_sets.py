"""Small folders in exactly the layouts of the data sets, written by plain numpy from hands that are known.

Nothing of the package's converters is used, so that what they get wrong shows itself. The hand models are the open hand
as MANO's files, so mean, components and both left shapedirs are in play as they are for a person with MANO.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import random_pairs

from interhand_prior import HandParams, TwoHands
from interhand_prior.convert import with_released_left
from interhand_prior.data.base import Batch
from interhand_prior.data.sets import dataset_named
from interhand_prior.hands import HandPair
from interhand_prior.rotations import axis_angle_to_matrix

METRES = 1e-5
SIDES = ("left", "right")
#: MANO's joints and tips in OpenPose's order, and OpenPose's in InterHand2.6M's.
OPENPOSE = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
INTERHAND = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read(name: str, folder: Path, hands: HandPair) -> list[Batch]:
    return [batch for batch in dataset_named(name).read(folder, hands) if len(batch.hands)]


def joined(batches: list[Batch]) -> TwoHands:
    return TwoHands.cat([batch.hands for batch in batches])


def assert_vertices(found: TwoHands, wanted: TwoHands, atol: float = METRES) -> None:
    """Where there is a hand, its vertices are those it was made from."""
    for own, other, there in zip(found.vertices(), wanted.vertices(), found.valid, strict=True):
        torch.testing.assert_close(own[there].double(), other[there].double(), rtol=0, atol=atol)


class Malicious:
    """What a pickle must never get to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("exit 1",)


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(content, dtype=object), allow_pickle=True)
    return stream.getvalue()


def offsets(pairs: TwoHands, side: str) -> np.ndarray:
    """(N, 45) fingers relative to MANO's mean."""
    return getattr(pairs, side).hand_pose.numpy() - getattr(pairs.model, side).arrays.hands_mean


def interhand_hand(pairs: TwoHands, side: str, index: int) -> dict[str, list[float]]:
    hand = getattr(pairs, side)
    pose = np.concatenate((hand.global_orient[index].numpy(), offsets(pairs, side)[index]))
    return {"pose": pose.tolist(), "shape": hand.betas[index].tolist(), "trans": hand.transl[index].tolist()}


def make_interhand(folder: Path, pairs: TwoHands, split: str = "train", data_only: bool = False) -> Path:
    """Frames 0, 10, ...: the second has no left hand, the third is of the wrong type, the fourth is not valid; three
    cameras saw each, and the last joint is never valid."""
    left, right = pairs.joints21()
    mano: dict[str, Any] = {"7": {}, "8": {}}
    joints: dict[str, Any] = {"7": {}, "8": {}}
    images, annotations = [], []
    for index in range(len(pairs)):
        capture, frame = ("7" if index < 4 else "8"), str(10 * index)
        written = {side: interhand_hand(pairs, side, index) for side in SIDES}
        mano[capture][frame] = written | ({"left": None} if index == 1 else {})
        world = np.empty((42, 3))
        for start, hand in ((0, right[index]), (21, left[index])):
            world[start + np.array(INTERHAND)] = 1000 * hand.numpy()[OPENPOSE]
        kind = {1: "right", 2: "right"}.get(index, "interacting")
        fact = {"hand_type": kind, "hand_type_valid": index != 3}
        valid = [[1]] * 41 + [[0]]
        joints[capture][frame] = {"world_coord": world.tolist(), "joint_valid": valid, **fact}
        for camera in range(3):
            number = len(images)
            images.append({"id": number, "capture": int(capture), "frame_idx": 10 * index, "camera": str(camera)})
            annotations.append({"id": number, "image_id": number, **fact})
    place = folder / "annotations" / split
    name = lambda what: place / f"InterHand2.6M_{split}_{what}.json"
    write_json(name("MANO_NeuralAnnot"), mano)
    write_json(name("data"), {"images": images, "annotations": annotations})
    if not data_only:
        write_json(name("joint_3d"), joints)
    return place


def make_intaghand(folder: Path, pairs: TwoHands, split: str = "train") -> None:
    """Every pair from two cameras."""
    place = folder / split / "anno"
    place.mkdir(parents=True)
    for index in range(len(pairs)):
        params = {}
        for side in SIDES:
            hand, arrays = getattr(pairs, side), getattr(pairs.model, side).arrays
            coefficients = offsets(pairs, side)[index] @ np.linalg.inv(arrays.hands_components)
            values = {
                "R": axis_angle_to_matrix(hand.global_orient[index]).numpy(),
                "pose": coefficients,
                "shape": hand.betas[index].numpy(),
                "trans": hand.transl[index].numpy(),
            }
            params[side] = {key: value.astype(np.float32)[None] for key, value in values.items()}
        for camera in range(2):
            turn = axis_angle_to_matrix(torch.tensor([0.0, camera, 0.3])).numpy()
            content = {
                "inter_idx": index,
                "image": {"id": 2 * index + camera, "file_name": "x.jpg"},
                "annotation": {"id": 1, "joint_valid": [[1]] * 42},
                "mano_params": params,
                "camera": {"R": turn, "t": np.array([0.1, 0.2, 0.3], np.float32), "camera": np.eye(3)},
            }
            (place / f"{2 * index + camera}.pkl").write_bytes(pickle.dumps(content))


def released(pairs: TwoHands) -> TwoHands:
    """The same numbers in models whose left shapedirs are the released ones, one shape for all frames."""
    alike = lambda hand: replace(hand, betas=hand.betas[:1].expand(len(pairs), 10))
    return TwoHands(alike(pairs.left), alike(pairs.right), with_released_left(pairs.model))


def make_arctic(folder: Path, pairs: TwoHands, sequence: str = "s01/box_use_01", split: str = "train") -> TwoHands:
    """A sequence with ten frames more at each end; fingers written far beyond pi, the object between the hands.

    Returns:
        All of its frames, in the released left shapedirs.
    """
    ends = replace(random_pairs(20, seed=77), hands=pairs.hands)
    pairs = released(TwoHands.cat([ends[:10], pairs, ends[10:]]))
    number = len(pairs)
    content: dict[str, Any] = {}
    for side in SIDES:
        hand, mean = getattr(pairs, side), getattr(pairs.model, side).arrays.hands_mean
        vectors = hand.hand_pose.numpy().reshape(number, 15, 3)
        angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
        wound = vectors * (1 - 2 * math.pi / angle)  # the same rotation, the other way round
        pose = (wound.reshape(number, 45) - mean).astype(np.float32)
        assert np.linalg.norm(pose.reshape(number, 15, 3), axis=-1).max() > math.pi
        content[side] = {
            "rot": hand.global_orient.numpy().astype(np.float32),
            "pose": pose,
            "trans": hand.transl.numpy().astype(np.float32),
            "shape": hand.betas[0].numpy().astype(np.float32),
            "fitting_err": [np.float32(0.1), 0.2, *np.zeros(number - 2).tolist()],
        }
    path = folder / "raw_seqs" / f"{sequence}.mano.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)
    draw = np.random.default_rng(number)
    middle = (pairs.joints()[0][:, 4] + pairs.joints()[1][:, 4]).numpy() / 2
    orient = draw.normal(size=(number, 3))
    objects = np.concatenate((draw.uniform(0.2, 2, (number, 1)), orient, 1000 * middle), 1)
    np.save(path.with_name(path.name.replace("mano", "object")), objects.astype(np.float32))
    lists = folder / "splits_json" / "protocol_p1.json"
    known = json.loads(lists.read_text()) if lists.is_file() else {"train": [], "val": [], "test": []}
    known[split].append(sequence)
    write_json(lists, known)
    return pairs


def make_template(folder: Path, name: str = "box", unit: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A box and, hinged to it, a lid of quads and triangles; vertices of the two mixed in the file.

    Returns:
        (V, 3) vertices in millimetres, (F, 3) triangles, (V,) which are of the lid.
    """
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    vertices = np.empty((16, 3))
    vertices[0::2], vertices[1::2] = corners * (60, 40, 50), corners * (60, 5, 50) + (0, 46, 0)
    top = np.arange(16) % 2 == 1
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    lines = [f"v {x} {y} {z}" for x, y, z in (unit * vertices).tolist()]
    lines += ["vn 0 0 1", "# the box, as quads with texture and normals"]
    lines += ["f " + " ".join(f"{2 * i + 1}/1/1" for i in quad) for quad in quads]
    lines += ["# the lid, as triangles, counted from the end"]
    triangles = [(a, b, c) for quad in quads for a, b, c in (quad[[0, 1, 2]], quad[[0, 2, 3]])]
    lines += ["f " + " ".join(str(2 * i + 1 - 16) for i in triangle) for triangle in triangles]
    place = folder / "meta" / "object_vtemplates" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "mesh.obj").write_text("\n".join(lines) + "\n")
    write_json(place / "parts.json", [0 if lid else 1 for lid in top])
    write_json(place / "object_params.json", {"name": name})
    faces = np.array([[2 * i for i in t] for t in triangles] + [[2 * i + 1 for i in t] for t in triangles])
    return unit * vertices, faces, top


def make_reinterhand(folder: Path, pairs: TwoHands, capture: str = "m--1--two-hands", unit: float = 1000.0) -> None:
    """The third frame has no right hand; meshes stand beside the parameters."""
    for index in range(len(pairs)):
        for side, vertices in zip(SIDES, pairs.vertices(), strict=True):
            if (index, side) != (2, "right"):
                name = f"{index:06d}_{side}"
                write_json(folder / capture / f"mano_fits/params/{name}.json", interhand_hand(pairs, side, index))
                write_ply(folder / capture / f"mano_fits/meshes/{name}.ply", unit * vertices[index].numpy(), index == 0)


def make_h2o(folder: Path, pairs: TwoHands, recording: str = "subject1/h1/0") -> Path:
    """Two cameras of one recording; the second frame has no left hand. Returns the folder of the worn camera."""
    place = folder
    joints = pairs.joints21()
    for camera in ("cam0", "cam4"):
        place = folder / recording / camera
        (place / "hand_pose_mano").mkdir(parents=True)
        (place / "hand_pose").mkdir()
        for index in range(len(pairs)):
            numbers, places = [], []
            for side, own in zip(SIDES, joints, strict=True):
                there, hand = float((index, side) != (1, "left")), getattr(pairs, side)[index]
                values = torch.cat((hand.transl, hand.global_orient, hand.hand_pose, hand.betas))
                numbers += [there, *values.tolist()]
                places += [there, *own[index][OPENPOSE].flatten().tolist()]
            (place / f"hand_pose_mano/{index:06d}.txt").write_text(" ".join(map(str, numbers)))
            (place / f"hand_pose/{index:06d}.txt").write_text(" ".join(map(str, places)))
    return place


def make_h2o_objects(folder: Path, camera: Path, pairs: TwoHands) -> np.ndarray:
    """The third frame's object is number 3, the second has none, the others hold number 4; one mesh is missing.

    Returns:
        (N, 4, 4) the matrices.
    """
    vertices, faces, _ = make_template(folder / "scratch")
    lines = [f"v {x} {y} {z}" for x, y, z in (vertices / 1000).tolist()] + [f"f {a} {b} {c}" for a, b, c in faces + 1]
    (folder / "object/spray").mkdir(parents=True)
    (folder / "object/spray/lotion_spray.obj").write_text("\n".join(lines))
    (camera / "obj_pose_rt").mkdir()
    matrices = np.tile(np.eye(4), (len(pairs), 1, 1))
    matrices[:, :3, :3] = axis_angle_to_matrix(pairs.right.global_orient).numpy()
    matrices[:, :3, 3] = (pairs.joints()[0][:, 4] + pairs.joints()[1][:, 4]).numpy() / 2
    for index, matrix in enumerate(matrices):
        number = {1: 0, 2: 3}.get(index, 4)
        (camera / f"obj_pose_rt/{index:06d}.txt").write_text(" ".join(map(str, (number, *matrix.flatten()))))
    return matrices


def make_hot3d(folder: Path, pairs: TwoHands, sequence: str = "P0001_1") -> tuple[Path, TwoHands]:
    """Poses of 15 coefficients in place of the pairs' own; the fourth time has no left hand. Returns the file, and the
    pairs that are in it."""
    from scipy.spatial.transform import Rotation

    draw = np.random.default_rng(4)
    written = {side: 0.4 * draw.normal(size=(len(pairs), 15)) for side in SIDES}
    sides: dict[str, HandParams] = {}
    for side, pose in written.items():
        arrays = getattr(pairs.model, side).arrays
        absolute = torch.tensor(pose @ arrays.hands_components[:15] + arrays.hands_mean)
        sides[side] = replace(getattr(pairs, side), hand_pose=absolute)
    pairs = replace(pairs, **sides)
    lines = []
    for index in range(len(pairs)):
        poses = {}
        for name, side in (("0", "left"), ("1", "right")):
            hand = getattr(pairs, side)[index]
            x, y, z, w = Rotation.from_rotvec(hand.global_orient.numpy()).as_quat()
            xform = {"q_wxyz": [w, x, y, z], "t_xyz": hand.transl.tolist()}
            entry = {"pose": written[side][index].tolist(), "wrist_xform": xform, "betas": hand.betas.tolist()}
            if (index, name) != (3, "0"):
                poses[name] = entry
        lines.append(json.dumps({"timestamp_ns": 1000 * index, "hand_poses": poses}))
    path = folder / sequence / "mano_hand_pose_trajectory.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    return path, pairs


def write_ply(path: Path, vertices: np.ndarray, binary: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "binary_little_endian" if binary else "ascii"
    names = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat {form} 1.0\nelement vertex {len(vertices)}\n{names}element face 0\nend_header\n"
    rows = "\n".join(" ".join(map(repr, row)) for row in vertices.tolist())
    path.write_bytes(head.encode() + (vertices.astype("<f4").tobytes() if binary else rows.encode()))


def make_hic(folder: Path, pairs: TwoHands) -> None:
    """The first frame has no right hand."""
    annotations, images = [], []
    for index in range(len(pairs)):
        item: dict[str, Any] = {"id": index, "image_id": index, "hand_type": "interacting" if index else "left"}
        for side, vertices in zip(SIDES, pairs.vertices(), strict=True):
            name = f"mano/{index}_{side}.ply"
            write_ply(folder / name, vertices[index].numpy(), binary=side == "left")
            item[f"{side}_mano_path"] = None if (index, side) == (0, "right") else name
        annotations.append(item)
        images.append({"id": index, "file_name": f"01/rgb/{index:05d}.jpg"})
    write_json(folder / "HIC.json", {"images": images, "annotations": annotations})


#: By name: what writes pairs as the data set does.
MAKERS: dict[str, Callable[[Path, TwoHands], Any]] = {
    "interhand26m": make_interhand,
    "intaghand": make_intaghand,
    "arctic": make_arctic,
    "hic": make_hic,
    "h2o": make_h2o,
    "hot3d": make_hot3d,
    "reinterhand": make_reinterhand,
}
