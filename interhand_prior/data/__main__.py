"""``interhand-prior corpus``: make a corpus, or turn a data set that you have into one.

corpus OUT --num N                             make one, without any data set (`data.synthetic`)
corpus import DATASET FOLDER --out SHARDS      shards of a data set
corpus check DATASET FOLDER                    what is in its folder, and what is wrong
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .base import SPLITS
from .checking import check
from .importing import default_selection, import_corpus
from .sets import DATASETS, dataset_named
from .synthetic.__main__ import main as make

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three; returns 0, 1 where `check` finds something wrong, 2 for a mistake."""
    if argv is None:
        import sys

        argv = sys.argv[1:]
    if argv and argv[0] in ("import", "check"):
        arguments = _parser().parse_args(argv)
        try:
            return _import(arguments) if arguments.command == "import" else _check(arguments)
        except (ValueError, OSError) as error:
            _parser().exit(2, f"error: {error}\n")
    make(argv)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="interhand-prior corpus", description="Data sets as corpora.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("import", "write shards of a data set's pairs"), ("check", "say what is in its folder")):
        add = commands.add_parser(name, help=text, description=text.capitalize() + ".").add_argument
        add("dataset", choices=tuple(DATASETS), help="which one")
        add("folder", help="where it is")
        add("--hands", metavar="MANO", help="folder with MANO_RIGHT.pkl and MANO_LEFT.pkl")
        if name == "check":
            add("--num", type=int, default=2000, help="frames to read (default 2000)")
            continue
        add("--out", required=True, metavar="SHARDS", help="folder for the shards")
        add(
            "--max-joint-error", type=float, metavar="MM", help="leave out hands farther from the data set's own joints"
        )
        add("--nearer-than", type=float, metavar="MM",
            help="leave out pairs with no joints of the two hands so near (default 50 where the data set does not say"
            " which hands interact; 0: keep all)")  # fmt: skip
        add("--singles", action="store_true", help="keep hands alone too, in single-*.npz")
        add("--shard-size", type=int, default=4096, help="pairs per file (default 4096)")
        add("--overwrite", action="store_true", help="replace an earlier import")
    return parser


def _import(arguments: argparse.Namespace) -> int:
    data = dataset_named(arguments.dataset)
    changes = {"singles": arguments.singles}
    if arguments.max_joint_error is not None:
        changes["max_joint_error"] = arguments.max_joint_error / 1000
    if arguments.nearer_than is not None:
        changes["nearer_than"] = arguments.nearer_than / 1000 if arguments.nearer_than != 0 else None
    manifest = import_corpus(
        arguments.dataset,
        arguments.folder,
        arguments.out,
        hands=arguments.hands,
        selection=default_selection(data, **changes),
        shard_size=arguments.shard_size,
        overwrite=arguments.overwrite,
    )
    counts = ", ".join(f"{manifest['pairs'].get(split, 0)} {split}" for split in SPLITS)
    print(f"{data.title}: {counts} pairs, {sum(manifest['singles'].values())} hands alone in {arguments.out}")
    for reason, number in manifest["left_out"].items():
        print(f"  left out: {number} x {reason}")
    if "objects" in manifest:
        print(f"  objects: {manifest['objects']['note']}")
        lacking = manifest["objects"]["without a shape"]
        if manifest["objects"]["shapes"] and lacking:
            print(f"  objects in the pairs without a shape: {', '.join(lacking)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    sound = True
    for line, good in check(arguments.dataset, arguments.folder, hands=arguments.hands, num=arguments.num):
        sound &= good
        print(("  " if good else "! ") + line)
    return 0 if sound else 1


if __name__ == "__main__":
    import sys

    sys.exit(main())
