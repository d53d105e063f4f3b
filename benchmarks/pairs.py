"""What the benchmarks on pairs of hands share: reading a corpus, the examples, and how deep hands are in each other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from common import ROOT
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, sample
from interhand_prior.geometry import boundary_vertices, min_distance, penetration_depth, vertex_normals
from interhand_prior.hands import HandPair


def example(name: str) -> ModuleType:
    """Import examples/NAME.py: benchmarks measure the loops that users are shown."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def read_pairs(folder: Path, split: str, limit: int | None = None, hands: HandPair | None = None) -> TwoHands:
    """Pairs of a split ("train", "val", "test") of a corpus, (N,), evenly spaced over it; `hands`: None: open hands.

    Raises:
        FileNotFoundError: there are none.
    """
    shards = sorted(Path(folder).glob(f"{split}-*.npz"))
    if not shards:
        raise FileNotFoundError(f"{folder} holds no {split}-*.npz; `interhand-prior corpus FOLDER` makes them")
    pairs = TwoHands.cat([TwoHands.load(shard, hands=hands) for shard in shards])
    if limit is None or limit >= len(pairs):
        return pairs
    return pairs[torch.linspace(0, len(pairs) - 1, limit).round().long()]


def splits(data: Path | None, prior: TwoHandPrior, num: int, train: int, held_out: str) -> tuple[TwoHands, TwoHands]:
    """Training pairs (for baselines) and held-out pairs; without a corpus, both are samples of the prior itself."""
    if data is not None:
        return read_pairs(data, "train", train), read_pairs(data, held_out, num)
    pairs = sample(prior, 2 * num, seed=12345, steps=10, penetration_scale=0)
    return pairs[:num], pairs[num:]


@torch.no_grad()
def contact(hands: TwoHands, chunk: int = 128) -> tuple[Tensor, Tensor]:
    """Depth of the deepest vertex of either hand inside the other, and smallest distance between vertices; (N,) mm."""
    depths, distances = [], []
    for begin in range(0, len(hands), chunk):
        part = hands[begin : begin + chunk]
        left, right = part.vertices()
        both = []
        for points, surface, faces in ((left, right, part.faces[1]), (right, left, part.faces[0])):
            rim = boundary_vertices(faces, surface.shape[-2])
            both.append(penetration_depth(points, surface, vertex_normals(surface, faces), exclude=rim))
        depths.append(torch.maximum(*both))
        distances.append(min_distance(left, right))
    return torch.cat(depths) * 1e3, torch.cat(distances) * 1e3
