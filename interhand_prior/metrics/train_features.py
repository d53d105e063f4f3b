"""Training of the feature network (paper Sec. 4.1): `python -m interhand_prior.metrics.train_features`.

A sample is a pair, or its mirror image: a random share of the vertices of both hands, in the left hand's canonical
frame. The loss is the squared error of the normalised targets y,

    L = 1/4 sum_groups mean_i (y_i - f(points)_i)^2,    groups: left pose 45, right pose 45, rotation 6, translation 3,

each group with equal weight, because otherwise the 90 angles within the hands would drown out the 9 numbers between
them, which are what makes an interaction. Random shares keep the features from depending on the density of a mesh.
Vertices are made anew for each batch: stored, those of a corpus would need gigabytes.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..hands import HandPair, load_hands
from ..params import TwoHands
from ..pointnet2 import COMPACT, PAPER, PointNet2Config
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle, rot6d_to_matrix
from ..train.config import TrainConfig
from ..train.data import PairSource, Vectors, fingerprint, load_corpus, to_vectors
from ..train.run import first_pairs, run
from ..train.task import Task
from ..train.trainer import TrainingDiverged
from .features import TARGETS, FeatureNetwork, targets, vector_points

__all__ = ["Augmentation", "FeatureTask", "main", "regression_errors", "train_features"]

CONFIGS = {"compact": COMPACT, "paper": PAPER}
_VAL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to the points of a training batch.

    Attributes:
        least_share: a batch keeps a share of its points that is uniform between this and 1; the same points of each
            pair.
        jitter: standard deviation of noise on every coordinate, metres.

    Raises:
        ValueError: a value is out of range.
    """

    least_share: float = 0.25
    jitter: float = 0.0003

    def __post_init__(self) -> None:
        if not 0 < self.least_share <= 1 or not self.jitter >= 0:
            raise ValueError(f"least_share must be in (0, 1] and jitter at least 0, got {self}")

    def __call__(self, points: Tensor, side: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points (B, P, 3) and labels (P,) -> fewer, moved ones, in random order."""
        share = 1 - (1 - self.least_share) * float(torch.rand((), generator=generator, device=points.device))
        count = points.shape[1]
        kept = torch.randperm(count, generator=generator, device=points.device)[: max(1, round(share * count))]
        points = points[:, kept]
        if self.jitter:
            noise = torch.randn(points.shape, generator=generator, device=points.device, dtype=points.dtype)
            points = points + self.jitter * noise
        return points, side[kept]


class FeatureTask(Task):
    """Training of a FeatureNetwork.

    Args:
        config: sizes of the network.
        pairs: training pairs of one hand model.
        held_out: validation pairs of that model; may be empty.
        train: settings; `seed`, `mirror`, `batch_size` and `weights` are read here.
        augmentation: of the points.
        points: see `FeatureNetwork`.

    Raises:
        ValueError: the pairs belong to several hand models, hold NaN, are not in metres or are too few; the batch
            is of one sample.
    """

    result = "features"

    def __init__(
        self,
        config: PointNet2Config,
        pairs: list[TwoHands],
        held_out: list[TwoHands],
        train: TrainConfig,
        augmentation: Augmentation | None = None,
        points: int | None = None,
    ) -> None:
        if train.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {train.batch_size}: batch norm compares samples")
        self.augmentation = augmentation or Augmentation()
        self.weights: torch.dtype = getattr(torch, train.weights)
        self.hands = _one_model([*pairs, *held_out])
        self.vectors = to_vectors(pairs, mirror=train.mirror, name="pairs")
        self.held_out = to_vectors(held_out, mirror=True, name="val_pairs")
        self.count = len(self.vectors)
        if self.count < 2:
            raise ValueError(f"pairs: at least 2 training pairs are needed, got {self.count}")
        std, mean = torch.std_mean(targets(self.vectors.anchor, self.vectors.partner).double(), 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.network = FeatureNetwork(config, mean, std.clamp_min(1e-3), points, {"pairs": sum(map(len, pairs))})
        self.module = self.network
        self.facts = {
            "pairs": fingerprint(pairs),
            "network": config.as_dict(),
            "points": points,
            "augmentation": dataclasses.asdict(self.augmentation),
        }

    def to(self, device: torch.device) -> None:
        """Move the canonical vectors."""
        move = lambda vectors: Vectors(vectors.anchor.to(device), vectors.partner.to(device))
        self.vectors, self.held_out = move(self.vectors), move(self.held_out)

    def loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The groups' mean squared errors, averaged."""
        anchor, partner = self.vectors.anchor[rows], self.vectors.partner[rows]
        points, side = self.augmentation(*vector_points(anchor, partner, self.hands), generator)
        wanted = (targets(anchor, partner) - self.network.mean) / self.network.std
        square = (self.network.regress(points, side).float() - wanted).square()
        return torch.stack([square[:, group].mean() for group in TARGETS.values()]).mean()

    def validate(self, average: nn.Module) -> dict[str, float]:
        """See `regression_errors`, here with names that begin with `val_`."""
        if not len(self.held_out):
            return {}
        errors = regression_errors(cast(FeatureNetwork, average), self.held_out, self.hands)
        return {f"val_{name}": value for name, value in errors.items()}

    def keep(self, average: nn.Module, folder: Path, info: dict[str, Any], final: bool) -> None:
        """Store the network."""
        network = cast(FeatureNetwork, copy.deepcopy(average)).cpu()
        network.info |= info
        network.save(folder, dtype=self.weights)


@torch.no_grad()
def regression_errors(network: FeatureNetwork, vectors: Vectors, hands: HandPair) -> dict[str, float]:
    """How well a network regresses its targets from the vertices that its features are of.

    Args:
        network: in evaluation mode.
        vectors: canonical vectors of the pairs, at least one.
        hands: their hand models.

    Returns:
        loss: mean over the groups of the mean squared error, normalised; left_pose_deg, right_pose_deg: mean angle
        between a joint's rotation and its estimate; rotation_deg: the same of the relative rotation; transl_mm: mean
        length of the error of the relative translation; r2_NAME: share of a group's variance that is explained.
    """
    regressed = []
    for start in range(0, len(vectors), _VAL_BATCH):
        rows = slice(start, start + _VAL_BATCH)
        points, side = vector_points(vectors.anchor[rows], vectors.partner[rows], hands)
        kept = network.chosen(len(side), side.device)
        regressed.append(network.regress(points[:, kept], side[kept]))
    found = torch.cat(regressed).float()
    physical = targets(vectors.anchor, vectors.partner).to(found)
    wanted = (physical - network.mean) / network.std
    estimate = found * network.std + network.mean
    square = (found - wanted).square()
    errors = {"loss": sum(float(square[:, group].mean()) for group in TARGETS.values()) / len(TARGETS)}
    for name in ("left_pose", "right_pose"):
        turn = lambda values, group=TARGETS[name]: axis_angle_to_matrix(values[:, group].unflatten(-1, (15, 3)))
        errors[f"{name}_deg"] = _degrees(turn(estimate), turn(physical))
    rotation = lambda values: rot6d_to_matrix(values[:, TARGETS["rot6d"]])
    errors["rotation_deg"] = _degrees(rotation(estimate), rotation(physical))
    transl = TARGETS["transl"]
    errors["transl_mm"] = 1000 * float((estimate - physical)[:, transl].norm(dim=-1).mean())
    for name, group in TARGETS.items():
        spread = (wanted[:, group] - wanted[:, group].mean(0)).square().mean()
        errors[f"r2_{name}"] = 1 - float(square[:, group].mean() / spread.clamp_min(1e-12))
    return errors


def train_features(
    pairs: PairSource,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    val_pairs: PairSource | None = None,
    network: PointNet2Config = COMPACT,
    augmentation: Augmentation | None = None,
    points: int | None = None,
    hands: Any = None,
    resume: bool = False,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> FeatureNetwork:
    """Train a feature network, or go on training one.

    Args:
        pairs: a corpus folder, TwoHands of any batch shape, or an iterable of them, of one hand model.
        config: settings; `steps` or `minutes` says when to end.
        out: folder of the run, made if missing.
        val_pairs: held-out pairs. Default: the folder's `val-*.npz`, or the last 5 % of `pairs`.
        network: its sizes.
        augmentation: of the points.
        points: see `FeatureNetwork`.
        hands: hand models that parameters in files belong to, in the forms of `load_prior`.
        resume: go on from the state in `out`; without one, start anew.
        progress: show a progress bar.
        should_stop: asked after each step; when it says yes, the state is saved and the run stops.

    Returns:
        The network with averaged weights, as stored in `out/features`. On the CPU.

    Raises:
        ValueError: pairs hold NaN, are not in metres, are too few or of several hand models; no such device.
        FileNotFoundError: there are no pairs.
        FileExistsError: `out` holds a run and `resume` is False.
        CheckpointError: the state to resume is damaged or of another run.
        TrainingDiverged: the loss became NaN; the last saved state is intact.
    """
    models = None if hands is None else load_hands(hands)
    train_pairs, held_out = load_corpus(pairs, val_pairs, hands=models)
    task = FeatureTask(network, train_pairs, first_pairs(held_out, config.max_val), config, augmentation, points)
    run(task, config, out, resume=resume, progress=progress, should_stop=should_stop)
    return FeatureNetwork.from_folder(Path(out) / task.result)


def _one_model(pairs: list[TwoHands]) -> HandPair:
    models = [part.model for part in pairs]
    if any(model is not models[0] for model in models):
        raise ValueError("pairs belong to several hand models; train on those of one")
    return models[0]


def _degrees(estimate: Tensor, wanted: Tensor) -> float:
    """Mean angle between rotations (..., 3, 3)."""
    return float(torch.rad2deg(matrix_to_axis_angle(estimate.mT @ wanted).norm(dim=-1)).mean())


_NOT_HERE = ("p_uncond", "min_sigma")  # options of the diffusion alone
_DEFAULTS: dict[str, Any] = {"batch_size": 32, "lr": 2e-3, "ema": 0.998, "val_every": 500, "max_val": 500}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    try:
        chosen = {f.name: options[f.name] for f in dataclasses.fields(TrainConfig) if f.name not in _NOT_HERE}
        config = TrainConfig(**chosen)
        augmentation = Augmentation(options["least_share"], options["jitter"])
    except ValueError as error:
        parser.error(str(error))
    try:
        train_features(
            options["data"],
            config,
            options["out"],
            val_pairs=options["val"],
            network=CONFIGS[options["config"]],
            augmentation=augmentation,
            points=options["points"] or None,
            hands=options["hands"],
            resume=options["resume"],
            progress=not options["quiet"],
        )
    except (ValueError, OSError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; go on from the last saved state with the same command and --resume", file=sys.stderr)
        return 130
    print(f"{options['out']}/{FeatureTask.result}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m interhand_prior.metrics.train_features",
        description="Train the feature network of FHID, KHID, diversity, precision and recall (paper Sec. 4.1).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder with train-*.npz and val-*.npz, or one .npz")
    parser.add_argument("--out", required=True, help="folder of the run: state, log.jsonl and features")
    parser.add_argument("--val", help="held-out pairs, where --data has none")
    parser.add_argument("--hands", help="folder with MANO files, if the pairs belong to MANO; default: the open hand")
    parser.add_argument("--config", choices=CONFIGS, default="compact", help="size of the network")
    parser.add_argument("--points", type=int, default=1024, help="vertices that are read of a pair; 0: all")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state, if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    defaults = Augmentation()
    text = "a batch keeps a share of its points between this and 1"
    parser.add_argument("--least-share", type=float, default=defaults.least_share, help=text)
    parser.add_argument("--jitter", type=float, default=defaults.jitter, help="noise on the points, metres")
    kinds = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        if field.name in _NOT_HERE:
            continue
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"].replace("%", "%%")
        kind = next((k for k in typing.get_args(kinds[field.name]) if k is not type(None)), kinds[field.name])
        default = _DEFAULTS.get(field.name, field.default)
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            parser.add_argument(flag, type=kind, default=default, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
