"""From a coarse mesh to a surface worth looking at: sealed wrist, smooth normals, finer triangles.

Phong tessellation (Boubekeur & Alexa 2008): the midpoint m of an edge (a, b) is moved towards the tangent planes at
its ends, m* = m - s/2 (<m - a, n_a> n_a + <m - b, n_b> n_b), with s = 3/4. Unlike subdivision by smoothing it leaves
every vertex where it is, so two hands that touch in the mesh touch in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rasterizer import FloatArray, IntArray

__all__ = ["Surface", "Topology", "boundary_loops", "join", "vertex_normals"]

TESSELLATION = 0.75


@dataclass(frozen=True)
class Surface:
    """Triangles with what shading needs.

    Attributes:
        vertices: (V, 3) metres.
        normals: (V, 3) unit, outward.
        faces: (F, 3), counter-clockwise from outside.
        part: (V,) number of the mesh the vertex belongs to (0 left hand, 1 right hand).
        cut: (V,) whether it is on a cap, the cut through the wrist.
    """

    vertices: FloatArray
    normals: FloatArray
    faces: IntArray
    part: IntArray
    cut: NDArray[np.bool_]


class Topology:
    """What can be prepared from the faces alone, once for all poses of a mesh.

    Args:
        faces: (F, 3) triangles, counter-clockwise from outside.
        vertex_count: V.
        levels: how often each triangle is cut in four.
    """

    def __init__(self, faces: IntArray, vertex_count: int, levels: int = 0) -> None:
        self.coarse_faces = faces
        self.edges: list[IntArray] = []
        for _ in range(levels):
            edges, faces = _split(faces, vertex_count)
            self.edges.append(edges)
            vertex_count += len(edges)
        self.loops = [np.array(loop) for loop in boundary_loops(faces)]
        caps = []
        for loop in self.loops:
            # A cap has its own copies of the border, so that the edge between skin and cut stays sharp.
            ring = vertex_count + np.arange(len(loop))
            vertex_count += len(loop) + 1
            caps.append(np.stack([np.roll(ring, -1), ring, np.full(len(loop), vertex_count - 1)], 1))
        self.faces: IntArray = np.concatenate([faces, *caps])

    def surface(self, vertices: FloatArray, part: int = 0) -> Surface:
        """The surface for one pose: `vertices` (V, 3) in metres, and the number to mark it with."""
        normals = vertex_normals(vertices, self.coarse_faces)
        for edges in self.edges:
            vertices, normals = _tessellate(vertices, normals, edges)
        skin = len(vertices)
        for loop in self.loops:
            rim = vertices[loop]
            middle = rim.mean(0, keepdims=True)
            axis = np.cross(np.roll(rim, -1, axis=0) - middle, rim - middle).sum(0, keepdims=True)
            vertices = np.concatenate([vertices, rim, middle])
            normals = np.concatenate([normals, np.repeat(_unit(axis), len(loop) + 1, axis=0)])
        cut = np.arange(len(vertices)) >= skin
        return Surface(vertices, normals, self.faces, np.full(len(vertices), part), cut)


def vertex_normals(vertices: FloatArray, faces: IntArray) -> FloatArray:
    """(V, 3) unit normals: the adjacent triangles', weighted by their areas; zero at unused vertices."""
    p = vertices[faces]
    normal = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    total = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(total, faces[:, corner], normal)
    return _unit(total)


def boundary_loops(faces: IntArray) -> list[list[int]]:
    """Open borders as lists of vertices, in the direction in which the triangles beside them run."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    base = int(faces.max()) + 1
    alone = ~np.isin(edges[:, 0] * base + edges[:, 1], edges[:, 1] * base + edges[:, 0])
    following = {int(a): int(b) for a, b in edges[alone]}
    loops = []
    while following:
        start = min(following)
        loop = [start]
        while (after := following.pop(loop[-1], start)) != start:
            loop.append(after)
        loops.append(loop)
    return loops


def join(surfaces: Sequence[Surface]) -> Surface:
    """One surface of several."""
    offsets = np.cumsum([0, *(len(s.vertices) for s in surfaces[:-1])])
    return Surface(
        np.concatenate([s.vertices for s in surfaces]),
        np.concatenate([s.normals for s in surfaces]),
        np.concatenate([s.faces + offset for s, offset in zip(surfaces, offsets, strict=True)]),
        np.concatenate([s.part for s in surfaces]),
        np.concatenate([s.cut for s in surfaces]),
    )


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length == 0, 1, length)).astype(vectors.dtype)


def _split(faces: IntArray, vertex_count: int) -> tuple[IntArray, IntArray]:
    """Edges (E, 2) whose midpoints become vertices vertex_count, ..., and the four times as many triangles."""
    ends = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, number = np.unique(ends, axis=0, return_inverse=True)
    a, b, c = faces.T
    ab, bc, ca = number.reshape(3, -1) + vertex_count
    return edges, np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])


def _tessellate(vertices: FloatArray, normals: FloatArray, edges: IntArray) -> tuple[FloatArray, FloatArray]:
    i, j = edges.T
    middle = (vertices[i] + vertices[j]) / 2
    lift = sum(((middle - vertices[k]) * normals[k]).sum(1, keepdims=True) * normals[k] for k in (i, j))
    added = (middle - TESSELLATION / 2 * lift).astype(vertices.dtype)
    return np.concatenate([vertices, added]), np.concatenate([normals, _unit(normals[i] + normals[j])])
