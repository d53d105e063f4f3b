"""One training run (paper Algorithm 1).

    repeat
        x_r, x_l   from the pairs or from their mirror images                       (line 2; see data.py)
        x_l = none with probability p_uncond                                        (line 3)
        x_t = sqrt(alpha_bar) x_r + sigma eps,     eps ~ N(0, I)                    (lines 4-5, Eq. 3)
        gradient step on |x_r - D(x_t, x_l, sigma)|^2 / sigma^2                     (line 6)

The weight 1 / sigma^2 is the preconditioner's: with D = sqrt(alpha_bar) x_t + sigma F the loss is |F_target - F|^2,
of unit weight at every level. Without an anchor the target is the whole partner, its relative pose included, so
that p(x_r) is the marginal of p(x_r | x_l) and the two fit together in classifier-free guidance (Eq. 4); whoever
draws an anchor from p(x_r) drops its pose.

Everything random in a step comes from one generator, and the order of samples from the seed and the epoch's number.
So the weights, their average, AdamW's moments, the generator's state and the step are the whole state of a run, and
a run that was stopped goes on bit by bit as if it had not been.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..denoiser import Denoiser
from ..schedule import CosineSchedule, add_noise
from .config import TrainConfig

__all__ = ["STATE_KIND", "Trainer", "TrainingDiverged", "computes_in_bfloat16"]

STATE_KIND = "training state"


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite; the last saved state is from before that."""


class Trainer:
    """Weights, their average, the optimiser and the position of a run.

    Args:
        denoiser: trained in place, on `config.device`.
        schedule: the noise levels.
        anchor: (N, 64) normalised anchors.
        partner: (N, 64) normalised partners.
        config: settings.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: CosineSchedule,
        anchor: Tensor,
        partner: Tensor,
        config: TrainConfig,
    ) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.denoiser = denoiser.to(self.device, torch.float32).train().requires_grad_(True)
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.schedule = schedule
        self.anchor = anchor.to(self.device)
        self.partner = partner.to(self.device)
        self.names = [name for name, _ in self.denoiser.named_parameters()]
        self.parameters: list[Tensor] = list(self.denoiser.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.bfloat16 = config.amp == "on" or (config.amp == "auto" and computes_in_bfloat16(self.device))
        self.step_count = 0
        self.seconds = 0.0
        self._order: tuple[int, Tensor] | None = None

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.rate(self.step_count, self.config.progress(self.step_count, self.seconds))

    def step(self) -> Tensor:
        """One gradient step.

        Returns:
            The loss, (), detached.

        Raises:
            TrainingDiverged: it is not finite (looked at on the CPU only; elsewhere the caller looks now and then).
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        loss = self.loss(self._next_rows())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        loss = loss.detach()
        if self.device.type == "cpu":
            self.require_finite(loss)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - config.decay(self.step_count))
        self.step_count += 1
        return loss

    def loss(self, rows: Tensor) -> Tensor:
        """The loss of Algorithm 1 on the samples `rows` (B,); draws levels, noise and dropout."""
        config, size = self.config, len(rows)
        options: dict[str, Any] = {"generator": self.generator, "device": self.device}
        x0, anchor = self.partner[rows], self.anchor[rows]
        # One level in each B-th of the time axis (the rows are in random order already): the same distribution as
        # independent draws, and a less noisy gradient.
        u = (torch.arange(1, size + 1, device=self.device) - torch.rand(size, **options)) / size
        sigma = self.schedule.sigma(u).clamp_min(config.min_sigma)
        has_anchor = torch.rand(size, **options) >= config.p_uncond
        x_t = add_noise(x0, torch.randn(x0.shape, **options), sigma)
        with self._autocast():
            estimate = self.denoiser(x_t, sigma, anchor, has_anchor)
        return ((estimate.float() - x0) / sigma[:, None]).square().mean()

    def require_finite(self, loss: Tensor) -> None:
        """Raise TrainingDiverged if the loss is NaN or infinite."""
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {float(loss)} at step {self.step_count}. The last saved state is intact. Lower lr"
                f" (now {self.config.lr}) or clip (now {self.config.clip}), or look for outliers in the pairs."
            )

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the state of the run, atomically.

        Args:
            folder: for this state only.
            facts: JSON values that must be the same at the resumption (the data's fingerprint, say).
        """
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        tensors |= {f"denoiser.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, state in zip(self.names, self._moments(), strict=True):
            tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
        position = {"step": self.step_count, "seconds": self.seconds}
        config = {"train": self.config.as_dict(), "position": position, "facts": facts}
        write_checkpoint(folder, config, tensors, kind=STATE_KIND)

    def load(self, folder: Path, facts: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: it is damaged, or belongs to a run with other settings, data or network.
        """
        stored, tensors = read_checkpoint(folder, kind=STATE_KIND)
        differences = self.config.differences(stored["train"])
        differences |= {k: (stored["facts"].get(k), v) for k, v in facts.items() if stored["facts"].get(k) != v}
        if differences:
            listed = "; ".join(f"{k} was {old!r}, is {new!r}" for k, (old, new) in differences.items())
            raise CheckpointError(
                f"{folder} belongs to another run: {listed}. Give the same settings and data, or another --out."
            )
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            self.denoiser.load_state_dict(part("denoiser."))
            self.average.load_state_dict(part("average."))
            moments = [
                {k: tensors[f"optimizer.{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")}
                for name in self.names
                if f"optimizer.step.{name}" in tensors
            ]
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder} does not fit this network ({error}). Give another --out.") from error
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.step_count = int(stored["position"]["step"])
        self.seconds = float(stored["position"]["seconds"])

    def _moments(self) -> Iterator[dict[str, Tensor]]:
        return (self.optimizer.state.get(parameter, {}) for parameter in self.parameters)

    def _next_rows(self) -> Tensor:
        """Rows of this step: epochs without replacement, their order a function of the seed and the epoch alone."""
        size, count = self.config.batch_size, len(self.partner)
        first = self.step_count * size
        parts = []
        while size:
            epoch, start = divmod(first, count)
            taken = self._epoch(epoch)[start : start + size]
            parts.append(taken)
            first, size = first + len(taken), size - len(taken)
        return torch.cat(parts)

    def _epoch(self, number: int) -> Tensor:
        if self._order is None or self._order[0] != number:
            shuffler = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
            order = torch.randperm(len(self.partner), generator=shuffler)
            self._order = number, order.to(self.device)
        return self._order[1]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16; where it is emulated, autocast is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False
