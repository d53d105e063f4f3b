"""One training run, step by step, of whatever a Task describes.

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
from .config import TrainConfig
from .task import Task

__all__ = ["STATE_KIND", "Trainer", "TrainingDiverged", "computes_in_bfloat16"]

STATE_KIND = "training state"


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite; the last saved state is from before that."""


class Trainer:
    """Weights, their average, the optimiser and the position of a run.

    Args:
        task: its module is trained in place, on `config.device`.
        config: settings.
    """

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.task = task
        self.config = config
        self.device = torch.device(config.device)
        task.to(self.device)
        self.module = task.module.to(self.device, torch.float32).train().requires_grad_(True)
        self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.parameters: list[Tensor] = list(self.module.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.buffers = list(zip(self.average.buffers(), self.module.buffers(), strict=True))
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
            for kept, current in self.buffers:
                kept.copy_(current)
        self.step_count += 1
        return loss

    def loss(self, rows: Tensor) -> Tensor:
        """The task's loss on the samples `rows` (B,)."""
        with self._autocast():
            return self.task.loss(rows, self.generator)

    def require_finite(self, loss: Tensor) -> None:
        """Raise TrainingDiverged if the loss is NaN or infinite."""
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {float(loss)} at step {self.step_count}. The last saved state is intact. Lower lr"
                f" (now {self.config.lr}) or clip (now {self.config.clip}), or look for outliers in the pairs."
            )

    def save(self, folder: Path) -> None:
        """Write the state of the run, atomically.

        Args:
            folder: for this state only.
        """
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        tensors |= {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, state in zip(self.names, self._moments(), strict=True):
            tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
        position = {"step": self.step_count, "seconds": self.seconds}
        config = {"train": self.config.as_dict(), "position": position, "facts": self.task.facts}
        write_checkpoint(folder, config, tensors, kind=STATE_KIND)

    def load(self, folder: Path) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: it is damaged, or belongs to a run with other settings, data or network.
        """
        stored, tensors = read_checkpoint(folder, kind=STATE_KIND)
        differences = self.config.differences(stored["train"])
        differences |= {
            k: (stored["facts"].get(k), v) for k, v in self.task.facts.items() if stored["facts"].get(k) != v
        }
        if differences:
            listed = "; ".join(f"{k} was {old!r}, is {new!r}" for k, (old, new) in differences.items())
            raise CheckpointError(
                f"{folder} belongs to another run: {listed}. Give the same settings and data, or another --out."
            )
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            self.module.load_state_dict(part("module."))
            self.average.load_state_dict(part("average."))
            # By index: a parameter that has had no gradient yet has no moments, and the next one's are not its own.
            moments = {
                index: {k: tensors[f"optimizer.{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")}
                for index, name in enumerate(self.names)
                if f"optimizer.step.{name}" in tensors
            }
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder} does not fit this network ({error}). Give another --out.") from error
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.step_count = int(stored["position"]["step"])
        self.seconds = float(stored["position"]["seconds"])

    def _moments(self) -> Iterator[dict[str, Tensor]]:
        return (self.optimizer.state.get(parameter, {}) for parameter in self.parameters)

    def _next_rows(self) -> Tensor:
        """Rows of this step: epochs without replacement, their order a function of the seed and the epoch alone."""
        size, count = self.config.batch_size, self.task.count
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
            order = torch.randperm(self.task.count, generator=shuffler)
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
