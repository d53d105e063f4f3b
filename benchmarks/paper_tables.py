"""Tables 1a, 3a and 3b of the paper, on a corpus of ours or on yours: every row, trained, sampled and measured alike.

    python benchmarks/paper_tables.py --work runs/paper_tables                      # makes the corpus, trains, prints
    python benchmarks/paper_tables.py --work runs/ih26m --data SHARDS --hands MANO_FOLDER --features train
    python benchmarks/paper_tables.py --quick                                       # the whole path, tiny, minutes

Every method has the same pairs, steps, batch size, optimiser and averaging, and goes through the same engine. All is
kept in the work folder and nothing in it is made twice, so a stopped run goes on with the same command; two runs
with other `--methods` and one work folder may share the work. Then

    WORK/corpus/                    the licence-free corpus, if no --data is given
    WORK/training/NAME/             one run of `interhand_prior.train` for each network
    WORK/samples/NAME/0-000.npz     repetition 0, part 0, of `--num` samples in parts of 1,000
    WORK/scores/NAME-0.json         the evaluation of one repetition
    WORK/reference/                 features of the test split

`--num 10000 --repeats 20` is the paper's protocol; the spread is that of independent draws of samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import write_result
from pairs import read_pairs
from tables import paper_tables as render

from interhand_prior import TwoHands, load_prior, sample
from interhand_prior.baselines import METHODS
from interhand_prior.files import write_atomically
from interhand_prior.hands import load_hands
from interhand_prior.metrics import evaluate
from interhand_prior.metrics.features import FeatureNetwork, load_feature_network
from interhand_prior.metrics.reference import Reference
from interhand_prior.train import TrainConfig

REAL = "training pairs"
BUNDLED = "bundled prior"

_TABLE_1A = ("fhid", "khid", "diversity", "precision", "recall", "penetration_volume")
_TABLE_3A = ("fhid", "precision", "diversity")
_TABLE_3B = ("penetration_volume", "penetration_distance", "proximity_ratio")
#: The paper's numbers, on InterHand2.6M with its own feature network: another data set, another scale.
PAPER: dict[str, dict[str, float]] = {
    "VAE": dict(zip(_TABLE_1A, (8.18, 0.0623, 2.32, 0.55, 0.02, 7.32), strict=True)),
    "BUDDI*": dict(zip(_TABLE_1A, (3.48, 0.0410, 2.71, 0.56, 0.47, 0.82), strict=True)),
    "Ours w/o Decomposition": dict(zip(_TABLE_1A, (2.09, 0.0075, 2.34, 0.86, 0.35, 3.10), strict=True)),
    "Ours w/o Shared Network": dict(zip(_TABLE_1A, (1.32, 0.0046, 2.46, 0.92, 0.42, 3.95), strict=True)),
    "Ours": dict(zip(_TABLE_1A, (1.00, 0.0015, 3.59, 0.86, 0.85, 0.76), strict=True))
    | dict(zip(_TABLE_3B, (0.76, 0.04, 0.97), strict=True)),
    "Ours w/o SelfAtt": dict(zip(_TABLE_3A, (2.87, 0.86, 3.16), strict=True)),
    "Ours w/o CFG": dict(zip(_TABLE_3A, (1.12, 0.84, 3.61), strict=True)),
    "Ours w/o APG": dict(zip(_TABLE_3B, (6.58, 0.40, 0.97), strict=True)),
}


@dataclass(frozen=True)
class Settings:
    """What decides the numbers; a work folder belongs to one of these.

    Attributes:
        steps: gradient steps of every method.
        batch_size: pairs per step.
        lr: peak learning rate.
        corpus: training, validation and test pairs of the corpus that is made when none is given.
        num: samples of each method in each repetition.
        sample_steps: denoising steps.
        evaluations: repetitions within one evaluation, of what draws subsets.
        reference: test pairs that samples are compared with, at most.
        seed: of everything.
        features: "bundled", "train" (on the data's training pairs), or a folder.
        sizes: options of the networks, by training; only --quick has any.
    """

    steps: int = 4000
    batch_size: int = 512
    lr: float = 8e-4
    ema: float = 0.999
    corpus: tuple[int, int, int] = (100_000, 2_000, 10_000)
    num: int = 10_000
    sample_steps: int = 25
    evaluations: int = 20
    reference: int = 10_000
    seed: int = 0
    features: str = "bundled"
    quick: bool = False

    @property
    def train(self) -> TrainConfig:
        """Of every method, whatever it is."""
        return TrainConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            ema=self.ema,
            seed=self.seed,
            val_every=max(1, self.steps // 2),
            threads=torch.get_num_threads(),
        )

    @property
    def part(self) -> int:
        """Samples in one file."""
        return min(1000, self.num)


QUICK = Settings(
    steps=20,
    batch_size=32,
    ema=0.5,
    corpus=(120, 60, 120),
    num=96,
    sample_steps=4,
    evaluations=3,
    reference=120,
    quick=True,
)


class Work:
    """The work folder: each of its products is made when it is first asked for."""

    def __init__(self, folder: Path, settings: Settings, data: Path | None, hands: Any, progress: bool) -> None:
        self.folder = folder
        self.settings = settings
        self.hands = None if hands is None else load_hands(hands)
        self.progress = progress
        self.data = data if data is not None else self._corpus()
        self._remember()

    def method(self, name: str) -> Any:
        """A trained method, or the prior of the package."""
        if name == BUNDLED:
            return load_prior(hands=self.hands)
        entry = METHODS[name]
        out = self.folder / "training" / entry.training
        if (out / "done").exists():
            return entry.load(out, hands=self.hands)
        say(f"training {entry.training}")
        network = entry.method.small_network if self.settings.quick else None
        options = {"hands": self.hands, "resume": True, "progress": self.progress}
        method = entry.fit(self.data, self.settings.train, out, network=network, **options)
        (out / "done").touch()
        return method

    def samples(self, name: str, repeat: int) -> TwoHands:
        """`settings.num` samples of a row."""
        num, size = self.settings.num, self.settings.part
        folder = self.folder / "samples" / slug(name)
        paths = [folder / f"{repeat}-{part:03d}.npz" for part in range(-(-num // size))]
        method = None
        for part, path in enumerate(paths):
            if path.exists():
                continue
            if name == REAL:
                drawn = self._real(repeat, part)
            else:
                method = method or self.method(name)
                # One seed for each file, the same for all methods.
                seed = 1_000_003 * self.settings.seed + 1000 * repeat + part
                began = time.process_time()
                count = min(size, num - part * size)
                if name == BUNDLED:
                    drawn = sample(method, count, seed=seed, steps=self.settings.sample_steps)
                else:
                    drawn = METHODS[name].sample(method, count, seed=seed, steps=self.settings.sample_steps)
                say(f"{name}: {count} samples in {time.process_time() - began:.0f} CPU seconds ({path.name})")
            folder.mkdir(parents=True, exist_ok=True)
            drawn.to(torch.float32).save(path)
        return TwoHands.cat([TwoHands.load(path, hands=self.hands) for path in paths])[:num]

    def score(self, name: str, repeat: int) -> dict[str, Any]:
        """The evaluation of one repetition of a row."""
        path = self.folder / "scores" / f"{slug(name)}-{repeat}.json"
        if not path.exists():
            samples = self.samples(name, repeat)
            say(f"evaluating {name}, repetition {repeat}")
            report = evaluate(
                samples,
                self.reference(),
                features=self.features(),
                repeats=self.settings.evaluations,
                seed=self.settings.seed + repeat,
                progress=self.progress,
                floor=False,  # the row of real pairs says more: it has as many samples as every other row
                workers=1,
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            report.save(path)
        return json.loads(path.read_text())

    def features(self) -> FeatureNetwork:
        """The feature network."""
        source = self.settings.features
        if source != "train":
            return load_feature_network(source)
        from interhand_prior.metrics.train_features import train_features

        out = self.folder / "training" / "features"
        if not (out / "done").exists():
            say("training the feature network")
            # The recipe of the bundled one (interhand_prior/assets/README.md).
            steps = 20 if self.settings.quick else 13_300
            recipe = {"steps": steps, "batch_size": 96, "lr": 2e-3, "warmup": 100, "weight_decay": 1e-3, "ema": 0.998}
            recipe |= {"amp": "off", "val_every": 1000, "max_val": 500}
            config = replace(self.settings.train, **recipe)
            options = {"hands": self.hands, "resume": True, "progress": self.progress}
            train_features(self.data, config, out, points=800, **options)
            (out / "done").touch()
        return FeatureNetwork.from_folder(out / "features")

    def reference(self) -> Reference:
        """Features and contact of the test split."""
        folder = self.folder / "reference"
        if not folder.exists():
            pairs = read_pairs(self.data, "test", self.settings.reference, hands=self.hands)
            say(f"features of {len(pairs)} test pairs")
            Reference.from_pairs(pairs, self.features()).save(folder)
        return Reference.load(folder)

    def _real(self, repeat: int, part: int) -> TwoHands:
        """Training pairs, each once over all repetitions as far as they go: what a perfect method would score."""
        pairs = read_pairs(self.data, "train", None, hands=self.hands)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(self.settings.seed))
        first = repeat * self.settings.num + part * self.settings.part
        count = min(self.settings.part, self.settings.num - part * self.settings.part)
        return pairs[order[torch.arange(first, first + count) % len(pairs)]]

    def _corpus(self) -> Path:
        from interhand_prior.data.synthetic import generate_corpus

        folder, (train, val, test) = self.folder / "corpus", self.settings.corpus
        shard = 60 if self.settings.quick else 600
        generate_corpus(
            folder, train, val_num=val, test_num=test, seed=self.settings.seed, shard_size=shard,
            progress=self.progress, workers=1 if self.settings.quick else None,
        )  # fmt: skip
        return folder

    def _remember(self) -> None:
        """Refuse to mix numbers of different settings."""
        path = self.folder / "settings.json"
        now = {**asdict(self.settings), "corpus": list(self.settings.corpus), "own data": self.data.name}
        if path.exists():
            stored = json.loads(path.read_text())
            changed = {key: (stored.get(key), value) for key, value in now.items() if stored.get(key) != value}
            if changed:
                listed = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
                raise SystemExit(f"{self.folder} holds numbers of other settings ({listed}); give another --work")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(now, indent=1).encode())


def slug(name: str) -> str:
    """A file name."""
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")


def say(text: str) -> None:
    """A line with the time: the command runs for hours."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def summary(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over repetitions; of a single one, the deviation within it."""
    row: dict[str, Any] = {"repetitions": len(scores)}
    for key, first in scores[0]["values"].items():
        values = [score["values"][key]["mean"] for score in scores]
        spread = statistics.stdev(values) if len(values) > 1 else first["std"]
        row[key] = {"mean": statistics.fmean(values), "std": spread}
    row["failed booleans"] = sum(score["counts"]["failed_booleans"] for score in scores)
    return row


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Make what is missing, print the tables, write results/paper_tables.json."""
    args = _parser().parse_args(argv)
    rows = [REAL, *METHODS, BUNDLED]
    chosen = [name for name in rows if args.methods is None or name in args.methods]
    given = {name: getattr(args, name) for name in ("steps", "num", "sample_steps", "seed", "features")}
    settings = replace(QUICK if args.quick else Settings(), **{k: v for k, v in given.items() if v is not None})
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.work if args.work is not None else Path(scratch)
        work = Work(folder, settings, args.data, args.hands, progress=not args.quiet and sys.stderr.isatty())
        stages: dict[str, Callable[[str, int], Any]] = {
            "train": lambda name, repeat: None if name == REAL else work.method(name),
            "sample": work.samples,
            "score": work.score,
        }
        scores: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
        for repeat in range(args.repeats):
            for name in chosen:
                result = stages[args.until](name, repeat)
                if args.until == "score":
                    scores[name].append(result)
        if args.until != "score":
            return {}
        numbers = {
            "settings": asdict(settings),
            "data": {"name": work.data.name, "hands": "open hand" if work.hands is None else "given"},
            "rows": {name: summary(found) for name, found in scores.items()},
            "paper (InterHand2.6M)": PAPER,
        }
    print(render({"numbers": numbers}))
    write_result("paper_tables", numbers, folder=args.out)
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--work", type=Path, help="folder that keeps everything; default: a temporary one")
    add("--data", type=Path, help="corpus folder with train-, val- and test-*.npz; default: made in the work folder")
    add("--hands", help="folder with MANO files, if the pairs belong to MANO; default: the open hand")
    add("--features", help='feature network: "bundled" (default), "train" (on the training pairs), or a folder')
    add("--steps", type=int, help=f"gradient steps of every method (default {Settings.steps})")
    add("--num", type=int, help=f"samples in each repetition (default {Settings.num})")
    add("--sample-steps", type=int, help=f"denoising steps (default {Settings.sample_steps})")
    add("--repeats", type=int, default=1, help="repetitions; the paper has 20")
    add("--seed", type=int)
    add("--methods", nargs="+", metavar="ROW", choices=[REAL, *METHODS, BUNDLED], help="rows; default: all")
    add("--until", choices=("train", "sample", "score"), default="score", help="stop after this stage")
    add("--quick", action="store_true", help="the whole path at tiny size; its numbers mean nothing")
    add("--quiet", action="store_true", help="no progress bars")
    add("--out", type=Path, help="folder for the result; default: benchmarks/results")
    return parser


if __name__ == "__main__":
    main()
