"""Refinement: the most probable pair under the prior and the estimate's errors, free of penetration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same, far_apart, gaussian_prior, generator, leaves, make_prior, random_pairs

from interhand_prior import HandParams, TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES, canonical_pair
from interhand_prior.geometry import min_distance, mutual_penetration_loss


def test_without_a_prior_the_input_comes_back(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    assert_same(prior.refine(hands, weight=0.0, penetration_scale=0.0, steps=5), hands)


def test_a_sure_estimate_stays(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    sure: dict[str, Any] = dict.fromkeys(("pose_std", "rotation_std", "translation_std", "betas_std"), 1e-6)
    assert_close(prior.refine(hands, steps=10, **sure), hands, 1e-5)


def test_it_is_repeatable(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    before = torch.get_rng_state()
    first = prior.refine(hands, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(prior.refine(hands, steps=5), first)
    assert not torch.equal(prior.refine(hands, steps=5, seed=1).left.hand_pose, first.left.hand_pose)


def test_it_lowers_eq_9_and_more_so_for_poor_estimates() -> None:
    prior, hands = gaussian_prior(), random_pairs(3)
    refined = [prior.refine(hands, pose_std=std, penetration_scale=0.0) for std in (0.1, 0.5)]
    options: dict[str, Any] = {"reduction": "none", "num_draws": 100}
    good, poor, start = (
        sds_loss(prior, pairs.left, pairs.right, generator=generator(), **options) for pairs in (*refined, hands)
    )
    assert (good < start).all()
    assert (poor < 0.8 * good).all()


def test_with_a_gaussian_prior_the_fingers_meet_where_both_pulls_balance() -> None:
    """In units of the normaliser, Eq. 9's mean residual is sigma^2 z, so with the default weight 1/2 its gradient is
    snr sigma^2 z = alpha_bar z; that of a misfit of the same unit is z - z_0. They cancel at z_0 / (1 + alpha_bar)."""
    prior, hands, sigma = gaussian_prior(), random_pairs(4), 0.454
    fingers = lambda pairs: canonical_pair(prior, pairs)[0][..., SLICES["hand_pose"]]
    options: dict[str, Any] = {"sigma": sigma, "num_draws": 4, "penetration_scale": 0.0}
    found = fingers(prior.refine(hands, steps=100, pose_std=prior.normalizer.std[0].item(), **options))
    torch.testing.assert_close(found, fingers(hands) / (2 - sigma**2), atol=0.2, rtol=0)
    assert (found - fingers(hands)).abs().max() > 0.5


def test_uncertainty_by_axis() -> None:
    """What is uncertain in depth alone moves in depth alone."""
    prior, hands = gaussian_prior(), far_apart(random_pairs(2), 0.3)
    depth = torch.tensor([1e-7, 1e-7, 0.05])
    refined = prior.refine(hands, translation_std=depth, rotation_std=1e-7, steps=20)
    moved = (refined.right.transl - hands.right.transl).abs()
    assert (moved[:, :2] < 1e-5).all()
    assert (moved[:, 2] > 1e-4).all()


@pytest.mark.parametrize("batch", [(), (0,), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shapes_types_and_extras_are_kept(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    hands = random_pairs(*batch, dtype=dtype)
    hands = TwoHands(hands.left, hands.right, extras={"frame": np.zeros(batch)})
    refined = make_prior(torch.float32).refine(hands, steps=3)
    assert refined.batch_shape == batch
    assert refined.dtype == dtype
    assert refined.extras.keys() == {"frame"}
    assert not refined.left.betas.requires_grad


def test_it_works_where_gradients_are_off(prior: TwoHandPrior) -> None:
    hands = random_pairs(1)
    with torch.no_grad():
        assert_same(prior.refine(hands, steps=2), prior.refine(hands, steps=2))
    attached = hands.map(lambda value: value.clone().requires_grad_())
    prior.refine(attached, steps=2)
    assert attached.left.betas.grad is None


def overlapping(count: int = 3) -> TwoHands:
    """Pairs that are inside each other, by more or less."""
    hands = random_pairs(count, seed=3)
    left, right = hands.joints()
    away = torch.linspace(0.035, 0.05, count, dtype=hands.dtype)[:, None] * torch.tensor([0.6, 0.0, 0.8])
    transl = hands.right.transl + left[:, 4] - right[:, 4] + away
    return TwoHands(hands.left, HandParams(**{**hands.right.as_dict(), "transl": transl}))


def overlap(hands: TwoHands) -> torch.Tensor:
    faces = hands.faces
    left, right = hands.vertices()
    return mutual_penetration_loss(left, right, *faces, tolerance=0.001, residual="depth")


def test_hands_move_out_of_each_other() -> None:
    prior, hands = make_prior(), overlapping()
    before, plain = overlap(hands), overlap(prior.refine(hands, steps=4, penetration_scale=0.0))
    found = prior.refine(hands, steps=4)
    assert (before > 1e-4).all()
    assert (plain > 0.3 * before).all()
    assert (overlap(found) < 0.02 * before).all()
    # They still are beside each other, and it is not the shapes that made room.
    assert (min_distance(*found.vertices()) < 0.006).all()
    without = prior.refine(hands, steps=4, weight=0.0)
    assert torch.equal(without.left.betas, hands.left.betas)
    assert (overlap(without) < 0.02 * before).all()


def test_only_what_is_uncertain_makes_room() -> None:
    prior, hands = make_prior(), overlapping()
    stds: dict[str, Any] = {"pose_std": 1e-6, "rotation_std": 1e-6, "translation_std": torch.tensor([1e-6, 1e-6, 0.05])}
    found = prior.refine(hands, steps=2, weight=0.0, **stds)
    for name, value in leaves(found).items():
        moved = (value - leaves(hands)[name]).abs()
        if name.endswith("transl"):
            assert (moved[:, 2] > 1e-3).all()
            moved = moved[:, :2]
        assert (moved < 1e-3).all(), name
    assert (overlap(found) < 0.1 * overlap(hands)).all()


def test_a_pair_is_refined_alone_as_in_its_batch() -> None:
    prior = make_prior().calibrate(random_pairs(30, seed=7))
    hands = TwoHands.cat([overlapping(2), random_pairs(2), far_apart(random_pairs(1), 0.5)])
    std = torch.linspace(0.1, 0.3, 5, dtype=torch.float64)[:, None]
    whole = prior.refine(hands, steps=4, pose_std=std)
    for i in (1, 4):
        assert_close(prior.refine(hands[i : i + 1], steps=4, pose_std=std[i : i + 1]), whole[i : i + 1], 1e-9)
        assert_close(prior.refine(hands[i], steps=4, pose_std=std[i]), whole[i], 1e-9)


def test_the_mirror_image_is_refined_to_the_mirror_image() -> None:
    prior, hands = make_prior(), TwoHands.cat([overlapping(1), random_pairs(1)])
    # Which vertices are inside is decided by rounding at the very surface.
    for scale, atol in ((0.0, 1e-9), (1.0, 5e-3)):
        found, wanted = (prior.refine(one, steps=4, penetration_scale=scale) for one in (hands.mirrored(), hands))
        assert_close(found.mirrored(), wanted, atol)


def test_uncertainty_by_pair_and_by_joint(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    free: dict[str, Any] = {"penetration_scale": 0.0, "steps": 5, "gate": False}
    sure, unsure = (prior.refine(hands, pose_std=std, **free) for std in (1e-7, 0.3))
    std = torch.full((15,), 1e-7)
    std[3:6] = 0.3
    for found, moved in (
        (prior.refine(hands, pose_std=torch.tensor([[1e-7], [0.3]]), **free), torch.tensor([[False], [True]])),
        (prior.refine(hands, pose_std=std, **free), (std > 0.1).repeat_interleave(3).expand(2, -1)),
    ):
        change = (found.left.hand_pose - hands.left.hand_pose).abs() > 1e-5
        assert torch.equal(change, moved.expand_as(change))
    assert_close(prior.refine(hands, pose_std=torch.full((2, 45), 0.3), **free), unsure, 1e-7)
    assert (sure.left.hand_pose - hands.left.hand_pose).abs().max() < 1e-5


def test_absent_hands_stay_absent(prior: TwoHandPrior) -> None:
    hands = random_pairs(2).map(torch.clone)
    for value in hands.left.as_dict().values():
        value[0] = math.nan
    refined = prior.refine(hands, steps=5, left_valid=torch.tensor([False, True]))
    assert torch.isnan(refined.left.betas[0]).all()
    for name, value in leaves(refined[1]).items():
        assert torch.isfinite(value).all(), name
    assert torch.isfinite(refined.right.hand_pose).all()
    assert (refined.right.hand_pose[0] != hands.right.hand_pose[0]).any()
    assert torch.equal(refined.right.transl[0], hands.right.transl[0])
    with pytest.raises(ValueError, match=r"left\.global_orient holds NaN"):
        prior.refine(hands)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pose_std": 0.0}, "standard deviation of hand_pose must be positive and finite, got 0"),
        ({"rotation_std": -1.0}, "standard deviation of global_orient"),
        ({"translation_std": torch.tensor([0.1, 0.0, 0.1])}, "standard deviation of transl"),
        ({"betas_std": math.nan}, "standard deviation of betas"),
        ({"pose_std": math.inf}, "standard deviation of hand_pose must be positive and finite"),
        ({"pose_std": torch.ones(7)}, r"hand_pose must broadcast to \(1, 45\), got \(7,\); one for each pair is"),
        ({"penetration_scale": -1.0}, "penetration_scale must be finite and not negative, got -1"),
        ({"num_draws": 0}, "num_draws must be at least 1, got 0"),
        ({"gate": True}, "this prior has no calibration"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sigma": 500}, "sigma must be a noise level"),
    ],
)
def test_wrong_options_are_refused(prior: TwoHandPrior, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prior.refine(random_pairs(1), **options)
