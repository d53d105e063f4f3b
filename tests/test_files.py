"""Files of hands: exact, whole or not at all, and never a pickle."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, leaves, random_pairs
from hypothesis import given
from hypothesis import strategies as st

from interhand_prior import TwoHands
from interhand_prior.files import write_atomically


@pytest.fixture
def pairs() -> TwoHands:
    pairs = random_pairs(4)
    extras = {
        "archetype": np.array([2, 0, 1, 1], np.int16),
        "names": np.array(["clasp", "", "fingers étendus", "pinch"]),
        "file": np.arange(8.0).reshape(4, 2),
        "flag": np.array([True, False, True, True]),
    }
    return TwoHands(pairs.left, pairs.right, extras=extras)


def break_disk(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"interhand_prior.files.os.{call}", fail)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_round_trip_is_exact(pairs: TwoHands, tmp_path: Path, dtype: torch.dtype) -> None:
    pairs = pairs.to(dtype)
    found = TwoHands.load(pairs.save(tmp_path / "pairs.npz"))
    assert_same(found, pairs)
    assert found.dtype == dtype
    assert found.extras.keys() == pairs.extras.keys()
    for name, value in pairs.extras.items():
        assert found.extras[name].dtype == value.dtype
        np.testing.assert_array_equal(found.extras[name], value)


@given(batch=st.lists(st.integers(0, 3), max_size=3))
def test_any_batch_shape_comes_back(tmp_path_factory: pytest.TempPathFactory, batch: list[int]) -> None:
    pairs = random_pairs(*batch)
    pairs = TwoHands(pairs.left, pairs.right, extras={"x": np.zeros([*batch, 2], np.int8)})
    found = TwoHands.load(pairs.save(tmp_path_factory.mktemp("any") / "pairs.npz"))
    assert found.batch_shape == tuple(batch)
    assert_same(found, pairs)


def test_bfloat16_and_gradients_are_stored_by_value(pairs: TwoHands, tmp_path: Path) -> None:
    half = pairs.to(torch.bfloat16).map(lambda value: value.requires_grad_())
    found = TwoHands.load(half.save(tmp_path / "pairs.npz"))
    assert_same(found, half.to(torch.float32))


def test_numpy_reads_it_without_this_library(pairs: TwoHands, tmp_path: Path) -> None:
    with np.load(pairs.save(tmp_path / "pairs.npz")) as archive:
        assert set(archive.files) == {*leaves(pairs), *(f"extras.{name}" for name in pairs.extras)}
        np.testing.assert_array_equal(archive["left.betas"], pairs.left.betas.numpy())


def test_it_remembers_the_models_it_is_told(pairs: TwoHands, tmp_path: Path) -> None:
    path = pairs.save(tmp_path / "pairs.npz")
    assert TwoHands.load(path, hands=pairs.model).hands is pairs.model


def test_save_refuses_what_load_would(pairs: TwoHands, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.npz, got 'pairs\.glb'"):
        pairs.save(tmp_path / "pairs.glb")
    pairs.right.betas[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"right\.betas holds NaN"):
        pairs.save(tmp_path / "pairs.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 1, 30, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(pairs: TwoHands, tmp_path: Path, keep: float) -> None:
    path = pairs.save(tmp_path / "pairs.npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"damaged or not an \.npz") as caught:
        TwoHands.load(path)
    assert "pairs.npz" in str(caught.value)


def test_a_flipped_bit_is_refused(pairs: TwoHands, tmp_path: Path) -> None:
    path = pairs.save(tmp_path / "pairs.npz")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        TwoHands.load(path)


class Bomb:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_not_run(pairs: TwoHands, tmp_path: Path) -> None:
    fuse = tmp_path / "exploded"
    bomb = np.array([Bomb(fuse)], dtype=object)
    arrays: dict[str, Any] = {name: value.numpy() for name, value in leaves(pairs).items()}
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb(fuse)))
    np.savez(tmp_path / "extra.npz", allow_pickle=True, **arrays, **{"extras.x": bomb})
    np.savez(tmp_path / "field.npz", allow_pickle=True, **arrays | {"left.betas": bomb})
    for name in ("raw", "extra", "field"):
        with pytest.raises(ValueError, match=f"{name}.npz is damaged or not an .npz"):
            TwoHands.load(tmp_path / f"{name}.npz")
    assert not fuse.exists()
    pickle.loads((tmp_path / "raw.npz").read_bytes())
    assert fuse.exists(), "the bomb itself must work, or this test shows nothing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left.betas": None}, "lacks left.betas"),
        ({"left.betas": np.zeros((4, 9))}, "left: betas must have shape"),
        ({"left.betas": np.zeros((4, 10), np.complex64)}, "left: betas"),
        ({"left.betas": np.array(["x"] * 4)}, "left.betas must be"),
        ({"right.transl": np.full((4, 3), np.nan)}, "right.transl holds NaN"),
        ({"extras.x": np.zeros(3)}, r"extras\['x'\]"),
    ],
)
def test_files_with_wrong_contents_are_refused(
    pairs: TwoHands, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in leaves(pairs).items()}
    arrays = {name: value for name, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "pairs.npz", **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        TwoHands.load(tmp_path / "pairs.npz")
    assert "pairs.npz" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz does not exist"):
        TwoHands.load(tmp_path / "nothing.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"not an \.npz"):
        TwoHands.load(tmp_path / "array.npy")


# Whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_failing_disk_leaves_the_old_file(
    pairs: TwoHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = pairs.save(tmp_path / "pairs.npz")
    with monkeypatch.context() as broken:
        break_disk(broken, call)
        with pytest.raises(OSError, match="No space left"):
            pairs[:2].save(path)
        with pytest.raises(OSError, match="No space left"):
            pairs.save(tmp_path / "new.npz")
    assert_same(TwoHands.load(path), pairs)
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.npz"]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "x", b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("interhand_prior.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    path = write_atomically(tmp_path / "x", memoryview(b"data"))
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "x", b"data")
