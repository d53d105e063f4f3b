"""How long the exact volume and depth of penetration take, how often they fail, and how far short cuts are off.

    python benchmarks/penetration_volume.py                    # samples of the bundled prior only
    python benchmarks/penetration_volume.py --data CORPUS      # also pairs of a corpus (`interhand-prior corpus`)
    python benchmarks/penetration_volume.py --num 10000        # what an evaluation needs

The short cuts: one boolean operation on whole meshes, which counts a hand that crosses itself twice; the depth behind
the nearest vertex (`geometry.penetration_depth`); the distance between vertices instead of surfaces. Times are of the
processor, on one thread, but for the wall time in several processes, which holds their start.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, write_result
from pairs import contact, read_pairs
from torch import Tensor

from interhand_prior import TwoHands, load_prior, sample
from interhand_prior.hands import sealed_vertices
from interhand_prior.metrics.mesh_volume import import_manifold3d, intersection_volume
from interhand_prior.metrics.penetration import PenetrationVolume, penetration_distance, penetration_volume
from interhand_prior.metrics.proximity import inter_hand_distance


def timed(function: Any, *args: Any, **options: Any) -> tuple[Any, float, float]:
    """What a function returns, and its seconds of the processor and of the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*args, **options)
    return found, time.process_time() - cpu, time.perf_counter() - wall


def error(found: Tensor, truth: Tensor, positive: Tensor) -> dict[str, Any]:
    """Mean of both, and how far off single values are, where the truth is positive."""
    gap = (found - truth)[positive].abs()
    return {
        "mean": found.mean(),
        "mean_of_exact": truth.mean(),
        "mean_error": (found - truth).mean(),
        "mean_absolute_error": gap.mean() if len(gap) else None,
        "largest_error": gap.max() if len(gap) else None,
    }


def whole_meshes(pairs: TwoHands, volume: PenetrationVolume) -> dict[str, Any]:
    """One operation for each pair, hands that cross themselves counted with multiplicity."""
    chosen = volume.computed & ~volume.failed
    part = pairs[chosen].to(torch.float64)
    left, right = (sealed_vertices(v).numpy() for v in part.vertices())
    faces = [f.numpy() for f in part.model.sealed_faces]
    start = time.process_time()
    found = [1e6 * intersection_volume(a, faces[0], b, faces[1]) for a, b in zip(left, right, strict=True)]
    seconds = time.process_time() - start
    cm3 = torch.tensor(found, dtype=torch.float64)
    exact = volume.cm3[chosen]
    return {
        "ms_per_operation": 1e3 * seconds / max(1, len(part)),
        "failed": int(cm3.isnan().sum()),
        "cm3": error(cm3, exact, exact > 0),
        "more_than_1_percent_off": ((cm3 - exact).abs() > 0.01 * exact)[exact > 0].double().mean(),
    }


def surface_gap(pairs: TwoHands, distance: Tensor, volume: PenetrationVolume, limit: int = 60) -> dict[str, Any]:
    """Distance between vertices less that between surfaces, mm, of hands nearer than 2 cm that share nothing."""
    library = import_manifold3d()
    near = ((volume.cm3 == 0) & (distance < 0.02)).nonzero()[:limit, 0]
    part = pairs[near].to(torch.float64)
    excess = []
    meshes = [sealed_vertices(v).numpy() for v in part.vertices()]
    for i, gap in enumerate(distance[near].tolist()):
        solids = [
            library.Manifold(library.Mesh64(v[i], f.numpy().astype("uint64")))
            for v, f in zip(meshes, part.model.sealed_faces, strict=True)
        ]
        excess.append(1e3 * (gap - solids[0].min_gap(solids[1], 0.03)))
    values = torch.tensor(excess, dtype=torch.float64)
    return {"pairs": len(values), "mean": values.mean(), "largest": values.max() if len(values) else None}


def measure(pairs: TwoHands) -> dict[str, Any]:
    """All numbers of one set of pairs."""
    count = len(pairs)
    volume, cpu, _ = timed(penetration_volume, pairs, workers=1)
    processes = max(2, machine()["cpus"])
    again, _, wall = timed(penetration_volume, pairs, workers=processes)
    depth, depth_cpu, _ = timed(penetration_distance, pairs)
    distance, distance_cpu, _ = timed(inter_hand_distance, pairs)
    behind = contact(pairs)[0]
    depth_mm = 10 * depth
    return {
        "pairs": count,
        "volume": {
            "ms_per_pair": 1e3 * cpu / count,
            "processes": processes,
            "wall_seconds_in_processes": wall,
            "same_in_processes": torch.equal(volume.cm3.nan_to_num(-1), again.cm3.nan_to_num(-1)),
            "share_with_boolean": volume.computed.double().mean(),
            "failed": int(volume.failed.sum()),
            "share_positive": (volume.cm3 > 0).double().mean(),
            "mean_cm3": volume.cm3.nanmean(),
        },
        "whole_meshes": whole_meshes(pairs, volume),
        "depth": {"ms_per_pair": 1e3 * depth_cpu / count, "mean_mm": depth_mm.mean()},
        "depth_behind_nearest_vertex_mm": error(behind, depth_mm, (depth_mm > 0) | (behind > 0)),
        "distance": {"ms_per_pair": 1e3 * distance_cpu / count, "share_near": (distance < 0.02).double().mean()},
        "vertex_less_surface_distance_mm": surface_gap(pairs, distance, volume),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and write benchmarks/results/penetration_volume.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--data", type=Path, help="corpus folder")
    parser.add_argument("--num", type=int, default=200, help="pairs of each set")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    sets = {"samples": sample(load_prior(options.prior), options.num, steps=10, penetration_scale=0, seed=0)}
    if options.data is not None:
        sets["corpus"] = read_pairs(options.data, "test", options.num)
    path = write_result("penetration_volume", {name: measure(pairs) for name, pairs in sets.items()})
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()
