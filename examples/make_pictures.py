"""The pictures of the README, with one command.

    python examples/make_pictures.py

Writes into examples/images/: samples.png, the first sixteen pairs drawn from the prior whose hands touch (about half of
its pairs are near each other without touching, as in its corpus; nothing else is left out), and open_hand.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interhand_prior import TwoHands, load_prior, sample
from interhand_prior.geometry import min_distance

TOUCH = 0.004
"""Metres between the nearest vertices; those of a hand are some 5 mm apart."""


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw the pictures; returns their paths."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the README.")
    parser.add_argument("--prior", default="bundled", help="'bundled', a folder, or 'owner/repo' on the Hub")
    parser.add_argument("--num", type=int, default=16, help="pairs in the picture; four times as many are drawn")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=240, help="pixels of a picture's side")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--no-open-hand", action="store_true", help="leave out open_hand.png")
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    pairs = touching(sample(load_prior(args.prior), 4 * args.num, seed=args.seed))[: args.num]
    paths = [pairs.render(args.out / "samples.png", size=args.size, columns=args.columns)]
    if not args.no_open_hand:
        import open_hand_poses

        paths.append(open_hand_poses.main(["--out", str(args.out / "open_hand.png")]))
    return paths


def touching(pairs: TwoHands) -> TwoHands:
    """Those of the pairs whose hands come within `TOUCH` of each other."""
    left, right = pairs.vertices()
    return pairs[min_distance(left, right) < TOUCH]


if __name__ == "__main__":
    print(*main(), sep="\n")
