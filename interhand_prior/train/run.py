"""`run`: a whole run of any task in a folder.

RUN/config.json   the settings, for `--config`
RUN/state/        the last state (safetensors and JSON; see Trainer.save), replaced atomically
RUN/log.csv       a row per `log_every` steps and per validation (see `log`)
RUN/RESULT/       the averaged weights, written at every validation and at the end, in the task's own folder: `prior`
                  for a prior that `load_prior` reads

Of several processes only the main one writes. On several machines the folder must be one that all of them see.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .._version import __version__
from ..canonical import Normalizer
from ..checkpoint import read_checkpoint
from ..files import write_atomically
from ..params import TwoHands
from .config import TrainConfig
from .distributed import Processes, launched
from .log import Log
from .task import Task
from .trainer import STATE_KIND, Trainer

__all__ = ["first_pairs", "refuse_start", "run", "stored_normalizer"]

Evaluate = Callable[[nn.Module], dict[str, float]]


def run(
    task: Task,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    evaluate: Evaluate | None = None,
    processes: Processes | None = None,
) -> None:
    """Train whatever `task` describes, or go on training it; the result is stored in `out / task.result`.

    Args:
        task: see `Task`.
        config: settings; `steps` or `minutes` says when to end.
        out: folder of the run, made if missing.
        resume: go on from the state in `out`; without one, start anew.
        progress: show a progress bar.
        should_stop: asked after each step; when it says yes, in any process, the state is saved and the run stops.
        evaluate: called at validations with the averaged module; gives more numbers for the log.
        processes: those that train together. Default: as the launcher of `accelerate` started them, or this one.

    Raises:
        ValueError, FileExistsError, CheckpointError, TrainingDiverged: see `train`.
        ImportError: several processes without `accelerate`, or TensorBoard, are wanted and missing.
    """
    out = Path(out)
    processes = processes or launched(config.device)
    refuse_start(out, resume)
    state = out / "state"
    with threads(config.threads):
        trainer = Trainer(task, config, processes)
        try:
            if state.exists():
                trainer.load(state)
            loop = _Loop(trainer, out, should_stop, evaluate)
            try:
                loop(progress and processes.is_main)
            finally:
                loop.close()
            loop.keep(final=True)
            processes.wait()
        finally:
            trainer.close()


def refuse_start(out: Path, resume: bool) -> None:
    """Raise FileExistsError if `out` holds a run that is not to be resumed."""
    if (out / "state").exists() and not resume:
        raise FileExistsError(f"{out} holds a run already. Pass resume=True (--resume) to go on, or another folder.")


def stored_normalizer(out: Path) -> Normalizer | None:
    """That of the run in `out` to resume: fitted again, it could differ in the last bit on another machine."""
    state = out / "state"
    if not state.exists():
        return None
    config, _ = read_checkpoint(state, kind=STATE_KIND)
    return Normalizer(*(torch.tensor(values) for values in config["facts"]["normalizer"]))


def first_pairs(pairs: list[TwoHands], count: int) -> list[TwoHands]:
    """The first `count` pairs of several batches."""
    taken: list[TwoHands] = []
    for part in pairs:
        if count > 0:
            taken.append(part[:count])
            count -= len(taken[-1])
    return taken


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """That many CPU threads; None: as many as there are."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Loop:
    """Steps until the end, or until a process is asked to stop, with all that happens now and then."""

    def __init__(self, trainer: Trainer, out: Path, should_stop: Callable[[], bool], evaluate: Evaluate | None) -> None:
        self.trainer = trainer
        self.out = out
        self.should_stop = should_stop
        self.evaluate = evaluate
        self.log: Log | None = None
        if trainer.processes.is_main:
            out.mkdir(parents=True, exist_ok=True)
            self.log = Log(out, trainer.step_count, tensorboard=trainer.config.tensorboard)
            facts = trainer.config.as_dict()
            if "network" in trainer.task.facts:
                facts["network"] = trainer.task.facts["network"]
            write_atomically(out / "config.json", (json.dumps(facts, indent=2) + "\n").encode())

    @property
    def share(self) -> float:
        """Share of the run that is over."""
        return self.trainer.config.progress(self.trainer.step_count, self.trainer.seconds)

    def __call__(self, progress: bool) -> None:
        trainer, config = self.trainer, self.trainer.config
        begun = time.monotonic() - trainer.seconds
        saved = logged = time.monotonic()
        total, count = torch.zeros((), device=trainer.device), 0
        stop, _ = trainer.processes.agree(self.share < 1 and self.should_stop(), 0.0)
        with _bar(progress, self.share) as advance:
            while self.share < 1 and not stop:
                total += trainer.step()
                count += 1
                now = time.monotonic()
                stop, trainer.seconds = trainer.processes.agree(self.should_stop(), now - begun)
                over = self.share >= 1
                if trainer.step_count % config.log_every == 0 or over:
                    trainer.require_finite(total)
                    line = {
                        "loss": float(total) / count,
                        "lr": trainer.rate,
                        "steps_per_second": count / (now - logged),
                    }
                    self.write(line)
                    total.zero_()
                    logged, count = now, 0
                    advance(self.share, line)
                if trainer.step_count % config.val_every == 0 or over:
                    self.validate()
                    logged += time.monotonic() - now
                if time.monotonic() - saved >= 60 * config.save_minutes or over:
                    self.save()
                    saved = time.monotonic()
            if self.share < 1:
                self.save()

    def write(self, numbers: dict[str, float]) -> None:
        """Put numbers into the log, if there are any."""
        if self.log is not None and numbers:
            self.log.write(self.trainer.step_count, self.trainer.seconds, numbers)

    def save(self) -> None:
        """Store the state."""
        if self.log is not None:
            self.trainer.save(self.out / "state")

    def validate(self) -> None:
        """Log the validation, and store the result so far."""
        trainer = self.trainer
        if trainer.processes.is_main:
            numbers = trainer.task.validate(trainer.average)
            if self.evaluate is not None:
                numbers = numbers | self.evaluate(trainer.average)
            self.write(numbers)
            self.keep(final=False)
        trainer.processes.wait()

    def keep(self, final: bool) -> None:
        """Store the result."""
        trainer = self.trainer
        if self.log is not None:
            info = {
                "interhand_prior": __version__,
                "seed": trainer.config.seed,
                "steps": trainer.step_count,
                "batch": trainer.size,
                "hours": round(trainer.seconds / 3600, 3),
                "complete": self.share >= 1,
                "config": trainer.config.as_dict(),
                "validation": self.log.last_validation(),
            }
            trainer.task.keep(trainer.average, self.out / trainer.task.result, info, final)

    def close(self) -> None:
        """Finish the log."""
        if self.log is not None:
            self.log.close()


@contextmanager
def _bar(show: bool, start: float) -> Iterator[Callable[[float, dict[str, float]], None]]:
    """A progress bar in thousandths of the run, since its end may be a time."""
    if not show:
        yield lambda share, line: None
        return
    from tqdm import tqdm

    layout = "{percentage:5.1f} % |{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1000, initial=int(1000 * start), bar_format=layout) as bar:

        def advance(share: float, line: dict[str, float]) -> None:
            bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['steps_per_second']:.1f} steps/s", refresh=False)
            bar.update(int(1000 * share) - bar.n)

        yield advance
