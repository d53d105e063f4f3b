"""The released PointNet++ feature checkpoint -> a feature network's folder, so that published FHIDs can be recomputed.

    interhand-prior convert official-features CKPT.pth --out features/
    interhand-prior evaluate --samples samples/hands.npz --reference ih26m/ --features features/

It reads the vertices times ten and a two-channel side label, 1556 points of five numbers; features are the 256 before
the last ReLU. The weights stay its owner's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..pointnet2 import PAPER
from .features import FeatureNetwork, official_key

__all__ = ["official_features"]


def official_features(found: Any, out: str | os.PathLike[str], *, where: str = "the checkpoint") -> FeatureNetwork:
    """Convert the released feature network and write its folder.

    Args:
        found: what the file holds, read without running code: a mapping with `model_state_dict`.
        out: folder for config.json and model.safetensors.
        where: what to call the file in errors.

    Returns:
        The network, in evaluation mode.

    Raises:
        ValueError: it is not that network. Nothing was written.
    """
    state = found.get("model_state_dict") if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{where}: expected a mapping with model_state_dict, got {type(found).__name__}")
    with torch.random.fork_rng(devices=[]):
        network = FeatureNetwork(PAPER, info={"source": "official feature checkpoint, converted"})
    own = network.state_dict()
    names = {name: official_key(name) for name in own if name not in ("mean", "std")}
    problems = sorted({*state} ^ {*names.values()})
    if not problems:
        problems = [
            theirs
            for ours, theirs in names.items()
            if not isinstance(state[theirs], Tensor) or state[theirs].numel() != own[ours].numel()
        ]
    if problems:
        raise ValueError(
            f"{where}: {len(problems)} tensors are missing, unknown or of another size: {', '.join(problems[:5])}"
            f"{' ...' if len(problems) > 5 else ''}"
        )
    network.load_state_dict({**{ours: state[theirs] for ours, theirs in names.items()}, **_moments(own)})
    network.eval().requires_grad_(False)
    network.save(out)
    return network


def _moments(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Targets' moments, which the released file does not hold and features do not need."""
    return {name: own[name] for name in ("mean", "std")}
