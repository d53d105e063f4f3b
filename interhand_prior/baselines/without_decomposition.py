"""Ours w/o Decomposition (Table 1a): our denoiser on both hands at once, p(x_l, x_r), without the cascade of Eq. 6.

The network is `Denoiser` with the widths of the method itself and x_t of 128 entries instead of 64. The tokens are
x_t, the level and, where the anchor was, the learned null token: there is nothing to be conditioned on. The layers
that embed an anchor are left out.

Departures from the source: none known. The paper states no more than that the joint distribution is not decomposed.
Without a condition there is no classifier-free guidance; anti-penetration guidance is off by default (joint.py).
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from ..denoiser import Denoiser, DenoiserConfig
from .joint import JOINT, JointDiffusion, freed

__all__ = ["JointDenoiser", "WithoutDecomposition"]


class JointDenoiser(nn.Module):
    """A Denoiser of joint vectors. About 4.8 million parameters by default.

    Args:
        config: widths; `size` becomes that of the joint vector.
    """

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = dataclasses.replace(config or DenoiserConfig(), size=JOINT)
        self.denoiser = Denoiser(self.config)
        del self.denoiser.embed_anchor

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Estimate clean joint vectors.

        Args:
            x_t: (..., 128) noisy normalised joint vectors; the anchor's constant entries are not read.
            sigma: (...) or scalar noise level in [0, 1].

        Returns:
            x_0, (..., 128), zero in the anchor's constant entries.
        """
        return freed(self.denoiser(freed(x_t), sigma))


class WithoutDecomposition(JointDiffusion):
    """Joint diffusion of both hands with our denoiser."""

    name = "without decomposition"
    network_type = DenoiserConfig
    small_network = DenoiserConfig(embed=16, hidden=32, heads=2, layers=2)

    @staticmethod
    def build(network: DenoiserConfig) -> nn.Module:
        """A JointDenoiser."""
        return JointDenoiser(network)
