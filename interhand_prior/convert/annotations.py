"""What annotations of data sets share: a mapping with the keys left and right, of which any may be None."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..params import HandParams, TwoHands
from .pairs import hand_or_none, moved, pair_of
from .values import as_float

if TYPE_CHECKING:
    from ..hands import HandModel, HandPair

__all__ = ["Camera", "broadcast", "read_pair", "write_pair"]

#: Extrinsics of a camera, x_camera = R x_world + t: R (..., 3, 3) and t (..., 3) in metres.
Camera = tuple[Any, Any]


def read_pair(
    annotation: Mapping[str, Any],
    hands: HandPair,
    read: Callable[[str, Mapping[str, Any], HandModel], HandParams],
    camera: Camera | None = None,
) -> TwoHands:
    """Both sides by `read(name, its part, its model)`; a side that is None is marked as missing.

    Raises:
        TypeError, ValueError: `annotation` is not such a mapping.
    """
    if not isinstance(annotation, Mapping) or not {"left", "right"} <= set(annotation):
        raise ValueError("annotation must be a mapping with the keys left and right, a missing hand being None")
    sides = {
        side: None
        if annotation[side] is None
        else read(f"annotation[{side!r}]", annotation[side], getattr(hands, side))
        for side in ("left", "right")
    }
    pair = pair_of(sides["left"], sides["right"], hands)
    if camera is None:
        return pair
    where = pair.left.transl
    return moved(pair, as_float("camera R", camera[0], 3, 3).to(where), as_float("camera t", camera[1], 3).to(where))


def write_pair(
    pair: TwoHands,
    write: Callable[[HandParams, HandModel], dict[str, Any]],
    camera: Camera | None = None,
) -> dict[str, dict[str, Any] | None]:
    """Both sides by `write`, out of the camera's frame; None for a hand that is missing in all of the batch."""
    if camera is not None:
        where = pair.left.transl
        inverse = as_float("camera R", camera[0], 3, 3).to(where).mT
        shift = as_float("camera t", camera[1], 3).to(where)
        pair = moved(pair, inverse, -(inverse @ shift[..., None])[..., 0])
    result: dict[str, dict[str, Any] | None] = {}
    for side in ("left", "right"):
        hand = hand_or_none(pair, side)
        result[side] = None if hand is None else write(hand, getattr(pair.model, side))
    return result


def broadcast(name: str, orient: torch.Tensor, *rest: torch.Tensor) -> list[torch.Tensor]:
    """Tensors (..., k) with one leading shape, that of `orient`: a shape given once serves all frames.

    Raises:
        ValueError: the leading shapes do not agree.
    """
    try:
        return [value.to(orient).expand(*orient.shape[:-1], value.shape[-1]) for value in rest]
    except RuntimeError:
        shapes = ", ".join(str(tuple(value.shape)) for value in (orient, *rest))
        raise ValueError(f"{name} holds parameters of different numbers of frames: shapes {shapes}") from None
