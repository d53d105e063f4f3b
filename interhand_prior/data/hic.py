"""HIC (Tzionas et al., IJCV 2016) as prepared for InterWild: `HIC.json` (COCO) and meshes of MANO in .ply files.

An annotation has hand_type, right_mano_path and left_mano_path (null, or a .ply below the folder): 778 vertices in the
camera's frame, metres. There are no parameters, so they are fitted here: with the residual r of the vertices,
Levenberg and Marquardt's steps d = -(J^T J + mu)^-1 J^T r from rotations that fit the palm (Kabsch). A mesh that is
MANO's is met to some hundredths of a millimetre; a hand that is not met to 5 mm is left out. There are no splits:
a sequence (folder of the image) belongs to one by a hash of its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..convert import pair_of, wrapped
from ..hands import HandModel, HandPair
from ..params import HandParams
from ..rotations import matrix_to_axis_angle
from .base import Batch, DataSet, chunked, load_json, make_batch, stable_split
from .meshes import read_ply

__all__ = ["HIC", "fit_vertices", "read_hic"]

_CHUNK, _STEPS, _OFF = 32, 25, 0.005
# Sum of squares over a hand, square metres: a thousandth of a millimetre at each vertex.
_EXACT = 778 * 1e-12


def read_hic(folder: Path, hands: HandPair) -> Iterator[Batch]:
    """The annotated frames.

    Args:
        folder: holds HIC.json and what it names.
        hands: MANO, whose vertices the meshes are.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is damaged or of another layout.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    path = folder / "HIC.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no HIC.json")
    content = load_json(path)
    try:
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        items = [
            (images[a["image_id"]], str(a["hand_type"]), {s: a[f"{s}_mano_path"] for s in ("left", "right")})
            for a in content["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of the layout that InterWild prepares ({error!r})") from None
    items.sort(key=lambda item: stable_split(_sequence(item[0])))
    for split in sorted({stable_split(_sequence(item[0])) for item in items}):
        for group in chunked((i for i in items if stable_split(_sequence(i[0])) == split), _CHUNK):
            yield _batch(folder, split, group, hands)


def fit_vertices(model: HandModel, vertices: Tensor, steps: int = _STEPS) -> tuple[HandParams, Tensor]:
    """Parameters of a hand from its vertices.

    Args:
        model: one side's hand.
        vertices: (N, 778, 3) metres.
        steps: of Levenberg and Marquardt's method.

    Returns:
        The hands (N,), and (N,) the mean distance to the vertices, metres.
    """
    target = vertices.double()
    rest = model.v_template.to(target)
    palm = model.weights[:, 0].to(target) > 0.5
    source, aim = rest[palm] - rest[palm].mean(0), target[:, palm] - target[:, palm].mean(1, keepdim=True)
    u, _, v = torch.linalg.svd(aim.mT @ source)
    flip = torch.ones_like(u[..., 0])
    flip[:, 2] = torch.linalg.det(u @ v)
    orient = matrix_to_axis_angle((u * flip[:, None]) @ v)
    x = target.new_zeros(len(target), 61)
    x[:, :3] = orient
    mean = model.hands_mean
    if mean is not None:
        x[:, 3:48] = mean.to(target)
    x[:, 58:] = (target - model(_hand(x))[0]).mean(1)
    damping = torch.full((len(x),), 1e-2, dtype=x.dtype)
    error = (model(_hand(x))[0] - target).square().sum((1, 2))
    with torch.no_grad():
        for _ in range(steps):
            jacobian = _slopes(model, x)
            rest_of = (model(_hand(x))[0] - target).flatten(1)
            square = jacobian.mT @ jacobian
            gradient = (jacobian.mT @ rest_of[..., None])[..., 0]
            damped = square + torch.diag_embed(damping[:, None] * square.diagonal(dim1=1, dim2=2) + 1e-9)
            new = x - torch.linalg.solve(damped, gradient)
            now = (model(_hand(new))[0] - target).square().sum((1, 2))
            better = now < error
            x = torch.where(better[:, None], new, x)
            error = torch.where(better, now, error)
            if float(error.max()) < _EXACT:
                break
            damping = torch.where(better, damping / 5, damping * 5).clamp(1e-12, 1e3)
        distance = (model(_hand(x))[0] - target).norm(dim=-1).mean(-1)
    fitted = torch.cat((wrapped(x[:, :48]), x[:, 48:]), 1).to(vertices)
    return _hand(fitted), distance


def _slopes(model: HandModel, x: Tensor) -> Tensor:
    """(N, 61) -> (N, 2334, 61): how vertices move with each parameter, by differences, which float64 affords."""
    width = 1e-6
    nudged = x[:, None] + width * torch.eye(x.shape[1], dtype=x.dtype)
    return ((model(_hand(nudged))[0] - model(_hand(x))[0][:, None]) / width).flatten(2).mT


def _hand(x: Tensor) -> HandParams:
    return HandParams(x[..., :3], x[..., 3:48], x[..., 48:58], x[..., 58:])


def _mesh(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but HIC.json names it")
    return read_ply(path)


def _sequence(name: str) -> str:
    return name.rpartition("/")[0]


def _batch(folder: Path, split: str, group: Sequence[tuple[str, str, Mapping[str, Any]]], hands: HandPair) -> Batch:
    skipped: Counter[str] = Counter()
    sides, masks = {}, []
    own = np.full((len(group), 2, 778, 3), np.nan, np.float32)
    for index, side in enumerate(("left", "right")):
        paths = [item[2][side] for item in group]
        there = np.array([path is not None for path in paths])
        values = torch.zeros(len(group), 61)
        if there.any():
            meshes = np.stack([_mesh(folder / path) for path in paths if path is not None])
            own[there, index] = meshes
            hand, distance = fit_vertices(getattr(hands, side), torch.as_tensor(meshes))
            values[torch.as_tensor(there)] = torch.cat(list(hand.as_dict().values()), -1).float()
            off = distance.numpy() > _OFF
            skipped[f"{side} mesh that is not this hand model's"] += int(off.sum())
            there[np.flatnonzero(there)[off]] = False
        sides[side] = _hand(values)
        masks.append(there)
    extras = {
        "sequence": np.array([_sequence(item[0]) for item in group]),
        "frame": np.array([int(Path(item[0]).stem) if Path(item[0]).stem.isdecimal() else -1 for item in group]),
        "interacting": np.array([item[1] == "interacting" for item in group]),
    }
    pairs = pair_of(sides["left"], sides["right"], hands)
    return make_batch(split, pairs, (masks[0], masks[1]), extras, vertices=own, skipped=+skipped)


HIC = DataSet(
    "hic",
    "HIC, as prepared for InterWild",
    read_hic,
    "parameters fitted to the meshes here, camera frame; splits by a hash of the sequence's name",
    needs_mean=True,
)
