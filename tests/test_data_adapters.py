"""Readers of data sets, on small folders in exactly their layouts, against the vertices the folders were made from.

The hands are the open hand, written as MANO's files and read back, so mean, components and both left shapedirs are in
play as they are for a person with MANO.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import far_apart, random_pairs

from interhand_prior import TwoHands
from interhand_prior.convert import (
    hands_to_arctic,
    hands_to_intaghand,
    hands_to_interhand26m,
    refit_left,
    with_released_left,
)
from interhand_prior.data import arctic, base
from interhand_prior.data.__main__ import main
from interhand_prior.data.base import OPENPOSE, Batch, Selection, stable_split
from interhand_prior.data.checking import check
from interhand_prior.data.importing import import_corpus
from interhand_prior.data.json_index import JsonIndex
from interhand_prior.data.sets import DATASETS, dataset_named
from interhand_prior.hands import HandPair, load_hands
from interhand_prior.hands.export import export_mano
from interhand_prior.pickles import read_npy, read_plain
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.train.sources import chunks, read_parts

METRES = 1e-5


@pytest.fixture(scope="module")
def mano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mano")
    export_mano(folder)
    return folder


@pytest.fixture(scope="module")
def hands(mano: Path) -> HandPair:
    return load_hands(mano)


@pytest.fixture(scope="module")
def pairs(hands: HandPair) -> TwoHands:
    """Six pairs, some hands of which are some centimetres apart."""
    return replace(random_pairs(6, seed=3), hands=hands)


def read(name: str, folder: Path, hands: HandPair) -> list[Batch]:
    return [batch for batch in dataset_named(name).read(folder, hands) if len(batch.hands)]


def joined(batches: list[Batch]) -> TwoHands:
    return TwoHands.cat([batch.hands for batch in batches])


def assert_vertices(found: TwoHands, wanted: TwoHands, atol: float = METRES) -> None:
    """Where there is a hand, its vertices are those it was made from."""
    for own, other, there in zip(found.vertices(), wanted.vertices(), found.valid, strict=True):
        torch.testing.assert_close(own[there].double(), other[there].double(), rtol=0, atol=atol)


def as_lists(hand: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if hand is None else {key: value.tolist() for key, value in hand.items()}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# InterHand2.6M --------------------------------------------------------------------------------------------------


def make_interhand(folder: Path, pairs: TwoHands, split: str = "train", data_only: bool = False) -> Path:
    """Frames 0, 10, ..: the second has no left hand, the third is of the wrong type, the fourth is not valid."""
    left, right = pairs.joints21()
    mano: dict[str, Any] = {"7": {}, "8": {}}
    joints: dict[str, Any] = {"7": {}, "8": {}}
    images, annotations = [], []
    for index, pair in enumerate(pairs):
        capture, frame = ("7" if index < 4 else "8"), str(10 * index)
        written = {side: as_lists(hand) for side, hand in hands_to_interhand26m(pair).items()}
        mano[capture][frame] = written | ({"left": None} if index == 1 else {})
        world = np.empty((42, 3))
        gather = np.array([20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16])
        for start, hand in ((0, right[index]), (21, left[index])):
            world[start + gather] = 1000 * hand.numpy()[list(OPENPOSE)]
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


@pytest.mark.parametrize("data_only", [False, True])
def test_interhand26m_is_read_at_vertex_level(tmp_path, pairs, hands, data_only):
    place = make_interhand(tmp_path, pairs, data_only=data_only)
    for folder in (tmp_path, tmp_path / "annotations", place):
        batches = read("interhand26m", folder, hands)
        found = joined(batches)
        kept = [0, 1, 2, 4, 5]  # one of each frame, whatever the number of cameras
        assert found.extras["frame"].tolist() == [10 * i for i in kept]
        assert found.extras["sequence"].tolist() == ["capture7"] * 3 + ["capture8"] * 2
        assert found.extras["interacting"].tolist() == [True, False, False, True, True]
        assert found.valid[0].tolist() == [True, False, True, True, True]
        assert found.valid[1].all()
        assert_vertices(found, pairs[kept])
        assert batches[0].skipped == {"hand_type is not valid": 1}
        if data_only:
            assert batches[0].joints is None
        else:
            assert torch.isnan(batches[0].joints[:, 0]).any()  # the left wrist is marked as unknown
            assert base.joint_error(batches[0])[0].max() < METRES


def test_interhand26m_becomes_shards_that_training_reads(tmp_path, pairs, mano, hands):
    make_interhand(tmp_path / "set", pairs)
    make_interhand(tmp_path / "set", pairs[:1], "val")
    manifest = import_corpus("interhand26m", tmp_path / "set", tmp_path / "out", hands=mano, shard_size=2)
    assert manifest["complete"]
    assert manifest["shards"] == {"train-00000.npz": 2, "train-00001.npz": 1, "val-00000.npz": 1}
    assert manifest["left_out"] == {
        "both hands, but not interacting": 1,
        "hand_type is not valid": 1,
        "one hand only": 1,
    }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    shards = list(chunks(read_parts(tmp_path / "out", "train", hands)))
    assert_vertices(TwoHands.cat(shards), pairs[[0, 4, 5]])
    assert shards[0].left_valid is None
    stored = TwoHands.load(tmp_path / "out" / "train-00000.npz", hands=hands)
    assert stored.extras["joint_error_mm"].shape == (2, 2)
    assert stored.extras["joint_error_mm"].max() < 0.01
    with pytest.raises(FileExistsError, match="--overwrite"):
        import_corpus("interhand26m", tmp_path / "set", tmp_path / "out", hands=mano)
    again = import_corpus(
        "interhand26m",
        tmp_path / "set",
        tmp_path / "out",
        hands=mano,
        overwrite=True,
        selection=Selection(singles=True),
    )
    assert again["singles"] == {"train": 1}
    assert sorted(p.name for p in (tmp_path / "out").glob("*.npz")) == sorted(again["shards"])
    alone = TwoHands.load(tmp_path / "out" / "single-train-00000.npz", hands=hands)
    assert alone.valid[0].tolist() == [False]
    assert_vertices(alone, pairs[[1]])


def test_fits_far_off_their_joints_are_filtered_and_said(tmp_path, pairs, mano, hands):
    place = make_interhand(tmp_path, pairs)
    path = place / "InterHand2.6M_train_joint_3d.json"
    joints = json.loads(path.read_text())
    moved = np.add(joints["8"]["40"]["world_coord"], (42.0, 0.0, 0.0))
    joints["8"]["40"]["world_coord"] = moved.tolist()
    path.write_text(json.dumps(joints))
    batches = read("interhand26m", tmp_path, hands)
    kept = TwoHands.cat([Selection(max_joint_error=0.03).split(batch)[0] for batch in batches])
    assert kept.extras["frame"].tolist() == [0, 50]
    error = torch.cat([base.joint_error(batch) for batch in batches])
    np.testing.assert_allclose(error[3].numpy(), 0.042, atol=1e-5)
    lines = list(check("interhand26m", tmp_path, hands=mano))
    assert any("consider --max-joint-error" in line for line, good in lines if good)


def test_check_says_what_is_wrong(tmp_path, pairs, mano, hands):
    make_interhand(tmp_path / "good", pairs)
    assert all(good for _, good in check("interhand26m", tmp_path / "good", hands=mano))
    # Betas of the other left shapedirs, as a person with the unrepaired file would read them.
    released = with_released_left(hands)
    said = {line for line, good in check("interhand26m", tmp_path / "good", hands=released, num=4) if not good}
    assert any("only left hands are off" in line for line in said), said
    place = make_interhand(tmp_path / "far", pairs)
    path = place / "InterHand2.6M_train_joint_3d.json"
    content = json.loads(path.read_text())
    for frames in content.values():
        for fact in frames.values():
            fact["world_coord"] = (np.array(fact["world_coord"]) * 1000).tolist()  # micrometres
    path.write_text(json.dumps(content))
    said = [line for line, good in check("interhand26m", tmp_path / "far", hands=mano) if not good]
    assert any("different frames or units" in line for line in said), said


def test_interhand26m_refuses_what_it_cannot_read(tmp_path, pairs, mano, hands):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"MANO_NeuralAnnot.*downloaded apart"):
        read("interhand26m", tmp_path / "empty", hands)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read("interhand26m", tmp_path / "nowhere", hands)
    place = make_interhand(tmp_path / "set", pairs)
    name = lambda what: place / f"InterHand2.6M_train_{what}.json"
    text = name("MANO_NeuralAnnot").read_text()
    for broken, message in (
        (text[: len(text) // 2], "cut short"),
        ("", "is empty"),
        ("[1, 2]", "no JSON of the expected layout"),
        (text.replace('"shape"', '"form"'), r"capture 7, frame 0, left lacks 'shape'"),
        (text.replace('"left": null', '"left": 3'), "should be a mapping"),
        (text.replace('"pose": [', '"pose": [1.0, '), r"\['pose'\] should hold 48 numbers"),
        (text.replace('"pose": [', '"pose": [,'), "damaged in the part '7'"),
        (json.dumps({"images": [], "annotations": []}), "another layout"),
    ):
        name("MANO_NeuralAnnot").write_text(broken)
        with pytest.raises(ValueError, match=message):
            read("interhand26m", tmp_path / "set", hands)
        assert any(not good for _, good in check("interhand26m", tmp_path / "set", hands=mano))
    name("MANO_NeuralAnnot").write_text(text)
    name("joint_3d").unlink()
    name("data").unlink()
    with pytest.raises(FileNotFoundError, match=r"joint_3d.json does not exist, nor does"):
        read("interhand26m", tmp_path / "set", hands)
    with pytest.raises(ValueError, match=r"needs MANO: pass hands=FOLDER"):
        import_corpus("interhand26m", tmp_path / "set", tmp_path / "out")


def test_large_json_is_read_value_by_value(tmp_path):
    content = {'a"{}': {"x": {"y": "}{", "z": []}}, "b": {}, "ü": {"list": [{"deep": [1, 2]}]}}
    for indent in (None, 1):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(content, indent=indent))
        with JsonIndex(path) as index:
            assert list(index) == list(content)
            assert "b" in index
            assert "c" not in index
            assert {name: index[name] for name in index} == content


# ARCTIC ---------------------------------------------------------------------------------------------------------


def make_arctic(folder: Path, hands: HandPair, sequence: str = "s01/box_use_01", seed: int = 5) -> TwoHands:
    """26 frames, of which 10 at each end are left out, fingers written far beyond pi. Returns all of the frames."""
    pairs = replace(random_pairs(26, seed=seed), hands=with_released_left(hands))
    betas = [getattr(pairs, side).betas[:1].expand(26, 10) for side in ("left", "right")]
    left, right = (replace(hand, betas=b) for hand, b in zip((pairs.left, pairs.right), betas, strict=True))
    pairs = replace(pairs, left=left, right=right)
    content: dict[str, Any] = {}
    for side, data in hands_to_arctic(pairs).items():
        arrays = {key: value.float().numpy() for key, value in data.items()}
        vectors = (arrays["pose"] + getattr(hands, side).arrays.hands_mean).reshape(26, 15, 3)
        angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
        wound = vectors * (1 - 2 * math.pi / angle)  # the same rotation, the other way round
        arrays["pose"] = (wound.reshape(26, 45) - getattr(hands, side).arrays.hands_mean).astype(np.float32)
        assert np.linalg.norm(arrays["pose"].reshape(26, 15, 3), axis=-1).max() > math.pi
        arrays["shape"] = arrays["shape"][0]
        content[side] = arrays | {"fitting_err": [np.float32(0.1), 0.2, *np.zeros(24).tolist()]}
    path = folder / "raw_seqs" / f"{sequence}.mano.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)
    objects = np.concatenate((np.linspace(0, 1, 26)[:, None], np.random.default_rng(0).normal(size=(26, 6))), 1)
    objects[:, 4:] *= 300
    np.save(path.with_name(path.name.replace("mano", "object")), objects.astype(np.float32))
    split = {"train": [sequence], "val": ["s05/not_there_01"], "test": []}
    write_json(folder / "splits_json" / "protocol_p1.json", split)
    return pairs


def test_arctic_is_read_at_vertex_level_with_its_objects(tmp_path, hands):
    pairs = make_arctic(tmp_path, hands)
    released = with_released_left(hands)
    batches = read("arctic", tmp_path, released)
    found = joined(batches)
    kept = pairs[arctic.MARGIN : 26 - arctic.MARGIN]
    assert found.extras["frame"].tolist() == list(range(10, 16))
    assert_vertices(found, kept)
    for hand in (found.left, found.right):
        assert hand.hand_pose.unflatten(-1, (15, 3)).norm(dim=-1).max() <= math.pi + 1e-5
    stored = np.load(tmp_path / "raw_seqs/s01/box_use_01.object.npy")[10:16]
    assert found.extras["object_name"].tolist() == ["box"] * 6
    np.testing.assert_array_equal(found.extras["object_articulation"], stored[:, 0])
    np.testing.assert_array_equal(found.extras["object_orient"], stored[:, 1:4])
    np.testing.assert_allclose(found.extras["object_transl"], stored[:, 4:] / 1000, rtol=1e-6)
    # Into repaired models the right hand goes as it is, the left one as refit_left says.
    repaired = joined(read("arctic", tmp_path, hands))
    assert repaired.model is hands
    assert_vertices(repaired, refit_left(kept, hands))
    torch.testing.assert_close(repaired.vertices()[1].double(), kept.vertices()[1], rtol=0, atol=METRES)


def test_arctic_import_carries_objects_and_a_distance(tmp_path, hands, mano):
    make_arctic(tmp_path / "set", hands)
    manifest = import_corpus("arctic", tmp_path / "set", tmp_path / "out", hands=mano, selection=Selection())
    assert manifest["pairs"] == {"train": 6}
    shard = TwoHands.load(tmp_path / "out" / "train-00000.npz", hands=hands)
    assert {"object_name", "object_articulation", "object_orient", "object_transl"} <= set(shard.extras)
    batch = read("arctic", tmp_path / "set", hands)[0]
    apart = replace(batch, hands=far_apart(batch.hands, 3.0))
    apart = replace(apart, hands=replace(apart.hands, extras=batch.hands.extras))
    assert len(Selection(nearer_than=0.05).split(apart)[0]) == 0
    assert Selection(nearer_than=0.05).split(apart)[2]["hands too far apart"] == 6


def test_arctic_refuses_what_it_cannot_read(tmp_path, hands):
    with pytest.raises(FileNotFoundError, match="no folder raw_seqs"):
        read("arctic", tmp_path, hands)
    make_arctic(tmp_path, hands)
    path = tmp_path / "raw_seqs/s01/box_use_01.mano.npy"
    good = path.read_bytes()
    for content, message in (
        (good[:-40], "executed"),
        (b"nothing", "not an .npy file"),
        (saved({"left": 1, "right": None}), "should have rot"),
        (saved({"left": None}), "keys left and right"),
        (saved(Malicious()), r"names the global \w+.system.*not executed"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read("arctic", tmp_path, hands)
    path.write_bytes(good)
    path.with_name("box_use_01.object.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"object.npy does not exist"):
        read("arctic", tmp_path, hands)
    (tmp_path / "splits_json/protocol_p1.json").unlink()
    with pytest.raises(FileNotFoundError, match="protocol_p1"):
        read("arctic", tmp_path, hands)


class Malicious:
    """What a pickle must never get to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("exit 1",)


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(content, dtype=object), allow_pickle=True)
    return stream.getvalue()


# Pickles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_come_back_whole(tmp_path, protocol):
    shared = [1, 2]
    content = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3)),
        "number": np.float64(0.1),
        "list": [None, True, "é", (1, 2.5), shared, shared],
        3: {"deep": {"er": np.int64(7)}},
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_plain(path)
    np.testing.assert_equal(found, content)
    assert found["list"][4] is found["list"][5]


def test_pickles_that_do_more_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"a": Malicious()}, protocol=protocol))
        with pytest.raises(ValueError, match=r"names the global \w+.system.*not executed"):
            read_plain(path)
    endless: list[Any] = []
    endless.append(endless)
    many: list[Any] = [0]
    for _ in range(60):
        many = [many] * 10
    for content in (endless, many, {(1, 2): 3}, {1j}):
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match="executed"):
            read_plain(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_npy(tmp_path / "none.npy")


# IntagHand ------------------------------------------------------------------------------------------------------


def make_intaghand(folder: Path, pairs: TwoHands) -> None:
    """Every pair from two cameras."""
    place = folder / "train" / "anno"
    place.mkdir(parents=True)
    for index, pair in enumerate(pairs):
        written = hands_to_intaghand(pair.reshape(1))
        params = {side: {k: v.float().numpy() for k, v in hand.items()} for side, hand in written.items()}
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


def test_intaghand_is_read_once_for_all_cameras(tmp_path, pairs, hands, mano):
    make_intaghand(tmp_path, pairs)
    (batch,) = read("intaghand", tmp_path, hands)
    assert batch.hands.extras["frame"].tolist() == [0, 2, 4, 6, 8, 10]
    assert batch.skipped == {"the same hands seen by another camera": 6}
    assert_vertices(batch.hands, pairs)
    manifest = import_corpus("intaghand", tmp_path, tmp_path / "out", hands=mano)
    assert manifest["pairs"] == {"train": 6}
    (tmp_path / "train/anno/3.pkl").write_bytes(pickle.dumps({"mano_params": Malicious()}))
    with pytest.raises(ValueError, match=r"3.pkl names the global"):
        read("intaghand", tmp_path, hands)
    (tmp_path / "train/anno/3.pkl").write_bytes(pickle.dumps({"params": 1}))
    with pytest.raises(ValueError, match=r"3.pkl should hold a dictionary whose mano_params"):
        read("intaghand", tmp_path, hands)
    with pytest.raises(FileNotFoundError, match="holds none of train/anno"):
        read("intaghand", tmp_path / "train", hands)


# The others -----------------------------------------------------------------------------------------------------


def test_reinterhand(tmp_path, pairs, hands):
    for index, pair in enumerate(pairs):
        for side, hand in hands_to_interhand26m(pair).items():
            if (index, side) != (2, "right"):
                write_json(tmp_path / f"m--1--two-hands/mano_fits/params/{index:06d}_{side}.json", as_lists(hand))
    (batch,) = read("reinterhand", tmp_path, hands)
    assert batch.split == stable_split("m--1--two-hands")
    assert batch.hands.valid[1].tolist() == [True, True, False, True, True, True]
    assert_vertices(batch.hands, pairs)
    (tmp_path / "m--1--two-hands/mano_fits/params/000003_left.json").write_text("{")
    with pytest.raises(ValueError, match=r"000003_left.json is damaged"):
        read("reinterhand", tmp_path, hands)
    with pytest.raises(FileNotFoundError, match="no mano_fits/params"):
        read("reinterhand", tmp_path / "m--1--two-hands/mano_fits/params", hands)


def test_h2o(tmp_path, pairs, hands):
    left, right = pairs.joints21()
    for camera in ("cam0", "cam4"):
        place = tmp_path / "subject1/h1/0" / camera
        (place / "hand_pose_mano").mkdir(parents=True)
        (place / "hand_pose").mkdir()
        for index, pair in enumerate(pairs):
            numbers, places = [], []
            for side, joints in (("left", left), ("right", right)):
                there, hand = float((index, side) != (1, "left")), getattr(pair, side)
                values = torch.cat((hand.transl, hand.global_orient, hand.hand_pose, hand.betas))
                numbers += [there, *values.tolist()]
                places += [there, *joints[index][list(OPENPOSE)].flatten().tolist()]
            (place / f"hand_pose_mano/{index:06d}.txt").write_text(" ".join(map(str, numbers)))
            (place / f"hand_pose/{index:06d}.txt").write_text(" ".join(map(str, places)))
    (batch,) = read("h2o", tmp_path, hands)
    assert len(batch.hands) == 6  # of one camera
    assert batch.hands.valid[0].tolist() == [True, False, True, True, True, True]
    assert_vertices(batch.hands, pairs)
    assert base.joint_error(batch).nan_to_num().max() < METRES
    assert all(good for line, good in check("h2o", tmp_path) if line.startswith("joints"))
    (place / "hand_pose_mano/000002.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"000002.txt should hold 124 numbers"):
        read("h2o", tmp_path, hands)
    with pytest.raises(FileNotFoundError, match="no folder hand_pose_mano"):
        read("h2o", tmp_path / "subject1/h1/0/cam4/hand_pose", hands)


def test_hot3d(tmp_path, pairs, hands):
    from scipy.spatial.transform import Rotation

    from interhand_prior.convert import PoseForm

    draw = np.random.default_rng(4)
    written = {side: 0.4 * draw.normal(size=(6, 15)) for side in ("left", "right")}
    sides = {
        side: replace(
            getattr(pairs, side),
            hand_pose=PoseForm.of(getattr(hands, side), use_pca=True, num_pca_comps=15).to_pose(torch.tensor(pose)),
        )
        for side, pose in written.items()
    }
    pairs = replace(pairs, **sides)
    lines = []
    for index in range(6):
        poses = {}
        for name, side in (("0", "left"), ("1", "right")):
            hand = getattr(pairs, side)
            x, y, z, w = Rotation.from_rotvec(hand.global_orient[index].numpy()).as_quat()
            xform = {"q_wxyz": [w, x, y, z], "t_xyz": hand.transl[index].tolist()}
            entry = {"pose": written[side][index].tolist(), "wrist_xform": xform, "betas": hand.betas[index].tolist()}
            if (index, name) != (3, "0"):
                poses[name] = entry
        lines.append(json.dumps({"timestamp_ns": 1000 * index, "hand_poses": poses}))
    path = tmp_path / "P0001_1" / "mano_hand_pose_trajectory.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    (batch,) = read("hot3d", tmp_path, hands)
    assert batch.hands.extras["frame"].tolist() == [1000 * i for i in range(6)]
    assert batch.hands.valid[0].tolist() == [True, True, True, False, True, True]
    assert_vertices(batch.hands, pairs)
    for broken, message in (("{", "line 2 is damaged"), (lines[1].replace("q_wxyz", "q"), "line 2, hand 0 lacks 'q'")):
        path.write_text("\n".join((lines[0], broken)))
        with pytest.raises(ValueError, match=message):
            read("hot3d", tmp_path, hands)


# What is common to all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_wrong_folders_are_refused_and_said(tmp_path, hands, mano, name):
    (tmp_path / "other.txt").touch()
    with pytest.raises(FileNotFoundError, match="holds no"):
        list(dataset_named(name).read(tmp_path, hands))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        list(dataset_named(name).read(tmp_path / "none", hands))
    lines = list(check(name, tmp_path, hands=mano))
    assert [good for line, good in lines if "holds no" in line] == [False]


def test_the_result_does_not_depend_on_the_size_of_chunks(tmp_path, pairs, hands, monkeypatch):
    make_interhand(tmp_path, pairs)
    whole = joined(read("interhand26m", tmp_path, hands))
    monkeypatch.setattr("interhand_prior.data.interhand26m.CHUNK", 1)
    single = joined(read("interhand26m", tmp_path, hands))
    assert single.extras["frame"].tolist() == whole.extras["frame"].tolist()
    assert_vertices(single, whole, atol=1e-6)


def test_numbers_that_are_none_make_no_pair(tmp_path, pairs, hands):
    place = make_interhand(tmp_path, pairs)
    path = place / "InterHand2.6M_train_MANO_NeuralAnnot.json"
    content = json.loads(path.read_text())
    content["7"]["0"]["left"]["trans"][1] = float("nan")
    path.write_text(json.dumps(content))
    batches = read("interhand26m", tmp_path, hands)
    assert batches[0].skipped["left hand with NaN or infinity"] == 1
    found = joined(batches)
    assert not found.valid[0][0]
    assert all(torch.isfinite(value).all() for value in found.left.as_dict().values())


def test_the_command_imports_and_checks(tmp_path, pairs, mano, capsys):
    make_interhand(tmp_path / "set", pairs)
    options = ["--hands", str(mano)]
    command = ["import", "interhand26m", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *options]
    assert main([*command, "--max-joint-error", "20", "--singles"]) == 0
    printed = capsys.readouterr().out
    assert "3 train, 0 val, 0 test pairs, 1 hands alone" in printed
    assert "left out: 1 x hand_type is not valid" in printed
    assert main(["check", "interhand26m", str(tmp_path / "set"), *options]) == 0
    assert main(["check", "interhand26m", str(tmp_path), *options]) == 1
    assert "! " in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["import", "interhand26m", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "train-00000.npz").touch()
    with pytest.raises(SystemExit):
        main(["import", "interhand26m", str(tmp_path / "set"), "--out", str(other), *options])
    assert "choose an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_selections_refuse_limits_that_are_none(limit):
    with pytest.raises(ValueError, match="must be positive"):
        Selection(max_joint_error=limit)
    with pytest.raises(ValueError, match="choose from interhand26m"):
        dataset_named("freihand")
