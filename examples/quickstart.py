"""The library in three lines, and a picture.

python examples/quickstart.py --num 8 --out out/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interhand_prior import TwoHands, load_prior, sample


def main(argv: Sequence[str] | None = None) -> TwoHands:
    """Draw pairs of hands and write them as parameters, as meshes and as a picture."""
    parser = argparse.ArgumentParser(description="Draw pairs of hands from the prior.")
    parser.add_argument("--prior", default="bundled", help="'bundled', a folder, or 'owner/repo' on the Hub")
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    hands = sample(prior, args.num, seed=args.seed, progress=True)
    hands.export(args.out / "hands.glb")

    hands.save(args.out / "hands.npz")  # parameters with smplx's names; TwoHands.load reads them
    hands.render(args.out / "hands.png")  # no display and no GPU needed
    print(f"{len(hands)} pairs: hands.glb, hands.npz and hands.png in {args.out}")
    return hands


if __name__ == "__main__":
    main()
