"""InterWild: axis-angle offsets, two root-relative hands, and the way from one root to the other.

InterWild places each hand by its root, the wrist that MANO's regressor finds in the POSED vertices,

    r = J_regressor[0] V(R, theta, beta, t),

not by the joint 0 of the kinematic chain, from which it differs by some tenths of a millimetre. Its `rel_trans` is the
left root minus the right one, in metres, in the camera's frame, so that the vertices of the two hands are

    V_right - r_right + root_right,        V_left - r_left + root_right + rel_trans.

Poses are offsets from MANO's mean (use_pca=False, flat_hand_mean=False), the left hand's already turned back from the
mirrored crop, and the left shapedirs are repaired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..params import HandParams, TwoHands
from .poses import PoseForm
from .values import as_float, need, no_autocast

if TYPE_CHECKING:
    from ..hands import HandModel, HandPair

__all__ = ["hands_to_interwild", "interwild_to_hands"]

_KEYS = (
    *("lmano_root_pose", "lmano_hand_pose", "lmano_shape"),
    *("rmano_root_pose", "rmano_hand_pose", "rmano_shape"),
    "rel_trans",
)


def interwild_to_hands(
    output: Mapping[str, Tensor],
    hands: HandPair,
    *,
    left_valid: Tensor | None = None,
    right_valid: Tensor | None = None,
) -> TwoHands:
    """What InterWild's network returns, as a pair in one frame.

    Args:
        output: under InterWild's names lmano_root_pose (..., 3), lmano_hand_pose (..., 45), lmano_shape (..., 10), the
            same with r, and rel_trans (..., 3); optionally rroot_cam (..., 3), the right root before the camera. In
            its training step the same tensors are called lroot_pose and so on: put them under these names.
        hands: MANO, for its mean pose and its regressor.
        left_valid: (...) bool, False where there is no left hand. InterWild itself always gives two.
        right_valid: as `left_valid`.

    Returns:
        The pair; its right root is at `rroot_cam`, or at the origin.

    Raises:
        TypeError, ValueError: `output` is not that, or `hands` have no mean pose.
    """
    output = need("output", output, _KEYS)
    roots = {"left": as_float("rel_trans", output["rel_trans"], 3)}
    roots["right"] = torch.zeros_like(roots["left"])
    if output.get("rroot_cam") is not None:
        roots["right"] = as_float("rroot_cam", output["rroot_cam"], 3)
        roots["left"] = roots["right"] + roots["left"]
    both = {}
    for side, root in roots.items():
        model: HandModel = getattr(hands, side)
        read = lambda name, width, prefix=side[0]: as_float(
            f"{prefix}mano_{name}", output[f"{prefix}mano_{name}"], width
        )
        pose = PoseForm.of(model).to_pose(read("hand_pose", 45))
        at_origin = HandParams(read("root_pose", 3), pose, read("shape", 10), torch.zeros_like(root))
        both[side] = replace(at_origin, transl=root - posed_root(at_origin, model))
    return TwoHands(both["left"], both["right"], hands, left_valid=left_valid, right_valid=right_valid)


def hands_to_interwild(pair: TwoHands) -> dict[str, Tensor]:
    """The inverse: what InterWild's network would have returned, `lroot_cam` and `rroot_cam` included.

    Raises:
        ValueError: the pair's hand models have no mean pose.
    """
    output, model = {}, pair.model
    for side in ("left", "right"):
        hand, own = getattr(pair, side), getattr(model, side)
        output[f"{side[0]}mano_root_pose"] = hand.global_orient
        output[f"{side[0]}mano_hand_pose"] = PoseForm.of(own).from_pose(hand.hand_pose)
        output[f"{side[0]}mano_shape"] = hand.betas
        output[f"{side[0]}root_cam"] = posed_root(hand, own)
    output["rel_trans"] = output["lroot_cam"] - output["rroot_cam"]
    return output


def posed_root(hand: HandParams, model: HandModel) -> Tensor:
    """The wrist that MANO's regressor finds in the posed vertices: (..., 3) metres."""
    vertices = model(hand)[0]
    with no_autocast(vertices):
        return torch.as_tensor(model.arrays.J_regressor[0]).to(vertices) @ vertices
