"""The hand layer by itself: a naive twin, symmetries, dtypes, and the sealed surface."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interhand_prior.hands import (
    PARENTS,
    TIP_IDS,
    WRIST_LOOP,
    HandArrays,
    HandModel,
    HandPair,
    load_hands,
    open_hands,
    sealed,
    sealed_faces,
    sealed_vertices,
)
from interhand_prior.params import HandParams, TwoHands
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle, mirror_points

BATCHES = [(), (1,), (4,), (2, 3), (0,), (2, 0, 3)]


def draw(*batch: int, seed: int = 0, dtype=torch.float64, scale: float = 1.0) -> HandParams:
    generator = torch.Generator().manual_seed(seed)
    r = lambda n, s: (torch.randn(*batch, n, generator=generator, dtype=torch.float64) * s * scale).to(dtype)
    return HandParams(r(3, 2.0), r(45, 0.6), r(10, 1.5), r(3, 0.3))


@functools.cache
def genuine_like() -> HandPair:
    """A pair whose hands are not mirror images, as with the real MANO: every mirror rule has to hold for it."""
    noise = np.random.default_rng(0)
    changed = []
    for model in (open_hands().left, open_hands().right):
        a = model.arrays
        changed.append(
            HandModel(
                HandArrays(
                    a.v_template + noise.normal(scale=1e-3, size=a.v_template.shape),
                    a.shapedirs + noise.normal(scale=1e-3, size=a.shapedirs.shape),
                    a.posedirs + noise.normal(scale=1e-3, size=a.posedirs.shape),
                    a.J_regressor,
                    a.weights / a.weights.sum(1, keepdims=True),  # float32 rows sum to 1 +- 6e-8 only
                    a.faces,
                    noise.normal(size=45),
                    noise.normal(size=(45, 45)),
                )
            )
        )
    return HandPair(*changed)


def naive(arrays: HandArrays, orient, pose, betas, transl) -> tuple[np.ndarray, np.ndarray]:
    """The module's formulas, one joint and one vertex at a time, with scipy's rotations."""
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    local = rotation.from_rotvec(np.concatenate([orient[None], pose.reshape(15, 3)])).as_matrix()
    shaped = arrays.v_template + np.tensordot(arrays.shapedirs, betas, (2, 0))
    rest = arrays.J_regressor @ shaped
    feature = (local[1:] - np.eye(3)).ravel()
    turn, place = [local[0]], [rest[0]]
    for k in range(1, 16):
        parent = PARENTS[k]
        turn.append(turn[parent] @ local[k])
        place.append(place[parent] + turn[parent] @ (rest[k] - rest[parent]))
    vertices = np.zeros((778, 3))
    for i in range(778):
        v = shaped[i] + arrays.posedirs[i] @ feature
        for k in range(16):
            vertices[i] += arrays.weights[i, k] * (turn[k] @ (v - rest[k]) + place[k])
    return vertices + transl, np.array(place) + transl


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_a_naive_twin(side):
    model, hand = getattr(genuine_like(), side), draw(seed=3)
    vertices, joints = naive(model.arrays, *(value.numpy() for value in hand.as_dict().values()))
    ours = model(hand)
    np.testing.assert_allclose(ours[0].numpy(), vertices, atol=1e-13, rtol=0)
    np.testing.assert_allclose(ours[1].numpy(), joints, atol=1e-13, rtol=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_any_batch_shape(batch):
    model, hand = open_hands().right, draw(*batch)
    vertices, joints = model(hand)
    tips = model.joints21(hand)
    assert vertices.shape == (*batch, 778, 3)
    assert joints.shape == model.joints(hand).shape == (*batch, 16, 3)
    assert tips.shape == (*batch, 21, 3)
    torch.testing.assert_close(model.joints(hand), joints, rtol=0, atol=0)
    torch.testing.assert_close(tips, torch.cat((joints, vertices[..., TIP_IDS, :]), -2), rtol=0, atol=1e-15)
    if joints.numel():
        one = hand.reshape(-1)[-1]
        torch.testing.assert_close(vertices.reshape(-1, 778, 3)[-1], model(one)[0], rtol=0, atol=1e-14)


def test_empty_batches_have_gradients():
    hand = draw(0).map(lambda t: t.requires_grad_())
    open_hands().left(hand)[0].sum().backward()
    assert hand.hand_pose.grad is not None
    assert hand.hand_pose.grad.shape == (0, 45)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.sampled_from([(), (2,), (2, 2)]), scale=st.sampled_from([0.0, 1e-9, 1.0]))
def test_mirror_is_exact(seed, batch, scale):
    hand = draw(*batch, seed=seed, scale=scale)
    for model in (open_hands().right, genuine_like().left):
        image = model.mirrored()
        assert image.side != model.side
        for got, expected in zip(image(hand.mirrored()), model(hand), strict=True):
            torch.testing.assert_close(got, mirror_points(expected), rtol=0, atol=1e-12)
        torch.testing.assert_close(image.joints21(hand.mirrored()), mirror_points(model.joints21(hand)))


def test_mirror_of_every_array():
    model = genuine_like().left
    image, back = model.mirrored(), model.mirrored().mirrored()
    for name in ("v_template", "shapedirs", "posedirs", "weights", "J_regressor", "hands_mean", "hands_components"):
        np.testing.assert_array_equal(getattr(back.arrays, name), getattr(model.arrays, name))
        changed = not np.array_equal(getattr(image.arrays, name), getattr(model.arrays, name))
        assert changed == (name not in ("weights", "J_regressor"))
    # The mean pose and the pose basis are axis-angles of the other hand.
    pose = model.arrays.hands_mean + np.arange(45) @ model.arrays.hands_components
    other = image.arrays.hands_mean + np.arange(45) @ image.arrays.hands_components
    np.testing.assert_allclose(other.reshape(15, 3) * [1, -1, -1], pose.reshape(15, 3))
    # Faces stay outward: the volume stays positive.
    assert all(volume(m) > 1e-4 for m in (open_hands().left, open_hands().right, open_hands().right.mirrored()))
    assert torch.equal(back.faces, model.faces)


def volume(model: HandModel) -> float:
    a, b, c = sealed_vertices(model.v_template.double())[model.sealed_faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_global_rotation_pivots_about_the_wrist(seed):
    """A rotation about J_0(beta) and a translation move everything rigidly; nothing else depends on them."""
    model, hand = open_hands().left, draw(3, seed=seed)
    turn = axis_angle_to_matrix(draw(3, seed=seed + 1).global_orient)
    orient = matrix_to_axis_angle(turn @ axis_angle_to_matrix(hand.global_orient))
    moved = HandParams(orient, hand.hand_pose, hand.betas, hand.transl + 1)
    pivot = model.rest_joints(hand.betas)[:, :1] + hand.transl[:, None]
    vertices, joints = model(hand)
    torch.testing.assert_close(joints[:, :1], pivot)
    expected = (vertices - pivot) @ turn.mT + pivot + 1
    torch.testing.assert_close(model(moved)[0], expected, rtol=0, atol=1e-12)


def test_rest_joints_are_linear_in_the_shape():
    model, betas = open_hands().right, draw(2, 3).betas
    a = model.arrays
    shaped = a.v_template + np.einsum("vck,...k->...vc", a.shapedirs, betas.numpy())
    np.testing.assert_allclose(model.rest_joints(betas).numpy(), a.J_regressor @ shaped, atol=1e-15)
    zero = draw(2, 3, scale=0.0)
    hand = HandParams(zero.global_orient, zero.hand_pose, betas, zero.transl)
    torch.testing.assert_close(model.joints(hand), model.rest_joints(betas), rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match=r"betas must have shape \(..., 10\), got \(2, 9\)"):
        model.rest_joints(torch.zeros(2, 9))


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0])
def test_gradients(scale):
    """Also at exactly zero rotation, where Rodrigues' formula is 0/0."""
    model, hand = open_hands().right, draw(1, scale=scale)
    values = [value.requires_grad_() for value in hand.as_dict().values()]
    probe = torch.randn(778, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = lambda *v: ((model(HandParams(*v))[0] * probe).sum(), model.joints21(HandParams(*v)).sum((0, 1)))
    assert torch.autograd.gradcheck(f, values, eps=1e-6, atol=1e-6)


def test_bfloat16_and_autocast():
    model = open_hands().right
    hand = draw(8, dtype=torch.float32, scale=0.5)
    exact = model(hand)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside, joints = model(hand)
        rest = model.rest_joints(hand.betas)
    # The products are kept out of autocast: they would cost tenths of a millimetre.
    assert inside.dtype == joints.dtype == rest.dtype == torch.float32
    torch.testing.assert_close(inside, exact, rtol=0, atol=0)
    low = model(hand.to(torch.bfloat16))[0]
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 2e-2


def test_precision_follows_the_input_and_not_the_module():
    model, hand = HandModel(open_hands().right.arrays), draw(2)
    exact = model(hand)[0]
    model.to(torch.bfloat16)
    assert model.dtype == model.v_template.dtype == model.posedirs.dtype == torch.bfloat16
    torch.testing.assert_close(model(hand)[0], exact, rtol=0, atol=0)
    model.double()
    np.testing.assert_array_equal(model.v_template.numpy(), model.arrays.v_template)
    assert model(draw(2, dtype=torch.float32))[0].dtype == torch.float32


def test_attributes_are_the_arrays():
    model = HandModel(open_hands().left.arrays, dtype=torch.float64)
    for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean", "hands_components"):
        np.testing.assert_array_equal(getattr(model, name).numpy(), getattr(model.arrays, name))
    np.testing.assert_array_equal(model.faces.numpy(), model.arrays.faces)
    assert model.faces.dtype == torch.int64
    assert (model.side, model.parents) == ("left", PARENTS)


def test_checkpoints_carry_no_hand():
    """A network that holds a licensed hand model must not spread it with its weights."""
    holder = torch.nn.ModuleList([HandModel(open_hands().left.arrays), torch.nn.Linear(1, 1)])
    assert set(holder.state_dict()) == {"1.weight", "1.bias"}


def test_copies_and_pickles_work():
    model, hand = HandModel(open_hands().left.arrays), draw(2)
    expected = model(hand)[0]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(hand)[0], expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(hand)[0], expected, rtol=0, atol=0)


def test_first_call_in_inference_mode_does_not_poison_gradients():
    model = HandModel(open_hands().left.arrays)
    with torch.inference_mode():
        model(draw(1))
        model.double()
        assert model.faces.any()
    hand = draw(1).map(lambda t: t.requires_grad_())
    model(hand)[0].square().sum().backward()
    assert torch.isfinite(hand.betas.grad).all()


def test_compiles_without_graph_breaks():
    model = HandModel(open_hands().right.arrays)  # float32, so that the tables of float64 are made inside the graph
    hand = draw(3)

    def run(orient, pose, betas, transl):
        params = HandParams(orient, pose, betas, transl)
        return model(params)

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    values = [value.clone().requires_grad_() for value in hand.as_dict().values()]
    for got, expected in zip(compiled(*values), run(*hand.as_dict().values()), strict=True):
        torch.testing.assert_close(got, expected)
        assert got.requires_grad


def test_input_must_be_hand_params():
    with pytest.raises(TypeError, match=r"got dict; HandParams.coerce"):
        open_hands().left(draw(1).as_dict())


# The sealed wrist -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sealed_surface_is_watertight(side, centre):
    model = getattr(open_hands(), side)
    vertices = model(draw(2, 2, scale=0.3))[0]
    closed, faces = sealed(vertices, model.faces, centre=centre)
    assert faces.shape == ((1554, 3) if centre else (1552, 3))
    assert closed.shape == ((2, 2, 779, 3) if centre else (2, 2, 778, 3))
    if centre:
        torch.testing.assert_close(closed[..., 778, :], vertices[..., WRIST_LOOP, :].mean(-2))
        assert torch.equal(faces, model.sealed_faces)
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).tolist()
    walked = {(a, b) for a, b in edges}
    assert len(walked) == len(edges)  # each directed edge once ...
    assert {(b, a) for a, b in walked} == walked  # ... and its opposite: closed, and consistently oriented
    assert closed.shape[-2] - len(edges) // 2 + len(faces) == 2  # Euler: a sphere
    a, b, c = closed[..., faces, :].unbind(-2)
    assert ((a * torch.linalg.cross(b, c)).sum((-1, -2)) > 0).all()  # outward
    area = torch.linalg.cross(b - a, c - a).norm(dim=-1)
    assert area.min() > 0


def test_both_caps_close_about_the_same_volume():
    model = open_hands().right
    volumes = []
    for centre in (True, False):
        closed, faces = sealed(model.v_template.double(), model.faces, centre=centre)
        a, b, c = closed[faces].unbind(1)
        volumes.append(float((a * torch.linalg.cross(b, c)).sum() / 6))
    assert volumes[0] == pytest.approx(volumes[1], rel=5e-3)


def test_sealing_checks_shapes():
    with pytest.raises(ValueError, match=r"vertices must have shape \(..., 778, 3\), got \(777, 3\)"):
        sealed_vertices(torch.zeros(777, 3))
    with pytest.raises(ValueError, match=r"faces must have shape \(1538, 3\), got \(5, 3\)"):
        sealed_faces(torch.zeros(5, 3, dtype=torch.int64))


# Pairs ----------------------------------------------------------------------------------------------------------


def test_pair_computes_what_its_hands_do():
    pair = genuine_like()
    hands = TwoHands(draw(2, seed=1), draw(2, seed=2), pair)
    for i, side in enumerate(("left", "right")):
        model, hand = getattr(pair, side), getattr(hands, side)
        assert torch.equal(pair.vertices(hands)[i], model(hand)[0])
        assert torch.equal(pair.joints(hands)[i], model(hand)[1])
        assert torch.equal(pair.joints21(hands)[i], model.joints21(hand))
        assert torch.equal(pair(hands)[i][0], hands.vertices()[i])
        assert torch.equal(pair.faces[i], hands.faces[i])
        assert torch.equal(pair.sealed_faces[i], model.sealed_faces)


def test_mirrored_pair_of_mirrored_hands():
    pair = genuine_like()
    hands = TwoHands(draw(2, seed=1), draw(2, seed=2), pair)
    left, right = pair.vertices(hands)
    image_left, image_right = pair.mirrored().vertices(hands.mirrored())
    torch.testing.assert_close(image_left, mirror_points(right), rtol=0, atol=1e-12)
    torch.testing.assert_close(image_right, mirror_points(left), rtol=0, atol=1e-12)


def test_open_hands_are_mirror_images_and_shared():
    assert open_hands() is open_hands()
    assert load_hands(None) is not load_hands(None)
    pair = open_hands()
    assert torch.equal(pair.left.v_template, mirror_points(pair.right.v_template))
    assert pair.right.dtype == torch.float32
