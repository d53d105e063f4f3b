"""Ten betas of unit variance, derived from the published measures; the joint regressor.

Let b be the lengths of the 19 bones and y = (hand breadth, hand circumference, wrist circumference).

1.  Bones. Deviations from Buryanov & Kotiuk; the correlation of two bones is r if they are of different kind
    (metacarpal, proximal, ...), times SAME_KIND if they are of different fingers. r is not chosen: the middle
    finger's four bones add up to the hand's length (but for the carpus), so r is the number that makes the variance
    of their sum equal ANSUR II's variance of hand length h in the pooled population. SAME_KIND is ASSUMED: the ratio
    of index to ring finger varies by some .03 in any population (digit ratio studies, Manning et al. 1998), and
    lengths that vary by 6-8 % each have such a ratio when they correlate by about .9.
2.  Girths. Given h, bones and girths are taken as independent (ASSUMED), so Cov b y = Cov(b, h) Cov(h, y) / Var h, with
    Cov(h, y) and Cov y from `anthropometry.pooled_covariance`.
3.  Each factor moves the surface: a bone's length stretches its segment along the bone (a metacarpal's stretches
    the palm lengthwise until its ray is that much longer); hand breadth widens palm and fingers and alone sets how
    far apart the knuckles are (phalanges' breadths and depths are published as fractions of hand breadth);
    circumference given breadth thickens the palm, taken as an ellipse; the wrist's girth scales the wrist. With D the
    (2334, 22) matrix of these movements, the vertices' covariance is D C D^T.
4.  shapedirs = the ten leading eigenvectors, each times the square root of its eigenvalue: betas ~ N(0, 1) give
    back the covariance but for what the other twelve directions carry (`ShapeSpace.share`).

The regressor is non-negative, exact on the template and nearly exact on the shape space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, nnls
from scipy.special import ellipe

from .anthropometry import BONES, FINGERS, Array, pooled_covariance, pooled_mean
from .skeleton import FIRST, FRAMES, JOINTS, WRIST, bone_lengths
from .skinning import averaging, smoothstep

GIRTHS = ("hand_breadth", "hand_circumference", "wrist_circumference")
NUM_BETAS = 10
SAME_KIND = 0.9


@dataclass(frozen=True)
class ShapeSpace:
    """shapedirs (778, 3, 10) mm, joint_dirs (16, 3, 10) mm, share (22,) of the variance by direction, and the
    correlation of bones found in step 1."""

    shapedirs: Array
    joint_dirs: Array
    share: Array
    bone_correlation: float


def bone_names() -> list[tuple[str, int]]:
    """The 19 bones as (finger, index in `BONES`)."""
    return [(k, i) for k in FINGERS for i in range(len(BONES[k]))]


def bone_correlation() -> float:
    """The one correlation between bones that gives the middle ray ANSUR II's variance of hand length."""
    s = np.array([sd for _, sd in BONES["middle"]])
    alone, together = (s**2).sum(), s.sum() ** 2
    variance = float(pooled_covariance(("hand_length",))[0, 0])
    return float((variance - alone) / (together - alone))


def factor_covariance() -> Array:
    """Covariance (22, 22), mm^2, of the 19 bones and the three girths."""
    names = bone_names()
    s = np.array([BONES[k][i][1] for k, i in names])
    # the thumb has no middle phalanx: its third bone is a distal one
    kind = np.array([i if k != "thumb" or i < 2 else 3 for k, i in names])
    finger = np.array([FINGERS.index(k) for k, _ in names])
    same_kind, same_finger = kind[:, None] == kind, finger[:, None] == finger
    bones = np.where(same_kind, 1.0, bone_correlation()) * np.where(same_finger, 1.0, SAME_KIND) * np.outer(s, s)
    middle = np.array([k == "middle" for k, _ in names], float)
    outer = pooled_covariance(("hand_length", *GIRTHS))
    cross = np.outer(bones @ middle, outer[0, 1:]) / outer[0, 0]
    return np.block([[bones, cross], [cross.T, outer[1:, 1:]]])


def palm_half_thickness(breadth: float, circumference: float) -> float:
    """Half thickness (mm) of an ellipse with this breadth and circumference."""
    a = breadth / 2

    def girth(b: float) -> float:
        return float(4 * a * ellipe(1 - (b / a) ** 2))

    return float(brentq(lambda b: girth(b) - circumference, 0.01 * a, 4 * a))


def _thickening() -> tuple[float, float]:
    """Relative change of the palm's thickness per mm of breadth and per mm of circumference."""
    b, c, h = pooled_mean("hand_breadth"), pooled_mean("hand_circumference"), 0.5
    t = palm_half_thickness(b, c)
    by_breadth = (palm_half_thickness(b + h, c) - palm_half_thickness(b - h, c)) / (2 * h * t)
    by_girth = (palm_half_thickness(b, c + h) - palm_half_thickness(b, c - h)) / (2 * h * t)
    return by_breadth, by_girth


class _Factors:
    """Sizes of the factors of one hand: millimetres a bone, relative widths and thicknesses."""

    def __init__(self, x: Array) -> None:
        names = bone_names()
        self.bone = {name: float(x[i]) for i, name in enumerate(names)}
        breadth, girth, wrist = x[len(names) :]
        by_breadth, by_girth = _thickening()
        self.breadth = breadth / pooled_mean("hand_breadth")
        self.thickness = by_breadth * breadth + by_girth * girth
        self.wrist = wrist / pooled_mean("wrist_circumference")

    def stretch(self, k: str, segment: int) -> float:
        """Relative change of segment 0..3 of a chain; the carpus keeps its length except as part of the hand's size."""
        bone = segment - 1 if k == "thumb" else segment
        if bone < 0:
            return self.stretch("middle", 0)
        return self.bone[(k, bone)] / float(bone_lengths(k)[segment])


def _palm_offset(p: Array, f: _Factors) -> Array:
    """Movement (N, 3) of points of the palm: across by the girths, along the rays by the metacarpals."""
    q = p - WRIST
    at_wrist = smoothstep((p[:, 0] - 62) / 36)
    wide = (1 - at_wrist) * f.breadth + at_wrist * f.wrist
    thick = (1 - at_wrist) * f.thickness + at_wrist * f.wrist
    across = np.stack([np.zeros(len(q)), thick * q[:, 1], wide * q[:, 2]], 1)
    near, move = [], []
    for k in FINGERS:
        ray = JOINTS[FIRST[k]] - WRIST
        length = float(np.linalg.norm(ray))
        t = ray / length
        s = q @ t
        # the thumb's ray ends at its CMC joint: it takes only the region behind the thenar
        d = np.linalg.norm(q - np.clip(s, 0, length)[:, None] * t, axis=1)
        near.append(np.exp(-((d / 16.0) ** 2)) * (0.3 if k == "thumb" else 1.0) + 1e-9)
        if k == "thumb":
            move.append(f.stretch(k, 0) * s[:, None] * t)
        else:
            # A splayed ray that grew along itself would also set the knuckles apart; their distance is the breadth's.
            # So it grows along x alone, by as much as gives the ray its length with the girths' movement counted in.
            along_x = (f.stretch(k, 0) * s - across @ t) / t[0]
            move.append(along_x[:, None] * np.array([1.0, 0.0, 0.0]))
    weight = np.array(near)
    weight /= weight.sum(0)
    return np.asarray(across + np.einsum("kn,knd->nd", weight, np.array(move)))


def move(vertices: Array, weights: Array, x: Array) -> tuple[Array, Array]:
    """First-order movement of vertices (V, 3) and joints (16, 3) in mm by factors x (22,) in mm: linear in x."""
    f = _Factors(x)
    out = weights[:, :1] * _palm_offset(vertices, f)
    joints = np.zeros((16, 3))
    for k in FINGERS:
        first = FIRST[k]
        joints[first] = _palm_offset(JOINTS[first][None], f)[0]
        for i in range(3):
            t, w, u = FRAMES[k][i]
            across = f.breadth if not (k == "thumb" and i == 0) else (f.breadth + f.thickness) / 2
            # breadth and depth of phalanges are both published as fractions of hand breadth
            a = f.stretch(k, i + 1) * np.outer(t, t) + across * (np.outer(w, w) + np.outer(u, u))
            b = first + i
            if i < 2:
                joints[b + 1] = joints[b] + a @ (JOINTS[b + 1] - JOINTS[b])
            out = out + weights[:, b : b + 1] * (joints[b] + (vertices - JOINTS[b]) @ a.T)
    return out, joints


def shape_space(vertices: Array, faces: np.ndarray, weights: Array, part: np.ndarray) -> ShapeSpace:
    """The ten betas of a template (778, 3) mm with its faces, skinning weights (778, 16) and parts (778,)."""
    cov = factor_covariance()
    units = [move(vertices, weights, e) for e in np.eye(len(cov))]
    d = np.stack([v for v, _ in units], -1)
    # neighbouring fingers that grow differently shear the web between them: spread that over the palm
    mean = averaging(faces, len(vertices))
    palm = (mean @ (part < 0) > 0) & (vertices[:, 0] < 60)  # with the fingers' base rings
    d = d.reshape(len(d), -1)
    # not its affine part, which shears nothing: averaging would shrink it where the palm is most curved, at its sides
    place = np.column_stack([np.ones(len(d)), vertices])
    affine = place @ np.linalg.lstsq(place[palm], d[palm], rcond=None)[0]
    d = d - affine
    for _ in range(8):
        d[palm] = (0.5 * d + 0.5 * (mean @ d))[palm]
    d = (d + affine).reshape(-1, len(cov))
    dj = np.array([j.ravel() for _, j in units]).T
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0))
    u, s, vt = np.linalg.svd(d @ root, full_matrices=False)
    # a positive beta makes the hand larger: the sign by which most vertices move away from the wrist
    sign = np.sign([(u[:, i].reshape(-1, 3) * (vertices - WRIST)).sum() for i in range(len(s))])
    sign[sign == 0] = 1
    to_factors = (root @ vt.T) * sign
    n = NUM_BETAS
    return ShapeSpace(
        shapedirs=(d @ to_factors[:, :n]).reshape(-1, 3, n),
        joint_dirs=(dj @ to_factors[:, :n]).reshape(16, 3, n),
        share=s**2 / (s**2).sum(),
        bone_correlation=bone_correlation(),
    )


def joint_regressor(vertices: Array, space: ShapeSpace) -> Array:
    """J_regressor (16, 778): non-negative but for rounding, rows sum to one, exact on the template."""
    out = np.zeros((16, len(vertices)))
    for j in range(16):
        away = vertices - JOINTS[j]
        if j == 0:
            near = np.argsort(np.linalg.norm(away * [1.0, 0.3, 0.3], axis=1))[:70]
        else:
            near = np.argsort(np.linalg.norm(away, axis=1))[: 60 if j == 13 else 44]
        rows = [1e3 * np.ones((1, len(near))), 60 * vertices[near].T]
        want = [np.array([1e3]), 60 * JOINTS[j]]
        for i in range(NUM_BETAS):
            rows.append(20 * space.shapedirs[near, :, i].T)
            want.append(20 * space.joint_dirs[j, :, i])
        rows.append(4.0 * np.eye(len(near)))  # spread over many vertices
        want.append(np.zeros(len(near)))
        x, _ = nnls(np.concatenate(rows), np.concatenate(want), maxiter=4000)
        used = x > 1e-6
        c = np.concatenate([np.ones((1, used.sum())), vertices[near[used]].T])
        x[used] += c.T @ np.linalg.solve(c @ c.T, np.concatenate([[1], JOINTS[j]]) - c @ x[used])
        x[~used] = 0
        out[j, near] = x
    return out
