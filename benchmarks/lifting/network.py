"""A lifter of 2D joints in InterWild's manner (Moon, CVPR 2023), one million parameters.

One trunk serves both hands, the left one mirrored. It sees a hand's joints in that hand's own crop, those of both
hands in the crop of the pair, their confidence, and where the crops are. Each hand gets its own global_orient,
hand_pose, betas and place before the camera; how much farther away the right wrist is than the left one comes from a
separate head that reads the joints of both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from interhand_prior import HandParams, TwoHands
from interhand_prior.hands import HandPair
from interhand_prior.rotations import matrix_to_axis_angle, rot6d_to_matrix

_INPUT = 21 * (2 + 2 + 2 + 1 + 1) + 3 + 3
_BETWEEN = 2 * 21 * (3 + 1) + 3 + 1
_HEAD = {"orient": 6, "hand_pose": 45, "betas": 10, "place": 3}
#: What a unit of the network's answer means: radians, and metres between the wrists.
_POSE, _APART = 0.3, 0.1
#: Root mean square distance of a hand's joints from their middle, metres: makes the first guess of the depth.
_EXTENT = 0.06


class Lifted(NamedTuple):
    """What the network says of N pictures.

    Attributes:
        left: the left hand, in the camera's frame by itself.
        right: the right hand, likewise.
        joints: (N, 2, 21, 3) of both, each by itself.
        apart: (N, 3) metres, from the left wrist to the right one.
    """

    left: HandParams
    right: HandParams
    joints: Tensor
    apart: Tensor

    def pair(self, models: HandPair) -> TwoHands:
        """The pair that is meant: the left hand where it is, the right one `apart` from it."""
        wrist = models.left.rest_joints(self.left.betas)[:, 0] + self.left.transl
        transl = wrist + self.apart - models.right.rest_joints(self.right.betas)[:, 0]
        return TwoHands(self.left, replace(self.right, transl=transl), models)


class Block(nn.Module):
    """x + W2 silu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return x + self.body(x)


class Lifter(nn.Module):
    """Detections -> hands.

    Args:
        models: the hands to answer with.
        width: of the trunk.
        blocks: of the trunk; one more in the head of the relative place.
    """

    def __init__(self, models: HandPair, width: int = 320, blocks: int = 3) -> None:
        super().__init__()
        self.models = models
        body = (Block(width) for _ in range(blocks))
        self.trunk = nn.Sequential(nn.Linear(_INPUT, width), *body, nn.LayerNorm(width))
        self.hand = nn.Linear(width, sum(_HEAD.values()))
        join = nn.Linear(_BETWEEN, width), Block(width), Block(width), nn.LayerNorm(width), nn.Linear(width, 1)
        self.join = nn.Sequential(*join)
        for head in (self.hand, self.join[-1]):
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.zeros_(head.bias)
        mean = models.right.hands_mean
        self.register_buffer("mean_pose", torch.zeros(45) if mean is None else mean.clone(), persistent=False)
        self.register_buffer("gamma", torch.tensor((-1.0, 1.0)), persistent=False)

    def forward(self, seen: Tensor, confidence: Tensor) -> Lifted:
        """Lift.

        Args:
            seen: (N, 2, 21, 2) image points; not read where the confidence is 0.
            confidence: (N, 2, 21).
        """
        found = (confidence > 0).to(seen)
        seen = torch.where(found[..., None] > 0, seen, 0)
        middle, size = crop(seen.flatten(1, 2), found.flatten(1, 2))
        middle, size = middle[:, None].expand(-1, 2, -1), size[:, None].expand(-1, 2)
        own_middle, own_size = crop(seen, found)
        some = found.sum(-1) > 1  # of a hand that is hardly seen nothing is known but where the pair is
        own_middle, own_size = torch.where(some[..., None], own_middle, middle), torch.where(some, own_size, size)
        # From here on both hands are right hands: index 0 is the left one, mirrored.
        sides = torch.stack((self.gamma, torch.ones_like(self.gamma)))
        inside = lambda points, of, scale, mask: torch.where(
            mask[..., None] > 0, (points - of[..., None, :]) / scale[..., None, None] * sides[:, None], 0
        )
        crops = (
            inside(seen, own_middle, own_size, found),
            inside(seen, middle, size, found),
            inside(seen.flip(1), middle, size, found.flip(1)),
        )
        where = (own_middle * sides, own_size.log()[..., None], (own_middle - middle) / size[..., None] * sides)
        where += ((own_size / size).log()[..., None],)
        trust = (confidence.sqrt(), confidence.flip(1).sqrt())
        features = self.trunk(torch.cat((*(c.flatten(2) for c in crops), *trust, *where), -1))
        orient, pose, betas, place = self.hand(features).split(list(_HEAD.values()), -1)
        identity = orient.new_tensor((1.0, 0, 0, 0, 1, 0))
        ray = own_middle + own_size[..., None] * place[..., :2] * sides
        depth = _EXTENT / own_size * place[..., 2].exp()
        wrist = torch.cat((ray, torch.ones_like(ray[..., :1])), -1) * depth[..., None]
        hand = HandParams(
            matrix_to_axis_angle(rot6d_to_matrix(orient + identity)),
            self.mean_pose + _POSE * pose,
            betas,
            torch.zeros_like(wrist),
        )
        both = []
        for index, (side, model) in enumerate((("left", self.models.left), ("right", self.models.right))):
            one = hand[:, index].mirrored() if side == "left" else hand[:, index]
            both.append(replace(one, transl=wrist[:, index] - model.rest_joints(one.betas)[:, 0]))
        joints = torch.stack((self.models.left.joints21(both[0]), self.models.right.joints21(both[1])), 1)
        # As in InterWild, the head reads the joints of both hands and teaches those who found them nothing. Each wrist
        # is on the ray on which it is seen; the head says how much farther the right one is.
        around = (joints - joints[:, :, :1]).detach().flatten(1) / _APART
        ray, depth = torch.cat((ray, torch.ones_like(ray[..., :1])), -1).detach(), depth.detach()
        middle = depth.log().mean(1).exp()[:, None]
        flat = middle * (ray[:, 1] - ray[:, 0])
        ratio = (depth[:, 1:] / depth[:, :1]).log()
        farther = _APART * self.join(torch.cat((around, confidence.sqrt().flatten(1), flat / _APART, ratio), -1))
        apart = (middle + farther / 2) * ray[:, 1] - (middle - farther / 2) * ray[:, 0]
        return Lifted(both[0], both[1], joints, apart)


def crop(points: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted middle (..., 2) and root mean square distance from it (...) of points (..., K, 2)."""
    total = weight.sum(-1).clamp_min(1)
    middle = (weight[..., None] * points).sum(-2) / total[..., None]
    square = (weight * (points - middle[..., None, :]).square().sum(-1)).sum(-1) / total
    return middle, square.sqrt().clamp_min(1e-3)
