"""Kernel Hand Interaction Distance (paper Sec. 4.1): the squared maximum mean discrepancy, unbiased.

With the polynomial kernel k(x, y) = (x.y / D + 1)^degree on features of dimension D (Binkowski et al. 2018, the KID),

    MMD^2 = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean k(x_i, y_j).

Its expectation is 0 for equal distributions and does not depend on n and m, so single values may be negative. For one
set against itself it is negative: the pairs of equal samples count in the last term only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import check_both, choose

__all__ = ["kernel_distance", "squared_mmd"]

_CHUNK = 512


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    *,
    degree: int = 3,
    subset_size: int | None = 1000,
    subsets: int = 100,
    generator: torch.Generator | None = None,
) -> float:
    """Unbiased MMD^2 averaged over random subsets: the number that is called KID or KHID.

    Args:
        features: (N, D), N >= 2.
        reference: (M, D), M >= 2.
        degree: of the kernel: 3 in the KID paper, 1 in the official code of InterHandGen.
        subset_size: samples drawn, without replacement, from each set for each subset; at most N and M. None: the
            whole sets at once, without any draw; the most exact, 3 N M D operations.
        subsets: number of subsets.
        generator: of the draws; not needed for the whole sets.

    Raises:
        TypeError, ValueError: a wrong shape, NaN or infinity; a subset larger than a set; no generator.
    """
    a, b = check_both(features, reference)
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}; 3 is the KID paper's")
    if subset_size is None:
        return float(_squared_mmd(a, b, degree, _CHUNK))
    if not 2 <= subset_size <= min(len(a), len(b)) or subsets < 1:
        raise ValueError(
            f"subset_size must be from 2 to the size of the smaller set, {min(len(a), len(b))}, and subsets at least 1;"
            f" got {subset_size} and {subsets}. subset_size=None takes the whole sets"
        )
    total = a.new_zeros(())
    for _ in range(subsets):
        x = a[choose(len(a), subset_size, generator, a.device)]
        y = b[choose(len(b), subset_size, generator, b.device)]
        total += _squared_mmd(x, y, degree, _CHUNK)
    return float(total / subsets)


def squared_mmd(features: Tensor, reference: Tensor, *, degree: int = 3, chunk: int = _CHUNK) -> float:
    """Unbiased MMD^2 of two whole sets.

    Args:
        features: (N, D), N >= 2.
        reference: (M, D), M >= 2.
        degree: of the kernel.
        chunk: rows of the kernel matrix in memory at a time.

    Raises:
        TypeError, ValueError: a wrong shape, NaN or infinity, or dimensions that differ.
    """
    a, b = check_both(features, reference)
    if degree < 1 or chunk < 1:
        raise ValueError(f"degree and chunk must be at least 1, got {degree} and {chunk}")
    return float(_squared_mmd(a, b, degree, chunk))


def _squared_mmd(x: Tensor, y: Tensor, degree: int, chunk: int) -> Tensor:
    cross = torch.stack([_kernel(rows, y, degree).sum() for rows in x.split(chunk)]).sum()
    within = _mean_of_different(x, degree, chunk) + _mean_of_different(y, degree, chunk)
    return within - 2 * cross / (len(x) * len(y))


def _mean_of_different(x: Tensor, degree: int, chunk: int) -> Tensor:
    """Mean of k(x_i, x_j) over i != j; of the symmetric matrix only the blocks from the diagonal on are computed."""
    parts = []
    for start in range(0, len(x), chunk):
        block = _kernel(x[start : start + chunk], x[start:], degree)
        square = block[:, : len(block)]
        parts.append(2 * block.sum() - square.sum() - square.diagonal().sum())
    return torch.stack(parts).sum() / (len(x) * (len(x) - 1))


def _kernel(x: Tensor, y: Tensor, degree: int) -> Tensor:
    base = torch.addmm(x.new_ones(()), x, y.mT, alpha=1 / x.shape[1])
    if degree == 1:
        return base
    # `pow` is several times slower than products.
    result = base * base
    for _ in range(degree - 2):
        result *= base
    return result
