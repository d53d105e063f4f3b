"""Twenty-seven ways two hands touch, and how often each is drawn.

An archetype names poses for each hand, a contact region on each (`regions`) whose normals are put opposite to each
other, the twist about that normal (degrees, centre and half-width), a gap in mm, how strongly fingers wrap round the
other hand, and how much the named poses vary. After placement the solver (`contact`) does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .anatomy import THUMB_AXES
from .single_hand import POSE_NAMES
from .skeleton import FINGERS, open_hand_skeleton
from .spheres import open_hand_spheres

LOOSE = "loose"
"""Label of the pairs that are near without touching (`loose`)."""


@dataclass(frozen=True)
class Archetype:
    """One kind of contact.

    Attributes:
        left, right: names of poses (`single_hand.POSES`).
        left_region, right_region: names in `regions`; None places crossed fingers by a rule of their own.
        twist: centre and half-width in degrees about the contact normal. gap: mm, low and high.
        wrap: pull of fingers towards the other hand. variety: scale of pose noise.
        same: both hands take the same pose. wrist_normals: normals in the wrist frame, so that palms stay parallel.
        tilt: scatter of the normals.
        weight: how often it is drawn (unnormalised).
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    left_region: str | None
    right_region: str | None
    twist: tuple[float, float]
    gap: tuple[float, float]
    wrap: float
    variety: float
    weight: float
    same: bool = False
    wrist_normals: bool = False
    tilt: float = 0.12


_FLAT = ("flat", "flat_closed")
_REST = ("relaxed", "cupped", "flat", "loose_fist")
_MEET = ("claw", "cupped", "relaxed", "table", "pinch", "grip", "steeple")
_TIPS = ("pinch", "ok", "point", "relaxed", "steeple")
_THUMB = ("thumbs_up", "relaxed", "loose_fist")
_FIST = ("fist", "loose_fist")

# Weights: fitted by least squares with an entropy term so that contacts alone come as near to the published moments of
# the relative pose as contacts can, then raised by hand where a kind would be rare (clasp and interlock at least 4 %).
ARCHETYPES: dict[str, Archetype] = {
    "prayer": Archetype(_FLAT, _FLAT, "palm_centre", "palm_centre", (0, 15), (0, 2), 0.3, 0.6, 0.022, same=True),
    "palms": Archetype(_REST, _REST, "palm_centre", "palm_centre", (0, 45), (0, 6), 0.5, 1.0, 0.022),
    "palm_cross": Archetype(
        _REST, ("cupped", "grip", "relaxed"), "palm_centre", "palm", (75, 35), (0, 3), 1.0, 1.0, 0.018
    ),
    "clasp": Archetype(("cupped", "grip"), ("cupped", "grip"), "palm", "palm", (40, 25), (0, 3), 1.5, 1.0, 0.05),
    "interlock": Archetype(("interlace",), ("interlace",), None, None, (0, 0), (0, 2), 1.5, 0.5, 0.07),
    "interlock_flat": Archetype(
        ("spread", "steeple"), ("spread", "steeple"), None, None, (0, 0), (0, 2), 0.4, 0.4, 0.045
    ),
    "fist_in_palm": Archetype(
        ("cupped", "grip", "relaxed"), _FIST, "palm", "knuckles", (90, 60), (0, 2), 1.2, 1.0, 0.021
    ),
    "steeple": Archetype(
        ("steeple", "relaxed"), ("steeple", "relaxed"), "middle_pad", "middle_pad", (0, 12), (0, 1), 0.6, 0.6, 0.13,
        same=True, wrist_normals=True,
    ),
    "palm_on_back": Archetype(
        ("relaxed", "flat", "loose_fist", "fist"), ("cupped", "relaxed", "flat"), "back", "palm", (0, 70), (0, 3), 0.9,
        1.0, 0.018,
    ),
    "back_of_hand": Archetype(_REST, _REST, "back", "back", (0, 60), (0, 3), 0.2, 1.0, 0.013),
    "point_palm": Archetype(
        ("flat", "relaxed", "cupped"), ("point",), "palm", "index_tip", (90, 70), (0, 2), 0.1, 0.8, 0.03
    ),
    "point_any": Archetype(
        (*_REST, "spread"), ("point", "pinch", "ok"), "anywhere", "index_tip", (0, 180), (0, 2), 0.1, 0.8, 0.016
    ),
    "pinch_finger": Archetype(
        (*_REST, "spread"), ("pinch", "ok"), "fingers_any", "index_pad", (90, 60), (0, 1), 0.8, 0.8, 0.017
    ),
    "wrist_hold": Archetype((*_REST, "fist"), ("grip", "cupped"), "wrist", "palm", (80, 40), (0, 3), 1.5, 1.0, 0.02),
    "side_ulnar": Archetype(
        ("flat", "cupped", "relaxed"), ("flat", "cupped", "relaxed"), "ulnar", "ulnar", (0, 20), (0, 3), 0.2, 0.7, 0.05,
        same=True,
    ),
    "side_radial": Archetype(
        ("flat", "fist", "table", "relaxed"), ("flat", "fist", "table", "relaxed"), "radial", "radial", (0, 35), (0, 4),
        0.2, 1.0, 0.017,
    ),
    "side_tilt": Archetype((*_REST, "fist"), (*_REST, "fist"), "radial", "radial", (0, 50), (0, 8), 0.3, 1.0, 0.017,
                           tilt=0.3),
    "thumbs": Archetype(_THUMB, _THUMB, "thumb_pad", "thumb_pad", (0, 60), (0, 1), 0.3, 0.8, 0.07),
    "tip_tip": Archetype(_TIPS, _TIPS, "tips", "tips", (0, 60), (0, 1), 0.2, 0.8, 0.018),
    "fist_fist": Archetype(_FIST, _FIST, "knuckles", "knuckles", (0, 40), (0, 2), 0.2, 0.8, 0.016),
    "grab_fingers": Archetype(
        ("flat_closed", "relaxed", "cupped", "point"), ("grip", "cupped"), "fingers_any", "palm", (70, 60), (0, 2), 1.5,
        1.0, 0.018,
    ),
    "hook_hook": Archetype(("hook", "grip"), ("hook", "grip"), "mids", "mids", (180, 30), (0, 1), 1.0, 0.7, 0.016),
    "scratch": Archetype((*_REST, "fist"), ("claw", "relaxed"), "back", "pads", (60, 70), (0, 2), 0.6, 0.9, 0.016),
    "tips_palm": Archetype(
        ("flat", "relaxed", "cupped"), ("claw", "pinch", "relaxed"), "palm", "pads", (0, 90), (0, 2), 0.5, 0.9, 0.018
    ),
    "fist_stack": Archetype(_FIST, _FIST, "radial", "ulnar", (50, 40), (0, 3), 0.3, 0.9, 0.05),
    "pads_face": Archetype(
        _MEET, _MEET, "pads", "pads", (0, 50), (0, 3), 0.3, 1.0, 0.13, wrist_normals=True, tilt=0.3
    ),
    "pads_any": Archetype(
        (*_REST, "claw", "steeple"), (*_REST, "claw", "steeple", "ok"), "anywhere", "tips", (0, 70), (0, 3), 0.3, 1.0,
        0.07, wrist_normals=True, tilt=0.3,
    ),
}  # fmt: skip
ARCHETYPE_NAMES: tuple[str, ...] = tuple(ARCHETYPES)
WEIGHTS: Tensor = torch.tensor([a.weight for a in ARCHETYPES.values()])

if unknown := {p for a in ARCHETYPES.values() for p in (*a.left, *a.right)} - set(POSE_NAMES):
    raise AssertionError(f"archetypes name unknown poses: {unknown}")


@dataclass(frozen=True)
class Region:
    """Candidate contacts on a right hand: balls (K,), outward normals and tangents (K, 3) in the bone's frame."""

    balls: Tensor
    normals: Tensor
    tangents: Tensor


@lru_cache(maxsize=1)
def regions() -> dict[str, Region]:
    """Contact regions by name, read off the fitted balls of the open hand."""
    spheres, skeleton = open_hand_spheres(), open_hand_skeleton()
    x, y, z = torch.eye(3)
    along = skeleton.finger_directions
    palmar = torch.cat([-y.expand(4, 3), torch.linalg.cross(THUMB_AXES[1], along[4])[None]])
    palmar = palmar / palmar.norm(dim=1, keepdim=True)
    radial = torch.linalg.cross(along, palmar)  # +z on the fingers

    palm = [i for i in range(len(spheres)) if spheres.fingers[i] < 0]
    place = {i: spheres.centres[i].tolist() for i in palm}
    core = [i for i in palm if 20 < place[i][0] < 75]
    wrist = [i for i in palm if place[i][0] > 85]
    on = lambda f, low, high: [
        i for i in range(len(spheres)) if spheres.fingers[i] == f and low <= spheres.arc[i] <= high
    ]
    rows: dict[str, list[tuple[int, Tensor, Tensor]]] = {
        "palm": [(i, -y, -x) for i in core],
        "palm_centre": [(i, -y, -x) for i in core if abs(place[i][2]) < 22],
        "back": [(i, y, -x) for i in core],
        "wrist": [(i, n, -x) for i in wrist for n in (y, -y, z, 0.7 * y + 0.7 * z, 0.7 * y - 0.7 * z)],
        "ulnar": [(i, -z, -x) for i in palm if place[i][2] < -28 and place[i][0] < 75],
        "radial": [(i, z, -x) for i in palm if place[i][2] > 20 and place[i][0] < 60],
    }
    for f, name in enumerate(FINGERS):
        pad, side, u = palmar[f], radial[f], along[f]
        rows[f"{name}_tip"] = [(i, 0.75 * u + 0.65 * pad, side) for i in on(f, 2.9, 3.1)]
        rows[f"{name}_pad"] = [(i, pad, u) for i in on(f, 2.3, 3.1)]
        rows[f"{name}_mid"] = [(i, pad, u) for i in on(f, 1.0, 2.1)]
        rows[f"{name}_back"] = [(i, -pad, u) for i in on(f, 0.3, 2.2)]
        rows[f"{name}_sides"] = [(i, s * side, u) for i in on(f, 0.3, 3.1) for s in (1.0, -1.0)]
        rows[f"{name}_knuckle"] = [(i, -pad, side) for i in on(f, 0.5, 1.0)]
    four = FINGERS[:4]
    join = lambda *kinds: [row for name in four for kind in kinds for row in rows[f"{name}_{kind}"]]
    rows |= {"pads": join("pad"), "mids": join("mid"), "tips": join("tip"), "knuckles": join("knuckle")}
    rows["fingers_any"] = join("back", "sides", "mid")
    rows["anywhere"] = rows["palm"] + rows["back"] + rows["ulnar"] + rows["radial"] + rows["fingers_any"] + rows["pads"]
    unit = torch.nn.functional.normalize
    return {
        name: Region(
            torch.tensor([r[0] for r in found]),
            unit(torch.stack([r[1] for r in found]), dim=1),
            torch.stack([r[2] for r in found]),
        )
        for name, found in rows.items()
    }
