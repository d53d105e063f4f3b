"""A critic: a small network that tells real pairs from corrupted ones, and what its answer means.

    logit = mean over views of  out . silu(W z + b),        z = (evidence - mean) / spread, clipped to [-5, 5]

It is fitted as a classifier, so its logit grows with the likelihood of the evidence under real pairs over that under
corrupted ones, the statistic that separates them best. The logit has no scale of its own: a score is its percentile
among logits of real pairs that the critic was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .quantiles import QUANTILES, quantiles, share_below

__all__ = ["Critic", "fit_critic"]

_HIDDEN = 32
_FOLDS = 3
_EPOCHS, _BATCH, _RATE, _DECAY = 30, 512, 3e-3, 1e-2
_STEPS = (40, 600)  # at least, at most
_CLIP = 5.0


@dataclass(frozen=True)
class Critic:
    """Weights and percentiles, float32.

    Attributes:
        mean, spread: (E,) of the evidence.
        weight: (H, E). bias: (H,). out: (H,).
        table: (..., 101) quantiles of held-out logits; one row for each kind of thing it judges.
    """

    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    table: Tensor

    def check(self, name: str, size: int, kinds: tuple[int, ...]) -> None:
        """Refuse tensors that are no critic of `size` numbers with tables of these kinds.

        Raises:
            ValueError: a shape is wrong, or a value is out of its range.
        """
        hidden = len(self.bias) if self.bias.ndim == 1 else 0
        want = {
            "mean": (size,), "spread": (size,), "weight": (hidden, size), "bias": (hidden,), "out": (hidden,),
            "table": (*kinds, QUANTILES),
        }  # fmt: skip
        for field in fields(self):
            value = getattr(self, field.name)
            if tuple(value.shape) != want[field.name] or not torch.isfinite(value).all():
                raise ValueError(f"critic {name}.{field.name} must be finite, of shape {want[field.name]}, "
                                 f"got {tuple(value.shape)}")  # fmt: skip
        if not ((self.spread > 0).all() and (self.table.diff() >= 0).all()):
            raise ValueError(f"critic {name} must have positive spreads and rising tables")

    def logits(self, evidence: Tensor) -> Tensor:
        """Of (..., views, E): (...); the order of the views does not matter."""
        mean, spread, weight, bias, out = (
            getattr(self, name).to(evidence) for name in ("mean", "spread", "weight", "bias", "out")
        )
        return _logits(((evidence - mean) / spread).clamp(-_CLIP, _CLIP), weight, bias, out)

    def shares(self, evidence: Tensor) -> Tensor:
        """Share of held-out real pairs with a smaller logit, for (..., *kinds, views, E): (..., *kinds) in [0, 1]."""
        return share_below(self.table, self.logits(evidence))


def _logits(z: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    return (F.silu(F.linear(z, weight, bias)) @ out).mean(-1)


def fit_critic(real: Tensor, wrong: Tensor, seed: int, kinds: int = 0) -> Critic:
    """Fit to real and wrong evidence; percentiles by cross-fitting.

    Three critics, each without a third of the pairs, give the logits of that third; the critic that is kept is
    fitted on all. So its table holds logits of pairs that were not fitted on.

    Args:
        real: (N, ..., views, E), N >= 2.
        wrong: (C, N, ..., views, E): corrupted copies of the same pairs. Copies that hold NaN do not count.
        seed: of the weights' start and the order of samples.
        kinds: how many of the axes before the views have a table for each entry; the others share one.

    Returns:
        The critic, on the CPU in float32.
    """
    real, wrong = real.float(), wrong.float()
    # As many steps without a third of the pairs: logits grow with training, and must be on one scale.
    samples = (len(wrong) + 1) * real[..., 0, 0].numel()
    steps = min(max(_EPOCHS * samples // _BATCH, _STEPS[0]), _STEPS[1])
    fold = torch.arange(len(real)) % _FOLDS
    held_out = real.new_empty(real.shape[:-2])
    for index in range(_FOLDS):
        rest, part = fold != index, fold == index
        critic = _fit(real[rest], wrong[:, rest], steps, seed)
        held_out[part] = critic.logits(real[part])
    critic = _fit(real, wrong, steps, seed)
    return replace(critic, table=quantiles(held_out.flatten(0, -1 - kinds)))


def _fit(real: Tensor, wrong: Tensor, steps: int, seed: int) -> Critic:
    """A critic with an empty table."""
    real, wrong = real.reshape(-1, *real.shape[-2:]), wrong.reshape(-1, *wrong.shape[-2:])
    wrong = wrong[~wrong.isnan().any(-1).any(-1)]
    evidence = torch.cat((real, wrong))
    target = (torch.arange(len(evidence)) < len(real)).float()
    # Real and wrong pairs count alike, whatever the number of copies.
    weight = torch.where(target > 0, 0.5 / len(real), 0.5 / max(len(wrong), 1)) * len(evidence)
    spread, mean = torch.std_mean(evidence, (0, 1), correction=0)
    spread = spread.clamp_min(1e-3)
    z = ((evidence - mean) / spread).clamp(-_CLIP, _CLIP)
    draw = torch.Generator().manual_seed(seed)
    size = z.shape[-1]
    parameters = [
        torch.randn(_HIDDEN, size, generator=draw) * size**-0.5,
        torch.zeros(_HIDDEN),
        torch.randn(_HIDDEN, generator=draw) * _HIDDEN**-0.5,
    ]
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
        for _ in range(steps):
            rows = torch.randint(len(z), (min(_BATCH, len(z)),), generator=draw)
            loss = F.binary_cross_entropy_with_logits(_logits(z[rows], *parameters), target[rows], weight[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    first, bias, out = (parameter.detach() for parameter in parameters)
    return Critic(mean, spread, first, bias, out, torch.empty(0))
