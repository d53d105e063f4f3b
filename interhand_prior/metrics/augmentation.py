"""What is done to the points that a feature network is trained on: only some are read, and each is moved a little."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Augmentation", "PointDraws"]


class PointDraws(NamedTuple):
    """Everything random about the points of B pairs.

    Attributes:
        kept: (B, K) the points that are read; the same in each row, because those of a batch are.
        noise: (B, K, 3) standard normal.
    """

    kept: Tensor
    noise: Tensor


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to the points of a training batch.

    Attributes:
        least_share: a batch keeps a share of its points that is uniform between this and the next; the same points
            of each pair.
        most_share: see there. Fewer points are sooner read, and no worse.
        jitter: standard deviation of noise on every coordinate, metres.

    Raises:
        ValueError: a value is out of range.
    """

    least_share: float = 0.25
    most_share: float = 0.6
    jitter: float = 0.0003

    def __post_init__(self) -> None:
        if not 0 < self.least_share <= self.most_share <= 1 or not self.jitter >= 0:
            raise ValueError(f"0 < least_share <= most_share <= 1 and jitter >= 0 must hold, got {self}")

    def draw(self, size: int, count: int, generator: torch.Generator) -> PointDraws:
        """Which of `count` points `size` pairs keep, in random order, and the noise on them."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        share = self.most_share - (self.most_share - self.least_share) * float(torch.rand((), **options))
        kept = torch.randperm(count, **options)[: max(1, round(share * count))]
        shape = (size, len(kept), 3)
        noise = torch.randn(shape, **options) if self.jitter else torch.zeros((), device=generator.device).expand(shape)
        return PointDraws(kept.expand(size, -1), noise)

    def __call__(self, points: Tensor, side: Tensor, draws: PointDraws) -> tuple[Tensor, Tensor]:
        """Points (B, P, 3) and labels (P,) -> fewer, moved ones."""
        kept = draws.kept[0]
        points = points[:, kept]
        return points + self.jitter * draws.noise if self.jitter else points, side[kept]
