"""Samples on disk: safetensors shards that are mapped into memory, so that a data set may be larger than it.

FOLDER/manifest.json              the key, what the shards hold, their checksums, the statistics of the samples
FOLDER/vectors-00000.safetensors  `values` (N, 119) float32 and `flags` (N, 2) uint8 (see vectors.py); all shards but
                                  the last have `SHARD_ROWS` rows

A folder is written beside its place and renamed when it is whole, so it is there entirely or not at all; of several
processes that write the same one, the first wins. Mapped pages are read when a sample is fetched, and belong to the
operating system, which drops them when memory is short.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from ..canonical import SIZE
from ..files import write_atomically
from .vectors import OWN, WIDTH, Moments, Rows, VectorSamples

__all__ = [
    "FORMAT",
    "MANIFEST",
    "SHARD_ROWS",
    "StoreError",
    "discard",
    "open_samples",
    "read_manifest",
    "scratch_folder",
    "shards_of",
    "write_samples",
]

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_ROWS = 1 << 16
_SCRATCH = ".building-"
_ABANDONED = 24 * 3600.0  # seconds without a new file after which a writer is taken for dead
_BLOCK = 1 << 24


class StoreError(ValueError):
    """A folder of shards that is damaged, or of another version; the message says what to do."""


def write_samples(
    folder: str | os.PathLike[str],
    rows: Iterable[Rows],
    describe: Callable[[], tuple[str, Mapping[str, object]]],
    *,
    shard_rows: int = SHARD_ROWS,
) -> Path:
    """Write shards, holding one of them in memory at a time.

    Args:
        folder: a folder for many such folders, made if missing.
        rows: of any lengths.
        describe: called when all rows are written; gives the name of the new folder in `folder`, and JSON facts for
            its manifest, among them the `fingerprint`.
        shard_rows: rows of a shard.

    Returns:
        The new folder, or the one of that name that was there before.

    Raises:
        OSError: the disk refused. No folder was made.
    """
    root = Path(folder)
    with scratch_folder(root) as building:
        moments, singles = Moments.empty(), 0
        shards: list[dict[str, Any]] = []
        for number, shard in enumerate(shards_of(rows, shard_rows)):
            moments = moments.merged(Moments.of(shard.values[:, OWN:], shard.flags[:, 1]))
            singles += int((~shard.flags[:, 1]).sum())
            name = f"vectors-{number:05d}.safetensors"
            data = serialise_tensors({"values": shard.values, "flags": shard.flags.to(torch.uint8)})
            write_atomically(building / name, data)
            shards.append({"name": name, "rows": len(shard.values), "bytes": len(data), "crc32": zlib.crc32(data)})
        name, facts = describe()
        manifest = {
            "format": FORMAT,
            **facts,
            "rows": sum(shard["rows"] for shard in shards),
            "singles": singles,
            "moments": {
                "own_count": moments.own_count,
                "relative_count": moments.relative_count,
                "mean": moments.mean.tolist(),
                "square": moments.square.tolist(),
            },
            "shards": shards,
        }
        write_atomically(building / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        umask = os.umask(0)
        os.umask(umask)
        building.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        try:
            building.rename(root / name)
        except OSError:
            if not (root / name / MANIFEST).exists():
                raise
        return root / name


def open_samples(folder: str | os.PathLike[str], *, verify: bool = True) -> VectorSamples:
    """Samples of a folder that `write_samples` wrote, mapped.

    Args:
        folder: with a manifest.
        verify: compare checksums, which reads every shard once (a gigabyte or more in a second).

    Raises:
        FileNotFoundError: there is no such folder.
        StoreError: it is damaged, or of another version.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        stored = manifest["moments"]
        mean, square = (torch.tensor(stored[name], dtype=torch.float64) for name in ("mean", "square"))
        if mean.shape != (SIZE,) or square.shape != (SIZE,):
            raise ValueError(f"statistics of {len(mean)} and {len(square)} entries")
        moments = Moments(stored["own_count"], stored["relative_count"], mean, square)
        blocks = [_map(folder / shard["name"], shard, verify) for shard in manifest["shards"]]
        return VectorSamples(blocks, moments, manifest["fingerprint"], manifest["singles"])
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise StoreError(f"{folder} is damaged ({error}); delete it, and it will be made again") from error


def discard(folder: Path) -> None:
    """Remove a folder of shards; it is gone before its files are."""
    with scratch_folder(folder.parent) as scratch, suppress(FileNotFoundError):
        folder.rename(scratch / folder.name)


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root`, which is made if missing; removed at the end unless it was renamed."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in root.glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # its writer has just finished
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {folder} holds no samples") from None
    except (ValueError, OSError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete {folder}, and it will be made again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{path} is not of this version; delete {folder}, and it will be made again")
    return manifest


def shards_of(rows: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same rows in blocks of `size`, the last one perhaps shorter."""
    waiting: list[Rows] = []
    count = 0
    for block in rows:
        start = 0
        while count + len(block.values) - start >= size:
            stop = start + size - count
            waiting.append(Rows(block.values[start:stop], block.flags[start:stop]))
            yield _join(waiting)
            waiting, count, start = [], 0, stop
        if start < len(block.values):
            # A copy: a view would keep the whole block in memory.
            waiting.append(Rows(block.values[start:].clone(), block.flags[start:].clone()))
            count += len(block.values) - start
    if count:
        yield _join(waiting)


def _join(blocks: list[Rows]) -> Rows:
    return Rows(torch.cat([block.values for block in blocks]), torch.cat([block.flags for block in blocks]))


def _map(path: Path, shard: dict[str, Any], verify: bool) -> Rows:
    if path.stat().st_size != shard["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {shard['bytes']}")
    if verify and _checksum(path) != shard["crc32"]:
        raise ValueError(f"{path.name} was changed: its checksum is another")
    # Of all ways to read safetensors only this one maps the file: a slice, and every way of numpy's, is a copy.
    with safe_open(path, framework="pt") as file:
        values, flags = file.get_tensor("values"), file.get_tensor("flags")
    _require(values, (shard["rows"], WIDTH), torch.float32, path.name)
    _require(flags, (shard["rows"], 2), torch.uint8, path.name)
    return Rows(values, flags.view(torch.bool))


def _require(values: Tensor, shape: tuple[int, int], dtype: torch.dtype, name: str) -> None:
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(f"{name} holds {values.dtype} {tuple(values.shape)}, not {dtype} {shape}")


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
