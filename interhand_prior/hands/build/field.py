"""The hand's body as an implicit field f(p) < 0: tapered elliptic cones and ellipsoids, smoothly joined, bound to
bones.

    smin(a, b; k) = min(a, b) - max(k - |a - b|, 0)^2 / 4k

joins two parts with a fillet of width k. Evaluated in a pose, each part moves rigidly with its bone and soft tissue
displaced at a flexed joint bulges to the palmar side; so the same field is the body at rest and the target that the
pose correctives are fitted to. Phalanges have the published breadths and depths (`anthropometry.segment_size`); the
palm's muscles, fillets and bulges are OUR CHOICE, set by eye and so that the checks on breadth, depth and volume
hold. Millimetres throughout.
"""

# ruff: noqa: RUF005  (a point plus an offset is a sum of arrays, not a list to unpack)
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from .anthropometry import FINGERS, Array, segment_size
from .skeleton import FIRST, FRAMES, JOINTS, WRIST, finger_points

LONG_FINGERS = ("index", "middle", "ring", "pinky")
THENAR = 16
"""A virtual bone: half of the thumb's CMC rotation carries the thenar and the first web."""

Local = Callable[[int], Array]


class Part:
    """Tapered cone from `a` to `b` with elliptic section (lateral, dorsal radii) and ellipsoidal ends of length
    `ends`."""

    def __init__(
        self,
        bone: int,
        a: Sequence[float] | Array,
        b: Sequence[float] | Array,
        up: Sequence[float] | Array,
        radii_a: Sequence[float] | Array,
        radii_b: Sequence[float] | Array,
        ends: tuple[float, float],
    ) -> None:
        self.bone = bone
        self.a, self.b = np.asarray(a, float), np.asarray(b, float)
        axis = self.b - self.a
        self.length = float(np.linalg.norm(axis))
        axis = axis / self.length
        u = np.asarray(up, float)
        u = u - axis * (u @ axis)
        u /= np.linalg.norm(u)
        self.frame = np.stack([axis, np.cross(axis, u), u])
        self.radii_a, self.radii_b = np.asarray(radii_a, float), np.asarray(radii_b, float)
        self.ends = ends

    def __call__(self, p: Array) -> Array:
        """Field (N,) of this part at points (N, 3) of its bone's rest frame."""
        q = (p - self.a) @ self.frame.T
        c = np.clip(q[:, 0] / self.length, 0, 1)
        w = self.radii_a[0] + (self.radii_b[0] - self.radii_a[0]) * c
        d = self.radii_a[1] + (self.radii_b[1] - self.radii_a[1]) * c
        beyond = q[:, 0] - c * self.length
        e = np.where(beyond < 0, *self.ends)
        x, y, z = q[:, 1] / w, q[:, 2] / d, beyond / e
        k0 = np.sqrt(x**2 + y**2 + z**2) + 1e-9
        k1 = np.sqrt((x / w) ** 2 + (y / d) ** 2 + (z / e) ** 2) + 1e-9
        return np.asarray(k0 * (k0 - 1) / k1)


def ellipsoid(
    bone: int,
    centre: Sequence[float] | Array,
    axis: Sequence[float] | Array,
    up: Sequence[float] | Array,
    radii: Sequence[float],
) -> Part:
    """Ellipsoid with radii (along axis, lateral, dorsal)."""
    t = np.asarray(axis, float) / np.linalg.norm(axis)
    c = np.asarray(centre, float)
    return Part(bone, c - 1e-3 * t, c + 1e-3 * t, up, radii[1:], radii[1:], (radii[0], radii[0]))


def smin(a: Array, b: Array, k: float) -> Array:
    """Smooth minimum with a fillet of width k."""
    h = np.maximum(k - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - h * h / (4 * k))


def _long_finger(k: str) -> list[Part]:
    f, (m, p, d, tip), fr = FIRST[k], finger_points(k), FRAMES[k]
    size = segment_size(k) / 2
    r_mcp = size[0] * [1.05, 1.07]
    r_pip = (size[0] + size[1]) / 2 * [0.99, 0.965]
    r_mid = size[1] * [0.90, 0.87]
    r_dip = (size[1] + size[2]) / 2 * [0.97, 0.94]
    r_tip = size[2] * [0.90, 0.87]
    e = 7.5 if k == "pinky" else 8.5
    e_pip, e_dip = 0.95 * r_pip[1], 0.95 * r_dip[1]  # round knuckles when bent
    pad = tip - fr[2][0] * (e + 2.0) - 1.2 * fr[2][2]
    return [
        Part(f, m - 0.8 * fr[0][2], p, fr[0][2], r_mcp, r_pip, (8.5, e_pip)),
        Part(f + 1, p, d, fr[1][2], r_pip, r_dip, (e_pip, e_dip)),
        ellipsoid(f + 1, (p + d) / 2 - 0.5 * fr[0][2] - fr[1][2], fr[1][0], fr[1][2], [9.5, *r_mid]),
        Part(f + 2, d, tip - fr[2][0] * e, fr[2][2], r_dip * [0.99, 0.97], r_tip, (e_dip, e)),
        ellipsoid(f + 2, pad, fr[2][0], fr[2][2], [8.5, size[2][0], size[2][1] * 0.86]),
    ]


def _thumb() -> list[Part]:
    f, (m, p, d, tip), fr = FIRST["thumb"], finger_points("thumb"), FRAMES["thumb"]
    size = segment_size("thumb") / 2
    r_ip = (size[0] + size[1]) / 2 * 0.96
    e = 9.5
    u0, u1, u2 = (x[2] for x in fr)
    pad = tip - fr[2][0] * (e + 3.5) - 1.2 * u2
    return [
        Part(f, m, p - u0, u0, [14, 13.5], size[0], (12, 8.5)),
        Part(f + 1, p, d, u1, size[0], r_ip, (8.5, 8)),
        Part(f + 2, d, tip - fr[2][0] * e, u2, r_ip, size[1] * [0.84, 0.85], (8, e)),
        ellipsoid(f + 2, pad, fr[2][0], u2, [11, size[1][0] * 0.97, size[1][1] * 0.90]),
    ]


def _palm() -> list[Part]:
    y = [0.0, 1.0, 0.0]
    # The palm's distal edge: ANSUR II's palm length puts the middle finger's crease 15 mm beyond its MCP joint; the
    # pads below sit at the joints so that the webs come out a little before it.
    i, m, r, p = (JOINTS[FIRST[k]] - 0.5 * FRAMES[k][0][0] for k in LONG_FINGERS)
    return [
        # metacarpals
        Part(0, [84, 1, 15], i + [2, -2.5, -1], y, [12, 14], [9.8, 11.6], (12, 10)),
        Part(0, [84, 2.5, 6], m + [2, -3, 0], y, [12, 14], [11.5, 12.3], (10, 9)),
        Part(0, [84, 2, -4], r + [2, -2.5, 0], y, [12, 14], [11, 11.7], (10, 9)),
        Part(0, [84, -1, -12], p + [1, -1, 1], y, [12, 13], [8.8, 10.0], (10, 8.5)),
        # carpus and forearm
        Part(0, [72, -1, 3], [130, -3, 4], y, [32, 15.5], [27.5, 19.5], (10, 10)),
        # distal palmar pads
        Part(0, i + [3, -6.5, -3], m + [3.5, -9, 0], y, [8, 6.5], [8, 6.5], (8, 8)),
        Part(0, m + [3.5, -9, 0], r + [2.5, -7.5, 0], y, [8, 6.5], [8, 6.5], (8, 8)),
        Part(0, r + [2.5, -7.5, 0], p + [3.5, -5, 2], y, [8, 6.5], [8, 6.0], (8, 7)),
        # the palm's hollow is filled to a few millimetres
        ellipsoid(0, [36, -4, -4], [1, 0, 0], y, [26, 26, 8.5]),
        # metacarpal heads
        ellipsoid(0, i + [2, 0.6, 0], [1, 0, 0], y, [11, 7.8, 8.6]),
        ellipsoid(0, m + [2, 0.4, 0], [1, 0, 0], y, [11, 8.2, 8.8]),
        ellipsoid(0, r + [2, 0.5, 0], [1, 0, 0], y, [10.5, 7.8, 8.4]),
        ellipsoid(0, p + [2, 1.2, 0], [1, 0, 0], y, [10, 7.2, 7.8]),
        # hypothenar, thenar
        ellipsoid(0, [62, -8, -26], [1, 0.02, 0.27], y, [34, 13, 14]),
        ellipsoid(THENAR, [62.5, -11, 28.5], [-0.78, -0.12, 0.55], y, [28.5, 16, 15]),
        # first web
        Part(THENAR, [66, -3, 34], [25, -1, 30.5], y, [11, 9], [7, 7], (8, 8)),
        Part(THENAR, [62, -5, 38], [45, -5, 44], y, [11, 9], [8, 6.5], (8, 6)),
    ]


FINGER_PARTS = {k: _thumb() if k == "thumb" else _long_finger(k) for k in FINGERS}
PALM_PARTS = _palm()
FILLET = {"index": 3.0, "middle": 3.0, "ring": 3.0, "pinky": 2.6, "thumb": 4.0}
FILLET_PALM, FILLET_FINGER_PALM, FILLET_THUMB_PALM, FILLET_WEB = 9.0, 7.0, 13.0, 5.0
BULGE = {"index": 1.0, "middle": 1.0, "ring": 0.95, "pinky": 0.85, "thumb": 1.0}
# soft tissue at MCP, PIP, DIP: distance of the bulge from the joint, its height at 90 degrees, its width (mm)
BULGES = ((9.5, 4.5, 10.5), (8.6, 2.8, 7.5), (7.2, 2.4, 6.0))


def half_thumb(maps: Array) -> Array:
    """Map (4, 4) of the thenar: half of the CMC rotation about the CMC joint."""
    rel = maps[0, :3, :3].T @ maps[13, :3, :3]
    r = maps[0, :3, :3] @ Rotation.from_rotvec(0.5 * Rotation.from_matrix(rel).as_rotvec()).as_matrix()
    m = np.eye(4)
    m[:3, :3] = r
    m[:3, 3] = maps[0, :3, :3] @ JOINTS[13] + maps[0, :3, 3] - r @ JOINTS[13]
    return m


def bone_local(p: Array, maps: Array | None) -> Local:
    """Points in the rest frame of a bone, cached; `maps` (16, 4, 4) are rest-to-posed, None means rest."""
    cache: dict[int, Array] = {}

    def local(bone: int) -> Array:
        if maps is None:
            return p
        if bone not in cache:
            m = half_thumb(maps) if bone == THENAR else maps[bone]
            cache[bone] = (p - m[:3, 3]) @ m[:3, :3]
        return cache[bone]

    return local


def bends(k: str, maps: Array | None) -> list[tuple[Array, Array, Array, float]]:
    """Per joint of a finger: posed centre, unit normal of the bisecting plane, palmar direction in it, flexion
    (rad)."""
    out = []
    f = FIRST[k]
    for i in range(3):
        bone, parent = f + i, (f + i - 1 if i else 0)
        t0 = FRAMES[k][i - 1][0] if i else (JOINTS[f] - WRIST) / np.linalg.norm(JOINTS[f] - WRIST)
        t1, u1 = FRAMES[k][i][0], FRAMES[k][i][2]
        r0, r1 = (np.eye(3), np.eye(3)) if maps is None else (maps[parent, :3, :3], maps[bone, :3, :3])
        c = JOINTS[bone] if maps is None else maps[bone, :3, :3] @ JOINTS[bone] + maps[bone, :3, 3]
        n = r0 @ t0 + r1 @ t1
        n = n / (np.linalg.norm(n) + 1e-9)
        x = r0.T @ r1 @ t1
        angle = float(np.arctan2(-(x @ u1), x @ t1))
        e = -(r0 @ u1 + r1 @ u1)
        e = e - n * (e @ n)
        out.append((c, n, e / (np.linalg.norm(e) + 1e-9), angle))
    return out


def finger_field(k: str, local: Local, p: Array | None = None, maps: Array | None = None) -> Array:
    """Field of one finger; with `maps`, soft tissue displaced by flexion is added on the palmar side."""
    parts = FINGER_PARTS[k]
    v = parts[0](local(parts[0].bone))
    for q in parts[1:]:
        v = smin(v, q(local(q.bone)), FILLET[k])
    if maps is not None and p is not None:
        for i, (c, _, e, angle) in enumerate(bends(k, maps)):
            if angle <= 0.05 or (k == "thumb" and i == 0):
                continue
            reach, height, width = (x * BULGE[k] for x in BULGES[i])
            d2 = ((p - c - e * (1.15 * reach)) ** 2).sum(1)
            v = v - height * np.tan(min(angle, 1.7) / 2) * np.exp(-d2 / (2 * width**2))
    return v


def palm_field(local: Local) -> Array:
    """Field of the palm with the thenar."""
    v = PALM_PARTS[0](local(PALM_PARTS[0].bone))
    for q in PALM_PARTS[1:]:
        v = smin(v, q(local(q.bone)), FILLET_PALM)
    return v


def field(p: Array, maps: Array | None = None, only: str | None = None) -> Array:
    """Field (N,) at points (N, 3) in mm, negative inside; `only` takes one finger and the palm."""
    local = bone_local(p, maps)
    palm = palm_field(local)
    if only is not None:
        fillet = FILLET_THUMB_PALM if only == "thumb" else FILLET_FINGER_PALM
        return smin(finger_field(only, local, p, maps), palm, fillet)
    v: Array | None = None
    for k in LONG_FINGERS:  # neighbours share a round web at rest; in a pose they only touch
        fv = finger_field(k, local, p, maps)
        v = fv if v is None else smin(v, fv, FILLET_WEB) if maps is None else np.minimum(v, fv)
    assert v is not None
    thumb = smin(finger_field("thumb", local, p, maps), palm, FILLET_THUMB_PALM)
    return np.asarray(np.minimum(smin(v, palm, FILLET_FINGER_PALM), thumb))


_TETRAHEDRON = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1.0]])


def value_and_gradient(fn: Callable[[Array], Array], p: Array, h: float = 0.05) -> tuple[Array, Array]:
    """Value (N,) and gradient (N, 3) of fn by differences over a tetrahedron of size h."""
    v = fn(np.concatenate([p + h * t for t in _TETRAHEDRON])).reshape(4, len(p))
    return v.mean(0), np.einsum("kn,kd->nd", v, _TETRAHEDRON) / (4 * h)


def project(fn: Callable[[Array], Array], p: Array, steps: int = 4, longest: float = 3.0) -> Array:
    """Newton steps (at most `longest` mm each) onto the surface fn = 0."""
    p = p.copy()
    for _ in range(steps):
        v, g = value_and_gradient(fn, p)
        d = v[:, None] * g / np.maximum((g**2).sum(1), 0.05)[:, None]
        n = np.linalg.norm(d, axis=1, keepdims=True)
        p -= d * np.minimum(1, longest / np.maximum(n, 1e-9))
    return p


def ray_hit(
    fn: Callable[[Array], Array], origins: Array, directions: Array, near: float = 0.5, far: float = 40.0
) -> Array:
    """First crossing of fn = 0, from inside, along each ray (N, 3)."""
    rs = np.arange(near, far, 0.5)
    v = fn((origins[:, None] + directions[:, None] * rs[None, :, None]).reshape(-1, 3)).reshape(len(origins), -1)
    i = np.argmax(v > 0, 1)
    i[(v <= 0).all(1)] = len(rs) - 1
    lo, hi = rs[np.maximum(i - 1, 0)], rs[i]
    for _ in range(14):
        mid = (lo + hi) / 2
        outside = fn(origins + directions * mid[:, None]) > 0
        hi, lo = np.where(outside, mid, hi), np.where(outside, lo, mid)
    return np.asarray(origins + directions * ((lo + hi) / 2)[:, None])
