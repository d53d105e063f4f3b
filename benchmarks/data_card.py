"""The data card of a corpus, measured on its files: ``python benchmarks/data_card.py CORPUS --sheets``.

A corpus is one that was made (`interhand-prior corpus`) or a data set that was imported (`corpus import`; give its
hands, ``--hands MANO --out FOLDER``). The pairs of the latter have no kinds: they are told apart by the object in the
hands, or by sequence, and what was wanted of the made corpus is not asked of them.

Writes ``benchmarks/results/data_card.json`` and ``benchmarks/data_card/``: README.md, and with ``--sheets`` a picture
of six pairs of every kind of contact. ``--workers 2`` halves the time of the meshes, about half of all.

    all pairs            counts, splits, relative pose, finger marginals, betas, twist, repeated hands
    --surfaces pairs     exact depth and volume of penetration, gap, touching parts, room for forearms: evenly spaced
                         over the test split; kinds with fewer than --per-kind among them are filled up for their row
    --queries pairs      nearest neighbours in the whole training split and its mirror image

With ``--real leap_two_hand.npz``, recordings of a tracker are fitted and their nearest neighbours sought as well.
Remarks of whoever looked at the pictures stand in ``remarks.json`` of the output folder and are kept; after a change
there, ``--text`` writes README.md anew from the numbers of the last run.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from card import poses, surfaces
from card.readme import readme
from card.sheets import draw_sheets
from common import RESULTS, write_result
from numpy.typing import NDArray
from torch import Tensor

from interhand_prior import TwoHands
from interhand_prior.data.groups import groups_of
from interhand_prior.data.synthetic.marginals import (
    JOINT_NAMES,
    POSE_MEAN,
    POSE_SD,
    REL_MEAN,
    REL_VAR,
    compare_marginals,
)
from interhand_prior.data.synthetic.statistics import relative_pose
from interhand_prior.hands import HandPair, load_hands

FOLDER = Path(__file__).with_name("data_card")
_FILE = re.compile(r"(single-)?([a-z]+)-\d{5}\.npz")
_ORDER = ("test", "val", "train")  # surfaces and pictures are taken from the first that is there
#: Scale of the effective number, mm of mean joint distance; pairs it is taken of.
SCALE_MM, OF = 25.0, 200
#: What the card says of the manifest.
_FACTS = ("kind", "dataset", "convention", "version", "hands", "config", "selection", "left_out", "objects", "complete")
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


class Corpus(NamedTuple):
    """What a folder holds: its manifest, and by split the pairs and the single hands (splits without any left out)."""

    manifest: Mapping[str, Any]
    pairs: dict[str, TwoHands]
    singles: dict[str, TwoHands]

    @property
    def imported(self) -> bool:
        """Whether it is a data set, not a made corpus."""
        return self.manifest.get("kind") == "import"


def read_corpus(folder: Path, hands: HandPair | None = None) -> Corpus:
    """Read every shard; `hands` are those that the parameters belong to, by default the open hand.

    Raises:
        FileNotFoundError: there are no shards of pairs.
        ValueError: the parameters belong to other hands; a shard is damaged.
    """
    found: dict[tuple[bool, str], list[TwoHands]] = {}
    for path in sorted(folder.glob("*.npz")):
        if match := _FILE.fullmatch(path.name):
            found.setdefault((match[1] is not None, match[2]), []).append(TwoHands.load(path, hands=hands))
    manifest = folder / "manifest.json"
    facts = json.loads(manifest.read_text()) if manifest.exists() else {}
    joined = {key: TwoHands.cat(shards) for key, shards in found.items()}
    splits = sorted({split for _, split in joined}, key=lambda s: _ORDER.index(s) if s in _ORDER else len(_ORDER))
    by = lambda single: {split: joined[single, split] for split in splits if (single, split) in joined}
    if not by(False):
        raise FileNotFoundError(f"{folder} holds no shards of pairs; `interhand-prior corpus {folder}` makes one")
    return Corpus(facts, by(False), by(True))


def spaced(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of `count` rows, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


def surface_rows(kinds: NDArray[np.str_], first: int, limit: int, per_kind: int) -> tuple[NDArray[np.int64], int]:
    """Rows whose meshes are measured, and how many of them, at the beginning, are evenly spaced over rows 0..first."""
    rows = spaced(first, limit)
    extra = []
    for kind in np.unique(kinds):
        lacking = per_kind - int((kinds[rows] == kind).sum())
        if lacking > 0:
            extra.append(np.setdiff1d(np.flatnonzero(kinds == kind), rows)[:lacking])
    return np.concatenate([rows, *extra]), len(rows)


def surface_row(values: surfaces.Values, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Penetration, nearness and arms over some of the measured pairs."""
    depth, volume, gap = (values[name][chosen] for name in ("depth_mm", "volume_cm3", "gap_mm"))
    good = volume[~np.isnan(volume)]
    quantile = lambda x, q: float(np.quantile(x, q)) if len(x) else None
    mean = lambda x: float(np.mean(x)) if len(x) else None
    return {
        "measured": int(chosen.sum()),
        "depth mm": {"mean": mean(depth), "99 %": quantile(depth, 0.99), "largest": quantile(depth, 1)},
        "share deeper than 2 mm": mean(depth > 2),
        "volume cm3": {"mean": mean(good), "99 %": quantile(good, 0.99), "largest": quantile(good, 1)},
        "volume failed": len(volume) - len(good),
        "share within 3 mm": mean(gap < surfaces.TOUCH_MM),
        "share within 2 cm": mean(gap < 20),
        "share within 10 cm": mean(gap < 100),
        "gap mm": {"median": quantile(gap, 0.5), "largest": quantile(gap, 1)},
        "straight arms have room": mean(values["straight_arms_free"][chosen]),
        "arms have room": mean(values["arms_free"][chosen]),
    }


def touching_groups(touching: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which groups touch, (N, 9, 9), from parts (N, 24, 24)."""
    member = np.eye(len(surfaces.GROUPS), dtype=np.float32)[surfaces.group_of_part()]
    touch: NDArray[np.bool_] = (member.T @ touching.astype(np.float32) @ member) > 0
    return touch


def touching_parts(touching: NDArray[np.bool_]) -> dict[str, Any]:
    """Of pairs that touch (N, 24, 24): the matrix over groups, and which faces of fingers touch."""
    either = np.asarray(touching.any(2) | touching.any(1))  # of the left or of the right hand
    share = lambda part: float(either[:, surfaces.PARTS.index(part)].mean()) if len(either) else None
    return {
        "pairs": len(touching),
        "groups": list(surfaces.GROUPS),
        "left by right": touching_groups(touching).mean(0) if len(touching) else [],
        "fingers": {f: {face: share(f"{f} {face}") for face in surfaces.FACES} for f in surfaces.FINGERS},
        "hand": {part: share(part) for part in surfaces.HAND_PARTS},
    }


def commonest_parts(touching: NDArray[np.bool_], number: int = 3) -> dict[str, float]:
    """The couples of groups that most of the touching pairs share, whichever hand has which."""
    if len(touching) == 0:
        return {}
    found = touching_groups(touching)
    both = np.asarray((found | found.transpose(0, 2, 1)).mean(0))
    couples = sorted(zip(*np.triu_indices(len(both)), strict=True), key=lambda couple: -both[couple])[:number]
    name = lambda couple: " on ".join(surfaces.GROUPS[k] for k in couple)
    return {name(couple): float(both[couple]) for couple in couples if both[couple] > 0}


def parts_per_touch(touching: NDArray[np.bool_]) -> float | None:
    """How many of both hands' 48 parts touch, on average: few where hands graze, many where one holds the other."""
    return float((touching.any(2).sum(1) + touching.any(1).sum(1)).mean()) if len(touching) else None


def relative_moments(pairs: TwoHands) -> dict[str, Any]:
    """The relative pose beside the published moments."""
    rel = torch.cat([relative_pose(pairs[i : i + 4096]) for i in range(0, len(pairs), 4096)])
    return {
        "mean": rel.mean(0),
        "published mean": REL_MEAN,
        "offset in published sd": (rel.mean(0) - REL_MEAN) / REL_VAR.sqrt(),
        "place offset mm": 1e3 * (rel.mean(0) - REL_MEAN)[6:],
        "variance ratio": rel.var(0, correction=min(1, len(rel) - 1)) / REL_VAR,
    }


def finger_marginals(hand_pose: Tensor) -> dict[str, Any]:
    """Poses in right-hand form beside the table of real fits."""
    offset = (hand_pose.mean(0) - POSE_MEAN) / POSE_SD
    ratio = hand_pose.std(0) / POSE_SD
    worst = lambda score: score.argsort(descending=True)[:5].tolist()
    name = lambda i: f"{JOINT_NAMES[i // 3]} {'xyz'[i % 3]}"
    return compare_marginals(hand_pose) | {
        "worst offsets in sd": {name(i): float(offset[i]) for i in worst(offset.abs())},
        "worst sd ratios": {name(i): float(ratio[i]) for i in worst(ratio.log().abs())},
    }


def shapes(pairs: TwoHands) -> dict[str, float]:
    """Betas of both hands."""
    both = torch.stack([pairs.left.betas, pairs.right.betas])
    return {
        "mean": float(both.mean()),
        "sd": float(both.std()),
        "sd of left minus right": float((both[0] - both[1]).std()),
    }


def _quantiles(values: Tensor) -> dict[str, float]:
    values = values.double()
    return {f"{q:.0%}": float(values.quantile(q)) for q in QUANTILES} | {
        "mean": float(values.mean()),
        "smallest": float(values.min()),
    }


def neighbours(pairs: Mapping[str, TwoHands], queries: int) -> dict[str, Any]:
    """Distances to the nearest training pair (or its mirror image), mm: from each split, and within training."""
    train = pairs["train"]
    bank = torch.cat([poses.canonical_joints(train), poses.canonical_joints(train.mirrored())])
    out: dict[str, Any] = {"bank": len(bank)}
    for split, hands in pairs.items():
        rows = torch.from_numpy(spaced(len(hands), queries))
        own = torch.stack([rows, rows + len(train)], 1) if split == "train" else None
        if split == "train" and len(train) < 2:
            continue
        distance, _ = poses.nearest(poses.canonical_joints(hands[rows]), bank, own)
        out[split] = {"queries": len(rows), "mm": _quantiles(distance), "nearer than 1 mm": int((distance < 1).sum())}
    return out


def diversity(hands: TwoHands, seed: int) -> dict[str, Any]:
    """How much some pairs differ."""
    joints = poses.canonical_joints(hands)
    few = joints[torch.from_numpy(spaced(len(joints), OF))]
    return {
        "mean distance mm": poses.spread(joints, torch.Generator().manual_seed(seed)),
        "effective rank": poses.effective_rank(poses.pair_rows(hands)),
        "effective number": poses.effective_number(few, SCALE_MM),
        "of": len(few),
    }


def acceptance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the last run of the generator noted."""
    made = manifest.get("generated_now", {})
    tried, kept = made.get("tried", {}), made.get("acceptance", {})
    total = sum(tried.values())
    seconds = made.get("wall_seconds")
    return {
        "pairs": made.get("pairs"),
        "wall seconds": seconds,
        "pairs per second": made["pairs"] / seconds if seconds and made.get("pairs") else None,
        "overall": sum(kept[k] * n for k, n in tried.items() if k in kept) / total if total else None,
        "by kind": kept,
        "named kinds refused for arms": made.get("named_refused_for_arms"),
    }


def measure(corpus: Corpus, args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of the card."""
    everything = TwoHands.cat(list(corpus.pairs.values()))
    called, kinds = groups_of(everything)
    first = len(next(iter(corpus.pairs.values())))
    rows, even = surface_rows(kinds, first, args.surfaces, args.per_kind)
    values = surfaces.measure_all(everything[torch.from_numpy(rows)], args.workers, not args.quiet)
    here, evenly = kinds[rows], np.arange(len(rows)) < even
    touch = values["gap_mm"] < surfaces.TOUCH_MM
    made = acceptance(corpus.manifest)
    by_kind = {}
    for kind in np.unique(kinds):
        own = here == kind
        some = np.flatnonzero(kinds == kind)
        by_kind[str(kind)] = {
            "pairs": len(some),
            "share": len(some) / len(kinds),
            "acceptance": made["by kind"].get(str(kind)),
            "touching parts": commonest_parts(values["touching"][own & touch]),
            "parts per touch": parts_per_touch(values["touching"][own & touch]),
            **surface_row(values, own),
            **diversity(everything[torch.from_numpy(some[spaced(len(some), 2000)])], args.seed),
        }
    hand_poses = {split: poses.hand_poses(hands) for split, hands in corpus.pairs.items()}
    paired = torch.cat(list(hand_poses.values()))
    for split, hands in corpus.singles.items():
        alone = poses.hand_poses(hands)
        hand_poses[split] = torch.cat([hand_poses[split], alone]) if split in hand_poses else alone
    near = neighbours(corpus.pairs, args.queries) if "train" in corpus.pairs else None
    return {
        "seed": args.seed,
        "corpus": {k: v for k, v in corpus.manifest.items() if k in _FACTS},
        "kinds are": called,
        "splits": {split: len(hands) for split, hands in corpus.pairs.items()},
        "single hands": {split: single_row(hands) for split, hands in corpus.singles.items()},
        "generation": made,
        "surfaces": surface_row(values, evenly) | {"split": next(iter(corpus.pairs))},
        "touching": surface_row(values, evenly & touch),
        "touching parts": touching_parts(values["touching"][evenly & touch]),
        "kinds": by_kind,
        "relative pose": relative_moments(everything),
        "fingers": finger_marginals(paired),
        "betas": shapes(everything),
        "twist": poses.twist_share(paired[torch.from_numpy(spaced(len(paired), 20_000))], everything.model.right),
        "repeated hands": poses.repeated(hand_poses),
        "repeated pairs": poses.repeated({split: poses.pair_rows(hands) for split, hands in corpus.pairs.items()}),
        "noted by the generator": noted(everything[torch.from_numpy(rows)], values),
        "neighbours": near,
        "diversity": diversity(everything[torch.from_numpy(spaced(len(everything), 20_000))], args.seed),
    }


def noted(pairs: TwoHands, values: surfaces.Values) -> dict[str, float] | None:
    """How far the depth that the generator noted is from the measured one: far if the hands have changed since."""
    if "depth_mm" not in pairs.extras:
        return None
    off = np.abs(pairs.extras["depth_mm"] - values["depth_mm"])
    return {"largest difference mm": float(off.max()), "share off by 0.1 mm": float((off > 0.1).mean())}


def single_row(hands: TwoHands) -> dict[str, Any]:
    """Hands alone: how many, of which side and kind, and their marginals."""
    left, right = hands.valid
    names, counts = np.unique(groups_of(hands)[1], return_counts=True)
    pose = poses.hand_poses(hands)
    return {
        "samples": len(hands),
        "left": int((left & ~right).sum()),
        "right": int((right & ~left).sum()),
        "kinds": {str(n): int(c) for n, c in zip(names, counts, strict=True)},
        "fingers": finger_marginals(pose) if len(pose) > 1 else None,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, draw, and write the card; returns the numbers."""
    parser = argparse.ArgumentParser(description="The data card of a corpus, measured on its files.")
    parser.add_argument("corpus", type=Path, nargs="?", help="folder of shards, as `interhand-prior corpus` makes it")
    parser.add_argument("--hands", metavar="FOLDER", help="folder with MANO files, if the pairs belong to MANO")
    parser.add_argument("--sheets", action="store_true", help="draw a contact sheet for every kind")
    parser.add_argument("--real", type=Path, help="a Leap tracker's .npz: how far real pairs are from the corpus")
    parser.add_argument("--surfaces", type=int, default=8000, help="pairs whose meshes are measured")
    parser.add_argument("--per-kind", type=int, default=60, help="pairs of a kind whose meshes are measured, at least")
    parser.add_argument("--queries", type=int, default=1000, help="pairs of each split whose neighbour is sought")
    parser.add_argument("--workers", type=int, default=1, help="processes for the meshes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for everything; default: the checkout's benchmarks")
    parser.add_argument("--text", action="store_true", help="measure nothing, write README.md from the last result")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(argv)

    folder = FOLDER if args.out is None else args.out
    if args.text:
        return write_readme(args.out or RESULTS, folder)
    if args.corpus is None:
        parser.error("name the folder of a corpus")
    began = time.perf_counter()
    try:
        corpus = read_corpus(args.corpus, None if args.hands is None else load_hands(args.hands))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if corpus.imported and args.out is None:
        parser.error("give --out FOLDER: the checkout's card is that of the made corpus")
    numbers = measure(corpus, args)
    if args.real is not None:
        from card.real import real_neighbours

        numbers["real"] = real_neighbours(args.real, corpus.pairs, args.queries)
    folder.mkdir(parents=True, exist_ok=True)
    numbers["seconds"] = time.perf_counter() - began
    if args.sheets:
        draw_sheets(corpus.pairs, corpus.singles, folder)
    write_result("data_card", numbers, folder=args.out)
    write_readme(args.out or RESULTS, folder)
    return numbers


def write_readme(results: Path, folder: Path) -> dict[str, Any]:
    """Write README.md of the last result; returns its numbers."""
    result = json.loads((results / "data_card.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(readme(result, folder), encoding="utf-8")
    numbers: dict[str, Any] = result["numbers"]
    return numbers


if __name__ == "__main__":
    main()
