"""`python -m interhand_prior.hands export-mano FOLDER`: the open hand as MANO files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .export import export_mano


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all went well."""
    parser = argparse.ArgumentParser(prog="python -m interhand_prior.hands", description="Hand models.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export-mano",
        help="write the bundled open hand as MANO_RIGHT and MANO_LEFT, .pkl and .npz",
        description="Write the bundled open hand in MANO's format, so that code made for MANO (smplx, manotorch, "
        "manopth) runs without a licensed file. The left hand is the exact mirror of the right one, shapedirs "
        "included; the released MANO_LEFT.pkl has a bug there. Reading the .pkl needs scipy, the .npz does not.",
    )
    export.add_argument("folder", type=Path, help="where to; name it mano to suit smplx.create")
    export.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    try:
        files = export_mano(options.folder, overwrite=options.overwrite)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in files:
        print(path)
    print(
        "This is the open hand, not MANO: results are not comparable with MANO's. "
        f"Try: smplx.MANO({str(files[0])!r}, use_pca=False, flat_hand_mean=True)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
