"""The feature network of the evaluation protocol (paper Sec. 4.1): two hands as a point cloud -> a feature vector.

A network of the PointNet++ family (pair_reader.py; or pointnet2.py, the paper's own) reads the points of both hands,
each with a label of its side, and is trained to regress

    left hand_pose 45 | right hand_pose 45 | rot6d 6 | t 3           (TARGETS; 99 numbers, canonical.py's, Eq. 5)

in units of the training set's standard deviation: both hands' axis-angle poses, in right-hand form, and their relative
root transformation; and more that follows from these (feature_targets.py). Its features are the layer before, without
that layer's ReLU. They see no parameters and no mesh, so a method need not produce MANO hands to be measured: `embed`
takes any point cloud.

Points are in metres in the left hand's canonical frame (identity rotation, middle-MCP joint at the origin), so that
features of `TwoHands` do not change under a rigid motion of the pair.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..canonical import from_canonical, to_canonical
from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..hands import HandPair
from ..params import TwoHands
from ..pointnet2 import Dense, PointNet2, PointNet2Config
from ..progress import progress_bar
from .feature_targets import TARGET_SIZE, TARGETS, targets
from .inputs import require_both_hands
from .pair_reader import PairReader, PairReaderConfig

__all__ = [
    "TARGETS",
    "TARGET_SIZE",
    "FeatureNetwork",
    "NetworkConfig",
    "canonical_points",
    "load_feature_network",
    "official_key",
    "split_hands",
    "targets",
    "vector_points",
]

NetworkConfig = PairReaderConfig | PointNet2Config

KIND = "feature network"
BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / "features"

#: Activations held at once; more clouds together are slower, because they leave the processor's cache.
_GROUPED_NUMBERS = 2**21
_MOST_PAIRS = 128


class FeatureNetwork(nn.Module):
    """Two hands -> features. A new one is in evaluation mode, with fresh weights.

    In evaluation a pair's features do not depend on the rest of its batch.

    Args:
        config: sizes of the network, which also say of which kind it is; default: those of PairReader. Its channels
            are the number of labels that points may have.
        mean: (T,) of the regression's targets; default: zeros, T = 99.
        std: (T,), positive; default: ones.
        points: how many of a pair's vertices are read at most, the same ones of each; None: all. Training sees
            shares of them, and in its middle features are both better and sooner there.
        info: how it was made; JSON values.

    Raises:
        ValueError: mean and std do not fit together, std is not positive and finite, or points is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: NetworkConfig | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        points: int | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        mean = torch.zeros(TARGET_SIZE) if mean is None else mean
        std = torch.ones_like(mean) if std is None else std
        if mean.ndim != 1 or mean.shape != std.shape or not len(mean):
            raise ValueError(f"mean and std must have one shape (T,), got {tuple(mean.shape)}, {tuple(std.shape)}")
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError("mean and std must be finite and std positive; take those of the training targets")
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1 or None, got {points}")
        self.points = points
        config = config or PairReaderConfig()
        self.backbone = PairReader(config) if isinstance(config, PairReaderConfig) else PointNet2(config)
        self.regressor = Dense(config.features, len(mean))
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())
        self.info: dict[str, Any] = dict(info or {})
        self.eval()

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""
        return self.backbone.config

    @property
    def dimension(self) -> int:
        """D, the length of a feature vector."""
        return self.config.features

    @property
    def identity(self) -> str:
        """SHA-256 of sizes and weights: features of two networks can be compared only if these are equal."""
        sizes = {"network": self.config.as_dict(), "points": self.points}
        digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().double().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def embed(self, points: Tensor, side: Tensor) -> Tensor:
        """Features of bare point clouds, differentiable.

        Args:
            points: (B, P, 3) metres, in the left hand's canonical frame; any number of points in any order, though
                features are comparable only between clouds of similar density. Where the right hand's frame is need
                not be known.
            side: (B, P) or (P,) integer labels: 0 left hand, 1 right hand.

        Returns:
            (B, D), in the type and on the device of the network.

        Raises:
            TypeError: side holds no integers.
            ValueError: a shape is wrong; a label is out of range, a cloud lacks a hand that the network needs, or a
                point is not finite (looked at on the CPU).
            RuntimeError: the network is in training mode.
        """
        if self.training:
            raise RuntimeError(
                "the network is in training mode, where features depend on the batch; call .eval() first"
            )
        return self._features(points, side)

    def chosen(self, count: int, device: torch.device | None = None) -> Tensor:
        """Which of `count` vertices are read, and in which order: (K,) int64.

        Shuffled, always alike, so that fewer still cover the mesh; and PointNet++ takes the first points of a ball,
        which in the order of a mesh may lie all on one side of it.
        """
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return order[: self.points].to(device)

    def regress(self, points: Tensor, side: Tensor) -> Tensor:
        """The regression that the network is trained for.

        Args:
            points: (B, P, 3), see `embed`.
            side: (B, P) or (P,), see `embed`.

        Returns:
            (B, T) targets in units of `std` from `mean`.
        """
        return self.regressor(self._features(points, side).relu())

    @torch.no_grad()
    def forward(self, pairs: TwoHands, *, batch_size: int | None = None, progress: bool = False) -> Tensor:
        """Features of pairs of hands, of any hand model.

        Args:
            pairs: any batch shape (...).
            batch_size: pairs at once; default: as many as suit the processor's cache.
            progress: show a bar.

        Returns:
            (..., D) float32, on the device of the pairs.

        Raises:
            TypeError: not TwoHands.
            ValueError: a parameter is not finite; a hand is missing.
            RuntimeError: the network is in training mode.
        """
        if not isinstance(pairs, TwoHands):
            raise TypeError(f"pairs must be TwoHands, got {type(pairs).__name__}; `embed` takes point clouds")
        require_both_hands(pairs)
        shape, flat = pairs.batch_shape, pairs.reshape(-1)
        size = batch_size or min(_MOST_PAIRS, max(1, _GROUPED_NUMBERS // self.config.grouped_numbers))
        features = torch.empty(len(flat), self.dimension, device=pairs.device)
        place = self.mean.device
        with progress_bar(len(flat), "features", "pair", progress) as advance:
            for start in range(0, len(flat), size):
                points, side = canonical_points(flat[start : start + size])
                kept = self.chosen(len(side), points.device)
                points, side = points[:, kept].to(place), side[kept].to(place)
                features[start : start + size] = self.embed(points, side).to(features)
                advance(len(points))
        return features.reshape(*shape, self.dimension)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Path:
        """Write a checkpoint folder, whole or not at all.

        Args:
            folder: made if missing.
            dtype: of the stored matrices; vectors (biases, running statistics, targets' moments) and places keep
                float32.

        Raises:
            CheckpointError: a weight is not finite, or `info` is not JSON.
            OSError: the folder cannot be written.
        """
        matrices = {name for name, value in self.named_parameters() if value.ndim > 1}
        tensors = {k: v.to(dtype) if k in matrices else v for k, v in self.state_dict().items()}
        config = {"network": self.config.as_dict(), "points": self.points, "targets": len(self.mean), "info": self.info}
        return write_checkpoint(folder, config, tensors, kind=KIND)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, device: torch.device | str | None = None) -> FeatureNetwork:
        """Read what `save` wrote.

        Args:
            folder: with `config.json` and `model.safetensors`.
            device: where to put it; default: the CPU.

        Raises:
            FileNotFoundError: there is no such folder.
            CheckpointError: it is damaged, not a feature network, or its tensors do not fit its sizes.
        """
        config, tensors = read_checkpoint(folder, kind=KIND)
        try:
            count = int(config["targets"])
            with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, only to be replaced
                kind = PointNet2Config if "levels" in config["network"] else PairReaderConfig
                network = cls(
                    kind.from_dict(config["network"]),
                    torch.zeros(count),
                    points=config["points"],
                    info=config["info"],
                )
            network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"feature network: {folder} does not fit together ({error}). It was edited, or another version of"
                " interhand_prior wrote it."
            ) from error
        network.eval().requires_grad_(False)
        return network if device is None else network.to(device)

    def _features(self, points: Tensor, side: Tensor) -> Tensor:
        labels = self.config.channels
        if side.is_floating_point() or side.is_complex():
            raise TypeError(f"side must hold integers (0 left, 1 right), got {side.dtype}")
        if points.ndim != 3 or side.shape not in (points.shape[:2], points.shape[1:2]):
            raise ValueError(
                "points must have shape (B, P, 3) and side (B, P) or (P,), got"
                f" {tuple(points.shape)} and {tuple(side.shape)}"
            )
        side = side.long()
        if side.device.type == "cpu" and side.numel() and not 0 <= int(side.min()) <= int(side.max()) < labels:
            raise ValueError(f"side must be 0 (left) to {labels - 1}, got {int(side.min())} to {int(side.max())}")
        if isinstance(self.backbone, PairReader):
            return self.backbone(*split_hands(points.to(self.mean), side))
        label = F.one_hot(side, labels).to(points).expand(len(points), -1, -1)
        return self.backbone(points, label)


def split_hands(points: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A cloud of two hands -> one of each.

    Args:
        points: (B, P, 3).
        side: (B, P) or (P,) int64: 0 left, 1 right.

    Returns:
        The left hand's points, the right one's, and the mean (B, 3) of the right one's. Where clouds have unequal
        numbers of points of a hand, one of its points stands in for the others.

    Raises:
        ValueError: a cloud lacks a hand or a point is not finite (looked at on the CPU).
    """
    if points.device.type == "cpu":
        if not torch.isfinite(points).all():
            raise ValueError("points hold NaN or infinity")
        if len(points) and not bool(((side == 0).any(-1) & (side == 1).any(-1)).all()):
            raise ValueError("points: each cloud must have points of both hands; side marks those of one only")
    if side.ndim == 1:
        left, right = points[:, side == 0], points[:, side == 1]
        return left, right, right.mean(1)
    hands = []
    for label in (0, 1):
        own = (side == label)[..., None]
        first = own.int().argmax(1, keepdim=True).expand(-1, -1, 3)
        hands.append(torch.where(own, points, points.gather(1, first)))
    share = (side == 1).to(points)
    return hands[0], hands[1], (points * share[..., None]).sum(1) / share.sum(1, keepdim=True)


def load_feature_network(
    source: str | os.PathLike[str] = BUNDLED, *, device: torch.device | str | None = None
) -> FeatureNetwork:
    """A stored feature network.

    Args:
        source: "bundled" (compact, trained on the synthetic corpus of this package) or a folder.
        device: where to put it; default: the CPU.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is damaged or not a feature network.
    """
    return FeatureNetwork.from_folder(BUNDLED_FOLDER if source == BUNDLED else source, device=device)


@torch.no_grad()
def canonical_points(pairs: TwoHands) -> tuple[Tensor, Tensor]:
    """The points that the network reads: the vertices of both hands in the left hand's canonical frame.

    Args:
        pairs: (B,).

    Returns:
        points (B, 1556, 3) float32, metres, left hand first; side (1556,) int64, 0 left, 1 right.
    """
    # In float64 the last bits of the float32 result hardly ever depend on the batch, so that the discrete choices of
    # farthest points do not either.
    anchor, partner, _ = to_canonical(pairs.to(torch.float64), pairs.model)
    return vector_points(anchor, partner, pairs.model)


@torch.no_grad()
def vector_points(anchor: Tensor, partner: Tensor, hands: HandPair) -> tuple[Tensor, Tensor]:
    """As `canonical_points`, from canonical vectors (B, 64) with either hand as the anchor.

    With the right hand as the anchor this is the mirrored pair: the right hand's mirror image is the left hand.
    """
    left, right = from_canonical(anchor, partner, hands).vertices()
    side = torch.arange(2, device=left.device).repeat_interleave(torch.tensor([left.shape[1], right.shape[1]]))
    return torch.cat((left, right), 1).float(), side


def official_key(name: str) -> str:
    """Name of one of our tensors (with the sizes PAPER) in the official feature network's state_dict.

    So `{ours: theirs[official_key(ours)]}` loads it; a 1 x 1 convolution's weights load as a linear layer's. Our
    `mean` and `std` have no counterpart there.

    Raises:
        KeyError: there is none.
    """
    parts = name.split(".")
    layer = {"linears": ("conv_blocks", "mlp_convs", "fc"), "norms": ("bn_blocks", "mlp_bns", "bn")}
    match parts:
        case ["backbone", "levels", level, scale, "mlp", kind, number, leaf]:
            return f"sa{int(level) + 1}.{layer[kind][0]}.{scale}.{number}.{leaf}"
        case ["backbone", "pool", kind, number, leaf]:
            return f"sa3.{layer[kind][1]}.{number}.{leaf}"
        case ["backbone", "head", kind, number, leaf]:
            return f"{layer[kind][2]}{int(number) + 1}.{leaf}"
        case ["regressor", leaf]:
            return f"fc3.{leaf}"
    raise KeyError(name)
