"""S of Eq. 9: one forward-reverse step of both hands, each given the other,

    S(D_phi, x) = mean over k of D_phi(sqrt(alpha_bar) x + sigma eps_k, anchor, sigma),

without gradients; what is left of x - S is the residual that `sds_loss` weighs. Both directions see the same noise, so
mirroring a pair with exchanged hands changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..canonical import SLICES, Side, canonical_pair, from_canonical, to_canonical, without_place
from ..params import HandParams, TwoHands
from ..plausibility import log_residuals, placement_gate
from ..schedule import add_noise, snr
from .levels import DEFAULT_SIGMA, Level, check_level, draw_level, per_pair
from .uncertainty import Uncertainty, measured, placement_trust, pull

if TYPE_CHECKING:
    from ..prior import TwoHandPrior

__all__ = ["AnchorSide", "SDSTerms", "denoised_pair", "sds_terms"]

AnchorSide = Literal["both", "left", "right"]

#: Which directions are looked at. Index 0: the right hand given the left; 1: the reverse.
_DIRECTIONS: dict[str, slice] = {"both": slice(0, 2), "left": slice(0, 1), "right": slice(1, 2)}


class SDSTerms(NamedTuple):
    """What `sds_loss` is made of. The first axis has the D directions: the right hand given the left, the reverse.

    Attributes:
        residual: (D, ..., 64) current minus denoised vector, normalised; carries the gradient.
        estimate: (D, ..., 64) denoised vectors, normalised, detached.
        sigma: (...) the level used.
        strength: what the squared residual is multiplied by, a shape that broadcasts to its: alpha_bar /
            (1 - alpha_bar), or what the uncertainty says.
        gate: (...) trust in the placement, in [0, 1].
        present: (D, ...) whether the denoised hand exists.
        paired: (...) whether both hands exist.
    """

    residual: Tensor
    estimate: Tensor
    sigma: Tensor
    strength: Tensor
    gate: Tensor
    present: Tensor
    paired: Tensor


def sds_terms(
    prior: TwoHandPrior,
    hands: TwoHands,
    *,
    sigma: Level | None = None,
    uncertainty: Uncertainty | Literal["measured"] | None = None,
    gate: bool | Tensor | None = None,
    anchor: AnchorSide = "both",
    cfg_scale: float = 0.0,
    num_draws: int = 1,
    antithetic: bool = False,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SDSTerms:
    """One forward-reverse step, with everything that `sds_loss` weighs; for the options see there.

    Args:
        prior: from `load_prior`.
        hands: pairs of any batch shape (...); a hand that is not there (`hands.valid`) must hold finite numbers.
        sigma: level.
        uncertainty: of the hands, instead of a level.
        gate: of the placement.
        anchor: which hand is given.
        cfg_scale: classifier-free guidance.
        num_draws: noises; the estimate is the mean over them.
        antithetic: opposite noises.
        noise: instead of drawing it.
        generator: of levels and noise.

    Returns:
        The terms.

    Raises:
        ValueError: an option is out of range; the hands are not where the prior is.
    """
    drawn = _check(sigma, uncertainty, anchor, num_draws, antithetic, noise, generator)
    partner, anchors = canonical_pair(prior, hands)
    present = torch.stack(hands.valid[::-1])
    paired = present.all(0)
    # A hand alone has no placement. A network that has not learned such hands is given the mean one, or the estimate
    # of the fingers would depend on where it happens to be.
    partner = without_place(partner, paired)
    x, given = partner.detach(), anchors.detach()
    chosen = _DIRECTIONS[anchor]
    with torch.no_grad():
        known, trust = _trusted(prior, uncertainty, gate, x, given)
    if known is None:
        level = draw_level(DEFAULT_SIGMA if sigma is None else sigma, x[0, ..., 0], generator)
        strength = snr(level)[..., None]
    else:
        with torch.no_grad():
            orient = torch.stack((hands.left.global_orient, hands.right.global_orient)).to(x)
            level, strength = pull(known, prior.normalizer, x, orient)
        strength = strength[chosen]
    eps = _noise(noise, (drawn, *x.shape[1:]), x, generator)
    if antithetic:
        eps = torch.cat((eps, -eps))
    with torch.no_grad():
        batch = (num_draws, *x[chosen].shape[:-1])
        estimate = prior.estimate(
            add_noise(x[chosen], eps[:, None], level),
            level.expand(batch),
            given[chosen].expand(*batch, -1),
            paired.expand(batch),
            paired.expand(batch),
            cfg_scale=cfg_scale,
        ).mean(0)
    return SDSTerms(partner[chosen] - estimate, estimate, level, strength, trust, present[chosen], paired)


@torch.no_grad()
def denoised_pair(prior: TwoHandPrior, hands: TwoHands, estimate: Tensor, anchor: AnchorSide = "both") -> TwoHands:
    """Pairs in the hands' own frame, each hand where its direction's estimate puts it beside the given other one.

    Args:
        prior: whose estimate it is.
        hands: pairs of any batch shape (...) that were denoised; hands that are not there hold finite numbers.
        estimate: (D, ..., 64) normalised, as in `SDSTerms`.
        anchor: its directions; the given hand of a single one stays as it is.

    Returns:
        The pairs, in the hands' type. A hand alone keeps its orientation and its middle-MCP joint, for it has no
        placement that could be wrong; a hand that is not there is zeros.
    """
    given, hands = hands, hands.detach().to(torch.promote_types(hands.dtype, torch.float32))
    models = prior.hands if hands.hands is None else hands.hands
    paired = (hands.valid[0] & hands.valid[1])[..., None]
    own = torch.arange(estimate.shape[-1], device=estimate.device) < SLICES["own"].stop
    result: dict[str, HandParams] = {"left": hands.left, "right": hands.right}
    directions: tuple[tuple[Side, Side], ...] = (("right", "left"), ("left", "right"))
    for x0, (side, anchor_side) in zip(estimate, directions[_DIRECTIONS[anchor]], strict=True):
        vector, current, frame = to_canonical(hands, models, anchor_side)
        x0 = torch.where(paired | own, prior.normalizer.partner_inverse(x0).to(current), current)
        result[side] = getattr(from_canonical(vector, x0, models, frame, anchor_side), side)
    left = _zeros_without(result["left"], given.left_valid)
    right = _zeros_without(result["right"], given.right_valid)
    return replace(given, left=left, right=right).to(given.dtype)


def _zeros_without(hand: HandParams, valid: Tensor | None) -> HandParams:
    return hand if valid is None else hand.map(lambda value: value * valid[..., None])


def _check(
    sigma: Level | None,
    uncertainty: Uncertainty | str | None,
    anchor: str,
    num_draws: int,
    antithetic: bool,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> int:
    """Refuse wrong options before any work. Returns how many noises there are to draw."""
    if uncertainty is None:
        check_level(DEFAULT_SIGMA if sigma is None else sigma)
    elif sigma is not None:
        raise ValueError("uncertainty sets the level of each pair; leave out sigma")
    elif not (isinstance(uncertainty, Uncertainty) or uncertainty == "measured"):
        raise TypeError(f"uncertainty must be an Uncertainty, 'measured' or None, got {uncertainty!r}")
    if anchor not in _DIRECTIONS:
        raise ValueError(f"anchor must be 'both', 'left' or 'right', got {anchor!r}")
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    if antithetic and num_draws % 2:
        raise ValueError(f"antithetic noises come in opposite pairs: num_draws must be even, got {num_draws}")
    if noise is not None and generator is not None and not isinstance(sigma, (tuple, list)):
        raise ValueError("noise is given, so there is nothing for the generator to draw; leave one of them out")
    return num_draws // 2 if antithetic else num_draws


def _noise(noise: Tensor | None, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """The given noise in this shape (draws, ..., 64), or a drawn one."""
    if noise is None:
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
    wanted = f"noise must be a tensor on {like.device} that broadcasts to {shape}, (draws, ..., 64)"
    if not isinstance(noise, Tensor):
        raise TypeError(f"{wanted}, got {type(noise).__name__}")
    fits = noise.ndim <= len(shape) and all(a in (1, b) for a, b in zip(noise.shape[::-1], shape[::-1], strict=False))
    if not fits or noise.device != like.device:
        raise ValueError(f"{wanted}, got {tuple(noise.shape)} on {noise.device}")
    return noise.to(like).expand(shape)


def _trusted(
    prior: TwoHandPrior,
    uncertainty: Uncertainty | str | None,
    gate: bool | Tensor | None,
    partner: Tensor,
    anchor: Tensor,
) -> tuple[Uncertainty | None, Tensor]:
    """How uncertain pairs with vectors (2, ..., 64) are, None for what a level says; and the gate (...)."""
    like = partner[0, ..., 0]
    if gate is None:
        gate = prior.calibration is not None
    judged = not isinstance(gate, Tensor) and gate
    trust = per_pair("gate", gate, like).to(like) if isinstance(gate, Tensor) else torch.ones_like(like)
    known = None if isinstance(uncertainty, str) else uncertainty
    if judged or isinstance(uncertainty, str):
        calibration, residuals = prior.require_calibration(), log_residuals(prior, partner, anchor)
        if isinstance(uncertainty, str):
            known = measured(calibration, residuals)
        if judged and known is not None and calibration.noise_table is not None:
            trust = placement_trust(calibration, residuals, known)
        elif judged:
            trust = placement_gate(calibration, residuals)
    return known, trust.to(like)
