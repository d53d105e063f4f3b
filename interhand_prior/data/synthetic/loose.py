r"""Pairs loosely near each other: placements of maximum entropy that meet the published moments of real pairs.

Proposals start from an archetype's placement (`placement`), are turned a little and pushed 1 to 25 cm apart, mostly
along the palm. Each is accepted in proportion to :math:`\exp(\lambda \cdot F)`, with lambda such that loose pairs have
the moments that named kinds leave missing. It is fitted once (`fit_placement`) for a corpus of one half named kinds
and one half loose pairs; with other shares both halves stay as they are. Millimetres inside.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from interhand_prior.rotations import axis_angle_to_matrix

from . import fitted_placement
from .arms import arms_fit
from .contact import Pairs, ball_report
from .placement import draw_starts, moments, tilt_weights
from .single_hand import draw_free_dof, fit_dof

MAX_GAP = 250.0  # mm between balls: farther apart is no pair
_MIN_GAP = 0.5
_DRAWS = 32  # proposals per start: many more than are taken, or the tilt would run out of them
_ARM_OVERLAP = 2.0  # mm: balls are not skin


def _push(rotation: Tensor, translation: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn by .25 rad (one in seven by .8), then either push away or place freely in front of the palm."""
    n = len(rotation)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    unit = lambda v: torch.nn.functional.normalize(v, dim=1, eps=1e-6)
    amount = torch.where(rand(n, 1) < 0.15, 0.8, 0.25)
    rotation = axis_angle_to_matrix(amount * normal(n, 3)) @ rotation
    palm = torch.tensor([0.0, -0.8, 0.0])
    away = unit(0.7 * unit(translation) + palm + 0.55 * normal(n, 3))
    pushed = translation + away * (10 + 240 * rand(n, 1)) + 15 * normal(n, 3)
    free = 0.6 * translation + torch.tensor([0.0, -95.0, 0.0]) + normal(n, 3) * torch.tensor([32.0, 85.0, 62.0])
    return rotation, torch.where(rand(n, 1) < 0.35, pushed, free)


@lru_cache(maxsize=1)
def _tilt() -> Tensor:
    return torch.tensor(fitted_placement.TILT, dtype=torch.float64)


def propose(n: int, generator: torch.Generator, tilt: Tensor | None) -> tuple[Pairs, Tensor, Tensor]:
    """n candidate pairs, their placements tilted by lambda (None: as proposed); betas of left and right."""
    starts = -(-3 * n // 2) if tilt is not None else n
    base, _, betas_l, betas_r = draw_starts(starts, generator, power=1.0)
    owner = torch.arange(starts).repeat(_DRAWS if tilt is not None else 1)
    rotation, translation = _push(base.rotation[owner], base.translation[owner], generator)
    chosen = owner
    if tilt is not None:
        weight = tilt_weights(moments(rotation, translation), tilt)
        chosen = torch.multinomial(weight, n, replacement=False, generator=generator)
    source = owner[chosen]
    # six in ten take free poses; the others keep the archetype's: hands about to touch, or that just did
    fresh = torch.rand(n, 1, generator=generator) < 0.6
    left, right = base.left[source], base.right[source]
    dofs = []
    for body, dof in ((left, base.dof_left[source]), (right, base.dof_right[source])):
        free = fit_dof(draw_free_dof(n, generator), body.traits.variant, generator)
        dofs.append(torch.where(fresh, free, dof))
    pairs = Pairs(left, right, dofs[0], dofs[1], rotation[chosen], translation[chosen], torch.full((n,), -1))
    return pairs, betas_l[source], betas_r[source]


def draw_candidates(n: int, generator: torch.Generator, *, tilted: bool = True) -> tuple[Pairs, Tensor, Tensor]:
    """Candidates out of n whose balls neither collide, nor collide with themselves, nor are too far; arms fit too."""
    pairs, betas_l, betas_r = propose(n, generator, _tilt() if tilted else None)
    report = ball_report(pairs)
    ok = (report["near"] > _MIN_GAP) & (report["near"] < MAX_GAP)
    ok &= report["depth_self"] < 2.5
    keep = ok.nonzero()[:, 0]
    keep = keep[arms_fit(pairs[keep], _ARM_OVERLAP)]
    return pairs[keep], betas_l[keep], betas_r[keep]
