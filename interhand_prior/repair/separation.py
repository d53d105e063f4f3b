"""Moving two hands out of each other when both are free to move.

Let x be a pair's parameters in units of how uncertain each of them is, and

    L(x) = L_pen(V(x), W(x)) + L_pen(W(x), V(x))                                                       (Eq. 7-8)

with the depths along the normals as residuals (`geometry.penetration_loss`). Each step goes down the gradient g,

    x <- x - scale min(2 L / |g|, clip) g / |g|,

where 2 L / |g| is Polyak's step for a sum of squares. In these units the direction of steepest descent moves what is
uncertain and spares what is known: to first order x goes to the most probable pair, under Gaussian errors of the
estimate, that is free. `guidance.anti_penetration` does the same for a partner beside an anchor that stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..geometry import (
    MAX_DISTANCE,
    boundary_vertices,
    mutual_nearest_distances,
    penetration_loss,
    take_vertices,
    vertex_normals,
)
from ..guidance.anti_penetration import boxes_near, nearest_few
from ..hands import HandPair
from ..params import FIELDS, HandParams, TwoHands

__all__ = ["CLIP", "TOLERANCE", "WATCHED", "joined", "separate", "separate_pairs", "split"]

#: Longest step, in standard deviations of all parameters together.
CLIP = 0.5
#: Metres of depth that are left alone: skin gives way, and coarse meshes touch a little early.
TOLERANCE = 0.0005
#: Vertices of each hand, those nearest to the other hand, that are looked at; the others are too far to matter soon.
WATCHED = 256
#: Steps after which they are chosen anew.
_REFRESH = 6

#: Pairs whose meshes are in memory at a time.
_CHUNK = 256

#: (x (B', D), rows (B',)) -> vertices of the left and of the right hand, (B', V, 3) and (B', W, 3), metres.
Surfaces = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def separate(
    x: Tensor,
    surfaces: Surfaces,
    faces: tuple[Tensor, Tensor],
    *,
    steps: int,
    scale: float = 1.0,
    clip: float = CLIP,
    tolerance: float = TOLERANCE,
    watched: int = WATCHED,
) -> Tensor:
    """Move pairs until neither hand is inside the other.

    Work goes where hands penetrate: on the CPU pairs are dropped as soon as they are known to be free. Which ones are
    left is a question to the host, so elsewhere all are carried to the end. A free pair's step is exactly zero, hence
    the result is the same.

    Args:
        x: (B, D) parameters in units of their standard deviations.
        surfaces: the meshes of some rows of x.
        faces: (F, 3) of the left and of the right hand, counter-clockwise from outside.
        steps: at most so many.
        scale: of each step; 1 goes as far as the linearised loss asks.
        clip: longest step.
        tolerance: metres of depth that count as touch.
        watched: vertices of each hand that are looked at.

    Returns:
        (B, D), without gradient. A free pair is returned bit for bit; each depends on itself only.
    """
    drop = x.device.type == "cpu"
    result = x.detach().clone()
    rows = torch.arange(len(x), device=x.device)
    seen: tuple[Tensor, Tensor] | None = None
    rims: tuple[Tensor, Tensor] | None = None
    for step in range(steps):
        if step % _REFRESH == 0:
            with torch.no_grad():
                vertices = surfaces(result[rows], rows)
                if drop:
                    near = boxes_near(*vertices, MAX_DISTANCE)
                    rows, vertices = rows[near], (vertices[0][near], vertices[1][near])
                seen = _nearest(*vertices, watched)
                if rims is None:
                    first, second = (boundary_vertices(f, v.shape[-2]) for f, v in zip(faces, vertices, strict=True))
                    rims = first.to(x.device), second.to(x.device)
        if not len(rows) or seen is None or rims is None:
            break
        with torch.enable_grad():
            leaf = result[rows].requires_grad_()
            loss = _loss(surfaces(leaf, rows), faces, rims, seen, tolerance)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        loss = loss.detach()
        length = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        move = scale * (2 * loss[:, None] / length).clamp_max(clip) * (gradient / length)
        result = result.index_copy(0, rows, leaf.detach() - move)
        if drop:
            inside = loss > 0
            rows, seen = rows[inside], (seen[0][inside], seen[1][inside])
    return result


def separate_pairs(
    x: Tensor, hands: TwoHands, std: Tensor, models: HandPair, *, steps: int, scale: float = 1.0
) -> Tensor:
    """`separate` for the parameters of pairs: theta = theta_0 + std x.

    Args:
        x: (..., 2, 61) moves of the left and of the right hand, in the order of `FIELDS`.
        hands: theta_0, of batch shape (...), everything in it finite. Where a hand is missing the other one stays.
        std: broadcasts to x. What is zero stays.
        models: of the hands.
        steps: see `separate`.
        scale: see `separate`.

    Returns:
        x after the moves. Shapes are left as they are: hands do not shrink to make room.
    """
    centre = joined(hands).reshape(-1, *x.shape[-2:])
    flat, scales = (value.expand(x.shape).reshape(centre.shape) for value in (x, std))
    betas = torch.cat([torch.full((width,), name == "betas", device=x.device) for name, width in FIELDS.items()])
    moved = flat.clone()
    for chunk in torch.stack(hands.valid).all(0).reshape(-1).nonzero()[:, 0].split(_CHUNK):
        at, by = centre[chunk], scales[chunk]

        def surfaces(part: Tensor, rows: Tensor, at: Tensor = at, by: Tensor = by) -> tuple[Tensor, Tensor]:
            move = part.unflatten(-1, (2, -1))
            left, right = split(at[rows] + by[rows] * torch.where(betas, move.detach(), move))
            return models.left(left)[0], models.right(right)[0]

        free = separate(flat[chunk].flatten(1), surfaces, models.faces, steps=steps, scale=scale)
        moved[chunk] = free.unflatten(-1, (2, -1))
    return moved.reshape(x.shape)


def joined(hands: TwoHands) -> Tensor:
    """(..., 2, 61): all parameters of the left and of the right hand, in the order of `FIELDS`."""
    return torch.stack([torch.cat(list(hand.as_dict().values()), -1) for hand in (hands.left, hands.right)], -2)


def split(vectors: Tensor) -> tuple[HandParams, HandParams]:
    """Inverse of `joined`: the left and the right hand."""
    left, right = (HandParams(*hand.split(list(FIELDS.values()), -1)) for hand in vectors.unbind(-2))
    return left, right


def _loss(
    vertices: tuple[Tensor, Tensor],
    faces: tuple[Tensor, Tensor],
    rims: tuple[Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
    tolerance: float,
) -> Tensor:
    """(B,), on the vertices that are looked at."""
    points, normals, edges = [], [], []
    for surface, triangles, rim, index in zip(vertices, faces, rims, seen, strict=True):
        points.append(take_vertices(surface, index))
        # The normals only say on which side a point is, or turn with their surface: no gradient is worth it.
        normals.append(take_vertices(vertex_normals(surface.detach(), triangles), index))
        edges.append(rim[index])
    first, second = (
        penetration_loss(points[a], points[b], normals[b], exclude=edges[b], tolerance=tolerance, residual="depth")
        for a, b in ((0, 1), (1, 0))
    )
    return first + second


def _nearest(left: Tensor, right: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices (B, count) of the vertices of each hand nearest to the other hand."""
    to_right, to_left = mutual_nearest_distances(left, right)
    return nearest_few(to_right, count), nearest_few(to_left, count)
