"""Pairs out of hands that may not be there, and where a pair stands.

A rigid motion x -> Q x + s of a hand is not a change of `transl` by s: MANO turns about its wrist joint J_0(beta),
so with the global rotation R and translation t

    R' = Q R,        t' = Q (J_0 + t) + s - J_0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..params import HandParams, TwoHands, check_same_place
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle
from .values import full_precision, no_autocast, shaped

if TYPE_CHECKING:
    from ..hands import HandModel, HandPair

__all__ = ["hand_or_none", "moved", "moved_hand", "of_detections", "pair_of"]


def pair_of(
    left: HandParams | None,
    right: HandParams | None,
    hands: HandPair | None = None,
    *,
    left_valid: Tensor | None = None,
    right_valid: Tensor | None = None,
) -> TwoHands:
    """A pair of hands of which one or both may be None.

    Args:
        left: the left hand (...), or None where none of the batch has one.
        right: the right hand (...), or None.
        hands: the hand models the parameters belong to.
        left_valid: (...) bool, False where there is no left hand.
        right_valid: as `left_valid`.

    Returns:
        The pair, (...); an absent hand is zeros and marked. Of two Nones, a single pair without hands.

    Raises:
        ValueError: the hands differ in batch shape, type or device.
    """
    given = left if left is not None else right
    if given is None:
        zero = torch.zeros(())
        given = HandParams(zero.expand(3), zero.expand(45), zero.expand(10), zero.expand(3))
    absent = torch.zeros(given.batch_shape, dtype=torch.bool, device=given.device)
    if left is None:
        left, left_valid = given.map(torch.zeros_like), absent
    if right is None:
        right, right_valid = given.map(torch.zeros_like), absent
    return TwoHands(left, right, hands, left_valid=left_valid, right_valid=right_valid)


def hand_or_none(pair: TwoHands, side: str) -> HandParams | None:
    """One side's hand, or None when it is marked as missing in all of the batch.

    For writing files: the answer is asked of the device.
    """
    mask = getattr(pair, f"{side}_valid")
    hand: HandParams = getattr(pair, side)
    return hand if mask is None or bool(mask.any()) else None


def of_detections(
    hand: HandParams,
    is_right: Tensor,
    *,
    score: Tensor | None = None,
    image: Tensor | None = None,
    num_images: int | None = None,
    hands: HandPair | None = None,
) -> TwoHands:
    """Detected hands, any number of them, as one pair per image.

    Of several hands of one side in an image the one with the highest score is taken, the first of equals. Gradients
    reach the detections that were taken. Nothing waits for the device.

    Args:
        hand: (D,) hands, each in its own side's convention; D may be 0.
        is_right: (D,) bool or 0 and 1.
        score: (D,), how sure each is. Default: the first one of each side is taken.
        image: (D,) integers, which image each is in. Default: all are in one.
        num_images: how many images there are; needed with `image`, because some may have no hand at all.
        hands: the hand models the parameters belong to.

    Returns:
        Pairs (num_images,), or a single one () without `image`. `left_valid`, `right_valid` say who is there.

    Raises:
        ValueError: a shape is wrong; `image` and `num_images` do not come together.
    """
    if len(hand.batch_shape) != 1:
        raise ValueError(f"hand must be a list of detections (D,), got the batch shape {tuple(hand.batch_shape)}")
    for name, value in (("is_right", is_right), ("score", score), ("image", image)):
        if value is not None and value.shape != hand.batch_shape:
            raise ValueError(f"{name} must have shape {tuple(hand.batch_shape)}, got {tuple(value.shape)}")
    if (image is None) != (num_images is None):
        raise ValueError("image and num_images belong together: which image each hand is in, and how many there are")
    place = hand.device
    number = 1 if num_images is None else num_images
    here = torch.zeros_like(is_right, dtype=torch.long, device=place) if image is None else image.to(place)
    sides = torch.tensor((False, True), device=place)
    present = (here == torch.arange(number, device=place)[:, None])[:, None] & (
        _flags(is_right, place) == sides[:, None]
    )
    best = _first_best(present, score)
    # Row D is the hand that is not there. Taken by its index, it lets no NaN of a detection through.
    rows = hand.map(lambda value: torch.cat((value, value.new_zeros(1, value.shape[-1]))))
    valid = best < len(is_right)
    if image is None:
        best, valid = best[0], valid[0]
    return TwoHands(rows[best[..., 0]], rows[best[..., 1]], hands, left_valid=valid[..., 0], right_valid=valid[..., 1])


def _flags(is_right: Tensor, device: torch.device) -> Tensor:
    return is_right.to(device) > 0.5


def _first_best(present: Tensor, score: Tensor | None) -> Tensor:
    """(..., D) bool -> the index of the present one of highest score, D where none is present."""
    count = present.shape[-1]
    if score is None:
        key = torch.zeros(count, device=present.device)
    else:
        key = full_precision(score.detach().to(present.device))
        lowest = torch.finfo(key.dtype).min
        key = key.nan_to_num(nan=lowest).clamp_min(lowest)  # worse than any, better than absent
    key = torch.where(present, key, -torch.inf)
    key = torch.cat((key, key.new_full((*key.shape[:-1], 1), -torch.inf)), -1)
    return torch.where(present.any(-1), key.argmax(-1), count)


def moved(pair: TwoHands, rotation: Tensor, translation: Tensor) -> TwoHands:
    """The pair as another frame sees it: every point x of both hands goes to `rotation @ x + translation`.

    Args:
        pair: (...), in metres.
        rotation: (..., 3, 3) or (3, 3), e.g. of a camera's extrinsics.
        translation: (..., 3) or (3,), metres.

    Returns:
        The moved pair, with the same marks of missing hands.

    Raises:
        ValueError: a shape is wrong; the tensors differ in type or device.
    """
    model = pair.model
    left = moved_hand(pair.left, rotation, translation, model.left)
    right = moved_hand(pair.right, rotation, translation, model.right)
    return replace(pair, left=left, right=right)


def moved_hand(hand: HandParams, rotation: Tensor, translation: Tensor, model: HandModel) -> HandParams:
    """`moved` for one hand.

    Args:
        hand: (...).
        rotation: (..., 3, 3) or (3, 3).
        translation: (..., 3) or (3,), metres.
        model: the hand model the parameters belong to.

    Raises:
        ValueError: as `moved`.
    """
    hand = hand.map(full_precision)
    rotation, translation = full_precision(shaped("rotation", rotation, 3, 3)), full_precision(translation)
    shaped("translation", translation, 3)
    for name, value in (("rotation", rotation), ("translation", translation)):
        check_same_place(name, value, "the hand", hand.transl)
    with no_autocast(hand.transl):
        wrist = model.rest_joints(hand.betas)[..., 0, :]
        turned = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(hand.global_orient))
        transl = (rotation @ (wrist + hand.transl)[..., None])[..., 0] + translation - wrist
    return replace(hand, global_orient=turned, transl=transl)
