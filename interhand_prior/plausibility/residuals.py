"""Denoising residuals: what the network would change about a pair.

A vector x is noised to a level sigma with a few fixed noises and denoised again; in units of the noise,

    r^2(sigma) = alpha_bar / (1 - alpha_bar)  (x - D(x_t))^2,        averaged over the noises.

With the other hand as its condition it says how well a partner fits; of a hand alone, how usual its own pose and shape
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..canonical import SLICES, without_place
from ..schedule import add_noise, snr

if TYPE_CHECKING:
    from ..prior import TwoHandPrior

__all__ = ["BLOCKS", "LEVELS", "log_residuals", "own_residuals", "partner_residuals", "probe_noise"]

BLOCKS = ("hand_pose", "relative")
LEVELS = (0.156, 0.588)  # sigma at u = 0.1 and 0.4 of the cosine schedule
_PROBES = 2  # pairs of opposite noises


def probe_noise(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The fixed noises, (2 * probes, 64): the same for every pair, so that a score depends on the pair alone."""
    noise = torch.randn(_PROBES, 64, generator=torch.Generator().manual_seed(20240617))
    return torch.cat((noise, -noise)).to(dtype=dtype, device=device)


@torch.no_grad()
def log_residuals(prior: TwoHandPrior, partner: Tensor, anchor: Tensor) -> Tensor:
    """Log residuals of pairs, over both directions.

    Args:
        prior: with its denoiser.
        partner: (2, ..., 64) normalised partners: the right hand seen from the left, and the left from the right.
        anchor: (2, ..., 64) normalised anchors.

    Returns:
        (..., levels, blocks).
    """
    square = _squares(prior, partner, anchor).mean((0, 2))  # (level, ..., 64)
    blocks = torch.stack([square[..., SLICES[block]].mean(-1) for block in BLOCKS], -1)
    return blocks.clamp_min(1e-12).log().movedim(0, -2)


@torch.no_grad()
def partner_residuals(prior: TwoHandPrior, partner: Tensor, anchor: Tensor) -> Tensor:
    """r^2 of normalised partners (..., 64) beside their anchors (..., 64), of two noises: (..., levels, 64)."""
    return _squares(prior, partner, anchor, probes=1).mean(0).movedim(0, -2)


@torch.no_grad()
def own_residuals(prior: TwoHandPrior, partner: Tensor) -> Tensor:
    """r^2 of the own part of normalised hands (..., 64), each taken alone, of two noises: (..., levels, 55).

    A network that has learned no hands alone is given the mean place beside an unknown anchor.
    """
    alone = torch.zeros(partner.shape[:-1], dtype=torch.bool, device=partner.device)
    square = _squares(prior, without_place(partner, alone), None, alone, probes=1).mean(0)
    return square[..., SLICES["own"]].movedim(0, -2)


def _squares(
    prior: TwoHandPrior, x: Tensor, anchor: Tensor | None, has_relative: Tensor | None = None, probes: int = _PROBES
) -> Tensor:
    """r^2 of each noise: (2 * probes, levels, ..., 64)."""
    noise = prior.probe_noise.unflatten(0, (2, _PROBES))[:, :probes].flatten(0, 1).to(x)
    noise = noise.reshape(len(noise), 1, *[1] * (x.ndim - 1), -1)
    sigma = torch.tensor(LEVELS, dtype=noise.dtype, device=noise.device)
    sigma = sigma.reshape(1, -1, *[1] * (x.ndim - 1))
    shape = (noise.shape[0], len(LEVELS), *x.shape)
    x_t = add_noise(x[None, None], noise, sigma).expand(shape)
    x0 = prior.denoiser(
        x_t,
        sigma.expand(shape[:-1]),
        None if anchor is None else anchor.expand(shape),
        None,
        None if has_relative is None else has_relative.expand(shape[:-1]),
    )
    return snr(sigma)[..., None] * (x - x0).square()
