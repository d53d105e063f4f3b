"""Nearest vertices and anti-penetration guidance: how fast, and what the guidance does to samples.

    python benchmarks/penetration_speed.py                    # speed, and the effect on the bundled prior's samples
    python benchmarks/penetration_speed.py --prior FOLDER     # the effect on another prior's samples

The naive twin of the search is `torch.cdist(...).min(-1)`; that of the guidance goes through the samples in a Python
loop, with all vertices, as published code does. Times are of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import time
from typing import Any

import torch
from common import best_of, write_result
from pairs import contact
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, load_prior, sample
from interhand_prior.geometry import (
    boundary_vertices,
    mutual_nearest_distances,
    nearest_vertices,
    penetration_loss,
    vertex_normals,
)
from interhand_prior.guidance import AntiPenetration

LATE = 0.1  # a level that is guided
GUIDED = inspect.signature(AntiPenetration).parameters["min_alpha_bar"].default  # alpha_bar from which on they are

cpu = functools.partial(best_of, clock=time.process_time)


def search_speed(surfaces: Any, anchor: Tensor, partner: Tensor) -> dict[str, Any]:
    """Milliseconds of one direction, and of the distances of both."""
    a, b = surfaces.anchor(anchor), surfaces.partner(partner)
    rows = {}
    for count in (1, len(a)):
        x, y = a[:count], b[:count]
        naive = cpu(lambda x=x, y=y: torch.cdist(x, y).min(-1))
        ours = cpu(lambda x=x, y=y: nearest_vertices(x, y))
        exact = torch.cdist(x.double(), y.double()).amin(-1)
        error = lambda d, exact=exact: (d.double() - exact).abs().max().item()
        shift = 5.0  # metres away from the origin
        rows[f"{count}_pairs"] = {
            "naive_ms": 1e3 * naive,
            "ours_ms": 1e3 * ours,
            "naive_over_ours": naive / ours,
            "both_ways_without_indices_ms": 1e3 * cpu(lambda x=x, y=y: mutual_nearest_distances(x, y)),
            "largest_error_5_m_away_mm": {
                "naive": 1e3 * error(torch.cdist(x + shift, y + shift).amin(-1)),
                "ours": 1e3 * error(nearest_vertices(x + shift, y + shift).squared_distance.sqrt()),
            },
        }
    return rows


def naive_guide(guidance: AntiPenetration, anchor: Tensor, x0: Tensor) -> Tensor:
    """The same inner steps sample by sample on all vertices."""
    surfaces, done = guidance.surfaces, []
    rim = boundary_vertices(surfaces.anchor_faces, 778)
    options: dict[str, Any] = {"tolerance": guidance.tolerance, "residual": guidance.residual}
    for vector, x in zip(anchor[:, None], x0[:, None], strict=True):
        for _ in range(guidance.inner_steps):
            leaf = x.detach().requires_grad_()
            a, b = surfaces.anchor(vector).detach(), surfaces.partner(leaf)
            loss = torch.zeros(())
            for v, w, faces in ((b, a, surfaces.anchor_faces), (a, b, surfaces.partner_faces)):
                index = torch.cdist(v, w).min(-1).indices
                normals = vertex_normals(w.detach(), faces)
                loss = loss + penetration_loss(v, w, normals, exclude=rim, index=index, **options).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            length = gradient.norm().clamp_min(1e-30)
            x = x - (2 * loss.detach() / length).clamp_max(guidance.clip) * gradient / length
        done.append(x)
    return torch.cat(done)


def guide_speed(guidance: AntiPenetration, anchor: Tensor, partner: Tensor) -> dict[str, Any]:
    """Milliseconds of one guided level."""
    guide = guidance.prepare(anchor)
    ours = cpu(lambda: guide(partner, LATE))
    naive = cpu(lambda: naive_guide(guidance, anchor, partner), repeats=2, warmup=0)
    everything = AntiPenetration(guidance.surfaces, contact_vertices=None).prepare(anchor)
    every = cpu(lambda: everything(partner, LATE), repeats=3)
    carried = guidance.prepare(anchor)
    carried._drop_free = False  # as on devices that the host would have to wait for
    return {
        "pairs": len(anchor),
        "inner_steps": guidance.inner_steps,
        "ours_ms": 1e3 * ours,
        "free_samples_carried_along_ms": 1e3 * cpu(lambda: carried(partner, LATE), repeats=3),
        "all_vertices_ms": 1e3 * every,
        "naive_ms": 1e3 * naive,
        "naive_over_ours": naive / ours,
    }


def effect(hands: TwoHands) -> dict[str, float]:
    """Depth of the deepest vertex, and how many pairs touch: vertices, 7 mm apart, come that near when surfaces do."""
    depth, distance = contact(hands)
    return {
        "depth_mm_mean": depth.mean().item(),
        "depth_mm_90": depth.quantile(0.9).item(),
        "deeper_than_3_mm": (depth > 3).float().mean().item(),
        "touch_5_mm": (distance < 5).float().mean().item(),
        "near_20_mm": (distance < 20).float().mean().item(),
    }


def sampling(prior: TwoHandPrior, num: int, steps: int) -> dict[str, Any]:
    """The same samples with and without guidance."""
    levels = prior.schedule.steps(steps)[:-1]
    rows: dict[str, Any] = {"pairs": num, "guided_levels": sum(1 - s * s >= GUIDED for s in levels)}
    for name, scale in (("unguided", 0.0), ("guided", 1.0)):
        start = time.process_time()
        hands = sample(prior, num, steps=steps, penetration_scale=scale, seed=0)
        rows[name] = {"cpu_seconds": time.process_time() - start, **effect(hands)}
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure and write benchmarks/results/penetration_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--num", type=int, default=64, help="pairs sampled to see the effect")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    prior = load_prior(options.prior)
    surfaces = prior.surfaces("left")
    draw = torch.Generator().manual_seed(0)
    anchor, partner = (0.7 * torch.randn(16, 64, generator=draw) for _ in range(2))
    numbers: dict[str, Any] = {
        "search": search_speed(surfaces, anchor, partner),
        "one_guided_level": guide_speed(AntiPenetration(surfaces), anchor, partner),
        "sixteen_pairs": {f"{steps}_steps": sampling(prior, 16, steps) for steps in (20, 50)},
        "effect": {f"{steps}_steps": sampling(prior, options.num, steps) for steps in (20, 50)},
    }
    path = write_result("penetration_speed", numbers)
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()
