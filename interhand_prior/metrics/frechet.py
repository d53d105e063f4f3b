"""Frechet Hand Interaction Distance (paper Sec. 4.1): the distance of two Gaussians in feature space.

With m, C the mean and covariance of each set of features (Heusel et al. 2017, the FID),

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2).

For any factors C_i = F_i F_i^T the last trace is the nuclear norm of F_1^T F_2, the sum of its singular values.
F = U L^(1/2) comes from the symmetric eigendecomposition C = U L U^T. So no square root of an unsymmetric matrix is
needed; it may be complex or fail to converge when a covariance is singular. Eigenvalues within rounding of zero are
dropped: their square roots would be noise eight digits larger than themselves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .inputs import check_features

__all__ = ["Moments", "frechet_distance", "moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of features.

    Attributes:
        mean: (D,).
        covariance: (D, D), symmetric, with the divisor N - 1.

    Raises:
        ValueError: shapes do not fit, NaN or infinity, or the covariance is not symmetric.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.shape != (d,) or d == 0 or self.covariance.shape != (d, d):
            raise ValueError(
                f"mean and covariance must have shapes (D,) and (D, D), got {tuple(self.mean.shape)} and"
                f" {tuple(self.covariance.shape)}"
            )
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise ValueError("mean or covariance holds NaN or infinity; compute them from finite features")
        if not torch.allclose(self.covariance, self.covariance.mT, rtol=1e-5, atol=1e-8):
            raise ValueError("covariance must be symmetric; pass what `moments` returns")

    @functools.cached_property
    def factor(self) -> Tensor:
        """F with F F^T = covariance, (D, rank), float64."""
        values, vectors = torch.linalg.eigh(self.covariance.double())
        kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
        return vectors[:, kept] * values[kept].sqrt()


def moments(features: Tensor, counts: Tensor | None = None) -> Moments:
    """Mean and covariance of a set, in float64.

    Args:
        features: (N, D), N >= 2.
        counts: (N,) how often each sample counts (a bootstrap resample without copying it); default: once.

    Raises:
        TypeError, ValueError: the features are of a wrong shape or not finite; the counts do not fit.
    """
    features = check_features(features)
    if counts is None:
        mean = features.mean(0)
        centred = features - mean
        return Moments(mean, centred.mT @ centred / (len(features) - 1))
    if counts.shape != features.shape[:1] or bool((counts < 0).any()) or float(counts.sum()) <= 1:
        raise ValueError(f"counts must be {len(features)} numbers >= 0 with a sum above 1, got {tuple(counts.shape)}")
    weights = counts.to(features)
    total = weights.sum()
    mean = weights @ features / total
    centred = (features - mean) * weights.sqrt()[:, None]
    return Moments(mean, centred.mT @ centred / (total - 1))


def frechet_distance(features: Tensor | Moments, reference: Tensor | Moments) -> float:
    """Squared Frechet distance d^2 of two sets of features: the number that is called FID or FHID.

    It is at least 0, and exactly 0 for equal moments. Fewer samples than dimensions give a singular covariance, which
    is allowed. But the distance of finite sets is biased upwards, by about tr(C) (1/N + 1/M) and more while N is not
    far above D: compare numbers of equal N and M only.

    Args:
        features: (N, D), N >= 2, or their moments.
        reference: (M, D), M >= 2, or its moments; of the same feature network.

    Raises:
        TypeError, ValueError: a wrong shape, NaN or infinity, or dimensions that differ.
    """
    a = features if isinstance(features, Moments) else moments(check_features(features))
    b = reference if isinstance(reference, Moments) else moments(check_features(reference, "reference"))
    if a.mean.shape != b.mean.shape or a.mean.device != b.mean.device:
        raise ValueError(
            f"features of dimension {len(a.mean)} on {a.mean.device} and a reference of dimension {len(b.mean)} on"
            f" {b.mean.device} cannot be compared; compute both with the same feature network"
        )
    if torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance):
        return 0.0
    shift = (a.mean.double() - b.mean.double()).square().sum()
    spread = a.factor.square().sum() + b.factor.square().sum()
    overlap = torch.linalg.svdvals(a.factor.mT @ b.factor).sum()
    return float((shift + spread - 2 * overlap).clamp_min(0))
