"""HaMeR and WiLoR: rotation matrices, a weak-perspective camera of a crop, left hands seen in a mirror.

Both networks know right hands only. The crop of a left hand is flipped, so what comes out is the mirror image of that
hand; with Gamma = diag(-1, 1, 1), the hand model V and the full-image translation t their demos put the vertices at

    x = V(R, theta, beta) + t   (right)          x = Gamma V(R, theta, beta) + t   (left).

Gamma V(R, theta, beta) is the left model of the mirrored parameters, so no vertex has to be flipped any more. The
crop's camera (s, t_x, t_y), box centre (c_x, c_y) and size b, image size (w, h) and focal length f give

    t = (t_x + 2 (c_x - w/2) / (s b),   t_y + 2 (c_y - h/2) / (s b),   2 f / (s b)),      left: t_x -> -t_x first.

Depth is proportional to f: where the true focal length is not known (`demo_focal_length`), so are the depths of
both hands, and the difference between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..params import HandParams, TwoHands
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle
from .pairs import of_detections
from .poses import matrices_to_pose, pose_to_matrices
from .values import full_precision, need, shaped

if TYPE_CHECKING:
    from ..hands import HandPair

__all__ = ["HaMeRHands", "crop_to_full", "demo_focal_length", "full_to_crop", "hamer_to_hands", "hands_to_hamer"]


class HaMeRHands(NamedTuple):
    """Hands as HaMeR and WiLoR write them.

    Attributes:
        mano_params: global_orient (..., 1, 3, 3), hand_pose (..., 15, 3, 3), betas (..., 10); of a left hand those of
            its mirror image, for the right hand model.
        cam_t: (..., 3) full-image translation, metres, not mirrored.
        is_right: (...) bool.
    """

    mano_params: dict[str, Tensor]
    cam_t: Tensor
    is_right: Tensor


def hamer_to_hands(
    mano_params: Mapping[str, Tensor],
    cam_t: Tensor,
    is_right: Tensor,
    *,
    score: Tensor | None = None,
    image: Tensor | None = None,
    num_images: int | None = None,
    hands: HandPair | None = None,
) -> TwoHands:
    """Detected hands as one pair per image, in the frame of its camera.

    Args:
        mano_params: the network's `pred_mano_params`: global_orient (D, 1, 3, 3), hand_pose (D, 15, 3, 3) and betas
            (D, 10) of D detections, as the network wrote them: left hands not turned back.
        cam_t: (D, 3) metres, from `crop_to_full`.
        is_right: (D,) bool or 0 and 1, the `right` of the batch.
        score: see `of_detections`, also for `image`, `num_images` and what is returned.
        image: (D,) integers.
        num_images: how many images.
        hands: the hand models; of MANO's files, the left one with its shapedirs repaired (as `load_hands` does).

    Returns:
        Pairs (num_images,), or a single one without `image`, with `left_valid` and `right_valid`.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    is_right = is_right.to(cam_t.device)
    hand = _own_side(mano_params, cam_t, is_right)
    return of_detections(hand, is_right, score=score, image=image, num_images=num_images, hands=hands)


def hands_to_hamer(pair: TwoHands) -> HaMeRHands:
    """The inverse: pairs (...) as detections (..., 2), the left hand first.

    `pair.left_valid` and `pair.right_valid` still say who is there.
    """
    both = (pair.left.mirrored(), pair.right)
    stack = lambda name: full_precision(torch.stack([getattr(hand, name) for hand in both], -2))
    params = {
        "global_orient": axis_angle_to_matrix(stack("global_orient"))[..., None, :, :],
        "hand_pose": pose_to_matrices(stack("hand_pose")),
        "betas": stack("betas"),
    }
    cam_t = full_precision(torch.stack((pair.left.transl, pair.right.transl), -2))
    is_right = torch.tensor((False, True), device=pair.device).expand(*pair.batch_shape, 2)
    return HaMeRHands(params, cam_t, is_right)


def crop_to_full(
    pred_cam: Tensor,
    box_center: Tensor,
    box_size: Tensor,
    img_size: Tensor,
    is_right: Tensor,
    *,
    focal_length: Tensor | float | None = None,
) -> Tensor:
    """The camera of a crop -> translation in the frame of the whole image's camera.

    Args:
        pred_cam: (..., 3) scale and translation (s, t_x, t_y), as the network wrote it (the demos change the sign of
            a left hand's t_x before they call their `cam_crop_to_full`; here that is done inside).
        box_center: (..., 2) pixels, of the crop in the image that was not flipped.
        box_size: (...) pixels.
        img_size: (..., 2) or (2,), width and height in pixels; the principal point is its middle.
        is_right: (...) bool or 0 and 1.
        focal_length: pixels, a number or (...). Default: `demo_focal_length(img_size)`.

    Returns:
        (..., 3) metres.

    Raises:
        ValueError: wrong shape.
    """
    pred_cam = _side_of_image(full_precision(shaped("pred_cam", pred_cam, 3)), is_right)
    width, offset, focal = _camera(box_center, box_size, img_size, focal_length, pred_cam)
    scaled = pred_cam[..., :1] * width + 1e-9  # the demos' guard, so that the numbers are theirs
    return torch.cat((pred_cam[..., 1:] + 2 * offset / scaled, 2 * focal / scaled), -1)


def full_to_crop(
    cam_t: Tensor,
    box_center: Tensor,
    box_size: Tensor,
    img_size: Tensor,
    is_right: Tensor,
    *,
    focal_length: Tensor | float | None = None,
) -> Tensor:
    """Inverse of `crop_to_full`.

    Args:
        cam_t: (..., 3) metres, before the camera.
        box_center: see `crop_to_full`, also for the rest.
        box_size: (...).
        img_size: (..., 2) or (2,).
        is_right: (...).
        focal_length: pixels.

    Returns:
        (..., 3) `pred_cam`.

    Raises:
        ValueError: wrong shape.
    """
    cam_t = full_precision(shaped("cam_t", cam_t, 3))
    width, offset, focal = _camera(box_center, box_size, img_size, focal_length, cam_t)
    scaled = 2 * focal / cam_t[..., 2:]
    return _side_of_image(torch.cat(((scaled - 1e-9) / width, cam_t[..., :2] - 2 * offset / scaled), -1), is_right)


def demo_focal_length(img_size: Tensor, *, focal_length: float = 5000.0, image_size: int = 256) -> Tensor:
    """The focal length that the demos assume: that of the crop's network, scaled to the longer side of the image.

    The demos take the longest side in a batch; give a batch's images one size to reproduce that.

    Args:
        img_size: (..., 2), width and height in pixels.
        focal_length: `EXTRA.FOCAL_LENGTH` of the network's configuration.
        image_size: `MODEL.IMAGE_SIZE` of it.

    Returns:
        (...) pixels.
    """
    return focal_length / image_size * full_precision(shaped("img_size", img_size, 2)).amax(-1)


def _own_side(mano_params: Mapping[str, Tensor], cam_t: Tensor, is_right: Tensor) -> HandParams:
    """Detections (...) in their own side's convention."""
    params = need("mano_params", mano_params, ("global_orient", "hand_pose", "betas"))
    orient = full_precision(shaped("global_orient", params["global_orient"], 3, 3))
    pose = matrices_to_pose(params["hand_pose"])
    if orient.shape == (*pose.shape[:-1], 1, 3, 3):
        orient = orient.squeeze(-3)
    betas, cam_t = full_precision(params["betas"]), full_precision(cam_t)
    right = HandParams(matrix_to_axis_angle(orient), pose, betas, cam_t)
    left = replace(right.mirrored(), transl=cam_t)  # the demos mirror the vertices, then add cam_t
    flag = (is_right > 0.5)[..., None]
    choose = lambda name: torch.where(flag, getattr(right, name), getattr(left, name))
    return HandParams(choose("global_orient"), choose("hand_pose"), betas, cam_t)


def _side_of_image(pred_cam: Tensor, is_right: Tensor) -> Tensor:
    """Left hands' t_x with the other sign; both ways."""
    scale, place = pred_cam[..., :1], pred_cam[..., 1:]
    flipped = torch.cat((scale, -place[..., :1], place[..., 1:]), -1)
    return torch.where((is_right > 0.5)[..., None], pred_cam, flipped)


def _camera(
    box_center: Tensor, box_size: Tensor, img_size: Tensor, focal_length: Tensor | float | None, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The box's width (..., 1), its middle's distance from the image's (..., 2), and the focal length (..., 1)."""
    img_size = shaped("img_size", img_size, 2).to(like)
    if focal_length is None:
        focal_length = demo_focal_length(img_size)
    focal = torch.as_tensor(focal_length, device=like.device, dtype=like.dtype).expand(like.shape[:-1])[..., None]
    return box_size.to(like)[..., None], shaped("box_center", box_center, 2).to(like) - img_size / 2, focal
