"""What can be chosen about a training run. `TrainConfig` is stored with the run, and the command line is made of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MAY_CHANGE", "TrainConfig"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; every field is also an option of `python -m interhand_prior.train`.

    At least one of `steps` and `minutes` must be given; the run ends with the first that is reached, and the
    learning rate falls with whichever is further on. With `minutes` the rate follows the clock, so two such runs
    are not equal to the bit.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int | None = _option(None, "gradient steps of the whole run")
    minutes: float | None = _option(None, "minutes of the whole run, counted across resumptions")
    batch_size: int = _option(512, "pairs per step")
    lr: float = _option(8e-4, "peak learning rate of AdamW")
    warmup: int = _option(200, "steps over which the learning rate rises linearly")
    final_lr: float = _option(0.0, "share of the peak rate that the cosine ends at")
    weight_decay: float = _option(1e-4, "of AdamW")
    clip: float = _option(1.0, "largest gradient norm")
    p_uncond: float = _option(0.2, "probability that the anchor hand is withheld (Algorithm 1, line 3)")
    mirror: bool = _option(True, "also train on the mirrored pairs (Algorithm 1, line 2)")
    ema: float = _option(0.9995, "decay of the averaged weights, which are the ones kept; 0 switches it off")
    ema_warmup: float = _option(20.0, "the decay at step n is at most (n + 1) / (n + this)")
    min_sigma: float = _option(1e-3, "lowest noise level drawn; below it float32 has no digits left")
    seed: int = _option(0, "of initial weights, order, levels and noise")
    amp: str = _option("auto", "bfloat16 autocast: on, off, or auto (on where the hardware computes in it)")
    device: str = _option("cpu", "where to train")
    threads: int | None = _option(None, "CPU threads; default: as PyTorch chooses")
    save_minutes: float = _option(5.0, "how often the state is saved")
    log_every: int = _option(100, "steps between lines of log.jsonl")
    val_every: int = _option(4000, "steps between validations")
    max_val: int = _option(2000, "validation pairs used at most")
    weights: str = _option("float16", "type of the stored prior's weights: float32, float16 or bfloat16")

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("give steps or minutes, or both: the run must end somewhere")
        for name in (
            "steps",
            "minutes",
            "batch_size",
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
        if not 0 <= self.p_uncond <= 1:
            raise ValueError(f"p_uncond must be a probability, got {self.p_uncond}")
        if not 0 <= self.ema < 1 or not self.ema_warmup >= 1:
            raise ValueError(f"ema must be in [0, 1) and ema_warmup at least 1, got {self.ema}, {self.ema_warmup}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr is a share of lr in [0, 1], got {self.final_lr}")
        if not 0 < self.min_sigma < 0.1:
            raise ValueError(f"min_sigma must be in (0, 0.1), got {self.min_sigma}")
        if self.amp not in ("auto", "on", "off"):
            raise ValueError(f"amp must be auto, on or off, got {self.amp!r}")
        if self.weights not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"weights must be float32, float16 or bfloat16, got {self.weights!r}")
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
        """Learning rate: linear warm-up times a cosine from 1 to `final_lr`."""
        cosine = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * cosine

    def decay(self, step: int) -> float:
        """Decay of the weight average after step number `step`, counted from 0."""
        return min(self.ema, (step + 1) / (step + self.ema_warmup))


MAY_CHANGE = frozenset(
    {"steps", "minutes", "device", "threads", "save_minutes", "log_every", "val_every", "max_val", "weights"}
)
"""Fields that a resumed run may set anew: how long it goes on, where it runs and what it reports."""
