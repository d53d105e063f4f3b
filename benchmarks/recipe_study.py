"""What makes a prior better: variants of network and training, each for the same number of steps.

    python benchmarks/recipe_study.py --data CORPUS --work runs/recipes              # all, an hour of one core
    python benchmarks/recipe_study.py --data CORPUS --work runs/recipes --only base  # some; finished ones are kept

Each differs from `base` in what its name says. Judged by the validation losses (`train.validation`) and by samples
against the bundled reference (`metrics.evaluate`), drawn without anti-penetration guidance. One seed each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import write_result
from torch import Tensor, nn

from interhand_prior import TwoHandPrior, sample
from interhand_prior.canonical import SLICES, Normalizer
from interhand_prior.denoiser import ConditionalDenoiser, DenoiserConfig
from interhand_prior.metrics import evaluate
from interhand_prior.networks import make_denoiser
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d
from interhand_prior.schedule import CosineSchedule, snr
from interhand_prior.token_denoiser import TokenDenoiser, TokenDenoiserConfig, two_layers
from interhand_prior.train import TrainConfig
from interhand_prior.train.data import TrainingData, read_samples
from interhand_prior.train.diffusion import DiffusionTask, fresh
from interhand_prior.train.log import read_log
from interhand_prior.train.run import run

TOKENS = TokenDenoiserConfig()


class PlainX0(TokenDenoiser):
    """The network's answer is x_0 itself, as in the paper; no preconditioner."""

    def precondition(self, x: Tensor, level: Tensor, answer: Tensor) -> Tensor:
        """The answer."""
        return answer


class Reads6D(nn.Module):
    """The token of a hand_pose, made from the first two rows of each joint's rotation instead of its axis-angle.

    Args:
        normalizer: says which angles a normalised entry is.
        config: widths.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, normalizer: Normalizer, config: TokenDenoiserConfig) -> None:
        super().__init__()
        pose = SLICES["hand_pose"]
        self.register_buffer("mean", normalizer.mean[pose].clone())
        self.register_buffer("std", normalizer.std[pose].clone())
        self.embed = two_layers(90, config.embedding, config.width)

    def forward(self, part: Tensor) -> Tensor:
        """(B, 45) normalised -> (B, width)."""
        rotation = axis_angle_to_matrix((part * self.std + self.mean).unflatten(-1, (15, 3)))
        moved = matrix_to_rot6d(rotation) - torch.eye(3).to(part)[:2].flatten()
        return self.embed(moved.flatten(1) / self.std.mean())


def six_d_inside(normalizer: Normalizer, config: TokenDenoiserConfig = TOKENS) -> TokenDenoiser:
    """Both hands' poses are read as 6D; the noise and the answer stay in axis-angle."""
    network = TokenDenoiser(config)
    network.embed_anchor[0], network.embed_partner[0] = Reads6D(normalizer, config), Reads6D(normalizer, config)
    return network


class StudyTask(DiffusionTask):
    """Keeps the finished prior at hand instead of storing it: not every variant is a network that can be stored."""

    made: TwoHandPrior

    def store(self, prior: TwoHandPrior, folder: Path) -> None:
        """Remember it."""
        self.made = prior


class Weighted(StudyTask):
    """The loss in x_0, weighted by the level: w(sigma) |x_0 - D|^2."""

    @staticmethod
    def weight(sigma: Tensor) -> Tensor:
        """1: the paper's."""
        return torch.ones_like(sigma)

    def error_unit(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(w)."""
        return self.weight(sigma).rsqrt()


class MinSNR(Weighted):
    """min(SNR, 5), Hang et al., ICCV 2023."""

    @staticmethod
    def weight(sigma: Tensor) -> Tensor:
        """As named."""
        return snr(sigma).clamp_max(5.0)


@dataclass(frozen=True)
class Variant:
    """What differs from the base.

    Attributes:
        config: fields of TrainConfig.
        network: makes the network, given the normaliser.
        task: the loss.
        mirror: whether the mirrored pairs are trained on, too.
    """

    config: dict[str, Any] = field(default_factory=dict)
    network: Callable[[Normalizer], ConditionalDenoiser] = lambda _: make_denoiser(TOKENS)
    task: type[StudyTask] = StudyTask
    mirror: bool = True


VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "the paper's network": Variant(
        config={"lr": 8e-4}, network=lambda _: make_denoiser(DenoiserConfig(alone=True))
    ),
    "192 wide": Variant(network=lambda _: make_denoiser(replace(TOKENS, width=192))),
    "6 layers": Variant(network=lambda _: make_denoiser(replace(TOKENS, layers=6))),
    "x0 outright": Variant(network=lambda _: PlainX0(TOKENS), task=Weighted),
    "min-SNR weight": Variant(task=MinSNR),
    "more middle levels": Variant(config={"levels": "middle"}),
    "6D inside": Variant(network=six_d_inside),
    "p_uncond 0.1": Variant(config={"p_uncond": 0.1}),
    "p_uncond 0.4": Variant(config={"p_uncond": 0.4}),
    "EMA 0.999": Variant(config={"ema": 0.999}),
    "no average": Variant(config={"ema": 0.0}),
    "no mirrored pairs": Variant(mirror=False),
}  # fmt: skip


def study(name: str, data: TrainingData, args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant, or find it finished, and measure it."""
    variant, out = VARIANTS[name], Path(args.work) / name.replace(" ", "-").replace("'", "")
    done = out / "numbers.json"
    if done.exists():
        return json.loads(done.read_text())
    config = TrainConfig(steps=args.steps, seed=args.seed, val_every=args.steps, threads=1)
    config = replace(config, mirror=variant.mirror, **variant.config)
    normalizer = data.train.moments().normalizer()
    task = variant.task(
        fresh(lambda: variant.network(normalizer), args.seed), normalizer, CosineSchedule(), data.train, data.val,
        config, hands=data.hands,
    )  # fmt: skip
    run(task, config, out, resume=True)
    log = read_log(out / "log.csv")
    numbers: dict[str, Any] = {k: v for k, v in log[-1].items() if k in ("val_cond", "val_uncond", "val_alone")}
    numbers["parameters"] = sum(p.numel() for p in task.module.parameters())
    hands = sample(task.made, args.num, seed=args.seed, penetration_scale=0.0)
    report = evaluate(hands, metrics=("fhid", "khid", "precision", "recall"), floor=False)
    numbers |= {key: {"mean": value.mean, "std": value.std} for key, value in report.values.items()}
    done.write_text(json.dumps(numbers, indent=1))
    return numbers


def main() -> None:
    """Study and write `results/recipe_study.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a corpus")
    parser.add_argument("--work", required=True, help="folder for the runs; finished ones in it are kept")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--num", type=int, default=4000, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = {mirror: read_samples(args.data, mirror=mirror) for mirror in {VARIANTS[n].mirror for n in args.only}}
    numbers = {name: study(name, data[VARIANTS[name].mirror], args) for name in args.only}
    settings = {"steps": args.steps, "samples": args.num, "seed": args.seed}
    print(write_result("recipe_study", {"settings": settings, "variants": numbers}).read_text())


if __name__ == "__main__":
    main()
