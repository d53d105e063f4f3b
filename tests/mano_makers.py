"""MANO files as they are in the wild, made of the open hand: the genuine layout, and what Python 3 makes of it."""

from __future__ import annotations

import pickle
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as scipy_sparse
import torch

from interhand_prior.hands import HandModel, open_hands

GENUINE_GLOBALS = {
    "numpy.core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "__builtin__ set",
    "chumpy.ch Ch",
    "chumpy.reordering Select",
    "scipy.sparse.csc csc_matrix",
}


def stand_in(module: str, name: str, **state: Any) -> Any:
    """An object that pickles as one of `module.name` with this state, as chumpy's and scipy's do."""
    made = type(name, (), {"__module__": module})()
    made.__dict__.update(state)
    return made


def genuine(side: str, *, left_bug: bool = True) -> dict[str, Any]:
    """The open hand in the layout of MANO v1.2: shapedirs inside chumpy, a scipy matrix, float64."""
    arrays = getattr(open_hands(), side).arrays
    shapedirs = open_hands().right.arrays.shapedirs if left_bug else arrays.shapedirs
    # The originals select the first ten of the components that were learned.
    wide = np.concatenate([shapedirs, np.full((778, 3, 5), 7.0)], 2)
    leaf = stand_in("chumpy.ch", "Ch", x=wide, _dirty_vars={"x"}, _itr=None, _depends_on_deps=False)
    picked = np.arange(wide.size).reshape(wide.shape)[:, :, :10].ravel()
    csc = scipy_sparse.csc_matrix(arrays.J_regressor)
    return {
        "hands_components": arrays.hands_components,
        "f": arrays.faces.astype(np.uint32),
        "J_regressor": stand_in(
            "scipy.sparse.csc",
            "csc_matrix",
            _shape=csc.shape,
            maxprint=50,
            indices=csc.indices,
            indptr=csc.indptr,
            data=csc.data,
        ),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], range(16)]),
        "J": arrays.J_regressor @ arrays.v_template,
        "weights": arrays.weights,
        "posedirs": np.asfortranarray(arrays.posedirs),
        "hands_mean": arrays.hands_mean,
        "hands_coeffs": np.ones((1554, 45)),
        "v_template": arrays.v_template,
        "shapedirs": stand_in(
            "chumpy.reordering", "Select", a=leaf, idxs=picked, preferred_shape=(778, 3, 10), _dirty_vars={"a"}
        ),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2's cPickle wrote in 2017: text and bytes alike as byte strings, and the names of then."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, value: bytes, original: Any = None) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value if original is None else original)

    def save_str(self, value: str) -> None:
        self.save_bytes(value.encode("latin1"), value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core").replace("builtins", "__builtin__")
        self.write(f"c{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str
    dispatch[type] = save_global
    dispatch[types.FunctionType] = save_global


def dump(content: Any, path: Path) -> Path:
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(content)
    return path


class Python3Pickler(pickle._Pickler):
    """Writes what a Python 3 with chumpy writes (here there is none): the names of now, and text as text."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_global(self, value: Any, name: str | None = None) -> None:
        module, name = value.__module__, value.__name__
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            module = module.replace("builtins", "__builtin__") if self.proto < 3 else module
            self.write(f"c{module}\n{name}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global
    dispatch[types.FunctionType] = save_global


def dump_again(content: Any, path: Path, protocol: int) -> Path:
    with path.open("wb") as file:
        Python3Pickler(file, protocol).dump(content)
    return path


def assert_pose_tables(found: HandModel, wanted: HandModel, mean_known: bool, components_known: bool) -> None:
    """The model has the mean pose and the components that its layer tells, and no others."""
    assert (found.hands_mean is not None) == mean_known
    assert (found.hands_components is not None) == components_known
    if mean_known:
        torch.testing.assert_close(found.hands_mean, wanted.hands_mean)
    if components_known:
        torch.testing.assert_close(found.hands_components, wanted.hands_components)
