"""Where training data come from, as far as they say so themselves: for the prior's record and its model card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..hands import HandPair
from .sources import model_key

__all__ = ["origin"]

_MANIFEST = "manifest.json"


def origin(sources: Iterable[Any], hands: HandPair | None) -> dict[str, Any]:
    """Names and licences of data sets, and whose hand models they belong to.

    Args:
        sources: what `train` reads. Folders may hold a `manifest.json` with "dataset" and "licence"; folders' own
            names and paths are not recorded.
        hands: the hand models; None: the open hand.

    Returns:
        "hands"; "data sets", a list, and "licence", one text, where any is known.
    """
    said = [_manifest(source) for source in sources]
    names = [str(manifest.get("dataset") or "unknown") for manifest in said]
    licences = [str(manifest.get("licence") or "unknown") for manifest in said]
    found: dict[str, Any] = {"data sets": names} if set(names) != {"unknown"} else {}
    if len(set(licences)) == 1 and licences[0] != "unknown":
        found["licence"] = licences[0]
    elif set(licences) != {"unknown"}:
        found["licence"] = "; ".join(f"{name}: {licence}" for name, licence in zip(names, licences, strict=True))
    is_open = model_key(hands) == model_key(None)
    return found | {"hands": "open hand" if is_open else "other hand models than the open hand"}


def _manifest(source: Any) -> dict[str, Any]:
    if not isinstance(source, (str, os.PathLike)):
        return {}
    path = Path(source)
    # A corpus need not have one, and a damaged one is no reason not to train.
    with suppress(OSError, ValueError):
        found = json.loads(((path if path.is_dir() else path.parent) / _MANIFEST).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
