"""The paper's three errors, in millimetres: MPJPE and MPVPE with wrists laid onto each other, MRRPE between wrists."""

from __future__ import annotations

import torch
from torch import Tensor

from interhand_prior import TwoHands

from .network import Lifter
from .scenes import Images

METRICS = ("MPJPE", "MPVPE", "MRRPE")


@torch.no_grad()
def lift(network: Lifter, images: Images, chunk: int = 1000) -> TwoHands:
    """The pairs that a network sees in pictures, in the camera's frame."""
    parts = zip(images.seen.split(chunk), images.confidence.split(chunk), strict=True)
    return TwoHands.cat([network(seen, confidence).pair(network.models) for seen, confidence in parts])


@torch.no_grad()
def errors(pairs: TwoHands, truth: TwoHands, chunk: int = 500) -> dict[str, Tensor]:
    """Each metric of each pair, (N,) millimetres; of MPJPE and MPVPE the mean of both hands."""
    parts = []
    for begin in range(0, len(pairs), chunk):
        ours, theirs = (_points(hands[begin : begin + chunk]) for hands in (pairs, truth))
        row = [
            ((a - ours[2][:, :, None]) - (b - theirs[2][:, :, None])).norm(dim=-1).mean((1, 2))
            for a, b in zip(ours[:2], theirs[:2], strict=True)
        ]
        apart = [wrists[:, 1] - wrists[:, 0] for wrists in (ours[2], theirs[2])]
        parts.append(torch.stack((*row, (apart[0] - apart[1]).norm(dim=-1))))
    return dict(zip(METRICS, 1e3 * torch.cat(parts, 1), strict=True))


def _points(hands: TwoHands) -> tuple[Tensor, Tensor, Tensor]:
    """Joints (N, 2, 21, 3), vertices (N, 2, 778, 3), wrists (N, 2, 3)."""
    joints = torch.stack(hands.joints21(), 1)
    return joints, torch.stack(hands.vertices(), 1), joints[:, :, 0]
