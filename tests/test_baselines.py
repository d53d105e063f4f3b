"""The compared methods: one protocol, one engine, closed forms of their parts, and what each must not do."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import GaussianDenoiser, assert_close, assert_same, generator, make_normalizer, other_hands, random_pairs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interhand_prior import TwoHandPrior, TwoHands, load_prior
from interhand_prior.baselines import METHODS, Entry, Method
from interhand_prior.baselines import ours as ours_module
from interhand_prior.baselines.buddi import Buddi, BuddiConfig, BuddiNetwork
from interhand_prior.baselines.joint import FREE, JOINT, JointMethod, JointTask, freed, join, split, to_hands
from interhand_prior.baselines.ours import Ours
from interhand_prior.baselines.protocol import Corpus
from interhand_prior.baselines.vae import VAE, VAEConfig, VAENetwork, gaussian_kl, negative_log_likelihood
from interhand_prior.baselines.without_decomposition import JointDenoiser, WithoutDecomposition
from interhand_prior.baselines.without_shared_network import SeparateDenoisers, WithoutSharedNetwork
from interhand_prior.canonical import SLICES, to_canonical
from interhand_prior.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.geometry import mutual_penetration_loss
from interhand_prior.hands import open_hands
from interhand_prior.schedule import CosineSchedule
from interhand_prior.train import TrainConfig
from interhand_prior.train.diffusion import diffusion_loss

CONFIG = TrainConfig(
    steps=8, batch_size=16, warmup=3, log_every=4, val_every=8, ema_warmup=2, amp="off", weights="float32"
)
JOINT_METHODS = [VAE, Buddi, WithoutDecomposition]
NEW_TRAININGS = [*JOINT_METHODS, WithoutSharedNetwork]
WIDE = DenoiserConfig(embed=64, hidden=96, heads=2, layers=2)
TRAININGS = list({row.training: row for row in METHODS.values()}.values())
by_label = lambda rows: pytest.mark.parametrize("row", rows, ids=[row.label for row in rows])
by_name = lambda methods: pytest.mark.parametrize("method", methods, ids=[method.name for method in methods])


@pytest.fixture(scope="module")
def pairs() -> TwoHands:
    return random_pairs(24, dtype=torch.float32)


@pytest.fixture(scope="module")
def runs(pairs: TwoHands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run of every training."""
    folder = tmp_path_factory.mktemp("runs")
    for row in TRAININGS:
        row.fit(pairs, CONFIG, folder / row.training, network=row.method.small_network)
    return folder


def stop_after(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is None


def read_log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- the registry


def test_the_rows_are_the_papers_in_its_order() -> None:
    table_1a = ["VAE", "BUDDI*", "Ours w/o Decomposition", "Ours w/o Shared Network", "Ours"]
    assert list(METHODS) == [*table_1a, "Ours w/o SelfAtt", "Ours w/o CFG", "Ours w/o APG"]
    assert all(row.label == label for label, row in METHODS.items())


def test_what_differs_in_sampling_alone_is_trained_once() -> None:
    shared = [label for label, row in METHODS.items() if row.training == METHODS["Ours"].training]
    assert shared == ["Ours", "Ours w/o CFG", "Ours w/o APG"]
    assert len(TRAININGS) == 6
    assert all(METHODS[label].method is Ours and not METHODS[label].changes for label in shared)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Ours", {}),
        ("Ours w/o CFG", {"cfg_scale": 0.0}),
        ("Ours w/o APG", {"penetration_scale": 0.0}),
        ("Ours w/o SelfAtt", {}),
        ("Ours w/o Shared Network", {}),
    ],
)
def test_ablations_are_options_of_the_sampler(
    label: str, expected: dict[str, float], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(ours_module, "sample", lambda prior, num, **options: seen.update(options, num=num))
    row = METHODS[label]
    method = row.load(runs / row.training)
    row.sample(method, 3, seed=1, steps=7)
    usual = {"num": 3, "steps": 7, "seed": 1, "generator": None, "batch_size": None, "progress": False}
    assert seen == usual | expected
    row.sample(method, 3, cfg_scale=0.25)
    assert seen["cfg_scale"] == 0.25


def test_without_self_attention_is_the_method_without_its_attention(runs: Path) -> None:
    plain = METHODS["Ours"].load(runs / "ours").module
    ablated = METHODS["Ours w/o SelfAtt"].load(runs / "without_self_attention").module
    assert ablated.config == dataclasses.replace(plain.config, attention=False)
    assert {key for key in plain.state_dict() if not key.startswith("attention.")} == set(ablated.state_dict())


def test_default_networks_are_of_comparable_size() -> None:
    with torch.device("meta"):
        ours = count(Denoiser())
        assert 0.9 < count(VAENetwork()) / ours < 1.1
        assert 0.95 < count(JointDenoiser()) / ours < 1.05
        assert 0.6 < count(BuddiNetwork()) / ours < 1.1
        # Two networks, less the layers that embed an anchor in the one that never has any.
        assert count(SeparateDenoisers()) == 2 * ours - count(Denoiser().embed_anchor)


# -- the protocol, for every row


@by_label(list(METHODS.values()))
def test_samples(row: Entry, runs: Path) -> None:
    method = row.load(runs / row.training)
    before = torch.get_rng_state()
    drawn = row.sample(method, 5, steps=3, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn.batch_shape == (5,)
    for side in (drawn.left, drawn.right):
        assert all(bool(torch.isfinite(value).all()) for value in side.as_dict().values())
    assert drawn.left.global_orient.abs().max() == 0
    assert drawn.joints()[0][:, 4].abs().max() < 1e-6
    assert drawn.right.hand_pose.std(0).min() > 0
    assert_same(row.sample(method, 5, steps=3, seed=4), drawn)
    assert_same(row.sample(method, 5, steps=3, generator=generator(4)), drawn)
    other = row.sample(method, 5, steps=3, seed=5)
    assert (other.right.transl - drawn.right.transl).abs().max() > 1e-3


@by_label(TRAININGS)
@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_size_changes_nothing(row: Entry, size: int, runs: Path) -> None:
    method = row.load(runs / row.training)
    options = {"penetration_scale": 0.0} if isinstance(method, Ours) else {}
    whole = row.sample(method, 5, steps=3, seed=4, **options)
    # Only as far as the products' rounding goes: their order depends on the number of rows.
    assert_close(row.sample(method, 5, steps=3, seed=4, batch_size=size, **options), whole, atol=2e-4)


@by_label(TRAININGS)
def test_a_saved_method_is_the_same(row: Entry, runs: Path, tmp_path: Path) -> None:
    method = row.load(runs / row.training)
    before = torch.get_rng_state()
    again = row.method.from_folder(method.save(tmp_path / "copy"))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(row.sample(again, 3, steps=2, seed=0), row.sample(method, 3, steps=2, seed=0))
    info = json.loads((tmp_path / "copy" / "config.json").read_text())["config"]["info"]
    assert (info["steps"], info["pairs"], info["seed"]) == (8, 23, 0)


@by_label(TRAININGS)
def test_the_stored_weights_have_the_configured_type(row: Entry, pairs: TwoHands, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=1, weights="float16")
    method = row.fit(pairs, config, tmp_path, network=row.method.small_network, val_pairs=pairs[:3])
    assert all(parameter.dtype == torch.float32 for parameter in method.module.parameters())
    assert not any(parameter.requires_grad for parameter in method.module.parameters())
    kind = "prior" if row.method is Ours else "baseline"
    _, tensors = read_checkpoint(tmp_path / row.method.result, kind=kind)
    network = [v.dtype for k, v in tensors.items() if k.startswith(("network.", "denoiser."))]
    assert set(network) == {torch.float16}
    assert tensors["normalizer.std"].dtype == torch.float32


def test_ours_is_a_prior_for_load_prior(runs: Path) -> None:
    prior = load_prior(str(runs / "ours" / "prior"))
    assert_same(
        prior.complete(random_pairs(seed=1).left, num_samples=2, steps=2, seed=0),
        METHODS["Ours"].load(runs / "ours").prior.complete(random_pairs(seed=1).left, num_samples=2, steps=2, seed=0),  # type: ignore[attr-defined]
    )


@by_label(TRAININGS)
def test_samples_belong_to_the_given_hands(row: Entry, runs: Path) -> None:
    hands = other_hands()
    drawn = row.sample(row.load(runs / row.training, hands=hands), 2, steps=2, seed=0)
    assert drawn.model is hands
    assert drawn.joints()[0][:, 4].abs().max() < 1e-6


def test_a_progress_bar_is_shown_when_wanted(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for label in ("VAE", "BUDDI*"):
        method = METHODS[label].load(runs / METHODS[label].training)
        method.sample(3, steps=2, seed=0, batch_size=2)
        assert capfd.readouterr().err == ""
        method.sample(3, steps=2, seed=0, batch_size=2, progress=True)
        assert "sampling: 100%" in capfd.readouterr().err


# -- training


@by_name(NEW_TRAININGS)
def test_stopping_and_resuming_changes_no_bit(
    method: type[Method], pairs: TwoHands, runs: Path, tmp_path: Path
) -> None:
    row = next(row for row in TRAININGS if row.method is method)
    options: dict[str, Any] = {"network": method.small_network, "resume": True}
    row.fit(pairs, CONFIG, tmp_path, should_stop=stop_after(3), **options)
    state, _ = read_checkpoint(tmp_path / "state", kind="training state")
    assert state["position"]["step"] == 3
    torch.manual_seed(12345)
    row.fit(pairs, CONFIG, tmp_path, **options)
    for folder, kind in (("state", "training state"), ("result", "baseline")):
        _, whole = read_checkpoint(runs / row.training / folder, kind=kind)
        _, parts = read_checkpoint(tmp_path / folder, kind=kind)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    # A finished run is found, not trained again.
    steps = len(read_log(tmp_path))
    row.fit(pairs, CONFIG, tmp_path, **options)
    assert len(read_log(tmp_path)) == steps


@by_name(NEW_TRAININGS)
def test_a_run_is_not_overwritten_or_mixed_up(method: type[Method], pairs: TwoHands, runs: Path) -> None:
    row = next(row for row in TRAININGS if row.method is method)
    with pytest.raises(FileExistsError, match="holds a run already"):
        row.fit(pairs, CONFIG, runs / row.training, network=method.small_network)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        row.fit(pairs[:20], CONFIG, runs / row.training, network=method.small_network, resume=True)


def test_two_methods_cannot_share_a_folder(pairs: TwoHands, runs: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to another run: method was 'vae'"):
        METHODS["BUDDI*"].fit(pairs, CONFIG, runs / "vae", network=Buddi.small_network, resume=True)


@pytest.mark.parametrize(
    ("method", "network", "fall"),
    [
        (VAE, VAE.small_network, (0.0, 1.0)),
        (Buddi, BuddiConfig(width=64, layers=1, heads=2, feedforward=64, embedding=64), (0.7, 0.1)),
        (WithoutDecomposition, WIDE, (0.7, 0.1)),
        (WithoutSharedNetwork, WIDE, (0.7, 0.1)),
    ],
    ids=[method.name for method in NEW_TRAININGS],
)
def test_two_pairs_are_learned(
    method: type[Method], network: Any, fall: tuple[float, float], pairs: TwoHands, tmp_path: Path
) -> None:
    """A denoiser that has learned nothing has a loss near 1, a VAE a bound near 1.4 nats an entry."""
    config = dataclasses.replace(CONFIG, steps=60, batch_size=32, lr=1e-2, log_every=10, val_every=60, ema=0.9)
    method.fit(pairs[:2], config, tmp_path, network=network, val_pairs=pairs[:2])
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]
    assert losses[-1] < fall[0]
    assert losses[-1] < losses[0] - fall[1]
    numbers = read_log(tmp_path)[-1]
    seen = [key for key in ("val_bound", "val_joint", "val_cond") if key in numbers]
    assert len(seen) == 1
    assert numbers[seen[0]] < losses[0]


@by_name(JOINT_METHODS)
def test_both_views_of_a_pair_are_used(method: type[JointMethod], pairs: TwoHands, tmp_path: Path) -> None:
    for mirror in (True, False):
        config = dataclasses.replace(CONFIG, mirror=mirror)
        corpus = Corpus.read(pairs, config, tmp_path, val_pairs=pairs[:4])
        task = JointTask(method, method.small_network, corpus, config)
        assert (task.count, len(task.val_joint)) == (48 if mirror else 24, 8)
    corpus = Corpus.read(pairs, CONFIG, tmp_path, val_pairs=pairs[:4])
    task = JointTask(method, method.small_network, corpus, CONFIG)
    for view, rows in ((pairs, slice(0, 24)), (pairs.mirrored(), slice(24, 48))):
        anchor, partner, _ = to_canonical(view, open_hands())
        expected = join(corpus.normalizer.anchor(anchor), corpus.normalizer.partner(partner))
        torch.testing.assert_close(task.joint[rows], expected, atol=1e-4, rtol=0)
    assert task.joint[:, 55:64].abs().max() == 0


def test_every_method_reads_the_same_vectors(pairs: TwoHands, runs: Path) -> None:
    """One normaliser: of the same pairs, both views, held-out ones left out."""
    normalizers = [read_checkpoint(runs / "ours" / "prior")[1]]
    normalizers += [read_checkpoint(runs / row.training / "result", kind="baseline")[1] for row in TRAININGS[:4]]
    for tensors in normalizers[1:]:
        for name in ("normalizer.mean", "normalizer.std"):
            assert torch.equal(tensors[name], normalizers[0][name])


@by_name(JOINT_METHODS)
def test_the_loss_draws_from_its_generator_alone(method: type[JointMethod]) -> None:
    network = method.build(method.small_network)
    joint = freed(torch.randn(16, JOINT, generator=generator()))
    before = torch.get_rng_state()
    losses = [float(method.loss(network, joint, CONFIG, generator(seed))) for seed in (1, 1, 2)]
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


# -- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "num must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": 1, "generator": generator()}, "seed and generator are both given"),
    ],
)
@by_name([VAE, Buddi])
def test_refusals(method: type[JointMethod], options: dict[str, Any], message: str) -> None:
    drawing = method(method.build(method.small_network), make_normalizer().float())
    with pytest.raises(ValueError, match=message):
        drawing.sample(**options)


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


def test_a_checkpoint_of_another_kind_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds the method 'vae', not 'buddi'"):
        Buddi.from_folder(runs / "vae" / "result")
    with pytest.raises(CheckpointError, match="'buddi', not 'without shared network'"):
        WithoutSharedNetwork.from_folder(runs / "buddi" / "result")
    with pytest.raises(CheckpointError, match="prior"):
        VAE.from_folder(runs / "ours" / "prior")
    with pytest.raises(CheckpointError, match="baseline"):
        Ours.from_folder(runs / "without_shared_network" / "result")
    with pytest.raises(FileNotFoundError):
        VAE.from_folder(tmp_path / "nowhere")
    config, tensors = read_checkpoint(runs / "vae" / "result", kind="baseline")
    for name, wrong in (("width", {"depth": 3}), ("shape", config["network"] | {"hidden": 33})):
        write_checkpoint(tmp_path / name, config | {"network": wrong}, tensors, kind="baseline")
        with pytest.raises(CheckpointError, match="is no vae of this version"):
            VAE.from_folder(tmp_path / name)


@pytest.mark.parametrize(
    "make", [lambda: VAEConfig(latent=0), lambda: BuddiConfig(layers=0), lambda: BuddiConfig(width=12, heads=4)]
)
def test_impossible_widths(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="widths must be positive"):
        make()


# -- the joint vector and joint diffusion


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


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_joint_sampling_recovers_a_known_gaussian(eta: float) -> None:
    mean = freed(0.5 * torch.randn(JOINT, generator=generator()))
    std = freed(0.3 + torch.rand(JOINT, generator=generator(1)))
    normalizer = make_normalizer().float()
    method = Buddi(GaussianDenoiser(mean, std), normalizer)
    drawn = method.sample(6000, steps=100, eta=eta, seed=0, batch_size=6000)
    anchor, partner, _ = to_canonical(drawn, open_hands())
    joint = join(normalizer.anchor(anchor), normalizer.partner(partner))
    # All entries but the rotation, which is orthonormalised on its way to parameters.
    kept = [*range(55), *range(64, 64 + 55), *range(64 + 61, JOINT)]
    standard = ((joint - mean)[:, kept] / std[kept]).double().numpy()
    assert np.abs(standard.mean(0)).max() < 5 / math.sqrt(6000) + 0.01
    np.testing.assert_allclose(np.cov(standard.T), np.eye(len(kept)), atol=0.1)


def test_stochastic_sampling_depends_on_the_seed_alone() -> None:
    method = Buddi(BuddiNetwork(Buddi.small_network), make_normalizer().float())
    drawn = method.sample(4, steps=4, eta=1.0, seed=0)
    assert_close(method.sample(4, steps=4, eta=1.0, seed=0, batch_size=3), drawn, atol=1e-4)
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
    assert torch.equal(embedding[0] - network.hand[0], network.parameter[0])
    torch.testing.assert_close(embedding[2] - embedding[0], network.hand[1] - network.hand[0])
    assert network.sizes == [45, 10, 45, 10, 6, 3]


def test_anti_penetration_of_a_joint_method_moves_the_right_hand_alone() -> None:
    normalizer = make_normalizer().float()
    mean, std = torch.zeros(JOINT), freed(torch.full((JOINT,), 0.3))
    mean[64 + SLICES["transl"].start + 1] = 0.5  # knuckles a few centimetres apart: most pairs overlap
    method = WithoutDecomposition(GaussianDenoiser(mean, std), normalizer)
    plain, guided = (method.sample(6, steps=5, seed=0, penetration_scale=scale) for scale in (0.0, 1.0))
    assert_same(TwoHands(guided.left, plain.right), TwoHands(plain.left, plain.right))

    def depth(pairs: TwoHands) -> float:
        (left, right), (faces, other) = pairs.vertices(), pairs.faces
        return float(mutual_penetration_loss(left, right, faces, other).mean())

    assert depth(plain) > 1e-5
    assert depth(guided) < 0.5 * depth(plain)
    assert_close(method.sample(6, steps=5, seed=0, penetration_scale=1.0, batch_size=4), guided, atol=1e-3)


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
    torch.testing.assert_close(VAE.loss(network, joint, CONFIG, generator(3)), expected)
    assert torch.equal(freed(answer), answer)


def test_a_perfect_reconstruction_has_a_finite_loss_and_gradient() -> None:
    joint = freed(torch.randn(3, JOINT, generator=generator()))
    answer = joint.clone().requires_grad_()
    loss = negative_log_likelihood(answer, joint)
    loss.backward()
    assert math.isfinite(loss)
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
    return normal(), torch.rand(*batch, generator=draw).double(), normal(), torch.rand(*batch, generator=draw) < 0.6


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
    options: dict[str, Any] = {"p_uncond": 0.3, "min_sigma": 1e-3}
    losses = []
    for network in (denoiser, both):
        losses.append(diffusion_loss(network, CosineSchedule(), x0, anchor, generator=generator(2), **options))
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
