"""Percentiles against held-out values: a table of quantiles, and where a value stands in it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["QUANTILES", "quantiles", "share_below"]

#: Entries of a table: 0, 1, ..., 100 %.
QUANTILES = 101


def quantiles(values: Tensor) -> Tensor:
    """Tables (..., 101) in float32 of values (N, ...), N >= 1."""
    at = torch.linspace(0, 1, QUANTILES, dtype=torch.float64, device=values.device)
    return torch.quantile(values.double(), at, dim=0).movedim(0, -1).float().contiguous()


def share_below(table: Tensor, values: Tensor) -> Tensor:
    """Share of the values behind a table that are smaller, by linear interpolation.

    Args:
        table: (*K, 101), rising.
        values: (..., *K).

    Returns:
        (..., *K) in [0, 1].
    """
    # Tables are increasing; counting entries below is a batched search without a loop.
    table = table.to(values)
    low = (values[..., None] >= table).sum(-1).clamp(1, QUANTILES - 1)
    at = lambda i: table.expand(*values.shape, QUANTILES).gather(-1, i[..., None]).squeeze(-1)
    left, right = at(low - 1), at(low)
    part = ((values - left) / (right - left).clamp_min(1e-12)).clamp(0, 1)
    return (low - 1 + part) / (QUANTILES - 1)
