"""The palm's patch: marching cubes, openings collapsed to the fingers' base rings and the wrist loop, then remeshed.

The patch must have exactly `count` vertices, share its openings with the tubes of `fingers`, and keep its triangles
near the sizes asked for: small at the webs and knuckles, large in the palm.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from .anthropometry import FINGERS, Array
from .field import LONG_FINGERS, bone_local, field, finger_field, project, ray_hit, value_and_gradient
from .fingers import Ring
from .remesh import Mesh, boundary_loops
from .skeleton import FIRST, FRAMES, JOINTS

WRIST_X = 101.0
"""Plane of the wrist's opening, 6 mm behind the wrist joint (our choice: at the crease, where hand length starts)."""
CELL = 2.0
Bases = dict[str, tuple[Array, Ring]]


def _largest_piece(faces: np.ndarray, count: int) -> np.ndarray:
    rows, cols = np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_matrix((np.ones(len(rows)), (rows, cols)), (count, count))
    piece = connected_components(graph, directed=False)[1][faces[:, 0]]
    return np.asarray(faces[piece == np.bincount(piece).argmax()])


def _iso_surface(bases: Bases) -> tuple[Array, np.ndarray]:
    """Marching-cubes surface without the fingers and beyond the wrist, with simple boundary loops."""
    low, high = np.array([-48, -42, -78.0]), np.array([112, 34, 95.0])
    axes = [np.arange(low[i], high[i], CELL) for i in range(3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    values = np.concatenate([field(c) for c in np.array_split(grid, 8)]).reshape([len(a) for a in axes])
    v, f, _, _ = marching_cubes(values, 0.0, spacing=(CELL,) * 3)
    v = v.astype(float) + low
    normals = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
    if (normals * value_and_gradient(field, v[f[:, 0]])[1]).sum() < 0:
        f = f[:, ::-1]
    dead = v[:, 0] > WRIST_X
    local = bone_local(v, None)
    fields = {k: finger_field(k, local) for k in FINGERS}
    for k in FINGERS:
        centre, t, _, _ = bases[k][1]
        others = np.min([fields[j] for j in FINGERS if j != k], 0)
        dead |= ((v - centre) @ t > 0) & (fields[k] < others) & (fields[k] < 1.5)
    f = _largest_piece(f[~dead[f].any(1)], len(v))
    for _ in range(6):  # drop ears and pinched boundary vertices
        directed = {(a, b) for t in f.tolist() for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
        open_edges = np.array(
            [sum((b, a) not in directed for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))) for t in f.tolist()]
        )
        leaving = np.zeros(len(v), int)
        for a, b in directed:
            leaving[a] += (b, a) not in directed
        bad = (open_edges >= 2) | (leaving[f] > 1).any(1)
        if not bad.any():
            break
        f = _largest_piece(f[~bad], len(v))
    used = np.unique(f)
    new = np.full(len(v), -1)
    new[used] = np.arange(len(used))
    return v[used], new[f]


def _collapse_opening(mesh: Mesh, loop: list[int], target: Array) -> np.ndarray:
    """Collapse a boundary loop to as many vertices as `target` and move them there; ids in the target's order."""
    points = np.array([mesh.v[i] for i in loop])
    match: tuple[int, int, list[int]] | None = None
    for sign in (1, -1):
        for start in range(len(target)):
            turned = np.roll(target[::sign], -start, 0)
            nearest = [int(np.argmin(((points - q) ** 2).sum(1))) for q in turned]
            if (np.diff(nearest) > 0).all():
                match = (sign, start, nearest)
    if match is None:
        raise RuntimeError("an opening of the palm does not match its ring")
    sign, start, nearest = match
    order = np.roll(np.arange(len(target))[::sign], -start)
    keep = [loop[i] for i in nearest]
    kept, current = set(keep), list(loop)
    while len(current) > len(target):
        n = len(current)
        free = sorted(
            (i for i in range(n) if current[i] not in kept), key=lambda i: mesh.length(current[i], current[(i + 1) % n])
        )
        for i in free:
            u = current[i]
            if any(mesh.collapse(u, v, mesh.v[v], check=False) for v in (current[(i + 1) % n], current[i - 1])):
                current.pop(i)
                break
        else:
            raise RuntimeError("an opening of the palm cannot be collapsed")
    ids = np.empty(len(target), int)
    for vertex, o in zip(keep, order, strict=True):
        mesh.v[vertex] = target[o].copy()
        mesh.fixed.add(vertex)
        ids[o] = vertex
    return ids


class _Remesher:
    def __init__(self, mesh: Mesh, bases: Bases, scale: float) -> None:
        self.mesh, self.scale = mesh, scale
        self.rings = np.concatenate([bases[k][0] for k in FINGERS])
        self.knuckles = np.array([JOINTS[FIRST[k]] + 10.5 * FRAMES[k][0][2] for k in LONG_FINGERS])

    def sizes(self) -> Array:
        """Edge length wanted at each vertex, mm."""
        p = np.array(self.mesh.v)
        ring = np.sqrt(((p[:, None] - self.rings[None]) ** 2).sum(-1)).min(1)
        knuckle = np.sqrt(((p[:, None] - self.knuckles[None]) ** 2).sum(-1)).min(1)
        near_ring = 5.0 + 5.2 * np.clip((ring - 5) / 24, 0, 1)
        return np.asarray(np.minimum(near_ring, 5.2 + 5.0 * np.clip((knuckle - 6) / 20, 0, 1)) * self.scale)

    def _by_length(self, longest_first: bool) -> list[tuple[float, int, int]]:
        size, m = self.sizes(), self.mesh
        out = [(2 * m.length(u, v) / (size[u] + size[v]), u, v) for u, v in m.edges()]
        return sorted(out, reverse=longest_first)

    def collapse(self, shorter: float, limit: int = 10**9) -> None:
        size, m, n = self.sizes(), self.mesh, 0
        for r, u, v in self._by_length(False):
            if r > shorter or n >= limit:
                break
            if not m.at[u] or not m.at[v] or v not in m.neighbours(u):
                continue
            if 2 * m.length(u, v) / (size[u] + size[v]) > shorter or (u in m.fixed and v in m.fixed):
                continue
            if u in m.fixed:
                u, v = v, u
            n += m.collapse(u, v, m.v[v] if v in m.fixed else (m.v[u] + m.v[v]) / 2)

    def split(self, longer: float, limit: int = 10**9) -> None:
        n = 0
        for r, u, v in self._by_length(True):
            if r < longer or n >= limit:
                break
            n += self.mesh.split(u, v)

    def flip(self) -> None:
        for u, v in self.mesh.edges():
            if v in self.mesh.neighbours(u):
                self.mesh.flip(u, v)

    def relax(self, times: int = 2) -> None:
        """Tangential smoothing back onto the field; a move that would turn a face over is refused."""
        m = self.mesh
        ids = [v for v in m.alive() if v not in m.fixed]
        around = [sorted(m.neighbours(v)) for v in ids]
        for _ in range(times):
            p, size = np.array(m.v), self.sizes()
            mean = np.array([np.average(p[a], axis=0, weights=1 / size[a]) for a in around])
            here = p[ids]
            _, g = value_and_gradient(field, here)
            g /= np.linalg.norm(g, axis=1, keepdims=True) + 1e-9
            d = mean - here
            d -= (d * g).sum(1, keepdims=True) * g
            for v, to, up in zip(ids, project(field, here + 0.6 * d, 2, 2.0), g, strict=True):
                for i in m.at[v]:
                    n0, n1 = m.normal(m.faces[i]), m.normal(m.faces[i], (v,), to)
                    if n1 @ up < 0.15 * np.sqrt(n1 @ n1) and n1 @ up < n0 @ up:
                        break
                else:
                    m.v[v] = to

    def run(self, count: int) -> None:
        for shorter in (0.3, 0.45, 0.6, 0.7):
            for _ in range(3):
                self.collapse(shorter)
            self.flip()
            self.relax(1)
        for _ in range(14):
            self.split(1.35)
            self.collapse(0.74)
            self.flip()
            self.relax()
            self.scale *= float(np.clip((len(self.mesh.alive()) / count) ** 0.5, 0.93, 1.07))
        for _ in range(60):
            n = len(self.mesh.alive())
            if n == count:
                break
            if n > count:
                self.collapse(9, min(4, n - count))
            else:
                self.split(0, min(4, count - n))
            self.flip()
            self.relax(1)
        for _ in range(8):
            self.flip()
            self.relax()
        if len(self.mesh.alive()) != count:
            raise RuntimeError(f"the palm has {len(self.mesh.alive())} vertices, wanted {count}")


def palm_patch(bases: Bases, count: int, scale: float) -> tuple[Array, np.ndarray, dict[str, np.ndarray]]:
    """Vertices (count, 3), faces, and the ids of each opening ("wrist" and the fingers) in its ring's order.

    Raises RuntimeError when this `scale` of the first sizes leads to no valid patch; try another.
    """
    v, f = _iso_surface(bases)
    mesh = Mesh(v, f)
    loops = boundary_loops(f.tolist())
    if len(loops) != 6:
        raise RuntimeError(f"the palm has {len(loops)} openings, wanted 6")
    a = np.arange(16) * 2 * np.pi / 16
    centre = np.repeat([[WRIST_X, -2.5, 4.0]], 16, 0)
    wrist = ray_hit(field, centre, np.stack([0 * a, np.cos(a), np.sin(a)], 1), 5, 60)
    openings: dict[str, np.ndarray] = {}
    for name, target in {"wrist": wrist, **{k: bases[k][0] for k in FINGERS}}.items():
        middle = target.mean(0)
        loop = min(loops, key=lambda loop: float(np.linalg.norm(v[loop].mean(0) - middle)))
        openings[name] = _collapse_opening(mesh, loop, target)
    _Remesher(mesh, bases, scale).run(count)
    alive = mesh.alive()
    new = {old: i for i, old in enumerate(alive)}
    vertices = np.array([mesh.v[i] for i in alive])
    faces = np.array([[new[i] for i in face] for face in mesh.faces.values()])
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    _, g = value_and_gradient(field, vertices[faces].mean(1))
    agreement = (normals * g).sum(1) / (np.linalg.norm(normals, axis=1) * np.linalg.norm(g, axis=1))
    if agreement.min() < 0.05:
        raise RuntimeError("a face of the palm is turned over")
    return vertices, faces, {k: np.array([new[i] for i in ids]) for k, ids in openings.items()}
