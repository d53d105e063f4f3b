"""The compared methods: one protocol, one engine, closed forms of their parts, and what each must not do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, assert_same, generator, make_normalizer, other_hands, random_pairs
from torch import nn

from interhand_prior import TwoHands, load_prior
from interhand_prior.baselines import METHODS, Entry, Method
from interhand_prior.baselines import ours as ours_module
from interhand_prior.baselines.buddi import Buddi, BuddiConfig, BuddiNetwork
from interhand_prior.baselines.joint import JointMethod, JointTask, join
from interhand_prior.baselines.ours import Ours
from interhand_prior.baselines.protocol import Corpus
from interhand_prior.baselines.token_cascade import TokenCascade
from interhand_prior.baselines.vae import VAE, VAENetwork
from interhand_prior.baselines.without_decomposition import JointDenoiser, WithoutDecomposition
from interhand_prior.baselines.without_shared_network import SeparateDenoisers, WithoutSharedNetwork
from interhand_prior.canonical import to_canonical
from interhand_prior.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.hands import open_hands
from interhand_prior.token_denoiser import TokenDenoiserConfig
from interhand_prior.train import TrainConfig
from interhand_prior.train.log import read_log

CONFIG = TrainConfig(
    steps=8, batch_size=16, warmup=3, log_every=4, val_every=8, ema_warmup=2, amp="off", weights="float32"
)
JOINT_METHODS = [VAE, Buddi, WithoutDecomposition]
NEW_TRAININGS = [*JOINT_METHODS, WithoutSharedNetwork, TokenCascade]
WIDE = DenoiserConfig(embed=64, hidden=96, heads=2, layers=2)
TOKENS = TokenDenoiserConfig(width=64, layers=1, heads=2, feedforward=64, embedding=64)
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


def kind_of(method: type[Method]) -> str:
    """Of its checkpoint: some methods are priors for `load_prior`."""
    return "prior" if method in (Ours, TokenCascade) else "baseline"


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- the registry


def test_the_rows_are_the_papers_in_its_order() -> None:
    table_1a = ["VAE", "BUDDI*", "Ours w/o Decomposition", "Ours w/o Shared Network", "Ours"]
    ablations = ["Ours w/o SelfAtt", "Ours w/o CFG", "Ours w/o APG"]
    assert list(METHODS) == [*table_1a, *ablations, "Ours with BUDDI*'s backbone"]
    assert all(row.label == label for label, row in METHODS.items())


def test_what_differs_in_sampling_alone_is_trained_once() -> None:
    shared = [label for label, row in METHODS.items() if row.training == METHODS["Ours"].training]
    assert shared == ["Ours", "Ours w/o CFG", "Ours w/o APG"]
    assert len(TRAININGS) == 7
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


def test_default_networks_have_the_stated_sizes() -> None:
    with torch.device("meta"):
        ours, millions = count(Denoiser()), lambda module: round(count(module) / 1e6, 1)
        assert [millions(make()) for make in (Denoiser, VAENetwork, JointDenoiser)] == [4.8, 4.5, 4.8]
        assert millions(BuddiNetwork()) == 1.5
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
    assert (info["steps"], info["samples"], info["seed"]) == (8, 46, 0)


@by_label(TRAININGS)
def test_the_stored_weights_have_the_configured_type(row: Entry, pairs: TwoHands, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=1, weights="float16")
    method = row.fit(pairs, config, tmp_path, network=row.method.small_network, val_pairs=pairs[:3])
    assert all(parameter.dtype == torch.float32 for parameter in method.module.parameters())
    assert not any(parameter.requires_grad for parameter in method.module.parameters())
    _, tensors = read_checkpoint(tmp_path / row.method.result, kind=kind_of(row.method))
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
    for folder, kind in (("state", "training state"), (method.result, kind_of(method))):
        _, whole = read_checkpoint(runs / row.training / folder, kind=kind)
        _, parts = read_checkpoint(tmp_path / folder, kind=kind)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    # A finished run is found, not trained again.
    steps = len(read_log(tmp_path / "log.csv"))
    row.fit(pairs, CONFIG, tmp_path, **options)
    assert len(read_log(tmp_path / "log.csv")) == steps


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
        (TokenCascade, TOKENS, (0.7, 0.1)),
    ],
    ids=[method.name for method in NEW_TRAININGS],
)
def test_two_pairs_are_learned(
    method: type[Method], network: Any, fall: tuple[float, float], pairs: TwoHands, tmp_path: Path
) -> None:
    """A denoiser that has learned nothing has a loss near 1, a VAE a bound near 1.4 nats an entry."""
    config = dataclasses.replace(CONFIG, steps=60, batch_size=32, lr=1e-2, log_every=10, val_every=60, ema=0.9)
    method.fit(pairs[:2], config, tmp_path, network=network, val_pairs=pairs[:2])
    losses = [line["loss"] for line in read_log(tmp_path / "log.csv") if "loss" in line]
    assert losses[-1] < fall[0]
    assert losses[-1] < losses[0] - fall[1]
    numbers = read_log(tmp_path / "log.csv")[-1]
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
    for view, rows in ((pairs, slice(0, 48, 2)), (pairs.mirrored(), slice(1, 48, 2))):
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
