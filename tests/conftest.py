"""What the tests share: the settings of hypothesis, and tiny priors with seeded weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from fake_hub import FakeHub, running_hub, stored_prior
from helpers import make_prior, random_pairs

from interhand_prior import TwoHandPrior, TwoHands
from interhand_prior.hands import HandPair, load_hands
from interhand_prior.hands.export import export_mano

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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of what sets the number of threads: one, and as before when they are done."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A loopback server that the real client talks to."""
    with running_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a stored prior."""
    return stored_prior().save_pretrained(tmp_path / "saved")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache of the Hub's client."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def mano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MANO files of the open hand."""
    folder = tmp_path_factory.mktemp("mano")
    export_mano(folder)
    return folder


@pytest.fixture(scope="module")
def hands(mano: Path) -> HandPair:
    """The hands of these files."""
    return load_hands(mano)


@pytest.fixture(scope="module")
def pairs(hands: HandPair) -> TwoHands:
    """Six pairs, some hands of which are some centimetres apart."""
    return replace(random_pairs(6, seed=3), hands=hands)
