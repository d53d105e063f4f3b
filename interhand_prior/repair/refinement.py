"""Refining estimated pairs: the nearest plausible, collision-free ones, given how uncertain the estimate is.

With theta_0 the estimate and s its standard deviations, let x = (theta - theta_0) / s. Adam lowers

    1/2 |x|^2  +  L_reg(theta_0 + s x),                                                               (Eq. 9)

over a fixed number of steps, the noise level of Eq. 9 falling: the most probable pair under the prior and Gaussian
errors of the estimate. Halfway and at the end the hands are moved out of each other in the same x, down the gradient of
the penetration (Eq. 7-8), so that what is uncertain moves and what is known stays (`separation`). The first time
keeps the prior from settling on a tangle; the second time is the last word.

Good estimates (small s) stay; the prior's own gate leaves the placement of pairs alone that it has never seen.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..canonical import SIZE
from ..checked import present
from ..params import FIELDS, TwoHands
from ..sds import sds_loss
from ..sds.levels import Anneal
from .separation import joined, separate_pairs, split

if TYPE_CHECKING:
    from ..prior import TwoHandPrior

__all__ = ["refine"]

#: Levels of the first and of the last step, unless the caller says otherwise.
_SIGMA = (0.5, 0.15)
_LEARNING_RATE = 0.15
#: Separating steps, at most, halfway and at the end.
_HALFWAY, _AT_THE_END = 6, 20


def refine(
    prior: TwoHandPrior,
    hands: TwoHands,
    *,
    pose_std: float | Tensor = 0.2,
    rotation_std: float | Tensor = 0.1,
    translation_std: float | Tensor = 0.01,
    betas_std: float | Tensor = 0.5,
    penetration_scale: float = 1.0,
    steps: int = 30,
    seed: int = 0,
    **options: Any,
) -> TwoHands:
    """Pull estimated pairs towards plausible ones, and hands out of each other.

    A standard deviation is a number, or a tensor that broadcasts to the parameter: (3,) by axis, (..., 1) one for each
    pair, (..., 45) by entry. That of hand_pose may also be (..., 15), by joint in MANO's order.

    Args:
        prior: from `load_prior`.
        hands: (...) estimates; where a hand is missing the other one is held to the single-hand prior.
        pose_std: standard deviation of the estimate's hand_pose, radians.
        rotation_std: of its global_orient, radians.
        translation_std: of its transl, metres; depth is mostly the poorest.
        betas_std: of its betas.
        penetration_scale: 1 moves hands out of each other, less does so by shorter steps, 0 not at all. Shapes are
            left as they are: hands do not shrink to make room.
        steps: of Adam.
        seed: of the noise, which is the same for every pair: a pair's result does not depend on its batch.
        options: of `sds_loss`: sigma, weight, masks, group_weights, ... By default sigma falls from 0.5 to 0.15, and
            the gate is `prior.trust` of the estimate, where the prior is calibrated.

    Returns:
        Refined pairs, detached.

    Raises:
        TypeError, ValueError: a standard deviation is not positive and finite, or does not fit; `steps` or
            `penetration_scale` is out of range; anything that `sds_loss` refuses.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not (math.isfinite(penetration_scale) and penetration_scale >= 0):
        raise ValueError(f"penetration_scale must be finite and not negative, got {penetration_scale}")
    stds = {"global_orient": rotation_std, "hand_pose": pose_std, "betas": betas_std, "transl": translation_std}
    with torch.inference_mode(False), torch.enable_grad():
        # Half precision would lose the small steps.
        start = hands.detach().to(torch.promote_types(hands.dtype, torch.float32)).map(torch.clone)
        masks = {name: options.pop(name, getattr(start, name)) for name in ("left_valid", "right_valid")}
        start = replace(start, **masks)
        std = torch.cat([_deviation(name, value, start) for name, value in stds.items()], -1)[..., None, :]
        known, centre = present(start), joined(start)
        models = prior.hands if hands.hands is None else hands.hands
        every_step = {"hands": hands.hands, **masks, **_options(prior, known, steps, seed, options)}
        anneal, noise = every_step.pop("sigma"), every_step.pop("noise")

        x = torch.zeros_like(centre, requires_grad=True)
        optimizer = torch.optim.Adam([x], lr=_LEARNING_RATE, betas=(0.8, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            if step == steps // 2 and penetration_scale:
                with torch.no_grad():
                    x.copy_(separate_pairs(x.detach(), known, std, models, steps=_HALFWAY, scale=penetration_scale))
            sigma = anneal(step) if isinstance(anneal, Anneal) else anneal
            left, right = split(centre + std * x)
            optimizer.zero_grad(set_to_none=True)
            loss = sds_loss(prior, left, right, reduction="sum", sigma=sigma, noise=noise[step], **every_step)
            (loss + 0.5 * x.square().sum()).backward()
            optimizer.step()
            schedule.step()
        found = x.detach()
        if penetration_scale:
            found = separate_pairs(found, known, std, models, steps=_AT_THE_END, scale=penetration_scale)
        left, right = split(centre + std * found)
    return replace(hands.detach(), left=left.to(hands.dtype), right=right.to(hands.dtype))


def _options(prior: TwoHandPrior, known: TwoHands, steps: int, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """What `sds_loss` is told, `noise` being that of all steps (steps, draws, 1, ..., 64)."""
    sigma, gate = options.get("sigma"), options.get("gate")
    if sigma is None and options.get("uncertainty") is None:
        sigma = Anneal(*_SIGMA, steps=max(steps, 2))
    if gate is None:
        gate = prior.calibration is not None
    if gate is True:
        # At every step it would cost seven times the step itself.
        gate = prior.trust(replace(known, left_valid=None, right_valid=None))
    draws = options.get("num_draws", 1)
    if draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {draws}")
    draws = max(draws // 2, 1) if options.get("antithetic") else draws
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, draws, *[1] * len(known.batch_shape), SIZE, generator=generator)
    found = {**options, "sigma": sigma, "gate": gate, "noise": noise.to(known.device)}
    if isinstance(sigma, (tuple, list)):
        found["generator"] = torch.Generator(known.device).manual_seed(seed)
    return found


def _deviation(name: str, value: float | Tensor, hands: TwoHands) -> Tensor:
    """A standard deviation as (..., width) of the parameter."""
    std = torch.as_tensor(value, dtype=hands.dtype, device=hands.device)
    if not ((std > 0) & torch.isfinite(std)).all():
        raise ValueError(f"the standard deviation of {name} must be positive and finite, got {value}")
    if name == "hand_pose" and std.shape[-1:] == (15,):
        std = std.repeat_interleave(3, -1)
    shape = (*hands.batch_shape, FIELDS[name])
    try:
        return std.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"the standard deviation of {name} must broadcast to {shape}, got {tuple(std.shape)}; "
            "one for each pair is (..., 1)"
        ) from None
