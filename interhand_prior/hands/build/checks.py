"""What must hold of a hand mesh, as functions that return numbers: used by the build, the tests and
assets/README.md."""

from __future__ import annotations

import numpy as np

from .anthropometry import Array
from .assemble import FACE_COUNT, VERTEX_COUNT, WRIST_LOOP, face_normals
from .remesh import boundary_loops


def topology_errors(faces: np.ndarray) -> list[str]:
    """What is wrong with the connectivity: empty for a 2-manifold disc bounded by the wrist loop in MANO's order."""
    errors = []
    if faces.shape != (FACE_COUNT, 3) or sorted(set(faces.ravel().tolist())) != list(range(VERTEX_COUNT)):
        errors.append(f"faces have shape {faces.shape} or leave vertices out")
    directed = [(int(f[i]), int(f[(i + 1) % 3])) for f in faces for i in range(3)]
    if len(set(directed)) != len(directed):
        errors.append("an edge is used twice in one direction")
    edges = {tuple(sorted(e)) for e in directed}
    if VERTEX_COUNT - len(edges) + len(faces) != 1:
        errors.append("the surface is not a disc")
    loops = boundary_loops(faces.tolist())
    if len(loops) != 1:
        return [*errors, f"{len(loops)} boundary loops"]
    start = loops[0].index(WRIST_LOOP[0])
    loop = loops[0][start:] + loops[0][:start]
    if [loop[0], *loop[:0:-1]] != list(WRIST_LOOP):
        errors.append("the wrist loop is not MANO's")
    around: dict[int, dict[int, int]] = {}
    for a, b, c in faces.tolist():  # each vertex: its faces form one fan
        for x, y, z in ((a, b, c), (b, c, a), (c, a, b)):
            around.setdefault(x, {})[y] = z
    for v, fan in around.items():
        starts = [y for y in fan if y not in fan.values()]
        y, seen = (starts[0] if starts else next(iter(fan))), 0
        while y in fan and seen < len(fan):
            y, seen = fan[y], seen + 1
        if seen != len(fan) or len(starts) > 1:
            errors.append(f"vertex {v} joins two pieces")
    return errors


def sealed(faces: np.ndarray) -> np.ndarray:
    """Faces with the wrist closed by a fan of 14 over the loop, normal outward."""
    cap = [[WRIST_LOOP[0], WRIST_LOOP[i], WRIST_LOOP[i + 1]] for i in range(1, len(WRIST_LOOP) - 1)]
    return np.concatenate([faces, np.array(cap, dtype=faces.dtype)])


def volume(vertices: Array, faces: np.ndarray) -> float:
    """Volume of the sealed hand, in the cube of the vertices' unit; positive when the normals look outward."""
    f = sealed(faces)
    return float((vertices[f[:, 0]] * np.cross(vertices[f[:, 1]], vertices[f[:, 2]])).sum() / 6)


def self_intersections(vertices: Array, faces: np.ndarray) -> set[tuple[int, int]]:
    """(first vertex of an edge, face) where an edge pierces a face with which it shares no vertex."""
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    low, high = vertices[faces].min(1), vertices[faces].max(1)
    edge_low, edge_high = vertices[edges].min(1), vertices[edges].max(1)
    hits: set[tuple[int, int]] = set()
    for at in range(0, len(faces), 64):  # ids are coherent in space, so most edges are far from a batch of faces
        f = faces[at : at + 64]
        face_low, face_high = low[at : at + 64], high[at : at + 64]
        close = np.where(((edge_low <= face_high.max(0)) & (edge_high >= face_low.min(0))).all(1))[0]
        near = (edge_low[close, None] <= face_high[None]) & (edge_high[close, None] >= face_low[None])
        e, t = np.where(near.all(-1))
        e = close[e]
        apart = ~(edges[e][:, :, None] == f[t][:, None, :]).any((1, 2))
        e, t = e[apart], t[apart]
        o = vertices[edges[e, 0]]
        d = vertices[edges[e, 1]] - o
        a = vertices[f[t, 0]]
        e1, e2 = vertices[f[t, 1]] - a, vertices[f[t, 2]] - a
        p = np.cross(d, e2)
        det = (e1 * p).sum(1)
        det = np.where(np.abs(det) < 1e-18, 1e-18, det)
        s = o - a
        u = (s * p).sum(1) / det
        q = np.cross(s, e1)
        v = (d * q).sum(1) / det
        w = (e2 * q).sum(1) / det
        through = (u >= 0) & (v >= 0) & (u + v <= 1) & (w >= 0) & (w <= 1)
        hits.update((int(edges[i, 0]), int(at + j)) for i, j in zip(e[through], t[through], strict=True))
    return hits


def smallest_angle(vertices: Array, faces: np.ndarray) -> float:
    """Smallest angle of any triangle, degrees."""
    least = 180.0
    for i in range(3):
        a, b, c = (vertices[faces[:, (i + j) % 3]] for j in range(3))
        x, y = b - a, c - a
        cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        least = min(least, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).min()))
    return least


def outward_share(vertices: Array, faces: np.ndarray, gradient: Array) -> float:
    """Share of faces whose normal agrees with the field's gradient (F, 3) at their centres."""
    return float(((face_normals(vertices, faces) * gradient).sum(1) > 0).mean())


def bend_thickness(
    vertices: Array, faces: np.ndarray, centre: Array, normal: Array, palmar: Array, reach: float
) -> tuple[float, float]:
    """Dorsal and palmar half thickness where a plane through a joint cuts the mesh within `reach` of `centre`."""
    s = (vertices - centre) @ normal
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    a, b = s[edges[:, 0]], s[edges[:, 1]]
    cut = edges[(a > 0) != (b > 0)]
    a, b = s[cut[:, 0]], s[cut[:, 1]]
    p = vertices[cut[:, 0]] + (a / (a - b))[:, None] * (vertices[cut[:, 1]] - vertices[cut[:, 0]])
    p = p[np.linalg.norm(p - centre, axis=1) < reach] - centre
    height = p @ palmar
    return float(-height.min()), float(height.max())
