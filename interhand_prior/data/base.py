"""What the readers of data sets share: batches of frames, and which frames become pairs of a corpus.

A reader is a function `read(folder, hands) -> Iterator[Batch]`. It goes through a folder a few hundred frames at a time
and yields every frame that has a hand, in the data set's own frame of reference, in metres, with absolute poses and
with betas for the hand models that it was given. What it leaves out it counts, by reason.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..hands import HandPair
from ..objects import ObjectShape
from ..params import TwoHands

__all__ = [
    "CHUNK",
    "OPENPOSE",
    "SPLITS",
    "Batch",
    "DataSet",
    "Selection",
    "Shapes",
    "chunked",
    "first_folder",
    "hand_distance",
    "joint_error",
    "load_json",
    "make_batch",
    "paths_below",
    "stable_split",
    "stacked",
]

T = TypeVar("T")

SPLITS = ("train", "val", "test")
#: Frames that are in memory at a time.
CHUNK = 512
#: MANO's joints and tips in OpenPose's order: `openpose = mano[OPENPOSE]`, so `mano[OPENPOSE] = openpose`.
OPENPOSE = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)


@dataclass(frozen=True)
class Batch:
    """Some frames of one split.

    Attributes:
        split: train, val or test.
        hands: (N,), each frame with at least one hand. Extras: `sequence`, `frame`, `interacting` (False where the
            data set says so), and what else a data set has.
        joints: (N, 2, 21, 3) the data set's own joints of the left and the right hand, as `TwoHands.joints21` orders
            them, in the same frame, metres; NaN where one is unknown. None: it has none.
        vertices: (N, 2, 778, 3) the data set's own vertices, in the same way.
        skipped: how many frames were left out before these, by reason.
    """

    split: str
    hands: TwoHands
    joints: Tensor | None = None
    vertices: Tensor | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def first(self, count: int) -> Batch:
        """The first frames."""
        cut = lambda value: None if value is None else value[:count]
        return replace(self, hands=self.hands[:count], joints=cut(self.joints), vertices=cut(self.vertices))


class Shapes(NamedTuple):
    """Shapes of a data set's objects, as far as its folder holds them.

    Attributes:
        found: by name.
        note: what there is, or what is missing and where it should be: one sentence.
    """

    found: Mapping[str, ObjectShape]
    note: str


@dataclass(frozen=True)
class DataSet:
    """A data set that can be read.

    Attributes:
        name: on the command line.
        title: as its authors write it.
        read: see the module.
        convention: one sentence for the manifest: form of the poses, betas, frame, splits.
        needs_mean: poses are offsets or coefficients, and mean nothing without MANO's own mean pose.
        nearer_than: metres between joints of the two hands below which a frame counts as interacting; None where the
            data set itself says which frames do.
        shapes: reads the objects' shapes; None: the reader gives no objects.
    """

    name: str
    title: str
    read: Callable[[Path, HandPair], Iterator[Batch]]
    convention: str
    needs_mean: bool = True
    nearer_than: float | None = None
    shapes: Callable[[Path], Shapes] | None = None


@dataclass(frozen=True)
class Selection:
    """Which frames become pairs: those that have both hands, interact, and pass the filters.

    Attributes:
        max_joint_error: metres; a pair is left out if the mean distance of one hand's joints to the data set's own is
            larger. None: no filter. Hands whose joints the data set does not know pass.
        nearer_than: metres; a pair is left out if no joint of one hand is that near to one of the other. None: all.
        singles: keep hands alone too.

    Raises:
        ValueError: a limit is not positive.
    """

    max_joint_error: float | None = None
    nearer_than: float | None = None
    singles: bool = False

    def __post_init__(self) -> None:
        for name in ("max_joint_error", "nearer_than"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive (metres), got {value}")

    def split(self, batch: Batch) -> tuple[TwoHands, TwoHands, Counter[str]]:
        """The pairs (P,) of a batch, its hands alone (Q,), and how many frames were left out, by reason."""
        left, right = batch.hands.valid
        both = left & right
        reasons: Counter[str] = Counter(batch.skipped)
        interacting = torch.as_tensor(np.asarray(batch.hands.extras["interacting"]))
        keep = both & interacting
        reasons["both hands, but not interacting"] += int((both & ~interacting).sum())
        error = joint_error(batch)
        if self.max_joint_error is not None:
            good = ~(error > self.max_joint_error)  # NaN, which is unknown, passes
            reasons["too far from the data set's own joints"] += int((keep & ~good.all(1)).sum())
            keep = keep & good.all(1)
        if self.nearer_than is not None and keep.any():
            near = torch.zeros_like(keep)
            near[keep] = hand_distance(batch.hands[keep]) < self.nearer_than
            reasons["hands too far apart"] += int((keep & ~near).sum())
            keep = near
        alone = (left ^ right) if self.singles else torch.zeros_like(both)
        if self.singles and self.max_joint_error is not None:
            off = ((error > self.max_joint_error) & torch.stack((left, right), 1)).any(1)
            reasons["too far from the data set's own joints"] += int((alone & off).sum())
            alone = alone & ~off
        if not self.singles:
            reasons["one hand only"] += int((left ^ right).sum())
        hands = batch.hands
        if batch.joints is not None or batch.vertices is not None:
            shown = torch.nan_to_num(1000 * error, nan=-1.0).numpy()  # -1: unknown
            hands = replace(hands, extras={**hands.extras, "joint_error_mm": shown.astype(np.float32)})
        pairs = replace(hands[keep], left_valid=None, right_valid=None)
        return pairs, hands[alone], +reasons


def joint_error(batch: Batch) -> Tensor:
    """(N, 2) mean distance of the joints to the data set's own, metres; NaN where a hand or its joints are unknown.

    Of the vertices, where the data set has no joints but these.
    """
    valid = torch.stack(batch.hands.valid, 1)
    known = batch.vertices if batch.joints is None else batch.joints
    if known is None:
        return torch.full(valid.shape, torch.nan)
    with torch.no_grad():
        own = torch.stack(batch.hands.vertices() if batch.joints is None else batch.hands.joints21(), 1)
    distance = (own - known.to(own)).norm(dim=-1).nanmean(-1)
    return torch.where(valid, distance, torch.nan)


def hand_distance(pairs: TwoHands) -> Tensor:
    """(N,) smallest distance between joints and tips of the two hands, metres."""
    with torch.no_grad():
        left, right = pairs.joints21()
        return torch.cdist(left, right).flatten(1).amin(1)


def make_batch(
    split: str,
    hands: TwoHands,
    valid: tuple[np.ndarray, np.ndarray],
    extras: Mapping[str, Any],
    joints: np.ndarray | None = None,
    skipped: Counter[str] | None = None,
    *,
    vertices: np.ndarray | None = None,
) -> Batch:
    """A batch of those frames that have a finite hand; the rest is counted.

    Args:
        split: train, val or test.
        hands: (N,).
        valid: (N,) each, where there is a left and a right hand.
        extras: (N, ...) each.
        joints, vertices: see `Batch`.
        skipped: what was left out already.
    """
    count = Counter() if skipped is None else Counter(skipped)
    masks = []
    for side, there in zip(("left", "right"), valid, strict=True):
        values = torch.cat(list(getattr(hands, side).as_dict().values()), -1)
        finite = torch.isfinite(values).all(-1)
        there_t = torch.as_tensor(np.asarray(there, dtype=bool))
        count[f"{side} hand with NaN or infinity"] += int((there_t & ~finite).sum())
        masks.append(there_t & finite)
    arrays = {name: np.asarray(value) for name, value in extras.items()}
    arrays.setdefault("interacting", np.ones(len(hands), bool))
    left, right = (
        getattr(hands, side).map(lambda v, m=m: torch.where(m[:, None], v, torch.zeros_like(v)))
        for side, m in zip(("left", "right"), masks, strict=True)
    )
    pairs = TwoHands(left, right, hands.hands, arrays, masks[0], masks[1])
    keep = masks[0] | masks[1]
    count["no hand"] += int((~keep).sum())
    known = lambda values: None if values is None else torch.as_tensor(values, dtype=torch.float32)[keep]
    return Batch(split, pairs[keep], known(joints), known(vertices), +count)


def stacked(
    items: Sequence[Mapping[str, Any] | None], fields: Mapping[str, tuple[int, ...]], names: Callable[[int], str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One side's annotations as arrays, zeros where there is none.

    Args:
        items: N mappings, or None.
        fields: names of numbers and the shape of each.
        names: what to call item i in errors.

    Returns:
        Arrays (N, *shape), float32, and (N,) bool: where there is a hand.

    Raises:
        ValueError: an item lacks a field, or has other numbers in it.
    """
    arrays = {key: np.zeros((len(items), *shape), np.float32) for key, shape in fields.items()}
    there = np.array([item is not None for item in items], bool)
    for index, item in enumerate(items):
        if item is None:
            continue
        if not isinstance(item, Mapping):
            raise ValueError(f"{names(index)} should be a mapping with {', '.join(fields)}, got {type(item).__name__}")
        for key, shape in fields.items():
            try:
                value = np.asarray(item[key], np.float32)
                arrays[key][index] = value.reshape(shape)
            except KeyError:
                raise ValueError(f"{names(index)} lacks {key!r}; it should have {', '.join(fields)}") from None
            except (TypeError, ValueError):
                raise ValueError(f"{names(index)}[{key!r}] should hold {int(np.prod(shape))} numbers") from None
    return arrays, there


def chunked(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def load_json(path: Path) -> Any:
    """A JSON file, whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON ({error}); copy it again") from None


def first_folder(folder: Path, places: Sequence[str], wanted: Callable[[Path], bool]) -> Path | None:
    """The first of the places below a folder that is what is wanted; "" is the folder itself.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    return next((folder / place for place in places if (folder / place).is_dir() and wanted(folder / place)), None)


def paths_below(folder: Path, pattern: str, parts: str, wanted: Callable[[Path], bool] = Path.exists) -> list[Path]:
    """Everything of this name in a folder and below, sorted.

    Args:
        folder: to look in.
        pattern: the name, or the last parts of the path.
        parts: what the folder is made of, for the error.
        wanted: which of them count.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.glob(f"**/{pattern}") if wanted(path))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {pattern}, in none of its {parts}")
    return paths


def stable_split(sequence: str) -> str:
    """A split for a sequence of a data set that has none: 90, 5 and 5 of 100 by a hash of its name."""
    draw = int.from_bytes(hashlib.sha256(sequence.encode()).digest()[:4], "big") % 100
    return "train" if draw < 90 else "val" if draw < 95 else "test"
