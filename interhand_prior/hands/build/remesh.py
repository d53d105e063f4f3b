"""A small editable triangle mesh: collapse, split and flip of edges, each keeping a 2-manifold (link condition).

Used by `palm` to bring an iso-surface to an exact number of well-shaped triangles (Botsch & Kobbelt, "A Remeshing
Approach to Multiresolution Modeling", 2004). Vertices in `border` lie on a boundary, those in `fixed` never move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from .anthropometry import Array

Face = tuple[int, int, int]
Edge = tuple[int, int]


def ordered(a: int, b: int) -> Edge:
    """An undirected edge."""
    return (a, b) if a < b else (b, a)


def boundary_loops(faces: Iterable[Collection[int]]) -> list[list[int]]:
    """Closed loops of directed boundary edges (in the direction of the faces' own edges)."""
    directed: set[Edge] = set()
    for f in faces:
        a, b, c = f
        directed.update(((a, b), (b, c), (c, a)))
    following = {a: b for a, b in sorted(directed) if (b, a) not in directed}
    loops = []
    while following:
        start = next(iter(following))
        loop, b = [start], following.pop(start)
        while b != start:
            loop.append(b)
            b = following.pop(b)
        loops.append(loop)
    return loops


class Mesh:
    """Triangles that can be edited; a dead vertex has no faces."""

    def __init__(self, vertices: Array, faces: Iterable[Iterable[int]]) -> None:
        self.v: list[Array] = [np.array(x) for x in vertices]
        self.faces: dict[int, Face] = {}
        self.at: list[set[int]] = [set() for _ in self.v]
        self.fixed: set[int] = set()
        self._next = 0
        for a, b, c in faces:
            self._add((int(a), int(b), int(c)))
        self.border: set[int] = set()
        for e in self.edges():
            if len(self.at[e[0]] & self.at[e[1]]) == 1:
                self.border.update(e)

    def _add(self, face: Face) -> None:
        self.faces[self._next] = face
        for v in face:
            self.at[v].add(self._next)
        self._next += 1

    def _remove(self, i: int) -> None:
        for v in self.faces.pop(i):
            self.at[v].discard(i)

    def neighbours(self, v: int) -> set[int]:
        """Vertices one edge away."""
        out: set[int] = set()
        for i in self.at[v]:
            out.update(self.faces[i])
        out.discard(v)
        return out

    def edges(self) -> list[Edge]:
        """All edges, sorted."""
        out: set[Edge] = set()
        for a, b, c in self.faces.values():
            out.update((ordered(a, b), ordered(b, c), ordered(c, a)))
        return sorted(out)

    def alive(self) -> list[int]:
        """Vertices that have faces."""
        return [v for v in range(len(self.v)) if self.at[v]]

    def normal(self, face: Face, moved: Collection[int] = (), to: Array | None = None) -> Array:
        """Twice the area vector of a face, optionally with some vertices moved to one place."""
        p = [to if to is not None and v in moved else self.v[v] for v in face]
        a, b = p[1] - p[0], p[2] - p[0]
        return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])

    def length(self, u: int, v: int) -> float:
        """Distance between two vertices."""
        return float(np.linalg.norm(self.v[u] - self.v[v]))

    def collapse(self, u: int, v: int, to: Array, check: bool = True) -> bool:
        """Merge u into v at `to`; refused when it would break the manifold or (check) turn a face by over 70
        degrees."""
        shared = self.at[u] & self.at[v]
        opposite = {w for i in shared for w in self.faces[i]} - {u, v}
        if len(opposite) != len(shared) or (self.neighbours(u) & self.neighbours(v)) != opposite:
            return False
        if len(shared) == 2 and u in self.border and v in self.border:
            return False
        if any(len(self.at[w]) <= (1 if w in self.border else 3) for w in opposite):
            return False
        if check:
            for i in (self.at[u] | self.at[v]) - shared:
                n0, n1 = self.normal(self.faces[i]), self.normal(self.faces[i], (u, v), to)
                l0, l1 = np.sqrt(n0 @ n0), np.sqrt(n1 @ n1)
                if l1 < 1e-3 or n0 @ n1 < 0.3 * l0 * l1:
                    return False
        for i in list(shared):
            self._remove(i)
        for i in sorted(self.at[u]):
            a, b, c = (v if w == u else w for w in self.faces[i])
            self._remove(i)
            self._add((a, b, c))
        self.v[v] = to
        self.border.discard(u)
        return True

    def split(self, u: int, v: int) -> bool:
        """A new vertex in the middle of an inner edge."""
        shared = sorted(self.at[u] & self.at[v])
        if len(shared) != 2:
            return False
        m = len(self.v)
        self.v.append((self.v[u] + self.v[v]) / 2)
        self.at.append(set())
        for i in shared:
            face = self.faces[i]
            self._remove(i)
            for old in (u, v):
                a, b, c = (m if w == old else w for w in face)
                self._add((a, b, c))
        return True

    def flip(self, u: int, v: int) -> bool:
        """Turn an inner edge when valences come nearer to six (four on a border) and no face folds."""
        shared = sorted(self.at[u] & self.at[v])
        if len(shared) != 2:
            return False
        f0, f1 = self.faces[shared[0]], self.faces[shared[1]]
        a, b = (next(w for w in f if w not in (u, v)) for f in (f0, f1))
        if b in self.neighbours(a):
            return False
        excess = [len(self.neighbours(w)) - (4 if w in self.border else 6) for w in (u, v, a, b)]
        after = [excess[0] - 1, excess[1] - 1, excess[2] + 1, excess[3] + 1]
        if sum(x * x for x in after) >= sum(x * x for x in excess):
            return False
        n0 = self.normal(f0) + self.normal(f1)
        p, q, r = (b if w == v else w for w in f0)
        s, t, x = (a if w == u else w for w in f1)
        m0, m1 = self.normal((p, q, r)), self.normal((s, t, x))
        before, l0, l1 = (float(np.linalg.norm(w)) for w in (n0, m0, m1))
        if min(l0, l1) < 1 or m0 @ n0 < 0.5 * before * l0 or m1 @ n0 < 0.5 * before * l1 or m0 @ m1 < 0.3 * l0 * l1:
            return False
        self._remove(shared[0])
        self._remove(shared[1])
        self._add((p, q, r))
        self._add((s, t, x))
        return True
