"""Diversity (paper Sec. 4.1; Guo et al. 2020, Tevet et al. 2023): the mean distance of random pairs of samples,

    mean_p |f(x_{i_p}) - f(x_{j_p})|,   i_p != j_p.

Larger is more diverse; real data shows which value is right. Both indices of a pair are drawn uniformly and differ, so
the value estimates E|f(x) - f(x')| without bias. The official code draws two index lists that may agree in places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import check_features

__all__ = ["diversity"]


def diversity(features: Tensor, *, pairs: int = 200, generator: torch.Generator) -> float:
    """Mean distance of random pairs.

    Args:
        features: (N, D), N >= 2.
        pairs: how many; 200 in the official code.
        generator: of the draws.

    Raises:
        TypeError, ValueError: a wrong shape, NaN or infinity, or no pairs asked for.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}; the official code takes 200")
    features = check_features(features)
    count, place = len(features), generator.device
    first = torch.randint(count, (pairs,), generator=generator, device=place)
    second = (first + torch.randint(1, count, (pairs,), generator=generator, device=place)) % count
    first, second = first.to(features.device), second.to(features.device)
    return float((features[first] - features[second]).norm(dim=1).mean())
