"""One of two processes that train together, for test_sds_loops: `sds_processes.py INDEX COUNT FOLDER`.

The prior is a part of the wrapped module, as in a model that holds its regulariser. Writes the gradients to
FOLDER/INDEX.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from helpers import generator, make_prior, random_pairs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from interhand_prior import HandParams, TwoHandPrior, TwoHands, sds_loss

PAIRS = 6


class Corrector(nn.Module):
    """Shifts every parameter of both hands; returns the loss of what comes out."""

    def __init__(self, prior: TwoHandPrior) -> None:
        super().__init__()
        self.prior = prior
        self.shift = nn.Parameter(0.05 * torch.randn(2, 61, generator=generator(), dtype=torch.float64))

    def forward(self, hands: TwoHands, noise: Tensor, mask: Tensor) -> Tensor:
        left, right = (
            self.moved(hand, shift) for hand, shift in zip((hands.left, hands.right), self.shift, strict=True)
        )
        return sds_loss(self.prior, left, right, noise=noise, left_valid=mask, gate=False)

    def moved(self, hand: HandParams, shift: Tensor) -> HandParams:
        parts = shift.split([3, 45, 10, 3])
        return HandParams(*(value + part for value, part in zip(hand.as_dict().values(), parts, strict=True)))


def inputs() -> tuple[TwoHands, Tensor, Tensor]:
    noise = torch.randn(PAIRS, 64, generator=generator(3), dtype=torch.float64)
    return random_pairs(PAIRS), noise, torch.arange(PAIRS) % 3 != 1


def main(index: int, count: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=index, world_size=count
    )
    model = DistributedDataParallel(Corrector(make_prior()))
    hands, noise, mask = inputs()
    share = slice(index * PAIRS // count, (index + 1) * PAIRS // count)
    model(hands[share], noise[share], mask[share]).backward()
    torch.save(model.module.shift.grad, folder / f"{index}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
