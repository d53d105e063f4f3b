"""Refinement: the most probable pair under the prior and the estimate's errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same, far_apart, gaussian_prior, generator, leaves, make_prior, random_pairs

from interhand_prior import TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES
from interhand_prior.sds import canonical_pair


def test_without_a_prior_the_input_comes_back(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    assert_same(prior.refine(hands, weight=0.0, steps=5), hands)


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
    refined = [prior.refine(hands, pose_std=std, steps=30) for std in (0.1, 0.5)]
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
    found = fingers(prior.refine(hands, steps=100, sigma=sigma, num_draws=4, pose_std=prior.normalizer.std[0].item()))
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
        ({"pose_std": 0.0}, "standard deviation of hand_pose must be positive, got 0"),
        ({"rotation_std": -1.0}, "standard deviation of global_orient"),
        ({"translation_std": torch.tensor([0.1, 0.0, 0.1])}, "standard deviation of transl"),
        ({"betas_std": math.nan}, "standard deviation of betas"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sigma": 500}, "sigma must be a noise level"),
    ],
)
def test_wrong_options_are_refused(prior: TwoHandPrior, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prior.refine(random_pairs(1), **options)
