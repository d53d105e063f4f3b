"""Hands from a user's own layers: smplx's MANO and MANOLayer, and the ManoLayer of manopth and manotorch.

Only their buffers are read, and copied; no such library is imported. `hand_pose` here is absolute, so how the layer
was made (`use_pca`, `flat_hand_mean`) changes nothing in what this library computes; it only decides whether
hands_mean and hands_components can be told from it.

And back into smplx, whose names and units these are (a layer that takes offsets or PCA coefficients instead of absolute
poses is given those by `convert.PoseForm`):

    left, right = (
        smplx.create(MODELS, "mano", is_rhand=is_right, use_pca=False, flat_hand_mean=True, batch_size=8)
        for is_right in (False, True)
    )
    prior = load_prior(hands=(left, right))
    pairs = sample(prior, 8, seed=0)
    vertices = left(**pairs.left.as_dict()).vertices  # those of pairs.vertices()[0]

    other = smplx.create(MODELS, "mano", is_rhand=True, batch_size=8)  # smplx's defaults: 6 components about the mean
    form = PoseForm.of_layer(other)
    nearest = other(**{**pairs.right.as_dict(), "hand_pose": form.from_pose(pairs.right.hand_pose)}).vertices
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import NUM_VERTICES, HandArrays

__all__ = ["arrays_from_layer", "is_layer", "place_of_layer"]

# MANO's key -> the names it goes by in smplx, and in manopth and manotorch.
_NAMES: dict[str, tuple[str, ...]] = {
    "v_template": ("v_template", "th_v_template"),
    "shapedirs": ("shapedirs", "th_shapedirs"),
    "posedirs": ("posedirs", "th_posedirs"),
    "J_regressor": ("J_regressor", "th_J_regressor"),
    "weights": ("lbs_weights", "th_weights"),
    "f": ("faces_tensor", "faces", "th_faces"),
    "parents": ("parents", "kintree_parents"),
}
# smplx's, manopth's (all of them, whatever ncomps is) and manotorch's (ncomps of them).
_COMPONENTS = ("np_hand_components", "th_comps", "th_selected_comps")


def is_layer(value: Any) -> bool:
    """Whether `value` has the buffers of a MANO layer."""
    return all(_get(value, names) is not None for names in _NAMES.values())


def arrays_from_layer(layer: Any, name: str) -> HandArrays:
    """Copy a layer's arrays.

    Args:
        layer: a MANO layer; later changes to it are not followed.
        name: what to call it in errors.

    Returns:
        Checked arrays. hands_mean is None where the layer was made with flat_hand_mean=True or takes matrices or
        quaternions, and hands_components where it holds fewer than 45, because neither can then be told.

    Raises:
        TypeError: it has not the buffers of a MANO layer.
        ValueError: its buffers are not MANO's.
    """
    if not is_layer(layer):
        missing = [names[0] for names in _NAMES.values() if _get(layer, names) is None]
        raise TypeError(
            f"{name} must be a MANO layer (smplx.MANO, smplx.MANOLayer or one with their buffers), "
            f"got {type(layer).__name__}, which lacks {', '.join(missing)}"
        )
    data = {key: _numpy(_get(layer, names)) for key, names in _NAMES.items()}
    if data["v_template"].shape == (1, NUM_VERTICES, 3):
        data["v_template"] = data["v_template"][0]
    if data["posedirs"].shape == (135, 3 * NUM_VERTICES):  # smplx keeps it transposed
        data["posedirs"] = data["posedirs"].T.reshape(NUM_VERTICES, 3, 135)
    if data["shapedirs"].shape[:2] == (NUM_VERTICES, 3) and data["shapedirs"].shape[2] != 10:
        raise ValueError(
            f"{name} has {data['shapedirs'].shape[2]} betas; make the layer with num_betas=10, which this library uses"
        )
    parents = data.pop("parents").ravel()
    data["kintree_table"] = np.stack([parents, np.arange(parents.size)])
    mean = _get(layer, ("hand_mean", "th_hands_mean"))
    if mean is not None and np.any(_numpy(mean) != 0):
        data["hands_mean"] = _numpy(mean).reshape(-1)
    for components in (getattr(layer, name, None) for name in _COMPONENTS):
        if components is not None and np.shape(components) == (45, 45):
            data["hands_components"] = _numpy(components)
            break
    return HandArrays.from_mapping(data, name)


def place_of_layer(layer: Any) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of a layer's buffers."""
    template = _get(layer, _NAMES["v_template"])
    return template.dtype, template.device


def _get(layer: Any, names: tuple[str, ...]) -> Any:
    return next((value for n in names if (value := getattr(layer, n, None)) is not None), None)


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.double() if value.is_floating_point() else value)
    return np.asarray(value)
