"""SMPL-X: the hands of a body, and back.

A hand of SMPL-X is turned by all joints from the pelvis to the wrist, a MANO hand by its `global_orient` alone. Rest
frames and joint orders agree, so with the body's local rotations R_j

    R_hand = R_pelvis R_spine1 R_spine2 R_spine3 R_collar R_shoulder R_elbow R_wrist,

and back, with the others kept, R_wrist = (R_pelvis ... R_elbow)^T R_hand. A hand has its place from the body's joints.
What does not carry over is the shape: SMPL-X's hands take theirs from the body's betas and have their own vertices.

With `body`, a smplx.SMPLX, and `pose`, what it is called with (global_orient, body_pose, left_hand_pose, ...):

    forms = PoseForm.of_layer(body, "left"), PoseForm.of_layer(body, "right")
    own = {name: pose[name] for name in ("global_orient", "body_pose", "left_hand_pose", "right_hand_pose")}
    pair = smplx_to_hands(body(**pose).joints, **own, hands=prior.hands, forms=forms, align="middle_mcp")
    loss = sds_loss(prior, pair.left, pair.right)  # its gradient reaches the arms and the fingers

    better = prior.refine(pair.detach())
    changed = hands_to_smplx(better, pose["global_orient"], pose["body_pose"], forms=forms)
    output = body(**{**pose, **changed._asdict()})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..hands import MIDDLE_MCP
from ..params import HandParams, TwoHands
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle
from .poses import PoseForm
from .values import full_precision, no_autocast, shaped

if TYPE_CHECKING:
    from ..hands import HandPair

__all__ = ["SMPLXHands", "hands_to_smplx", "smplx_to_hands", "wrist_rotations"]

#: The joints after the pelvis that turn each hand: spine 1-3, collar, shoulder, elbow, wrist.
_CHAIN = {"left": (3, 6, 9, 13, 16, 18, 20), "right": (3, 6, 9, 14, 17, 19, 21)}
#: Where `align` finds itself among the body's joints, and among MANO's.
_ANCHORS = {"wrist": ({"left": 20, "right": 21}, 0), "middle_mcp": ({"left": 28, "right": 43}, MIDDLE_MCP)}


class SMPLXHands(NamedTuple):
    """The parameters of a body that its hands decide.

    Attributes:
        body_pose: (..., 63) axis-angles of 21 joints; only those of the wrists were changed.
        left_hand_pose: (..., n), in the form that was asked for.
        right_hand_pose: (..., n).
    """

    body_pose: Tensor
    left_hand_pose: Tensor
    right_hand_pose: Tensor


def smplx_to_hands(
    joints: Tensor,
    global_orient: Tensor,
    body_pose: Tensor,
    left_hand_pose: Tensor,
    right_hand_pose: Tensor,
    hands: HandPair,
    *,
    forms: tuple[PoseForm, PoseForm],
    left_betas: Tensor | None = None,
    right_betas: Tensor | None = None,
    align: Literal["wrist", "middle_mcp"] = "wrist",
    left_valid: Tensor | None = None,
    right_valid: Tensor | None = None,
) -> TwoHands:
    """The two hands of a body, in the body's world.

    Args:
        joints: (..., J, 3) metres, the `joints` of smplx's output: they carry shape, pose and `transl` of the body.
        global_orient: (..., 3) of the body, axis-angle.
        body_pose: (..., 63) or (..., 21, 3), axis-angles.
        left_hand_pose: (..., n), as the body model takes it.
        right_hand_pose: (..., n).
        hands: the hand models to express the hands in.
        forms: how the left and the right finger pose are written:
            `(PoseForm.of_layer(body, "left"), PoseForm.of_layer(body, "right"))`.
        left_betas: (..., 10) of the hand (not the body's). Default: zeros.
        right_betas: as `left_betas`.
        align: which joint of the hand is where the body has it. The prior sees how the knuckles ("middle_mcp") stand
            to each other, and a hand of mean shape on another's wrist has them elsewhere: prefer it for `sds_loss`.
        left_valid: (...) bool, False where the left hand is not to be trusted, or not in the picture.
        right_valid: as `left_valid`.

    Returns:
        The pair (...); gradients reach the whole chain.

    Raises:
        ValueError: an argument is wrong.
    """
    if align not in _ANCHORS:
        raise ValueError(f"align must be one of {', '.join(_ANCHORS)}, got {align!r}")
    places, own_joint = _ANCHORS[align]
    if joints.ndim < 2 or joints.shape[-1] != 3 or joints.shape[-2] <= max(places.values()):
        raise ValueError(
            f"joints must have shape (..., J, 3) with SMPL-X's joints 0 to {max(places.values())} among them, got "
            f"{tuple(joints.shape)}"
        )
    joints = full_precision(joints)
    rotations = dict(zip(("left", "right"), wrist_rotations(global_orient, body_pose), strict=True))
    result = {}
    for side, form, written, betas in (
        ("left", forms[0], left_hand_pose, left_betas),
        ("right", forms[1], right_hand_pose, right_betas),
    ):
        target = joints[..., places[side], :]
        betas = target.new_zeros(*target.shape[:-1], 10) if betas is None else full_precision(betas)
        rotation = rotations[side]
        rest = getattr(hands, side).rest_joints(betas)
        wrist, anchor = rest[..., 0, :], rest[..., own_joint, :]
        with no_autocast(target):
            transl = target - wrist - (rotation @ (anchor - wrist)[..., None])[..., 0]
        result[side] = HandParams(matrix_to_axis_angle(rotation), form.to_pose(written), betas, transl)
    return TwoHands(result["left"], result["right"], hands, left_valid=left_valid, right_valid=right_valid)


def hands_to_smplx(
    pair: TwoHands, global_orient: Tensor, body_pose: Tensor, *, forms: tuple[PoseForm, PoseForm]
) -> SMPLXHands:
    """Give a body the pair's finger poses and wrist rotations. Where its wrists are is left to the body.

    A hand that is marked as missing is written all the same; keep the body's own there.

    Args:
        pair: (...).
        global_orient: (..., 3) of the body.
        body_pose: (..., 63) or (..., 21, 3) of the body.
        forms: how the body model takes the finger poses; see `smplx_to_hands`. With fewer than 45 components the
            nearest pose that they can write.

    Raises:
        ValueError: an argument is wrong.
    """
    local = _locals(global_orient, body_pose)
    body = full_precision(body_pose).reshape(*local.shape[:-3], 21, 3)
    wrists = {}
    for side, chain in _CHAIN.items():
        hand = axis_angle_to_matrix(full_precision(getattr(pair, side).global_orient))
        with no_autocast(hand):
            wrists[chain[-1]] = matrix_to_axis_angle(_product(local, chain[:-1]).mT @ hand)
    body = torch.cat((body[..., :19, :], torch.stack((wrists[20], wrists[21]), -2)), -2)  # the wrists are the last two
    left, right = forms[0].from_pose(pair.left.hand_pose), forms[1].from_pose(pair.right.hand_pose)
    return SMPLXHands(body.flatten(-2), left, right)


def wrist_rotations(global_orient: Tensor, body_pose: Tensor) -> tuple[Tensor, Tensor]:
    """How a body's left and right wrist are turned in the world, each (..., 3, 3).

    Args:
        global_orient: (..., 3), axis-angle.
        body_pose: (..., 63) or (..., 21, 3), axis-angles.

    Raises:
        ValueError: wrong shape.
    """
    local = _locals(global_orient, body_pose)
    with no_autocast(local):
        return _product(local, _CHAIN["left"]), _product(local, _CHAIN["right"])


def _locals(global_orient: Tensor, body_pose: Tensor) -> Tensor:
    """Rotations of the pelvis and 21 joints in their parents' frames: (..., 22, 3, 3)."""
    if body_pose.shape[-2:] == (21, 3):
        body_pose = body_pose.flatten(-2)
    body_pose = full_precision(shaped("body_pose", body_pose, 63)).unflatten(-1, (21, 3))
    global_orient = full_precision(shaped("global_orient", global_orient, 3))
    return axis_angle_to_matrix(torch.cat((global_orient[..., None, :], body_pose), -2))


def _product(local: Tensor, chain: tuple[int, ...]) -> Tensor:
    rotation = local[..., 0, :, :]
    for joint in chain:
        rotation = rotation @ local[..., joint, :, :]
    return rotation
