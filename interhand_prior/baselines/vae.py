"""VAE: the two-hand prior of Zuo et al. (ICCV 2023), reference [72] of the paper, as a generator of pairs.

Latents z ~ N(0, I), decoder mean g(z), encoder q(z | x) = N(m(x), diag(s(x)^2)) on the joint vector x (joint.py), and

    -ELBO = -E_q log N(x; g(z), v I) + KL(q(z | x) | N(0, I)),
    KL    = 1/2 sum (m^2 + s^2 - log s^2 - 1).

There is no weight on the KL term to tune by hand: the decoder's variance v is set to its optimum, which is the mean
squared error (sigma-VAE: Rybkin, Daniilidis & Levine, ICML 2021), and the first term becomes D/2 (log(2 pi v) + 1)
for D entries. A pair is drawn as g(z) with z ~ N(0, I), without the decoder's noise.

Departures from the source. The paper says of its baseline that it is the vanilla VAE used in [72], and leaves the
rest to its supplement, which we did not have; we know of no released code of [72]. What is taken is what both texts
state: a variational autoencoder with a normal latent prior, over the interaction of two hands. Ours are the input
(the normalised joint vector, as for all joint methods here), plain residual layers with the widths of our denoiser
and its number of parameters, the latent's width, and the calibrated variance, which stands for the unknown weight
of the KL term. [72] conditions its sampling on images; here nothing is conditioned on. Only parameters are
reconstructed: no loss on vertices or joints, as for every other method here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..denoiser import ResidualLayer
from ..params import TwoHands
from ..progress import progress_bar
from ..train import TrainConfig
from .joint import FREE, JOINT, JointMethod, freed, to_hands
from .protocol import chunk_size, noise_source

__all__ = ["VAE", "VAEConfig", "VAENetwork", "gaussian_kl", "negative_log_likelihood"]

_LOG_VARIANCE = 12.0
"""Bound of log s^2 in both directions: exp of what a fresh network says must not overflow."""
_VALIDATION_SEED = 20261


@dataclass(frozen=True)
class VAEConfig:
    """Widths.

    Attributes:
        latent: entries of z.
        hidden: width of the layers.
        layers: residual layers of the encoder, and of the decoder.
    """

    latent: int = 64
    hidden: int = 720
    layers: int = 4

    def __post_init__(self) -> None:
        if min(self.latent, self.hidden, self.layers) < 1:
            raise ValueError(f"widths must be positive, got {self}")


class VAENetwork(nn.Module):
    """Encoder and decoder. About 4.5 million parameters by default.

    Args:
        config: widths.
    """

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VAEConfig()
        self.encoder = _layers(JOINT, 2 * config.latent, config)
        self.decoder = _layers(config.latent, JOINT, config)

    def encode(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Joint vectors (..., 128) -> mean and log-variance of q(z | x), each (..., latent), in float32 at least."""
        mean, log_variance = self.encoder(joint).to(joint.dtype).chunk(2, -1)
        return mean, log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (..., latent) -> joint vectors (..., 128)."""
        return freed(self.decoder(latent).to(latent.dtype))

    def forward(self, joint: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (..., 128) from z = m + s noise, and m and log s^2.

        Args:
            joint: (..., 128).
            noise: (..., latent) standard normal.
        """
        mean, log_variance = self.encode(joint)
        return self.decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


def _layers(inputs: int, outputs: int, config: VAEConfig) -> nn.Sequential:
    blocks = [ResidualLayer(config.hidden) for _ in range(config.layers)]
    return nn.Sequential(nn.Linear(inputs, config.hidden), nn.ReLU(), *blocks, nn.Linear(config.hidden, outputs))


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) | N(0, I)) in nats: (..., D) -> (...)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(-1)


def negative_log_likelihood(reconstruction: Tensor, joint: Tensor) -> Tensor:
    """-log N(x; g, v I) over the free entries in nats, mean over the batch, at the v that makes it smallest.

    Args:
        reconstruction: g, (B, 128).
        joint: x, (B, 128).

    Returns:
        (), D/2 (log(2 pi v) + 1) with v the mean squared error.
    """
    variance = (reconstruction - joint).square().sum() / (FREE * len(joint))
    # A floor far below any error of a network in float32: log 0 on a batch that is reproduced exactly.
    return 0.5 * FREE * ((2 * math.pi * variance.clamp_min(1e-12)).log() + 1)


class VAE(JointMethod):
    """A variational autoencoder on both hands."""

    name = "vae"
    network_type = VAEConfig
    small_network = VAEConfig(latent=8, hidden=32, layers=1)

    @staticmethod
    def build(network: VAEConfig) -> nn.Module:
        """A VAENetwork."""
        return VAENetwork(network)

    @staticmethod
    def draw(network: nn.Module, size: int, config: TrainConfig, generator: torch.Generator) -> Tensor:
        """The noise of the latents."""
        width = cast(VAENetwork, network).config.latent
        return torch.randn(size, width, generator=generator, device=generator.device)

    @staticmethod
    def loss(network: nn.Module, joint: Tensor, draws: Tensor) -> Tensor:
        """-ELBO per free entry, so that its size does not depend on their number.

        The variance of the likelihood is the batch's: the loss is no mean over samples, and parts of a batch (several
        processes, `accumulate`) have each their own.
        """
        reconstruction, mean, log_variance = network(joint, draws)
        return (negative_log_likelihood(reconstruction, joint) + gaussian_kl(mean, log_variance).mean()) / FREE

    @staticmethod
    @torch.no_grad()
    def validate(network: nn.Module, joint: Tensor) -> dict[str, float]:
        """With fixed noise: -ELBO per entry, the KL term in nats, and the root-mean-square error."""
        width = cast(VAENetwork, network).config.latent
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        noise = torch.randn(len(joint), width, generator=generator).to(joint)
        reconstruction, mean, log_variance = network(joint, noise)
        kl = gaussian_kl(mean, log_variance).mean()
        bound = (negative_log_likelihood(reconstruction, joint) + kl) / FREE
        error = ((reconstruction - joint).square().sum() / (FREE * len(joint))).sqrt()
        return {"val_bound": float(bound), "val_kl": float(kl), "val_rmse": float(error)}

    @torch.no_grad()
    def sample(
        self,
        num: int = 1,
        *,
        steps: int = 25,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> TwoHands:
        """Decode z ~ N(0, I).

        Args:
            num: how many pairs.
            steps: of no effect; a VAE has no reverse process, one evaluation of the decoder is all.
            seed: see `Method.sample`.
            generator: likewise.
            batch_size: likewise.
            progress: likewise.

        Returns:
            (num,) pairs.

        Raises:
            ValueError: an argument is out of range; both seed and generator are given.
        """
        network = cast(VAENetwork, self.network)
        chunk = chunk_size(num, batch_size)
        latent = noise_source(num, network.config.latent, self.device, seed, generator)()
        decoded = []
        with progress_bar(math.ceil(num / chunk), "sampling", "step", progress) as advance:
            for part in latent.split(chunk):
                decoded.append(network.decode(part))
                advance(1)
        return to_hands(torch.cat(decoded), self.normalizer.to(self.device), self.hands)
