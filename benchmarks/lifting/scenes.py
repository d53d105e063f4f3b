"""Pairs of hands before a camera: what a detector reports of their joints, and what an annotator.

A pinhole of unit focal length looks along +z, so that an image point is X / Z, Y / Z. Hands are thick bones: a joint is
hidden where flesh stands between it and the camera. Detections carry noise of `noise / Z`, three times as much on
hidden joints, as far as those are found at all; the confidence is the inverse variance in units of a visible joint's.
Numbers of joints that are not found are zero and their confidence is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from interhand_prior import TwoHands
from interhand_prior.canonical import Frame, from_canonical, to_canonical
from interhand_prior.hands import HandPair

#: The bones between the 21 joints (MANO's 16, then the tips of thumb, index, middle, ring, pinky): near and far end.
BONES = (
    *((0, base) for base in (1, 4, 7, 10, 13)),
    *((joint, joint + 1) for base in (1, 4, 7, 10, 13) for joint in (base, base + 1)),
    (15, 16), (3, 17), (6, 18), (12, 19), (9, 20),
)  # fmt: skip
#: Radius of the flesh about a bone, and how far flesh hides a joint of its own hand at the earliest, metres.
FLESH, NEXT = 0.009, 0.02
#: Noise of a hidden joint that is found, in units of a visible one's.
HIDDEN = 3.0


class Views(NamedTuple):
    """How a domain is filmed.

    Attributes:
        distance: nearest and farthest, metres.
        tilt: greatest angle between the line of sight and the anchor's thumb-to-little-finger axis, radians; pi: any.
        offset: how far off the optical axis the pair is at most, in image units.
        noise: standard deviation of a detection, metres at the pair's distance.
        annotation: of an annotated joint.
        lost: share of the hidden joints that are not found.
        missed: share of all joints that are not found, hidden or not.
    """

    distance: tuple[float, float]
    tilt: float
    offset: float
    noise: float
    annotation: float
    lost: float
    missed: float


MOCAP = Views(distance=(0.6, 0.9), tilt=math.pi / 2, offset=0.1, noise=0.002, annotation=0.0, lost=0.7, missed=0.02)
WILD = Views(distance=(0.3, 0.9), tilt=math.pi, offset=0.3, noise=0.003, annotation=0.002, lost=0.7, missed=0.1)


@dataclass(frozen=True, eq=False)
class Images:
    """N pictures of two hands, left before right.

    Attributes:
        truth: the pairs, in the camera's frame.
        joints: (N, 2, 21, 3) metres, the truth's.
        seen: (N, 2, 21, 2) detections.
        confidence: (N, 2, 21) theirs, 0 where there is none.
        labels: (N, 2, 21, 2) annotated joints.
        labelled: (N, 2, 21) 1 where there is an annotation: of visible joints.
    """

    truth: TwoHands
    joints: Tensor
    seen: Tensor
    confidence: Tensor
    labels: Tensor
    labelled: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.truth)

    def __getitem__(self, index: Tensor | slice) -> Images:
        """Some of them."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(self)})


def film(pairs: TwoHands, models: HandPair, views: Views, generator: torch.Generator) -> Images:
    """One picture of each pair (N,), from its own place."""
    number = len(pairs)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(number, *shape, generator=generator)
    rotation = view_rotations(views.tilt, number, generator)
    depth = uniform(*views.distance)
    truth = placed(pairs, models, rotation, uniform(-views.offset, views.offset, 2), depth)
    joints = torch.stack(truth.joints21(), 1)
    visible = torch.cat([~hidden(part) for part in joints.split(1000)])
    found = torch.where(visible, 1.0, 1 - views.lost) * (1 - views.missed) > uniform(0, 1, 2, 21)
    image = project(joints)
    noise = lambda std: (std / depth)[:, None, None, None] * torch.randn(image.shape, generator=generator)
    seen = image + torch.where(visible, 1.0, HIDDEN)[..., None] * noise(views.noise)
    labels = image + noise(views.annotation)
    return Images(
        truth,
        joints,
        torch.where(found[..., None], seen, 0),
        torch.where(found, torch.where(visible, 1.0, HIDDEN**-2), 0.0),
        torch.where(visible[..., None], labels, 0),
        visible.float(),
    )


def project(points: Tensor) -> Tensor:
    """Points (..., 3) before the camera -> their image (..., 2)."""
    return points[..., :2] / points[..., 2:].clamp_min(0.05)


def view_rotations(tilt: float, number: int, generator: torch.Generator) -> Tensor:
    """Rz(a) Rx(theta) Rz(b), (N, 3, 3): uniform among those that turn the z axis by at most `tilt`."""
    a, b, height = torch.rand(3, number, generator=generator).unbind()
    theta = torch.acos(1 - height * (1 - math.cos(tilt)))
    return _turn(2 * math.pi * a, 2) @ _turn(theta, 0) @ _turn(2 * math.pi * b, 2)


def _turn(angle: Tensor, axis: int) -> Tensor:
    rotation = torch.eye(3).repeat(len(angle), 1, 1)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[:, i, i] = rotation[:, j, j] = angle.cos()
    rotation[:, j, i], rotation[:, i, j] = angle.sin(), -angle.sin()
    return rotation


def placed(pairs: TwoHands, models: HandPair, rotation: Tensor, point: Tensor, depth: Tensor) -> TwoHands:
    """Pairs with the left hand's frame turned to `rotation` and the middle of all joints seen at `point` (N, 2)."""
    anchor, partner, _ = to_canonical(pairs, models)
    moved = from_canonical(anchor, partner, models, Frame(rotation, torch.zeros(len(pairs), 3)))
    goal = depth[:, None] * torch.cat((point, torch.ones_like(point[:, :1])), -1)
    shift = goal - torch.stack(moved.joints21(), 1).mean((1, 2))
    left, right = (replace(hand, transl=hand.transl + shift) for hand in (moved.left, moved.right))
    return TwoHands(left, right, pairs.hands)


def hidden(joints: Tensor) -> Tensor:
    """Whether flesh of either hand stands before a joint: (N, 2, 21, 3) -> (N, 2, 21) bool."""
    near, far = joints[..., [a for a, _ in BONES], :], joints[..., [b for _, b in BONES], :]
    share = torch.linspace(0.1, 0.9, 4).to(joints)
    flesh = near[..., None, :] + share[:, None] * (far - near)[..., None, :]
    flesh = flesh.flatten(1, 3)[:, None]  # N, 1, 160, 3
    points = joints.flatten(1, 2)
    distance = points.norm(dim=-1, keepdim=True)
    along = (points / distance) @ flesh[:, 0].mT  # how far along the ray to a joint: N, 42, 160
    square = flesh.square().sum(-1)
    beside = square - along.square() < FLESH**2
    apart = distance.square() + square - 2 * distance * along > NEXT**2
    return (beside & apart & (along < distance)).any(-1).unflatten(1, (2, 21))
