"""MANO files, read without running anything in them.

A pickle is a program: loading one calls whatever functions it names. The official MANO_RIGHT.pkl and MANO_LEFT.pkl
name seven (numpy arrays, a set, chumpy's Ch and Select, scipy's csc_matrix). Here a name that is not in a short list
is refused, and a name that is in it stands for an empty class made for that one file, which does nothing but keep
what it is given. Not even numpy's own reconstruction runs: arrays are rebuilt from their recorded shape, dtype and
bytes. So neither chumpy nor scipy is needed, and the worst that a hostile file can do is to be refused. (Replacing
chumpy by a stub and passing every other name on to pickle, as is often done, still runs code.)
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import HandArrays

__all__ = ["load_mano_folder", "read_mano_file"]

# The genuine files have some 4 MB and some hundred opcodes.
_MAX_BYTES = 64 * 2**20
_MAX_OPCODES = 20_000

#: What a MANO pickle may name, and the kind of inert object each name becomes.
_ALLOWED: dict[tuple[str, str], str] = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "array",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # how Python 3 writes bytes for Python 2
    ("__builtin__", "bytes"): "bytes",  # and empty ones
    ("__builtin__", "set"): "set",
    ("builtins", "set"): "set",
    ("chumpy.ch", "Ch"): "Ch",
    ("chumpy.reordering", "Select"): "Select",
    ("scipy.sparse.csc", "csc_matrix"): "csc_matrix",
    ("scipy.sparse._csc", "csc_matrix"): "csc_matrix",
    ("scipy.sparse", "csc_matrix"): "csc_matrix",
}
# Objects from outside the stream, and the process-wide extension registry, which would bypass the list above.
_REFUSED_OPCODES = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}

_KINDS = "fiub"
_KEYS = (
    "v_template",
    "shapedirs",
    "posedirs",
    "J_regressor",
    "weights",
    "f",
    "kintree_table",
    "hands_mean",
    "hands_components",
)


def load_mano_folder(
    folder: str | os.PathLike[str], *, fix_left_shapedirs: bool = True
) -> tuple[HandArrays, HandArrays]:
    """Read a left and a right hand.

    Args:
        folder: holds MANO_RIGHT.pkl and MANO_LEFT.pkl (or .npz files of the same keys), itself or in a folder
            `mano` (smplx's layout) or `models` (the official archive's).
        fix_left_shapedirs: mirror the left shapedirs where they equal the right ones (a known bug of the released
            MANO_LEFT.pkl); see `HandArrays.with_left_shapedirs_fixed`. False keeps the file's.

    Returns:
        The left and the right hand's arrays.

    Raises:
        FileNotFoundError: the folder or one of the files is not there.
        ValueError: a file is not a MANO model, is damaged, tries to run code, or is of the other side.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = f"; pass the folder, {folder.parent}" if folder.is_file() else ""
        raise FileNotFoundError(f"{folder} is not a folder; it should hold MANO_RIGHT.pkl and MANO_LEFT.pkl{hint}")
    places = [place for place in (folder, folder / "mano", folder / "models") if _find(place, "RIGHT")]
    place = places[0] if places else folder
    hands: dict[str, HandArrays] = {}
    for side in ("left", "right"):
        path = _find(place, side.upper())
        if path is None:
            raise FileNotFoundError(
                f"{place} has no MANO_{side.upper()}.pkl (or .npz). MANO is to be had from its authors "
                "(mano.is.tue.mpg.de); `python -m interhand_prior.hands export-mano FOLDER` writes the open hand, "
                "which needs no licence, in the same form"
            )
        hands[side] = HandArrays.from_mapping(read_mano_file(path), str(path))
        if hands[side].side != side:
            raise ValueError(f"{path} holds a {hands[side].side} hand; the two files seem to be exchanged or copied")
    left, right = hands["left"], hands["right"]
    return (left.with_left_shapedirs_fixed(right) if fix_left_shapedirs else left), right


def read_mano_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one MANO file as plain numpy arrays, unchecked; `HandArrays.from_mapping` checks them.

    Args:
        path: a .pkl as MANO's authors ship it, or saved again by Python 3; or an .npz of the same keys.

    Returns:
        The arrays that make up the hand, under MANO's keys; J_regressor dense.

    Raises:
        ValueError: the file is too large, damaged, of another kind, or names something outside the allow-list. Then
            nothing of it has been executed.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; a MANO file has about 4 million. It was not opened")
    if path.suffix == ".npz":
        return _read_npz(path)
    data = path.read_bytes()
    _scan(data, path)
    try:
        content = _Reader(io.BytesIO(data), path).load()
        _need(isinstance(content, dict), "it does not hold a dictionary")
        return {key: _dense(content[key]) for key in _KEYS if key in content}
    except _Refusal:
        raise
    except Exception as error:  # a stream that makes no sense ends in any of a dozen exceptions
        raise ValueError(f"{path} is damaged or not a MANO pickle ({error}); nothing in it was executed") from error


def _find(folder: Path, side: str) -> Path | None:
    for suffix in (".pkl", ".npz"):
        if (path := folder / f"MANO_{side}{suffix}").is_file():
            return path
    return None


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > 4 * _MAX_BYTES:
            raise ValueError(f"it would unpack to {total} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in _KEYS if key in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged archive
        raise ValueError(f"{path} is damaged or not an .npz of plain arrays ({error}); no pickle was opened") from error


# Reading a pickle -----------------------------------------------------------------------------------------------


class _Refusal(ValueError):
    """Something no MANO file has."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} {what}, which no MANO model needs; the file was not executed. "
            "Delete it and fetch MANO from its authors"
        )


def _scan(data: bytes, path: Path) -> None:
    """Look through the opcodes before anything is built from them."""
    count = 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data), 1):
            if opcode.name in _REFUSED_OPCODES:
                raise _Refusal(path, f"refers to an object outside itself (opcode {opcode.name})")
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                if (module, name) not in _ALLOWED:
                    raise _Refusal(path, f"names the global {module}.{name}")
            # Memo slots are numbered as they come; a slot far beyond would make pickle allocate that many.
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(str(argument)) > count:
                raise _Refusal(path, f"uses memo slot {argument} at opcode {count}")
            if count > _MAX_OPCODES:
                raise _Refusal(path, f"has more than {_MAX_OPCODES} opcodes")
    except _Refusal:
        raise
    except Exception as error:  # mostly ValueError; nothing of pickletools' inside may get out
        raise ValueError(
            f"{path} is truncated or not a pickle ({error}, after {count} opcodes); nothing in it was executed"
        ) from error


class _Inert:
    """Keeps what a pickle passes to it: constructor arguments and state. Does nothing."""

    kind = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> _Inert:
        self = object.__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """An unpickler that knows no functions, only inert classes made afresh for this file."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path
        # All that a pickle can do to a class (opcode BUILD sets attributes) stays in this file's own classes.
        self._classes = {kind: type(kind, (_Inert,), {"kind": kind}) for kind in set(_ALLOWED.values())}

    def find_class(self, module: str, name: str) -> Any:
        kind = _ALLOWED.get((module, name))
        if kind is None:
            raise _Refusal(self._path, f"names the global {module}.{name}")
        return self._classes[kind]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refusal(self._path, "refers to an object outside itself")


# Rebuilding arrays from what was recorded -----------------------------------------------------------------------


class _Malformed(Exception):
    pass


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise _Malformed(what)


def _dense(value: Any, depth: int = 0) -> np.ndarray:
    """An array, whether it was stored as one, as a sparse matrix, or inside chumpy."""
    _need(depth < 8, "values nested too deeply")
    kind = value.kind if isinstance(value, _Inert) else type(value).__name__
    state: Any = value.state if isinstance(value, _Inert) else None
    if kind == "array":
        return _array(state)
    if kind == "frombuffer":
        _need(value.arguments[3:] in ((), ("C",), ("F",)) and len(value.arguments) >= 3, "an odd array")
        buffer, dtype, shape = value.arguments[:3]
        return _from_bytes(buffer, dtype, shape, fortran=value.arguments[3:] == ("F",))
    if kind == "csc_matrix":
        return _sparse(value)
    _need(kind in ("Ch", "Select") and isinstance(state, dict), f"{kind} where an array is wanted")
    if kind == "Ch":  # chumpy's leaf: holds its array as x
        _need("x" in state, "a chumpy array without values")
        return _dense(state["x"], depth + 1)
    _need("a" in state and "idxs" in state, "a chumpy selection without its source")
    source = _dense(state["a"], depth + 1).ravel()
    index = _dense(state["idxs"], depth + 1)
    _need(index.dtype.kind in "iu" and _within(index, source.size), "a chumpy selection that leaves its source")
    picked = source[index]
    if "preferred_shape" not in state:
        return picked
    shape = _shape(state["preferred_shape"])
    _need(int(np.prod(shape)) == picked.size, "a chumpy selection of another shape")
    return picked.reshape(shape)


def _within(index: np.ndarray, size: int) -> bool:
    return index.size == 0 or (index.min() >= 0 and index.max() < size)


def _shape(value: Any) -> tuple[int, ...]:
    _need(isinstance(value, (tuple, list)), "a shape that is no tuple")
    _need(len(value) <= 4 and all(type(n) is int and 0 <= n < 2**31 for n in value), f"the shape {value!r:.80}")
    return tuple(value)


def _array(state: Any) -> np.ndarray:
    # numpy's state: (version,) shape, dtype, Fortran order, bytes.
    _need(isinstance(state, tuple) and len(state) in (4, 5), "an array without content")
    shape, dtype, fortran, buffer = state[-4:]
    return _from_bytes(buffer, dtype, shape, fortran=bool(fortran))


def _from_bytes(buffer: Any, dtype: Any, shape: Any, *, fortran: bool) -> np.ndarray:
    kind, shape = _dtype(dtype), _shape(shape)
    content = _bytes(buffer)
    _need(len(content) == int(np.prod(shape, dtype=object)) * kind.itemsize, "an array of another length")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
    return array.astype(kind.newbyteorder("="))


def _dtype(value: Any) -> np.dtype[Any]:
    _need(isinstance(value, _Inert) and value.kind == "dtype" and bool(value.arguments), "an array without a dtype")
    code, state = value.arguments[0], value.state
    good = isinstance(code, str) and len(code) == 2 and code[0] in _KINDS and code[1] in "1248"
    _need(good, f"an array of dtype {code!r:.40}")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    _need(isinstance(order, str) and len(order) == 1 and order in "<>|=", "an odd byte order")
    try:
        return np.dtype(order + code)
    except TypeError as error:
        raise _Malformed(str(error)) from None


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, _Inert) and value.kind == "bytes" and value.arguments == ():
        return b""
    if isinstance(value, _Inert) and value.kind == "encode":
        _need(len(value.arguments) == 2 and value.arguments[1] == "latin1", "text in an odd encoding")
        value = value.arguments[0]
    _need(isinstance(value, str), "an array without bytes")
    try:
        return value.encode("latin1")  # Python 2 wrote bytes as text
    except UnicodeEncodeError:
        raise _Malformed("an array whose bytes are no bytes") from None


def _sparse(value: _Inert) -> np.ndarray:
    """Compressed sparse columns -> dense."""
    if isinstance(value.state, dict):
        parts = [value.state.get(key) for key in ("data", "indices", "indptr", "_shape")]
    else:
        _need(len(value.arguments) == 2 and type(value.arguments[0]) is tuple, "a sparse matrix without content")
        parts = [*value.arguments[0], value.arguments[1]]
    _need(len(parts) == 4, "half a sparse matrix")
    data, indices, indptr = (_dense(part, 1) for part in parts[:3])
    shape = _shape(parts[3])
    _need(len(shape) == 2 and shape[0] * shape[1] <= 10**6, f"a sparse matrix of shape {shape}")
    ok = all(a.ndim == 1 for a in (data, indices, indptr)) and data.size == indices.size
    ok = ok and indices.dtype.kind in "iu" and indptr.dtype.kind in "iu" and indptr.size == shape[1] + 1
    ok = ok and _within(indices, shape[0]) and indptr[0] == 0 and indptr[-1] == data.size
    _need(bool(ok), "an inconsistent sparse matrix")
    counts = indptr[1:].astype(np.int64) - indptr[:-1].astype(np.int64)
    _need(bool((counts >= 0).all()), "an inconsistent sparse matrix")
    dense = np.zeros(shape, data.dtype)
    np.add.at(dense, (indices, np.repeat(np.arange(shape[1]), counts)), data)
    return dense
