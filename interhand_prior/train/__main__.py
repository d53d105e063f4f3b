"""`python -m interhand_prior.train --data CORPUS --out RUN --minutes 55`, which is `interhand-prior train`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch

from ..hub import load_prior, push_folder
from ..networks import NETWORKS, NEW_NETWORKS, NetworkConfig, network_config
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..sampling import sample
from .options import StopRequest, add_options, chosen_config, read_settings
from .prior import Evaluate, train
from .trainer import TrainingDiverged

__all__ = ["fhid", "main"]

_NETWORK = "tokens"
_FHID_STEPS = 10
_EPILOG = """
Several processes: accelerate launch --multi_gpu --num_processes 4 -m interhand_prior.train ... (with --device cpu, too;
its own --cpu starts one process only). On several machines RUN must be a folder that all of them see. On a CPU that
other programs use too, set OMP_WAIT_POLICY=PASSIVE in the environment: otherwise threads wait for each other in busy
loops, and two of them may be slower than one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    try:
        settings = {} if options["config"] is None else read_settings(options["config"])
        config = chosen_config(settings, options)
        network = _network(options, settings.get("network", {}))
        _check(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    data, weights = options["data"], options["data_weights"]
    with StopRequest() as stop:
        try:
            prior = train(
                data if weights else data[0],
                config,
                options["out"],
                weights=weights,
                val_pairs=options["val"],
                network=network,
                init=None if options["init"] is None else load_prior(options["init"]),
                normalizer=options["normalizer"],
                hands=options["hands"],
                cache=options["cache"],
                resume=options["resume"],
                progress=not options["quiet"],
                should_stop=stop,
                evaluate=fhid(options["fhid"]) if options["fhid"] else None,
            )
            # Not `stop()`: another process may have been asked, or the run ended while this one was.
            complete = prior.info["complete"]
            if complete and int(os.environ.get("RANK", "0")) == 0:
                _publish(prior, Path(options["out"]) / "prior", options)
        except (ValueError, OSError, ImportError, TrainingDiverged) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if not complete:
        print(f"stopped; go on with the same command and --resume (state in {options['out']}/state)", file=sys.stderr)
        return 130
    return 0


def fhid(count: int) -> Evaluate:
    """A function for `train(evaluate=)`: FHID of `count` samples against the held-out pairs, by the bundled network.

    The samples are drawn in few steps and without guidance, always with the same noise: a number to compare the
    validations of one run by, not one for a table.
    """

    def measure(prior: TwoHandPrior, held_out: Sequence[TwoHands]) -> dict[str, float]:
        from ..metrics import frechet_distance, moments
        from ..metrics.features import load_feature_network
        from ..metrics.reference import compute_features

        network = load_feature_network(device=prior.device)
        features = lambda pairs: compute_features(network, pairs)
        if "reference" not in known:
            alike = [pairs.to(torch.float32) for pairs in held_out if pairs.hands is held_out[0].hands]
            known["reference"] = moments(features(TwoHands.cat(alike)))
        drawn = sample(prior, count, steps=_FHID_STEPS, cfg_scale=0.0, penetration_scale=0.0, seed=0)
        return {"val_fhid": frechet_distance(moments(features(drawn)), known["reference"])}

    known: dict[str, Any] = {}
    return measure


def _publish(prior: TwoHandPrior, folder: Path, options: Mapping[str, Any]) -> None:
    repository = options["push_to_hub"]
    if repository is not None:
        commit = push_folder(folder, repository, private=options["private"])
        print(f"pushed to {repository} (revision {commit})")
    print(folder)


def _network(options: Mapping[str, Any], stored: Mapping[str, Any]) -> NetworkConfig | None:
    """The new network's widths: options, then those of the file; None when there is none to make."""
    given = {name: options[name] for name in _widths() if options[name] is not None}
    if options["init"] is not None:
        if given or options["network"]:
            names = [*given, *(["network"] if options["network"] else [])]
            raise ValueError("--" + ", --".join(names) + " cannot go with --init, whose network is kept")
        return None
    kind = options["network"] or stored.get("network", _NETWORK)
    widths = stored if stored.get("network", _NETWORK) == kind else {}
    known = {field.name for field in dataclasses.fields(NETWORKS[kind][0])} if kind in NEW_NETWORKS else set()
    for name in given:
        if name not in known:
            raise ValueError(f"--{name} is of no use to the network {kind!r}")
    try:
        return network_config({**widths, **given, "network": kind})
    except TypeError as error:
        raise ValueError(f"network: {error}") from error


def _check(options: Mapping[str, Any]) -> None:
    """Refuse what `train` would not see."""
    data, weights = options["data"], options["data_weights"]
    if weights is None and len(data) > 1:
        raise ValueError(
            f"{len(data)} times --data needs --data-weights with {len(data)} numbers, such as --data-weights 1 0.3"
        )
    if weights is not None and len(weights) != len(data):
        raise ValueError(f"--data-weights must be {len(data)} numbers, one for each --data, got {len(weights)}")
    if options["private"] and options["push_to_hub"] is None:
        raise ValueError("--private is of the repository of --push-to-hub, which is missing")
    if options["fhid"] is not None and options["fhid"] < 2:
        raise ValueError(f"--fhid must be at least 2 samples, got {options['fhid']}")
    if options["normalizer"] == "data" and options["init"] is None:
        raise ValueError("--normalizer data is of --init, which is missing: a new network's is of the data anyway")


def _widths() -> dict[str, tuple[Any, str]]:
    """Type and defaults of every width of any network, for its option."""
    found: dict[str, tuple[Any, str]] = {}
    for name in NEW_NETWORKS:
        config = NETWORKS[name][0]
        kinds = get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.name != "size":
                before = found[field.name][1] + ", " if field.name in found else ""
                found[field.name] = kinds[field.name], f"{before}{name}: {field.default}"
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m interhand_prior.train",
        description="Train a two-hand prior (Algorithm 1) on a corpus, or fine-tune one.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--data", required=True, action="append", metavar="SOURCE",
        help="corpus folder (train-*.npz, val-*.npz, single-train-*.npz, single-val-*.npz), or one .npz; give it"
        " several times to mix data sets")  # fmt: skip
    add("--data-weights", type=float, nargs="+", metavar="W",
        help="shares of the samples from each --data, in their order, whatever their sizes")  # fmt: skip
    add("--val", metavar="SOURCE", help="held-out pairs, instead of those of --data")
    add("--out", required=True, metavar="RUN",
        help="folder of the run: config.json, state, log.csv and prior")  # fmt: skip
    add("--resume", action="store_true", help="go on from RUN/state, if there is one")
    add("--config", metavar="FILE", help="settings from a JSON file such as RUN/config.json; options go before it")
    add("--init", metavar="SOURCE", help='fine-tune this prior: "bundled", a folder, or owner/repository')
    add("--normalizer", choices=("init", "data"), default="init",
        help="of --init: keep its own normaliser (default), or fit one to the new data. The network is not told: the"
        " same hands then look different to it, and it must learn that first. For data whose means or spreads are far"
        " from the old ones'")  # fmt: skip
    add("--hands", metavar="FOLDER", help="folder with MANO files, if the pairs belong to MANO; default: the open hand")
    add("--cache", metavar="FOLDER",
        help="keep the samples' vectors there and map them into memory: for data larger than it, and to share them"
        " among runs and processes; default: in memory")  # fmt: skip
    add("--fhid", type=int, metavar="N",
        help=f"log FHID at validations: N samples of {_FHID_STEPS} steps without guidance against the held-out pairs."
        " On a CPU core this takes about 2 ms a sample, and as much once for each held-out pair; below 2000 samples"
        " the number is biased upwards, and noisy")  # fmt: skip
    add("--push-to-hub", metavar="REPOSITORY", help="upload the result to owner/repository at the end")
    add("--private", action="store_true", help="make a new repository private")
    add("--quiet", action="store_true", help="no progress bar")
    network = parser.add_argument_group("network", "of a new prior; defaults by network")
    network.add_argument("--network", choices=NEW_NETWORKS, help=f"(default: {_NETWORK})")
    for name, (kind, text) in _widths().items():
        action = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        network.add_argument(f"--{name}", default=None, help=f"({text})", **action)
    add_options(parser.add_argument_group("training"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
