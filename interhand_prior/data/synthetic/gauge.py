r"""Exact twist gauge: turning a phalanx about its own bone and turning the next joint back moves no joint.

.. math::  R_k \to R_k \operatorname{Rot}(b_k, \phi_k), \qquad
           R_{k+1} \to \operatorname{Rot}(b_k, -\phi_k) R_{k+1}

with b_k the rest direction of bone k. The global rotation of bone k becomes G_k Rot(b_k, phi_k) while its children keep
theirs. Fits to images and keypoints hardly see this freedom, so real fits scatter along it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _quaternion(w: Tensor) -> Tensor:
    half = w.pow(2).sum(-1, keepdim=True).add(1e-20).sqrt() / 2
    return torch.cat([half.cos(), w * (half.sin() / (2 * half))], -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    real = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdim=True)
    cross = torch.linalg.cross(a[..., 1:], b[..., 1:])
    return torch.cat([real, a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + cross], -1)


def _axis_angle(q: Tensor) -> Tensor:
    q = torch.where(q[..., :1] < 0, -q, q)
    sine = q[..., 1:].pow(2).sum(-1, keepdim=True).add(1e-24).sqrt()
    return q[..., 1:] / sine * (2 * torch.atan2(sine, q[..., :1]))


def twist_gauge(hand_pose: Tensor, phi: Tensor, bones: Tensor) -> Tensor:
    """Randomise the gauge: the same joint positions, other rotations.

    Args:
        hand_pose: (N, 45) axis-angle, radians.
        phi: (N, 15) twist of each phalanx about its own bone, radians.
        bones: (N or 1, 5, 3, 3) unit rest directions of the phalanges (`skeleton.bone_directions`).

    Returns:
        (N, 45) axis-angle; no joint moves (quaternions inside: exact also near pi).
    """
    n = hand_pose.shape[0]
    twist = bones * phi.reshape(n, 5, 3, 1)
    rotation, turn, back = _quaternion(hand_pose.reshape(n, 5, 3, 3)), _quaternion(twist), _quaternion(-twist)
    first = _product(rotation[:, :, 0], turn[:, :, 0])
    second = _product(_product(back[:, :, 0], rotation[:, :, 1]), turn[:, :, 1])
    third = _product(_product(back[:, :, 1], rotation[:, :, 2]), turn[:, :, 2])
    return _axis_angle(torch.stack([first, second, third], 2)).reshape(n, 45)
