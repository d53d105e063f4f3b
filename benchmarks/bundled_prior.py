"""The bundled prior's samples against the bundled reference, by the paper's protocol (Sec. 4.1), on as many pairs.

    python benchmarks/bundled_prior.py --data CORPUS                          # 10,000 of each; 25 minutes of one core
    python benchmarks/bundled_prior.py --data CORPUS --beside "old=OLD.npz"   # and samples of something else

Rows: samples at the defaults, without anti-penetration guidance, without any guidance, and training pairs of the
corpus, which is what a perfect prior would score.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import write_result
from pairs import read_pairs

from interhand_prior import TwoHands, load_prior, sample
from interhand_prior.metrics import evaluate

SETTINGS: dict[str, dict[str, float]] = {
    "bundled prior": {},
    "without anti-penetration guidance": {"penetration_scale": 0.0},
    "without any guidance": {"penetration_scale": 0.0, "cfg_scale": 0.0},
}
REAL = "training pairs"


def score(pairs: TwoHands) -> dict[str, Any]:
    """Every metric's mean and spread."""
    report = evaluate(pairs, floor=False)
    return {name: {"mean": value.mean, "std": value.std} for name, value in report.values.items()}


def main() -> None:
    """Measure what is missing and write `results/bundled_prior.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the corpus, for its training pairs")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--beside", nargs="+", default=[], metavar="NAME=FILE", help="samples to score, too")
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS, REAL], default=[*SETTINGS, REAL], metavar="ROW")
    parser.add_argument("--work", type=Path, help="keep finished rows here, and take them from here")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prior = load_prior()
    others = dict(item.split("=", 1) for item in args.beside)
    rows: dict[str, Any] = {}
    for name in [*args.only, *others]:
        kept = None if args.work is None else args.work / f"{name.replace(' ', '-')}.json"
        if kept is not None and kept.exists():
            rows[name] = json.loads(kept.read_text())
            continue
        began = time.process_time()
        if name in SETTINGS:
            pairs = sample(prior, args.num, seed=args.seed, **SETTINGS[name])
        else:
            pairs = read_pairs(args.data, "train", args.num) if name == REAL else TwoHands.load(others[name])
        sampling = time.process_time() - began
        rows[name] = {**score(pairs), **({"ms per pair": 1e3 * sampling / len(pairs)} if name in SETTINGS else {})}
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(rows[name]))
    facts = {"parameters": sum(p.numel() for p in prior.denoiser.parameters())}
    facts |= {key: prior.info.get(key) for key in ("steps", "hours", "validation")}
    print(write_result("bundled_prior", {"samples": args.num, "prior": facts, "rows": rows}).read_text())


if __name__ == "__main__":
    main()
