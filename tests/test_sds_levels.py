"""Levels of Eq. 9: fixed, drawn from a range, annealed; and its noises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    gaussian_prior,
    generator,
    random_pairs,
)
from hypothesis import given
from hypothesis import strategies as st
from sds_helpers import info_of, loss_of, noise_of

from interhand_prior import TwoHandPrior
from interhand_prior.sds import Anneal

# Levels ----------------------------------------------------------------------------------------------------------


def test_a_range_draws_one_level_for_each_pair(prior: TwoHandPrior) -> None:
    hands = random_pairs(500)
    info = info_of(prior, hands, sigma=(0.2, 0.7), generator=generator())
    low, high = math.asin(0.2), math.asin(0.7)
    share = (torch.asin(info.sigma) - low) / (high - low)
    assert info.sigma.shape == (500,)
    assert share.min() >= 0
    assert share.max() <= 1
    # Even in the angle: the quantiles of a uniform distribution.
    torch.testing.assert_close(share.sort().values, torch.linspace(0, 1, 500).double(), atol=0.08, rtol=0)
    few = hands[:3]
    options = {"noise": noise_of(1, 3), "generator": generator(1), "sigma": (0.2, 0.7)}
    level = info_of(prior, few, **{**options, "generator": generator(1)}).sigma
    assert torch.equal(loss_of(prior, few, **options), loss_of(prior, few, noise=options["noise"], sigma=level))
    one = info_of(prior, few, sigma=(0.3, 0.3)).sigma
    torch.testing.assert_close(one, torch.full_like(one, 0.3))


@given(ends=st.tuples(*[st.floats(0.001, 0.999)] * 2), steps=st.integers(2, 50))
def test_annealing_is_even_in_the_angle(ends: tuple[float, float], steps: int) -> None:
    anneal = Anneal(*ends, steps)
    levels = [anneal(step) for step in range(steps)]
    assert (levels[0], levels[-1]) == ends
    assert anneal(steps) == anneal(10 * steps) == ends[1]
    angles = torch.tensor([math.asin(level) for level in levels], dtype=torch.float64)
    torch.testing.assert_close(
        angles, torch.linspace(math.asin(ends[0]), math.asin(ends[1]), steps, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Anneal(0.0, 0.1, 5), "start must be a noise level"),
        (lambda: Anneal(0.5, 1.0, 5), "end must be a noise level"),
        (lambda: Anneal(0.5, 0.1, 1), "steps must be at least 2, got 1"),
        (lambda: Anneal(0.5, 0.1, 9)(-1), "step must not be negative, got -1"),
        (lambda: Anneal(0.5, 0.1, 9)(math.nan), "step must not be negative"),
    ],
)
def test_wrong_anneals_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# Noises ----------------------------------------------------------------------------------------------------------


def test_given_noise_is_used(prior: TwoHandPrior) -> None:
    hands = random_pairs(2, 3)
    drawn = torch.randn(4, 2, 3, 64, generator=generator(), dtype=torch.float64)
    wanted = loss_of(prior, hands, num_draws=4, generator=generator())
    assert torch.equal(loss_of(prior, hands, num_draws=4, noise=drawn), wanted)
    one = noise_of(1)[0]
    for same in (one, one.expand(3, 64), one.expand(1, 1, 1, 64)):
        assert torch.equal(loss_of(prior, hands, noise=same), loss_of(prior, hands, noise=one.expand(1, 2, 3, 64)))


def test_opposite_noises(prior: TwoHandPrior) -> None:
    hands, noise = random_pairs(3), noise_of(2, 3)
    both = torch.cat((noise, -noise))
    wanted = loss_of(prior, hands, num_draws=4, noise=both)
    assert torch.equal(loss_of(prior, hands, num_draws=4, antithetic=True, noise=noise), wanted)
    drawn = loss_of(prior, hands, num_draws=4, antithetic=True, generator=generator())
    half = torch.randn(2, 3, 64, generator=generator(), dtype=torch.float64)
    assert torch.equal(drawn, loss_of(prior, hands, num_draws=4, antithetic=True, noise=half))


def test_opposite_noises_cancel_in_a_linear_denoiser() -> None:
    prior, hands = gaussian_prior(), random_pairs(3)
    losses = [loss_of(prior, hands, num_draws=2, antithetic=True, generator=generator(seed)) for seed in (0, 1)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    plain = [loss_of(prior, hands, num_draws=2, generator=generator(seed)) for seed in (0, 1)]
    assert not torch.allclose(*plain, rtol=1e-2)
