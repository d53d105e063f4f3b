"""What `sds_loss` costs beside a reconstruction network's step, on the same machine and side by side.

    python benchmarks/loss_cost.py          # three minutes of one core

The step is the forward and backward pass of a ResNet-50 with a linear head for both hands' parameters, on 224 x 224
crops, one crop a pair. The loss is timed forward and backward on the same number of pairs: without the gate of the
placement, with a gate made before, and with one made at every call (the default). Medians of interleaved repetitions;
the ratios are what to read.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import write_result
from torch import Tensor, nn

from interhand_prior import HandParams, load_prior, sample, sds_loss
from interhand_prior.params import FIELDS

_BLOCKS, _WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
_OUTPUTS = 2 * (3 + 45 + 10 + 3)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions with a skip connection (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 width, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet50(outputs: int) -> nn.Sequential:
    """ResNet-50: 23.5 million parameters without its head."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    ]
    inputs = 64
    for stage, (blocks, width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if block == 0 and stage > 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def seconds(function: Callable[[], None]) -> float:
    """Of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """Time and write `results/loss_cost.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="crops, and pairs, in a step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    network = resnet50(_OUTPUTS).train()
    images = torch.randn(args.batch, 3, 224, 224)
    prior = load_prior()
    pairs = sample(prior, args.batch, seed=0)
    made_before = prior.trust(pairs)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images).square().mean().backward()

    def loss(gate: bool | Tensor) -> None:
        left, right = (
            HandParams(**{name: getattr(hand, name).clone().requires_grad_() for name in FIELDS})
            for hand in (pairs.left, pairs.right)
        )
        sds_loss(prior, left, right, gate=gate).backward()

    timed = {
        "step": step,
        "sds_loss, gate=False": partial(loss, False),
        "sds_loss, gate made before": partial(loss, made_before),
        "sds_loss, default": partial(loss, True),
    }
    for function in timed.values():
        function()  # warm up
    # Interleaved: a machine that slows down slows all of them.
    rounds = [{name: seconds(function) for name, function in timed.items()} for _ in range(args.repeats)]
    rows = {
        name: {
            "ms": 1e3 * statistics.median(one[name] for one in rounds),
            "share of the step": statistics.median(one[name] / one["step"] for one in rounds),
        }
        for name in timed
    }
    settings = {"batch": args.batch, "repeats": args.repeats, "threads": args.threads}
    print(write_result("loss_cost", {"settings": settings, "rows": rows}).read_text())


if __name__ == "__main__":
    main()
