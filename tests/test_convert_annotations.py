"""Converters of annotations and bodies, and the forms of a finger pose, against smplx at vertex level."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import replace
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import assert_close, generator, random_hand, random_pairs
from hypothesis import given
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from interhand_prior import HandParams, TwoHands, sds_loss
from interhand_prior.convert import (
    PoseForm,
    arctic_to_hands,
    hands_to_arctic,
    hands_to_intaghand,
    hands_to_interhand26m,
    hands_to_smplx,
    intaghand_to_hands,
    interhand26m_camera,
    interhand26m_to_hands,
    refit_left,
    smplx_body,
    smplx_to_hands,
    with_released_left,
    wrapped,
    wrist_rotations,
)
from interhand_prior.hands import PARENTS, HandModel, HandPair, load_hands, open_hands
from interhand_prior.rotations import axis_angle_to_matrix

smplx = pytest.importorskip("smplx")
from test_smplx_parity import make_layer  # noqa: E402

#: smplx perturbs every axis-angle by 1e-8.
METRES = 2e-7
SIDES = ("left", "right")


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# Forms of a finger pose -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("components", [None, 6, 15, 44])
@pytest.mark.parametrize("side", SIDES)
def test_forms_are_what_smplx_adds_up(side, components, flat):
    pca = {} if components is None else {"use_pca": True, "num_pca_comps": components}
    layer = make_layer(side, dtype=torch.float64, flat_hand_mean=flat, **pca)
    model = getattr(open_hands(), side)
    written, hand = normal(4, components or 45, scale=0.4), random_hand(4)
    expected = layer(betas=hand.betas, global_orient=hand.global_orient, hand_pose=written, transl=hand.transl).vertices
    for form in (PoseForm.of(model, flat_hand_mean=flat, **pca), PoseForm.of_layer(layer)):
        absolute = HandParams(hand.global_orient, form.to_pose(written), hand.betas, hand.transl)
        torch.testing.assert_close(model(absolute)[0], expected, rtol=0, atol=METRES)
        assert form.width == written.shape[-1]
        torch.testing.assert_close(form.from_pose(absolute.hand_pose), written, rtol=0, atol=1e-9)


def test_all_45_components_are_inverted_and_fewer_give_the_nearest_pose():
    model, pose = open_hands().right, normal(3, 45, scale=0.4)
    full = PoseForm.of(model, use_pca=True)
    torch.testing.assert_close(full.to_pose(full.from_pose(pose)), pose, rtol=0, atol=1e-10)
    few = PoseForm.of(model, use_pca=True, num_pca_comps=10)
    off = few.to_pose(few.from_pose(pose)) - pose
    assert off.abs().max() > 0.01
    torch.testing.assert_close(few.components @ off.mT, torch.zeros(10, 3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_forms_refuse_what_they_cannot_be():
    layer = make_layer("right")
    right = open_hands().right
    with pytest.raises(TypeError, match="MANOLayer, which takes rotation matrices"):
        PoseForm.of_layer(make_layer("right", kind="MANOLayer"))
    with pytest.raises(TypeError, match=r"smplx\.MANO, SMPLH or SMPLX, or a ManoLayer, got Linear"):
        PoseForm.of_layer(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="side must be None for a MANO"):
        PoseForm.of_layer(layer, "left")
    with pytest.raises(ValueError, match="side must be 'left'"):
        PoseForm.of_layer(layer, "both")
    with pytest.raises(ValueError, match="num_pca_comps must be from 1 to 45, got 46"):
        PoseForm.of(right, use_pca=True, num_pca_comps=46)
    with pytest.raises(ValueError, match=r"finger pose must have shape \(\.\.\., 6\), got \(2, 45\)"):
        PoseForm.of(right, use_pca=True, num_pca_comps=6).to_pose(torch.zeros(2, 45))
    flat = load_hands((make_layer("left"), layer))
    with pytest.raises(ValueError, match=r"hands\.right has no hands_mean"):
        PoseForm.of(flat.right)
    with pytest.raises(ValueError, match=r"hands\.left has no hands_components"):
        PoseForm.of(flat.left, use_pca=True, flat_hand_mean=True)


@given(st.integers(0, 2**31), st.floats(0.0, 30.0))
def test_wrapping_keeps_the_rotation(seed, length):
    vector = torch.nn.functional.normalize(normal(5, 15, 3, seed=seed), dim=-1) * length
    found = wrapped(vector.flatten(-2)).unflatten(-1, (15, 3))
    assert found.norm(dim=-1).max() <= math.pi + 1e-9
    if length <= math.pi - 1e-9:
        assert torch.equal(found, vector)
    torch.testing.assert_close(axis_angle_to_matrix(found), axis_angle_to_matrix(vector), rtol=0, atol=1e-12)


def test_gradient_of_wrapping():
    vector = torch.stack((normal(15, 3, scale=0.3), normal(15, 3, scale=4.0), torch.zeros(15, 3, dtype=torch.float64)))
    vector = vector.flatten(-2).requires_grad_()
    assert torch.autograd.gradcheck(wrapped, vector)


# InterHand2.6M --------------------------------------------------------------------------------------------------


def interhand_frame(*batch: int, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    part = lambda k: {
        "pose": normal(*batch, 48, seed=seed + k, scale=0.5),
        "shape": normal(*batch, 10, seed=seed + 2 + k),
        "trans": normal(*batch, 3, seed=seed + 4 + k, scale=0.2),
    }
    return {side: part(k) for k, side in enumerate(SIDES)}


def offset_vertices(side: str, orient: Tensor, pose: Tensor, shape: Tensor, trans: Tensor, **options: bool) -> Tensor:
    layer = make_layer(side, dtype=torch.float64, flat_hand_mean=False, **options)
    return layer(betas=shape, global_orient=orient, hand_pose=pose, transl=trans).vertices


def test_interhand26m_vertices_in_the_world_and_before_a_camera():
    frame = interhand_frame(3)
    campos, camrot = normal(3, scale=900.0), axis_angle_to_matrix(normal(3, seed=5))  # millimetres
    world = interhand26m_to_hands(frame, open_hands())
    seen = interhand26m_to_hands(frame, open_hands(), camera=interhand26m_camera(campos.tolist(), camrot.tolist()))
    for found, before, side in zip(world.vertices(), seen.vertices(), SIDES, strict=True):
        data = frame[side]
        expected = offset_vertices(side, data["pose"][:, :3], data["pose"][:, 3:], data["shape"], data["trans"])
        torch.testing.assert_close(found, expected, rtol=0, atol=METRES)
        # The camera came through lists, so as float32.
        torch.testing.assert_close(before, (expected - campos / 1000) @ camrot.mT, rtol=0, atol=1e-6)


def test_interhand26m_through_json_with_a_null_hand():
    frame = interhand_frame()
    text = json.dumps({"right": {k: v.tolist() for k, v in frame["right"].items()}, "left": None})
    pair = interhand26m_to_hands(json.loads(text), open_hands())
    assert pair.batch_shape == ()
    assert [bool(mask) for mask in pair.valid] == [False, True]
    again = hands_to_interhand26m(pair)
    assert again["left"] is None
    for name, value in frame["right"].items():
        torch.testing.assert_close(again["right"][name].double(), value, rtol=0, atol=1e-6)
    nobody = interhand26m_to_hands({"left": None, "right": None}, open_hands())
    assert [bool(mask) for mask in nobody.valid] == [False, False]
    assert hands_to_interhand26m(nobody) == {"left": None, "right": None}


# IntagHand ------------------------------------------------------------------------------------------------------


def intaghand_annotation(number: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    part = lambda: {
        "R": Rotation.random(number, random_state=draw.integers(1000)).as_matrix(),
        "pose": 0.4 * draw.normal(size=(number, 45)),
        "shape": draw.normal(size=(number, 10)),
        "trans": 0.2 * draw.normal(size=(number, 3)),
    }
    return {side: part() for side in SIDES}


def intaghand_vertices(side: str, data: dict[str, np.ndarray]) -> np.ndarray:
    """IntagHand's layer: coefficients to rotation vectors to matrices, then the mesh."""
    arrays = getattr(open_hands(), side).arrays
    vectors = data["pose"] @ arrays.hands_components + arrays.hands_mean
    fingers = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(-1, 15, 3, 3)
    layer = make_layer(side, kind="MANOLayer", dtype=torch.float64)
    tensors = (data["R"][:, None], fingers, data["shape"], data["trans"])
    orient, pose, betas, transl = (torch.as_tensor(t) for t in tensors)
    return layer(global_orient=orient, hand_pose=pose, betas=betas, transl=transl).vertices.numpy()


def test_intaghand_vertices_with_and_without_its_camera():
    annotation = intaghand_annotation(3)
    rotation, shift = Rotation.random(random_state=3).as_matrix(), np.array([0.1, -0.2, 0.9])
    world = intaghand_to_hands(annotation, open_hands())
    seen = intaghand_to_hands(annotation, open_hands(), camera=(rotation, shift))
    for found, before, side in zip(world.vertices(), seen.vertices(), SIDES, strict=True):
        expected = intaghand_vertices(side, annotation[side])
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=METRES)
        np.testing.assert_allclose(before.numpy(), expected @ rotation.T + shift, rtol=0, atol=METRES)
    for pair, camera in ((world, None), (seen, (rotation, shift))):
        again = hands_to_intaghand(pair, camera=camera)
        for side in SIDES:
            assert {k: v.shape for k, v in again[side].items()} == {k: v.shape for k, v in annotation[side].items()}
            np.testing.assert_allclose(
                intaghand_vertices(side, {k: v.numpy() for k, v in again[side].items()}),
                intaghand_vertices(side, annotation[side]), rtol=0, atol=1e-10,
            )  # fmt: skip
            np.testing.assert_allclose(again[side]["R"].numpy(), annotation[side]["R"], rtol=0, atol=1e-12)


def test_intaghand_with_fewer_components_and_from_any_pair():
    pair = random_pairs(2)
    again = intaghand_to_hands(hands_to_intaghand(pair), open_hands())
    assert_close(again, pair, atol=1e-9)
    few = intaghand_to_hands(hands_to_intaghand(pair, num_pca_comps=12), open_hands())
    torch.testing.assert_close(few.left.transl, pair.left.transl)
    assert 0.01 < (few.left.hand_pose - pair.left.hand_pose).abs().max() < 2
    # Once more loses nothing.
    assert_close(intaghand_to_hands(hands_to_intaghand(few, num_pca_comps=12), open_hands()), few, atol=1e-9)


# ARCTIC ---------------------------------------------------------------------------------------------------------


def arctic_sequence(frames: int, seed: int = 0) -> dict[str, dict[str, object]]:
    """As its .npy files hold it: one shape for all frames, some finger offsets longer than pi."""
    draw = np.random.default_rng(seed)
    result = {}
    for side in SIDES:
        mean = getattr(open_hands(), side).arrays.hands_mean
        absolute = 0.4 * draw.normal(size=(frames, 15, 3))
        length = np.linalg.norm(absolute, axis=-1, keepdims=True)
        turned = absolute * (1 - 2 * np.pi / length) * (draw.random((frames, 15, 1)) < 0.2)
        absolute = np.where(turned != 0, turned, absolute).reshape(frames, 45)
        result[side] = {
            "rot": draw.normal(size=(frames, 3)), "pose": absolute - mean, "trans": 0.2 * draw.normal(size=(frames, 3)),
            "shape": draw.normal(size=10), "fitting_err": [0.1] * frames,
        }  # fmt: skip
    return result


def arctic_vertices(side: str, data: dict[str, object]) -> Tensor:
    rot, pose, shape, trans = (torch.as_tensor(data[k]) for k in ("rot", "pose", "shape", "trans"))
    shape = shape.expand(len(rot), 10)
    return offset_vertices(side, rot, pose, shape, trans, left_bug=side == "left")


def test_arctic_vertices_are_those_of_the_released_left_hand():
    annotation, hands = arctic_sequence(6), with_released_left(open_hands())
    pair = arctic_to_hands(annotation, hands)
    assert pair.hands is hands
    longest = max(np.linalg.norm(annotation[s]["pose"].reshape(-1, 3), axis=-1).max() for s in SIDES)
    assert longest > math.pi
    for found, side in zip(pair.vertices(), SIDES, strict=True):
        assert getattr(pair, side).hand_pose.unflatten(-1, (15, 3)).norm(dim=-1).max() <= math.pi
        torch.testing.assert_close(found, arctic_vertices(side, annotation[side]), rtol=0, atol=METRES)
    again = hands_to_arctic(pair)
    for side in SIDES:
        assert again[side]["shape"].shape == (6, 10)
        torch.testing.assert_close(
            arctic_vertices(side, again[side]), arctic_vertices(side, annotation[side]), rtol=0, atol=METRES
        )
    one = {s: {k: v if k == "shape" else v[0] for k, v in annotation[s].items()} for s in SIDES}
    assert_close(arctic_to_hands(one, hands), pair[0])
    assert not arctic_to_hands({**one, "left": None}, hands).valid[0]


def test_arctic_refuses_a_repaired_left_hand():
    with pytest.raises(ValueError, match="with_released_left"):
        arctic_to_hands(arctic_sequence(2), open_hands())
    with pytest.raises(ValueError, match="refit_left"):
        hands_to_arctic(random_pairs(2))
    ragged = arctic_sequence(3)
    ragged["left"]["trans"] = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"annotation\['left'\] holds parameters of different numbers of frames"):
        arctic_to_hands(ragged, with_released_left(open_hands()))
    with pytest.raises(ValueError, match=r"annotation\['right'\] lacks rot"):
        arctic_to_hands({"left": None, "right": {"pose": np.zeros(45)}}, with_released_left(open_hands()))
    with pytest.raises(ValueError, match="keys left and right"):
        arctic_to_hands({"rot": 1}, with_released_left(open_hands()))
    with pytest.raises(TypeError, match=r"annotation\['left'\]\['rot'\] must be a tensor or an array"):
        arctic_to_hands({"left": dict.fromkeys(("rot", "pose", "trans", "shape"), "a"), "right": None},
                        with_released_left(open_hands()))  # fmt: skip


def test_refitted_left_hands_are_the_nearest():
    released, repaired = with_released_left(open_hands()), open_hands()
    pair = random_pairs(40)
    pair = TwoHands(pair.left, pair.right, released)
    fitted = refit_left(pair, repaired)
    assert fitted.hands is repaired
    assert fitted.right is pair.right
    torch.testing.assert_close(fitted.joints()[0][:, 0], pair.joints()[0][:, 0])  # the wrist stays

    def off(betas: Tensor) -> Tensor:
        """Millimetres of each vertex, with the wrist kept and no pose."""
        zeros = {"global_orient": torch.zeros(40, 3).double(), "hand_pose": torch.zeros(40, 45).double()}
        hand = lambda b: HandParams(**zeros, betas=b, transl=torch.zeros(40, 3).double())
        relative = lambda model, b: model(hand(b))[0] - model.rest_joints(b)[:, :1]
        return (relative(repaired.left, betas) - relative(released.left, pair.left.betas)) * 1e3

    betas = fitted.left.betas.clone().requires_grad_()
    objective = (off(betas) / 0.5).square().sum(-1).mean(-1) + betas.square().sum(-1)
    assert torch.autograd.grad(objective.sum(), betas)[0].abs().max() < 1e-6
    moved, taken = off(fitted.left.betas).norm(dim=-1).mean(), off(pair.left.betas).norm(dim=-1).mean()
    assert moved < 0.3 * taken  # the shape that the same betas mean in the other model is far off
    alike = TwoHands(pair.left, pair.right, repaired)
    assert_close(refit_left(alike, repaired), alike)
    arrays = open_hands().right.arrays
    larger = HandModel(replace(arrays, v_template=1.1 * arrays.v_template))
    with pytest.raises(ValueError, match=r"hands\.right is another hand"):
        refit_left(pair, HandPair(released.left, larger))


# SMPL-X ---------------------------------------------------------------------------------------------------------

BODY_PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
HAND_JOINTS = {"left": [20, *range(25, 40)], "right": [21, *range(40, 55)]}


@pytest.fixture(scope="module")
def body_file(tmp_path_factory):
    """A body with SMPL-X's skeleton, in its file format, whose two hands are the open hand's surfaces."""
    draw = np.random.default_rng(0)
    rest = np.cumsum(draw.normal(size=(55, 3)) * 0.1, 0)
    parents = list(BODY_PARENTS)
    count = 55 + 2 * 778
    vertices, weights = np.zeros((count, 3)), np.zeros((count, 55))
    posedirs = np.zeros((count, 3, 54 * 9))
    for k, side in enumerate(SIDES):
        arrays, ids = getattr(open_hands(), side).arrays, HAND_JOINTS[side]
        parents += [ids[p] for p in PARENTS[1:]]
        joints = arrays.J_regressor @ arrays.v_template
        rest[ids] = joints - joints[0] + rest[ids[0]]
        rows = slice(55 + 778 * k, 55 + 778 * (k + 1))
        vertices[rows] = arrays.v_template - joints[0] + rest[ids[0]]
        weights[rows, ids] = 0
        weights[np.arange(rows.start, rows.stop)[:, None], ids] = arrays.weights / arrays.weights.sum(1, keepdims=True)
        for joint, body_joint in enumerate(ids[1:]):
            posedirs[rows, :, 9 * (body_joint - 1) : 9 * body_joint] = arrays.posedirs[..., 9 * joint : 9 * joint + 9]
    vertices[:55], weights[:55] = rest, np.eye(55)
    means = {f"hands_mean{s[0]}": getattr(open_hands(), s).arrays.hands_mean for s in SIDES}
    components = {f"hands_components{s[0]}": getattr(open_hands(), s).arrays.hands_components for s in SIDES}
    path = tmp_path_factory.mktemp("body") / "SMPLX_NEUTRAL.npz"
    np.savez(
        path, v_template=vertices, shapedirs=np.zeros((count, 3, 20)), posedirs=posedirs, weights=weights,
        J_regressor=np.eye(55, count), f=np.zeros((4, 3), np.int64), kintree_table=np.stack([parents, range(55)]),
        lmk_faces_idx=np.zeros(51, np.int64), lmk_bary_coords=np.full((51, 3), 1 / 3), **means, **components,
    )  # fmt: skip
    return path


def make_body(path, **options) -> nn.Module:
    # Landmarks on the face that this body has not.
    with mock.patch.dict(smplx.body_models.VERTEX_IDS, smplx=dict.fromkeys(smplx.vertex_ids.vertex_ids["smplx"], 0)):
        return smplx.SMPLX(str(path), dtype=torch.float64, batch_size=4, **options)


def body_parameters(width: int, seed: int = 0) -> dict[str, Tensor]:
    return {
        "global_orient": normal(4, 3, seed=seed), "body_pose": normal(4, 63, seed=seed + 1, scale=0.5),
        "transl": normal(4, 3, seed=seed + 2), "left_hand_pose": normal(4, width, seed=seed + 3, scale=0.4),
        "right_hand_pose": normal(4, width, seed=seed + 4, scale=0.4),
    }  # fmt: skip


def read_body(body: nn.Module, parameters: dict[str, Tensor], **options) -> TwoHands:
    joints = body(**parameters).joints
    forms = tuple(PoseForm.of_layer(body, side) for side in SIDES)
    own = {k: v for k, v in parameters.items() if k != "transl"}
    return smplx_to_hands(joints, **own, hands=open_hands(), forms=forms, **options)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("components", [None, 12])
def test_smplx_hands_are_where_the_body_has_them(body_file, components, flat):
    body = make_body(body_file, flat_hand_mean=flat, use_pca=components is not None, num_pca_comps=components or 6)
    parameters = body_parameters(components or 45)
    with torch.no_grad():
        surface = body(**parameters).vertices[:, 55:].unflatten(1, (2, 778))
        for align in ("wrist", "middle_mcp"):
            pair = read_body(body, parameters, align=align)
            for k, found in enumerate(pair.vertices()):
                torch.testing.assert_close(found, surface[:, k], rtol=0, atol=5e-7)


def test_smplx_there_and_back(body_file):
    body = make_body(body_file, flat_hand_mean=False, use_pca=False)
    forms = tuple(PoseForm.of_layer(body, side) for side in SIDES)
    parameters, other = body_parameters(45), body_parameters(45, seed=20)
    with torch.no_grad():
        pair = read_body(body, other)
        written = hands_to_smplx(pair, parameters["global_orient"], parameters["body_pose"], forms=forms)
        assert torch.equal(written.body_pose[:, :57], parameters["body_pose"][:, :57])
        found = read_body(body, {**parameters, **written._asdict()})
    # Same hands, turned alike; their place is that of the body's arms.
    for side in SIDES:
        a, b = getattr(found, side), getattr(pair, side)
        torch.testing.assert_close(a.hand_pose, b.hand_pose, rtol=0, atol=1e-12)
        matrices = [axis_angle_to_matrix(hand.global_orient) for hand in (a, b)]
        torch.testing.assert_close(*matrices, rtol=0, atol=1e-12)
    mine = hands_to_smplx(
        read_body(body, parameters), parameters["global_orient"], parameters["body_pose"], forms=forms
    )
    turns = [axis_angle_to_matrix(x.unflatten(-1, (21, 3))) for x in (mine.body_pose, parameters["body_pose"])]
    torch.testing.assert_close(*turns, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine.left_hand_pose, parameters["left_hand_pose"], rtol=0, atol=1e-12)


def test_the_example_with_a_body_runs(body_file, prior):
    code = "\n".join(line for line in smplx_body.__doc__.splitlines() if line.startswith("    ") and "R_" not in line)
    body = make_body(body_file, flat_hand_mean=True, use_pca=False)
    pose = {name: value.requires_grad_() for name, value in body_parameters(45).items()}
    space = {"body": body, "pose": pose, "prior": prior, "sds_loss": sds_loss, "PoseForm": PoseForm}
    space |= {"smplx_to_hands": smplx_to_hands, "hands_to_smplx": hands_to_smplx}
    exec(textwrap.dedent(code), space)
    space["loss"].backward()
    for name in ("body_pose", "left_hand_pose", "right_hand_pose"):
        assert pose[name].grad.abs().max() > 0
    found = read_body(body, {**pose, **space["changed"]._asdict()})
    for side in SIDES:
        a, b = getattr(found, side).hand_pose, getattr(space["better"], side).hand_pose
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert space["output"].vertices.shape == (4, 55 + 2 * 778, 3)


def test_wrist_rotations_against_a_walk_up_the_tree():
    orient, pose = normal(2, 3), normal(2, 21, 3, seed=1)
    for found, wrist in zip(wrist_rotations(orient, pose), (20, 21), strict=True):
        for n in range(2):
            local = [Rotation.from_rotvec(orient[n].numpy()), *(Rotation.from_rotvec(r.numpy()) for r in pose[n])]
            turn, joint = Rotation.identity(), wrist
            while joint >= 0:
                turn, joint = local[joint] * turn, BODY_PARENTS[joint]
            np.testing.assert_allclose(found[n].numpy(), turn.as_matrix(), rtol=0, atol=1e-12)


def test_sds_pulls_the_arms_of_a_body(body_file, prior):
    body = make_body(body_file, flat_hand_mean=True, use_pca=False)
    parameters = {k: v.requires_grad_() for k, v in body_parameters(45).items()}
    betas = normal(4, 10)
    pair = read_body(body, parameters, align="middle_mcp", left_betas=betas, right_betas=betas)
    left, right = pair.joints()
    joints = body(**parameters).joints
    torch.testing.assert_close(left[:, 4], joints[:, 28], rtol=0, atol=1e-9)  # the knuckles, for any shape
    torch.testing.assert_close(right[:, 4], joints[:, 43], rtol=0, atol=1e-9)
    sds_loss(prior, pair.left, pair.right, generator=generator()).backward()
    assert all(torch.isfinite(v.grad).all() for v in parameters.values())
    pull = parameters["body_pose"].grad.unflatten(-1, (21, 3)).abs().sum((0, 2))
    # From the collars on: the spine moves the pair as a whole, which the prior does not mind.
    chain = [13, 14, 16, 17, 18, 19, 20, 21]
    assert torch.nonzero(pull > 1e-5 * pull.max()).flatten().add(1).tolist() == chain


def test_smplx_arguments_are_checked():
    forms = (PoseForm(), PoseForm())
    values = {"global_orient": torch.zeros(2, 3), "body_pose": torch.zeros(2, 63), "left_hand_pose": torch.zeros(2, 45)}
    values |= {"right_hand_pose": torch.zeros(2, 45), "hands": open_hands(), "forms": forms}
    with pytest.raises(ValueError, match="joints 0 to 43"):
        smplx_to_hands(torch.zeros(2, 22, 3), **values, align="middle_mcp")
    with pytest.raises(ValueError, match="align must be one of wrist, middle_mcp"):
        smplx_to_hands(torch.zeros(2, 55, 3), **values, align="palm")
    with pytest.raises(ValueError, match=r"body_pose must have shape \(\.\.\., 63\), got \(2, 69\)"):
        smplx_to_hands(torch.zeros(2, 55, 3), **{**values, "body_pose": torch.zeros(2, 69)})
    masks = {"left_valid": torch.tensor([True, False])}
    assert smplx_to_hands(torch.zeros(2, 55, 3), **values, **masks).valid[0].tolist() == [True, False]
