"""The task of Algorithm 1: one denoiser for p(x_r) and p(x_r | x_l).

    x_r, x_l   from the pairs or from their mirror images                       (line 2; see data.py)
    x_l = none with probability p_uncond                                        (line 3)
    x_t = sqrt(alpha_bar) x_r + sigma eps,     eps ~ N(0, I)                    (lines 4-5, Eq. 3)
    loss = |x_r - D(x_t, x_l, sigma)|^2 / sigma^2                               (line 6)

The weight 1 / sigma^2 is the preconditioner's: with D = sqrt(alpha_bar) x_t + sigma F the loss is |F_target - F|^2,
of unit weight at every level. Without an anchor the target is the whole partner, its relative pose included, so
that p(x_r) is the marginal of p(x_r | x_l) and the two fit together in classifier-free guidance (Eq. 4); whoever
draws an anchor from p(x_r) drops its pose.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..canonical import SLICES, Normalizer
from ..denoiser import Denoiser
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..schedule import CosineSchedule, add_noise
from .config import TrainConfig
from .data import Vectors, fingerprint, to_vectors
from .task import Task
from .validation import validate

__all__ = ["DiffusionTask", "diffusion_loss", "fresh", "training_vectors"]

Estimator = Callable[..., Tensor]
Module = TypeVar("Module", bound=nn.Module)


def diffusion_loss(
    denoiser: Estimator,
    schedule: CosineSchedule,
    x0: Tensor,
    anchor: Tensor | None,
    *,
    p_uncond: float,
    min_sigma: float,
    generator: torch.Generator,
) -> Tensor:
    """The loss of Algorithm 1; draws levels, dropout and noise.

    Args:
        denoiser: called as `denoiser(x_t, sigma, anchor, has_anchor)`, or `denoiser(x_t, sigma)` without anchors.
        schedule: of the levels.
        x0: (B, D) normalised clean vectors.
        anchor: (B, 64) normalised, or None: nothing is conditioned on.
        p_uncond: probability that a sample's anchor is withheld.
        min_sigma: lowest level drawn.
        generator: on x0's device.

    Returns:
        ().
    """
    size = len(x0)
    options: dict[str, Any] = {"generator": generator, "device": x0.device}
    # One level in each B-th of the time axis (the rows are in random order already): the same distribution as
    # independent draws, and a less noisy gradient.
    u = (torch.arange(1, size + 1, device=x0.device) - torch.rand(size, **options)) / size
    sigma = schedule.sigma(u).clamp_min(min_sigma)
    condition: tuple[Tensor, ...] = ()
    if anchor is not None:
        condition = (anchor, torch.rand(size, **options) >= p_uncond)
    x_t = add_noise(x0, torch.randn(x0.shape, **options), sigma)
    estimate = denoiser(x_t, sigma, *condition)
    return ((estimate.float() - x0) / sigma[:, None]).square().mean()


class DiffusionTask(Task):
    """Training of a TwoHandPrior.

    Args:
        denoiser: a Denoiser, or a module with the same call and a dataclass as `config`.
        normalizer: of the vectors.
        schedule: of the levels.
        pairs: training pairs.
        held_out: validation pairs, also those that the result is calibrated on; may be empty.
        config: settings.
        info: facts for the stored prior, JSON values.
        vectors: those of `pairs` if they are known already.

    Raises:
        ValueError: the pairs hold NaN, are not in metres or are too few.
    """

    result = "prior"

    def __init__(
        self,
        denoiser: Denoiser,
        normalizer: Normalizer,
        schedule: CosineSchedule,
        pairs: list[TwoHands],
        held_out: list[TwoHands],
        config: TrainConfig,
        *,
        info: dict[str, Any] | None = None,
        vectors: Vectors | None = None,
    ) -> None:
        self.module = denoiser
        self.normalizer = normalizer
        self.schedule = schedule
        self.config = config
        self.hands = pairs[0].hands
        self.held_out = held_out
        self.info = {**(info or {}), "pairs": sum(map(len, pairs))}
        self.anchor, self.partner = _normalised(vectors or training_vectors(pairs, config), normalizer)
        self.val_anchor, self.val_partner = _normalised(to_vectors(held_out, mirror=True, name="val_pairs"), normalizer)
        self.count = len(self.partner)
        self.facts = {
            "pairs": fingerprint(pairs),
            "network": dataclasses.asdict(denoiser.config),
            "min_alpha_bar": schedule.min_alpha_bar,
            "normalizer": [normalizer.mean.tolist(), normalizer.std.tolist()],
        }

    def to(self, device: torch.device) -> None:
        """Move the vectors."""
        for name in ("anchor", "partner", "val_anchor", "val_partner"):
            setattr(self, name, getattr(self, name).to(device))

    def loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Algorithm 1."""
        return diffusion_loss(
            self.module,
            self.schedule,
            self.partner[rows],
            self.anchor[rows],
            p_uncond=self.config.p_uncond,
            min_sigma=self.config.min_sigma,
            generator=generator,
        )

    def validate(self, average: nn.Module) -> dict[str, float]:
        """See `validation.validate`."""
        if not len(self.val_partner):
            return {}
        std = self.normalizer.std[SLICES["transl"]]
        return validate(cast(Denoiser, average), self.val_anchor, self.val_partner, std)

    def keep(self, average: nn.Module, folder: Path, info: dict[str, Any], final: bool) -> None:
        """Store the prior; at the end with a calibration."""
        prior = TwoHandPrior(
            copy.deepcopy(cast(Denoiser, average)).cpu(),
            self.normalizer,
            self.schedule,
            hands=self.hands,
            info={**self.info, **info},
        )
        # One calibration is for one hand model: the first one's pairs.
        alike = [part for part in self.held_out if part.hands is self.held_out[0].hands]
        if final and sum(map(len, alike)) >= 2:
            prior.calibrate(TwoHands.cat([part.to(torch.float32) for part in alike]))
        self.store(prior, folder)

    def store(self, prior: TwoHandPrior, folder: Path) -> None:
        """Write the finished prior."""
        prior.save_pretrained(folder, dtype=getattr(torch, self.config.weights))


def training_vectors(pairs: list[TwoHands], config: TrainConfig) -> Vectors:
    """The vectors to train on.

    Raises:
        ValueError: there are fewer than two, or see `to_vectors`.
    """
    vectors = to_vectors(pairs, mirror=config.mirror, name="pairs")
    if len(vectors) < 2:
        raise ValueError(f"pairs: at least 2 training pairs are needed, got {len(vectors)}")
    return vectors


def fresh(make: Callable[[], Module], seed: int) -> Module:
    """A network with fresh weights from `seed`; torch's own generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _normalised(vectors: Vectors, normalizer: Normalizer) -> tuple[Tensor, Tensor]:
    return normalizer.anchor(vectors.anchor), normalizer.partner(vectors.partner)
