"""Fit the critics of `prior.score` again: `python -m interhand_prior.train.recalibrate --data CORPUS --out FOLDER`.

Everything else stays bit for bit: the weights in their stored type, the normaliser, and the tables of the placement
gate and of the measured uncertainty, because `sds_loss` goes by them; those that are missing are made. Training
calibrates what it has trained; this is for priors that were stored before there were critics.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..card import model_card, write_card
from ..checkpoint import read_checkpoint, write_checkpoint
from ..hands import load_hands
from ..hub import fetch_prior, load_prior
from ..params import TwoHands
from .sources import read_parts, whole_pairs

__all__ = ["main", "recalibrate"]


def recalibrate(source: str, pairs: TwoHands, out: Path, *, seed: int = 0) -> Path:
    """Write a prior with new critics.

    Args:
        source: what `load_prior` takes.
        pairs: (N,) held-out pairs, N >= 2.
        out: folder to write; may be the one that is read.
        seed: of the corrupted copies and the critics' start.

    Returns:
        `out`.
    """
    config, tensors = read_checkpoint(fetch_prior(source))
    prior = load_prior(source, hands=pairs.hands).calibrate(pairs, seed=seed)
    kept = {name: value for name, value in tensors.items() if not name.startswith("critics.")}
    tables = {f"calibration.{name}": value for name, value in vars(prior.require_calibration()).items()}
    critics = {f"critics.{name}": value for name, value in prior.require_critics().tensors().items()}
    write_checkpoint(out, config, {**tables, **kept, **critics})
    write_card(out, model_card(load_prior(out)))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m interhand_prior.train.recalibrate", description=__doc__)
    parser.add_argument("--prior", default="bundled", help="what load_prior takes (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="corpus folder, for its val-*.npz")
    parser.add_argument("--hands", help="folder of the MANO files that the pairs belong to (default: the open hand)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the corrupted copies (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        hands = None if options.hands is None else load_hands(options.hands)
        pairs = TwoHands.cat([whole_pairs(part.load()) for part in read_parts(options.data, "val", hands)])
        print(recalibrate(options.prior, pairs, options.out, seed=options.seed))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
