"""The command line, called in the same process, end to end on a tiny prior."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers import make_prior
from PIL import Image

import interhand_prior
from interhand_prior import TwoHands, cli, load_prior, sample
from interhand_prior.cli import main

FILES = ["hands.glb", "hands.npz", "hands.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny prior on disk."""
    return make_prior(torch.float32).save_pretrained(tmp_path_factory.mktemp("prior") / "tiny")


def run(folder: Path, out: Path, *more: str) -> int:
    return main(["sample", "--prior", str(folder), "--out", str(out), "--num", "2", "--steps", "2", *more])


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_sample_writes_parameters_meshes_and_a_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert run(folder, out, "--seed", "3") == 0
    assert names(out) == FILES
    printed = capsys.readouterr()
    assert all(str(out / name) in printed.out for name in FILES)
    assert "2 pairs" in printed.out
    assert printed.err == ""

    hands = TwoHands.load(out / "hands.npz")
    wanted = sample(load_prior(folder), 2, steps=2, seed=3)
    for name, value in wanted.right.as_dict().items():
        torch.testing.assert_close(getattr(hands.right, name), value)
    scene = trimesh.load_scene(out / "hands.glb", process=False)
    assert set(scene.geometry) == {"left_0", "right_0", "left_1", "right_1"}
    with Image.open(out / "hands.png") as image:
        assert np.asarray(image).std() > 10


def test_options_reach_the_sampler(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}

    def fake(prior: object, number: int, **options: object) -> TwoHands:
        seen.update(options, number=number, dtype=prior.dtype)  # type: ignore[attr-defined]
        return sample(prior, number, steps=1, seed=0)  # type: ignore[arg-type]

    monkeypatch.setattr(interhand_prior, "sample", fake)
    flags = ["--cfg-scale", "1.5", "--penetration-scale", "0", "--solver", "ddim", "--eta", "0.25", "--batch-size", "7"]
    flags += ["--seed", "11", "--no-png", "--no-glb"]
    assert run(folder, tmp_path / "a", *flags) == 0
    wanted = {
        "steps": 2,
        "cfg_scale": 1.5,
        "penetration_scale": 0.0,
        "solver": "ddim",
        "eta": 0.25,
        "batch_size": 7,
        "seed": 11,
    }
    assert seen == wanted | {"number": 2, "progress": False, "dtype": torch.float32}
    seen.clear()
    # What is not said is left to `sample`.
    base = ["sample", "--prior", str(folder), "--num", "1", "--no-png", "--no-glb", "--out", str(tmp_path / "b")]
    assert main(base) == 0
    assert seen == {"number": 1, "seed": 0, "progress": False, "dtype": torch.float32}


def test_what_is_left_out_is_not_written_and_quiet_is_quiet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path, "--no-png", "--quiet") == 0
    assert names(tmp_path) == ["hands.glb", "hands.npz"]
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_show_limits_picture_and_meshes_only(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "--show", "1", "--no-png") == 0
    assert len(TwoHands.load(tmp_path / "hands.npz")) == 2
    scene = trimesh.load_scene(tmp_path / "hands.glb", process=False)
    assert set(scene.geometry) == {"left", "right"}


def test_nothing_is_overwritten_unasked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hands.glb").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(interhand_prior, "load_prior", lambda *_, **__: pytest.fail("work began"))
        assert run(folder, tmp_path) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert str(tmp_path / "hands.glb") in error
    assert (tmp_path / "hands.glb").read_text() == "mine"
    assert names(tmp_path) == ["hands.glb"]
    assert run(folder, tmp_path, "--no-png", "--overwrite") == 0
    assert (tmp_path / "hands.glb").read_bytes()[:4] == b"glTF"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num", "0"], "--num must be at least 1, got 0"),
        (["--show", "0"], "--show must be at least 1"),
        (["--steps", "0"], "steps must be a positive integer"),
        (["--eta", "2"], "eta must be in [0, 1]"),
        (["--prior", "no/such/place/anywhere"], "was not found"),
        (["--revision", "main"], "revision is for Hub repositories"),
        (["--device", "nonsense"], "--device 'nonsense' is not there"),
        (["--hands", "/no/mano/here"], "/no/mano/here"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(folder, tmp_path / "new" / "out", *flags) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("interhand-prior: error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_fails_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interhand_prior, "load_prior", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "file").write_text("mine")
    assert run(folder, tmp_path / "file" / "out") == 2
    assert "cannot write into" in capsys.readouterr().err
    assert run(folder, tmp_path / "file") == 2
    assert "cannot write into" in capsys.readouterr().err
    (tmp_path / "out" / "hands.png").mkdir(parents=True)
    assert run(folder, tmp_path / "out", "--overwrite") == 2
    assert "is a folder" in capsys.readouterr().err
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        assert run(folder, locked) == 2
        assert "cannot write into" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interhand_prior, "sample", interrupt)
    assert run(folder, tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert names(tmp_path) == []


def test_debug_shows_the_place(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        main(["--debug", *["sample", "--prior", str(folder), "--out", str(tmp_path), "--steps", "0"]])


def test_a_bug_is_not_hidden(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(interhand_prior, "sample", bug)
    with pytest.raises(TypeError, match="ours"):
        run(folder, tmp_path)


@pytest.mark.parametrize("argv", [[], ["fly"], ["sample", "--num", "many"]])
def test_wrong_words_are_explained(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: interhand-prior" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["sample", "--help"], ["--version"]])
def test_help_and_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    words = {"--help": ("sample", "corpus", "train"), "--version": (interhand_prior.__version__,)}
    for word in words.get(argv[0], ("--penetration-scale", "--seed", "default: 16")):
        assert word in printed


@pytest.mark.parametrize("name", sorted(cli.MODULES))
def test_commands_with_a_module_of_their_own_get_the_rest_of_the_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    seen: list[list[str]] = []

    def fake(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    module = importlib.import_module(cli.MODULES[name][0])
    monkeypatch.setattr(module, "main", fake)
    assert main([name, "somewhere", "--seed", "4"]) == 7
    assert seen == [["somewhere", "--seed", "4"]]


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "interhand_prior", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"interhand-prior {interhand_prior.__version__}"


def test_the_readme_pictures_are_made_by_one_command(folder: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "make_pictures.py"))
    flags = ["--num", "3", "--columns", "2", "--size", "40", "--no-open-hand"]
    assert example["main"](["--prior", str(folder), "--out", str(tmp_path), *flags]) == [tmp_path / "samples.png"]
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (80, 80)
