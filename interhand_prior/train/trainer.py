"""One training run, step by step, of whatever a Task describes.

Everything random in a step comes from one generator, and the order of samples from the seed and the epoch's number.
So the weights, their average, AdamW's moments, the generator's state and the step are the whole state of a run, and
a run that was stopped goes on bit by bit as if it had not been.

A step's global batch is processes x accumulate x batch_size samples. Every process draws what is random for all of
them, as a single one would, and uses its own rows.
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
from .distributed import Processes
from .prefetch import Prefetch, RowOrder
from .task import Task, map_tensors

__all__ = ["STATE_KIND", "Trainer", "TrainingDiverged", "computes_in_bfloat16"]

STATE_KIND = "training state"


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite; the last saved state is from before that."""


class Trainer:
    """Weights, their average, the optimiser and the position of a run.

    Args:
        task: its module is trained in place, on the device of this process.
        config: settings.
        processes: those that take each step together; None: this one alone, on `config.device`.
    """

    def __init__(self, task: Task, config: TrainConfig, processes: Processes | None = None) -> None:
        self.task = task
        self.config = config
        self.processes = processes or Processes(torch.device(config.device))
        self.device = self.processes.device
        task.to(self.device)
        self.module = task.module.to(self.device, torch.float32).train().requires_grad_(True)
        self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.parameters: list[Tensor] = list(self.module.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.buffers = list(zip(self.average.buffers(), self.module.buffers(), strict=True))
        self.statistics = [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.bfloat16 = config.amp == "on" or (config.amp == "auto" and computes_in_bfloat16(self.device))
        if config.compile:
            self.module.compile()  # in place: the names in the state dict stay what they are
        self.size = self.processes.count * config.accumulate * config.batch_size
        self.share = self.processes.share(self.size)
        order = RowOrder(task.count, self.size, config.seed)
        self.samples = Prefetch(task, order, self.share, pin=self.device.type == "cuda")
        self.step_count = 0
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.rate(self.step_count, self.config.progress(self.step_count, self.seconds))

    def step(self) -> Tensor:
        """One gradient step on a global batch.

        Returns:
            Its loss, (), detached.

        Raises:
            TrainingDiverged: it is not finite (looked at on the CPU only; elsewhere the caller looks now and then).
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradient()
        self.processes.average(self.parameters, [loss, *self.statistics])
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        if self.device.type == "cpu":
            self.require_finite(loss)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - config.decay(self.step_count))
            for kept, current in self.buffers:
                kept.copy_(current)
        self.step_count += 1
        return loss

    def loss(self, batch: Any, draws: Any) -> Tensor:
        """The task's loss, (), in the run's precision."""
        with self._autocast():
            return self.task.loss(batch, draws)

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
        position = {"step": self.step_count, "seconds": self.seconds, "batch": self.size}
        config = {"train": self.config.as_dict(), "position": position, "facts": self.task.facts}
        write_checkpoint(folder, config, tensors, kind=STATE_KIND)

    def load(self, folder: Path) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: it is damaged, or belongs to a run with other settings, data or network, or another
                size of the global batch.
        """
        stored, tensors = read_checkpoint(folder, kind=STATE_KIND)
        differences = self.config.differences(stored["train"])
        facts = {"processes x accumulate x batch_size": self.size, **self.task.facts}
        old_facts = {"processes x accumulate x batch_size": stored["position"].get("batch"), **stored["facts"]}
        differences |= {k: (old_facts.get(k), v) for k, v in facts.items() if old_facts.get(k) != v}
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

    def close(self) -> None:
        """End the thread that reads samples."""
        self.samples.close()

    def _gradient(self) -> Tensor:
        """Add the gradient of this process's share of the global batch, part by part; its loss."""
        config = self.config
        move = lambda value: value.to(self.device, non_blocking=True)
        batch = map_tensors(move, self.samples(self.step_count))
        draws = _cut(self.task.draw(self.size, self.generator), self.share)
        total = torch.zeros((), device=self.device)
        for start in range(0, config.accumulate * config.batch_size, config.batch_size):
            rows = slice(start, start + config.batch_size)
            loss = self.loss(_cut(batch, rows), _cut(draws, rows))
            (loss / config.accumulate).backward()
            total += loss.detach() / config.accumulate
        return total

    def _moments(self) -> Iterator[dict[str, Tensor]]:
        return (self.optimizer.state.get(parameter, {}) for parameter in self.parameters)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _cut(tree: Any, rows: slice) -> Any:
    return map_tensors(lambda value: value[rows], tree)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16; where it is emulated, autocast is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False
