"""PNG without a library: a header, one zlib stream of filtered rows, an end (ISO/IEC 15948)."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomically

__all__ = ["encode_png", "write_png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP = 2  # filter type: each byte minus the one above


def write_png(image: NDArray[np.uint8], path: str | os.PathLike[str]) -> Path:
    """Write an (H, W, 3) byte array as a PNG file, whole or not at all.

    Raises:
        ValueError: it is no such array.
        OSError: the file cannot be written.
    """
    return write_atomically(path, encode_png(image))


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """The PNG file of an (H, W, 3) sRGB byte array."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be a byte array (H, W, 3), got {image.dtype} {image.shape}")
    height, width, _ = image.shape
    rows = image.reshape(height, width * 3)
    filtered = np.full((height, 1 + width * 3), UP, np.uint8)
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]  # modulo 256, as the standard wants
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
