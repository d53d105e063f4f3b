"""How near samples come to held-out pairs of the corpus: contact, distribution, and what conditioning is worth.

    python benchmarks/sample_quality.py --data CORPUS [--prior FOLDER] [--num 2000] [--guided 256]

- Contact: mean depth of the deepest vertex inside the other hand, share of pairs deeper than 3 mm, share that touch
  (vertices nearer than 3 mm) and that are near (2 cm). Vertices lie some 5 mm apart, so "touch" misses light contact,
  in the corpus and in samples alike.
- Distribution: Frechet distance between Gaussians on the 48 largest principal components of both hands' 21 joints in
  the left hand's frame, in units of 4 cm; beside it the distance between two halves of real pairs. A simple feature:
  compare priors with it, not papers.
- Conditioning: mean squared denoising residual of held-out partners, over its noise, with and without their anchor.
  Where both are equal, the network has learned nothing about how hands go together at that level.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import write_result
from pairs import contact, splits
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, load_prior, sample
from interhand_prior.canonical import SLICES, Frame, from_canonical, to_canonical
from interhand_prior.schedule import add_noise, snr
from interhand_prior.sds import canonical_pair

LEVELS = (0.1, 0.2, 0.3, 0.454, 0.6, 0.8, 0.95)


def contacts(pairs: TwoHands) -> dict[str, float]:
    """Penetration, touch and nearness of a set of pairs; millimetres and shares."""
    depth, distance = contact(pairs)
    return {
        "penetration mm": float(depth.mean()),
        "share deeper than 3 mm": float((depth > 3).float().mean()),
        "share touching (< 3 mm)": float(((distance < 3) | (depth > 0)).float().mean()),
        "share near (< 2 cm)": float((distance < 20).float().mean()),
    }


@torch.no_grad()
def joint_features(pairs: TwoHands) -> Tensor:
    """Both hands' 21 joints in the left hand's frame, (N, 126), units of 4 cm."""
    models = pairs.model
    anchor, partner, _ = to_canonical(pairs, models)
    count = len(pairs)
    frame = Frame(torch.eye(3).expand(count, 3, 3), torch.zeros(count, 3))
    return torch.cat(from_canonical(anchor, partner, models, frame).joints21(), -2).flatten(1) / 0.04


class Frechet:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) on principal components of reference features (N, D)."""

    def __init__(self, reference: Tensor, components: int = 48) -> None:
        self.centre = reference.mean(0)
        _, _, directions = torch.linalg.svd(reference - self.centre, full_matrices=False)
        self.basis = directions[:components].T

    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Distance between two sets."""
        (mean_a, cov_a), (mean_b, cov_b) = (self._moments(x) for x in (a, b))
        # tr (A B)^1/2 = sum of the roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric.
        values, vectors = torch.linalg.eigh(cov_a)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
        return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)

    def _moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = ((features - self.centre) @ self.basis).double()
        return x.mean(0), torch.cov(x.T)


@torch.no_grad()
def denoising(prior: TwoHandPrior, pairs: TwoHands, seed: int) -> dict[str, Any]:
    """alpha_bar / (1 - alpha_bar) |x - D(x_t)|^2 per entry, by level and block, with and without the anchor."""
    partner, anchor = canonical_pair(prior, pairs)
    noise = torch.randn(partner.shape, generator=torch.Generator().manual_seed(seed))
    out: dict[str, Any] = {}
    for sigma in LEVELS:
        level = torch.full(partner.shape[:-1], sigma)
        x_t = add_noise(partner, noise, level)
        row = {}
        for name, has_anchor in (("given the anchor", None), ("without", torch.zeros_like(level, dtype=torch.bool))):
            x0 = prior.estimate(x_t, level, anchor, has_anchor)
            square = snr(level)[..., None] * (partner - x0).square()
            for block in ("hand_pose", "rot6d", "transl"):
                row[f"{block}, {name}"] = float(square[..., SLICES[block]].mean())
        out[f"sigma {sigma}"] = row
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and write results/sample_quality.json."""
    parser = argparse.ArgumentParser(description="Samples of the prior against held-out pairs.")
    parser.add_argument("--data", type=Path, help="corpus folder; default: samples of the prior (a smoke test only)")
    parser.add_argument("--prior", default="bundled")
    parser.add_argument("--num", type=int, default=2000, help="samples per setting without anti-penetration guidance")
    parser.add_argument("--guided", type=int, default=256, help="samples with it (it is slow)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    train, test = splits(args.data, prior, args.num, 2 * args.num, "test")
    features = joint_features(test)
    train_features = joint_features(train)
    frechet = Frechet(train_features)
    half = len(train) // 2
    numbers: dict[str, Any] = {
        "seed": args.seed, "steps": args.steps, "test pairs": len(test), "prior": prior.info,
        "real against real": {
            "frechet": frechet(train_features[:half], train_features[half:]),
            "frechet, test against train": frechet(features, train_features),
            "pairs": half,
            **contacts(test),
        },
    }  # fmt: skip
    print("real", numbers["real against real"])
    settings = (
        ("plain", args.num, 0.0, 0.0),
        ("CFG 0.5", args.num, 0.5, 0.0),
        ("CFG 0.5, anti-penetration", args.guided, 0.5, 1.0),
    )
    for name, num, cfg, penetration in settings:
        began = time.perf_counter()
        pairs = sample(
            prior, num, steps=args.steps, cfg_scale=cfg, penetration_scale=penetration, seed=args.seed, batch_size=128
        )
        seconds = time.perf_counter() - began
        # The distance is biased by the number of samples; every set is compared at its own, real ones included.
        numbers[name] = {
            "samples": num,
            "frechet": frechet(joint_features(pairs), features),
            "frechet of as many real pairs": frechet(train_features[:num], features),
            **contacts(pairs),
            "seconds per pair": seconds / num,
        }
        print(name, numbers[name], flush=True)
    numbers["denoising"] = denoising(prior, test, args.seed)
    for level, row in numbers["denoising"].items():
        print(level, {name: round(value, 3) for name, value in row.items()})
    write_result("sample_quality", numbers, folder=args.out)
    return numbers


if __name__ == "__main__":
    main()
