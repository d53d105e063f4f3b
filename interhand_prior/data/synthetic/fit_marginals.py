r"""Fit the pose sampler's free numbers to the marginals of real fits; writes `fitted_poses.py`.

``python -m interhand_prior.data.synthetic.fit_marginals`` (a few minutes, deterministic).

Minimises, over 300 Adam steps on fresh samples of 1024 hands,
:math:`\sum ((m - M)/S)^2 + \sum \log^2(s/S)` between the sample's mean m and deviation s and the goals M and S,
plus a cost on whatever moves fingertips (off-axis rotation) and on the gauge. The two variants differ in which costs
more. Hands whose fingers collide are thrown away later, which narrows the marginals: so the goals, at first the
table's, are moved twice by what the kept hands miss of it, with 100 more steps each time.
"""

from __future__ import annotations

import argparse
import pprint
from pathlib import Path

import torch
from torch import Tensor

from .anatomy import DOF_MAX, DOF_MIN, dof_axes, off_axis_projector, soft_clamp
from .gauge import twist_gauge
from .marginals import POSE_MEAN, POSE_SD, compare_marginals
from .single_hand import Traits, correlated_noise, draw_free_dof
from .skeleton import open_hand_skeleton
from .spheres import MAX_SELF_DEPTH, make_body, self_penetration

CORRECTIONS = (100, 100)
"""Steps after each move of the goals."""
KEPT_OF = 12_000
"""Hands drawn to see which are kept."""

HEADER = '''# fmt: off
"""Numbers of the pose sampler, written by ``python -m interhand_prior.data.synthetic.fit_marginals``.

Do not edit. Radians; see `single_hand` for what each one does.
"""

from __future__ import annotations
'''


def fit(gauge_heavy: bool, *, steps: int = 300, seed: int = 0) -> tuple[dict[str, list[float]], dict[str, float]]:
    """One fit: its numbers, and how the marginals of its kept hands compare with the table (`KEPT_OF` drawn)."""
    generator = torch.Generator().manual_seed(seed)
    pool = draw_free_dof(40_000, generator)
    mean, projector, axes = pool.mean(0), off_axis_projector(), dof_axes()
    bones = open_hand_skeleton().bone_directions[None]
    p = {
        "dof_shift": torch.zeros(20), "dof_log_scale": torch.zeros(20), "dof_log_noise": torch.full((20,), -2.5),
        "off_mean": torch.zeros(45), "off_log_sd": torch.full((45,), -2.5),
        "phi_mean": torch.zeros(15), "phi_log_sd": torch.full((15,), -1.5),
    }  # fmt: skip
    for value in p.values():
        value.requires_grad_(True)

    def draw(n: int) -> tuple[Tensor, Tensor, Tensor]:
        dof = pool[torch.randint(len(pool), (n,), generator=generator)]
        noise = correlated_noise(n, generator) * p["dof_log_noise"].exp()
        dof = mean + p["dof_shift"] + (dof - mean) * p["dof_log_scale"].exp() + noise
        off = (p["off_mean"] + torch.randn(n, 45, generator=generator) * p["off_log_sd"].exp()) @ projector
        phi = p["phi_mean"] + torch.randn(n, 15, generator=generator) * p["phi_log_sd"].exp()
        return soft_clamp(dof), off, phi

    @torch.no_grad()
    def kept(n: int) -> Tensor:
        poses = []
        for _ in range(n // 2000):
            dof, off, phi = draw(2000)
            body = make_body(torch.randn(2000, 10, generator=generator), Traits(off, phi, torch.zeros(2000).long()))
            ok = self_penetration(body.balls(dof)[0], body.radii) < MAX_SELF_DEPTH
            poses.append(body.full_pose(dof)[ok])
        return torch.cat(poses)

    # cost of: constant off-axis part, its spread, mean gauge, its spread, dof noise
    price = (2.0, 2.0, 0.1, 0.1, 0.5) if gauge_heavy else (0.5, 0.1, 0.3, 4.0, 0.1)
    goal_mean, goal_sd = POSE_MEAN, POSE_SD
    for count in (steps, *CORRECTIONS):
        optimiser = torch.optim.Adam(list(p.values()), lr=0.02)
        for step in range(count):
            optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / count) + 0.001
            dof, off, phi = draw(1024)
            pose = twist_gauge(dof @ axes.T + off, phi, bones)
            misfit = ((pose.mean(0) - goal_mean) / POSE_SD).pow(2).sum() + (pose.std(0) / goal_sd).log().pow(2).sum()
            cost = (
                price[0] * (p["off_mean"] @ projector).pow(2).sum()
                + price[1] * ((2 * p["off_log_sd"]).exp() * projector.diagonal()).sum()
                + price[2] * p["phi_mean"].pow(2).sum()
                + price[3] * (2 * p["phi_log_sd"]).exp().sum()
                + price[4] * (2 * p["dof_log_noise"]).exp().sum()
                + 0.3 * p["dof_shift"].pow(2).sum()
                + 0.3 * p["dof_log_scale"].pow(2).sum()
            )
            outside = (DOF_MIN - 0.1 - dof).clamp_min(0).pow(2) + (dof - DOF_MAX - 0.1).clamp_min(0).pow(2)
            optimiser.zero_grad()
            (misfit + cost + 20 * outside.sum(1).mean()).backward()
            optimiser.step()
        poses = kept(KEPT_OF)
        goal_mean = goal_mean + POSE_MEAN - poses.mean(0)
        goal_sd = goal_sd * POSE_SD / poses.std(0)
    numbers = {"dof_mean": mean}
    for key, value in p.items():
        numbers[key.replace("_log", "")] = value.detach().exp() if "_log_" in key else value.detach()
    report = compare_marginals(poses) | {"acceptance": len(poses) / KEPT_OF}
    return {key: [round(float(x), 4) for x in value] for key, value in numbers.items()}, report


def main() -> None:
    """Fit both variants and write the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("fitted_poses.py"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = HEADER
    for name, heavy in (("GAUGE_HEAVY", True), ("OFF_AXIS_HEAVY", False)):
        numbers, report = fit(heavy)
        print(name, {key: round(value, 3) for key, value in report.items()})
        body = pprint.pformat(numbers, width=100, compact=True, sort_dicts=False).replace("{", "{\n ", 1)
        text += f"\n{name}: dict[str, list[float]] = {body}\n"
    args.out.write_text(text.replace("'", '"'))


if __name__ == "__main__":
    main()
