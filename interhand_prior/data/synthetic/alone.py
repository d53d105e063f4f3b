"""Hands alone: shape, traits and angles of single hands whose own fingers do not collide.

Hands are drawn as those of loose pairs are (`single_hand`) and kept when no two of their balls that must stay apart
overlap by `MAX_SELF_DEPTH` or more (`spheres.self_penetration`): rejection, so each kept hand is one that was drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .single_hand import Traits, draw_free_dof, draw_traits, fit_dof
from .spheres import MAX_SELF_DEPTH, make_body, self_penetration

_BATCH = 2048
_EXPECTED = 0.65  # share of drawn hands that are kept


class SingleHands(NamedTuple):
    """n hands: betas (n, 10), their traits, angles dof (n, 20); acceptance: share of the drawn hands that were kept.

    ``make_body(betas, traits).full_pose(dof)`` is their hand_pose (n, 45) in right-hand form.
    """

    betas: Tensor
    traits: Traits
    dof: Tensor
    acceptance: float


def draw_single_hands(n: int, generator: torch.Generator) -> SingleHands:
    """Exactly n single hands free of self-collision.

    Args:
        n: how many; zero or more.
        generator: CPU generator; the same one gives the same hands.

    Returns:
        `SingleHands`.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    parts: list[tuple[Tensor, Traits, Tensor]] = []
    have = tried = passed = 0
    while have < n or not parts:
        size = min(_BATCH, int((n - have) / _EXPECTED) + 8)
        betas, traits = torch.randn(size, 10, generator=generator), draw_traits(size, generator)
        dof = fit_dof(draw_free_dof(size, generator), traits.variant, generator)
        body = make_body(betas, traits)
        good = (self_penetration(body.balls(dof)[0], body.radii) < MAX_SELF_DEPTH).nonzero()[:, 0]
        tried, passed = tried + size, passed + len(good)
        good = good[: n - have]
        have += len(good)
        parts.append((betas[good], traits[good], dof[good]))
    joined = Traits(*(torch.cat([getattr(part[1], key) for part in parts]) for key in ("off_axis", "phi", "variant")))
    return SingleHands(
        torch.cat([part[0] for part in parts]), joined, torch.cat([part[2] for part in parts]), passed / tried
    )
