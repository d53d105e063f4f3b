"""The transformer over parameter tokens: what it sees and passes through, and hands alone (of both networks)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import generator, make_normalizer
from torch import Tensor

from interhand_prior import TwoHandPrior, sample
from interhand_prior.canonical import SLICES
from interhand_prior.denoiser import ConditionalDenoiser, Denoiser, DenoiserConfig
from interhand_prior.networks import NETWORKS, make_denoiser, network_config, network_facts
from interhand_prior.token_denoiser import TokenDenoiser, TokenDenoiserConfig

SMALL = TokenDenoiserConfig(width=16, layers=1, heads=2, feedforward=32, embedding=16)
SMALL_LAYERS = DenoiserConfig(embed=16, hidden=32, heads=2, layers=2, alone=True)


@pytest.fixture(scope="module")
def network() -> TokenDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TokenDenoiser(SMALL).double().eval()


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
    prior = TwoHandPrior(network, make_normalizer())
    pairs = sample(prior, 3, steps=3, seed=0)
    kept = sample(prior, 2, steps=3, seed=0, given=pairs.left[0])
    assert torch.equal(kept.left.hand_pose, pairs.left.hand_pose[:1].expand(2, -1))


@pytest.fixture(scope="module", params=[SMALL, SMALL_LAYERS], ids=["tokens", "layers"])
def any_network(request: pytest.FixtureRequest) -> ConditionalDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_denoiser(request.param).double().eval()


def test_a_hand_alone_has_no_place(any_network: ConditionalDenoiser) -> None:
    """Its relative entries are neither read nor answered; the other samples are as they were."""
    x, sigma, placed = draw(6, 64), torch.full((6,), 0.5, dtype=torch.float64), torch.arange(6) % 2 == 0
    found = any_network(x, sigma, has_relative=placed)
    moved = x.clone()
    moved[:, SLICES["relative"]] += 1
    again = any_network(moved, sigma, has_relative=placed)
    assert torch.equal(found[~placed], again[~placed])
    assert (found[~placed][:, SLICES["relative"]] == 0).all()
    torch.testing.assert_close(found[placed], any_network(x, sigma)[placed], atol=1e-12, rtol=0)
    assert ((found - again)[placed].abs().amax(1) > 1e-3).all()
    assert ((found - any_network(x, sigma))[~placed][:, SLICES["own"]].abs().amax(1) > 1e-6).all()


def test_a_network_that_knows_no_hands_alone_takes_them_for_partners() -> None:
    network = Denoiser(DenoiserConfig(embed=16, hidden=32, heads=2, layers=2)).double()
    x, sigma = draw(4, 64), torch.full((4,), 0.5, dtype=torch.float64)
    assert torch.equal(network(x, sigma, has_relative=torch.zeros(4, dtype=torch.bool)), network(x, sigma))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_rebuilt_from_its_facts(name: str) -> None:
    widths = {"coupled": True, "embed": 24} if name == "official" else {"layers": 3, "alone": False}
    config = NETWORKS[name][0](**widths)
    facts = network_facts(config)
    assert facts["network"] == name
    assert network_config(facts) == config
    with torch.device("meta"):
        assert type(make_denoiser(config)) is NETWORKS[name][1]


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="one of layers, tokens, official, got 'bricks'"):
        network_config({"network": "bricks"})
    with pytest.raises(TypeError, match="got int"):
        make_denoiser(3)  # type: ignore[arg-type]
    assert network_config({"embed": 16}) == DenoiserConfig(embed=16)


def test_a_prior_of_tokens_is_stored_and_loaded(network: TokenDenoiser, tmp_path: Path) -> None:
    prior = TwoHandPrior(network, make_normalizer())
    again = TwoHandPrior.from_folder(prior.save_pretrained(tmp_path), dtype=torch.float64)
    assert again.denoiser.config == SMALL
    first, second = (sample(one, 2, steps=2, seed=0).right.transl for one in (prior, again))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)  # the normaliser is stored in float32


@pytest.mark.parametrize(("width", "heads"), [(30, 4), (0, 4), (16, 0), (-16, 1)])
def test_impossible_widths_are_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match="width a multiple of 2"):
        TokenDenoiserConfig(width=width, heads=heads)
