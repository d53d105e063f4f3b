"""Fingers as tubes of rings cast onto the field: vertex counts and tips are exact by construction.

Each ring lies across the bone (bisecting at a joint, three rings close together there so that the bend has a place
to go) and its vertices are hit by rays from the bone. The tip is two full rings on a dome, a ring of half the
count, and the apex: the vertex at the very end, which other people's code takes for the fingertip.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .anthropometry import Array
from .field import field, ray_hit, value_and_gradient
from .skeleton import FRAMES, finger_points

RING_COUNT = {"index": 10, "middle": 10, "ring": 10, "pinky": 9, "thumb": 10}
BASE = {"index": 17.0, "middle": 17.0, "ring": 16.5, "pinky": 13.5, "thumb": 8.5}
"""Where a finger's tube begins: mm beyond the MCP joint. Our choice, at the webs."""
DOME = 7.5
"""Centre of the tip's dome, mm before the tip."""
LATITUDES = (6.0, 37.0, 65.0)
"""Degrees of the dome's rings above its base; the last ring has half the vertices."""

Ring = tuple[Array, Array, Array, Array]


def ring_places(k: str) -> list[Ring]:
    """The rings of a finger, base to tip: centre, axis, lateral, dorsal."""
    points, frames = finger_points(k), FRAMES[k]
    if k == "thumb":
        points, frames = points[1:], frames[1:]
    length = [float(np.linalg.norm(b - a)) for a, b in pairwise(points)]
    if k == "thumb":
        places = [(0, BASE[k]), (0, 14.5), (0, length[0] - 6.0), (0, length[0]), (1, 6.0), (1, 13.0), (1, 19.0)]
    else:
        h = 4.4 if k == "pinky" else 5.2
        places = [
            (0, BASE[k]),
            (0, length[0] - 1.25 * h),
            (0, length[0]),
            (1, 1.15 * h),
            (1, length[1] - h),
            (1, length[1]),
            (2, h),
            (2, length[2] * 0.5),
        ]
        if k != "pinky":
            places.insert(1, (0, (BASE[k] + length[0] - 1.25 * h) / 2))
    rings = []
    for bone, s in places:
        t, w, u = frames[bone]
        centre = points[bone] + s * t
        if abs(s - length[bone]) < 1e-6 and bone + 1 < len(frames):
            t = frames[bone][0] + frames[bone + 1][0]
            t = t / np.linalg.norm(t)
            u = u - t * (u @ t)
            u = u / np.linalg.norm(u)
            w = np.cross(t, u)
        rings.append((centre, t, w, u))
    return rings


def finger_tube(k: str) -> tuple[Array, np.ndarray, Ring]:
    """Vertices (base ring first, apex last), outward faces, and the base ring of one finger."""

    def fn(p: Array) -> Array:
        return field(p, only=k)

    n = RING_COUNT[k]
    half = n // 2
    rings = ring_places(k)
    blocks = []
    for centre, _, w, u in rings:
        a = np.arange(n) * 2 * np.pi / n
        rays = np.cos(a)[:, None] * u + np.sin(a)[:, None] * w
        blocks.append(ray_hit(fn, np.repeat(centre[None], n, 0), rays))
    t, w, u = FRAMES[k][2]
    centre = finger_points(k)[3] - DOME * t
    for latitude, m in zip(LATITUDES, (n, n, half), strict=True):
        a, lat = np.arange(m) * 2 * np.pi / m, np.radians(latitude)
        rays = np.cos(lat) * (np.cos(a)[:, None] * u + np.sin(a)[:, None] * w) + np.sin(lat) * t
        blocks.append(ray_hit(fn, np.repeat(centre[None], m, 0), rays))
    blocks.append(ray_hit(fn, centre[None], t[None]))
    start = np.cumsum([0] + [len(b) for b in blocks])
    faces: list[tuple[int, int, int]] = []
    for r in range(len(blocks) - 3):
        for i in range(n):
            j = (i + 1) % n
            a0, b0, c0, d0 = start[r] + i, start[r] + j, start[r + 1] + i, start[r + 1] + j
            # diagonals mirror about the finger's middle plane
            faces += [(a0, b0, d0), (a0, d0, c0)] if i < n / 2 else [(a0, b0, c0), (b0, d0, c0)]
    _strip(faces, int(start[-4]), n, int(start[-3]), half)
    faces += [(start[-3] + i, start[-3] + (i + 1) % half, start[-2]) for i in range(half)]
    vertices, triangles = np.concatenate(blocks), np.array(faces, dtype=np.int64)
    normals = np.cross(
        vertices[triangles[:, 1]] - vertices[triangles[:, 0]], vertices[triangles[:, 2]] - vertices[triangles[:, 0]]
    )
    _, g = value_and_gradient(fn, vertices[triangles].mean(1))
    if (normals * g).sum() < 0:
        triangles = triangles[:, ::-1]
    return vertices, triangles, rings[0]


def _strip(faces: list[tuple[int, int, int]], first: int, n: int, second: int, m: int) -> None:
    """Faces between a ring of n and a ring of m vertices, greedily by angle."""
    i = j = 0
    while i < n or j < m:
        step = (i + 1) / n - 1e-9 <= (j + 1) / m + (1e-6 if i % 2 else -1e-6)
        if j >= m or (i < n and step):
            faces.append((first + i % n, first + (i + 1) % n, second + j % m))
            i += 1
        else:
            faces.append((first + i % n, second + (j + 1) % m, second + j % m))
            j += 1
