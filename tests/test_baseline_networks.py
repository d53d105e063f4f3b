"""Networks and losses of the compared methods: closed forms, and what each network must not see or touch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import GaussianDenoiser, assert_close, assert_same, generator, make_normalizer, random_pairs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interhand_prior import TwoHandPrior, TwoHands
from interhand_prior.baselines.buddi import Buddi, BuddiConfig, BuddiNetwork
from interhand_prior.baselines.joint import FREE, JOINT, JointMethod, freed, join, split, to_hands
from interhand_prior.baselines.ours import Ours
from interhand_prior.baselines.vae import VAE, VAEConfig, VAENetwork, gaussian_kl, negative_log_likelihood
from interhand_prior.baselines.without_decomposition import JointDenoiser, WithoutDecomposition
from interhand_prior.baselines.without_shared_network import SeparateDenoisers, WithoutSharedNetwork
from interhand_prior.canonical import SLICES, to_canonical
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.geometry import mutual_penetration_loss
from interhand_prior.hands import open_hands
from interhand_prior.schedule import CosineSchedule, add_noise
from interhand_prior.train import TrainConfig
from interhand_prior.train.diffusion import diffusion_draws, diffusion_loss

CONFIG = TrainConfig(steps=1)
by_name = lambda methods: pytest.mark.parametrize("method", methods, ids=[method.name for method in methods])


# -- the joint vector and joint diffusion


@by_name([VAE, Buddi, WithoutDecomposition])
def test_the_loss_draws_from_its_generator_alone(method: type[JointMethod]) -> None:
    network = method.build(method.small_network)
    joint = freed(torch.randn(16, JOINT, generator=generator()))
    before = torch.get_rng_state()
    draws = [method.draw(network, len(joint), CONFIG, generator(seed)) for seed in (1, 1, 2)]
    losses = [float(method.loss(network, joint, drawn).detach()) for drawn in draws]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]
    assert method.validate(network, joint) == method.validate(network, joint)


@by_name([Buddi, WithoutDecomposition])
def test_validation_of_the_exact_denoiser(method: type[Any]) -> None:
    """Of N(0, I) the posterior variance is sigma^2 at every level, so every number is 1."""
    joint = freed(torch.randn(4000, JOINT, generator=generator(), dtype=torch.float64))
    exact = GaussianDenoiser(torch.zeros(JOINT).double(), freed(torch.ones(JOINT)).double())
    numbers = method.validate(exact, joint)
    assert "val_joint_0.5" in numbers
    assert all(abs(value - 1) < 0.01 for value in numbers.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\]"),
        ({"penetration_scale": -1.0}, "penetration_scale must be finite and not negative"),
        ({"penetration_scale": math.nan}, "penetration_scale must be finite and not negative"),
    ],
)
def test_refusals_of_joint_diffusion(options: dict[str, Any], message: str) -> None:
    method = Buddi(BuddiNetwork(Buddi.small_network), make_normalizer().float())
    with pytest.raises(ValueError, match=message):
        method.sample(2, **options)


@pytest.mark.parametrize(
    "make", [lambda: VAEConfig(latent=0), lambda: BuddiConfig(layers=0), lambda: BuddiConfig(width=12, heads=4)]
)
def test_impossible_widths(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="widths must be positive"):
        make()


def test_the_joint_vector_goes_round() -> None:
    normalizer, pairs = make_normalizer(), random_pairs(4, 3)
    anchor, partner, _ = to_canonical(pairs, open_hands())
    joint = join(normalizer.anchor(anchor), normalizer.partner(partner))
    assert joint.shape == (4, 3, JOINT)
    assert all(torch.equal(a, b) for a, b in zip(split(joint), (joint[..., :64], joint[..., 64:]), strict=True))
    assert torch.equal(freed(joint), joint)
    assert int((freed(torch.ones(JOINT)) == 1).sum()) == FREE == 119
    found = to_canonical(to_hands(joint, normalizer, open_hands()), open_hands())
    torch.testing.assert_close(found[0], anchor)
    torch.testing.assert_close(found[1], partner)


def std_after_ddim(std: Tensor, levels: list[float], eta: float) -> Tensor:
    """Standard deviation that DDIM with the exact denoiser of N(mean, std^2) ends at, from one number to the next.

    The denoiser is affine, so the deviation d = x - sqrt(alpha_bar) mean goes to factor d + spread z.
    """
    variance = torch.ones_like(std)
    for now, after in pairwise(levels):
        a, a_after = math.sqrt(1 - now**2), math.sqrt(1 - after**2)
        gain = a * std**2 / (a * a * std**2 + now**2)
        spread = eta * after / now * math.sqrt(max(1 - (a / a_after) ** 2, 0))
        factor = a_after * gain + math.sqrt(after**2 - spread**2) * (1 - a * gain) / now
        variance = factor**2 * variance + spread**2
    return variance.sqrt()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_joint_sampling_recovers_a_known_gaussian(eta: float) -> None:
    mean = freed(0.5 * torch.randn(JOINT, generator=generator()))
    std = freed(0.3 + torch.rand(JOINT, generator=generator(1)))
    normalizer = make_normalizer().float()
    method = Buddi(GaussianDenoiser(mean, std), normalizer)
    number, steps = 3000, 40
    drawn = method.sample(number, steps=steps, solver="ddim", eta=eta, seed=0, batch_size=2000)
    anchor, partner, _ = to_canonical(drawn, open_hands())
    joint = join(normalizer.anchor(anchor), normalizer.partner(partner))
    # All entries but the rotation, which is orthonormalised on its way to parameters.
    kept = [*range(55), *range(64, 64 + 55), *range(64 + 61, JOINT)]
    expected = std_after_ddim(std[kept].double(), CosineSchedule().steps(steps), eta)
    torch.testing.assert_close(expected, std[kept].double(), atol=0, rtol=0.15)  # the steps are finite
    standard = ((joint - mean)[:, kept] / expected).double().numpy()
    error = 5 / math.sqrt(number)
    assert np.abs(standard.mean(0)).max() < error
    np.testing.assert_allclose(np.cov(standard.T), np.eye(len(kept)), atol=math.sqrt(2) * error)


def test_stochastic_sampling_depends_on_the_seed_alone() -> None:
    method = Buddi(BuddiNetwork(Buddi.small_network), make_normalizer().float())
    drawn = method.sample(4, steps=4, solver="ddim", eta=1.0, seed=0)
    assert_close(method.sample(4, steps=4, solver="ddim", eta=1.0, seed=0, batch_size=3), drawn, atol=1e-4)
    still = method.sample(4, steps=4, seed=0)
    assert (still.right.hand_pose - drawn.right.hand_pose).abs().max() > 1e-2


@pytest.mark.parametrize(
    "make", [lambda: BuddiNetwork(Buddi.small_network), lambda: JointDenoiser(DenoiserConfig(16, 24, 2, 2))]
)
def test_joint_denoisers(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make().double()
    x_t, sigma = torch.randn(3, 4, JOINT).double(), torch.rand(3, 4).double()
    x0 = network(x_t, sigma)
    assert x0.shape == x_t.shape
    assert x0.dtype == torch.float64
    assert torch.equal(freed(x0), x0)
    # The constant entries of the input are not seen; all others of both hands are, by both hands.
    noisy = x_t.clone()
    noisy[..., 55:64] = 7.0
    torch.testing.assert_close(network(noisy, sigma), x0)
    leaf = x_t.clone().requires_grad_()
    for out in (slice(0, 55), slice(64, JOINT)):
        (gradient,) = torch.autograd.grad(network(leaf, sigma)[..., out].square().sum(), leaf)
        assert torch.equal(freed(gradient), gradient)
        assert int((gradient.abs().amax((0, 1)) > 0).sum()) == FREE
    # Exact without noise, whatever the weights; a sample is on its own; a scalar level serves all.
    torch.testing.assert_close(network(x_t, torch.zeros(()).double()), freed(x_t))
    torch.testing.assert_close(network(x_t[1, 2], sigma[1, 2]), x0[1, 2])
    assert (network(x_t, sigma) - network(x_t, 0.5 * sigma)).abs().max() > 1e-3


def test_buddi_tells_the_hands_apart() -> None:
    """Tokens of equal content differ by hand and by parameter, and each is told its own level."""
    torch.manual_seed(0)
    network = BuddiNetwork(Buddi.small_network)
    embedding = network._token_embedding()
    assert embedding.shape == (6, 16)
    assert torch.pdist(embedding).min() > 1e-3
    torch.testing.assert_close(embedding[0] - network.hand[0], network.parameter[0])
    torch.testing.assert_close(embedding[2] - embedding[0], network.hand[1] - network.hand[0])
    assert network.sizes == [45, 10, 45, 10, 6, 3]


def test_anti_penetration_of_a_joint_method_moves_the_right_hand_alone() -> None:
    normalizer = make_normalizer().float()
    mean, std = torch.zeros(JOINT), freed(torch.full((JOINT,), 0.3))
    mean[64 + SLICES["transl"].start + 1] = 0.5  # knuckles a few centimetres apart: most pairs overlap
    method = WithoutDecomposition(GaussianDenoiser(mean, std), normalizer)
    plain, guided = (method.sample(4, steps=5, seed=0, penetration_scale=scale) for scale in (0.0, 1.0))
    assert_same(TwoHands(guided.left, plain.right), TwoHands(plain.left, plain.right))

    def depth(pairs: TwoHands) -> float:
        (left, right), (faces, other) = pairs.vertices(), pairs.faces
        return float(mutual_penetration_loss(left, right, faces, other).mean())

    assert depth(plain) > 1e-5
    assert depth(guided) < 0.6 * depth(plain)


# -- the variational autoencoder


@given(st.integers(0, 10_000), st.integers(1, 9))
def test_kl_is_that_of_torch(seed: int, width: int) -> None:
    draw = generator(seed)
    mean = 2 * torch.randn(4, width, generator=draw, dtype=torch.float64)
    log_variance = 3 * torch.randn(4, width, generator=draw, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, standard).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


@given(st.integers(0, 10_000), st.floats(1e-3, 10.0))
def test_the_likelihood_is_the_best_over_variances(seed: int, scale: float) -> None:
    draw = generator(seed)
    joint = freed(torch.randn(7, JOINT, generator=draw, dtype=torch.float64))
    answer = joint + scale * freed(torch.randn(7, JOINT, generator=draw, dtype=torch.float64))
    keep = freed(torch.ones(JOINT)).bool()
    found = float(negative_log_likelihood(answer, joint))

    def at(variance: Tensor) -> float:
        density = torch.distributions.Normal(answer[:, keep], variance.sqrt())
        return float(-density.log_prob(joint[:, keep]).sum(-1).mean())

    best = (answer - joint)[:, keep].square().mean()
    assert found == pytest.approx(at(best), rel=1e-9, abs=1e-9)
    assert all(at(best * factor) > found for factor in (0.5, 0.9, 1.1, 2.0))


def test_the_loss_is_minus_the_bound_per_entry() -> None:
    torch.manual_seed(0)
    network = VAENetwork(VAE.small_network)
    joint = freed(torch.randn(12, JOINT))
    noise = torch.randn(12, 8, generator=generator(3))
    answer, mean, log_variance = network(joint, noise)
    torch.testing.assert_close(answer, network.decode(mean + (log_variance / 2).exp() * noise))
    expected = (negative_log_likelihood(answer, joint) + gaussian_kl(mean, log_variance).mean()) / 119
    torch.testing.assert_close(VAE.loss(network, joint, VAE.draw(network, 12, CONFIG, generator(3))), expected)
    assert torch.equal(freed(answer), answer)


def test_a_perfect_reconstruction_has_a_finite_loss_and_gradient() -> None:
    joint = freed(torch.randn(3, JOINT, generator=generator()))
    answer = joint.clone().requires_grad_()
    loss = negative_log_likelihood(answer, joint)
    loss.backward()
    assert math.isfinite(loss.detach())
    assert answer.grad is not None
    assert bool(torch.isfinite(answer.grad).all())


def test_vae_samples_are_decoded_standard_normals() -> None:
    torch.manual_seed(0)
    network, normalizer = VAENetwork(VAE.small_network), make_normalizer().float()
    latent = torch.randn(3, 8, generator=generator(9))
    expected = to_hands(network.decode(latent), normalizer, open_hands())
    method = VAE(network, normalizer)
    assert_close(method.sample(3, seed=9), expected.detach(), atol=1e-6)
    assert_same(method.sample(3, seed=9, steps=1), method.sample(3, seed=9, steps=99))


# -- two networks in the place of one


def two_copies(denoiser: Denoiser) -> SeparateDenoisers:
    """Separate networks with equal weights: whoever is asked, the answer is the shared network's."""
    both = SeparateDenoisers(denoiser.config)
    both.conditional.load_state_dict(denoiser.state_dict())
    weights = {k: v for k, v in denoiser.state_dict().items() if not k.startswith("embed_anchor.")}
    both.unconditional.load_state_dict(weights)
    return both


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DenoiserConfig(embed=16, hidden=24, heads=2, layers=2)).double()


def inputs(*batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = generator(len(batch))
    normal = lambda: torch.randn(*batch, 64, generator=draw, dtype=torch.float64)
    return normal(), torch.rand(batch, generator=draw).double(), normal(), torch.rand(batch, generator=draw) < 0.6


@pytest.mark.parametrize("batch", [(9,), (2, 5), ()])
def test_two_equal_networks_are_the_shared_one(batch: tuple[int, ...], denoiser: Denoiser) -> None:
    both = two_copies(denoiser).double()
    x_t, sigma, anchor, has_anchor = inputs(*batch)
    none, all_ = torch.zeros_like(has_anchor), torch.ones_like(has_anchor)
    for arguments in (
        (x_t, sigma, anchor, has_anchor),
        (x_t, sigma, anchor, none),
        (x_t, sigma, anchor, all_),
        (x_t, sigma, anchor),
        (x_t, sigma),
        (x_t, torch.tensor(0.4, dtype=torch.float64), anchor, has_anchor),
    ):
        torch.testing.assert_close(both(*arguments), denoiser(*arguments))


def test_each_network_answers_and_learns_for_its_own_samples(denoiser: Denoiser) -> None:
    torch.manual_seed(1)
    both = SeparateDenoisers(denoiser.config).double()
    x_t, sigma, anchor, has_anchor = inputs(9)
    assert 0 < int(has_anchor.sum()) < 9
    x0 = both(x_t, sigma, anchor, has_anchor)
    torch.testing.assert_close(x0[has_anchor], both.conditional(x_t, sigma, anchor)[has_anchor])
    torch.testing.assert_close(x0[~has_anchor], both.unconditional(x_t, sigma)[~has_anchor])
    assert (both.conditional(x_t, sigma, anchor) - both.unconditional(x_t, sigma)).abs().max() > 1e-2

    for rows, learns, rests in (
        (has_anchor, both.conditional, both.unconditional),
        (~has_anchor, both.unconditional, both.conditional),
    ):
        both.zero_grad()
        both(x_t, sigma, anchor, has_anchor)[rows].square().sum().backward()
        size = lambda network: sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None)
        assert size(learns) > 0
        assert size(rests) == 0


def test_the_loss_splits_the_gradient_of_the_shared_network(denoiser: Denoiser) -> None:
    """With equal weights: the same draws, the same loss, and the two gradients add up to the shared network's."""
    both = two_copies(denoiser).double()
    x0, _, anchor, _ = inputs(40)
    draws = diffusion_draws(40, 64, CosineSchedule(), min_sigma=1e-3, generator=generator(2))
    x_t, sigma = add_noise(x0, draws.noise.double(), draws.sigma.double()), draws.sigma.double()
    losses = []
    for network in (denoiser, both):
        losses.append(diffusion_loss(network(x_t, sigma, anchor, draws.keep >= 0.3).double(), x0, sigma))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    parts = [dict(network.named_parameters()) for network in (both.conditional, both.unconditional)]
    for name, parameter in denoiser.named_parameters():
        gradients = [part[name].grad for part in parts if name in part]
        total = sum(gradient for gradient in gradients if gradient is not None)
        torch.testing.assert_close(total, parameter.grad, msg=name)


def test_the_cascade_of_two_equal_networks_is_the_methods_own(denoiser: Denoiser) -> None:
    normalizer = make_normalizer()
    shared = Ours(TwoHandPrior(denoiser, normalizer))
    prior = TwoHandPrior(two_copies(denoiser).double(), normalizer)  # type: ignore[arg-type]
    separate = WithoutSharedNetwork(prior)
    assert (prior.device, prior.dtype) == (torch.device("cpu"), torch.float64)
    options: dict[str, Any] = {"steps": 4, "seed": 0, "cfg_scale": 0.7}
    for scale in (0.0, 1.0):
        found, wanted = (m.sample(4, penetration_scale=scale, **options) for m in (separate, shared))
        assert_close(found, wanted, atol=1e-6)


def test_classifier_free_guidance_uses_both_networks(denoiser: Denoiser) -> None:
    torch.manual_seed(1)
    prior = TwoHandPrior(SeparateDenoisers(denoiser.config).double(), make_normalizer())  # type: ignore[arg-type]
    x_t, sigma, anchor, _ = inputs(5)
    with_anchor, without = prior.denoiser.conditional(x_t, sigma, anchor), prior.denoiser.unconditional(x_t, sigma)
    expected = 1.7 * with_anchor - 0.7 * without
    torch.testing.assert_close(prior.estimate(x_t, sigma, anchor, cfg_scale=0.7), expected)
