"""One shard of pairs: half named kinds, solved and finished on the mesh, half loosely near, roles exchanged at random.

World frame: the left hand has identity rotation and its middle MCP at the origin. (The canonical vectors of this
package do not see the world frame, so nothing is gained by moving a pair about.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interhand_prior.params import HandParams, TwoHands
from interhand_prior.rotations import matrix_to_axis_angle, mirror_axis_angle

from .alone import draw_single_hands
from .archetypes import APART, ARCHETYPE_NAMES, LOOSE, SINGLE, WEIGHTS
from .arms import arms_fit
from .contact import Pairs, ball_report, solve
from .loose import MAX_GAP, draw_candidates
from .placement import KIND_POWER, draw_starts, mirror_relative
from .skeleton import MM, open_hand_model
from .spheres import make_body
from .surface import MAX_DEPTH, TOUCH, finish, meshes, surface_report

_BATCH = 256
ARM_OVERLAP = 6.0
"""mm by which a forearm's balls may enter the other hand's: a hand that holds a wrist presses it."""
APART_DEPTH = 0.2
"""mm: how deep pairs may be that do not touch; what the measure itself may err."""


@dataclass
class Tally:
    """How many pairs were tried and kept, and how many named ones no two arms could reach."""

    tried: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    arms: int = 0

    def add(self, names: Sequence[str], ok: Tensor) -> None:
        """Count names (N) and the kept ones among them."""
        self.tried.update(names)
        self.kept.update(name for name, good in zip(names, ok.tolist(), strict=True) if good)


@dataclass(frozen=True)
class _Batch:
    """Pairs with their shapes and what was measured on the mesh."""

    pairs: Pairs
    betas_left: Tensor
    betas_right: Tensor
    report: dict[str, Tensor]

    def __getitem__(self, index: Tensor) -> _Batch:
        report = {k: v[index] for k, v in self.report.items()}
        return _Batch(self.pairs[index], self.betas_left[index], self.betas_right[index], report)


_Maker = Callable[[int, torch.Generator, Tally], _Batch]


def named_batch(n: int, generator: torch.Generator, tally: Tally | None = None, weights: Tensor = WEIGHTS) -> _Batch:
    """Try n pairs of named kinds; returns those that keep every limit on the open hand's mesh."""
    start, goal, betas_l, betas_r = draw_starts(n, generator, power=KIND_POWER, weights=weights, keep_kinds=True)
    pairs, drift = solve(start, goal)
    balls, touching = ball_report(pairs), ~APART[start.kind]
    ok = (balls["depth"] < 4) & (balls["depth_self"] < 3) & (drift < 0.35)
    ok &= balls["near"] < torch.where(touching, 4.0, MAX_GAP)
    index = ok.nonzero()[:, 0]
    fits = arms_fit(pairs[index], ARM_OVERLAP)
    ok[index] = fits
    if tally is not None:
        tally.arms += int((~fits).sum())
    index = index[fits]
    done, report = finish(pairs[index], (betas_l[index], betas_r[index]), touching[index])
    touching = touching[index]
    good = report["depth"] <= torch.where(touching, MAX_DEPTH, APART_DEPTH)
    good &= (report["near"] < TOUCH) | ~touching
    good &= (ball_report(done)["depth_self"] < 3) & arms_fit(done, ARM_OVERLAP)
    ok[index] = good
    if tally is not None:
        tally.add([ARCHETYPE_NAMES[k] for k in start.kind.tolist()], ok)
    return _Batch(done, betas_l[index], betas_r[index], report)[good.nonzero()[:, 0]]


def loose_batch(n: int, generator: torch.Generator, tally: Tally | None = None) -> _Batch:
    """Try n loosely near pairs; returns those whose meshes do not meet."""
    pairs, betas_l, betas_r = draw_candidates(n, generator)
    report = surface_report(*meshes(pairs, betas_l, betas_r))
    good = report["depth"] <= APART_DEPTH
    if tally is not None:
        tally.tried[LOOSE] += n
        tally.kept[LOOSE] += int(good.sum())
    return _Batch(pairs, betas_l, betas_r, report)[good.nonzero()[:, 0]]


def to_two_hands(pairs: Pairs, betas_left: Tensor, betas_right: Tensor) -> TwoHands:
    """Parameters in metres and radians, each hand in its own side's convention."""
    model, n = open_hand_model(), len(pairs)
    zero = torch.zeros(n, 3)
    rest_l, rest_r = model.rest_joints(betas_left), model.rest_joints(betas_right)
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    left = HandParams(zero, mirror_axis_angle(pairs.left.full_pose(pairs.dof_left)), betas_left, -rest_l[:, 4] * mirror)
    wrist = rest_r[:, 0]  # the root turns about the wrist, so the middle MCP goes to wrist + R (mcp - wrist) + transl
    turned = (pairs.rotation @ (rest_r[:, 4] - wrist)[..., None])[..., 0]
    right = HandParams(
        matrix_to_axis_angle(pairs.rotation), pairs.right.full_pose(pairs.dof_right), betas_right,
        pairs.translation / MM - wrist - turned,
    )  # fmt: skip
    return TwoHands(left, right)


def _exchange(batch: _Batch, generator: torch.Generator) -> _Batch:
    """Half of the pairs become their mirror image with roles exchanged, so that no hand is always the active one."""
    n = len(batch.pairs)
    swap = torch.rand(n, generator=generator) < 0.5
    order = torch.where(swap, torch.arange(n) + n, torch.arange(n))
    p = batch.pairs
    mirrored = Pairs(p.right, p.left, p.dof_right, p.dof_left, *mirror_relative(p.rotation, p.translation), p.kind)
    both = _join([batch, _Batch(mirrored, batch.betas_right, batch.betas_left, batch.report)])
    return both[order]


def _join(values: Sequence[Any]) -> Any:
    """Concatenate tensors, or dataclasses and mappings of tensors entry by entry."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, dict):
        return {key: _join([v[key] for v in values]) for key in first}
    return type(first)(*(_join([getattr(v, f.name) for v in values]) for f in fields(first)))


def _collect(make: _Maker, n: int, generator: torch.Generator, tally: Tally, share: float) -> list[_Batch]:
    """Batches of exactly n kept pairs in all; ``share`` is the acceptance to expect."""
    got: list[_Batch] = []
    have = 0
    while have < n:
        want = min(_BATCH, int((n - have) / share) + 8)
        batch = make(want, generator, tally)
        batch = batch[torch.arange(min(len(batch.pairs), n - have))]
        have += len(batch.pairs)
        got.append(batch)
    return got


def make_shard(
    n: int, loose_share: float, generator: torch.Generator, weights: Tensor = WEIGHTS
) -> tuple[TwoHands, Tally]:
    """n pairs in random order with extras ``archetype`` (name), ``depth_mm`` and ``near_mm`` (on the mesh)."""
    tally = Tally()
    loose = round(n * loose_share)
    named = partial(named_batch, weights=weights)
    got = _collect(named, n - loose, generator, tally, 0.8)
    got += _collect(loose_batch, loose, generator, tally, 0.25)
    batch = _join(got)
    batch = _exchange(batch[torch.randperm(n, generator=generator)], generator)
    hands = to_two_hands(batch.pairs, batch.betas_left, batch.betas_right)
    names = np.array([*ARCHETYPE_NAMES, LOOSE])  # the kind of a loose pair is -1
    extras = {
        "archetype": names[batch.pairs.kind.numpy()],
        "depth_mm": batch.report["depth"].numpy(),
        "near_mm": batch.report["near"].numpy(),
    }
    return TwoHands(hands.left, hands.right, None, extras), tally


def make_singles(n: int, generator: torch.Generator) -> TwoHands:
    """n hands alone, each left or right at random: the other one is marked as missing, its parameters are zeros.

    The root is the identity and the middle MCP lies at the origin, as for the left hand of a pair.
    """
    betas, traits, dof, _ = draw_single_hands(n, generator)
    pose = make_body(betas, traits).full_pose(dof)
    zero = torch.zeros(n, 3)
    right = HandParams(zero, pose, betas, -open_hand_model().rest_joints(betas)[:, 4])
    is_right = torch.rand(n, generator=generator) < 0.5
    there = is_right[:, None].float()
    extras = {"archetype": np.full(n, SINGLE)}
    return TwoHands(
        right.mirrored().map(lambda v: v * (1 - there)), right.map(lambda v: v * there), None, extras,
        left_valid=~is_right, right_valid=is_right,
    )  # fmt: skip
