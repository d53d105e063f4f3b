"""Volume of the intersection of two solids bounded by triangle meshes, exactly (manifold3d, float64).

A closed, oriented surface has a winding number w(x) at each point. For surfaces that do not cross themselves w is 1
inside and 0 outside. manifold3d multiplies: the volume of its intersection is the integral of w_a w_b. For a surface
that crosses itself that counts overlaps twice; such a solid is given as several closed parts instead (for a hand:
`hand_parts`), and the volume is that of

    (union over k of A_k)  intersected with  (union over l of B_l)  =  union over k, l of (A_k intersected with B_l).

Only parts whose bounding boxes meet are intersected: disjoint boxes prove disjoint solids.

A failure is a failure, never zero: where an input is not a closed oriented surface, is turned inside out or holds NaN,
or where a result is refused or negative, the volume is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["import_manifold3d", "intersection_volume", "union_intersection_volume"]

Floats = npt.NDArray[np.float64]
Mesh = tuple[npt.ArrayLike, npt.ArrayLike]

#: Cubic metres (a thousandth of a cubic millimetre): rounding may leave that much less than nothing.
_ROUNDING = 1e-12


def intersection_volume(
    vertices_a: npt.ArrayLike, faces_a: npt.ArrayLike, vertices_b: npt.ArrayLike, faces_b: npt.ArrayLike
) -> float:
    """Volume common to two closed meshes.

    Args:
        vertices_a: (V, 3), metres. A mesh that crosses itself counts with its winding number; give such a solid as
            parts to `union_intersection_volume`.
        faces_a: (F, 3) integers, counter-clockwise seen from outside.
        vertices_b: (W, 3).
        faces_b: (G, 3).

    Returns:
        Cubic metres, in float64; 0.0 only if the solids share nothing; NaN on failure (see the module).

    Raises:
        ImportError: manifold3d is not installed.
        ValueError: wrong shapes, no faces, or a face that names a vertex that is not there.
    """
    return union_intersection_volume([(vertices_a, faces_a)], [(vertices_b, faces_b)])


def union_intersection_volume(parts_a: Sequence[Mesh], parts_b: Sequence[Mesh]) -> float:
    """Volume common to two solids, each the union of closed meshes.

    Args:
        parts_a: (vertices, faces) of each, as for `intersection_volume`; they may overlap.
        parts_b: the same.

    Returns:
        Cubic metres, in float64, NaN on failure.

    Raises:
        ImportError, ValueError: as `intersection_volume`.
    """
    a = [_checked(f"parts_a[{i}]", *part) for i, part in enumerate(parts_a)]
    b = [_checked(f"parts_b[{i}]", *part) for i, part in enumerate(parts_b)]
    library = import_manifold3d()
    try:
        return _volume(library, a, b)
    except (RuntimeError, ArithmeticError, MemoryError):
        return math.nan


def import_manifold3d() -> ModuleType:
    """The library, or an error that says how to get it."""
    try:
        import manifold3d
    except ImportError as error:
        raise ImportError(
            'the penetration volume needs manifold3d; install it with: pip install "interhand_prior[metrics]"'
        ) from error
    return manifold3d


class _Failure(ArithmeticError):
    """Not a surface, or not a volume."""


def _volume(library: ModuleType, a: list[tuple[Floats, Any]], b: list[tuple[Floats, Any]]) -> float:
    solids_a, solids_b = ([_solid(library, *part) for part in side] for side in (a, b))
    low_a, low_b = (np.stack([v.min(0) for v, _ in side]) for side in (a, b))
    high_a, high_b = (np.stack([v.max(0) for v, _ in side]) for side in (a, b))
    meet = ((low_a[:, None] <= high_b) & (low_b <= high_a[:, None])).all(-1)
    common = [_good(library, solids_a[i] ^ solids_b[j]) for i, j in np.argwhere(meet).tolist()]
    common = [solid for solid in common if not solid.is_empty()]
    if not common:
        return 0.0
    whole = common[0]
    if len(common) > 1:
        whole = _good(library, library.Manifold.batch_boolean(common, library.OpType.Add))
    volume = float(whole.volume())
    if not math.isfinite(volume) or volume < -_ROUNDING:
        raise _Failure
    return max(volume, 0.0)


def _solid(library: ModuleType, vertices: Floats, faces: Any) -> Any:
    # manifold3d takes a surface that is inside out for one with winding number -1: two of those would share +1.
    if not np.isfinite(vertices).all() or _enclosed(vertices, faces) <= 0:
        raise _Failure
    return _good(library, library.Manifold(library.Mesh64(vertices, faces)))


def _good(library: ModuleType, solid: Any) -> Any:
    if solid.status() != library.Error.NoError:
        raise _Failure
    return solid


def _enclosed(vertices: Floats, faces: Any) -> float:
    """Signed volume of a closed surface, by the divergence theorem about one of its vertices."""
    a, b, c = (vertices[faces[:, i]] - vertices[0] for i in range(3))
    return float((a * np.cross(b, c)).sum()) / 6


def _checked(name: str, vertices: npt.ArrayLike, faces: npt.ArrayLike) -> tuple[Floats, Any]:
    v, f = np.ascontiguousarray(vertices, np.float64), np.asarray(faces)
    if v.ndim != 2 or v.shape[1] != 3:
        raise ValueError(f"{name}: vertices must have shape (V, 3), got {v.shape}")
    if f.ndim != 2 or f.shape[1] != 3 or f.dtype.kind not in "iu" or len(f) == 0:
        raise ValueError(f"{name}: faces must be integers of shape (F, 3), at least one, got {f.dtype} {f.shape}")
    if f.min() < 0 or f.max() >= len(v):
        raise ValueError(f"{name}: faces name vertices {f.min()} to {f.max()}, but there are {len(v)}")
    return v, np.ascontiguousarray(f, np.uint64)
