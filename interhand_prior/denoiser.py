"""The denoiser D_phi(x_t, x_l, t) of the paper's Figure 2: clean partner from noisy partner, anchor and level.

Three tokens, x_t, the anchor and the level, are each embedded (two fully connected layers with Swish; positional
encoding of the level), related by four-headed self-attention, flattened, and passed through eight fully connected
layers with ReLU and skip connections. Where there is no anchor a learned null token stands in its place, so one
network is both p(x_r) and p(x_r | x_l) (Sec. 3.3).

The output is preconditioned,

    x0 = sqrt(alpha_bar) x_t + sigma F(x_t, x_l, sigma),

which is exact at sigma = 0 whatever F says. A network that returns x0 outright is worse there than its own input,
and a loss built on it (Eq. 9) then hurts. F's regression target, sigma x0 - sqrt(alpha_bar) eps, has unit variance
at every level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .canonical import SIZE
from .schedule import signal

__all__ = ["Denoiser", "DenoiserConfig", "positional_encoding"]


@dataclass(frozen=True)
class DenoiserConfig:
    """Widths of the network.

    Attributes:
        embed: width of a token.
        hidden: width of the fully connected layers.
        heads: attention heads; divides embed. The paper has four.
        layers: fully connected layers with ReLU. The paper has eight.
        attention: False replaces self-attention by nothing (the paper's ablation "w/o SelfAtt").
        size: length of x_t and of the estimate; other than 64 for what models more than a partner.
    """

    embed: int = 256
    hidden: int = 720
    heads: int = 4
    layers: int = 8
    attention: bool = True
    size: int = SIZE

    def __post_init__(self) -> None:
        if min(self.embed, self.hidden, self.heads, self.layers, self.size) < 1 or self.embed % (2 * self.heads):
            raise ValueError(f"widths must be positive and embed a multiple of 2 * heads, got {self}")


class Denoiser(nn.Module):
    """D_phi. About 4.8 million parameters by default.

    Args:
        config: widths.
    """

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        config = config or DenoiserConfig()
        self.config = config
        width, hidden = config.embed, config.hidden
        self.embed_x = _embedding(config.size, width)
        self.embed_anchor = _embedding(SIZE, width)
        self.embed_level = _embedding(width, width)
        self.null = nn.Parameter(0.02 * torch.randn(width))
        self.token = nn.Parameter(0.02 * torch.randn(3, width))
        self.attention = SelfAttention(width, config.heads) if config.attention else None
        self.first = nn.Linear(3 * width, hidden)
        self.blocks = nn.ModuleList(ResidualLayer(hidden) for _ in range(config.layers - 1))
        self.last = nn.Linear(hidden, config.size)
        # The sum of seven residual layers is large, and F should start smaller than its target of unit variance.
        nn.init.normal_(self.last.weight, std=0.1 * hidden**-0.5)

    def forward(
        self, x_t: Tensor, sigma: Tensor, anchor: Tensor | None = None, has_anchor: Tensor | None = None
    ) -> Tensor:
        """Estimate the clean partner.

        Args:
            x_t: (..., 64) noisy normalised partner (`config.size` entries).
            sigma: (...) or scalar noise level in [0, 1].
            anchor: (..., 64) clean normalised anchor; None: no anchor for any sample.
            has_anchor: (...) bool; False puts the null token in the anchor's place. None: every sample has one.

        Returns:
            x0, (..., 64), in x_t's type, whatever the weights' type: what passes through is not rounded to it. A
            sample's result does not depend on the rest of the batch.
        """
        shape, dtype = x_t.shape, self.null.dtype
        x = x_t.reshape(-1, self.config.size)
        # Half precision cannot tell the levels near 1 apart.
        level = sigma.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(shape[:-1]).reshape(-1)
        noisy = self.embed_x(x.to(dtype))
        if anchor is None:
            condition = self.null.expand(len(x), -1)
        else:
            condition = self.embed_anchor(anchor.reshape(-1, SIZE).to(dtype))
            if has_anchor is not None:
                condition = torch.where(has_anchor.reshape(-1, 1), condition, self.null.to(condition))
        time = self.embed_level(positional_encoding(level, self.config.embed).to(dtype))
        tokens = torch.stack((noisy, condition.to(noisy), time), 1) + self.token
        if self.attention is not None:
            tokens = tokens + self.attention(tokens)
        h = F.relu(self.first(tokens.flatten(1)))
        for block in self.blocks:
            h = block(h)
        estimate = signal(level)[:, None] * x + level[:, None] * self.last(h)
        return estimate.to(x_t.dtype).reshape(shape)


def positional_encoding(sigma: Tensor, width: int) -> Tensor:
    """Sines and cosines (DDPM) of the schedule's time u = 2/pi asin(sigma), scaled to 0..1000: (B,) -> (B, width)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=sigma.device, dtype=sigma.dtype) * (-math.log(1e4) / half))
    angle = torch.asin(sigma.clamp(0, 1))[:, None] * (2000 / math.pi) * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)


def _embedding(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of each sample (batch first), with pre-normalisation.

    With three tokens the elementwise products below are several times faster on a CPU than the general kernels.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        score = (q[:, :, None] * k[:, None]).sum(-1) * q.shape[-1] ** -0.5  # (B, query, key, heads)
        weight = score.softmax(2).to(v.dtype)
        return self.out((weight[..., None] * v[:, None]).sum(2).flatten(-2))


class ResidualLayer(nn.Module):
    """h + ReLU(W norm'd h + b): one of the eight fully connected layers with its skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return h + F.relu(self.norm(self.linear(h)))
