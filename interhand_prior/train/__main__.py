"""`python -m interhand_prior.train --data CORPUS --out RUN --minutes 55`."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import typing
from collections.abc import Sequence
from typing import Any

from ..denoiser import DenoiserConfig
from ..hub import load_prior
from .config import TrainConfig
from .run import train
from .trainer import TrainingDiverged

__all__ = ["main"]

_WIDTHS = {
    "embed": "width of a token",
    "hidden": "width of the fully connected layers",
    "layers": "fully connected layers",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    widths = {name: options[name] for name in _WIDTHS if options[name] is not None}
    if widths and options["init"] is not None:
        parser.error("--" + ", --".join(widths) + " cannot go with --init, whose network is kept")
    try:
        config = TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)})
        network = DenoiserConfig(**widths) if widths else None
    except ValueError as error:
        parser.error(str(error))
    stop = _StopRequest()
    try:
        init = None if options["init"] is None else load_prior(options["init"])
        train(
            options["data"],
            config,
            options["out"],
            val_pairs=options["val"],
            network=network,
            init=init,
            hands=options["hands"],
            resume=options["resume"],
            progress=not options["quiet"],
            should_stop=stop,
        )
    except (ValueError, OSError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        stop.restore()
    if stop():
        print(
            f"stopped; go on with the same command and --resume (state in {options['out']}/state)",
            file=sys.stderr,
        )
        return 130
    print(f"{options['out']}/prior")
    return 0


class _StopRequest:
    """The first Ctrl-C (or SIGTERM) lets the step end and the state be saved; the second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m interhand_prior.train",
        description="Train a two-hand prior (Algorithm 1) on a corpus, or fine-tune one.",
        epilog="On a CPU that other programs use too, set OMP_WAIT_POLICY=PASSIVE in the environment: otherwise"
        " threads wait for each other in busy loops, and two of them may be slower than one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder with train-*.npz and val-*.npz, or one .npz")
    parser.add_argument("--out", required=True, help="folder of the run: state, log.jsonl and the prior")
    parser.add_argument("--val", help="held-out pairs, where --data has none")
    parser.add_argument("--init", help='fine-tune this prior: "bundled", a folder, or owner/repository')
    parser.add_argument("--hands", help="folder with MANO files, if the pairs belong to MANO; default: the open hand")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state, if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    for name, text in _WIDTHS.items():
        default = getattr(DenoiserConfig(), name)
        parser.add_argument(f"--{name}", type=int, help=f"{text} of a new network (default: {default})")
    kinds = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"].replace("%", "%%")
        kind = next((k for k in typing.get_args(kinds[field.name]) if k is not type(None)), kinds[field.name])
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(flag, type=kind, default=field.default, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
