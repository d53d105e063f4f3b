"""What a run trains: a module, its samples and its loss. The engine (`trainer`, `run`) knows nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Task"]


class Task(ABC):
    """Something to train.

    Attributes:
        module: trained in place. The trainer moves it to the device and keeps an averaged copy of its parameters;
            its buffers (running statistics) are copied to the average as they are.
        count: number of training samples; a row is an index in 0..count-1.
        facts: JSON values that must be the same at a resumption: the data's fingerprint, the network's widths.
        result: name of the folder, within the run's, that `keep` writes to.
    """

    module: nn.Module
    count: int
    facts: dict[str, Any]
    result: str = "result"

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the samples."""

    @abstractmethod
    def loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The training loss of some samples, ().

        Args:
            rows: (B,) indices on the task's device.
            generator: everything random comes from it; on the same device.
        """

    @abstractmethod
    def validate(self, average: nn.Module) -> dict[str, float]:
        """Numbers for the log, the same for the same weights; empty without validation samples.

        Args:
            average: the averaged module, in evaluation mode.
        """

    @abstractmethod
    def keep(self, average: nn.Module, folder: Path, info: dict[str, Any], final: bool) -> None:
        """Store what was learned.

        Args:
            average: the averaged module; to be left as it is.
            folder: made if missing; to be replaced atomically.
            info: facts about the run (steps, hours, seed, version), JSON values.
            final: whether this is the end of the run, where more work may be done.
        """
