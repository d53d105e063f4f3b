"""Which hands there are to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..params import TwoHands

__all__ = ["present_hands"]


def present_hands(hands: TwoHands) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where there is a left hand, and a right one: (N,) each, of the flattened batch.

    Raises:
        ValueError: a pair has neither.
    """
    left, right = (mask.reshape(-1).cpu().numpy() for mask in hands.valid)
    neither = np.flatnonzero(~(left | right))
    if len(neither):
        raise ValueError(
            f"hands: {len(neither)} of {len(left)} pairs have neither a left nor a right hand, the first at index"
            f" {neither[0]}; leave them out, there is nothing to show"
        )
    return left, right
