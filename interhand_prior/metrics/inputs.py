"""Checks and draws that the metrics share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..params import TwoHands

__all__ = ["check_both", "check_features", "choose", "require_both_hands"]


def require_both_hands(pairs: TwoHands, name: str = "pairs") -> None:
    """Refuse pairs that lack a hand: no metric here is defined for a hand alone.

    Args:
        pairs: any batch shape.
        name: how to call them in errors.

    Raises:
        ValueError: a hand is missing somewhere.
    """
    if pairs.left_valid is None and pairs.right_valid is None:
        return
    left, right = pairs.valid
    lacking = ~(left & right).reshape(-1)
    if lacking.any():
        raise ValueError(
            f"{name}: a hand is missing in {int(lacking.sum())} of {len(lacking)} pairs, the first at index"
            f" {int(lacking.nonzero()[0])}; metrics need both hands. Keep those that have them:"
            f" left, right = {name}.valid; {name} = {name}[left & right]"
        )


def check_features(features: Tensor, name: str = "features", *, at_least: int = 2) -> Tensor:
    """Features in float64, where sums over ten thousand samples keep their digits.

    Args:
        features: (N, D).
        name: how to call them in errors.
        at_least: smallest N that makes sense.

    Raises:
        TypeError: not a tensor.
        ValueError: not of shape (N, D), not floating point, too few samples, or NaN or infinity in it.
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (N, D), got {type(features).__name__}")
    if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (N, D), got {features.dtype} {tuple(features.shape)}"
        )
    if len(features) < at_least:
        raise ValueError(f"{name} must hold at least {at_least} samples, got {len(features)}; draw more")
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(features)} samples hold NaN or infinity, the first at index"
            f" {int(bad.nonzero()[0])}; remove or mend them, a metric cannot"
        )
    return features.detach().double()


def check_both(features: Tensor, reference: Tensor, *, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features (N, D) and (M, D) of one network, in float64 on one device.

    Raises:
        TypeError, ValueError: as `check_features`; or D or the device differ.
    """
    a = check_features(features, "features", at_least=at_least)
    b = check_features(reference, "reference", at_least=at_least)
    if a.shape[1] != b.shape[1] or a.device != b.device:
        raise ValueError(
            f"features {tuple(a.shape)} on {a.device} and reference {tuple(b.shape)} on {b.device} must have one"
            " dimension and device; compute both with the same feature network"
        )
    return a, b


def choose(count: int, num: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """`num` different indices below `count`, in random order, on `device`.

    Raises:
        ValueError: `generator` is missing.
    """
    if generator is None:
        raise ValueError("generator is needed where samples are drawn; pass torch.Generator().manual_seed(0)")
    return torch.randperm(count, generator=generator, device=generator.device)[:num].to(device)
