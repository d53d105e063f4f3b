r"""Batched contact solver: from an archetype's placement, Adam over the relative pose and both hands' 40 angles.

The energy per pair, in the units of millimetres squared:

.. math::  E = \sum_{ij} \Big[\frac{R_{ij}^2 - d_{ij}^2}{2 R_{ij}}\Big]_+^2 + E_\text{self} + \sum_c k_c (d_c - g)^2
               + E_\text{wrap} + E_\text{range} + E_\text{natural}

over ball pairs ij of the two hands with R the sum of radii and d the distance of centres; the first term equals the
squared overlap to first order, and its gradient is closed-form (`BallPenetration`: three batched products, no square
root). The left hand is the anchor: identity rotation, middle MCP at the origin; millimetres throughout. Off-axis part,
gauge and shape of each hand stay fixed, so contact is solved on the hand as it is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interhand_prior.rotations import axis_angle_to_matrix

from .anatomy import DOF_MAX, DOF_MIN
from .skeleton import MIRROR
from .spheres import Body, distances, open_hand_spheres, self_penetration

STEPS = 64
_T_UNIT = 50.0  # mm per unit of the translation variables


class BallPenetration(torch.autograd.Function):
    """sum over ball pairs of relu(R / 2 - d^2 / 2R)^2 with d^2 from centres (N, P, 3) and (N, Q, 3).

    ``half_reach`` is R / 2 and ``inverse`` 1 / 2R, each (N, P, Q); a pair that may overlap has R tiny. Returns (N,).
    Gradient for the centres only: d/da_i = -4 sum_j w_ij (a_i - b_j) with w = overlap / 2R, and the opposite for b.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, half_reach: Tensor, inverse: Tensor) -> Tensor:
        """One (N, P, Q) buffer serves the squared distance, the overlap and the weights of the gradient."""
        square = a.pow(2).sum(-1)[:, :, None] + b.pow(2).sum(-1)[:, None]
        buffer = square.baddbmm_(a, b.transpose(1, 2), alpha=-2.0)
        buffer = torch.addcmul(half_reach, buffer, inverse, value=-1.0, out=buffer).clamp_min_(0)
        energy = torch.linalg.vector_norm(buffer, dim=(1, 2)).square()
        ctx.save_for_backward(a, b, buffer.mul_(inverse))
        return energy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Three batched products."""
        a, b, weights = ctx.saved_tensors
        factor = -4 * grad[:, None, None]
        grad_a = weights.sum(2)[..., None] * a - weights @ b
        grad_b = weights.sum(1)[..., None] * b - weights.transpose(1, 2) @ a
        return factor * grad_a, factor * grad_b, None, None


def reach_tables(radii_a: Tensor, radii_b: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """radii (N, P), (N, Q), scale (P, Q) -> R / 2 and 1 / 2R, (N, P, Q) each; where scale is 0, nothing collides."""
    reach = radii_a[:, :, None] + radii_b[:, None]
    if scale is not None:
        reach = (reach * scale).clamp_min_(0.02)
    return reach * 0.5, 0.5 / reach


@dataclass(frozen=True)
class Pairs:
    """N pairs: two bodies (both in right-hand form), their angles (N, 20) and the right hand in the left one's frame.

    Attributes:
        rotation: (N, 3, 3). translation: (N, 3) mm, from middle MCP to middle MCP. kind: (N,) archetype index.
    """

    left: Body
    right: Body
    dof_left: Tensor
    dof_right: Tensor
    rotation: Tensor
    translation: Tensor
    kind: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Tensor) -> Pairs:
        return Pairs(**{k: getattr(self, k)[index] for k in self.__dataclass_fields__})

    def balls(self) -> tuple[Tensor, Tensor]:
        """Ball centres of the left and of the right hand in the common frame, (N, S + 3, 3) each."""
        left, right = self.left.balls(self.dof_left)[0], self.right.balls(self.dof_right)[0]
        return left * MIRROR, right @ self.rotation.transpose(1, 2) + self.translation[:, None]


@dataclass(frozen=True)
class Goal:
    """What the solver aims at, per pair.

    Attributes:
        ball_left, ball_right: (N, 2) balls that should be ``gap`` (N,) mm apart. stick: (N, 2) how strongly, 0 where
        there is no second contact. wrap: (N,) pull of fingers. stiff: (N,) pull of every angle to where it started.
    """

    ball_left: Tensor
    ball_right: Tensor
    gap: Tensor
    wrap: Tensor
    stick: Tensor
    stiff: Tensor

    def __getitem__(self, index: Tensor) -> Goal:
        return Goal(**{k: getattr(self, k)[index] for k in self.__dataclass_fields__})


def _pull(gap: Tensor) -> Tensor:
    """A redescending pull towards touch: full at hand, none far away."""
    return (gap.clamp_min(0).pow(2) / (gap.pow(2) + 225)).sum(1)


def solve(start: Pairs, goal: Goal, *, steps: int = STEPS) -> tuple[Pairs, Tensor]:
    """Minimise the energy; returns the pairs and how far their angles moved on average (N,), radians."""
    spheres = open_hand_spheres()
    n, count = len(start), len(spheres)
    rows = torch.arange(n)
    reaching = ((spheres.fingers >= 0) & (spheres.arc > 0.9)).nonzero()[:, 0]
    radii_l, radii_r = start.left.radii, start.right.radii
    reach = radii_l[rows[:, None], goal.ball_left] + radii_r[rows[:, None], goal.ball_right] + goal.gap[:, None]
    low, high = DOF_MIN.repeat(2), DOF_MAX.repeat(2)
    x = torch.cat([start.dof_left, start.dof_right, torch.zeros(n, 3), start.translation / _T_UNIT], 1)
    origin = x[:, :40].clone()
    rate = torch.cat([torch.full((40,), 0.03), torch.full((3,), 0.025), torch.full((3,), 0.04)])
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    cross = reach_tables(radii_l + 0.15, radii_r + 0.15)
    own_rows = spheres.self_rows
    own_l = reach_tables(radii_l[:, own_rows], radii_l[:, :count], spheres.self_scale)
    own_r = reach_tables(radii_r[:, own_rows], radii_r[:, :count], spheres.self_scale)

    def at(x: Tensor) -> Pairs:
        rotation = axis_angle_to_matrix(x[:, 40:43]) @ start.rotation
        return replace(
            start, dof_left=x[:, :20], dof_right=x[:, 20:40], rotation=rotation, translation=x[:, 43:] * _T_UNIT
        )

    for step in range(steps):
        late = step / steps
        x.requires_grad_(True)
        a, b = at(x).balls()
        energy = (1 + 2 * late) * BallPenetration.apply(a, b, *cross)
        if step % 3 == 0:  # every third step is enough for what changes slowly
            energy = energy + 1.5 * BallPenetration.apply(a[:, own_rows], a[:, :count], *own_l)
            energy = energy + 1.5 * BallPenetration.apply(b[:, own_rows], b[:, :count], *own_r)
            with torch.no_grad():
                near_l = (distances(a[:, reaching], b[:, :count]) - radii_r[:, None, :count]).argmin(2)
                near_r = (distances(b[:, reaching], a[:, :count]) - radii_l[:, None, :count]).argmin(2)
        apart = a[rows[:, None], goal.ball_left] - b[rows[:, None], goal.ball_right]
        touch = apart.pow(2).sum(-1).add(1e-3).sqrt()
        energy = energy + (goal.stick * (touch - reach).pow(2)).sum(1)
        r, c = rows[:, None], reaching
        gap_l = (a[:, c] - b[r, near_l]).pow(2).sum(-1).add(1e-3).sqrt() - radii_l[:, c] - radii_r[r, near_l]
        gap_r = (b[:, c] - a[r, near_r]).pow(2).sum(-1).add(1e-3).sqrt() - radii_r[:, c] - radii_l[r, near_r]
        energy = energy + 4 * goal.wrap * (_pull(gap_l) + _pull(gap_r))
        dof = x[:, :40]
        outside = (low - dof).clamp_min(0).pow(2) + (dof - high).clamp_min(0).pow(2)
        energy = energy + 2000 * outside.sum(1) + goal.stiff * (dof - origin).pow(2).sum(1) / 0.09
        energy = energy + 4 * x[:, 40:43].pow(2).sum(1) / 0.09
        (grad,) = torch.autograd.grad(energy.sum(), x)
        x = x.detach()
        first = 0.85 * first + 0.15 * grad
        second = 0.97 * second + 0.03 * grad * grad
        move = (first / (1 - 0.85 ** (step + 1))) / ((second / (1 - 0.97 ** (step + 1))).sqrt() + 1e-6)
        x = x - rate * (0.5 + 0.5 * math.cos(math.pi * late)) * move
    x[:, :40] = torch.minimum(torch.maximum(x[:, :40], low), high)
    return at(x), (x[:, :40] - origin).abs().mean(1)


def ball_report(pairs: Pairs) -> dict[str, Tensor]:
    """Per pair, mm: ``depth`` of the hands, ``depth_self`` and ``near`` (smallest gap)."""
    count = len(open_hand_spheres())
    a, b = (centres[:, :count] for centres in pairs.balls())
    gap = distances(a, b) - pairs.left.radii[:, :count, None] - pairs.right.radii[:, None, :count]
    own = torch.maximum(self_penetration(a, pairs.left.radii), self_penetration(b, pairs.right.radii))
    near = gap.amin((1, 2))
    return {"depth": (-near).clamp_min(0), "depth_self": own, "near": near}
