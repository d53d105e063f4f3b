"""`train`: from pairs of hands, and hands alone, to a stored prior (Algorithm 1)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from ..hands import HandPair, load_hands
from ..networks import NetworkConfig, make_denoiser
from ..official import PCANormalizer
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..schedule import CosineSchedule
from .config import TrainConfig
from .data import PairSource, TrainingData, mixture, read_samples
from .diffusion import DiffusionTask, fresh
from .distributed import launched
from .origin import origin
from .run import refuse_start, run, stored_normalizer, threads

__all__ = ["Evaluate", "train"]

Evaluate = Callable[[TwoHandPrior, Sequence[TwoHands]], dict[str, float]]


def train(
    pairs: PairSource | Sequence[PairSource],
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    val_pairs: PairSource | None = None,
    network: NetworkConfig | None = None,
    init: TwoHandPrior | None = None,
    normalizer: Literal["init", "data"] = "init",
    hands: Any = None,
    cache: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    evaluate: Evaluate | None = None,
) -> TwoHandPrior:
    """Train a two-hand prior, or go on training one.

    Processes that the launcher of `accelerate` started train together; each must make the same call.

    Args:
        pairs: a corpus folder, TwoHands of any batch shape, or an iterable of them; with `weights`, a sequence of
            such sources. Parameters belong to the hand model that each carries (`hands=`; None: the open hand).
            A corpus folder's hands alone, and pairs that lack a hand, are trained on as hands alone.
        config: settings; `steps` or `minutes` says when to end.
        out: folder of the run, made if missing.
        weights: one for each source: their shares of the samples, whatever the sources' sizes.
        val_pairs: held-out pairs. Default: the folders' `val-*.npz`, or the last 5 % of `pairs`.
        network: widths of a new network. Default: the bundled prior's kind.
        init: a prior to start from (fine-tuning); its network and schedule are kept.
        normalizer: of a prior that is fine-tuned: "init" keeps its own; "data" fits one to the new data. The
            network is not told: what it sees of the same hands then changes, and it has to learn the difference.
            Worth it only where the new data's means or spreads are far from the old ones'.
        hands: hand models that parameters in files belong to, in the forms of `load_prior`.
        cache: folder for the samples' vectors, made if missing, from where they are mapped into memory: for data
            that do not fit into it, and to make them once for many runs. Default: they stay in memory.
        resume: go on from the state in `out`; without one, start anew.
        progress: show a progress bar.
        should_stop: asked after each step; when it says yes, in any process, the state is saved and the run stops.
            It can be resumed.
        evaluate: called at validations with the averaged prior and the held-out pairs; gives more numbers for the
            log.

    Returns:
        The prior with averaged weights, calibrated on the held-out pairs, as stored in `out/prior` with a model card.
        On the CPU.

    Raises:
        ValueError: pairs hold NaN, are not in metres or are too few; `network` and `init` are both given; the
            weights do not fit; `evaluate` is given and no pairs are held out; there is no such device.
        FileNotFoundError: there are no pairs.
        FileExistsError: `out` holds a run and `resume` is False.
        CheckpointError: the state to resume is damaged or of another run.
        TrainingDiverged: the loss became NaN; the last saved state is intact.
        ImportError: several processes without `accelerate`, or TensorBoard, are wanted and missing.
    """
    if init is not None and network is not None:
        raise ValueError("network cannot be chosen when fine-tuning: the one of init is kept. Leave it out.")
    if normalizer not in ("init", "data"):
        raise ValueError(f"normalizer must be 'init' or 'data', got {normalizer!r}")
    if init is not None and normalizer == "data" and isinstance(init.normalizer, PCANormalizer):
        raise ValueError(
            "normalizer='data' cannot be had with a converted official checkpoint: its network knows its own units"
            " alone. Leave it out."
        )
    out = Path(out)
    refuse_start(out, resume)
    processes = launched(config.device)
    with threads(config.threads):
        options = {"mirror": config.mirror, "cache": cache, "max_val": config.max_val}
        data = _read(pairs, weights, val_pairs, None if hands is None else load_hands(hands), options)
        if evaluate is not None and not data.held_out:
            raise ValueError("evaluate needs held-out pairs, and there are none. Give val_pairs (--val).")
        info: dict[str, Any] = {} if init is None else {"init": dict(init.info)}
        if init is not None:
            denoiser, schedule = copy.deepcopy(init.denoiser), init.schedule
        else:
            denoiser, schedule = fresh(lambda: make_denoiser(network), config.seed), CosineSchedule()
        if init is not None and normalizer == "init":
            norm = copy.deepcopy(init.normalizer).cpu().float()
        else:
            norm = stored_normalizer(out) or data.train.moments().normalizer()
        info["data"] = {
            **origin(cast(Any, pairs) if weights is not None else [pairs], data.hands),
            "fingerprint": data.train.fingerprint,
            "samples in a pass": data.train.count,
            "hands alone": data.train.singles,
            "held-out pairs": sum(map(len, data.held_out)),
            **({} if weights is None else {"weights of the sources": list(weights)}),
            **({} if init is None else {"fine-tuned with the normaliser of": normalizer}),
        }
        task = DiffusionTask(
            denoiser, norm, schedule, data.train, data.val, config,
            held_out=data.held_out, hands=data.hands, info=info,
        )  # fmt: skip

        def extra(average: nn.Module) -> dict[str, float]:
            prior = task.prior(average)
            prior.normalizer = copy.deepcopy(prior.normalizer)  # the task reads its own on the CPU
            return cast(Evaluate, evaluate)(prior.to(processes.device), data.held_out)

        run(
            task, config, out,
            resume=resume, progress=progress, should_stop=should_stop, processes=processes,
            evaluate=None if evaluate is None else extra,
        )  # fmt: skip
        folder = out / task.result
        prior = TwoHandPrior.from_folder(folder, hands=task.hands)
    return prior


def _read(
    pairs: PairSource | Sequence[PairSource],
    weights: Sequence[float] | None,
    val: PairSource | None,
    hands: HandPair | None,
    options: dict[str, Any],
) -> TrainingData:
    """One source, or several in the ratio of their weights, each with its own validation samples."""
    if weights is None:
        return read_samples(cast(PairSource, pairs), val, hands=hands, **options)
    sources = list(cast(Sequence[PairSource], pairs))
    if len(sources) != len(weights):
        raise ValueError(f"weights must be {len(sources)}, one for each source of pairs, got {len(weights)}")
    # Held-out pairs that are given are for all: with the first source, and none with the others.
    given = [val, *([[]] * (len(sources) - 1))] if val is not None else [None] * len(sources)
    parts = [read_samples(source, held, hands=hands, **options) for source, held in zip(sources, given, strict=True)]
    train = mixture([part.train for part in parts], weights)
    checked = [part.val for part in parts if part.val.count]
    return TrainingData(
        train,
        mixture(checked) if checked else parts[0].val,
        [pairs for part in parts for pairs in part.held_out],
        parts[0].hands,
    )
