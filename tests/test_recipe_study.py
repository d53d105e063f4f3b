"""Variants of the recipe study: that each changes what its name says, and nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import generator, make_normalizer, random_pairs

from interhand_prior.schedule import CosineSchedule, snr
from interhand_prior.token_denoiser import TokenDenoiser, TokenDenoiserConfig
from interhand_prior.train import TrainConfig
from interhand_prior.train.data import read_samples
from interhand_prior.train.diffusion import DiffusionTask

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
try:
    import recipe_study as study
finally:
    sys.path.pop(0)

SMALL = TokenDenoiserConfig(width=16, layers=1, heads=2, feedforward=32, embedding=16)


def make(kind: type[DiffusionTask], network: type[TokenDenoiser] = TokenDenoiser) -> DiffusionTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = network(SMALL)
    data = read_samples(random_pairs(40, dtype=torch.float32), [])
    return kind(denoiser, make_normalizer().float(), CosineSchedule(), data.train, None, TrainConfig(steps=1))


@pytest.mark.parametrize("kind", [study.Weighted, study.MinSNR])
def test_the_loss_is_weighted_by_level(kind: type[study.Weighted]) -> None:
    """Against the plain task's loss of one sample, times sigma^2 w(sigma)."""
    weighted, plain = make(kind), make(DiffusionTask)
    for row in range(3):
        batch, draws = plain.fetch(torch.tensor([row])), plain.draw(1, generator(row))
        factor = float(draws.sigma**2 * {study.Weighted: 1.0, study.MinSNR: snr(draws.sigma).clamp_max(5)}[kind])
        found, wanted = float(weighted.loss(batch, draws).detach()), factor * float(plain.loss(batch, draws).detach())
        assert found == pytest.approx(wanted, rel=1e-4)


def test_x0_outright_answers_f() -> None:
    """sqrt(alpha_bar) x + sigma times its answer is what the preconditioned network with the same weights says."""
    plain, outright = make(DiffusionTask).module.double(), make(DiffusionTask, study.PlainX0).module.double()
    x, anchor = torch.randn(2, 5, 64, generator=generator(), dtype=torch.float64)
    sigma, alone = torch.rand(5, generator=generator(1), dtype=torch.float64), torch.arange(5) % 2 == 0
    own = torch.arange(64) < 55
    for anchors, placed in ((anchor, None), (None, alone)):
        kept = x if placed is None else torch.where(placed[:, None] | own, x, 0)
        answer = outright(x, sigma, anchors, has_relative=placed)
        wanted = (1 - sigma**2).sqrt()[:, None] * kept + sigma[:, None] * answer
        torch.testing.assert_close(plain(x, sigma, anchors, has_relative=placed), wanted)


def test_six_d_inside_reads_the_rotations() -> None:
    """A whole turn about a joint's axis is the same rotation, and so the same token; as axis-angle it is another."""
    normalizer = make_normalizer().float()
    network = study.six_d_inside(normalizer, SMALL)
    pose = 0.5 * torch.randn(4, 15, 3, generator=generator())
    turned = pose * (1 + 2 * torch.pi / pose.norm(dim=-1, keepdim=True))
    mean, std = normalizer.mean[:45], normalizer.std[:45]
    tokens = [network.embed_partner[0]((value.flatten(1) - mean) / std) for value in (pose, turned, pose.flip(1))]
    torch.testing.assert_close(tokens[0], tokens[1], atol=1e-4, rtol=1e-3)
    assert (tokens[0] - tokens[2]).abs().max() > 1e-2
    assert network.embed_anchor[0] is not network.embed_partner[0]
    vector = torch.randn(4, 64, generator=generator(1))
    assert network(vector, torch.full((4,), 0.5), vector).shape == (4, 64)


@pytest.mark.slow
def test_a_variant_is_trained_and_measured(tmp_path: Path) -> None:
    args = argparse.Namespace(work=tmp_path, steps=2, num=300, seed=0)
    pairs = random_pairs(40, dtype=torch.float32)
    numbers = study.study("no average", read_samples(pairs, pairs), args)
    assert {"val_cond", "val_uncond", "parameters"} <= set(numbers)
    assert all(numbers[name]["mean"] >= 0 for name in ("fhid", "precision", "recall"))
    assert json.loads((tmp_path / "no-average" / "numbers.json").read_text()) == numbers
    args.num = 1  # would be refused, were it not found finished
    assert study.study("no average", read_samples(pairs, pairs), args) == numbers
