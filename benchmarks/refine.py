"""`prior.refine` on noisy pairs, and `prior.complete_fingers` on pairs that lack fingers.

    python benchmarks/refine.py --data CORPUS        # a quarter of an hour of one core

Noise: independent and normal on every finger angle, on both global rotations, both translations and the shapes of held
out pairs; `refine` is told its standard deviations. PenVol is exact (`metrics.penetration`); MPJPE and MPVPE are
root-relative, of each hand, MRRPE is the error of the vector from wrist to wrist; touch is the share of pairs nearer
than 3 mm among those whose truth is. Beside it: the noisy pairs, the prior without separating the hands, and
separating them without the prior. Times are of the processor, on one thread; pairs a second, of one process and of two
at once, by the clock.

Completion: the fingers named are missing on the right hand; errors of their joints and tips (the knuckle apart, which
stays), mm, against those of the corpus' mean pose.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from common import write_result
from pairs import errors, example, read_pairs
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior
from interhand_prior.canonical import SLICES
from interhand_prior.geometry import min_distance
from interhand_prior.metrics.penetration import penetration_volume
from interhand_prior.repair.completion import FINGERS

NOISE: dict[str, dict[str, float]] = {
    "light": {"hand_pose": 0.1, "global_orient": 0.05, "transl": 0.005, "betas": 0.25},
    "usual": {"hand_pose": 0.2, "global_orient": 0.1, "transl": 0.01, "betas": 0.5},
    "heavy": {"hand_pose": 0.3, "global_orient": 0.15, "transl": 0.015, "betas": 0.75},
}
"""Standard deviations: radians, metres, units of betas."""
MISSING = (("index",), ("thumb",), ("middle", "ring"), FINGERS)
TOUCH = 0.003
#: Where a finger's second and third joint and its tip are among the 21 joints.
_JOINTS = {"index": (2, 3, 17), "middle": (5, 6, 18), "pinky": (8, 9, 20), "ring": (11, 12, 19), "thumb": (14, 15, 16)}


@torch.no_grad()
def measured(hands: TwoHands, truth: TwoHands, before: Mapping[str, Tensor], touching: Tensor) -> dict[str, Any]:
    """Means over pairs, and which share is worse than before."""
    after, volume = errors(hands, truth), penetration_volume(hands, workers=1)
    numbers: dict[str, Any] = {name: value.mean() for name, value in after.items()}
    numbers |= {"PenVol_cm3": volume.cm3.nanmean(), "PenVol_failed": int(volume.failed.sum())}
    numbers["touch"] = (min_distance(*hands.vertices()) < TOUCH)[touching].double().mean()
    for name, value in after.items():
        for limit in (1, 5):
            numbers[f"{name}_worse_by_{limit}_mm"] = (value > before[name] + limit).double().mean()
    return numbers


def refined(prior: TwoHandPrior, truth: TwoHands, noise: Mapping[str, float], seed: int) -> dict[str, dict[str, Any]]:
    """Every way on the same noisy pairs."""
    noisy = example("refine_noisy_pair").add_noise(truth, noise, torch.Generator().manual_seed(seed))
    stds = dict(zip(("pose_std", "rotation_std", "translation_std", "betas_std"), noise.values(), strict=True))
    run: Callable[..., TwoHands] = lambda **options: prior.refine(noisy, **stds, seed=seed, **options)
    ways: dict[str, Callable[[], TwoHands]] = {
        "nothing": lambda: noisy,
        "prior alone": lambda: run(penetration_scale=0.0),
        "separation alone": lambda: run(weight=0.0, steps=1, gate=False),
        "refine": run,
    }
    before, touching = errors(noisy, truth), min_distance(*truth.vertices()) < TOUCH
    rows = {}
    for name, way in ways.items():
        began = time.process_time()
        hands = way()
        seconds = time.process_time() - began
        rows[name] = {"ms_per_pair": 1e3 * seconds / len(truth), **measured(hands, truth, before, touching)}
    return rows


def completed(prior: TwoHandPrior, truth: TwoHands, fingers: tuple[str, ...], num: int, seed: int) -> dict[str, float]:
    """Errors of the joints that were drawn, means over pairs, mm."""
    mask = torch.tensor([name in fingers for name in FINGERS])
    began = time.process_time()
    found = prior.complete_fingers(truth, None, mask, num, seed=seed).right
    seconds = time.process_time() - began
    chosen = [joint for name in fingers for joint in _JOINTS[name]]
    truly = truth.model.right.joints21(truth.right)[:, chosen]

    def error(pose: Tensor) -> Tensor:
        """Of poses (..., N, 45): (..., N)."""
        hand = truth.right.expand(*pose.shape[:-1])
        joints = truth.model.right.joints21(HandParams(**{**hand.as_dict(), "hand_pose": pose}))
        return (joints[..., chosen, :] - truly).norm(dim=-1).mean(-1) * 1e3

    mean = prior.normalizer.mean[SLICES["hand_pose"]].expand_as(truth.right.hand_pose)
    missing = found.hand_pose[0] != truth.right.hand_pose
    each = error(found.hand_pose)
    return {
        "mean_pose": float(error(torch.where(missing, mean, truth.right.hand_pose)).mean()),
        "one_sample": float(each.mean()),
        "best_of_samples": float(each.amin(0).mean()),
        "mean_of_samples": float(error(found.hand_pose.mean(0)).mean()),
        "ms_per_sample": 1e3 * seconds / (num * len(truth)),
    }


def throughput(data: Path, prior: str, pairs: int, processes: int) -> float:
    """Pairs a second of so many processes with one thread each, by the clock, all of them at work at once."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    times = context.SimpleQueue()
    workers = [context.Process(target=_at_work, args=(data, prior, pairs, together, times)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a process that refines ended with {worker.exitcode}")
    spans = [times.get() for _ in workers]
    return processes * pairs / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def _at_work(data: Path, source: str, pairs: int, together: Barrier, times: SimpleQueue[tuple[float, float]]) -> None:
    torch.set_num_threads(1)
    prior, noise = load_prior(source), NOISE["usual"]
    noisy = example("refine_noisy_pair").add_noise(
        read_pairs(data, "test", pairs), noise, torch.Generator().manual_seed(0)
    )
    stds = dict(zip(("pose_std", "rotation_std", "translation_std", "betas_std"), noise.values(), strict=True))
    prior.refine(noisy[:8], **stds, seed=0)
    together.wait()
    began = time.monotonic()
    prior.refine(noisy, **stds, seed=0)
    times.put((began, time.monotonic()))


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds and largest less smallest."""
    values = {key: torch.tensor([float(row[key]) for row in rows], dtype=torch.float64) for key in rows[0]}
    return {key: {"mean": value.mean(), "spread": value.max() - value.min()} for key, value in values.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure and write benchmarks/results/refine.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a corpus")
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--num", type=int, default=256, help="test pairs")
    parser.add_argument("--completed", type=int, default=64, help="of them, pairs that lack fingers")
    parser.add_argument("--samples", type=int, default=8, help="completions of each")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    prior = load_prior(options.prior)
    truth = read_pairs(options.data, "test", options.num)
    numbers: dict[str, Any] = {"pairs": len(truth), "seeds": options.seeds, "noise": NOISE, "refinement": {}}
    numbers["truth_PenVol_cm3"] = penetration_volume(truth, workers=1).cm3.nanmean()
    for name, noise in NOISE.items():
        runs = [refined(prior, truth, noise, seed) for seed in range(options.seeds)]
        rows = {way: over_seeds([run[way] for run in runs]) for way in runs[0]}
        numbers["refinement"][name] = rows
        print(name, {way: float(row["PenVol_cm3"]["mean"]) for way, row in rows.items()}, flush=True)
    # The clock of a shared machine wavers: five times each, in turns.
    rates = [[throughput(options.data, options.prior, len(truth), n) for n in (1, 2)] for _ in range(5)]
    numbers["pairs_per_second"] = {"1": [rate for rate, _ in rates], "2": [rate for _, rate in rates]}
    few = truth[torch.linspace(0, len(truth) - 1, min(options.completed, len(truth))).round().long()]
    numbers |= {"completed_pairs": len(few), "samples": options.samples}
    numbers["completion"] = {
        ", ".join(fingers): over_seeds(
            [completed(prior, few, fingers, options.samples, s) for s in range(options.seeds)]
        )
        for fingers in MISSING
    }
    print(write_result("refine", numbers).read_text(), end="")


def table(result: dict[str, Any]) -> str:
    """What benchmarks/README.md shows of results/refine.json."""
    numbers = result["numbers"]
    lines = ["| noise | way | PenVol cm³ | MPJPE mm | MPVPE mm | MRRPE mm | touch | MRRPE worse by 1 / 5 mm | ms |"]
    lines.append("|---" * 9 + "|")
    for noise, rows in numbers["refinement"].items():
        for way, row in rows.items():
            mean = {key: value["mean"] for key, value in row.items()}
            worse = " / ".join(f"{100 * mean[f'MRRPE_worse_by_{limit}_mm']:.0f} %" for limit in (1, 5))
            errors_mm = " | ".join(f"{mean[key]:.2f}" for key in ("MPJPE", "MPVPE", "MRRPE"))
            lines.append(
                f"| {noise} | {way} | {mean['PenVol_cm3']:.3f} | {errors_mm} | {mean['touch']:.2f} | {worse} "
                f"| {mean['ms_per_pair']:.1f} |"
            )
    rate = numbers["pairs_per_second"]
    said = [f"{statistics.median(rate[n]):.0f} ({min(rate[n]):.0f} to {max(rate[n]):.0f})" for n in ("1", "2")]
    lines += [
        "",
        f"Pairs a second, median and range of five: {said[0]} of one process with one thread, {said[1]} of two.",
    ]
    lines += ["", "| missing | mean pose | one sample | best | mean of samples |", "|---|---|---|---|---|"]
    for fingers, row in numbers["completion"].items():
        keys = ("mean_pose", "one_sample", "best_of_samples", "mean_of_samples")
        lines.append(f"| {fingers} | " + " | ".join(f"{row[key]['mean']:.1f}" for key in keys) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
