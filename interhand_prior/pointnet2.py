"""PointNet++: a point cloud -> one feature vector (Qi, Yi, Su, Guibas, NeurIPS 2017; the paper's Sec. 3.2 and 4.1).

A set-abstraction level takes points p_j with features f_j to fewer points q_i with wider features,

    q_1, q_2, ...  farthest points: each is the point farthest from those before it
    N_i = the first K points, in the cloud's order, with |p_j - q_i| <= r; a smaller ball repeats its first point
    g_i = max_{j in N_i}  h(f_j, p_j - q_i),                h: linear layers with batch norm and ReLU

for one radius r, or for several at once whose results are concatenated (multi-scale grouping, MSG). The last level
takes all remaining points as one ball about the origin, g = max_j h(p_j, f_j), and fully connected layers follow.

Nothing is random. The first point is the one farthest from the cloud's mean, so a permutation of the cloud changes
the result only where a ball holds more than K points; among equals the first in the cloud's order is taken. A
farthest-point sequence is nested (the farthest points of its first m are these in their order), so one sequence
serves all levels, and its distances serve the balls of the first one.

Two rewritings save time and change no result but its rounding: ReLU follows the maximum, with which it commutes; and
where h narrows its input, its first layer, being linear, is applied to the points before they are grouped,
W (f_j, p_j - q_i) = W (f_j, p_j) - W_p q_i.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .point_sets import ball_query, farthest_points, squared_distances, take_points

__all__ = [
    "COMPACT",
    "PAPER",
    "Level",
    "PointNet2",
    "PointNet2Config",
    "Scale",
]


@dataclass(frozen=True)
class Scale:
    """One ball size of a level.

    Attributes:
        radius: of the ball, in the network's unit of length.
        neighbours: K, the points taken from a ball.
        widths: of the layers of h.
    """

    radius: float
    neighbours: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"radius must be positive and finite, got {self.radius}")
        _require_widths("neighbours", (self.neighbours,))
        _require_widths("widths", self.widths)


@dataclass(frozen=True)
class Level:
    """One set abstraction: `centres` points, each seen at every scale."""

    centres: int
    scales: tuple[Scale, ...]

    def __post_init__(self) -> None:
        _require_widths("centres", (self.centres,))
        if not self.scales:
            raise ValueError("scales is empty; a level needs at least one")


@dataclass(frozen=True)
class PointNet2Config:
    """Sizes of a network.

    Attributes:
        channels: numbers that come with each point besides its place (a label, a normal); may be 0.
        levels: set abstractions, from the finest on, each with no more centres than the one before.
        pooled: widths of the layers before the maximum over the whole cloud.
        head: widths of the fully connected layers after it; the last is the feature's size.
        local_norm: batch norm in every layer of h, as in the paper; False: only after its maximum, where there are
            `neighbours` times fewer numbers to normalise, which makes training faster.
        absolute: the first level's features f_j also hold the points' own places p_j. Then the network learns sooner
            where in a canonical frame something is, and its groups are no longer blind to where the cloud is.
        scale: the network's units of length in one metre. The paper's network reads metres times ten.

    Raises:
        ValueError: a size is not positive, or a level has more centres than the one before.
    """

    channels: int
    levels: tuple[Level, ...]
    pooled: tuple[int, ...]
    head: tuple[int, ...]
    local_norm: bool = True
    absolute: bool = False
    scale: float = 10.0

    def __post_init__(self) -> None:
        if self.channels < 0:
            raise ValueError(f"channels must be at least 0, got {self.channels}")
        if not self.levels:
            raise ValueError("levels is empty; give at least one")
        centres = [level.centres for level in self.levels]
        if centres != sorted(centres, reverse=True):
            raise ValueError(f"levels must not have more centres than the ones before, got {centres}")
        _require_widths("pooled", self.pooled)
        _require_widths("head", self.head)
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")

    @property
    def features(self) -> int:
        """Size of the feature vector."""
        return self.head[-1]

    @property
    def grouped_numbers(self) -> int:
        """The largest number of activations that one cloud needs at once."""
        return max(v.centres * s.neighbours * max(s.widths) for v in self.levels for s in v.scales)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PointNet2Config:
        """Inverse of `as_dict`, also after a way through JSON.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        try:
            scales = lambda level: tuple(Scale(**{**s, "widths": tuple(s["widths"])}) for s in level["scales"])
            levels = tuple(Level(**{**level, "scales": scales(level)}) for level in values["levels"])
            tuples = {name: tuple(values[name]) for name in ("pooled", "head")}
            return cls(**{**values, **tuples, "levels": levels})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the configuration of a PointNet2 ({error})") from error


def _require_widths(name: str, values: Sequence[int]) -> None:
    if not values or min(values) < 1:
        raise ValueError(f"{name} must be positive, got {values}")


COMPACT = PointNet2Config(
    channels=2,
    levels=(
        Level(128, (Scale(0.15, 16, (32, 64)),)),
        Level(32, (Scale(0.5, 16, (64, 128)),)),
    ),
    pooled=(256, 512),
    head=(512, 256),
    local_norm=False,
    absolute=True,
)
"""For two hands, with a two-channel side label: trains in half an hour on one core."""

PAPER = PointNet2Config(
    channels=2,
    levels=(
        Level(512, (Scale(0.1, 16, (32, 32, 64)), Scale(0.2, 32, (64, 64, 128)), Scale(0.4, 128, (64, 96, 128)))),
        Level(128, (Scale(0.2, 32, (64, 64, 128)), Scale(0.4, 64, (128, 128, 256)), Scale(0.8, 128, (128, 128, 256)))),
    ),
    pooled=(256, 512, 2048),
    head=(2048, 256),
)
"""The paper's size: the multi-scale network whose layers the official checkpoint has. Radii and neighbours, which no
checkpoint tells, are those of the original PointNet++ for classification."""


# Of the running statistics: those of the head have only a batch's few rows a step, and need many steps.
_MOMENTUM = 0.02


class Dense(nn.Linear):
    """A linear layer over the last axis, which also loads the weights of an equivalent 1 x 1 convolution."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, Tensor) and weight.ndim > 2 and weight.shape[2:].numel() == 1:
            state_dict[prefix + "weight"] = weight.flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PointMLP(nn.Module):
    """h: layers of linear, batch norm (if wanted) and ReLU over the last axis, without the last ReLU.

    Batch norm has the batch's statistics while training and fixed ones in evaluation, where it is folded into the
    linear layer before it.
    """

    def __init__(self, inputs: int, widths: Sequence[int], norm: bool = True) -> None:
        super().__init__()
        self.norm = norm
        sizes = [inputs, *widths]
        self.linears = nn.ModuleList(Dense(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(b, momentum=_MOMENTUM) for b in widths if norm)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., widths[-1]), without the last ReLU."""
        weight, bias = self.affine(0)
        return self.finish(F.linear(x, weight, bias))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the first linear layer."""
        x = self._normalise(x, 0)
        for number in range(1, len(self.linears)):
            weight, bias = self.affine(number)
            x = self._normalise(F.linear(x.relu_(), weight, bias), number)
        return x

    def affine(self, number: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer, in evaluation with its batch norm folded in."""
        linear = cast(Dense, self.linears[number])
        if self.training or not self.norm:
            return linear.weight, linear.bias
        norm = cast(nn.BatchNorm1d, self.norms[number])
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        factor = norm.weight * (variance + norm.eps).rsqrt()
        return linear.weight * factor[:, None], (linear.bias - mean) * factor + norm.bias

    def _normalise(self, x: Tensor, number: int) -> Tensor:
        return self.norms[number](x.flatten(0, -2)).view_as(x) if self.training and self.norm else x


class Grouping(nn.Module):
    """One scale of a set abstraction."""

    def __init__(self, scale: Scale, channels: int, local_norm: bool) -> None:
        super().__init__()
        self.radius, self.neighbours = scale.radius, scale.neighbours
        self.mlp = PointMLP(channels + 3, scale.widths, local_norm)
        self.norm = nn.Identity() if local_norm else nn.BatchNorm1d(scale.widths[-1], momentum=_MOMENTUM)
        self.narrows = channels + 3 >= scale.widths[0]

    def forward(self, points: Tensor, features: Tensor, centres: Tensor, squared: Tensor) -> Tensor:
        """Points (B, N, 3), features (B, N, C), centres (B, S, 3) and their distances (B, S, N) -> (B, S, width)."""
        members = ball_query(squared, self.radius, self.neighbours)
        every = torch.cat((features, points), -1)
        if self.narrows:
            weight, bias = self.mlp.affine(0)
            grouped = take_points(F.linear(every, weight), members)
            x = self.mlp.finish(grouped - (F.linear(centres, weight[:, -3:]) - bias)[:, :, None])
        else:
            shift = F.pad(centres, (features.shape[-1], 0))
            x = self.mlp(take_points(every, members) - shift[:, :, None])
        # `max` is slower than `amax` by its indices, but its gradient is several times faster.
        x = x.max(2).values if x.requires_grad else x.amax(2)
        return self.norm(x.flatten(0, 1)).view_as(x).relu_()


class PointNet2(nn.Module):
    """The network: point clouds -> feature vectors.

    In evaluation a cloud's features do not depend on the rest of its batch.

    Args:
        config: sizes.
    """

    def __init__(self, config: PointNet2Config) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList()
        width = config.channels + 3 * config.absolute
        for level in config.levels:
            self.levels.append(nn.ModuleList(Grouping(scale, width, config.local_norm) for scale in level.scales))
            width = sum(scale.widths[-1] for scale in level.scales)
        self.pool = PointMLP(width + 3, config.pooled)
        self.head = PointMLP(config.pooled[-1], config.head)

    def forward(self, points: Tensor, channels: Tensor | None = None) -> Tensor:
        """Features before their last ReLU.

        Args:
            points: (B, N, 3) metres, N at least 1; best centred near the origin, which the last level sees.
            channels: (B, N, config.channels) what comes with each point; None if the network has no channels.

        Returns:
            (B, config.features).

        Raises:
            ValueError: a shape is wrong, or a point is not finite (looked at on the CPU only).
        """
        points, features = self._checked(points, channels)
        points = points * self.config.scale
        if self.config.absolute:
            features = torch.cat((features, points), -1)
        count = min(self.config.levels[0].centres, points.shape[1])
        sequence = farthest_points(points.detach(), count)
        centres, squared = take_points(points, sequence.order), sequence.squared
        for level, groupings in zip(self.config.levels, self.levels, strict=True):
            centres, squared = centres[:, : level.centres], squared[:, : level.centres]
            seen = [grouping(points, features, centres, squared) for grouping in groupings]  # type: ignore[attr-defined]
            points, features = centres, torch.cat(seen, -1)
            squared = squared_distances(centres.detach(), centres.detach())
        whole = self.pool(torch.cat((points, features), -1)).amax(1).relu()
        return self.head(whole)

    def _checked(self, points: Tensor, channels: Tensor | None) -> tuple[Tensor, Tensor]:
        wanted = self.config.channels
        if points.ndim != 3 or points.shape[1] < 1 or points.shape[2] != 3:
            raise ValueError(f"points must have shape (B, N, 3) with N >= 1, got {tuple(points.shape)}")
        if channels is None and wanted == 0:
            channels = points[..., :0]
        if channels is None or channels.shape != (*points.shape[:2], wanted):
            got = None if channels is None else tuple(channels.shape)
            raise ValueError(f"channels must have shape {(*points.shape[:2], wanted)}, got {got}")
        if points.device.type == "cpu" and not bool(torch.isfinite(points).all()):
            raise ValueError("points hold NaN or infinity; leave those clouds out")
        dtype = next(self.parameters()).dtype
        return points.to(dtype), channels.to(dtype)
