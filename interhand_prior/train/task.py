"""What a run trains: a module, its samples and its loss. The engine (`trainer`, `run`) knows nothing else of it.

A step is cut in three, so that it can be shared out. For rows i of the global batch,

    samples = fetch(rows)                       what is read: a function of the rows alone
    draws   = draw(number of rows, generator)   what is random: of the whole global batch
    loss(samples, draws)                        what is computed: the mean over its samples

and the gradient of the global batch's loss is the mean of the gradients of equal parts of it, wherever and in
whatever order they are computed: k processes, or k parts one after the other, take the step of one process with the
k-fold batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Task", "map_tensors"]


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
        """Move what the task itself keeps on the device; what `fetch` gives is moved by the trainer."""

    def fetch(self, rows: Tensor) -> Any:
        """Samples, read one step ahead in a background thread.

        Args:
            rows: (B,) indices on the CPU.

        Returns:
            A tree (a tensor, or a tuple, NamedTuple, list or dict of trees) of tensors with leading axis B, a
            function of `rows` alone. Here: the rows themselves, for a task that keeps its samples on the device.
        """
        return rows

    @abstractmethod
    def draw(self, size: int, generator: torch.Generator) -> Any:
        """Everything random about the loss of `size` samples.

        Args:
            size: of the global batch: of all processes and accumulated parts.
            generator: all of it comes from it.

        Returns:
            A tree of tensors with leading axis `size`, on the generator's device. What the whole batch has in common
            can be expanded along that axis, which costs no memory.
        """

    @abstractmethod
    def loss(self, batch: Any, draws: Any) -> Tensor:
        """The training loss, (): a mean over samples, with nothing random in it.

        Args:
            batch: what `fetch` gave, on the device.
            draws: the samples' rows of what `draw` gave.
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


def map_tensors(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree (see `Task.fetch`) with every tensor changed; what is no tensor stays as it is."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(change, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        items = [map_tensors(change, value) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree
