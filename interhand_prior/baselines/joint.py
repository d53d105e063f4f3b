"""Methods that model both hands at once, p(x_l, x_r), instead of p(x_l) p(x_r | x_l) (Eq. 6).

The joint vector is the two canonical vectors side by side, normalised,

    (anchor 64, partner 64),                                                                    128 in all,

of which the anchor's last nine entries are constant (it is the origin of the frame) and zero after normalisation.
They are no part of what is learned: networks neither see noise in them nor answer anything but zero, so the loss
has no share of them and the reverse process ends at zero.

A joint diffusion model uses our noise schedule, preconditioning, loss weight and sampler; it has no condition,
hence neither condition dropout nor classifier-free guidance. Anti-penetration guidance is off by default, as in the
compared methods' sources; with `penetration_scale` > 0 the right hand is guided away from the left hand's current
clean estimate (Eq. 7-8), so that methods can be compared at equal guidance.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..canonical import SIZE, SLICES, Normalizer, from_canonical
from ..guidance import AntiPenetration, PairSurfaces
from ..hands import HandPair, load_hands, open_hands
from ..params import TwoHands
from ..progress import progress_bar
from ..sampling import pick_solver
from ..schedule import CosineSchedule, add_noise
from ..train import TrainConfig
from ..train.data import PairSource, Samples
from ..train.diffusion import Draws, diffusion_draws, diffusion_loss, fresh
from ..train.run import run
from ..train.task import Task
from ..train.validation import LEVELS
from .protocol import Corpus, Method, chunk_size, noise_source, read_network, write_network

__all__ = ["FREE", "JOINT", "JointDiffusion", "JointMethod", "JointTask", "freed", "join", "split", "to_hands"]

JOINT = 2 * SIZE
FREE = JOINT - (SLICES["relative"].stop - SLICES["relative"].start)
"""Entries that are not constant: 119."""

_VALIDATION_SEED = 20260
_CHUNK = 2048

M = TypeVar("M", bound="JointMethod")


def join(anchor: Tensor, partner: Tensor) -> Tensor:
    """Normalised anchor (..., 64) and partner (..., 64) -> joint vector (..., 128)."""
    return torch.cat((anchor, partner), -1)


def split(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `join`."""
    return joint[..., :SIZE], joint[..., SIZE:]


def freed(joint: Tensor) -> Tensor:
    """The joint vector (..., 128) with zeros in the anchor's constant entries."""
    anchor, partner = split(joint)
    return torch.cat((anchor[..., SLICES["own"]], torch.zeros_like(anchor[..., SLICES["relative"]]), partner), -1)


def to_hands(joint: Tensor, normalizer: Normalizer, hands: HandPair) -> TwoHands:
    """Pairs (...) of normalised joint vectors (..., 128); the left hand is the anchor, at the origin."""
    anchor, partner = split(joint)
    return from_canonical(normalizer.anchor_inverse(anchor), normalizer.partner_inverse(partner), hands)


class JointMethod(Method):
    """A method with one network for the joint vector.

    Args:
        network: with its widths as `config`.
        normalizer: statistics of the vectors it was trained on.
        hands: hand models that the samples belong to, in the forms of `load_prior`.
        info: facts about its making, JSON values.
    """

    def __init__(
        self, network: nn.Module, normalizer: Normalizer, *, hands: Any = None, info: Mapping[str, Any] | None = None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.normalizer = normalizer
        self.hands: HandPair = open_hands() if hands is None else load_hands(hands)
        self.info = dict(info or {})

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @staticmethod
    @abstractmethod
    def build(network: Any) -> nn.Module:
        """A new network of these widths."""

    @staticmethod
    @abstractmethod
    def draw(network: nn.Module, size: int, config: TrainConfig, generator: torch.Generator) -> Any:
        """What is random about the loss of `size` samples; see `Task.draw`."""

    @staticmethod
    @abstractmethod
    def loss(network: nn.Module, joint: Tensor, draws: Any) -> Tensor:
        """The training loss, (), on joint vectors (B, 128)."""

    @staticmethod
    @abstractmethod
    def validate(network: nn.Module, joint: Tensor) -> dict[str, float]:
        """Numbers for the log on held-out joint vectors (N, 128), the same for the same weights."""

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
        task = JointTask(cls, network or cls.network_type(), corpus, config)
        run(task, config, out, resume=resume, progress=progress, should_stop=should_stop)
        return cls.from_folder(Path(out) / cls.result, hands=corpus.train[0].hands)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """See `Method.save`."""
        return write_network(folder, self.name, self.network, self.network.config, self.normalizer, self.info, dtype)

    @classmethod
    def from_folder(cls: type[M], folder: str | os.PathLike[str], *, hands: Any = None) -> M:
        """See `Method.from_folder`."""
        make = lambda widths: cls.build(cls.network_type(**widths))
        network, normalizer, info = read_network(folder, cls.name, make)
        return cls(network, normalizer, hands=hands, info=info)


class JointTask(Task):
    """Training of a joint method.

    Args:
        method: its class.
        network: widths.
        corpus: to train on.
        config: settings.
    """

    result = JointMethod.result

    def __init__(self, method: type[JointMethod], network: Any, corpus: Corpus, config: TrainConfig) -> None:
        self.method = method
        self.config = config
        self.corpus = corpus
        self.module = fresh(lambda: method.build(network), config.seed)
        self.joint = self._joint(corpus.samples)
        self.val_joint = self._joint(corpus.val_samples)
        self.count = len(self.joint)
        normalizer = corpus.normalizer
        self.facts = {
            "method": method.name,
            "pairs": corpus.samples.fingerprint,
            "network": dataclasses.asdict(network),
            "normalizer": [normalizer.mean.tolist(), normalizer.std.tolist()],
        }

    def to(self, device: torch.device) -> None:
        """Move the vectors."""
        self.joint, self.val_joint = self.joint.to(device), self.val_joint.to(device)

    def draw(self, size: int, generator: torch.Generator) -> Any:
        """The method's."""
        return self.method.draw(self.module, size, self.config, generator)

    def loss(self, batch: Tensor, draws: Any) -> Tensor:
        """The method's, on the rows `batch` (B,)."""
        return self.method.loss(self.module, self.joint[batch], draws)

    def validate(self, average: nn.Module) -> dict[str, float]:
        """The method's."""
        return self.method.validate(average, self.val_joint) if len(self.val_joint) else {}

    def keep(self, average: nn.Module, folder: Path, info: dict[str, Any], final: bool) -> None:
        """Store the method."""
        network = copy.deepcopy(average).cpu()
        info = {"samples": self.count, **info}
        method = self.method(network, self.corpus.normalizer, hands=self.corpus.train[0].hands, info=info)
        method.save(folder, dtype=getattr(torch, self.config.weights))

    def _joint(self, samples: Samples) -> Tensor:
        normalizer, batch = self.corpus.normalizer, samples.fetch(torch.arange(samples.count))
        return join(normalizer.anchor(batch.anchor), normalizer.partner(batch.partner))


class JointDiffusion(JointMethod):
    """A joint method whose network is a denoiser: called with x_t (..., 128) and sigma (...), it estimates x_0."""

    schedule = CosineSchedule()

    @staticmethod
    def draw(network: nn.Module, size: int, config: TrainConfig, generator: torch.Generator) -> Draws:
        """Levels and noise."""
        schedule = JointDiffusion.schedule
        return diffusion_draws(
            size, JOINT, schedule, min_sigma=config.min_sigma, levels=config.levels, generator=generator
        )

    @staticmethod
    def loss(network: nn.Module, joint: Tensor, draws: Draws) -> Tensor:
        """Algorithm 1 without a condition."""
        x_t = add_noise(joint, draws.noise, draws.sigma)
        return diffusion_loss(network(x_t, draws.sigma), joint, draws.sigma)

    @staticmethod
    @torch.no_grad()
    def validate(network: nn.Module, joint: Tensor) -> dict[str, float]:
        """The training loss at fixed levels with fixed noise, over the free entries: `val_joint_0.5` and so on."""
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        result = {}
        for level in LEVELS:
            total = 0.0
            for x0 in joint.split(_CHUNK):
                noise = torch.randn(x0.shape, generator=generator).to(x0)
                sigma = x0.new_full((len(x0),), level)
                estimate = network(add_noise(x0, noise, sigma), sigma)
                total += float(((estimate - x0) / level).square().sum())
            result[f"val_joint_{level}"] = total / (FREE * len(joint))
        return {"val_joint": sum(result.values()) / len(result), **result}

    @torch.no_grad()
    def sample(
        self,
        num: int = 1,
        *,
        steps: int = 25,
        penetration_scale: float = 0.0,
        solver: str = "multistep",
        eta: float = 0.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> TwoHands:
        """Draw pairs by one reverse process over both hands at once.

        Args:
            num: how many pairs.
            steps: denoising steps.
            penetration_scale: strength of anti-penetration guidance of the right hand by the left one; 0: none.
            solver: see `interhand_prior.sample`.
            eta: likewise.
            seed: see `Method.sample`.
            generator: likewise.
            batch_size: likewise.
            progress: likewise.

        Returns:
            (num,) pairs.

        Raises:
            ValueError: an argument is out of range; both seed and generator are given.
        """
        if not (math.isfinite(penetration_scale) and penetration_scale >= 0):
            raise ValueError(f"penetration_scale must be finite and not negative, got {penetration_scale}")
        solve = pick_solver(solver, eta)
        chunk = chunk_size(num, batch_size)
        levels = self.schedule.steps(steps)
        draw = noise_source(num, JOINT, self.device, seed, generator)
        guidance = AntiPenetration(self._surfaces(), scale=penetration_scale) if penetration_scale else None

        with progress_bar(steps * math.ceil(num / chunk), "sampling", "step", progress) as advance:

            def estimate(x_t: Tensor, sigma: float) -> Tensor:
                x0 = self.network(x_t, x_t.new_tensor(sigma))
                x0 = x0 if guidance is None else _pushed_out(x0, sigma, guidance)
                advance(1)
                return x0

            denoise = lambda x, sigma: torch.cat([estimate(part, sigma) for part in x.split(chunk)])
            joint = solve(denoise, draw(), levels, draw)
        return to_hands(joint, self.normalizer.to(joint.device), self.hands)

    def _surfaces(self) -> PairSurfaces:
        normalizer, hands, device = self.normalizer.to(self.device), self.hands, self.device

        def left(anchor: Tensor) -> Tensor:
            return hands.left(to_hands(join(anchor, torch.zeros_like(anchor)), normalizer, hands).left)[0]

        def right(partner: Tensor) -> Tensor:
            return hands.right(to_hands(join(torch.zeros_like(partner), partner), normalizer, hands).right)[0]

        return PairSurfaces(left, right, hands.left.faces.to(device), hands.right.faces.to(device))


def _pushed_out(x0: Tensor, sigma: float, guidance: AntiPenetration) -> Tensor:
    """The clean estimates (B, 128) with the right hand moved out of the left one."""
    if 1 - sigma * sigma < guidance.min_alpha_bar:
        return x0  # a level that is not guided; the left hands' meshes are not needed
    anchor, partner = split(x0)
    return join(anchor, guidance.prepare(anchor)(partner, sigma))
