"""The cascade with a transformer over parameter tokens: what its network sees and passes through."""

from __future__ import annotations

import pytest
import torch
from helpers import generator, make_normalizer
from torch import Tensor

from interhand_prior import TwoHandPrior, sample
from interhand_prior.baselines.token_cascade import TokenCascade, TokenDenoiser
from interhand_prior.canonical import SLICES


@pytest.fixture(scope="module")
def network() -> TokenDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TokenDenoiser(TokenCascade.small_network).double().eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def test_noiseless_input_passes_through(network: TokenDenoiser) -> None:
    x = draw(5, 64)
    assert torch.equal(network(x, torch.zeros(5, dtype=torch.float64), draw(5, 64, seed=1)), x)


@pytest.mark.parametrize("batch", [(9,), (2, 5), ()])
def test_batch_shapes_and_independence(network: TokenDenoiser, batch: tuple[int, ...]) -> None:
    x, anchor, sigma = draw(*batch, 64), draw(*batch, 64, seed=1), draw(*batch, seed=2).sigmoid()
    found = network(x, sigma, anchor)
    assert found.shape == x.shape
    rows = zip(x.reshape(-1, 64), sigma.reshape(-1), anchor.reshape(-1, 64), strict=True)
    alone = torch.stack([network(*row) for row in rows]).reshape(x.shape)
    torch.testing.assert_close(found, alone, atol=1e-12, rtol=0)


def test_only_samples_with_an_anchor_see_it(network: TokenDenoiser) -> None:
    x, sigma, has = draw(6, 64), torch.full((6,), 0.5, dtype=torch.float64), torch.arange(6) % 2 == 0
    first, second = (network(x, sigma, draw(6, 64, seed=seed), has) for seed in (1, 2))
    alone = network(x, sigma)
    torch.testing.assert_close(first[~has], alone[~has], atol=1e-12, rtol=0)
    torch.testing.assert_close(second[~has], alone[~has], atol=1e-12, rtol=0)
    assert ((first - second)[has].abs().amax(1) > 1e-6).all()


def test_the_anchors_place_is_not_read(network: TokenDenoiser) -> None:
    """It is the origin of the frame, whatever stands there."""
    x, sigma, anchor = draw(4, 64), torch.full((4,), 0.5, dtype=torch.float64), draw(4, 64, seed=1)
    moved = anchor.clone()
    moved[:, SLICES["relative"]] += 1
    assert torch.equal(network(x, sigma, anchor), network(x, sigma, moved))


def test_every_parameter_group_reaches_every_other(network: TokenDenoiser) -> None:
    x, sigma = draw(1, 64).requires_grad_(), torch.full((1,), 0.9, dtype=torch.float64)
    anchor = draw(1, 64, seed=1).requires_grad_()
    for name in ("hand_pose", "betas", "rot6d", "transl"):
        gradients = torch.autograd.grad(network(x, sigma, anchor)[:, SLICES[name]].sum(), (x, anchor))
        assert all((gradients[0][:, SLICES[other]] != 0).all() for other in ("hand_pose", "betas", "rot6d", "transl"))
        assert (gradients[1][:, SLICES["own"]] != 0).all()


def test_it_is_a_prior_like_any_other(network: TokenDenoiser) -> None:
    prior = TwoHandPrior(network, make_normalizer())  # type: ignore[arg-type]
    pairs = sample(prior, 3, steps=3, seed=0)
    kept = sample(prior, 2, steps=3, seed=0, given=pairs.left[0])
    assert torch.equal(kept.left.hand_pose, pairs.left.hand_pose[:1].expand(2, -1))
