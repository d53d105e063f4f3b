"""Runs of several processes, for test_train_distributed: `accelerate launch ... engine_processes.py FOLDER`.

Each process writes what it saw to FOLDER/seen-INDEX.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine_task import CONFIG, BatchTask, LineTask
from helpers import random_pairs
from torch import Tensor

from interhand_prior.denoiser import DenoiserConfig
from interhand_prior.train import TrainingDiverged, train
from interhand_prior.train.distributed import launched
from interhand_prior.train.run import run
from interhand_prior.train.trainer import Trainer

TINY = DenoiserConfig(embed=16, hidden=24, heads=2, layers=2)
TINY_CONFIG = dataclasses.replace(CONFIG, steps=10, accumulate=2, batch_size=4, lr=1e-3)
TIMED = dataclasses.replace(CONFIG, steps=None, minutes=0.005)


class PickyTask(BatchTask):
    """One parameter is used by the samples of the second process alone, which are never finite if `broken`."""

    def __init__(self, index: int, broken: bool = False) -> None:
        super().__init__()
        self.index, self.broken = index, broken

    def loss(self, batch: Any, draws: tuple[Tensor, Tensor]) -> Tensor:
        loss = super().loss(batch, draws)
        if self.index == 1:
            loss = loss + self.module.idle.square().sum()
        return loss * float("nan") if self.index == 1 and self.broken else loss


def stop_in(process: int, index: int, step: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) >= step and index == process


def main(folder: Path) -> None:
    index = int(os.environ["RANK"])
    seen: dict[str, Any] = {"count": launched("cpu").count, "threads": torch.get_num_threads()}
    run(LineTask(), CONFIG, folder / "whole")
    run(BatchTask(), CONFIG, folder / "parts", should_stop=stop_in(1, index, 7))
    run(BatchTask(), CONFIG, folder / "parts", resume=True)

    steps: list[int] = []
    real = Trainer.step
    Trainer.step = lambda self: (steps.append(self.step_count), real(self))[1]  # type: ignore[method-assign]
    run(LineTask(), TIMED, folder / "timed")
    Trainer.step = real  # type: ignore[method-assign]
    seen["timed"] = len(steps)

    task = PickyTask(index)
    run(task, CONFIG, folder / "picky")
    seen["idle"] = task.module.idle.tolist()
    try:
        run(PickyTask(index, broken=True), CONFIG, folder / "broken")
    except TrainingDiverged as error:
        seen["broken"] = str(error)

    prior = train(random_pairs(60, dtype=torch.float32), TINY_CONFIG, folder / "prior", network=TINY)
    seen["prior"] = float(sum(value.double().sum() for value in prior.denoiser.state_dict().values()))
    (folder / f"seen-{index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
