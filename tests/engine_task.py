"""A small task for tests of the engine, and a run of it as a program: `engine_task.py OUT CONFIG`."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interhand_prior.checkpoint import write_checkpoint
from interhand_prior.train.config import TrainConfig
from interhand_prior.train.run import run
from interhand_prior.train.task import Task

CONFIG = TrainConfig(
    steps=20, batch_size=8, lr=1e-2, warmup=3, log_every=5, val_every=10, ema_warmup=2, amp="off", threads=1
)


class NamedSamples(NamedTuple):
    x: Tensor
    y: Tensor


class Line(nn.Module):
    """A line whose samples are centred by a running mean, as batch norm does; one parameter is of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.idle = nn.Parameter(torch.ones(2))
        self.register_buffer("running", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running.lerp_(x.detach().mean(0), 0.1)
        return self.line(x)[:, 0]


class LineTask(Task):
    """Least squares with noise on the samples; 37 of them, so that epochs end within batches."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(37, 3, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(37, generator=generator)
        self.count = 37
        self.facts = {"network": {"width": 3}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.module = Line()

    def to(self, device: torch.device) -> None:
        pass

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 3, generator=generator), torch.rand((), generator=generator).expand(size)

    def loss(self, batch: Any, draws: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (self.x[batch], self.y[batch]) if isinstance(batch, Tensor) else batch
        noise, shift = draws
        return (self.module(x + 0.1 * noise) + 0.1 * shift - y).square().mean()

    def validate(self, average: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"val_error": float((average(self.x) - self.y).square().mean())}

    def keep(self, average: nn.Module, folder: Path, info: dict[str, Any], final: bool) -> None:
        write_checkpoint(folder, info, average.state_dict())


class BatchTask(LineTask):
    """The same task, with samples that are read ahead, and a note of who read which rows with how many threads."""

    def __init__(self, broken_at: int | None = None) -> None:
        super().__init__()
        self.readers: list[tuple[int, Tensor, int]] = []
        self.broken_at = broken_at

    def fetch(self, rows: Tensor) -> NamedSamples:
        if len(self.readers) == self.broken_at:
            raise OSError("unreadable")
        self.readers.append((threading.get_ident(), rows, torch.get_num_threads()))
        return NamedSamples(self.x[rows], self.y[rows])


if __name__ == "__main__":
    print("begins", flush=True)
    run(BatchTask(), TrainConfig(**json.loads(sys.argv[2])), sys.argv[1], resume=True)
