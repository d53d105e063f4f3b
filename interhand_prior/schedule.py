"""Noise levels (paper Eq. 3):  x_t = sqrt(alpha_bar) x_0 + sigma eps,   sigma = sqrt(1 - alpha_bar),  eps ~ N(0, I).

A level is always given as sigma, the share of noise in x_t, in [0, 1]: unlike an integer step it means the same
under every schedule. A schedule says in which order and how densely levels are visited. Ours is the cosine one
(Nichol & Dhariwal, ICML 2021) in continuous time u in [0, 1],

    sigma(u) = sin(pi u / 2),      alpha_bar(u) = cos(pi u / 2)^2,

cut at alpha_bar >= `min_alpha_bar`, so that the terminal signal-to-noise ratio is (near) zero and sampling may
start from N(0, I) (Lin et al., WACV 2024).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["CosineSchedule", "Schedule", "add_noise", "check_sigma", "signal", "snr"]


class Schedule(ABC):
    """The levels a prior is trained on and sampled at.

    Attributes:
        name: in config.json.
        solver: the reverse process that suits it, one of `sampling.SOLVERS`.
    """

    name: ClassVar[str]
    solver: ClassVar[str] = "multistep"

    @property
    @abstractmethod
    def max_sigma(self) -> float:
        """The level that sampling starts from."""

    @abstractmethod
    def sigma(self, u: Tensor) -> Tensor:
        """Level at time u in [0, 1], any shape; 0 at u = 0."""

    @abstractmethod
    def steps(self, num_steps: int) -> list[float]:
        """The num_steps + 1 levels of a reverse process, from max_sigma down to 0.

        Raises:
            ValueError: num_steps is less than one.
        """

    def facts(self) -> dict[str, Any]:
        """The name and the arguments that make it again, JSON values."""
        return {"name": self.name}

    def draw(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Levels for training, u uniform on (0, 1]."""
        return self.sigma(1 - torch.rand(shape, generator=generator, device=device))


class CosineSchedule(Schedule):
    """Evenly spaced in the angle asin(sigma).

    Args:
        min_alpha_bar: alpha_bar at u = 1.

    Raises:
        ValueError: min_alpha_bar is not in (0, 0.1].
    """

    name = "cosine"

    def __init__(self, min_alpha_bar: float = 1e-4) -> None:
        if not 0 < min_alpha_bar <= 0.1:
            raise ValueError(f"min_alpha_bar must be in (0, 0.1], got {min_alpha_bar}")
        self.min_alpha_bar = min_alpha_bar

    @property
    def max_sigma(self) -> float:
        """The level that sampling starts from."""
        return math.sqrt(1 - self.min_alpha_bar)

    def sigma(self, u: Tensor) -> Tensor:
        """Level at time u in [0, 1], any shape."""
        return torch.sin(u * (math.pi / 2)).clamp_max(self.max_sigma)

    def steps(self, num_steps: int) -> list[float]:
        """The num_steps + 1 levels of a reverse process, evenly spaced in u: from max_sigma down to 0."""
        if num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {num_steps}")
        return [min(math.sin(math.pi / 2 * k / num_steps), self.max_sigma) for k in range(num_steps, -1, -1)]

    def facts(self) -> dict[str, Any]:
        """Name and min_alpha_bar."""
        return {"name": self.name, "min_alpha_bar": self.min_alpha_bar}


def signal(sigma: Tensor) -> Tensor:
    """sqrt(alpha_bar), the share of signal at level sigma. 1 - sigma^2 is factored to keep digits near sigma = 1."""
    return ((1 - sigma) * (1 + sigma)).clamp_min(0).sqrt()


def snr(sigma: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
    return (1 - sigma) * (1 + sigma) / (sigma * sigma)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 3.

    Args:
        x0: (..., D) clean vectors.
        noise: (..., D) standard normal.
        sigma: (...) level of each vector, or a scalar.

    Returns:
        x_t, (..., D).
    """
    return signal(sigma)[..., None] * x0 + sigma[..., None] * noise


def check_sigma(sigma: float | Tensor, name: str = "sigma") -> None:
    """Refuse what is no noise level.

    Args:
        sigma: a level, or a tensor of them; a tensor is looked at on the CPU only, because elsewhere the host would
            have to wait for the device.
        name: how to call it in the error.

    Raises:
        ValueError: sigma is not in (0, 1).
    """
    if isinstance(sigma, Tensor):
        if sigma.device.type != "cpu" or torch.compiler.is_compiling():
            return
        wrong = sigma[~((sigma > 0) & (sigma < 1))].flatten()[:1].tolist()
    else:
        wrong = [] if 0 < sigma < 1 else [sigma]
    if wrong:
        raise ValueError(
            f"{name} must be a noise level in (0, 1), the share of noise in x_t, got {wrong[0]} "
            "(an integer time step has no meaning outside its own schedule: sigma = sqrt(1 - alpha_bar[t]))"
        )
