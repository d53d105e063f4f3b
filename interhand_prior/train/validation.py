"""Validation: the training loss at fixed levels with fixed noise, so that two numbers differ by the weights alone.

At each level sigma the error |x0 - D(x_t, anchor, sigma)|^2 / sigma^2 is averaged over pairs and entries: in units
of the preconditioned network's target, where 1 is a network that has learned nothing. `cond` has the anchor, `uncond`
does not; the gap between them is what the anchor tells about its partner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..canonical import SLICES
from ..denoiser import Denoiser
from ..schedule import add_noise

__all__ = ["LEVELS", "validate"]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_BATCH = 2048


@torch.no_grad()
def validate(denoiser: Denoiser, anchor: Tensor, partner: Tensor, translation_std: Tensor) -> dict[str, float]:
    """Validation numbers by name.

    Args:
        denoiser: usually the averaged weights.
        anchor: (N, 64) normalised.
        partner: (N, 64) normalised.
        translation_std: (3,) metres, the normaliser's.

    Returns:
        `val_cond`, `val_uncond`: means over the levels; `val_cond_0.5` and so on: at each level;
        `val_transl_mm_0.5` and so on: root-mean-square error of the clean estimate's offset in millimetres, given
        the anchor.
    """
    generator = torch.Generator().manual_seed(20260)
    result: dict[str, float] = {}
    means: dict[str, list[float]] = {"cond": [], "uncond": []}
    transl = SLICES["transl"]
    for level in LEVELS:
        error = {"cond": 0.0, "uncond": 0.0}
        offset = 0.0
        for start in range(0, len(partner), _BATCH):
            x0, given = partner[start : start + _BATCH], anchor[start : start + _BATCH]
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            sigma = x0.new_full((len(x0),), level)
            x_t = add_noise(x0, noise, sigma)
            for name, condition in (("cond", given), ("uncond", None)):
                difference = denoiser(x_t, sigma, condition) - x0
                error[name] += float((difference / level).square().mean(-1).sum())
                if name == "cond":
                    offset += float((difference[:, transl] * translation_std.to(x0)).square().sum())
        for name, value in error.items():
            means[name].append(value / len(partner))
            result[f"val_{name}_{level}"] = means[name][-1]
        result[f"val_transl_mm_{level}"] = 1000 * (offset / len(partner)) ** 0.5
    return {f"val_{name}": sum(values) / len(values) for name, values in means.items()} | result
