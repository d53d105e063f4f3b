"""Ours w/o Shared Network (Table 1a): two networks, one for p(x_r) and one for p(x_r | x_l), instead of one for both.

The two are called as one (`SeparateDenoisers` has the Denoiser's call), each sample going to the network that is
responsible for it. So the loss of Algorithm 1, its split of the batch by p_uncond, the cascade of Algorithm 2 and
both guidances are the same code as the method's own, and a step sees the same batch: the network without an anchor
gets a share p_uncond of the samples, the other one the rest, and nothing is shared.

Departures from the source: none known. The paper states no more than that the two networks are trained separately.
Each has the method's own widths, so together they have about twice its parameters, at the same cost of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser, DenoiserConfig
from .cascade import Cascade

__all__ = ["SeparateDenoisers", "WithoutSharedNetwork"]


class SeparateDenoisers(nn.Module):
    """Two Denoisers in the place of one. About 9.5 million parameters by default.

    Args:
        config: widths of each.
    """

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = config or DenoiserConfig()
        self.conditional = Denoiser(self.config)
        self.unconditional = Denoiser(self.config)
        del self.unconditional.embed_anchor  # there is none to embed

    @property
    def null(self) -> nn.Parameter:
        """The null token; `TwoHandPrior` reads its type and device."""
        return self.unconditional.null

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        anchor: Tensor | None = None,
        has_anchor: Tensor | None = None,
        has_relative: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean partner; see `ConditionalDenoiser.forward`.

        Args:
            x_t: (..., 64).
            sigma: (...) or scalar.
            anchor: (..., 64); None: no anchor for any sample.
            has_anchor: (...) bool: which network a sample goes to. None: every sample has an anchor.
            has_relative: (...) bool; None: every sample has a place.

        Returns:
            x_0, (..., 64).
        """
        if anchor is None:
            return self.unconditional(x_t, sigma, has_relative=has_relative)
        if has_anchor is None:
            return self.conditional(x_t, sigma, anchor)
        batch = x_t.shape[:-1]
        level, anchor = sigma.to(x_t.device).expand(batch), anchor.expand(x_t.shape)
        given, alone = has_anchor.expand(batch), ~has_anchor.expand(batch)
        placed = None if has_relative is None else has_relative.expand(batch)[alone]
        x0 = torch.zeros_like(x_t)
        x0[given] = self.conditional(x_t[given], level[given], anchor[given])
        x0[alone] = self.unconditional(x_t[alone], level[alone], has_relative=placed)
        return x0


class WithoutSharedNetwork(Cascade):
    """The cascade p(x_l) p(x_r | x_l) of two networks."""

    name = "without shared network"

    @staticmethod
    def build(network: DenoiserConfig) -> nn.Module:
        """SeparateDenoisers."""
        return SeparateDenoisers(network)
