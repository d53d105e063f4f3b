"""MANO files: the genuine layout is read, nothing in a file is run, and the export suits other people's loaders."""

from __future__ import annotations

import copyreg
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mano_makers import GENUINE_GLOBALS, dump, dump_again, genuine, stand_in

from interhand_prior.hands import HandArrays, HandModel, HandPair, export, load_hands, mano, open_hands
from interhand_prior.hands.__main__ import main
from interhand_prior.hands.export import export_mano
from interhand_prior.hands.mano import load_mano_folder, read_mano_file

scipy_sparse = pytest.importorskip("scipy.sparse")


@pytest.fixture(scope="module")
def genuine_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mano_v1_2") / "models"
    folder.mkdir()
    for side in ("left", "right"):
        dump(genuine(side), folder / f"MANO_{side.upper()}.pkl")
    return folder


def test_the_imitation_names_what_the_genuine_file_names(genuine_folder):
    data = (genuine_folder / "MANO_LEFT.pkl").read_bytes()
    assert {arg for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"} == GENUINE_GLOBALS
    assert data[:2] == b"\x80\x02"


def same_arrays(left: Any, right: Any, *, but: tuple[str, ...] = ()) -> None:
    for name in left.__dataclass_fields__:
        if name not in but:
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mano"
    export_mano(folder)
    return folder


def test_genuine_layout_is_read(genuine_folder):
    pair = load_hands(genuine_folder.parent)  # finds the archive's folder `models`
    for side in ("left", "right"):
        same_arrays(getattr(pair, side).arrays, getattr(open_hands(), side).arrays, but=("shapedirs_fixed",))
    assert pair.left.arrays.shapedirs_fixed
    assert not pair.right.arrays.shapedirs_fixed


def test_reading_and_writing_need_no_other_library(genuine_folder, tmp_path):
    code = (
        "import sys\n"
        "from interhand_prior.hands import load_hands\n"
        "from interhand_prior.hands.__main__ import main\n"
        f"assert main(['export-mano', {str(tmp_path / 'mano')!r}]) == 0\n"
        f"load_hands({str(tmp_path)!r}), load_hands({str(genuine_folder)!r})\n"
        "assert not {'chumpy', 'scipy', 'smplx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_left_shapedirs_can_be_kept_as_the_file_has_them(genuine_folder):
    left, right = load_mano_folder(genuine_folder, fix_left_shapedirs=False)
    np.testing.assert_array_equal(left.shapedirs, right.shapedirs)
    assert not left.shapedirs_fixed


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_python_3_saves_it_again(protocol, tmp_path):
    """With chumpy resolved, as conversion scripts do; whatever the memory order, byte order and precision."""
    for side in ("left", "right"):
        content = genuine(side)
        arrays = getattr(open_hands(), side).arrays
        content["shapedirs"] = arrays.shapedirs.astype(">f8")
        content["J_regressor"] = scipy_sparse.csc_matrix(arrays.J_regressor)
        content["weights"] = arrays.weights.astype(np.float32)
        content["v_template"] = np.repeat(arrays.v_template, 2, 0)[::2]  # not contiguous
        (tmp_path / f"MANO_{side.upper()}.pkl").write_bytes(pickle.dumps(content, protocol))
    pair = load_hands(tmp_path)
    for side in ("left", "right"):
        same_arrays(getattr(pair, side).arrays, getattr(open_hands(), side).arrays)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_python_3_saves_it_again_with_chumpy(protocol, tmp_path):
    """As it was unpickled: the Select over its Ch, the sparse matrix with scipy's name of today."""
    for side in ("left", "right"):
        content = genuine(side)
        content["J_regressor"] = scipy_sparse.csc_matrix(getattr(open_hands(), side).arrays.J_regressor)
        path = dump_again(content, tmp_path / f"MANO_{side.upper()}.pkl", protocol)
        names = {arg for op, arg, _ in pickletools.genops(path.read_bytes()) if op.name.endswith("UNICODE")}
        assert (protocol < 4) or {"chumpy.reordering", "Select", "scipy.sparse._csc"} <= names
    pair = load_hands(tmp_path)
    assert pair.left.arrays.shapedirs_fixed
    for side in ("left", "right"):
        same_arrays(getattr(pair, side).arrays, getattr(open_hands(), side).arrays, but=("shapedirs_fixed",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_export_saved_again(exported, protocol, tmp_path):
    """Also its array without rows, for whose empty bytes Python 3 names one more global."""
    for path in exported.glob("*.pkl"):
        with path.open("rb") as file:
            content = pickle.load(file, encoding="latin1")
        (tmp_path / path.name).write_bytes(pickle.dumps(content, protocol))
    same_arrays(load_hands(tmp_path).left.arrays, open_hands().left.arrays)


# Hostile and damaged files --------------------------------------------------------------------------------------


class Reduces:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that make the marker file when they are loaded in the ordinary way."""
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    text = lambda value: b"X" + struct.pack("<I", len(value)) + value.encode()
    system, getattr_ = b"cos\nsystem\n", b"cbuiltins\ngetattr\n"
    the_module = getattr_ + b"(cos\npath\n" + text("os") + b"tR"  # getattr(os.path, "os")
    return {f"os.system, protocol {n}": pickle.dumps(Reduces(os.system, shell), n) for n in range(6)} | {
        "exec": pickle.dumps(Reduces(exec, python), 2),
        "eval": pickle.dumps(Reduces(eval, python), 4),
        "subprocess": pickle.dumps(Reduces(subprocess.getoutput, shell)),
        "among honest content": pickle.dumps({"v_template": np.zeros(3), "weights": Reduces(os.system, shell)}, 2),
        "getattr chain": getattr_ + b"(" + the_module + text("system") + b"tR(" + text(shell) + b"tR.",
        "INST": b"(" + text(shell) + b"ios\nsystem\n.",
        "OBJ": b"(" + system + text(shell) + b"o.",
        "dotted name": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93(" + text(shell) + b"tR.",
        # An attribute of the object called __setstate__, which pickle then calls.
        "__setstate__": b"\x80\x02ctypes\nSimpleNamespace\n)\x81}"
        + text("__setstate__")
        + system
        + b"sb"
        + text(shell)
        + b"b.",
    }


@pytest.mark.parametrize("trick", list(hostile(Path("marker"))))
def test_hostile_pickles_are_refused_and_not_run(trick, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "MANO_RIGHT.pkl"
    data = hostile(marker)[trick]
    pickle.loads(data)
    assert marker.exists()  # the trick works where nobody looks
    marker.unlink()

    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"names the global (\w+)\..*the file was not executed"):
        read_mano_file(path)
    path.rename(tmp_path / "MANO_LEFT.pkl")
    with pytest.raises(ValueError, match="was not executed"):
        load_hands(_with_right(tmp_path))
    assert not marker.exists()


def _with_right(folder: Path) -> Path:
    (folder / "MANO_RIGHT.pkl").write_bytes(export._pickle(open_hands().right.arrays))
    return folder


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile"),
        ("chumpy.ch", "Ch.__init__.__globals__"),
        ("chumpy", "ch"),
        ("scipy.sparse", "load_npz"),
        ("_codecs", "decode"),
        ("builtins", "bytearray"),
        ("copyreg", "_reconstructor"),
        ("", ""),
    ],
)
def test_only_the_listed_names_pass_even_in_listed_modules(module, name, tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    text = lambda value: b"X" + struct.pack("<I", len(value)) + value.encode()
    for data in (f"c{module}\n{name}\n.".encode(), b"\x80\x04" + text(module) + text(name) + b"\x93."):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"names the global {module}.{name},.*not executed"):
            read_mano_file(path)


def test_objects_from_outside_the_file_are_refused(tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    for data, opcode in ((b"P123\n.", "PERSID"), (b"\x80\x02K\x01Q.", "BINPERSID"), (b"\x80\x05\x97.", "NEXT_BUFFER")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"opcode {opcode}.*not executed"):
            read_mano_file(path)
    # An extension code that this process has resolved before never reaches find_class.
    copyreg.add_extension("os", "getpid", 240)
    try:
        data = b"\x80\x02\x82\xf0)R."
        assert pickle.loads(data) == os.getpid()
        path.write_bytes(data)
        with pytest.raises(ValueError, match="opcode EXT1"):
            read_mano_file(path)
    finally:
        copyreg.remove_extension("os", "getpid", 240)


def test_inert_classes_cannot_be_turned_into_others(tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    head = b"\x80\x02cchumpy.ch\nCh\n"
    # BUILD on the class itself, on an instance, and calls of an instance.
    attempts = [
        head + b"N}X\x04\x00\x00\x00kindX\x05\x00\x00\x00arrays\x86b.",
        head + b")\x81)R.",
        head + b")\x81}b)R.",
    ]
    for data in attempts:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="nothing in it was executed"):
            read_mano_file(path)
    assert mano._Inert.kind == ""
    assert not vars(mano._Inert()).get("state")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated or not a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "truncated or not a pickle"),
        (b"\x80\x02}", "truncated or not a pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "truncated or not a pickle"),  # claims an exabyte
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo slot 2147483647"),  # would allocate 32 GB
        (b"\x80\x02" + b"]0" * 15_000 + b"}.", "more than 20000 opcodes"),
        (b"\x80\x02})" + b"\x85" * 19_000 + b"Ns.", "nothing in it was executed|lacks"),  # a deep key to hash
        (b"\x80\x02].", "does not hold a dictionary"),
        (b"\x80\x02}X\x07\x00\x00\x00weightsK\x01s.", "int where an array is wanted"),
    ],
)
def test_damaged_and_oversized_pickles(data, message, tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        HandArrays.from_mapping(read_mano_file(path), "it")


def test_huge_files_are_not_opened(tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match=r"1099511627776 bytes.*not opened"):
        read_mano_file(path)


SMALL = {
    "v_template": np.arange(6.0).reshape(2, 3),
    "f": np.arange(6, dtype=np.uint32),
    "shapedirs": stand_in(
        "chumpy.reordering",
        "Select",
        a=stand_in("chumpy.ch", "Ch", x=np.arange(8.0), _dirty_vars={"x"}),
        idxs=np.arange(6),
        preferred_shape=(2, 3),
    ),
    "J_regressor": stand_in(
        "scipy.sparse.csc",
        "csc_matrix",
        _shape=(2, 2),
        data=np.ones(2),
        indices=np.array([0, 1], np.int32),
        indptr=np.array([0, 1, 2], np.int32),
    ),
}


@settings(max_examples=150)
@given(st.data())
def test_damage_anywhere_is_an_error_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "MANO_RIGHT.pkl"
    whole = bytearray(dump(SMALL, path).read_bytes())
    assert set(read_mano_file(path)) == set(SMALL)
    if data.draw(st.booleans(), "cut"):
        del whole[data.draw(st.integers(0, len(whole) - 1), "at") :]
    else:
        for _ in range(data.draw(st.integers(1, 3), "changes")):
            whole[data.draw(st.integers(0, len(whole) - 1), "at")] = data.draw(st.integers(0, 255), "byte")
    path.write_bytes(whole)
    try:
        found = read_mano_file(path)
    except ValueError:
        pass
    else:
        assert all(type(value) is np.ndarray and value.dtype.kind in "fiub" for value in found.values())


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("J_regressor", {"indices": np.array([0, 7], np.int32)}, "inconsistent sparse"),
        ("J_regressor", {"indptr": np.array([0, 2, 1], np.int32)}, "inconsistent sparse"),
        ("J_regressor", {"_shape": (10**6, 10**6)}, "a sparse matrix of shape"),
        ("shapedirs", {"idxs": np.array([-1, 0, 1, 2, 3, 4])}, "leaves its source"),
        ("shapedirs", {"idxs": np.array([0, 1, 2, 3, 4, 8])}, "leaves its source"),
        ("shapedirs", {"preferred_shape": (2, 4)}, "another shape"),
        ("shapedirs", {"a": 3}, "int where an array"),
        ("v_template", np.array(["a", "b"]), "an array of dtype 'U1'"),
        ("v_template", np.array([None]), "an array of dtype 'O8'"),
    ],
)
def test_inconsistent_content(key, change, message, tmp_path):
    old = SMALL[key]
    new = (
        stand_in(type(old).__module__, type(old).__name__, **{**vars(old), **change})
        if type(change) is dict
        else change
    )
    path = dump({**SMALL, key: new}, tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(ValueError, match=f"{message}.*nothing in it was executed"):
        read_mano_file(path)


def test_npz_files(exported, tmp_path, monkeypatch):
    path = tmp_path / "MANO_RIGHT.npz"
    np.savez(path, v_template=np.array([Reduces(os.system, f"touch {tmp_path / 'marker'}")]))
    with pytest.raises(ValueError, match=r"names the global \w+\.system, .*the file was not executed"):
        read_mano_file(path)
    assert not (tmp_path / "marker").exists()
    for odd in ([], [1, 2], [None], np.array([(1, None)], [("a", int), ("b", object)])):
        np.savez(path, v_template=odd if isinstance(odd, np.ndarray) else np.array(odd, object))
        with pytest.raises(ValueError, match="nothing in it was executed"):
            read_mano_file(path)
    np.savez(path, v_template=np.arange(6.0)[::2].astype(">f4"))
    np.testing.assert_array_equal(read_mano_file(path)["v_template"], [0, 2, 4])
    path.write_bytes((exported / path.name).read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        read_mano_file(path)
    monkeypatch.setattr(mano, "_MAX_BYTES", 600_000)
    with pytest.raises(ValueError, match="would unpack to"):
        read_mano_file(exported / path.name)


@pytest.mark.parametrize(
    "place",
    [".", "mano", "models", "mano_v1_2/models", "mano/models", "models/mano", "mano/mano_v1_2/models"],
)
@pytest.mark.parametrize("suffix", [".pkl", ".npz"])
def test_folders_as_they_unpack(exported, place, suffix, tmp_path):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    if place != ".":
        (tmp_path / "MANO_RIGHT.pkl").write_bytes(b"half of something else")
    for side in ("LEFT", "RIGHT"):
        name = f"MANO_{side}{suffix}"
        (tmp_path / place / name).write_bytes((exported / name).read_bytes())
    (tmp_path / place / "SMPLH_female.pkl").write_bytes(b"not looked at")
    assert {hand.side for hand in load_mano_folder(tmp_path)} == {"left", "right"}


def test_half_a_folder_is_named_where_it_is(exported, tmp_path):
    (tmp_path / "mano_v1_2" / "models").mkdir(parents=True)
    (tmp_path / "mano_v1_2" / "models" / "MANO_LEFT.pkl").write_bytes((exported / "MANO_LEFT.pkl").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"models has no MANO_RIGHT.pkl"):
        load_hands(tmp_path)
    (tmp_path / "mano_v1_2.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"mano_v1_2.zip is not a folder.*unpack it"):
        load_hands(tmp_path / "mano_v1_2.zip")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_in_which_numpy_pickled_the_sparse_matrix(save, tmp_path):
    """What `np.savez(path, **pickle.load(...))` makes of a file."""
    for side in ("left", "right"):
        arrays = getattr(open_hands(), side).arrays
        content = genuine(side) | {"J_regressor": scipy_sparse.csc_matrix(arrays.J_regressor)}
        save(tmp_path / f"MANO_{side.upper()}.npz", **content | {"shapedirs": arrays.shapedirs})
    pair = load_hands(tmp_path)
    for side in ("left", "right"):
        same_arrays(getattr(pair, side).arrays, getattr(open_hands(), side).arrays)


def test_wrong_folders(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no MANO_LEFT.pkl.*export-mano FOLDER"):
        load_hands(tmp_path)
    (tmp_path / "MANO_RIGHT.pkl").write_bytes((exported / "MANO_RIGHT.pkl").read_bytes())
    with pytest.raises(FileNotFoundError, match="no MANO_LEFT"):
        load_hands(tmp_path)
    with pytest.raises(FileNotFoundError, match="pass the folder"):
        load_hands(tmp_path / "MANO_RIGHT.pkl")
    (tmp_path / "MANO_LEFT.pkl").write_bytes((exported / "MANO_RIGHT.pkl").read_bytes())
    with pytest.raises(ValueError, match=r"MANO_LEFT.pkl holds a right hand; the two files"):
        load_hands(str(tmp_path))


# The export -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pkl", ".npz"])
def test_export_reads_back_exactly(exported, suffix, tmp_path):
    for side in ("LEFT", "RIGHT"):
        (tmp_path / f"MANO_{side}{suffix}").write_bytes((exported / f"MANO_{side}{suffix}").read_bytes())
    pair = load_hands(tmp_path)
    for side in ("left", "right"):
        same_arrays(getattr(pair, side).arrays, getattr(open_hands(), side).arrays)


def test_export_is_reproducible_and_names_only_what_every_version_has(exported, tmp_path):
    for path in export_mano(tmp_path):
        assert path.read_bytes() == (exported / path.name).read_bytes()
    data = (exported / "MANO_LEFT.pkl").read_bytes()
    ops = list(pickletools.genops(data))
    names = {arg for op, arg, _ in ops if op.name == "GLOBAL"}
    assert names == {"numpy ndarray", "numpy dtype", "_codecs encode", "scipy.sparse csc_matrix"}
    assert max(op.proto for op, *_ in ops) <= 2


def test_export_has_the_genuine_keys_and_types(exported):
    for side in ("left", "right"):
        with (exported / f"MANO_{side.upper()}.pkl").open("rb") as file:
            ours = pickle.load(file, encoding="latin1")
        model = genuine(side, left_bug=False)
        assert set(ours) == set(model) | {"comment"}
        for key, value in ours.items():
            if isinstance(value, np.ndarray) and key not in ("hands_coeffs", "kintree_table", "shapedirs"):
                assert (value.dtype, value.shape) == (model[key].dtype, model[key].shape), key
                assert value.flags.writeable
        assert isinstance(ours["J_regressor"], scipy_sparse.csc_matrix)
        np.testing.assert_array_equal(ours["J_regressor"].toarray() @ ours["v_template"], ours["J"])
        assert ours["hands_coeffs"].shape == (0, 45)
        assert (ours["bs_style"], ours["bs_type"]) == ("lbs", "lrotmin")
    # What repairs the released left hand leaves this one alone.
    left, right = (load_mano_folder(exported, fix_left_shapedirs=False)[i].shapedirs[:, 0] for i in (0, 1))
    assert np.abs(left - right).sum() > 1


@pytest.mark.parametrize("ext", ["pkl", "npz"])
def test_smplx_reads_the_export(exported, ext):
    smplx = pytest.importorskip("smplx")
    layers = [
        smplx.create(str(exported.parent), "mano", is_rhand=right, use_pca=False, flat_hand_mean=True, ext=ext)
        for right in (False, True)
    ]
    pair = load_hands(layers)
    for side in ("left", "right"):
        same_arrays(
            getattr(pair, side).arrays, getattr(open_hands(), side).arrays, but=("hands_mean", "hands_components")
        )
    if ext == "pkl":
        path = str(exported / "MANO_LEFT.pkl")
        assert not smplx.MANO(path, use_pca=True, num_pca_comps=12, flat_hand_mean=False).is_rhand


class Chumpy:
    """What manopth and manotorch use of chumpy: arrays with `.r`, `.dot` and item access."""

    dterms = ("x",)

    def __init__(self, value: Any) -> None:
        self.r = np.asarray(value)

    def dot(self, other: Chumpy) -> Chumpy:
        return Chumpy(self.r.dot(other.r))

    def __add__(self, other: Chumpy) -> Chumpy:
        return Chumpy(self.r + other.r)

    def __getitem__(self, index: Any) -> Chumpy:
        return Chumpy(self.r[index])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.r.shape


class ManopthLayer(torch.nn.Module):
    """Loads a file in the steps of manopth's and manotorch's ManoLayer: unpickle, wrap in chumpy, make buffers."""

    def __init__(self, path: Path, ncomps: int = 45) -> None:
        super().__init__()
        with path.open("rb") as file:
            data = pickle.load(file, encoding="latin1")
        data["trans"], data["pose"] = np.zeros(3), np.zeros(data["kintree_table"].shape[1] * 3)
        data["betas"] = np.zeros(data["shapedirs"].shape[-1])
        for key in ("v_template", "weights", "posedirs", "pose", "trans", "shapedirs", "betas", "J"):
            if not hasattr(data[key], "dterms"):
                data[key] = Chumpy(data[key])
        shaped = data["shapedirs"].dot(data["betas"]) + data["v_template"]
        joints = np.stack([data["J_regressor"].dot(shaped[:, i].r) for i in range(3)], 1)
        np.testing.assert_allclose(joints, data["J"].r, atol=1e-12)
        assert data["bs_type"] == "lrotmin"
        assert data["hands_coeffs"][:, :ncomps].shape[1] == ncomps  # webuser's load_model
        for key in ("shapedirs", "posedirs", "weights"):
            self.register_buffer(f"th_{key}", torch.Tensor(np.array(data[key].r)))
        self.register_buffer("th_v_template", torch.Tensor(np.array(data["v_template"].r)).unsqueeze(0))
        self.register_buffer("th_J_regressor", torch.Tensor(np.array(data["J_regressor"].toarray())))
        self.register_buffer("th_faces", torch.Tensor(data["f"].astype(np.int32)).long())
        self.register_buffer("th_hands_mean", torch.Tensor(data["hands_mean"].copy()).unsqueeze(0))
        self.register_buffer("th_comps", torch.Tensor(data["hands_components"][:ncomps]))
        self.kintree_parents = list(data["kintree_table"][0].tolist())


def test_manopth_style_loaders_read_the_export(exported):
    pair = load_hands({side: ManopthLayer(exported / f"MANO_{side.upper()}.pkl") for side in ("left", "right")})
    for side in ("left", "right"):
        same_arrays(getattr(pair, side).arrays, getattr(open_hands(), side).arrays)


def test_export_does_not_overwrite_unasked(tmp_path):
    folder = tmp_path / "new" / "mano"
    files = export_mano(folder)
    assert all(path.stat().st_mode & 0o044 for path in files)  # not private, as temporary files are
    assert sorted(files) == sorted(folder.iterdir())
    files[0].write_bytes(b"mine")
    files[1].unlink()
    with pytest.raises(FileExistsError, match=r"already has MANO_RIGHT.pkl, MANO_LEFT.pkl, MANO_LEFT.npz.*--overwrite"):
        export_mano(folder)
    assert files[0].read_bytes() == b"mine"
    assert not files[1].exists()
    export_mano(folder, overwrite=True)
    load_hands(folder)


def test_export_finds_out_early_that_it_cannot_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write into .*choose another folder. Nothing was written"):
        export_mano(tmp_path / "file" / "mano")

    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interhand_prior.files.tempfile.TemporaryFile", full)
    monkeypatch.setattr(export, "_pickle", pytest.fail)
    with pytest.raises(OSError, match="No space left"):
        export_mano(tmp_path / "mano")
    assert list((tmp_path / "mano").iterdir()) == []


def test_export_of_other_hands(tmp_path):
    pair = HandPair(open_hands().right.mirrored(), HandModel(open_hands().right.arrays))
    export_mano(tmp_path, pair)
    same_arrays(load_hands(tmp_path).left.arrays, pair.left.arrays)
    arrays = {name: getattr(pair.right.arrays, name) for name in pair.right.arrays.__dataclass_fields__}
    bare = HandArrays(**{**arrays, "hands_mean": None})
    with pytest.raises(ValueError, match="right hand has no hands_mean"):
        export_mano(tmp_path / "other", HandPair(pair.left, HandModel(bare)))
    assert not (tmp_path / "other").exists()


def test_command_line(tmp_path, capsys):
    command = ["export-mano", str(tmp_path / "mano")]
    assert main(command) == 0
    assert "MANO_LEFT.pkl" in capsys.readouterr().out
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    with pytest.raises(SystemExit):
        main([])
