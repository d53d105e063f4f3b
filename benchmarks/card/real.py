"""How far real pairs of hands are from a corpus: recordings of a Leap tracker, fitted, and their nearest neighbours.

The tracker's joints lie elsewhere than the hand model's, so nothing can be compared before the model is fitted to them:
on one recording, weights that make the tracker's joints from the model's are learned (`fit_keypoints.adapted`); frames
of the others are then fitted with these, without any prior, to a residual well under a millimetre. What is compared are
joints of fitted open hands with joints of open hands, in the canonical frame:

    pair     42 joints in the frame of the left hand: placement and fingers
    place    21 joints of an unposed hand in the place of the right one: placement alone
    hand     21 joints of each hand in its own frame: fingers alone

beside the same of test pairs against the same bank. Consecutive frames are alike: they count as fewer than they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from card import poses
from interhand_prior import HandParams, TwoHands
from interhand_prior.canonical import SLICES
from interhand_prior.hands import MIDDLE_MCP, HandPair, open_hands
from interhand_prior.metrics import proximity
from interhand_prior.params import FIELDS
from interhand_prior.rotations import rot6d_to_matrix

_HANDS = 20_000  # of the bank of single hands


def real_neighbours(path: Path, pairs: Mapping[str, TwoHands], num: int, steps: int = 150) -> dict[str, Any]:
    """Nearest neighbours of real and of test pairs in the training split (or in the largest, if there is none)."""
    fitted, facts = fitted_pairs(path, open_hands(), num, steps)
    bank_pairs = pairs.get("train", max(pairs.values(), key=len))
    test = pairs.get("test", bank_pairs)
    test = test[torch.linspace(0, len(test) - 1, min(num, len(test))).round().long()]
    bank = torch.cat([poses.canonical_joints(bank_pairs), poses.canonical_joints(bank_pairs.mirrored())])
    few = bank_pairs[torch.linspace(0, len(bank_pairs) - 1, min(_HANDS // 2, len(bank_pairs))).round().long()]
    own_bank = own_frames(few)
    place_bank = torch.cat([places(bank_pairs), places(bank_pairs.mirrored())])
    rows = {}
    for name, hands in (("real", fitted), ("test", test)):
        gap = proximity.inter_hand_distance(hands) * 1e3
        pair, _ = poses.nearest(poses.canonical_joints(hands), bank)
        hand, _ = poses.nearest(own_frames(hands), own_bank)
        place, _ = poses.nearest(places(hands), place_bank)
        near = gap < 100
        rows[name] = {
            "pairs": len(hands),
            "gap mm, median": float(gap.median()),
            "share within 2 cm": float((gap < 20).double().mean()),
            "share within 10 cm": float(near.double().mean()),
            "pair mm": spread_of(pair),
            "pair mm, hands within 10 cm": spread_of(pair[near]),
            "placement mm": spread_of(place),
            "hand mm": spread_of(hand),
        }
    return facts | rows


def spread_of(values: Tensor) -> dict[str, float] | None:
    """Median and nine tenths."""
    if len(values) == 0:
        return None
    return {"50%": float(values.quantile(0.5)), "90%": float(values.quantile(0.9))}


@torch.no_grad()
def own_frames(hands: TwoHands) -> Tensor:
    """(2 N, 21, 3) mm: each hand in its own frame, as a right hand; left hands first."""
    right = poses.canonical_joints(hands.mirrored())[:, :21]  # the right hand, seen as a left one
    left = poses.canonical_joints(hands)[:, :21]
    return torch.cat([left, right]) * torch.tensor([-1.0, 1.0, 1.0])


@torch.no_grad()
def places(hands: TwoHands) -> Tensor:
    """(N, 21, 3) mm: where the joints of an unposed right hand of mean shape would be in the partner's place."""
    model = hands.model.right
    mean = HandParams(*(torch.zeros(width) for width in FIELDS.values()))
    joints = model.joints21(mean)
    partner = poses.vectors(hands)[1]
    rotation, offset = rot6d_to_matrix(partner[:, SLICES["rot6d"]]), partner[:, SLICES["transl"]]
    return ((joints - joints[MIDDLE_MCP]) @ rotation.mT + offset[:, None]) * 1e3


def leap_order() -> tuple[int, ...]:
    """Which of the model's 16 joints and 5 tips the tracker's 20 joints stand for."""
    import fit_keypoints as benchmark

    order: tuple[int, ...] = benchmark.fitting.JOINT_ORDERS["leap"]
    return order


def fitted_pairs(path: Path, models: HandPair, num: int, steps: int) -> tuple[TwoHands, dict[str, Any]]:
    """Frames of all recordings but the smallest, fitted; and how well."""
    import fit_keypoints as benchmark

    fitting = benchmark.fitting
    with np.load(path, allow_pickle=False) as archive:
        recording = archive["recording"][(archive["confidence"] > 0.5).all(1)]
    joints, _ = fitting.read_keypoints(path, "leap", depth_axis="y")
    names, counts = np.unique(recording, return_counts=True)
    smallest = names[counts.argmin()]
    pick = lambda mask, n: benchmark._spread(joints[torch.from_numpy(mask)], n)
    weights, _ = benchmark.adapted(pick(recording == smallest, 60), models)
    chosen = pick(recording != smallest, num)
    seen = replace(benchmark.seen_as(chosen, weights, 0.0, torch.Generator()), std=0.001)
    fitted = fitting.fit(fitting.start_from(models, seen), seen, steps=steps).detach()
    residual = (fitting.joints_of(fitted, weights) - chosen).norm(dim=-1).mean() * 1e3
    return fitted, {"frames": len(chosen), "recordings": len(names) - 1, "residual of the fit mm": float(residual)}
