"""What can be chosen about a training run. `TrainConfig` is stored with the run, and the command line is made of it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["MAY_CHANGE", "TrainConfig", "config_from"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; every field is also an option of `python -m interhand_prior.train`.

    At least one of `steps` and `minutes` must be given; the run ends with the first that is reached, and the
    learning rate falls with whichever is further on. With `minutes` the rate follows the clock, so two such runs
    are not equal to the bit.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """

    steps: int | None = _option(None, "gradient steps of the whole run")
    minutes: float | None = _option(None, "minutes of the whole run, counted across resumptions")
    batch_size: int = _option(512, "samples that a process computes at a time")
    accumulate: int = _option(1, "such batches whose gradients a process adds up to one step")
    lr: float = _option(2.5e-3, "peak learning rate of AdamW")
    warmup: int = _option(200, "steps over which the learning rate rises linearly")
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = _option(
        "cosine", "how the learning rate falls: over the whole run, never, or (wsd) only in the cool-down"
    )
    final_lr: float = _option(0.0, "share of the peak rate that the schedule ends at")
    cooldown: float = _option(0.2, "last share of the run, over which wsd falls linearly")
    weight_decay: float = _option(1e-4, "of AdamW")
    clip: float = _option(1.0, "largest gradient norm")
    p_uncond: float = _option(0.2, "probability that the anchor hand is withheld (Algorithm 1, line 3)")
    p_alone: float = _option(0.5, "share of these whose partner is shown without a place, as a hand alone")
    mirror: bool = _option(True, "also train on the mirrored pairs (Algorithm 1, line 2)")
    ema: float = _option(0.9995, "decay of the averaged weights, which are the ones kept; 0 switches it off")
    ema_warmup: float = _option(20.0, "the decay at step n is at most (n + 1) / (n + this)")
    levels: Literal["uniform", "middle"] = _option(
        "uniform", "noise levels drawn: alike over the time axis, or three times as many in its middle as at its ends"
    )
    min_sigma: float = _option(1e-3, "lowest noise level drawn; below it float32 has no digits left")
    seed: int = _option(0, "of initial weights, order, levels and noise")
    amp: Literal["auto", "on", "off"] = _option("auto", "bfloat16 autocast; auto: where the hardware computes in it")
    compile: bool = _option(False, "compile the network; pays on GPUs, in long runs")
    device: str = _option("cpu", "where to train; of several processes, cuda gives each its own GPU")
    threads: int | None = _option(None, "CPU threads; default: as PyTorch chooses")
    save_minutes: float = _option(5.0, "how often the state is saved")
    log_every: int = _option(100, "steps between rows of log.csv")
    tensorboard: bool = _option(False, "also log to RUN/tensorboard; needs the extra [train]")
    val_every: int = _option(4000, "steps between validations")
    max_val: int = _option(2000, "validation pairs used at most")
    weights: Literal["float32", "float16", "bfloat16"] = _option("float16", "type of the stored result's weights")

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            if not _fits(getattr(self, name), kind):
                raise ValueError(f"{name} must be {_describe(kind)}, got {getattr(self, name)!r}")
        if self.steps is None and self.minutes is None:
            raise ValueError("give steps or minutes, or both: the run must end somewhere")
        for name in (
            "steps",
            "minutes",
            "batch_size",
            "accumulate",
            "lr",
            "clip",
            "save_minutes",
            "log_every",
            "val_every",
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("warmup", "weight_decay", "max_val"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("p_uncond", "p_alone"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")
        if not 0 <= self.ema < 1 or not self.ema_warmup >= 1:
            raise ValueError(f"ema must be in [0, 1) and ema_warmup at least 1, got {self.ema}, {self.ema_warmup}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr is a share of lr in [0, 1], got {self.final_lr}")
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"cooldown is a share of the run in (0, 1], got {self.cooldown}")
        if not 0 < self.min_sigma < 0.1:
            raise ValueError(f"min_sigma must be in (0, 0.1), got {self.min_sigma}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, JSON values."""
        return dataclasses.asdict(self)

    def differences(self, stored: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Fields that decide the result and differ from a stored run's: name -> (stored, now)."""
        return {
            name: (stored.get(name), value)
            for name, value in self.as_dict().items()
            if name not in MAY_CHANGE and stored.get(name) != value
        }

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]."""
        by_step = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(by_step, by_time))

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up times a factor that goes from 1 to `final_lr` with the run's progress."""
        fall = {
            "cosine": 0.5 * (1 - math.cos(math.pi * progress)),
            "linear": progress,
            "constant": 0.0,
            "wsd": max(0.0, 1 - (1 - progress) / self.cooldown),
        }[self.lr_schedule]
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * (1 - (1 - self.final_lr) * fall)

    def decay(self, step: int) -> float:
        """Decay of the weight average after step number `step`, counted from 0."""
        return min(self.ema, (step + 1) / (step + self.ema_warmup))


MAY_CHANGE = frozenset(
    {
        "steps",
        "minutes",
        "batch_size",  # the trainer compares the size of the global batch
        "accumulate",
        "compile",
        "device",
        "threads",
        "save_minutes",
        "log_every",
        "tensorboard",
        "val_every",
        "max_val",
        "weights",
    }
)
"""Fields that a resumed run may set anew: how long it goes on, where it runs and what it reports."""


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig of fields by name, such as a file has them.

    Raises:
        ValueError: there is no such field, or a value is of the wrong type or out of range.
    """
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f". There are {', '.join(names)}."
            raise ValueError(f"there is no setting {name!r}{hint}")
    return TrainConfig(**values)


@functools.cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type. An int is a float, too; a bool is neither."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_fits(value, part) for part in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *first, last = map(str, get_args(kind))
        return f"{', '.join(first)} or {last}"
    parts = get_args(kind) or (kind,)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return " or ".join(names[part] for part in parts)
