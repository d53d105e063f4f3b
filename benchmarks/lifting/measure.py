"""What a network sees in pictures."""

from __future__ import annotations

import torch

from interhand_prior import TwoHands

from .network import Lifter
from .scenes import Images


@torch.no_grad()
def lift(network: Lifter, images: Images, chunk: int = 1000) -> TwoHands:
    """The pairs that a network sees in pictures, in the camera's frame."""
    parts = zip(images.seen.split(chunk), images.confidence.split(chunk), strict=True)
    return TwoHands.cat([network(seen, confidence).pair(network.models) for seen, confidence in parts])
