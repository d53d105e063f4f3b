"""Forty-seven kinds of interaction, and how often each is drawn.

An archetype names poses for each hand, a contact region on each (`regions`) whose normals are put opposite to each
other, the twist about that normal (degrees, centre and half-width), a gap in mm, how strongly fingers wrap round the
other hand, and how much the named poses vary. After placement the solver (`contact`) does the rest.

Three sorts: hands that touch; hands that do one thing together without touching (`apart`: clapping, typing, holding a
box, a ball or a rope that is not there); and kinds of weight 0, held out: never drawn unless asked for by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .anatomy import THUMB_AXES
from .single_hand import POSE_NAMES
from .skeleton import FINGERS, open_hand_skeleton
from .spheres import open_hand_spheres

LOOSE = "loose"
"""Label of the pairs that are near without touching (`loose`)."""
SINGLE = "single"
"""Label of the samples of one hand alone (`shards`)."""


@dataclass(frozen=True)
class Archetype:
    """One kind of interaction.

    Attributes:
        left, right: names of poses (`single_hand.POSES`).
        left_region, right_region: names in `regions`.
        twist: centre and half-width in degrees about the contact normal. gap: mm, low and high.
        wrap: pull of fingers towards the other hand. variety: scale of pose noise.
        weight: how often it is drawn (unnormalised); 0: held out.
        same: both hands take the same pose. wrist_normals: normals in the wrist frame, so that palms stay parallel.
        tilt: scatter of the normals.
        rule: how the hands are placed (`placement`): "regions" as above; "webs" for crossed fingers; "mirror" and
            "invert" for two contacts at once, the left hand's regions with the right hand's same ones (mirror) or
            exchanged ones (invert). The twist is then about the line through both contacts.
        apart: the hands do not touch.
        thumb: its four angles in degrees (`anatomy`) in place of the pose's.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    left_region: str
    right_region: str
    twist: tuple[float, float]
    gap: tuple[float, float]
    wrap: float
    variety: float
    weight: float
    same: bool = False
    wrist_normals: bool = False
    tilt: float = 0.12
    rule: str = "regions"
    apart: bool = False
    thumb: tuple[float, float, float, float] | None = None


_FLAT = ("flat", "flat_closed")
_REST = ("relaxed", "cupped", "flat", "loose_fist")
_MEET = ("claw", "cupped", "relaxed", "table", "pinch", "grip", "steeple")
_TIPS = ("pinch", "ok", "point", "relaxed", "steeple")
_THUMB = ("thumbs_up", "relaxed", "loose_fist")
_FIST = ("fist", "loose_fist")
_GRIP = ("grip", "cupped")
_BARE = ("fist", "loose_fist", "power")
_PC = "palm_centre"


_Poses = tuple[str, ...]


def _touch(left: _Poses, right: _Poses, regions: tuple[str, str], *numbers: Any, **more: Any) -> Archetype:
    return Archetype(left, right, *regions, *numbers, **more)


def _apart(left: _Poses, right: _Poses, regions: tuple[str, str], *numbers: Any, **more: Any) -> Archetype:
    twist, gap, variety, weight = numbers
    return Archetype(left, right, *regions, twist, gap, 0.0, variety, weight, apart=True, **more)


# Weights: fitted by least squares with an entropy term so that named kinds alone come as near to the published
# rotations as they can (so pads_face, thumbs, clap, ball and rope weigh more), above floors: none falls below 3 in a
# thousand of the corpus, and clasp and interlock not below 3 % of the named kinds each, whatever the acceptance.
ARCHETYPES: dict[str, Archetype] = {
    # poses of the left, of the right hand; regions; twist, gap, wrap, variety, weight
    "prayer": _touch(_FLAT, _FLAT, (_PC, _PC), (0, 15), (0, 2), 0.3, 0.6, 0.033, same=True),
    "palms": _touch(_REST, _REST, (_PC, _PC), (0, 45), (0, 6), 0.5, 1.0, 0.022),
    "palm_cross": _touch(_REST, ("cupped", "grip", "relaxed"), (_PC, "palm"), (75, 35), (0, 3), 1.0, 1.0, 0.014),
    "clasp": _touch(_GRIP, _GRIP, ("palm", "palm"), (40, 25), (0, 3), 1.5, 1.0, 0.08),
    "interlock": _touch(
        ("interlace",), ("interlace",), ("web", "web"), (65, 35), (0, 2), 1.5, 0.5, 0.041, rule="webs"
    ),
    "interlock_flat": _touch(
        ("spread", "steeple"), ("spread", "steeple"), ("web", "web"), (65, 35), (0, 2), 0.4, 0.4, 0.012, rule="webs"
    ),
    "fist_in_palm": _touch(
        ("cupped", "grip", "relaxed"), _FIST, ("palm", "knuckles"), (90, 60), (0, 2), 1.2, 1.0, 0.015
    ),
    "steeple": _touch(
        ("steeple", "relaxed"), ("steeple", "relaxed"), ("middle_pad", "middle_pad"), (0, 12), (0, 1), 0.6, 0.6, 0.033,
        same=True, wrist_normals=True,
    ),
    "palm_on_back": _touch(
        ("relaxed", "flat", "loose_fist", "fist"), ("cupped", "relaxed", "flat"), ("back", "palm"), (0, 70), (0, 3),
        0.9, 1.0, 0.0095,
    ),
    "stack": _touch(
        ("flat", "relaxed", "table"), ("flat", "relaxed", "cupped"), ("back", "palm"), (0, 35), (0, 2), 0.4, 0.7, 0.008
    ),
    "rub": _touch(("flat", "cupped", "relaxed"), ("flat_closed", "cupped"), ("palm", "mids"), (0, 50), (0, 2), 0.6,
                  0.8, 0.0095),
    "back_of_hand": _touch(_REST, _REST, ("back", "back"), (0, 60), (0, 3), 0.2, 1.0, 0.008),
    "point_palm": _touch(
        ("flat", "relaxed", "cupped"), ("point",), ("palm", "index_tip"), (90, 70), (0, 2), 0.1, 0.8, 0.008
    ),
    "point_any": _touch(
        (*_REST, "spread"), ("point", "pinch", "ok"), ("anywhere", "index_tip"), (0, 180), (0, 2), 0.1, 0.8, 0.008
    ),
    "count": _touch(
        ("spread", "peace", "three", "four", "open_relaxed"), ("point", "pinch", "key_pinch"),
        ("all_tips", "index_pad"), (90, 60), (0, 1), 0.4, 0.6, 0.0095,
    ),
    "pinch_finger": _touch(
        (*_REST, "spread"), ("pinch", "ok"), ("fingers_any", "index_pad"), (90, 60), (0, 1), 0.8, 0.8, 0.008
    ),
    "wring": _touch(
        ("fist", "loose_fist", "cupped", "flat_closed"), _GRIP, ("finger_backs", "palm"), (80, 35), (0, 2), 2.0, 0.8,
        0.0095,
    ),
    "grab_fingers": _touch(
        ("flat_closed", "relaxed", "cupped", "point"), _GRIP, ("fingers_any", "palm"), (70, 60), (0, 2), 1.5, 1.0, 0.034
    ),
    "finger_hold": _touch(
        ("point", "peace", "ok"), ("grip", "fist"), ("index_shaft", "mids"), (90, 30), (0, 1), 1.8, 0.6, 0.011
    ),
    "thumb_in_fist": _touch(
        ("thumbs_up", "relaxed", "flat"), ("grip", "fist"), ("thumb_shaft", "mids"), (90, 35), (0, 1), 1.8, 0.6, 0.011
    ),
    "wrist_hold": _touch((*_REST, "fist"), _GRIP, ("wrist", "palm"), (80, 40), (0, 3), 1.5, 1.0, 0.013),
    "cuff": _touch(
        (*_REST, "fist"), ("pinch", "claw", "relaxed"), ("wrist_back", "pads"), (80, 60), (0, 2), 0.6, 0.8, 0.008
    ),
    "wrist_cross": _touch(
        (*_REST, "fist"), (*_REST, "fist"), ("wrist_palm", "wrist_back"), (90, 35), (0, 2), 0.0, 0.9, 0.008
    ),
    "side_ulnar": _touch(
        ("flat", "cupped", "relaxed"), ("flat", "cupped", "relaxed"), ("ulnar", "ulnar"), (0, 20), (0, 3), 0.2, 0.7,
        0.008, same=True,
    ),
    "side_radial": _touch(
        ("flat", "fist", "table", "relaxed"), ("flat", "fist", "table", "relaxed"), ("radial", "radial"), (0, 35),
        (0, 4), 0.2, 1.0, 0.008,
    ),
    "side_tilt": _touch(
        (*_REST, "fist"), (*_REST, "fist"), ("radial", "radial"), (0, 50), (0, 8), 0.3, 1.0, 0.008, tilt=0.3
    ),
    "thumbs": _touch(_THUMB, _THUMB, ("thumb_pad", "thumb_pad"), (0, 60), (0, 1), 0.3, 0.8, 0.15),
    "tip_tip": _touch(_TIPS, _TIPS, ("tips", "tips"), (0, 60), (0, 1), 0.2, 0.8, 0.008),
    "fist_fist": _touch(_FIST, _FIST, ("knuckles", "knuckles"), (0, 40), (0, 2), 0.2, 0.8, 0.0095),
    "hook_hook": _touch(("hook", "grip"), ("hook", "grip"), ("mids", "mids"), (180, 30), (0, 1), 1.0, 0.7, 0.0095),
    "scratch": _touch((*_REST, "fist"), ("claw", "relaxed"), ("back", "pads"), (60, 70), (0, 2), 0.6, 0.9, 0.0095),
    "tips_palm": _touch(
        ("flat", "relaxed", "cupped"), ("claw", "pinch", "relaxed"), ("palm", "pads"), (0, 90), (0, 2), 0.5, 0.9, 0.0095
    ),
    "fist_stack": _touch(_FIST, _FIST, ("radial", "ulnar"), (50, 40), (0, 3), 0.3, 0.9, 0.008),
    "pads_face": _touch(
        _MEET, _MEET, ("pads", "pads"), (0, 50), (0, 3), 0.3, 1.0, 0.19, wrist_normals=True, tilt=0.3
    ),
    "pads_any": _touch(
        (*_REST, "claw", "steeple"), (*_REST, "claw", "steeple", "ok"), ("anywhere", "tips"), (0, 70), (0, 3), 0.3, 1.0,
        0.022, wrist_normals=True, tilt=0.3,
    ),
    # without touch: twist, gap, variety, weight
    "clap": _apart(("flat", "flat_closed", "relaxed"), _FLAT, (_PC, _PC), (0, 15), (2, 300), 0.6, 0.071, same=True),
    "box": _apart(("flat", "open_relaxed"), _FLAT, (_PC, _PC), (0, 12), (90, 300), 0.6, 0.022, same=True),
    "ball": _apart(
        ("cupped", "claw", "sphere"), ("cupped", "claw"), (_PC, _PC), (0, 35), (50, 220), 0.7, 0.04, same=True,
        tilt=0.2,
    ),
    "rope": _apart(_BARE, _BARE, ("radial", "ulnar"), (0, 20), (10, 220), 0.6, 0.037),
    "bar": _apart(_BARE, _BARE, ("radial", "radial"), (0, 15), (40, 250), 0.6, 0.008, same=True),
    "typing": _apart(
        ("typing", "relaxed", "mouse"), ("typing", "relaxed", "mouse"), ("radial", "radial"), (0, 25), (20, 200), 0.8,
        0.008, tilt=0.15,
    ),
    "beside": _apart(_REST, _REST, ("radial", "radial"), (0, 30), (5, 150), 1.0, 0.008),
    "hover": _apart(
        ("relaxed", "flat", "cupped", "loose_fist"), ("relaxed", "flat", "cupped"), ("back", "palm"), (0, 60),
        (10, 120), 1.0, 0.0095, tilt=0.2,
    ),
    "tap": _apart(("cupped", "relaxed", "flat"), ("point",), ("palm", "index_tip"), (80, 60), (6, 80), 0.7, 0.008),
    # held out
    "heart": _touch(
        ("grip",), ("grip",), ("index_nail", "thumb_pulp"), (0, 15), (0, 1), 0.0, 0.35, 0.0, same=True, rule="mirror",
        thumb=(-15, 10, 0, 0),
    ),
    "frame": _touch(
        ("gun",), ("gun",), ("index_pulp", "thumb_pulp"), (0, 10), (0, 1), 0.0, 0.35, 0.0, same=True, rule="invert",
    ),
    "bird": _touch(
        _FLAT, _FLAT, ("thumb_root", "thumb_root_back"), (110, 25), (0, 1), 0.8, 0.5, 0.0, thumb=(-20, 5, 5, 10)
    ),
}  # fmt: skip
ARCHETYPE_NAMES: tuple[str, ...] = tuple(ARCHETYPES)
WEIGHTS: Tensor = torch.tensor([a.weight for a in ARCHETYPES.values()])
APART: Tensor = torch.tensor([a.apart for a in ARCHETYPES.values()])
HELD_OUT: tuple[str, ...] = tuple(name for name, a in ARCHETYPES.items() if a.weight == 0)
"""Kinds that no corpus holds unless they are asked for: something unseen to fine-tune on."""
UNTOUCHED: tuple[str, ...] = (LOOSE, *(name for name, a in ARCHETYPES.items() if a.apart))
"""Labels of the pairs that need not touch."""


def kind_weights(names: Sequence[str] | None = None) -> Tensor:
    """Weights of all kinds (K,), or with ``names`` of these alone (held-out ones like the rarest of the others).

    Raises:
        ValueError: an unknown name, or none at all.
    """
    if names is None:
        return WEIGHTS
    unknown = [name for name in names if name not in ARCHETYPES]
    if unknown or not names:
        what = f"unknown {', '.join(map(repr, unknown))}" if unknown else "none"
        raise ValueError(f"archetypes: {what}; choose from {', '.join(ARCHETYPE_NAMES)}")
    asked = torch.tensor([name in names for name in ARCHETYPE_NAMES])
    return torch.where(asked, WEIGHTS.clamp_min(float(WEIGHTS[WEIGHTS > 0].min())), torch.zeros(()))


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
        "wrist_back": [(i, y, -x) for i in wrist],
        "wrist_palm": [(i, -y, -x) for i in wrist],
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
        # single balls, for two contacts at once; "nail" is the tip's back, which curled fingers lean together
        rows[f"{name}_pulp"] = [(i, pad, u) for i in on(f, 2.95, 3.05)]
        rows[f"{name}_nail"] = [(i, u, pad) for i in on(f, 2.95, 3.05)]
        rows[f"{name}_shaft"] = rows[f"{name}_mid"] + [(i, s * side, u) for i in on(f, 1.0, 2.1) for s in (1.0, -1.0)]
        rows[f"{name}_knuckle"] = [(i, -pad, side) for i in on(f, 0.5, 1.0)]
    four = FINGERS[:4]
    join = lambda *kinds: [row for name in four for kind in kinds for row in rows[f"{name}_{kind}"]]
    rows |= {"pads": join("pad"), "mids": join("mid"), "tips": join("tip"), "knuckles": join("knuckle")}
    rows["all_tips"] = rows["tips"] + rows["thumb_tip"]
    rows["finger_backs"] = [row for name in four for row in rows[f"{name}_back"]]
    rows["thumb_root"] = [(i, palmar[4], along[4]) for i in on(4, 0.3, 1.1)]
    rows["thumb_root_back"] = [(i, -palmar[4], along[4]) for i in on(4, 0.3, 1.1)]
    rows["web"] = [(i, -y, -x) for i in on(1, 0.0, 0.3)]
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
