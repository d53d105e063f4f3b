"""How bright the skin is: light from all around, and what stands in its way.

The light is a dome of D distant lamps with directions w_d, solid angles dw_d and radiances L_d: a softbox above to
the left, a cool sky, a dim warm ground. At a point with normal n the light that arrives is

    E = sum_d L_d V_d max(0, <n, w_d>) dw_d,        V_d = 1 if nothing stands between the point and lamp d, else 0.

V comes from one depth map per lamp, drawn by the same rasteriser, all maps at once. Soft shadows and the dark line
where two hands touch, which show whether they do, come from this one sum. Light that the neighbouring skin throws
back is the usual geometric series: a point that sees the share o of the dome gets E / (1 - albedo (1 - o)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rasterizer import FloatArray, depth_buffer
from .surface import Surface

__all__ = ["Dome", "skin_light", "studio", "visibility"]

#: Width of a lamp's depth map. The scene spans it, so that one of its pixels is some 2 mm of a pair of hands.
MAP = 112
#: A point is lifted by this many map pixels off its own surface before it looks towards the lamp.
LIFT = 1.0
#: How far light creeps round the terminator on skin, as a cosine.
CREEP = 0.12


@dataclass(frozen=True)
class Dome:
    """Lamps around the scene, in the camera's axes (x right, y up, z towards the viewer).

    Attributes:
        directions: (D, 3) unit vectors towards the lamps.
        radiance: (D, 3) linear RGB times solid angle.
    """

    directions: FloatArray
    radiance: FloatArray


def studio(lamps: int = 72) -> Dome:
    """Softbox above to the left, a weak light from the viewer's right, one behind, sky and ground.

    White skin that faces the softbox comes out near 1.
    """
    i = np.arange(lamps) + 0.5  # Fibonacci's sphere: equal solid angles
    y, angle = 1 - 2 * i / lamps, np.pi * (1 + 5**0.5) * i
    around = np.sqrt(1 - y * y)
    direction = np.stack([around * np.cos(angle), y, around * np.sin(angle)], 1)

    def lobe(towards: tuple[float, float, float], sharpness: float) -> np.ndarray:
        return np.exp(sharpness * (direction @ (np.array(towards) / np.linalg.norm(towards)) - 1))[:, None]

    sky = (y[:, None] + 1) / 2
    radiance = (
        sky * np.array([0.24, 0.27, 0.32])
        + (1 - sky) * np.array([0.15, 0.13, 0.12])
        + lobe((-0.5, 0.75, 0.5), 8.0) * np.array([3.9, 3.65, 3.3])
        + lobe((0.45, 0.1, 0.9), 4.0) * np.array([0.5, 0.5, 0.55])
        + lobe((0.8, 0.2, -0.55), 6.0) * np.array([0.7, 0.8, 1.0])
    )
    return Dome(direction.astype(np.float32), (radiance * (4 / lamps)).astype(np.float32))


def visibility(surface: Surface, blockers: Surface, directions: FloatArray) -> FloatArray:
    """How much of each lamp each vertex sees.

    Args:
        surface: what is lit.
        blockers: what stands in the way (the same thing; a coarser mesh of it is enough).
        directions: (D, 3) unit vectors towards the lamps.

    Returns:
        (V, D) in [0, 1].
    """
    count = len(directions)
    centre = (blockers.vertices.max(0) + blockers.vertices.min(0)) / 2
    radius = float(np.linalg.norm(blockers.vertices - centre, axis=1).max())
    scale = (MAP / 2 - 4) / max(radius, 1e-9)  # map pixels per metre
    across = np.cross(directions, np.eye(3, dtype=np.float32)[np.abs(directions).argmin(1)])
    across = (across / np.linalg.norm(across, axis=1, keepdims=True)).astype(np.float32)
    axes = np.stack([across, np.cross(directions, across), -directions], 1) * np.float32(scale)  # (D, 3, 3)

    def project(points: FloatArray) -> FloatArray:
        """(3, D, V): place in each lamp's map, pixels, and distance from the lamp's plane, also in pixels."""
        place: FloatArray = np.einsum("dij,vj->idv", axes, points - centre, optimize=True)
        place[:2] += MAP / 2
        return place

    # One tall image with the maps below each other.
    x, y, depth = project(blockers.vertices)
    y += (np.arange(count, dtype=np.float32) * MAP)[:, None]
    faces = blockers.faces[None] + (np.arange(count) * len(blockers.vertices))[:, None, None]
    tall = np.stack([x, y], -1).reshape(-1, 2)
    maps = depth_buffer(tall, depth.reshape(-1), faces.reshape(-1, 3), count * MAP, MAP).reshape(-1)

    x, y, depth = project(surface.vertices + surface.normals * np.float32(LIFT / scale))
    row, column = np.clip(y - 0.5, 0, MAP - 2), np.clip(x - 0.5, 0, MAP - 2)
    i, j = row.astype(np.int64), column.astype(np.int64)
    u, v = row - i, column - j
    corner = (np.arange(count) * MAP * MAP)[:, None] + i * MAP + j
    seen = np.zeros_like(depth)
    for offset, weight in ((0, (1 - u) * (1 - v)), (1, (1 - u) * v), (MAP, u * (1 - v)), (MAP + 1, u * v)):
        # A ramp one pixel deep, not a step: no stair-case on slanted skin.
        seen += weight * np.clip(maps[corner + offset] - depth + np.float32(1.5), 0, 1)
    return seen.T


def skin_light(
    surface: Surface, blockers: Surface, albedo: FloatArray, axes: FloatArray, dome: Dome | None = None
) -> FloatArray:
    """Light that leaves each vertex in all directions.

    Args:
        surface: what is lit.
        blockers: what stands in the way, see `visibility`.
        albedo: (V, 3) linear RGB.
        axes: (3, 3) rows: the camera's right, up and backward in the scene's coordinates. The lamps move with it.
        dome: the lamps; `studio()` by default.

    Returns:
        (V, 3) linear RGB.
    """
    dome = dome or studio()
    directions = (dome.directions @ axes).astype(np.float32)
    cosine = np.clip((surface.normals @ directions.T + CREEP) / (1 + CREEP), 0, None)
    reach = visibility(surface, blockers, directions) * cosine
    open_share = (reach.sum(1) / np.maximum(cosine.sum(1), 1e-6))[:, None]
    return albedo * (reach @ dome.radiance) / (1 - 0.9 * albedo * (1 - open_share))
