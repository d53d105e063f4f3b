"""What the tests of Eq. 9 share: a loss for each pair, noises, and options that change with the exchange of hands."""

from __future__ import annotations

from typing import Any

import torch
from helpers import generator
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, sds_loss
from interhand_prior.sds import SDSInfo

SIDES = ("left", "right")


def loss_of(prior: TwoHandPrior, pairs: TwoHands, **options: Any) -> Tensor:
    return sds_loss(prior, pairs.left, pairs.right, **{"reduction": "none", **options})


def info_of(prior: TwoHandPrior, pairs: TwoHands, **options: Any) -> SDSInfo:
    return sds_loss(prior, pairs.left, pairs.right, return_info=True, **options)[1]


def noise_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 64, generator=generator(seed), dtype=torch.float64)


def confidence_of(*batch: int, seed: int = 0) -> Tensor:
    return torch.rand(*batch, 15, generator=generator(seed), dtype=torch.float64)


def sided(seed: int, anchor: str) -> dict[str, Any]:
    """Options that change with the exchange of the hands."""
    confidence = {f"{side}_confidence": confidence_of(3, seed=seed + i) for i, side in enumerate(SIDES)}
    valid = torch.rand(2, 3, generator=generator(seed)) < 0.8
    return {"anchor": anchor, "left_valid": valid[0], "right_valid": valid[1], **confidence}


def exchanged(options: dict[str, Any]) -> dict[str, Any]:
    swap = {"left": "right", "right": "left", "both": "both"}
    rename = {f"{a}_{what}": f"{b}_{what}" for a, b in (SIDES, SIDES[::-1]) for what in ("valid", "confidence")}
    return {rename.get(name, name): swap[value] if name == "anchor" else value for name, value in options.items()}
