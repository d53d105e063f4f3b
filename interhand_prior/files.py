"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["make_writable", "write_atomically"]


def make_writable(folder: Path) -> None:
    """Make `folder` if missing and write into it: permissions alone do not tell (read-only disks, quotas).

    Raises:
        OSError: it cannot be made or written; the caller says what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview) -> Path:
    """Write `data` beside `path`, then rename: a full disk or a kill leaves what was there before.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return path
