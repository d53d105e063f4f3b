"""The checkpoint folder: exact round trips, atomic writes, refusal of what is not what it says."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from interhand_prior import checkpoint
from interhand_prior.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    CheckpointError,
    read_checkpoint,
    write_checkpoint,
)

CONFIG: dict[str, Any] = {
    "width": 8,
    "schedule": {"kind": "cosine", "levels": [0.1, 0.5]},
    "name": "tïny",
    "flag": True,
    "no": None,
}


def make_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(3, 4, generator=generator),
        "b": torch.randn(5, generator=generator).half(),
        "c": torch.randn(2, 2, generator=generator).bfloat16(),
        "d": torch.randn(1, generator=generator).double(),
        "step": torch.tensor(7),
        "rng": torch.arange(9, dtype=torch.uint8),
    }


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "prior", CONFIG, make_tensors())


def edit_header(folder: Path, **changes: Any) -> None:
    header = json.loads((folder / CONFIG_NAME).read_text())
    for key, value in changes.items():
        target = header
        *path, last = key.split("__")
        for part in path:
            target = target[part]
        target[last] = value
    (folder / CONFIG_NAME).write_text(json.dumps(header))


def test_round_trip_is_exact(folder: Path) -> None:
    config, tensors = read_checkpoint(folder)
    assert config == CONFIG
    assert_same(tensors, make_tensors())
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


@settings(max_examples=25, deadline=None)
@given(
    config=st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ),
    shape=st.lists(st.integers(0, 4), max_size=3),
)
def test_any_json_config_and_any_shape_survive(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], shape: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    tensors = {"x": torch.rand(shape)}
    write_checkpoint(folder, config, tensors)
    found, read = read_checkpoint(folder)
    assert found == config
    assert_same(read, tensors)


def test_views_of_one_storage_and_gradients_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0, requires_grad=True)
    tensors = {"row": base.reshape(3, 4)[1], "columns": base.reshape(3, 4).t(), "again": base}
    write_checkpoint(tmp_path, {}, tensors)
    assert_same(read_checkpoint(tmp_path)[1], {k: v.detach() for k, v in tensors.items()})


def test_the_file_is_an_ordinary_safetensors_file(folder: Path) -> None:
    assert_same(load_file(folder / WEIGHTS_NAME), make_tensors())


def test_overwriting_replaces_and_keeps_other_files(folder: Path) -> None:
    (folder / "README.md").write_text("card")
    write_checkpoint(folder, {"width": 9}, {"z": torch.ones(2)})
    config, tensors = read_checkpoint(folder)
    assert config == {"width": 9}
    assert_same(tensors, {"z": torch.ones(2)})
    assert (folder / "README.md").read_text() == "card"


# -- atomic writes


@pytest.mark.parametrize("fail_at", ["weights", "config", "config replace"])
def test_a_failing_disk_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, fail_at: str) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    real_replace = os.replace

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    def half_written(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        full_disk()

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(CONFIG_NAME):
            full_disk()
        real_replace(source, target)

    if fail_at == "weights":
        monkeypatch.setattr(checkpoint, "_write_synced", half_written)
    elif fail_at == "config":
        monkeypatch.setattr(checkpoint, "write_atomically", full_disk)
    else:
        monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(folder, {"width": 9}, make_tensors(1))
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert_same(read_checkpoint(folder)[1], make_tensors(0))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stage", range(4))
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Every step of the write is cut in turn; as a killed process cannot, no handler may tidy up."""
    real_write, real_config, real_replace = checkpoint._write_synced, checkpoint.write_atomically, os.replace

    def weights(path: Path, data: bytes) -> None:
        real_write(path, data[: len(data) // 2] if stage == 0 else data)
        if stage <= 1:
            raise Killed

    def config(path: Path, data: bytes) -> Path:
        real_config(path, data)
        if stage == 2:
            raise Killed
        return path

    def replace(source: Any, target: Any) -> None:
        if stage == 3 and str(target).endswith(WEIGHTS_NAME):
            raise Killed
        real_replace(source, target)

    monkeypatch.setattr(checkpoint, "_write_synced", weights)
    monkeypatch.setattr(checkpoint, "write_atomically", config)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)
    if stage == 2:
        real_settle = checkpoint._settle
        calls = iter([real_settle, lambda folder: True])
        monkeypatch.setattr(checkpoint, "_settle", lambda folder: next(calls)(folder))
    with pytest.raises(Killed):
        write_checkpoint(folder, {"width": 9}, make_tensors(1))
    monkeypatch.undo()

    expected = 0 if stage < 2 else 1
    assert (folder / (WEIGHTS_NAME + ".pending")).exists()
    found, tensors = read_checkpoint(folder)
    assert found == (CONFIG, {"width": 9})[expected]
    assert_same(tensors, make_tensors(expected))

    # The next write fails before it decides: what the kill left must still be readable.
    monkeypatch.setattr(checkpoint, "write_atomically", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_checkpoint(folder, {"width": 10}, make_tensors(2))
    monkeypatch.undo()
    assert_same(read_checkpoint(folder)[1], make_tensors(expected))
    write_checkpoint(folder, {"width": 10}, make_tensors(2))
    assert_same(read_checkpoint(folder)[1], make_tensors(2))
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_not_written(folder: Path, bad: float) -> None:
    with pytest.raises(CheckpointError, match=r"'a\.weight'.*NaN or infinity"):
        write_checkpoint(folder, CONFIG, {"a.weight": torch.tensor([1.0, bad])})
    assert_same(read_checkpoint(folder)[1], make_tensors())


@pytest.mark.parametrize("config", [{"x": float("nan")}, {"x": {1, 2}}, {"x": torch.ones(1)}])
def test_a_config_that_is_not_json_is_not_written(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="JSON"):
        write_checkpoint(tmp_path / "new", config, {})
    assert not (tmp_path / "new").exists()


# -- refusals


def test_truncated_weights(folder: Path) -> None:
    data = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=r"cut short.*again"):
        read_checkpoint(folder)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_changed_bit_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = write_checkpoint(tmp_path_factory.mktemp("bit"), CONFIG, make_tensors())
    raw = bytearray((folder / WEIGHTS_NAME).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / WEIGHTS_NAME).write_bytes(raw)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(folder)


def test_weights_of_another_checkpoint(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", CONFIG, make_tensors(1))
    (folder / WEIGHTS_NAME).write_bytes((other / WEIGHTS_NAME).read_bytes())
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(folder)


def rehash(folder: Path) -> None:
    import hashlib

    data = (folder / WEIGHTS_NAME).read_bytes()
    edit_header(folder, weights__sha256=hashlib.sha256(data).hexdigest(), weights__bytes=len(data))


def test_tensor_list_is_checked_even_when_the_hash_fits(folder: Path) -> None:
    save_file({**make_tensors(), "a.weight": torch.zeros(4, 3)}, folder / WEIGHTS_NAME)
    rehash(folder)
    with pytest.raises(CheckpointError, match=r"differ in a\.weight"):
        read_checkpoint(folder)


def test_nan_is_refused_even_when_the_hash_fits(folder: Path) -> None:
    save_file({**make_tensors(), "a.weight": torch.full((3, 4), torch.nan)}, folder / WEIGHTS_NAME)
    rehash(folder)
    with pytest.raises(CheckpointError, match="NaN"):
        read_checkpoint(folder)


def test_a_pickle_named_safetensors_is_not_run(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    payload = pickle.dumps(_Touch(str(witness)))
    (folder / WEIGHTS_NAME).write_bytes(payload)
    rehash(folder)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_checkpoint(folder)
    assert not witness.exists()


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "model.ckpt", "model.pkl"])
@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_of_pickles_is_refused_unopened(folder: Path, tmp_path: Path, name: str, with_config: bool) -> None:
    witness = tmp_path / "ran"
    (folder / WEIGHTS_NAME).unlink()
    if not with_config:
        (folder / CONFIG_NAME).unlink()
    (folder / name).write_bytes(pickle.dumps(_Touch(str(witness))))
    with pytest.raises(CheckpointError, match="can run code"):
        read_checkpoint(folder)
    assert not witness.exists()


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        read_checkpoint(folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a folder.*config\.json"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not of this library"),
        ({"format_version": 2}, "format_version 2.*newer"),
        ({"surprise": 1}, "unknown.*surprise"),
        ({"weights__path": "../../etc/passwd"}, "unknown.*path"),
        ({"kind": "training state"}, "'training state', not a 'prior'"),
        ({"config": [1]}, "must be objects"),
        ({"weights__bytes": "12"}, "malformed"),
        ({"weights__tensors": []}, "malformed"),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_header(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"a": NaN}', '{"format": "interhand_prior", "format": "x"}', "[" * 100_000, "\udcff"],
)
def test_a_config_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError):
        read_checkpoint(folder)


def test_a_huge_config_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_CONFIG_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("was read"))
    with pytest.raises(CheckpointError, match="over the limit"):
        read_checkpoint(folder)


def test_a_missing_key_is_named(folder: Path) -> None:
    header = json.loads((folder / CONFIG_NAME).read_text())
    del header["weights"]["sha256"]
    (folder / CONFIG_NAME).write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=r"missing.*sha256"):
        read_checkpoint(folder)
