r"""Where pairs start: archetypes' placements, resampled towards the relative poses of real pairs.

With F the first and second moments of the nine relative-pose numbers, averaged over a pair and its mirror image (18
numbers), a placement is kept in proportion to :math:`\exp(\lambda \cdot F)`: the distribution nearest to the
archetypes' own (in relative entropy) whose moments are the wanted ones. For starts only the rotation's twelve entries
of lambda are non-zero. Contacts take a milder tilt (``power``), so that no kind of contact vanishes. The numbers are
fitted once by `fit_placement`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from interhand_prior.rotations import matrix_to_rot6d

from . import fitted_placement
from .archetypes import WEIGHTS
from .contact import Goal, Pairs, place
from .single_hand import draw_traits
from .skeleton import MIRROR, MM
from .spheres import make_body

SHAPE_NOISE = 0.07
"""Deviation of each hand's betas from the person's: the two hands of a pair differ by about .1."""
CONTACT_POWER = 0.6
_POOL = 4  # placements drawn for each one kept


def draw_shapes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """betas of left and right hands (n, 10), each N(0, 1), nearly equal within a pair."""
    person = torch.randn(n, 10, generator=generator)
    scale = (1 + SHAPE_NOISE**2) ** -0.5
    left = (person + SHAPE_NOISE * torch.randn(n, 10, generator=generator)) * scale
    return left, (person + SHAPE_NOISE * torch.randn(n, 10, generator=generator)) * scale


def mirror_relative(rotation: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """Relative pose of the mirrored, role-exchanged pair: (N, 3, 3), (N, 3) -> the same shapes."""
    back = rotation.transpose(1, 2)
    signs = MIRROR[:, None] * MIRROR
    return back * signs, -MIRROR * (back @ translation[..., None])[..., 0]


def relative_numbers(rotation: Tensor, translation: Tensor) -> Tensor:
    """(N, 9): two rows of the rotation, translation in metres (the published statistics' layout)."""
    return torch.cat([matrix_to_rot6d(rotation), translation / MM], 1)


def moments(rotation: Tensor, translation: Tensor) -> Tensor:
    """F (N, 18): the nine numbers and their squares, each averaged over the pair and its mirror image."""
    a = relative_numbers(rotation, translation)
    b = relative_numbers(*mirror_relative(rotation, translation))
    return torch.cat([(a + b) / 2, (a * a + b * b) / 2], 1)


@lru_cache(maxsize=1)
def _start_tilt() -> Tensor:
    return torch.tensor(fitted_placement.START_TILT, dtype=torch.float64)


def tilt_weights(features: Tensor, tilt: Tensor) -> Tensor:
    """exp(lambda . F), largest 1, the top half per mille cut level."""
    score = features.double() @ tilt
    weight = (score - score.amax()).exp()
    return weight.clamp_max(float(weight.quantile(0.9995)) if len(weight) < 1_000_000 else 1.0)


def draw_starts(n: int, generator: torch.Generator, *, power: float) -> tuple[Pairs, Goal, Tensor, Tensor]:
    """n placements before any contact is solved, tilted by lambda times ``power``; and betas of left and right."""
    pool = n * _POOL if power > 0 else n
    betas_l, betas_r = draw_shapes(pool, generator)
    kind = torch.multinomial(WEIGHTS, pool, replacement=True, generator=generator)
    left = make_body(betas_l, draw_traits(pool, generator))
    right = make_body(betas_r, draw_traits(pool, generator))
    pairs, goal = place(kind, left, right, generator)
    if power > 0:
        weight = tilt_weights(moments(pairs.rotation, pairs.translation), power * _start_tilt())
        chosen = torch.multinomial(weight, n, replacement=False, generator=generator)
        pairs, goal, betas_l, betas_r = pairs[chosen], goal[chosen], betas_l[chosen], betas_r[chosen]
    return pairs, goal, betas_l, betas_r
