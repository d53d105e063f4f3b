"""Pairs of hands as .npz files: what `TwoHands.save` writes and `TwoHands.load` reads.

left.hand_pose, right.transl, ...   the parameters; of a missing hand, zeros
left.valid, right.valid             where there is such a hand; only where it was marked
extras.NAME                         whatever else belongs to each pair
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .files import write_atomically
from .params import FIELDS, HandParams, TwoHands

if TYPE_CHECKING:
    from .hands import HandPair

__all__ = ["load_pairs", "save_pairs"]


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
        return TwoHands(side("left"), side("right"), hands, extras, mask("left"), mask("right"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
