r"""Poses of one hand in the distribution of real fits.

.. math::  d = \mathrm{clamp}(m + s + (a - m) e^{l} + \epsilon), \quad
           \theta = \mathrm{gauge}(A d + P o, \phi)

a is one of 18 named poses blended with another, plus five hand-made synergies and noise (`draw_archetype_dof`). The
shift s, scale l, noise, off-axis part o ~ N(mu, sd) and gauge phi ~ N(pm, psd) are numbers fitted so that the marginals
of theta meet `marginals` (`fit_marginals` writes them into `fitted_poses`). How much of the scatter of real fits is
gauge and how much moves the finger cannot be told from marginals, so there are two fits, one heavy in gauge and one
heavy in off-axis rotation, and every hand is drawn from either with probability one half.
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
    "flat": _pose(0, 4, 0.25, (-5, 0, 5, 5)),
    "flat_closed": _pose(2, 6, 0.0, (8, -8, 8, 8)),
    "relaxed": _pose((18, 22, 32, 28), (28, 32, 38, 36), 0.3, (0, 0, 12, 15)),
    "fist": _pose((70, 76, 80, 78), (95, 98, 95, 98), 0.0, (20, -5, 40, 35)),
    "loose_fist": _pose((50, 55, 62, 58), (72, 78, 76, 78), 0.05, (10, 0, 25, 25)),
    "point": _pose((3, 66, 76, 72), (6, 88, 92, 92), 0.1, (18, 0, 35, 35)),
    "pinch": _pose((48, 30, 26, 26), (42, 32, 34, 34), 0.2, (18, 12, 15, 20)),
    "ok": _pose((52, 14, 2, 6), (48, 12, 8, 8), 0.6, (18, 12, 18, 22)),
    "claw": _pose(-4, 62, 0.6, (-8, 5, 10, 40)),
    "spread": _pose(-6, 3, 1.1, (-22, 12, 0, 0)),
    "cupped": _pose((30, 33, 38, 36), (24, 24, 28, 26), 0.0, (10, -5, 12, 12)),
    "thumbs_up": _pose((68, 74, 80, 78), (92, 96, 94, 96), 0.0, (-26, 0, 0, -5)),
    "peace": _pose((2, 0, 74, 70), (4, 4, 92, 92), (1.2, -0.2, 0.1, 0.1), (18, 0, 40, 40)),
    "hook": _pose(10, 85, 0.1, (0, -5, 15, 20)),
    "table": _pose((66, 68, 70, 70), 12, 0.05, (5, 5, 10, 12)),
    "grip": _pose((38, 42, 46, 44), (52, 55, 55, 56), 0.15, (12, 10, 15, 25)),
    "interlace": _pose((26, 28, 30, 30), (22, 24, 26, 26), 0.62, (8, 0, 15, 15)),
    "steeple": _pose((18, 18, 16, 18), (14, 14, 16, 14), 0.55, (-5, 5, 8, 8)),
}
POSE_NAMES: tuple[str, ...] = tuple(POSES)
_BANK = torch.stack(list(POSES.values()))
POSE_SHARES: dict[str, float] = {
    "flat": 1, "flat_closed": 1, "relaxed": 3, "fist": 0.7, "loose_fist": 1.5, "point": 1, "pinch": 2, "ok": 1,
    "claw": 1.5, "spread": 0.7, "cupped": 3, "thumbs_up": 0.5, "peace": 0.3, "hook": 0.7, "table": 0.7, "grip": 2.5,
    "interlace": 1, "steeple": 1.2,
}  # fmt: skip
"""How often a hand that touches nothing takes each pose (unnormalised)."""

_SYNERGIES = torch.zeros(5, NUM_DOF)  # MCP curl, PIP curl, ulnar gradient, spread, thumb opposition (degrees)
_SYNERGIES[0, 0:16:4] = 12
_SYNERGIES[1, 2:16:4], _SYNERGIES[1, 3:16:4] = 14, 9
_SYNERGIES[2, 0:16:4] = _SYNERGIES[2, 2:16:4] = torch.tensor([-9.0, -3.0, 9.0, 4.0])
_SYNERGIES[3, 1:16:4] = torch.tensor([4.0, 0.0, -6.0, -3.0])
_SYNERGIES[4, 16:20] = torch.tensor([8.0, 5.0, 6.0, 8.0])
_SYNERGIES *= 0.8 * DEGREE
_NOISE = torch.tensor([5.0, 3.0, 6.0, 4.0] * 4 + [5.0, 5.0, 6.0, 7.0]) * DEGREE


def draw_archetype_dof(
    names: Sequence[str], n: int, generator: torch.Generator, *, amount: float = 1.0, mix: float = 0.35
) -> Tensor:
    """n poses (n, 20): one of ``names``, blended with any other pose, plus synergies and noise times ``amount``."""
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    ids = torch.tensor([POSE_NAMES.index(name) for name in names])
    first = _BANK[ids[torch.randint(len(ids), (n,), generator=generator)]]
    other = _BANK[torch.randint(len(_BANK), (n,), generator=generator)]
    blend = rand(n, 1) ** 2 * mix
    some = (rand(n, NUM_DOF) < 0.5).float()  # half of the hands blend only a random half: fingers individuate
    dof = first + blend * (other - first) * torch.where(rand(n, 1) < 0.5, torch.ones(1), some)
    dof = dof + amount * (normal(n, 5) @ _SYNERGIES + normal(n, NUM_DOF) * _NOISE)
    curl = (dof[:, 0:16:4].clamp_min(0) / 1.4).clamp(0, 1)  # flexed fingers cannot spread
    dof[:, 1:16:4] = dof[:, 1:16:4] * (1 - 0.6 * curl) + _CLOSED * DEGREE * 0.3 * curl
    return soft_clamp(dof)


def draw_free_dof(n: int, generator: torch.Generator) -> Tensor:
    """n poses (n, 20) of hands that touch nothing, by `POSE_SHARES`."""
    names = [name for name, share in POSE_SHARES.items() for _ in range(round(share * 10))]
    return draw_archetype_dof(names, n, generator)


def correlated_noise(n: int, generator: torch.Generator) -> Tensor:
    """Unit noise (n, 20): the four abductions share 3/4 of their variance (fingers deviate together, they do not
    cross), the four PIP flexions one half."""
    e = torch.randn(n, NUM_DOF, generator=generator)
    common = torch.randn(n, 2, generator=generator)
    e[:, 1:16:4] = 0.75**0.5 * common[:, :1] + 0.5 * e[:, 1:16:4]
    e[:, 2:16:4] = 0.5**0.5 * (common[:, 1:] + e[:, 2:16:4])
    return e


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
    """Off-axis part and gauge of n hands, half of them from each fit."""
    p = _numbers()
    v = torch.randint(2, (n,), generator=generator)
    off = (p["off_mean"][v] + torch.randn(n, 45, generator=generator) * p["off_sd"][v]) @ off_axis_projector()
    phi = p["phi_mean"][v] + torch.randn(n, 15, generator=generator) * p["phi_sd"][v]
    return Traits(off, phi, v)


def fit_dof(dof: Tensor, variant: Tensor, generator: torch.Generator) -> Tensor:
    """Move archetype angles (N, 20) to where real fits lie: shift, scale and noise of the hand's fit."""
    p = _numbers()
    mean = p["dof_mean"][variant]
    noise = correlated_noise(len(dof), generator) * p["dof_noise"][variant]
    return soft_clamp(mean + p["dof_shift"][variant] + (dof - mean) * p["dof_scale"][variant] + noise)
