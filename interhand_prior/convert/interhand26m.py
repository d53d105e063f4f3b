"""InterHand2.6M: the MANO annotations (NeuralAnnot) of a frame, and its cameras.

A frame is `{"right": {"pose": 48, "shape": 10, "trans": 3}, "left": ... or null}`: axis-angles, the root's first,
fingers as offsets from MANO's mean (use_pca=False, flat_hand_mean=False), betas for the repaired left shapedirs, in
the world's frame in metres. A camera is given by its place c in MILLIMETRES and its rotation: x_c = R (x_w - c).
Re:InterHand's fits have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..params import HandParams, TwoHands
from .annotations import Camera, broadcast, read_pair, write_pair
from .poses import PoseForm
from .values import as_float, need, no_autocast

if TYPE_CHECKING:
    from ..hands import HandModel, HandPair

__all__ = ["hands_to_interhand26m", "interhand26m_camera", "interhand26m_to_hands"]


def interhand26m_to_hands(annotation: Mapping[str, Any], hands: HandPair, *, camera: Camera | None = None) -> TwoHands:
    """A frame of `InterHand2.6M_*_MANO_NeuralAnnot.json`, or frames stacked into arrays.

    Args:
        annotation: `{"left": ..., "right": ...}`, each None or with pose (..., 48), shape (..., 10), trans (..., 3):
            lists, arrays or tensors.
        hands: MANO, the left hand repaired (as `load_hands` does).
        camera: R and t, from `interhand26m_camera`; None keeps the world's frame.

    Returns:
        The pair (...); a hand that is None is marked as missing.

    Raises:
        TypeError, ValueError: it is no such annotation, or `hands` have no mean pose.
    """
    return read_pair(annotation, hands, _read, camera)


def hands_to_interhand26m(pair: TwoHands, *, camera: Camera | None = None) -> dict[str, dict[str, Tensor] | None]:
    """The inverse: tensors under the data set's names, None for a missing hand. `.tolist()` makes them JSON's.

    Args:
        pair: (...); a hand is None when it is marked as missing in all of them.
        camera: the camera whose frame the pair is in; None for the world's.

    Raises:
        ValueError: the pair's hand models have no mean pose.
    """
    return write_pair(pair, _write, camera)


def interhand26m_camera(campos: Any, camrot: Any) -> tuple[Tensor, Tensor]:
    """A camera's extrinsics from `InterHand2.6M_*_camera.json`.

    Args:
        campos: (..., 3) its place in the world, millimetres.
        camrot: (..., 3, 3).

    Returns:
        R (..., 3, 3) and t (..., 3) in metres, with x_c = R x_w + t.
    """
    rotation, place = as_float("camrot", camrot, 3, 3), as_float("campos", campos, 3) / 1000
    with no_autocast(rotation):
        return rotation, -(rotation @ place[..., None])[..., 0]


def _read(name: str, data: Mapping[str, Any], model: HandModel) -> HandParams:
    data = need(name, data, ("pose", "shape", "trans"))
    pose = as_float(f"{name}['pose']", data["pose"], 48)
    shape, trans = as_float(f"{name}['shape']", data["shape"], 10), as_float(f"{name}['trans']", data["trans"], 3)
    shape, trans = broadcast(name, pose, shape, trans)
    return HandParams(pose[..., :3], PoseForm.of(model).to_pose(pose[..., 3:]), shape, trans)


def _write(hand: HandParams, model: HandModel) -> dict[str, Tensor]:
    pose = torch.cat((hand.global_orient, PoseForm.of(model).from_pose(hand.hand_pose)), -1)
    return {"pose": pose, "shape": hand.betas, "trans": hand.transl}
