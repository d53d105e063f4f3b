"""Cascaded reverse diffusion (paper Algorithm 2): an anchor hand from p(x_r), mirrored; then its partner given it.

The anchor is drawn as a hand alone where the network has learned those; as the partner of an unknown anchor, whose
place is then forgotten, where it has not (as in the paper).

Each of the two follows the probability flow over levels sigma_K > ... > sigma_0 = 0. In the angle theta = asin(sigma)
it reads

    dx / dtheta = -F,     F = (x0 - sqrt(alpha_bar) x) / sigma,

with x0 the denoiser's estimate under classifier-free guidance (Eq. 4) and, for the partner, anti-penetration guidance
(Eq. 7-8). For normalised data F is small and smooth (zero for a standard normal), so a second-order multistep rule
(Adams-Bashforth) is exact where it matters,

    x_{k-1} = x_k + (theta_k - theta_{k-1}) (F_k + r_k / 2 (F_k - F_{k+1})),     r_k the ratio of the two last steps,

at one evaluation a step. DDIM (Song et al., ICLR 2021), the paper's sampler,

    x_{k-1} = sqrt(ab_{k-1}) x0 + sqrt(1 - ab_{k-1} - s^2) eps + s z,     eps = (x_k - sqrt(ab_k) x0) / sigma_k,
    s = eta sigma_{k-1} / sigma_k sqrt(1 - ab_k / ab_{k-1}),

multiplies a standard normal by cos(pi / 2K) at each of K steps: a tenth of the variance is lost at 25 of them
(benchmarks/README.md). It is there for comparison and for eta > 0.

All noise of a run is drawn at once for all samples; only the network is evaluated in batches. So the result does not
depend on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .canonical import SIZE, SLICES, Frame, Side, from_canonical, to_canonical
from .guidance.anti_penetration import AntiPenetration
from .guidance.cfg import guided_x0
from .params import HandLike, HandParams, TwoHands
from .progress import progress_bar

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["SOLVERS", "check_draws", "chosen_generator", "ddim", "multistep", "official", "pick_solver", "sample"]

Denoise = Callable[[Tensor, float], Tensor]


@torch.no_grad()
def sample(
    prior: TwoHandPrior,
    num_samples: int = 1,
    *,
    steps: int = 25,
    cfg_scale: float = 0.5,
    penetration_scale: float = 1.0,
    solver: str | None = None,
    eta: float = 0.0,
    given: HandLike | None = None,
    given_side: Side = "left",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> TwoHands:
    """Draw plausible pairs of hands (Algorithm 2), or complete one hand by the other.

    Args:
        prior: from `load_prior`.
        num_samples: how many pairs.
        steps: denoising steps of each of the two hands; more is slower and truer to the learned distribution.
        cfg_scale: w of Eq. 4; 0 switches classifier-free guidance off.
        penetration_scale: strength of the anti-penetration guidance of Eq. 7-8, 1 being the measured choice; 0
            switches it off.
        solver: "multistep", "ddim" (the paper's; it needs four times the steps and more), or "official" (of the
            released code, for its own network alone). Default: what the prior's schedule calls for.
        eta: of "ddim" alone: 0 is deterministic, 1 has the variance of DDPM.
        given: a hand to keep: HandParams or a mapping with smplx's names, of batch shape () for num_samples
            different partners of it, or (num_samples,) for one partner each.
        given_side: which hand `given` is.
        seed: of a private generator; the same seed gives the same pairs whatever `batch_size` is.
        generator: to draw from instead; on the CPU or on the prior's device. With neither, torch's own generator
            for the CPU is drawn from.
        batch_size: pairs in memory at a time. Default: as many as 512.
        progress: show a progress bar.

    Returns:
        num_samples pairs, batch shape (num_samples,), on the prior's device and in its type; the anchor hand (the
        left one, or the given one) at the identity with its middle-MCP joint at the origin, a given hand where it
        was.

    Raises:
        ValueError: an argument is out of range; both seed and generator are given; `given` does not fit.
    """
    counts = {"num_samples": num_samples, "steps": steps, "batch_size": batch_size}
    check_draws(counts, cfg_scale, penetration_scale)
    generator = chosen_generator(seed, generator)
    solve = pick_solver(solver or prior.schedule.solver, eta)
    if given_side not in ("left", "right"):
        raise ValueError(f"given_side must be 'left' or 'right', got {given_side!r}")
    # States and poses are kept in full precision, whatever the network's.
    device, dtype = prior.device, torch.promote_types(prior.dtype, torch.float32)
    source: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    draw = lambda: torch.randn(num_samples, SIZE, **source).to(device, dtype)
    levels = prior.schedule.steps(steps)
    chunk = min(batch_size or 512, num_samples)
    runs = 1 if given is not None else 2
    bar = progress_bar(runs * steps * math.ceil(num_samples / chunk), "sampling", "step", progress)

    side: Side = given_side if given is not None else "left"
    with bar as advance:
        denoiser = prior.denoiser
        sigma_of = lambda s: torch.tensor(s, device=device, dtype=dtype)
        if given is None:
            alone = torch.zeros((), dtype=torch.bool, device=device)
            first = lambda rows: lambda x, s: denoiser(x, sigma_of(s), has_relative=alone)
            x0 = solve(_batched(first, num_samples, chunk, advance), draw(), levels, draw)
            # Line 6, x_l = Gamma(x_0): nothing to do in right-hand form but to forget where the hand was.
            anchor = prior.normalizer.as_anchor(x0[:, SLICES["own"]])
            frame = None
        else:
            kept = _expanded(given, num_samples, device, dtype)
            anchor, frame = _given(prior, kept, given_side)
        guidance = AntiPenetration(prior.surfaces(side), scale=penetration_scale) if penetration_scale else None

        def partner_of(rows: slice) -> Denoise:
            condition = anchor[rows]
            guide = guidance.prepare(condition) if guidance is not None else None

            def denoise(x_t: Tensor, sigma: float) -> Tensor:
                x0 = guided_x0(denoiser, x_t, sigma_of(sigma), condition, cfg_scale)
                return x0 if guide is None else guide(x0, sigma)

            return denoise

        partner = solve(_batched(partner_of, num_samples, chunk, advance), draw(), levels, draw)

    hands = prior.hands
    anchor, partner = prior.normalizer.anchor_inverse(anchor), prior.normalizer.partner_inverse(partner)
    pairs = from_canonical(anchor, partner, hands, frame, side)
    if given is not None:
        # Bit for bit the hand that was given, not its round trip.
        left, right = (kept, pairs.right) if given_side == "left" else (pairs.left, kept)
        pairs = TwoHands(left, right, hands)
    return pairs.to(prior.dtype)


def ddim(
    denoise: Denoise, x: Tensor, levels: list[float], *, eta: float = 0.0, draw: Callable[[], Tensor] | None = None
) -> Tensor:
    """DDIM over `levels`, from noise to a clean sample.

    Args:
        denoise: (x_t, sigma) -> estimate of x_0; any guidance is in it.
        x: (N, D) standard normal, the state at levels[0].
        levels: falling sigmas, the last one 0.
        eta: stochasticity.
        draw: gives fresh standard normals like x; needed when eta > 0.

    Returns:
        (N, D).
    """
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        if after == 0:
            return x0
        alpha_bar, alpha_bar_after = 1 - now * now, 1 - after * after
        noise = (x - math.sqrt(alpha_bar) * x0) / now
        spread = eta * after / now * math.sqrt(max(1 - alpha_bar / alpha_bar_after, 0.0))
        x = math.sqrt(alpha_bar_after) * x0 + math.sqrt(max(after * after - spread * spread, 0.0)) * noise
        if spread and draw is not None:
            x = x + spread * draw()
    return x


def multistep(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """The flow over `levels`, from noise to a clean sample, by the second-order rule above.

    Args:
        denoise: (x_t, sigma) -> estimate of x_0; any guidance is in it.
        x: (N, D) standard normal, the state at levels[0].
        levels: falling sigmas, the last one 0.

    Returns:
        (N, D): the last estimate itself, so that what guidance has reached is kept.
    """
    last: tuple[Tensor, float] | None = None
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        if after == 0:
            return x0
        step = math.asin(now) - math.asin(after)
        flow = (x0 - math.sqrt(1 - now * now) * x) / now
        slope = flow if last is None else flow + step / (2 * last[1]) * (flow - last[0])
        x = x + step * slope
        last = flow, step
    return x


def official(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """The released code's update, x' = sqrt(ab') x0 + sqrt(1 - ab') (x0 - x), which its network needs: its levels end
    at 0.69, and x starts at a standard normal nevertheless, far too narrow; this rule widens it again.

    Args:
        denoise: (x_t, sigma) -> estimate of x_0; any guidance is in it.
        x: (N, D) standard normal, the state at levels[0].
        levels: falling sigmas, the last one 0.

    Returns:
        (N, D): the last estimate itself.
    """
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        x = math.sqrt(1 - after * after) * x0 + after * (x0 - x)
    return x


SOLVERS: tuple[str, ...] = ("multistep", "ddim")
"""Names of the reverse processes. Besides there is "official", for the released network alone."""


def pick_solver(
    solver: str, eta: float = 0.0
) -> Callable[[Denoise, Tensor, list[float], Callable[[], Tensor]], Tensor]:
    """The reverse process of that name, called as solve(denoise, x, levels, draw).

    Raises:
        ValueError: there is none, or eta is out of range or not the solver's.
    """
    if solver not in (*SOLVERS, "official"):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if solver == "ddim":
        return lambda denoise, x, levels, draw: ddim(denoise, x, levels, eta=eta, draw=draw)
    if eta:
        raise ValueError(f"eta belongs to solver='ddim'; {solver!r} is deterministic. Leave it out.")
    rule = official if solver == "official" else multistep
    return lambda denoise, x, levels, draw: rule(denoise, x, levels)


def _batched(make: Callable[[slice], Denoise], total: int, chunk: int, advance: Callable[[int], Any]) -> Denoise:
    """One denoise function over all samples from one per slice of them."""
    parts = [slice(start, min(start + chunk, total)) for start in range(0, total, chunk)]
    functions = [make(rows) for rows in parts]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        x0 = []
        for function, rows in zip(functions, parts, strict=True):
            x0.append(function(x[rows], sigma))
            advance(1)
        return torch.cat(x0)

    return denoise


def _given(prior: TwoHandPrior, hand: HandParams, side: Side) -> tuple[Tensor, Frame]:
    """The normalised anchor vector (num_samples, 64) of a hand that is kept, and its frame."""
    # The other hand does not enter the anchor's vector nor its frame; any will do.
    pair = TwoHands(hand, hand.mirrored()) if side == "left" else TwoHands(hand.mirrored(), hand)
    anchor, _, frame = to_canonical(pair, prior.hands, side)
    return prior.normalizer.anchor(anchor), frame


def _expanded(given: HandLike, num_samples: int, device: torch.device, dtype: torch.dtype) -> HandParams:
    hand = HandParams.coerce(given, "given").detach()
    if hand.batch_shape not in ((), (num_samples,)):
        raise ValueError(
            f"given must have batch shape () or ({num_samples},), the number of samples, got {tuple(hand.batch_shape)}"
        )
    return hand.to(device=device, dtype=dtype).expand(num_samples)


def check_draws(counts: Mapping[str, int | None], cfg_scale: float, penetration_scale: float) -> None:
    """Refuse options of a sampler.

    Args:
        counts: by name; None: not given.
        cfg_scale: finite.
        penetration_scale: finite, not negative.

    Raises:
        ValueError: one is out of range.
    """
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not math.isfinite(cfg_scale):
        raise ValueError(f"cfg_scale must be a finite number, got {cfg_scale}")
    if not (math.isfinite(penetration_scale) and penetration_scale >= 0):
        raise ValueError(f"penetration_scale must be finite and not negative, got {penetration_scale}")


def chosen_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator:
    """The generator, a private one with this seed, or torch's own for the CPU.

    Raises:
        ValueError: both are given.
    """
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are both given; pass one of them")
    if generator is not None:
        return generator
    return torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
