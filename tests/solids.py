"""Surfaces with known geometry, and an exact test of what is inside one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def icosphere(level: int, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) and outward faces (F, 3); V = 10 4^level + 2. Point-symmetric, with vertices on the x axis."""
    golden = (1 + math.sqrt(5)) / 2
    corners = torch.tensor(
        [point for a in (-1.0, 1.0) for b in (-golden, golden) for point in ((0, a, b), (a, b, 0), (b, 0, a))],
        dtype=torch.float64,
    )
    corners = corners / corners.norm(dim=1, keepdim=True)
    gap = torch.cdist(corners, corners)
    near = gap < gap[gap > 0].min() * 1.01
    triples = torch.combinations(torch.arange(12), 3)
    i, j, k = triples.unbind(1)
    faces = triples[near[i, j] & near[j, k] & near[i, k]]
    inward = torch.linalg.det(corners[faces]) < 0
    faces[inward] = faces[inward].flip(1)
    # A rotation whose first column is (up to sign) corner 0 takes that corner to the x axis.
    turn = torch.linalg.qr(torch.cat((corners[:1], torch.eye(3, dtype=torch.float64)[:2])).mT).Q
    vertices = corners @ (turn * torch.linalg.det(turn))
    for _ in range(level):
        edges = torch.cat((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))
        unique, which = edges.sort(1).values.unique(dim=0, return_inverse=True)
        middle = vertices[unique].mean(1)
        ab, bc, ca = (which + len(vertices)).chunk(3)
        vertices = torch.cat((vertices, middle / middle.norm(dim=1, keepdim=True)))
        a, b, c = faces.unbind(1)
        parts = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        faces = torch.cat([torch.stack(part, 1) for part in parts])
    return vertices * radius, faces


def inside(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """Which points (N, 3) are inside a closed surface: the solid angle of all its faces is 4 pi there, else 0.

    Solid angle of a triangle: Van Oosterom and Strackee 1983.
    """
    found = []
    for block in points.split(1000):
        a, b, c = (vertices[faces] - block[:, None, None]).unbind(2)
        la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
        volume = (a * torch.linalg.cross(b, c)).sum(-1)
        cosine = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        found.append(2 * torch.atan2(volume, cosine).sum(-1) > 2 * math.pi)
    return torch.cat(found)
