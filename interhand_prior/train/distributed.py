"""Several processes, on one machine or many, taking one step: what they must tell each other, and nothing else.

Every process has all the weights and computes the gradient of its share of the global batch; the mean of the
gradients is the global batch's. One buffer carries it, with the loss, the floating buffers of the module and a mark
for each parameter that has a gradient at all, so that a step costs one exchange.

A second, tiny exchange a step goes through the CPU (gloo), and lets no process wait for its device: whether anybody
was asked to stop, and the main process's clock. So all stop, or reach the end of their time, at the same step.

Processes are started by the launcher of `accelerate`, which is asked who is who and which device is whose. A single
process neither needs nor imports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

__all__ = ["Processes", "launched"]

_PATIENCE = timedelta(hours=24)
"""How long the others wait while the main process validates. A process that dies is noticed by the launcher."""


class Processes:
    """All the processes of a run, as one of them sees them. By itself: a single one.

    Attributes:
        index: of this process; 0 is the main one, which alone writes.
        count: how many there are.
        device: this one's.
    """

    def __init__(self, device: torch.device, index: int = 0, count: int = 1) -> None:
        self.device = device
        self.index = index
        self.count = count
        self._control: Any = None
        if count > 1:
            self._control = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the state, the log and the result."""
        return self.index == 0

    def share(self, size: int) -> slice:
        """This process's part of `size` rows, which the number of processes divides."""
        part = size // self.count
        return slice(self.index * part, (self.index + 1) * part)

    @torch.no_grad()
    def average(self, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Replace gradients, and other tensors, by their means over the processes.

        A parameter without a gradient in any process keeps none; one that has it in some counts as zero elsewhere.

        Args:
            parameters: whose gradients.
            others: floating tensors.
        """
        if self.count == 1:
            return
        present = [parameter.grad is not None for parameter in parameters]
        marks = torch.tensor(present, device=self.device, dtype=torch.float32)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        tensors = [*gradients, *others]
        flat = torch.cat([*(tensor.float().flatten() for tensor in tensors), marks])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        *means, marks = flat.split([*(tensor.numel() for tensor in tensors), len(present)])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))
        if not all(present):
            anywhere = (marks > 0).tolist()
            for parameter, gradient, wanted in zip(parameters, gradients, anywhere, strict=True):
                parameter.grad = gradient if wanted else None

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process wants to stop, and the main process's time."""
        if self.count == 1:
            return stop, seconds
        said = torch.tensor([float(stop), seconds if self.is_main else 0.0], dtype=torch.float64)
        torch.distributed.all_reduce(said, group=self._control)
        return bool(said[0] > 0), float(said[1])

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            torch.distributed.barrier(group=self._control)


def launched(device: str) -> Processes:
    """The processes that this one was started with.

    Args:
        device: where to train; with several processes "cuda" gives each its own.

    Raises:
        ImportError: there are several, and `accelerate` is missing.
        ValueError: there is no such device, or one device was named for several processes.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but PyTorch sees no such device here. Use device='cpu'.")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(torch.device(device))
    if ":" in device:
        raise ValueError(f"device {device!r} is one for all processes. Use {device.partition(':')[0]!r}: each its own.")
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "several processes need accelerate. Install it: pip install 'interhand_prior[train]'"
        ) from error
    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    return Processes(state.device, state.process_index, state.num_processes)
