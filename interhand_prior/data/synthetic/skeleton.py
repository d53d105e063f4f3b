r"""The open hand's bones in millimetres: rest joints with their shape directions, and the forward kinematics.

.. math::  G_k = G_{p(k)} R(\theta_k), \qquad  P_k = P_{p(k)} + G_{p(k)} (J_k - J_{p(k)})

All of this package's solver works on right hands in millimetres with the middle MCP at the origin; a left hand is the
mirror image (x -> -x) of a right one with the same parameters. The root is left at the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from interhand_prior.hands import open_hands
from interhand_prior.hands.model import MIDDLE_MCP, TIP_IDS, HandModel
from interhand_prior.rotations import axis_angle_to_matrix

MM = 1000.0
FINGERS: tuple[str, ...] = ("index", "middle", "pinky", "ring", "thumb")
MIRROR: Tensor = torch.tensor([-1.0, 1.0, 1.0])
_TIP_ORDER = ("thumb", "index", "middle", "ring", "pinky")


@dataclass(frozen=True)
class Skeleton:
    """Rest joints (16, 3), tips (5, 3; in the order of `FINGERS`) in mm and their shape directions (..., 3, 10)."""

    joints: Tensor
    joint_dirs: Tensor
    tips: Tensor
    tip_dirs: Tensor

    @cached_property
    def bone_directions(self) -> Tensor:
        """(5, 3, 3): unit rest direction of every phalanx, the last one towards the tip (mean shape)."""
        return bone_directions(self.joints[None], self.tips[None])[0]

    @cached_property
    def finger_directions(self) -> Tensor:
        """(5, 3): unit direction from each finger's first joint to its tip."""
        d = self.tips - self.joints[1::3]
        return d / d.norm(dim=-1, keepdim=True)

    def rest(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """betas (N, 10) -> joints (N, 16, 3), tips (N, 5, 3) in mm, the middle MCP at the origin."""
        joints = self.joints + torch.einsum("nk,jck->njc", betas, self.joint_dirs)
        tips = self.tips + torch.einsum("nk,jck->njc", betas, self.tip_dirs)
        origin = joints[:, MIDDLE_MCP : MIDDLE_MCP + 1]
        return joints - origin, tips - origin


def bone_directions(joints: Tensor, tips: Tensor) -> Tensor:
    """joints (N, 16, 3), tips (N, 5, 3) -> unit phalanx directions (N, 5, 3, 3)."""
    chain = torch.cat([joints[:, 1:].reshape(-1, 5, 3, 3), tips[:, :, None]], 2)
    d = chain[:, :, 1:] - chain[:, :, :-1]
    return d / d.norm(dim=-1, keepdim=True)


def forward_kinematics(hand_pose: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations and places of the 16 bones, root at the identity.

    Args:
        hand_pose: (N, 45) axis-angle, radians, right-hand form.
        joints: (N, 16, 3) rest joints, any unit.

    Returns:
        G (N, 16, 3, 3) global rotations and P (N, 16, 3) joint positions.
    """
    n = hand_pose.shape[0]
    local = axis_angle_to_matrix(hand_pose.reshape(n, 5, 3, 3))
    rest = joints[:, 1:].reshape(n, 5, 3, 3)
    g0, p0 = local[:, :, 0], rest[:, :, 0]
    p1 = p0 + (g0 @ (rest[:, :, 1] - rest[:, :, 0])[..., None])[..., 0]
    g1 = g0 @ local[:, :, 1]
    p2 = p1 + (g1 @ (rest[:, :, 2] - rest[:, :, 1])[..., None])[..., 0]
    g2 = g1 @ local[:, :, 2]
    eye = torch.eye(3, dtype=hand_pose.dtype, device=hand_pose.device).expand(n, 1, 3, 3)
    rotations = torch.cat([eye, torch.stack([g0, g1, g2], 2).reshape(n, 15, 3, 3)], 1)
    places = torch.cat([joints[:, :1], torch.stack([p0, p1, p2], 2).reshape(n, 15, 3)], 1)
    return rotations, places


def open_hand_model() -> HandModel:
    """The bundled right hand."""
    return open_hands().right


@lru_cache(maxsize=1)
def open_hand_skeleton() -> Skeleton:
    """The bundled hand's skeleton in mm."""
    model = open_hand_model()
    regressor, template, dirs = model.J_regressor.double(), model.v_template.double(), model.shapedirs.double()
    tip_ids = list(TIP_IDS)
    tips = [tip_ids[_TIP_ORDER.index(f)] for f in FINGERS]
    return Skeleton(
        joints=(MM * regressor @ template).float(),
        joint_dirs=(MM * torch.einsum("jv,vck->jck", regressor, dirs)).float(),
        tips=(MM * template[tips]).float(),
        tip_dirs=(MM * dirs[tips]).float(),
    )
