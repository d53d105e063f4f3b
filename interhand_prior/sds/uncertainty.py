"""Do no harm: level and weight of Eq. 9 from how uncertain the estimate is.

Let y = x + n be an estimate whose errors n have standard deviations s, in units of the normaliser's, entry by entry.
Beside 1/2 |(x - y) / s|^2 the loss  1/2 alpha_bar / sigma^2 |x - D(x_t)|^2  has, on average over the noise, the
gradient of a negative log-likelihood: of x under the prior smoothed by artificial errors of size
sigma / sqrt(alpha_bar) (Tweedie's formula). Smoothing weakens the pull; twice that weight makes up for it on the whole.

Level. Artificial errors far above s destroy what the estimate knows; far below s the network looks at vectors such as
it has never seen. So

    sigma / sqrt(alpha_bar) = 0.6 rms(s),        sigma held within LEVELS = [0.25, 0.45].

Weight. With s in the data term the balance is right at any s, if the prior is. But it was learned from other hands, and
most loops have a data term of one strength for good and bad estimates alike. So each entry's weight is multiplied by

    s^2 / (s^2 + v),        v = sigma^2 / alpha_bar at the default level, 0.26:

no pull on what is known, the prior's full weight on what is not. Where a loop's data term does not know s, a good
estimate then moves by the order of s^2 and no longer by a constant.

Placement. Its entries come from several parameters. With w_a, w_p the wrists of anchor and partner, b the bones from
wrist to middle-MCP joint and R_a, R the rotations of Eq. 5,  t = R_a^T (w_p + R_p b - w_a) - b,  so errors of global
rotations, of size o about each axis, make errors of variance

    2 o^2 (1 - R_ik^2)                                              in an entry of R,
    sum_j (R_a)_jk^2 s_j^2  +  sum_c o^2 (|c|^2 - c_k^2)            in an entry of t,   levers c = t + b and c = R b,

with s_j the errors of transl. A tenth of a radian moves hands that are 20 cm apart by 2 cm.

Where the prior has seen nothing it must not pull. With t the normalised offset of the estimate and S the covariance of
its errors, N(t; 0, I + S) is how likely it is for a pair of the prior's kind, N(t; 0, 9 I + S) for one that stands
anywhere; the placement's weights are multiplied by the probability of the first, beforehand one in ten: to leave alone
what is far is worth more than to pull all that is near. An offset of 20 cm is far out where it is well known, sideways
for instance, and may be an error where nothing is known, along the line of sight: so S must be whole, not its diagonal.

What nobody has told can be measured: noise raises the residuals of the fingers (plausibility), and a table of them over
held-out pairs with known noise says which noise explains them. Residuals of the placement tell noise from an unfamiliar
placement too poorly for that: the table's second half says what they are at the noise that the fingers have, and a pair
beyond it is left alone in its placement. Such a pair probably is of another source, whose fingers look noisy by their
style alone; as much as that accounts for is taken off its measured variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..canonical import SIZE, SLICES, Normalizer, canonical_pair
from ..params import HandParams, TwoHands
from ..plausibility import BLOCKS, log_residuals
from ..rotations import axis_angle_to_matrix
from ..schedule import snr
from .levels import DEFAULT_SIGMA

if TYPE_CHECKING:
    from ..plausibility import Calibration
    from ..prior import TwoHandPrior

__all__ = ["FACTORS", "LEVELS", "ORDINARY", "Pull", "Uncertainty", "measured", "noise_table", "placement_trust", "pull"]

#: Lowest and highest level.
LEVELS = (0.25, 0.45)
_LEVEL_SHARE = 0.6
_KNOWN = DEFAULT_SIGMA**2 / (1 - DEFAULT_SIGMA**2)
_LARGEST = 1e3  # an infinite standard deviation times a lever of zero would be NaN
_WIDEST = 10.0  # radians, metres: the same of a covariance, whose digits must hold what is known beside what is not
_BONE = 0.0915  # x of the middle-MCP joint seen from the wrist, left hand at rest, metres; y and z are nearly zero
_ANYWHERE = 3.0  # deviation of the offsets of pairs that stand anywhere, in units of the prior's own
_FAMILIAR = 0.1  # share of pairs of the prior's kind beforehand
_JOINTS = 15
#: Multiples of ORDINARY at which residuals are tabulated.
FACTORS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_STYLE = (
    0.8  # multiples of ORDINARY that clean fingers of another source look like (a tracker's, the only one measured)
)
_FINE = 48  # steps of the factor that `measured` weighs
_FULL, _NONE = 0.7, 0.99  # quantiles between which the trust in a placement falls


@dataclass(frozen=True)
class Uncertainty:
    """Standard deviations of an estimate's errors. 0: exact. Infinite: unknown.

    Each is a number or a tensor (...) with a value for each pair; what has parts may have a value for each of them.

    Attributes:
        hand_pose: radians, on each axis of a finger joint; also (..., 15) by joint.
        global_orient: radians, about each axis, of each hand.
        transl: metres, of the hands' relative place, on each axis; also (..., 3) by axis of the frame that the hands'
            parameters are in (depth is mostly the poorest). (3,) holds for all pairs, if the batch shape is not (3,).
        betas: of each shape parameter.

    Raises:
        ValueError: a value is negative or NaN (tensors are looked at on the CPU only).
    """

    hand_pose: float | Tensor = 0.1
    global_orient: float | Tensor = 0.05
    transl: float | Tensor = 0.01
    betas: float | Tensor = 0.3

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                wrong = value.device.type == "cpu" and not bool((value >= 0).all())
            else:
                wrong = not value >= 0
            if wrong:
                raise ValueError(
                    f"uncertainty: {field.name} must hold standard deviations, 0 or more, got {value}; "
                    "0 is for what is exact, float('inf') for what is unknown"
                )


#: The noise of an ordinary estimate from one picture; the unit of the noise table.
ORDINARY = Uncertainty(hand_pose=0.2, global_orient=0.1, transl=0.013, betas=0.3)


class Pull(NamedTuple):
    """How `sds_loss` looks at a pair, and how strongly it pulls.

    Attributes:
        sigma: (...) noise level.
        factors: (2, ..., 64) what the squared normalised residual of each entry is multiplied by, for the right hand
            given the left and for the left given the right.
    """

    sigma: Tensor
    factors: Tensor


def pull(uncertainty: Uncertainty, normalizer: Normalizer, partner: Tensor, orient: Tensor | None = None) -> Pull:
    """Level and weights from the standard deviations of an estimate.

    Args:
        uncertainty: of the estimate.
        normalizer: of the prior.
        partner: (2, ..., 64) normalised: the right hand seen from the left, and the left from the right.
        orient: (2, ..., 3) axis-angle global_orient of the two anchors, left and right. Needed for `transl` by axis;
            without it the axes are taken alike.

    Returns:
        sigma (...), factors (2, ..., 64), of partner's type and device.

    Raises:
        ValueError: a tensor of the uncertainty has a shape that the pairs do not have.
    """
    partner = partner.detach()
    covariance = placement_covariance(uncertainty, normalizer, partner, orient)
    variance = error_variance(uncertainty, normalizer, partner, covariance)
    noise = _LEVEL_SHARE * variance.mean((0, -1)).sqrt()
    sigma = (noise / (1 + noise.square()).sqrt()).clamp(*LEVELS)
    factors = snr(sigma)[..., None] * variance / (variance + _KNOWN)
    known_place = familiar(partner[..., SLICES["transl"]], covariance)
    relative = torch.arange(SIZE, device=partner.device) >= SLICES["relative"].start
    # Two directions see the placement: half of it each.
    return Pull(sigma, factors * torch.where(relative, 0.5 * known_place[..., None], 1))


def error_variance(uncertainty: Uncertainty, normalizer: Normalizer, partner: Tensor, placement: Tensor) -> Tensor:
    """Variances (2, ..., 64) of the errors of normalised partners, `placement` their `placement_covariance`."""
    shape = partner.shape[1:-1]
    pose = _squared("hand_pose", uncertainty.hand_pose, partner, shape, _JOINTS).repeat_interleave(3, -1)
    betas = _squared("betas", uncertainty.betas, partner, shape)
    turn = _squared("global_orient", uncertainty.global_orient, partner, shape)
    rows = normalizer.partner_inverse(partner)[..., SLICES["rot6d"]].clamp(-1, 1).square()
    parts = {"hand_pose": pose, "betas": betas, "rot6d": 2 * turn * (1 - rows)}
    width = lambda name: SLICES[name].stop - SLICES[name].start
    variance = torch.cat([part.expand(*partner.shape[:-1], width(name)) for name, part in parts.items()], -1)
    variance = variance / normalizer.std[: SLICES["transl"].start].to(partner).square()
    return torch.cat((variance, placement.diagonal(dim1=-2, dim2=-1)), -1)


def placement_covariance(
    uncertainty: Uncertainty, normalizer: Normalizer, partner: Tensor, orient: Tensor | None = None
) -> Tensor:
    """Covariances (2, ..., 3, 3) of the errors of normalised offsets; see `pull` and the head of this module."""
    shape = partner.shape[1:-1]
    turn = _squared("global_orient", uncertainty.global_orient, partner, shape).clamp_max(_WIDEST**2)
    place = _squared("transl", uncertainty.transl, partner, shape, 3).clamp_max(_WIDEST**2)
    vector = normalizer.partner_inverse(partner)
    first, second = vector[..., SLICES["rot6d"]].clamp(-1, 1).unflatten(-1, (2, 3)).unbind(-2)
    column = torch.stack((first[..., 0], second[..., 0], torch.linalg.cross(first, second)[..., 0]), -1)
    # Whichever the anchor is, in its frame the anchor is a left hand.
    lever = vector[..., SLICES["transl"]] + partner.new_tensor((_BONE, 0.0, 0.0))
    if orient is None:
        covariance = torch.diag_embed(place.mean(-1, keepdim=True).expand(*shape, 3)).expand(2, *shape, 3, 3)
    else:
        # Mirrored where the right hand is the anchor.
        gamma = torch.stack((orient.new_ones(3), orient.new_tensor((-1.0, 1.0, 1.0))))
        rotation = axis_angle_to_matrix(orient).mT * gamma.view(2, *[1] * len(shape), 3, 1)
        # Written out: autocast would round a matrix product.
        covariance = (rotation[..., :, None, :] * rotation[..., None, :, :] * place[..., None, None, :]).sum(-1)
    identity = torch.eye(3, dtype=partner.dtype, device=partner.device)
    for c in (lever, _BONE * column):
        across = c.square().sum(-1)[..., None, None] * identity - c[..., :, None] * c[..., None, :]
        covariance = covariance + turn[..., None] * across
    std = normalizer.std[SLICES["transl"]].to(partner)
    return covariance / (std[:, None] * std)


def familiar(offset: Tensor, covariance: Tensor) -> Tensor:
    """How probably a pair is of the prior's kind rather than one that stands anywhere.

    Args:
        offset: (2, ..., 3) normalised, seen from both hands.
        covariance: (2, ..., 3, 3) of its errors.

    Returns:
        (...) in [0, 1].
    """
    identity = torch.eye(3, dtype=offset.dtype, device=offset.device)

    def log_density(variance: float) -> Tensor:
        """The mean over the two views, but for a constant."""
        factor = torch.linalg.cholesky_ex(variance * identity + covariance).L
        off = torch.linalg.solve_triangular(factor, offset[..., None], upper=False)[..., 0]
        return (-factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * off.square().sum(-1)).mean(0)

    odds = math.log(_FAMILIAR / (1 - _FAMILIAR))
    return (odds + log_density(1.0) - log_density(_ANYWHERE**2)).sigmoid()


def measured(calibration: Calibration, residuals: Tensor) -> Uncertainty:
    """What noise explains the residuals of pairs: the mean over all multiples of ORDINARY, weighed by their likelihood.

    The fingers decide; the other parts are given the noise that goes with theirs in an ordinary estimate.

    Args:
        calibration: of the prior, with a noise table.
        residuals: (..., levels, blocks) from `plausibility.log_residuals`.

    Returns:
        The uncertainty, each part (...).

    Raises:
        ValueError: the calibration has no noise table.
    """
    table = _table(calibration).to(residuals)
    factor = torch.linspace(0, FACTORS[-1], _FINE + 1, dtype=residuals.dtype, device=residuals.device)
    mean, std, _, _ = _at(table, factor).unbind(-1)  # (factor, levels)
    off = (residuals[..., None, :, BLOCKS.index("hand_pose")] - mean) / std
    likelihood = (-0.5 * off.square() - std.log()).sum(-1).softmax(-1)
    found = (likelihood * factor).sum(-1)
    strange = _STYLE * (1 - _trust(table, residuals, found))
    found = (found.square() - strange.square()).clamp_min(0).sqrt()
    return Uncertainty(*(found * getattr(ORDINARY, field.name) for field in fields(ORDINARY)))


def placement_trust(calibration: Calibration, residuals: Tensor, uncertainty: Uncertainty) -> Tensor:
    """How far the prior may be trusted with the placement of pairs that have such noise, in [0, 1].

    As `plausibility.placement_gate`, but a residual is compared with those of held-out pairs that are as noisy: 1 up to
    the 70th percentile, 0 from the 99th. A bad estimate of a familiar placement is pulled; an unfamiliar placement,
    hands far apart for instance, is left alone.

    Args:
        calibration: of the prior, with a noise table.
        residuals: (..., levels, blocks) from `plausibility.log_residuals`.
        uncertainty: of the pairs.

    Returns:
        (...).

    Raises:
        ValueError: the calibration has no noise table, or the uncertainty a shape that the pairs do not have.
    """
    table = _table(calibration).to(residuals)
    shape = residuals.shape[:-2]
    multiples = [
        _squared(name, getattr(uncertainty, name), residuals, shape, parts).mean(-1) / getattr(ORDINARY, name) ** 2
        for name, parts in (("hand_pose", _JOINTS), ("global_orient", 1), ("transl", 3))
    ]
    factor = (sum(multiples[1:], start=multiples[0]) / len(multiples)).sqrt()
    return _trust(table, residuals, factor.expand(shape))


@torch.no_grad()
def noise_table(prior: TwoHandPrior, pairs: TwoHands, seed: int = 0, limit: int = 512) -> Tensor:
    """Log residuals of held-out pairs at each multiple of ORDINARY noise.

    Args:
        prior: whose residuals.
        pairs: (N,) clean pairs, N >= 2.
        seed: of the noise.
        limit: at most so many pairs are used, evenly spread.

    Returns:
        (factors, levels, 4), float32 on the CPU: mean and standard deviation of the fingers' log residual, 70th and
        99th percentile of the placement's.
    """
    if len(pairs) > limit:
        pairs = pairs[torch.linspace(0, len(pairs) - 1, limit).round().long()]
    generator = torch.Generator().manual_seed(seed)
    pairs = pairs.to(torch.promote_types(pairs.dtype, torch.float32))
    draws = [HandParams(*(torch.randn(v.shape, generator=generator).to(v) for v in hand.as_dict().values()))
             for hand in (pairs.left, pairs.right)]  # fmt: skip
    rows = []
    for factor in FACTORS:
        # The same noise, scaled: the table rises smoothly.
        noisy = [_noisy(hand, draw, factor) for hand, draw in zip((pairs.left, pairs.right), draws, strict=True)]
        hands = TwoHands(noisy[0], noisy[1], pairs.hands).to(prior.device)
        residuals = log_residuals(prior, *canonical_pair(prior, hands)).double().cpu()
        fingers, placement = (residuals[..., BLOCKS.index(name)] for name in ("hand_pose", "relative"))
        std, mean = torch.std_mean(fingers, 0)
        at = torch.tensor((_FULL, _NONE), dtype=placement.dtype)
        rows.append(torch.cat((mean[:, None], std.clamp_min(1e-3)[:, None], placement.quantile(at, 0).mT), -1))
    return torch.stack(rows).float()


def _noisy(hand: HandParams, draw: HandParams, factor: float) -> HandParams:
    size = {field.name: factor * getattr(ORDINARY, field.name) for field in fields(ORDINARY)}
    size["transl"] *= 0.5**0.5  # the errors of the relative place are shared by both hands
    return HandParams(**{name: value + size[name] * getattr(draw, name) for name, value in hand.as_dict().items()})


def _trust(table: Tensor, residuals: Tensor, factor: Tensor) -> Tensor:
    _, _, full, none = _at(table, factor).unbind(-1)
    trust = (none - residuals[..., BLOCKS.index("relative")]) / (none - full).clamp_min(1e-6)
    return trust.clamp(0, 1).amin(-1)


def _table(calibration: Calibration) -> Tensor:
    if calibration.noise_table is None:
        raise ValueError(
            "this prior's calibration has no noise table, so it cannot measure uncertainty: "
            "call prior.calibrate(pairs) with held-out pairs, or give an Uncertainty"
        )
    return calibration.noise_table


def _at(table: Tensor, factor: Tensor) -> Tensor:
    """The table (factors, ...) at any factor (B...), linearly between its rows: (B..., ...)."""
    grid = torch.tensor(FACTORS, dtype=table.dtype, device=table.device)
    factor = factor.to(table).clamp(0, FACTORS[-1])
    above = torch.searchsorted(grid, factor.contiguous()).clamp(1, len(FACTORS) - 1)
    share = (factor - grid[above - 1]) / (grid[above] - grid[above - 1])
    share = share.reshape(*share.shape, *[1] * (table.ndim - 1))
    return table[above - 1] * (1 - share) + table[above] * share


def _squared(name: str, value: float | Tensor, like: Tensor, shape: torch.Size, parts: int = 1) -> Tensor:
    """A part's variance as (..., parts or 1)."""
    if not isinstance(value, Tensor):
        return torch.full(
            (*[1] * len(shape), parts), min(float(value), _LARGEST) ** 2, dtype=like.dtype, device=like.device
        )
    by_part = parts > 1 and value.ndim >= 1 and value.shape[-1] == parts and value.shape[:-1] in (shape, shape[:0])
    if value.shape not in (shape, ()) and not by_part:
        wanted = f"a number or a tensor of shape {tuple(shape)}" + (f" or {(*shape, parts)}" if parts > 1 else "")
        raise ValueError(f"uncertainty: {name} must be {wanted}, got shape {tuple(value.shape)}")
    if value.shape == shape or value.ndim == 0:
        value = value[..., None]
    return value.to(like).clamp_max(_LARGEST).square().expand(*shape, value.shape[-1]).expand(*shape, parts)
