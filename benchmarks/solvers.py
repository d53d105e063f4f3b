"""How many denoising steps a sample needs: the multistep rule against DDIM, on the bundled prior.

    python benchmarks/solvers.py --data CORPUS      # seven minutes of one core

Samples without any guidance, so that the solver alone differs, against the corpus' test pairs: the mean ratio of
variances of the canonical vectors (64 partner entries and 55 of the anchor; 1 is right), and the Frechet distance of
the same vectors in units of the test pairs' standard deviations. The floor is as many training pairs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import write_result
from pairs import read_pairs
from torch import Tensor

from interhand_prior import TwoHands, load_prior, sample
from interhand_prior.canonical import SLICES, to_canonical
from interhand_prior.metrics import frechet_distance
from interhand_prior.sampling import SOLVERS


def vectors(pairs: TwoHands) -> Tensor:
    """(N, 119) in float64: the left hand's own part and the right hand beside it."""
    anchor, partner, _ = to_canonical(pairs.to(torch.float64), pairs.model)
    return torch.cat((anchor[:, SLICES["own"]], partner), 1)


def compare(found: Tensor, real: Tensor) -> dict[str, float]:
    """Against the real ones, both in their standard deviations."""
    scale = real.std(0)
    ratio = found.var(0) / real.var(0)
    relative = slice(len(scale) - 9, len(scale))
    return {
        "variance_ratio": float(ratio.mean()),
        "variance_ratio_relative_pose": float(ratio[relative].mean()),
        "frechet": frechet_distance(found / scale, real / scale),
    }


def main() -> None:
    """Measure and write `results/solvers.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a corpus")
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--test-num", type=int, default=10_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 15, 25, 50, 100])
    parser.add_argument("--prior", default="bundled")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    real = vectors(read_pairs(args.data, "test", args.test_num))
    floor = vectors(read_pairs(args.data, "train", args.num))
    prior = load_prior(args.prior)
    rows: list[dict[str, Any]] = []
    for solver in SOLVERS:
        for steps in args.steps:
            began = time.process_time()
            pairs = sample(
                prior, args.num, steps=steps, solver=solver, cfg_scale=0, penetration_scale=0, seed=args.seed
            )
            seconds = time.process_time() - began
            rows.append({"solver": solver, "steps": steps, "seconds": seconds, **compare(vectors(pairs), real)})
    numbers = {"samples": args.num, "test_pairs": len(real), "floor": compare(floor, real), "rows": rows}
    print(write_result("solvers", numbers).read_text())


if __name__ == "__main__":
    main()
