"""What `prior.score` sees: AUROC of real test pairs against corrupted ones, for each part of the score.

    python benchmarks/score.py --data CORPUS                  # 3 x 500 test pairs; some two minutes of one core
    python benchmarks/score.py --data CORPUS --bound 4000     # and what a larger classifier sees; two minutes more

The prior was calibrated on the validation split; nothing here was fitted on the test split. Every seed has test pairs
of its own. Real pairs and corrupted copies of the same pairs are told apart by one part of the score alone: of the
pair, of the placement, of the less plausible hand, of the least plausible finger. "touching" are the pairs whose
vertices come within 5 mm of each other; half of the corpus is only loosely near, where 3 cm more or less are as
plausible.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import best_of, write_result
from pairs import contact, read_pairs
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior
from interhand_prior.canonical import SLICES, canonical_pair, from_canonical, to_canonical
from interhand_prior.geometry import nearest_vertices
from interhand_prior.plausibility import Score
from interhand_prior.plausibility.scoring import gather_evidence
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d, rot6d_to_matrix

TOUCH_MM = 5.0
PARTS = ("pair", "placement", "hands", "fingers")
_OFFSET, _ROTATION = SLICES["transl"], SLICES["rot6d"]

Corrupt = Callable[[TwoHands, torch.Generator], TwoHands]


def noised(radians: float) -> Corrupt:
    """Normal noise on every finger joint of both hands."""

    def corrupt(pairs: TwoHands, generator: torch.Generator) -> TwoHands:
        noise = lambda hand: radians * torch.randn(hand.hand_pose.shape, generator=generator)
        shake = lambda hand: HandParams(hand.global_orient, hand.hand_pose + noise(hand), hand.betas, hand.transl)
        return TwoHands(shake(pairs.left), shake(pairs.right), pairs.hands)

    return corrupt


def moved(change: Callable[[Tensor, torch.Generator], Tensor]) -> Corrupt:
    """The right hand changed as a vector (N, 64) in the left hand's frame, metres and radians."""

    def corrupt(pairs: TwoHands, generator: torch.Generator) -> TwoHands:
        anchor, partner, frame = to_canonical(pairs, pairs.model)
        return from_canonical(anchor, change(partner.clone(), generator), pairs.model, frame)

    return corrupt


def turned(degrees: float) -> Corrupt:
    """About any axis through the middle knuckle."""

    def change(partner: Tensor, generator: torch.Generator) -> Tensor:
        turn = axis_angle_to_matrix(math.radians(degrees) * directions(len(partner), generator))
        partner[:, _ROTATION] = matrix_to_rot6d(turn @ rot6d_to_matrix(partner[:, _ROTATION]))
        return partner

    return moved(change)


def shifted(metres: float) -> Corrupt:
    """In any direction."""

    def change(partner: Tensor, generator: torch.Generator) -> Tensor:
        partner[:, _OFFSET] += metres * directions(len(partner), generator)
        return partner

    return moved(change)


def swapped(*, shape: bool) -> Corrupt:
    """The right hand of another pair in the place of this one's, with its shape or the pose alone."""
    part = SLICES["own"] if shape else SLICES["hand_pose"]

    def change(partner: Tensor, generator: torch.Generator) -> Tensor:
        count = len(partner)
        other = (torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count
        partner[:, part] = partner[other, part]
        return partner

    return moved(change)


def mirrored(axis: int) -> Corrupt:
    """Place and rotation reflected in a plane of the left hand's frame: 0 along its fingers, 1 across its palm."""

    def change(partner: Tensor, generator: torch.Generator) -> Tensor:
        sign = torch.ones(3)
        sign[axis] = -1
        partner[:, _ROTATION] = matrix_to_rot6d(sign[:, None] * rot6d_to_matrix(partner[:, _ROTATION]) * sign)
        partner[:, _OFFSET] *= sign
        return partner

    return moved(change)


def pushed(metres: float) -> Corrupt:
    """Until the nearest vertices meet, and on towards the other hand's middle."""

    def corrupt(pairs: TwoHands, generator: torch.Generator) -> TwoHands:
        left, right = pairs.vertices()
        square, index = nearest_vertices(right, left)
        row, at = torch.arange(len(pairs)), square.argmin(-1)
        gap = left[row, index[row, at]] - right[row, at]
        inwards = torch.nn.functional.normalize(left.mean(-2) - right.mean(-2), dim=-1)
        values = pairs.right.as_dict() | {"transl": pairs.right.transl + gap + metres * inwards}
        return TwoHands(pairs.left, HandParams(**values), pairs.hands)

    return corrupt


def directions(count: int, generator: torch.Generator) -> Tensor:
    """(N, 3) unit vectors, even over the sphere."""
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)


CORRUPTIONS: dict[str, Corrupt] = {
    "fingers noised by 0.1 rad": noised(0.1),
    "fingers noised by 0.2 rad": noised(0.2),
    "turned by 45 degrees": turned(45),
    "turned by 90 degrees": turned(90),
    "3 cm of translation": shifted(0.03),
    "another pair's hand": swapped(shape=True),
    "another pair's pose": swapped(shape=False),
    "pushed 1 cm into each other": pushed(0.01),
    "mirrored through the palm": mirrored(1),
    "mirrored along the fingers": mirrored(0),
}
"""What a corpus pair may suffer."""


def parts(found: Score) -> dict[str, Tensor]:
    """(N,) for each of `PARTS`."""
    return {
        "pair": found.pair,
        "placement": found.placement,
        "hands": torch.minimum(found.left, found.right),
        "fingers": torch.cat((found.left_fingers, found.right_fingers), -1).amin(-1),
    }


def auroc(real: Tensor, wrong: Tensor) -> float:
    """Share of (real, wrong) couples in which the real one is more plausible; equal ones count half."""
    less = (wrong[None] < real[:, None]).double()
    return (less + 0.5 * (wrong[None] == real[:, None])).mean().item()


def unevenness(shares: Tensor) -> float:
    """Kolmogorov-Smirnov distance of values (N,) from the uniform distribution."""
    count = len(shares)
    at = shares.double().sort().values
    return max((torch.arange(1, count + 1) / count - at).max().item(), (at - torch.arange(count) / count).max().item())


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    found = torch.tensor(values)
    return {"mean": found.mean().item(), "std": found.std().item() if len(values) > 1 else 0.0}


def separation(prior: TwoHandPrior, samples: list[TwoHands]) -> dict[str, Any]:
    """AUROC of every corruption and part, and how even the scores of real pairs are, over seeds."""
    rows: dict[str, Any] = {name: {kind: {part: [] for part in PARTS} for kind in ("all", "touching")}
                            for name in CORRUPTIONS}  # fmt: skip
    even: dict[str, list[float]] = {}
    mean: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    for seed, pairs in enumerate(samples):
        touching = contact(pairs)[1] < TOUCH_MM
        generator = torch.Generator().manual_seed(seed)
        found = prior.score(pairs)
        real = parts(found)
        for name, value in vars(found).items():
            even.setdefault(name, []).append(max(unevenness(column) for column in value.reshape(len(pairs), -1).T))
        for name, corrupt in CORRUPTIONS.items():
            wrong = parts(prior.score(corrupt(pairs, generator)))
            mean[name].append(wrong["pair"].mean().item())
            for part in PARTS:
                rows[name]["all"][part].append(auroc(real[part], wrong[part]))
                rows[name]["touching"][part].append(auroc(real[part][touching], wrong[part][touching]))
    table = {name: {kind: {part: spread(v) for part, v in cols.items()} for kind, cols in row.items()}
             for name, row in rows.items()}  # fmt: skip
    return {
        "auroc": table,
        "mean score of corrupted pairs": {name: spread(values) for name, values in mean.items()},
        "distance from uniform on real pairs": {name: spread(values) for name, values in even.items()},
    }


#: Whose bound is worth knowing: what the score sees least of.
HARD = ("3 cm of translation", "another pair's pose")


def bound(prior: TwoHandPrior, train: TwoHands, test: TwoHands) -> dict[str, Any]:
    """AUROC of classifiers that know the corruption: one for each of `HARD`, eight times as wide as a critic, fitted on
    that corruption alone, on many training pairs, and shown both hands' vectors besides the critics' evidence.

    Where these fail too, the corrupted pair is as plausible as the real one.
    """

    def seen(pairs: TwoHands) -> Tensor:
        partner, _ = canonical_pair(prior, pairs)
        vectors = torch.cat((partner, partner.flip(0)), -1).transpose(0, 1)
        return torch.cat((gather_evidence(prior, pairs)[1], vectors), -1)

    generator = torch.Generator().manual_seed(1234)
    touching = contact(test)[1] < TOUCH_MM
    real_train, real_test = seen(train), seen(test)
    rows = {}
    for name in HARD:
        classify = classifier(real_train, seen(CORRUPTIONS[name](train, generator)))
        real, wrong = classify(real_test), classify(seen(CORRUPTIONS[name](test, generator)))
        rows[name] = {
            "all": auroc(real, wrong),
            "touching": auroc(real[touching], wrong[touching]),
            "apart": auroc(real[~touching], wrong[~touching]),
        }
    return {"training pairs": len(train), "test pairs": len(test), "auroc": rows}


def classifier(real: Tensor, wrong: Tensor, width: int = 256, epochs: int = 20) -> Callable[[Tensor], Tensor]:
    """A network of two hidden layers, from (N, 2, E) to logits (N,): the mean over both views."""
    x = torch.cat((real, wrong))
    target = torch.cat((torch.ones(len(real)), torch.zeros(len(wrong))))
    std, mean = torch.std_mean(x, (0, 1))
    std = std.clamp_min(1e-3)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(x.shape[-1], width), torch.nn.SiLU(), torch.nn.Dropout(0.3),
        torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1),
    )  # fmt: skip
    logits = lambda value: network(((value - mean) / std).clamp(-5, 5)).squeeze(-1).mean(-1)
    steps = epochs * len(x) // 256
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(x[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    return lambda value: logits(value).detach()


def table(result: Mapping[str, Any]) -> str:
    """AUROC of the parts, mean and deviation over seeds, on all pairs; of the pair's score also on touching ones."""
    lines = ["| corruption | pair | placement | hands | fingers | pair, touching |", "|---|---|---|---|---|---|"]
    say = lambda cell: f"{cell['mean']:.3f} +- {cell['std']:.3f}"
    for name, row in result["numbers"]["auroc"].items():
        cells = [say(row["all"][part]) for part in PARTS] + [say(row["touching"]["pair"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(prior: TwoHandPrior, pairs: TwoHands) -> float:
    """Pairs scored in a second of one core."""
    return len(pairs) / best_of(lambda: prior.score(pairs), repeats=3, clock=time.process_time)


def main(argv: list[str] | None = None) -> None:
    """Measure and write `results/score.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="corpus folder, for its test pairs")
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--num", type=int, default=500, help="test pairs of one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bound", type=int, default=0, metavar="N", help="training pairs for the larger classifiers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    prior = load_prior(args.prior)
    test = read_pairs(args.data, "test", args.num * args.seeds)
    samples = [test[seed :: args.seeds] for seed in range(args.seeds)]
    numbers: dict[str, Any] = {"pairs of one seed": len(samples[0]), "seeds": args.seeds}
    numbers["touching share"] = (contact(test)[1] < TOUCH_MM).float().mean().item()
    numbers |= separation(prior, samples)
    numbers["pairs a second, one core"] = speed(prior, samples[0][:256])
    if args.bound:
        numbers["bound"] = bound(prior, read_pairs(args.data, "train", args.bound), samples[0])
    print(write_result("score", numbers).read_text(), end="")


if __name__ == "__main__":
    main()
