r"""Forearms: whether two hands can belong to the arms of one person.

.. math::  \exists\, i, j: \quad A_l(i) \cap H_r = \emptyset, \quad A_r(j) \cap H_l = \emptyset, \quad
           A_l(i) \cap A_r(j) = \emptyset, \quad e_{min} \le |E_l(i) - E_r(j)| \le e_{max}

A(i) is a forearm of eight balls, 22 cm long, that leaves the wrist with bend i out of fifteen; H are the hands' balls
and E the elbows. Bends span flexion and extension of 60 degrees, radial deviation of 20 and ulnar deviation of 35: some
ten degrees inside the clinical ranges of motion (flexion 80, extension 70, radial 20, ulnar 30 to 40), because people
seldom hold a wrist at its limit. The forearm thickens from 17 mm, inside the wrist's skin, to 36 mm below the elbow (a
circumference of 23 cm, on the slender side). Elbows stand 24 cm behind the wrist (radius length, women) and at most
1 m apart: shoulders 40 cm apart and upper arms of 30 cm reach as far. The lower bound and the slender arm are our
choice: only what nobody could do is refused. Millimetres.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .anatomy import DEGREE
from .contact import Pairs
from .skeleton import MIRROR
from .spheres import Body, distances, open_hand_spheres

FLEXION = (-60.0, -30.0, 0.0, 30.0, 60.0)
ULNAR = (-20.0, 8.0, 35.0)
ALONG: Tensor = torch.tensor([32.0, 54.0, 76.0, 100.0, 126.0, 154.0, 186.0, 220.0])
"""Places of the forearm's balls behind the wrist joint, mm."""
RADII: Tensor = torch.tensor([17.0, 18.0, 19.0, 22.0, 26.0, 30.0, 34.0, 36.0])
ELBOW = 240.0
ELBOWS_APART = (80.0, 1000.0)


@lru_cache(maxsize=1)
def bend_directions() -> Tensor:
    """(B, 3) unit directions from the wrist to the elbow in a right hand's frame; flexion bends them to the palm."""
    flexion = torch.tensor(FLEXION)[:, None].expand(-1, len(ULNAR)).flatten() * DEGREE
    ulnar = torch.tensor(ULNAR).repeat(len(FLEXION)) * DEGREE
    return torch.stack([flexion.cos() * ulnar.cos(), -flexion.sin() * ulnar.cos(), -ulnar.sin()], 1)


def forearms(body: Body) -> tuple[Tensor, Tensor]:
    """Balls (N, B, K, 3) and elbows (N, B, 3) of every bend, in the hand's own right-hand frame."""
    wrist, directions = body.joints[:, None, 0], bend_directions()
    return wrist[:, :, None] + ALONG[:, None] * directions[:, None], wrist + ELBOW * directions


def arms_fit(pairs: Pairs, tolerance: float) -> Tensor:
    """(N,) bool: there is a bend of each wrist for which no forearm enters anything of the other arm.

    Args:
        pairs: N pairs.
        tolerance: mm by which balls may overlap.
    """
    n, bends, balls, count = len(pairs), len(bend_directions()), len(ALONG), len(open_hand_spheres())
    hand_l, hand_r = (centres[:, :count] for centres in pairs.balls())
    arm_l, elbow_l = forearms(pairs.left)
    arm_r, elbow_r = forearms(pairs.right)
    arm_l, elbow_l = (arm_l * MIRROR).reshape(n, bends * balls, 3), elbow_l * MIRROR
    turn, shift = pairs.rotation.transpose(1, 2), pairs.translation[:, None]
    arm_r, elbow_r = arm_r.reshape(n, bends * balls, 3) @ turn + shift, elbow_r @ turn + shift
    radii = RADII.repeat(bends)

    def free(arm: Tensor, hand: Tensor, hand_radii: Tensor) -> Tensor:
        gap = distances(arm, hand) - radii[:, None] - hand_radii[:, None, :count]
        return gap.amin(2).reshape(n, bends, balls).amin(2) > -tolerance

    ok = free(arm_l, hand_r, pairs.right.radii)[:, :, None] & free(arm_r, hand_l, pairs.left.radii)[:, None]
    gap = distances(arm_l, arm_r) - radii[:, None] - radii
    ok &= gap.reshape(n, bends, balls, bends, balls).amin((2, 4)) > -tolerance
    elbows = distances(elbow_l, elbow_r)
    ok &= (elbows >= ELBOWS_APART[0]) & (elbows <= ELBOWS_APART[1])
    return ok.flatten(1).any(1)
