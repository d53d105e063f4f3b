"""`python -m interhand_prior.metrics --samples X --reference Y`, which is `interhand-prior evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import CONFIG_NAME
from ..files import make_writable
from ..hands import HandPair, load_hands
from ..params import TwoHands
from .reference import Reference
from .report import METRICS, bundled_network, evaluate
from .scores import FEATURE_METRICS, Settings

__all__ = ["main", "read_pairs"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0.

    Raises:
        ValueError, OSError, ImportError: a mistake of the caller's, found before any work.
    """
    given = _parser().parse_args(argv)
    settings = {name: getattr(given, flag) for flag, name in _SETTINGS.items()}
    Settings(**settings)
    if given.samples is None and given.save_reference is None:
        raise ValueError("--samples is missing: an .npz written by `interhand-prior sample`, or a folder of them")
    hands = None if given.hands is None else load_hands(given.hands)
    samples = None if given.samples is None else _first(read_pairs(given.samples, hands), given.num)
    reference = _reference(given.reference, hands)
    if given.save_reference is not None and not isinstance(reference, TwoHands):
        raise ValueError("--save-reference needs --reference with pairs, which are not stored as a reference already")
    names = given.metrics or list(METRICS)
    network: Any = _network(given.features) if given.save_reference or {*names} & {*FEATURE_METRICS} else None
    _check_outputs(given)
    progress = not given.quiet and sys.stderr.isatty()
    if isinstance(reference, TwoHands) and given.save_reference is not None:
        info = {"source": Path(given.reference).name}
        reference = Reference.from_pairs(reference, network, info=info, workers=given.workers, progress=progress)
        reference.save(given.save_reference)
        _say(given, f"wrote {given.save_reference} (reference of {len(reference)} pairs)")
    if samples is None:
        return 0
    report = evaluate(
        samples,
        reference,
        features=network,
        metrics=names,
        floor=not given.no_floor,
        workers=given.workers,
        progress=progress,
        **settings,
    )
    if given.out is not None:
        report.save(given.out)
    _say(given, report.table())
    if given.out is not None:
        _say(given, f"wrote {given.out}")
    return 0


def read_pairs(path: str | Path, hands: HandPair | None = None) -> TwoHands:
    """Pairs of one file or of a folder of files.

    Args:
        path: an .npz that `TwoHands.save` wrote, or a folder of them. Of a corpus folder only test-*.npz are read: no
            other split says how good a prior is.
        hands: the hand models the parameters belong to; default: the open hand.

    Raises:
        FileNotFoundError: there is no such file or folder, or nothing in it.
        ValueError: a file is damaged, not of two hands, or holds NaN.
    """
    path = Path(path)
    if not path.is_dir():
        return TwoHands.load(path, hands=hands).reshape(-1)
    files = sorted(path.glob("*.npz"))
    tests = [file for file in files if file.name.startswith("test-")]
    files = tests or [file for file in files if not file.name.startswith(("train-", "val-", "single-"))]
    if not files:
        raise FileNotFoundError(
            f"{path} holds no .npz of a test split; give a folder with test-*.npz, a folder of .npz files that"
            " TwoHands.save wrote, or one such file"
        )
    return TwoHands.cat([TwoHands.load(file, hands=hands).reshape(-1) for file in files])


_SETTINGS = {
    "repeats": "repeats",
    "k": "k",
    "pr_num": "precision_recall_num",
    "degree": "degree",
    "khid_subsets": "subsets",
    "seed": "seed",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interhand-prior evaluate",
        description="Score samples against real pairs: FHID, KHID, diversity, precision, recall, penetration,"
        " nearness (paper Tables 1a and 3b), each with its spread.",
    )
    default = Settings()
    add = parser.add_argument
    add("--samples", metavar="X", help="an .npz of `interhand-prior sample`, or a folder of them")
    add(
        "--reference",
        metavar="Y",
        help="the same, a corpus folder (its test-*.npz), or a stored reference (default: the bundled one)",
    )
    add("--features", metavar="FOLDER", help="feature network (default: the bundled one)")
    add("--metrics", nargs="+", choices=tuple(METRICS), metavar="NAME", help=f"of {', '.join(METRICS)} (default: all)")
    add("--repeats", type=int, default=default.repeats, help="draws and bootstrap resamples (default %(default)s)")
    add("--num", type=int, metavar="N", help="take the first N samples (default: all)")
    add("--k", type=int, default=default.k, help="neighbour of precision and recall (default %(default)s)")
    add(
        "--pr-num",
        type=_count_or_all,
        default=default.precision_recall_num,
        metavar="N",
        help='samples of precision and recall, or "all" (default %(default)s)',
    )
    add(
        "--degree",
        type=int,
        default=default.degree,
        help="of KHID's kernel; the official code: 1 (default %(default)s)",
    )
    add(
        "--khid-subsets",
        type=int,
        default=default.subsets,
        metavar="N",
        help="KHID's subsets of 1000 in each repetition (default %(default)s)",
    )
    add("--seed", type=int, default=default.seed, help="the same seed gives the same numbers (default %(default)s)")
    add("--workers", type=int, help="processes for the volumes (default: all CPUs)")
    add(
        "--hands", metavar="FOLDER", help="folder with MANO files, if the pairs belong to MANO (default: the open hand)"
    )
    add("--out", type=Path, metavar="FILE", help="write the numbers as JSON; replaces an older file")
    add(
        "--save-reference",
        type=Path,
        metavar="FOLDER",
        help="store --reference's features and contact; --samples may then be left out",
    )
    add("--no-floor", action="store_true", help="do not score the reference against itself")
    add("--quiet", action="store_true", help="print nothing; needs --out to be of use")
    return parser


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else int(text)


def _check_outputs(given: argparse.Namespace) -> None:
    for flag, path in (("--out", given.out), ("--save-reference", given.save_reference)):
        if path is None:
            continue
        folder = path.parent if flag == "--out" else path
        if flag == "--out" and path.is_dir():
            raise IsADirectoryError(f"{flag} {path} is a folder; give the name of a file")
        try:
            make_writable(folder)
        except OSError as error:
            raise OSError(f"cannot write into {folder}: {error.strerror or error}; give another {flag}") from error
    if given.save_reference is not None and (given.save_reference / CONFIG_NAME).exists():
        Reference.load(given.save_reference)  # another kind of checkpoint is not to be replaced


def _reference(source: str | None, hands: HandPair | None) -> TwoHands | Reference | None:
    if source is None or source == "bundled":
        return None
    if (Path(source) / CONFIG_NAME).is_file():
        return Reference.load(source)
    return read_pairs(source, hands)


def _network(folder: str | None) -> Any:
    if folder is None:
        return bundled_network()
    from .features import FeatureNetwork

    return FeatureNetwork.from_folder(folder)


def _first(samples: TwoHands, num: int | None) -> TwoHands:
    if num is None:
        return samples
    if not 2 <= num <= len(samples):
        raise ValueError(f"--num must be from 2 to the {len(samples)} samples there are, got {num}")
    return samples[:num]


def _say(given: argparse.Namespace, text: str) -> None:
    if not given.quiet:
        print(text)


def _run() -> int:
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"interhand-prior evaluate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_run())
