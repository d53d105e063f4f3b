"""ARCTIC: a sequence's MANO parameters, and the left shapedirs they were fitted with.

`{seq}.mano.npy` holds for each side rot (T, 3), pose (T, 45), trans (T, 3) and one shape (10,): fingers as offsets from
MANO's mean (use_pca=False, flat_hand_mean=False), some of them longer than pi, in the world's frame in metres.

The released left MANO has the RIGHT hand's shapedirs S, where the mirrored ones, Gamma S, were meant. ARCTIC (like
DexYCB) was fitted with the file as it is, so its left betas mean S beta. They are exact with such a model
(`with_released_left`), and have no exact counterpart in a repaired one. `refit_left` finds the nearest: with the
displacements D of the vertices relative to the wrist joint,

    beta' = argmin  mean_v |D' beta' - D beta|^2 / (0.5 mm)^2 + |beta'|^2.

The second term is MANO's own prior; without it the ten coefficients chase millimetres with shapes of no one's hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..hands import HandModel, HandPair
from ..params import HandParams, TwoHands
from .annotations import Camera, broadcast, read_pair, write_pair
from .poses import PoseForm
from .values import as_float, full_precision, need, no_autocast

if TYPE_CHECKING:
    from ..hands import HandArrays

__all__ = ["arctic_to_hands", "hands_to_arctic", "refit_left", "with_released_left"]

_TOLERANCE = 5e-4  # metres


def arctic_to_hands(annotation: Mapping[str, Any], hands: HandPair, *, camera: Camera | None = None) -> TwoHands:
    """The parameters of a sequence, or of one frame of it.

    Args:
        annotation: `{"left": ..., "right": ...}`, each None or with rot (..., 3), pose (..., 45), trans (..., 3) and
            shape (10,) or (..., 10); `fitting_err` is not read. Of `np.load(path, allow_pickle=True).item()`, whose
            opening runs the file's code: do that with the data set's own files only.
        hands: MANO with the left shapedirs as released: `with_released_left(load_hands(folder))`.
        camera: R (..., 3, 3) and t (..., 3) in metres; None keeps the world's frame.

    Returns:
        The pair (...); a hand that is None is marked as missing. `refit_left` moves it to repaired hand models.

    Raises:
        TypeError, ValueError: it is no such annotation; the left hand model is a repaired one, or has no mean pose.
    """
    _check_released(hands)
    return read_pair(annotation, hands, _read, camera)


def hands_to_arctic(pair: TwoHands, *, camera: Camera | None = None) -> dict[str, dict[str, Tensor] | None]:
    """The inverse. Every frame has its shape; ARCTIC itself has one for all.

    Args:
        pair: (...), of hand models with the left shapedirs as released (`refit_left` moves it there); a hand is None
            when it is marked as missing in all of them.
        camera: the camera whose frame the pair is in; None for the world's.

    Raises:
        ValueError: the left hand model is a repaired one, or has no mean pose.
    """
    _check_released(pair.model)
    return write_pair(pair, _write, camera)


def with_released_left(hands: HandPair) -> HandPair:
    """The same hands with the left shapedirs of the released MANO_LEFT.pkl: those of the right hand.

    Make it once; it copies both models.
    """
    right, left = hands.right.arrays, hands.left.arrays
    arrays = replace(left, shapedirs=right.shapedirs.copy(), shapedirs_fixed=False)
    models = [HandModel(a, dtype=m.dtype, device=m.device) for a, m in ((arrays, hands.left), (right, hands.right))]
    return HandPair(models[0], models[1])


def refit_left(pair: TwoHands, hands: HandPair) -> TwoHands:
    """The pair in other hand models, whose left shapedirs are different: from released to repaired, or back.

    The wrist joint, the rotations and the right hand stay; the left betas become the nearest ones. With the open
    hand's shapes and betas of standard deviation 1 the vertices are then 2.2 mm off on average, while the same betas
    in the other model would be 11 mm off; with MANO's own shapedirs it is something else.

    Args:
        pair: (...).
        hands: the other models; all but the left shapedirs must be those of the pair.

    Raises:
        ValueError: the models differ in more than that.
    """
    source, target = pair.model, hands
    for side in ("left", "right"):
        if not np.array_equal(getattr(source, side).arrays.v_template, getattr(target, side).arrays.v_template):
            raise ValueError(f"hands.{side} is another hand than the pair's; only its left shapedirs may differ")
    left = pair.left.map(full_precision)
    matrix = _change_of_betas(source.left.arrays, target.left.arrays).to(left.betas)
    with no_autocast(left.betas):
        betas = left.betas @ matrix
    shift = source.left.rest_joints(left.betas)[..., 0, :] - target.left.rest_joints(betas)[..., 0, :]
    return replace(pair, left=replace(left, betas=betas, transl=left.transl + shift), hands=hands)


def _change_of_betas(source: HandArrays, target: HandArrays) -> Tensor:
    """(10, 10), to be multiplied from the right."""
    if np.array_equal(source.shapedirs, target.shapedirs):
        return torch.eye(10, dtype=torch.float64)
    given, wanted = _displacements(source), _displacements(target)
    weight = len(source.v_template) * _TOLERANCE**2 * torch.eye(10, dtype=given.dtype)
    return torch.linalg.solve(wanted.mT @ wanted + weight, wanted.mT @ given).mT


def _displacements(arrays: HandArrays) -> Tensor:
    """(778 * 3, 10) metres per unit of beta, relative to the wrist joint."""
    shapedirs, regressor = torch.as_tensor(arrays.shapedirs), torch.as_tensor(arrays.J_regressor[0])
    return (shapedirs - torch.einsum("v,vck->ck", regressor, shapedirs)).flatten(0, 1)


def _check_released(hands: HandPair) -> None:
    left, right = hands.left.arrays.shapedirs, hands.right.arrays.shapedirs
    if np.abs(left[:, 0] - right[:, 0]).sum() >= 1:
        raise ValueError(
            "the left hand's shapedirs are the mirrored ones, but ARCTIC's betas belong to the released MANO_LEFT.pkl; "
            "use with_released_left(hands), and refit_left(pair, hands) between the two"
        )


def _read(name: str, data: Mapping[str, Any], model: HandModel) -> HandParams:
    data = need(name, data, ("rot", "pose", "trans", "shape"))
    orient = as_float(f"{name}['rot']", data["rot"], 3)
    widths = {"pose": 45, "shape": 10, "trans": 3}
    pose, shape, trans = (as_float(f"{name}[{key!r}]", data[key], width) for key, width in widths.items())
    pose, shape, trans = broadcast(name, orient, PoseForm.of(model).to_pose(pose), shape, trans)
    return HandParams(orient, pose, shape, trans)


def _write(hand: HandParams, model: HandModel) -> dict[str, Tensor]:
    pose = PoseForm.of(model).from_pose(hand.hand_pose)
    return {"rot": hand.global_orient, "pose": pose, "trans": hand.transl, "shape": hand.betas}
