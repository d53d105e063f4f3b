"""Can the feature network be trusted? Its regression, its speed, and whether its distance grows with the damage.

    python benchmarks/feature_network.py --data CORPUS [--network FOLDER] [--num 4000]

- Regression: errors on the test split, both views of each pair, in degrees and millimetres, and the shares of variance
  that are explained.
- Speed: features in a second of processor time on one thread, meshes included.
- FHID of one half of the test pairs against the other half, damaged: noise on the fingers' angles, on the relative
  rotation or on the relative translation; or a share of the right hands exchanged with those of other pairs, which
  leaves every hand and every relative pose as it was and damages only how they go together. The floor is the distance
  of two halves of undamaged pairs, over many random halves; "seen from" is the smallest damage that lies three of its
  standard deviations above it. The same draws of noise serve all sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import best_of, write_result
from pairs import splits
from torch import Tensor

from interhand_prior import TwoHands, load_prior
from interhand_prior.canonical import SLICES, from_canonical, to_canonical
from interhand_prior.metrics.features import FeatureNetwork, load_feature_network
from interhand_prior.metrics.frechet import frechet_distance
from interhand_prior.metrics.regression import regression_errors
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d, rot6d_to_matrix
from interhand_prior.train.data import to_vectors

Damage = Callable[[Tensor, Tensor, float, torch.Generator], tuple[Tensor, Tensor]]


def pose_noise(anchor: Tensor, partner: Tensor, size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian noise on both hands' finger angles, radians."""
    anchor, partner = anchor.clone(), partner.clone()
    for vector in (anchor, partner):
        angles = vector[:, SLICES["hand_pose"]]
        angles += size * torch.randn(angles.shape, generator=generator)
    return anchor, partner


def rotation_noise(anchor: Tensor, partner: Tensor, size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The right hand turned by a rotation vector with Gaussian entries, radians."""
    turn = axis_angle_to_matrix(size * torch.randn(len(partner), 3, generator=generator))
    partner = partner.clone()
    partner[:, SLICES["rot6d"]] = matrix_to_rot6d(turn @ rot6d_to_matrix(partner[:, SLICES["rot6d"]]))
    return anchor, partner


def transl_noise(anchor: Tensor, partner: Tensor, size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian noise on the right hand's place, metres."""
    partner = partner.clone()
    partner[:, SLICES["transl"]] += size * torch.randn(len(partner), 3, generator=generator)
    return anchor, partner


def exchange(anchor: Tensor, partner: Tensor, size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of the pairs takes the next such pair's right hand, in its place relative to the left one."""
    chosen = torch.randperm(len(partner), generator=generator)[: round(size * len(partner))]
    partner = partner.clone()
    partner[chosen] = partner[chosen.roll(1)]
    return anchor, partner


DAMAGES: dict[str, tuple[str, Damage, tuple[float, ...]]] = {
    "pose noise": ("rad", pose_noise, (0.05, 0.1, 0.2, 0.4)),
    "rotation noise": ("rad", rotation_noise, (0.1, 0.2, 0.4, 0.8)),
    "translation noise": ("m", transl_noise, (0.005, 0.01, 0.02, 0.04)),
    "partners exchanged": ("share", exchange, (0.25, 0.5, 1.0)),
}


def damaged(network: FeatureNetwork, pairs: TwoHands, seed: int) -> dict[str, Any]:
    """FHID of one half against the other, by damage and its size."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = lambda: torch.randperm(len(pairs), generator=generator)
    half = len(pairs) // 2
    features = network(pairs)
    orders = [shuffled() for _ in range(20)]
    floors = [frechet_distance(features[o[:half]], features[o[half : 2 * half]]) for o in orders]
    std, mean = (float(x) for x in torch.std_mean(torch.tensor(floors, dtype=torch.float64)))
    out: dict[str, Any] = {"pairs in each half": half, "floor": {"mean": mean, "std": std, "halves": len(floors)}}
    print(f"floor {mean:.4g}, std {std:.2g}", flush=True)
    order = shuffled()
    reference, rest = features[order[:half]], pairs[order[half : 2 * half]]
    anchor, partner, _ = to_canonical(rest, rest.model)
    for name, (unit, damage, sizes) in DAMAGES.items():
        values = []
        for size in sizes:
            changed = damage(anchor, partner, size, torch.Generator().manual_seed(seed + 1))
            values.append(frechet_distance(network(from_canonical(*changed, rest.model)), reference))
        out[name] = {
            "unit": unit,
            "fhid": {f"{size:g}": value for size, value in zip(sizes, values, strict=True)},
            "grows": values == sorted(values),
            "seen from": next((size for size, v in zip(sizes, values, strict=True) if v > mean + 3 * std), None),
        }
        print(name, out[name], flush=True)
    return out


def speed(network: FeatureNetwork, pairs: TwoHands) -> float:
    """Pairs in a second of processor time, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = best_of(lambda: network(pairs), repeats=3, clock=time.process_time)
    torch.set_num_threads(threads)
    return len(pairs) / seconds


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and write results/feature_network.json."""
    parser = argparse.ArgumentParser(description="The feature network on held-out pairs.")
    parser.add_argument("--data", type=Path, help="corpus folder; default: samples of the prior (a smoke test only)")
    parser.add_argument("--network", default="bundled")
    parser.add_argument("--num", type=int, default=4000, help="test pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    args = parser.parse_args(argv)

    network = load_feature_network(args.network)
    _, test = splits(args.data, load_prior(), args.num, 1, "test")
    regression = regression_errors(network, to_vectors([test], mirror=True), test.model)
    print({name: round(value, 3) for name, value in regression.items()}, flush=True)
    numbers = {
        "seed": args.seed,
        "test pairs": len(test),
        "network": {"identity": network.identity, "dimension": network.dimension, **network.info},
        "parameters": sum(p.numel() for p in network.parameters()),
        "regression": regression,
        "features per second": speed(network, test[:256]),
        "fhid": damaged(network, test, args.seed),
    }
    print(f"{numbers['features per second']:.0f} features a second")
    write_result("feature_network", numbers, folder=args.out)
    return numbers


if __name__ == "__main__":
    main()
