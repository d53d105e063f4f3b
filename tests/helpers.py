"""Makers of hands and priors, and the motions under which the library must be invariant."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from interhand_prior import HandParams, TwoHandPrior, TwoHands
from interhand_prior.canonical import SLICES, Normalizer, from_canonical
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.hands import HandModel, HandPair, open_hands
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from interhand_prior.schedule import signal

#: Mean and variance of the relative pose in InterHand2.6M (published normaliser of the official code).
RELATIVE_MEAN = (-0.718, 0.216, -0.009, -0.217, -0.462, -0.088, 0.005, -0.082, -0.004)
RELATIVE_VARIANCE = (0.122, 0.105, 0.211, 0.105, 0.407, 0.219, 0.002, 0.006, 0.004)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load_example(name: str) -> ModuleType:
    """A script of the examples, as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_normalizer() -> Normalizer:
    mean, std = torch.zeros(64, dtype=torch.float64), torch.full((64,), 0.3, dtype=torch.float64)
    mean[SLICES["hand_pose"]] = 0.2 * torch.randn(45, generator=generator(5), dtype=torch.float64)
    std[SLICES["betas"]] = 1.0
    mean[SLICES["relative"]] = torch.tensor(RELATIVE_MEAN, dtype=torch.float64)
    std[SLICES["relative"]] = torch.tensor(RELATIVE_VARIANCE, dtype=torch.float64).sqrt()
    return Normalizer(mean, std)


def make_denoiser(seed: int = 0, **config: object) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(DenoiserConfig(**{"embed": 32, "hidden": 48, "layers": 3, **config}))  # type: ignore[arg-type]


def make_prior(dtype: torch.dtype = torch.float64, seed: int = 0, hands: HandPair | None = None) -> TwoHandPrior:
    return TwoHandPrior(make_denoiser(seed), make_normalizer(), hands=hands).to(dtype)


class GaussianDenoiser(nn.Module):
    """The exact denoiser of N(mean, diag(std^2)): E[x0 | x_t], whatever the anchor.

    From x_t = a x0 + sigma eps:  E[x0 | x_t] = mean + a std^2 (x_t - a mean) / (a^2 std^2 + sigma^2).
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros((), dtype=mean.dtype))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        anchor: Tensor | None = None,
        has_anchor: Tensor | None = None,
        has_relative: Tensor | None = None,
    ) -> Tensor:
        a, level = signal(sigma)[..., None], sigma[..., None]
        square = self.std**2
        return self.mean + a * square * (x_t - a * self.mean) / (a * a * square + level * level)


def gaussian_prior(mean: Tensor | None = None, std: Tensor | None = None) -> TwoHandPrior:
    """A prior whose normalised partners are exactly N(mean, diag(std^2)), by default N(0, 1)."""
    mean = torch.zeros(64, dtype=torch.float64) if mean is None else mean
    std = torch.ones(64, dtype=torch.float64) if std is None else std
    return TwoHandPrior(GaussianDenoiser(mean, std), make_normalizer())  # type: ignore[arg-type]


def random_hand(*batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> HandParams:
    """Any orientation, any place within decimetres, moderate pose."""
    draw = generator(seed)
    normal = lambda width, scale: scale * torch.randn(*batch, width, generator=draw, dtype=torch.float64)
    return HandParams(normal(3, 1.2), normal(45, 0.4), normal(10, 1.0), normal(3, 0.1)).to(dtype)


def random_pairs(*batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> TwoHands:
    """Pairs as `make_normalizer` describes them, anywhere in space."""
    draw = generator(seed)
    normal = lambda *shape: torch.randn(*batch, *shape, generator=draw, dtype=torch.float64)
    normalizer = make_normalizer()
    anchor, partner = normalizer.anchor_inverse(normal(64)), normalizer.partner_inverse(normal(64))
    pairs = from_canonical(anchor, partner, open_hands())
    pairs = rigidly_moved(pairs, axis_angle_to_matrix(1.2 * normal(3)), 0.3 * normal(3))
    return TwoHands(pairs.left.to(dtype), pairs.right.to(dtype))


def rigidly_moved(hands: TwoHands, rotation: Tensor, translation: Tensor) -> TwoHands:
    """Every point x of both hands goes to `rotation @ x + translation`.

    MANO's global rotation pivots about the wrist J0(betas), so transl must make up for the difference.
    """

    def move(hand: HandParams, side: str) -> HandParams:
        wrist = getattr(hands.model, side).rest_joints(hand.betas)[..., 0, :]
        place = (rotation @ (wrist + hand.transl)[..., None])[..., 0] + translation
        turned = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(hand.global_orient))
        return HandParams(turned, hand.hand_pose, hand.betas, place - wrist)

    return TwoHands(move(hands.left, "left"), move(hands.right, "right"), hands.hands, hands.extras)


def other_hands() -> HandPair:
    """Hands whose wrist joint is elsewhere: the same parameters then mean another place."""
    right = open_hands().right
    regressor = right.arrays.J_regressor.copy()
    regressor[0] = right.arrays.J_regressor[:6].mean(0)
    model = HandModel(replace(right.arrays, J_regressor=regressor))
    return HandPair(model.mirrored(), model)


def far_apart(hands: TwoHands, metres: float) -> TwoHands:
    """The right hand pushed away along x."""
    away = torch.tensor([metres, 0.0, 0.0], dtype=hands.dtype)
    right = hands.right.as_dict() | {"transl": hands.right.transl + away}
    return TwoHands(hands.left, HandParams(**right), hands.hands, hands.extras)


def with_grad(hands: TwoHands) -> TwoHands:
    return hands.map(lambda value: value.detach().clone().requires_grad_())


def leaves(hands: TwoHands) -> dict[str, Tensor]:
    return {
        f"{side}.{name}": value for side in ("left", "right") for name, value in getattr(hands, side).as_dict().items()
    }


def assert_close(found: TwoHands, wanted: TwoHands, atol: float = 1e-10) -> None:
    for name, value in leaves(wanted).items():
        say = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(leaves(found)[name], value, atol=atol, rtol=0, msg=say)


def assert_same(found: TwoHands, wanted: TwoHands) -> None:
    for name, value in leaves(wanted).items():
        assert torch.equal(leaves(found)[name], value), name
