"""The baseline that a network must beat: one Gaussian with full covariance over the normalised pair.

With y the anchor's own 55 entries and the partner's 64, normalised (canonical.py), and m, C their moments over the
training pairs, both directions,

    L_gauss = 1/2 (y - m)^T (C + r I)^-1 (y - m),

averaged over both directions: the negative log-likelihood of a pair, in the unit of `sds_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands
from interhand_prior.canonical import SLICES, canonical_pair


class GaussianPrior:
    """Fitted to pairs.

    Args:
        prior: gives the normaliser and the hand models; its network is not used.
        pairs: (N,) training pairs.
        ridge: added to the variances, in squares of the normaliser's standard deviations.
    """

    def __init__(self, prior: TwoHandPrior, pairs: TwoHands, ridge: float = 0.02) -> None:
        self.prior = prior
        y = self._vectors(pairs).flatten(0, -2).double()
        self.mean = y.mean(0).float()
        self.precision = torch.linalg.inv(torch.cov(y.T) + ridge * torch.eye(y.shape[-1]).double()).float()

    def _vectors(self, pairs: TwoHands) -> Tensor:
        partner, anchor = canonical_pair(self.prior, pairs)
        return torch.cat((anchor[..., SLICES["own"]], partner), -1)

    def loss(self, left: HandParams, right: HandParams) -> Tensor:
        """Sum over pairs."""
        y = self._vectors(TwoHands(left, right, self.prior.hands)) - self.mean
        return 0.5 * ((y @ self.precision) * y).sum() / 2
