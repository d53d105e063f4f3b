"""Training of the feature network (paper Sec. 4.1): `python -m interhand_prior.metrics.train_features`.

A sample is a pair, or its mirror image: a random share of the vertices of both hands, in the left hand's canonical
frame. The loss is the squared error of the normalised targets y of feature_targets.py,

    L = 1/G sum_groups mean_i (y_i - f(points)_i)^2,    groups: left pose, right pose, rotation, translation, ...

each group with equal weight, because otherwise the 90 angles within the hands would drown out the 9 numbers between
them, which are what makes an interaction. Random shares keep the features from depending on the density of a mesh.
Vertices are made anew for each batch: stored, those of a corpus would need gigabytes.

A PairReader is also taught what it finds on its way, which its features need before they can be any good:

    L_way = .3 (|R' - R|^2 + .1 |t' - t|^2 / cm^2) + 2 sum_rounds mean_i (k'_i - k_i)^2

with the right hand's located frame R', t', the keypoints k' of each round and the true ones k, in the frame that the
hand was read in and in units of their spread. Half of the right hands are read in their true frame, moved a little, in
place of the located one.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..canonical import SLICES
from ..hands import HandPair, load_hands
from ..hands.skinning import no_autocast
from ..params import TwoHands
from ..point_sets import farthest_points
from ..pointnet2 import COMPACT, PAPER
from ..rotations import axis_angle_to_matrix, mirror_points, rot6d_to_matrix
from ..train.config import TrainConfig
from ..train.data import PairSource, Vectors, fingerprint, load_corpus, to_vectors
from ..train.options import StopRequest, add_options, chosen_config
from ..train.run import first_pairs, run
from ..train.task import Task
from ..train.trainer import TrainingDiverged
from .augmentation import Augmentation, PointDraws
from .feature_targets import Posed, all_targets, pose_pairs, target_groups, target_moments, targets, wanted_targets
from .features import FeatureNetwork, NetworkConfig, split_hands
from .pair_reader import Frame, PairReader, PairReaderConfig, Reading, Taught
from .regression import regression_errors

__all__ = ["Augmentation", "FeatureTask", "main", "regression_errors", "train_features"]

CONFIGS: dict[str, NetworkConfig] = {"reader": PairReaderConfig(), "compact": COMPACT, "paper": PAPER}

# Samples that the moments of the targets, and the places of the centres, are taken of.
_FIT = 4096
_CLOUDS = 256

# The taught frames: share of the hands, noise in radians and metres. About what the locator is off by.
_TAUGHT, _TURN, _SHIFT = 0.5, 0.1, 0.004
_CENTIMETRE = 0.01


class FeatureDraws(NamedTuple):
    """Everything random about the loss of B pairs.

    Attributes:
        points: of the augmentation.
        taught: (B,) bool, whether the right hand is read in its true frame.
        turn: (B, 3) rotation vector that this frame is off by.
        shift: (B, 3) metres that it is off by.
    """

    points: PointDraws
    taught: Tensor
    turn: Tensor
    shift: Tensor


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
        config: NetworkConfig,
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
        generator = torch.Generator().manual_seed(train.seed)
        rows = torch.randperm(self.count, generator=generator)[:_FIT]
        more = isinstance(config, PairReaderConfig)
        mean, std = target_moments(self._all_targets(rows)) if more else _moments(self.vectors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.network = FeatureNetwork(config, mean, std, points, {"pairs": sum(map(len, pairs))})
        self.surface = _surface(self.hands, config.surface) if isinstance(config, PairReaderConfig) else None
        self._fit_centres(rows[:_CLOUDS])
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

    def draw(self, size: int, generator: torch.Generator) -> FeatureDraws:
        """See `Augmentation.draw` and `FeatureDraws`."""
        count = sum(len(model.v_template) for model in (self.hands.left, self.hands.right))
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        return FeatureDraws(
            self.augmentation.draw(size, count, generator),
            torch.rand(size, **options) < _TAUGHT,
            _TURN * torch.randn(size, 3, **options),
            _SHIFT * torch.randn(size, 3, **options),
        )

    def loss(self, batch: Tensor, draws: FeatureDraws) -> Tensor:
        """The groups' mean squared errors, averaged, of the pairs in these rows, and those on a PairReader's way."""
        anchor, partner = self.vectors.anchor[batch], self.vectors.partner[batch]
        posed = pose_pairs(anchor, partner, self.hands)
        points, side = self.augmentation(*posed.cloud(), draws.points)
        network = self.network
        if isinstance(network.backbone, PairReader):
            frame = _frame(partner)
            taught = Taught(draws.taught, _moved(frame, draws.turn, draws.shift))
            reading = network.backbone.read(*split_hands(points, side), taught)
            regressed = network.regressor(reading.features.relu())
            way = self._way(reading, posed, frame)
        else:
            regressed = network.regress(points, side)
            way = regressed.new_zeros(())
        count = len(network.mean)
        wanted = (wanted_targets(anchor, partner, posed, count) - network.mean) / network.std
        square = (regressed.float() - wanted).square()
        return torch.stack([square[:, group].mean() for group in target_groups(count).values()]).mean() + way

    def _way(self, reading: Reading, posed: Posed, frame: Frame) -> Tensor:
        """What a PairReader finds on its way, against the truth: L_way."""
        backbone = cast(PairReader, self.network.backbone)
        turned = (reading.rotation - frame.rotation).square().sum((1, 2)).mean()
        shifted = ((reading.origin - frame.origin) / _CENTIMETRE).square().sum(-1).mean()
        left, right = self._keypoints(posed)
        wanted = torch.cat((left, reading.frame.into(right)))
        rounds = [((k - wanted) / backbone.keypoint_spread).square().mean() for k in reading.keypoints]
        return 0.3 * (turned + 0.1 * shifted) + 2 * torch.stack(rounds).sum()

    def _keypoints(self, posed: Posed) -> tuple[Tensor, Tensor]:
        """(B, K, 3) of left hands, in right-hand form, and of right hands, where they are."""
        left = torch.cat((posed.left[:, self.surface], posed.left_joints), 1)
        return mirror_points(left), torch.cat((posed.right[:, self.surface], posed.right_joints), 1)

    def _all_targets(self, rows: Tensor) -> Tensor:
        """All targets of these rows."""
        parts = []
        for part in rows.split(_CLOUDS):
            anchor, partner = self.vectors.anchor[part], self.vectors.partner[part]
            parts.append(all_targets(anchor, partner, pose_pairs(anchor, partner, self.hands)))
        return torch.cat(parts)

    def _fit_centres(self, rows: Tensor) -> None:
        backbone = self.network.backbone
        if isinstance(backbone, PairReader):
            posed = pose_pairs(self.vectors.anchor[rows], self.vectors.partner[rows], self.hands)
            backbone.fit(mirror_points(posed.left), self._keypoints(posed)[0], posed.right)

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


def train_features(
    pairs: PairSource,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    val_pairs: PairSource | None = None,
    network: NetworkConfig | None = None,
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
        network: its sizes; default: those of PairReader.
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
    network = network or PairReaderConfig()
    task = FeatureTask(network, train_pairs, first_pairs(held_out, config.max_val), config, augmentation, points)
    run(task, config, out, resume=resume, progress=progress, should_stop=should_stop)
    return FeatureNetwork.from_folder(Path(out) / task.result)


def _frame(partner: Tensor) -> Frame:
    """Where the right hand is."""
    with no_autocast(partner.device):
        return Frame(rot6d_to_matrix(partner[:, SLICES["rot6d"]]), partner[:, SLICES["transl"]])


def _moved(frame: Frame, turn: Tensor, shift: Tensor) -> Frame:
    """Frames turned by rotation vectors (B, 3) and shifted by (B, 3) metres."""
    with no_autocast(turn.device):
        return Frame(frame.rotation @ axis_angle_to_matrix(turn), frame.origin + shift)


def _moments(vectors: Vectors) -> tuple[Tensor, Tensor]:
    """Mean and scale of the paper's targets."""
    return target_moments(targets(vectors.anchor, vectors.partner))


def _surface(hands: HandPair, count: int) -> Tensor:
    """Vertices that are keypoints, spread over the hand at rest."""
    if not count:
        return torch.empty(0, dtype=torch.int64)
    return farthest_points(hands.right.v_template[None], count).order[0].cpu()


def _one_model(pairs: list[TwoHands]) -> HandPair:
    models = [part.model for part in pairs]
    if any(model is not models[0] for model in models):
        raise ValueError("pairs belong to several hand models; train on those of one")
    return models[0]


_NOT_HERE = ("p_uncond", "p_alone", "min_sigma", "compile")  # what is compiled is `forward`, which is not trained
_DEFAULTS: dict[str, Any] = {
    "batch_size": 96,
    "lr": 2e-3,
    "warmup": 100,
    "weight_decay": 1e-3,
    "ema": 0.998,
    "amp": "off",  # layer norms and small layers: nothing to win
    "val_every": 1000,
    "max_val": 500,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    try:
        config = chosen_config(_DEFAULTS, options)
        augmentation = Augmentation(options["least_share"], options["most_share"], options["jitter"])
    except ValueError as error:
        parser.error(str(error))
    with StopRequest() as stop:
        try:
            network = train_features(
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
                should_stop=stop,
            )
        except (ValueError, OSError, ImportError, TrainingDiverged) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if not network.info["complete"]:
        print(f"stopped; go on with the same command and --resume (state in {options['out']}/state)", file=sys.stderr)
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
    parser.add_argument("--out", required=True, help="folder of the run: state, log.csv and features")
    parser.add_argument("--val", help="held-out pairs, where --data has none")
    parser.add_argument("--hands", help="folder with MANO files, if the pairs belong to MANO; default: the open hand")
    parser.add_argument("--config", choices=CONFIGS, default="reader", help="network: ours, or a PointNet++")
    parser.add_argument("--points", type=int, default=800, help="vertices that are read of a pair; 0: all")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state, if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    defaults = Augmentation()
    text = "a batch keeps a share of its points between this and --most-share"
    parser.add_argument("--least-share", type=float, default=defaults.least_share, help=text)
    parser.add_argument("--most-share", type=float, default=defaults.most_share, help="see --least-share")
    parser.add_argument("--jitter", type=float, default=defaults.jitter, help="noise on the points, metres")
    add_options(parser, defaults=_DEFAULTS, leave_out=_NOT_HERE)
    return parser


if __name__ == "__main__":
    sys.exit(main())
