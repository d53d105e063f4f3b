"""Eq. 5: a naive twin, exact round trips, invariance to rigid motions, Gamma."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_close, generator, make_normalizer, random_hand, random_pairs, rigidly_moved, with_grad
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from interhand_prior import HandParams, TwoHands
from interhand_prior.canonical import SIZE, SLICES, Normalizer, Side, from_canonical, to_canonical
from interhand_prior.hands import MIDDLE_MCP, HandModel, open_hands
from interhand_prior.rotations import axis_angle_to_matrix

PAIR = open_hands()
SIDES: list[Side] = ["left", "right"]
IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 0]
GAMMA = np.array([-1.0, 1.0, 1.0])


def naive_place(hand: HandParams, model: HandModel, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Global rotation and middle-MCP joint of one hand, from MANO's arrays."""
    arrays = model.arrays
    surface = arrays.v_template + arrays.shapedirs @ hand.betas[index].numpy()
    wrist, middle = (arrays.J_regressor @ surface)[[0, MIDDLE_MCP]]
    rotation = Rotation.from_rotvec(hand.global_orient[index].numpy()).as_matrix()
    return rotation, rotation @ (middle - wrist) + wrist + hand.transl[index].numpy()


def naive(hands: TwoHands, side: Side, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Paper Sec. 3.2-3.3 for one pair: mirror if the anchor is the right hand, then Eq. 5, then right-hand form."""
    a, p = (hands.left, hands.right) if side == "left" else (hands.right, hands.left)
    model_a, model_p = (PAIR.left, PAIR.right) if side == "left" else (PAIR.right, PAIR.left)
    (rotation_a, middle_a), (rotation_p, middle_p) = naive_place(a, model_a, index), naive_place(p, model_p, index)
    rotation, offset = rotation_a.T @ rotation_p, rotation_a.T @ (middle_p - middle_a)
    poses = {"left": hands.left.hand_pose[index].numpy(), "right": hands.right.hand_pose[index].numpy()}
    poses["left"] = poses["left"] * np.tile([1.0, -1.0, -1.0], 15)
    if side == "right":
        rotation, offset = np.diag(GAMMA) @ rotation @ np.diag(GAMMA), GAMMA * offset
    other = "right" if side == "left" else "left"
    anchor = np.concatenate([poses[side], a.betas[index].numpy(), IDENTITY])
    partner = np.concatenate([poses[other], p.betas[index].numpy(), rotation[0], rotation[1], offset])
    return anchor, partner


@pytest.mark.parametrize("side", SIDES)
def test_eq_5_against_a_loop(side: Side) -> None:
    hands = random_pairs(6)
    anchor, partner, frame = to_canonical(hands, PAIR, side)
    for i in range(6):
        wanted_anchor, wanted_partner = naive(hands, side, i)
        np.testing.assert_allclose(anchor[i].numpy(), wanted_anchor, atol=1e-12)
        np.testing.assert_allclose(partner[i].numpy(), wanted_partner, atol=1e-12)
        rotation, middle = naive_place(getattr(hands, side), getattr(PAIR, side), i)
        np.testing.assert_allclose(frame.rotation[i].numpy(), rotation, atol=1e-12)
        np.testing.assert_allclose(frame.origin[i].numpy(), middle, atol=1e-12)


def test_the_slices_are_one_partition_of_the_vector() -> None:
    for names in (("hand_pose", "betas", "rot6d", "transl"), ("own", "relative")):
        covered = [i for name in names for i in range(SLICES[name].start, SLICES[name].stop)]
        assert covered == list(range(SIZE))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3)])
def test_round_trip(side: Side, batch: tuple[int, ...]) -> None:
    hands = random_pairs(*batch)
    anchor, partner, frame = to_canonical(hands, PAIR, side)
    assert anchor.shape == partner.shape == (*batch, SIZE)
    assert frame.rotation.shape == (*batch, 3, 3)
    back = from_canonical(anchor, partner, PAIR, frame, side)
    for hand in ("left", "right"):
        found, wanted = getattr(back, hand), getattr(hands, hand)
        rotations = [axis_angle_to_matrix(h.global_orient) for h in (found, wanted)]
        torch.testing.assert_close(*rotations, atol=1e-12, rtol=0)
        torch.testing.assert_close(found.transl, wanted.transl, atol=1e-12, rtol=0)
        assert torch.allclose(found.hand_pose, wanted.hand_pose, atol=0)
        assert torch.allclose(found.betas, wanted.betas, atol=0)
    for found, wanted in zip(back.joints(), hands.joints(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    for found, wanted in zip(to_canonical(back, PAIR, side)[:2], (anchor, partner), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


angle = st.sampled_from([0.0, 1e-9, 1e-4, math.pi / 2, math.pi - 1e-7, math.pi]) | st.floats(0, math.pi)


@given(angles=st.tuples(angle, angle), seed=st.integers(0, 100), side=st.sampled_from(SIDES))
def test_round_trip_at_singular_rotations(angles: tuple[float, float], seed: int, side: Side) -> None:
    axes = torch.nn.functional.normalize(torch.randn(2, 1, 3, generator=generator(seed), dtype=torch.float64), dim=-1)
    turned = [
        HandParams(**random_hand(1, seed=seed + i).as_dict() | {"global_orient": angles[i] * axes[i]}) for i in (0, 1)
    ]
    hands = with_grad(TwoHands(*turned))
    anchor, partner, frame = to_canonical(hands, PAIR, side)
    back = from_canonical(anchor, partner, PAIR, frame, side)
    for found, wanted in zip(back.joints(), hands.joints(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    back.left.global_orient.sum().backward()
    for hand in (hands.left, hands.right):
        for value in hand.as_dict().values():
            assert value.grad is None or torch.isfinite(value.grad).all()


@given(seed=st.integers(0, 1000), size=st.sampled_from([0.1, 1.0, 3.0]))
def test_a_rigid_motion_of_the_pair_changes_nothing(seed: int, size: float) -> None:
    hands = random_pairs(3, seed=seed)
    draw = generator(seed)
    rotation = axis_angle_to_matrix(torch.randn(3, 3, generator=draw, dtype=torch.float64) * size)
    translation = torch.randn(3, 3, generator=draw, dtype=torch.float64) * size
    moved = rigidly_moved(hands, rotation, translation)
    for before, after in zip(hands.joints21(), moved.joints21(), strict=True):  # the helper itself is right
        wanted = before @ rotation.mT + translation[:, None]
        torch.testing.assert_close(after, wanted, atol=1e-12, rtol=0)
    for side in SIDES:
        for found, wanted in zip(to_canonical(moved, PAIR, side)[:2], to_canonical(hands, PAIR, side)[:2], strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_either_anchor_is_the_other_one_after_gamma() -> None:
    hands = random_pairs(5)
    right, mirrored = to_canonical(hands, PAIR, "right"), to_canonical(hands.mirrored(), PAIR, "left")
    for found, wanted in zip(right[:2], mirrored[:2], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-14, rtol=0)
    anchor, partner = right[:2]
    unmirrored = from_canonical(anchor, partner, PAIR, anchor_side="right").mirrored()
    assert_close(from_canonical(anchor, partner, PAIR, anchor_side="left"), unmirrored, 1e-14)


@pytest.mark.parametrize("side", SIDES)
def test_the_partners_middle_mcp_lies_where_the_vector_says(side: Side) -> None:
    anchor, partner, _ = to_canonical(random_pairs(4), PAIR, side)
    hands = from_canonical(anchor, partner, PAIR, anchor_side=side)
    joints = dict(zip(SIDES, hands.joints(), strict=True))
    other: Side = "right" if side == "left" else "left"
    sign = torch.tensor([1.0 if side == "left" else -1.0, 1.0, 1.0])
    torch.testing.assert_close(joints[side][:, MIDDLE_MCP], torch.zeros(4, 3).double(), atol=1e-15, rtol=0)
    assert getattr(hands, side).global_orient.abs().max() == 0
    torch.testing.assert_close(joints[other][:, MIDDLE_MCP], sign * partner[:, SLICES["transl"]], atol=1e-12, rtol=0)


def test_rot6d_of_a_partner_may_be_any_numbers() -> None:
    anchor, partner, _ = to_canonical(random_pairs(4), PAIR)
    stretched = partner.clone()
    stretched[:, SLICES["rot6d"]] *= 3
    assert_close(from_canonical(anchor, stretched, PAIR), from_canonical(anchor, partner, PAIR))


@pytest.mark.parametrize("side", SIDES)
def test_gradients_reach_every_input_of_both_hands(side: Side) -> None:
    hands = with_grad(random_pairs(3))
    anchor, partner, _ = to_canonical(hands, PAIR, side)
    weight = torch.randn(2, 3, SIZE, generator=generator(), dtype=torch.float64)
    partner_only = torch.autograd.grad((weight[1] * partner[:, SLICES["relative"].start :].sum(-1, keepdim=True)).sum(),
        [getattr(h, n) for h in (hands.left, hands.right) for n in ("global_orient", "betas", "transl")],
        retain_graph=True)  # fmt: skip
    (weight[0] * anchor + weight[1] * partner).sum().backward()
    everything = [value.grad for hand in (hands.left, hands.right) for value in hand.as_dict().values()]
    for grad in (*partner_only, *everything):
        assert grad is not None
        assert torch.isfinite(grad).all()
        assert (grad.abs().sum(-1) > 1e-6).all()


def test_half_precision_autocast_does_not_move_hands() -> None:
    hands = random_pairs(4, dtype=torch.float32)
    anchor, partner, frame = to_canonical(hands, PAIR)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = to_canonical(hands, PAIR)
        back = from_canonical(anchor, partner, PAIR, frame)
    assert torch.equal(found[1], partner)
    assert_close(back, from_canonical(anchor, partner, PAIR, frame), 0)


def test_an_unknown_side_is_refused() -> None:
    hands = random_pairs(1)
    with pytest.raises(ValueError, match="anchor must be 'left' or 'right', got 'Right'"):
        to_canonical(hands, PAIR, "Right")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="anchor_side must be"):
        from_canonical(*to_canonical(hands, PAIR)[:2], PAIR, anchor_side="both")  # type: ignore[arg-type]


# Normaliser ------------------------------------------------------------------------------------------------------


def test_fit_finds_mean_and_standard_deviation() -> None:
    truth = make_normalizer()
    vectors = truth.partner_inverse(torch.randn(20_000, SIZE, generator=generator(), dtype=torch.float64))
    fitted = Normalizer.fit(vectors, floor=0.0)
    np.testing.assert_allclose(fitted.mean.numpy(), vectors.numpy().mean(0), atol=1e-12)
    np.testing.assert_allclose(fitted.std.numpy(), vectors.numpy().std(0, ddof=1), rtol=1e-10)
    torch.testing.assert_close(fitted.std, truth.std, rtol=0.03, atol=0)


def test_fit_floors_angles_but_not_translations() -> None:
    vectors = torch.zeros(10, SIZE)
    vectors[:, SLICES["transl"].start] = torch.linspace(0, 1e-3, 10)
    fitted = Normalizer.fit(vectors, floor=0.07)
    assert (fitted.std[: SLICES["transl"].start] == 0.07).all()
    assert 1e-4 < fitted.std[SLICES["transl"].start] < 1e-3
    assert (fitted.std[-2:] > 0).all()
    assert fitted.std.dtype == torch.float32


def test_normalising_comes_back_and_the_anchors_constant_part_is_zero() -> None:
    normalizer = make_normalizer()
    anchor, partner, _ = to_canonical(random_pairs(2, 3), PAIR)
    normal = normalizer.anchor(anchor)
    assert (normal[..., SLICES["relative"]] == 0).all()
    torch.testing.assert_close(normal[..., 0], (anchor[..., 0] - normalizer.mean[0]) / normalizer.std[0])
    torch.testing.assert_close(normalizer.anchor_inverse(normal), anchor, atol=1e-14, rtol=0)
    torch.testing.assert_close(normalizer.partner_inverse(normalizer.partner(partner)), partner, atol=1e-14, rtol=0)


def test_statistics_stay_whole_in_half_precision() -> None:
    normalizer = make_normalizer().to(torch.float32)
    before = normalizer.std.clone()
    normalizer.to(torch.bfloat16).half()
    assert normalizer.std.dtype == torch.float32
    assert torch.equal(normalizer.std, before)
    assert normalizer.to(torch.float64).mean.dtype == torch.float64
    assert normalizer.to("meta").mean.device.type == "meta"
    assert normalizer.partner(torch.zeros(SIZE, dtype=torch.bfloat16, device="meta")).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.zeros(63), torch.ones(64)),
        (torch.zeros(64), torch.ones(1, 64)),
        (torch.zeros(64), torch.zeros(64)),
        (torch.zeros(64), -torch.ones(64)),
        (torch.full((64,), torch.nan), torch.ones(64)),
        (torch.zeros(64), torch.full((64,), torch.inf)),
    ],
)
def test_bad_statistics_are_refused(mean: torch.Tensor, std: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="mean and std must"):
        Normalizer(mean, std)


@pytest.mark.parametrize("shape", [(1, 64), (0, 64), (64,), (5, 61)])
def test_statistics_need_two_vectors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"N >= 2"):
        Normalizer.fit(torch.zeros(shape))
