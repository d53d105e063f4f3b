"""Training: exact resumption, the loss's algebra, data handling, refusals, and the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interhand_prior.canonical import SLICES, from_canonical, to_canonical
from interhand_prior.checkpoint import CheckpointError, read_checkpoint
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.hands import open_hands
from interhand_prior.hub import load_prior
from interhand_prior.params import TwoHands
from interhand_prior.schedule import CosineSchedule
from interhand_prior.schedule import signal as signal_of
from interhand_prior.train import TrainConfig, TrainingDiverged, train
from interhand_prior.train.data import Batch, fingerprint, load_corpus, read_samples, to_vectors
from interhand_prior.train.diffusion import DiffusionTask, diffusion_draws
from interhand_prior.train.log import read_log
from interhand_prior.train.trainer import Trainer, computes_in_bfloat16
from interhand_prior.train.validation import LEVELS, validate

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = DenoiserConfig(embed=16, hidden=24, heads=2, layers=2)
CONFIG = TrainConfig(
    steps=20, batch_size=16, warmup=3, log_every=5, val_every=10, ema_warmup=2, amp="off", weights="float32"
)


def make_pairs(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> TwoHands:
    """Pairs whose partner depends on the anchor, through a few shared factors."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 128, generator=torch.Generator().manual_seed(99))
    vector = 0.1 * (torch.randn(count, 8, generator=generator) @ mixing)
    anchor, partner = vector[:, :64], vector[:, 64:].clone()
    partner[:, SLICES["rot6d"]] += torch.tensor([-0.7, 0.2, 0.0, -0.2, -0.5, 0.0])
    partner[:, SLICES["transl"]] = 0.1 * partner[:, SLICES["transl"]] + torch.tensor([0.0, -0.08, 0.0])
    pairs = from_canonical(anchor.to(dtype), partner.to(dtype), open_hands())
    return TwoHands(pairs.left, pairs.right)


@pytest.fixture(scope="module")
def pairs() -> TwoHands:
    return make_pairs(60)


def run(pairs: Any, out: Path, **changes: Any) -> Any:
    options = {k: changes.pop(k) for k in ("resume", "should_stop", "init", "val_pairs") if k in changes}
    network = None if options.get("init") is not None else TINY
    return train(pairs, dataclasses.replace(CONFIG, **changes), out, network=network, **options)


def state_of(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return read_checkpoint(out / "state", kind="training state")


def stop_after(count: int) -> Any:
    left = iter(range(count))
    return lambda: next(left, None) is None


# -- the run as a whole


def test_stopping_and_resuming_changes_no_bit(pairs: TwoHands, tmp_path: Path) -> None:
    """20 steps in one go against 7, then 6 (with the global generator disturbed), then the rest."""
    run(pairs, tmp_path / "whole")
    run(pairs, tmp_path / "parts", should_stop=stop_after(7))
    assert state_of(tmp_path / "parts")[0]["position"]["step"] == 7
    torch.manual_seed(12345)
    run(pairs, tmp_path / "parts", resume=True, should_stop=stop_after(6))
    torch.rand(17)
    run(pairs, tmp_path / "parts", resume=True)

    (config, whole), (_, parts) = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert config["position"]["step"] == 20
    assert whole.keys() == parts.keys()
    assert {"generator", "module.null", "average.null", "optimizer.exp_avg_sq.null"} <= whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    assert not torch.equal(whole["module.last.weight"], whole["average.last.weight"])
    first, second = load_prior(tmp_path / "whole" / "prior"), load_prior(tmp_path / "parts" / "prior")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    losses = [
        [x for x in read_log(tmp_path / n / "log.csv") if "val_cond" in x][-1]["val_cond"] for n in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_the_seed_decides_and_the_global_generator_is_untouched(pairs: TwoHands, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(pairs, tmp_path / "a", steps=3)
    assert torch.equal(torch.rand(3), expected)
    run(pairs, tmp_path / "b", steps=3)
    run(pairs, tmp_path / "c", steps=3, seed=1)
    weights = [state_of(tmp_path / name)[1]["module.last.weight"] for name in "abc"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_learns_and_the_anchor_helps(tmp_path: Path) -> None:
    """Eight factors decide both hands, so the anchor tells nearly all about its partner."""
    prior = run(
        make_pairs(600), tmp_path, steps=250, batch_size=64, lr=4e-3, warmup=10, val_every=250, ema=0.98,
        val_pairs=make_pairs(100, seed=1),
    )  # fmt: skip
    last = [line for line in read_log(tmp_path / "log.csv") if "val_cond" in line][-1]
    # 0.98 of the noise: without the anchor next to nothing is known, a zero estimate has error 1 / level^2.
    assert last["val_cond_0.98"] < 0.75
    assert last["val_cond_0.98"] < last["val_uncond_0.98"] - 0.1
    assert last["val_uncond_0.98"] > 0.8
    train_losses = [line["loss"] for line in read_log(tmp_path / "log.csv") if "loss" in line]
    assert np.mean(train_losses[-5:]) < 0.85 * np.mean(train_losses[:2])
    assert prior.calibration is not None
    assert prior.info["samples"] == 1200
    assert prior.info["steps"] == 250


def test_the_stored_prior_holds_the_average_in_half_precision(pairs: TwoHands, tmp_path: Path) -> None:
    prior = run(pairs, tmp_path, steps=5, weights="float16")
    _, tensors = read_checkpoint(tmp_path / "prior")
    assert tensors["denoiser.last.weight"].dtype == torch.float16
    average = state_of(tmp_path)[1]["average.last.weight"]
    assert torch.equal(tensors["denoiser.last.weight"], average.half())
    assert torch.equal(prior.denoiser.last.weight, average.half().float())
    assert tensors["normalizer.mean"].dtype == torch.float32


def test_fine_tuning_keeps_network_and_normaliser(pairs: TwoHands, tmp_path: Path) -> None:
    first = run(pairs, tmp_path / "first", steps=3)
    before = {k: v.clone() for k, v in first.state_dict().items()}
    tuned = run(make_pairs(40, seed=5), tmp_path / "tuned", steps=2, init=first, lr=1e-4)
    assert torch.equal(tuned.normalizer.mean, first.normalizer.mean)
    assert tuned.denoiser.config == TINY
    for name, value in first.state_dict().items():
        assert torch.equal(value, before[name]), "init was changed"
    moved = (tuned.denoiser.last.weight - first.denoiser.last.weight).abs().max()
    assert 0 < moved < 1e-3
    with pytest.raises(ValueError, match="network cannot be chosen"):
        train(pairs, CONFIG, tmp_path / "both", network=TINY, init=first)


def test_a_time_budget_ends_the_run_and_counts_across_resumptions(pairs: TwoHands, tmp_path: Path) -> None:
    run(pairs, tmp_path, steps=None, minutes=0.01, should_stop=stop_after(2))
    seconds = state_of(tmp_path)[0]["position"]["seconds"]
    assert 0 < seconds < 0.6
    run(pairs, tmp_path, steps=None, minutes=0.01, resume=True)
    position = state_of(tmp_path)[0]["position"]
    assert position["seconds"] >= 0.6
    assert position["step"] > 2
    assert (tmp_path / "prior" / "model.safetensors").exists()


# -- failure


def test_nan_loss_stops_and_keeps_the_last_good_state(
    pairs: TwoHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pairs, tmp_path, should_stop=stop_after(4))
    before = state_of(tmp_path)[1]
    real, calls = Trainer.loss, iter(range(100))

    def spoiled(self: Trainer, batch: Any, draws: Any) -> torch.Tensor:
        return real(self, batch, draws) * (float("nan") if next(calls) == 2 else 1.0)

    monkeypatch.setattr(Trainer, "loss", spoiled)
    with pytest.raises(TrainingDiverged, match=r"nan at step 6.*intact.*lr"):
        run(pairs, tmp_path, resume=True)
    after = state_of(tmp_path)[1]
    assert all(torch.equal(before[k], after[k]) for k in before)
    monkeypatch.undo()
    run(pairs, tmp_path, resume=True)


def test_a_run_is_not_overwritten(pairs: TwoHands, tmp_path: Path) -> None:
    run(pairs, tmp_path, steps=1)
    with pytest.raises(FileExistsError, match="--resume"):
        run(pairs, tmp_path, steps=1)


@pytest.mark.parametrize("change", ["lr", "data", "network"])
def test_resuming_another_run_is_refused(pairs: TwoHands, tmp_path: Path, change: str) -> None:
    run(pairs, tmp_path, steps=2)
    before = (tmp_path / "state" / "model.safetensors").read_bytes()
    match = {"lr": "lr was 0.0025, is 0.1", "data": "pairs was", "network": "network was"}[change]
    data = make_pairs(60, seed=3) if change == "data" else pairs
    config = dataclasses.replace(CONFIG, lr=0.1) if change == "lr" else CONFIG
    network = dataclasses.replace(TINY, hidden=32) if change == "network" else TINY
    with pytest.raises(CheckpointError, match=match):
        train(data, config, tmp_path, network=network, resume=True)
    assert (tmp_path / "state" / "model.safetensors").read_bytes() == before


def test_a_damaged_state_is_refused(pairs: TwoHands, tmp_path: Path) -> None:
    run(pairs, tmp_path, steps=2)
    path = tmp_path / "state" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        run(pairs, tmp_path, resume=True)


def test_the_log_of_a_killed_run_is_cut_back_to_its_state(pairs: TwoHands, tmp_path: Path) -> None:
    run(pairs, tmp_path, should_stop=stop_after(5))
    with open(tmp_path / "log.csv", "a") as file:
        file.write("9,1,3,3,3\n1")
    run(pairs, tmp_path, resume=True)
    steps = [line["step"] for line in read_log(tmp_path / "log.csv") if "loss" in line]
    assert steps == [5, 10, 15, 20]


# -- the step


def make_trainer(count: int = 40, **changes: Any) -> Trainer:
    data = read_samples(make_pairs(count), [])
    config = dataclasses.replace(CONFIG, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser(TINY)
    return Trainer(
        DiffusionTask(denoiser, data.train.moments().normalizer(), CosineSchedule(), data.train, None, config), config
    )


def test_the_loss_is_the_preconditioned_targets_error() -> None:
    """(D - x0) / sigma = F - (sigma x0 - sqrt(alpha_bar) eps): unit weight on F's target, by Monte Carlo."""
    trainer = make_trainer(p_uncond=1.0)
    torch.nn.init.zeros_(trainer.module.last.weight)
    torch.nn.init.zeros_(trainer.module.last.bias)
    batch = trainer.task.fetch(torch.arange(80).repeat(40))
    found = float(trainer.loss(batch, trainer.task.draw(3200, trainer.generator)).detach())
    # With F = 0: E |sigma x0 - sqrt(ab) eps|^2 = E sigma^2 |x0|^2 + ab, and E sigma^2 = E ab = 1/2 over u.
    assert found == pytest.approx(0.5 * float(batch.partner.square().mean()) + 0.5, rel=0.02)


def test_levels_follow_the_schedule_and_the_anchor_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(p_uncond=0.3)
    seen: dict[str, torch.Tensor] = {}

    def spy(
        x_t: torch.Tensor, sigma: torch.Tensor, anchor: torch.Tensor, has: torch.Tensor, placed: Any
    ) -> torch.Tensor:
        seen.update(x_t=x_t, sigma=sigma, anchor=anchor, has=has)
        return x_t * trainer.module.null.sum()

    monkeypatch.setattr(trainer.module, "forward", spy)
    batch = trainer.task.fetch(torch.arange(80).repeat(50))
    trainer.loss(batch, trainer.task.draw(4000, trainer.generator))
    sigma = seen["sigma"]
    assert float(sigma.min()) >= trainer.config.min_sigma
    assert float(sigma.max()) <= 1
    u = torch.asin(sigma.double()).sort().values * 2 / torch.pi
    # Within a stratum, and cut at the schedule's highest level.
    assert torch.allclose(u, torch.linspace(0, 1, 4000).double(), atol=8e-3)
    assert float(seen["has"].float().mean()) == pytest.approx(0.7, abs=0.03)
    assert torch.equal(seen["anchor"], batch.anchor)
    eps = (seen["x_t"] - signal_of(sigma)[:, None] * batch.partner) / sigma[:, None]
    far = sigma > 0.1
    assert float(eps[far].std()) == pytest.approx(1, abs=0.01)
    assert abs(float(eps[far].mean())) < 0.01


def test_the_average_is_an_exponential_one_with_warm_up() -> None:
    trainer = make_trainer(ema=0.6, ema_warmup=4.0)
    average = trainer.module.last.bias.detach().clone()
    for step in range(6):
        trainer.step()
        decay = min(0.6, (step + 1) / (step + 4.0))
        average = decay * average + (1 - decay) * trainer.module.last.bias.detach()
        torch.testing.assert_close(trainer.average.last.bias, average)
    assert not trainer.average.last.bias.requires_grad


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(clip=1e-3)
    seen = []
    monkeypatch.setattr(
        trainer.optimizer,
        "step",
        lambda: seen.append(torch.stack([p.grad.norm() for p in trainer.parameters if p.grad is not None]).norm()),
    )
    trainer.step()
    assert float(seen[0]) == pytest.approx(1e-3, rel=1e-3)


def test_autocast_runs_in_bfloat16_and_keeps_float32_weights() -> None:
    trainer = make_trainer(amp="on")
    assert trainer.bfloat16
    loss = trainer.step()
    assert loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in trainer.parameters)
    exact = make_trainer(amp="off").step()
    assert loss != exact
    assert float(loss) == pytest.approx(float(exact), rel=0.05)


def test_auto_amp_is_off_where_bfloat16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not computes_in_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert computes_in_bfloat16(torch.device("cpu"))


# -- validation


def test_validation_of_an_untrained_network() -> None:
    """With F = 0 the error is sigma^2 |x0|^2 + alpha_bar in expectation, and zero data leave alpha_bar."""
    denoiser = Denoiser(TINY)
    torch.nn.init.zeros_(denoiser.last.weight)
    torch.nn.init.zeros_(denoiser.last.bias)
    x0 = 2 * torch.ones(3000, 64)
    batch = Batch(x0, x0, torch.ones(3000, dtype=torch.bool), torch.ones(3000, dtype=torch.bool))
    numbers = validate(denoiser, batch, torch.tensor([0.01, 0.01, 0.01]))
    for level in LEVELS:
        expected = 4 * level**2 + 1 - level**2
        # x0 is constant, so a cross term of the noise's mean remains.
        assert numbers[f"val_cond_{level}"] == pytest.approx(expected, rel=0.02)
        assert numbers[f"val_uncond_{level}"] == numbers[f"val_cond_{level}"]
    # |D - x0|^2 = sigma^2 (4 sigma^2 + alpha_bar) per entry; three entries of 1 cm.
    level = LEVELS[2]
    expected = 10 * (3 * level**2 * (4 * level**2 + 1 - level**2)) ** 0.5
    assert numbers[f"val_transl_mm_{level}"] == pytest.approx(expected, rel=0.05)
    assert numbers == validate(denoiser, batch, torch.tensor([0.01, 0.01, 0.01]))


# -- data


def test_vectors_are_both_views_of_each_pair(pairs: TwoHands) -> None:
    vectors = to_vectors([pairs[:25], pairs[25:]], mirror=True)
    for half, side in ((slice(0, 60), "left"), (slice(60, 120), "right")):
        anchor, partner, _ = to_canonical(pairs, open_hands(), side)  # type: ignore[arg-type]
        assert torch.equal(vectors.anchor[half], anchor)
        assert torch.equal(vectors.partner[half], partner)
    mirrored = to_vectors([pairs.mirrored()], mirror=False)
    torch.testing.assert_close(mirrored.partner, vectors.partner[60:], atol=1e-5, rtol=1e-4)
    assert len(to_vectors([pairs], mirror=False)) == 60


def test_sources_give_the_same_vectors(pairs: TwoHands, tmp_path: Path) -> None:
    pairs[:40].save(tmp_path / "train-00000.npz")
    pairs[40:].save(tmp_path / "train-00001.npz")
    make_pairs(8, seed=4).save(tmp_path / "val-00000.npz")
    wanted = to_vectors([pairs], mirror=True)
    double = make_pairs(60, dtype=torch.float64)
    for source in (tmp_path, str(tmp_path), pairs, list(pairs), iter([pairs[:3], pairs[3], pairs[4:]])):
        found, held_out = load_corpus(source, val=make_pairs(5))
        vectors = to_vectors(found, mirror=True)
        assert torch.equal(vectors.anchor, wanted.anchor)
        assert torch.equal(vectors.partner, wanted.partner)
        assert sum(map(len, held_out)) == 5
    assert sum(map(len, load_corpus(tmp_path)[1])) == 8
    assert to_vectors(load_corpus(double, val=[])[0], mirror=True).partner.dtype == torch.float32


def test_batches_of_any_shape(pairs: TwoHands) -> None:
    grid = TwoHands(pairs.left.reshape(6, 10), pairs.right.reshape(6, 10))
    found, _ = load_corpus(grid, val=[])
    assert fingerprint(found) == fingerprint([pairs])
    assert fingerprint([pairs]) != fingerprint([pairs.mirrored()])


def test_without_validation_shards_the_last_pairs_are_held_out(pairs: TwoHands, tmp_path: Path) -> None:
    pairs[:50].save(tmp_path / "a.npz")
    pairs[50:].save(tmp_path / "b.npz")
    found, held_out = load_corpus(tmp_path)
    joined, rest = TwoHands.cat(found), TwoHands.cat(held_out)
    assert (len(joined), len(rest)) == (57, 3)
    assert torch.equal(torch.cat((joined.left.transl, rest.left.transl)), pairs.left.transl)


def test_validation_and_test_shards_are_never_trained_on(pairs: TwoHands, tmp_path: Path) -> None:
    for name in ("val-0", "test-0"):
        pairs.save(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError, match=r"no train-\*\.npz"):
        load_corpus(tmp_path)
    pairs[:20].save(tmp_path / "mine.npz")
    assert sum(map(len, load_corpus(tmp_path)[0])) == 20


def test_nan_is_found_before_training(pairs: TwoHands, tmp_path: Path) -> None:
    broken = pairs.map(torch.clone)
    broken.right.hand_pose[17, 3] = torch.nan
    with pytest.raises(ValueError, match=r"right\.hand_pose: 1 of 57 pairs hold NaN.*index 17"):
        run(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_millimetres_are_refused(pairs: TwoHands, tmp_path: Path) -> None:
    scale = lambda hand: dataclasses.replace(hand, transl=hand.transl * 1000)
    wrong = TwoHands(scale(pairs.left), scale(pairs.right))
    with pytest.raises(ValueError, match="must be in metres"):
        run(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "is empty"),
        (7, ValueError, "got int"),
        ([1, 2], ValueError, r"pairs\[0\] must be TwoHands, got int"),
        ("nowhere", FileNotFoundError, "interhand-prior corpus"),
    ],
)
def test_bad_sources(tmp_path: Path, source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": None},
        {"steps": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"p_uncond": 1.5},
        {"ema": 1.0},
        {"amp": "yes"},
        {"weights": "int8"},
        {"min_sigma": 0.0},
        {"threads": 0},
        {"final_lr": 2.0},
        {"warmup": -1},
    ],
)
def test_bad_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(CONFIG, **changes)


def test_a_failing_disk_during_a_save_leaves_the_state(
    pairs: TwoHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pairs, tmp_path, should_stop=stop_after(3))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interhand_prior.checkpoint._write_synced", full)
    with pytest.raises(OSError, match="No space"):
        run(pairs, tmp_path, resume=True)
    monkeypatch.undo()
    assert state_of(tmp_path)[0]["position"]["step"] == 3


def test_more_middle_levels_have_their_density() -> None:
    """Counts in ten bins of the time axis against the integral of 1 - cos(2 pi u) / 2."""
    seed = torch.Generator().manual_seed(0)
    draws = diffusion_draws(20_000, 1, CosineSchedule(), min_sigma=1e-3, levels="middle", generator=seed)
    share = torch.histc(torch.asin(draws.sigma) * (2 / torch.pi), 10, 0, 1) / 20_000
    edges = torch.linspace(0, 1, 11)
    torch.testing.assert_close(
        share, (edges - torch.sin(2 * torch.pi * edges) / (4 * torch.pi)).diff(), atol=2e-3, rtol=0
    )
