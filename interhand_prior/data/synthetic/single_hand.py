r"""Poses of one hand in the distribution of real fits.

.. math::  d = \mathrm{clamp}(m + s + (a - m) e^{l} + \epsilon), \quad
           \theta = \mathrm{gauge}(A d + P o, \phi)

a is one of 45 named poses blended with one or two others, plus eight hand-made synergies, noise of coupled joints and
now and then an excursion of one digit (`draw_archetype_dof`). The shift s, scale l, noise, off-axis part
o ~ N(mu, sd) and gauge phi ~ N(pm, psd) are numbers fitted so that the marginals of theta, over the hands whose fingers
do not collide, meet `marginals` (`fit_marginals` writes them into `fitted_poses`). How much of the scatter of real fits
is gauge and how much moves the finger cannot be told from marginals, so there are two fits, one heavy in gauge and one
heavy in off-axis rotation. One hand in three is drawn from the second, whose little finger at times stands off farther
than people's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import fitted_poses
from .anatomy import DEGREE, NUM_DOF, off_axis_projector, soft_clamp

_CLOSED = torch.tensor([-6.0, 4.0, 24.0, 8.0])  # radial deviation of index, middle, pinky, ring: fingers together
_OPEN = torch.tensor([11.0, 2.0, -4.0, -6.0])  # and spread
_Four = float | tuple[float, float, float, float]


def _pose(mcp: _Four, pip: _Four, spread: _Four, thumb: tuple[float, float, float, float]) -> Tensor:
    """Degrees for index, middle, pinky, ring; spread 0 closed, 1 open; DIP follows PIP by .67."""
    four = lambda v: torch.tensor([float(x) for x in v] if isinstance(v, tuple) else [float(v)] * 4)
    dof = torch.zeros(NUM_DOF)
    dof[0:16:4], dof[2:16:4], dof[3:16:4] = four(mcp), four(pip), 0.67 * four(pip)
    dof[1:16:4] = _CLOSED + four(spread) * (_OPEN - _CLOSED)
    dof[16:20] = torch.tensor(thumb)
    return dof * DEGREE


POSES: dict[str, Tensor] = {
    # open hands
    "flat": _pose(0, 4, 0.25, (-5, 0, 5, 5)),
    "flat_closed": _pose(2, 6, 0.0, (8, -8, 8, 8)),
    "spread": _pose(-6, 3, 1.1, (-22, 12, 0, 0)),
    "open_relaxed": _pose((6, 8, 14, 10), (12, 15, 19, 17), 0.5, (-8, 4, 6, 8)),
    "resting": _pose((8, 10, 14, 12), (22, 24, 26, 25), 0.4, (-2, 6, 6, 12)),  # on a table, palm down
    "mouse": _pose((18, 22, 26, 24), (28, 30, 34, 32), 0.6, (2, 12, 10, 10)),
    "cupped": _pose((30, 33, 38, 36), (24, 24, 28, 26), 0.0, (10, -5, 12, 12)),
    "sphere": _pose((22, 22, 26, 24), (38, 38, 40, 38), 0.8, (4, 16, 8, 14)),  # round a ball
    "table": _pose((66, 68, 70, 70), 12, 0.05, (5, 5, 10, 12)),
    "interlace": _pose((26, 28, 30, 30), (22, 24, 26, 26), 0.62, (8, 0, 15, 15)),
    "steeple": _pose((18, 18, 16, 18), (14, 14, 16, 14), 0.55, (-5, 5, 8, 8)),
    # relaxed hands: no two fingers the same, the little finger curled most or least
    "relaxed": _pose((18, 22, 32, 28), (28, 32, 38, 36), 0.3, (0, 0, 12, 15)),
    "relaxed_index_up": _pose((4, 22, 36, 30), (12, 34, 44, 42), 0.3, (0, 2, 12, 18)),
    "relaxed_little_curled": _pose((12, 18, 42, 32), (16, 26, 56, 44), 0.25, (0, 0, 12, 15)),
    "relaxed_little_out": _pose((26, 30, 8, 22), (36, 38, 16, 30), (0.1, 0.1, 0.7, 0.2), (6, 2, 14, 18)),
    "relaxed_middle_low": _pose((14, 34, 24, 30), (24, 40, 30, 36), 0.2, (2, 4, 12, 16)),
    "relaxed_radial": _pose((38, 32, 10, 20), (40, 36, 18, 26), 0.25, (10, 6, 14, 18)),
    # closing hands
    "half_closed": _pose((40, 42, 46, 44), (46, 48, 50, 50), 0.05, (8, 0, 16, 20)),
    "claw": _pose(-4, 62, 0.6, (-8, 5, 10, 40)),
    "hook": _pose(10, 85, 0.1, (0, -5, 15, 20)),
    "typing": _pose((12, 14, 16, 14), (42, 46, 44, 46), 0.4, (-2, 4, 8, 12)),
    "loose_fist": _pose((50, 55, 62, 58), (72, 78, 76, 78), 0.05, (10, 0, 25, 25)),
    "fist": _pose((64, 74, 78, 67), (80, 94, 92, 84), 0.0, (17, -10, 38, 38)),
    # grips and pinches
    "grip": _pose((38, 42, 46, 44), (52, 55, 55, 56), 0.15, (12, 10, 15, 25)),
    "power": _pose((52, 56, 62, 58), (66, 70, 68, 70), 0.05, (16, 12, 22, 24)),
    "pinch": _pose((48, 30, 26, 26), (42, 32, 34, 34), 0.2, (18, 12, 15, 20)),
    "pinch_curled": _pose((46, 56, 62, 60), (44, 66, 70, 70), 0.1, (18, 12, 15, 20)),
    "ok": _pose((52, 14, 2, 6), (48, 12, 8, 8), 0.6, (18, 12, 18, 22)),
    "ring_middle": _pose((18, 54, 20, 28), (20, 48, 28, 32), (0.5, 0.2, 0.3, 0.2), (24, 12, 16, 22)),
    "tripod": _pose((46, 48, 44, 48), (36, 38, 56, 54), 0.1, (20, 14, 12, 16)),
    "beak": _pose((52, 54, 56, 56), (16, 18, 22, 20), 0.0, (24, 14, 8, 10)),  # all tips to the thumb's
    "pen": _pose((44, 48, 54, 52), (42, 52, 62, 62), 0.05, (18, 12, 14, 30)),
    "key_pinch": _pose((44, 50, 54, 52), (64, 70, 72, 72), 0.0, (8, -8, 12, 14)),
    # signs
    "point": _pose((3, 66, 76, 66), (6, 86, 90, 84), 0.1, (18, 0, 35, 35)),
    "point_loose": _pose((10, 44, 54, 50), (16, 62, 66, 66), 0.1, (8, 2, 22, 24)),
    "peace": _pose((2, 0, 74, 66), (4, 4, 90, 84), (1.2, -0.2, 0.1, 0.1), (18, 0, 40, 40)),
    "three": _pose((2, 2, 70, 8), (6, 6, 86, 12), (0.8, 0.2, 0.1, 0.5), (26, 2, 36, 38)),
    "three_thumb": _pose((0, 2, 70, 63), (5, 6, 86, 82), (0.9, 0.0, 0.1, 0.1), (-20, 6, 2, 0)),
    "four": _pose((0, 0, 4, 2), (5, 5, 8, 6), 0.6, (26, -4, 36, 34)),
    "thumbs_up": _pose((66, 72, 78, 67), (88, 92, 92, 84), 0.0, (-26, 0, 0, -5)),
    "gun": _pose((2, 66, 76, 66), (4, 87, 90, 84), 0.1, (-24, 4, 0, -4)),
    "call": _pose((62, 64, 4, 62), (86, 86, 8, 80), (0.1, 0.0, 1.0, 0.2), (-24, 6, 0, -2)),
    "horns": _pose((2, 66, 6, 62), (5, 86, 8, 80), (0.5, 0.0, 0.8, 0.0), (22, 0, 36, 36)),
    "horns_thumb": _pose((2, 66, 6, 62), (5, 86, 8, 80), (0.5, 0.0, 0.8, 0.0), (-22, 6, 0, 0)),
    "crossed": _pose((0, 26, 66, 62), (6, 24, 84, 82), (-0.35, -2.5, 0.0, 0.0), (18, 0, 36, 36)),
}
POSE_NAMES: tuple[str, ...] = tuple(POSES)
_BANK = torch.stack(list(POSES.values()))
POSE_SHARES: dict[str, float] = {
    "flat": 1, "flat_closed": 1, "spread": 0.8, "open_relaxed": 2, "resting": 2, "mouse": 1, "cupped": 2.5,
    "sphere": 1.2, "table": 0.7, "interlace": 1, "steeple": 1.2,
    "relaxed": 2.5, "relaxed_index_up": 1, "relaxed_little_curled": 1, "relaxed_little_out": 0.6,
    "relaxed_middle_low": 0.6, "relaxed_radial": 0.6,
    "half_closed": 1.5, "claw": 1.2, "hook": 0.6, "typing": 1, "loose_fist": 1.2, "fist": 0.6,
    "grip": 2, "power": 0.8, "pinch": 1.5, "pinch_curled": 0.6, "ok": 0.7, "ring_middle": 0.5, "tripod": 0.8,
    "beak": 0.6, "pen": 0.8, "key_pinch": 0.6,
    "point": 0.8, "point_loose": 0.6, "peace": 0.3, "three": 0.25, "three_thumb": 0.2, "four": 0.3, "thumbs_up": 0.4,
    "gun": 0.3, "call": 0.2, "horns": 0.15, "horns_thumb": 0.1, "crossed": 0.1,
}  # fmt: skip
"""How often a hand that touches nothing takes each pose (unnormalised)."""
_SHARES = torch.tensor([POSE_SHARES[name] for name in POSE_NAMES])

_SYNERGIES = torch.zeros(8, NUM_DOF)  # degrees
_SYNERGIES[0, 0:16:4] = 12  # MCP curl
_SYNERGIES[1, 2:16:4], _SYNERGIES[1, 3:16:4] = 14, 9  # PIP curl
_SYNERGIES[2, 0:16:4] = _SYNERGIES[2, 2:16:4] = torch.tensor([-9.0, -3.0, 9.0, 4.0])  # ulnar gradient
_SYNERGIES[3, 1:16:4] = torch.tensor([4.0, 0.0, -6.0, -3.0])  # spread
_SYNERGIES[4, 16:20] = torch.tensor([8.0, 5.0, 6.0, 8.0])  # thumb opposition
_SYNERGIES[5, 0:16:4], _SYNERGIES[5, 2:16:4], _SYNERGIES[5, 3:16:4] = 7, -9, -6  # table against hook
_SYNERGIES[6, [0, 2, 3]] = torch.tensor([-10.0, -10.0, -6.0])  # the index alone
_SYNERGIES[7, 16:20] = torch.tensor([-6.0, 6.0, 5.0, 9.0])  # thumb away from the palm and bent
_SYNERGIES *= 0.8 * DEGREE
_NOISE = torch.tensor([5.0, 3.0, 6.0, 4.0] * 4 + [5.0, 5.0, 6.0, 7.0]) * DEGREE
_ENSLAVED = torch.tensor(
    [[1.0, 0.3, 0.05, 0.1], [0.25, 1.0, 0.25, 0.45], [0.05, 0.2, 1.0, 0.5], [0.1, 0.45, 0.45, 1.0]]
)
"""How far each finger (row; index, middle, pinky, ring) follows each one that is meant to move (column): about as in
Zatsiorsky, Li & Latash, "Enslaving effects in multi-finger force production", Exp. Brain Res. 131, 2000."""
_DIP_FOLLOWS = 0.67
OFF_AXIS_SHARE = 1 / 3
"""Share of hands from the fit that is heavy in off-axis rotation."""
_EXCURSION = torch.tensor([20.0, 0.0, 24.0, 24.0 * _DIP_FOLLOWS]) * DEGREE
_THUMB_EXCURSION = torch.tensor([10.0, 10.0, 14.0, 20.0]) * DEGREE


def correlated_noise(n: int, generator: torch.Generator) -> Tensor:
    """Unit noise (n, 20) of coupled joints.

    The four abductions share nine tenths of their variance (fingers deviate together, they do not cross); MCP and PIP
    flexions follow those of other fingers (`_ENSLAVED`); DIP follows PIP.
    """
    e = torch.randn(n, NUM_DOF, generator=generator)
    common = torch.randn(n, 1, generator=generator)
    follow = torch.nn.functional.normalize(_ENSLAVED, dim=1).T
    out = e.clone()
    out[:, 1:16:4] = 0.9**0.5 * common + 0.1**0.5 * e[:, 1:16:4]
    out[:, 0:16:4] = e[:, 0:16:4] @ follow
    out[:, 2:16:4] = e[:, 2:16:4] @ follow
    out[:, 3:16:4] = 0.8 * out[:, 2:16:4] + 0.6 * e[:, 3:16:4]
    return out


def _excursions(n: int, generator: torch.Generator) -> Tensor:
    """One hand in six lets one digit leave its place (n, 20): the other fingers are drawn along as far as they must."""
    digit = torch.randint(5, (n,), generator=generator)
    away = torch.rand(n, 1, generator=generator) < 1 / 6
    size = torch.randn(n, 1, generator=generator)
    fingers = torch.zeros(n, 4, 4)
    fingers += (_ENSLAVED.T[digit.clamp_max(3)] * size)[:, :, None] * _EXCURSION
    thumb = size * _THUMB_EXCURSION
    is_thumb = (digit == 4)[:, None]
    out = torch.cat([torch.where(is_thumb, 0.0, fingers.reshape(n, 16)), torch.where(is_thumb, thumb, 0.0)], 1)
    return torch.where(away, out, 0.0)


def draw_archetype_dof(
    names: Sequence[str], n: int, generator: torch.Generator, *, amount: float = 1.0, mix: float = 0.35
) -> Tensor:
    """n poses (n, 20): one of ``names``, moved towards one or two others, plus synergies and noise times ``amount``.

    ``mix`` is how far towards the others at most.
    """
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    ids = torch.tensor([POSE_NAMES.index(name) for name in names])
    shares = _SHARES[ids] if len(set(names)) == len(_SHARES) else torch.ones(len(ids))
    first = _BANK[ids[torch.multinomial(shares, n, replacement=True, generator=generator)]]
    others = _BANK[torch.multinomial(_SHARES, 2 * n, replacement=True, generator=generator)].reshape(2, n, NUM_DOF)
    part = torch.where(rand(n, 1) < 0.5, 0.0, rand(n, 1))  # half of the hands lie between three poses
    other = others[0] + part * (others[1] - others[0])
    # half of the hands blend only a random half of their digits: fingers individuate, the joints of one stay together
    some = (rand(n, 5) < 0.5).float().repeat_interleave(4, 1)
    blend = rand(n, 1) ** 2 * mix * torch.where(rand(n, 1) < 0.5, torch.ones(1), some)
    dof = first + blend * (other - first)
    noise = torch.where(rand(n, 1) < 0.1, 2.0, 1.0) * correlated_noise(n, generator) * _NOISE
    synergies = torch.randn(n, len(_SYNERGIES), generator=generator) @ _SYNERGIES
    dof = dof + amount * (synergies + noise + _excursions(n, generator))
    curl = (dof[:, 0:16:4].clamp_min(0) / 1.4).clamp(0, 1)  # flexed fingers cannot spread
    dof[:, 1:16:4] = dof[:, 1:16:4] * (1 - 0.6 * curl) + _CLOSED * DEGREE * 0.3 * curl
    return soft_clamp(dof)


def draw_free_dof(n: int, generator: torch.Generator) -> Tensor:
    """n poses (n, 20) of hands that touch nothing: by `POSE_SHARES`, up to .7 of the way to other poses."""
    return draw_archetype_dof(POSE_NAMES, n, generator, mix=0.7)


@dataclass(frozen=True)
class Traits:
    """What a hand is born with and no solver changes: off-axis part (N, 45), gauge (N, 15) and which fit (N,)."""

    off_axis: Tensor
    phi: Tensor
    variant: Tensor

    def __getitem__(self, index: Tensor) -> Traits:
        return Traits(self.off_axis[index], self.phi[index], self.variant[index])


@lru_cache(maxsize=1)
def _numbers() -> dict[str, Tensor]:
    """The two fits stacked: each value (2, size)."""
    fits = (fitted_poses.GAUGE_HEAVY, fitted_poses.OFF_AXIS_HEAVY)
    return {key: torch.tensor([fit[key] for fit in fits]) for key in fits[0]}


def draw_traits(n: int, generator: torch.Generator) -> Traits:
    """Off-axis part and gauge of n hands, `OFF_AXIS_SHARE` of them from the second fit."""
    p = _numbers()
    v = (torch.rand(n, generator=generator) < OFF_AXIS_SHARE).long()
    off = (p["off_mean"][v] + torch.randn(n, 45, generator=generator) * p["off_sd"][v]) @ off_axis_projector()
    phi = p["phi_mean"][v] + torch.randn(n, 15, generator=generator) * p["phi_sd"][v]
    return Traits(off, phi, v)


def fit_dof(dof: Tensor, variant: Tensor, generator: torch.Generator) -> Tensor:
    """Move archetype angles (N, 20) to where real fits lie: shift, scale and noise of the hand's fit."""
    p = _numbers()
    mean = p["dof_mean"][variant]
    noise = correlated_noise(len(dof), generator) * p["dof_noise"][variant]
    return soft_clamp(mean + p["dof_shift"][variant] + (dof - mean) * p["dof_scale"][variant] + noise)
