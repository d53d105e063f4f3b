"""What is measured on the meshes of each pair (paper Sec. 4.1 and Table 3b): penetration and nearness.

Each number of the tables is the mean over pairs of one value per pair: the volume of the intersection (PenVol), its
depth (PenDist), whether the meshes are within 2 cm (ProxRatio) or within 3 mm of each other (touch share). Nearness at
2 cm alone hides hands that were pushed a centimetre apart; the touch share shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..params import TwoHands
from ..progress import progress_bar

__all__ = ["CONTACT", "MeasureContact", "measure_contact", "summarise"]

CONTACT = ("penetration_volume", "penetration_distance", "proximity_ratio", "touch_share")

_CHUNK = 512


class MeasureContact(Protocol):
    """A function like `measure_contact`; another one (a fast approximation, say) may stand in its place."""

    def __call__(
        self, pairs: TwoHands, names: Sequence[str], /, *, workers: int | None, progress: bool
    ) -> Mapping[str, Tensor]:
        """Values of each pair, (N,) by name."""
        ...


def measure_contact(
    pairs: TwoHands, names: Sequence[str] = CONTACT, /, *, workers: int | None = None, progress: bool = False
) -> dict[str, Tensor]:
    """Values of each pair whose means are the metrics.

    Args:
        pairs: batch shape (N,).
        names: of the metrics, from `CONTACT`; nothing is computed for others.
        workers: processes for the volumes; default: `penetration_volume`'s.
        progress: show bars.

    Returns:
        By name, (N,) float64: volume in cm^3, NaN where the boolean operation failed; depth in cm; 1 or 0 for near
        and for touching.

    Raises:
        ImportError: a volume is wanted and manifold3d is not installed.
    """
    values: dict[str, Tensor] = {}
    if "penetration_volume" in names:
        from .penetration import penetration_volume

        values["penetration_volume"] = penetration_volume(pairs, workers=workers, progress=progress).cm3
    if "penetration_distance" in names:
        from .penetration import penetration_distance

        values["penetration_distance"] = _each(penetration_distance, pairs, "penetration depth", progress)
    if "proximity_ratio" in names or "touch_share" in names:
        from .proximity import NEAR, TOUCH, inter_hand_distance

        gap = _each(inter_hand_distance, pairs, "distance of the hands", progress)
        values |= {"proximity_ratio": gap < NEAR, "touch_share": gap < TOUCH}
    return {name: values[name].detach().cpu().double() for name in CONTACT if name in names}


def _each(function: Callable[[TwoHands], Tensor], pairs: TwoHands, text: str, progress: bool) -> Tensor:
    """A value of each pair, a few hundred pairs at a time, under a bar."""
    parts = []
    with progress_bar(len(pairs), text, "pair", progress) as advance:
        for start in range(0, len(pairs), _CHUNK):
            parts.append(function(pairs[start : start + _CHUNK]))
            advance(len(parts[-1]))
    return torch.cat(parts)


def summarise(values: Tensor) -> dict[str, float | int | None]:
    """Mean and standard deviation over pairs, without the failed ones, and how many there are of both.

    Args:
        values: (N,), NaN where the measurement failed.

    Returns:
        `mean`, `sd`, `count`, `failed`: JSON values; None where no pair or a single one is left.
    """
    good = values[~values.isnan()].double()
    return {
        "mean": float(good.mean()) if len(good) else None,
        "sd": float(good.std()) if len(good) > 1 else None,
        "count": len(good),
        "failed": len(values) - len(good),
    }
