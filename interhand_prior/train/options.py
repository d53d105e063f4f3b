"""The fields of TrainConfig as options of a command line, and a stop that loses nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .config import TrainConfig, config_from

__all__ = ["StopRequest", "add_options", "chosen_config", "read_settings"]


def add_options(
    parser: argparse._ActionsContainer,
    *,
    defaults: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
) -> None:
    """Give a parser an option for each field of TrainConfig. What was not given is missing in its answer.

    Args:
        parser: it, or a group of it.
        defaults: by field, where they are not TrainConfig's; only said in the help: see `chosen_config`.
        leave_out: fields that are of no use to this command.
    """
    kinds = get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        if field.name in leave_out:
            continue
        default = (defaults or {}).get(field.name, field.default)
        text = field.metadata["help"].replace("%", "%%") + ("" if default is None else f" (default: {default})")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        kind = kinds[field.name]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options["type"] = next((k for k in get_args(kind) if k is not type(None)), kind)
        parser.add_argument("--" + field.name.replace("_", "-"), **options)


def chosen_config(*layers: Mapping[str, Any]) -> TrainConfig:
    """The config of several mappings, the later ones first: defaults, a file, options. Other names are not read.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return config_from({name: value for layer in layers for name, value in layer.items() if name in names})


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings from a JSON file such as RUN/config.json: fields of TrainConfig, and the network's under `network`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no such settings, or one that does not exist or is of the wrong type.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object of settings by name, got a {type(found).__name__}")
    network = found.get("network", {})
    if not isinstance(network, dict):
        raise ValueError(f'{path}: "network" must be an object of widths by name, got {network!r}')
    train = {name: value for name, value in found.items() if name != "network"}
    if train.get("steps") is None:
        train["steps"] = 1  # a file need not say when to end: the command line may
    try:
        config_from(train)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


class StopRequest:
    """Asked to stop by Ctrl-C or SIGTERM: the step ends and the state is saved; the second time, at once.

    A launcher of several processes passes on what the terminal has sent to all, so there every process hears it
    twice; it kills those that do not end.
    """

    def __init__(self) -> None:
        self.asked = False
        self.alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.asked

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and self.alone:
            raise KeyboardInterrupt
        self.asked = True
