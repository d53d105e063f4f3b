"""Command line: `interhand-prior sample | corpus | train | convert | evaluate | doctor`.

Each command imports what it needs when it runs. Mistakes of the caller end in one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ._version import __version__
from .files import make_writable

__all__ = ["main"]

OK, WRONG, INTERRUPTED = 0, 2, 130
#: Commands with a module of their own: the rest of the line goes there as it is.
MODULES = {
    "corpus": ("interhand_prior.data.__main__", "make a corpus of interacting pairs, or import a data set"),
    "train": ("interhand_prior.train.__main__", "train a prior (Algorithm 1)"),
    "convert": ("interhand_prior.convert.__main__", "turn the released InterHandGen files that you have into a prior"),
    "doctor": ("interhand_prior.doctor", "say what is installed and what is in your files"),
    "evaluate": ("interhand_prior.metrics.__main__", "measure samples against reference pairs (Section 4.1)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, 2 for a mistake of the caller's, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        return _run([a for a in argv if a != "--debug"])
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"interhand-prior: error: {text}", file=sys.stderr)
        return WRONG


def _run(argv: list[str]) -> int:
    if argv and argv[0] in MODULES:
        import importlib

        module = importlib.import_module(MODULES[argv[0]][0])
        result: int | None = module.main(argv[1:])
        return result or OK
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = arguments.command
    command(arguments)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interhand-prior",
        description="A prior over two interacting hands.",
        epilog="With --debug anywhere, an error shows where it comes from.",
    )
    parser.add_argument("--version", action="version", version=f"interhand-prior {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_sample(commands)
    for name, (_, what) in MODULES.items():
        commands.add_parser(name, help=what, add_help=False)
    return parser


def _add_sample(commands: Any) -> None:
    parser = commands.add_parser(
        "sample",
        help="draw pairs of hands: parameters, meshes and a picture",
        description="Draw pairs of hands (Algorithm 2) and write hands.npz, hands.glb and hands.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(command=_sample)
    add = parser.add_argument
    add("--num", type=int, default=16, help="how many pairs")
    add("--seed", type=int, default=0, help="the same seed gives the same pairs")
    add("--out", type=Path, default=Path("out"), metavar="FOLDER", help="made if missing")
    add("--prior", default="bundled", metavar="SOURCE", help="bundled, a folder, or owner/repository on the Hub")
    add("--revision", metavar="NAME", help="branch, tag or commit of the repository")
    add("--offline", action="store_true", default=False, help="never use the network")
    add("--hands", metavar="FOLDER", help="folder with MANO_RIGHT.pkl and MANO_LEFT.pkl, instead of the open hand")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    # Without a value here `sample`'s own default holds.
    add("--steps", type=int, help="denoising steps of each hand")
    add("--cfg-scale", type=float, help="strength of classifier-free guidance (Eq. 4); 0: none")
    add("--penetration-scale", type=float, help="strength of the anti-penetration guidance (Eq. 7-8); 0: none")
    add("--solver", choices=("multistep", "ddim"), help="reverse process; ddim, the paper's, needs many more steps")
    add("--eta", type=float, help="of ddim alone: 0 is deterministic, 1 has the variance of DDPM")
    add("--batch-size", type=int, help="pairs in memory at a time")
    add("--show", type=int, default=64, metavar="N", help="put the first N pairs into the picture and the mesh file")
    add("--views", type=int, choices=(1, 2), default=1, help="pictures of each pair")
    add("--no-png", action="store_true", default=False, help="leave out the picture")
    add("--no-glb", action="store_true", default=False, help="leave out the meshes")
    add("--overwrite", action="store_true", default=False, help="replace files of an earlier run")
    add("--quiet", action="store_true", default=False, help="print nothing")


def _sample(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    if arguments.num < 1:
        raise ValueError(f"--num must be at least 1, got {arguments.num}")
    if arguments.show < 1:
        raise ValueError(f"--show must be at least 1, got {arguments.show}; use --no-png and --no-glb for no pictures")
    wanted = {"hands.npz": True, "hands.glb": not arguments.no_glb, "hands.png": not arguments.no_png}
    paths = {name: arguments.out / name for name, yes in wanted.items() if yes}
    with _writable(arguments.out, list(paths.values()), arguments.overwrite):
        device = _device(arguments.device)

        from . import load_prior, sample

        prior = load_prior(
            arguments.prior,
            revision=given.get("revision"),
            device=device,
            hands=given.get("hands"),
            local_files_only=arguments.offline,
        )
        names = ("steps", "cfg_scale", "penetration_scale", "solver", "eta", "batch_size")
        options = {name: given[name] for name in names if name in given}
        progress = not arguments.quiet and sys.stderr.isatty()
        hands = sample(prior, arguments.num, seed=arguments.seed, progress=progress, **options)
        hands = hands.to("cpu")
        shown = hands[: arguments.show]
        for name, path in paths.items():
            if name == "hands.npz":
                hands.save(path)
            elif name == "hands.glb":
                shown.export(path)
            else:
                shown.render(path, views=arguments.views)
            if not arguments.quiet:
                count = len(hands) if name == "hands.npz" else len(shown)
                print(f"wrote {path} ({count} pair{'s' if count != 1 else ''})")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name!r} is not there: {' '.join(str(error).split())[:160]}") from error
    return device


@contextlib.contextmanager
def _writable(folder: Path, files: list[Path], overwrite: bool) -> Iterator[None]:
    """Make sure, before any work, that `files` can be written into `folder`; take away what was made if work fails.

    Raises:
        FileExistsError: a file is there already and `overwrite` is false.
        OSError: the folder cannot be made or written.
    """
    existing = [str(path) for path in files if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{', '.join(existing)} already there; pass --overwrite or another --out")
    blocked = [str(path) for path in files if path.is_dir()]
    if blocked:
        raise IsADirectoryError(f"{', '.join(blocked)} is a folder; pass another --out")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        make_writable(folder)
    except OSError as error:
        raise OSError(f"cannot write into {folder}: {error.strerror or error}; pass another --out") from error
    try:
        yield
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: something was written, keep it
                parent.rmdir()
        raise


if __name__ == "__main__":
    sys.exit(main())
