"""How strong Eq. 9 is: level and weights from uncertainty, and the rule that puts it beside a task loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    gaussian_prior,
    generator,
    leaves,
    make_prior,
    random_pairs,
    with_grad,
)
from hypothesis import given
from hypothesis import strategies as st
from sds_helpers import SIDES, confidence_of, exchanged, info_of, loss_of, noise_of, sided
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES, canonical_pair
from interhand_prior.plausibility import Calibration, log_residuals
from interhand_prior.sds.terms import sds_terms
from interhand_prior.sds.uncertainty import Uncertainty, measured, noise_table, placement_trust, pull

# Do no harm ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measuring() -> TwoHandPrior:
    """A tiny prior that knows what residuals noise makes."""
    prior, pairs = make_prior(), random_pairs(64, seed=7)
    gate = torch.linspace(-3, 3, 101).expand(2, 2, 101)
    prior.calibration = Calibration(gate, noise_table=noise_table(prior, pairs))
    return prior


def vectors(prior: TwoHandPrior, hands: TwoHands) -> tuple[Tensor, Tensor, Tensor]:
    orient = torch.stack((hands.left.global_orient, hands.right.global_orient))
    return *canonical_pair(prior, hands), orient


@pytest.mark.parametrize("anchor", ["both", "left", "right"])
def test_uncertainty_sets_level_and_weights(prior: TwoHandPrior, anchor: Any) -> None:
    hands, noise = random_pairs(3), noise_of(1, 3)
    spread = torch.tensor([0.05, 0.2, 0.6], dtype=torch.float64)
    estimate = Uncertainty(hand_pose=confidence_of(3), global_orient=spread, transl=torch.rand(3, 3), betas=0.0)
    partner, _, orient = vectors(prior, hands)
    level, factors = pull(estimate, prior.normalizer, partner, orient)
    options: dict[str, Any] = {"noise": noise, "anchor": anchor}
    terms = sds_terms(prior, hands, sigma=level, **options)
    chosen = {"both": slice(0, 2), "left": slice(0, 1), "right": slice(1, 2)}[anchor]
    parts = factors[chosen] * terms.residual.square()
    assert len(parts) == len(terms.residual)
    found = loss_of(prior, hands, uncertainty=estimate, **options)
    torch.testing.assert_close(found, parts.sum((0, -1)), rtol=1e-10, atol=0)
    more = loss_of(prior, hands, uncertainty=estimate, group_weights={"transl": 3.0}, **options)
    wanted = found + 2 * parts[..., SLICES["transl"]].sum((0, -1))
    torch.testing.assert_close(more, wanted, rtol=1e-10, atol=0)


def test_an_exact_estimate_is_left_alone(prior: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(3))
    loss = loss_of(prior, hands, uncertainty=Uncertainty(0.0, 0.0, 0.0, 0.0), squared=False)
    loss.sum().backward()
    assert (loss == 0).all()
    assert all((value.grad == 0).all() for value in leaves(hands).values())


def test_measured_is_what_the_prior_measures(measuring: TwoHandPrior) -> None:
    hands, noise = random_pairs(3), noise_of(1, 3)
    partner, anchor, _ = vectors(measuring, hands)
    residuals = log_residuals(measuring, partner, anchor)
    calibration = measuring.require_calibration()
    estimate = measured(calibration, residuals)
    trust = placement_trust(calibration, residuals, estimate)
    loss, info = sds_loss(
        measuring, hands.left, hands.right, uncertainty="measured", noise=noise, reduction="none", return_info=True
    )
    assert torch.equal(info.gate, trust)
    assert torch.equal(loss, loss_of(measuring, hands, uncertainty=estimate, noise=noise))
    assert torch.equal(loss, loss_of(measuring, hands, uncertainty=estimate, gate=trust, noise=noise))
    free = info_of(measuring, hands, uncertainty="measured", gate=False, noise=noise)
    assert (free.gate == 1).all()
    assert torch.equal(free.sigma, info.sigma)


@given(seed=st.integers(0, 100), kind=st.sampled_from(["given", "measured"]))
def test_uncertainty_is_mirrored_with_the_hands(measuring: TwoHandPrior, seed: int, kind: str) -> None:
    hands, by_axis = random_pairs(3, seed=seed), torch.rand(3, 3, generator=generator(seed)).double()
    estimate: Any = Uncertainty(transl=by_axis, hand_pose=confidence_of(3)) if kind == "given" else "measured"
    options = {**sided(seed, "both"), "noise": noise_of(1, 3)}
    broken = hands.map(torch.clone)
    for side in SIDES:
        for value in getattr(broken, side).as_dict().values():
            value[~options[f"{side}_valid"]] = math.nan
    wanted = loss_of(measuring, hands, uncertainty=estimate, **options)
    assert torch.equal(loss_of(measuring, broken, uncertainty=estimate, **options), wanted)
    found = loss_of(measuring, hands.mirrored(), uncertainty=estimate, **exchanged(options))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# The scale -------------------------------------------------------------------------------------------------------


def own_of(prior: TwoHandPrior, hands: TwoHands) -> Tensor:
    """Normalised hand_pose and betas of both hands, (2, ..., 55)."""
    return canonical_pair(prior, hands)[0][..., SLICES["own"]]


@pytest.mark.parametrize("rule", ["likelihood", "mean of squares"])
def test_the_rule_for_the_weight_gives_the_posterior(rule: str) -> None:
    """The gradients of a Gaussian data term and of the loss balance at the posterior mean of the prior widened by the
    noise, N(mean, std^2 + sigma^2 / alpha_bar); at low noise that is the posterior mean."""
    mean = torch.randn(64, generator=generator(11), dtype=torch.float64)
    std = 0.5 + torch.rand(64, generator=generator(12), dtype=torch.float64)
    prior, sigma, error = gaussian_prior(mean, std), 0.05, 0.7
    hands = with_grad(random_pairs(2))
    x = own_of(prior, hands)
    mean, variance = mean[SLICES["own"]], std[SLICES["own"]].square()
    # What must have been seen for these hands to be the posterior mean.
    seen = (x + error**2 * (x - mean) / (variance + sigma**2 / (1 - sigma**2))).detach()
    square = (x - seen).square()
    if rule == "likelihood":
        task, weight = square.sum() / (2 * error**2), 1.0
    else:
        count = square[:, 0].numel()  # numbers of a pair
        task, weight = 5.0 * square.mean((0, -1)).sum(), 2 * 5.0 * error**2 / count
    loss = weight * sds_loss(
        prior, hands.left, hands.right, sigma=sigma, num_draws=2, antithetic=True, reduction="sum",
        group_weights={"rot6d": 0.0, "transl": 0.0}, generator=generator(),
    )  # fmt: skip
    own = [getattr(getattr(hands, side), name) for side in SIDES for name in ("hand_pose", "betas")]
    pulls = torch.autograd.grad(loss, own)
    for slope, push in zip(pulls, torch.autograd.grad(task, own), strict=True):
        assert (slope != 0).all()
        torch.testing.assert_close(slope, -push, rtol=1e-7, atol=1e-9)
    posterior = (seen * variance + mean * error**2) / (variance + error**2)
    torch.testing.assert_close(x.detach(), posterior, atol=0.02, rtol=0)


def test_metric_weights_keep_their_size(prior: TwoHandPrior) -> None:
    """A residual of one standard deviation in every entry costs the same in both spaces."""
    hands = random_pairs(1)
    mean = canonical_pair(prior, hands)[0][0, 0] - 1
    always = gaussian_prior(mean, torch.zeros(64, dtype=torch.float64))
    options = {"anchor": "left", "noise": noise_of(1, 1)}
    plain = loss_of(always, hands, **options)
    torch.testing.assert_close(loss_of(always, hands, space="metric", **options), plain, rtol=1e-10, atol=0)
