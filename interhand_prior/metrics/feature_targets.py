"""What the feature network regresses (paper Sec. 4.1), and the pairs' points that it reads.

    left hand_pose 45 | right hand_pose 45 | rot6d 6 | t 3                      the paper's: MANO parameters (Eq. 5)
    left joints 63 | right joints 63 | placed joints 63 | nearness 42           what these parameters do

Axis-angles alone are a poor judge of fingers: a phalanx twisted about its bone, and the next one twisted back, moves no
joint. So joints and tips (21 of each hand) are targets too: those of each hand in its own frame (middle-MCP joint at
the origin, right-hand form), and the right hand's in the left one's. And because contact is what makes an
interaction, the nearness exp(-d / 2 cm) of each joint and tip, d its distance from the other hand's nearest vertex:
left, then right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..canonical import SLICES, from_canonical
from ..hands import TIP_IDS, HandPair
from ..hands.skinning import no_autocast
from ..rotations import mirror_points, rot6d_to_matrix
from .pair_reader import JOINTS

__all__ = [
    "ALL_TARGETS",
    "TARGETS",
    "TARGET_SIZE",
    "Posed",
    "all_targets",
    "pose_pairs",
    "target_groups",
    "target_moments",
    "targets",
    "wanted_targets",
]

TARGETS: dict[str, slice] = {
    "left_pose": slice(0, 45),
    "right_pose": slice(45, 90),
    "rot6d": slice(90, 96),
    "transl": slice(96, 99),
}
TARGET_SIZE = 99

ALL_TARGETS: dict[str, slice] = TARGETS | {
    "left_joints": slice(99, 162),
    "right_joints": slice(162, 225),
    "placed_joints": slice(225, 288),
    "nearness": slice(288, 330),
}

_NEAR = 0.02
_FLOOR = 1e-3


class Posed(NamedTuple):
    """Pairs in the left hand's canonical frame, metres.

    Attributes:
        left: (B, 778, 3) vertices.
        right: (B, 778, 3).
        left_joints: (B, 21, 3) joints and tips.
        right_joints: (B, 21, 3).
    """

    left: Tensor
    right: Tensor
    left_joints: Tensor
    right_joints: Tensor

    def cloud(self) -> tuple[Tensor, Tensor]:
        """The points of both hands (B, 1556, 3), left ones first, and their sides (1556,): 0 left, 1 right."""
        counts = torch.tensor([self.left.shape[1], self.right.shape[1]])
        side = torch.arange(2).repeat_interleave(counts).to(self.left.device)
        return torch.cat((self.left, self.right), 1), side


@torch.no_grad()
def pose_pairs(anchor: Tensor, partner: Tensor, hands: HandPair) -> Posed:
    """Canonical vectors (B, 64), with either hand as the anchor, -> pairs; with the right one, the mirrored pairs."""
    (left, left_joints), (right, right_joints) = hands(from_canonical(anchor, partner, hands))
    tips = torch.tensor(TIP_IDS, device=left.device)
    joints = (torch.cat((j, v[:, tips]), 1) for j, v in ((left_joints, left), (right_joints, right)))
    return Posed(left, right, *joints)


def targets(anchor: Tensor, partner: Tensor) -> Tensor:
    """The paper's targets, in radians and metres: canonical vectors (..., 64) -> (..., 99)."""
    pose = SLICES["hand_pose"]
    return torch.cat((anchor[..., pose], partner[..., pose], partner[..., SLICES["relative"]]), -1)


@torch.no_grad()
def all_targets(anchor: Tensor, partner: Tensor, posed: Posed) -> Tensor:
    """All targets, in radians and metres (nearness has no unit): canonical vectors (B, 64) -> (B, 330)."""
    left, right = posed.left_joints, posed.right_joints
    with no_autocast(left.device):
        rotation, origin = rot6d_to_matrix(partner[:, SLICES["rot6d"]]), partner[:, SLICES["transl"]]
        own = (right - origin[:, None]) @ rotation
        apart = torch.cat((_distance(left, posed.right), _distance(right, posed.left)), 1)
    joints = [v.flatten(1) for v in (mirror_points(left), own, right)]
    return torch.cat((targets(anchor, partner), *joints, (-apart / _NEAR).exp()), 1)


def wanted_targets(anchor: Tensor, partner: Tensor, posed: Posed, count: int) -> Tensor:
    """The targets of a network with `count` of them: the paper's, or all."""
    return targets(anchor, partner) if count == TARGET_SIZE else all_targets(anchor, partner, posed)


def target_groups(count: int) -> dict[str, slice]:
    """The groups of a network with `count` targets."""
    return {name: group for name, group in ALL_TARGETS.items() if group.stop <= count}


def target_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale, (T,) each, of targets (N, T): the paper's number by number, the others group by group.

    A millimetre is then as much at any joint.
    """
    std, mean = torch.std_mean(values.double(), 0)
    for name, group in target_groups(values.shape[1]).items():
        if name not in TARGETS:
            std[group] = std[group].square().mean().sqrt()
    return mean, std.clamp_min(_FLOOR)


def _distance(joints: Tensor, vertices: Tensor) -> Tensor:
    """From each of (B, 21, 3) to the nearest of (B, P, 3): (B, 21)."""
    assert joints.shape[1] == JOINTS
    return torch.cdist(joints, vertices).amin(-1)
