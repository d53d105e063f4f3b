"""Refine noisy estimates of two hands: `prior.refine` before a better method, or after a poor one.

    python examples/refine_noisy_pair.py                         # noise on samples of the prior
    python examples/refine_noisy_pair.py --input held_out.npz    # on your pairs, an .npz written by TwoHands.save

`refine` is told how uncertain the estimate is (here: the noise that was added), moves it no further than that
uncertainty and the prior agree on, and takes the hands out of each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from interhand_prior import HandParams, TwoHands, load_prior, sample
from interhand_prior.geometry import boundary_vertices, penetration_depth, vertex_normals


def add_noise(hands: TwoHands, std: Mapping[str, float], generator: torch.Generator) -> TwoHands:
    """Independent normal noise on every parameter named in `std`."""

    def noisy(hand: HandParams) -> HandParams:
        draw = lambda value: torch.randn(value.shape, generator=generator).to(value)
        return HandParams(**{name: value + std.get(name, 0.0) * draw(value) for name, value in hand.as_dict().items()})

    return TwoHands(noisy(hands.left), noisy(hands.right), hands.hands)


def errors(hands: TwoHands, truth: TwoHands) -> dict[str, Tensor]:
    """What is wrong with each pair, (N,), millimetres.

    Root-relative joint error (MPJPE), error of the vector between the wrists (MRRPE), and how deep the deepest vertex
    of either hand lies inside the other.
    """
    joints, true = torch.stack(hands.joints21(), 1), torch.stack(truth.joints21(), 1)
    wrist = lambda j: j[:, :, :1]
    mpjpe = ((joints - wrist(joints)) - (true - wrist(true))).norm(dim=-1).mean((1, 2))
    apart = lambda j: j[:, 1, 0] - j[:, 0, 0]
    mrrpe = (apart(joints) - apart(true)).norm(dim=-1)
    return {"MPJPE": mpjpe * 1e3, "MRRPE": mrrpe * 1e3, "penetration": deepest(hands) * 1e3}


def deepest(hands: TwoHands) -> Tensor:
    """Depth of the deepest vertex of either hand inside the other, (N,) metres."""
    meshes = list(zip(hands.vertices(), hands.faces, strict=True))
    depths = []
    for (points, _), (surface, faces) in (meshes, meshes[::-1]):
        rim = boundary_vertices(faces, surface.shape[-2])
        depths.append(penetration_depth(points, surface, vertex_normals(surface, faces), exclude=rim))
    return torch.maximum(depths[0], depths[1])


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Run the example; returns each error's mean before and after."""
    parser = argparse.ArgumentParser(description="Add noise to pairs of hands and refine them.")
    parser.add_argument("--input", type=Path, help="pairs written by TwoHands.save; default: samples of the prior")
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--pose-noise", type=float, default=0.2, help="radians on every finger angle")
    parser.add_argument("--rotation-noise", type=float, default=0.1, help="radians on the global rotations")
    parser.add_argument("--translation-noise", type=float, default=0.01, help="metres")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    truth = TwoHands.load(args.input)[: args.num] if args.input else sample(prior, args.num, seed=args.seed)
    std = {
        "hand_pose": args.pose_noise, "global_orient": args.rotation_noise, "transl": args.translation_noise,
    }  # fmt: skip
    noisy = add_noise(truth, std, torch.Generator().manual_seed(args.seed))

    refined = prior.refine(
        noisy,
        pose_std=args.pose_noise,
        rotation_std=args.rotation_noise,
        translation_std=args.translation_noise,
        steps=args.steps,
        seed=args.seed,
    )

    before, after = errors(noisy, truth), errors(refined, truth)
    means = {}
    print(f"{len(truth)} pairs; means in mm")
    for name in before:
        worse = float((after[name] > before[name] + 1).float().mean())
        means[name] = (float(before[name].mean()), float(after[name].mean()))
        print(f"{name:12s} {means[name][0]:7.2f} -> {means[name][1]:7.2f}, worse by > 1 mm: {worse:.0%}")
    return means


if __name__ == "__main__":
    main()
