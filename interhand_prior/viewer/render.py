"""Pairs of hands to a PNG file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .png import write_png
from .present import present_hands
from .sheet import contact_sheet

if TYPE_CHECKING:
    from ..params import TwoHands

__all__ = ["render"]


def render(hands: TwoHands, path: str | os.PathLike[str], *, size: int | None = None, **options: Any) -> Path:
    """Draw pairs of hands, several as a contact sheet. Needs no display, no GPU and no graphics library.

    The left hand is drawn in the colour of clay, the right one in blue; a missing one (`hands.valid`) is left out.
    The same hands give the same file.

    Args:
        hands: one pair, or a batch of any shape.
        path: ends in .png; written whole or not at all.
        size: width and height of the picture of one pair, pixels. Default: 640 for one pair, 320 for several.
        options: `views`, `up`, `columns`, `labels`, `colours`, `background` of `contact_sheet`.

    Returns:
        The path.

    Raises:
        ValueError: the name does not end in .png; an option does not fit; the hands hold NaN, are none or too many; a
            pair has neither hand.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path.name!r} (meshes are written by .export)")
    with torch.no_grad():
        left, right = (vertices.reshape(-1, *vertices.shape[-2:]) for vertices in hands.vertices())
    present = present_hands(hands)
    if size is None:
        size = 640 if len(left) == 1 else 320
    return write_png(contact_sheet([left, right], hands.faces, present=present, size=size, **options), path)
