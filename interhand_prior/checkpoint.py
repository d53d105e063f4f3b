"""A checkpoint is a folder: `config.json` (rebuilds the object) beside `model.safetensors` (its tensors).

Nothing in it is executable: JSON and safetensors hold numbers and names, and no pickle is ever opened.
Reading is strict. With W the bytes of the weight file, `config.json` carries SHA-256(W), the length of W and
the dtype and shape of every tensor, so a file that was cut short, exchanged or edited is refused before it is
parsed.

Writing is atomic although there are two files. The weights go to `model.safetensors.pending`, then
`config.json` is replaced (the one moment that decides), then the pending file takes its place. Whoever stops
the process before that moment leaves the old checkpoint; after it, the reader finds by its hash that the
pending file is the one that `config.json` speaks of, and reads that. One writer per folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from .files import write_atomically

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "CheckpointError", "read_checkpoint", "write_checkpoint"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
PENDING_SUFFIX = ".pending"
FORMAT = "interhand_prior"
FORMAT_VERSION = 1
MAX_CONFIG_BYTES = 4_000_000
"""Larger than any real one by a factor of a hundred; keeps a hostile file from filling the memory."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_KEYS = {"format", "format_version", "kind", "config", "weights"}
_WEIGHT_KEYS = {"sha256", "bytes", "tensors"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or understood; the message says what to do."""


def read_checkpoint(folder: str | os.PathLike[str], *, kind: str = "prior") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and verify a checkpoint folder.

    Args:
        folder: folder that holds `config.json` and `model.safetensors`.
        kind: what the folder must hold; the name given to `write_checkpoint`.

    Returns:
        The config as it was given to `write_checkpoint` (tuples have become lists) and the tensors, on the
        CPU, in their stored dtypes.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        CheckpointError: the folder holds pickles only; the config is malformed, of another kind or of a newer
            version, or has unknown keys; the weights do not match the config, or hold NaN or infinity.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint: {str(folder)!r} is not a folder. {_WANTED}")
    header = _read_header(folder, kind)
    weights: dict[str, Any] = header["weights"]
    data = _read_weights(folder, weights["sha256"], weights["bytes"])
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint: {folder / WEIGHTS_NAME} is not a safetensors file ({error}). {_FETCH}"
        ) from error
    found = _describe(tensors)
    if found != weights["tensors"]:
        wrong = sorted(k for k in {*found, *weights["tensors"]} if found.get(k) != weights["tensors"].get(k))
        raise CheckpointError(
            f"checkpoint: {folder / WEIGHTS_NAME} does not hold the tensors that {CONFIG_NAME} lists; they"
            f" differ in {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}. {_FETCH}"
        )
    _require_finite(tensors, where=str(folder / WEIGHTS_NAME), remedy=_FETCH)
    return header["config"], tensors


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    kind: str = "prior",
) -> Path:
    """Write a checkpoint folder atomically: it holds the old checkpoint or the new one, never a mixture.

    Args:
        folder: made if missing; other files in it are left alone.
        config: JSON values only (str keys; finite numbers; tuples are stored as lists).
        tensors: any devices and dtypes; stored in their dtypes. Floating-point values must be finite.
        kind: what this is a checkpoint of; `read_checkpoint` must be given the same.

    Raises:
        CheckpointError: a tensor is not finite, or the config is not JSON. Nothing was written.
        OSError: the disk refused. The old checkpoint is intact.
    """
    folder = Path(folder)
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    _require_finite(stored, where="tensors", remedy="Training diverged? Go back to the last good checkpoint.")
    data = serialise_tensors(stored)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": dict(config),
        "weights": {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "tensors": _describe(stored),
        },
    }
    try:
        text = json.dumps(header, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config: only JSON values can be stored ({error}).") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise CheckpointError(f"config: {len(text)} bytes of JSON, more than the {MAX_CONFIG_BYTES} allowed.")

    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder)
    # Always the same name: a killed process leaves one such file at most, and the next write takes it over.
    pending = folder / (WEIGHTS_NAME + PENDING_SUFFIX)
    try:
        _write_synced(pending, data)
        write_atomically(folder / CONFIG_NAME, text.encode())
    except BaseException:
        # An interrupt may arrive after the config was replaced: then the pending file is the checkpoint.
        with suppress(OSError):
            if not _settle(folder):
                pending.unlink(missing_ok=True)
        raise
    os.replace(pending, folder / WEIGHTS_NAME)
    _sync_folder(folder)
    return folder


_WANTED = f"A checkpoint is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, as `save_pretrained` writes it."
_FETCH = "Download or save the checkpoint again."


def _read_header(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        pickles = _pickles(folder)
        if pickles and not (folder / WEIGHTS_NAME).exists():
            _refuse_pickles(folder, pickles)
        raise FileNotFoundError(f"checkpoint: {path} is missing. {_WANTED}")
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"checkpoint: {path} has {size} bytes, over the limit of {MAX_CONFIG_BYTES}. {_FETCH}")
    try:
        header = json.loads(
            path.read_bytes().decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint: {path} is not valid JSON ({error}). {_FETCH}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f'checkpoint: {path} is not of this library (no "format": "{FORMAT}"). {_WANTED}')
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint: {path} has format_version {version!r}, this library reads {FORMAT_VERSION}. "
            "Install the version of interhand_prior that wrote it, or a newer one."
        )
    _require_keys(header, _KEYS, path)
    if header["kind"] != kind:
        raise CheckpointError(f"checkpoint: {folder} holds a {header['kind']!r}, not a {kind!r}. Give another folder.")
    weights = header["weights"]
    if not isinstance(header["config"], dict) or not isinstance(weights, dict):
        raise CheckpointError(f'checkpoint: {path}: "config" and "weights" must be objects. {_FETCH}')
    _require_keys(weights, _WEIGHT_KEYS, path)
    if (
        not isinstance(weights["sha256"], str)
        or not isinstance(weights["bytes"], int)
        or not isinstance(weights["tensors"], dict)
    ):
        raise CheckpointError(f'checkpoint: {path}: "weights" is malformed. {_FETCH}')
    return header


def _read_weights(folder: Path, sha256: str, size: int) -> bytes:
    """The bytes whose hash is `sha256`; of the two possible files, see the module's docstring."""
    candidates = [p for p in (folder / WEIGHTS_NAME, folder / (WEIGHTS_NAME + PENDING_SUFFIX)) if p.is_file()]
    if not candidates:
        pickles = _pickles(folder)
        if pickles:
            _refuse_pickles(folder, pickles)
        raise FileNotFoundError(f"checkpoint: {folder / WEIGHTS_NAME} is missing. {_WANTED}")
    for path in candidates:
        if path.stat().st_size != size:
            continue
        # Hash and parse the same bytes: a file exchanged in between cannot slip through.
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    path = candidates[0]
    found = path.stat().st_size
    if found != size:
        raise CheckpointError(
            f"checkpoint: {path} has {found} bytes where {CONFIG_NAME} says {size}: the file was cut short or"
            f" belongs to another config. {_FETCH}"
        )
    raise CheckpointError(
        f"checkpoint: {path} does not have the SHA-256 that {CONFIG_NAME} names: it was changed after it"
        f" was saved. {_FETCH}"
    )


def _settle(folder: Path) -> bool:
    """Finish a write that stopped after its deciding moment, so that the next one cannot lose it."""
    pending = folder / (WEIGHTS_NAME + PENDING_SUFFIX)
    if not pending.is_file():
        return False
    try:
        header = json.loads((folder / CONFIG_NAME).read_bytes())
        named = header["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if hashlib.sha256(pending.read_bytes()).hexdigest() != named:
        return False
    os.replace(pending, folder / WEIGHTS_NAME)
    return True


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # So that the new name survives a power cut too; not every system can open a folder.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": str(tensors[name].dtype).removeprefix("torch."), "shape": list(tensors[name].shape)}
        for name in sorted(tensors)
    }


def _require_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint: {name!r} in {where} holds NaN or infinity. {remedy}")


def _require_keys(found: Mapping[str, Any], wanted: set[str], path: Path) -> None:
    unknown, missing = sorted(set(found) - wanted), sorted(wanted - set(found))
    if unknown or missing:
        problems = [f"unknown {unknown}"] * bool(unknown) + [f"missing {missing}"] * bool(missing)
        raise CheckpointError(
            f"checkpoint: {path} does not fit format_version {FORMAT_VERSION}: {', '.join(problems)} keys."
            " It was edited, or another version of interhand_prior wrote it."
        )


def _pickles(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _PICKLES)


def _refuse_pickles(folder: Path, pickles: list[str]) -> NoReturn:
    raise CheckpointError(
        f"checkpoint: {folder} holds {', '.join(pickles[:3])} but no {WEIGHTS_NAME}. Those can run code"
        f" when opened, so this library does not open them. {_WANTED}"
        " Ask the author for a safetensors version."
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key appears twice: {sorted({k for k in keys if keys.count(k) > 1})}")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
