"""Meshes of data sets: vertices of hands in .ply files, ASCII or binary little-endian, and objects in .obj files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

__all__ = ["read_obj", "read_ply"]


def read_ply(path: Path) -> np.ndarray:
    """The 778 vertices of a hand.

    Returns:
        (778, 3) float32, in the file's unit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a form that is not read here, or another mesh.
    """
    data = path.read_bytes()
    head, end, body = data.partition(b"end_header\n")
    lines = head.decode("latin1").split("\n")
    try:
        if not end or lines[0].strip() != "ply":
            raise ValueError("no header")
        form = next(line.split()[1] for line in lines if line.startswith("format"))
        start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["element", "vertex"])
        count = int(lines[start].split()[2])
        fields: list[tuple[str, str]] = []
        for line in lines[start + 1 :]:
            words = line.split()
            if words[:1] != ["property"]:
                break
            kinds = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1", "uint8": "u1"}
            fields.append((words[2], kinds[words[1]]))
        if form == "ascii":
            rows = [line.split() for line in body.decode("latin1").split("\n")[:count]]
            table = np.array([row[: len(fields)] for row in rows], np.float64)
            columns = {name: table[:, i] for i, (name, _) in enumerate(fields)}
        elif form == "binary_little_endian":
            records = np.frombuffer(body, np.dtype(fields), count)
            columns = {name: records[name] for name, _ in fields}
        else:
            raise ValueError(f"format {form}")
        vertices = np.stack([columns[axis] for axis in "xyz"], -1).astype(np.float32)
        if vertices.shape != (778, 3):
            raise ValueError(f"{len(vertices)} vertices")
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} should be a .ply of 778 vertices ({error}); it is damaged or another mesh") from None
    return vertices


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and triangles (F, 3) of a Wavefront .obj, vertices in the file's order; polygons become fans.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no mesh.
    """
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    line = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if words[:1] == ["v"]:
                    x, y, z = words[1:4]
                    vertices.append([float(x), float(y), float(z)])
                elif words[:1] == ["f"]:
                    # Counted from 1, or backwards from the last vertex so far.
                    index = [int(word.partition("/")[0]) for word in words[1:]]
                    corners = [i - 1 if i > 0 else len(vertices) + i for i in index]
                    if len(corners) < 3 or 0 in index or min(corners) < 0:
                        raise ValueError("a face of fewer than three vertices, or of one that is not there")
                    faces += [(corners[0], b, c) for b, c in pairwise(corners[1:])]
    except ValueError as error:
        raise ValueError(f"{path}: the line {line.strip()[:60]!r} is no part of a mesh ({error})") from None
    if not vertices or not faces:
        raise ValueError(f"{path} holds no mesh; copy it again")
    return np.array(vertices, np.float64), np.array(faces, np.int64)
