"""Cascades with another network in the Denoiser's place.

A network with the Denoiser's call fits into a TwoHandPrior. So the loss of Algorithm 1, the cascade of Algorithm 2
and both guidances are the same code as the method's own, and only the network differs.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..denoiser import ConditionalDenoiser
from ..prior import TwoHandPrior
from ..schedule import CosineSchedule
from ..train import TrainConfig
from ..train.data import PairSource
from ..train.diffusion import DiffusionTask, fresh
from ..train.run import run
from .ours import Ours
from .protocol import Corpus, read_network, write_network

__all__ = ["Cascade"]

M = TypeVar("M", bound="Cascade")


class Cascade(Ours):
    """The cascade p(x_l) p(x_r | x_l) of another network.

    Args:
        prior: with that network as its denoiser.
    """

    result = "result"

    @staticmethod
    @abstractmethod
    def build(network: Any) -> nn.Module:
        """A new network of these widths, with the Denoiser's call, `null` and `config`."""

    @classmethod
    def fit(
        cls: type[M],
        pairs: PairSource,
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        val_pairs: PairSource | None = None,
        network: Any = None,
        hands: Any = None,
        resume: bool = False,
        progress: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> M:
        """See `Method.fit`."""
        corpus = Corpus.read(pairs, config, out, val_pairs=val_pairs, hands=hands)
        denoiser = cast(ConditionalDenoiser, fresh(lambda: cls.build(network or cls.network_type()), config.seed))
        hands = corpus.train[0].hands
        data = (corpus.normalizer, CosineSchedule(), corpus.samples, corpus.val_samples, config)
        task = _Task(cls, denoiser, *data, held_out=corpus.held_out, hands=hands)
        run(task, config, out, resume=resume, progress=progress, should_stop=should_stop)
        return cls.from_folder(Path(out) / cls.result, hands=hands)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """See `Method.save`."""
        prior = self.prior
        return write_network(
            folder, self.name, prior.denoiser, prior.denoiser.config, prior.normalizer, prior.info, dtype
        )

    @classmethod
    def from_folder(cls: type[M], folder: str | os.PathLike[str], *, hands: Any = None) -> M:
        """See `Method.from_folder`."""
        make = lambda widths: cls.build(cls.network_type(**widths))
        network, normalizer, info = read_network(folder, cls.name, make)
        denoiser = cast(ConditionalDenoiser, network)
        return cls(TwoHandPrior(denoiser, normalizer, CosineSchedule(), hands=hands, info=info))


class _Task(DiffusionTask):
    """Algorithm 1 on that network."""

    result = Cascade.result

    def __init__(self, method: type[Cascade], *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.method = method

    def store(self, prior: TwoHandPrior, folder: Path) -> None:
        """Write the finished method."""
        self.method(prior).save(folder, dtype=getattr(torch, self.config.weights))
