"""Wrong pairs that the critics learn to tell from real ones.

Each way of being wrong is drawn with its own size for every pair, from barely wrong to grossly. All but the fingers'
move one hand in the other's frame, so that it does not matter which of the two is moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..canonical import SLICES, from_canonical, to_canonical
from ..geometry import nearest_vertices
from ..hands import HandPair
from ..params import HandParams, TwoHands
from ..rotations import axis_angle_to_matrix, matrix_to_rot6d, rot6d_to_matrix

__all__ = ["PLACEMENT", "corrupted", "noisy_fingers", "strayed"]

_OFFSET, _ROTATION, _OWN, _POSE = SLICES["transl"], SLICES["rot6d"], SLICES["own"], SLICES["hand_pose"]

#: Changes anchors and partners (N, 64) of pairs, metres and radians, with a generator on the CPU.
Corruption = Callable[[Tensor, Tensor, HandPair, torch.Generator], Tensor]


def noisy_fingers(hands: TwoHands, generator: torch.Generator) -> tuple[TwoHands, Tensor]:
    """About half of the fingers with noise of .08 to .6 rad on each joint's axis-angle.

    Returns:
        The pairs, and (2, N, 5) which fingers of the right and of the left hand are changed.
    """
    moved, masks = [], []
    for hand in (hands.right, hands.left):
        (count,) = hand.batch_shape
        size = torch.exp(_uniform(count, math.log(0.08), math.log(0.6), generator))[:, None]
        mask = torch.rand(count, 5, generator=generator) < 0.5
        noise = size * torch.randn(count, 45, generator=generator) * mask.repeat_interleave(9, -1)
        moved.append(HandParams(hand.global_orient, hand.hand_pose + noise.to(hand.hand_pose), hand.betas, hand.transl))
        masks.append(mask.to(hand.device))
    return TwoHands(moved[1], moved[0], hands.hands), torch.stack(masks)


def corrupted(hands: TwoHands, models: HandPair, generator: torch.Generator) -> tuple[TwoHands, Tensor]:
    """Each pair wrong in one way, drawn evenly.

    Args:
        hands: (N,) real pairs, N >= 2.
        models: that their parameters belong to.
        generator: on the CPU.

    Returns:
        The pairs, and (N,) which of the ways it is; those below `PLACEMENT` change the relative placement.
    """
    anchor, partner, frame = to_canonical(hands, models, "left")
    ways = (*_PLACEMENTS, _swapped)
    kind = torch.randint(len(ways) + 1, (len(hands),), generator=generator).to(partner.device)
    for index, way in enumerate(ways):
        partner = torch.where((kind == index)[:, None], way(anchor, partner, models, generator), partner)
    fingers, _ = noisy_fingers(hands, generator)
    moved = from_canonical(anchor, partner, models, frame)
    noisy = (kind == len(ways))[:, None]
    pick = lambda a, b: HandParams(**{k: torch.where(noisy, v, getattr(b, k)) for k, v in a.as_dict().items()})
    return TwoHands(pick(fingers.left, moved.left), pick(fingers.right, moved.right), hands.hands), kind


def strayed(hands: TwoHands, models: HandPair, generator: torch.Generator) -> TwoHands:
    """Pairs (N,) with one hand 10 to 60 cm away from its place: a critic knows only what it was shown."""
    anchor, partner, frame = to_canonical(hands, models, "left")
    length = _uniform(len(partner), 0.1, 0.6, generator).to(partner)[:, None]
    moved = _with(partner, offset=partner[:, _OFFSET] + length * _directions(partner, generator))
    return replace(from_canonical(anchor, moved, models, frame), hands=hands.hands)


def _turned(anchor: Tensor, partner: Tensor, models: HandPair, generator: torch.Generator) -> Tensor:
    """By 17 to 180 degrees about any axis through the middle knuckle."""
    turn = _directions(partner, generator) * _uniform(len(partner), 0.3, math.pi, generator).to(partner)[:, None]
    rotation = axis_angle_to_matrix(turn) @ rot6d_to_matrix(partner[:, _ROTATION])
    return _with(partner, rotation=matrix_to_rot6d(rotation))


def _shifted(anchor: Tensor, partner: Tensor, models: HandPair, generator: torch.Generator) -> Tensor:
    """By 1 to 8 cm in any direction."""
    length = _uniform(len(partner), 0.01, 0.08, generator).to(partner)[:, None]
    return _with(partner, offset=partner[:, _OFFSET] + length * _directions(partner, generator))


def _pushed(anchor: Tensor, partner: Tensor, models: HandPair, generator: torch.Generator) -> Tensor:
    """Until the nearest vertices meet, and 4 to 30 mm farther towards the other hand's middle."""
    hands = from_canonical(anchor, partner, models)
    left, right = models.vertices(hands)
    square, index = nearest_vertices(right, left)
    row, at = torch.arange(len(partner), device=partner.device), square.argmin(-1)
    gap = left[row, index[row, at]] - right[row, at]
    inwards = torch.nn.functional.normalize(left.mean(-2) - right.mean(-2), dim=-1)
    depth = _uniform(len(partner), 0.004, 0.03, generator).to(partner)[:, None]
    return _with(partner, offset=partner[:, _OFFSET] + gap + depth * inwards)


def _mirrored(anchor: Tensor, partner: Tensor, models: HandPair, generator: torch.Generator) -> Tensor:
    """In one of the anchor's three planes, in half of the pairs the offset alone."""
    count = len(partner)
    axis = torch.randint(3, (count,), generator=generator)
    sign = (1 - 2 * torch.nn.functional.one_hot(axis, 3)).to(partner)
    both = (torch.rand(count, generator=generator) < 0.5).to(partner.device)
    rotation = rot6d_to_matrix(partner[:, _ROTATION])
    rotation = torch.where(both[:, None, None], sign[:, :, None] * rotation * sign[:, None], rotation)
    return _with(partner, rotation=matrix_to_rot6d(rotation), offset=sign * partner[:, _OFFSET])


def _placed(anchor: Tensor, partner: Tensor, models: HandPair, generator: torch.Generator) -> Tensor:
    """Where another pair's partner is."""
    other = partner[_others(len(partner), generator).to(partner.device)]
    return torch.cat((partner[:, _OWN], other[:, SLICES["relative"]]), -1)


def _swapped(anchor: Tensor, partner: Tensor, models: HandPair, generator: torch.Generator) -> Tensor:
    """Another pair's partner, in half of the pairs its pose alone, in this one's place."""
    other = partner[_others(len(partner), generator).to(partner.device)]
    whole = (torch.rand(len(partner), 1, generator=generator) < 0.5).to(partner.device)
    shape = SLICES["betas"]
    return torch.cat(
        (other[:, _POSE], torch.where(whole, other[:, shape], partner[:, shape]), partner[:, SLICES["relative"]]), -1
    )


_PLACEMENTS: tuple[Corruption, ...] = (_turned, _shifted, _pushed, _mirrored, _placed)
#: Ways `corrupted` numbers below this change the placement alone.
PLACEMENT = len(_PLACEMENTS)


def _with(partner: Tensor, rotation: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    rotation = partner[:, _ROTATION] if rotation is None else rotation
    offset = partner[:, _OFFSET] if offset is None else offset
    return torch.cat((partner[:, _OWN], rotation, offset), -1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _directions(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(len(like), 3, generator=generator), dim=-1).to(like)


def _others(count: int, generator: torch.Generator) -> Tensor:
    """For each of the pairs another one."""
    return (torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count
