"""`python -m interhand_prior.hands.build [OUT.npz]`: build the open hand and write its asset."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path(__file__).resolve().parents[2] / "assets" / "open_hand.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m interhand_prior.hands.build", description="Build the open hand from published body measures."
    )
    parser.add_argument(
        "out", nargs="?", type=Path, default=DEFAULT, help="the asset to write (default: the package's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the poses that the correctives are fitted on")
    options = parser.parse_args(arguments)
    if not options.out.parent.is_dir():
        parser.error(f"the folder of {options.out} does not exist; make it first")
    try:
        from .asset import build, save
    except ImportError as error:
        print(f'error: {error}; install the build\'s libraries: pip install "interhand_prior[build]"', file=sys.stderr)
        return 1
    start = time.time()
    save(build(options.seed, lambda what: print(f"{time.time() - start:5.1f} s  {what}", flush=True)), options.out)
    print(f"{time.time() - start:5.1f} s  wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
