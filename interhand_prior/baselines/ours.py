"""Ours, and its ablations (Tables 1a, 3a, 3b): the method itself, through `train.train` and `sample`.

The ablations are configurations: without self-attention is `DenoiserConfig(attention=False)`, another training;
without CFG is `cfg_scale=0` (Eq. 4) and without APG `penetration_scale=0` (Eq. 7-8), which sample the same training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from ..denoiser import DenoiserConfig
from ..hands import load_hands
from ..params import TwoHands
from ..prior import TwoHandPrior
from ..sampling import sample
from ..train import TrainConfig, train
from ..train.data import PairSource, load_corpus
from .protocol import Method

__all__ = ["Ours"]

M = TypeVar("M", bound="Ours")


class Ours(Method):
    """The cascade p(x_l) p(x_r | x_l) of one shared network.

    Args:
        prior: trained.
    """

    name = "ours"
    network_type: ClassVar[type[Any]] = DenoiserConfig
    small_network: ClassVar[Any] = DenoiserConfig(embed=16, hidden=32, heads=2, layers=2)
    result = "prior"

    def __init__(self, prior: TwoHandPrior) -> None:
        self.prior = prior

    @property
    def module(self) -> nn.Module:
        """The denoiser."""
        return self.prior.denoiser

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
        """See `Method.fit`. What is stored is a prior for `load_prior`."""
        models = None if hands is None else load_hands(hands)
        # Pairs alone, like every compared method.
        whole, held_out = load_corpus(pairs, val_pairs, hands=models)
        options: dict[str, Any] = {"network": network or cls.network_type(), "hands": models, "resume": resume}
        options |= {"val_pairs": held_out, "progress": progress, "should_stop": should_stop}
        return cls(train(whole, config, out, **options))

    def sample(
        self,
        num: int = 1,
        *,
        steps: int = 25,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> TwoHands:
        """Draw pairs by the cascade (Algorithm 2).

        Args:
            num: how many pairs.
            steps: denoising steps of each of the two hands.
            seed: see `Method.sample`.
            generator: likewise.
            batch_size: likewise.
            progress: likewise.
            options: of `interhand_prior.sample`: `cfg_scale`, `penetration_scale`, `solver`, `eta`; with its defaults.

        Returns:
            (num,) pairs.

        Raises:
            ValueError: an argument is out of range; both seed and generator are given.
        """
        source: dict[str, Any] = {"seed": seed, "generator": generator}
        return sample(self.prior, num, steps=steps, batch_size=batch_size, progress=progress, **source, **options)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """See `Method.save`."""
        return self.prior.save_pretrained(folder, dtype=dtype)

    @classmethod
    def from_folder(cls: type[M], folder: str | os.PathLike[str], *, hands: Any = None) -> M:
        """See `Method.from_folder`."""
        return cls(TwoHandPrior.from_folder(folder, hands=hands))
