"""Named poses of the right hand for pictures and checks: degrees a joint, OUR CHOICE, within the ranges of motion."""

from __future__ import annotations

from .anthropometry import Array
from .pose_statistics import hands_mean
from .skeleton import FIRST, pose


def _fingers(**angles: tuple[float, float, float]) -> dict[int, float]:
    return {FIRST[k] + i: a for k, row in angles.items() for i, a in enumerate(row)}


_CLOSED = {"index": (76, 100, 56), "middle": (80, 100, 56), "ring": (80, 98, 56), "pinky": (78, 96, 56)}
# closed fingers lie side by side: each MCP takes back its splay at rest
_SIDE_BY_SIDE = {1: -9.0, 4: 4.0, 10: 16.0, 7: 34.0}


def named_poses() -> dict[str, Array]:
    """Pose name -> axis-angle (16, 3), joint 0 zero."""
    closed = _fingers(**_CLOSED)
    relaxed = pose()
    relaxed[1:] = hands_mean().reshape(15, 3)
    return {
        "flat": pose(),
        "relaxed": relaxed,
        "fist": pose({**closed, **_fingers(thumb=(54, 10, 38))}, {**_SIDE_BY_SIDE, 13: -13}, {13: -66}),
        "point": pose(
            {**closed, **_fingers(index=(2, 4, 2), thumb=(60, 14, 25))}, {**_SIDE_BY_SIDE, 1: -4, 13: -18}, {13: -57}
        ),
        "pinch": pose(
            _fingers(index=(54, 45, 0), middle=(22, 28, 12), ring=(26, 30, 14), pinky=(28, 28, 14), thumb=(55, 0, 0)),
            {7: 14, 10: 5, 13: -9},
            {13: -65},
        ),
        "spread": pose(
            _fingers(index=(-8, 0, 0), middle=(-8, 0, 0), ring=(-8, 0, 0), pinky=(-6, 0, 0), thumb=(-10, -6, -8)),
            {1: 9, 4: 1, 10: -8, 7: -9, 13: 12},
        ),
        "thumbs-up": pose({**closed, **_fingers(thumb=(-15, -8, -12))}, {**_SIDE_BY_SIDE, 13: 10}),
    }
