"""Validation: the training loss at fixed levels with fixed noise, so that two numbers differ by the weights alone.

At each level sigma the error |x0 - D(x_t, anchor, sigma)|^2 / sigma^2 is averaged over samples and entries: in units
of the preconditioned network's target, where 1 is a network that has learned nothing. `cond` has the anchor, `uncond`
does not; the gap between them is what the anchor tells about its partner. `alone` is the error of hands alone, over
their own entries, for a network that learns them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..canonical import SIZE, SLICES, without_place
from ..schedule import add_noise
from .data import Batch

__all__ = ["LEVELS", "validate"]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_BATCH = 2048
_SEED = 20260


@torch.no_grad()
def validate(denoiser: nn.Module, batch: Batch, translation_std: Tensor, *, alone: bool = False) -> dict[str, float]:
    """Validation numbers by name.

    Args:
        denoiser: with the call of a ConditionalDenoiser; usually the averaged weights.
        batch: N normalised samples.
        translation_std: (3,) metres, the normaliser's.
        alone: give the numbers of hands alone, too.

    Returns:
        `val_cond`, `val_uncond` and, if asked for, `val_alone`: means over the levels; `val_cond_0.5` and so on: at
        each level; `val_transl_mm_0.5` and so on: root-mean-square error of the clean estimate's offset in
        millimetres, given the anchor. The first two and the offset are of the pairs, and missing without any.
    """
    result: dict[str, float] = {}
    pairs = batch.has_anchor & batch.has_relative
    kinds = {"cond": pairs, "uncond": pairs} | ({"alone": torch.ones_like(pairs)} if alone else {})
    for kind, rows in kinds.items():
        if not rows.any():
            continue
        part = Batch(*(value[rows] for value in batch))
        generator = torch.Generator().manual_seed(_SEED)
        numbers = {}
        for level in LEVELS:
            square = _squares(denoiser, part, level, kind, generator)
            entries = SLICES["own"] if kind == "alone" else slice(0, SIZE)
            numbers[f"val_{kind}_{level}"] = float(square[entries].mean()) / level**2
            if kind == "cond":
                transl = SLICES["transl"]
                offset = float((square[transl] * translation_std.to(square).square()).sum())
                numbers[f"val_transl_mm_{level}"] = 1000 * offset**0.5
        losses = [value for name, value in numbers.items() if name.startswith(f"val_{kind}_")]
        result = {f"val_{kind}": sum(losses) / len(losses), **result, **numbers}
    return result


def _squares(denoiser: nn.Module, batch: Batch, level: float, kind: str, generator: torch.Generator) -> Tensor:
    """Mean squared error of each entry, (64,)."""
    total = torch.zeros(SIZE, dtype=torch.float64, device=batch.partner.device)
    for x0, anchor in zip(batch.partner.split(_BATCH), batch.anchor.split(_BATCH), strict=True):
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        sigma = x0.new_full((len(x0),), level)
        placed = torch.full((len(x0),), kind != "alone", device=x0.device)
        x0 = without_place(x0, placed)
        condition = anchor if kind == "cond" else None
        estimate = denoiser(add_noise(x0, noise, sigma), sigma, condition, None, None if kind != "alone" else placed)
        total += (estimate - x0).double().square().sum(0)
    return total / len(batch.partner)
