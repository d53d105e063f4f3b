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

from ..denoiser import ConditionalDenoiser, Denoiser, DenoiserConfig
from .cascade import Cascade

__all__ = ["SeparateDenoisers", "WithoutSharedNetwork"]


class SeparateDenoisers(ConditionalDenoiser):
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
    def null(self) -> nn.Parameter:  # type: ignore[override]
        """The null token, whose type and device are the network's."""
        return self.unconditional.null

    def answer(self, x: Tensor, level: Tensor, anchor: Tensor | None, has_anchor: Tensor | None) -> Tensor:
        """F of the network that is responsible; see `ConditionalDenoiser`."""
        if anchor is None:
            return self.unconditional.answer(x, level, None, None)
        if has_anchor is None:
            return self.conditional.answer(x, level, anchor, None)
        given, alone = has_anchor, ~has_anchor
        answer = torch.zeros_like(x)
        answer[given] = self.conditional.answer(x[given], level[given], anchor[given], None).to(x)
        answer[alone] = self.unconditional.answer(x[alone], level[alone], None, None).to(x)
        return answer


class WithoutSharedNetwork(Cascade):
    """The cascade p(x_l) p(x_r | x_l) of two networks."""

    name = "without shared network"

    @staticmethod
    def build(network: DenoiserConfig) -> nn.Module:
        """SeparateDenoisers."""
        return SeparateDenoisers(network)
