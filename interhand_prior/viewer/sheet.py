"""Pictures of pairs of hands, several to a sheet, as arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import best_directions, fit_camera, look, upward
from .light import skin_light
from .rasterizer import FloatArray, IntArray, rasterize
from .surface import Surface, Topology, join

__all__ = ["COLOURS", "MAX_CELLS", "contact_sheet", "draw", "tile"]

Image = NDArray[np.uint8]
Colour = tuple[float, float, float]

#: Linear-light colours of the first (left) and the second (right) hand; further meshes are grey.
COLOURS: tuple[Colour, ...] = ((0.80, 0.42, 0.27), (0.22, 0.42, 0.68), (0.55, 0.55, 0.52))
#: The cut through the wrist is this much darker than the skin.
CUT = 0.5
#: More cells than this on one sheet is taken for a mistake.
MAX_CELLS = 1024
OVERSAMPLING = 2
REFINEMENT = 1


def contact_sheet(
    vertices: Sequence[Any],
    faces: Sequence[Any],
    *,
    present: Sequence[Any] | None = None,
    size: int = 320,
    views: int | Sequence[Sequence[float]] = 1,
    up: Sequence[float] | None = None,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    colours: Sequence[Colour] = COLOURS,
    background: Colour = (1.0, 1.0, 1.0),
) -> Image:
    """Draw scenes of a few meshes each, side by side. The same input gives the same pixels.

    Args:
        vertices: one (N, V_k, 3) array or tensor per mesh of a scene, metres: `hands.vertices()` for N pairs.
        faces: one (F_k, 3) array or tensor per mesh: `hands.faces`.
        present: one (N,) array or tensor of bool per mesh, False where it is not drawn: `hands.valid`; None: all are.
        size: width and height of a cell, pixels.
        views: 1 or 2 pictures of each scene, the first from where both hands show best, the second from the best
            place aside of it; or directions (3,) towards the viewer, the same for all scenes.
        up: direction that points up in the picture; by default, where the fingers point.
        columns: scenes in a row; chosen by default.
        labels: one text per scene.
        colours: linear RGB in [0, 1], one per mesh.
        background: linear RGB.

    Returns:
        (height, width, 3) RGB bytes.

    Raises:
        ValueError: shapes that do not fit together, NaN, nothing to draw, too much to draw.
        ImportError: there are labels, and Pillow is missing.
    """
    points, triangles, there = _check_meshes(vertices, faces, present)
    count = len(points[0])
    directions, number = _check_views(views)
    if not isinstance(size, int) or not 16 <= size <= 8192:
        raise ValueError(f"size must be an integer number of pixels from 16 to 8192, got {size!r}")
    if count * number > MAX_CELLS:
        raise ValueError(f"{count} scenes in {number} views are too many for one sheet; draw at most {MAX_CELLS} cells")
    if columns is not None and (not isinstance(columns, int) or columns < 1):
        raise ValueError(f"columns must be a positive integer, got {columns!r}")
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must hold one text for each of the {count} scenes, got {len(labels)}")
    if labels is not None:
        _pillow()  # fail before the work
    if len(colours) < len(points):
        raise ValueError(f"colours must hold one colour for each of the {len(points)} meshes, got {len(colours)}")
    palette = np.asarray(colours, np.float32)
    held = None if up is None else _direction(up, "up")
    topologies = [
        [Topology(f, p.shape[1], level) for p, f in zip(points, triangles, strict=True)] for level in (0, REFINEMENT)
    ]

    def cell(i: int) -> Image:
        coarse, fine = (
            join([t.surface(p[i], k) for k, (p, t) in enumerate(zip(points, topology, strict=True)) if there[k][i]])
            for topology in topologies
        )
        upright = upward(coarse) if held is None else held
        towards = best_directions(coarse, upright, number) if directions is None else directions
        images = [draw(fine, coarse, look(d, upright), size, palette, background) for d in towards]
        return np.concatenate(images, 1)

    # numpy lets other threads run inside its loops, and the order of the cells does not depend on them.
    with ThreadPoolExecutor(min(count, os.cpu_count() or 1, 8)) as pool:
        cells = list(pool.map(cell, range(count)))
    if columns is None:
        columns = _columns(count, number)
    return tile(cells, min(columns, count), labels, background)


def draw(
    surface: Surface,
    blockers: Surface,
    axes: FloatArray,
    size: int,
    colours: FloatArray,
    background: Colour = (1.0, 1.0, 1.0),
) -> Image:
    """One square picture that the scene fills.

    Args:
        surface: what is seen.
        blockers: the same, perhaps coarser; casts the shadows.
        axes: (3, 3) the camera's axes, see `camera.Camera`.
        size: pixels.
        colours: (P, 3) linear RGB per part.
        background: linear RGB.

    Returns:
        (size, size, 3) sRGB bytes.
    """
    camera = fit_camera(surface.vertices, axes)
    fine = size * OVERSAMPLING
    albedo = colours[surface.part] * np.where(surface.cut, np.float32(CUT), np.float32(1))[:, None]
    skin = skin_light(surface, blockers, albedo, axes)
    xy, depth = camera.project(surface.vertices, fine)
    hit = rasterize(xy, depth, surface.faces, fine, fine)
    corner = surface.faces[hit.face]
    weights = hit.weights[:, None]
    shade = (weights @ skin[corner])[:, 0]
    # A faint sheen where the skin turns away, in proportion to the light there.
    facing = np.clip((weights @ (surface.normals @ axes[2])[corner][..., None])[:, 0], 0, 1)
    shade = shade + 0.25 * shade.mean(1, keepdims=True) * (1 - facing) ** 3
    image = np.empty((fine * fine, 3), np.float32)
    image[:] = background
    image[hit.pixel] = np.clip(shade, 0, 1)
    return _encode(image.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3).mean((1, 3)))


def tile(
    cells: Sequence[Image], columns: int, labels: Sequence[str] | None = None, background: Colour = (1.0, 1.0, 1.0)
) -> Image:
    """Lay out equal pictures row by row.

    Args:
        cells: (height, width, 3) each.
        columns: in a row; what is missing in the last row is background.
        labels: one text per cell, written above it, which takes a tenth of its height more (needs Pillow).
        background: linear RGB.

    Returns:
        (rows * height, columns * width, 3), where height includes that of the labels.
    """
    height, width, _ = cells[0].shape
    strip = 0 if labels is None else max(14, height // 10)
    height += strip
    rows = math.ceil(len(cells) / columns)
    sheet = np.empty((rows * height, columns * width, 3), np.uint8)
    sheet[:] = _encode(np.array(background, np.float32))
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        sheet[row * height + strip : (row + 1) * height, column * width : (column + 1) * width] = cell
    if labels is None:
        return sheet
    pil_image, pil_draw, pil_font = _pillow()
    picture = pil_image.fromarray(sheet)
    pen = pil_draw.Draw(picture)
    font = pil_font.load_default(0.7 * strip)
    for i, label in enumerate(labels):
        row, column = divmod(i, columns)
        pen.text((column * width + strip // 4, row * height + strip // 8), str(label), fill=(70, 70, 70), font=font)
    return np.asarray(picture)


def _columns(count: int, width: int) -> int:
    """Columns for scenes `width` times as wide as high: a sheet of about 3 : 2 with few empty places."""
    wanted = math.sqrt(1.5 * count / width)
    cost = lambda c: -count % c / count + abs(math.log(c / wanted))
    return min(range(1, count + 1), key=cost)


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError('labels need Pillow; install it with: pip install "interhand_prior[viewer]"') from error
    return Image, ImageDraw, ImageFont


def _encode(linear: FloatArray) -> Image:
    """Linear light in [0, 1] to sRGB bytes."""
    encoded = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-6) ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


def _array(value: Any) -> NDArray[Any]:
    """Array of a tensor (any device, any floating type, with a graph or without) or of anything like an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def _check_meshes(
    vertices: Sequence[Any], faces: Sequence[Any], present: Sequence[Any] | None
) -> tuple[list[FloatArray], list[IntArray], list[NDArray[np.bool_]]]:
    if len(vertices) == 0 or len(vertices) != len(faces):
        raise ValueError(f"vertices and faces must hold one array per mesh, got {len(vertices)} and {len(faces)}")
    points, triangles = [_array(v) for v in vertices], [_array(f) for f in faces]
    for p, f in zip(points, triangles, strict=True):
        if p.ndim != 3 or p.shape[2] != 3 or len(p) != len(points[0]) or p.size == 0:
            raise ValueError(
                f"vertices must be arrays (N, V, 3) with one N >= 1, got {', '.join(str(q.shape) for q in points)}"
            )
        if f.ndim != 2 or f.shape[1] != 3 or f.dtype.kind not in "iu" or f.size == 0:
            raise ValueError(f"faces must be integer arrays (F, 3), got {f.dtype} {f.shape}")
        if f.min() < 0 or f.max() >= p.shape[1]:
            raise ValueError(f"faces name vertex {f.max()} (or a negative one) of a mesh with {p.shape[1]} vertices")
    scenes = (len(points[0]),)
    there = [np.ones(scenes, bool) for _ in points] if present is None else [_array(mask) for mask in present]
    if len(there) != len(points) or any(mask.shape != scenes or mask.dtype != bool for mask in there):
        found = ", ".join(f"{mask.dtype} {mask.shape}" for mask in there)
        raise ValueError(f"present must hold one bool array {scenes} for each of {len(points)} meshes, got {found}")
    if not np.any(there, 0).all():
        raise ValueError("present leaves a scene without any mesh; there is nothing to draw")
    if not all(np.isfinite(p[mask]).all() for p, mask in zip(points, there, strict=True)):
        raise ValueError("vertices hold NaN or infinity; there is nothing to draw there")
    return [p.astype(np.float32) for p in points], [f.astype(np.int64) for f in triangles], there


def _check_views(views: int | Sequence[Sequence[float]]) -> tuple[list[FloatArray] | None, int]:
    """Explicit directions (or None), and how many pictures of each scene."""
    if isinstance(views, int):
        if views not in (1, 2):
            raise ValueError(f"views must be 1 or 2, or a list of directions (x, y, z), got {views}")
        return None, views
    directions = [_direction(view, "views") for view in views]
    if not directions:
        raise ValueError("views is empty; pass 1, 2 or a list of directions (x, y, z)")
    return directions, len(directions)


def _direction(value: Sequence[float], name: str) -> FloatArray:
    vector = np.asarray(value, np.float32)
    length = float(np.linalg.norm(vector)) if vector.shape == (3,) else 0.0
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"{name} must hold directions (x, y, z) that are not zero, got {value!r}")
    return vector / np.float32(length)
