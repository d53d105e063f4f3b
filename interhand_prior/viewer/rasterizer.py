"""Triangles to pixels: a z-buffer in numpy.

A pixel (row i, column j) is covered by a triangle when its centre (j + 1/2, i + 1/2) lies inside the three edges; of
the triangles that cover it the nearest wins. Each triangle is cut into rows and each row into the interval between
the edges, so that only fragments which are really inside are ever made, and all triangles are cut at once.

Why not VTK: on a machine without libGL or libOSMesa (a plain container) it ends in a segmentation fault that Python
cannot catch. Hands are small: numpy draws a pair in a fraction of a second, anywhere, and to the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "Fragments", "IntArray", "depth_buffer", "rasterize"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

HALF = np.float32(0.5)
#: Intervals are widened by this much (pixels), so that rounding opens no crack between two triangles.
CRACK = np.float32(1e-4)
#: Triangles with less than this area (square pixels) are seen edge-on: they cover nothing and have no depth slope.
THIN = np.float32(1e-3)


@dataclass(frozen=True)
class Fragments:
    """The nearest surface in each covered pixel.

    Attributes:
        pixel: (N,) flat index row * width + column, increasing.
        face: (N,) index of the triangle.
        weights: (N, 3) weights of its corners there, non-negative, summing to one.
    """

    pixel: IntArray
    face: IntArray
    weights: FloatArray


def depth_buffer(xy: FloatArray, depth: FloatArray, faces: IntArray, height: int, width: int) -> FloatArray:
    """Distance of the nearest surface in each pixel.

    Args:
        xy: (V, 2) places of the vertices in the image, pixels; x to the right, y down.
        depth: (V,) distances; smaller is nearer.
        faces: (F, 3) triangles, either way round.
        height: rows.
        width: columns.

    Returns:
        (height, width), infinity where there is nothing.
    """
    _, pixel, z = _cut(xy, depth, faces, height, width)
    buffer = np.full(height * width, np.inf, np.float32)
    np.minimum.at(buffer, pixel, z)
    return buffer.reshape(height, width)


def rasterize(xy: FloatArray, depth: FloatArray, faces: IntArray, height: int, width: int) -> Fragments:
    """The nearest triangle in each pixel, and where on it. Arguments as in `depth_buffer`; depths must be > 0."""
    face, pixel, z = _cut(xy, depth, faces, height, width)
    # The bits of positive floats sort as the floats do, so one integer holds depth and fragment, and settles ties.
    key = (z.view(np.int32).astype(np.int64) << 32) | np.arange(len(z))
    nothing = np.iinfo(np.int64).max
    buffer = np.full(height * width, nothing)
    np.minimum.at(buffer, pixel, key)
    covered = np.flatnonzero(buffer != nothing)
    face = face[buffer[covered] & 0xFFFFFFFF]

    row, column = np.divmod(covered, width)
    p = xy[faces[face]]
    d = np.stack([column, row], 1).astype(np.float32) + HALF - p[:, 0]
    e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    w1 = np.clip((d[:, 0] * e2[:, 1] - d[:, 1] * e2[:, 0]) / area, 0, 1)
    w2 = np.clip((e1[:, 0] * d[:, 1] - e1[:, 1] * d[:, 0]) / area, 0, 1 - w1)
    return Fragments(covered, face, np.stack([1 - w1 - w2, w1, w2], 1))


def _cut(
    xy: FloatArray, depth: FloatArray, faces: IntArray, height: int, width: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """Every (triangle, pixel) with the pixel's centre inside: face number, pixel and depth, three (N,) arrays."""
    x0, x1, x2 = xy[:, 0][faces.T]
    y0, y1, y2 = xy[:, 1][faces.T]
    z0, z1, z2 = depth[faces.T]
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    thin = np.abs(area) < 2 * THIN
    safe = np.where(thin, np.float32(1), area)
    dz_dx = ((z1 - z0) * (y2 - y0) - (z2 - z0) * (y1 - y0)) / safe
    dz_dy = ((x1 - x0) * (z2 - z0) - (x2 - x0) * (z1 - z0)) / safe

    low, high = np.minimum(np.minimum(y0, y1), y2), np.maximum(np.maximum(y0, y1), y2)
    top = np.clip(np.ceil(low - HALF), 0, height).astype(np.int64)
    bottom = np.clip(np.floor(high - HALF) + 1, 0, height).astype(np.int64)
    face, row = _expand(top, np.where(thin, top, bottom))
    centre = row.astype(np.float32) + HALF

    # In its rows, each edge that is not level bounds x from one side.
    left = np.full(len(face), -np.inf, np.float32)
    right = np.full(len(face), np.inf, np.float32)
    for xa, ya, xb, yb in ((x0, y0, x1, y1), (x1, y1, x2, y2), (x2, y2, x0, y0)):
        rise = yb - ya
        level = rise == 0
        slope = (xb - xa) / np.where(level, np.float32(1), rise)
        cross = xa[face] + slope[face] * (centre - ya[face])
        bounds_right = (rise > 0) == (area > 0)
        np.minimum(right, cross, out=right, where=(bounds_right & ~level)[face])
        np.maximum(left, cross, out=left, where=~(bounds_right | level)[face])
    first = np.clip(np.ceil(left - HALF - CRACK), 0, width).astype(np.int64)
    last = np.clip(np.floor(right - HALF + CRACK) + 1, 0, width).astype(np.int64)
    # Depth is affine in the image: its value at column 0 of the segment's row, then a slope.
    start = z0[face] + dz_dx[face] * (HALF - x0[face]) + dz_dy[face] * (centre - y0[face])
    segment, column = _expand(first, last)
    z = start[segment] + dz_dx[face][segment] * column.astype(np.float32)
    return face[segment], (row * width)[segment] + column, z


def _expand(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """All integers of all intervals [first, last): the interval's number, and the integer."""
    count = np.maximum(last - first, 0)
    number = np.repeat(np.arange(len(count)), count)
    start = first - (np.cumsum(count) - count)
    return number, np.arange(len(number)) + start[number]
