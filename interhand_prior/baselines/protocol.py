"""The protocol of a compared method (Sec. 4.1, Tables 1 and 3): `fit` on a corpus, then `sample` N pairs.

What is compared is the method alone. Every method is fitted by the one training engine (`train.run`) with the same
TrainConfig: budget, batch, optimiser, learning rate, averaged weights, mirror views. Every method reads the same
canonical vectors through the same functions and the same normaliser. Every method draws all its noise at once, so
that the same seed gives the same pairs whatever the batch size.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..canonical import Normalizer
from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..hands import load_hands
from ..params import TwoHands
from ..train import TrainConfig
from ..train.data import PairSource, Samples, load_corpus, read_samples
from ..train.run import first_pairs, stored_normalizer

__all__ = [
    "KIND",
    "Corpus",
    "Entry",
    "Method",
    "chunk_size",
    "noise_source",
    "read_network",
    "write_network",
]

KIND = "baseline"
"""Of the checkpoints of methods that are no prior for `load_prior`."""


class Method(ABC):
    """A generative model of two interacting hands. Made by `fit` or `from_folder`.

    Attributes:
        name: of the method in its checkpoints.
        network_type: the dataclass of its widths.
        small_network: widths for tests and dry runs.
        result: name of the folder, within a run's, that `fit` stores the method in.
    """

    name: ClassVar[str]
    network_type: ClassVar[type[Any]]
    small_network: ClassVar[Any]
    result: ClassVar[str] = "result"

    @classmethod
    @abstractmethod
    def fit(
        cls,
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
    ) -> Method:
        """Train the method, or go on training it.

        Args:
            pairs: a corpus folder, TwoHands, or an iterable of them.
            config: settings; the same for every method of a comparison.
            out: folder of the run; the method is stored in `out / result`.
            val_pairs: held-out pairs, for the log. Default: the folder's, or the last 5 % of `pairs`.
            network: widths, of `network_type`. Default: the method's own.
            hands: hand models that parameters in files belong to, in the forms of `load_prior`.
            resume: go on from the state in `out`; without one, start anew.
            progress: show a progress bar.
            should_stop: asked after each step; when it says yes, the state is saved and the run stops.

        Returns:
            The method with averaged weights, on the CPU.

        Raises:
            ValueError, FileNotFoundError, FileExistsError, CheckpointError, TrainingDiverged: see `train.train`.
        """

    @abstractmethod
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
        """Draw pairs.

        Args:
            num: how many pairs.
            steps: denoising steps of a reverse process.
            seed: of a private generator; the same seed gives the same pairs whatever `batch_size` is.
            generator: to draw from instead. With neither, torch's own generator for the CPU is drawn from.
            batch_size: pairs in memory at a time. Default: as many as 512.
            progress: show a progress bar.

        Returns:
            (num,) pairs, the left hand at the identity with its middle-MCP joint at the origin.

        Raises:
            ValueError: an argument is out of range; both seed and generator are given.
        """

    @abstractmethod
    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors.

        Args:
            folder: made if missing.
            dtype: of the stored weights. Default: as they are.

        Returns:
            The folder.
        """

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, hands: Any = None) -> Method:
        """Read what `save` or `fit` wrote.

        Args:
            folder: a checkpoint folder, such as `out / result`.
            hands: hand models that the samples belong to. Default: the open hand.

        Raises:
            FileNotFoundError, CheckpointError: the folder holds no whole, unchanged checkpoint of this method.
        """

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The network, for counting its parameters or moving it to a device."""


@dataclass(frozen=True)
class Entry:
    """A row of the paper's tables: a method, how it is trained and how it is sampled.

    Attributes:
        label: as the paper prints it.
        method: its class.
        training: rows with the same `training` differ in sampling alone; fit one of them and use it for all.
        changes: fields of the network's widths that the row changes.
        options: of `method.sample`, where the row's differ from the method's own.
    """

    label: str
    method: type[Method]
    training: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def fit(
        self,
        pairs: PairSource,
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        network: Any = None,
        **options: Any,
    ) -> Method:
        """Train the row's method; see `Method.fit`.

        Args:
            pairs: the corpus.
            config: settings.
            out: folder of the run; one for all rows with this `training`.
            network: widths, which the row's `changes` are made to. Default: the method's own.
            options: of `Method.fit`.
        """
        network = dataclasses.replace(self.method.network_type() if network is None else network, **self.changes)
        return self.method.fit(pairs, config, out, network=network, **options)

    def load(self, out: str | os.PathLike[str], *, hands: Any = None) -> Method:
        """The method that `fit` stored in the run's folder `out`."""
        return self.method.from_folder(Path(out) / self.method.result, hands=hands)

    def sample(self, method: Method, num: int = 1, **options: Any) -> TwoHands:
        """Draw `num` pairs as the row says; `options` of `method.sample` go first."""
        return method.sample(num, **{**self.options, **options})


@dataclass(frozen=True)
class Corpus:
    """What `fit` trains on: the same for every method.

    Attributes:
        train: training pairs.
        held_out: validation pairs, at most `config.max_val`.
        samples: of `train`, with the mirror views if the config says so.
        val_samples: of `held_out`, with the mirror views.
        normalizer: fitted to the partners; both hands share it.
    """

    train: list[TwoHands]
    held_out: list[TwoHands]
    samples: Samples
    val_samples: Samples
    normalizer: Normalizer

    @classmethod
    def read(
        cls,
        pairs: PairSource,
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        val_pairs: PairSource | None = None,
        hands: Any = None,
    ) -> Corpus:
        """Read the pairs; see `Method.fit` for the arguments. Hands alone are left out.

        Raises:
            ValueError: there are fewer than two samples.
        """
        models = None if hands is None else load_hands(hands)
        train, held_out = load_corpus(pairs, val_pairs, hands=models)
        held_out = first_pairs(held_out, config.max_val)
        # An iterable, even an empty one: None would cut validation pairs off the training pairs.
        data = read_samples(train, held_out, mirror=config.mirror, max_val=config.max_val)
        if data.train.count < 2:
            raise ValueError(f"pairs: at least 2 training pairs are needed, got {data.train.count}")
        normalizer = stored_normalizer(Path(out)) or data.train.moments().normalizer()
        return cls(train, held_out, data.train, data.val, normalizer)


def write_network(
    folder: str | os.PathLike[str],
    name: str,
    network: nn.Module,
    widths: Any,
    normalizer: Normalizer,
    info: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> Path:
    """A checkpoint of kind KIND: a network, the dataclass of its widths, and its normaliser."""
    tensors = {k: v.to(dtype) if dtype else v for k, v in network.state_dict(prefix="network.").items()}
    tensors |= {f"normalizer.{k}": v for k, v in normalizer.state_dict().items()}
    config = {"method": name, "network": dataclasses.asdict(widths), "info": dict(info)}
    return write_checkpoint(folder, config, tensors, kind=KIND)


def read_network(
    folder: str | os.PathLike[str], name: str, make: Callable[[dict[str, Any]], nn.Module]
) -> tuple[nn.Module, Normalizer, dict[str, Any]]:
    """Network in float32, normaliser and info of a checkpoint that `write_network` wrote.

    Args:
        folder: the checkpoint's.
        name: of the method that it must hold.
        make: network from the fields of its widths.

    Raises:
        FileNotFoundError, CheckpointError: it holds no whole, unchanged checkpoint of that method.
    """
    config, tensors = read_checkpoint(folder, kind=KIND)
    if config.get("method") != name:
        raise CheckpointError(f"{folder} holds the method {config.get('method')!r}, not {name!r}; load it as that")
    try:
        # Without memory or random numbers: whoever loads a method finds torch's generators as they were.
        with torch.device("meta"):
            network = make(config["network"])
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "normalizer": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value.float()
        network.load_state_dict(parts["network"], assign=True)
        return network, Normalizer(**parts["normalizer"]), config["info"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} is no {name} of this version ({error}); fit it again with this version or upgrade"
        ) from error


def noise_source(
    num: int, width: int, device: torch.device, seed: int | None, generator: torch.Generator | None
) -> Callable[[], Tensor]:
    """A function that draws (num, width) standard normals, all samples at once, on `device` in float32.

    Raises:
        ValueError: both seed and generator are given.
    """
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are both given; pass one of them")
    if generator is None:
        generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    source = generator
    return lambda: torch.randn(num, width, generator=source, device=source.device).to(device)


def chunk_size(num: int, batch_size: int | None) -> int:
    """Samples to work on at a time.

    Raises:
        ValueError: one of the two is not positive.
    """
    for name, value in (("num", num), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return min(batch_size or 512, num)
