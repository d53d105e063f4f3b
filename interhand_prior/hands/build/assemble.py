"""One mesh from palm and fingers, with MANO's counts and with its vertex ids wherever other people's code uses them.

Ids fixed here: the wrist loop in its order; the fingertips of smplx, FreiHAND, manopth and mobilehand; the pairs whose
middle IntagHand takes for the MCP joints; 95 and 22, whose middle manopth takes for the palm; 270 and 216, whose order
along x tells a right hand from a left one. The other vertices take the ids that are left, finger by finger.
"""

from __future__ import annotations

import numpy as np

from .anthropometry import FINGERS, Array
from .field import field, value_and_gradient
from .fingers import RING_COUNT, finger_tube
from .palm import palm_patch
from .skeleton import FIRST, FRAMES, JOINTS

VERTEX_COUNT, FACE_COUNT = 778, 1538
WRIST_LOOP = (108, 79, 78, 121, 214, 215, 279, 239, 234, 92, 38, 122, 118, 117, 119, 120)
TIP_ID = {"thumb": 744, "index": 320, "middle": 443, "ring": 554, "pinky": 671}
"""smplx and HaMeR; the apex of each finger."""
TIP_NEIGHBOURS = {
    "thumb": (745,),
    "index": (317, 333),
    "middle": (444, 445),
    "ring": (555, 556),
    "pinky": (672, 673),
}
"""The tips of FreiHAND, manopth and mobilehand; next to the apex, the palmar side first."""
MCP_PAIR = {"index": (63, 144), "middle": (271, 220), "ring": (148, 290), "pinky": (770, 83)}
PALM_PAIR = (95, 22)
DISTAL_ID, PROXIMAL_ID = 270, 216
ID_RANGE = {"index": (281, 388), "middle": (389, 500), "ring": (501, 610), "pinky": (611, 697), "thumb": (698, 777)}
"""Contiguous ids that each finger takes first, so that neighbours in space are neighbours in the file."""


def face_normals(vertices: Array, faces: np.ndarray) -> Array:
    """Area-weighted normals (F, 3)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.asarray(np.cross(b - a, c - a))


def balance(vertices: Array, faces: np.ndarray, keep: np.ndarray, times: int = 4) -> Array:
    """Move vertices along the normal until vertices and face centres straddle the surface: the coarse mesh keeps the
    volume of the smooth body. `keep` are left alone."""
    v = vertices.copy()
    free = np.ones(len(v), bool)
    free[keep] = False
    for _ in range(times):
        area = np.linalg.norm(face_normals(v, faces), axis=1)
        at_faces = field(v[faces].mean(1))
        total, weight = np.zeros(len(v)), np.zeros(len(v))
        for i in range(3):
            np.add.at(total, faces[:, i], area * at_faces)
            np.add.at(weight, faces[:, i], area)
        value, g = value_and_gradient(field, v)
        g /= np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 0.3)
        step = np.clip(-0.35 * (value + 1.6 * total / weight), -0.4, 0.4)
        v[free] += (step[:, None] * g)[free]
    return v


class _Ids:
    """New id of each vertex, given out once."""

    def __init__(self) -> None:
        self.new = np.full(VERTEX_COUNT, -1)
        self.free = set(range(VERTEX_COUNT))

    def give(self, vertex: int, i: int) -> None:
        if self.new[vertex] >= 0 or i not in self.free:
            raise RuntimeError(f"vertex id {i} is given twice")
        self.new[vertex] = i
        self.free.discard(i)

    def pair(self, vertices: Array, candidates: np.ndarray, middle: Array, up: Array, ids: tuple[int, int]) -> None:
        """The dorsal and the palmar vertex on the two sides of `middle` whose own middle comes nearest to it."""
        c = np.array([i for i in candidates if self.new[i] < 0])
        side = (vertices[c] - middle) @ up
        above, below = c[side > 2], c[side < -2]
        error = np.linalg.norm((vertices[above][:, None] + vertices[below][None]) / 2 - middle, axis=-1)
        # prefer the pair that looks straight through
        lateral = np.linalg.norm(np.cross(vertices[above][:, None] - vertices[below][None], up), axis=-1)
        i, j = np.unravel_index(np.argmin(error + 0.1 * lateral), error.shape)
        self.give(int(above[i]), ids[0])
        self.give(int(below[j]), ids[1])


def assemble() -> tuple[Array, np.ndarray, np.ndarray]:
    """Vertices (778, 3) mm, faces (1538, 3) and the part of each vertex: 0..4 a finger (order of FINGERS), -1 the
    palm."""
    tubes = {k: finger_tube(k) for k in FINGERS}
    bases = {k: (tubes[k][0][: RING_COUNT[k]], tubes[k][2]) for k in FINGERS}
    count = VERTEX_COUNT - sum(len(tubes[k][0]) - RING_COUNT[k] for k in FINGERS)
    error: Exception | None = None
    for scale in (1.1, 1.0, 1.2, 0.95, 1.15, 1.05):
        try:
            palm_v, palm_f, openings = palm_patch(bases, count, scale)
            break
        except RuntimeError as e:
            error = e
    else:
        raise RuntimeError("no valid palm patch was found") from error
    blocks_v, blocks_f, part, members = [palm_v], [palm_f], [np.full(len(palm_v), -1)], {}
    start = len(palm_v)
    for i, k in enumerate(FINGERS):
        v, f, _ = tubes[k]
        n = RING_COUNT[k]
        members[k] = np.concatenate([openings[k], start + np.arange(len(v) - n)])
        blocks_v.append(v[n:])
        blocks_f.append(members[k][f])
        part.append(np.full(len(v) - n, i))
        start += len(v) - n
    vertices, faces, label = np.concatenate(blocks_v), np.concatenate(blocks_f), np.concatenate(part)
    if len(vertices) != VERTEX_COUNT or len(faces) != FACE_COUNT:
        raise RuntimeError(f"{len(vertices)} vertices and {len(faces)} faces")
    vertices = balance(vertices, faces, openings["wrist"])
    new = _number(vertices, label, members, openings["wrist"])
    for i, k in enumerate(FINGERS):
        label[members[k]] = i
    back = np.argsort(new)
    return vertices[back], new[faces], label[back]


def _number(vertices: Array, label: np.ndarray, members: dict[str, np.ndarray], wrist: np.ndarray) -> np.ndarray:
    ids = _Ids()
    # by the angle from dorsal (y) to radial (z), from the corner between them on: caps made from the loop look outward
    centre = vertices[wrist].mean(0)
    angle = np.arctan2(vertices[wrist, 2] - centre[2], vertices[wrist, 1] - centre[1])
    order = np.argsort(angle)
    order = np.roll(order, -int(np.argmin(np.abs(angle[order] - np.pi / 4))))
    for i, vid in zip(order, WRIST_LOOP, strict=True):
        ids.give(int(wrist[i]), vid)
    for k in FINGERS:
        tube = members[k]
        tip = int(tube[-1])
        ids.give(tip, TIP_ID[k])
        up = FRAMES[k][2][2]
        ring = sorted(tube[-1 - RING_COUNT[k] // 2 : -1], key=lambda i: float((vertices[i] - vertices[tip]) @ up))
        for vertex, vid in zip(ring, TIP_NEIGHBOURS[k], strict=False):
            ids.give(int(vertex), vid)
    everything = np.arange(VERTEX_COUNT)
    for k, pair in MCP_PAIR.items():
        near = everything[np.linalg.norm(vertices - JOINTS[FIRST[k]], axis=1) < 25]
        ids.pair(vertices, near, JOINTS[FIRST[k]], np.array([0.0, 1.0, 0.0]), pair)
    palm = (JOINTS[0] + JOINTS[FIRST["middle"]]) / 2
    flesh = everything[label < 0]
    ids.pair(vertices, flesh, palm, np.array([0.0, 1.0, 0.0]), PALM_PAIR)
    for place, vid in ((JOINTS[FIRST["middle"]] + [-4, 11, 0], DISTAL_ID), (JOINTS[0] + [-10, 16, 0], PROXIMAL_ID)):
        open_ = flesh[ids.new[flesh] < 0]
        ids.give(int(open_[np.argmin(np.linalg.norm(vertices[open_] - place, axis=1))]), vid)
    for k in FINGERS:
        low, high = ID_RANGE[k]
        slots = [j for j in range(low, high + 1) if j in ids.free]
        own = [int(v) for v in members[k][RING_COUNT[k] :] if ids.new[v] < 0]
        for vertex, vid in zip(own, slots, strict=False):
            ids.give(vertex, vid)
    rest = sorted((int(v) for v in everything[ids.new < 0]), key=lambda v: -vertices[v, 0])
    for vertex, vid in zip(rest, sorted(ids.free), strict=True):
        ids.give(vertex, vid)
    return ids.new
