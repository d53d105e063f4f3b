"""`train`: a whole run in a folder, from pairs to a stored prior.

RUN/state/      the last state (safetensors and JSON; see Trainer.save), replaced atomically
RUN/log.jsonl   one line per `log_every` steps and per validation
RUN/prior/      the averaged weights as a prior for `load_prior`, written at the end and at every validation
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..canonical import SLICES, Normalizer
from ..checkpoint import read_checkpoint
from ..denoiser import Denoiser, DenoiserConfig
from ..files import write_atomically
from ..hands import load_hands
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..schedule import CosineSchedule
from .config import TrainConfig
from .data import PairSource, Vectors, fingerprint, load_corpus, to_vectors
from .trainer import STATE_KIND, Trainer
from .validation import validate

__all__ = ["train"]


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
    state = out / "state"
    if state.exists() and not resume:
        raise FileExistsError(f"{out} holds a run already. Pass resume=True (--resume) to go on, or another folder.")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {config.device!r}, but PyTorch sees no such device here. Use device='cpu'.")
    with _threads(config.threads):
        return _train(pairs, config, out, val_pairs, network, init, hands, progress, should_stop)


def _train(
    pairs: PairSource,
    config: TrainConfig,
    out: Path,
    val_pairs: PairSource | None,
    network: DenoiserConfig | None,
    init: TwoHandPrior | None,
    hands: Any,
    progress: bool,
    should_stop: Callable[[], bool],
) -> TwoHandPrior:
    state = out / "state"
    models = None if hands is None else load_hands(hands)
    train_pairs, held_out = load_corpus(pairs, val_pairs, hands=models)
    vectors = to_vectors(train_pairs, mirror=config.mirror, name="pairs")
    if len(vectors) < 2:
        raise ValueError(f"pairs: at least 2 training pairs are needed, got {len(vectors)}")
    held_out = _first(held_out, config.max_val)
    val = to_vectors(held_out, mirror=True, name="val_pairs")
    if init is not None:
        normalizer = copy.deepcopy(init.normalizer).cpu().float()
    else:
        normalizer = _stored_normalizer(state) or Normalizer.fit(vectors.partner)
    trainer = _start(vectors, normalizer, config, network, init)
    facts = {
        "pairs": fingerprint(train_pairs),
        "network": dataclasses.asdict(trainer.denoiser.config),
        "min_alpha_bar": trainer.schedule.min_alpha_bar,
        "normalizer": [normalizer.mean.tolist(), normalizer.std.tolist()],
    }
    out.mkdir(parents=True, exist_ok=True)
    log = _Log(out / "log.jsonl")
    if state.exists():
        trainer.load(state, facts)
        log.cut(trainer.step_count)

    val_anchor, val_partner = (t.to(trainer.device) for t in _normalised(val, normalizer))
    info = {
        **(init.info if init is not None else {}),
        "interhand_prior": __version__,
        "pairs": sum(map(len, train_pairs)),
        "seed": config.seed,
    }

    def validate_now() -> dict[str, float]:
        std = normalizer.std[SLICES["transl"]]
        return validate(trainer.average, val_anchor, val_partner, std) if len(val_partner) else {}

    def keep_prior(calibration: TwoHands | None = None) -> None:
        prior = TwoHandPrior(
            copy.deepcopy(trainer.average).cpu(),
            normalizer,
            trainer.schedule,
            hands=train_pairs[0].hands,
            info={**info, "steps": trainer.step_count, "hours": round(trainer.seconds / 3600, 3)},
        )
        if calibration is not None:
            prior.calibrate(calibration)
        prior.save_pretrained(out / "prior", dtype=getattr(torch, config.weights))

    _loop(trainer, state, facts, log, validate_now, keep_prior, progress, should_stop)
    # One calibration is for one hand model: the first one's pairs.
    alike = [part for part in held_out if part.hands is held_out[0].hands]
    keep_prior(TwoHands.cat([part.to(torch.float32) for part in alike]) if alike else None)
    return TwoHandPrior.from_folder(out / "prior", hands=train_pairs[0].hands)


def _start(
    vectors: Vectors,
    normalizer: Normalizer,
    config: TrainConfig,
    network: DenoiserConfig | None,
    init: TwoHandPrior | None,
) -> Trainer:
    if init is not None:
        denoiser, schedule = copy.deepcopy(init.denoiser), init.schedule
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            denoiser = Denoiser(network)
        schedule = CosineSchedule()
    return Trainer(denoiser, schedule, *_normalised(vectors, normalizer), config)


def _stored_normalizer(state: Path) -> Normalizer | None:
    """That of the run to resume: fitted again, it could differ in the last bit on another machine."""
    if not state.exists():
        return None
    config, _ = read_checkpoint(state, kind=STATE_KIND)
    return Normalizer(*(torch.tensor(values) for values in config["facts"]["normalizer"]))


def _loop(
    trainer: Trainer,
    state: Path,
    facts: dict[str, Any],
    log: _Log,
    validate_now: Callable[[], dict[str, float]],
    keep_prior: Callable[[], object],
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
                numbers = validate_now()
                if numbers:
                    log.write(trainer, numbers)
                keep_prior()
                logged += time.monotonic() - now
            if time.monotonic() - saved >= 60 * config.save_minutes or over:
                trainer.save(state, facts)
                saved = time.monotonic()
        if share() < 1:
            trainer.save(state, facts)


def _normalised(vectors: Vectors, normalizer: Normalizer) -> tuple[Tensor, Tensor]:
    return normalizer.anchor(vectors.anchor), normalizer.partner(vectors.partner)


def _first(pairs: list[TwoHands], count: int) -> list[TwoHands]:
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
