"""The open hand as MANO files, so that other people's MANO code runs without a licence.

MANO_RIGHT.pkl and MANO_LEFT.pkl have the keys, types and shapes of the genuine files, as far as loaders look at them:
J_regressor is a scipy csc_matrix (manopth and manotorch call its `.toarray()`), the rest are plain numpy arrays
(chumpy-based loaders wrap those themselves). MANO_RIGHT.npz and MANO_LEFT.npz hold the same with a dense J_regressor,
for smplx's `ext="npz"`, and need no scipy to read.

The left file is correct: its shapedirs are the mirror of the right ones, unlike those of the released MANO_LEFT.pkl.
Code that repairs that bug by the usual test finds nothing to repair. `hands_coeffs`, the poses MANO was learned from,
has no rows: the open hand was not learned from poses.

The pickle is written by hand, opcode by opcode: protocol 2 and only names that every numpy since 1.0 and every scipy
has, so that a file written with today's numpy opens in the old environments that much MANO code is tied to. Neither
scipy nor chumpy is needed to write it, and equal hands give equal bytes.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..files import make_writable, write_atomically
from .arrays import NUM_VERTICES, PARENTS, HandArrays
from .load import open_hands
from .model import HandPair

__all__ = ["export_mano"]

_COMMENT = "interhand_prior open hand: MANO's format and topology, none of MANO's data"


def export_mano(
    folder: str | os.PathLike[str], hands: HandPair | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Write MANO_RIGHT and MANO_LEFT, each as .pkl and .npz.

    Args:
        folder: where to; made if it is not there. Call it `mano` to have `smplx.create(folder.parent, "mano")` find it.
        hands: None for the open hand; or other models, with hands_mean and hands_components.
        overwrite: replace files of these names.

    Returns:
        The four files.

    Raises:
        FileExistsError: a file is there already, and `overwrite` is not set. Nothing was written.
        OSError: the folder cannot be made or written. Nothing was written.
        ValueError: `hands` lack their mean pose or pose basis.
    """
    folder = Path(folder)
    hands = open_hands() if hands is None else hands
    sides = {"RIGHT": hands.right.arrays, "LEFT": hands.left.arrays}
    targets = [folder / f"MANO_{side}{suffix}" for side in sides for suffix in (".pkl", ".npz")]
    present = [path.name for path in targets if path.exists()]
    if present and not overwrite:
        raise FileExistsError(
            f"{folder} already has {', '.join(present)}; choose another folder, or allow overwriting (--overwrite)"
        )
    for side, arrays in sides.items():
        if arrays.hands_mean is None or arrays.hands_components is None:
            raise ValueError(f"the {side.lower()} hand has no hands_mean or hands_components, which MANO files hold")
    try:
        make_writable(folder)
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error}); choose another folder. Nothing was written") from error
    contents: list[bytes | memoryview] = []
    for arrays in sides.values():
        contents += [_pickle(arrays), _npz(arrays)]
    return [write_atomically(path, content) for path, content in zip(targets, contents, strict=True)]


def _mano(arrays: HandArrays) -> dict[str, Any]:
    return {
        "v_template": arrays.v_template,
        "J": arrays.J_regressor @ arrays.v_template,
        "shapedirs": arrays.shapedirs,
        "posedirs": arrays.posedirs,
        "weights": arrays.weights,
        "J_regressor": arrays.J_regressor,
        "f": arrays.faces.astype(np.uint32),
        "kintree_table": np.array([PARENTS, range(16)], np.int64),
        "hands_components": arrays.hands_components,
        "hands_mean": arrays.hands_mean,
        "hands_coeffs": np.zeros((0, 45)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "comment": _COMMENT,
    }


def _npz(arrays: HandArrays) -> memoryview:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_mano(arrays))
    return buffer.getbuffer()


# The pickle -----------------------------------------------------------------------------------------------------


def _pickle(arrays: HandArrays) -> bytes:
    content = _mano(arrays)
    items = [_text(key) + (_csc(value) if key == "J_regressor" else _value(value)) for key, value in content.items()]
    return b"\x80\x02}(" + b"".join(items) + b"u."  # protocol 2, an empty dictionary, its items, stop


def _value(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return _ndarray(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes):
        # Bytes as Python 3 writes them for protocol 2: both Python 2 and 3 make bytes of it.
        return _call("_codecs", "encode", (value.decode("latin1"), "latin1"))
    if isinstance(value, tuple):
        return b"(" + b"".join(_value(item) for item in value) + b"t"
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    return b"J" + struct.pack("<i", value)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _call(module: str, name: str, arguments: tuple[Any, ...]) -> bytes:
    return f"c{module}\n{name}\n".encode() + _value(arguments) + b"R"


def _ndarray(array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    code = array.dtype.str[1:]
    # numpy.dtype and numpy.ndarray are made empty and then given their state, as numpy's own pickles do; numpy's
    # helper functions moved from numpy.core to numpy._core, these two names did not.
    dtype = _call("numpy", "dtype", (code, False, True)) + _value((3, "<", None, None, None, -1, -1, 0)) + b"b"
    state = b"(" + _value(1) + _value(array.shape) + dtype + _value(False) + _value(array.tobytes()) + b"t"
    return _call("numpy", "ndarray", ((0,),)) + state + b"b"


def _csc(dense: np.ndarray) -> bytes:
    """scipy.sparse.csc_matrix((data, indices, indptr), shape)."""
    columns, rows = np.nonzero(dense.T)
    start = np.searchsorted(columns, np.arange(NUM_VERTICES + 1)).astype(np.int32)
    parts = b"(" + _ndarray(dense[rows, columns]) + _ndarray(rows.astype(np.int32)) + _ndarray(start) + b"t"
    return b"cscipy.sparse\ncsc_matrix\n(" + parts + _value(dense.shape) + b"tR"
