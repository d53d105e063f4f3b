r"""Contact on the open hand's real surface: measuring it, finishing it, and the final word on a pair.

The signed distance of a vertex p of one hand to the other one's (sealed) mesh is taken at the nearest point q of the
triangles round its nearest vertex, with the sign of (p - q) . n, n the interpolated vertex normal there. Balls only
approximate skin (creases, pulps, pose correctives), so after `contact.solve` the constraints found on the mesh,

.. math::  (p_i(x) - q_i(x)) \cdot n_i \ge 0 \text{ for all } i, \qquad \min_i (p_i - q_i) \cdot n_i \le \text{touch}

with p and q bound rigidly to their bones, are met by a few steps on the same 46 variables, and measured afresh.

Limits of a finished pair: depth at most `MAX_DEPTH` = 2 mm (skin gives that much), and for kinds that touch the
surfaces come nearer than `TOUCH` = 3 mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from interhand_prior.hands.wrist import sealed_vertices
from interhand_prior.params import HandParams
from interhand_prior.rotations import axis_angle_to_matrix

from .anatomy import DOF_MAX, DOF_MIN
from .contact import Pairs
from .skeleton import MIRROR, MM, forward_kinematics, open_hand_model
from .spheres import Body, vertex_normals

MAX_DEPTH = 2.0
TOUCH = 3.0
_KEPT = 96  # vertices per hand whose exact distance is worked out: the deepest and the nearest
_GIVE = 0.2  # mm of overlap that finishing leaves alone: skin yields, and contacts stay areas, not points
_BATCH = 64  # pairs worked on at once
_MATRICES = 8  # and whose 779 x 779 distances are held at once


@lru_cache(maxsize=1)
def _triangle_fan() -> Tensor:
    """(779, M) triangles round each vertex of the sealed mesh, the first one repeated to fill."""
    faces = open_hand_model().sealed_faces
    fans: list[list[int]] = [[] for _ in range(int(faces.max()) + 1)]
    for index, face in enumerate(faces.tolist()):
        for vertex in face:
            fans[vertex].append(index)
    width = max(len(fan) for fan in fans[:-1])
    # The cap's centre has sixteen, which the rim's vertices carry too; the width is set by the skin.
    return torch.tensor([(fan + [fan[0]] * width)[:width] for fan in fans])


@lru_cache(maxsize=1)
def _vertex_bones() -> Tensor:
    """(779,) the joint that moves each vertex most; the cap's centre goes with the wrist."""
    return torch.cat([open_hand_model().weights.argmax(1), torch.zeros(1, dtype=torch.long)])


@dataclass(frozen=True)
class Near:
    """The K closest vertices of one hand to the other one's surface.

    Attributes:
        vertex: (N, K). distance: (N, K) signed mm, negative inside. corners: (N, K, 3) vertices of the other hand whose
        mix by weights (N, K, 3) is the nearest point. normal: (N, K, 3) outward there.
    """

    vertex: Tensor
    distance: Tensor
    corners: Tensor
    weights: Tensor
    normal: Tensor


def closest_on_triangles(p: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Barycentric weights (..., 3) of the point of triangle abc nearest to p; all (..., 3). Ericson 2004, ch. 5.1.5."""
    dot = lambda u, v: (u * v).sum(-1)
    ab, ac, ap = b - a, c - a, p - a
    d1, d2 = dot(ab, ap), dot(ac, ap)
    d3, d4 = d1 - dot(ab, ab), d2 - dot(ab, ac)
    d5, d6 = d1 - dot(ab, ac), d2 - dot(ac, ac)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    safe = lambda x: torch.where(x.abs() < 1e-12, torch.full_like(x, 1e-12), x)
    total = safe(va + vb + vc)
    v, w = vb / total, vc / total
    zero, one = torch.zeros_like(v), torch.ones_like(v)

    def put(mask: Tensor, new_v: Tensor, new_w: Tensor) -> None:
        nonlocal v, w
        v, w = torch.where(mask, new_v, v), torch.where(mask, new_w, w)

    t = (d4 - d3) / safe((d4 - d3) + (d5 - d6))
    put((va <= 0) & (d4 - d3 >= 0) & (d5 - d6 >= 0), 1 - t, t)
    put((vb <= 0) & (d2 >= 0) & (d6 <= 0), zero, d2 / safe(d2 - d6))
    put((vc <= 0) & (d1 >= 0) & (d3 <= 0), d1 / safe(d1 - d3), zero)
    put((d6 >= 0) & (d5 <= d6), zero, one)
    put((d3 >= 0) & (d4 <= d3), one, zero)
    put((d1 <= 0) & (d2 <= 0), zero, zero)
    return torch.stack([1 - v - w, v, w], -1)


def skin(body: Body, dof: Tensor, betas: Tensor) -> Tensor:
    """Sealed right-hand mesh (N, 779, 3) in mm, middle MCP at the origin."""
    n = len(dof)
    zero = dof.new_zeros(n, 3)
    params = HandParams(zero, body.full_pose(dof), betas, zero)
    vertices, joints = open_hand_model()(params)
    return sealed_vertices((vertices - joints[:, 4:5]) * MM)


@lru_cache(maxsize=1)
def _memory() -> Tensor:
    """Scratch memory that every call of this process shares: fresh pages would cost more than the sums."""
    return torch.empty(_MATRICES, 779, 779)


def _nearest_vertices(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Nearest vertex of b for each of a, and of a for each of b: squared distances and indices, (N, 779) each.

    The index rides in the ten lowest bits of the squared distance: non-negative floats order as integers do, and a
    plain minimum is several times faster than one that also tracks where. Distances keep four digits.
    """
    one = torch.ones_like(a[..., :1])
    # |a|^2 + |b|^2 - 2 a.b as one product
    augmented_a = torch.cat([-2 * a, a.pow(2).sum(-1, keepdim=True), one], -1)
    augmented_b = torch.cat([b, one, b.pow(2).sum(-1, keepdim=True)], -1)
    index = torch.arange(779, dtype=torch.int32)
    parts = []
    for x, y in zip(augmented_a.split(_MATRICES), augmented_b.split(_MATRICES), strict=True):
        square = torch.bmm(x, y.transpose(1, 2), out=_memory()[: len(x)])
        keys = square.clamp_min_(0).view(torch.int32)
        to_b = keys.bitwise_and_(-1024).bitwise_or_(index).amin(2)
        to_a = keys.bitwise_and_(-1024).bitwise_or_(index[:, None]).amin(1)
        parts.append(((to_b & -1024).view(torch.float32), to_b & 1023, (to_a & -1024).view(torch.float32), to_a & 1023))
    distance_b, at_b, distance_a, at_a = (torch.cat(column) for column in zip(*parts, strict=True))
    return distance_b, at_b.long(), distance_a, at_a.long()


def _one_way(a: Tensor, b: Tensor, normal_b: Tensor, nearest2: Tensor, nearest: Tensor) -> Near:
    """Vertices of a (N, V, 3) against mesh b, given each one's nearest vertex of b."""
    faces, n = open_hand_model().sealed_faces, len(a)
    rows = torch.arange(n)[:, None]
    inside = ((a - b[rows, nearest]) * normal_b[rows, nearest]).sum(-1) < 0
    guess = nearest2.sqrt() * torch.where(inside, -1.0, 1.0)
    kept = guess.topk(_KEPT, dim=1, largest=False).indices
    near = nearest.gather(1, kept)
    p = a[rows, kept]
    corners = faces[_triangle_fan()[near]]  # (N, K, M, 3)
    r = torch.arange(n)[:, None, None]
    tri = [b[r, corners[..., k]] for k in range(3)]
    weights = closest_on_triangles(p[:, :, None], *tri)
    point = sum(weights[..., k, None] * tri[k] for k in range(3))
    best = (p[:, :, None] - point).pow(2).sum(-1).argmin(2)
    take = lambda x: x.gather(2, best[:, :, None, None].expand(-1, -1, 1, x.shape[-1]))[:, :, 0]
    point, corners, weights = take(point), take(corners), take(weights)
    normal = (weights[..., None] * normal_b[r, corners]).sum(2)
    normal = torch.nn.functional.normalize(normal, dim=-1, eps=1e-9)
    offset = p - point
    sign = torch.where((offset * normal).sum(-1) < 0, -1.0, 1.0)
    return Near(kept, sign * offset.norm(dim=-1), corners, weights, normal)


def _query(left: Tensor, right: Tensor) -> tuple[Near, Near]:
    """Both directions between two sealed meshes in one frame, the left one with mirrored (inward) winding."""
    faces = open_hand_model().sealed_faces
    normal_l, normal_r = -vertex_normals(left, faces), vertex_normals(right, faces)
    to_right, at_right, to_left, at_left = _nearest_vertices(left, right)
    return _one_way(left, right, normal_r, to_right, at_right), _one_way(right, left, normal_l, to_left, at_left)


def meshes(pairs: Pairs, betas_left: Tensor, betas_right: Tensor) -> tuple[Tensor, Tensor]:
    """Sealed meshes of both hands in the common frame, (N, 779, 3) mm each."""
    left = skin(pairs.left, pairs.dof_left, betas_left) * MIRROR
    right = skin(pairs.right, pairs.dof_right, betas_right)
    return left, right @ pairs.rotation.transpose(1, 2) + pairs.translation[:, None]


def surface_report(left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Penetration and touch of two sealed meshes, (N, 779, 3) mm in one frame.

    Returns:
        Per pair (N,), mm: ``depth`` the deepest vertex, ``mean_depth`` over the vertices inside (0 if none), ``near``
        the smallest distance between the surfaces (0 where they penetrate); ``area`` vertices of either within 2 mm.
    """
    out = []
    for start in range(0, len(left), _BATCH):
        one, two = _query(left[start : start + _BATCH], right[start : start + _BATCH])
        d = torch.cat([one.distance, two.distance], 1)
        inside = (-d).clamp_min(0)
        count = (inside > 0).sum(1).clamp_min(1)
        out.append((inside.amax(1), inside.sum(1) / count, d.amin(1).clamp_min(0), (d < 2).sum(1).float()))
    columns = [torch.cat(c) for c in zip(*out, strict=True)] if out else [torch.zeros(0)] * 4
    return dict(zip(("depth", "mean_depth", "near", "area"), columns, strict=True))


def _bind(body: Body, dof: Tensor, vertices: Tensor) -> Tensor:
    """Offsets (N, 779, 3) of posed right-hand vertices in the frame of the joint that moves them most."""
    rotations, places = forward_kinematics(body.pose(dof), body.joints)
    bones = _vertex_bones()
    return ((vertices - places[:, bones])[..., None, :] @ rotations[:, bones])[..., 0, :]


def _correct(pairs: Pairs, skins: tuple[Tensor, Tensor], touching: Tensor, steps: int) -> Pairs:
    """A few Adam steps on the constraints the meshes show now."""
    world_l = skins[0] * MIRROR
    world_r = skins[1] @ pairs.rotation.transpose(1, 2) + pairs.translation[:, None]
    near = _query(world_l, world_r)
    bound = (_bind(pairs.left, pairs.dof_left, skins[0]), _bind(pairs.right, pairs.dof_right, skins[1]))
    n, bones, r = len(pairs), _vertex_bones(), torch.arange(len(pairs))[:, None]
    own = [near[k].vertex for k in range(2)]
    # the nearest point belongs to the bone of its heaviest corner
    heavy = [near[k].corners.gather(2, near[k].weights.argmax(2, keepdim=True))[..., 0] for k in range(2)]
    target = []
    for k in range(2):
        other = skins[1 - k]
        rows = torch.arange(n)[:, None, None]
        target.append((near[k].weights[..., None] * other[rows, near[k].corners]).sum(2))
    x = torch.cat([pairs.dof_left, pairs.dof_right, torch.zeros(n, 3), pairs.translation / 50], 1)
    origin, low, high = x.clone(), DOF_MIN.repeat(2), DOF_MAX.repeat(2)
    rate = torch.cat([torch.full((40,), 0.012), torch.full((3,), 0.008), torch.full((3,), 0.012)])
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    sides = (pairs.left, pairs.right)
    chains = [forward_kinematics(s.pose(d), s.joints) for s, d in zip(sides, (x[:, :20], x[:, 20:40]), strict=True)]
    target_offset = []
    for k in range(2):
        rotations, places = chains[1 - k]
        b = bones[heavy[k]]
        target_offset.append(((target[k] - places[r, b])[..., None, :] @ rotations[r, b])[..., 0, :])
    offset = [bound[k][r, own[k]] for k in range(2)]

    def place(side: int, rotations: Tensor, places: Tensor, b: Tensor, o: Tensor, turn: Tensor, t: Tensor) -> Tensor:
        p = places[r, b] + (rotations[r, b] @ o[..., None])[..., 0]
        return p * MIRROR if side == 0 else p @ turn.transpose(1, 2) + t[:, None]

    # what is pressed together now should stay in touch
    pressed = (torch.cat([near[0].distance, near[1].distance], 1) < 0).float()
    for step in range(steps):
        x.requires_grad_(True)
        turn, t = axis_angle_to_matrix(x[:, 40:43]) @ pairs.rotation, x[:, 43:] * 50
        posed = [forward_kinematics(s.pose(d), s.joints) for s, d in zip(sides, (x[:, :20], x[:, 20:40]), strict=True)]
        gaps = []
        for k in range(2):
            p = place(k, *posed[k], bones[own[k]], offset[k], turn, t)
            q = place(1 - k, *posed[1 - k], bones[heavy[k]], target_offset[k], turn, t)
            gaps.append(((p - q) * near[k].normal).sum(-1))
        # the linear gap is wrong for points that are far along the surface; they are far from touching anyway
        gap = torch.cat(gaps, 1)
        energy = (-_GIVE - gap).clamp_min(0).pow(2).sum(1) + touching * (gap.amin(1) - 0.2).clamp_min(0).pow(2)
        energy = energy + 0.1 * (pressed * gap.clamp_min(0).pow(2)).sum(1)
        energy = energy + 4 * (x[:, :40] - origin[:, :40]).pow(2).sum(1)
        (grad,) = torch.autograd.grad(energy.sum(), x)
        x = x.detach()
        first, second = 0.7 * first + 0.3 * grad, 0.9 * second + 0.1 * grad * grad
        move = (first / (1 - 0.7 ** (step + 1))) / ((second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-3)
        x = x - rate * (1 - 0.8 * step / steps) * move
    x[:, :40] = torch.minimum(torch.maximum(x[:, :40], low), high)
    return replace(
        pairs, dof_left=x[:, :20], dof_right=x[:, 20:40], rotation=axis_angle_to_matrix(x[:, 40:43]) @ pairs.rotation,
        translation=x[:, 43:] * 50,
    )  # fmt: skip


def finish(
    pairs: Pairs, betas: tuple[Tensor, Tensor], touching: Tensor, *, rounds: int = 4, steps: int = 8
) -> tuple[Pairs, dict[str, Tensor]]:
    """Move pairs until their meshes touch without penetrating; returns them with `surface_report` of the result.

    Only pairs deeper than .8 mm or, where ``touching`` (N,) bool, farther than 1 mm are worked on in each round. Some
    never get there: the caller rejects by the report, which is always that of the pair as returned.
    """
    n = len(pairs)
    dof_l, dof_r = pairs.dof_left.clone(), pairs.dof_right.clone()
    rotation, translation = pairs.rotation.clone(), pairs.translation.clone()
    report = {k: torch.zeros(n) for k in ("depth", "mean_depth", "near", "area")}
    todo = torch.arange(n)
    for turn in range(rounds + 1):
        left_over = []
        for part in todo.split(_BATCH):
            now = replace(
                pairs[part], dof_left=dof_l[part], dof_right=dof_r[part], rotation=rotation[part],
                translation=translation[part],
            )  # fmt: skip
            skins = (
                skin(now.left, now.dof_left, betas[0][part]),
                skin(now.right, now.dof_right, betas[1][part]),
            )
            found = surface_report(
                skins[0] * MIRROR, skins[1] @ now.rotation.transpose(1, 2) + now.translation[:, None]
            )
            for key, value in found.items():
                report[key][part] = value
            bad = (found["depth"] > 0.8) | (touching[part] & (found["near"] > 1.0))
            if turn == rounds or not bad.any():
                continue
            part = part[bad]
            now = _correct(now[bad], (skins[0][bad], skins[1][bad]), touching[part], steps)
            dof_l[part], dof_r[part] = now.dof_left, now.dof_right
            rotation[part], translation[part] = now.rotation, now.translation
            left_over.append(part)
        todo = torch.cat(left_over) if left_over else todo[:0]
        if not len(todo):
            break
    done = replace(pairs, dof_left=dof_l, dof_right=dof_r, rotation=rotation, translation=translation)
    return done, report
