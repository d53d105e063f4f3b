"""What the doctor says of files that are whole, and of files that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_prior, random_pairs
from mano_makers import dump, genuine, stand_in

from interhand_prior.cli import main
from interhand_prior.doctor import diagnose
from interhand_prior.hands.export import export_mano
from interhand_prior.official import OfficialConfig, OfficialDenoiser


def said(path: Path) -> tuple[str, bool]:
    """Of one path, the last line."""
    *_, last = diagnose([path])
    return last


def test_of_the_package_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "open hand: 778 vertices" in out
    assert 'bundled prior: network "tokens"' in out
    assert "no score" not in out


def test_of_files_that_are_whole(tmp_path: Path) -> None:
    export_mano(tmp_path / "mano")
    assert said(tmp_path / "mano")[0].startswith("MANO folder: both hands, 10 betas, with PCA components")
    assert said(tmp_path / "mano" / "MANO_LEFT.pkl")[0].startswith("MANO file: a left hand")
    make_prior(torch.float32).save_pretrained(tmp_path / "prior")
    assert said(tmp_path / "prior") == (
        'prior: network "layers", 21,600 parameters; no gate (prior.trust), no measured uncertainty, no score:'
        " prior.calibrate(pairs)".replace("21,600", f"{sum(p.numel() for p in make_prior().denoiser.parameters()):,}"),
        True,
    )
    (tmp_path / "corpus").mkdir()
    random_pairs(3, dtype=torch.float32).save(tmp_path / "corpus" / "train-00000.npz")
    assert said(tmp_path / "corpus")[0].endswith("train-00000.npz has 3 samples, 3 with both hands")
    for name, size in {"mano_mean": 55, "mano_var": 55, "rel_mean": 9, "rel_var": 9}.items():
        (tmp_path / "stats").mkdir(exist_ok=True)
        np.save(tmp_path / "stats" / f"{name}.npy", np.ones(size))
    assert said(tmp_path / "stats")[0].endswith("64 means and variances")
    network = OfficialDenoiser(OfficialConfig(embed=8, hidden=8, feedforward=8))
    state = {f"module.{name}": value for name, value in network.state_dict().items() if name != "null"}
    torch.save([state, {}, 1, 2, {}], tmp_path / "ckpt.pth")
    line, good = said(tmp_path / "ckpt.pth")
    assert good
    assert f"{sum(v.numel() for v in state.values()):,} parameters, with an average that is not read" in line


def test_of_the_released_left_hand_and_a_mended_one(tmp_path: Path) -> None:
    models = tmp_path / "mano_v1_2" / "models"
    models.mkdir(parents=True)
    for side in ("left", "right"):
        dump(genuine(side), models / f"MANO_{side.upper()}.pkl")
    line, good = said(tmp_path)
    assert good
    assert "both hands" in line
    assert "left shapedirs are those of the right hand, as in the released file; they are mended when" in line
    dump(genuine("left", left_bug=False), models / "MANO_LEFT.pkl")
    assert "the left shapedirs are its own" in said(models)[0]
    dump({"weights": stand_in("chumpy.ch_ops", "add")}, models / "MANO_RIGHT.pkl")
    line, good = said(tmp_path)
    assert not good
    assert "MANO_RIGHT.pkl names the global chumpy.ch_ops.add, which no MANO model needs; the file was not exec" in line


def test_of_files_that_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(tmp_path / "nowhere") == ("there is nothing", False)
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty")[1] is False
    make_prior(torch.float32).save_pretrained(tmp_path / "prior")
    (tmp_path / "prior" / "model.safetensors").write_bytes(b"cut")
    assert said(tmp_path / "prior")[1] is False
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(b"cos\nsystem\n(S'echo ran'\ntR.")
    line, good = said(tmp_path / "MANO_RIGHT.pkl")
    assert not good
    assert "names the global os.system" in line
    assert "not executed" in line
    (tmp_path / "mano_v1_2.zip").write_bytes(b"PK")
    assert said(tmp_path / "mano_v1_2.zip") == ("an archive: unpack it, and give the folder that comes out", False)
    assert main(["doctor", str(tmp_path / "empty")]) == 1
    assert "! MANO folder" in capsys.readouterr().out
