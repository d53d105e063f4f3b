"""Scores and the gate: naive twins, uniform shares on the corpus itself, monotony."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import far_apart, gaussian_prior, generator, make_prior, random_pairs, rigidly_moved
from hypothesis import given
from hypothesis import strategies as st

from interhand_prior import HandParams, TwoHandPrior, TwoHands
from interhand_prior.canonical import SLICES
from interhand_prior.plausibility import BLOCKS, LEVELS, Calibration, log_residuals, placement_gate
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sds import canonical_pair

SHAPE = (len(LEVELS), len(BLOCKS))


def residuals(*batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*batch, *SHAPE, generator=generator(seed), dtype=torch.float64)


def test_quantiles_are_numpys() -> None:
    corpus = residuals(357)
    table = Calibration.fit(corpus).table
    wanted = np.quantile(corpus.numpy(), np.linspace(0, 1, 101), axis=0)
    np.testing.assert_allclose(table.numpy(), wanted.transpose(1, 2, 0), atol=1e-6)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_share_above_is_numpys_interpolation(seed: int, scale: float) -> None:
    calibration = Calibration.fit(residuals(200, seed=1))
    asked = scale * residuals(4, 3, seed=seed)
    asked[0, 0] = calibration.table[..., 37].double()  # exactly on an entry
    found = calibration.share_above(asked)
    assert found.shape == asked.shape
    for index in np.ndindex(*asked.shape):
        table = calibration.table[index[-2:]].double().numpy()
        below = np.interp(asked[index].item(), table, np.linspace(0, 1, 101))
        assert found[index].item() == pytest.approx(1 - below, abs=1e-9)


def test_share_above_survives_equal_quantiles() -> None:
    calibration = Calibration(torch.zeros(*SHAPE, 101))
    for value, wanted in ((-1.0, 1.0), (1.0, 0.0)):
        assert (calibration.share_above(torch.full(SHAPE, value)) == wanted).all()
    assert torch.isfinite(calibration.share_above(torch.zeros(SHAPE))).all()


def test_the_corpus_itself_is_scored_evenly() -> None:
    corpus = residuals(5000)
    shares = Calibration.fit(corpus).share_above(corpus)
    even = torch.linspace(1, 0, 5000, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(shares.sort(0, descending=True).values, even.expand_as(shares), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "table", [torch.zeros(2, 2, 100), torch.full((2, 2, 101), math.nan), -torch.arange(404.0).reshape(2, 2, 101)]
)
def test_a_bad_table_is_refused(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"finite, rising, of shape \(2, 2, 101\)"):
        Calibration(table)


def test_log_residuals_against_a_loop(prior: TwoHandPrior) -> None:
    hands = random_pairs(2, 2)
    partner, anchor = canonical_pair(prior, hands)
    found = log_residuals(prior, partner, anchor)
    assert found.shape == (2, 2, *SHAPE)
    noise = prior.probe_noise.double()
    assert len(noise) == 4
    assert torch.equal(noise[:2], -noise[2:]), "opposite noises"
    for i, j in np.ndindex(2, 2):
        for at, sigma in enumerate(LEVELS):
            level = torch.tensor(sigma, dtype=torch.float64)
            square = torch.zeros(64, dtype=torch.float64)
            for probe in noise:
                for direction in (0, 1):
                    x = partner[direction, i, j]
                    x0 = prior.denoiser(math.sqrt(1 - sigma**2) * x + sigma * probe, level, anchor[direction, i, j])
                    square += (x - x0) ** 2 / 8
            for block, name in enumerate(BLOCKS):
                wanted = math.log((1 - sigma**2) / sigma**2 * square[SLICES[name]].mean().item())
                assert found[i, j, at, block].item() == pytest.approx(wanted, abs=1e-9)


# The gate --------------------------------------------------------------------------------------------------------


def test_the_gate_falls_from_the_70th_to_the_99th_percentile() -> None:
    calibration = Calibration.fit(residuals(1000))
    relative = BLOCKS.index("relative")
    open_at, shut_at = calibration.table[:, relative, 70].double(), calibration.table[:, relative, 99].double()
    asked = torch.zeros(5, *SHAPE, dtype=torch.float64)
    asked[..., relative] = torch.stack([open_at - 1, open_at, (open_at + shut_at) / 2, shut_at, shut_at + 9])
    found = placement_gate(calibration, asked)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]).double(), atol=1e-6, rtol=0)
    asked[..., 1 - relative] = 99.0
    assert torch.equal(placement_gate(calibration, asked), found), "fingers do not count"
    asked[0, 1, relative] = 99.0
    assert placement_gate(calibration, asked)[0] == 0, "the worst level decides"


@given(seed=st.integers(0, 1000), more=st.floats(0, 5))
def test_the_gate_never_opens_when_a_residual_grows(seed: int, more: float) -> None:
    calibration = Calibration.fit(residuals(300))
    asked = residuals(8, seed=seed)
    gate = placement_gate(calibration, asked)
    assert ((gate >= 0) & (gate <= 1)).all()
    worse = asked + more * torch.rand(asked.shape, generator=generator(seed), dtype=torch.float64)
    assert (placement_gate(calibration, worse) <= gate).all()
    assert (calibration.share_above(worse) <= calibration.share_above(asked)).all()


# Through the prior -----------------------------------------------------------------------------------------------


def test_scores_of_the_calibration_set_are_even() -> None:
    pairs = random_pairs(400)
    noiseless: dict[str, Any] = {"pose_noise": 0.0, "rotation_noise": 0.0, "translation_noise": 0.0}
    prior = gaussian_prior()
    assert prior.calibrate(pairs, **noiseless) is prior
    for block in (prior.score(pairs).hand_pose, prior.score(pairs).placement):
        assert block.mean().item() == pytest.approx(0.5, abs=0.01)
        assert 0.2 < block.std() < 0.35
    held_out = prior.score(random_pairs(400, seed=9))
    assert held_out.placement.mean().item() == pytest.approx(0.5, abs=0.06)


def test_scores_tell_fingers_from_placement() -> None:
    pairs = random_pairs(100)
    prior = gaussian_prior().calibrate(pairs)
    usual, apart = prior.score(pairs), prior.score(far_apart(pairs, 1.0))
    assert (apart.placement == 0).all()
    torch.testing.assert_close(apart.hand_pose, usual.hand_pose, atol=0.05, rtol=0)
    bent = {"hand_pose": 5 * pairs.left.hand_pose}
    bent_score = prior.score(TwoHands(HandParams(**pairs.left.as_dict() | bent), pairs.right))
    assert bent_score.hand_pose.mean() < 0.1
    torch.testing.assert_close(bent_score.placement, usual.placement, atol=0.05, rtol=0)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 2)])
def test_a_score_depends_on_the_pair_alone(calibrated: TwoHandPrior, batch: tuple[int, ...]) -> None:
    hands = random_pairs(*batch)
    score = calibrated.score(hands)
    assert score.placement.shape == score.hand_pose.shape == batch
    rotation = axis_angle_to_matrix(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
    for other in (hands, rigidly_moved(hands, rotation, rotation[0]), hands.mirrored()):
        again = calibrated.score(other)
        torch.testing.assert_close(again.placement, score.placement, atol=1e-9, rtol=0)
        torch.testing.assert_close(again.hand_pose, score.hand_pose, atol=1e-9, rtol=0)
    if len(batch) == 1 and batch[0]:
        torch.testing.assert_close(calibrated.score(hands[1]).placement, score.placement[1], atol=1e-9, rtol=0)


def test_calibration_is_repeatable_and_follows_its_seed() -> None:
    pairs, prior = random_pairs(50), make_prior()
    first = prior.calibrate(pairs).require_calibration().table
    assert torch.equal(prior.calibrate(pairs).require_calibration().table, first)
    assert not torch.equal(prior.calibrate(pairs, seed=1).require_calibration().table, first)


def test_wrong_pairs_are_refused(prior: TwoHandPrior, calibrated: TwoHandPrior) -> None:
    with pytest.raises(ValueError, match="no calibration"):
        prior.score(random_pairs(1))
    for batch in ((), (1,), (0,), (2, 3)):
        with pytest.raises(ValueError, match=r"batch shape \(N,\) with N >= 2"):
            prior.calibrate(random_pairs(*batch))
    bad = random_pairs(2)
    bad.right.transl[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"hands\.right\.transl holds NaN"):
        calibrated.score(bad)
    with pytest.raises(ValueError, match=r"hands\.right\.transl holds NaN"):
        make_prior().calibrate(bad)
