"""Slow, sure measures of two triangle meshes, for tests: winding numbers and every triangle."""

from __future__ import annotations

import numpy as np
import torch


def brute_force(
    left: torch.Tensor, faces_l: torch.Tensor, right: torch.Tensor, faces_r: torch.Tensor
) -> tuple[float, float]:
    """Smallest distance of either's vertices to the other mesh, and the deepest of those inside; sealed, mm."""
    gap, depth = np.inf, 0.0
    for points, mesh, faces in ((left, right, faces_r), (right, left, faces_l)):
        to_vertex = torch.cdist(points, mesh).amin(1)
        # no point of a hand is more than 2 cm from its skin; and the nearest vertices hold the nearest point
        p = points[to_vertex < max(20.0, float(to_vertex.min()) + 4)]
        distance = point_mesh_distance(p, mesh, faces)
        inside = winding_number(p, mesh, faces).abs() > 0.5
        gap = min(gap, float(torch.where(inside, torch.zeros_like(distance), distance).min()))
        if inside.any():
            depth = max(depth, float(distance[inside].max()))
    return gap, depth


def winding_number(p: torch.Tensor, mesh: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Van Oosterom and Strackee's solid angles, summed."""
    a, b, c = (mesh[faces[:, k]] - p[:, None] for k in range(3))
    la, lb, lc = (v.norm(dim=-1) for v in (a, b, c))
    top = (a * torch.linalg.cross(b, c)).sum(-1)
    bottom = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return torch.atan2(top, bottom).sum(1) / (2 * torch.pi)


def point_mesh_distance(p: torch.Tensor, mesh: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Plane distance where the foot lies inside the triangle, else the nearest of its three edges."""
    a, b, c = (mesh[faces[:, k]] for k in range(3))
    n = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    q = p[:, None]
    height = ((q - a) * n).sum(-1)
    foot = q - height[..., None] * n
    inside = torch.stack(
        [(torch.linalg.cross((v - u)[None], foot - u) * n).sum(-1) for u, v in ((a, b), (b, c), (c, a))]
    )
    plane = torch.where((inside >= 0).all(0), height.abs(), torch.full_like(height, np.inf))
    edges = []
    for u, v in ((a, b), (b, c), (c, a)):
        t = (((q - u) * (v - u)).sum(-1) / (v - u).pow(2).sum(-1)).clamp(0, 1)
        edges.append((q - u - t[..., None] * (v - u)).norm(dim=-1))
    return torch.stack([plane, *edges]).amin(0).amin(1)
