"""The gradient of Eq. 9: it reaches both hands, not the prior; absent hands; and it points along the true score."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import gaussian_prior, generator, leaves, make_prior, random_pairs, rigidly_moved, with_grad
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES, canonical_pair
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.schedule import snr
from interhand_prior.sds.terms import sds_terms

ONLY_PLACE = {"hand_pose": 0.0, "betas": 0.0, "rot6d": 1.0, "transl": 1.0}


def backward(prior: TwoHandPrior, hands: TwoHands, **options: Any) -> Tensor:
    loss = sds_loss(prior, hands.left, hands.right, generator=generator(), **{"reduction": "none"} | options)
    loss.sum().backward()
    return loss.detach()


@pytest.mark.parametrize("squared", [True, False])
def test_the_gradient_reaches_every_input_of_both_hands(calibrated: TwoHandPrior, squared: bool) -> None:
    hands = with_grad(random_pairs(3))
    backward(calibrated, hands, squared=squared, gate=False)
    for name, value in leaves(hands).items():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
        # Each of the 45 + 10 + 3 + 3 numbers of each pair.
        assert (value.grad != 0).all(), name


def test_the_placement_alone_moves_orientation_shape_and_place(prior: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(3))
    backward(prior, hands, group_weights=ONLY_PLACE)
    for name, value in leaves(hands).items():
        moves = not name.endswith("hand_pose")  # the middle MCP joint does not move with the fingers
        assert value.grad is not None
        assert (value.grad.abs().sum(-1) > 0).all() == moves, name


def test_the_prior_is_frozen_even_when_its_weights_are_not() -> None:
    prior = make_prior().requires_grad_(True)
    backward(prior, with_grad(random_pairs(2)))
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_it_is_the_derivative_with_the_estimate_held(prior: TwoHandPrior) -> None:
    """Finite differences of the loss whose target is a constant, along random directions in all parameters."""
    hands = with_grad(random_pairs(2))
    backward(prior, hands)
    with torch.no_grad():
        terms = sds_terms(prior, hands.detach(), generator=generator())
    factor = torch.full((64,), 0.5, dtype=torch.float64)
    factor[SLICES["relative"]] = 0.1
    factor = factor * snr(torch.tensor(0.454, dtype=torch.float64))
    frozen = lambda h: (factor * (canonical_pair(prior, h)[0] - terms.estimate).square()).sum()
    for seed in range(5):
        draw, step = generator(seed), 1e-5
        directions = {n: torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in leaves(hands).items()}

        def along(size: float, directions: dict[str, Tensor] = directions) -> TwoHands:
            moved = {n: v.detach() + size * directions[n] for n, v in leaves(hands).items()}
            part = lambda side: HandParams(**{n[len(side) + 1 :]: v for n, v in moved.items() if n.startswith(side)})
            return TwoHands(part("left"), part("right"))

        slope = (frozen(along(step)) - frozen(along(-step))) / (2 * step)
        found = sum((v.grad * directions[n]).sum() for n, v in leaves(hands).items())  # type: ignore[misc]
        torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_invariant_too(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    rotation = axis_angle_to_matrix(torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64))
    here, there = with_grad(hands), with_grad(rigidly_moved(hands, rotation, torch.ones(3).double()))
    backward(prior, here)
    backward(prior, there)
    for side in ("left", "right"):
        a, b = getattr(here, side), getattr(there, side)
        torch.testing.assert_close(b.hand_pose.grad, a.hand_pose.grad, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(b.transl.grad, a.transl.grad @ rotation.T, rtol=1e-8, atol=1e-7)
    torch.testing.assert_close(here.left.transl.grad, -here.right.transl.grad, rtol=1e-9, atol=1e-9)  # type: ignore[operator]


def test_a_weight_may_be_learned(prior: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(2))
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    loss = backward(prior, hands, weight=weight)
    torch.testing.assert_close(weight.grad, loss / weight.detach())


# Where 0/0 lurks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [True, False])
def test_zero_residual_has_a_finite_gradient(squared: bool) -> None:
    """A prior whose every estimate is the mean, and hands that are the mean."""
    hands = random_pairs(1)
    prior = gaussian_prior(std=torch.zeros(64, dtype=torch.float64))
    prior.normalizer.mean.copy_(canonical_pair(prior, hands)[0][0, 0] * prior.normalizer.std + prior.normalizer.mean)
    hands = with_grad(hands)
    loss = sds_loss(
        prior, hands.left, hands.right, squared=squared, right_valid=torch.ones(1, dtype=torch.bool),
        left_valid=torch.zeros(1, dtype=torch.bool), generator=generator(),
    )  # fmt: skip
    loss.backward()
    assert loss.item() < 1e-12
    nothing = dict.fromkeys(ONLY_PLACE, 0.0)  # zero without rounding
    assert (backward(prior, hands, squared=squared, group_weights=nothing) == 0).all()
    assert all(value.grad is None or torch.isfinite(value.grad).all() for value in leaves(hands).values())


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("turn", [0.0, math.pi])
def test_singular_rotations_have_finite_gradients(prior: TwoHandPrior, squared: bool, turn: float) -> None:
    zero = {name: torch.zeros_like(value) for name, value in random_pairs(3).left.as_dict().items()}
    turned = zero | {"global_orient": turn * torch.eye(3, dtype=torch.float64)}
    hands = with_grad(TwoHands(HandParams(**zero), HandParams(**turned)))
    loss = backward(prior, hands, squared=squared)
    assert torch.isfinite(loss).all()
    for name, value in leaves(hands).items():
        assert value.grad is not None
        assert torch.isfinite(value.grad).all(), name


@given(
    turns=st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6),
    scale=st.sampled_from([0.0, 1e-30, 1e-8, 1e-3, 1.0]),
    near=st.sampled_from([0.0, math.pi, 2 * math.pi, 3 * math.pi]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    squared=st.booleans(),
)
def test_every_rotation_has_a_finite_gradient(
    prior: TwoHandPrior, turns: list[float], scale: float, near: float, dtype: torch.dtype, squared: bool
) -> None:
    """Hands and fingers turned by nearly 0, half a turn, a turn, ..., about the axes of space and any others."""
    hands = random_pairs(4, dtype=dtype)
    spin = scale * torch.tensor(turns, dtype=dtype).reshape(2, 3)
    about = torch.cat((torch.eye(3, dtype=dtype), torch.full((1, 3), 3**-0.5, dtype=dtype)))
    parts = {}
    for side, small, turn in (("left", spin[0], 0.0), ("right", spin[1], near)):
        hand = getattr(hands, side).as_dict()
        pose = (turn * about + small).repeat(1, 15)
        parts[side] = HandParams(**hand | {"global_orient": turn * about + small, "hand_pose": pose})
    leaf = with_grad(TwoHands(**parts))
    loss = backward(prior, leaf, squared=squared)
    assert torch.isfinite(loss).all()
    for name, value in leaves(leaf).items():
        assert value.grad is not None
        assert torch.isfinite(value.grad).all(), name


@pytest.mark.parametrize("options", [{}, {"squared": False, "space": "metric"}], ids=str)
def test_beside_a_constant_estimate_it_is_a_plain_function(options: dict[str, Any]) -> None:
    """Nothing is detached that matters: its derivative is that of its value, for both hands' parameters."""
    prior = gaussian_prior(0.3 * torch.ones(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64))
    hands = with_grad(random_pairs(1))
    masks = {f"{side}_confidence": torch.rand(1, 15, generator=generator()).double() for side in ("left", "right")}

    def loss(*values: Tensor) -> Tensor:
        return sds_loss(prior, HandParams(*values[:4]), HandParams(*values[4:]), sigma=0.7, **masks, **options)

    assert torch.autograd.gradcheck(loss, tuple(leaves(hands).values()), fast_mode=True)


# Absent hands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
def test_absent_hands_are_not_read(calibrated: TwoHandPrior, squared: bool, rubbish: float) -> None:
    hands = random_pairs(4)
    left_valid = torch.tensor([True, False, True, False])
    right_valid = torch.tensor([True, True, False, False])
    whole = backward(calibrated, with_grad(hands), squared=squared)
    broken = hands.map(torch.clone)
    for hand, valid in ((broken.left, left_valid), (broken.right, right_valid)):
        for value in hand.as_dict().values():
            value[~valid] = rubbish
    clean, broken = with_grad(hands), with_grad(broken)
    masks = {"left_valid": left_valid, "right_valid": right_valid}
    loss = backward(calibrated, broken, squared=squared, **masks)
    torch.testing.assert_close(loss[0], whole[0], rtol=1e-12, atol=0)
    assert torch.isfinite(loss).all()
    assert (loss[1:3] > 0).all(), "a lone hand is held to the single-hand prior"
    assert (loss[1:3] < whole[1:3]).all()
    assert loss[3] == 0
    assert torch.equal(backward(calibrated, clean, squared=squared, **masks), loss)
    for name, value in leaves(broken).items():
        valid = left_valid if name.startswith("left") else right_valid
        assert value.grad is not None
        assert torch.isfinite(value.grad).all(), name
        assert (value.grad[~valid] == 0).all(), name
    for name in ("global_orient", "transl"):
        assert (getattr(broken.right, name).grad[1] == 0).all(), "a lone hand has no placement to be pulled"
    assert (broken.right.hand_pose.grad[1] != 0).all()  # type: ignore[index]


def test_a_lone_hands_loss_does_not_depend_on_where_it_is(calibrated: TwoHandPrior) -> None:
    hands = random_pairs(3)
    rotation = axis_angle_to_matrix(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    moved = rigidly_moved(hands, rotation, torch.tensor([0.0, 0.0, 2.0]).double())
    present, absent = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    for masks in ({"left_valid": present, "right_valid": absent}, {"left_valid": absent, "right_valid": present}):
        found = backward(calibrated, with_grad(moved), **masks)
        torch.testing.assert_close(found, backward(calibrated, with_grad(hands), **masks), rtol=1e-10, atol=0)


def test_masks_that_hide_nothing_change_nothing(calibrated: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(2, 2))
    every = torch.ones(2, 2, dtype=torch.bool)
    found = backward(calibrated, hands, left_valid=every, right_valid=every)
    assert torch.equal(found, backward(calibrated, hands))


# Closed form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.2, 0.454, 0.8])
def test_with_a_gaussian_prior_the_residual_is_its_score(sigma: float) -> None:
    """E over the noise of x - E[x0 | x_t] is sigma^2 (x - mu) / (a^2 s^2 + sigma^2): minus the score of the noised
    density, pulled back, up to a positive factor for each entry. At low noise it is sigma^2 times minus the score."""
    mean = torch.randn(64, generator=generator(), dtype=torch.float64)
    std = 0.5 + torch.rand(64, generator=generator(1), dtype=torch.float64)
    prior = gaussian_prior(mean, std)
    hands = random_pairs(3)
    terms = sds_terms(prior, hands, sigma=sigma, num_draws=8000, generator=generator())
    x = canonical_pair(prior, hands)[0]
    wanted = sigma**2 * (x - mean) / ((1 - sigma**2) * std**2 + sigma**2)
    torch.testing.assert_close(terms.residual, wanted, atol=0.03, rtol=0)
    score = -(x - mean) / std**2
    assert (torch.cosine_similarity(-terms.residual, score, dim=-1) > 0.8).all()


def test_descent_leads_to_the_mean_of_a_gaussian() -> None:
    prior = gaussian_prior()
    hands = with_grad(random_pairs(2))
    optimizer = torch.optim.Adam(leaves(hands).values(), lr=0.08)
    start = canonical_pair(prior, hands.detach())[0].abs().mean()
    draws = generator()
    for _ in range(80):
        optimizer.zero_grad()
        groups = dict.fromkeys(ONLY_PLACE, 1.0)
        sds_loss(prior, hands.left, hands.right, group_weights=groups, num_draws=4, generator=draws).backward()
        optimizer.step()
    found = canonical_pair(prior, hands.detach())[0]
    assert found.abs().mean() < 0.4 * start
