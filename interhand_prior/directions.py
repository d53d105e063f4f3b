"""Both directions of pairs: the right hand seen from the left, and the left seen from the right.

Everything that judges a pair looks at it from both sides (Eq. 9), so that mirroring it with exchanged hands changes
nothing. In right-hand form (canonical.py) the two are alike and go through the network as one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .canonical import to_canonical
from .params import TwoHands

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["canonical_pair"]


def canonical_pair(prior: TwoHandPrior, hands: TwoHands) -> tuple[Tensor, Tensor]:
    """Normalised vectors of both directions.

    Returns:
        partner (2, ..., 64): the right hand seen from the left, the left seen from the right; anchor (2, ..., 64).
        Half-precision hands are computed with in float32.

    Raises:
        ValueError: the hands are not on the prior's device.
    """
    if hands.device != prior.device:
        raise ValueError(
            f"the hands are on {hands.device} but the prior is on {prior.device}; use prior.to({str(hands.device)!r})"
        )
    hands = hands.to(torch.promote_types(hands.dtype, torch.float32))
    models = prior.hands if hands.hands is None else hands.hands
    anchor_l, partner_r, _ = to_canonical(hands, models, "left")
    anchor_r, partner_l, _ = to_canonical(hands, models, "right")
    normalizer = prior.normalizer
    return (
        normalizer.partner(torch.stack((partner_r, partner_l))),
        normalizer.anchor(torch.stack((anchor_l, anchor_r))),
    )
