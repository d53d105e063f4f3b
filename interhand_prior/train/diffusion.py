"""The task of Algorithm 1: one denoiser for p(x_r), p(x_r | x_l), and a hand alone.

    x_r, x_l   from the pairs or from their mirror images                       (line 2; see data.py)
    x_l = none with probability p_uncond; then alone, too, with p_alone of it   (line 3)
    x_t = sqrt(alpha_bar) x_r + sigma eps,     eps ~ N(0, I)                    (lines 4-5, Eq. 3)
    loss = |x_r - D(x_t, x_l, sigma)|^2 / sigma^2                               (line 6)

The weight 1 / sigma^2 is the preconditioner's: with D = sqrt(alpha_bar) x_t + sigma F the loss is |F_target - F|^2,
of unit weight at every level. Without an anchor the target is the whole partner, its relative pose included, so
that p(x_r) is the marginal of p(x_r | x_l) and the two fit together in classifier-free guidance (Eq. 4). A hand alone
has no relative pose: the network does not see one and owes none. Hands that the data shows alone are always such.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..canonical import SLICES, Normalizer, without_place
from ..denoiser import ConditionalDenoiser
from ..hands import HandPair
from ..networks import network_facts
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..schedule import Schedule, add_noise
from .config import TrainConfig
from .data import Batch, Samples
from .task import Task
from .validation import validate

__all__ = ["DiffusionTask", "Draws", "diffusion_draws", "diffusion_loss", "fresh"]

Module = TypeVar("Module", bound=nn.Module)


class Draws(NamedTuple):
    """Everything random about B samples.

    Attributes:
        sigma: (B,) levels.
        keep: (B,) uniform on [0, 1): below p_uncond the anchor is withheld.
        noise: (B, D) standard normal.
    """

    sigma: Tensor
    keep: Tensor
    noise: Tensor


def diffusion_draws(
    size: int, width: int, schedule: Schedule, *, min_sigma: float, generator: torch.Generator, levels: str = "uniform"
) -> Draws:
    """Levels, dropout and noise for `size` samples of `width` entries, on the generator's device.

    `levels` is TrainConfig's: the density of the time axis is 1 or, "middle", 1 - cos(2 pi u) / 2.
    """
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    # One level in each B-th of the time axis (the rows are in random order already): the same distribution as
    # independent draws, and a less noisy gradient.
    u = (torch.arange(1, size + 1, device=generator.device) - torch.rand(size, **options)) / size
    if levels == "middle":
        u = middle(u)
    sigma = schedule.sigma(u).clamp_min(min_sigma)
    return Draws(sigma, torch.rand(size, **options), torch.randn(size, width, **options))


def middle(share: Tensor) -> Tensor:
    """Where on [0, 1] the integral of the density 1 - cos(2 pi u) / 2 reaches `share`, in its shape."""
    u = share.clone()
    for _ in range(20):  # Newton's method; the slope is at least a half and at most one and a half
        u = u - (u - torch.sin(2 * torch.pi * u) / (4 * torch.pi) - share) / (1 - torch.cos(2 * torch.pi * u) / 2)
    return u.clamp(0, 1)


def diffusion_loss(estimate: Tensor, x0: Tensor, unit: Tensor) -> Tensor:
    """Line 6 of Algorithm 1: the mean over samples and entries, ().

    Args:
        estimate: (B, D) of the clean vectors.
        x0: (B, D) clean vectors; equal to the estimate where nothing is owed.
        unit: (B,) what errors are measured in; sigma for line 6.
    """
    return ((estimate.float() - x0) / unit[:, None]).square().mean()


class DiffusionTask(Task):
    """Training of a TwoHandPrior.

    Args:
        denoiser: with the call of a ConditionalDenoiser.
        normalizer: of the vectors.
        schedule: of the levels.
        samples: to train on.
        val_samples: to validate on; None: nothing.
        config: settings.
        held_out: pairs that the result is calibrated on; may be empty.
        hands: hand models that the pairs belong to.
        info: facts for the stored prior, JSON values.

    Raises:
        ValueError: there are fewer than two samples; there are hands alone, which the network does not learn.
    """

    result = "prior"

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        normalizer: Normalizer,
        schedule: Schedule,
        samples: Samples,
        val_samples: Samples | None,
        config: TrainConfig,
        *,
        held_out: Sequence[TwoHands] = (),
        hands: HandPair | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        if samples.count < 2:
            raise ValueError(f"pairs: at least 2 training pairs are needed, got {samples.count}")
        if samples.singles and not denoiser.config.alone:
            raise ValueError(
                f"pairs: {samples.singles} samples are hands alone, which this network does not learn. Leave them out,"
                " or choose a network with alone=True."
            )
        self.module: ConditionalDenoiser = denoiser
        self.normalizer = normalizer
        self.schedule = schedule
        self.config = config
        self.hands = hands
        self.held_out = held_out
        self.samples = samples
        self.count = samples.count
        self.info = {**(info or {}), "samples": samples.count}
        self.val_batch = None if val_samples is None else self._normalised(val_samples, torch.arange(val_samples.count))
        self.facts = {
            "pairs": samples.fingerprint,
            "network": network_facts(denoiser.config),
            "schedule": schedule.facts(),
            "normalizer": [normalizer.mean.tolist(), normalizer.std.tolist()],
        }

    def to(self, device: torch.device) -> None:
        """Move the validation samples; those to train on come from `fetch`."""
        if self.val_batch is not None:
            self.val_batch = Batch(*(value.to(device) for value in self.val_batch))

    def fetch(self, rows: Tensor) -> Batch:
        """Samples, normalised; what a sample does not have is zero."""
        return self._normalised(self.samples, rows)

    def _normalised(self, samples: Samples, rows: Tensor) -> Batch:
        batch = samples.fetch(rows)
        anchor = torch.where(batch.has_anchor[:, None], self.normalizer.anchor(batch.anchor), 0)
        partner = self.normalizer.partner(batch.partner)
        return batch._replace(anchor=anchor, partner=without_place(partner, batch.has_relative))

    def draw(self, size: int, generator: torch.Generator) -> Draws:
        """See `diffusion_draws`."""
        width = self.module.config.size
        return diffusion_draws(
            size, width, self.schedule, min_sigma=self.config.min_sigma, levels=self.config.levels, generator=generator
        )

    def loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Algorithm 1."""
        x0 = batch.partner
        has_anchor = batch.has_anchor & (draws.keep >= self.config.p_uncond)
        has_relative = None
        if self.module.config.alone:
            has_relative = batch.has_relative & (draws.keep >= self.config.p_uncond * self.config.p_alone)
            x0 = without_place(x0, has_relative)
        x_t = add_noise(x0, draws.noise, draws.sigma)
        estimate = self.module(x_t, draws.sigma, batch.anchor, has_anchor, has_relative)
        return diffusion_loss(estimate, x0, self.error_unit(draws.sigma))

    def error_unit(self, sigma: Tensor) -> Tensor:
        """What errors at the levels (B,) are measured in: sigma, which weighs them by 1 / sigma^2."""
        return sigma

    def validate(self, average: nn.Module) -> dict[str, float]:
        """See `validation.validate`."""
        if self.val_batch is None or not len(self.val_batch.partner):
            return {}
        std = self.normalizer.std[SLICES["transl"]]
        return validate(average, self.val_batch, std, alone=self.module.config.alone)

    def keep(self, average: nn.Module, folder: Path, info: dict[str, Any], final: bool) -> None:
        """Store the prior; at the end with a calibration."""
        prior = self.prior(average)
        prior.info |= info
        # One calibration is for one hand model: the first one's pairs.
        alike = [part for part in self.held_out if part.hands is self.held_out[0].hands]
        if final and sum(map(len, alike)) >= 2:
            prior.calibrate(TwoHands.cat([part.to(torch.float32) for part in alike]))
        self.store(prior, folder)

    def prior(self, average: nn.Module) -> TwoHandPrior:
        """The averaged weights as a prior, on the CPU."""
        denoiser: Any = copy.deepcopy(average).cpu()
        return TwoHandPrior(denoiser, self.normalizer, self.schedule, hands=self.hands, info=self.info)

    def store(self, prior: TwoHandPrior, folder: Path) -> None:
        """Write the finished prior."""
        prior.save_pretrained(folder, dtype=getattr(torch, self.config.weights))


def fresh(make: Callable[[], Module], seed: int) -> Module:
    """A network with fresh weights from `seed`; torch's own generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
