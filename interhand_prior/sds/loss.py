"""Eq. 9 of the paper: the prior as a frozen critic in any training or fitting loop,

    L_reg = || S(D_phi, x_l, x_r) - (x_l, x_r) ||,

where S noises the current pair once to a level sigma and denoises it once, the right hand given the left and the
left given the right (terms.py). D_phi and the noised input are detached; the gradient reaches both hands'
parameters through the residual r alone, relative rotation and translation included. Squared, a pair's loss is

    sum over directions d and entries i of  w_i  alpha_bar / (1 - alpha_bar)  r_di^2,      w_i: the group's weight.

The scale. For a Gaussian prior N(mu, s^2) the mean of r is sigma^2 (x - mu) / (alpha_bar s^2 + sigma^2), so the
GRADIENT of the loss is 2 w (x - mu) / (s^2 + sigma^2 / alpha_bar): with w = 1/2 that of the negative log-likelihood of
a prior widened by the noise. (The loss's value is not that likelihood: the target is detached.) Fingers and shape have
w = 1/2. The relative placement is seen by both directions, so w = 1/4 would be its likelihood; the default 0.1 trusts
a good estimate more. Hence ONE RULE for the weight beside a task loss, both summed (or both averaged) over pairs:

    a negative log-likelihood, squared errors over twice the squared standard deviations:    weight 1
    c mean(e^2) over d numbers of a pair, typically wrong by e = s in a good estimate:       weight 2 c s^2 / d

for such a task loss is 2 c s^2 / d times the likelihood's sum(e^2) / (2 s^2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ..canonical import SLICES, Normalizer
from ..params import HandLike, HandParams, TwoHands, check_same_place
from .levels import DEFAULT_SIGMA, Anneal, Level, per_pair
from .terms import AnchorSide, SDSTerms, denoised_pair, sds_terms
from .uncertainty import Uncertainty

if TYPE_CHECKING:
    from ..hands import HandPair
    from ..prior import TwoHandPrior

__all__ = [
    "DEFAULT_GROUP_WEIGHTS",
    "DEFAULT_SIGMA",
    "Anneal",
    "SDSInfo",
    "SDSTerms",
    "sds_loss",
    "sds_terms",
]

#: The fingers may be pulled; the placement of a good estimate is mostly better than the prior's guess of it.
DEFAULT_GROUP_WEIGHTS: Mapping[str, float] = {"hand_pose": 0.5, "betas": 0.5, "rot6d": 0.1, "transl": 0.1}

Reduction = Literal["mean", "sum", "none"]
Space = Literal["normalised", "metric"]


class SDSInfo(NamedTuple):
    """What `sds_loss` saw, detached.

    Attributes:
        hands: the denoised pairs in the hands' own frame and type, each hand from its own direction; see
            `sds_terms.denoised_pair`.
        sigma: (...) the level used.
        gate: (...) trust in the placement, in [0, 1].
        residuals: of each group (`hand_pose`, `betas`, `rot6d`, `transl`) the root mean square (...) over its entries
            and the hands that are there, 0 without any: in standard deviations of the training set, with
            space="metric" in radians, units of betas, units of rot6d, metres.
    """

    hands: TwoHands
    sigma: Tensor
    gate: Tensor
    residuals: dict[str, Tensor]


# fmt: off
@overload
def sds_loss(
    prior: TwoHandPrior, left: HandLike, right: HandLike, *, sigma: Level | None = ..., noise: Tensor | None = ...,
    uncertainty: Uncertainty | Literal["measured"] | None = ..., weight: Tensor | float | None = ...,
    left_valid: Tensor | None = ..., right_valid: Tensor | None = ..., left_confidence: Tensor | None = ...,
    right_confidence: Tensor | None = ..., group_weights: Mapping[str, float] | None = ...,
    gate: bool | Tensor | None = ..., anchor: AnchorSide = ..., space: Space = ..., squared: bool = ...,
    cfg_scale: float = ..., num_draws: int = ..., antithetic: bool = ..., clip: float | None = ...,
    reduction: Reduction = ..., generator: torch.Generator | None = ..., hands: HandPair | None = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...
@overload
def sds_loss(
    prior: TwoHandPrior, left: HandLike, right: HandLike, *, return_info: Literal[True], sigma: Level | None = ...,
    uncertainty: Uncertainty | Literal["measured"] | None = ..., weight: Tensor | float | None = ...,
    left_valid: Tensor | None = ..., right_valid: Tensor | None = ..., left_confidence: Tensor | None = ...,
    right_confidence: Tensor | None = ..., group_weights: Mapping[str, float] | None = ...,
    gate: bool | Tensor | None = ..., anchor: AnchorSide = ..., space: Space = ..., squared: bool = ...,
    cfg_scale: float = ..., num_draws: int = ..., antithetic: bool = ..., clip: float | None = ...,
    reduction: Reduction = ..., noise: Tensor | None = ..., generator: torch.Generator | None = ...,
    hands: HandPair | None = ...,
) -> tuple[Tensor, SDSInfo]: ...
# fmt: on
def sds_loss(
    prior: TwoHandPrior,
    left: HandLike,
    right: HandLike,
    *,
    sigma: Level | None = None,
    uncertainty: Uncertainty | Literal["measured"] | None = None,
    weight: Tensor | float | None = None,
    left_valid: Tensor | None = None,
    right_valid: Tensor | None = None,
    left_confidence: Tensor | None = None,
    right_confidence: Tensor | None = None,
    group_weights: Mapping[str, float] | None = None,
    gate: bool | Tensor | None = None,
    anchor: AnchorSide = "both",
    space: Space = "normalised",
    squared: bool = True,
    cfg_scale: float = 0.0,
    num_draws: int = 1,
    antithetic: bool = False,
    clip: float | None = None,
    reduction: Reduction = "mean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    hands: HandPair | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, SDSInfo]:
    """Pull a pair of hands towards what two hands do (Eq. 9).

    Invariant to a rigid motion of the pair and to mirroring it with exchanged hands. Any batch shape (...) from no
    pair to thousands; runs under autocast (the network alone follows it), `torch.compile(fullgraph=True)`, DDP and
    checkpointing. A compiled graph and a recomputed checkpoint cannot hold a generator: leave it out there
    (`torch.manual_seed` governs), or pass `noise`.

    Args:
        prior: from `load_prior`; frozen, whatever its parameters' requires_grad says.
        left: HandParams or a mapping with smplx's names, any batch shape (...), metres and radians, absolute
            hand_pose. See `HandParams.coerce`.
        right: as `left`.
        sigma: noise level in (0, 1): one for all, a tensor (...), or a range (low, high) from which each pair's is
            drawn (`levels.draw_level`). Lower for good estimates, higher for poor ones; `Anneal(0.6, 0.15, 100)(step)`
            lowers it during a fit. Default: 0.454.
        uncertainty: in the place of `sigma`, do no harm: the standard deviations of the estimate's errors, or
            "measured" by the prior itself (which costs as much as the gate), set the level and the weight of each pair.
        weight: factor of each pair, a number or a tensor (...).
        left_valid: (...) bool, False where there is no left hand. The other hand is then held to the single-hand
            prior; the absent one's numbers are not read (they may be NaN) and get no gradient.
        right_valid: as `left_valid`.
        left_confidence: (..., 15) in [0, 1], how sure each finger joint of the left hand is, in MANO's order: the
            squared residual of its three angles is multiplied by 1 - confidence. No gradient flows into it.
        right_confidence: as `left_confidence`.
        group_weights: of `hand_pose`, `betas`, `rot6d` (relative rotation), `transl` (relative translation); what is
            left out keeps its default. With `uncertainty` they multiply what it sets and are 1 by default.
        gate: leave the placement of pairs alone that the prior finds implausible (hands far apart, say). Default: when
            the prior is calibrated. It costs some seven times the step itself; a tensor (...) in [0, 1], such as
            `prior.trust(hands)` made once for a whole fit, costs nothing.
        anchor: "left" denoises the right hand alone, given the left one, at half the cost; "right" the reverse. The
            placement still pulls both hands; detach the given one to keep it still.
        space: "metric" measures residuals in radians, units of betas and rot6d, and metres, instead of each entry's
            standard deviation: entries that vary much count more. Every group is divided by its mean variance, so
            weights keep their size.
        squared: False gives the paper's unsquared norm.
        cfg_scale: classifier-free guidance of the estimate, Eq. 4.
        num_draws: noises to average over, one batch for the network.
        antithetic: noises in opposite pairs, of which an even `num_draws` has half as many: what is odd in the noise
            cancels.
        clip: largest norm of the gradient with respect to the normalised vector of a pair and direction, before
            `weight` and the reduction. What is larger is scaled down to it, value and gradient alike.
        reduction: over pairs: "mean" (0 for an empty batch), "sum" or "none".
        noise: standard normal, used instead of drawing it: broadcasts to (num_draws, ..., 64), with `antithetic` to
            half as many.
        generator: of the noise and of a range's levels, on the hands' device.
        hands: the hand models the parameters belong to. Default: those of the prior.
        return_info: also return what the loss saw.

    Returns:
        A scalar, or (...) with reduction="none"; in the hands' type. With return_info a pair: this and SDSInfo.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which and what to do.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if space not in ("normalised", "metric"):
        raise ValueError(f"space must be 'normalised' or 'metric', got {space!r}")
    if clip is not None and not 0 < clip < float("inf"):
        raise ValueError(f"clip must be positive and finite, or None for no clipping, got {clip}")
    angular = {
        "space='metric'": space == "metric",
        "left_confidence": left_confidence is not None,
        "right_confidence": right_confidence is not None,
        "uncertainty": uncertainty is not None,
    }
    if any(angular.values()) and type(prior.normalizer) is not Normalizer:
        names = ", ".join(name for name, wanted in angular.items() if wanted)
        raise ValueError(f"{names}: not with this prior, whose vectors are not joint angles one by one; leave it out")
    groups = _group_weights(group_weights, DEFAULT_GROUP_WEIGHTS if uncertainty is None else _ONES)
    pair = _pair(left, right, left_valid, right_valid, hands)
    doubt = _doubt(pair, left_confidence, right_confidence, anchor)
    terms = sds_terms(
        prior, pair, sigma=sigma, uncertainty=uncertainty, gate=gate, anchor=anchor, cfg_scale=cfg_scale,
        num_draws=num_draws, antithetic=antithetic, noise=noise, generator=generator,
    )  # fmt: skip
    metric = prior.normalizer.std.to(terms.residual) if space == "metric" else None
    each = _pulls(terms, _importance(terms, groups, doubt, metric), squared, clip)
    loss = each.sum(0)
    if weight is not None:
        loss = loss * per_pair("weight", weight, loss)
    if reduction != "none":
        loss = loss.sum() / (max(loss.numel(), 1) if reduction == "mean" else 1)
    loss = loss.to(pair.dtype)
    if not return_info:
        return loss
    denoised = denoised_pair(prior, pair, terms.estimate, anchor)
    return loss, SDSInfo(denoised, terms.sigma.detach(), terms.gate, _group_residuals(terms, metric))


_ONES: Mapping[str, float] = dict.fromkeys(DEFAULT_GROUP_WEIGHTS, 1.0)


def _importance(terms: SDSTerms, groups: Mapping[str, float], doubt: Tensor | None, metric: Tensor | None) -> Tensor:
    """What every squared residual (D, ..., 64) is multiplied by.

    Args:
        terms: of the pairs.
        groups: the groups' weights.
        doubt: (D, ..., 45) one minus confidence; None: 1.
        metric: (64,) standard deviations of the entries for metric residuals.
    """
    residual = terms.residual
    # Filled on the device: a list would have to be copied there.
    scale = torch.cat([residual.new_full((_width(name),), groups[name]) for name in groups])
    if metric is not None:
        square = metric.square()
        scale = scale * torch.cat([square[SLICES[name]] / square[SLICES[name]].mean() for name in groups])
    batch = residual.shape[:-1]
    own, relative, fingers = SLICES["own"], SLICES["relative"], SLICES["hand_pose"]
    # Where a hand is missing, gate and strength may be anything, NaN too.
    trust = torch.where(terms.paired, terms.gate, 0)
    parts = [scale[own].expand(*batch, -1), (trust[None, ..., None] * scale[relative]).expand(*batch, -1)]
    if doubt is not None:
        parts[:1] = [scale[fingers] * doubt, scale[SLICES["betas"]].expand(*batch, -1)]
    return torch.cat(parts, -1) * torch.where(terms.present[..., None], terms.strength, 0)


def _pulls(terms: SDSTerms, importance: Tensor, squared: bool, clip: float | None) -> Tensor:
    """The loss of each direction and pair, (D, ...)."""
    value = (importance * terms.residual.square()).sum(-1)
    zero = value == 0
    if not squared:
        # The norm's gradient is 0/0 where the residual is zero.
        value = torch.where(zero, torch.zeros_like(value), torch.where(zero, 1.0, value).sqrt())
    if clip is None:
        return value
    # A constant factor on the loss clips the gradient without a hook, which torch.compile could not follow.
    steep = torch.linalg.vector_norm((importance * terms.residual).detach(), dim=-1)
    steep = 2 * steep if squared else steep / torch.where(zero, 1.0, value.detach())
    return value * (clip / steep).clamp_max(1)


def _group_residuals(terms: SDSTerms, metric: Tensor | None) -> dict[str, Tensor]:
    """Root mean square (...) of each group's residual over its entries and the hands that are there."""
    residual = terms.residual.detach() if metric is None else terms.residual.detach() * metric
    result = {}
    for name in DEFAULT_GROUP_WEIGHTS:
        entries = SLICES[name]
        there = terms.present if entries.stop <= SLICES["own"].stop else terms.present & terms.paired
        square = torch.where(there, residual[..., entries].square().mean(-1), 0).sum(0)
        result[name] = (square / there.sum(0).clamp_min(1)).sqrt()
    return result


def _group_weights(group_weights: Mapping[str, float] | None, default: Mapping[str, float]) -> dict[str, float]:
    chosen = {**default, **(group_weights or {})}
    unknown = set(chosen) - set(default)
    if unknown:
        raise ValueError(f"group_weights has {sorted(unknown)}; the groups are {', '.join(default)}")
    for name, value in chosen.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"group_weights[{name!r}] must be finite and not negative, got {value}")
    return chosen


def _pair(
    left: HandLike,
    right: HandLike,
    left_valid: Tensor | None,
    right_valid: Tensor | None,
    models: HandPair | None,
) -> TwoHands:
    """The pair, with absent hands replaced by zeros."""
    left = HandParams.coerce(left, "left", check_finite=None if left_valid is None else False)
    right = HandParams.coerce(right, "right", check_finite=None if right_valid is None else False)
    if left.batch_shape != right.batch_shape:
        raise ValueError(
            f"left and right must have one batch shape, got {tuple(left.batch_shape)} and {tuple(right.batch_shape)}"
        )
    check_same_place("right", right.global_orient, "left", left.global_orient)
    hands = []
    for name, hand, mask in (("left", left, left_valid), ("right", right, right_valid)):
        if mask is not None:
            wanted = f"{name}_valid must be a bool tensor of shape {tuple(hand.batch_shape)} on {hand.device}"
            if not isinstance(mask, Tensor):
                raise TypeError(f"{wanted}, got {type(mask).__name__}")
            if mask.dtype != torch.bool or mask.shape != hand.batch_shape or mask.device != hand.device:
                raise ValueError(f"{wanted}, got {mask.dtype} {tuple(mask.shape)} on {mask.device}")
            hand = HandParams.coerce(_zero_where(hand, ~mask), name)
        hands.append(hand)
    return TwoHands(hands[0], hands[1], models, left_valid=left_valid, right_valid=right_valid)


def _zero_where(hand: HandParams, absent: Tensor) -> HandParams:
    return hand.map(lambda value: torch.where(absent[..., None], torch.zeros_like(value), value))


def _doubt(pair: TwoHands, left: Tensor | None, right: Tensor | None, anchor: AnchorSide) -> Tensor | None:
    """One minus confidence, for each angle of the hand that each direction denoises: (D, ..., 45), or None for 1."""
    if left is None and right is None:
        return None
    result = []
    # In the directions' order: the right hand is denoised first, given the left.
    for side, other, confidence, valid in zip(
        ("right", "left"), ("left", "right"), (right, left), pair.valid[::-1], strict=True
    ):
        doubt = _checked_doubt(f"{side}_confidence", confidence, pair, valid)
        if anchor in ("both", other):
            result.append(doubt.repeat_interleave(3, -1))
    return torch.stack(result)


def _checked_doubt(name: str, confidence: Tensor | None, pair: TwoHands, valid: Tensor) -> Tensor:
    shape = (*pair.batch_shape, 15)
    dtype = torch.promote_types(pair.dtype, torch.float32)
    if confidence is None:
        return torch.ones(shape, dtype=dtype, device=pair.device)
    wanted = f"{name} must be a floating-point tensor of shape {tuple(shape)} on {pair.device}"
    if not isinstance(confidence, Tensor):
        raise TypeError(f"{wanted}, got {type(confidence).__name__}")
    if not confidence.is_floating_point() or confidence.shape != shape or confidence.device != pair.device:
        raise ValueError(f"{wanted}, got {confidence.dtype} {tuple(confidence.shape)} on {confidence.device}")
    # Nobody has looked for an absent hand's joints: their confidence may be NaN.
    doubt = torch.where(valid[..., None], 1 - confidence.detach().to(dtype), 1)
    if doubt.device.type == "cpu" and not torch.compiler.is_compiling() and not ((doubt >= 0) & (doubt <= 1)).all():
        raise ValueError(f"{name} must be in [0, 1]")
    return doubt


def _width(name: str) -> int:
    return SLICES[name].stop - SLICES[name].start
