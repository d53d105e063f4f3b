"""The table of the placement gate: quantiles of log residuals over held-out pairs with an estimate's noise on them.

Two blocks are kept apart: the fingers, and the relative placement. Real fingers look unusual to a synthetic corpus
without being wrong, so only the placement decides how far `sds_loss` may move a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .quantiles import QUANTILES, quantiles, share_below
from .residuals import BLOCKS, LEVELS

__all__ = ["Calibration", "placement_gate"]


@dataclass(frozen=True)
class Calibration:
    """Quantiles 0, 1, ..., 100 % of log residuals over a corpus.

    Attributes:
        table: (levels, blocks, 101).
        noise_table: what `sds.uncertainty.noise_table` found; None in folders that were stored by a version without it.
    """

    table: Tensor
    noise_table: Tensor | None = None

    def __post_init__(self) -> None:
        want = (len(LEVELS), len(BLOCKS), QUANTILES)
        if tuple(self.table.shape) != want or not (torch.isfinite(self.table).all() and (self.table.diff() >= 0).all()):
            raise ValueError(f"a calibration must be finite, rising, of shape {want}, got {tuple(self.table.shape)}")
        noise = self.noise_table
        if noise is None:
            return
        if noise.ndim != 3 or noise.shape[1] != len(LEVELS) or not torch.isfinite(noise).all():
            raise ValueError(
                f"a calibration's noise_table must be finite, of shape (factors, {len(LEVELS)}, values), "
                f"got {tuple(noise.shape)}"
            )

    @classmethod
    def fit(cls, residuals: Tensor) -> Calibration:
        """From log residuals (N, levels, blocks) of a corpus, N >= 2."""
        return cls(quantiles(residuals))

    def share_above(self, residuals: Tensor) -> Tensor:
        """Share of the corpus with a larger residual, for residuals (..., levels, blocks); 1 is most usual."""
        return 1 - share_below(self.table, residuals)


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
    open_at, shut_at = table[:, round((1 - full) * (QUANTILES - 1))], table[:, round((1 - none) * (QUANTILES - 1))]
    gate = (shut_at - residuals[..., block]) / (shut_at - open_at).clamp_min(1e-6)
    return gate.clamp(0, 1).amin(-1)
