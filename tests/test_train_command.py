"""The command that trains: mixtures, fine-tuning, a file of settings, FHID, the card, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_prior, other_hands, random_pairs

from interhand_prior import TwoHands, cli
from interhand_prior.canonical import Normalizer
from interhand_prior.card import model_card
from interhand_prior.checkpoint import CheckpointError, read_checkpoint
from interhand_prior.denoiser import DenoiserConfig
from interhand_prior.hub import load_prior
from interhand_prior.token_denoiser import TokenDenoiserConfig
from interhand_prior.train import TrainConfig, train
from interhand_prior.train import __main__ as command_module
from interhand_prior.train.__main__ import fhid, main
from interhand_prior.train.data import read_samples, to_vectors
from interhand_prior.train.log import read_log
from interhand_prior.train.options import read_settings
from interhand_prior.train.origin import origin
from interhand_prior.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = DenoiserConfig(embed=16, hidden=24, heads=2, layers=2)
CONFIG = TrainConfig(steps=2, batch_size=16, warmup=3, amp="off", weights="float32", threads=1)


def make_pairs(count: int, seed: int = 0) -> TwoHands:
    return random_pairs(count, seed=seed, dtype=torch.float32)


def state_of(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return read_checkpoint(out / "state", kind="training state")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    make_pairs(60).save(folder / "train-00000.npz")
    make_pairs(12, seed=8).save(folder / "val-00000.npz")
    return folder


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    widths = [] if "--init" in more else ["--network", "layers", "--embed", "16", "--hidden", "24", "--layers", "2"]
    basic = ["--data", str(corpus), "--out", str(out), "--batch-size", "16", "--threads", "1", "--amp", "off"]
    return [*basic, *widths, *more]


def test_the_command_trains_resumes_and_fine_tunes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(corpus, out, "--steps", "3", "--log-every", "1")) == 0
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("run/prior")
    assert "100.0 %" in captured.err
    assert load_prior(out / "prior").denoiser.config.hidden == 24
    assert main(command(corpus, out, "--steps", "5", "--resume", "--quiet")) == 0
    assert state_of(out)[0]["position"]["step"] == 5
    again = command(corpus, tmp_path / "tuned", "--steps", "2", "--quiet", "--init", str(out / "prior"))
    assert main(again) == 0
    assert capsys.readouterr().err == ""


def test_the_command_says_what_is_wrong(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "nowhere", tmp_path / "run", "--steps", "1")) == 1
    assert "does not exist" in capsys.readouterr().err
    for wrong, message in (([], "steps or minutes"), (["--steps", "1", "--lr", "-1"], "lr must be positive")):
        with pytest.raises(SystemExit):
            main(command(corpus, tmp_path / "run", *wrong))
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command(corpus, tmp_path / "run", "--steps", "1"), "--init", "bundled"])
    assert "cannot go with --init" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_interrupt_saves_the_state(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Trainer.step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step_count == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main(command(corpus, tmp_path / "run", "--steps", "50", "--quiet")) == 130
    assert "--resume" in capsys.readouterr().err
    assert state_of(tmp_path / "run")[0]["position"]["step"] == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_it_is_also_a_sub_command(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *command(corpus, tmp_path / "run", "--steps", "1", "--quiet")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "prior")


def test_the_default_network_learns_hands_alone() -> None:
    options = dict.fromkeys((*command_module._widths(), "init", "network"))
    assert command_module._network(options, {}) == TokenDenoiserConfig()
    assert command_module._network({**options, "layers": 2}, {"width": 64}) == TokenDenoiserConfig(width=64, layers=2)
    other = {**options, "network": "layers", "hidden": 32, "alone": True}
    assert command_module._network(other, {"network": "tokens", "width": 64}) == DenoiserConfig(hidden=32, alone=True)


# -- data and settings


def test_data_sets_are_mixed_by_weight(corpus: Path, tmp_path: Path) -> None:
    make_pairs(20, seed=3).save(tmp_path / "more.npz")
    more = ["--data", str(tmp_path / "more.npz"), "--data-weights", "1", "0.25"]
    assert main(command(corpus, tmp_path / "run", "--steps", "2", "--quiet", *more)) == 0
    info = load_prior(tmp_path / "run" / "prior").info
    assert info["data"]["weights of the sources"] == [1, 0.25]
    # Of 20 pairs one is held out, beside the 12 of the folder.
    assert info["data"]["held-out pairs"] == 13
    assert info["data"]["fingerprint"] == state_of(tmp_path / "run")[0]["facts"]["pairs"]


def test_given_pairs_are_held_out_once_of_a_mixture(tmp_path: Path) -> None:
    sources = [make_pairs(20, seed=1), make_pairs(30, seed=2)]
    prior = train(sources, CONFIG, tmp_path, weights=[1, 1], val_pairs=make_pairs(7, seed=3), network=TINY)
    assert prior.info["data"]["held-out pairs"] == 7


def test_a_cache_changes_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(corpus, tmp_path / "plain", "--steps", "2", "--quiet")) == 0
    monkeypatch.setitem(read_samples.__kwdefaults__, "memory_rows", 0)
    out = tmp_path / "run"
    assert main(command(corpus, out, "--steps", "2", "--quiet", "--cache", str(tmp_path / "cache"))) == 0
    assert list((tmp_path / "cache").glob("*/vectors-00000.safetensors"))
    found, wanted = state_of(out)[1], state_of(tmp_path / "plain")[1]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_settings_of_a_file_and_of_the_command_line(corpus: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert main(command(corpus, first, "--steps", "2", "--lr", "0.003", "--lr-schedule", "linear", "--quiet")) == 0
    settings = read_settings(first / "config.json")
    assert (settings["lr"], settings["lr_schedule"], settings["network"]["hidden"]) == (0.003, "linear", 24)
    again = ["--data", str(corpus), "--out", str(tmp_path / "again"), "--config", str(first / "config.json"), "--quiet"]
    assert main(again) == 0
    found, wanted = state_of(tmp_path / "again")[1], state_of(first)[1]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert main([*again[:3], str(tmp_path / "other"), *again[4:], "--lr", "0.001", "--hidden", "32"]) == 0
    settings = read_settings(tmp_path / "other" / "config.json")
    assert (settings["lr"], settings["lr_schedule"], settings["network"]["hidden"]) == (0.001, "linear", 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "other"], "--data-weights with 2 numbers"),
        (["--data-weights", "1", "2"], "--data-weights must be 1 numbers"),
        (["--private"], "--push-to-hub, which is missing"),
        (["--fhid", "1"], "--fhid must be at least 2"),
        (["--normalizer", "data"], "--init, which is missing"),
        (["--width", "32"], "--width is of no use to the network 'layers'"),
        (["--embed", "15"], "multiple of 2 * heads"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--lr-schedule", "step"], "invalid choice"),
    ],
)
def test_options_that_do_not_fit_together(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(command(corpus, tmp_path / "run", "--steps", "1", *more))
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert not (tmp_path / "run").exists()


# -- fine-tuning


def test_fine_tuning_keeps_the_normaliser_or_fits_one(tmp_path: Path) -> None:
    pairs, held_out = make_pairs(40, seed=5), make_pairs(6, seed=6)
    first = make_prior(torch.float32)
    first.info["seed"] = 77
    priors = {
        name: train(pairs, CONFIG, tmp_path / name, init=first, normalizer=name, val_pairs=held_out)  # type: ignore[arg-type]
        for name in ("init", "data")
    }
    assert torch.equal(priors["init"].normalizer.mean, first.normalizer.mean.float())
    assert not torch.allclose(priors["data"].normalizer.mean, first.normalizer.mean.float(), atol=1e-3)
    fitted = Normalizer.fit(to_vectors([pairs], mirror=True).partner)
    torch.testing.assert_close(priors["data"].normalizer.mean, fitted.mean, atol=1e-5, rtol=1e-4)
    assert priors["data"].info["data"]["fine-tuned with the normaliser of"] == "data"
    assert priors["data"].info["init"] == first.info
    with pytest.raises(CheckpointError, match="normalizer was"):
        train(pairs, CONFIG, tmp_path / "data", init=first, normalizer="init", val_pairs=held_out, resume=True)
    with pytest.raises(ValueError, match="normalizer must be"):
        train(pairs, CONFIG, tmp_path / "x", init=first, normalizer="both")  # type: ignore[arg-type]


# -- FHID, the card, the Hub


def test_fhid_is_logged(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interhand_prior.metrics.features.load_feature_network", lambda **_: SumFeatures())
    assert main(command(corpus, tmp_path / "run", "--steps", "2", "--quiet", "--fhid", "8", "--val-every", "1")) == 0
    found = [line["val_fhid"] for line in read_log(tmp_path / "run" / "log.csv") if "val_fhid" in line]
    assert len(found) == 2
    assert all(value > 0 for value in found)
    prior, held_out = load_prior(tmp_path / "run" / "prior"), [make_pairs(12, seed=8)]
    assert fhid(8)(prior, held_out)["val_fhid"] == pytest.approx(found[-1], rel=0.05)  # weights in float16
    assert prior.info["validation"]["val_fhid"] == found[-1]


class SumFeatures:
    """Three numbers of a pair, in the place of the feature network."""

    def __call__(self, pairs: TwoHands, **_: Any) -> torch.Tensor:
        parts = (pairs.right.transl, pairs.right.hand_pose[..., :3], pairs.left.hand_pose[..., :3])
        return torch.stack([part.sum(-1) for part in parts], -1)


def test_evaluation_needs_held_out_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held-out pairs"):
        train(make_pairs(20), CONFIG, tmp_path / "run", network=TINY, val_pairs=[], evaluate=fhid(4))
    assert not (tmp_path / "run").exists()


def test_the_card_says_what_was_done(corpus: Path, tmp_path: Path) -> None:
    assert main(command(corpus, tmp_path / "run", "--steps", "2", "--lr", "0.003", "--quiet")) == 0
    prior = load_prior(tmp_path / "run" / "prior")
    card = (tmp_path / "run" / "prior" / "README.md").read_text()
    assert card == model_card(prior)
    assert "| data sets | unknown |" in card
    assert "| hands | open hand |" in card
    for row in ("| steps | 2 |", "| lr | 0.003 |", "| seed | 0 |", "| hidden | 24 |", "| held-out pairs | 12 |"):
        assert row in card
    assert f"| fingerprint | {prior.info['data']['fingerprint']} |" in card
    assert f"| val_cond | {prior.info['validation']['val_cond']:.5g} |" in card
    assert str(tmp_path) not in card


def test_data_sets_and_licences_are_recorded_as_their_folders_say(corpus: Path, tmp_path: Path) -> None:
    other, third = tmp_path / "other", tmp_path / "third"
    for folder, said in ((other, {"dataset": "Mine", "licence": "cc-by-4.0"}), (third, {"dataset": "Theirs"})):
        shutil.copytree(corpus, folder)
        (folder / "manifest.json").write_text(json.dumps(said))
    assert origin([corpus], None) == {"hands": "open hand"}
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("[")
    assert origin([str(tmp_path / "damaged"), make_pairs(2)], None) == {"hands": "open hand"}
    whole = {"data sets": ["Mine"], "licence": "cc-by-4.0"}
    assert origin([other / "train-00000.npz"], other_hands()) == whole | {
        "hands": "other hand models than the open hand"
    }

    train([other, third], CONFIG, tmp_path / "run", weights=[1, 1], network=TINY)
    prior = load_prior(tmp_path / "run" / "prior")
    assert prior.info["data"]["data sets"] == ["Mine", "Theirs"]
    assert prior.info["data"]["licence"] == "Mine: cc-by-4.0; Theirs: unknown"
    card = (tmp_path / "run" / "prior" / "README.md").read_text()
    assert "Unknown means that it was not recorded" in card
    for row in ("| data sets | Mine; Theirs |", "| data | Mine: cc-by-4.0; Theirs: unknown |", "| weights | unknown |"):
        assert row in card


def test_the_result_is_pushed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[str, bool, int]] = []

    def push(folder: Path, repository: str, *, private: bool) -> str:
        sent.append((repository, private, load_prior(folder).info["steps"]))
        return "c0ffee"

    monkeypatch.setattr(command_module, "push_folder", push)
    out = tmp_path / "run"
    assert main(command(corpus, out, "--steps", "1", "--quiet", "--push-to-hub", "me/hands", "--private")) == 0
    assert sent == [("me/hands", True, 1)]
    assert "c0ffee" in capsys.readouterr().out
