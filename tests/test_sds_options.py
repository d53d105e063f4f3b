"""The options of Eq. 9: a naive twin, and the invariances with every one of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    assert_close,
    generator,
    leaves,
    random_pairs,
    rigidly_moved,
    with_grad,
)
from hypothesis import given
from hypothesis import strategies as st
from sds_helpers import SIDES, confidence_of, exchanged, info_of, loss_of, noise_of, sided
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES, to_canonical
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sds.loss import DEFAULT_GROUP_WEIGHTS
from interhand_prior.sds.terms import sds_terms

#: Every option at once; each test adds those that have sides.
EVERY: dict[str, Any] = {
    "num_draws": 4, "antithetic": True, "space": "metric", "cfg_scale": 0.4, "clip": 2.0, "sigma": (0.2, 0.6),
    "group_weights": {"rot6d": 0.3},
}  # fmt: skip


# A naive twin ----------------------------------------------------------------------------------------------------


def naive(
    prior: TwoHandPrior, hands: TwoHands, noises: Tensor, sigma: float, *, anchor: str = "both", metric: bool = False,
    squared: bool = True, confidence: dict[str, Tensor] | None = None, clip: float = math.inf,
) -> list[float]:  # fmt: skip
    """Pair by pair, direction by direction, entry by entry. noises (K, N, 64); no gate."""
    snr = (1 - sigma**2) / sigma**2
    std = prior.normalizer.std
    losses = []
    for i, pair in enumerate(hands):
        loss = 0.0
        for given_side, denoised in (SIDES, SIDES[::-1]):
            if anchor not in ("both", given_side):
                continue
            given_vector, partner, _ = to_canonical(pair, prior.hands, given_side)  # type: ignore[arg-type]
            given_vector, x = prior.normalizer.anchor(given_vector), prior.normalizer.partner(partner)
            level = torch.tensor(sigma, dtype=torch.float64)
            estimates = [
                prior.denoiser((math.sqrt(1 - sigma**2) * x + sigma * eps)[None], level, given_vector[None])[0]
                for eps in noises[:, i]
            ]
            residual = x - sum(estimates) / len(estimates)
            value = steep = 0.0
            for group, weight in DEFAULT_GROUP_WEIGHTS.items():
                entries = range(SLICES[group].start, SLICES[group].stop)
                for j in entries:
                    factor = weight * snr
                    if metric:
                        factor *= float(std[j]) ** 2 / (sum(float(std[k]) ** 2 for k in entries) / len(entries))
                    if group == "hand_pose" and confidence and denoised in confidence:
                        factor *= 1 - float(confidence[denoised][i, j // 3])
                    value += factor * float(residual[j]) ** 2
                    steep += (factor * float(residual[j])) ** 2
            value, steep = (value, 2 * math.sqrt(steep)) if squared else (math.sqrt(value), math.sqrt(steep / value))
            loss += value * min(1.0, clip / steep)
        losses.append(loss)
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"anchor": "left"},
        {"anchor": "right", "squared": False},
        {"metric": True},
        {"confidence": SIDES},
        {"confidence": ("left",), "squared": False},
        {"confidence": ("left",), "anchor": "left"},
        {"clip": 3.0},
        {"clip": 0.4, "squared": False, "metric": True, "confidence": SIDES, "anchor": "right"},
    ],
    ids=str,
)
def test_against_a_naive_twin(prior: TwoHandPrior, options: dict[str, Any]) -> None:
    hands, noise = random_pairs(3), noise_of(2, 3)
    confidence = {side: confidence_of(3, seed=i) for i, side in enumerate(options.pop("confidence", ()))}
    wanted = naive(prior, hands, noise, 0.3, confidence=confidence, **options)
    found: dict[str, Any] = {f"{side}_confidence": value for side, value in confidence.items()}
    if options.pop("metric", False):
        found["space"] = "metric"
    loss = loss_of(prior, hands, sigma=0.3, noise=noise, num_draws=2, **found, **options)
    torch.testing.assert_close(loss, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=0)


# Invariance, absent hands ----------------------------------------------------------------------------------------


ANCHORS = st.sampled_from(["both", "left", "right"])


@given(seed=st.integers(0, 1000), anchor=ANCHORS, squared=st.booleans())
def test_mirroring_with_exchanged_hands_changes_nothing(
    calibrated: TwoHandPrior, seed: int, anchor: str, squared: bool
) -> None:
    hands, options = random_pairs(3, seed=seed), sided(seed, anchor)
    same = {**EVERY, "squared": squared}
    wanted, info = sds_loss(
        calibrated, hands.left, hands.right, reduction="none", return_info=True, generator=generator(seed),
        **same, **options,
    )  # fmt: skip
    mirrored = hands.mirrored()
    found, info_m = sds_loss(
        calibrated, mirrored.left, mirrored.right, reduction="none", return_info=True, generator=generator(seed),
        **same, **exchanged(options),
    )  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for name, value in info.residuals.items():
        torch.testing.assert_close(info_m.residuals[name], value, rtol=1e-9, atol=1e-9)
    both = options["left_valid"] & options["right_valid"]
    for side in SIDES:
        one, two = getattr(info_m.hands.mirrored(), side), getattr(info.hands, side)
        turn = lambda hand: axis_angle_to_matrix(hand.global_orient[both])
        torch.testing.assert_close(turn(one), turn(two), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.hand_pose, two.hand_pose, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 1000), anchor=ANCHORS, squared=st.booleans())
def test_a_rigid_motion_changes_nothing(calibrated: TwoHandPrior, seed: int, anchor: str, squared: bool) -> None:
    hands, draw = random_pairs(3, seed=seed), generator(seed)
    rotation = axis_angle_to_matrix(2 * torch.randn(3, 3, generator=draw, dtype=torch.float64))
    moved = rigidly_moved(hands, rotation, torch.randn(3, 3, generator=draw, dtype=torch.float64))
    options = {**EVERY, **sided(seed, anchor), "squared": squared}
    found = loss_of(calibrated, moved, generator=generator(seed), **options)
    wanted = loss_of(calibrated, hands, generator=generator(seed), **options)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("anchor", ["both", "left", "right"])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_absent_hands_are_not_read(calibrated: TwoHandPrior, anchor: str, rubbish: float) -> None:
    options = {**sided(0, anchor), "return_info": True, **EVERY, "gate": torch.tensor([0.5, 1.0, 0.7, 0.0]).double()}
    options |= {"left_valid": torch.tensor([True, False, True, False])}
    options |= {"right_valid": torch.tensor([True, True, False, False])}
    options |= {f"{side}_confidence": confidence_of(4) for side in SIDES}
    results = []
    for fill in (0.0, rubbish):
        filled = with_grad(random_pairs(4))
        given_options = dict(options, gate=options["gate"].clone())
        with torch.no_grad():
            for side in SIDES:
                absent = ~options[f"{side}_valid"]
                for value in getattr(filled, side).as_dict().values():
                    value[absent] = fill
                confidence = options[f"{side}_confidence"].clone()
                confidence[absent] = fill
                given_options[f"{side}_confidence"] = confidence
            given_options["gate"][1:] = fill  # of pairs that are none
        loss, info = sds_loss(calibrated, filled.left, filled.right, generator=generator(), **given_options)
        loss.backward()
        results.append((filled, loss.detach(), info))
    (clean, loss, info), (broken, loss_b, info_b) = results
    assert torch.isfinite(loss)
    assert torch.equal(loss, loss_b)
    for name, value in leaves(broken).items():
        grad, wanted = value.grad, leaves(clean)[name].grad
        assert grad is not None and wanted is not None  # noqa: PT018
        assert torch.equal(grad, wanted), name
        assert (grad[~options[f"{name.split('.')[0]}_valid"]] == 0).all(), name
    for name, value in leaves(info.hands).items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, leaves(info_b.hands)[name])
        assert (value[~options[f"{name.split('.')[0]}_valid"]] == 0).all(), name
    assert all(torch.isfinite(value).all() for value in info_b.residuals.values())


# Which hands, which joints ---------------------------------------------------------------------------------------


def test_one_anchor_is_one_direction(calibrated: TwoHandPrior) -> None:
    hands, noise = with_grad(random_pairs(3)), noise_of(1, 3)
    parts = {side: loss_of(calibrated, hands, anchor=side, noise=noise) for side in SIDES}
    torch.testing.assert_close(sum(parts.values()), loss_of(calibrated, hands, noise=noise), rtol=1e-12, atol=0)
    parts["left"].sum().backward()
    assert (hands.left.hand_pose.grad == 0).all()  # type: ignore[union-attr]
    assert (hands.right.hand_pose.grad != 0).all()  # type: ignore[union-attr]
    assert (hands.left.transl.grad != 0).all(), "the placement is of both"  # type: ignore[union-attr]
    there, absent = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    lone = {"left_valid": there, "right_valid": absent, "noise": noise}
    assert (loss_of(calibrated, hands, anchor="left", **lone) == 0).all()
    found = loss_of(calibrated, hands, anchor="right", **lone)
    torch.testing.assert_close(found, loss_of(calibrated, hands, **lone), rtol=1e-12, atol=0)


def test_confident_joints_stay(prior: TwoHandPrior) -> None:
    hands, noise = random_pairs(2), noise_of(1, 2)
    grads = {}
    for name, confidence in (("none", None), ("zero", torch.zeros(2, 15).double()), ("some", confidence_of(2))):
        leaf = with_grad(hands)
        loss_of(prior, leaf, left_confidence=confidence, noise=noise).sum().backward()
        grads[name] = leaf
    for name, value in leaves(grads["some"]).items():
        wanted = leaves(grads["none"])[name].grad
        assert value.grad is not None
        assert wanted is not None
        assert torch.equal(leaves(grads["zero"])[name].grad, wanted)
        if name == "left.hand_pose":
            wanted = wanted * (1 - confidence_of(2)).repeat_interleave(3, -1)
        torch.testing.assert_close(value.grad, wanted, rtol=1e-12, atol=1e-14)


def test_confidence_is_taken_as_given(prior: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(2))
    confidence = confidence_of(2).requires_grad_()
    loss_of(prior, hands, right_confidence=confidence).sum().backward()
    assert confidence.grad is None


# Clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_clipping_bounds_the_gradient(prior: TwoHandPrior, squared: bool, reduction: str) -> None:
    """Without placement the right hand's vector is its own hand_pose and betas, divided by standard deviations."""
    hands, std = random_pairs(6), prior.normalizer.std
    fixed = {"anchor": "left", "noise": noise_of(1, 6), "squared": squared, "reduction": reduction}
    weights = {"rot6d": 0.0, "transl": 0.0}

    def steepness(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
        leaf = with_grad(hands)
        loss = loss_of(prior, leaf, group_weights=weights, **fixed, **options)
        loss.sum().backward()
        slope = torch.cat((leaf.right.hand_pose.grad, leaf.right.betas.grad), -1)  # type: ignore[arg-type]
        slope = slope * std[SLICES["own"]] * (6 if reduction == "mean" else 1)
        return slope, slope.norm(dim=-1), loss.detach()

    slope, steep, loss = steepness()
    clip = float(steep.median())
    clipped, norm, value = steepness(clip=clip)
    share = (clip / steep).clamp_max(1)
    assert (share < 1).any()
    assert (share == 1).any()
    torch.testing.assert_close(norm, steep.clamp_max(clip), rtol=1e-10, atol=0)
    torch.testing.assert_close(clipped, slope * share[:, None], rtol=1e-10, atol=1e-14)
    if reduction == "none":
        torch.testing.assert_close(value, loss * share, rtol=1e-10, atol=0)
    weighted = steepness(clip=clip, weight=torch.full((6,), 3.0).double())[1]
    torch.testing.assert_close(weighted, 3 * norm, rtol=1e-10, atol=0)


@pytest.mark.parametrize("squared", [True, False])
def test_clipping_what_is_zero(prior: TwoHandPrior, squared: bool) -> None:
    hands = with_grad(random_pairs(2))
    loss = loss_of(prior, hands, clip=1.0, squared=squared, group_weights=dict.fromkeys(DEFAULT_GROUP_WEIGHTS, 0.0))
    loss.sum().backward()
    assert (loss == 0).all()
    assert all((value.grad == 0).all() for value in leaves(hands).values())


# Facts -----------------------------------------------------------------------------------------------------------


def test_the_facts_are_those_of_the_loss(calibrated: TwoHandPrior) -> None:
    hands, sigma = with_grad(random_pairs(2, 2)), 0.3
    plain = loss_of(calibrated, hands, sigma=sigma, generator=generator())
    loss, info = sds_loss(
        calibrated, hands.left, hands.right, sigma=sigma, reduction="none", return_info=True, generator=generator()
    )
    assert torch.equal(loss, plain)
    assert_close(info.hands, calibrated.denoise(hands.detach(), sigma, generator=generator()), atol=1e-12)
    assert torch.equal(info.gate, calibrated.trust(hands.detach()))
    assert torch.equal(info.sigma, torch.full((2, 2), sigma, dtype=torch.float64))
    terms = sds_terms(calibrated, hands, sigma=sigma, generator=generator())
    for name, found in info.residuals.items():
        wanted = terms.residual[..., SLICES[name]].detach().square().mean((0, -1)).sqrt()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    detached = [info.sigma, info.gate, *info.residuals.values(), *leaves(info.hands).values()]
    assert not any(value.requires_grad for value in detached)


def test_metric_residuals_are_in_metres(prior: TwoHandPrior) -> None:
    hands, noise = random_pairs(3), noise_of(1, 3)
    found = info_of(prior, hands, space="metric", anchor="left", noise=noise).residuals["transl"]
    denoised = info_of(prior, hands, anchor="left", noise=noise).hands
    place = lambda pair: to_canonical(pair, prior.hands, "left")[1][..., SLICES["transl"]]
    wanted = (place(hands) - place(denoised)).square().mean(-1).sqrt()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_a_lone_hand_stays_in_its_place(prior: TwoHandPrior) -> None:
    hands, there = random_pairs(2), torch.ones(2, dtype=torch.bool)
    info = info_of(prior, hands, left_valid=~there, right_valid=there)
    right = info.hands.right
    turn = axis_angle_to_matrix
    torch.testing.assert_close(turn(right.global_orient), turn(hands.right.global_orient))
    middle = lambda hand: prior.hands.right.joints(hand)[..., 4, :]
    torch.testing.assert_close(middle(right), middle(hands.right))
    assert not torch.allclose(right.hand_pose, hands.right.hand_pose, atol=1e-2)
    assert info.hands.left_valid is not None
    assert not info.hands.left_valid.any()
    assert (info.residuals["rot6d"] == 0).all()
    assert (info.residuals["hand_pose"] > 0).all()


def test_the_given_hand_of_one_anchor_stays(prior: TwoHandPrior) -> None:
    hands, noise = random_pairs(2), noise_of(1, 2)
    info = info_of(prior, hands, anchor="right", noise=noise)
    both = info_of(prior, hands, noise=noise)
    assert_close(info.hands, TwoHands(both.hands.left, hands.right), atol=1e-12)
