"""The pictures of the README, with one command.

    python examples/make_pictures.py

Writes samples.png (pairs drawn from the prior, chosen by nothing but the seed) and open_hand.png into
examples/images/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interhand_prior import load_prior, sample


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw the pictures; returns their paths."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the README.")
    parser.add_argument("--prior", default="bundled", help="'bundled', a folder, or 'owner/repo' on the Hub")
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=240, help="pixels of a picture's side")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--no-open-hand", action="store_true", help="leave out open_hand.png")
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    pairs = sample(load_prior(args.prior), args.num, seed=args.seed)
    paths = [pairs.render(args.out / "samples.png", size=args.size, columns=args.columns)]
    if not args.no_open_hand:
        import open_hand_poses

        paths.append(open_hand_poses.main(["--out", str(args.out / "open_hand.png")]))
    return paths


if __name__ == "__main__":
    print(*main(), sep="\n")
