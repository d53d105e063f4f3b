"""``python -m interhand_prior.data.synthetic OUT --num N --seed S --workers W``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .archetypes import HELD_OUT
from .shards import generate_corpus


def main(argv: Sequence[str] | None = None) -> None:
    """Make a corpus."""
    parser = argparse.ArgumentParser(
        prog="python -m interhand_prior.data.synthetic", description="Make a corpus of interacting hands."
    )
    parser.add_argument("out", help="folder for the shards; a started corpus in it is completed")
    parser.add_argument("--num", type=int, default=48_000, help="training pairs (default 48000)")
    parser.add_argument("--val-num", type=int, help="validation pairs (default num / 20)")
    parser.add_argument("--test-num", type=int, help="test pairs (default num / 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (default: all CPUs)")
    parser.add_argument("--loose-share", type=float, help="share of loosely near pairs (default one half)")
    parser.add_argument("--shard-size", type=int, default=600)
    parser.add_argument("--single-num", type=int, help="hands alone for training (default num / 5)")
    parser.add_argument(
        "--archetypes",
        type=lambda text: text.split(","),
        help="only these kinds, comma-separated, and then neither loose pairs nor hands alone unless asked for; "
        f"in no other corpus: {', '.join(HELD_OUT)}",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        manifest = generate_corpus(
            args.out,
            args.num,
            val_num=args.val_num,
            test_num=args.test_num,
            seed=args.seed,
            workers=args.workers,
            loose_share=args.loose_share,
            shard_size=args.shard_size,
            single_num=args.single_num,
            archetypes=args.archetypes,
            progress=not args.quiet,
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{manifest['statistics']['pairs']} pairs, {sum(manifest['singles'].values())} hands alone in {args.out}")


if __name__ == "__main__":
    main()
