"""What the benchmarks on pairs of hands share: a corpus, the examples, errors, and how deep hands are in each other."""

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


#: The paper's errors: of joints and vertices with wrists laid onto each other, and between wrists.
METRICS = ("MPJPE", "MPVPE", "MRRPE")


@torch.no_grad()
def errors(pairs: TwoHands, truth: TwoHands, chunk: int = 500) -> dict[str, Tensor]:
    """Each metric of each pair, (N,) millimetres; of MPJPE and MPVPE the mean of both hands."""
    parts = []
    for begin in range(0, len(pairs), chunk):
        ours, theirs = (_points(hands[begin : begin + chunk]) for hands in (pairs, truth))
        row = [
            ((a - ours[2][:, :, None]) - (b - theirs[2][:, :, None])).norm(dim=-1).mean((1, 2))
            for a, b in zip(ours[:2], theirs[:2], strict=True)
        ]
        apart = [wrists[:, 1] - wrists[:, 0] for wrists in (ours[2], theirs[2])]
        parts.append(torch.stack((*row, (apart[0] - apart[1]).norm(dim=-1))))
    return dict(zip(METRICS, 1e3 * torch.cat(parts, 1), strict=True))


def _points(hands: TwoHands) -> tuple[Tensor, Tensor, Tensor]:
    """Joints (N, 2, 21, 3), vertices (N, 2, 778, 3), wrists (N, 2, 3)."""
    joints = torch.stack(hands.joints21(), 1)
    return joints, torch.stack(hands.vertices(), 1), joints[:, :, 0]
