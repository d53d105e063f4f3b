"""What is in a data set's folder, and what is wrong with it, from its first frames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..objects import OBJECT_NAME, object_points
from .base import Batch, DataSet, Shapes, hand_distance, joint_error
from .importing import default_selection, hands_for
from .sets import dataset_named

__all__ = ["check"]

#: Joints of MANO and of other skeletons lie up to a centimetre apart; wrong conventions cost more. Metres.
_FAR = 0.02
#: But they lie so on both sides: one side that is this far off, and three times as far as the other, is wrong. Metres.
_LOPSIDED = 0.004
#: An object that is used is nearer to a joint than this, in the median of frames. Metres.
_HELD = 0.1
_POINTS = 512


def check(
    dataset: str, folder: str | os.PathLike[str], *, hands: Any = None, num: int = 2000
) -> Iterator[tuple[str, bool]]:
    """Read the first frames of a data set and say what they are like.

    Args:
        dataset: one of `DATASETS`.
        folder: the data set's.
        hands: MANO, as `load_hands` takes it.
        num: stop after so many frames with a hand.

    Yields:
        Lines, each with whether it is well.

    Raises:
        ValueError: `dataset` or `hands` are wrong. What is wrong with the folder is yielded, not raised.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    data = dataset_named(dataset)
    models = hands_for(data, hands)
    yield f"{data.title}: {data.convention}", True
    batches, count = [], 0
    failure = None
    try:
        for batch in data.read(Path(folder), models):
            batches.append(batch.first(num - count))
            count += len(batches[-1].hands)
            if count >= num:
                break
    except (ValueError, OSError) as error:
        failure = " ".join(str(error).split())
    yield from _report(data, batches)
    if data.shapes is not None and batches:
        yield from _objects(data.shapes, Path(folder), batches)
    if failure is not None:
        yield failure, False


def _report(data: DataSet, batches: list[Batch]) -> Iterator[tuple[str, bool]]:
    frames, pairs, reasons = Counter[str](), Counter[str](), Counter[str]()
    selection = default_selection(data)
    for batch in batches:
        kept, _, left_out = selection.split(batch)
        frames[batch.split] += len(batch.hands)
        pairs[batch.split] += len(kept)
        reasons.update(left_out)
    if not frames.total():
        yield "no frame with a hand was read", False
        return
    for split, number in frames.items():
        yield f"{split}: {number} frames with a hand read, {pairs[split]} of them pairs to import", pairs[split] > 0
    for reason, number in sorted(reasons.items()):
        yield f"left out: {number} x {reason}", not reason.endswith("infinity")
    yield from _joints(batches)
    yield from _numbers(batches)


def _joints(batches: list[Batch]) -> Iterator[tuple[str, bool]]:
    error = torch.cat([joint_error(batch) for batch in batches if len(batch.hands)])
    if not torch.isfinite(error).any():
        yield "joints: the data set has none beside these parameters, so conventions could not be compared", True
        return
    what = "joints" if any(batch.joints is not None for batch in batches) else "vertices"
    medians = error.nanmedian(0).values
    worst = error.nanquantile(0.99)
    left, right = medians.nan_to_num().tolist()
    known = bool(torch.isfinite(medians).all())
    lopsided = known and max(left, right) > max(_LOPSIDED, 3 * min(left, right))
    good = max(left, right) < _FAR and not lopsided
    yield (
        f"{what}: {1000 * medians[0]:.1f} mm (left) and {1000 * medians[1]:.1f} mm (right) from the data set's own in "
        f"the median, {1000 * worst:.0f} mm in the worst hundredth",
        good,
    )
    if good and worst > _FAR:
        yield "some fits are far off their joints: consider --max-joint-error 20 (mm)", True
    if not good:
        if lopsided and left > right:
            text = "only left hands are off: these betas or this left hand model are of the other left shapedirs"
        elif lopsided:
            text = "only right hands are off: is MANO_RIGHT.pkl the official one?"
        elif min(left, right) > 0.2:
            text = "hands are elsewhere: parameters and joints are in different frames or units"
        else:
            text = "poses are off: are the hand models MANO's own (not the open hand), and of this data set's version?"
        yield text, False


def _objects(read: Callable[[Path], Shapes], folder: Path, batches: list[Batch]) -> Iterator[tuple[str, bool]]:
    """Shapes, and whether hands are where objects are, as they are when somebody holds them."""
    try:
        shapes, note = read(folder)
    except (ValueError, OSError) as error:
        yield " ".join(str(error).split()), False
        return
    yield f"objects: {note}", True
    distances, unknown = [], set[str]()
    for batch in batches:
        names = np.asarray(batch.hands.extras[OBJECT_NAME], dtype=str)
        unknown |= set(names.tolist()) - {"", *shapes}
        known = np.isin(names, list(shapes))
        hands = batch.hands[torch.from_numpy(known)]
        if len(hands) == 0:
            continue
        points = object_points(hands, shapes, _POINTS)
        near = [torch.cdist(joints, points).flatten(1).amin(1) for joints in hands.joints21()]
        both = [torch.where(there, gap, torch.inf) for there, gap in zip(hands.valid, near, strict=True)]
        distances.append(torch.minimum(*both))
    if shapes and unknown:
        yield f"objects without a shape: {', '.join(sorted(unknown))}", False
    if distances:
        gap = float(torch.cat(distances).median())
        yield f"objects: nearest joint of either hand {1000 * gap:.0f} mm away in the median", gap < _HELD
        if gap >= _HELD:
            yield "nobody holds these objects: their places and the hands are in different frames or units", False


def _numbers(batches: list[Batch]) -> Iterator[tuple[str, bool]]:
    batches = [batch for batch in batches if len(batch.hands)]
    betas, places = [], []
    for batch in batches:
        for hand, there in zip((batch.hands.left, batch.hands.right), batch.hands.valid, strict=True):
            betas.append(hand.betas[there])
            places.append(hand.transl[there])
    share = float((torch.cat(betas).abs() > 5).any(-1).float().mean())
    far = float((torch.cat(places).norm(dim=-1) > 20).float().mean())
    yield f"shapes: {100 * share:.1f} % of the hands have a coefficient beyond 5", share < 0.02
    if far > 0:
        yield (
            f"{100 * far:.1f} % of the hands are more than 20 m from the origin: millimetres in place of metres?",
            False,
        )
    gaps = [hand_distance(h[both]) for h in (b.hands for b in batches) if (both := h.valid[0] & h.valid[1]).any()]
    if gaps:
        gap = torch.cat(gaps).median()
        yield f"hands: nearest joints {1000 * gap:.0f} mm apart in the median", bool(gap < 1)
