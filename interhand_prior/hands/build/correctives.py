"""posedirs: linear blend skinning corrected toward the field evaluated in the pose, and damped.

For poses n with features x_n = vec(R_j - I) of a finger's three joints and targets y_n (the correction, in the rest
frame, that brings a skinned vertex onto the posed field),

    P = argmin  sum_n w_n |P x_n - y_n|^2 + damping * N E_noise |P x|^2 + ridge |P|^2

where the second term runs over poses of independent 1 rad noise on every axis-angle coordinate, whose correction
should be nothing, and w_n = a_n^3 + .1 (scaled to mean one) with a_n the finger's largest joint angle in radians: a
straight finger needs no correction, a crease at 90 degrees does. What noise and real bending have in common is kept
small, what only noise reaches (twist, sideways bending of hinges) is removed. So a noisy sample is drawn as plain
skinning draws it, to a few millimetres. Each vertex answers to the joints of its own finger only. Amplitudes of
training poses follow the ranges of motion in `anthropometry.MOTION`; widths, caps and weights are OUR CHOICE, tuned
on the numbers in assets/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from .anthropometry import FINGERS, MCP_ABDUCTION, MOTION, Array
from .field import bends, bone_local, field, finger_field, project
from .skeleton import FIRST, pose, rodrigues, skin, transforms
from .skinning import along, averaging


@dataclass(frozen=True)
class Damping:
    """Weights of the fit, the longest correction in mm, the numbers of training and of noisy poses."""

    noise: float = 0.3
    ridge: float = 2.0
    longest: float = 5.0
    poses: int = 160
    noisy: int = 400


def training_pose(rng: np.random.Generator) -> Array:
    """Axis-angle (16, 3): each finger bent somewhere in its range, often one joint alone."""
    flex: dict[int, float] = {}
    abduct: dict[int, float] = {}
    twist: dict[int, float] = {}
    limits = np.array([MOTION["mcp"][1] + 5, MOTION["pip"][1] + 10, MOTION["dip"][1]])
    for k in FINGERS:
        f, u, mode = FIRST[k], rng.random(3), int(rng.integers(0, 5))
        if k == "thumb":
            a = np.array([rng.uniform(-25, 55), rng.uniform(-15, 65), rng.uniform(-20, 88)])
            abduct[f], twist[f] = rng.uniform(-35, 25), rng.uniform(-60, 20)
        else:
            a = np.where(rng.random(3) < 0.75, u * limits, -u * [30, 8, 12])
            if mode < 3:  # one joint alone
                a = a * np.where(np.arange(3) == mode, 1.0, 0.15)
            a = a * min(1.0, 245 / max(a.sum(), 1e-9))
            abduct[f], twist[f] = rng.normal() * 0.6 * MCP_ABDUCTION, rng.normal() * 5
        for i in range(3):
            flex[f + i] = float(a[i])
    return pose(flex, abduct, twist)


def noise_moment(rng: np.random.Generator, count: int) -> Array:
    """Mean of x x^T (27, 27) over poses of three joints, half from rest and half bent, with 1 rad of noise."""
    bent = np.concatenate(
        [
            np.zeros((count // 2, 3, 3)),
            np.tile([0, 0, 0.6], (count - count // 2, 3, 1)) * rng.random((count - count // 2, 3, 1)),
        ]
    )
    x = (rodrigues(bent + rng.normal(size=(count, 3, 3))) - np.eye(3)).reshape(count, 27)
    return np.asarray(x.T @ x / count)


def owners(weights: Array, part: np.ndarray) -> np.ndarray:
    """Finger (0..4) whose joints correct each vertex, or -1."""
    out = part.copy()
    carried = np.stack([weights[:, FIRST[k] : FIRST[k] + 3].sum(1) for k in FINGERS], 1)
    palm = (part < 0) & (carried.max(1) > 0.01)
    out[palm] = carried[palm].argmax(1)
    return out


def _finger_alone(k: str, maps: Array, p: Array) -> Array:
    return finger_field(k, bone_local(p, maps), p, maps)


class _Targets:
    """Corrections wanted in a pose."""

    def __init__(self, vertices: Array, faces: np.ndarray, weights: Array, part: np.ndarray, longest: float) -> None:
        self.v, self.w, self.longest = vertices, weights, longest
        self.owner = owners(weights, part)
        self.mean = averaging(faces, len(vertices))
        self.beyond_palm = np.zeros(len(vertices), bool)
        self.creases: list[tuple[str, int, np.ndarray, Array]] = []
        for i, k in enumerate(FINGERS):
            s = along(vertices, k)
            self.beyond_palm |= (part == i) & (s[2] > -10 if k == "thumb" else s[1] > -7)
            for j, (c, n, e, _) in enumerate(bends(k, None)):
                if k == "thumb" and j == 0:
                    continue
                side, palmar = (vertices - c) @ n, (vertices - c) @ e
                near = np.linalg.norm(vertices - c, axis=1) < 22
                ids = np.where(
                    (self.owner == i) & (np.abs(side) < (16, 13, 11)[j]) & (np.abs(side) > 0.4) & (palmar > -3) & near
                )[0]
                self.creases.append((k, j, ids, side[ids]))

    def __call__(self, rotations: Array) -> Array:
        maps = transforms(rotations)
        skinned, blended = skin(self.v, self.w, maps)
        wanted = skinned.copy()
        for i, k in enumerate(FINGERS):
            on_finger = (self.owner == i) & self.beyond_palm
            on_palm = (self.owner == i) & ~self.beyond_palm
            alone = partial(_finger_alone, k, maps)
            wanted[on_finger] = project(alone, skinned[on_finger], 6, 2.5)
            if on_palm.any():
                wanted[on_palm] = project(partial(field, maps=maps, only=k), skinned[on_palm], 6, 2.5)
        d = wanted - skinned
        d = 0.85 * d + 0.15 * (self.mean @ d)  # neighbours move together
        d *= np.minimum(1, self.longest / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9))
        wanted = skinned + d
        posed = {k: bends(k, maps) for k in FINGERS}
        for k, j, ids, side in self.creases:  # the two sides of a crease stay on their own side of the bend
            c, n, _, angle = posed[k][j]
            if angle > 0.5:
                short = 0.25 * np.abs(side) + 0.3 - (wanted[ids] - c) @ n * np.sign(side)
                wanted[ids] += (np.maximum(short, 0) * np.sign(side))[:, None] * n
        d = wanted - skinned
        d *= np.minimum(1, 1.3 * self.longest / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9))
        d[self.owner < 0] = 0
        return np.asarray(np.linalg.solve(blended[:, :3, :3] + 0.05 * np.eye(3), d[..., None])[..., 0])


def posedirs(
    vertices: Array, faces: np.ndarray, weights: Array, part: np.ndarray, seed: int, damping: Damping = Damping()
) -> Array:
    """Pose correctives (778, 3, 135) mm for features vec(R_1..15 - I), row-major as MANO's."""
    rng = np.random.default_rng(seed)
    targets = _Targets(vertices, faces, weights, part, damping.longest)
    features, wanted = [], []
    for _ in range(damping.poses):
        r = rodrigues(training_pose(rng))
        features.append((r[1:] - np.eye(3)).ravel())
        wanted.append(targets(r))
    x, y = np.array(features), np.array(wanted)
    moment = noise_moment(rng, damping.noisy)
    out = np.zeros((len(vertices), 3, 135))
    for i, k in enumerate(FINGERS):
        columns = np.arange((FIRST[k] - 1) * 9, (FIRST[k] + 2) * 9)
        own = np.where(targets.owner == i)[0]
        xk = x[:, columns]
        trace = xk.reshape(-1, 3, 9)[:, :, ::4].sum(-1)
        angle = np.arccos(np.clip(1 + trace / 2, -1, 1)).max(1)
        weighted = xk * (angle**3 + 0.1)[:, None] / np.mean(angle**3 + 0.1)
        gram = weighted.T @ xk + damping.ridge * np.eye(27) + damping.noise * len(x) * moment
        c = np.linalg.solve(gram, weighted.T @ y[:, own].reshape(len(x), -1)).reshape(27, len(own), 3)
        out[own[:, None, None], np.arange(3)[None, :, None], columns[None, None]] = c.transpose(1, 2, 0)
    return out
