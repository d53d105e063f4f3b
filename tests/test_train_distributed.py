"""Two processes under the launcher of `accelerate` take the steps of one process with the doubled batch."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_processes import TINY, TINY_CONFIG
from engine_task import CONFIG, LineTask
from helpers import random_pairs

from interhand_prior.checkpoint import read_checkpoint
from interhand_prior.train import train
from interhand_prior.train.distributed import Processes, launched
from interhand_prior.train.log import read_log
from interhand_prior.train.run import run

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def state_of(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return read_checkpoint(out / "state", kind="training state")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes ran; see engine_processes."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("processes")
    # With --cpu this launcher starts one process, whatever the number; the device is chosen by the settings.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(free_port()), str(HERE / "engine_processes.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"seen-{index}.json").read_text()) for index in range(2)]


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_two_processes_take_the_steps_of_the_doubled_batch(folder: Path, tmp_path: Path) -> None:
    """AdamW divides by the root of a mean of squares, which amplifies the rounding of sums in another order."""
    run(LineTask(), dataclasses.replace(CONFIG, batch_size=16), tmp_path)
    (position, found), (_, wanted) = state_of(folder / "whole"), state_of(tmp_path)
    assert position["position"]["batch"] == 16
    assert torch.equal(found.pop("generator"), wanted.pop("generator"))
    assert_close(found, wanted)
    logs = [
        [line["loss"] for line in read_log(out / "log.csv") if "loss" in line] for out in (folder / "whole", tmp_path)
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_a_prior_of_two_processes_is_that_of_one(folder: Path, seen: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two processes with two parts of four samples each, against one with sixteen at once."""
    config = dataclasses.replace(TINY_CONFIG, batch_size=16, accumulate=1)
    train(random_pairs(60, dtype=torch.float32), config, tmp_path, network=TINY)
    found, wanted = state_of(folder / "prior")[1], state_of(tmp_path)[1]
    for name in wanted:
        if name.startswith(("module", "average")):
            torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-4)
    assert seen[0]["prior"] == seen[1]["prior"]


def test_a_stop_asked_of_one_process_stops_all_and_resuming_changes_no_bit(folder: Path) -> None:
    found, wanted = state_of(folder / "parts")[1], state_of(folder / "whole")[1]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len([line for line in read_log(folder / "parts" / "log.csv") if "loss" in line]) == 4


def test_time_ends_at_the_same_step_in_all(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert seen[0]["timed"] == seen[1]["timed"] == state_of(folder / "timed")[0]["position"]["step"] > 0


def test_a_parameter_that_one_process_uses_is_trained_in_all(seen: list[dict[str, Any]]) -> None:
    """Its gradient is the mean with zero; without any, weight decay must leave it alone, as in one process."""
    assert seen[0]["idle"] == seen[1]["idle"]
    assert 0 < seen[0]["idle"][0] < 1


def test_all_learn_that_one_has_diverged(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert "nan at step 0" in seen[0]["broken"]
    assert seen[0]["broken"] == seen[1]["broken"]
    assert not (folder / "broken" / "state").exists()


def test_only_the_main_process_writes(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert [line["count"] for line in seen] == [2, 2]
    steps = [line["step"] for line in read_log(folder / "whole" / "log.csv") if "loss" in line]
    assert steps == [5, 10, 15, 20]
    assert (folder / "prior" / "prior" / "README.md").exists()


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    alone = launched("cpu")
    assert (alone.index, alone.count, alone.is_main) == (0, 1, True)
    assert alone.agree(True, 2.5) == (True, 2.5)
    assert Processes(torch.device("cpu")).share(8) == slice(0, 8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImportError, match=r"interhand_prior\[train\]"):
        launched("cpu")
    with pytest.raises(ValueError, match="each its own"):
        launched("cpu:0")
