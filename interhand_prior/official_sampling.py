"""How the released code samples, step by step: for people who want its numbers, not for better samples.

    t = 126, 123, ..., 3:       x_{t-3} = sqrt(ab) x0 + sqrt(1 - ab) (x0 - x_t),      ab = alpha_bar_{t-3}

from a standard normal, although alpha_bar_126 is 0.53. First the anchor, with the zero vector for a condition; then its
partner, whose x0 takes its first 55 entries from the conditional estimate c and the last nine, the placement, from

    c + w (c - u),      w = 0.1,

u being the unconditional estimate; and anti-penetration guidance, a step down the gradient of

    L = 1000 mean_v rho^2 r_v^2 / (r_v^2 + rho^2),      rho = 0.05 m,

over both directions, r_v the vector from a vertex to the other hand's nearest one where it points along the normal
there (the vertex is inside), with the weight 7 * 0.9^(41 - i) at step i; at the last step a tenth of it, but for the
translation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .canonical import SIZE, SLICES, from_canonical
from .geometry import nearest_vertices, take_vertices, vertex_normals
from .guidance.anti_penetration import PairSurfaces
from .hands.skinning import no_autocast
from .official import OfficialDenoiser, OfficialSchedule, PCANormalizer
from .params import TwoHands

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["official_guidance", "official_reverse", "official_sample", "official_update"]

CFG_SCALE = 0.1
RHO = 0.05


@torch.no_grad()
def official_sample(
    prior: TwoHandPrior,
    num_samples: int,
    *,
    cfg_scale: float = CFG_SCALE,
    guidance: bool = True,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> TwoHands:
    """Draw pairs as the released code does. `sample` is the ordinary way.

    With a network whose config says `coupled` the samples of a call depend on each other, as released.

    Args:
        prior: a converted checkpoint.
        num_samples: how many pairs, in one batch.
        cfg_scale: w above.
        guidance: anti-penetration guidance.
        seed: of a private generator.
        generator: to draw from instead, on the CPU.

    Returns:
        num_samples pairs, the left hand at the identity with its middle-MCP joint at the origin.

    Raises:
        ValueError: the prior is no converted checkpoint; num_samples is not positive; seed and generator are given.
    """
    denoiser, normalizer = prior.denoiser, prior.normalizer
    if not isinstance(denoiser, OfficialDenoiser) or not isinstance(normalizer, PCANormalizer):
        raise ValueError("prior must be a converted official checkpoint; use `sample` for every other")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(num_samples, SIZE, generator=generator).to(prior.device) for _ in range(2))
    step = lambda t: torch.full((num_samples,), t, device=prior.device)
    anchor = normalizer.as_anchor(
        official_reverse(lambda x, t, _: denoiser(x, step(t)), first)[:, SLICES["own"]],
    )
    surfaces = prior.surfaces("left")
    anchor_vertices = surfaces.anchor(anchor.float())

    def estimate(x: Tensor, t: int, number: int) -> Tensor:
        given, unknown = denoiser(x, step(t), anchor), denoiser(x, step(t))
        place = SLICES["relative"]
        x0 = torch.cat((given[:, : place.start], (given + cfg_scale * (given - unknown))[:, place]), -1)
        return official_guidance(x0, number, anchor_vertices, surfaces) if guidance else x0

    partner = official_reverse(estimate, second)
    physical = normalizer.anchor_inverse(anchor), normalizer.partner_inverse(partner)
    return from_canonical(*physical, prior.hands).to(prior.dtype)


def official_reverse(estimate: Callable[[Tensor, int, int], Tensor], x: Tensor) -> Tensor:
    """The 42 steps.

    Args:
        estimate: (x_t, t, number of the step from 0) -> x0.
        x: (B, D) standard normal.

    Returns:
        (B, D), the state at t = 0.
    """
    schedule = OfficialSchedule()
    for number, (t, after) in enumerate(pairwise(schedule.visited)):
        x = official_update(x, estimate(x, t, number), float(schedule.alpha_bar[after]))
    return x


def official_update(x_t: Tensor, x0: Tensor, alpha_bar: float) -> Tensor:
    """One step, to the level alpha_bar. In DDIM the second bracket would be the noise in x_t."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * (x0 - x_t)


def official_guidance(x0: Tensor, number: int, anchor: Tensor, surfaces: PairSurfaces) -> Tensor:
    """One step down the gradient of L.

    Args:
        x0: (B, 64) normalised estimates.
        number: of the step, 0 to 41.
        anchor: (B, V, 3) vertices of the anchors, metres.
        surfaces: of the vectors.

    Returns:
        (B, 64).
    """
    last = len(OfficialSchedule.visited) - 2
    with torch.inference_mode(False), torch.enable_grad(), no_autocast(x0.device):
        leaf = x0.detach().float().clone().requires_grad_()
        partner = surfaces.partner(leaf)
        fixed = anchor.detach().clone()
        loss = _inside(partner, fixed, surfaces.anchor_faces) + _inside(fixed, partner, surfaces.partner_faces)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    step = 7 * 0.9 ** (last - number) * gradient
    if number == last:
        own = torch.arange(SIZE, device=step.device) < SLICES["transl"].start
        step = torch.where(own, step / 10, step)
    return x0 - step.to(x0)


def _inside(points: Tensor, surface: Tensor, faces: Tensor) -> Tensor:
    """L of points (B, N, 3) in a surface (B, M, 3): (B,)."""
    nearest = nearest_vertices(points, surface).indices
    away = take_vertices(surface, nearest) - points
    inside = (away * take_vertices(vertex_normals(surface, faces), nearest)).sum(-1) > 0
    square = away.square().sum(-1)
    robust = RHO**2 * square / (square + RHO**2)
    return 1000 * torch.where(inside, robust, 0.0).mean(-1)
