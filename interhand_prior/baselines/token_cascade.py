"""Ours with BUDDI*'s backbone: no row of the paper, but the one that tells its rows apart.

BUDDI* and "Ours w/o Decomposition" model both hands jointly and differ in the network alone; "Ours w/o Decomposition"
and "Ours w/o APG" have one network and differ in the decomposition. This is the fourth cell: the cascade of Eq. 6 with
BUDDI*'s transformer over parameter tokens (buddi.py),

    tokens: pose, shape of the anchor, or two null tokens | pose, shape, rotation, offset of the partner | noise level,

which answers for the partner's tokens alone. Widths are BUDDI*'s, so a step costs what a step of it does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..canonical import SIZE, SLICES
from ..denoiser import positional_encoding
from ..schedule import signal
from .buddi import BuddiConfig, EncoderLayer, two_layers
from .cascade import Cascade

__all__ = ["TokenCascade", "TokenDenoiser"]

_ANCHOR = ("hand_pose", "betas")
_PARTNER = ("hand_pose", "betas", "rot6d", "transl")


def _sizes(names: tuple[str, ...]) -> list[int]:
    return [SLICES[name].stop - SLICES[name].start for name in names]


class TokenDenoiser(nn.Module):
    """A transformer with the Denoiser's call. About 1.5 million parameters by default.

    Args:
        config: widths.
    """

    def __init__(self, config: BuddiConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or BuddiConfig()
        width, inner = config.width, config.embedding
        self.embed_anchor = nn.ModuleList(two_layers(size, inner, width) for size in _sizes(_ANCHOR))
        self.embed_partner = nn.ModuleList(two_layers(size, inner, width) for size in _sizes(_PARTNER))
        self.embed_level = two_layers(width, width, width)
        self.null = nn.Parameter(0.02 * torch.randn(len(_ANCHOR), width))
        self.token = nn.Parameter(0.02 * torch.randn(len(_ANCHOR) + len(_PARTNER), width))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.ModuleList(two_layers(width, inner, size) for size in _sizes(_PARTNER))

    def forward(
        self, x_t: Tensor, sigma: Tensor, anchor: Tensor | None = None, has_anchor: Tensor | None = None
    ) -> Tensor:
        """Estimate the clean partner; see `Denoiser.forward`.

        Args:
            x_t: (..., 64).
            sigma: (...) or scalar.
            anchor: (..., 64); None: no anchor for any sample.
            has_anchor: (...) bool; None: every sample has one.

        Returns:
            x_0, (..., 64), in x_t's type.
        """
        shape, dtype = x_t.shape, self.null.dtype
        x = x_t.reshape(-1, SIZE)
        level = sigma.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(shape[:-1]).reshape(-1)
        condition = self.null.expand(len(x), -1, -1)
        if anchor is not None:
            own = anchor.reshape(-1, SIZE)[:, SLICES["own"]].to(dtype).split(_sizes(_ANCHOR), -1)
            given = torch.stack([embed(part) for embed, part in zip(self.embed_anchor, own, strict=True)], 1)
            mask = None if has_anchor is None else has_anchor.reshape(-1, 1, 1)
            condition = given if mask is None else torch.where(mask, given, condition.to(given))
        parts = x.to(dtype).split(_sizes(_PARTNER), -1)
        noisy = torch.stack([embed(part) for embed, part in zip(self.embed_partner, parts, strict=True)], 1)
        time = self.embed_level(positional_encoding(level, self.config.width).to(dtype))
        tokens = torch.cat((torch.cat((condition.to(noisy), noisy), 1) + self.token, time[:, None].to(noisy)), 1)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)[:, len(_ANCHOR) :]
        answer = torch.cat([back(tokens[:, i]) for i, back in enumerate(self.unembed)], -1)
        x0 = signal(level)[:, None] * x + level[:, None] * answer
        return x0.to(x_t.dtype).reshape(shape)


class TokenCascade(Cascade):
    """The cascade p(x_l) p(x_r | x_l) of a transformer over parameter tokens."""

    name = "token cascade"
    network_type = BuddiConfig
    small_network = BuddiConfig(width=16, layers=1, heads=2, feedforward=32, embedding=16)

    @staticmethod
    def build(network: BuddiConfig) -> nn.Module:
        """A TokenDenoiser."""
        return TokenDenoiser(network)
