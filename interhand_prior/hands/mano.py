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
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..pickles import Inert as _Inert
from ..pickles import Rules, Unreadable, array, from_bytes, need, pickle_in_npy, read_inert, shape_of
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
_RULES = Rules(_ALLOWED, _MAX_OPCODES, "which no MANO model needs", "Delete it and fetch MANO from its authors")

_PLACES = (".", "mano", "models", "mano/models", "models/mano", "mano_v1_2/models", "mano/mano_v1_2/models")
"""Where files are below the folder that people pass; the first of the best is taken."""

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
            `mano` (smplx's layout), `models` (the official archive's, `mano_v1_2`) or `mano/models` (manopth's and
            manotorch's); the folder in which the archive was unpacked will do, too.
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
        if folder.is_file() and folder.suffix.lower() == ".zip":
            hint = "; unpack it, and pass the folder that comes out"
        raise FileNotFoundError(f"{folder} is not a folder; it should hold MANO_RIGHT.pkl and MANO_LEFT.pkl{hint}")
    places = [folder / name for name in _PLACES]
    # Where one hand is, the other one is missing; say so of that place.
    places = sorted(places, key=lambda place: -sum(_find(place, side) is not None for side in ("LEFT", "RIGHT")))
    place = places[0]
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
        path: a .pkl as MANO's authors ship it, or saved again by Python 3; or an .npz of the same keys, where sparse
            matrices may be pickled, as numpy does.

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
    try:
        content = read_inert(path.read_bytes(), path, _RULES)
        need(isinstance(content, dict), "it does not hold a dictionary")
        return {key: _dense(content[key]) for key in _KEYS if key in content}
    except Unreadable:
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
            need(total <= 4 * _MAX_BYTES, f"it would unpack to {total} bytes")
            names = set(archive.namelist())
            return {key: _from_npy(archive.read(f"{key}.npy"), path) for key in _KEYS if f"{key}.npy" in names}
    except Unreadable:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged archive
        raise ValueError(f"{path} is damaged or not an .npz of MANO ({error}); nothing in it was executed") from error


def _from_npy(data: bytes, path: Path) -> np.ndarray:
    content = pickle_in_npy(data)
    if content is None:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    # numpy pickles an array of objects; what is no array, such as a sparse matrix, stands in one of shape ().
    state = read_inert(content, path, _RULES).state
    need(isinstance(state, tuple) and isinstance(state[-1], list) and len(state[-1]) == 1, "an array of objects")
    return _dense(state[-1][0])


# Rebuilding arrays from what was recorded -----------------------------------------------------------------------


def _dense(value: Any, depth: int = 0) -> np.ndarray:
    """An array, whether it was stored as one, as a sparse matrix, or inside chumpy."""
    need(depth < 8, "values nested too deeply")
    kind = value.kind if isinstance(value, _Inert) else type(value).__name__
    state: Any = value.state if isinstance(value, _Inert) else None
    if kind == "array":
        return array(state)
    if kind == "frombuffer":
        need(value.arguments[3:] in ((), ("C",), ("F",)) and len(value.arguments) >= 3, "an odd array")
        buffer, dtype, shape = value.arguments[:3]
        return from_bytes(buffer, dtype, shape, fortran=value.arguments[3:] == ("F",))
    if kind == "csc_matrix":
        return _sparse(value)
    need(kind in ("Ch", "Select") and isinstance(state, dict), f"{kind} where an array is wanted")
    if kind == "Ch":  # chumpy's leaf: holds its array as x
        need("x" in state, "a chumpy array without values")
        return _dense(state["x"], depth + 1)
    need("a" in state and "idxs" in state, "a chumpy selection without its source")
    source = _dense(state["a"], depth + 1).ravel()
    index = _dense(state["idxs"], depth + 1)
    need(index.dtype.kind in "iu" and _within(index, source.size), "a chumpy selection that leaves its source")
    picked = source[index]
    if "preferred_shape" not in state:
        return picked
    shape = shape_of(state["preferred_shape"])
    need(int(np.prod(shape)) == picked.size, "a chumpy selection of another shape")
    return picked.reshape(shape)


def _within(index: np.ndarray, size: int) -> bool:
    return index.size == 0 or (index.min() >= 0 and index.max() < size)


def _sparse(value: _Inert) -> np.ndarray:
    """Compressed sparse columns -> dense."""
    if isinstance(value.state, dict):
        parts = [value.state.get(key) for key in ("data", "indices", "indptr", "_shape")]
    else:
        need(len(value.arguments) == 2 and type(value.arguments[0]) is tuple, "a sparse matrix without content")
        parts = [*value.arguments[0], value.arguments[1]]
    need(len(parts) == 4, "half a sparse matrix")
    data, indices, indptr = (_dense(part, 1) for part in parts[:3])
    shape = shape_of(parts[3])
    need(len(shape) == 2 and shape[0] * shape[1] <= 10**6, f"a sparse matrix of shape {shape}")
    ok = all(a.ndim == 1 for a in (data, indices, indptr)) and data.size == indices.size
    ok = ok and indices.dtype.kind in "iu" and indptr.dtype.kind in "iu" and indptr.size == shape[1] + 1
    ok = ok and _within(indices, shape[0]) and indptr[0] == 0 and indptr[-1] == data.size
    need(bool(ok), "an inconsistent sparse matrix")
    counts = indptr[1:].astype(np.int64) - indptr[:-1].astype(np.int64)
    need(bool((counts >= 0).all()), "an inconsistent sparse matrix")
    dense = np.zeros(shape, data.dtype)
    np.add.at(dense, (indices, np.repeat(np.arange(shape[1]), counts)), data)
    return dense
