"""Algorithm 2: the solvers against diffusers, a closed-form Gaussian and their order; the cascade; hands kept."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import (
    assert_close,
    assert_same,
    gaussian_prior,
    generator,
    make_normalizer,
    make_prior,
    random_hand,
    rigidly_moved,
)
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, sample
from interhand_prior.canonical import SLICES, Side, to_canonical
from interhand_prior.guidance.cfg import guided_x0
from interhand_prior.hands import MIDDLE_MCP
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sampling import SOLVERS, ddim, multistep
from interhand_prior.schedule import CosineSchedule

#: Fast, and without the surfaces.
QUICK: dict[str, Any] = {"steps": 4, "penetration_scale": 0.0}


@pytest.fixture
def prior32() -> TwoHandPrior:
    return make_prior(torch.float32)


# The sampler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_that_of_diffusers(eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler = diffusers.DDIMScheduler(
        trained_betas=betas.numpy(), prediction_type="sample", clip_sample=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(20)
    alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    levels = [*(1 - alpha_bar).sqrt().tolist(), 0.0]
    matrix = torch.randn(6, 6, generator=generator(), dtype=torch.float64) / 3
    x0_of = lambda x, sigma: torch.tanh(x @ matrix) + sigma
    start = torch.randn(5, 6, generator=generator(1), dtype=torch.float64)

    draws = generator(2)
    draw = lambda: torch.randn(5, 6, generator=draws, dtype=torch.float64)
    found = ddim(x0_of, start, levels, eta=eta, draw=draw)

    draws, theirs = generator(2), start
    for step, sigma in zip(scheduler.timesteps, levels, strict=False):
        noise = draw() if eta and step > 0 else None
        theirs = scheduler.step(x0_of(theirs, sigma), step, theirs, eta=eta, variance_noise=noise).prev_sample
    # diffusers keeps its table in float32.
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 100), (1.0, 300)])
def test_the_sampler_recovers_a_gaussian(eta: float, steps: int) -> None:
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.6, 0.2, 0.3]], dtype=torch.float64)
    mean, covariance = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), root @ root.T

    def denoise(x: Tensor, sigma: float) -> Tensor:
        a = math.sqrt(1 - sigma * sigma)
        gain = a * covariance @ torch.linalg.inv(a * a * covariance + sigma * sigma * torch.eye(3).double())
        return mean + (x - a * mean) @ gain.T

    draws = generator()
    draw = lambda: torch.randn(20_000, 3, generator=draws, dtype=torch.float64)
    found = ddim(denoise, draw(), CosineSchedule().steps(steps), eta=eta, draw=draw)
    torch.testing.assert_close(found.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(found.T.cov(), covariance, atol=0.04, rtol=0)


def gaussian_flow(scale: float, start: Tensor, steps: int, solver: str) -> Tensor:
    """Samples of N(0, scale^2): the flow is exact as x(0) = scale x(1)."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        a = math.sqrt(1 - sigma * sigma)
        return a * scale**2 / (a * a * scale**2 + sigma * sigma) * x

    levels = CosineSchedule(1e-8).steps(steps)
    return multistep(denoise, start, levels) if solver == "multistep" else ddim(denoise, start, levels)


def test_a_standard_normal_stays_what_it_is_but_for_ddim() -> None:
    start = torch.randn(4, 8, generator=generator(), dtype=torch.float64)
    found = gaussian_flow(1.0, start, 10, "multistep")
    # The last step takes the estimate itself, which is cos(pi / 20) x here.
    torch.testing.assert_close(found, math.cos(math.pi / 20) * start, atol=1e-6, rtol=0)
    shrunk = gaussian_flow(1.0, start, 10, "ddim")
    torch.testing.assert_close(shrunk, math.cos(math.pi / 20) ** 10 * start, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [0.4, 0.8, 1.5])
def test_the_multistep_rule_is_of_second_order(scale: float) -> None:
    """Half the step, a quarter of the error; DDIM halves it."""
    start = torch.ones(1, 1, dtype=torch.float64)
    errors = {
        name: [abs(float(gaussian_flow(scale, start, steps, name)) - scale) for steps in (50, 100)] for name in SOLVERS
    }
    assert errors["multistep"][1] < errors["multistep"][0] / 3
    assert errors["multistep"][0] < errors["ddim"][0] / 4
    assert errors["ddim"][0] / 3 < errors["ddim"][1] < errors["ddim"][0] / 1.5


def test_two_steps_of_the_rule_by_hand() -> None:
    sigmas = [0.9, 0.5, 0.2, 0.0]
    angles = [math.asin(s) for s in sigmas]
    x, flows = torch.tensor([[1.3]], dtype=torch.float64), []
    x0_of = lambda x, sigma: torch.tanh(x) + sigma
    wanted = x
    for k in range(2):
        flow = (x0_of(wanted, sigmas[k]) - math.cos(angles[k]) * wanted) / math.sin(angles[k])
        flows.append(flow)
        step = angles[k] - angles[k + 1]
        slope = flow if k == 0 else flow + step / (angles[0] - angles[1]) / 2 * (flow - flows[0])
        wanted = wanted + step * slope
    torch.testing.assert_close(multistep(x0_of, x, sigmas), x0_of(wanted, 0.2), atol=1e-12, rtol=0)


def test_the_cascade_recovers_a_gaussian() -> None:
    mean = torch.randn(64, generator=generator(), dtype=torch.float64)
    std = 0.2 + torch.rand(64, generator=generator(1), dtype=torch.float64)
    pairs = sample(gaussian_prior(mean, std), 3000, steps=40, penetration_scale=0, seed=0)
    normalizer = make_normalizer()
    for side, names in (("left", ("hand_pose", "betas", "transl")), ("right", ("hand_pose", "betas"))):
        partner = normalizer.partner(to_canonical(pairs, pairs.model, side)[1])  # type: ignore[arg-type]
        for name in names:
            part = SLICES[name]
            torch.testing.assert_close(partner[:, part].mean(0), mean[part], atol=0.1, rtol=0)
            torch.testing.assert_close(partner[:, part].std(0), std[part], atol=0.08, rtol=0)


def test_sample_is_two_runs_of_ddim(prior: TwoHandPrior) -> None:
    """Algorithm 2 without its batches: the anchor from p(x), then the partner given it, both with Eq. 4."""
    found = sample(prior, 3, steps=5, cfg_scale=0.7, penetration_scale=0, seed=4, solver="ddim")
    draws = generator(4)
    levels = [torch.tensor(s, dtype=torch.float64) for s in prior.schedule.steps(5)]

    def run(x0_of: Any) -> Tensor:
        x = torch.randn(3, 64, generator=draws).double()
        for now, after in pairwise(levels):
            x0 = x0_of(x, now)
            noise = (x - (1 - now**2).sqrt() * x0) / now
            x = (1 - after**2).sqrt() * x0 + after * noise
        return x

    anchor = run(lambda x, s: prior.denoiser(x, s))
    anchor[:, SLICES["relative"]] = 0
    partner = run(lambda x, s: guided_x0(prior.denoiser, x, s, anchor, 0.7))
    found_anchor, found_partner, frame = to_canonical(found, prior.hands)
    own = SLICES["own"]
    torch.testing.assert_close(prior.normalizer.anchor(found_anchor)[:, own], anchor[:, own], atol=1e-10, rtol=0)
    torch.testing.assert_close(prior.normalizer.partner(found_partner)[:, own], partner[:, own], atol=1e-10, rtol=0)
    found_place = prior.normalizer.partner(found_partner)[:, SLICES["transl"]]
    torch.testing.assert_close(found_place, partner[:, SLICES["transl"]], atol=1e-9, rtol=0)
    torch.testing.assert_close(frame.origin, torch.zeros(3, 3).double(), atol=1e-12, rtol=0)
    assert found.left.global_orient.abs().max() == 0


# Seeds and batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"solver": "ddim", "eta": 0.8}, {"given": random_hand()}], ids=["cascade", "eta", "given"]
)
def test_the_batch_size_changes_nothing(prior32: TwoHandPrior, options: dict[str, Any]) -> None:
    whole = sample(prior32, 5, seed=3, **QUICK, **options)
    for batch_size in (1, 2, 4, 99):
        assert_close(sample(prior32, 5, seed=3, batch_size=batch_size, **QUICK, **options), whole, 1e-5)


def test_the_batch_size_changes_nothing_with_guidance(prior32: TwoHandPrior) -> None:
    whole = sample(prior32, 3, seed=3, steps=12)
    assert_close(sample(prior32, 3, seed=3, steps=12, batch_size=2), whole, 1e-4)
    assert all(torch.isfinite(vertices).all() for vertices in whole.vertices())
    unguided = sample(prior32, 3, seed=3, steps=12, penetration_scale=0)
    torch.testing.assert_close(whole.left.hand_pose, unguided.left.hand_pose), "guidance must leave the anchor alone"


def test_seeds(prior32: TwoHandPrior) -> None:
    before = torch.get_rng_state()
    first = sample(prior32, 2, seed=5, **QUICK)
    assert torch.equal(torch.get_rng_state(), before), "a seed must leave torch's generator as it was"
    assert_same(sample(prior32, 2, generator=generator(5), **QUICK), first)
    assert not torch.equal(sample(prior32, 2, seed=6, **QUICK).left.betas, first.left.betas)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unseeded = [sample(prior32, 2, **QUICK) for _ in range(2)]
        assert not torch.equal(unseeded[0].left.betas, unseeded[1].left.betas)
        torch.manual_seed(0)
        assert_same(sample(prior32, 2, **QUICK), unseeded[0])


def test_the_samples_of_one_call_differ(prior32: TwoHandPrior) -> None:
    betas = sample(prior32, 4, seed=0, **QUICK).right.betas
    assert torch.pdist(betas).min() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_have_the_priors_type(dtype: torch.dtype) -> None:
    exact = sample(make_prior(torch.float64), 2, seed=0, **QUICK)
    found = sample(make_prior(dtype), 2, seed=0, **QUICK)
    assert found.dtype == dtype
    assert not found.left.betas.requires_grad
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    assert_close(found.to(torch.float64), exact, tolerance)


def test_progress_is_shown_on_request(prior32: TwoHandPrior, capsys: pytest.CaptureFixture[str]) -> None:
    silent = sample(prior32, 3, seed=0, batch_size=2, **QUICK)
    assert capsys.readouterr().err == ""
    assert_same(sample(prior32, 3, seed=0, batch_size=2, progress=True, **QUICK), silent)
    shown = capsys.readouterr().err
    assert "16/16" in shown, "two hands, four steps, two batches"


# A hand that is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_given_hand_is_kept_bit_for_bit(prior: TwoHandPrior, side: Side, batch: tuple[int, ...]) -> None:
    hand = random_hand(*batch)
    found = prior.complete(hand.as_dict(), side, 3, seed=0, **QUICK)  # type: ignore[arg-type]
    for name, value in hand.as_dict().items():
        assert torch.equal(getattr(getattr(found, side), name), value.expand(3, -1))
    other = found.right if side == "left" else found.left
    assert torch.pdist(other.betas).min() > 0.1
    _, partner, _ = to_canonical(found, prior.hands, side)
    assert (prior.normalizer.partner(partner)[:, SLICES["transl"]].abs() < 10).all(), "the partner is beside it"


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_partner_moves_with_the_given_hand(prior: TwoHandPrior, side: Side) -> None:
    hand = random_hand(2)
    rotation = axis_angle_to_matrix(torch.tensor([0.4, -2.0, 0.3], dtype=torch.float64))
    translation = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    moved = getattr(rigidly_moved(TwoHands(hand, hand), rotation, translation), side)
    here = prior.complete(hand, side, 2, seed=0, **QUICK)
    there = prior.complete(moved, side, 2, seed=0, **QUICK)
    wanted = [joints @ rotation.T + translation for joints in here.joints()]
    for found, joints in zip(there.joints(), wanted, strict=True):
        torch.testing.assert_close(found, joints, atol=1e-9, rtol=0)


def test_completing_the_mirrored_hand_gives_the_mirrored_partner(prior: TwoHandPrior) -> None:
    hand = random_hand(2)
    left = prior.complete(hand, "left", 2, seed=0, **QUICK)
    right = prior.complete(hand.mirrored(), "right", 2, seed=0, **QUICK)
    for found, wanted in zip(right.mirrored().joints(), left.joints(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_a_given_hand_stays_with_guidance(prior32: TwoHandPrior) -> None:
    hand = random_hand(dtype=torch.float32)
    found = prior32.complete(hand, "right", 2, seed=0, steps=10)
    assert torch.equal(found.right.hand_pose, hand.hand_pose.expand(2, -1))
    assert torch.isfinite(found.left.transl).all()


def test_the_anchor_lies_at_the_origin(prior: TwoHandPrior) -> None:
    left, _ = sample(prior, 2, seed=0, **QUICK).joints()
    assert left[:, MIDDLE_MCP].abs().max() < 1e-15


# Errors ----------------------------------------------------------------------------------------------------------


def other_batch() -> HandParams:
    return random_hand(2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "num_samples must be a positive integer, got 0"),
        ({"num_samples": 2.5}, "num_samples must be a positive integer"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"batch_size": -1}, "batch_size must be a positive integer"),
        ({"cfg_scale": math.nan}, "cfg_scale must be a finite number"),
        ({"penetration_scale": -1}, "penetration_scale must be finite and not negative"),
        ({"penetration_scale": math.inf}, "penetration_scale"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\]"),
        ({"eta": math.nan}, "eta"),
        ({"seed": 1, "generator": generator()}, "seed and generator are both given"),
        ({"given": other_batch()}, r"given must have batch shape \(\) or \(4,\).*got \(2,\)"),
        ({"given": {"betas": torch.zeros(10)}}, "given lacks"),
        ({"given": random_hand().map(lambda v: v * math.nan)}, "given.global_orient holds NaN"),
        ({"given": random_hand(), "given_side": "both"}, "given_side must be 'left' or 'right'"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    prior = make_prior()

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the network was run")

    monkeypatch.setattr(prior.denoiser, "forward", refuse)
    with pytest.raises(ValueError, match=words):
        sample(prior, **{"num_samples": 4, **options})
