"""Eq. 9 of the paper: the prior as a frozen critic in any training or fitting loop,

    L_reg = || S(D_phi, x_l, x_r) - (x_l, x_r) ||,

where S noises the current pair once to a level sigma and denoises it once, the right hand given the left and the
left given the right. D_phi and the noised input are detached; the gradient reaches both hands' parameters through
the residual alone, relative rotation and translation included.

With the squared norm and the weight alpha_bar / (1 - alpha_bar), residuals are measured in units of the noise that
the denoiser had to remove, and the loss's GRADIENT is on the scale of a negative log-likelihood's: add it with weight 1
to a task loss on that scale, and with your own factor to any other. (Its value is not that likelihood: the target is
detached.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from .canonical import SLICES, to_canonical, without_place
from .params import HandLike, HandParams, TwoHands, check_same_place
from .plausibility import log_residuals, placement_gate
from .schedule import add_noise, check_sigma, snr

if TYPE_CHECKING:
    from .hands import HandPair
    from .prior import TwoHandPrior

__all__ = ["DEFAULT_GROUP_WEIGHTS", "DEFAULT_SIGMA", "SDSTerms", "canonical_pair", "sds_loss", "sds_terms"]

#: u = 0.3 of the cosine schedule.
DEFAULT_SIGMA = 0.454
#: The fingers may be pulled; the placement of a good estimate is mostly better than the prior's guess of it.
DEFAULT_GROUP_WEIGHTS: Mapping[str, float] = {"hand_pose": 0.5, "betas": 0.5, "rot6d": 0.1, "transl": 0.1}

Reduction = Literal["mean", "sum", "none"]


class SDSTerms(NamedTuple):
    """What `sds_loss` is made of. Index 0 of the first axis: the right hand given the left; 1: the reverse.

    Attributes:
        residual: (2, ..., 64) current minus denoised vector, normalised; carries the gradient.
        estimate: (2, ..., 64) denoised vectors, normalised, detached.
        sigma: (...) the level used.
        gate: (...) trust in the placement, in [0, 1].
        present: (2, ...) whether the denoised hand exists.
        paired: (...) whether both hands exist.
    """

    residual: Tensor
    estimate: Tensor
    sigma: Tensor
    gate: Tensor
    present: Tensor
    paired: Tensor


def sds_loss(
    prior: TwoHandPrior,
    left: HandLike,
    right: HandLike,
    *,
    sigma: float | Tensor = DEFAULT_SIGMA,
    weight: Tensor | float | None = None,
    left_valid: Tensor | None = None,
    right_valid: Tensor | None = None,
    group_weights: Mapping[str, float] | None = None,
    gate: bool | Tensor | None = None,
    squared: bool = True,
    cfg_scale: float = 0.0,
    num_draws: int = 1,
    reduction: Reduction = "mean",
    generator: torch.Generator | None = None,
    hands: HandPair | None = None,
) -> Tensor:
    """Pull a pair of hands towards what two hands do (Eq. 9).

    Invariant to a rigid motion of the pair and to mirroring it with exchanged hands.

    Args:
        prior: from `load_prior`; frozen, whatever its parameters' requires_grad says.
        left: HandParams or a mapping with smplx's names, any batch shape (...), metres and radians, absolute
            hand_pose. See `HandParams.coerce`.
        right: as `left`.
        sigma: noise level in (0, 1), one for all or a tensor (...). Lower for good estimates, higher for poor ones.
        weight: factor of each pair, a number or a tensor (...); its uncertainty belongs here.
        left_valid: (...) bool, False where there is no left hand. The other hand is then held to the single-hand
            prior; the absent one's numbers are not read (they may be NaN) and get no gradient.
        right_valid: as `left_valid`.
        group_weights: of `hand_pose`, `betas`, `rot6d` (relative rotation), `transl` (relative translation); what is
            left out keeps its default.
        gate: leave the placement of pairs alone that the prior finds implausible (hands far apart, say). Default: when
            the prior is calibrated. It costs some seven times the step itself; a tensor (...) in [0, 1], such as
            `prior.trust(hands)` made once for a whole fit, costs nothing.
        squared: False gives the paper's unsquared norm.
        cfg_scale: classifier-free guidance of the estimate, Eq. 4.
        num_draws: noises to average over.
        reduction: over pairs: "mean" (0 for an empty batch), "sum" or "none".
        generator: of the noise, on the hands' device.
        hands: the hand models the parameters belong to. Default: those of the prior.

    Returns:
        A scalar, or (...) with reduction="none"; in the hands' type.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which and what to do.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    factors = _factors(group_weights)
    pair, present = _pair(left, right, left_valid, right_valid, hands)
    terms = sds_terms(
        prior, pair, sigma=sigma, present=present, gate=gate, cfg_scale=cfg_scale, num_draws=num_draws,
        generator=generator,
    )  # fmt: skip
    residual = terms.residual
    scale = residual.new_tensor(factors)
    own = SLICES["own"].stop
    placement = (terms.paired * terms.gate)[None, ..., None] * scale[own:]
    batch = residual.shape[:-1]
    importance = torch.cat((scale[:own].expand(*batch, -1), placement.expand(*batch, -1)), -1)
    importance = importance * (snr(terms.sigma)[None] * terms.present)[..., None]
    square = (importance * residual.square()).sum(-1)
    if not squared:
        # The norm's gradient is 0/0 where the residual is zero.
        zero = square == 0
        square = torch.where(zero, torch.zeros_like(square), torch.where(zero, 1.0, square).sqrt())
    loss = square.sum(0)
    if weight is not None:
        loss = loss * _per_pair("weight", weight, loss)
    if reduction != "none":
        loss = loss.sum() / (max(loss.numel(), 1) if reduction == "mean" else 1)
    return loss.to(pair.dtype)


def sds_terms(
    prior: TwoHandPrior,
    hands: TwoHands,
    *,
    sigma: float | Tensor = DEFAULT_SIGMA,
    present: Tensor | None = None,
    gate: bool | Tensor | None = None,
    cfg_scale: float = 0.0,
    num_draws: int = 1,
    generator: torch.Generator | None = None,
) -> SDSTerms:
    """One forward-reverse step of both hands, with everything that `sds_loss` weighs.

    Args:
        prior: from `load_prior`.
        hands: pairs of any batch shape (...).
        sigma: level, a number or (...).
        present: (2, ...) bool: whether the right, the left hand exists.
        gate: see `sds_loss`.
        cfg_scale: see `sds_loss`.
        num_draws: noises; the estimate is their mean.
        generator: of the noise.

    Returns:
        The terms.

    Raises:
        ValueError: sigma or num_draws is out of range; the hands are not where the prior is.
    """
    check_sigma(sigma)
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    partner, anchor = canonical_pair(prior, hands)
    if present is None:
        present = torch.ones(partner.shape[:-1], dtype=torch.bool, device=partner.device)
    paired = present.all(0)
    # A hand alone has no placement. A network that has not learned such hands is given the mean one, or the estimate
    # of the fingers would depend on where it happens to be.
    partner = without_place(partner, paired)
    level = _per_pair("sigma", sigma, partner[0, ..., 0]).to(partner)
    noise = torch.randn(num_draws, *partner.shape[1:], generator=generator, device=partner.device, dtype=partner.dtype)
    with torch.no_grad():
        x = partner.detach()
        estimate = prior.estimate(
            # The same noise in both directions: mirroring the pair with exchanged hands changes nothing.
            add_noise(x, noise[:, None], level),
            level.expand(num_draws, *x.shape[:-1]),
            anchor.detach().expand(num_draws, *x.shape),
            paired.expand(num_draws, *x.shape[:-1]),
            paired.expand(num_draws, *x.shape[:-1]),
            cfg_scale=cfg_scale,
        ).mean(0)
        if gate is None:
            gate = prior.calibration is not None
        if isinstance(gate, Tensor):
            trust = _per_pair("gate", gate, level).to(level)
        elif gate:
            trust = placement_gate(prior.require_calibration(), log_residuals(prior, x, anchor.detach())).to(x)
        else:
            trust = torch.ones_like(level)
    return SDSTerms(partner - estimate, estimate, level, trust, present, paired)


def canonical_pair(prior: TwoHandPrior, hands: TwoHands) -> tuple[Tensor, Tensor]:
    """Normalised vectors of both directions.

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


def _factors(group_weights: Mapping[str, float] | None) -> list[float]:
    chosen = {**DEFAULT_GROUP_WEIGHTS, **(group_weights or {})}
    unknown = set(chosen) - set(DEFAULT_GROUP_WEIGHTS)
    if unknown:
        raise ValueError(f"group_weights has {sorted(unknown)}; the groups are {', '.join(DEFAULT_GROUP_WEIGHTS)}")
    for name, value in chosen.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"group_weights[{name!r}] must be finite and not negative, got {value}")
    return [chosen[name] for name in DEFAULT_GROUP_WEIGHTS for _ in range(SLICES[name].stop - SLICES[name].start)]


def _pair(
    left: HandLike,
    right: HandLike,
    left_valid: Tensor | None,
    right_valid: Tensor | None,
    models: HandPair | None,
) -> tuple[TwoHands, Tensor]:
    """The pair with absent hands replaced by zeros, and (2, ...) whether the right, the left hand exists."""
    left = HandParams.coerce(left, "left", check_finite=None if left_valid is None else False)
    right = HandParams.coerce(right, "right", check_finite=None if right_valid is None else False)
    if left.batch_shape != right.batch_shape:
        raise ValueError(
            f"left and right must have one batch shape, got {tuple(left.batch_shape)} and {tuple(right.batch_shape)}"
        )
    check_same_place("right", right.global_orient, "left", left.global_orient)
    valid = []
    hands = []
    for name, hand, mask in (("left", left, left_valid), ("right", right, right_valid)):
        if mask is None:
            mask = torch.ones(hand.batch_shape, dtype=torch.bool, device=hand.device)
        else:
            wanted = f"{name}_valid must be a bool tensor of shape {tuple(hand.batch_shape)} on {hand.device}"
            if not isinstance(mask, Tensor):
                raise TypeError(f"{wanted}, got {type(mask).__name__}")
            if mask.dtype != torch.bool or mask.shape != hand.batch_shape or mask.device != hand.device:
                raise ValueError(f"{wanted}, got {mask.dtype} {tuple(mask.shape)} on {mask.device}")
            hand = HandParams.coerce(_zero_where(hand, ~mask), name)
        hands.append(hand)
        valid.append(mask)
    return TwoHands(hands[0], hands[1], models), torch.stack((valid[1], valid[0]))


def _zero_where(hand: HandParams, absent: Tensor) -> HandParams:
    return hand.map(lambda value: torch.where(absent[..., None], torch.zeros_like(value), value))


def _per_pair(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=like.dtype)
    if value.shape != like.shape and value.ndim != 0:
        raise ValueError(f"{name} must be a number or a tensor of shape {tuple(like.shape)}, got {tuple(value.shape)}")
    return value.to(like.device).expand(like.shape)
