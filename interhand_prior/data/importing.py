"""A data set as a corpus: shards `train-*.npz`, `val-*.npz`, `test-*.npz` and a manifest, as the synthetic one has.

Training, tables and statistics read them as they read any corpus; whoever reads them passes the same hand models, since
the parameters belong to MANO (`train --hands MANO`). Where a data set has objects, pairs say in extras which one and
where (`interhand_prior.objects`), and their shapes stand beside the shards, once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..files import make_writable
from ..hands import HandPair, load_hands, open_hands
from ..objects import OBJECT_NAME, SHAPES_NAME, save_shapes
from ..params import TwoHands
from .base import DataSet, Selection
from .manifest import MANIFEST, write_manifest
from .sets import dataset_named
from .synthetic.statistics import summarise

__all__ = ["default_selection", "hands_for", "import_corpus"]

_FORMAT = 1


def default_selection(data: DataSet, **changes: Any) -> Selection:
    """The data set's own selection: its label of interaction, or a distance where it has none."""
    return replace(Selection(nearer_than=data.nearer_than), **changes)


def hands_for(data: DataSet, hands: Any) -> HandPair:
    """The hand models for reading a data set.

    Args:
        data: the data set.
        hands: what `load_hands` takes; None: none is to be had.

    Raises:
        ValueError: the data set means nothing without MANO's mean pose, and no hands are given.
    """
    if hands is None:
        if data.needs_mean:
            raise ValueError(
                f"{data.title} writes poses relative to MANO's mean, so it needs MANO: pass hands=FOLDER (--hands "
                "FOLDER) with MANO_RIGHT.pkl and MANO_LEFT.pkl. (--hands open is right only for files that were made "
                "with the open hand)"
            )
        return open_hands()
    return load_hands(hands)


def import_corpus(
    dataset: str,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    hands: Any = None,
    selection: Selection | None = None,
    shard_size: int = 4096,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a data set's interacting pairs as shards.

    Args:
        dataset: one of `DATASETS`.
        folder: the data set's.
        out: folder for the shards, made if it is missing.
        hands: MANO, as `load_hands` takes it; may be None where the data set's poses are absolute.
        selection: which frames; default `default_selection`.
        shard_size: pairs per file.
        overwrite: replace an earlier import in `out`.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: there is no such folder, or a file of the data set is missing.
        FileExistsError: `out` holds a corpus.
        ValueError: a bad argument; a file is damaged or of another layout; no pair passes the selection.
    """
    data = dataset_named(dataset)
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    models = hands_for(data, hands)
    selection = default_selection(data) if selection is None else selection
    source, target = Path(folder), Path(out)
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; pass that of {data.title}")
    shapes = None if data.shapes is None else data.shapes(source)
    _claim(target, overwrite)
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "kind": "import",
        "version": __version__,
        "dataset": data.title,
        "licence": f"that of {data.title}: its terms hold for these shards, and may for what is trained on them",
        "convention": data.convention,
        "hands": _called(hands),
        "hands_key": None if hands is None else _key(models),
        "selection": asdict(selection),
        "complete": False,
    }
    write_manifest(target, manifest)
    writer, skipped = _Writer(target, shard_size), Counter[str]()
    for batch in data.read(source, models):
        pairs, alone, reasons = selection.split(batch)
        skipped.update(reasons)
        writer.add(batch.split, pairs)
        writer.add(f"single-{batch.split}", alone)
    writer.close()
    if not writer.counts:
        raise ValueError(
            f"no frame of {source} passes the selection: "
            + ", ".join(f"{n} x {reason}" for reason, n in skipped.items())
        )
    manifest |= {
        "complete": True,
        "shards": writer.shards,
        "pairs": {name: count for name, count in writer.counts.items() if not name.startswith("single-")},
        "singles": {name[7:]: count for name, count in writer.counts.items() if name.startswith("single-")},
        "left_out": dict(sorted(skipped.items())),
    }
    if shapes is not None:
        if shapes.found:
            save_shapes(shapes.found, target / SHAPES_NAME)
        manifest["objects"] = {
            "shapes": sorted(shapes.found),
            "without a shape": sorted(writer.objects - {"", *shapes.found}),
            "note": shapes.note,
        }
    if manifest["pairs"]:
        paths = [target / name for name in writer.shards if not name.startswith("single-")]
        manifest["statistics"] = summarise(TwoHands.load(path, hands=models) for path in paths)
    write_manifest(target, manifest)
    return manifest


def _called(hands: Any) -> str:
    """Whose the parameters are, for the manifest."""
    if hands is None:
        return "MANO, not given: distances between hands were taken on the open hand"
    return "open hand" if isinstance(hands, str) and hands == "open" else "MANO"


class _Writer:
    """Collects pairs by split and writes a shard whenever one is full."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.shards: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.objects: set[str] = set()
        self._waiting: dict[str, list[TwoHands]] = defaultdict(list)

    def add(self, split: str, pairs: TwoHands) -> None:
        if not len(pairs):
            return
        self._waiting[split].append(pairs)
        if sum(map(len, self._waiting[split])) >= self.size:
            joined = TwoHands.cat(self._waiting[split])
            whole = len(joined) // self.size * self.size
            for start in range(0, whole, self.size):
                self._write(split, joined[start : start + self.size])
            self._waiting[split] = [joined[whole:]] if whole < len(joined) else []

    def close(self) -> None:
        for split, pairs in self._waiting.items():
            if pairs:
                self._write(split, TwoHands.cat(pairs))
        self._waiting.clear()

    def _write(self, split: str, pairs: TwoHands) -> None:
        name = f"{split}-{sum(n.startswith(f'{split}-') for n in self.shards):05d}.npz"
        pairs.save(self.folder / name)
        self.objects.update(map(str, pairs.extras.get(OBJECT_NAME, ())))
        self.shards[name] = len(pairs)
        self.counts[split] += len(pairs)


def _key(models: HandPair) -> str:
    """Tells hand models apart: shape and rest pose of the right hand."""
    arrays = models.right.arrays
    return hashlib.sha256(arrays.v_template.tobytes() + arrays.shapedirs.tobytes()).hexdigest()[:16]


def _claim(folder: Path, overwrite: bool) -> None:
    """Make the folder ours, or refuse: shards of two corpora must not mix."""
    make_writable(folder)
    shards = sorted(folder.glob("*-[0-9][0-9][0-9][0-9][0-9].npz"))
    path = folder / MANIFEST
    if not shards and not path.exists():
        return
    kind = None
    with suppress(OSError, ValueError, AttributeError):
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
    if kind != "import":
        raise FileExistsError(f"{folder} holds another corpus or other shards; choose an empty folder")
    if not overwrite:
        raise FileExistsError(f"{folder} holds an import already; pass --overwrite to replace it, or another folder")
    for old in (*shards, path, folder / SHAPES_NAME):
        old.unlink(missing_ok=True)
