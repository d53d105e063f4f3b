"""IntagHand: the annotations of its preprocessed InterHand2.6M, with all 45 PCA coefficients.

`mano_params[side]` holds R (1, 3, 3), the root's rotation matrix, pose (1, n) PCA coefficients (n = 45, the mean is
added back: flat_hand_mean=False), shape (1, 10), trans (1, 3), in the world's frame in metres; `camera` holds R (3, 3)
and t (3,) with x_c = R x_w + t. The left shapedirs are repaired. InterHandGen's own vectors hold the same coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..params import HandParams, TwoHands
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle
from .annotations import Camera, broadcast, read_pair, write_pair
from .poses import PoseForm
from .values import as_float, full_precision, need

if TYPE_CHECKING:
    from ..hands import HandModel, HandPair

__all__ = ["hands_to_intaghand", "intaghand_to_hands"]


def intaghand_to_hands(annotation: Mapping[str, Any], hands: HandPair, *, camera: Camera | None = None) -> TwoHands:
    """`mano_params` of an annotation, or of many, stacked.

    Args:
        annotation: `{"left": ..., "right": ...}`, each None or with R (..., 3, 3), pose (..., n) with n up to 45,
            shape (..., 10), trans (..., 3).
        hands: MANO, the left hand repaired (as `load_hands` does).
        camera: its R (..., 3, 3) and t (..., 3); None keeps the world's frame.

    Returns:
        The pair (...), so of batch shape (1,) for an annotation as IntagHand stores it; a hand that is None is marked
        as missing.

    Raises:
        TypeError, ValueError: it is no such annotation, or `hands` have no mean pose or no components.
    """
    return read_pair(annotation, hands, _read, camera)


def hands_to_intaghand(
    pair: TwoHands, *, camera: Camera | None = None, num_pca_comps: int = 45
) -> dict[str, dict[str, Tensor] | None]:
    """The inverse.

    Args:
        pair: (...); a hand is None when it is marked as missing in all of them.
        camera: the camera whose frame the pair is in; None for the world's.
        num_pca_comps: how many coefficients; with fewer than 45 the nearest pose that they can write.

    Raises:
        ValueError: the pair's hand models have no mean pose or no components.
    """
    return write_pair(pair, partial(_write, num_pca_comps=num_pca_comps), camera)


def _read(name: str, data: Mapping[str, Any], model: HandModel) -> HandParams:
    data = need(name, data, ("R", "pose", "shape", "trans"))
    orient = matrix_to_axis_angle(as_float(f"{name}['R']", data["R"], 3, 3))
    pose = as_float(f"{name}['pose']", data["pose"])
    form = PoseForm.of(model, use_pca=True, num_pca_comps=pose.shape[-1])
    shape, trans = as_float(f"{name}['shape']", data["shape"], 10), as_float(f"{name}['trans']", data["trans"], 3)
    pose, shape, trans = broadcast(name, orient, form.to_pose(pose), shape, trans)
    return HandParams(orient, pose, shape, trans)


def _write(hand: HandParams, model: HandModel, num_pca_comps: int) -> dict[str, Tensor]:
    form = PoseForm.of(model, use_pca=True, num_pca_comps=num_pca_comps)
    return {
        "R": axis_angle_to_matrix(full_precision(hand.global_orient)),
        "pose": form.from_pose(hand.hand_pose),
        "shape": hand.betas,
        "trans": hand.transl,
    }
