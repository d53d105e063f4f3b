"""Contact of two hands as numbers: how near each part of a hand comes to the other's surface, and how they face.

For each vertex v of one hand let w be the other's nearest vertex and n its normal. The signed distance of v is
|v - w|, or minus the depth n . (w - v) where v is inside (see `geometry`). A part's is the least of its vertices'.
Parts are those that one joint moves most, so the numbers mean the same on every hand of MANO's format. Every second
vertex is asked: those between add little, and the search is most of the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import MAX_DISTANCE, boundary_vertices, nearest_vertices, take_vertices, vertex_normals
from ..hands import HandModel, HandPair
from ..params import TwoHands

__all__ = ["CONTACT_SIZE", "contact_evidence"]

_PARTS = 16
_EVERY = 2
_NEAR = (0.006, 0.03)  # metres: touch, and neighbourhood
#: Metres of signed distance, under which vertices are counted.
_LIMITS = (-0.004, -0.002, 0.0, 0.003, 0.006, 0.012, 0.025)
_FACING = 0.01  # metres: vertices farther away hardly count for how the surfaces face each other
CONTACT_SIZE = (len(_NEAR) + 1) * _PARTS + len(_LIMITS) + 3


def contact_evidence(hands: TwoHands, models: HandPair) -> Tensor:
    """Contact as each hand has it.

    Args:
        hands: pairs of any batch shape (...).
        models: that their parameters belong to.

    Returns:
        (2, ..., CONTACT_SIZE): of the right hand's vertices against the left one's surface, and the reverse. Moving
        the pair rigidly changes nothing; mirroring it exchanges the two.
    """
    left, right = models.vertices(hands)
    return torch.stack(
        (_one_way(right, models.right, left, models.left), _one_way(left, models.left, right, models.right))
    )


def _one_way(points: Tensor, model: HandModel, surface: Tensor, other: HandModel) -> Tensor:
    """Vertices (..., V, 3) against a surface (..., W, 3): (..., CONTACT_SIZE)."""
    faces = other.faces.to(points.device)
    normals = vertex_normals(surface, faces)
    own_normals = vertex_normals(points, model.faces.to(points.device))[..., ::_EVERY, :]
    points = points[..., ::_EVERY, :]
    square, index = nearest_vertices(points, surface)
    normal = take_vertices(normals, index)
    distance = square.sqrt()
    depth = (normal * (take_vertices(surface, index) - points)).sum(-1)
    rim = boundary_vertices(faces, surface.shape[-2])
    inside = (depth > 0) & (distance < MAX_DISTANCE) & ~rim[index]
    signed = torch.where(inside, -depth, distance)
    # Which part a vertex belongs to is the model's own; parts without vertices stay far away.
    part = model.weights.argmax(-1)[::_EVERY].to(points.device).expand(signed.shape)
    nearest = signed.new_full((*signed.shape[:-1], _PARTS), 1.0).scatter_reduce(-1, part, signed, "amin")
    weight = torch.exp(-distance / _FACING)
    facing = (normal * own_normals).sum(-1)
    whole = (
        signed.amin(-1),
        *((signed < limit).to(signed.dtype).sum(-1).log1p() for limit in _LIMITS),
        (weight * facing).sum(-1) / (weight.sum(-1) + 1e-6),
        (1e3 * depth * inside).sum(-1).log1p(),
    )
    return torch.cat(
        (
            *(torch.exp(-nearest.clamp_min(0) / reach) for reach in _NEAR),
            (-1e3 * nearest).clamp(0, 15).log1p(),
            torch.stack(whole, -1),
        ),
        -1,
    )
