"""The wrist cap: MANO's surface is open at a loop of 16 vertices; closing it makes insides and volumes well defined.

Two caps. With a new vertex, number 778, at the mean of the loop: 16 faces round it, 779 vertices and 1554 faces, the
counts the paper gives (Sec. 4). Without one: 14 faces across the loop, 778 vertices and 1552 faces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arrays import NUM_FACES, NUM_VERTICES, WRIST_LOOP

__all__ = ["sealed", "sealed_faces", "sealed_vertices"]

_N = len(WRIST_LOOP)
# Faces as places on the loop, running along it; the centre is place 16. The strip zigzags across the loop, so that
# its triangles are as wide as the wrist is thick, where a fan would be full of slivers.
_FAN = [(i, (i + 1) % _N, _N) for i in range(_N)]
_STRIP = [
    triangle for i in range(_N // 2 - 1) for triangle in ((i, i + 1, _N - 1 - i), (i + 1, _N - 2 - i, _N - 1 - i))
]


def sealed_vertices(vertices: Tensor) -> Tensor:
    """Append the centre of the wrist loop.

    Args:
        vertices: (..., 778, 3).

    Returns:
        (..., 779, 3); differentiable, the last vertex is the mean of the loop.

    Raises:
        ValueError: wrong shape.
    """
    if vertices.shape[-2:] != (NUM_VERTICES, 3):
        raise ValueError(f"vertices must have shape (..., {NUM_VERTICES}, 3), got {tuple(vertices.shape)}")
    loop = torch.tensor(WRIST_LOOP, device=vertices.device)
    centre = vertices.index_select(-2, loop).mean(-2, keepdim=True)
    return torch.cat((vertices, centre), -2)


def sealed_faces(faces: Tensor, *, centre: bool = True) -> Tensor:
    """Add the cap to the faces, oriented as they are.

    Args:
        faces: (1538, 3) integers, of a left or a right hand.
        centre: 16 faces round vertex 778 (use with `sealed_vertices`), or 14 faces with no new vertex.

    Returns:
        (1554, 3), or (1552, 3) without the centre.

    Raises:
        ValueError: wrong shape.
    """
    if faces.shape != (NUM_FACES, 3):
        raise ValueError(f"faces must have shape ({NUM_FACES}, 3), got {tuple(faces.shape)}")
    places = faces.new_tensor([*WRIST_LOOP, NUM_VERTICES])
    cap = places[torch.tensor(_FAN if centre else _STRIP, device=faces.device)]
    # An edge of the surface is walked once each way, so a cap runs against the surface. Which way the surface runs
    # is found without a branch, and so without waiting for the device.
    along = ((faces == WRIST_LOOP[0]) & (faces.roll(-1, 1) == WRIST_LOOP[1])).any()
    return torch.cat((faces, torch.where(along, cap.flip(1), cap)))


def sealed(vertices: Tensor, faces: Tensor, *, centre: bool = True) -> tuple[Tensor, Tensor]:
    """Close the wrist: a watertight surface.

    Args:
        vertices: (..., 778, 3).
        faces: (1538, 3).
        centre: see `sealed_faces`.

    Returns:
        vertices (..., 779, 3) and faces (1554, 3); or, without the centre, the same vertices and faces (1552, 3).

    Raises:
        ValueError: wrong shapes.
    """
    return sealed_vertices(vertices) if centre else vertices, sealed_faces(faces, centre=centre)
