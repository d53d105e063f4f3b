"""Level and weights from an estimate's uncertainty: closed forms, propagated against drawn errors, measured noise."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from helpers import far_apart, gaussian_prior, generator, make_prior, random_pairs
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES, canonical_pair
from interhand_prior.plausibility import BLOCKS, LEVELS, Calibration, log_residuals
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from interhand_prior.sds.uncertainty import (
    FACTORS,
    ORDINARY,
    Uncertainty,
    error_variance,
    familiar,
    measured,
    noise_table,
    placement_covariance,
    placement_trust,
    pull,
)
from interhand_prior.sds.uncertainty import LEVELS as HELD

seeds = st.integers(0, 2**16)
sizes = st.floats(0, 2)
EXACT = Uncertainty(0.0, 0.0, 0.0, 0.0)


def orient_of(hands: TwoHands) -> Tensor:
    return torch.stack((hands.left.global_orient, hands.right.global_orient))


def noisy(hand: HandParams, std: Uncertainty, draw: torch.Generator) -> HandParams:
    normal = lambda value: torch.randn(value.shape, generator=draw, dtype=value.dtype)
    turn = axis_angle_to_matrix(std.global_orient * normal(hand.global_orient))
    return HandParams(
        matrix_to_axis_angle(turn @ axis_angle_to_matrix(hand.global_orient)),
        hand.hand_pose + std.hand_pose * normal(hand.hand_pose),
        hand.betas + std.betas * normal(hand.betas),
        hand.transl + 0.5**0.5 * std.transl * normal(hand.transl),
    )


def test_errors_are_those_of_noisy_parameters() -> None:
    """Against the spread of vectors of 10,000 noisy copies. The lever of the rotations is that of a mean hand."""
    prior, hands = gaussian_prior(), random_pairs(seed=3)
    hands = hands.map(lambda v: v.clone())
    hands.left.betas.zero_(), hands.right.betas.zero_()
    std = Uncertainty(0.01, 0.01, torch.tensor((0.001, 0.002, 0.004), dtype=torch.float64), 0.0)
    copies, draw = hands.map(lambda v: v.expand(10000, -1)), generator(1)
    drawn = TwoHands(noisy(copies.left, std, draw), noisy(copies.right, std, draw))
    partner, _ = canonical_pair(prior, hands)
    spread = canonical_pair(prior, drawn)[0].std(1)
    covariance = placement_covariance(std, prior.normalizer, partner, orient_of(hands))
    found = error_variance(std, prior.normalizer, partner, covariance).sqrt()
    off = [i for i in range(64) if not SLICES["betas"].start <= i < SLICES["betas"].stop]
    torch.testing.assert_close(found[:, off], spread[:, off], rtol=0.03, atol=1e-6)
    for side in (0, 1):
        place = canonical_pair(prior, drawn)[0][side, :, SLICES["transl"]]
        scale = covariance[side].diagonal().mean()
        torch.testing.assert_close(torch.cov(place.T), covariance[side], rtol=0.05, atol=0.03 * float(scale))


def test_errors_by_axis_average_to_those_without_a_frame() -> None:
    prior, hands = gaussian_prior(), random_pairs(4)
    partner, _ = canonical_pair(prior, hands)
    std = Uncertainty(transl=torch.tensor((0.001, 0.002, 0.004)))
    place = SLICES["transl"]
    scale = prior.normalizer.std[place].square()
    trace = lambda *orient: placement_covariance(std, prior.normalizer, partner, *orient).diagonal(dim1=-2, dim2=-1)
    by_axis, alike = trace(orient_of(hands)) * scale, trace() * scale
    torch.testing.assert_close(by_axis.sum(-1), alike.sum(-1))
    assert (by_axis - alike).abs().max() > 1e-7


@given(seeds, st.floats(0, 5))
def test_familiar_is_bayes_rule(seed: int, size: float) -> None:
    """Against scipy's densities of the two kinds, for one covariance from both sides."""
    offset = 3 * torch.randn(3, generator=generator(seed), dtype=torch.float64)
    root = size * torch.randn(3, 3, generator=generator(seed + 1), dtype=torch.float64)
    covariance = root @ root.T
    density = lambda at, std: multivariate_normal.pdf(at, cov=std**2 * torch.eye(3).double() + covariance)
    near, anywhere = 0.1 * density(offset, 1.0), 0.9 * density(offset, 3.0)
    found = familiar(torch.stack((offset, -offset)), covariance.expand(2, 3, 3))
    assert float(found) == pytest.approx(near / (near + anywhere), rel=1e-6, abs=1e-12)


def test_far_to_the_side_is_strange_and_far_in_depth_may_be_an_error() -> None:
    prior, std = gaussian_prior(), Uncertainty(transl=torch.tensor((0.005, 0.005, 0.08)))
    covariance = torch.diag(torch.tensor((0.005, 0.005, 0.08)).double() / prior.normalizer.std[61:]).square()
    weights = [
        float(familiar(4 * torch.eye(3).double()[axis].expand(2, 3), covariance.expand(2, 3, 3))) for axis in (0, 2)
    ]
    assert weights[0] < 0.01 < 0.1 < weights[1]
    nothing_known = Uncertainty(math.inf, math.inf, math.inf, math.inf)
    partner, _ = canonical_pair(prior, random_pairs(4, dtype=torch.float32).to(torch.float64))
    for uncertainty in (std, nothing_known):
        assert bool(pull(uncertainty, prior.normalizer, partner).factors.isfinite().all())
    far = partner.float() + 100 * (torch.arange(64) >= 61)
    assert bool(pull(nothing_known, prior.normalizer.float(), far).factors.isfinite().all())


@given(seeds, st.floats(0.01, 3))
def test_no_more_than_the_posterior(seed: int, size: float) -> None:
    """N(0, 1) as prior: the fixed point lies between the estimate y and 1.2 times the way to the posterior's mean.

    E of the residual is sigma^2 x, so x = y / (1 + 2 w sigma^2 s^2); the posterior's mean is y / (1 + s^2).
    """
    prior, hands = gaussian_prior(), random_pairs(2, seed=seed)
    std = prior.normalizer.std[0].item() * size
    level, factors = pull(Uncertainty(std, std, 0.01, std), prior.normalizer, canonical_pair(prior, hands)[0])
    strength = 2 * factors[..., SLICES["hand_pose"]] * level[:, None].square()  # of the pull, times x
    assert bool((strength >= 0).all())
    assert bool((1 - 1 / (1 + size**2 * strength) <= 1.2 * (1 - 1 / (1 + size**2))).all())
    if size >= 2:
        assert bool((1 - 1 / (1 + size**2 * strength) >= 0.9 * (1 - 1 / (1 + size**2))).all())


def test_a_fit_ends_at_the_fixed_point() -> None:
    """The real loss beside a data term: a gradient step of the closed form's fixed point vanishes on average."""
    prior, hands, size = gaussian_prior(), random_pairs(1, seed=5), 0.8
    mean, std = prior.normalizer.mean[:45], prior.normalizer.std[:45] * size
    estimate = Uncertainty(float(std[0]), 0.0, 0.0, 0.0)
    level, factors = pull(estimate, prior.normalizer, canonical_pair(prior, hands)[0])
    shrink = 1 / (1 + size**2 * 2 * factors[0, 0, 0] * level[0] ** 2)
    at = mean + shrink * (hands.right.hand_pose - mean)
    right = replace(hands.right, hand_pose=at.clone().requires_grad_())
    options: dict[str, Any] = {"gate": False, "reduction": "sum", "generator": generator(), "num_draws": 4000}
    loss = sds_loss(prior, hands.left, right, uncertainty=estimate, antithetic=True, **options)
    data = 0.5 * ((right.hand_pose - hands.right.hand_pose) / std).square().sum()
    # The partner's residual does not depend on the anchor in this prior: the anchor's own term is constant.
    (gradient,) = torch.autograd.grad(loss + data, right.hand_pose)
    (alone,) = torch.autograd.grad(
        0.5 * ((right.hand_pose - hands.right.hand_pose) / std).square().sum(), right.hand_pose
    )
    assert gradient.norm() < 1e-8 * alone.norm()


def test_what_is_known_is_not_pulled() -> None:
    prior, hands = make_prior(), random_pairs(3)
    partner, _ = canonical_pair(prior, hands)
    assert not pull(EXACT, prior.normalizer, partner).factors.any()
    assert not sds_loss(prior, hands.left, hands.right, uncertainty=EXACT, gate=False)
    joint = torch.zeros(3, 15, dtype=torch.float64)
    joint[:, 4] = 0.2
    factors = pull(Uncertainty(joint, 0.0, 0.0, 0.0), prior.normalizer, partner).factors
    assert bool((factors[..., 12:15] > 0).all())
    assert factors.count_nonzero() == 2 * 3 * 3


@given(sizes, sizes, seeds)
def test_more_uncertain_is_looked_at_and_pulled_more(first: float, second: float, seed: int) -> None:
    prior = gaussian_prior()
    partner, _ = canonical_pair(prior, random_pairs(3, seed=seed))
    low, high = sorted((first, second))
    of = lambda size: pull(Uncertainty(0.2 * size, 0.1 * size, 0.013 * size, size), prior.normalizer, partner)
    assert bool((of(low).sigma <= of(high).sigma).all())
    # The pull in units of the prior's own precision, whatever the level.
    gain = lambda found: found.factors * (found.sigma**2 / (1 - found.sigma**2))[..., None]
    assert bool((gain(of(low)) <= gain(of(high)) + 1e-12).all())
    assert HELD[0] <= of(low).sigma.min()
    assert of(high).sigma.max() <= HELD[1]


def test_unknown_is_finite() -> None:
    prior = gaussian_prior()
    partner, _ = canonical_pair(prior, random_pairs(2))
    unknown = Uncertainty(*[math.inf] * 4)
    level, factors = pull(unknown, prior.normalizer, partner, torch.zeros(2, 2, 3, dtype=torch.float64))
    assert bool((level == HELD[1]).all())
    assert bool(factors.isfinite().all() and (factors > 0).all())


def test_far_hands_are_not_pulled_together() -> None:
    """By their place alone, without a gate; their fingers are pulled as ever."""
    prior, hands = gaussian_prior(), random_pairs(8)
    near, far = (
        pull(Uncertainty(), prior.normalizer, canonical_pair(prior, pairs)[0]).factors
        for pairs in (hands, far_apart(hands, 0.6))
    )
    assert far[..., SLICES["relative"]].max() < 1e-6
    assert near[..., SLICES["relative"]].any()
    assert bool((far[..., SLICES["own"]] > 0).all())


@given(seeds)
def test_mirrored_with_the_hands(seed: int) -> None:
    prior, hands = gaussian_prior(), random_pairs(3, seed=seed)
    std = Uncertainty(0.2, 0.1, torch.rand(3, 3, generator=generator(seed)), 0.3)
    pairs = (hands, hands.mirrored())
    one, other = (pull(std, prior.normalizer, canonical_pair(prior, p)[0], orient_of(p)) for p in pairs)
    torch.testing.assert_close(one.sigma, other.sigma)
    torch.testing.assert_close(one.factors, other.factors.flip(0))


def test_of_a_pair_alone_and_in_any_shape() -> None:
    prior, hands = gaussian_prior(), random_pairs(2, 3)
    partner, _ = canonical_pair(prior, hands)
    draw = generator(2)
    parts = [torch.rand(2, 3, *more, generator=draw) for more in ((15,), (), (3,), ())]
    whole = pull(Uncertainty(*parts), prior.normalizer, partner, orient_of(hands))
    assert whole.sigma.shape == (2, 3)
    assert whole.factors.shape == (2, 2, 3, 64)
    orient = orient_of(hands)[:, 1, 2]
    one = pull(Uncertainty(*(part[1, 2] for part in parts)), prior.normalizer, partner[:, 1, 2], orient)
    torch.testing.assert_close(one.sigma, whole.sigma[1, 2])
    torch.testing.assert_close(one.factors, whole.factors[:, 1, 2])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="transl must hold standard deviations, 0 or more, got -1"):
        Uncertainty(transl=-1.0)
    with pytest.raises(ValueError, match="betas must hold"):
        Uncertainty(betas=torch.tensor((0.1, math.nan)))
    prior = gaussian_prior()
    partner, _ = canonical_pair(prior, random_pairs(4))
    with pytest.raises(
        ValueError, match=r"global_orient must be a number or a tensor of shape \(4,\), got shape \(5,\)"
    ):
        pull(Uncertainty(global_orient=torch.ones(5)), prior.normalizer, partner)
    with pytest.raises(ValueError, match=r"hand_pose must be .* \(4,\) or \(4, 15\), got shape \(4, 45\)"):
        pull(Uncertainty(hand_pose=torch.ones(4, 45)), prior.normalizer, partner)
    with pytest.raises(ValueError, match=r"no noise table.*prior\.calibrate"):
        measured(Calibration(torch.linspace(0, 1, 101).expand(2, 2, 101)), torch.zeros(4, 2, 2))


@lru_cache
def calibrated() -> tuple[TwoHandPrior, Calibration]:
    """A Gaussian prior whose fingers are narrow: noise shows."""
    std = torch.ones(64, dtype=torch.float64)
    std[SLICES["hand_pose"]] = 0.4
    prior = gaussian_prior(std=std)
    pairs = narrow_pairs(400, 1)
    residuals = torch.zeros(2, len(LEVELS), len(BLOCKS))
    return prior, replace(Calibration.fit(residuals), noise_table=noise_table(prior, pairs, seed=4))


def narrow_pairs(number: int, seed: int) -> TwoHands:
    """Pairs of the prior of `calibrated`."""
    pairs, mean = random_pairs(number, seed=seed), gaussian_prior().normalizer.mean[SLICES["hand_pose"]]
    right = replace(pairs.right, hand_pose=mean + 0.4 * (pairs.right.hand_pose - mean))
    left = pairs.mirrored().right
    left = TwoHands(right, replace(left, hand_pose=mean + 0.4 * (left.hand_pose - mean))).mirrored().left
    return TwoHands(replace(pairs.left, hand_pose=left.hand_pose), right)


def residuals_of(prior: TwoHandPrior, hands: TwoHands) -> Tensor:
    return log_residuals(prior, *canonical_pair(prior, hands))


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0])
def test_noise_is_measured(factor: float) -> None:
    prior, calibration = calibrated()
    std = Uncertainty(*(factor * getattr(ORDINARY, name) for name in ("hand_pose", "global_orient", "transl", "betas")))
    hands, draw = narrow_pairs(100, 9), generator(3)
    found = measured(
        calibration, residuals_of(prior, TwoHands(noisy(hands.left, std, draw), noisy(hands.right, std, draw)))
    )
    assert found.hand_pose.shape == (100,)
    assert abs(float(found.hand_pose.mean()) - 0.2 * factor) < 0.04
    torch.testing.assert_close(found.transl / ORDINARY.transl, found.hand_pose / ORDINARY.hand_pose)


def test_the_table_and_who_is_trusted() -> None:
    prior, calibration = calibrated()
    table = calibration.noise_table
    assert table is not None
    assert table.shape == (len(FACTORS), len(LEVELS), 4)
    assert bool((table[..., 0].diff(dim=0) > 0).all())  # noise raises the fingers' residuals
    assert bool((table[..., 2] < table[..., 3]).all())
    hands = narrow_pairs(200, 11)
    trust = placement_trust(calibration, residuals_of(prior, hands), EXACT)
    assert bool(((trust >= 0) & (trust <= 1)).all())
    assert trust.mean() > 0.7
    # What is a surprising residual of a good estimate is an ordinary one of a poor estimate.
    residuals = residuals_of(prior, hands) + 0.3
    poor = Uncertainty(0.4, 0.2, 0.026, 0.6)
    assert bool((placement_trust(calibration, residuals, poor) >= placement_trust(calibration, residuals, EXACT)).all())
    assert not placement_trust(calibration, residuals + 5, poor).any()
    alone = placement_trust(calibration, residuals[7], replace(poor, transl=torch.full((3,), 0.026)))
    torch.testing.assert_close(alone, placement_trust(calibration, residuals, poor)[7])
