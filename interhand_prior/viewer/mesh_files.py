"""Pairs of hands to mesh files: glTF (.glb), Wavefront (.obj), Stanford (.ply). No library is needed."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._version import __version__
from ..files import write_atomically
from .present import present_hands
from .rasterizer import FloatArray, IntArray
from .sheet import COLOURS, Colour
from .surface import vertex_normals

if TYPE_CHECKING:
    from ..params import TwoHands

__all__ = ["SUFFIXES", "Mesh", "encode_mesh", "export_mesh"]

#: The kinds of file that can be written.
SUFFIXES = (".glb", ".obj", ".ply")
INDEX = "{index}"
#: Free space between pairs laid out side by side, metres.
GAP = 0.05
# Numbers that glTF 2.0 gives to its types.
FLOAT, UNSIGNED_INT, ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER, TRIANGLES = 5126, 5125, 34962, 34963, 4


@dataclass(frozen=True)
class Mesh:
    """A named mesh in one colour.

    Attributes:
        name: of the object in the file.
        vertices: (V, 3) metres.
        faces: (F, 3) counter-clockwise from outside.
        colour: linear RGB.
    """

    name: str
    vertices: FloatArray
    faces: IntArray
    colour: Colour


def export_mesh(hands: TwoHands, path: str | os.PathLike[str], *, columns: int | None = None) -> Path:
    """Write the meshes of both hands, with normals and colours.

    Vertices are in metres and in MANO's order, in the hands' own frame; y counts as up, as in glTF. The meshes are
    named `left` and `right`, or `left_0`, `right_0`, `left_1`, ... where there are several pairs. A .ply knows no
    names: it holds the same meshes one after the other in one.

    Several pairs are laid out in the xy plane, row by row from the top left, each one only shifted. With "{index}"
    in the name each pair gets its own file, unshifted: "hands_{index}.glb" becomes hands_0.glb, hands_1.glb, ...
    A missing hand (`hands.valid`) is left out.

    Args:
        hands: one pair, or a batch of any shape.
        path: ends in .glb, .obj or .ply. Each file is written whole or not at all.
        columns: pairs in a row; by default about as many as there are rows.

    Returns:
        The path as given.

    Raises:
        ValueError: another ending; no pairs; NaN in the hands; a pair has neither hand.
        OSError: a file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}, got {path.name!r} (pictures: .render)")
    if columns is not None and (not isinstance(columns, int) or columns < 1):
        raise ValueError(f"columns must be a positive integer, got {columns!r}")
    with torch.no_grad():
        left, right = (v.reshape(-1, *v.shape[-2:]).float().cpu().numpy() for v in hands.vertices())
    count = len(left)
    if count == 0:
        raise ValueError("hands is an empty batch; there is nothing to write")
    present = present_hands(hands)
    # Where a hand is missing, the other one's vertices stand for it: they change no bounds.
    left, right = (
        np.where(there[:, None, None], own, other)
        for there, own, other in zip(present, (left, right), (right, left), strict=True)
    )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("hands give vertices that are NaN or infinite; clean them before exporting")
    faces = [f.cpu().numpy().astype(np.int64) for f in hands.faces]

    apart = INDEX in path.name
    places = np.zeros((count, 3), np.float32) if apart else _grid(np.concatenate([left, right], 1), columns)
    pairs = []
    for i, place in enumerate(places):
        tail = f"_{i}" if count > 1 and not apart else ""
        meshes = zip(("left", "right"), (left[i], right[i]), faces, COLOURS, present, strict=False)
        pairs.append([Mesh(side + tail, v + place, f, colour) for side, v, f, colour, there in meshes if there[i]])
    if not apart:
        return write_atomically(path, encode_mesh([mesh for pair in pairs for mesh in pair], suffix))
    for i, pair in enumerate(pairs):
        write_atomically(path.with_name(path.name.replace(INDEX, str(i))), encode_mesh(pair, suffix))
    return path


def encode_mesh(meshes: list[Mesh], suffix: str) -> bytes:
    """Contents of a file with that ending."""
    return {".glb": _glb, ".obj": _obj, ".ply": _ply}[suffix](meshes)


def _grid(points: FloatArray, columns: int | None) -> FloatArray:
    """(N, 3) translations that lay out N pairs (N, V, 3) without overlap; zero for a single pair."""
    count = len(points)
    if count == 1:
        return np.zeros((1, 3), np.float32)
    low, high = points.min(1), points.max(1)
    pitch = (high - low).max(0) + GAP
    row, column = np.divmod(np.arange(count), columns or int(np.ceil(np.sqrt(count))))
    place = np.stack([column * pitch[0], -row * pitch[1], np.zeros(count)], 1)
    return (place - (low + high) / 2).astype(np.float32)


def _glb(meshes: list[Mesh]) -> bytes:
    """Binary glTF 2.0: a JSON chunk that describes a chunk of numbers. Base colours are linear there."""
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    data: list[bytes] = []

    def add(array: NDArray[Any], component: int, kind: str, target: int, **more: Any) -> int:
        """Append an array of 4-byte numbers; the number of its accessor."""
        start = sum(map(len, data))
        data.append(array.tobytes())
        views.append({"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": target})
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": component, "type": kind, "count": len(array), **more}
        )
        return len(accessors) - 1

    # What does not change from mesh to mesh is stored once.
    materials: dict[Colour, int] = {}
    indices: dict[bytes, int] = {}
    entries = []
    for mesh in meshes:
        key = mesh.faces.tobytes()
        if key not in indices:
            flat = mesh.faces.astype("<u4").reshape(-1)
            indices[key] = add(flat, UNSIGNED_INT, "SCALAR", ELEMENT_ARRAY_BUFFER)
        points = mesh.vertices.astype("<f4")
        bounds = {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
        normals = vertex_normals(mesh.vertices, mesh.faces).astype("<f4")
        primitive = {
            "attributes": {
                "POSITION": add(points, FLOAT, "VEC3", ARRAY_BUFFER, **bounds),
                "NORMAL": add(normals, FLOAT, "VEC3", ARRAY_BUFFER),
            },
            "indices": indices[key],
            "material": materials.setdefault(mesh.colour, len(materials)),
            "mode": TRIANGLES,
        }
        entries.append({"name": mesh.name, "primitives": [primitive]})
    surface = {"metallicFactor": 0.0, "roughnessFactor": 0.7}
    content = {
        "asset": {"version": "2.0", "generator": f"interhand_prior {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))}],
        "nodes": [{"name": mesh.name, "mesh": i} for i, mesh in enumerate(meshes)],
        "meshes": entries,
        "materials": [
            # Both sides: one looks into the open wrist.
            {"pbrMetallicRoughness": {"baseColorFactor": [*colour, 1.0], **surface}, "doubleSided": True}
            for colour in materials
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, data))}],
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    numbers = b"".join(data)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(numbers), b"BIN\0") + numbers
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _obj(meshes: list[Mesh]) -> bytes:
    """Wavefront text. Colours follow the coordinates, as most readers understand."""
    lines = ["# metres, y up"]
    first = 1
    for mesh in meshes:
        colour = " ".join(f"{value / 255:.3f}" for value in _srgb(mesh.colour))
        lines.append(f"o {mesh.name}")
        lines += [f"v {x:.7f} {y:.7f} {z:.7f} {colour}" for x, y, z in mesh.vertices.tolist()]
        lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertex_normals(mesh.vertices, mesh.faces).tolist()]
        lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in (mesh.faces + first).tolist()]
        first += len(mesh.vertices)
    return ("\n".join(lines) + "\n").encode()


def _ply(meshes: list[Mesh]) -> bytes:
    """Binary PLY with normals and colours of the vertices."""
    vertex = np.dtype([("place", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    triangle = np.dtype([("count", "u1"), ("corner", "<i4", 3)])
    points, triangles, first = [], [], 0
    for mesh in meshes:
        block = np.empty(len(mesh.vertices), vertex)
        block["place"], block["colour"] = mesh.vertices, _srgb(mesh.colour)
        block["normal"] = vertex_normals(mesh.vertices, mesh.faces)
        points.append(block)
        corners = np.empty(len(mesh.faces), triangle)
        corners["count"], corners["corner"] = 3, mesh.faces + first
        triangles.append(corners)
        first += len(mesh.vertices)
    floats = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    bytes_ = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment metres, y up\n"
        f"element vertex {first}\n{floats}{bytes_}"
        f"element face {sum(map(len, triangles))}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    return header.encode() + b"".join(block.tobytes() for block in (*points, *triangles))


def _srgb(linear: Colour) -> list[int]:
    return [round(255 * (1.055 * value ** (1 / 2.4) - 0.055)) for value in linear]
