"""Eq. 9 as a number: a naive twin, invariances, batches, levels, the gate.

Its gradients: test_sds_gradients.py; its options: test_sds_options.py; in loops: test_sds_loops.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    far_apart,
    gaussian_prior,
    generator,
    make_prior,
    other_hands,
    random_hand,
    random_pairs,
    rigidly_moved,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, sds_loss
from interhand_prior.canonical import SLICES, Normalizer, to_canonical
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sds.loss import DEFAULT_GROUP_WEIGHTS
from interhand_prior.sds.terms import sds_terms
from interhand_prior.sds.uncertainty import Uncertainty


def loss_of(prior: TwoHandPrior, pairs: TwoHands, seed: int = 0, **options: Any) -> Tensor:
    options = {"reduction": "none"} | options
    return sds_loss(prior, pairs.left, pairs.right, generator=generator(seed), **options)


def naive(
    prior: TwoHandPrior, hands: TwoHands, sigma: float, draws: int = 1, squared: bool = True, cfg_scale: float = 0.0
) -> list[float]:
    """Both directions of every pair one by one, entry by entry; no gate."""
    noise = torch.randn(draws, len(hands), 64, generator=generator(), dtype=torch.float64)
    signal, snr = math.sqrt(1 - sigma**2), (1 - sigma**2) / sigma**2
    level = torch.tensor(sigma, dtype=torch.float64)
    losses = []
    for i, pair in enumerate(hands):
        loss = 0.0
        for side in ("left", "right"):
            anchor, partner, _ = to_canonical(pair, prior.hands, side)  # type: ignore[arg-type]
            anchor, x = prior.normalizer.anchor(anchor), prior.normalizer.partner(partner)
            estimate = torch.zeros(64, dtype=torch.float64)
            for k in range(draws):
                x_t = signal * x + sigma * noise[k, i]
                with_anchor = prior.denoiser(x_t[None], level, anchor[None])[0]
                without = prior.denoiser(x_t[None], level)[0]
                estimate += ((1 + cfg_scale) * with_anchor - cfg_scale * without) / draws
            term = 0.0
            for group, factor in DEFAULT_GROUP_WEIGHTS.items():
                for entry in range(SLICES[group].start, SLICES[group].stop):
                    term += factor * float(x[entry] - estimate[entry]) ** 2
            loss += snr * term if squared else math.sqrt(snr * term)
        losses.append(loss)
    return losses


@pytest.mark.parametrize(
    "options",
    [{}, {"squared": False}, {"draws": 3}, {"cfg_scale": 0.8}, {"sigma": 0.2}],
    ids=lambda o: str(o) or "default",
)
def test_against_a_naive_twin(prior: TwoHandPrior, options: dict[str, Any]) -> None:
    hands = random_pairs(3)
    wanted = naive(prior, hands, **{"sigma": 0.454, **options})
    if "draws" in options:
        options = {"num_draws": options["draws"]}
    found = loss_of(prior, hands, **options)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("squared", [True, False])
def test_reductions_and_weights(prior: TwoHandPrior, squared: bool) -> None:
    hands = random_pairs(2, 3)
    each = loss_of(prior, hands, squared=squared)
    assert each.shape == (2, 3)
    assert (each > 0).all()
    torch.testing.assert_close(loss_of(prior, hands, reduction="sum", squared=squared), each.sum())
    torch.testing.assert_close(loss_of(prior, hands, reduction="mean", squared=squared), each.mean())
    weight = torch.rand(2, 3, generator=generator())
    torch.testing.assert_close(loss_of(prior, hands, weight=weight, squared=squared), each * weight)
    for half in (0.5, torch.tensor(0.5)):
        torch.testing.assert_close(loss_of(prior, hands, weight=half, squared=squared), each * 0.5)


def test_group_weights_weigh_their_groups(prior: TwoHandPrior) -> None:
    hands = random_pairs(4)
    off = dict.fromkeys(DEFAULT_GROUP_WEIGHTS, 0.0)
    parts = {name: loss_of(prior, hands, group_weights=off | {name: 1.0}) for name in off}
    default = sum(DEFAULT_GROUP_WEIGHTS[name] * part for name, part in parts.items())
    torch.testing.assert_close(loss_of(prior, hands), default, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss_of(prior, hands, group_weights={"transl": 0.1}), default, rtol=1e-10, atol=0)
    more = default + 1.9 * parts["transl"]
    torch.testing.assert_close(loss_of(prior, hands, group_weights={"transl": 2.0}), more, rtol=1e-10, atol=0)
    assert (loss_of(prior, hands, group_weights=off) == 0).all()


# Invariance ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), squared=st.booleans(), size=st.sampled_from([0.1, 1.0, 3.0]))
def test_a_rigid_motion_changes_nothing(calibrated: TwoHandPrior, seed: int, squared: bool, size: float) -> None:
    hands = random_pairs(3, seed=seed)
    draw = generator(seed)
    rotation = axis_angle_to_matrix(size * torch.randn(3, 3, generator=draw, dtype=torch.float64))
    moved = rigidly_moved(hands, rotation, size * torch.randn(3, 3, generator=draw, dtype=torch.float64))
    found = loss_of(calibrated, moved, squared=squared)
    torch.testing.assert_close(found, loss_of(calibrated, hands, squared=squared), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 1000), squared=st.booleans())
def test_mirroring_with_exchanged_hands_changes_nothing(calibrated: TwoHandPrior, seed: int, squared: bool) -> None:
    hands = random_pairs(3, seed=seed)
    options: dict[str, Any] = {"squared": squared, "weight": torch.rand(3, generator=generator(seed)).double()}
    masks = torch.rand(2, 3, generator=generator(seed)) < 0.8
    found = loss_of(calibrated, hands.mirrored(), left_valid=masks[1], right_valid=masks[0], **options)
    wanted = loss_of(calibrated, hands, left_valid=masks[0], right_valid=masks[1], **options)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_exchanging_the_hands_without_mirroring_does_change_it(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    exchanged = TwoHands(hands.right, hands.left)
    assert not torch.allclose(loss_of(prior, exchanged), loss_of(prior, hands), rtol=1e-2)


# Batches, levels, types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 2)])
def test_any_batch_shape(prior: TwoHandPrior, batch: tuple[int, ...]) -> None:
    hands = random_pairs(*batch)
    flat = hands.reshape(max(1, math.prod(batch)))
    found = loss_of(prior, hands)
    assert found.shape == batch
    torch.testing.assert_close(found.reshape(-1), loss_of(prior, flat), rtol=1e-12, atol=0)
    assert loss_of(prior, hands, reduction="mean").shape == ()


@pytest.mark.parametrize("gate", [True, False])
def test_an_empty_batch_costs_nothing(calibrated: TwoHandPrior, gate: bool) -> None:
    hands = random_pairs(0).map(lambda value: value.requires_grad_())
    for reduction in ("mean", "sum"):
        loss = loss_of(calibrated, hands, reduction=reduction, gate=gate)
        loss.backward()
        assert loss.item() == 0
    assert loss_of(calibrated, hands).shape == (0,)


def test_each_pair_may_have_its_own_level(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    levels = torch.tensor([0.1, 0.454, 0.9], dtype=torch.float64)
    found = loss_of(prior, hands, sigma=levels)
    for i, sigma in enumerate(levels.tolist()):
        torch.testing.assert_close(found[i], loss_of(prior, hands, sigma=sigma)[i], rtol=1e-12, atol=0)
    one = loss_of(prior, hands, sigma=torch.tensor(0.454, dtype=torch.float64))
    torch.testing.assert_close(one, loss_of(prior, hands), rtol=1e-12, atol=0)


def test_the_noise_is_the_generators(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    before = torch.get_rng_state()
    first = loss_of(prior, hands, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loss_of(prior, hands, seed=1), first)
    assert not torch.equal(loss_of(prior, hands, seed=2), first)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(sds_loss(prior, hands.left, hands.right, reduction="none"), first)


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_hands_and_weights_may_differ_in_type(weights: torch.dtype, dtype: torch.dtype) -> None:
    hands = random_pairs(4, dtype=dtype).map(lambda value: value.requires_grad_())
    rounded = hands.detach().to(torch.float64)
    loss = loss_of(make_prior(weights), hands, gate=False)
    loss.sum().backward()
    assert loss.dtype == hands.left.betas.grad.dtype == dtype  # type: ignore[union-attr]
    noise_type = torch.float64 if dtype == torch.float64 else torch.float32  # decides which noise is drawn
    exact = loss_of(make_prior(), rounded.to(noise_type), gate=False).double()
    tolerance = 1e-2 if torch.bfloat16 in (weights, dtype) else 1e-4
    torch.testing.assert_close(loss.detach().double(), exact, rtol=tolerance, atol=0)


def test_mappings_are_hands_too(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    found = sds_loss(prior, hands.left.as_dict(), hands.right.as_dict(), reduction="none", generator=generator())
    assert torch.equal(found, loss_of(prior, hands))


def test_the_hand_models_may_be_named(prior: TwoHandPrior) -> None:
    hands, other = random_pairs(2), other_hands()
    named = loss_of(prior, hands, hands=other)
    assert not torch.allclose(named, loss_of(prior, hands))
    torch.testing.assert_close(named, loss_of(make_prior(hands=other), hands))


# The gate --------------------------------------------------------------------------------------------------------


def test_the_gate_leaves_hands_far_apart_alone() -> None:
    near = random_pairs(200)
    prior = gaussian_prior().calibrate(near)
    away = far_apart(near, 1.0)
    gates = [sds_terms(prior, hands, generator=generator()).gate for hands in (near, away)]
    assert gates[0].mean() > 0.6
    assert (gates[1] == 0).all()
    only_place = {"hand_pose": 0.0, "betas": 0.0}
    assert (loss_of(prior, away, group_weights=only_place) == 0).all()
    assert (loss_of(prior, away) > 0).all(), "fingers are never gated"
    assert (loss_of(prior, away, group_weights=only_place, gate=False) > 0).all()


def test_the_gate_can_be_made_beforehand(calibrated: TwoHandPrior) -> None:
    hands = random_pairs(5, seed=3)
    trust = calibrated.trust(hands)
    assert torch.equal(trust, sds_terms(calibrated, hands, generator=generator()).gate)
    assert torch.equal(loss_of(calibrated, hands, gate=trust), loss_of(calibrated, hands))
    assert torch.equal(loss_of(calibrated, hands, gate=torch.ones(())), loss_of(calibrated, hands, gate=False))
    with pytest.raises(ValueError, match="gate must be a number or a tensor of shape"):
        loss_of(calibrated, hands, gate=trust[:2])


def test_a_prior_without_calibration_has_no_gate(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    assert (sds_terms(prior, hands).gate == 1).all()
    assert torch.equal(loss_of(prior, hands), loss_of(prior, hands, gate=False))
    with pytest.raises(ValueError, match=r"no calibration: call prior\.calibrate"):
        loss_of(prior, hands, gate=True)


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reduction": "max"}, ValueError, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
        ({"sigma": 0}, ValueError, "sigma must be a noise level"),
        ({"sigma": 250}, ValueError, "integer time step"),
        ({"sigma": torch.tensor([0.5, 1.0])}, ValueError, "sigma must be a noise level"),
        ({"sigma": torch.full((3,), 0.5)}, ValueError, r"sigma must be a number or a tensor of shape \(2,\)"),
        ({"weight": torch.ones(2, 1)}, ValueError, r"weight must be a number or a tensor of shape \(2,\)"),
        ({"weight": [1.0, 2.0, 3.0]}, ValueError, "weight must be"),
        ({"group_weights": {"fingers": 1.0}}, ValueError, r"group_weights has \['fingers'\]; the groups are hand_pose"),
        ({"group_weights": {"betas": -1.0}}, ValueError, r"group_weights\['betas'\] must be finite and not negative"),
        ({"group_weights": {"betas": math.nan}}, ValueError, "finite"),
        ({"sigma": (0.1, 0.2, 0.3)}, ValueError, r"sigma must be .* a range \(low, high\)"),
        ({"sigma": (0.4, 0.2)}, ValueError, "with low <= high"),
        ({"sigma": (0.0, 0.2)}, ValueError, "sigma must be a noise level"),
        ({"num_draws": 0}, ValueError, "num_draws must be at least 1"),
        ({"num_draws": 3, "antithetic": True}, ValueError, "num_draws must be even, got 3"),
        ({"noise": torch.ones(2, 2, 64)}, ValueError, r"noise must be .* broadcasts to \(1, 2, 64\)"),
        ({"noise": torch.ones(1, 1, 1, 64)}, ValueError, "noise must be a tensor"),
        ({"noise": [0.0] * 64}, TypeError, "noise must be a tensor .* got list"),
        ({"noise": torch.ones(64), "generator": generator()}, ValueError, "nothing for the generator to draw"),
        ({"anchor": "middle"}, ValueError, "anchor must be 'both', 'left' or 'right', got 'middle'"),
        ({"space": "inches"}, ValueError, "space must be 'normalised' or 'metric', got 'inches'"),
        ({"clip": 0.0}, ValueError, "clip must be positive and finite, or None for no clipping, got 0"),
        ({"clip": math.inf}, ValueError, "clip must be positive"),
        ({"left_confidence": torch.ones(2, 16)}, ValueError, r"left_confidence must be .* of shape \(2, 15\)"),
        ({"right_confidence": torch.ones(2, 15).bool()}, ValueError, "right_confidence must be a floating-point"),
        ({"right_confidence": 0.5}, TypeError, "right_confidence must be .* got float"),
        ({"right_confidence": torch.full((2, 15), 1.1)}, ValueError, r"right_confidence must be in \[0, 1\]"),
        ({"left_confidence": torch.full((2, 15), math.nan)}, ValueError, r"left_confidence must be in \[0, 1\]"),
        (
            {"uncertainty": "guessed"},
            TypeError,
            "must be an Uncertainty, 'measured' or None, got 'guessed'",
        ),
        ({"uncertainty": "measured"}, ValueError, r"no calibration: call prior\.calibrate"),
        ({"uncertainty": Uncertainty(), "sigma": 0.3}, ValueError, "leave out sigma"),
        ({"left_valid": torch.ones(2)}, ValueError, "left_valid must be a bool tensor"),
        ({"right_valid": torch.ones(1, dtype=torch.bool)}, ValueError, r"right_valid must .* of shape \(2,\)"),
        ({"right_valid": [True, False]}, TypeError, "right_valid must be a bool tensor .* got list"),
    ],
)
def test_wrong_options_are_refused(
    prior: TwoHandPrior, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    hands = random_pairs(2)
    with pytest.raises(error, match=words):
        sds_loss(prior, hands.left, hands.right, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("space", "metric"), ("left_confidence", torch.ones(2, 15)), ("uncertainty", Uncertainty())],
)
def test_options_about_angles_need_angles(name: str, value: Any) -> None:
    class Mixing(Normalizer):
        """Of vectors whose entries are no angles."""

    prior, hands = make_prior(), random_pairs(2)
    prior.normalizer = Mixing(prior.normalizer.mean, prior.normalizer.std)
    with pytest.raises(ValueError, match=f"{name}.*: not with this prior, whose vectors are not joint angles"):
        loss_of(prior, hands, **{name: value})
    assert (loss_of(prior, hands) > 0).all()


def test_wrong_hands_are_refused(prior: TwoHandPrior) -> None:
    hand = random_hand(2)
    bad = hand.as_dict() | {"betas": torch.full((2, 10), math.nan).double()}
    with pytest.raises(ValueError, match=r"right\.betas holds NaN or infinity; clean it or mask the hand out"):
        sds_loss(prior, hand, bad)
    with pytest.raises(ValueError, match=r"left\.betas holds NaN"):
        sds_loss(prior, bad, hand, right_valid=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one batch shape, got \(2,\) and \(3,\)"):
        sds_loss(prior, hand, random_hand(3))
    with pytest.raises(ValueError, match=r"right is torch\.float32"):
        sds_loss(prior, hand, hand.to(torch.float32))
    with pytest.raises(ValueError, match=r"the hands are on meta but the prior is on cpu"):
        sds_loss(prior, hand.to("meta"), hand.to("meta"))
    with pytest.raises(TypeError, match="left must be a HandParams or a mapping"):
        sds_loss(prior, None, hand)  # type: ignore[arg-type]
