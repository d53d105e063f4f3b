"""Noise levels: closed forms of the cosine schedule, Eq. 3, refusal of what is no level."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import generator
from hypothesis import given
from hypothesis import strategies as st

from interhand_prior.schedule import CosineSchedule, add_noise, check_sigma, signal, snr


@given(st.floats(0, 1), st.sampled_from([1e-5, 1e-4, 1e-2]))
def test_the_cosine_schedule(u: float, least: float) -> None:
    schedule = CosineSchedule(least)
    sigma = schedule.sigma(torch.tensor(u, dtype=torch.float64))
    alpha_bar = max(math.cos(math.pi * u / 2) ** 2, least)
    assert 1 - sigma.item() ** 2 == pytest.approx(alpha_bar, abs=1e-12)
    assert signal(sigma).item() ** 2 == pytest.approx(alpha_bar, abs=1e-12)
    if u > 1e-3:
        assert snr(sigma).item() == pytest.approx(alpha_bar / (1 - alpha_bar), rel=1e-9, abs=1e-12)


def test_the_terminal_signal_is_almost_nothing() -> None:
    schedule = CosineSchedule()
    last = schedule.sigma(torch.ones(()))
    assert 0 < snr(last) < 1.1e-4
    assert last.item() == pytest.approx(schedule.max_sigma) == pytest.approx(math.sqrt(1 - 1e-4))


def test_signal_keeps_its_digits_near_full_noise() -> None:
    alpha_bar = torch.logspace(-6, -1, 20, dtype=torch.float64)
    sigma = (1 - alpha_bar).sqrt()
    torch.testing.assert_close(signal(sigma), alpha_bar.sqrt(), rtol=1e-10, atol=0)
    assert signal(torch.ones(3)).tolist() == [0, 0, 0]
    assert signal(torch.zeros(3)).tolist() == [1, 1, 1]
    assert torch.isfinite(signal(torch.tensor(1.0 + 1e-7))), "rounding must not make a NaN"


@pytest.mark.parametrize("num", [1, 2, 7, 50])
def test_steps_fall_from_almost_one_to_zero(num: int) -> None:
    schedule = CosineSchedule()
    steps = schedule.steps(num)
    assert len(steps) == num + 1
    assert steps[0] == schedule.max_sigma
    assert steps[-1] == 0.0
    assert all(a > b for a, b in pairwise(steps))
    u = [2 / math.pi * math.asin(s) for s in steps[1:]]
    assert u == pytest.approx([k / num for k in range(num - 1, -1, -1)])


def test_levels_for_training_cover_the_range_and_follow_the_generator() -> None:
    schedule = CosineSchedule()
    levels = schedule.draw((20_000,), generator=generator(3))
    assert (levels > 0).all()
    assert (levels <= schedule.max_sigma).all()
    u = 2 / math.pi * torch.asin(levels.double())
    quantiles = torch.quantile(u, torch.linspace(0.1, 0.9, 9).double())
    torch.testing.assert_close(quantiles, torch.linspace(0.1, 0.9, 9).double(), atol=0.02, rtol=0)
    assert torch.equal(levels, schedule.draw((20_000,), generator=generator(3)))
    assert schedule.draw((2, 0, 3)).shape == (2, 0, 3)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7, 1.0])
def test_eq_3_keeps_unit_variance(sigma: float) -> None:
    x0, noise = torch.randn(2, 4000, 16, generator=generator())
    noised = add_noise(x0, noise, torch.tensor(sigma))
    assert noised.var().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(noised, math.sqrt(1 - sigma**2) * x0 + sigma * noise)
    assert (x0 * noised).mean().item() == pytest.approx(math.sqrt(1 - sigma**2), abs=0.02)


def test_each_vector_has_its_own_level() -> None:
    x0, noise = torch.randn(2, 3, 4, 8, generator=generator())
    sigma = torch.rand(3, 4, generator=generator())
    noised = add_noise(x0, noise, sigma)
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(noised[i, j], add_noise(x0[i, j], noise[i, j], sigma[i, j]))


@pytest.mark.parametrize("sigma", [0, 1, -0.1, 1.5, 250, math.nan, math.inf])
def test_what_is_no_level_is_refused(sigma: float) -> None:
    for value in (sigma, torch.tensor([0.5, sigma]), torch.tensor(sigma)):
        with pytest.raises(ValueError, match=r"level must be a noise level in \(0, 1\).*integer time step"):
            check_sigma(value, "level")


@pytest.mark.parametrize("sigma", [1e-6, 0.5, 0.99999, torch.tensor([0.2, 0.9]), torch.zeros(0), torch.zeros(2, 0)])
def test_levels_pass(sigma: Any) -> None:
    check_sigma(sigma)


def test_wrong_arguments_are_refused() -> None:
    for least in (0, -1, 0.5, math.nan):
        with pytest.raises(ValueError, match="min_alpha_bar"):
            CosineSchedule(least)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        CosineSchedule().steps(0)
