"""How usual a pair is to the prior, from its denoising residuals.

A pair x is noised to a level sigma with a few fixed noises and denoised again; the residual of a block of entries is

    r(sigma) = alpha_bar / (1 - alpha_bar)  mean |x - D(x_t)|^2,

averaged over the noises, the block and both directions (right hand given left, left given right). A calibration
holds the quantiles of log r over held-out pairs that carry the noise of an ordinary estimate; against them the
residual of any pair becomes a share of the corpus.

Two blocks are kept apart: the fingers, and the relative placement. Real fingers look unusual to a synthetic corpus
without being wrong, so only the placement decides how far `sds_loss` may move a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .canonical import SLICES
from .schedule import add_noise, snr

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["BLOCKS", "Calibration", "Score", "log_residuals", "placement_gate"]

BLOCKS = ("hand_pose", "relative")
LEVELS = (0.156, 0.588)  # sigma at u = 0.1 and 0.4 of the cosine schedule
_PROBES = 2  # pairs of opposite noises
_QUANTILES = 101


@dataclass(frozen=True)
class Calibration:
    """Quantiles 0, 1, ..., 100 % of log residuals over a corpus.

    Attributes:
        table: (levels, blocks, 101).
    """

    table: Tensor

    def __post_init__(self) -> None:
        want = (len(LEVELS), len(BLOCKS), _QUANTILES)
        if tuple(self.table.shape) != want or not (torch.isfinite(self.table).all() and (self.table.diff() >= 0).all()):
            raise ValueError(f"a calibration must be finite, rising, of shape {want}, got {tuple(self.table.shape)}")

    @classmethod
    def fit(cls, residuals: Tensor) -> Calibration:
        """From log residuals (N, levels, blocks) of a corpus, N >= 2."""
        at = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
        return cls(torch.quantile(residuals.double(), at, dim=0).permute(1, 2, 0).float().contiguous())

    def share_above(self, residuals: Tensor) -> Tensor:
        """Share of the corpus with a larger residual, for residuals (..., levels, blocks); 1 is most usual."""
        # Tables are increasing; counting entries below is a batched search without a loop.
        table = self.table.to(residuals)
        low = (residuals[..., None] >= table).sum(-1).clamp(1, _QUANTILES - 1)
        at = lambda i: table.expand(*residuals.shape, _QUANTILES).gather(-1, i[..., None]).squeeze(-1)
        left, right = at(low - 1), at(low)
        part = ((residuals - left) / (right - left).clamp_min(1e-12)).clamp(0, 1)
        return 1 - (low - 1 + part) / (_QUANTILES - 1)


@dataclass(frozen=True)
class Score:
    """Plausibility of pairs, each in [0, 1]: the share of the corpus that is less usual.

    Attributes:
        hand_pose: (...) of both hands' finger poses.
        placement: (...) of the relative rotation and translation.
    """

    hand_pose: Tensor
    placement: Tensor


def probe_noise(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The fixed noises, (2 * probes, 64): the same for every pair, so that a score depends on the pair alone."""
    noise = torch.randn(_PROBES, 64, generator=torch.Generator().manual_seed(20240617))
    return torch.cat((noise, -noise)).to(dtype=dtype, device=device)


@torch.no_grad()
def log_residuals(prior: TwoHandPrior, partner: Tensor, anchor: Tensor) -> Tensor:
    """Log residuals of pairs.

    Args:
        prior: with its denoiser.
        partner: (2, ..., 64) normalised partners: the right hand seen from the left, and the left from the right.
        anchor: (2, ..., 64) normalised anchors.

    Returns:
        (..., levels, blocks).
    """
    noise = prior.probe_noise.to(partner)
    noise = noise.reshape(len(noise), 1, *[1] * (partner.ndim - 1), -1)  # (K, level, direction, ..., 64)
    x = partner[None, None]
    sigma = torch.tensor(LEVELS, dtype=noise.dtype, device=noise.device)
    sigma = sigma.reshape(1, -1, *[1] * (partner.ndim - 1))
    shape = (noise.shape[0], len(LEVELS), *partner.shape)
    x_t = add_noise(x, noise, sigma).expand(shape)
    x0 = prior.denoiser(x_t, sigma.expand(shape[:-1]), anchor.expand(shape))
    square = (snr(sigma)[..., None] * (x - x0).square()).mean((0, 2))  # (level, ..., 64)
    blocks = torch.stack([square[..., SLICES[block]].mean(-1) for block in BLOCKS], -1)
    return blocks.clamp_min(1e-12).log().movedim(0, -2)


def placement_gate(calibration: Calibration, residuals: Tensor, full: float = 0.3, none: float = 0.01) -> Tensor:
    """How far the prior may be trusted with the relative placement, in [0, 1].

    1 up to the residual that a share `full` of the corpus exceeds (the 70th percentile), falling linearly in the
    log residual to 0 at the share `none` (the 99th); the worst level decides.

    Args:
        calibration: of the prior.
        residuals: (..., levels, blocks) log residuals.
        full: share of the corpus above at which the gate begins to close.
        none: share at which it is closed.

    Returns:
        (...).
    """
    block = BLOCKS.index("relative")
    table = calibration.table[:, block].to(residuals)
    open_at, shut_at = table[:, round((1 - full) * (_QUANTILES - 1))], table[:, round((1 - none) * (_QUANTILES - 1))]
    gate = (shut_at - residuals[..., block]) / (shut_at - open_at).clamp_min(1e-6)
    return gate.clamp(0, 1).amin(-1)
