r"""Where pairs start: archetypes' placements, resampled towards the relative poses of real pairs.

With F the first and second moments of the nine relative-pose numbers, averaged over a pair and its mirror image (18
numbers), a placement is kept in proportion to :math:`\exp(\lambda \cdot F)`: the distribution nearest to the
archetypes' own (in relative entropy) whose moments are the wanted ones. For starts only the rotation's twelve entries
of lambda are non-zero. Named kinds take it among placements of the same kind (with lambda times `KIND_POWER`), so that
every kind keeps its share; loose pairs among all. The numbers are fitted once by `fit_placement`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d

from . import fitted_placement
from .anatomy import DEGREE, NUM_DOF, soft_clamp
from .archetypes import ARCHETYPE_NAMES, ARCHETYPES, WEIGHTS, Archetype, regions
from .contact import Goal, Pairs
from .single_hand import draw_archetype_dof, draw_traits, fit_dof
from .skeleton import MIRROR, MM
from .spheres import Body, carriers, make_body

SHAPE_NOISE = 0.07
"""Deviation of each hand's betas from the person's: the two hands of a pair differ by about .1."""
KIND_POWER = 1.5
_POOL, _POOL_ALL = 4, 2  # placements drawn for each one kept: within a kind, among all kinds
_STICK, _STICK_WEBS, _STICK_TWO = 0.35, 0.02, 0.8  # pull of contact balls: one, none in particular, two at once
_STIFF, _STIFF_WEBS = 6.0, 1.5


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


# Placing one kind's pairs ---------------------------------------------------------------------------------------------


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _unit(v: Tensor) -> Tensor:
    return torch.nn.functional.normalize(v, dim=-1, eps=1e-6)


def _frame(normal: Tensor, tangent: Tensor) -> Tensor:
    """Columns: tangent, normal, their cross product."""
    tangent = _unit(tangent - (tangent * normal).sum(-1, keepdim=True) * normal)
    return torch.stack([tangent, normal, torch.linalg.cross(tangent, normal)], -1)


class _Kind:
    """n pairs of one archetype: posed hands and random numbers, for the placing rules below."""

    def __init__(self, a: Archetype, left: Body, right: Body, generator: torch.Generator) -> None:
        n = len(left.joints)
        self.a, self.n, self.left, self.right, self.generator = a, n, left, right, generator
        self.dof_l, self.dof_r = (self._draw(p, b) for p, b in ((a.left, left), (a.right, right)))
        if a.same:
            self.dof_r = soft_clamp(self.dof_l + 0.08 * self.normal(n, NUM_DOF))
        self.gap = a.gap[0] + (a.gap[1] - a.gap[0]) * self.rand(n)
        self.wrap = a.wrap * 1.5 * self.rand(n)
        # A symmetric archetype twists either way; else the sign says which hand crosses over.
        sign = torch.where(self.rand(n) < 0.5, 1.0, -1.0) if a.left_region == a.right_region else torch.ones(n)
        self.twist = sign * (a.twist[0] + a.twist[1] * (2 * self.rand(n) - 1)) * DEGREE
        self.centres_l, self.bones_l, _ = left.balls(self.dof_l)
        self.centres_r, self.bones_r, _ = right.balls(self.dof_r)
        self.centres_l = self.centres_l * MIRROR

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _draw(self, poses: tuple[str, ...], body: Body) -> Tensor:
        dof = draw_archetype_dof(poses, self.n, self.generator, amount=self.a.variety)
        if self.a.thumb is not None:
            noise = self.a.variety * 0.1 * self.normal(self.n, 4)
            dof = torch.cat([dof[:, :16], torch.tensor(self.a.thumb) * DEGREE + noise], 1)
        return fit_dof(dof, body.traits.variant, self.generator)

    def goal(self, ball_l: Tensor, ball_r: Tensor, stick: tuple[float, float], stiff: float) -> Goal:
        """Goal from (n,) or (n, 2) balls."""
        two = lambda ball: ball.reshape(self.n, -1).expand(self.n, 2)
        full = lambda *values: torch.tensor(values).expand(self.n, len(values))
        return Goal(two(ball_l), two(ball_r), self.gap, self.wrap, full(*stick), full(stiff)[:, 0])


def _by_regions(k: _Kind) -> tuple[Tensor, Tensor, Goal]:
    """Opposed normals, the twist about them, the gap between."""
    a, n, rows = k.a, k.n, torch.arange(k.n)
    one, two = regions()[a.left_region], regions()[a.right_region]
    i = torch.randint(len(one.balls), (n,), generator=k.generator)
    j = i if a.same else torch.randint(len(two.balls), (n,), generator=k.generator)
    ball_l, ball_r = one.balls[i], two.balls[j]
    if a.wrist_normals:
        x, y = torch.eye(3)[:2]
        n_l, n_r = (-y + 0.25 * k.normal(n, 1) * x for _ in range(2))
        u_l = u_r = (-x).expand(n, 3)
    else:
        turn_l, turn_r = k.bones_l[rows, carriers()[ball_l]], k.bones_r[rows, carriers()[ball_r]]
        n_l, u_l = _apply(turn_l, one.normals[i]), _apply(turn_l, one.tangents[i])
        n_r, u_r = _apply(turn_r, two.normals[j]), _apply(turn_r, two.tangents[j])
    n_l = _unit(n_l * MIRROR + a.tilt * k.normal(n, 3))
    n_r = _unit(n_r + a.tilt * k.normal(n, 3))
    # the right hand's normal must land on the opposite of the left one's
    turned = axis_angle_to_matrix(n_l * k.twist[:, None]) @ _frame(n_l, u_l * MIRROR)
    rotation = turned @ _frame(-n_r, u_r).transpose(1, 2)
    reach = k.left.radii[rows, ball_l] + k.right.radii[rows, ball_r] + k.gap
    translation = k.centres_l[rows, ball_l] + n_l * reach[:, None] - _apply(rotation, k.centres_r[rows, ball_r])
    return rotation, translation, k.goal(ball_l, ball_r, (_STICK, 0.0), _STIFF)


def _by_webs(k: _Kind) -> tuple[Tensor, Tensor, Goal]:
    """Webs meet, fingers cross by the twist about the radial axis, shifted by half a finger along it."""
    n = k.n
    zero = torch.zeros(n)
    cross = axis_angle_to_matrix(torch.stack([zero, zero, k.twist.abs()], -1))
    facing = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))  # palms facing, fingers parallel
    rotation = axis_angle_to_matrix(0.07 * k.normal(n, 3)) @ cross @ facing
    web = torch.tensor([-16.0, -2.0, 0.0])
    shift = torch.where(k.rand(n) < 0.5, 1.0, -1.0) * (10.5 + 1.5 * k.normal(n))
    jitter = torch.cat([3 * k.normal(n, 2), shift[:, None]], 1)
    translation = web * MIRROR - _apply(rotation, web.expand(n, 3)) + jitter
    balls = regions()[k.a.left_region].balls[:1].expand(n)
    return rotation, translation, k.goal(balls, balls, (_STICK_WEBS, 0.0), _STIFF_WEBS)


def _by_two(k: _Kind) -> tuple[Tensor, Tensor, Goal]:
    """The right hand is the left one's image: mirrored in a plane through both contacts, or through their midpoint.

    Mirrored, each ball meets its own image; inverted, each meets the other one's.
    """
    first, second = (regions()[r].balls[:1].expand(k.n) for r in (k.a.left_region, k.a.right_region))
    rows = torch.arange(k.n)
    p, q = k.centres_l[rows, first], k.centres_l[rows, second]
    middle, along = (p + q) / 2, _unit(q - p)
    inverted = k.a.rule == "invert"
    if inverted:
        image = -torch.eye(3).expand(k.n, 3, 3)
        push = torch.zeros(k.n, 3)
    else:
        out = middle - k.centres_l.mean(1)
        out = _unit(out - (out * along).sum(1, keepdim=True) * along)
        out = _apply(axis_angle_to_matrix(along * k.twist[:, None]), out)
        image = torch.eye(3) - 2 * out[:, :, None] * out[:, None]
        push = out * (k.left.radii[rows, first] + k.left.radii[rows, second] + k.gap)[:, None]
    # every left point x goes to image (x - middle) + middle; the right hand holds MIRROR x
    spun = axis_angle_to_matrix(along * k.twist[:, None]) if inverted else torch.eye(3)
    rotation = axis_angle_to_matrix(0.06 * k.normal(k.n, 3)) @ spun @ (image * MIRROR)
    translation = middle + push - _apply(rotation, middle * MIRROR)
    balls = torch.stack([first, second], 1)
    goal = k.goal(balls, balls.flip(1) if inverted else balls, (_STICK_TWO, _STICK_TWO), _STIFF)
    return rotation, translation, goal


_RULES = {"regions": _by_regions, "webs": _by_webs, "mirror": _by_two, "invert": _by_two}


def place(kind: Tensor, left: Body, right: Body, generator: torch.Generator) -> tuple[Pairs, Goal]:
    """Initial poses and placement of each pair by its kind's rule."""
    n = len(kind)
    pairs = Pairs(
        left, right, torch.zeros(n, NUM_DOF), torch.zeros(n, NUM_DOF), torch.zeros(n, 3, 3), torch.zeros(n, 3), kind
    )
    two, none = torch.zeros(n, 2, dtype=torch.long), torch.zeros(n)
    goal = Goal(two, two.clone(), none, none.clone(), torch.zeros(n, 2), none.clone())
    for index in kind.unique().tolist():  # one pass per kind, not per pair
        m = (kind == index).nonzero()[:, 0]
        a = ARCHETYPES[ARCHETYPE_NAMES[index]]
        k = _Kind(a, left[m], right[m], generator)
        pairs.rotation[m], pairs.translation[m], found = _RULES[a.rule](k)
        pairs.dof_left[m], pairs.dof_right[m] = k.dof_l, k.dof_r
        for name in goal.__dataclass_fields__:
            getattr(goal, name)[m] = getattr(found, name)
    return pairs, goal


# Drawing starts -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _start_tilt() -> Tensor:
    return torch.tensor(fitted_placement.START_TILT, dtype=torch.float64)


def tilt_weights(features: Tensor, tilt: Tensor) -> Tensor:
    """exp(lambda . F), largest 1, the top half per mille cut level."""
    score = features.double() @ tilt
    weight = (score - score.amax()).exp()
    return weight.clamp_max(float(weight.quantile(0.9995)) if len(weight) < 1_000_000 else 1.0)


def draw_starts(
    n: int, generator: torch.Generator, *, power: float, weights: Tensor = WEIGHTS, keep_kinds: bool = False
) -> tuple[Pairs, Goal, Tensor, Tensor]:
    """n placements before any contact is solved, and betas of left and right.

    Args:
        n: how many.
        generator: source of all draws.
        power: of the tilt: 0 for none.
        weights: (K,) of the kinds.
        keep_kinds: tilt among placements of one kind, so that kinds keep their shares.
    """
    drawn = torch.multinomial(weights, n if keep_kinds or power <= 0 else n * _POOL_ALL, True, generator=generator)
    kind = drawn.repeat_interleave(_POOL) if keep_kinds and power > 0 else drawn
    betas_l, betas_r = draw_shapes(len(kind), generator)
    left = make_body(betas_l, draw_traits(len(kind), generator))
    right = make_body(betas_r, draw_traits(len(kind), generator))
    pairs, goal = place(kind, left, right, generator)
    if power > 0:
        features, tilt = moments(pairs.rotation, pairs.translation), power * _start_tilt()
        if keep_kinds:
            share = torch.softmax((features.double() @ tilt).reshape(n, _POOL), 1)
            chosen = torch.arange(n) * _POOL + torch.multinomial(share, 1, generator=generator)[:, 0]
        else:
            chosen = torch.multinomial(tilt_weights(features, tilt), n, replacement=False, generator=generator)
        pairs, goal, betas_l, betas_r = pairs[chosen], goal[chosen], betas_l[chosen], betas_r[chosen]
    return pairs, goal, betas_l, betas_r
