"""Two hands as points -> one feature vector, by set abstraction about places that are known (paper Sec. 4.1).

PointNet++ (pointnet2.py) gathers points about centres that it samples from the cloud. They lie elsewhere in every
cloud, so all that can follow is a maximum over them, which keeps little of where a finger is. But a hand has a frame of
its own, and in it centres can be the same for all hands. Then what is found about each is an input of its own, of plain
layers. There are four steps; a hand's own frame has its middle-MCP joint at the origin, and a left hand is mirrored:

    locate   fixed centres about the mean of the right hand's points              -> its rotation R, its origin t
    read     fixed centres in a hand's own frame -> keypoints k of the hand; k as centres -> features e, better k
             (keypoints: places on the surface, the joints and the tips; one network for both hands)
    relate   a hand's joints and tips as centres among the OTHER hand's points    -> features g
    head     e, g and the joints of both hands, R, t                              -> the feature vector

The group of a centre c is the one point p of the cloud that is nearest to it (basis point sets: Prokudin, Lassner &
Romero, ICCV 2019), and with d = (p - c) / s for a length s of that step the centre contributes

    d / (1 + |d| / 3),    exp(-|d|).

Nothing is sampled, so nothing depends on the order of the points, and little on their number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..hands.skinning import no_autocast
from ..point_sets import farthest_points
from ..rotations import matrix_to_rot6d, mirror_points, rot6d_to_matrix

__all__ = ["JOINTS", "Frame", "PairReader", "PairReaderConfig", "Reading", "Taught", "around"]

#: The last keypoints are a hand's joints and tips, in the order of `TwoHands.joints21`.
JOINTS = 21

# Lengths s in metres: of the steps about fixed centres, about keypoints, and about the other hand.
_LOCATE, _ESTIMATE, _REFINE, _RELATE = 0.03, 0.02, 0.01, 0.02
_OFFSET = 0.03  # of the origin from the mean of the points
#: Clouds at once: their distances stay in the processor's cache.
_CLOUDS = 16
_PER_CENTRE = 4


@dataclass(frozen=True)
class PairReaderConfig:
    """Sizes of a PairReader.

    Attributes:
        locator_centres: fixed centres that the right hand is located with.
        hand_centres: fixed centres in a hand's own frame.
        surface: keypoints on a hand's surface, besides the joints and tips.
        refinements: how often keypoints become centres.
        locator: width of the locator's hidden layer.
        estimate: width of the hidden layer before the first keypoints.
        refine: width of the hidden layer of a refinement.
        hand: E, features of a hand.
        relation: G, features of a hand among the other one's points.
        head: widths of the last layers; the last is the feature's size.

    Raises:
        ValueError: a size is not positive (`surface` may be 0).
    """

    locator_centres: int = 192
    hand_centres: int = 192
    surface: int = 100
    refinements: int = 1
    locator: int = 256
    estimate: int = 384
    refine: int = 384
    hand: int = 192
    relation: int = 64
    head: tuple[int, ...] = (512, 256)

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in asdict(self).items() if name not in ("surface", "head")}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.surface < 0:
            raise ValueError(f"surface must be at least 0, got {self.surface}")
        if not self.head or min(self.head) < 1:
            raise ValueError(f"head must be positive, got {self.head}")

    @property
    def channels(self) -> int:
        """Labels that points may have: left, right."""
        return 2

    @property
    def features(self) -> int:
        """Size of the feature vector."""
        return self.head[-1]

    @property
    def keypoints(self) -> int:
        """K, keypoints of a hand."""
        return self.surface + JOINTS

    @property
    def grouped_numbers(self) -> int:
        """The largest number of activations that one pair needs at once."""
        return max(2 * _PER_CENTRE * max(self.hand_centres, self.keypoints), _PER_CENTRE * self.locator_centres)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PairReaderConfig:
        """Inverse of `as_dict`, also after a way through JSON.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        try:
            if missing := sorted(set(cls().as_dict()) - set(values)):
                raise TypeError(f"{', '.join(missing)} missing")
            return cls(**{**values, "head": tuple(values["head"])})
        except TypeError as error:
            raise ValueError(f"not the configuration of a PairReader ({error})") from error


class Frame(NamedTuple):
    """Frames of right hands in those of the left ones.

    Attributes:
        rotation: (B, 3, 3).
        origin: (B, 3) metres.
    """

    rotation: Tensor
    origin: Tensor

    def into(self, points: Tensor) -> Tensor:
        """(B, P, 3) in the left hand's frame -> in the right one's."""
        with no_autocast(points.device):
            return (points - self.origin[:, None]) @ self.rotation

    def out_of(self, points: Tensor) -> Tensor:
        """The inverse of `into`."""
        with no_autocast(points.device):
            return points @ self.rotation.mT + self.origin[:, None]


class Taught(NamedTuple):
    """Frames to read right hands in. In training they keep the rest from waiting until right hands are located well.

    Attributes:
        where: (B,) bool, the hands to read in them.
        frame: B frames.
    """

    where: Tensor
    frame: Frame

    def instead_of(self, frame: Frame) -> Frame:
        """These frames where there are any, else those."""
        rotation = torch.where(self.where[:, None, None], self.frame.rotation, frame.rotation)
        return Frame(rotation, torch.where(self.where[:, None], self.frame.origin, frame.origin))


class Reading(NamedTuple):
    """What a PairReader finds on its way to the features; training supervises all of it.

    Attributes:
        features: (B, D).
        rotation: (B, 3, 3) of the right hand, as located.
        origin: (B, 3) metres, its middle-MCP joint, as located.
        frame: that the right hand was read in: the located one, or the taught one.
        keypoints: after each round, (2 B, K, 3) metres, each in the frame that its hand was read in and in right-hand
            form; left hands first.
    """

    features: Tensor
    rotation: Tensor
    origin: Tensor
    frame: Frame
    keypoints: tuple[Tensor, ...]


class PairReader(nn.Module):
    """Points of two hands -> features, differentiable.

    Its centres are random until `fit` or a checkpoint puts them where hands are.
    """

    locator_centres: Tensor
    hand_centres: Tensor
    keypoint_mean: Tensor
    keypoint_spread: Tensor

    def __init__(self, config: PairReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PairReaderConfig()
        numbers = 3 * config.keypoints
        self.register_buffer("locator_centres", 0.05 * torch.randn(config.locator_centres, 3))
        self.register_buffer("hand_centres", 0.05 * torch.randn(config.hand_centres, 3))
        self.register_buffer("keypoint_mean", 0.05 * torch.randn(config.keypoints, 3))
        self.register_buffer("keypoint_spread", torch.tensor(0.01))
        self.locator = _Estimator(_PER_CENTRE * config.locator_centres, config.locator, 9)
        self.estimator = _Estimator(_PER_CENTRE * config.hand_centres, config.estimate, numbers)
        self.refiners = nn.ModuleList(
            _layers(numbers + _PER_CENTRE * config.keypoints, config.refine, config.hand)
            for _ in range(config.refinements)
        )
        self.steps = nn.ModuleList(nn.Linear(config.hand, numbers) for _ in range(config.refinements))
        for step in self.steps:
            nn.init.zeros_(cast(nn.Linear, step).weight)
        self.relation = nn.Linear((_PER_CENTRE + 3 + 3) * JOINTS, config.relation)
        self.head = _layers(2 * (config.hand + config.relation + 3 * JOINTS) + 9, *config.head)

    @torch.no_grad()
    def fit(self, hands: Tensor, keypoints: Tensor, turned: Tensor) -> None:
        """Put the centres where hands are.

        Args:
            hands: (N, P, 3) points of hands in their own frames, in right-hand form, metres.
            keypoints: (N, K, 3) their keypoints, in the same frames.
            turned: (M, Q, 3) points of right hands in the left one's frame.

        Raises:
            ValueError: there are fewer points than centres.
        """
        centred = turned - turned.mean(1, keepdim=True)
        for centres, points in ((self.hand_centres, hands), (self.locator_centres, centred)):
            flat = points.reshape(1, -1, 3).to(centres)
            centres.copy_(flat[0, farthest_points(flat, len(centres)).order[0]])
        mean = keypoints.mean(0)
        self.keypoint_mean.copy_(mean)
        self.keypoint_spread.copy_((keypoints - mean).square().mean().sqrt().clamp_min(1e-4))

    def forward(self, left: Tensor, right: Tensor, mean: Tensor | None = None) -> Tensor:
        """Points of the left (B, P, 3) and of the right hand (B, Q, 3) -> (B, D); see `read`."""
        return self.read(left, right, mean).features

    def read(self, left: Tensor, right: Tensor, mean: Tensor | None = None, taught: Taught | None = None) -> Reading:
        """Features, and what they were made of.

        Args:
            left: (B, P, 3) metres, in the left hand's canonical frame. A point may come repeatedly: that changes
                nothing.
            right: (B, Q, 3), in the same frame.
            mean: (B, 3) of the right hand's points; default: of `right`, repeated points counted.
            taught: frames that some right hands are read in, in place of the located ones.
        """
        size, spread = len(left), self.keypoint_spread
        rotation, origin = self._locate(right, right.mean(1) if mean is None else mean)
        left, right = _equal_counts(left, right)
        # What follows shall read the hand, not move it to where it is read more easily.
        frame = Frame(rotation.detach(), origin.detach())
        if taught is not None:
            frame = taught.instead_of(frame)
        own = torch.cat((mirror_points(left), frame.into(right)))
        hand, rounds = self._read(own)
        keypoints = self.keypoint_mean + spread * rounds[-1].detach().unflatten(-1, (-1, 3))
        mine = keypoints[:, -JOINTS:]
        # Each hand's joints in the other hand's frame, in its form.
        others = torch.cat((mirror_points(frame.out_of(mine[size:])), frame.into(mirror_points(mine[:size]))))
        crossed = torch.cat((mirror_points(right), frame.into(left)))
        found = torch.cat((around(crossed, mine, _RELATE), 15 * mine.flatten(1), 8 * others.flatten(1)), -1)
        relation = F.silu(self.relation(found))
        hands = torch.cat((hand, relation, rounds[-1][:, -3 * JOINTS :].detach()), -1)
        place = torch.cat((matrix_to_rot6d(frame.rotation), 10 * frame.origin), -1)
        features = self.head(torch.cat((hands[:size], hands[size:], place), -1))
        estimates = tuple(self.keypoint_mean + spread * r.unflatten(-1, (-1, 3)) for r in rounds)
        return Reading(features, rotation, origin, frame, estimates)

    def _locate(self, right: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        centres = self.locator_centres.expand(len(right), -1, -1)
        found = self.locator(around(right - mean[:, None], centres, _LOCATE)).to(right)
        with no_autocast(right.device):
            rotation = rot6d_to_matrix(found[:, :6] + found.new_tensor((1.0, 0, 0, 0, 1, 0)))
        return rotation, mean + _OFFSET * found[:, 6:]

    def _read(self, own: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Points in own frames -> features of the hands (2 B, E), and keypoints in units, round after round."""
        estimate = self.estimator(around(own, self.hand_centres.expand(len(own), -1, -1), _ESTIMATE)).to(own)
        rounds, features = [estimate], estimate
        for refine, step in zip(self.refiners, self.steps, strict=True):
            before = rounds[-1].detach()
            centres = self.keypoint_mean + self.keypoint_spread * before.unflatten(-1, (-1, 3))
            features = F.silu(refine(torch.cat((before, around(own, centres, _REFINE)), -1)))
            rounds.append(before + step(features).to(own))
        return features, rounds


def _equal_counts(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many points as the larger cloud: one point is repeated, which changes no nearest one."""
    count = max(left.shape[1], right.shape[1])
    fill = lambda points: torch.cat((points, points[:, :1].expand(-1, count - points.shape[1], -1)), 1)
    return fill(left), fill(right)


def around(points: Tensor, centres: Tensor, length: float) -> Tensor:
    """What is found about centres.

    Args:
        points: (B, P, 3) metres.
        centres: (B, C, 3) metres.
        length: s, metres.

    Returns:
        (B, 4 C): of each centre the squeezed way to its nearest point, and how near that is. Differentiable but where
        the nearest point changes.
    """
    parts = []
    with no_autocast(points.device):
        for cloud, centre in zip(points.split(_CLOUDS), centres.split(_CLOUDS), strict=True):
            with torch.no_grad():  # |c|^2 is the same for all points of a centre's row
                squared = torch.baddbmm(cloud.square().sum(-1)[:, None], centre, cloud.mT, alpha=-2)
                nearest = squared.argmin(-1)
            rows = torch.arange(len(cloud), device=cloud.device)[:, None]
            way = (cloud[rows, nearest] - centre) / length
            # Not `norm`, whose gradient is undefined where a point is a centre.
            distance = (way.square().sum(-1, keepdim=True) + 1e-12).sqrt()
            parts.append(torch.cat((way / (1 + distance / 3), (-distance).exp()), -1).flatten(1))
    return torch.cat(parts) if parts else points.new_zeros(0, _PER_CENTRE * centres.shape[1])


class _Estimator(nn.Module):
    """Layer norm, then a linear layer plus layers: the former is learnt at once, the latter start from nothing."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.linear = nn.Linear(inputs, outputs)
        self.layers = _layers(inputs, width, outputs)
        nn.init.zeros_(cast(nn.Linear, self.layers[-1]).weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        x = self.norm(x)
        return self.linear(x) + self.layers(x)


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers, with layer norm and SiLU between them."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.SiLU()]
    return nn.Sequential(*parts[:-2])
