"""Surface geometry of two hands: normals, nearest vertices, penetration and proximity.

Penetration (InterHandGen, Eq. 7-8). For hands with vertices V and W, let W^j be the vertex nearest to V^i and n_j
its outward normal. The penetrated vertices and the loss are

    P = {(i, j) : -n_j . (V^i - W^j) > 0},        L_pen = sum over P of |V^i - W^j|^2.

The paper calls Eq. 7 a "sum of squared distances" while its formula shows the plain norm. The squares are the
default here (their gradient fades as a vertex surfaces); `squared=False` gives the formula as printed.

Eq. 8 asks ONE tangent plane, so it is right only near the surface. Three things go wrong with it:

- Far away a vertex may be behind the plane of its nearest vertex without being inside: a hand is open at the wrist,
  and thin. A point truly inside a hand is near its surface (20 mm at most from a vertex, on the open hand), so
  `max_distance` drops the others and loses nothing.
- Normals on the wrist loop are those of the edge of a sheet: a point whose nearest vertex lies there does not count.
- Vertices are some 7 mm apart. Just outside the open hand, within 6 mm, 10 % of points are behind the plane of their
  nearest vertex, but only 2 % by more than 1 mm: hence `tolerance`. And at the very surface the nearest vertex lies
  sideways, so the loss jumps as a point crosses; `residual="depth"` measures -n_j . (V^i - W^j) instead.

The indices and the set P are piecewise constant, and by the envelope theorem the gradient with them held constant is
the exact one wherever it exists. So the search itself is never differentiated.

Every function is batched over any leading dimensions and gives each sample its own result. Lengths are in metres.
Half-precision input is computed in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .hands.skinning import no_autocast

__all__ = [
    "Nearest",
    "at_least_float32",
    "boundary_vertices",
    "min_distance",
    "mutual_nearest_distances",
    "mutual_penetration_loss",
    "nearest_vertices",
    "penetration_depth",
    "penetration_loss",
    "take_vertices",
    "vertex_normals",
]

#: Default `max_distance`, metres: nothing inside a hand is farther from its vertices, not even inside a large one.
MAX_DISTANCE = 0.025

#: Default memory for one block of distances: on CPUs small enough to stay in cache and in the allocator's hands (each
#: larger block is a fresh mapping of cold pages), elsewhere large enough to fill the device.
SEARCH_BYTES = 4 * 2**20
DEVICE_SEARCH_BYTES = 64 * 2**20

Residual = Literal["distance", "depth"]
RESIDUALS: tuple[Residual, ...] = ("distance", "depth")


class Nearest(NamedTuple):
    """For each point, its nearest target.

    Attributes:
        squared_distance: (..., N), in the unit of the input squared; differentiable in both inputs.
        indices: (..., N) int64, into the targets.
    """

    squared_distance: Tensor
    indices: Tensor


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals at the vertices: the area-weighted mean of the normals of the faces around each.

    Args:
        vertices: (..., V, 3).
        faces: (F, 3) integer, counter-clockwise seen from outside.

    Returns:
        (..., V, 3), outward. A vertex without faces, or with degenerate ones only, gets the zero vector and passes no
        gradient.

    Raises:
        ValueError: wrong shapes.
    """
    _check_points("vertices", vertices)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.is_floating_point():
        raise ValueError(
            f"faces must be integers of shape (F, 3), one list for the whole batch, got {faces.dtype} "
            f"{tuple(faces.shape)}"
        )
    batch, count = vertices.shape[:-2], vertices.shape[-2]
    faces = faces.to(device=vertices.device, dtype=torch.int64)
    # Vertices first: the rows of a whole batch are contiguous, so gather and scatter move blocks, not floats.
    v = at_least_float32(vertices).reshape(batch.numel(), count, 3).transpose(0, 1).contiguous()
    a, b, c = v[faces[:, 0]], v[faces[:, 1]], v[faces[:, 2]]
    area = torch.linalg.cross(b - a, c - a)  # twice the area, along the normal: the weight comes for free
    total = torch.zeros_like(v).index_add(0, faces.t().reshape(-1), area.repeat(3, 1, 1))
    square = total.square().sum(-1, keepdim=True)
    some = square > torch.finfo(v.dtype).tiny
    normals = torch.where(some, total * torch.where(some, square, 1.0).rsqrt(), 0.0)
    return normals.transpose(0, 1).reshape(*batch, count, 3).to(vertices.dtype)


def boundary_vertices(faces: Tensor, num_vertices: int) -> Tensor:
    """Which vertices lie on an open edge of the mesh (on a MANO-like hand: the wrist loop).

    Args:
        faces: (F, 3) integer.
        num_vertices: V.

    Returns:
        (V,) bool, True on the boundary.
    """
    faces = faces.to(torch.int64)
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    keys, uses = torch.unique(edges[:, 0] * num_vertices + edges[:, 1], return_counts=True)
    open_keys = keys[uses == 1]
    mask = torch.zeros(num_vertices, dtype=torch.bool, device=faces.device)
    mask[open_keys // num_vertices] = True
    mask[open_keys % num_vertices] = True
    return mask


def nearest_vertices(points: Tensor, targets: Tensor, *, max_bytes: int | None = None) -> Nearest:
    """The nearest target of every point, by exhaustive search.

    On CPUs the search ranks |t|^2 - 2 p.t, one matrix product per block of samples, on coordinates centred on the
    targets (metres away from the origin, float32 products would lose the millimetres). The squared distance is then
    taken from the coordinates themselves: it is accurate, and differentiable with the index held constant. Among
    targets equally near, any may be returned.

    Args:
        points: (..., N, 3).
        targets: (..., M, 3), M > 0; batch shapes broadcast.
        max_bytes: memory for one block of distances. Blocks are whole samples where they fit. None: 4 MiB on CPUs,
            64 MiB elsewhere.

    Returns:
        `Nearest(squared_distance (..., N), indices (..., N))`.

    Raises:
        ValueError: wrong shapes, no targets.
    """
    _check_points("points", points)
    _check_points("targets", targets)
    if targets.shape[-2] == 0:
        raise ValueError(f"targets must hold at least one vertex, got shape {tuple(targets.shape)}")
    p, t = at_least_float32(points), at_least_float32(targets)
    index = _search(p.detach(), t.detach(), max_bytes)
    offset = p - take_vertices(t, index)
    return Nearest(offset.square().sum(-1).to(points.dtype), index)


def _search(points: Tensor, targets: Tensor, max_bytes: int | None = None) -> Tensor:
    """(..., N) index of the nearest target; no gradient."""
    max_bytes = max_bytes or _search_bytes(points.device)
    batch = torch.broadcast_shapes(points.shape[:-2], targets.shape[:-2])
    n, m = points.shape[-2], targets.shape[-2]
    samples = batch.numel()
    p = points.expand(*batch, n, 3).reshape(samples, n, 3)
    t = targets.expand(*batch, m, 3).reshape(samples, m, 3)
    step = max(1, max_bytes // max(1, n * m * p.element_size()))
    rows = max(1, min(n, max_bytes // (m * p.element_size())))
    product = _exact_products(p)
    found = []
    with torch.no_grad(), no_autocast(p.device):
        if product:
            centre = t.mean(-2, keepdim=True)
            p, t = p - centre, t - centre
            left = torch.cat([p * -2, torch.ones_like(p[..., :1])], -1)
            right = torch.cat([t, t.square().sum(-1, keepdim=True)], -1).transpose(1, 2)
        for s in range(0, samples, step):
            for r in range(0, n, rows):
                if product:
                    rank = torch.bmm(left[s : s + step, r : r + rows], right[s : s + step])
                else:
                    rank = torch.cdist(
                        p[s : s + step, r : r + rows],
                        t[s : s + step],
                        compute_mode="donot_use_mm_for_euclid_dist",
                    )
                found.append(rank.min(-1).indices)
                del rank  # the allocator hands the same block to the next product
    # Either whole samples, or rows of one sample after the other: in both cases the pieces are in order.
    found.append(torch.empty(0, dtype=torch.int64, device=p.device))
    return torch.cat([piece.flatten() for piece in found]).reshape(*batch, n)


def mutual_nearest_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of every vertex to the other hand, both ways from one table: faster than two searches.

    The distances are those of the search (`nearest_vertices`), good to about 1e-8 square metres on hands: to rank and
    to reject, not to measure. No gradient.

    Args:
        a: (..., V, 3), metres.
        b: (..., W, 3), the same batch shape.

    Returns:
        (..., V) and (..., W), square metres.
    """
    batch, v, w = a.shape[:-2], a.shape[-2], b.shape[-2]
    a, b = (at_least_float32(x.detach()).reshape(-1, n, 3) for x, n in ((a, v), (b, w)))
    step = max(1, _search_bytes(a.device) // max(1, v * w * a.element_size()))
    rows, columns = [a.new_empty(0, v)], [b.new_empty(0, w)]
    with torch.no_grad(), no_autocast(a.device):
        product = _exact_products(a)
        if product:
            centre = b.mean(-2, keepdim=True)
            a, b = a - centre, b - centre
            one = torch.ones_like
            a = torch.cat([a * -2, one(a[..., :1]), a.square().sum(-1, keepdim=True)], -1)
            b = torch.cat([b, b.square().sum(-1, keepdim=True), one(b[..., :1])], -1)
        for s in range(0, len(a), step):
            x, y = a[s : s + step], b[s : s + step]
            if product:
                square = torch.bmm(x, y.mT)
            else:
                square = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
            rows.append(square.amin(-1))
            columns.append(square.amin(-2))
            del square  # the allocator hands the same block to the next product
    return torch.cat(rows).reshape(*batch, v), torch.cat(columns).reshape(*batch, w)


def _exact_products(x: Tensor) -> bool:
    """Reduced-precision products (TF32 on CUDA, bfloat16 on some CPUs) would rank noise: take differences there."""
    return not x.is_cuda and torch.get_float32_matmul_precision() == "highest"


def _search_bytes(device: torch.device) -> int:
    return SEARCH_BYTES if device.type == "cpu" else DEVICE_SEARCH_BYTES


def penetration_loss(
    points: Tensor,
    vertices: Tensor,
    normals: Tensor,
    *,
    exclude: Tensor | None = None,
    max_distance: float | None = MAX_DISTANCE,
    tolerance: float = 0.0,
    residual: Residual = "distance",
    squared: bool = True,
    index: Tensor | None = None,
) -> Tensor:
    """Eq. 7-8, one direction: how far `points` lie inside the surface of `vertices`.

    Args:
        points: (..., N, 3) vertices of one hand, metres.
        vertices: (..., M, 3) vertices of the other hand.
        normals: (..., M, 3) its outward unit normals (`vertex_normals`). Only `residual="depth"` passes a gradient
            to them.
        exclude: (M,) or (..., M) bool; a point whose nearest vertex is marked does not count (`boundary_vertices`:
            the wrist).
        max_distance: metres; a point farther than that from its nearest vertex does not count. None: no limit,
            Eq. 8 as printed.
        tolerance: metres of depth that count as contact: skin gives way, and a coarse mesh is no closer.
        residual: "distance" to the nearest vertex (Eq. 7), or "depth" behind its plane less the tolerance.
        squared: sum of squares; False: plain sum (Eq. 7 as printed).
        index: (..., N) nearest vertices if already known; None: search.

    Returns:
        (...), square metres (metres if not `squared`). Exactly zero when nothing penetrates.

    Raises:
        ValueError: wrong shapes or an unknown `residual`.
    """
    if residual not in RESIDUALS:
        raise ValueError(f"residual must be one of {RESIDUALS}, got {residual!r}")
    inside, square, depth = _contacts(points, vertices, normals, exclude, max_distance, tolerance, index)
    if residual == "depth":
        value = (depth - tolerance).square() if squared else depth - tolerance
    else:
        # The slope of the root is infinite at 0 and 0 * inf is NaN, even behind where(): replace the value first.
        value = square if squared else torch.where(inside, square, 1.0).sqrt()
    return torch.where(inside, value, 0.0).sum(-1).to(points.dtype)


def penetration_depth(
    points: Tensor,
    vertices: Tensor,
    normals: Tensor,
    *,
    exclude: Tensor | None = None,
    max_distance: float | None = MAX_DISTANCE,
    index: Tensor | None = None,
) -> Tensor:
    """Depth in metres of the deepest of `points` under the surface of `vertices`; 0 when none is.

    Arguments as for `penetration_loss`. Returns (...).
    """
    inside, _, depth = _contacts(points, vertices, normals, exclude, max_distance, 0.0, index)
    return torch.where(inside, depth, 0.0).amax(-1).to(points.dtype)


def mutual_penetration_loss(
    vertices_a: Tensor,
    vertices_b: Tensor,
    faces_a: Tensor,
    faces_b: Tensor,
    *,
    max_distance: float | None = MAX_DISTANCE,
    tolerance: float = 0.0,
    residual: Residual = "distance",
    squared: bool = True,
) -> Tensor:
    """`penetration_loss` of a into b plus that of b into a; normals and open rims come from the faces.

    Args:
        vertices_a: (..., V, 3), metres.
        vertices_b: (..., W, 3).
        faces_a: (F, 3) integer, counter-clockwise from outside.
        faces_b: (G, 3) integer.
        max_distance: as for `penetration_loss`, and so are the rest.
        tolerance: see there.
        residual: see there.
        squared: see there.

    Returns:
        (...).
    """
    total = []
    pair = ((vertices_a, faces_a), (vertices_b, faces_b))
    for (points, _), (vertices, faces) in (pair, pair[::-1]):
        total.append(
            penetration_loss(
                points,
                vertices,
                vertex_normals(vertices, faces),
                exclude=boundary_vertices(faces, vertices.shape[-2]),
                max_distance=max_distance,
                tolerance=tolerance,
                residual=residual,
                squared=squared,
            )
        )
    return total[0] + total[1]


def min_distance(vertices_a: Tensor, vertices_b: Tensor) -> Tensor:
    """Smallest distance between a vertex of one hand and a vertex of the other: touch and proximity.

    Between vertices, not surfaces: where those are some 7 mm apart, surfaces that touch may be 3-4 mm apart here. It
    is never negative: hands inside each other are near.

    Args:
        vertices_a: (..., V, 3), metres.
        vertices_b: (..., W, 3).

    Returns:
        (...), metres. Differentiable; where vertices coincide the gradient is zero.
    """
    square = nearest_vertices(at_least_float32(vertices_a), vertices_b).squared_distance.amin(-1)
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0).to(vertices_a.dtype)


def _contacts(
    points: Tensor,
    vertices: Tensor,
    normals: Tensor,
    exclude: Tensor | None,
    max_distance: float | None,
    tolerance: float,
    index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The set P of Eq. 8 as a mask (..., N), and squared distance and depth of every point, in P or not."""
    _check_points("points", points)
    _check_points("vertices", vertices)
    if normals.shape[-2:] != vertices.shape[-2:]:
        raise ValueError(
            f"normals must have one row for each vertex, (..., {vertices.shape[-2]}, 3), got {tuple(normals.shape)}; "
            "use vertex_normals(vertices, faces)"
        )
    p, v, n = at_least_float32(points), at_least_float32(vertices), at_least_float32(normals)
    if index is None:
        index = _search(p.detach(), v.detach())
    offset = p - take_vertices(v, index)
    depth = -(take_vertices(n, index) * offset).sum(-1)
    square = offset.square().sum(-1)
    inside = depth > tolerance
    if max_distance is not None:
        inside = inside & (square < max_distance**2)
    if exclude is not None:
        exclude = exclude.to(index.device).expand(*index.shape[:-1], exclude.shape[-1])
        inside = inside & ~exclude.gather(-1, index)
    return inside, square, depth


def take_vertices(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values`, chosen sample by sample: values (..., M, 3), index (..., N) int64 -> (..., N, 3)."""
    batch = index.shape[:-1]
    values = values.expand(*batch, *values.shape[-2:])
    return values.gather(-2, index.unsqueeze(-1).expand(*index.shape, 3))


def at_least_float32(x: Tensor) -> Tensor:
    """x, widened if in half precision, which holds a hand to half a millimetre only."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_points(name: str, value: Tensor) -> None:
    if value.ndim < 2 or value.shape[-1] != 3 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (..., N, 3), got {value.dtype} {tuple(value.shape)}"
        )
