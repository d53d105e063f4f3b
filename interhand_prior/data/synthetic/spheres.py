r"""A sphere-swept stand-in for the open hand's skin, fitted to its mesh; what the contact solver collides.

A ball is placed where it is largest inside the mesh: along each phalanx by a search around the bone, in the palm by
greedy cover of its vertices. Its centre is an affine combination of nearby vertices,

.. math::  c = \sum_v a_v x_v, \quad \sum_v a_v = 1 \text{ (least norm)}, \qquad
           c(\beta) = \sum_v a_v x_v(\beta)

so it moves exactly with any affine change of shape, and its radius follows the mean distance to the nearest vertices.
With the shape and the gauge of a hand known, what is left is a rigid set of balls per bone: `Body`. Millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from interhand_prior.rotations import axis_angle_to_matrix

from .anatomy import to_hand_pose
from .gauge import twist_gauge
from .single_hand import Traits
from .skeleton import (
    FINGERS,
    MM,
    Skeleton,
    bone_directions,
    forward_kinematics,
    open_hand_model,
    open_hand_skeleton,
)

_PALM_BALLS = 30  # at most
_COVER = 1.5  # a vertex this far outside a ball still counts as covered
_MAX_FINGER_RADIUS = 12.5  # the ball at a knuckle must not fill the palm
MAX_SELF_DEPTH = 2.5
"""mm: balls of one hand that must stay apart overlap by less (`self_penetration`)."""
FOREARM: Tensor = torch.tensor([[32.3, -0.4, -0.2], [54.3, -0.4, -0.2], [76.3, -0.4, -0.2]])
"""Balls of a forearm the mesh does not have, from the wrist joint, so that no hand stands where an arm is."""
FOREARM_RADII: Tensor = torch.tensor([17.0, 18.0, 19.0])


@dataclass(frozen=True)
class Spheres:
    """S balls of the mean hand at rest and how they follow betas.

    Attributes:
        centres: (S, 3) in the model's frame. radii: (S,). centre_dirs: (S, 3, 10). radius_dirs: (S, 10).
        bones: (S,) joint that carries each. fingers: (S,) index into `FINGERS`, -1 for the palm.
        arc: (S,) place along the finger, 0 at its base, 3 at its tip.
        self_rows: (P,) finger balls beyond the webs. self_scale: (P, S) which balls of the same hand they must not
            enter, as the share of the summed radii that counts (fingers press each other flat), else 0.
    """

    centres: Tensor
    radii: Tensor
    centre_dirs: Tensor
    radius_dirs: Tensor
    bones: Tensor
    fingers: Tensor
    arc: Tensor
    self_rows: Tensor
    self_scale: Tensor

    def __len__(self) -> int:
        return len(self.radii)


def _largest_ball(points: Tensor, vertices: Tensor) -> tuple[Tensor, float]:
    """Of candidate centres (K, 3), the one farthest from all vertices, slightly preferring the first."""
    radius = torch.cdist(points, vertices).amin(1)
    best = int((radius - 0.05 * (points - points[0]).norm(dim=1)).argmax())
    return points[best], float(radius[best])


def _finger_balls(skeleton: Skeleton, vertices: Tensor) -> list[tuple[Tensor, float, int, int, float]]:
    grid = torch.arange(-5.0, 5.01, 1.0)
    offsets = torch.cartesian_prod(grid, grid)
    offsets = offsets[offsets.norm(dim=1) <= 5.0]
    offsets = offsets[offsets.norm(dim=1).argsort(stable=True)]
    out = []
    for f, name in enumerate(FINGERS):
        chain = torch.cat([skeleton.joints[1 + 3 * f : 4 + 3 * f], skeleton.tips[f : f + 1]])
        for segment in range(3):
            a, b = chain[segment], chain[segment + 1]
            u = (b - a) / (b - a).norm()
            side = torch.linalg.cross(u, torch.tensor([0.0, 1.0, 0.0]))
            side = side / side.norm()
            plane = offsets @ torch.stack([side, torch.linalg.cross(u, side)])
            count = 4 if segment == 0 and name != "pinky" else 3
            for k in range(count):
                centre, radius = _largest_ball(a + (b - a) * (k / count) + plane, vertices)
                out.append((centre, min(radius, _MAX_FINGER_RADIUS), 1 + 3 * f + segment, f, segment + k / count))
            if segment == 2:  # the pulp: the ball that just reaches the tip
                best = max(
                    (_largest_ball(b - u * back + plane, vertices) for back in torch.arange(3.0, 9.0, 1.0).tolist()),
                    key=lambda ball: float((ball[0] - a) @ u) + ball[1] - 0.3 * abs(ball[1] - out[-1][1]),
                )
                out.append((*best, 1 + 3 * f + 2, f, 3.0))
    return out


def _palm_balls(vertices: Tensor, normals: Tensor, bone: Tensor) -> list[tuple[Tensor, float, int, int, float]]:
    palm = bone == 0
    low, high = vertices[palm].amin(0), vertices[palm].amax(0)
    axes = [torch.arange(float(a), float(b), 3.5) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    distance = torch.cdist(grid, vertices)
    nearest = distance.argmin(1)
    inside = ((grid - vertices[nearest]) * normals[nearest]).sum(1) < 0
    radius = distance.amin(1)
    ok = inside & (radius > 5)
    grid, radius, distance = grid[ok], radius[ok].clamp_max(17.0), distance[ok]
    covers = ((distance < radius[:, None] + _COVER) & palm).float()
    left = palm.float()
    out: list[tuple[Tensor, float, int, int, float]] = []
    while len(out) < _PALM_BALLS:
        gain = covers @ left
        best = int(gain.argmax())
        if gain[best] < 2:
            break
        left = left * (1 - covers[best])
        out.append((grid[best], float(radius[best]), 0, -1, 1.0))
    return out


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(..., V, 3) vertices, (F, 3) faces -> (..., V, 3) unit normals, area-weighted."""
    a, b, c = (vertices[..., faces[:, k], :] for k in range(3))
    face = torch.linalg.cross(b - a, c - a)
    out = torch.zeros_like(vertices)
    for k in range(3):
        out = out.index_add(-2, faces[:, k], face)
    return out / out.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def fit_spheres() -> Spheres:
    """Fit the balls to the bundled open hand (deterministic, a fraction of a second)."""
    model, skeleton = open_hand_model(), open_hand_skeleton()
    vertices, shapes = MM * model.v_template.float(), MM * model.shapedirs.float()
    bone = model.weights.argmax(1)
    balls = _finger_balls(skeleton, vertices)
    balls += _palm_balls(vertices, vertex_normals(vertices, model.faces), bone)
    centres, radii = torch.stack([b[0] for b in balls]), torch.tensor([b[1] for b in balls])
    bones, fingers, arc = (torch.tensor([b[k] for b in balls]) for k in (2, 3, 4))
    centre_dirs, radius_dirs = [], []
    for centre in centres:
        near = (vertices - centre).norm(dim=1).argsort()[:24]
        rows = torch.cat([torch.ones(1, 24), vertices[near].T / 10]).double()
        wanted = torch.cat([torch.ones(1), centre / 10]).double()
        weights = torch.linalg.lstsq(rows, wanted[:, None], driver="gelsd").solution[:, 0].float()
        centre_dirs.append(torch.einsum("v,vck->ck", weights, shapes[near]))
        out = torch.nn.functional.normalize(vertices[near[:12]] - centre, dim=1)
        radius_dirs.append(torch.einsum("vc,vck->k", out, shapes[near[:12]] - centre_dirs[-1]) / 12)
    own_rows, scale = _self_pairs(centres, radii, fingers, arc)
    return Spheres(
        centres, radii, torch.stack(centre_dirs), torch.stack(radius_dirs), bones, fingers, arc, own_rows, scale
    )


def _self_pairs(centres: Tensor, radii: Tensor, fingers: Tensor, arc: Tensor) -> tuple[Tensor, Tensor]:
    """Different fingers beyond their webs (each pair once), and fingers against the palm they do not grow from."""
    rows = ((fingers >= 0) & (arc >= 0.6)).nonzero()[:, 0]
    f, g = fingers[rows][:, None], fingers[None]
    gap = torch.cdist(centres[rows], centres) - radii[rows][:, None] - radii
    beyond = (g > f) & (arc >= 0.6)
    palm = (g < 0) & (gap > 4) & (arc[rows][:, None] > 1.0)
    return rows, 0.85 * beyond + 0.9 * palm


@lru_cache(maxsize=1)
def open_hand_spheres() -> Spheres:
    """The fitted balls, cached."""
    return fit_spheres()


@dataclass(frozen=True)
class Body:
    """N hands of given shape and traits; only the 20 angles are free.

    Attributes:
        joints: (N, 16, 3) rest joints, middle MCP at the origin. bones: (N, 5, 3, 3) phalanx directions.
        offsets: (N, S + 3, 3) ball centres from their joint, gauge included (forearm last). radii: (N, S + 3).
        traits: off-axis part and gauge.
    """

    joints: Tensor
    bones: Tensor
    offsets: Tensor
    radii: Tensor
    traits: Traits

    def __getitem__(self, index: Tensor) -> Body:
        parts = {k: getattr(self, k)[index] for k in ("joints", "bones", "offsets", "radii", "traits")}
        return replace(self, **parts)

    def pose(self, dof: Tensor) -> Tensor:
        """dof (N, 20) -> hand_pose (N, 45) before the gauge."""
        return to_hand_pose(dof, self.traits.off_axis)

    def full_pose(self, dof: Tensor) -> Tensor:
        """dof (N, 20) -> hand_pose (N, 45) with the gauge: what is written."""
        return twist_gauge(self.pose(dof), self.traits.phi, self.bones)

    def balls(self, dof: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dof (N, 20) -> centres (N, S + 3, 3), bone rotations before the gauge (N, 16, 3, 3), joints (N, 16, 3)."""
        rotations, places = forward_kinematics(self.pose(dof), self.joints)
        carrier = carriers()
        centres = places[:, carrier] + (rotations[:, carrier] @ self.offsets[..., None])[..., 0]
        return centres, rotations, places


@lru_cache(maxsize=1)
def carriers() -> Tensor:
    """(S + 3,) the joint that carries each ball, forearm last."""
    return torch.cat([open_hand_spheres().bones, torch.zeros(len(FOREARM), dtype=torch.long)])


def make_body(betas: Tensor, traits: Traits) -> Body:
    """Balls of N hands with shapes (N, 10); the gauge turns each phalanx's balls about its bone (children stay)."""
    spheres, skeleton = open_hand_spheres(), open_hand_skeleton()
    n = len(betas)
    joints, tips = skeleton.rest(betas)
    bones = bone_directions(joints, tips)
    origin = (skeleton.joints + torch.einsum("nk,jck->njc", betas, skeleton.joint_dirs))[:, 4:5]
    centres = spheres.centres + torch.einsum("nk,sck->nsc", betas, spheres.centre_dirs) - origin
    offsets = centres - joints[:, spheres.bones]
    turn = axis_angle_to_matrix(bones * traits.phi.reshape(n, 5, 3, 1)).reshape(n, 15, 3, 3)
    turn = torch.cat([torch.eye(3).expand(n, 1, 3, 3), turn], 1)
    offsets = (turn[:, spheres.bones] @ offsets[..., None])[..., 0]
    radii = (spheres.radii + betas @ spheres.radius_dirs.T).clamp_min(3.0)
    offsets = torch.cat([offsets, FOREARM.expand(n, -1, -1)], 1)
    radii = torch.cat([radii, FOREARM_RADII.expand(n, -1)], 1)
    return Body(joints, bones, offsets, radii, traits)


def self_penetration(centres: Tensor, radii: Tensor) -> Tensor:
    """Deepest overlap (N,) in mm of balls inside one hand that must stay apart."""
    spheres = open_hand_spheres()
    rows, count = spheres.self_rows, len(spheres)
    reach = (radii[:, rows, None] + radii[:, None, :count]) * spheres.self_scale
    return (reach - distances(centres[:, rows], centres[:, :count])).clamp_min(0).amax((1, 2))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, P, 3), (N, Q, 3) -> (N, P, Q), through a Gram product."""
    square = torch.baddbmm(a.pow(2).sum(-1)[:, :, None] + b.pow(2).sum(-1)[:, None], a, b.transpose(1, 2), alpha=-2.0)
    return square.clamp_min(1e-2).sqrt()
