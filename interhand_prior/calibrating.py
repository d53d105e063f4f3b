"""What a prior learns from held-out pairs once it is trained: which residuals ordinary estimates have, what noise does
to them, and how real pairs differ from corrupted ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .canonical import canonical_pair
from .checked import checked_pairs
from .params import HandParams, TwoHands
from .plausibility import Calibration, Critics, fit_critics, log_residuals
from .sds.uncertainty import noise_table

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["calibrated"]

_CHUNK = 1024


def calibrated(
    prior: TwoHandPrior, pairs: TwoHands, noise: Mapping[str, float], seed: int = 0
) -> tuple[Calibration, Critics]:
    """Tables and critics of a prior; see `TwoHandPrior.calibrate`.

    Args:
        prior: with its denoiser.
        pairs: (N,) clean pairs, N >= 2.
        noise: standard deviations of an ordinary estimate, by field of HandParams; 0 where one is left out.
        seed: of the noise, the corrupted copies and the critics' start.

    Raises:
        ValueError: the pairs are too few, have another batch shape than (N,), or hold NaN.
    """
    if len(pairs.batch_shape) != 1 or len(pairs) < 2:
        raise ValueError(f"pairs must have batch shape (N,) with N >= 2, got {tuple(pairs.batch_shape)}")
    clean = checked_pairs(pairs)
    generator = torch.Generator().manual_seed(seed)

    def noisy(hand: HandParams) -> HandParams:
        draw = lambda value: torch.randn(value.shape, generator=generator).to(value)
        return HandParams(**{k: value + noise.get(k, 0.0) * draw(value) for k, value in hand.as_dict().items()})

    residuals = []
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        part = checked_pairs(TwoHands(noisy(part.left), noisy(part.right), part.hands)).to(prior.device)
        residuals.append(log_residuals(prior, *canonical_pair(prior, part)).cpu())
    table = Calibration.fit(torch.cat(residuals)).table
    return Calibration(table, noise_table(prior, clean, seed)), fit_critics(prior, clean.to(prior.device), seed)
