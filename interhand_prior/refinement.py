"""Refining estimated pairs: the nearest plausible ones, given how uncertain the estimate is.

With theta_0 the estimate and s its standard deviations, Adam lowers

    1/2 | (theta - theta_0) / s |^2  +  L_reg(theta),                                                 (Eq. 9)

over a fixed number of steps: the most probable pair under the prior and Gaussian errors of the estimate. Good
estimates (small s) stay; the prior's own gate leaves the placement of pairs alone that it has never seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .params import FIELDS, HandParams, TwoHands
from .sds import sds_loss

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["refine"]


def refine(
    prior: TwoHandPrior,
    hands: TwoHands,
    *,
    pose_std: float = 0.2,
    rotation_std: float = 0.1,
    translation_std: float | Tensor = 0.01,
    betas_std: float = 0.5,
    steps: int = 60,
    seed: int = 0,
    **options: Any,
) -> TwoHands:
    """Pull estimated pairs towards plausible ones.

    Args:
        prior: from `load_prior`.
        hands: (..., ) estimates; where a hand is missing the other one is held to the single-hand prior.
        pose_std: standard deviation of the estimate's hand_pose, radians.
        rotation_std: of its global_orient, radians.
        translation_std: of its transl, metres: a number, or (3,) by axis (depth is mostly the poorest).
        betas_std: of its betas.
        steps: of Adam.
        seed: of the noise; the same seed, the same result.
        options: of `sds_loss`: sigma, weight, masks, group_weights, ...

    Returns:
        Refined pairs, detached.

    Raises:
        ValueError: a standard deviation or `steps` is not positive; anything `sds_loss` refuses.
    """
    std = {
        "global_orient": rotation_std,
        "hand_pose": pose_std,
        "betas": betas_std,
        "transl": translation_std,
    }
    for name, value in std.items():
        if not (torch.as_tensor(value) > 0).all():
            raise ValueError(f"the standard deviation of {name} must be positive, got {value}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    generator = torch.Generator(device=hands.device).manual_seed(seed)
    # Half precision would lose the small steps.
    start = hands.detach().to(torch.promote_types(hands.dtype, torch.float32))
    scale = {name: torch.as_tensor(value, dtype=start.dtype, device=start.device) for name, value in std.items()}
    # Moves in units of the standard deviation: one learning rate suits every parameter.
    moves = {
        side: {name: torch.zeros_like(getattr(getattr(start, side), name), requires_grad=True) for name in FIELDS}
        for side in ("left", "right")
    }

    def moved(side: str) -> HandParams:
        hand = getattr(start, side)
        return HandParams(**{name: getattr(hand, name) + scale[name] * moves[side][name] for name in FIELDS})

    leaves = [moves[side][name] for side in ("left", "right") for name in FIELDS]
    options = {"left_valid": start.left_valid, "right_valid": start.right_valid, **options}
    with torch.enable_grad():
        optimizer = torch.optim.Adam(leaves, lr=0.1, betas=(0.8, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = sds_loss(
                prior, moved("left"), moved("right"), reduction="sum", generator=generator, hands=hands.hands, **options
            ) + 0.5 * sum((leaf.square().sum() for leaf in leaves), start=torch.zeros((), device=hands.device))
            loss.backward()
            optimizer.step()
            schedule.step()
    return replace(start, left=moved("left"), right=moved("right")).detach().to(hands.dtype)
