"""Does the prior harm? Error with it over error without it, against how bad the estimate was.

    python benchmarks/do_no_harm.py --data CORPUS [--leap leap_two_hand.npz]

Pairs: test pairs of a corpus; the same pushed 20 cm apart, where the corpus has nothing; real frames of a Leap tracker
(hands fitted to its joints as in fit_keypoints.py are the truth). Every one gets an estimate with errors of 0 to 2
times 0.2 rad in the fingers, 0.1 rad in the rotation of each hand, 0.3 in the shape, 7 mm in the hands' relative place
and 2 cm in its depth, and is then fitted in four loops:

    data knows      1/2 |(theta - estimate) / s|^2 + prior, with s the true standard deviations of each pair's errors
    data does not   the same with half of the full errors as s, however good or bad the pair
    2D, 2 cm        data knows, and 2D keypoints with 3 mm of noise are seen, as in fit_keypoints.py
    2D, 4 cm        the same, with twice the error of the depth and its standard deviation

and with five priors: a Gaussian with full covariance; `sds_loss` as it is; as a likelihood like it, without a gate and
at a low level, to compare the Gaussian with; with the `uncertainty` given; and with it measured. Trust and measured
uncertainty are made once, from the estimate. Errors are MPJPE (root-aligned, mm), the relative rotation (degrees) and
MRRPE (mm); spreads are of the bootstrap over pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fit_keypoints as fits
import numpy as np
import torch
from common import write_result
from gaussian_baseline import GaussianPrior
from pairs import read_pairs, splits
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior, sds_loss
from interhand_prior.params import FIELDS
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sds.uncertainty import Uncertainty, noise_table

fitting = fits.fitting
FACTORS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0)
METRICS = ("MPJPE", "rotation", "MRRPE")
BASE = fits.Noise()
#: Loop: factor of the data term's standard deviations (None: the true one), whether keypoints are seen, error of depth.
LOOPS = {
    "data knows": (None, False, 0.02),
    "data does not": (0.5, False, 0.02),
    "2D, 2 cm": (None, True, 0.02),
    "2D, 4 cm": (None, True, 0.04),
}
#: The weights of a likelihood: both directions see the placement.
LIKELIHOOD = {"hand_pose": 0.5, "betas": 0.5, "rot6d": 0.25, "transl": 0.25}
_EXACT = 1e-4  # times the full errors: what a data term takes for none

_NO_ERROR = 0.01  # mm, degrees: no ratio to what is less

PairLoss = Callable[[HandParams, HandParams], Tensor]


class Pairs(NamedTuple):
    """True pairs (N,), and what keypoints are made of: joints (N, 2, K, 3), which ones (see fit_keypoints.py)."""

    hands: TwoHands
    joints: Tensor
    order: Any


def corpus_pairs(held_out: TwoHands, prior: TwoHandPrior, seed: int, apart: float = 0.0) -> Pairs:
    """Pairs of a corpus, turned at random and pushed apart."""
    hands = fits.turned(held_out, prior.hands, torch.Generator().manual_seed(seed), apart)
    return Pairs(hands, fitting.joints_of(hands, fits.MANO), fits.MANO)


def leap_pairs(path: Path, prior: TwoHandPrior, num: int) -> Pairs:
    """Frames of a tracker, evenly spread: hands fitted to its joints, and these joints; as in `fits.leap_cases`."""
    with np.load(path, allow_pickle=False) as archive:
        recording, sure = archive["recording"], (archive["confidence"] > 0.5).all(1)
    recording = recording[sure]
    joints, _ = fitting.read_keypoints(path, "leap", depth_axis="y")
    names, counts = np.unique(recording, return_counts=True)
    first = torch.from_numpy(recording == names[counts.argmin()])
    order, _ = fits.adapted(_spread(joints[first], 60), prior.hands)
    joints = _spread(joints[~first], num)
    clean = replace(fits.seen_as(joints, order, 0.0, torch.Generator()), std=0.001)
    return Pairs(fitting.fit(fitting.start_from(prior.hands, clean), clean, steps=150), joints, order)


def _spread(values: Tensor, num: int) -> Tensor:
    return values[torch.linspace(0, len(values) - 1, min(num, len(values))).round().long()]


def deviations(factor: Tensor, depth: float) -> dict[str, Tensor]:
    """Standard deviations of each pair's errors, (N, 1) or (N, 3); of transl between the hands."""
    axes = torch.tensor((BASE.lateral, BASE.lateral, depth))
    size = {"global_orient": BASE.rotation, "hand_pose": BASE.pose, "betas": BASE.betas, "transl": axes}
    return {name: factor[:, None] * value for name, value in size.items()}


def fit(
    start: TwoHands, std: Mapping[str, Tensor], prior_loss: PairLoss | None, seen: Any, steps: int, scale: Tensor
) -> TwoHands:
    """The loop: 1/2 |(theta - start) / std|^2, keypoints if any were seen, and the prior with weight 1.

    Parameters move in units of `scale` (N, 1) times the full errors, so that one learning rate suits all pairs.
    """
    unit = deviations(scale[:, 0], BASE.depth)
    moves = {
        side: {name: torch.zeros_like(getattr(getattr(start, side), name), requires_grad=True) for name in FIELDS}
        for side in ("left", "right")
    }

    def moved(side: str) -> HandParams:
        hand = getattr(start, side)
        return HandParams(**{name: getattr(hand, name) + unit[name] * moves[side][name] for name in FIELDS})

    leaves = [moves[side][name] for side in moves for name in FIELDS]
    optimizer = torch.optim.Adam(leaves, lr=0.1, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    half = {"transl": 0.5**0.5}  # each hand's share of the error between them
    for _ in range(steps):
        left, right = moved("left"), moved("right")
        loss = torch.zeros(())
        for side in moves:
            for name in FIELDS:
                square = (moves[side][name] * (unit[name] / (std[name] * half.get(name, 1.0)))).square()
                loss = loss + 0.5 * square.sum()
        if seen is not None:
            joints = fitting.joints_of(TwoHands(left, right, start.hands), seen.order)
            error = (fitting.project(joints, None) - seen.joints) / seen.std
            loss = loss + fitting.robust(error.square().sum(-1)).sum()
        if prior_loss is not None:
            loss = loss + prior_loss(left, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return TwoHands(moved("left"), moved("right"), start.hands).detach()


def errors(hands: TwoHands, truth: TwoHands) -> Tensor:
    """(3, N): MPJPE in mm, relative rotation in degrees, MRRPE in mm."""
    pose, place = fitting.errors(fitting.joints_of(hands, fits.MANO), fitting.joints_of(truth, fits.MANO), 0)
    relative = lambda pair: (
        axis_angle_to_matrix(pair.left.global_orient).mT @ axis_angle_to_matrix(pair.right.global_orient)
    )
    # |A - B|_F = sqrt(8) sin(angle / 2), exact where arccos is not.
    chord = (relative(hands) - relative(truth)).flatten(-2).norm(dim=-1) / 8**0.5
    return torch.stack((pose, torch.rad2deg(2 * torch.arcsin(chord.clamp(0, 1))), place))


def arms(prior: TwoHandPrior, gauss: GaussianPrior, start: TwoHands, std: Mapping[str, Tensor], seed: int) -> Any:
    """Name -> loss of pairs."""
    part = {name: value if name == "transl" else value[:, 0] for name, value in std.items()}
    given, found = Uncertainty(**part), prior.measure(start)

    def arm(gate: Tensor | bool, **options: Any) -> PairLoss:
        generator = torch.Generator().manual_seed(seed)
        return lambda left, right: sds_loss(
            prior, left, right, gate=gate, reduction="sum", generator=generator, **options
        )

    return {
        "Gaussian": gauss.loss,
        "sds_loss": arm(prior.trust(start)),
        "likelihood": arm(False, sigma=0.25, group_weights=LIKELIHOOD),
        "given": arm(prior.trust(start, given), uncertainty=given),
        "measured": arm(prior.trust(start, found), uncertainty=found),
    }


def compare(before: Tensor, after: Tensor, draws: int, seed: int) -> dict[str, Any]:
    """Of errors (3, factors, N) without and with a prior: ratios of means with their spread, and shares made worse."""
    number = before.shape[-1]
    pick = torch.randint(number, (draws, number), generator=torch.Generator().manual_seed(seed))
    ratio = after.mean(-1) / before.mean(-1)
    ratio = torch.where(before.mean(-1) < _NO_ERROR, torch.nan, ratio)
    spread = (after[..., pick].mean(-1) / before[..., pick].mean(-1)).std(-1)
    result: dict[str, Any] = {}
    for row, metric in enumerate(METRICS):
        worse = {f"worse by > {limit}": (after[row] > before[row] + limit).float().mean(-1) for limit in (1, 5)}
        result[metric] = {"error": after[row].mean(-1), "ratio": ratio[row], "std": spread[row], **worse}
    return result


class Errors(NamedTuple):
    """Errors (3, factors, N): of the start, of the loop without a prior, and with each prior."""

    initial: Tensor
    before: Tensor
    after: dict[str, Tensor]


def measure(prior: TwoHandPrior, gauss: GaussianPrior, pairs: Pairs, loop: str, steps: int, seed: int) -> Errors:
    """One loop on one kind of pairs, at all factors at once: no pair of a batch touches another."""
    believed, sees, depth = LOOPS[loop]
    many = len(FACTORS)
    draw = lambda: torch.Generator().manual_seed(seed + 1)
    noise = BASE._replace(depth=depth)
    start = TwoHands.cat([fits.started(pairs.hands, noise.scaled(factor), draw()).hands for factor in FACTORS])
    truth = TwoHands.cat([pairs.hands] * many)
    factor = torch.tensor(FACTORS).repeat_interleave(len(pairs.hands))
    held = factor.clamp_min(_EXACT) if believed is None else torch.full_like(factor, believed)
    data, scale = deviations(held, depth), held[:, None]
    seen = None
    if sees:
        seen = fits.seen_as(pairs.joints, pairs.order, BASE.keypoint, draw(), dims=2)
        seen = replace(seen, joints=seen.joints.repeat(many, 1, 1, 1), confidence=seen.confidence.repeat(many, 1, 1))
    of = lambda hands: errors(hands, truth).unflatten(-1, (many, -1))
    initial = of(start)
    before = of(fit(start, data, None, seen, steps, scale)) if sees else initial
    priors = arms(prior, gauss, start, deviations(factor, depth), seed)
    return Errors(
        initial, before, {name: of(fit(start, data, arm, seen, steps, scale)) for name, arm in priors.items()}
    )


def curve(parts: Sequence[Errors]) -> dict[str, Any]:
    """Means and ratios over the pairs of several seeds."""
    join = lambda values: torch.cat(list(values), -1)
    initial, before = join(part.initial for part in parts), join(part.before for part in parts)
    result: dict[str, Any] = {
        "initial error": dict(zip(METRICS, initial.mean(-1), strict=True)),
        "error without": dict(zip(METRICS, before.mean(-1), strict=True)),
        "arms": {},
    }
    for name in parts[0].after:
        row = compare(before, join(part.after[name] for part in parts), 500, 0)
        result["arms"][name] = row
        print(f"    {name:10s}", *(f"{m} {' '.join(f'{v:.3f}' for v in row[m]['ratio'])}" for m in METRICS), flush=True)
    return result


def table(result: Mapping[str, Any]) -> str:
    """Ratios of error with over error without; at no initial error, where there is no ratio, the error itself."""
    names = ("given", "measured", "sds_loss", "likelihood", "Gaussian")
    factors = result["numbers"]["factors"]
    lines = [
        "| pairs | loop | error | without, at 1 | at 0: error with | "
        + " | ".join(f"{f:g}" for f in factors[1:])
        + " |",
        "|---" * (len(factors) + 4) + "|",
    ]
    for kind, loops in result["numbers"]["pairs"].items():
        for loop, cell in loops.items():
            for metric in METRICS:
                rows = [cell["arms"][name][metric] for name in names]
                at = factors.index(1.0)
                values = [
                    f"{cell['error without'][metric][at]:.1f}",
                    " / ".join(f"{row['error'][0]:.1f}" for row in rows),
                ]
                for i in range(1, len(factors)):
                    values.append(f"{rows[0]['ratio'][i]:.3f} ± {rows[0]['std'][i]:.3f} / " + " / ".join(
                        f"{row['ratio'][i]:.2f}" for row in rows[1:]))  # fmt: skip
                lines.append(f"| {kind} | {loop} | {metric} | " + " | ".join(values) + " |")
    lines += [
        "",
        "| pairs | prior | highest ratio of MPJPE, rotation, MRRPE | most pairs worse by > 1 / 5 mm: MPJPE | MRRPE |",
        "|---|---|---|---|---|",
    ]
    for kind, loops in result["numbers"]["pairs"].items():
        for name in names:
            cells = [cell["arms"][name] for cell in loops.values()]
            highest = (f"{max(v for cell in cells for v in cell[m]['ratio'][1:]):.3f}" for m in METRICS)
            most = lambda metric, limit, cells=cells: max(v for c in cells for v in c[metric][f"worse by > {limit}"])
            worse = (f"{most(m, 1):.0%} / {most(m, 5):.0%}" for m in ("MPJPE", "MRRPE"))
            lines.append(f"| {kind} | {name} | {', '.join(highest)} | {' | '.join(worse)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and write results/do_no_harm.json."""
    parser = argparse.ArgumentParser(description="Error with the prior over error without it, by initial error.")
    parser.add_argument("--data", type=Path, help="corpus folder; default: samples of the prior (a smoke test only)")
    parser.add_argument("--leap", type=Path, help="an .npz of real frames: joints_l, joints_r, confidence, recording")
    parser.add_argument("--prior", default="bundled")
    parser.add_argument("--num", type=int, default=128, help="pairs of each kind and seed")
    parser.add_argument("--train", type=int, default=20000, help="pairs that the Gaussian is fitted to, at most")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the pairs' turns and all errors")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    train, held_out = splits(args.data, prior, args.num, args.train, "test")
    if prior.require_calibration().noise_table is None:
        pairs = train if args.data is None else read_pairs(args.data, "val")
        prior.calibration = replace(prior.require_calibration(), noise_table=noise_table(prior, pairs))
    gauss = GaussianPrior(prior, train)
    kinds = {
        "corpus": lambda seed: corpus_pairs(held_out, prior, seed),
        "20 cm apart": lambda seed: corpus_pairs(held_out, prior, seed, apart=0.2),
    }
    if args.leap is not None:
        real = leap_pairs(args.leap, prior, args.num)
        kinds["real"] = lambda seed: real
    made = {kind: [make(seed) for seed in args.seeds] for kind, make in kinds.items()}
    numbers: dict[str, Any] = {
        "factors": FACTORS,
        "full errors": BASE._asdict(),
        "num": {kind: sum(len(pairs.hands) for pairs in parts) for kind, parts in made.items()},
        "steps": args.steps,
        "seeds": args.seeds,
        "pairs": {},
    }
    for kind, parts in made.items():
        numbers["pairs"][kind] = {}
        for loop in args.loops:
            print(f"{kind}, {loop}", flush=True)
            found = [
                measure(prior, gauss, pairs, loop, args.steps, seed)
                for pairs, seed in zip(parts, args.seeds, strict=True)
            ]
            numbers["pairs"][kind][loop] = curve(found)
    write_result("do_no_harm", numbers, folder=args.out)
    return numbers


if __name__ == "__main__":
    main()
