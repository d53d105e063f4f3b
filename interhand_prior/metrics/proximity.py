"""Nearness of the hands (paper Table 3b, ProxRatio): the share of pairs whose meshes are within tau = 2 cm.

    d(L, R) = min over i, j of |V_L^i - V_R^j|,        ProxRatio = mean over pairs of [d < tau].

Two centimetres do not tell hands that touch from hands that were pushed a centimetre apart. So the share of pairs that
touch (d < 3 mm) belongs beside it: guidance that keeps the one and loses the other has harmed the interaction.

The distance is between vertices. That between the surfaces is never larger: of hands nearer than 2 cm it was smaller
by 0.3 mm (samples) and 0.8 mm (a corpus of touching hands) on average, by 3.2 mm at most. Hands inside each other are
near.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry import min_distance
from ..params import TwoHands
from .inputs import require_both_hands

__all__ = ["NEAR", "TOUCH", "inter_hand_distance", "proximity_ratio", "touch_share"]

#: Metres: tau of Table 3b, and what counts as touching.
NEAR, TOUCH = 0.02, 0.003

_CHUNK = 64


@torch.no_grad()
def inter_hand_distance(pairs: TwoHands) -> Tensor:
    """Smallest distance between a vertex of the left and one of the right hand of each pair.

    Args:
        pairs: batch shape (N,).

    Returns:
        (N,) metres, in the dtype and on the device of `pairs`. NaN where a hand holds NaN or infinity.

    Raises:
        TypeError: not TwoHands.
        ValueError: another batch shape than (N,); a hand is missing.
    """
    check_pairs(pairs)
    parts = [pairs.left.transl.new_empty(0)]
    for begin in range(0, len(pairs), _CHUNK):
        left, right = pairs[begin : begin + _CHUNK].vertices()
        # A search cannot rank NaN, and would call it the nearest of all.
        finite = left.isfinite().all(-1).all(-1) & right.isfinite().all(-1).all(-1)
        parts.append(torch.where(finite, min_distance(left, right), math.nan))
    return torch.cat(parts)


def proximity_ratio(pairs: TwoHands | Tensor, threshold: float = NEAR) -> float:
    """Share of pairs whose hands are nearer than `threshold`.

    Args:
        pairs: batch shape (N,); or their distances (N,) in metres (`inter_hand_distance`), to compute them once only.
        threshold: metres.

    Returns:
        In [0, 1].

    Raises:
        TypeError: neither of both.
        ValueError: no pairs, a wrong shape, or a distance that is NaN.
    """
    distances = pairs if isinstance(pairs, Tensor) else inter_hand_distance(pairs)
    if distances.ndim != 1 or len(distances) == 0:
        raise ValueError(f"pairs must hold at least one pair or distance, (N,), got shape {tuple(distances.shape)}")
    if distances.isnan().any():
        raise ValueError(f"pairs: {int(distances.isnan().sum())} distances are NaN; remove those hands")
    return (distances < threshold).double().mean().item()


def touch_share(pairs: TwoHands | Tensor) -> float:
    """Share of pairs whose hands touch: `proximity_ratio` at 3 mm.

    Vertices are some 7 mm apart, so this is a lower bound of the share whose surfaces are that near.
    """
    return proximity_ratio(pairs, TOUCH)


def check_pairs(pairs: TwoHands) -> None:
    """Refuse what is not a batch of pairs of two hands."""
    if not isinstance(pairs, TwoHands):
        raise TypeError(f"pairs must be TwoHands, got {type(pairs).__name__}")
    if len(pairs.batch_shape) != 1:
        raise ValueError(
            f"pairs must have batch shape (N,), got {tuple(pairs.batch_shape)}; use pairs.reshape(-1), or"
            " pairs.reshape(1) for a single pair"
        )
    require_both_hands(pairs)
