"""What the tests share: the settings of hypothesis, and tiny priors with seeded weights."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from helpers import make_prior, random_pairs

from interhand_prior import TwoHandPrior

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("suite")

# The tensors are tiny: more threads only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prior() -> TwoHandPrior:
    """A tiny prior in float64, not calibrated; tests must not change it."""
    return make_prior()


@pytest.fixture(scope="session")
def calibrated() -> TwoHandPrior:
    """The same prior, calibrated on random pairs; tests must not change it."""
    return make_prior().calibrate(random_pairs(120, seed=7))
