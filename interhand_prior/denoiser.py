"""The denoiser D_phi(x_t, x_l, t): clean partner from noisy partner, anchor and level; and the paper's network for it.

The output of every network F is preconditioned,

    x0 = sqrt(alpha_bar) x_t + sigma F(x_t, x_l, sigma),

which is exact at sigma = 0 whatever F says. A network that returns x0 outright is worse there than its own input,
and a loss built on it (Eq. 9) then hurts. F's regression target, sigma x0 - sqrt(alpha_bar) eps, has unit variance
at every level.

One network is three distributions (Sec. 3.3, and the universal prior of the paper's outlook):

    p(x_r | x_l)        a partner beside its anchor
    p(x_r)              a partner beside an unknown anchor: a learned null stands in the anchor's place
    p(x_r's own part)   a hand alone: it has no place either, and its relative entries are zeros at every level

`Denoiser` is the network of Figure 2. Three tokens, x_t, the anchor and the level, are each embedded (two fully
connected layers with Swish; positional encoding of the level), related by four-headed self-attention, flattened, and
passed through eight fully connected layers with ReLU and skip connections.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .canonical import SIZE, without_place
from .schedule import signal

__all__ = ["ConditionalDenoiser", "Denoiser", "DenoiserConfig", "positional_encoding"]


class ConditionalDenoiser(nn.Module, ABC):
    """What every denoiser of a TwoHandPrior has: the call, the preconditioner, the place of a missing anchor.

    Attributes:
        null: stands in the place of a missing anchor; its type and device are the network's.
        config: a dataclass of JSON values that rebuilds it, with `size`, the length of x_t, and `alone`, whether it
            has learned hands alone.
    """

    null: nn.Parameter
    config: Any

    @abstractmethod
    def answer(self, x: Tensor, level: Tensor, anchor: Tensor | None, has_anchor: Tensor | None) -> Tensor:
        """F: x (B, size), level (B,), anchor (B, 64), has_anchor (B,) -> (B, size)."""

    def precondition(self, x: Tensor, level: Tensor, answer: Tensor) -> Tensor:
        """x0 from x (B, size), level (B,) and F (B, size)."""
        return signal(level)[:, None] * x + level[:, None] * answer

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        anchor: Tensor | None = None,
        has_anchor: Tensor | None = None,
        has_relative: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean partner.

        Args:
            x_t: (..., 64) noisy normalised partner (`config.size` entries).
            sigma: (...) or scalar noise level in [0, 1].
            anchor: (..., 64) clean normalised anchor; None: no anchor for any sample.
            has_anchor: (...) bool; False puts the null in the anchor's place. None: every sample has one.
            has_relative: (...) bool; False: a hand alone (it must have no anchor either). Its relative entries are not
                read, and zero in the result. None: every sample has a place. A network with `config.alone` False
                has learned no hands alone and takes them for partners of an unknown anchor.

        Returns:
            x0, (..., 64), in x_t's type, whatever the weights' type: what passes through is not rounded to it. A
            sample's result does not depend on the rest of the batch.
        """
        shape, dtype = x_t.shape, self.null.dtype
        x = x_t.reshape(-1, self.config.size)
        # Half precision cannot tell the levels near 1 apart.
        level = sigma.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(shape[:-1]).reshape(-1)
        placed = None
        if has_relative is not None and self.config.alone:
            placed = has_relative.expand(shape[:-1]).reshape(-1)
            x = without_place(x, placed)
        if anchor is not None:
            anchor = anchor.reshape(-1, SIZE).to(dtype)
            has_anchor = None if has_anchor is None else has_anchor.expand(shape[:-1]).reshape(-1)
        estimate = self.precondition(x, level, self.answer(x.to(dtype), level, anchor, has_anchor))
        if placed is not None:
            estimate = without_place(estimate, placed)
        return estimate.to(x_t.dtype).reshape(shape)


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
        alone: whether it learns hands alone, too. The paper's does not.
    """

    embed: int = 256
    hidden: int = 720
    heads: int = 4
    layers: int = 8
    attention: bool = True
    size: int = SIZE
    alone: bool = False

    def __post_init__(self) -> None:
        if min(self.embed, self.hidden, self.heads, self.layers, self.size) < 1 or self.embed % (2 * self.heads):
            raise ValueError(f"widths must be positive and embed a multiple of 2 * heads, got {self}")


class Denoiser(ConditionalDenoiser):
    """D_phi of Figure 2. About 4.8 million parameters by default.

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

    def answer(self, x: Tensor, level: Tensor, anchor: Tensor | None, has_anchor: Tensor | None) -> Tensor:
        """F; see `ConditionalDenoiser`."""
        dtype = self.null.dtype
        noisy = self.embed_x(x)
        if anchor is None:
            condition = self.null.expand(len(x), -1)
        else:
            condition = self.embed_anchor(anchor)
            if has_anchor is not None:
                condition = torch.where(has_anchor[:, None], condition, self.null.to(condition))
        time = self.embed_level(positional_encoding(level, self.config.embed).to(dtype))
        tokens = torch.stack((noisy, condition.to(noisy), time), 1) + self.token
        if self.attention is not None:
            tokens = tokens + self.attention(tokens)
        h = F.relu(self.first(tokens.flatten(1)))
        for block in self.blocks:
            h = block(h)
        return self.last(h)


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
