"""Pairs of hands as .npz files: what `TwoHands.save` writes and `TwoHands.load` reads.

left.hand_pose, right.transl, ...   the parameters; of a missing hand, zeros
left.valid, right.valid             where there is such a hand; only where it was marked
extras.NAME                         whatever else belongs to each pair
hands.mark                          (4,) what tells the hand models apart that the parameters belong to, where these are
                                    not the open hand

The hand models themselves, being licensed, are not in a file. But parameters read with other models are other hands. So
a file is marked with four sums over the rest joints of both models, each joint with weights of its own, from which no
joint can be told; whoever reads it with other models is told so.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .files import write_atomically
from .params import FIELDS, HandParams, TwoHands

if TYPE_CHECKING:
    from .hands import HandPair

__all__ = ["load_pairs", "save_pairs"]

_MARK = "hands.mark"
#: Metres. Marks of one model, read from different files or rounded to float32, differ by less; of two models by more.
_SAME = 2e-5


def save_pairs(pairs: TwoHands, path: str | os.PathLike[str]) -> Path:
    """See `TwoHands.save`."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path.name!r} (meshes are written by .export)")
    arrays = {f"extras.{name}": value for name, value in pairs.extras.items()}
    for side, mask in (("left", pairs.left_valid), ("right", pairs.right_valid)):
        hand = getattr(pairs, side)
        if mask is not None:
            arrays[f"{side}.valid"] = mask.cpu().numpy()
            hand = hand.map(lambda value, mask=mask: torch.where(mask[..., None], value, torch.zeros_like(value)))
        hand = HandParams.coerce(hand, side, check_finite=True)
        for name, value in hand.as_dict().items():
            value = value.detach().cpu()
            # numpy has no bfloat16.
            arrays[f"{side}.{name}"] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not _alike(mark := _mark(pairs), _mark(replace(pairs, hands=None))):
        arrays[_MARK] = mark
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return write_atomically(path, buffer.getbuffer())


def load_pairs(path: str | os.PathLike[str], hands: HandPair | None = None) -> TwoHands:
    """See `TwoHands.load`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it should be an .npz written by TwoHands.save")
    try:
        # numpy leaves a damaged file open that it opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib, numpy and OS each raise their own for a damaged archive
        raise ValueError(f"{path} is damaged or not an .npz of two hands ({error}); write it again") from error
    missing = [f"{s}.{n}" for s in ("left", "right") for n in FIELDS if f"{s}.{n}" not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it was not written by TwoHands.save")
    side = lambda s: HandParams.coerce({name: arrays[f"{s}.{name}"] for name in FIELDS}, s)
    extras = {name[7:]: value for name, value in arrays.items() if name.startswith("extras.")}
    mask = lambda s: torch.as_tensor(arrays[f"{s}.valid"]) if f"{s}.valid" in arrays else None
    try:
        pairs = TwoHands(side("left"), side("right"), hands, extras, mask("left"), mask("right"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if _MARK in arrays and not _alike(arrays[_MARK], _mark(pairs)):
        raise ValueError(
            f"{path} holds parameters of other hand models than "
            + ("the open hand; pass them (hands=..., --hands FOLDER)" if hands is None else "those that were passed")
        )
    return pairs


def _mark(pairs: TwoHands) -> np.ndarray:
    """(4,) sums over the rest joints of the left and the right hand model, for betas 0 and 1; metres."""
    betas = torch.tensor([[0.0] * 10, [1.0] * 10], dtype=torch.float64, device="cpu")
    both = [model.rest_joints(betas).detach() for model in (pairs.model.left, pairs.model.right)]
    joints = torch.stack(both).flatten().numpy()
    return np.asarray(np.cos(np.outer(np.arange(1, 5) ** 0.5, np.arange(len(joints)))) @ joints)


def _alike(mark: np.ndarray, other: np.ndarray) -> bool:
    return mark.shape == other.shape and bool(np.abs(mark - other).max() < _SAME)
