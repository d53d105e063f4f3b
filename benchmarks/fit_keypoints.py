"""Does the prior help a fit, and does it harm one? Without a prior, with a Gaussian, with `sds_loss`.

    python benchmarks/fit_keypoints.py --data CORPUS [--prior FOLDER]                  # (a)
    python benchmarks/fit_keypoints.py --data CORPUS --leap leap_two_hand.npz          # (b)
    python benchmarks/fit_keypoints.py --data CORPUS --sweep                           # settings, on validation pairs

(a) Held-out pairs of a corpus, turned at random, seen as 2D orthographic keypoints together with a noisy start, as an
    estimator gives one, held by the standard deviations of its noise:

        depth 2 cm, 4 cm   the relative depth of the hands is ambiguous by as much
        good start         a quarter of the noise throughout
        20 cm apart        as the first, hands pushed apart to where the corpus has nothing
        clean 3D           exact 3D keypoints and no start

(b) Real frames of a Leap tracker, its 3D joints being the reference, seen in 2D from above with a noisy start (around
    a fit to the clean joints), and as noisy 3D and 2D keypoints with no start. The tracker's joints are not MANO's:
    linear combinations of the model's joints that fit them are learned on one recording and used on the others.

All arms see the same keypoints and starts. Penetration is the mean depth of the deepest vertex.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import write_result
from gaussian_baseline import GaussianPrior
from pairs import contact, example, splits
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior, sds_loss
from interhand_prior.canonical import SLICES, Frame, from_canonical, to_canonical
from interhand_prior.hands import HandPair
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle

fitting = example("fit_keypoints")
MANO = fitting.JOINT_ORDERS["mano"]
#: What the sweep compares: sigma, weight of fingers and shape, weight of the placement.
SETTINGS = (
    (0.454, 0.5, 0.1),
    *((sigma, 0.5, 0.1) for sigma in (0.2, 0.31, 0.588, 0.707, 0.809)),
    *((0.454, pose, 0.1) for pose in (0.25, 1.0)),
    *((0.454, 0.5, place) for place in (0.03, 0.25, 0.5)),
    *((0.707, 1.0, place) for place in (0.25, 0.5)),
)
Arm = Callable[[HandParams, HandParams], Tensor]


class Noise(NamedTuple):
    """Standard deviations of a start: radians, of betas, metres (between the hands; depth is z), of keypoints."""

    pose: float = 0.2
    rotation: float = 0.1
    betas: float = 0.3
    lateral: float = 0.007
    depth: float = 0.02
    keypoint: float = 0.003

    def scaled(self, factor: float) -> Noise:
        """All of it, times `factor`."""
        return Noise(*(factor * value for value in self))


class Case(NamedTuple):
    """One problem: where a fit starts, what it sees, the truth, the index of the wrist (None: no wrist), and how many
    times the usual steps it takes: from far away, more.
    """

    start: Any
    seen: Any
    truth: Tensor
    root: int | None = 0
    longer: int = 1


def turned(pairs: TwoHands, models: HandPair, generator: torch.Generator, apart: float = 0.0) -> TwoHands:
    """Pairs seen from random sides, their hands `apart` metres farther from each other."""
    anchor, partner, _ = to_canonical(pairs, models)
    partner = partner.clone()
    where = SLICES["transl"]
    partner[:, where] += apart * torch.nn.functional.normalize(partner[:, where], dim=-1)
    rotation = torch.linalg.qr(torch.randn(len(pairs), 3, 3, generator=generator))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()[:, None, None]
    return from_canonical(anchor, partner, models, Frame(rotation, torch.zeros(len(pairs), 3)))


def started(truth: TwoHands, noise: Noise, generator: torch.Generator) -> Any:
    """A start about the true parameters, as an estimator gives one."""
    half = 0.5**0.5  # the noise between the hands is shared by both
    move = torch.tensor((noise.lateral, noise.lateral, noise.depth)) * half
    draw = lambda value: torch.randn(value.shape, generator=generator)

    def noisy(hand: HandParams) -> HandParams:
        turn = axis_angle_to_matrix(noise.rotation * draw(hand.global_orient))
        return HandParams(
            matrix_to_axis_angle(turn @ axis_angle_to_matrix(hand.global_orient)),
            hand.hand_pose + noise.pose * draw(hand.hand_pose),
            hand.betas + noise.betas * draw(hand.betas),
            hand.transl + move * draw(hand.transl),
        )

    std = {"global_orient": noise.rotation, "hand_pose": noise.pose, "betas": noise.betas, "transl": move}
    return fitting.Start(TwoHands(noisy(truth.left), noisy(truth.right), truth.hands), std)


def seen_as(joints: Tensor, order: Any, std: float | Tensor, generator: torch.Generator, dims: int = 3) -> Any:
    """Keypoints with noise."""
    measured = joints[..., :dims] + std * torch.randn(joints[..., :dims].shape, generator=generator)
    trusted = std if isinstance(std, Tensor) else max(std, 0.0005)
    return fitting.Keypoints(measured, order, torch.ones(joints.shape[:-1]), trusted)


def corpus_cases(pairs: TwoHands, models: HandPair, seed: int) -> dict[str, Case]:
    """Experiment (a)."""
    cases = {}
    base = Noise()
    for name, noise, apart in (
        ("depth 2 cm", base, 0.0),
        ("depth 4 cm", base._replace(depth=0.04), 0.0),
        ("good start", base.scaled(0.25), 0.0),
        ("20 cm apart", base, 0.2),
    ):
        generator = torch.Generator().manual_seed(seed)
        truth = turned(pairs, models, generator, apart)
        joints = fitting.joints_of(truth, MANO)
        seen = seen_as(joints, MANO, noise.keypoint, generator, dims=2)
        cases[name] = Case(started(truth, noise, generator), seen, joints)
    generator = torch.Generator().manual_seed(seed)
    joints = fitting.joints_of(turned(pairs, models, generator), MANO)
    seen = replace(seen_as(joints, MANO, 0.0, generator), std=0.001)
    cases["clean 3D"] = Case(fitting.start_from(models, seen), seen, joints, longer=2)
    return cases


def leap_cases(path: Path, models: HandPair, num: int, seed: int) -> tuple[dict[str, Case], dict[str, Any]]:
    """Experiment (b), and facts about the file and the adaptation."""
    with np.load(path, allow_pickle=False) as archive:
        recording, sure = archive["recording"], (archive["confidence"] > 0.5).all(1)
    recording = recording[sure]
    joints, _ = fitting.read_keypoints(path, "leap", depth_axis="y")  # the device lies under the hands
    names, counts = np.unique(recording, return_counts=True)
    smallest = names[counts.argmin()]
    weights, residual = adapted(_spread(joints[torch.from_numpy(recording == smallest)], 60), models)
    joints = _spread(joints[torch.from_numpy(recording != smallest)], num)

    noise = Noise()
    draw = lambda: torch.Generator().manual_seed(seed)
    clean = replace(seen_as(joints, weights, 0.0, draw()), std=0.001)
    reference = fitting.fit(fitting.start_from(models, clean), clean, steps=150)
    own, _ = fitting.errors(fitting.joints_of(reference, weights), joints)
    cases = {}
    for name, depth in (("depth 2 cm", 0.02), ("depth 4 cm", 0.04)):
        generator = draw()
        seen = seen_as(joints, weights, noise.keypoint, generator, dims=2)
        cases[name] = Case(started(reference, noise._replace(depth=depth), generator), seen, joints, None)
    generator = draw()
    seen = seen_as(joints, weights, noise.keypoint / 4, generator, dims=2)
    cases["good start"] = Case(started(reference, noise.scaled(0.25), generator), seen, joints, None)
    cases["clean 3D, no start"] = Case(fitting.start_from(models, clean), clean, joints, None, 2)
    seen = seen_as(joints, weights, 0.01, draw())
    cases["3D with 1 cm noise, no start"] = Case(fitting.start_from(models, seen), seen, joints, None, 2)
    seen = seen_as(joints, weights, torch.tensor((0.003, 0.003, 0.03)), draw())
    cases["3D with 3 cm depth noise, no start"] = Case(fitting.start_from(models, seen), seen, joints, None, 2)
    generator = draw()
    seen = seen_as(joints, weights, noise.keypoint, generator, dims=2)
    rough = joints[..., 2].mean(-1)
    rough = rough + 0.04 * 0.5**0.5 * torch.randn(rough.shape, generator=generator)
    start = fitting.start_from(models, seen, depth=rough, depth_std=0.04 * 0.5**0.5)
    cases["2D with a rough depth, no start"] = Case(start, seen, joints, None, 2)
    facts = {
        "frames with confidence > 0.5 for both hands": len(recording),
        "recording for adapting the joints": str(smallest),
        "residual there, before and after, mm": residual,
        "residual on the other recordings, mm": float(own.mean()),
        "frames used": len(joints),
    }
    return cases, facts


def adapted(
    joints: Tensor, models: HandPair, rounds: int = 3, ridge: float = 1e-5
) -> tuple[Tensor, tuple[float, float]]:
    """Weights (20, 21) that make a tracker's joints from the model's, by turns with the hands that fit them.

    Ridge regression on (model joint j - model joint k), so that a joint's weights sum to one and stay near the joint k
    it stands for. Also the mean distance before and after, mm.
    """
    order = fitting.JOINT_ORDERS["leap"]
    weights = torch.eye(21)[list(order)]
    residuals = []
    for turn in range(rounds):
        seen = replace(seen_as(joints, weights, 0.0, torch.Generator()), std=0.001)
        hands = fitting.fit(fitting.start_from(models, seen), seen, steps=150)
        distance = (fitting.joints_of(hands, weights) - joints).norm(dim=-1)
        residuals.append(float(distance.mean()) * 1e3)
        if turn == rounds - 1:
            break
        model = fitting.joints_of(hands, MANO).flatten(0, 1)  # frames and sides, 21, 3
        target = joints.flatten(0, 1)
        weights = torch.eye(21)[list(order)]
        for row, k in enumerate(order):
            design = (model - model[:, k : k + 1]).mT.reshape(-1, 21)
            off = (target[:, row] - model[:, k]).reshape(-1)
            solution = torch.linalg.solve(design.T @ design + ridge * len(off) * torch.eye(21), design.T @ off)
            weights[row] += solution
            weights[row, k] -= solution.sum()
    return weights, (residuals[0], residuals[-1])


def _spread(values: Tensor, num: int) -> Tensor:
    return values[torch.linspace(0, len(values) - 1, min(num, len(values))).round().long()]


def run(case: Case, arms: Mapping[str, tuple[Arm | None, float]], steps: int, show: bool = True) -> dict[str, Any]:
    """Every arm on one case: mean errors in mm and the shares of pairs made worse than by the first arm."""
    base: tuple[Tensor, Tensor] | None = None
    rows: dict[str, Any] = {}
    start = fitting.errors(fitting.joints_of(case.start.hands, case.seen.order), case.truth, case.root)
    rows["start"] = {"MPJPE": float(start[0].mean()), "MRRPE": float(start[1].mean())}
    for name, (arm, weight) in arms.items():
        began = time.perf_counter()
        pairs = fitting.fit(case.start, case.seen, prior_loss=arm, weight=weight, steps=steps * case.longer)
        seconds = time.perf_counter() - began
        now = fitting.errors(fitting.joints_of(pairs, case.seen.order), case.truth, case.root)
        row: dict[str, Any] = {"MPJPE": float(now[0].mean()), "MRRPE": float(now[1].mean())}
        row["penetration"] = float(contact(pairs)[0].mean())
        if base is None:
            base = now
        else:
            for label, after, before in (("MPJPE", now[0], base[0]), ("MRRPE", now[1], base[1])):
                for limit in (1, 5):
                    row[f"share {label} worse by > {limit} mm"] = float((after > before + limit).float().mean())
        row["seconds"] = seconds
        rows[name] = row
        if show:
            facts = (f"{key.replace('share ', '')} {value:.3g}" for key, value in row.items())
            print(f"    {name:24s}", *facts, sep="  ", flush=True)
    return rows


def sds_arm(prior: TwoHandPrior, seed: int, **options: Any) -> Arm:
    """`sds_loss` as a regulariser with its own noise."""
    generator = torch.Generator().manual_seed(seed)
    return lambda left, right: sds_loss(prior, left, right, reduction="sum", generator=generator, **options)


def sweep_arms(prior: TwoHandPrior, gauss: GaussianPrior, seed: int) -> dict[str, tuple[Arm | None, float]]:
    """Levels and weights to choose from, without the gate."""
    arms: dict[str, tuple[Arm | None, float]] = {"none": (None, 0.0)}
    for weight in (0.1, 0.3, 1.0):
        arms[f"gauss {weight}"] = (gauss.loss, weight)
    for sigma, pose, place in SETTINGS:
        groups = {"hand_pose": pose, "betas": pose, "rot6d": place, "transl": place}
        arm = sds_arm(prior, seed, sigma=sigma, group_weights=groups, gate=False)
        arms[f"sigma {sigma} pose {pose} place {place}"] = (arm, 1.0)
    return arms


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and write results/fit_keypoints.json (fit_keypoints_leap.json, fit_keypoints_sweep.json)."""
    parser = argparse.ArgumentParser(description="Fits without a prior, with a Gaussian, and with sds_loss.")
    parser.add_argument("--data", type=Path, help="corpus folder; default: samples of the prior (a smoke test only)")
    parser.add_argument("--leap", type=Path, help="run (b) on this .npz: joints_l, joints_r, confidence, recording")
    parser.add_argument("--prior", default="bundled")
    parser.add_argument("--sweep", action="store_true", help="compare settings on the validation split")
    parser.add_argument("--num", type=int, default=None, help="pairs; default 128, on real frames 64")
    parser.add_argument("--train", type=int, default=20000, help="pairs that the Gaussian is fitted to, at most")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    split = "val" if args.sweep else "test"  # settings are never chosen on test pairs
    num = args.num or (64 if args.leap else 128)
    train, held_out = splits(args.data, prior, num, args.train, split)
    gauss = GaussianPrior(prior, train)
    numbers: dict[str, Any] = {"seed": args.seed, "steps": args.steps, "prior": prior.info}
    if args.leap is None:
        name = "fit_keypoints"
        numbers |= {"pairs": len(held_out), "data": "samples" if args.data is None else f"{split} split of a corpus"}
        cases = corpus_cases(held_out, prior.hands, args.seed)
    else:
        name = "fit_keypoints_leap"
        cases, facts = leap_cases(args.leap, prior.hands, num, args.seed)
        numbers |= facts
        print(facts)
    if args.sweep:
        name = "fit_keypoints_sweep"
        arms = sweep_arms(prior, gauss, args.seed)
    else:
        placed = {"rot6d": 0.5, "transl": 0.5}
        arms = {
            "no prior": (None, 0.0),
            "Gaussian, weight 0.3": (gauss.loss, 0.3),
            "Gaussian, weight 1": (gauss.loss, 1.0),
            "sds_loss": (sds_arm(prior, args.seed), 1.0),
            "sds_loss, no gate": (sds_arm(prior, args.seed, gate=False), 1.0),
            "sds_loss, no gate, placement 0.5": (sds_arm(prior, args.seed, gate=False, group_weights=placed), 1.0),
        }
    numbers["cases"] = {}
    for case_name, case in cases.items():
        print(case_name)
        numbers["cases"][case_name] = run(case, arms, args.steps)
    write_result(name, numbers, folder=args.out)
    return numbers


if __name__ == "__main__":
    main()
