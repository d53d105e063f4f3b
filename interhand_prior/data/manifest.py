"""What a corpus says of itself: `manifest.json` beside its shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import write_atomically

__all__ = ["MANIFEST", "write_manifest"]

MANIFEST = "manifest.json"


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write it, whole or not at all."""
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
