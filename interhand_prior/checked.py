"""Pairs at the boundary of what judges them: finite, in float32 at least, and with both hands or with marked gaps."""

from __future__ import annotations

import torch
from torch import Tensor

from .params import HandParams, TwoHands

__all__ = ["checked_pairs", "without_missing"]


def checked_pairs(hands: TwoHands) -> TwoHands:
    """Both hands there, without NaN, and in float32 at least.

    Raises:
        ValueError: a hand is missing, or holds NaN.
    """
    if any(mask is not None and not bool(mask.all()) for mask in (hands.left_valid, hands.right_valid)):
        raise ValueError(
            "hands: a hand is missing in some pairs. Choose those that have both: left, right = hands.valid;"
            " hands[left & right]. sds_loss, refine and score take hands alone."
        )
    left, right = HandParams.coerce(hands.left, "hands.left"), HandParams.coerce(hands.right, "hands.right")
    return TwoHands(left, right, hands.hands).to(torch.promote_types(hands.dtype, torch.float32))


def without_missing(hands: TwoHands) -> TwoHands:
    """Zeros in the place of missing hands, no NaN in the others, and in float32 at least.

    Raises:
        ValueError: a hand that is there holds NaN.
    """
    present = hands.valid

    def clean(hand: HandParams, valid: Tensor, name: str) -> HandParams:
        return HandParams.coerce(hand.map(lambda value: value.where(valid[..., None], 0)), name)

    left, right = clean(hands.left, present[0], "hands.left"), clean(hands.right, present[1], "hands.right")
    filled = TwoHands(left, right, hands.hands, {}, *present)
    return filled.to(torch.promote_types(hands.dtype, torch.float32))
