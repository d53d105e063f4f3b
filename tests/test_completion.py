"""Completion: partners of several hands, and missing fingers given all that is there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import assert_close, assert_same, gaussian_prior, leaves, make_prior, random_hand, random_pairs
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands
from interhand_prior.canonical import SIZE, SLICES
from interhand_prior.geometry import mutual_penetration_loss
from interhand_prior.repair.completion import FINGERS
from interhand_prior.schedule import signal

QUICK: dict[str, Any] = {"steps": 3, "resample": 2, "penetration_scale": 0.0, "seed": 0}
#: By finger: index and pinky are not there.
SOME = torch.tensor([False, True, False, False, True])
NONE, ALL = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)


def without(hand: HandParams, entries: Tensor) -> HandParams:
    """The hand with NaN for some entries (45,) of its pose."""
    return HandParams(**{**hand.as_dict(), "hand_pose": hand.hand_pose.masked_fill(entries, math.nan)})


def entries(*fingers: str) -> Tensor:
    """(45,) of the fingers, read off MANO's joint names."""
    names = [name for name in ("index", "middle", "pinky", "ring", "thumb") for _ in range(9)]
    return torch.tensor([name in fingers for name in names])


# Partners --------------------------------------------------------------------------------------------------------


def test_every_hand_of_a_batch_gets_several_partners(prior: TwoHandPrior) -> None:
    options: dict[str, Any] = {"steps": 2, "penetration_scale": 0.0, "seed": 0}
    hand = random_hand(2, 2)
    found = prior.complete(hand, "right", samples_each=3, **options)
    assert found.batch_shape == (3, 2, 2)
    for name, value in hand.as_dict().items():
        assert torch.equal(getattr(found.right, name), value.expand(3, 2, 2, -1))
    assert torch.pdist(found.left.betas.reshape(12, -1)).min() > 0.1
    # The first hands' partners do not depend on how many hands follow.
    assert_close(prior.complete(hand[0], "right", samples_each=3, **options), found[:, 0], 1e-9)
    assert_close(prior.complete(hand[0, 0], "right", samples_each=3, **options), found[:, 0, 0], 1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples_each": 0}, "samples_each must be a positive integer, got 0"),
        ({"samples_each": 2, "num_samples": 2}, "num_samples and samples_each are both given"),
        ({"samples_each": 2, "hand": random_hand(0)}, r"hand has batch shape \(0,\): there is none to complete"),
    ],
)
def test_wrong_numbers_of_partners_are_refused(prior: TwoHandPrior, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prior.complete(**{"hand": random_hand(2), **options})


# Fingers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (0,), (2, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_there_is_kept_bit_for_bit(prior: TwoHandPrior, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    pairs = random_pairs(*batch, dtype=dtype)
    gone = entries("index", "pinky")
    hands = TwoHands(without(pairs.left, gone), pairs.right)
    found = prior.complete_fingers(hands, SOME, None, 2, **QUICK)
    assert found.batch_shape == (2, *batch)
    assert found.dtype == dtype
    for name, value in leaves(pairs).items():
        kept = ~gone if name == "left.hand_pose" else torch.ones(value.shape[-1], dtype=torch.bool)
        assert torch.equal(leaves(found)[name][..., kept], value.expand(2, *value.shape)[..., kept]), name
    drawn = found.left.hand_pose[..., gone]
    assert torch.isfinite(drawn).all()
    assert (drawn[0] != drawn[1]).any(-1).all()


@pytest.mark.parametrize("finger", FINGERS)
def test_a_mask_by_finger_is_one_by_joint(prior: TwoHandPrior, finger: str) -> None:
    pairs, mask = random_pairs(1), torch.tensor([name == finger for name in FINGERS])
    found = prior.complete_fingers(pairs, None, mask, **QUICK)
    assert torch.equal((found.right.hand_pose != pairs.right.hand_pose)[0, 0], entries(finger))
    assert_same(prior.complete_fingers(pairs, None, entries(finger)[::3], **QUICK), found)


def test_fingers_missing_on_both_hands_and_by_pair(prior: TwoHandPrior) -> None:
    pairs = random_pairs(3)
    left, right = torch.stack((NONE, SOME, ALL)), torch.stack((NONE, ALL, NONE))
    found = prior.complete_fingers(pairs, left, right, 2, **QUICK)
    for hand, mask in (("left", left), ("right", right)):
        changed = getattr(found, hand).hand_pose != getattr(pairs, hand).hand_pose
        order = [FINGERS.index(name) for name in ("index", "middle", "pinky", "ring", "thumb")]
        assert torch.equal(changed.unflatten(-1, (5, 9)).all(-1), mask[:, order].expand(2, -1, -1))


def test_a_pair_is_completed_alone_as_in_its_batch_and_repeatably(prior: TwoHandPrior) -> None:
    pairs = random_pairs(3)
    before = torch.get_rng_state()
    found = prior.complete_fingers(pairs, SOME, ALL, 2, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(prior.complete_fingers(pairs, SOME, ALL, 2, **QUICK), found)
    assert_close(prior.complete_fingers(pairs[:2], SOME, ALL, 2, **QUICK), found[:, :2], 1e-9)
    assert_close(prior.complete_fingers(pairs[0], SOME, ALL, 2, **QUICK), found[:, 0], 1e-9)
    other = prior.complete_fingers(pairs, SOME, ALL, 2, **{**QUICK, "seed": 1})
    assert not torch.equal(other.right.hand_pose, found.right.hand_pose)
    generator = torch.Generator().manual_seed(0)
    assert_same(prior.complete_fingers(pairs, SOME, ALL, 2, **{**QUICK, "seed": None, "generator": generator}), found)


def test_with_a_gaussian_prior_the_draws_have_its_mean_and_spread() -> None:
    """Entries of N(mean, std) independent of one another: the missing ones' conditional is their marginal."""
    mean, std = torch.linspace(-1, 1, SIZE, dtype=torch.float64), torch.full((SIZE,), 0.6, dtype=torch.float64)
    prior, pairs = gaussian_prior(mean, std), random_pairs(1)
    found = prior.complete_fingers(
        pairs, None, SOME, 2000, steps=25, resample=1, penetration_scale=0.0, seed=0
    ).right.hand_pose[:, 0]
    gone, pose = entries("index", "pinky"), SLICES["hand_pose"]
    drawn = ((found - prior.normalizer.mean[pose]) / prior.normalizer.std[pose])[:, gone]
    torch.testing.assert_close(drawn.mean(0), mean[pose][gone], atol=0.06, rtol=0)
    assert (drawn.std(0) - 0.6).abs().max() < 0.08


class Chain(torch.nn.Module):
    """The exact denoiser of equal fingers: every pose entry is one and the same normal number z, all else is 0.

    z given n entries of x_t = a z + sigma eps is a normal number of mean a sum(x_t) / (n a^2 + sigma^2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.null = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x_t: Tensor, sigma: Tensor, *others: Tensor | None) -> Tensor:
        a, pose = signal(sigma)[..., None], x_t[..., SLICES["hand_pose"]]
        z = a * pose.sum(-1, keepdim=True) / (45 * a * a + sigma[..., None] ** 2)
        return torch.cat((z.expand(pose.shape), torch.zeros_like(x_t[..., 45:])), -1)


def test_drawn_fingers_fit_the_known_ones() -> None:
    template = make_prior()
    prior, pose = TwoHandPrior(Chain(), template.normalizer), SLICES["hand_pose"]  # type: ignore[arg-type]
    pairs = random_pairs(4)
    z = torch.linspace(-1.5, 1.5, 4, dtype=torch.float64)[:, None]
    right = HandParams(
        **{**pairs.right.as_dict(), "hand_pose": template.normalizer.mean[pose] + z * template.normalizer.std[pose]}
    )
    pairs = TwoHands(pairs.left, right)
    found = prior.complete_fingers(pairs, None, SOME, 3, steps=10, resample=3, penetration_scale=0.0, seed=0)
    gone = entries("index", "pinky")
    misfit = ((found.right.hand_pose - right.hand_pose) / template.normalizer.std[pose])[..., gone]
    assert misfit.square().mean().sqrt() < 0.15


def test_the_other_fingers_of_a_hand_alone_are_enough() -> None:
    prior, pairs = make_prior(), random_pairs(2)
    masked = replace(pairs, left_valid=torch.tensor([False, True]))
    lost = replace(masked, left=pairs.left.map(lambda value: value.clone().index_fill(0, torch.tensor([0]), math.nan)))
    one, other = (prior.complete_fingers(hands, None, ALL, 2, **QUICK) for hands in (masked, lost))
    assert torch.equal(one.right.hand_pose, other.right.hand_pose)
    assert one.left_valid is not None
    assert one.left_valid.tolist() == [[False, True]] * 2
    assert not torch.equal(
        prior.complete_fingers(pairs, None, ALL, 2, **QUICK).right.hand_pose[:, 0], one.right.hand_pose[:, 0]
    )


def test_drawn_fingers_leave_the_other_hand() -> None:
    prior, pairs = make_prior(), random_pairs(6, seed=3)
    left, right = pairs.joints()
    away = torch.tensor([0.05, 0.0, 0.07], dtype=pairs.dtype)
    transl = pairs.right.transl + left[:, 4] - right[:, 4] + away
    pairs = TwoHands(pairs.left, HandParams(**{**pairs.right.as_dict(), "transl": transl}))
    found = [
        prior.complete_fingers(pairs, None, ALL, **{**QUICK, "penetration_scale": scale})[0] for scale in (0.0, 1.0)
    ]
    depth = [mutual_penetration_loss(*hands.vertices(), *hands.faces, tolerance=0.001) for hands in found]
    assert (depth[0] > 0).any()
    assert depth[1].sum() < 0.5 * depth[0].sum()
    for name, value in leaves(pairs).items():
        if name != "right.hand_pose":
            assert torch.equal(leaves(found[1])[name], value), name


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"left_missing": [True] * 5}, TypeError, "left_missing must be a bool tensor.*got list"),
        ({"left_missing": torch.ones(5)}, ValueError, r"left_missing must be a bool tensor.*got torch.float32 \(5,\)"),
        ({"right_missing": torch.ones(4, dtype=torch.bool)}, ValueError, r"\(\.\.\., 5\) by finger or \(\.\.\., 15\)"),
        ({"right_missing": torch.ones(3, 5, dtype=torch.bool)}, ValueError, r"batch shape \(2,\) of the hands or none"),
        ({"num_samples": 0}, ValueError, "num_samples must be a positive integer, got 0"),
        ({"steps": 0}, ValueError, "steps must be a positive integer, got 0"),
        ({"resample": 1.5}, ValueError, "resample must be a positive integer, got 1.5"),
        ({"cfg_scale": math.nan}, ValueError, "cfg_scale must be a finite number, got nan"),
        ({"penetration_scale": -1.0}, ValueError, "penetration_scale must be finite and not negative, got -1"),
        ({"generator": torch.Generator()}, ValueError, "seed and generator are both given"),
    ],
)
def test_wrong_arguments_are_refused(
    prior: TwoHandPrior, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prior.complete_fingers(random_pairs(2), **{**QUICK, **arguments})


def test_a_known_joint_must_be_known(prior: TwoHandPrior) -> None:
    pairs = random_pairs(2)
    hands = TwoHands(without(pairs.left, entries("index", "thumb")), pairs.right)
    with pytest.raises(ValueError, match=r"hands\.left\.hand_pose holds NaN"):
        prior.complete_fingers(hands, SOME, None, **QUICK)
