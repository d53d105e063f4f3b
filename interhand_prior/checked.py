"""Pairs at the boundary of what judges them: finite, in float32 at least, and with both hands or with marked gaps."""

from __future__ import annotations

from dataclasses import replace

import torch

from .params import HandParams, TwoHands

__all__ = ["checked_pairs", "present"]


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


def present(hands: TwoHands) -> TwoHands:
    """The same pairs with zeros in the place of missing hands, whose numbers may be anything.

    Raises:
        ValueError: a hand that is there holds NaN or infinity.
    """
    fill = lambda hand, valid: hand.map(lambda value: torch.where(valid[..., None], value, torch.zeros_like(value)))
    left, right = (fill(hand, valid) for hand, valid in zip((hands.left, hands.right), hands.valid, strict=True))
    left, right = HandParams.coerce(left, "hands.left"), HandParams.coerce(right, "hands.right")
    return replace(hands, left=left, right=right)
