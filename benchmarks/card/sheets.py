"""Contact sheets of a corpus: six samples of every kind, from two sides each, as small palette pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from card.surfaces import TOUCH_MM, measure_surfaces
from interhand_prior import TwoHands
from interhand_prior.data.groups import groups_of
from interhand_prior.files import write_atomically

PAIRS, COLUMNS, SIZE = 6, 3, 180
#: Bytes of a picture, and of all: colours, then size, are taken away until they fit.
LIMIT, TOTAL = 85 * 1024, 3400 * 1024
_COLOURS = (96, 64, 48, 32, 24, 16)


def draw_sheets(pairs: Mapping[str, TwoHands], singles: Mapping[str, TwoHands], folder: Path) -> list[Path]:
    """Draw every kind of the first split that has it; nothing is picked by hand.

    Args:
        pairs: by split.
        singles: hands alone, by split.
        folder: gets ``KIND.png`` and ``single_KIND.png``; pictures of kinds that are no more are removed.

    Returns:
        The pictures.
    """
    wanted: dict[str, TwoHands] = {}
    for prefix, splits in (("", pairs), ("single_", singles)):
        for hands, kinds in grouped(splits):
            for kind, chosen in samples_by_kind(hands, kinds).items():
                wanted.setdefault(prefix + file_name(kind), chosen)
    limit = min(LIMIT, TOTAL // max(1, len(wanted)))
    paths = []
    for name, chosen in sorted(wanted.items()):
        paths.append(write_atomically(folder / f"{name}.png", sheet(chosen, folder, limit)))
    for old in set(folder.glob("*.png")) - set(paths):
        old.unlink()
    return paths


def file_name(kind: str) -> str:
    """A kind's name as that of a file."""
    return re.sub(r"\W+", "_", kind)


def grouped(splits: Mapping[str, TwoHands]) -> Iterator[tuple[TwoHands, NDArray[np.str_]]]:
    """Each split and its kinds (N,), by one rule for all splits, as the tables have it."""
    if not splits:
        return
    _, names = groups_of(TwoHands.cat(list(splits.values())))
    ends = np.cumsum([len(hands) for hands in splits.values()])
    yield from zip(splits.values(), np.split(names, ends[:-1]), strict=True)


def samples_by_kind(hands: TwoHands, kinds: NDArray[np.str_]) -> dict[str, TwoHands]:
    """Six samples of each kind (N,), evenly spaced over its samples."""
    out = {}
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(PAIRS, len(rows))).round().astype(int))]
        out[str(kind)] = hands[torch.from_numpy(rows)]
    return out


def sheet(hands: TwoHands, folder: Path, limit: int = LIMIT) -> bytes:
    """A palette PNG of some samples, small enough for a repository."""
    file = folder / ".sheet.png"
    try:
        hands.render(file, size=SIZE, views=2, columns=COLUMNS, labels=captions(hands))
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    finally:
        file.unlink(missing_ok=True)
    while True:
        for colours in _COLOURS:
            buffer = io.BytesIO()
            reduced = picture.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            reduced.save(buffer, "PNG", optimize=True)
            if buffer.tell() <= limit:
                return buffer.getvalue()
        picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10), Image.Resampling.LANCZOS)


def captions(hands: TwoHands) -> list[str]:
    """What the meshes of each sample say: apart by how much, or touching, or how deep."""
    left, right = hands.valid
    both = left & right
    texts = np.where(left.numpy(), "left hand", "right hand").astype("U40")
    if both.any():
        values = measure_surfaces(hands[both])
        text = lambda gap, depth: (
            f"touching, {depth:.1f} mm deep" if depth > 0 else f"{gap:.1f} mm apart" if gap >= TOUCH_MM else "touching"
        )
        found = [text(g, d) for g, d in zip(values["gap_mm"], values["depth_mm"], strict=True)]
        texts[both.numpy()] = found
    return texts.tolist()
