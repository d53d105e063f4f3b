"""The open hand's skeleton: rest joints, tips, bone frames, and forward kinematics (linear blend skinning).

A chain of bones per finger, each a length and two angles. The lengths are the published ones plus whole
millimetres, the angles multiples of five degrees that describe a flat hand with the fingers a little apart.
Millimetres and angles were CHOSEN SO THAT joints and tips lie within 4.5 mm (promised: 6 mm) of MANO's publicly
quoted rest positions while every length stays as near its published mean as that allows (within 2.4 published
deviations): MANO's MCP joints lie more distally and its last bones are longer than the anatomical ones. No number
is MANO's own; the quoted positions stand in tests/test_open_hand.py only, to compare with.

Right hand at rest: fingers point to -x, the palm faces -y, the thumb lies toward +z; every local frame equals the
global axes. Positions are millimetres. Skinning (MANO's convention): v = sum_j w_j (R_j (v0 - J_j) + G_j).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from .anthropometry import BONES, FINGERS, PULP, Array, carpus

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
FIRST: dict[str, int] = {"index": 1, "middle": 4, "pinky": 7, "ring": 10, "thumb": 13}
WRIST = np.array([95.0, 5.0, 5.0])
"""Our choice, rounded to 5 mm: the place of the wrist decides what `transl` means, so it follows MANO's."""

# finger -> (millimetres added to the published length, azimuth toward +z, elevation toward +y in degrees) for the four
# bones wrist-MCP, proximal, middle, distal with pulp (thumb: wrist-CMC, metacarpal, proximal, distal with pulp).
CHAIN: dict[str, tuple[tuple[float, float, float], ...]] = {
    "index": ((-6, 15, 0), (-3, 0, 0), (0, 0, 0), (0, 15, 0)),
    "middle": ((-1, 0, 0), (-7, -10, 0), (-2, -15, 0), (3, -10, 0)),
    "ring": ((-1, -15, 0), (-9, -20, 0), (-1, -15, -5), (3, -15, 5)),
    "pinky": ((-4, -30, -5), (-6, -40, -5), (0, -35, 0), (0, -30, 5)),
    "thumb": ((8, 50, -25), (-9, 50, 0), (-4, 30, -10), (4, 35, -10)),
}


def published_lengths(finger: str) -> Array:
    """Lengths (mm) of the four bones of a chain as published: the carpus joins the metacarpal, the pulp the last
    bone."""
    bones = [mean for mean, _ in BONES[finger]]
    bones[-1] += PULP[finger]
    if finger == "thumb":
        return np.array([carpus(), *bones])
    bones[0] += carpus()
    return np.array(bones)


def bone_lengths(finger: str) -> Array:
    """Lengths (mm) of the four bones of a chain as used: published, plus the whole millimetres of CHAIN."""
    lengths: Array = published_lengths(finger) + np.array([row[0] for row in CHAIN[finger]])
    return lengths


def _build() -> tuple[Array, dict[str, Array], dict[str, list[Array]]]:
    joints = np.zeros((16, 3))
    joints[0] = WRIST
    tips: dict[str, Array] = {}
    frames: dict[str, list[Array]] = {}
    for k in FINGERS:
        p = WRIST.copy()
        for i, (length, (_, azimuth, elevation)) in enumerate(zip(bone_lengths(k), CHAIN[k], strict=True)):
            a, e = np.radians([azimuth, elevation])
            p = p + length * np.array([-np.cos(e) * np.cos(a), np.sin(e), np.cos(e) * np.sin(a)])
            if i < 3:
                joints[FIRST[k] + i] = p
            else:
                tips[k] = p
    for k in FINGERS:
        # the thumb's nail looks dorsally and to the radial side (our choice: rolled by some 45 degrees)
        up = np.array([-0.25, 0.62, 0.62]) if k == "thumb" else np.array([0.0, 1.0, 0.0])
        points = [joints[FIRST[k] + i] for i in range(3)] + [tips[k]]
        frames[k] = []
        for i in range(3):
            t = points[i + 1] - points[i]
            t = t / np.linalg.norm(t)
            u = up - t * (up @ t)
            u = u / np.linalg.norm(u)
            frames[k].append(np.stack([t, np.cross(t, u), u]))
    return joints, tips, frames


JOINTS, TIPS, FRAMES = _build()
"""JOINTS (16, 3) mm; TIPS finger -> (3,) mm; FRAMES finger -> per bone the rows axis, lateral, dorsal."""


def finger_points(finger: str) -> list[Array]:
    """The three joints of a finger and its tip, mm."""
    f = FIRST[finger]
    return [JOINTS[f], JOINTS[f + 1], JOINTS[f + 2], TIPS[finger]]


def rodrigues(axis_angle: Array) -> Array:
    """Axis-angle (..., 3) to matrices (N, 3, 3)."""
    matrices: Array = Rotation.from_rotvec(np.asarray(axis_angle, float).reshape(-1, 3)).as_matrix()
    return matrices


def transforms(rotations: Array, joints: Array | None = None) -> Array:
    """Rest-to-posed maps (16, 4, 4) for local rotations (16, 3, 3) about the rest joints (16, 3)."""
    rest = JOINTS if joints is None else joints
    world = np.tile(np.eye(4), (16, 1, 1))
    for j, p in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[j]
        local[:3, 3] = rest[j] - (rest[p] if p >= 0 else 0)
        world[j] = local if p < 0 else world[p] @ local
    maps = world.copy()
    maps[:, :3, 3] -= np.einsum("jab,jb->ja", world[:, :3, :3], rest)
    return maps


def skin(vertices: Array, weights: Array, maps: Array) -> tuple[Array, Array]:
    """Linear blend skinning: posed vertices (V, 3) and the blended maps (V, 4, 4)."""
    blended = np.einsum("vj,jab->vab", weights, maps)
    return np.einsum("vab,vb->va", blended[:, :3, :3], vertices) + blended[:, :3, 3], blended


def _axes() -> dict[int, tuple[Array, Array, Array]]:
    axes = {}
    for k in FINGERS:
        for i in range(3):
            t, _, u = FRAMES[k][i]
            flexion = np.array([0.0, 0.0, 1.0]) if k != "thumb" and i == 0 else np.cross(t, -u)
            axes[FIRST[k] + i] = (flexion, u, t)
    return axes


AXES = _axes()
"""Joint -> unit axes of flexion (toward the palm), abduction (toward the thumb's side) and twist."""


def pose(
    flex: Mapping[int, float] | None = None,
    abduct: Mapping[int, float] | None = None,
    twist: Mapping[int, float] | None = None,
) -> Array:
    """Axis-angle (16, 3) of a pose given in degrees a joint: flexion after abduction after twist."""
    angles = np.zeros((3, 16, 3))
    for n, part in enumerate((flex, abduct, twist)):
        for j, a in (part or {}).items():
            angles[n, j] = np.radians(a) * AXES[j][n]
    flexion, abduction, twisting = (rodrigues(x) for x in angles)
    vectors: Array = Rotation.from_matrix(flexion @ abduction @ twisting).as_rotvec()
    return vectors
