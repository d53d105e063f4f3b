"""Ours w/o Shared Network (Table 1a): two networks, one for p(x_r) and one for p(x_r | x_l), instead of one for both.

The two are called as one (`SeparateDenoisers` has the Denoiser's call), each sample going to the network that is
responsible for it. So the loss of Algorithm 1, its split of the batch by p_uncond, the cascade of Algorithm 2 and
both guidances are the same code as the method's own, and a step sees the same batch: the network without an anchor
gets a share p_uncond of the samples, the other one the rest, and nothing is shared.

Departures from the source: none known. The paper states no more than that the two networks are trained separately.
Each has the method's own widths, so together they have about twice its parameters, at the same cost of a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser, DenoiserConfig
from ..prior import TwoHandPrior
from ..schedule import CosineSchedule
from ..train import TrainConfig
from ..train.data import PairSource
from ..train.diffusion import DiffusionTask
from ..train.run import run
from .ours import Ours
from .protocol import Corpus, fresh, read_network, write_network

__all__ = ["SeparateDenoisers", "WithoutSharedNetwork"]

M = TypeVar("M", bound="WithoutSharedNetwork")


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
        self, x_t: Tensor, sigma: Tensor, anchor: Tensor | None = None, has_anchor: Tensor | None = None
    ) -> Tensor:
        """Estimate the clean partner; see `Denoiser.forward`.

        Args:
            x_t: (..., 64).
            sigma: (...) or scalar.
            anchor: (..., 64); None: no anchor for any sample.
            has_anchor: (...) bool: which network a sample goes to. None: every sample has an anchor.

        Returns:
            x_0, (..., 64).
        """
        if anchor is None:
            return self.unconditional(x_t, sigma)
        if has_anchor is None:
            return self.conditional(x_t, sigma, anchor)
        batch = x_t.shape[:-1]
        level, anchor = sigma.to(x_t.device).expand(batch), anchor.expand(x_t.shape)
        given, alone = has_anchor.expand(batch), ~has_anchor.expand(batch)
        x0 = torch.zeros_like(x_t)
        x0[given] = self.conditional(x_t[given], level[given], anchor[given])
        x0[alone] = self.unconditional(x_t[alone], level[alone])
        return x0


class WithoutSharedNetwork(Ours):
    """The cascade p(x_l) p(x_r | x_l) of two networks.

    Args:
        prior: with SeparateDenoisers as its denoiser.
    """

    name = "without shared network"
    result = "result"

    @classmethod
    def fit(
        cls: type[M],
        pairs: PairSource,
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        val_pairs: PairSource | None = None,
        network: DenoiserConfig | None = None,
        hands: Any = None,
        resume: bool = False,
        progress: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> M:
        """See `Method.fit`."""
        corpus = Corpus.read(pairs, config, out, val_pairs=val_pairs, hands=hands)
        denoiser = cast(Denoiser, fresh(lambda: SeparateDenoisers(network), config.seed))
        parts = (denoiser, corpus.normalizer, CosineSchedule(), corpus.train, corpus.held_out, config)
        run(
            _Task(*parts, vectors=corpus.vectors),
            config,
            out,
            resume=resume,
            progress=progress,
            should_stop=should_stop,
        )
        return cls.from_folder(Path(out) / cls.result, hands=corpus.train[0].hands)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """See `Method.save`."""
        prior = self.prior
        return write_network(
            folder, self.name, prior.denoiser, prior.denoiser.config, prior.normalizer, prior.info, dtype
        )

    @classmethod
    def from_folder(cls: type[M], folder: str | os.PathLike[str], *, hands: Any = None) -> M:
        """See `Method.from_folder`."""
        make = lambda widths: SeparateDenoisers(DenoiserConfig(**widths))
        network, normalizer, info = read_network(folder, cls.name, make)
        return cls(TwoHandPrior(cast(Denoiser, network), normalizer, CosineSchedule(), hands=hands, info=info))


class _Task(DiffusionTask):
    """Algorithm 1 on two networks."""

    result = WithoutSharedNetwork.result

    def store(self, prior: TwoHandPrior, folder: Path) -> None:
        """Write the finished method."""
        WithoutSharedNetwork(prior).save(folder, dtype=getattr(torch, self.config.weights))
