"""Command line: `interhand-prior convert official | official-features`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one file of somebody else's.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Raises:
        ValueError, OSError: see `convert_official`, `official_features`.
    """
    args = _parser().parse_args(argv)
    if args.what == "official":
        from .official import convert_official

        prior = convert_official(args.checkpoint, args.stats, args.out, hands=args.mano, coupled=args.coupled)
        given = f", hands={str(args.mano)!r}" if args.mano else ""
        print(f"wrote {args.out}: load_prior({str(args.out)!r}{given})")
        share = prior.info["x0 alone against in batches of 64"]
        print(
            f"A sample attended alone and one in a batch of 64 differ by {share:.1%} of x0's size (root mean squares)."
        )
    else:
        from ..metrics.official_features import official_features
        from .official import read_tensors

        official_features(read_tensors(args.checkpoint), args.out, where=str(args.checkpoint))
        print(f"wrote {args.out}: interhand-prior evaluate --features {args.out} ...")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interhand-prior convert",
        description="Convert the released InterHandGen files that you have. Opening them runs no code; what comes out"
        " stays under the terms of what went in.",
    )
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    prior = kinds.add_parser("official", help="the two-hand network, as a prior for load_prior")
    prior.add_argument("checkpoint", type=Path, help="the .pth file")
    prior.add_argument(
        "--stats", type=Path, required=True, metavar="FOLDER",
        help="with mano_mean.npy, mano_var.npy, rel_mean.npy, rel_var.npy",
    )  # fmt: skip
    prior.add_argument(
        "--mano", type=Path, metavar="FOLDER",
        help="with MANO_RIGHT.pkl and MANO_LEFT.pkl, whose PCA components the network means; without it those of the"
        " open hand, which are others",
    )  # fmt: skip
    prior.add_argument(
        "--coupled", action="store_true",
        help="attention over the batch, as released: a sample then depends on its batch",
    )  # fmt: skip
    features = kinds.add_parser("official-features", help="the PointNet++ feature network of FHID and the others")
    features.add_argument("checkpoint", type=Path, help="the .pth file")
    for one in (prior, features):
        one.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if missing")
    return parser


if __name__ == "__main__":
    main()
