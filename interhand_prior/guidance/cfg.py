"""Classifier-free guidance (paper Eq. 4):  eps = (1 + w) eps_cond - w eps_uncond.

eps and x0 are affine in one another at a fixed x_t, so the same combination holds for the clean estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..denoiser import ConditionalDenoiser

__all__ = ["guided_x0"]


def guided_x0(
    denoiser: ConditionalDenoiser,
    x_t: Tensor,
    sigma: Tensor,
    anchor: Tensor,
    cfg_scale: float = 0.0,
    has_anchor: Tensor | None = None,
    has_relative: Tensor | None = None,
) -> Tensor:
    """Clean estimate of the partner with guidance weight w = cfg_scale.

    Args:
        denoiser: the network.
        x_t: (..., 64) noisy normalised partner.
        sigma: (...) or scalar level.
        anchor: (..., 64) normalised anchor.
        cfg_scale: 0 is the plain conditional estimate and costs one evaluation instead of two.
        has_anchor: (...) bool; None: every sample has one. Without an anchor both estimates are the same.
        has_relative: (...) bool, False for a hand alone; None: every sample has a place.

    Returns:
        x0, (..., 64).
    """
    if cfg_scale == 0:
        return denoiser(x_t, sigma, anchor, has_anchor, has_relative)
    batch = x_t.shape[:-1]
    if has_anchor is None:
        has_anchor = torch.ones(batch, dtype=torch.bool, device=x_t.device)
    twice = lambda value: torch.stack((value, value))
    mask = torch.stack((has_anchor, torch.zeros_like(has_anchor)))
    placed = None if has_relative is None else twice(has_relative)
    conditional, unconditional = denoiser(twice(x_t), twice(sigma.expand(batch)), twice(anchor), mask, placed)
    return conditional + cfg_scale * (conditional - unconditional)
