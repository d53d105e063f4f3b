"""Table 2: does `sds_loss` in the training of a reconstruction network make it more accurate?

    python benchmarks/reconstruction.py --data CORPUS --work FOLDER            # a quarter of an hour of one core a seed
    python benchmarks/reconstruction.py --data CORPUS --work FOLDER --sweep    # weights, on validation pairs

The paper adds its prior to InterWild, which learns in mixed batches from motion capture with everything and from
pictures from the wild with 2D joints alone. Here a network of a million parameters lifts noisy, partly hidden 2D joints
of two hands (`lifting`):

    motion capture   recordings of five kinds of interaction by people with hands of middling size, each from several
                     sides out of half of all directions; fully supervised
    in the wild      one picture each of all kinds, all sizes and all directions, nearer, farther and noisier;
                     supervised by the annotated joints that can be seen, in 2D

Both arms see the same pictures in the same order from the same first weights; one of them adds `sds_loss` on the hands
of the wild pictures, with the uncertainty that the other one shows on validation pictures, and weight 1 beside terms
that are likelihoods. As in InterWild, what is between the hands is learned from motion capture alone, and 2D labels
are of each hand by itself. How noisy the pictures are was set by the plain network's errors. Test pairs are new ones,
of the studio's kinds (mocap) and of all (wild). The bundled prior has seen the 3D pairs of the corpus' training split,
of which the wild pictures are, as the paper's has seen those of InterHand2.6M, on which it is tested; nobody has seen
the test split.

Two more arms fit hands to the detected joints (examples/fit_keypoints.py) from where the plain network puts them, held
by the errors that it makes on validation pictures, without and with `sds_loss`, whose uncertainty these errors are; a
last one has the prior in both places.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from lifting.learn import Pull, Training, train
from lifting.measure import lift
from lifting.network import Lifter
from lifting.refine import held, pull, refined
from lifting.scenes import MOCAP, WILD, Images, film
from pairs import METRICS, errors, read_pairs
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, load_prior
from interhand_prior.files import write_atomically
from interhand_prior.hands import HandPair

#: Kinds of interaction that the studio has recorded, and the first shape coefficient of its people, at most.
KINDS = ("clap", "thumbs", "steeple", "prayer", "clasp")
MIDDLING = 0.5
#: Pictures of a held-out pair of the studio's kinds, of which there are few.
SIDES = 4
VIEWS = {"mocap": MOCAP, "wild": WILD}
DOMAINS = tuple(VIEWS)
PLAIN, PRIOR = "network", "network with sds_loss"
FIT, FIT_PRIOR, BOTH = "network, then fit", "network, then fit with sds_loss", "sds_loss in both"
#: What each arm is compared with.
AGAINST = {PRIOR: PLAIN, FIT: PLAIN, FIT_PRIOR: FIT, BOTH: FIT}
#: The paper's Table 2: InterWild, and with the prior (InterHand2.6M, HIC).
PAPER = {
    "mocap": {"MPVPE": (13.01, 12.10), "MPJPE": (14.83, 14.53), "MRRPE": (29.29, 26.56)},
    "wild": {"MPVPE": (15.70, 15.04), "MPJPE": (16.17, 15.45), "MRRPE": (31.35, 26.63)},
}
#: What the sweep compares; the settings of the table are the defaults of `Pull`.
SWEEP = (
    *(Pull(weight=weight) for weight in (0.3, 1.0, 2.0)),
    Pull(transl=(0.02, 0.08)),
    Pull(transl=(0.0, 0.05), hand_pose=0.0, global_orient=0.0, betas=0.0),
)


@dataclass(frozen=True)
class Settings:
    """What a work folder was made with.

    Attributes:
        training: of the network.
        pull: of `sds_loss` in the training.
        recordings: of the studio.
        sides: pictures of each.
        wild: pictures from the wild.
        test: held-out pictures of each domain, at most.
        fit_steps: of Adam.
    """

    training: Training = field(default_factory=Training)
    pull: Pull = field(default_factory=Pull)
    recordings: int = 1500
    sides: int = 12
    wild: int = 18000
    test: int = 1000
    fit_steps: int = 60


def of_the_studio(pairs: TwoHands, size: float = float("inf")) -> Tensor:
    """Indices of the pairs of the studio's kinds whose hands are of middling size."""
    known = torch.from_numpy(np.isin(pairs.extras["archetype"], KINDS))
    return (known & (pairs.left.betas[:, 0].abs() < size)).nonzero()[:, 0]


def training_pictures(pairs: TwoHands, models: HandPair, settings: Settings, seed: int) -> dict[str, Images]:
    """Of both domains; a seed has its own recordings and pictures."""
    generator = torch.Generator().manual_seed(1000 + seed)
    chosen = of_the_studio(pairs, MIDDLING)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[: settings.recordings]]
    mocap = film(pairs[chosen.repeat(settings.sides)], models, MOCAP, generator)
    anybody = torch.randperm(len(pairs), generator=generator)[: settings.wild]
    return {"mocap": mocap, "wild": film(pairs[anybody], models, WILD, generator)}


def held_out_pictures(pairs: TwoHands, models: HandPair, number: int) -> dict[str, Images]:
    """Of both domains, the same for every seed."""
    generator = torch.Generator().manual_seed(7)
    mocap = film(_spread(pairs[of_the_studio(pairs).repeat(SIDES)], number), models, MOCAP, generator)
    return {"mocap": mocap, "wild": film(_spread(pairs, number), models, WILD, generator)}


def _spread(pairs: TwoHands, number: int) -> TwoHands:
    return pairs[torch.linspace(0, len(pairs) - 1, min(number, len(pairs))).round().long()]


class Bench:
    """The experiment in a work folder; what is finished there is kept.

    Args:
        data: a corpus.
        folder: of the work.
        prior: the regulariser.
        settings: of everything.

    Raises:
        SystemExit: the folder holds numbers of other settings.
    """

    def __init__(self, data: Path, folder: Path, prior: TwoHandPrior, settings: Settings) -> None:
        self.folder, self.prior, self.settings = folder, prior, settings
        self.models = prior.hands
        self._data = data
        self._pairs: dict[str, TwoHands] = {}
        self._pictures: dict[int, dict[str, Images]] = {}
        self._held_out: dict[str, dict[str, Images]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        path, now = folder / "settings.json", json.loads(json.dumps({**asdict(settings), "prior": prior.info}))
        if path.exists():
            stored = json.loads(path.read_text())
            changed = [f"{key} was {stored.get(key)}, is {now[key]}" for key in now if stored.get(key) != now[key]]
            if changed:
                raise SystemExit(f"{folder.name} holds numbers of other settings ({'; '.join(changed)}); other --work")
        write_atomically(path, json.dumps(now, indent=1).encode())

    def pairs(self, split: str) -> TwoHands:
        """Of the corpus."""
        if split not in self._pairs:
            self._pairs[split] = read_pairs(self._data, split, hands=self.models)
        return self._pairs[split]

    def pictures(self, seed: int) -> dict[str, Images]:
        """To learn from."""
        if seed not in self._pictures:
            self._pictures = {seed: training_pictures(self.pairs("train"), self.models, self.settings, seed)}
        return self._pictures[seed]

    def held_out(self, split: str) -> dict[str, Images]:
        """Pictures of a split that nobody learns from."""
        if split not in self._held_out:
            self._held_out[split] = held_out_pictures(self.pairs(split), self.models, self.settings.test)
        return self._held_out[split]

    def network(self, seed: int, pull: Pull | None) -> Lifter:
        """A trained lifter, without or with `sds_loss`."""
        name = "plain" if pull is None else "-".join(str(value) for value in asdict(pull).values())
        path = self.folder / f"{seed}-{name}.pt".replace(" ", "")
        network = Lifter(self.models).eval()
        if not path.exists():
            began = time.process_time()
            steps = self.settings.training.steps
            term = None if pull is None else pull.regulariser(self.prior, steps, seed)
            made = train(self.models, **self.pictures(seed), settings=self.settings.training, seed=seed, pull=term)
            print(f"seed {seed}, {name}: {time.process_time() - began:.0f} s", flush=True)
            half_done = path.with_suffix(".part")
            torch.save(made.state_dict(), half_done)
            half_done.replace(path)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network

    def row(self, seed: int) -> dict[str, Any]:
        """Errors of all arms of a seed on the test split: arm, domain, metric."""
        done = self.folder / f"{seed}.json"
        if done.exists():
            return json.loads(done.read_text())
        networks = {PLAIN: self.network(seed, None), PRIOR: self.network(seed, self.settings.pull)}
        rows: dict[str, Any] = {arm: {} for arm in (*networks, FIT, FIT_PRIOR, BOTH)}
        for domain, images in self.held_out("test").items():
            started = {arm: lift(network, images) for arm, network in networks.items()}
            known = {arm: held(network, self.held_out("val")[domain]) for arm, network in networks.items()}
            for arm, pairs in started.items():
                rows[arm][domain] = means(pairs, images)
            for arm, source, regularised in ((FIT, PLAIN, False), (FIT_PRIOR, PLAIN, True), (BOTH, PRIOR, True)):
                prior_loss = pull(self.prior, known[source], seed) if regularised else None
                pairs = refined(
                    started[source], images, known[source], VIEWS[domain].noise, prior_loss, self.settings.fit_steps
                )
                rows[arm][domain] = means(pairs, images)
        write_atomically(done, json.dumps(rows, indent=1).encode())
        return rows


def means(pairs: TwoHands, images: Images) -> dict[str, float]:
    """Mean errors in millimetres."""
    return {name: float(value.mean()) for name, value in errors(pairs, images.truth).items()}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of all errors, and of what each arm gains over the one it is compared with."""
    arms: dict[str, Any] = {}
    for arm in rows[0]:
        over = AGAINST.get(arm)
        arms[arm] = {} if over is None else {"gain": {"over": over}}
        for domain in DOMAINS:
            arms[arm][domain] = {name: _over_seeds([row[arm][domain][name] for row in rows]) for name in METRICS}
            if over is not None:
                arms[arm]["gain"][domain] = {
                    name: _over_seeds([100 * (1 - row[arm][domain][name] / row[over][domain][name]) for row in rows])
                    for name in METRICS
                }
    return arms


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": values,
    }


def table(result: Mapping[str, Any]) -> str:
    """Table 2: errors in mm, and in brackets what is gained; the paper's numbers below."""
    numbers = result["numbers"]
    lines = [
        "| | " + " | ".join(f"{domain} {name}" for domain in DOMAINS for name in METRICS) + " |",
        "|---" * (1 + len(DOMAINS) * len(METRICS)) + "|",
    ]
    for arm, row in numbers["arms"].items():
        cells = []
        for domain in DOMAINS:
            for name in METRICS:
                cell = row[domain][name]
                text = f"{cell['mean']:.2f}" + ("" if cell["std"] is None else f" ± {cell['std']:.2f}")
                if "gain" in row:
                    gain = row["gain"][domain][name]
                    text += f" ({gain['mean']:+.1f}" + ("" if gain["std"] is None else f" ± {gain['std']:.1f}") + " %)"
                cells.append(text)
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for index, label in enumerate(("paper: InterWild", "paper: InterWild with its prior")):
        cells = []
        for domain in DOMAINS:
            for name in METRICS:
                plain, ours = numbers["paper"][domain][name]
                cells.append(f"{plain:.2f}" if index == 0 else f"{ours:.2f} ({100 * (1 - ours / plain):+.1f} %)")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep(bench: Bench, seed: int, pulls: Sequence[Pull]) -> list[dict[str, Any]]:
    """Networks without and with `sds_loss` of several settings, on the validation split."""
    images = bench.held_out("val")
    measured = lambda pull: {d: means(lift(bench.network(seed, pull), i), i) for d, i in images.items()}
    plain = measured(None)
    rows: list[dict[str, Any]] = [{"pull": None, **plain}]
    for one in pulls:
        row = measured(one)
        gain = {d: {n: 100 * (1 - row[d][n] / plain[d][n]) for n in METRICS} for d in row}
        rows.append({"pull": asdict(one), **row, "gain": gain})
        print(one, {d: {n: round(v, 1) for n, v in g.items()} for d, g in gain.items()}, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and write results/reconstruction.json (reconstruction_sweep.json)."""
    parser = argparse.ArgumentParser(description="Table 2: a network's training without and with sds_loss.")
    parser.add_argument("--data", type=Path, required=True, help="a corpus with kinds of interaction")
    parser.add_argument("--work", type=Path, required=True, help="folder of the work; what is finished in it is kept")
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=Training().steps)
    parser.add_argument("--test", type=int, default=Settings().test, help="held-out pictures of each domain, at most")
    parser.add_argument("--sweep", action="store_true", help="compare settings on the validation split, first seed")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pictures: shows that it runs")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    args = parser.parse_args(argv)

    settings = Settings(Training(steps=args.steps), test=args.test)
    if args.quick:
        few = {"recordings": 8, "sides": 2, "wild": 16, "test": 8, "fit_steps": 3}
        settings = replace(settings, training=Training(steps=4, batch=8), **few)
    prior = load_prior(args.prior)
    bench = Bench(args.data, args.work, prior, settings)
    facts = {"settings": asdict(settings), "prior": prior.info, "kinds": KINDS}
    if args.sweep:
        pulls = SWEEP[:2] if args.quick else SWEEP
        numbers = {**facts, "seed": args.seeds[0], "rows": sweep(bench, args.seeds[0], pulls)}
        write_result("reconstruction_sweep", numbers, folder=args.out)
        return numbers
    rows = [bench.row(seed) for seed in args.seeds]
    parameters = sum(p.numel() for p in Lifter(prior.hands).parameters())
    numbers = {**facts, "seeds": args.seeds, "parameters": parameters, "arms": summary(rows), "paper": PAPER}
    write_result("reconstruction", numbers, folder=args.out)
    print(table({"numbers": numbers}))
    return numbers


if __name__ == "__main__":
    main()
