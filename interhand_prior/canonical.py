"""Canonical vectors: a pair of hands <-> (anchor, partner), each a 64-vector (paper Sec. 3.2, Eq. 5).

With R_a the global rotation of the anchor and m_a, m_p the middle-MCP joints of anchor and partner, the partner is
seen from the anchor,

    R = R_a^T R_p,    t = R_a^T (m_p - m_a),                                                          (Eq. 5)

so a rigid motion of the pair changes nothing. Every vector is in RIGHT-hand form: when the anchor is the right
hand the whole pair is first mirrored by Gamma = diag(-1, 1, 1), which exchanges the roles (Sec. 3.3). Hence one
network serves both sides, and both hands share one normaliser.

A vector is

    hand_pose 45 | betas 10 | rot6d of R, first two rows, 6 | t in metres, 3        (SLICES, the only such table)

and the anchor's last nine entries are constant: identity and zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .params import HandParams, TwoHands
from .rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rot6d,
    mirror_axis_angle,
    mirror_points,
    rot6d_to_matrix,
)

if TYPE_CHECKING:
    from .hands import HandModel, HandPair
    from .prior import TwoHandPrior

__all__ = [
    "SIZE",
    "SLICES",
    "Frame",
    "Normalizer",
    "Side",
    "as_anchor",
    "canonical_pair",
    "from_canonical",
    "own_vector",
    "to_canonical",
    "without_place",
]

Side = Literal["left", "right"]

SLICES: dict[str, slice] = {
    "hand_pose": slice(0, 45),
    "betas": slice(45, 55),
    "rot6d": slice(55, 61),
    "transl": slice(61, 64),
    "own": slice(0, 55),  # what a hand has by itself: hand_pose and betas
    "relative": slice(55, 64),  # where it is: rot6d and transl
}
SIZE = 64

_MIDDLE_MCP = 4  # in MANO's order of 16 joints
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)  # the relative part of every anchor


class Frame(NamedTuple):
    """Where the anchor is: `world = rotation @ canonical + origin`.

    Attributes:
        rotation: (..., 3, 3) global rotation of the anchor hand.
        origin: (..., 3) its middle-MCP joint, metres.
    """

    rotation: Tensor
    origin: Tensor


def to_canonical(hands: TwoHands, pair: HandPair, anchor: Side = "left") -> tuple[Tensor, Tensor, Frame]:
    """Pair of hands -> anchor vector, partner vector (Eq. 5), and the frame that was factored out.

    Args:
        hands: pairs of any batch shape (...).
        pair: the hand models the parameters belong to; they say where the middle-MCP joint is.
        anchor: the hand that is conditioned on; the paper's is the left one.

    Returns:
        anchor (..., 64), partner (..., 64), both in right-hand form, metres and radians, not normalised; frame.

    Raises:
        ValueError: anchor is neither "left" nor "right".
    """
    mirror = _is_right(anchor, "anchor")
    first, second = (hands.right, hands.left) if mirror else (hands.left, hands.right)
    model_a, model_p = (pair.right, pair.left) if mirror else (pair.left, pair.right)
    with _full_precision(hands.left.transl):
        rotation_a, middle_a = _place(first, model_a)
        rotation_p, middle_p = _place(second, model_p)
        inverse = rotation_a.mT
        rotation = inverse @ rotation_p
        offset = (inverse @ (middle_p - middle_a)[..., None]).squeeze(-1)
    if mirror:
        rotation = _mirror_matrix(rotation)
        offset = mirror_points(offset)
    # In right-hand form the anchor is a left hand that was mirrored, and the partner a right one, or the other way.
    return (
        as_anchor(own_vector(first, anchor)),
        torch.cat((own_vector(second, "left" if mirror else "right"), matrix_to_rot6d(rotation), offset), -1),
        Frame(rotation_a, middle_a),
    )


def own_vector(hand: HandParams, side: Side) -> Tensor:
    """What a hand has by itself, in right-hand form: hand_pose and betas, (..., 55).

    Args:
        hand: of any batch shape (...).
        side: the one it is of; a left hand is mirrored.

    Raises:
        ValueError: side is neither "left" nor "right".
    """
    pose = hand.hand_pose if _is_right(side, "side") else mirror_axis_angle(hand.hand_pose)
    return torch.cat((pose, hand.betas), -1)


def as_anchor(own: Tensor) -> Tensor:
    """The anchor vector (..., 64) of a hand whose own part is `own` (..., 55): not turned, not shifted."""
    identity = own.new_tensor(_IDENTITY).expand(*own.shape[:-1], len(_IDENTITY))
    return torch.cat((own, identity), -1)


def without_place(vector: Tensor, has_relative: Tensor) -> Tensor:
    """Vectors (..., 64) with zeros in the relative part where has_relative (...) is False: hands alone."""
    own = torch.arange(vector.shape[-1], device=vector.device) < SLICES["own"].stop
    return torch.where(has_relative[..., None] | own, vector, 0)


def from_canonical(
    anchor: Tensor, partner: Tensor, pair: HandPair, frame: Frame | None = None, anchor_side: Side = "left"
) -> TwoHands:
    """Inverse of `to_canonical`.

    Args:
        anchor: (..., 64); its last nine entries are not read.
        partner: (..., 64); the rot6d part may be any six numbers, it is orthonormalised.
        pair: the hand models the result belongs to.
        frame: where the anchor is. Default: no rotation, middle-MCP joint at the origin.
        anchor_side: the side of the anchor.

    Returns:
        The pair, in metres and radians, with global_orient of length at most pi.

    Raises:
        ValueError: anchor_side is neither "left" nor "right".
    """
    mirror = _is_right(anchor_side, "anchor_side")
    if frame is None:
        origin = torch.zeros_like(partner[..., SLICES["transl"]])
        frame = Frame(torch.eye(3, dtype=partner.dtype, device=partner.device).expand(*origin.shape, 3), origin)
    rotation = rot6d_to_matrix(partner[..., SLICES["rot6d"]])
    offset = partner[..., SLICES["transl"]]
    pose_a, pose_p = anchor[..., SLICES["hand_pose"]], partner[..., SLICES["hand_pose"]]
    if mirror:
        pose_p = mirror_axis_angle(pose_p)
        rotation = _mirror_matrix(rotation)
        offset = mirror_points(offset)
    else:
        pose_a = mirror_axis_angle(pose_a)
    model_a, model_p = (pair.right, pair.left) if mirror else (pair.left, pair.right)
    with _full_precision(partner):
        rotation_p = frame.rotation @ rotation
        middle_p = frame.origin + (frame.rotation @ offset[..., None]).squeeze(-1)
        hand_a = _hand(pose_a, anchor[..., SLICES["betas"]], frame.rotation, frame.origin, model_a)
        hand_p = _hand(pose_p, partner[..., SLICES["betas"]], rotation_p, middle_p, model_p)
    left, right = (hand_p, hand_a) if mirror else (hand_a, hand_p)
    return TwoHands(left, right, pair)


def canonical_pair(prior: TwoHandPrior, hands: TwoHands) -> tuple[Tensor, Tensor]:
    """Normalised vectors of both directions: what everything that judges a pair reads.

    A pair is looked at from both sides (Eq. 9), so that mirroring it with exchanged hands changes nothing; in
    right-hand form the two sides are alike and go through the network as one batch.

    Returns:
        partner (2, ..., 64): the right hand seen from the left, the left seen from the right; anchor (2, ..., 64).
        Half-precision hands are computed with in float32.

    Raises:
        ValueError: the hands are not on the prior's device.
    """
    if hands.device != prior.device:
        raise ValueError(
            f"the hands are on {hands.device} but the prior is on {prior.device}; use prior.to({str(hands.device)!r})"
        )
    hands = hands.to(torch.promote_types(hands.dtype, torch.float32))
    models = prior.hands if hands.hands is None else hands.hands
    anchor_l, partner_r, _ = to_canonical(hands, models, "left")
    anchor_r, partner_l, _ = to_canonical(hands, models, "right")
    normalizer = prior.normalizer
    return (
        normalizer.partner(torch.stack((partner_r, partner_l))),
        normalizer.anchor(torch.stack((anchor_l, anchor_r))),
    )


def _place(hand: HandParams, model: HandModel) -> tuple[Tensor, Tensor]:
    """Global rotation (..., 3, 3) and middle-MCP joint (..., 3); the rotation pivots about the wrist joint."""
    rest = model.rest_joints(hand.betas)
    wrist, middle = rest[..., 0, :], rest[..., _MIDDLE_MCP, :]
    rotation = axis_angle_to_matrix(hand.global_orient)
    return rotation, (rotation @ (middle - wrist)[..., None]).squeeze(-1) + wrist + hand.transl


def _hand(hand_pose: Tensor, betas: Tensor, rotation: Tensor, middle_mcp: Tensor, model: HandModel) -> HandParams:
    """The hand with this global rotation whose middle-MCP joint is there: inverse of `_place`."""
    rest = model.rest_joints(betas)
    wrist, middle = rest[..., 0, :], rest[..., _MIDDLE_MCP, :]
    transl = middle_mcp - wrist - (rotation @ (middle - wrist)[..., None]).squeeze(-1)
    return HandParams(matrix_to_axis_angle(rotation), hand_pose, betas, transl)


def _is_right(side: str, name: str) -> bool:
    if side not in ("left", "right"):
        raise ValueError(f"{name} must be 'left' or 'right', got {side!r}")
    return side == "right"


def _full_precision(like: Tensor) -> torch.autocast:
    """Autocast off: products in half precision would move hands by millimetres."""
    return torch.autocast(like.device.type, enabled=False)


def _mirror_matrix(rotation: Tensor) -> Tensor:
    """Gamma R Gamma for rotations (..., 3, 3)."""
    sign = rotation.new_tensor((-1.0, 1.0, 1.0))
    return rotation * sign[:, None] * sign


class Normalizer(nn.Module):
    """Vectors in units of the training set's standard deviation (not variance), centred.

    The anchor's constant last nine entries become zeros.

    Args:
        mean: (64,) of partner vectors in right-hand form.
        std: (64,), positive.

    Raises:
        ValueError: a shape is wrong or a standard deviation is not positive and finite.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if mean.shape != (SIZE,) or std.shape != (SIZE,):
            raise ValueError(f"mean and std must have shape ({SIZE},), got {tuple(mean.shape)}, {tuple(std.shape)}")
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError("mean and std must be finite and std positive; fit them with Normalizer.fit")
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    @classmethod
    def fit(cls, partner: Tensor, floor: float = 0.05) -> Normalizer:
        """Statistics of partner vectors (N, 64).

        Args:
            partner: vectors in metres and radians, of both anchors (so that both hands are in them).
            floor: smallest standard deviation of the angular and shape entries. A joint that hardly moves in the
                training set must not become infinitely stiff; translations keep their own.

        Raises:
            ValueError: there are fewer than two vectors, or they are no vectors.
        """
        if partner.ndim != 2 or partner.shape[1] != SIZE or len(partner) < 2:
            raise ValueError(f"partner must have shape (N, {SIZE}) with N >= 2, got {tuple(partner.shape)}")
        std, mean = torch.std_mean(partner.double(), 0)
        return cls.of_statistics(mean, std, floor, partner.dtype)

    @classmethod
    def of_statistics(
        cls, mean: Tensor, std: Tensor, floor: float = 0.05, dtype: torch.dtype = torch.float32
    ) -> Normalizer:
        """`fit` for statistics that were gathered elsewhere.

        Args:
            mean: (64,) of partner vectors.
            std: (64,), the square root of the variance with divisor N - 1.
            floor: see `fit`.
            dtype: of the result.
        """
        std = std.clone()
        angular = slice(0, SLICES["transl"].start)
        std[angular] = std[angular].clamp_min(floor)
        return cls(mean.to(dtype), std.clamp_min(1e-6).to(dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalizer:
        # A prior in half precision keeps full statistics; rounding them would move every hand by a millimetre.
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        if self.mean.dtype in (torch.float16, torch.bfloat16):
            self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    def partner(self, vector: Tensor) -> Tensor:
        """Normalise partner vectors (..., 64)."""
        return (vector - self.mean.to(vector)) / self.std.to(vector)

    def anchor(self, vector: Tensor) -> Tensor:
        """Normalise anchor vectors (..., 64); the last nine entries come out as zero."""
        own = SLICES["own"]
        return self.as_anchor((vector[..., own] - self.mean.to(vector)[own]) / self.std.to(vector)[own])

    def as_anchor(self, own: Tensor) -> Tensor:
        """A normalised anchor (..., 64) from a normalised own part (..., 55)."""
        return torch.cat((own, own.new_zeros(*own.shape[:-1], SIZE - SLICES["own"].stop)), -1)

    def partner_inverse(self, vector: Tensor) -> Tensor:
        """Back to metres and radians."""
        return vector * self.std.to(vector) + self.mean.to(vector)

    def anchor_inverse(self, vector: Tensor) -> Tensor:
        """Back to metres and radians, with identity and zero in the last nine entries."""
        own = SLICES["own"]
        return as_anchor(vector[..., own] * self.std.to(vector)[own] + self.mean.to(vector)[own])
