"""Which hand models to use: the bundled open hand, a folder with MANO's files, or a user's own layers."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arrays import HandArrays
from .mano import load_mano_folder
from .model import HandModel, HandPair
from .smplx_layer import arrays_from_layer, is_layer, place_of_layer

__all__ = ["load_hands", "open_hands"]

_log = logging.getLogger(__name__)

_CHOICES = (
    'None or "open" (the bundled open hand), a folder that holds MANO_RIGHT.pkl and MANO_LEFT.pkl, '
    "a pair (left_layer, right_layer) of smplx MANO layers, or a HandPair"
)


@functools.cache
def _open_arrays() -> HandArrays:
    with resources.as_file(resources.files("interhand_prior") / "assets" / "open_hand.npz") as path, np.load(path) as d:
        return HandArrays.from_mapping(dict(d), "the bundled open hand")


@functools.cache
def open_hands() -> HandPair:
    """The bundled open hand and its exact mirror, made once and shared by all who ask.

    It follows the dtype and device of its input, so there is no need to move it.
    """
    return _open_pair()


def _open_pair() -> HandPair:
    right = _open_arrays()
    return HandPair(HandModel(right.mirrored()), HandModel(right))


def load_hands(source: Any = None, *, fix_left_shapedirs: bool = True) -> HandPair:
    """Hand models from whatever the user has.

    Args:
        source: one of
            - None or "open": the bundled open hand, which needs no licence;
            - a folder with MANO_RIGHT.pkl and MANO_LEFT.pkl, or .npz files of the same keys (`load_mano_folder`);
            - a pair (left_layer, right_layer), or a mapping with the keys left and right, of smplx MANO layers,
              HandModels, or manopth's or manotorch's ManoLayers. They are copied. How they treat the pose
              (`use_pca`, `flat_hand_mean`) does not matter, since poses here are absolute;
            - a HandPair: returned as it is.
        fix_left_shapedirs: mirror the left shapedirs, in the copy, where they equal the right ones (a known bug of
            the released MANO_LEFT.pkl). `hands.left.arrays.shapedirs_fixed` tells whether that was needed. Pass
            False for betas that were fitted with the released file (ARCTIC, DexYCB).

    Returns:
        The left and the right model.

    Raises:
        FileNotFoundError, TypeError, ValueError: what was got, and what to pass instead.
    """
    if isinstance(source, HandPair):
        return source
    if source is None or source == "open":
        return _open_pair()
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).exists():
            raise FileNotFoundError(f"source {os.fspath(source)!r} does not exist; pass {_CHOICES}")
        left, right = load_mano_folder(source, fix_left_shapedirs=fix_left_shapedirs)
        _tell(left)
        return HandPair(HandModel(left), HandModel(right))
    if isinstance(source, Mapping) and {"left", "right"} <= set(source):
        source = (source["left"], source["right"])
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return _from_layers(source[0], source[1], fix_left_shapedirs)
    if isinstance(source, HandModel) or is_layer(source):
        raise TypeError(f"source is a single {type(source).__name__}; pass both hands, (left_layer, right_layer)")
    raise TypeError(f"source must be {_CHOICES}; got {type(source).__name__}")


def _from_layers(left: Any, right: Any, fix_left_shapedirs: bool) -> HandPair:
    arrays = {name: _arrays(layer, f"{name}_layer") for name, layer in (("left", left), ("right", right))}
    sides = (arrays["left"].side, arrays["right"].side)
    if sides == ("right", "left"):
        raise ValueError("the two hands are exchanged: pass (left_layer, right_layer), in this order")
    if sides[0] == sides[1]:
        wrong = "left" if sides[0] == "right" else "right"
        raise ValueError(
            f"both layers are {sides[0]} hands (told by their vertices; smplx's is_rhand only chooses the file). "
            f"Make the {wrong} one from MANO_{wrong.upper()}.pkl"
        )
    if fix_left_shapedirs:
        arrays["left"] = arrays["left"].with_left_shapedirs_fixed(arrays["right"])
        _tell(arrays["left"])
    models = []
    for layer, name in ((left, "left"), (right, "right")):
        dtype, device = (layer.dtype, layer.device) if isinstance(layer, HandModel) else place_of_layer(layer)
        models.append(HandModel(arrays[name], dtype=dtype, device=torch.device(device)))
    return HandPair(models[0], models[1])


def _arrays(layer: Any, name: str) -> HandArrays:
    return layer.arrays if isinstance(layer, HandModel) else arrays_from_layer(layer, name)


def _tell(left: HandArrays) -> None:
    if left.shapedirs_fixed:
        _log.info("left shapedirs equalled the right ones (a known bug of MANO_LEFT.pkl) and were mirrored")
