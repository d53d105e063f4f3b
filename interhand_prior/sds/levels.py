"""At which noise level a pair is looked at: a number, one for each pair, drawn from a range, or annealed.

Ranges and anneals are even in the angle asin(sigma), the cosine schedule's time (schedule.py): the denoiser has seen
all angles equally often in training, and a sampler visits the levels in the same steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule import check_sigma

__all__ = ["DEFAULT_SIGMA", "Anneal", "Level", "check_level", "draw_level", "per_pair"]

#: u = 0.3 of the cosine schedule.
DEFAULT_SIGMA = 0.454

#: sigma for all, for each pair (...), or (low, high) from which each pair's is drawn.
Level = float | Tensor | tuple[float, float]


@dataclass(frozen=True)
class Anneal:
    """A level that changes with the step of a fit: `sds_loss(..., sigma=anneal(step))`.

        anneal = Anneal(0.6, 0.15, steps=100)      # far-sighted first, then only what is near

    Attributes:
        start: sigma of step 0.
        end: sigma of step `steps` - 1 and of all later ones.
        steps: how many, at least 2.

    Raises:
        ValueError: a level is not in (0, 1), or there are fewer than two steps.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_sigma(self.start, "start")
        check_sigma(self.end, "end")
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}; for one step pass sigma itself")

    def __call__(self, step: float) -> float:
        """The level of a step >= 0, between `start` and `end` in even steps of asin(sigma).

        Raises:
            ValueError: step is negative.
        """
        if not step >= 0:
            raise ValueError(f"step must not be negative, got {step}")
        share = min(step / (self.steps - 1), 1.0)
        # Both ends are exact: sin(asin(x)) need not be.
        if share in (0.0, 1.0):
            return self.end if share else self.start
        first, last = math.asin(self.start), math.asin(self.end)
        return math.sin(first + share * (last - first))


def check_level(sigma: Level, name: str = "sigma") -> None:
    """Refuse what is no level and no range of levels.

    Raises:
        ValueError: a level is not in (0, 1), or a range is not (low, high) with low <= high.
    """
    if not isinstance(sigma, (tuple, list)):
        check_sigma(sigma, name)
        return
    if len(sigma) != 2 or not sigma[0] <= sigma[1]:
        raise ValueError(
            f"{name} must be a level, a tensor of levels, or a range (low, high) with low <= high, got {sigma}"
        )
    for end in sigma:
        check_sigma(end, name)


def draw_level(sigma: Level, like: Tensor, generator: torch.Generator | None = None, name: str = "sigma") -> Tensor:
    """The level of each pair.

    Args:
        sigma: checked by `check_level`.
        like: (...) of the wanted shape, type and device.
        generator: of a range's draws; nothing else is drawn.
        name: how to call it in the error.

    Returns:
        (...).

    Raises:
        ValueError: a tensor has another shape than `like`.
    """
    if not isinstance(sigma, (tuple, list)):
        return per_pair(name, sigma, like).to(like)
    low, high = (math.asin(end) for end in sigma)
    share = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return torch.sin(low + (high - low) * share)


def per_pair(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """A number, or a tensor (...), as a tensor of the shape and on the device of `like`.

    Raises:
        ValueError: the shape is another one.
    """
    if isinstance(value, (int, float)):
        return like.new_full((), value).expand(like.shape)  # filled there: a copy would make the host wait
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=like.dtype)
    if value.shape != like.shape and value.ndim != 0:
        raise ValueError(f"{name} must be a number or a tensor of shape {tuple(like.shape)}, got {tuple(value.shape)}")
    return value.to(like.device).expand(like.shape)
