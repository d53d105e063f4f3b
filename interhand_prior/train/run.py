"""`run`: a whole run of any task in a folder. `train`: from pairs to a stored prior.

RUN/state/      the last state (safetensors and JSON; see Trainer.save), replaced atomically
RUN/log.jsonl   one line per `log_every` steps and per validation
RUN/prior/      the averaged weights as a prior for `load_prior`, written at the end and at every validation (of
                another task: its own `result` folder)
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..canonical import Normalizer
from ..checkpoint import read_checkpoint
from ..denoiser import Denoiser, DenoiserConfig
from ..files import write_atomically
from ..hands import load_hands
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..schedule import CosineSchedule
from .config import TrainConfig
from .data import PairSource, load_corpus
from .diffusion import DiffusionTask, fresh, training_vectors
from .task import Task
from .trainer import STATE_KIND, Trainer

__all__ = ["first_pairs", "run", "stored_normalizer", "train"]


def train(
    pairs: PairSource,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    val_pairs: PairSource | None = None,
    network: DenoiserConfig | None = None,
    init: TwoHandPrior | None = None,
    hands: Any = None,
    resume: bool = False,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> TwoHandPrior:
    """Train a two-hand prior (Algorithm 1), or go on training one.

    Args:
        pairs: a corpus folder, TwoHands of any batch shape, or an iterable of them. Parameters belong to the hand
            model that each carries (`hands=`; None: the open hand).
        config: settings; `steps` or `minutes` says when to end.
        out: folder of the run, made if missing.
        val_pairs: held-out pairs. Default: the folder's `val-*.npz`, or the last 5 % of `pairs`.
        network: widths of a new network.
        init: a prior to start from (fine-tuning); its network, schedule and normaliser are kept.
        hands: hand models that parameters in files belong to, in the forms of `load_prior`.
        resume: go on from the state in `out`; without one, start anew.
        progress: show a progress bar.
        should_stop: asked after each step; when it says yes, the state is saved and the run stops. It can be
            resumed.

    Returns:
        The prior with averaged weights, calibrated on the held-out pairs, as stored in `out/prior`. On the CPU.

    Raises:
        ValueError: pairs hold NaN, are not in metres or are too few; `network` and `init` are both given;
            there is no such device.
        FileNotFoundError: there are no pairs.
        FileExistsError: `out` holds a run and `resume` is False.
        CheckpointError: the state to resume is damaged or of another run.
        TrainingDiverged: the loss became NaN; the last saved state is intact.
    """
    if init is not None and network is not None:
        raise ValueError("network cannot be chosen when fine-tuning: the one of init is kept. Leave it out.")
    out = Path(out)
    _refuse_start(out, config, resume)
    with _threads(config.threads):
        models = None if hands is None else load_hands(hands)
        train_pairs, held_out = load_corpus(pairs, val_pairs, hands=models)
        vectors = training_vectors(train_pairs, config)
        if init is not None:
            normalizer, schedule = copy.deepcopy(init.normalizer).cpu().float(), init.schedule
            denoiser = copy.deepcopy(init.denoiser)
        else:
            normalizer = stored_normalizer(out) or Normalizer.fit(vectors.partner)
            denoiser, schedule = fresh(lambda: Denoiser(network), config.seed), CosineSchedule()
        info = {} if init is None else init.info
        held_out = first_pairs(held_out, config.max_val)
        task = DiffusionTask(denoiser, normalizer, schedule, train_pairs, held_out, config, info=info, vectors=vectors)
        run(task, config, out, resume=resume, progress=progress, should_stop=should_stop)
    return TwoHandPrior.from_folder(out / task.result, hands=task.hands)


def run(
    task: Task,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train whatever `task` describes, or go on training it; the result is stored in `out / task.result`.

    Args:
        task: see `Task`.
        config: settings; `steps` or `minutes` says when to end.
        out: folder of the run, made if missing.
        resume: go on from the state in `out`; without one, start anew.
        progress: show a progress bar.
        should_stop: asked after each step; when it says yes, the state is saved and the run stops.

    Raises:
        ValueError, FileExistsError, CheckpointError, TrainingDiverged: see `train`.
    """
    out = Path(out)
    _refuse_start(out, config, resume)
    state = out / "state"
    with _threads(config.threads):
        trainer = Trainer(task, config)
        out.mkdir(parents=True, exist_ok=True)
        log = _Log(out / "log.jsonl")
        if state.exists():
            trainer.load(state)
            log.cut(trainer.step_count)

        def keep(final: bool) -> None:
            info = {
                "interhand_prior": __version__,
                "seed": config.seed,
                "steps": trainer.step_count,
                "hours": round(trainer.seconds / 3600, 3),
            }
            task.keep(trainer.average, out / task.result, info, final)

        _loop(trainer, state, log, lambda: keep(False), progress, should_stop)
        keep(True)


def _refuse_start(out: Path, config: TrainConfig, resume: bool) -> None:
    if (out / "state").exists() and not resume:
        raise FileExistsError(f"{out} holds a run already. Pass resume=True (--resume) to go on, or another folder.")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {config.device!r}, but PyTorch sees no such device here. Use device='cpu'.")


def stored_normalizer(out: Path) -> Normalizer | None:
    """That of the run in `out` to resume: fitted again, it could differ in the last bit on another machine."""
    state = out / "state"
    if not state.exists():
        return None
    config, _ = read_checkpoint(state, kind=STATE_KIND)
    return Normalizer(*(torch.tensor(values) for values in config["facts"]["normalizer"]))


def _loop(
    trainer: Trainer,
    state: Path,
    log: _Log,
    keep: Callable[[], object],
    progress: bool,
    should_stop: Callable[[], bool],
) -> None:
    """Step until the end, or until `should_stop` says so."""
    config = trainer.config
    begun = time.monotonic() - trainer.seconds
    saved = logged = time.monotonic()
    total, count = torch.zeros((), dtype=torch.float64), 0
    share = lambda: config.progress(trainer.step_count, trainer.seconds)
    with _bar(progress, share()) as advance:
        while share() < 1 and not should_stop():
            total += trainer.step().cpu()
            count += 1
            now = time.monotonic()
            trainer.seconds = now - begun
            over = share() >= 1
            if trainer.step_count % config.log_every == 0 or over:
                trainer.require_finite(total)
                line = {
                    "loss": float(total) / count,
                    "lr": trainer.rate,
                    "steps_per_second": count / (now - logged),
                }
                log.write(trainer, line)
                total.zero_()
                logged, count = now, 0
                advance(share(), line)
            if trainer.step_count % config.val_every == 0 or over:
                numbers = trainer.task.validate(trainer.average)
                if numbers:
                    log.write(trainer, numbers)
                keep()
                logged += time.monotonic() - now
            if time.monotonic() - saved >= 60 * config.save_minutes or over:
                trainer.save(state)
                saved = time.monotonic()
        if share() < 1:
            trainer.save(state)


def first_pairs(pairs: list[TwoHands], count: int) -> list[TwoHands]:
    """The first `count` pairs of several batches."""
    taken: list[TwoHands] = []
    for part in pairs:
        if count > 0:
            taken.append(part[:count])
            count -= len(taken[-1])
    return taken


class _Log:
    """Lines of JSON, one per event; a resumed run first drops those that are past its state."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, trainer: Trainer, values: dict[str, float]) -> None:
        line = {"step": trainer.step_count, "seconds": round(trainer.seconds, 2)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {key: float(f"{value:.6g}") for key, value in values.items()}) + "\n")

    def cut(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed process may be half a line
        write_atomically(self.path, "".join(kept).encode())


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
