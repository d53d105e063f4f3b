"""Rotations: axis-angle w in R^3, matrix R in SO(3), and the 6D form of Zhou et al. (CVPR 2019).

    R = exp([w]x) = I + sin(a)/a [w]x + (1 - cos(a))/a^2 [w]x^2,        a = |w|     (Rodrigues)

Every function is batched over leading axes, keeps dtype and device, and has finite values and gradients
everywhere, at a = 0 and a = pi too. The 6D form holds the first two ROWS of R (PyTorch3D's choice, and that of
the official InterHandGen vectors); roma and Zhou et al. hold the first two columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "axis_angle_to_matrix",
    "matrix_to_axis_angle",
    "matrix_to_rot6d",
    "mirror_axis_angle",
    "mirror_points",
    "rot6d_to_matrix",
]


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula.

    Args:
        axis_angle: (..., 3), radians.

    Returns:
        (..., 3, 3) rotation matrices.
    """
    square = (axis_angle * axis_angle).sum(-1)
    # Below this the series is exact to rounding, and the quotients below would be 0/0 (in their gradients first).
    small = square < (1e-2 if axis_angle.dtype == torch.float64 else 1e-1)
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sinc = torch.where(small, _series(square, _SINC), angle.sin() / angle)
    cosc = torch.where(small, _series(square, _COSC), (1 - angle.cos()) / (angle * angle))
    x, y, z = axis_angle.unbind(-1)
    sx, sy, sz = sinc * x, sinc * y, sinc * z
    cx, cy, cz = cosc * x, cosc * y, cosc * z
    rows = (
        1 - cy * y - cz * z, cx * y - sz, cx * z + sy,
        cx * y + sz, 1 - cx * x - cz * z, cy * z - sx,
        cx * z - sy, cy * z + sx, 1 - cx * x - cy * y,
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


# sin(a)/a and (1 - cos(a))/a^2 as series in a^2, long enough for float64 below a^2 = 1e-2.
_SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800)
_COSC = (1 / 2, -1 / 24, 1 / 720, -1 / 40320, 1 / 3628800, -1 / 479001600)


def _series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    out = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        out = out * x + c
    return out


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """The rotation vector of length at most pi.

    Goes through the unit quaternion whose largest component is solved for first (Shepperd 1978), so nothing is
    divided by a small number. At exactly pi both signs of the axis are right; one of them is returned.

    Args:
        matrix: (..., 3, 3) rotation matrices.

    Returns:
        (..., 3) radians.
    """
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Four times each squared component; at least one of them is >= 1.
    four = torch.stack((1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz), -1)
    best = four.argmax(-1, keepdim=True)
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    table = torch.stack(
        (
            torch.stack((four[..., 0], wx, wy, wz), -1),
            torch.stack((wx, four[..., 1], xy, xz), -1),
            torch.stack((wy, xy, four[..., 2], yz), -1),
            torch.stack((wz, xz, yz, four[..., 3]), -1),
        ),
        -2,
    )
    row = table.gather(-2, best[..., None].expand(*best.shape, 4)).squeeze(-2)
    quaternion = row / row.square().sum(-1, keepdim=True).sqrt()
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, v = quaternion[..., 0], quaternion[..., 1:]
    square = v.square().sum(-1)
    small = square < 1e-6
    length = torch.where(small, torch.ones_like(square), square).sqrt()
    # angle / sin(angle/2); the series of 2 asin(s)/s where s is small.
    scale = torch.where(small, 2 + square / 3 + 3 * square * square / 20, 2 * torch.atan2(length, w) / length)
    return v * scale[..., None]


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """The first two rows of (..., 3, 3) as (..., 6)."""
    return matrix[..., :2, :].flatten(-2)


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """Gram-Schmidt on the two rows (Zhou et al., CVPR 2019, Eq. 15).

    Args:
        rot6d: (..., 6), any real numbers; two parallel or zero rows give finite values, though no rotation.

    Returns:
        (..., 3, 3) rotation matrices whose first two rows are the orthonormalised input rows.
    """
    first, second = rot6d[..., :3], rot6d[..., 3:]
    first = _unit(first)
    second = _unit(second - (first * second).sum(-1, keepdim=True) * first)
    return torch.stack((first, second, torch.linalg.cross(first, second)), -2)


def _unit(vector: Tensor) -> Tensor:
    tiny = torch.finfo(vector.dtype).tiny ** 0.5
    return vector / vector.square().sum(-1, keepdim=True).clamp_min(tiny).sqrt()


def mirror_axis_angle(axis_angle: Tensor) -> Tensor:
    """Gamma of the paper (Sec. 3.3) on rotations: conjugation by diag(-1, 1, 1), (x, y, z) -> (x, -y, -z).

    Args:
        axis_angle: (..., 3 k) radians: one rotation, or k of them flattened (a hand_pose).

    Returns:
        The same shape.
    """
    sign = axis_angle.new_tensor((1.0, -1.0, -1.0))
    return (axis_angle.unflatten(-1, (-1, 3)) * sign).flatten(-2)


def mirror_points(points: Tensor) -> Tensor:
    """Gamma on points and translations (..., 3): x -> -x."""
    return points * points.new_tensor((-1.0, 1.0, 1.0))
