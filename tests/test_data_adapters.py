"""Readers of data sets, on small folders in exactly their layouts, against the vertices the folders were made from.

The hands are the open hand, written as MANO's files and read back, so mean, components and both left shapedirs are in
play as they are for a person with MANO.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import (
    MAKERS,
    METRES,
    Malicious,
    assert_vertices,
    joined,
    make_h2o,
    make_hic,
    make_hot3d,
    make_intaghand,
    make_interhand,
    make_reinterhand,
    read,
)
from helpers import far_apart

from interhand_prior import TwoHands
from interhand_prior.convert import with_released_left
from interhand_prior.data import base
from interhand_prior.data.__main__ import main
from interhand_prior.data.base import Selection, stable_split
from interhand_prior.data.checking import check
from interhand_prior.data.importing import import_corpus
from interhand_prior.data.json_index import JsonIndex
from interhand_prior.data.sets import DATASETS, dataset_named
from interhand_prior.pickles import read_npy, read_plain
from interhand_prior.train.sources import chunks, read_parts

# InterHand2.6M --------------------------------------------------------------------------------------------------


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


def test_reinterhand(tmp_path, pairs, hands, mano):
    make_reinterhand(tmp_path, pairs)
    capture = tmp_path / "m--1--two-hands/mano_fits"
    (batch,) = read("reinterhand", tmp_path, hands)
    assert batch.split == stable_split("m--1--two-hands")
    assert batch.hands.valid[1].tolist() == [True, True, False, True, True, True]
    assert_vertices(batch.hands, pairs)
    # Meshes of the first of sixteen, in millimetres.
    error = base.joint_error(batch)
    assert error[0].max() < METRES
    assert torch.isnan(error[1:]).all()
    lines = dict(check("reinterhand", tmp_path, hands=mano))
    assert any(line.startswith("vertices: 0.0 mm (left) and 0.0 mm (right)") for line in lines)
    good = (capture / "meshes/000000_left.ply").read_bytes()
    (capture / "meshes/000000_left.ply").write_bytes(good[:-9])
    with pytest.raises(ValueError, match=r"000000_left.ply should be a .ply of 778 vertices"):
        read("reinterhand", tmp_path, hands)
    (capture / "params/000003_left.json").write_text("{")
    with pytest.raises(ValueError, match=r"000003_left.json is damaged"):
        read("reinterhand", tmp_path, hands)
    with pytest.raises(FileNotFoundError, match="no mano_fits/params"):
        read("reinterhand", capture / "params", hands)


def test_reinterhands_meshes_tell_wrong_hands(tmp_path, pairs, hands, mano):
    """In metres they are as good; and whoever has the other left shapedirs is told."""
    make_reinterhand(tmp_path, pairs, unit=1.0)
    assert all(good for line, good in check("reinterhand", tmp_path, hands=mano) if line.startswith("vertices"))
    said = [line for line, good in check("reinterhand", tmp_path, hands=with_released_left(hands)) if not good]
    assert any("only left hands are off" in line for line in said), said


def test_h2o(tmp_path, pairs, hands):
    worn = make_h2o(tmp_path, pairs)
    (batch,) = read("h2o", tmp_path, hands)
    assert len(batch.hands) == 6  # of one camera
    assert batch.hands.valid[0].tolist() == [True, False, True, True, True, True]
    assert_vertices(batch.hands, pairs)
    assert base.joint_error(batch).nan_to_num().max() < METRES
    assert all(good for line, good in check("h2o", tmp_path) if line.startswith("joints"))
    (worn / "hand_pose_mano/000002.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"000002.txt should hold 124 numbers"):
        read("h2o", tmp_path, hands)
    with pytest.raises(FileNotFoundError, match="no folder hand_pose_mano"):
        read("h2o", worn / "hand_pose", hands)


def test_hot3d(tmp_path, pairs, hands):
    path, written = make_hot3d(tmp_path, pairs)
    lines = path.read_text().splitlines()
    (batch,) = read("hot3d", tmp_path, hands)
    assert batch.hands.extras["frame"].tolist() == [1000 * i for i in range(6)]
    assert batch.hands.valid[0].tolist() == [True, True, True, False, True, True]
    assert_vertices(batch.hands, written)
    for broken, message in (("{", "line 2 is damaged"), (lines[1].replace("q_wxyz", "q"), "line 2, hand 0 lacks 'q'")):
        path.write_text("\n".join((lines[0], broken)))
        with pytest.raises(ValueError, match=message):
            read("hot3d", tmp_path, hands)


def test_hic(tmp_path, pairs, hands, mano):
    pairs = pairs[:3]
    make_hic(tmp_path, pairs)
    (batch,) = read("hic", tmp_path, hands)
    assert batch.hands.valid[0].tolist() == [True, True, True]
    assert batch.hands.valid[1].tolist() == [False, True, True]
    assert batch.hands.extras["interacting"].tolist() == [False, True, True]
    assert_vertices(batch.hands, pairs)
    error = base.joint_error(batch)
    assert torch.isnan(error[0, 1])
    assert error.nan_to_num().max() < METRES
    assert any(line.startswith("vertices: 0.0 mm") for line, good in check("hic", tmp_path, hands=mano) if good)
    (tmp_path / "mano/1_left.ply").write_text("ply\n")
    with pytest.raises(ValueError, match=r"1_left.ply should be a .ply of 778 vertices"):
        read("hic", tmp_path, hands)
    (tmp_path / "mano/1_left.ply").unlink()
    with pytest.raises(FileNotFoundError, match=r"HIC.json names it"):
        read("hic", tmp_path, hands)


# What is common to all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_moment_comes_once_and_filters_hold(tmp_path, pairs, hands, name):
    """Six moments, two of them with hands three metres apart; some makers write two or three cameras of each."""
    assert sorted(MAKERS) == sorted(DATASETS)
    apart = far_apart(pairs, 3.0)
    written = TwoHands.cat([pairs[:4], apart[4:]])
    made = MAKERS[name](tmp_path, written)
    written = made[1] if name == "hot3d" else made[10:16] if name == "arctic" else written
    batches = read(name, tmp_path, hands)
    found = joined(batches)
    moments = list(zip(found.extras["sequence"].tolist(), found.extras["frame"].tolist(), strict=True))
    wanted = 5 if name == "interhand26m" else 6  # one is marked as not valid
    assert len(set(moments)) == len(moments) == wanted
    keys = torch.cat([value.flatten(1) for hand in (found.left, found.right) for value in hand.as_dict().values()], 1)
    assert len(keys.unique(dim=0)) == wanted
    both = found.valid[0] & found.valid[1]
    left, right = (joints.numpy() for joints in found.joints21())
    gaps = np.linalg.norm(left[:, :, None] - right[:, None], axis=-1).min((1, 2))
    shown = both.numpy() & found.extras["interacting"]
    for limit in (0.05, 2.0):
        kept = [Selection(nearer_than=limit).split(batch) for batch in batches]
        frames = [frame for pairs, _, _ in kept for frame in pairs.extras["frame"].tolist()]
        assert frames == found.extras["frame"][shown & (gaps < limit)].tolist()
        lost = sum(reasons["hands too far apart"] for _, _, reasons in kept)
        assert lost == int((shown & (gaps >= limit)).sum())
    assert (gaps[shown] >= 2).any()
    assert (gaps[shown] < 2).any()


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
