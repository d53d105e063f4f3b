"""The engine: accumulation, reading ahead, the log, settings, and runs that are killed. On a task of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_task import CONFIG, BatchTask, LineTask, NamedSamples
from hypothesis import given
from hypothesis import strategies as st

from interhand_prior.checkpoint import CheckpointError, read_checkpoint
from interhand_prior.train.config import TrainConfig, config_from
from interhand_prior.train.log import Log, read_log
from interhand_prior.train.options import StopRequest, chosen_config, read_settings
from interhand_prior.train.prefetch import Prefetch, RowOrder
from interhand_prior.train.run import run
from interhand_prior.train.task import map_tensors
from interhand_prior.train.trainer import Trainer


def state_of(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return read_checkpoint(out / "state", kind="training state")


def step_of(out: Path) -> int:
    """The saved step, while another process writes; 0: none yet."""
    path = out / "state" / "config.json"
    return json.loads(path.read_bytes())["config"]["position"]["step"] if path.exists() else 0


def stop_after(count: int) -> Any:
    left = iter(range(count))
    return lambda: next(left, None) is None


def weights_after(steps: int, **changes: Any) -> list[torch.Tensor]:
    trainer = Trainer(LineTask(), dataclasses.replace(CONFIG, **changes))
    for _ in range(steps):
        trainer.step()
    trainer.close()
    return [*trainer.parameters, *trainer.averaged]


# -- the step


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_parts_take_the_step_of_the_whole_batch(parts: int) -> None:
    """The same samples and draws: only the order of the sum differs."""
    wanted = weights_after(12, batch_size=12)
    found = weights_after(12, batch_size=12 // parts, accumulate=parts)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    other = weights_after(12, batch_size=12 // parts)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(other, wanted, strict=True))


def test_a_compiled_network_keeps_its_names(tmp_path: Path) -> None:
    task = LineTask()
    compiled: list[Any] = []
    task.module.compile = lambda: compiled.append(True)  # type: ignore[method-assign]
    trainer = Trainer(task, dataclasses.replace(CONFIG, compile=True))
    trainer.step()
    trainer.save(tmp_path)
    assert compiled == [True]
    names = read_checkpoint(tmp_path, kind="training state")[1]
    assert {"module.line.weight", "average.line.weight", "optimizer.exp_avg.line.weight"} <= names.keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles with the system's compiler")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of PyTorch about itself
def test_compiling_changes_no_number_but_the_last_digits() -> None:
    for ours, theirs in zip(weights_after(5, compile=True), weights_after(5), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# -- reading ahead


@given(count=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 5))
def test_rows_are_epochs_joined_end_to_end(count: int, size: int, seed: int) -> None:
    order = RowOrder(count, size, seed)
    rows = torch.cat([order(step) for step in range(2 * count // size + 2)])
    for epoch in range(len(rows) // count):
        assert torch.equal(rows[epoch * count : (epoch + 1) * count].sort().values, torch.arange(count))
    assert torch.equal(RowOrder(count, size, seed)(1), order(1))


def test_samples_are_read_one_step_ahead_in_another_thread() -> None:
    task = BatchTask()
    order = RowOrder(task.count, 8, 0)
    samples = Prefetch(task, order, slice(0, 8))
    first = samples(0)
    assert isinstance(first, NamedSamples)
    assert torch.equal(first.x, task.x[order(0)])
    deadline = time.monotonic() + 30
    while len(task.readers) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert task.readers[0][0] == threading.get_ident() != task.readers[1][0]
    assert torch.equal(task.readers[1][1], order(1))
    assert task.readers[1][2] == 1, "the thread that reads must use no more threads"
    for step in (1, 2, 7):  # 7: the run went on elsewhere, and what was read ahead is not wanted
        assert torch.equal(samples(step).y, task.y[order(step)])
    samples.close()


def test_reading_ahead_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        samples = Prefetch(BatchTask(), RowOrder(10, 4, 0), slice(0, 4))
        samples(0)
        samples(1)
        samples.close()
        assert torch.get_num_threads() == 2
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [2]
    finally:
        torch.set_num_threads(before)


def test_an_error_while_reading_ahead_reaches_the_run(tmp_path: Path) -> None:
    task = BatchTask(broken_at=5)
    with pytest.raises(OSError, match="unreadable"):
        run(task, CONFIG, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samples")]


def test_reading_ahead_and_stopping_change_no_bit(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, accumulate=2)
    run(LineTask(), config, tmp_path / "plain")
    run(BatchTask(), config, tmp_path / "ahead")
    run(BatchTask(), config, tmp_path / "parts", should_stop=stop_after(7))
    run(BatchTask(), config, tmp_path / "parts", resume=True)
    wanted = state_of(tmp_path / "plain")[1]
    for name in ("ahead", "parts"):
        found = state_of(tmp_path / name)[1]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_tree_keeps_its_form() -> None:
    tree = {"a": (torch.ones(2), [torch.zeros(1)]), "b": NamedSamples(torch.ones(1), torch.ones(1)), "c": 3}
    found = map_tensors(lambda value: value + 1, tree)
    assert isinstance(found["b"], NamedSamples)
    assert (found["a"][0].tolist(), found["a"][1][0].tolist(), found["b"].y.tolist(), found["c"]) == (
        [2, 2],
        [1],
        [2],
        3,
    )
    assert isinstance(found["a"], tuple)
    assert isinstance(found["a"][1], list)


# -- a run that is killed


def test_a_run_killed_at_any_moment_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """SIGKILL while it steps, logs, validates or saves (it does all the time); then the rest, in one go."""
    config = dataclasses.replace(CONFIG, steps=300, save_minutes=1e-9, log_every=1, val_every=3)
    run(BatchTask(), config, tmp_path / "whole")
    wanted = state_of(tmp_path / "whole")[1]
    command = [sys.executable, str(Path(__file__).parent / "engine_task.py"), str(tmp_path / "killed")]
    command.append(json.dumps(config.as_dict()))
    step = 0
    for kill in range(2):
        with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            while step_of(tmp_path / "killed") <= step:
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(random.Random(kill).uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        before, step = step, state_of(tmp_path / "killed")[0]["position"]["step"]
        assert before < step < 300
    run(BatchTask(), config, tmp_path / "killed", resume=True)
    found = state_of(tmp_path / "killed")[1]
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "killed")]
    assert [{k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in logs[0]] == [
        {k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in logs[1]
    ]


def test_the_split_of_the_batch_may_change_but_not_its_size(tmp_path: Path) -> None:
    run(LineTask(), CONFIG, tmp_path, should_stop=stop_after(3))
    with pytest.raises(CheckpointError, match="processes x accumulate x batch_size was 8, is 16"):
        run(LineTask(), dataclasses.replace(CONFIG, accumulate=2), tmp_path, resume=True)
    run(LineTask(), dataclasses.replace(CONFIG, accumulate=2, batch_size=4), tmp_path, resume=True)
    run(LineTask(), CONFIG, tmp_path / "whole")
    found, wanted = state_of(tmp_path)[1], state_of(tmp_path / "whole")[1]
    torch.testing.assert_close(found["module.line.weight"], wanted["module.line.weight"], atol=1e-5, rtol=1e-4)


# -- learning rates


@given(progress=st.floats(0, 1), final=st.floats(0, 1), cooldown=st.floats(0.01, 1))
def test_rates_fall_from_one_to_the_final_share(progress: float, final: float, cooldown: float) -> None:
    for name in ("cosine", "linear", "constant", "wsd"):
        config = TrainConfig(steps=1, lr=2.0, warmup=0, lr_schedule=name, final_lr=final, cooldown=cooldown)
        rates = [config.rate(0, at) for at in (0.0, progress, 1.0)]
        assert rates[0] == pytest.approx(2.0)
        assert rates[2] == pytest.approx(2.0 if name == "constant" else 2 * final)
        assert rates == sorted(rates, reverse=True) or rates == pytest.approx([2.0] * 3)


def test_rates_in_the_middle() -> None:
    rate = lambda at, **changes: TrainConfig(steps=1, lr=1.0, warmup=0, **changes).rate(0, at)
    assert rate(0.5) == pytest.approx(0.5)
    assert rate(0.25) == pytest.approx(0.5 * (1 + 2**-0.5))
    assert rate(0.25, lr_schedule="linear", final_lr=0.2) == pytest.approx(0.8)
    assert rate(0.79, lr_schedule="wsd") == pytest.approx(1.0)
    assert rate(0.9, lr_schedule="wsd", final_lr=0.1) == pytest.approx(0.55)


# -- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 5, "learning_rate": 1}, "no setting 'learning_rate'.*There are steps"),
        ({"steps": 5, "warm_up": 1}, "no setting 'warm_up'; did you mean 'warmup'"),
        ({"steps": 5.5}, "steps must be a whole number or null, got 5.5"),
        ({"steps": True}, "steps must be a whole number or null, got True"),
        ({"steps": 5, "lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"steps": 5, "mirror": 1}, "mirror must be true or false, got 1"),
        ({"steps": 5, "amp": "yes"}, "amp must be auto, on or off, got 'yes'"),
        ({"steps": 5, "lr_schedule": "step"}, "lr_schedule must be cosine, linear, constant or wsd"),
        ({"steps": 5, "device": None}, "device must be a text"),
        ({"steps": 5, "accumulate": 0}, "accumulate must be positive"),
        ({"steps": 5, "cooldown": 0.0}, "cooldown"),
    ],
)
def test_settings_of_the_wrong_name_or_type(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_from(values)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"settings.json: .*{message}"):
        read_settings(path)


def test_a_run_writes_its_settings_and_options_override_them(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lr=3e-3, lr_schedule="wsd")
    run(LineTask(), config, tmp_path)
    stored = read_settings(tmp_path / "config.json")
    assert stored["network"] == {"width": 3}
    assert chosen_config(stored) == config
    assert chosen_config(stored, {"lr": 0.5, "other": 1}) == dataclasses.replace(config, lr=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "must hold an object"), ('{"network": 3}', '"network" must be an object')],
)
def test_files_that_hold_no_settings(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(path)


# -- the log


def test_the_log_grows_in_both_directions(tmp_path: Path) -> None:
    log = Log(tmp_path)
    assert (tmp_path / "log.csv").read_text() == "step,seconds\n"
    log.write(5, 1.234567, {"loss": 0.5})
    log.write(10, 2.0, {"val_b": 3.0, "val_a": 1 / 3})
    log.write(15, 3.0, {"loss": float("inf")})
    assert (tmp_path / "log.csv").read_text() == (
        "step,seconds,loss,val_b,val_a\n5,1.23,0.5,,\n10,2,,3,0.333333\n15,3,inf,,\n"
    )
    assert read_log(tmp_path / "log.csv")[1] == {"step": 10, "seconds": 2, "val_b": 3, "val_a": 0.333333}


def test_the_log_of_a_killed_run_is_cut_back(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in (5, 10, 15):
        log.write(step, step, {"loss": 1.0})
    with open(tmp_path / "log.csv", "a") as file:
        file.write("20,20,1")  # the number may be 1.5: half a row is no row
    assert [line["step"] for line in read_log(tmp_path / "log.csv")] == [5, 10, 15]
    Log(tmp_path, 10).write(12, 12, {"loss": 2.0})
    assert [line["step"] for line in read_log(tmp_path / "log.csv")] == [5, 10, 12]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(LineTask(), dataclasses.replace(CONFIG, tensorboard=True), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {(event.step, round(event.value, 4)) for event in events.Scalars("loss")}
    wanted = {(line["step"], round(line["loss"], 4)) for line in read_log(tmp_path / "log.csv") if "loss" in line}
    assert found == wanted
    assert events.Scalars("val_error")


def test_a_missing_tensorboard_is_named_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"interhand_prior\[train\]"):
        run(LineTask(), dataclasses.replace(CONFIG, tensorboard=True), tmp_path)
    assert not (tmp_path / "state").exists()


def test_evaluation_adds_numbers(tmp_path: Path) -> None:
    seen = []
    evaluate = lambda average: seen.append(average) or {"fhid": 2.5}
    run(LineTask(), CONFIG, tmp_path, evaluate=evaluate)
    lines = [line for line in read_log(tmp_path / "log.csv") if "fhid" in line]
    assert [line["step"] for line in lines] == [10, 20]
    assert all({"val_error", "fhid"} <= line.keys() and line["fhid"] == 2.5 for line in lines)
    assert not seen[0].training


# -- stopping


def test_the_second_signal_stops_at_once_unless_a_launcher_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before
