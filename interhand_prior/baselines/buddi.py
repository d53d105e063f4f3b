"""BUDDI*: the diffusion transformer of Mueller et al. (Generative Proxemics, 2023), reference [43], for two hands.

BUDDI generates two people at once: each parameter group of each person is a token, the noise level is one more, and
a transformer encoder relates them and estimates all clean parameters. The paper adapts it to MANO (Sec. 4.1). Here

    tokens: pose 45, shape 10 of the left hand | pose 45, shape 10, relative rotation 6, relative offset 3 of the
    right one | noise level,

each group embedded by two layers with Swish, plus a learned embedding of its hand and one of its parameter; encoder
layers of self-attention and feed-forward; two layers with Swish from each token back to its group.

Departures from the source. The left hand has no rotation and offset tokens, because in the canonical frame of
Eq. 5 they are constant: BUDDI has them, in the camera's frame. Noise schedule, preconditioning, loss weight and
sampler are ours, so that the method alone differs; BUDDI estimates x_0 outright under its own schedule.
Normalisation comes before each layer's part (BUDDI: after it), which trains at our learning rate. BUDDI's
guidance tokens, its losses on vertices, and its contact data have no counterpart here. The paper's own changes
for BUDDI* are in its supplement, which we did not have.

Each weight of the encoder works on seven tokens. The widths are chosen so that a step costs about what a step of ours
does (1.2 times, on a CPU): the budget of all methods is then equal in pairs seen and in computation, not in
parameters, of which there are a third as many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..canonical import SIZE, SLICES
from ..denoiser import positional_encoding
from ..schedule import signal
from ..token_denoiser import EncoderLayer, two_layers
from .joint import JOINT, JointDiffusion

__all__ = ["Buddi", "BuddiConfig", "BuddiNetwork"]

_PARAMETERS = ("hand_pose", "betas", "rot6d", "transl")
_TOKENS: tuple[tuple[int, str], ...] = (
    (0, "hand_pose"),
    (0, "betas"),
    (1, "hand_pose"),
    (1, "betas"),
    (1, "rot6d"),
    (1, "transl"),
)
"""Hand (0: left, the anchor) and parameter of each token, in the order of the joint vector."""


@dataclass(frozen=True)
class BuddiConfig:
    """Widths.

    Attributes:
        width: of a token.
        layers: encoder layers.
        heads: attention heads; divides width.
        feedforward: inner width of an encoder layer's second part.
        embedding: inner width of the layers between a parameter group and its token, both ways.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    feedforward: int = 256
    embedding: int = 512

    def __post_init__(self) -> None:
        values = (self.width, self.layers, self.heads, self.feedforward, self.embedding)
        if min(values) < 1 or self.width % (2 * self.heads):
            raise ValueError(f"widths must be positive and width a multiple of 2 * heads, got {self}")


class BuddiNetwork(nn.Module):
    """Denoiser of joint vectors. About 1.5 million parameters by default.

    Args:
        config: widths.
    """

    def __init__(self, config: BuddiConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or BuddiConfig()
        width = config.width
        self.sizes = [SLICES[name].stop - SLICES[name].start for _, name in _TOKENS]
        self.embed = nn.ModuleList(two_layers(size, config.embedding, width) for size in self.sizes)
        self.embed_level = two_layers(width, width, width)
        self.hand = nn.Parameter(0.02 * torch.randn(2, width))
        self.parameter = nn.Parameter(0.02 * torch.randn(len(_PARAMETERS), width))
        self.layers = nn.ModuleList(EncoderLayer(width, config.heads, config.feedforward) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.ModuleList(two_layers(width, config.embedding, size) for size in self.sizes)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Estimate clean joint vectors.

        Args:
            x_t: (..., 128) noisy normalised joint vectors; the anchor's constant entries are not read.
            sigma: (...) or scalar noise level in [0, 1].

        Returns:
            x_0, (..., 128), in x_t's type, zero in the anchor's constant entries.
        """
        shape, dtype = x_t.shape, self.hand.dtype
        x = x_t.reshape(-1, JOINT)
        level = sigma.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(shape[:-1]).reshape(-1)
        x = torch.cat((x[:, SLICES["own"]], x[:, SIZE:]), -1)
        groups = x.to(dtype).split(self.sizes, -1)
        tokens = torch.stack([embed(group) for embed, group in zip(self.embed, groups, strict=True)], 1)
        tokens = tokens + self._token_embedding()
        time = self.embed_level(positional_encoding(level, self.config.width).to(dtype))
        tokens = torch.cat((tokens, time[:, None].to(tokens)), 1)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)
        answer = torch.cat([back(tokens[:, i]) for i, back in enumerate(self.unembed)], -1)
        x0 = signal(level)[:, None] * x + level[:, None] * answer
        own = SLICES["own"].stop
        constant = x0.new_zeros(len(x0), SIZE - own)
        return torch.cat((x0[:, :own], constant, x0[:, own:]), -1).to(x_t.dtype).reshape(shape)

    def _token_embedding(self) -> Tensor:
        """Which hand and which parameter a token is: (6, width)."""
        return torch.stack([self.hand[hand] + self.parameter[_PARAMETERS.index(name)] for hand, name in _TOKENS])


class Buddi(JointDiffusion):
    """Joint diffusion of both hands with a transformer over parameter tokens."""

    name = "buddi"
    network_type = BuddiConfig
    small_network = BuddiConfig(width=16, layers=1, heads=2, feedforward=32, embedding=16)

    @staticmethod
    def build(network: BuddiConfig) -> nn.Module:
        """A BuddiNetwork."""
        return BuddiNetwork(network)
