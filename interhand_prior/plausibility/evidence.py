"""What the critics read about a hand, a finger and a pair.

Of a hand alone: its normalised pose, and the logarithms of its residuals as a hand alone. Of a pair, seen from either
hand: where the partner is, the residuals beside the anchor and alone (their difference is log p(partner | anchor) -
log p(partner), what speaks for an interaction), how much the two shapes differ, and the contact of both surfaces.
Residuals do not see a centimetre of translation: the network places hands to 3 cm at the middle levels. Contact does.

Index 0 of an axis "hands" is the right hand, 1 the left one, each in right-hand form, as in `canonical_pair`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..canonical import SLICES
from ..params import TwoHands
from .contact import CONTACT_SIZE, contact_evidence
from .residuals import LEVELS, own_residuals, partner_residuals

if TYPE_CHECKING:
    from ..hands import HandPair
    from ..prior import TwoHandPrior

__all__ = ["FINGERS", "FINGER_SIZE", "HAND_SIZE", "PAIR_SIZE", "OwnEvidence", "own_evidence", "pair_evidence"]

#: In the order of hand_pose.
FINGERS = ("index", "middle", "pinky", "ring", "thumb")

_JOINTS = 15
_PLACE = SLICES["relative"].stop - SLICES["relative"].start
_OWN_LOGS = len(FINGERS) + 1  # each finger and the shape
HAND_SIZE = len(LEVELS) * (_JOINTS + _OWN_LOGS) + 3 * _JOINTS
FINGER_SIZE = len(LEVELS) * (3 + 1) + 9 + len(FINGERS)
PAIR_SIZE = _PLACE + len(LEVELS) * (2 * _OWN_LOGS + 2) + 1 + 2 * CONTACT_SIZE


class OwnEvidence(NamedTuple):
    """Of hands by themselves.

    Attributes:
        hand: (2, ..., 1, HAND_SIZE).
        finger: (2, ..., 5, 1, FINGER_SIZE).
        logs: (2, ..., levels, 6) log residuals of each finger and of the shape.
    """

    hand: Tensor
    finger: Tensor
    logs: Tensor


@torch.no_grad()
def own_evidence(prior: TwoHandPrior, partner: Tensor) -> OwnEvidence:
    """Evidence of the hands (2, ..., 64) by themselves; their places are not read."""
    square = own_residuals(prior, partner)
    joint = _log(square[..., SLICES["hand_pose"]].unflatten(-1, (_JOINTS, 3)).mean(-1))
    logs = _own_logs(square)
    pose = partner[..., SLICES["hand_pose"]]
    hand = torch.cat((joint.flatten(-2), logs.flatten(-2), pose), -1)
    by_finger = (
        joint.unflatten(-1, (len(FINGERS), 3)).movedim(-2, -3).flatten(-2),
        logs[..., : len(FINGERS)].mT,
        pose.unflatten(-1, (len(FINGERS), 9)),
        torch.eye(len(FINGERS)).to(pose).expand(*pose.shape[:-1], -1, -1),
    )
    return OwnEvidence(hand[..., None, :], torch.cat(by_finger, -1)[..., None, :], logs)


@torch.no_grad()
def pair_evidence(
    prior: TwoHandPrior, hands: TwoHands, models: HandPair, partner: Tensor, anchor: Tensor, own_logs: Tensor
) -> Tensor:
    """Evidence of pairs as seen from either hand.

    Args:
        prior: with its denoiser.
        hands: pairs (...).
        models: that their parameters belong to.
        partner: (2, ..., 64) normalised, as `canonical_pair` gives them.
        anchor: (2, ..., 64) likewise.
        own_logs: (2, ..., levels, 6) of `own_evidence`.

    Returns:
        (..., 2, PAIR_SIZE). Mirroring a pair exchanges the two views.
    """
    square = partner_residuals(prior, partner, anchor)
    place = torch.stack([_log(square[..., SLICES[name]].mean(-1)) for name in ("rot6d", "transl")], -1)
    beside = torch.cat((_own_logs(square), place), -1).flatten(-2)
    shape = partner[..., SLICES["betas"]]
    unlike = _log((shape - shape.flip(0)).square().mean(-1, keepdim=True))
    contact = contact_evidence(hands, models).to(partner)
    views = (partner[..., SLICES["relative"]], beside, own_logs.flatten(-2), unlike, contact, contact.flip(0))
    return torch.cat(views, -1).movedim(0, -2)


def _own_logs(square: Tensor) -> Tensor:
    """(..., levels, 55 or more) -> (..., levels, 6)."""
    finger = square[..., SLICES["hand_pose"]].unflatten(-1, (len(FINGERS), 9)).mean(-1)
    return _log(torch.cat((finger, square[..., SLICES["betas"]].mean(-1, keepdim=True)), -1))


def _log(square: Tensor) -> Tensor:
    return square.clamp_min(1e-6).log()
