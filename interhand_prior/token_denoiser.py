"""A transformer over parameter tokens in the place of Figure 2's fully connected layers.

    tokens: pose, shape of the anchor, or two nulls | pose, shape, rotation, offset of the partner

each group embedded by two layers with Swish, plus a learned embedding of its place. An embedding of the noise level is
added to all of them: a token of its own would cost a seventh of the computation and teaches nothing more. Encoder
layers of self-attention and feed-forward, each of the normalised tokens; one linear layer from each of the partner's
tokens back to its group.

The idea is BUDDI's (Mueller et al., Generative Proxemics, 2023), where it models two people at once; here it is the
denoiser of the paper's cascade (Eq. 6). At equal training it learns much faster than the network of Figure 2
(benchmarks/README.md), and the bundled prior has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .canonical import SIZE, SLICES
from .denoiser import ConditionalDenoiser, SelfAttention, positional_encoding

__all__ = ["EncoderLayer", "TokenDenoiser", "TokenDenoiserConfig", "two_layers"]

_ANCHOR = ("hand_pose", "betas")
_PARTNER = ("hand_pose", "betas", "rot6d", "transl")


@dataclass(frozen=True)
class TokenDenoiserConfig:
    """Widths of the network.

    Attributes:
        width: of a token.
        layers: encoder layers.
        heads: attention heads; divides width.
        feedforward: inner width of an encoder layer's second part.
        embedding: inner width of the two layers from a parameter group to its token.
        alone: whether it learns hands alone, too.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    feedforward: int = 256
    embedding: int = 128
    alone: bool = True

    def __post_init__(self) -> None:
        values = (self.width, self.layers, self.heads, self.feedforward, self.embedding)
        if min(values) < 1 or self.width % (2 * self.heads):
            raise ValueError(f"widths must be positive and width a multiple of 2 * heads, got {self}")

    @property
    def size(self) -> int:
        """Length of x_t."""
        return SIZE


class TokenDenoiser(ConditionalDenoiser):
    """D_phi. About 0.7 million parameters by default.

    Args:
        config: widths.
    """

    def __init__(self, config: TokenDenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TokenDenoiserConfig()
        width, inner = config.width, config.embedding
        self.embed_anchor = nn.ModuleList(two_layers(size, inner, width) for size in _sizes(_ANCHOR))
        self.embed_partner = nn.ModuleList(two_layers(size, inner, width) for size in _sizes(_PARTNER))
        self.embed_level = two_layers(width, width, width)
        self.null = nn.Parameter(0.02 * torch.randn(len(_ANCHOR), width))
        self.token = nn.Parameter(0.02 * torch.randn(len(_ANCHOR) + len(_PARTNER), width))
        self.layers = nn.ModuleList(EncoderLayer(width, config.heads, config.feedforward) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.ModuleList(nn.Linear(width, size) for size in _sizes(_PARTNER))

    def answer(self, x: Tensor, level: Tensor, anchor: Tensor | None, has_anchor: Tensor | None) -> Tensor:
        """F; see `ConditionalDenoiser`. The anchor's own part alone is read: it is the origin of the frame."""
        condition = self.null.expand(len(x), -1, -1)
        if anchor is not None:
            given = _embedded(self.embed_anchor, anchor[:, SLICES["own"]], _ANCHOR)
            condition = given if has_anchor is None else torch.where(has_anchor[:, None, None], given, condition)
        noisy = _embedded(self.embed_partner, x, _PARTNER)
        time = self.embed_level(positional_encoding(level, self.config.width).to(self.null.dtype))
        tokens = torch.cat((condition.to(noisy), noisy), 1) + self.token + time[:, None].to(noisy)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens[:, len(_ANCHOR) :])
        return torch.cat([back(tokens[:, i]) for i, back in enumerate(self.unembed)], -1)


class MatrixAttention(SelfAttention):
    """The same attention by matrix products: with six tokens they are faster than products entry by entry."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(2, 3)
        weight = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((weight @ v).transpose(1, 2).flatten(-2))


class EncoderLayer(nn.Module):
    """t + attention(t), then t + feed-forward(t), each of the normalised tokens."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = MatrixAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.down(F.relu(self.up(self.norm(tokens))))


def two_layers(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """Two linear layers with Swish between them."""
    return nn.Sequential(nn.Linear(inputs, inner), nn.SiLU(), nn.Linear(inner, outputs))


def _sizes(names: tuple[str, ...]) -> list[int]:
    return [SLICES[name].stop - SLICES[name].start for name in names]


def _embedded(embed: nn.ModuleList, vector: Tensor, names: tuple[str, ...]) -> Tensor:
    """One token for each parameter group of (B, D): (B, groups, width)."""
    parts = vector.split(_sizes(names), -1)
    return torch.stack([one(part) for one, part in zip(embed, parts, strict=True)], 1)
