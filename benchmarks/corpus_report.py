"""What a synthetic corpus looks like, measured afresh on its files: ``python benchmarks/corpus_report.py CORPUS_DIR``.

Writes ``benchmarks/results/corpus.json``: relative poses against the published InterHand2.6M statistics, finger
marginals against the table of real fits, penetration and touch on the open hand's mesh as it is bundled now (under
"corpus": as the generator noted them), shares of archetypes, and how fast it was made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interhand_prior.data.synthetic import ARCHETYPE_NAMES, LOOSE
from interhand_prior.data.synthetic.anatomy import dof_axes
from interhand_prior.data.synthetic.marginals import POSE_MEAN, POSE_SD, compare_marginals
from interhand_prior.data.synthetic.single_hand import draw_free_dof, draw_traits, fit_dof
from interhand_prior.data.synthetic.spheres import make_body, self_penetration
from interhand_prior.data.synthetic.statistics import summarise
from interhand_prior.data.synthetic.surface import MAX_DEPTH, TOUCH, surface_report
from interhand_prior.hands import sealed_vertices
from interhand_prior.params import TwoHands

RESULTS = Path(__file__).with_name("results") / "corpus.json"


def measure_surfaces(pairs: TwoHands) -> dict[str, Any]:
    """Penetration and touch on the mesh, mm; contacts and loose pairs apart, and by archetype."""
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(pairs), 256):
        left, right = pairs[start : start + 256].vertices()
        for key, value in surface_report(1000 * sealed_vertices(left), 1000 * sealed_vertices(right)).items():
            found.setdefault(key, []).append(value)
    depth, mean_depth, near, area = (torch.cat(found[k]).numpy() for k in ("depth", "mean_depth", "near", "area"))
    names = pairs.extras["archetype"]
    contact = names != LOOSE
    number = lambda value: round(float(value), 3)
    by_archetype = {
        str(name): {
            "depth_mm": number(depth[names == name].mean()),
            "near_mm": number(near[names == name].mean()),
            "vertices_within_2mm": number(area[names == name].mean()),
        }
        for name in ARCHETYPE_NAMES
        if (names == name).any()
    }
    return {
        "pairs": len(pairs),
        "contact": {
            "depth_mm_mean_of_deepest": number(depth[contact].mean()),
            "depth_mm_p99_of_deepest": number(np.quantile(depth[contact], 0.99)),
            "depth_mm_max": number(depth[contact].max()),
            "share_deeper_than_2mm": number((depth[contact] > MAX_DEPTH).mean()),
            "depth_mm_mean_over_vertices_inside": number(mean_depth[contact & (depth > 0)].mean()),
            "share_nearer_than_3mm": number((near[contact] < TOUCH).mean()),
            "near_mm_max": number(near[contact].max()),
            "vertices_within_2mm": number(area[contact].mean()),
        },
        "loose": {
            "depth_mm_max": number(depth[~contact].max()),
            "near_mm_quartiles": [number(np.quantile(near[~contact], q)) for q in (0.25, 0.5, 0.75)],
        },
        "by_archetype": by_archetype,
    }


def measure_sampler(n: int = 6000) -> dict[str, Any]:
    """Single hands: what off-axis part and gauge add to the marginals, and how far they move fingertips."""
    generator = torch.Generator().manual_seed(0)
    traits = draw_traits(n, generator)
    body = make_body(torch.zeros(n, 10), traits)
    dof = fit_dof(draw_free_dof(n, generator), traits.variant, generator)
    anatomy = dof @ dof_axes().T
    zero = torch.zeros_like(traits.off_axis)
    plain = make_body(torch.zeros(n, 10), type(traits)(zero, traits.phi, traits.variant))
    tips = [i for i in range(len(body.traits.phi[0])) if i % 3 == 2]
    moved = (body.balls(dof)[2] - plain.balls(dof)[2])[:, [t + 1 for t in tips]].norm(dim=-1).mean(1)
    clean = self_penetration(body.balls(dof)[0], body.radii) < 2.5
    rounded = lambda report: {k: round(v, 3) for k, v in report.items()}
    return {
        "marginals_20_angles_alone": rounded(compare_marginals(anatomy)),
        "marginals_with_off_axis": rounded(compare_marginals(body.pose(dof))),
        "marginals_with_off_axis_and_gauge": rounded(compare_marginals(body.full_pose(dof))),
        "last_joints_moved_by_off_axis_mm": {
            name: round(float(moved[traits.variant == k].mean()), 2)
            for k, name in enumerate(("gauge_heavy", "off_axis_heavy"))
        },
        "share_without_self_collision": round(float(clean.float().mean()), 3),
    }


def worst_marginals(shards: Sequence[TwoHands]) -> dict[str, Any]:
    """The five entries of hand_pose whose mean or deviation is farthest from the table."""
    poses = torch.cat([p.right.hand_pose for p in shards])
    offset = (poses.mean(0) - POSE_MEAN) / POSE_SD
    ratio = poses.std(0) / POSE_SD
    pick = lambda score, value: {int(i): round(float(value[i]), 3) for i in score.argsort(descending=True)[:5]}
    return {"offset_in_sd": pick(offset.abs(), offset), "sd_ratio": pick(ratio.log().abs(), ratio)}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--surfaces", type=int, default=6000, help="pairs whose meshes are measured (test split first)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    manifest = json.loads((args.corpus / "manifest.json").read_text())
    files = sorted(args.corpus.glob("*-[0-9]*.npz"))
    if not files:
        parser.error(f"{args.corpus} holds no shards; make a corpus with: interhand-prior corpus {args.corpus}")
    shards = [TwoHands.load(path) for path in files]
    some = TwoHands.cat(shards)
    some = some[: args.surfaces]  # files are sorted: test, train, val
    made = manifest["generated_now"]
    report = {
        "command": "python benchmarks/corpus_report.py CORPUS_DIR",
        "made_with": f"python -m interhand_prior.data.synthetic OUT --num {manifest['config']['train']}"
        f" --val-num {manifest['config']['val']} --test-num {manifest['config']['test']}"
        f" --seed {manifest['config']['seed']}",
        "version": manifest["version"],
        "config": manifest["config"],
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "speed": {
            "pairs_per_second": round(made["pairs"] / made["wall_seconds"], 1),
            "wall_seconds": made["wall_seconds"],
            "note": "two processes on two cores shared with other work; alone it is faster",
            "acceptance": made["acceptance"],
        },
        "corpus": summarise(shards),
        "worst_marginals": worst_marginals(shards),
        "surfaces": measure_surfaces(some),
        "single_hands": measure_sampler(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    print(json.dumps(main()["surfaces"]["contact"], indent=1))
