"""Samples read one step ahead, in a background thread, so that reading and computing go on at the same time.

Which rows a step gets is a function of the seed, the number of samples and the step: epochs without replacement,
joined end to end, each in an order of its own. Nothing depends on when the thread runs.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .task import Task, map_tensors

__all__ = ["Prefetch", "RowOrder"]


class RowOrder:
    """Rows of each step.

    Args:
        count: number of samples.
        size: rows of a step: of all processes and accumulated parts.
        seed: of the order.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count = count
        self.size = size
        self.seed = seed
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, step: int) -> Tensor:
        """(size,) int64 on the CPU. Where an epoch ends within a step, the next one begins."""
        first, size = step * self.size, self.size
        parts = []
        while size:
            epoch, start = divmod(first, self.count)
            taken = self._epoch(epoch)[start : start + size]
            parts.append(taken)
            first, size = first + len(taken), size - len(taken)
        return torch.cat(parts)

    def _epoch(self, number: int) -> Tensor:
        if self._order is None or self._order[0] != number:
            shuffler = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._order = number, torch.randperm(self.count, generator=shuffler)
        return self._order[1]


class Prefetch:
    """The samples of one process's share of each step.

    Args:
        task: its `fetch` reads.
        order: rows of the steps.
        share: this process's rows of a step.
        pin: read into pinned memory, from which a copy to a GPU does not hold up the host.
    """

    def __init__(self, task: Task, order: RowOrder, share: slice, pin: bool = False) -> None:
        self.task = task
        self.order = order
        self.share = share
        self.pin = pin
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[Any]] | None = None

    def __call__(self, step: int) -> Any:
        """The samples of `step`, on the CPU; from now on, those of the next step are being read."""
        if type(self.task).fetch is Task.fetch:
            return self._read(step)  # nothing to wait for
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self._read(step)
        if self._reader is None:
            self._reader = _background_thread()
        self._ahead = step + 1, self._reader.submit(self._read, step + 1)
        return batch

    def close(self) -> None:
        """Wait for the read that is going on, and end the thread."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._reader = self._ahead = None

    def _read(self, step: int) -> Any:
        batch = self.task.fetch(self.order(step)[self.share])
        return map_tensors(Tensor.pin_memory, batch) if self.pin else batch


def _background_thread() -> ThreadPoolExecutor:
    """A thread whose tensor operations use no further threads: those are busy with the step."""

    def alone() -> None:
        torch.get_num_threads()  # PyTorch sets up a thread at its first question, which would undo the next line
        torch.set_num_threads(1)

    reader, count = ThreadPoolExecutor(1, "samples"), torch.get_num_threads()
    reader.submit(alone).result()
    torch.set_num_threads(count)  # the count is kept per thread, but what new threads begin with is shared
    return reader
