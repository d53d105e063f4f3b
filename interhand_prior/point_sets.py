"""Geometry of point sets: farthest points, balls, the rows of an index; what PointNet++ groups by.

Nothing is random, and a cloud's result is the same to the last bit whatever the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FarthestPoints", "ball_query", "farthest_points", "squared_distances", "take_points"]


class FarthestPoints(NamedTuple):
    """A farthest-point sequence.

    Attributes:
        order: (B, S) int64 indices of the points.
        squared: (B, S, N) squared distances from each of them to every point.
    """

    order: Tensor
    squared: Tensor


@torch.no_grad()
def farthest_points(points: Tensor, count: int, start: int | None = None) -> FarthestPoints:
    """Farthest-point sampling.

    Args:
        points: (B, N, 3), finite.
        count: S, of points wanted, at most N. Where the cloud has fewer distinct points, some come repeatedly.
        start: index of the first point; None: the one farthest from the mean of the cloud.

    Returns:
        The sequence; distances are in units of the points, squared.

    Raises:
        ValueError: count is not in 1..N.
    """
    size, number = points.shape[:2]
    if not 1 <= count <= number:
        raise ValueError(f"count must be between 1 and the {number} points of a cloud, got {count}")
    x, y, z = points.movedim(-1, 0).contiguous()
    rows = torch.arange(size, device=points.device)
    squared = points.new_empty(size, count, number)
    difference = torch.empty_like(x)

    def measure(centre: Sequence[Tensor], out: Tensor) -> Tensor:
        # Coordinate by coordinate: several times faster than a sum over a last axis of three, and, unlike a matrix
        # product, the same to the last bit whatever the batch.
        torch.sub(x, centre[0][:, None], out=difference)
        torch.mul(difference, difference, out=out)
        for axis, value in ((y, centre[1]), (z, centre[2])):
            torch.sub(axis, value[:, None], out=difference)
            out.addcmul_(difference, difference)
        return out

    if start is None:
        last = measure([axis.mean(1) for axis in (x, y, z)], torch.empty_like(x)).max(1).indices
    else:
        last = torch.full((size,), start, dtype=torch.int64, device=points.device)
    order = [last]
    nearest = torch.full_like(x, torch.inf)
    for step in range(count):
        measure([axis[rows, last] for axis in (x, y, z)], squared[:, step])
        if step + 1 < count:
            torch.minimum(nearest, squared[:, step], out=nearest)
            last = nearest.max(1).indices  # of equals the first
            order.append(last)
    return FarthestPoints(torch.stack(order, 1), squared)


def squared_distances(centres: Tensor, points: Tensor) -> Tensor:
    """From every centre (B, S, 3) to every point (B, N, 3): (B, S, N)."""
    total = None
    for centre, point in zip(centres.unbind(-1), points.unbind(-1), strict=True):
        difference = centre[:, :, None] - point[:, None]
        total = difference * difference if total is None else total.addcmul_(difference, difference)
    assert total is not None
    return total


@torch.no_grad()
def ball_query(squared: Tensor, radius: float, neighbours: int) -> Tensor:
    """The first points of each ball, in the cloud's order; a ball with fewer repeats its first one.

    Args:
        squared: (B, S, N) squared distances from centres to points.
        radius: of the balls, which are closed.
        neighbours: K, points to take.

    Returns:
        (B, S, K) int64 indices of points.

    Raises:
        ValueError: a ball is empty (its centre is none of the points, or not finite).
    """
    size, centres, _ = squared.shape
    # All members, ball after ball, in order: far cheaper than sorting every row.
    ball, member = (squared <= radius * radius).flatten(0, 1).nonzero().unbind(1)
    bounds = torch.searchsorted(ball.contiguous(), torch.arange(size * centres + 1, device=squared.device))
    first, found = bounds[:-1, None], bounds.diff()[:, None]
    if size * centres and not bool(found.min()):
        raise ValueError(f"a ball of radius {radius:g} holds no point; centres must be points of the cloud, and finite")
    rank = torch.arange(neighbours, device=squared.device)
    return member[first + rank * (rank < found)].view(size, centres, neighbours)


def take_points(values: Tensor, index: Tensor) -> Tensor:
    """values (B, N, C) at index (B, ...) -> (B, ..., C)."""
    size, number, width = values.shape
    offset = number * torch.arange(size, device=values.device).view(-1, *(1,) * (index.ndim - 1))
    # Of the ways to take rows, this one has the fastest gradient on the CPU.
    flat = (index + offset).view(-1, 1).expand(-1, width)
    return values.reshape(-1, width).gather(0, flat).view(*index.shape, width)
