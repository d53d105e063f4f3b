"""Where to look from.

A pair is seen best from where both hands show. Directions on two rings round the pair are tried at thumbnail size;
the one that shows most of the less visible hand wins (then most of both, and little of the cut through the wrist).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..hands import WRIST_LOOP
from .rasterizer import FloatArray, rasterize
from .surface import Surface

__all__ = ["Camera", "best_directions", "fit_camera", "look", "upward"]

#: Tangent of half the field of view: a long lens, as for a portrait.
LENS = 0.16
AZIMUTHS = 14
ELEVATIONS = (0.1, 0.65)
THUMBNAIL = 32
#: Vertices of a MANO-like hand in front of and behind the knuckle of the index, middle and little finger (IntagHand).
INDEX, MIDDLE, LITTLE = (63, 144), (271, 220), (770, 83)


@dataclass(frozen=True)
class Camera:
    """A perspective camera.

    Attributes:
        axes: (3, 3) rows: right, up, backward (towards the viewer), in the scene's coordinates.
        eye: (3,) where it stands, metres.
    """

    axes: FloatArray
    eye: FloatArray

    def project(self, points: FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
        """Places (V, 2) in a square image of `size` pixels, x right and y down, and depths (V,) in metres."""
        x, y, z = ((points - self.eye) @ self.axes.T).T
        scale = size / (2 * LENS) / -z
        return np.stack([size / 2 + x * scale, size / 2 - y * scale], 1).astype(np.float32), (-z).astype(np.float32)


def look(direction: FloatArray, up: FloatArray) -> FloatArray:
    """Camera axes (3, 3) for a viewer who stands in `direction` and holds `up` upward."""
    back = direction / np.linalg.norm(direction)
    right = np.cross(up, back)
    if np.linalg.norm(right) < 1e-6:
        right = _across(back)
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back]).astype(np.float32)


def fit_camera(points: FloatArray, axes: FloatArray, margin: float = 0.04) -> Camera:
    """The nearest camera with these axes that has all points in its square picture, centred.

    Args:
        points: (V, 3) metres.
        axes: (3, 3) as in `Camera`.
        margin: free border, as a share of the picture.
    """
    local = points @ axes.T
    lens = LENS * (1 - 2 * margin)
    # |x - eye_x| <= lens (eye_z - z) for every point is two half-planes per axis; the outermost ones fix the eye.
    plus, minus = (local[:, :2] + lens * local[:, 2:]).max(0), (local[:, :2] - lens * local[:, 2:]).min(0)
    distance = max(float((plus - minus).max()) / (2 * lens), float(local[:, 2].max()) + 1e-3)
    return Camera(axes, (np.append((plus + minus) / 2, distance) @ axes).astype(np.float32))


def upward(surface: Surface) -> FloatArray:
    """(3,) where the fingers of the hands point together; where the thumbs are when the fingers oppose each other.

    Meshes with fewer vertices than MANO's hand have no known fingers: for them y is up.
    """
    y_axis = np.array([0, 1, 0], np.float32)
    fingers, thumbs = np.zeros(3), np.zeros(3)
    for part in np.unique(surface.part):
        points = surface.vertices[surface.part == part]
        if len(points) < 778:
            return y_axis
        wrist, index, middle, little = (points[list(ids)].mean(0) for ids in (WRIST_LOOP, INDEX, MIDDLE, LITTLE))
        fingers += (middle - wrist) / max(float(np.linalg.norm(middle - wrist)), 1e-9)
        thumbs += (index - little) / max(float(np.linalg.norm(index - little)), 1e-9)
    for total, enough in ((fingers, 0.9), (thumbs, 0.5)):
        if np.linalg.norm(total) > enough:
            return (total / np.linalg.norm(total)).astype(np.float32)
    return y_axis


def best_directions(surface: Surface, up: FloatArray, number: int) -> list[FloatArray]:
    """Unit directions (3,) towards viewers who see all parts well, best first.

    Each is well aside (some 50 to 130 degrees) of the first. Of equals, the first wins.
    """
    start = _across(up)
    side = np.cross(up, start)
    angle = 2 * np.pi * np.arange(AZIMUTHS) / AZIMUTHS
    around = np.cos(angle)[:, None] * start + np.sin(angle)[:, None] * side
    tried = np.concatenate([np.cos(e) * around + np.sin(e) * up for e in ELEVATIONS]).astype(np.float32)
    scores = np.array([_shown(surface, look(direction, up)) for direction in tried])
    # Rounding makes mirror images differ in the last digits; do not let it choose.
    scores = np.round(scores / max(float(np.abs(scores).max()), 1e-12), 3)
    chosen: list[FloatArray] = []
    while len(chosen) < number:
        best = int(scores.argmax())
        chosen.append(tried[best])
        scores[np.abs(tried @ chosen[0]) > 0.64] = -np.inf
        scores[best] = -np.inf
    return chosen


def _shown(surface: Surface, axes: FloatArray) -> float:
    """How much of the parts one sees: the worst counts most, a look into the wrist counts against."""
    camera = fit_camera(surface.vertices, axes)
    xy, depth = camera.project(surface.vertices, THUMBNAIL)
    corner = surface.faces[rasterize(xy, depth, surface.faces, THUMBNAIL, THUMBNAIL).face, 0]
    area = depth[corner] ** 2  # on the hand, not in the picture: coming nearer must not count
    cut = surface.cut[corner]
    shown = np.bincount(surface.part[corner], np.where(cut, 0, area), minlength=int(surface.part.max()) + 1)
    shown = shown[np.unique(surface.part)]
    return float(shown.min() + 0.15 * shown.sum() - area[cut].sum())


def _across(vector: FloatArray) -> FloatArray:
    """(3,) some unit vector at right angles to `vector`."""
    across = np.cross(vector, np.eye(3)[np.abs(vector).argmin()])
    return (across / np.linalg.norm(across)).astype(np.float32)
