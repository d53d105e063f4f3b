r"""Twenty anatomical degrees of freedom of a hand, their axes and ranges.

.. math::  \theta = A d + o

with d (20,) joint angles, A (45, 20) their axes on the open hand and o (45,) what anatomy does not name (off-axis
twist and abduction of real fits; `single_hand`). Order of d: for index, middle, pinky, ring: MCP flexion, MCP radial
deviation, PIP flexion, DIP flexion; then thumb: CMC flexion, CMC abduction, MCP flexion, IP flexion. Radians.

Signs and thumb axes are MANO's convention; ranges follow the clinical tables (MCP 90/0-45, PIP 100/0, DIP 80/0, thumb
MCP 60/8, IP 88/12 degrees), moved by some 10 degrees because the rest pose is itself slightly flexed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .skeleton import Skeleton, open_hand_skeleton

NUM_DOF = 20
DEGREE = math.pi / 180
THUMB_AXES: Tensor = torch.nn.functional.normalize(
    torch.tensor([[0.63, -0.76, 0.13], [0.43, -0.82, 0.39], [0.44, -0.82, 0.37]]), dim=1
)
"""Flexion axes of the thumb's CMC, MCP and IP joints, right hand."""

DOF_MIN: Tensor = DEGREE * torch.tensor([-30.0, -30.0, -12.0, -20.0] * 4 + [-30.0, -30.0, -28.0, -28.0])
DOF_MAX: Tensor = DEGREE * torch.tensor([90.0, 30.0, 105.0, 80.0] * 4 + [58.0, 45.0, 60.0, 85.0])
DOF_MAX[9] = 36 * DEGREE  # the little finger is splayed at rest


def make_axes(skeleton: Skeleton) -> Tensor:
    """A (45, 20) for a skeleton: a finger's flexion axis lies half-way between +z and the normal of its own plane."""
    axes = torch.zeros(45, NUM_DOF)
    up, lateral = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    for finger in range(4):
        across = torch.linalg.cross(skeleton.finger_directions[finger], up)
        axis = across / across.norm() + lateral
        axis = axis / axis.norm()
        for joint, column in enumerate((0, 2, 3)):
            row = 9 * finger + 3 * joint
            axes[row : row + 3, 4 * finger + column] = axis
        axes[9 * finger + 1, 4 * finger + 1] = 1.0
    metacarpal = skeleton.joints[14] - skeleton.joints[13]
    abduction = torch.linalg.cross(metacarpal, THUMB_AXES[0])
    axes[36:39, 16], axes[36:39, 17] = THUMB_AXES[0], abduction / abduction.norm()
    axes[39:42, 18], axes[42:45, 19] = THUMB_AXES[1], THUMB_AXES[2]
    return axes


@lru_cache(maxsize=1)
def dof_axes() -> Tensor:
    """A (45, 20) of the open hand."""
    return make_axes(open_hand_skeleton())


@lru_cache(maxsize=1)
def off_axis_projector() -> Tensor:
    """(45, 45) projector onto everything orthogonal to the anatomical axes."""
    q, _ = torch.linalg.qr(dof_axes().double())
    return (torch.eye(45, dtype=torch.float64) - q @ q.T).float()


def soft_clamp(dof: Tensor) -> Tensor:
    """Bring (N, 20) angles smoothly into their ranges."""
    low, high = DOF_MIN + 0.01, DOF_MAX - 0.01
    dof = low + torch.nn.functional.softplus(dof - low, beta=25.0)
    return high - torch.nn.functional.softplus(high - dof, beta=25.0)


def to_hand_pose(dof: Tensor, off_axis: Tensor) -> Tensor:
    """dof (N, 20), off_axis (N, 45) -> hand_pose (N, 45)."""
    return dof @ dof_axes().T + off_axis
