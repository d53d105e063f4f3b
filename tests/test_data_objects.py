"""ARCTIC and the objects that its hands hold: where their vertices are, and the points that a network is given."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import (
    METRES,
    Malicious,
    assert_vertices,
    joined,
    make_arctic,
    make_h2o,
    make_h2o_objects,
    make_template,
    read,
    saved,
)
from helpers import far_apart, generator, random_pairs, rigidly_moved
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from interhand_prior import TwoHands
from interhand_prior.convert import refit_left, with_released_left
from interhand_prior.data import arctic
from interhand_prior.data.__main__ import main
from interhand_prior.data.base import Selection
from interhand_prior.data.checking import check
from interhand_prior.data.groups import groups_of
from interhand_prior.data.importing import import_corpus
from interhand_prior.data.meshes import read_obj
from interhand_prior.hands import load_hands
from interhand_prior.objects import SHAPES_NAME, ObjectShape, load_shapes, object_points, object_vertices, save_shapes
from interhand_prior.pointnet2 import Level, PointNet2, PointNet2Config, Scale
from interhand_prior.rotations import axis_angle_to_matrix, mirror_axis_angle, mirror_points

SEQUENCE = "raw_seqs/s01/box_use_01"


# Hands ----------------------------------------------------------------------------------------------------------


def test_arctic_is_read_at_vertex_level_with_its_objects(tmp_path, pairs, hands):
    written = make_arctic(tmp_path, pairs)
    released = with_released_left(hands)
    batches = read("arctic", tmp_path, released)
    found = joined(batches)
    kept = written[arctic.MARGIN : -arctic.MARGIN]
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


def test_arctic_import_carries_objects_and_a_distance(tmp_path, pairs, hands, mano):
    make_arctic(tmp_path / "set", pairs)
    manifest = import_corpus("arctic", tmp_path / "set", tmp_path / "out", hands=mano, selection=Selection())
    assert manifest["pairs"] == {"train": 6}
    shard = TwoHands.load(tmp_path / "out" / "train-00000.npz", hands=hands)
    assert {"object_name", "object_articulation", "object_orient", "object_transl"} <= set(shard.extras)
    batch = read("arctic", tmp_path / "set", hands)[0]
    apart = replace(batch, hands=far_apart(batch.hands, 3.0))
    apart = replace(apart, hands=replace(apart.hands, extras=batch.hands.extras))
    assert len(Selection(nearer_than=0.05).split(apart)[0]) == 0
    assert Selection(nearer_than=0.05).split(apart)[2]["hands too far apart"] == 6


def test_arctic_refuses_what_it_cannot_read(tmp_path, pairs, hands):
    with pytest.raises(FileNotFoundError, match="no folder raw_seqs"):
        read("arctic", tmp_path, hands)
    make_arctic(tmp_path, pairs)
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


# Objects --------------------------------------------------------------------------------------------------------


def placed(vertices: np.ndarray, top: np.ndarray, seven: np.ndarray) -> np.ndarray:
    """One frame of object.npy applied to a template in millimetres, in so many words: (V, 3) millimetres.

    The top part turns about the axis [0, 0, -1], then everything is turned, then moved.
    """
    moved = vertices.copy()
    moved[top] = Rotation.from_rotvec(seven[0] * np.array([0.0, 0.0, -1.0])).apply(vertices[top])
    return Rotation.from_rotvec(seven[1:4]).apply(moved) + seven[4:]


def imported(folder: Path, pairs: TwoHands, mano: Path) -> TwoHands:
    """Six pairs, with the box's template in the folder, read back from a corpus at folder / out."""
    make_arctic(folder / "set", pairs)
    make_template(folder / "set")
    import_corpus("arctic", folder / "set", folder / "out", hands=mano, selection=Selection())
    return TwoHands.load(folder / "out" / "train-00000.npz", hands=load_hands(mano))


def test_an_object_is_where_arctic_says_at_vertex_level(tmp_path, pairs, mano):
    shard = imported(tmp_path, pairs, mano)
    vertices, faces, top = make_template(tmp_path / "set")
    shapes = load_shapes(tmp_path / "out")
    assert list(shapes) == ["box"]
    shape = shapes["box"]
    np.testing.assert_allclose(shape.vertices, vertices / 1000, atol=1e-7)
    np.testing.assert_array_equal(shape.faces, faces)
    assert shape.top.tolist() == top.tolist()
    rows = np.load(tmp_path / "set" / f"{SEQUENCE}.object.npy")[10:16].astype(np.float64)
    wanted = np.stack([placed(vertices, top, row) for row in rows]) / 1000
    assert np.abs(rows[:, 0]).min() > 0.1  # all of them are ajar
    pose = [torch.as_tensor(shard.extras[f"object_{name}"]) for name in ("articulation", "orient", "transl")]
    np.testing.assert_allclose(object_vertices(shape, *pose), wanted, atol=1e-6)
    again = object_vertices(shape, *(value.double().reshape(2, 3, *value.shape[1:]) for value in pose))
    np.testing.assert_allclose(again, wanted.reshape(2, 3, 16, 3), atol=1e-6)


def test_points_are_on_the_placed_surface_and_even(tmp_path, pairs, mano):
    shard = imported(tmp_path, pairs, mano)
    shapes = load_shapes(tmp_path / "out" / SHAPES_NAME)
    points = object_points(shard, shapes, 4000)
    assert points.shape == (6, 4000, 3)
    assert points.dtype == torch.float32
    for index in range(6):
        extras = {name: value[index] for name, value in shard.extras.items()}
        local = (
            Rotation.from_rotvec(extras["object_orient"]).inv().apply(points[index].numpy() - extras["object_transl"])
        )
        hinge = Rotation.from_rotvec(extras["object_articulation"] * np.array([0.0, 0.0, -1.0]))
        lid = hinge.inv().apply(local) - (0, 0.046, 0)
        # A point of a box's surface is as far out as the box is along one axis, and nowhere farther.
        off = [np.abs(np.abs(p / h).max(1) - 1) for p, h in ((local, (0.06, 0.04, 0.05)), (lid, (0.06, 0.005, 0.05)))]
        assert np.minimum(*off).max() < 1e-3
        areas = [8 * (a * b + b * c + a * c) for a, b, c in ((60, 40, 50), (60, 5, 50))]
        share = areas[1] / sum(areas)
        assert (off[1] < off[0]).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
        # Of the box, each of six faces by its area.
        own = local[off[0] < 1e-3] / (0.06, 0.04, 0.05)
        axis = np.abs(own).argmax(1)
        shares = np.array([40 * 50, 60 * 50, 60 * 40]) / (40 * 50 + 60 * 50 + 60 * 40)
        np.testing.assert_allclose(np.bincount(axis, minlength=3) / len(own), shares, atol=0.04)
        assert abs(np.sign(own[np.arange(len(own)), axis]).mean()) < 0.1


def test_points_do_not_depend_on_the_batch_and_other_draws_are_asked_for(tmp_path, pairs, mano):
    shard = imported(tmp_path, pairs, mano)
    shapes = load_shapes(tmp_path / "out")
    points = object_points(shard, shapes, 64, anchor="left")
    for index in range(6):
        alone = object_points(shard[index : index + 1], shapes, 64, anchor="left")
        torch.testing.assert_close(alone[0], points[index], rtol=0, atol=1e-6)
    drawn = [object_points(shard, shapes, 64, generator=generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # With a generator, two pairs that are alike have different points.
    twins = shard[[0, 0]]
    assert torch.equal(*object_points(twins, shapes, 64))
    assert not torch.equal(*object_points(twins, shapes, 64, generator=generator()))


def test_a_point_network_takes_them(tmp_path, pairs, mano):
    """And finds the same in pairs that are elsewhere, for the anchor's frame goes with them."""
    shard = imported(tmp_path, pairs, mano)
    shapes = load_shapes(tmp_path / "out")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        levels = (Level(32, (Scale(0.05, 8, (16, 16)),)),)
        network = PointNet2(PointNet2Config(channels=0, levels=levels, pooled=(32, 32), head=(32, 8))).eval()
    features = network(object_points(shard, shapes, 128, anchor="right"))
    assert features.shape == (6, 8)
    assert features.std(0).max() > 0  # six places of the box, seen from six hands
    torch.testing.assert_close(network(object_points(shard[2:3], shapes, 128, anchor="right")), features[2:3])


def with_object(pairs: TwoHands, orient: torch.Tensor, transl: torch.Tensor, articulation: torch.Tensor) -> TwoHands:
    extras = {"object_name": np.full(len(pairs), "box"), "object_articulation": articulation.numpy()}
    return replace(pairs, extras=extras | {"object_orient": orient.numpy(), "object_transl": transl.numpy()})


def box(tmp_path: Path) -> ObjectShape:
    vertices, faces, top = make_template(tmp_path)
    return ObjectShape(torch.tensor(vertices / 1000).float(), torch.tensor(faces), torch.tensor(top))


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_anchors_frame_is_that_of_the_canonical_vectors(tmp_path_factory, seed):
    """Invariant to a rigid motion of hands and object together; and what the other anchor sees is the mirror image."""
    shape = box(tmp_path_factory.getbasetemp() / "templates")
    draw = generator(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    pairs, pose = random_pairs(3, seed=seed), (normal(3, 3), 0.2 * normal(3, 3), normal(3))
    held = with_object(pairs, *pose)
    shapes = {"box": shape}
    seen = {side: object_points(held, shapes, 40, anchor=side) for side in ("left", "right")}
    # In so many words: turned back by the anchor's rotation, from its middle knuckle.
    here = object_points(held, shapes, 40).numpy()
    for side, joints in zip(seen, pairs.joints(), strict=True):
        turn = Rotation.from_rotvec(getattr(pairs, side).global_orient.numpy())
        for index in range(3):
            own = turn[index].inv().apply(here[index] - joints[index, 4].numpy())
            own[:, 0] *= -1 if side == "right" else 1
            np.testing.assert_allclose(seen[side][index], own, atol=1e-7)
    turn, step = axis_angle_to_matrix(normal(3)), normal(3)
    matrices = turn @ axis_angle_to_matrix(pose[0])
    turned = torch.from_numpy(Rotation.from_matrix(matrices.numpy()).as_rotvec())
    moved = with_object(rigidly_moved(pairs, turn, step), turned, pose[1] @ turn.mT + step, pose[2])
    for side in ("left", "right"):
        torch.testing.assert_close(object_points(moved, shapes, 40, anchor=side), seen[side], rtol=0, atol=1e-6)
    image = with_object(pairs.mirrored(), mirror_axis_angle(pose[0]), mirror_points(pose[1]), -pose[2])
    mirrored = {"box": ObjectShape(mirror_points(shape.vertices), shape.faces, shape.top)}
    for side, other in (("left", "right"), ("right", "left")):
        torch.testing.assert_close(object_points(image, mirrored, 40, anchor=side), seen[other], rtol=0, atol=1e-6)


def test_objects_of_several_kinds_in_one_batch(tmp_path):
    shapes = {"box": box(tmp_path), "two.parts": replace(box(tmp_path), vertices=2 * box(tmp_path).vertices)}
    save_shapes(shapes, tmp_path / SHAPES_NAME)
    found = load_shapes(tmp_path)
    assert list(found) == ["box", "two.parts"]
    zero = torch.zeros(4, 3)
    held = with_object(random_pairs(4, dtype=torch.float32), zero, zero, torch.zeros(4))
    held.extras["object_name"][:] = "box"
    held = replace(held, extras={**held.extras, "object_name": np.array(["box", "two.parts", "two.parts", "box"])})
    points = object_points(held, found, 50)
    torch.testing.assert_close(points[1], 2 * points[0])
    assert torch.equal(points[1], points[2])
    assert torch.equal(points[0], points[3])


def test_what_cannot_be_read_is_said(tmp_path, pairs, mano):
    held = with_object(random_pairs(2), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))
    shape = box(tmp_path)
    for wrong, match in (
        (lambda: object_points(held, {}, 8), "no shape of box"),
        (lambda: object_points(held, {"box": shape}, 0), "num must be at least 1"),
        (lambda: object_points(held.reshape(2, 1), {"box": shape}, 8), r"batch shape \(2, 1\)"),
        (lambda: object_points(replace(held, extras={}), {"box": shape}, 8), "these lack object_name"),
        (lambda: object_points(held, {"box": shape}, 8, anchor="both"), "must be 'left' or 'right'"),
        (lambda: replace(shape, faces=shape.faces + 1), "faces name vertices up to 16"),
        (lambda: replace(shape, vertices=shape.vertices * math.nan), "finite"),
        (lambda: replace(shape, vertices=shape.vertices * 0), "must have an area"),
        (lambda: replace(shape, vertices=shape.vertices.double()), "float32"),
        (lambda: replace(shape, top=shape.top[1:]), "top must be bool"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    with pytest.raises(FileNotFoundError, match="has the objects' templates"):
        load_shapes(tmp_path)
    path = save_shapes({"box": shape}, tmp_path / SHAPES_NAME)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged or holds no shapes"):
        load_shapes(tmp_path)


# H2O ------------------------------------------------------------------------------------------------------------


def test_h2os_objects_are_rigid_and_in_the_cameras_frame(tmp_path, pairs, hands):
    camera = make_h2o(tmp_path / "set", pairs)
    matrices = make_h2o_objects(tmp_path / "set", camera, pairs)
    manifest = import_corpus("h2o", tmp_path / "set", tmp_path / "out", hands=hands, selection=Selection())
    assert manifest["objects"]["shapes"] == ["spray"]
    assert manifest["objects"]["without a shape"] == ["lotion"]
    assert "book holds no mesh" in manifest["objects"]["note"]
    (path,) = (tmp_path / "out").glob("*.npz")
    shard = TwoHands.load(path, hands=hands)
    kept = [0, 2, 3, 4, 5]  # the second frame has no left hand
    assert shard.extras["object_name"].tolist() == ["spray", "lotion", "spray", "spray", "spray"]
    shape = load_shapes(tmp_path / "out")["spray"]
    pose = [torch.as_tensor(shard.extras[f"object_{name}"]) for name in ("articulation", "orient", "transl")]
    template = make_template(tmp_path)[0] / 1000
    wanted = np.einsum("nij,vj->nvi", matrices[kept, :3, :3], template) + matrices[kept, None, :3, 3]
    np.testing.assert_allclose(object_vertices(shape, *pose), wanted, atol=1e-6)
    assert groups_of(shard)[0] == "object"
    lines = dict(check("h2o", tmp_path / "set", hands=hands))
    assert lines["objects without a shape: lotion"] is False
    assert any("nearest joint of either hand" in line and good for line, good in lines.items())
    (batch,) = read("h2o", tmp_path / "set", hands)
    assert batch.hands.extras["object_name"][1] == ""
    with pytest.raises(ValueError, match="1 pairs have no object"):
        object_points(batch.hands, {"spray": shape, "lotion": shape}, 8)
    path = camera / "obj_pose_rt/000003.txt"
    path.write_text(path.read_text() + " 1")
    with pytest.raises(ValueError, match=r"000003.txt should hold 17 numbers"):
        read("h2o", tmp_path / "set", hands)
    for turned in (np.diag((1, 1, -1, 1)), np.diag((2, 2, 2, 1)), np.full((4, 4), np.nan)):
        path.write_text(" ".join(map(str, (4, *turned.flatten()))))
        with pytest.raises(ValueError, match=r"000003.txt should hold a number and a rigid motion"):
            read("h2o", tmp_path / "set", hands)


# Templates ------------------------------------------------------------------------------------------------------


def test_hands_go_in_without_templates_and_what_is_missing_is_said(tmp_path, pairs, mano, capsys):
    make_arctic(tmp_path / "set", pairs)
    command = ["import", "arctic", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--hands", str(mano)]
    everything = [*command, "--nearer-than", "0"]
    assert main(everything) == 0
    assert "meta/object_vtemplates is not there" in capsys.readouterr().out
    assert not (tmp_path / "out" / SHAPES_NAME).exists()
    assert json.loads((tmp_path / "out/manifest.json").read_text())["objects"]["without a shape"] == ["box"]
    # Another object's shape is there, and a folder that is not whole.
    make_template(tmp_path / "set", "ketchup")
    make_template(tmp_path / "set", "box")
    (tmp_path / "set/meta/object_vtemplates/box/parts.json").unlink()
    assert main([*everything, "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "objects: 1 shapes; box lacks parts.json" in printed
    assert "without a shape: box" in printed
    assert list(load_shapes(tmp_path / "out")) == ["ketchup"]
    lines = dict(check("arctic", tmp_path / "set", hands=mano))
    assert lines["objects without a shape: box"] is False
    # An older import's shapes do not stay when there are none any more.
    (tmp_path / "set/meta").rename(tmp_path / "elsewhere")
    assert main([*everything, "--overwrite"]) == 0
    assert not (tmp_path / "out" / SHAPES_NAME).exists()


def test_damaged_templates_are_refused_before_anything_is_written(tmp_path, pairs, mano):
    make_arctic(tmp_path / "set", pairs)
    make_template(tmp_path / "set")
    place = tmp_path / "set/meta/object_vtemplates/box"
    mesh, parts = (place / name for name in ("mesh.obj", "parts.json"))
    good = {path: path.read_text() for path in (mesh, parts)}
    for path, content, match in (
        (mesh, good[mesh].replace("f 1/1/1", "f 99/1/1"), "faces name vertices up to 98"),
        (mesh, good[mesh].replace("f 1/1/1", "f 0/1/1"), "'f 0/1/1.*no part of a mesh"),
        (mesh, good[mesh].replace("v -60", "v x", 1), "no part of a mesh"),
        (mesh, good[mesh].replace("v -60.0 -40.0 -50.0", "v -60", 1), "no part of a mesh"),
        (mesh, "# nothing", "holds no mesh"),
        (parts, "[0, 1]", "has 2 numbers, but mesh.obj has 16 vertices"),
        (parts, '{"a": 0}', "a number for each vertex"),
        (parts, "[", "is damaged or no JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=match):
            import_corpus("arctic", tmp_path / "set", tmp_path / "out", hands=mano, selection=Selection())
        assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
        assert any(not good for line, good in check("arctic", tmp_path / "set", hands=mano))
        path.write_text(good[path])
    with pytest.raises(FileNotFoundError):
        read_obj(tmp_path / "none.obj")


def test_check_sees_whether_hands_hold_the_objects(tmp_path, pairs, mano):
    make_arctic(tmp_path, pairs)
    make_template(tmp_path)
    lines = {line: good for line, good in check("arctic", tmp_path, hands=mano) if line.startswith("objects")}
    assert list(lines.values()) == [True, True]
    assert any("nearest joint of either hand" in line for line in lines)
    path = tmp_path / f"{SEQUENCE}.object.npy"
    rows = np.load(path)
    rows[:, 4:] *= 1000  # micrometres
    np.save(path, rows)
    said = [line for line, good in check("arctic", tmp_path, hands=mano) if not good]
    assert any("nobody holds these objects" in line for line in said), said


def test_objects_with_nan_are_left_out_and_counted(tmp_path, pairs, hands):
    make_arctic(tmp_path, pairs)
    path = tmp_path / f"{SEQUENCE}.object.npy"
    rows = np.load(path)
    rows[12, 5] = np.nan
    rows[0] = np.inf  # within the ten that are left out anyway
    np.save(path, rows)
    (batch,) = read("arctic", tmp_path, hands)
    assert batch.hands.extras["frame"].tolist() == [10, 11, 13, 14, 15]
    assert batch.skipped == {"object with NaN or infinity": 1, "first and last 10 frames": 20}


def test_a_sequence_that_is_listed_and_not_there_is_counted(tmp_path, pairs, hands):
    make_arctic(tmp_path, pairs)
    make_arctic(tmp_path, pairs, "s05/ketchup_grab_02", split="val")
    lists = tmp_path / "splits_json/protocol_p1.json"
    content = json.loads(lists.read_text())
    content["test"].append("s03/box_use_09")
    lists.write_text(json.dumps({"test": content.pop("test"), **content}))
    batches = read("arctic", tmp_path, hands)
    assert [batch.split for batch in batches] == ["train", "val"]
    assert set(joined(batches).extras["object_name"].tolist()) == {"box", "ketchup"}
