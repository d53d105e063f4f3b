"""The released InterHandGen network, its noise levels and its units, as far as a converted checkpoint needs them.

A prior made by `interhand-prior convert official` has this network; its weights are the user's own. What differs from
the denoisers of this package, written down from the released file's facts:

    vector      hand_pose as 45 PCA coefficients c with  pose = hands_mean + c C;  betas; rot6d; translation
    units       (v - mean) / (variance + 1e-6): by the VARIANCE, so that normal vectors are wider than one; the last
                nine entries of an anchor are the raw identity and zero
    levels      alpha_bar_t = prod (1 - beta), beta from 1e-4 to 1e-2 in 129 steps: sigma ends at 0.69
    network     answers x0 itself, without a preconditioner; a missing anchor is the zero vector
    attention   runs over the batch, for each of the three tokens by itself, in the release

The last one makes a sample depend on its batch. By default every sample is attended alone here, which is the released
network at batch size one; `coupled=True` has it as released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .canonical import SIZE, SLICES, Normalizer, as_anchor
from .denoiser import ConditionalDenoiser
from .schedule import Schedule

__all__ = ["OfficialConfig", "OfficialDenoiser", "OfficialSchedule", "PCANormalizer"]

_SKIPS = (1, 3, 5, 6)  # layers that read the noisy vector again


@dataclass(frozen=True)
class OfficialConfig:
    """Widths of the released network.

    Attributes:
        embed: of a token.
        hidden: of the fully connected layers.
        heads: of attention; divides embed.
        feedforward: inner width of an encoder layer's second part.
        coupled: attention over the batch, as released; False: each sample alone.
    """

    embed: int = 512
    hidden: int = 2056
    heads: int = 4
    feedforward: int = 2048
    coupled: bool = False

    def __post_init__(self) -> None:
        if min(self.embed, self.hidden, self.heads, self.feedforward) < 1 or self.embed % (2 * self.heads):
            raise ValueError(f"widths must be positive and embed a multiple of 2 * heads, got {self}")

    @property
    def size(self) -> int:
        """Length of x_t."""
        return SIZE

    @property
    def alone(self) -> bool:
        """It has not learned hands alone."""
        return False


class OfficialSchedule(Schedule):
    """The released noise levels: 129 of them, betas linear from 1e-4 to 1e-2."""

    name = "official"
    solver = "official"
    num_steps = 129
    visited = tuple(range(126, -1, -3))  # of a reverse process: 42 evaluations, at 126 to 3

    def __init__(self) -> None:
        # On the CPU even where a network is being made without memory.
        betas = torch.linspace(1e-4, 1e-2, self.num_steps, dtype=torch.float64, device="cpu")
        self.alpha_bar = torch.cumprod(1 - betas, 0)
        self._sigmas = (1 - self.alpha_bar).sqrt()

    @property
    def max_sigma(self) -> float:
        """The level that sampling starts from, at index 126."""
        return float(self._sigmas[self.visited[0]])

    def sigma(self, u: Tensor) -> Tensor:
        """Level at time u in [0, 1], any shape: between the steps linearly; 0 at u = 0."""
        table = torch.cat((self._sigmas.new_zeros(1), self._sigmas)).to(u)
        place = u * self.num_steps
        low = place.floor().clamp(0, self.num_steps - 1).long()
        return torch.lerp(table[low], table[low + 1], place - low)

    def step_of(self, sigma: Tensor) -> Tensor:
        """The index t (..., not whole) that a level is at; levels outside the table are at its ends."""
        table = self._sigmas.to(sigma)
        high = torch.searchsorted(table, sigma.contiguous()).clamp(1, self.num_steps - 1)
        low, top = table[high - 1], table[high]
        return (high - 1 + ((sigma - low) / (top - low)).clamp(0, 1)).to(sigma)

    def steps(self, num_steps: int) -> list[float]:
        """The num_steps + 1 levels of a reverse process, evenly spaced in t from 126; the last one is 0.

        Raises:
            ValueError: num_steps is less than one.
        """
        if num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {num_steps}")
        top = self.visited[0]
        at = [top * k / num_steps for k in range(num_steps, 0, -1)]
        table = self._sigmas.tolist()
        level = lambda t: math.fsum((table[int(t)] * (1 - t % 1), table[min(int(t) + 1, top)] * (t % 1)))
        return [*map(level, at), 0.0]


class OfficialDenoiser(ConditionalDenoiser):
    """The released network. 75.5 million parameters at its own widths; state dict keys are those of its file.

    `denoiser(x_t, sigma, anchor)` has the call of every denoiser; integers in `sigma` are its own steps t.

    Args:
        config: widths.
    """

    def __init__(self, config: OfficialConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or OfficialConfig()
        embed, hidden = config.embed, config.hidden
        self.schedule = OfficialSchedule()
        #: A missing anchor: zero in the release; fine-tuning learns it.
        self.null = nn.Parameter(torch.zeros(SIZE))
        self.temb, self.cemb, self.iemb = (_Embedding(size, hidden, embed) for size in (embed, SIZE, SIZE))
        layer = nn.TransformerEncoderLayer(embed, config.heads, config.feedforward, dropout=0.0)
        self.trans_enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.trans_out = nn.Linear(3 * embed, hidden)
        self.fc_input = nn.Linear(SIZE, hidden)
        widths = (hidden + 2 * embed + (hidden if k in _SKIPS else 0) for k in range(7))
        self.fc_layers = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.fc_output = nn.Linear(hidden, SIZE)

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        anchor: Tensor | None = None,
        has_anchor: Tensor | None = None,
        has_relative: Tensor | None = None,
    ) -> Tensor:
        """As `ConditionalDenoiser.forward`; integers in sigma are steps t in [0, 128] of the released schedule."""
        if sigma.is_floating_point():
            return super().forward(x_t, sigma, anchor, has_anchor, has_relative)
        shape = x_t.shape
        t = sigma.to(x_t.device, torch.float32).expand(shape[:-1]).reshape(-1)
        condition = None if anchor is None else anchor.expand(shape).reshape(-1, SIZE)
        placed = None if has_anchor is None else has_anchor.expand(shape[:-1]).reshape(-1)
        x0 = self.at_step(x_t.reshape(-1, SIZE).to(self.null.dtype), t, self._condition(len(t), condition, placed))
        return x0.to(x_t.dtype).reshape(shape)

    def answer(self, x: Tensor, level: Tensor, anchor: Tensor | None, has_anchor: Tensor | None) -> Tensor:
        """x0 itself."""
        return self.at_step(x, self.schedule.step_of(level), self._condition(len(x), anchor, has_anchor))

    def precondition(self, x: Tensor, level: Tensor, answer: Tensor) -> Tensor:
        """The answer is x0."""
        return answer

    def at_step(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The released network: x (B, 64) and condition (B, 64) in its units, t (B,) steps -> x0 (B, 64)."""
        time = self.temb(_sinusoids(t, self.config.embed).to(x.dtype))
        given, noisy = self.cemb(condition), self.iemb(x)
        tokens = torch.stack((time, given, noisy), 1)
        if self.config.coupled:
            tokens = self.trans_enc(tokens)  # its first axis, the batch, is the sequence
        else:
            tokens = self.trans_enc(tokens.reshape(1, -1, self.config.embed)).view_as(tokens)
        h = self.trans_out(tokens.flatten(1))
        again = self.fc_input(x)
        for k, layer in enumerate(self.fc_layers):
            h = F.relu(layer(torch.cat((h, again, time, given) if k in _SKIPS else (h, time, given), -1)))
        return self.fc_output(h)

    def _condition(self, size: int, anchor: Tensor | None, has_anchor: Tensor | None) -> Tensor:
        null = self.null.expand(size, -1)
        if anchor is None:
            return null
        anchor = anchor.to(null)
        return anchor if has_anchor is None else torch.where(has_anchor[:, None], anchor, null)


class _Embedding(nn.Module):
    """Two linear layers with Swish between them, under the released names."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList((nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        return self.dense[1](F.silu(self.dense[0](x)))


def _sinusoids(t: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of t exp(-log(10000) k / (width / 2 - 1)): (B,) -> (B, width)."""
    half = width // 2
    k = torch.arange(half, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * torch.exp(k * (-math.log(10000) / (half - 1)))
    return torch.cat((angle.sin(), angle.cos()), -1)


class PCANormalizer(Normalizer):
    """The released units: PCA coefficients of the pose, everything divided by its variance.

    Args:
        mean: (64,) of vectors with PCA coefficients.
        std: (64,) what is divided by: the variance + 1e-6.
        hands_mean: (45,) of the right hand, radians.
        components: (45, 45), a row for each coefficient; not orthonormal in MANO.

    Raises:
        ValueError: a shape is wrong, the components have no inverse, or a divisor is not positive.
    """

    hands_mean: Tensor
    components: Tensor
    inverse: Tensor

    def __init__(self, mean: Tensor, std: Tensor, hands_mean: Tensor, components: Tensor) -> None:
        super().__init__(mean, std)
        if hands_mean.shape != (45,) or components.shape != (45, 45):
            raise ValueError(
                "hands_mean and components must have shapes (45,) and (45, 45), got"
                f" {tuple(hands_mean.shape)}, {tuple(components.shape)}"
            )
        wide = components.detach().double()
        if not torch.isfinite(wide).all() or torch.linalg.matrix_rank(wide) < 45:
            raise ValueError("components must be finite and have an inverse: all 45 of MANO's hands_components")
        self.register_buffer("hands_mean", hands_mean.detach().clone())
        self.register_buffer("components", components.detach().clone())
        self.register_buffer("inverse", torch.linalg.inv(wide).to(components.dtype), persistent=False)

    def partner(self, vector: Tensor) -> Tensor:
        """Normalise partner vectors (..., 64)."""
        return super().partner(self._coefficients(vector))

    def anchor(self, vector: Tensor) -> Tensor:
        """Normalise anchor vectors (..., 64); the last nine entries are the raw identity and zero."""
        return self.as_anchor(super().partner(self._coefficients(vector))[..., SLICES["own"]])

    def as_anchor(self, own: Tensor) -> Tensor:
        """A normalised anchor (..., 64) from a normalised own part (..., 55)."""
        return as_anchor(own)

    def partner_inverse(self, vector: Tensor) -> Tensor:
        """Back to metres and radians."""
        return self._angles(super().partner_inverse(vector))

    def anchor_inverse(self, vector: Tensor) -> Tensor:
        """Back to metres and radians, with identity and zero in the last nine entries."""
        return as_anchor(self._angles(super().partner_inverse(vector))[..., SLICES["own"]])

    def _coefficients(self, vector: Tensor) -> Tensor:
        pose = SLICES["hand_pose"]
        coefficients = (vector[..., pose] - self.hands_mean.to(vector)) @ self.inverse.to(vector)
        return torch.cat((coefficients, vector[..., pose.stop :]), -1)

    def _angles(self, vector: Tensor) -> Tensor:
        pose = SLICES["hand_pose"]
        angles = vector[..., pose] @ self.components.to(vector) + self.hands_mean.to(vector)
        return torch.cat((angles, vector[..., pose.stop :]), -1)
