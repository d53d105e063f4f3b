r"""Objects in people's hands: their shapes, where they are, and points on them (the paper's condition c, Sec. 3.6).

A shape is a mesh at rest. Its part `top` turns about a hinge, an axis e through the object's own origin, by the
articulation a; then the whole is placed:

    x  ->  R(w) R(a e) x + t      of the top part
    x  ->  R(w) x + t             of the rest                                  e = (0, 0, -1): ARCTIC's convention

Pairs say which object and where in their extras, in the frame of the hands: `object_name` ("": none),
`object_articulation` (N,) radians, `object_orient` (N, 3) axis-angle w, `object_transl` (N, 3) t in metres. A corpus
has the shapes in one file beside its shards, objects.safetensors.

    shapes = load_shapes(folder)
    points = object_points(pairs, shapes, 1024, anchor="left")      # (N, 1024, 3), what a point network takes

Points are spread evenly over the surface, by area at rest. Of a point between the corners c_k of a triangle, with
weights b_k, those of the top part may turn while others stay; placing is linear in b, so the point is where it is in
the placed triangle, p = R(w) (R(a e) sum_top b_k c_k + sum_rest b_k c_k) + t.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from .canonical import Side, to_canonical
from .files import write_atomically
from .params import TwoHands
from .rotations import axis_angle_to_matrix, mirror_points

__all__ = [
    "OBJECT_NAME",
    "OBJECT_POSE",
    "SHAPES_NAME",
    "ObjectShape",
    "load_shapes",
    "object_points",
    "object_vertices",
    "save_shapes",
]

SHAPES_NAME = "objects.safetensors"
#: Extras of pairs that hold an object: its name, and (with the number of values of each) where it is.
OBJECT_NAME = "object_name"
OBJECT_POSE: dict[str, int] = {"object_articulation": 1, "object_orient": 3, "object_transl": 3}
_HINGE = (0.0, 0.0, -1.0)
_FIELDS = ("vertices", "faces", "top")
#: Of the points that are always the same.
_SEED = 0


@dataclass(frozen=True, eq=False)
class ObjectShape:
    """One object at rest.

    Attributes:
        vertices: (V, 3) float32, metres.
        faces: (F, 3) int64.
        top: (V,) bool, the part that turns about the hinge; all False: a rigid object.

    Raises:
        ValueError: a tensor has a wrong shape or type; a face names a vertex that is not there; the surface has no
            area.
    """

    vertices: Tensor
    faces: Tensor
    top: Tensor

    def __post_init__(self) -> None:
        vertices, faces, top = self.vertices, self.faces, self.top
        if vertices.ndim != 2 or vertices.shape[1:] != (3,) or vertices.dtype != torch.float32:
            raise ValueError(f"vertices must be float32 (V, 3), got {vertices.dtype} {tuple(vertices.shape)}")
        if faces.ndim != 2 or faces.shape[1:] != (3,) or faces.dtype != torch.int64 or len(faces) == 0:
            raise ValueError(f"faces must be int64 (F, 3) with F > 0, got {faces.dtype} {tuple(faces.shape)}")
        if top.shape != vertices.shape[:1] or top.dtype != torch.bool:
            raise ValueError(f"top must be bool {tuple(vertices.shape[:1])}, got {top.dtype} {tuple(top.shape)}")
        if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
            raise ValueError(f"faces name vertices up to {int(faces.max())}, but there are {len(vertices)}")
        if not torch.isfinite(vertices).all() or not float(self.areas.sum()) > 0:
            raise ValueError("vertices must be finite and the surface must have an area")

    @property
    def areas(self) -> Tensor:
        """(F,) square metres."""
        corners = self.vertices[self.faces]
        return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2


def object_vertices(shape: ObjectShape, articulation: Tensor, orient: Tensor, transl: Tensor) -> Tensor:
    """The mesh of one object in some places.

    Args:
        shape: the object.
        articulation: (...) radians.
        orient: (..., 3) axis-angle.
        transl: (..., 3) metres.

    Returns:
        (..., V, 3) metres, in the order of `shape.vertices`.
    """
    vertices, top = shape.vertices.to(transl), shape.top.to(transl.device)[:, None]
    zero = torch.zeros_like(vertices)
    return _placed(torch.where(top, vertices, zero), torch.where(top, zero, vertices), articulation, orient, transl)


def object_points(
    pairs: TwoHands,
    shapes: Mapping[str, ObjectShape],
    num: int,
    *,
    anchor: Side | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points on the object of each pair.

    Args:
        pairs: (N,), with the extras of objects. Not `mirrored()` ones, whose extras still say where the object was
            before: `anchor="right"` gives what they need.
        shapes: of all objects among them (`load_shapes`).
        num: P, points of each.
        anchor: None: in the frame of the hands. "left", "right": in that of `to_canonical(pairs, ..., anchor)`, which
            is the anchor's own, and for a right anchor the mirrored one's.
        generator: draws other points for each pair. None: every object has its own P points, which are
            always the same, so that a pair's points do not depend on its batch.

    Returns:
        (N, P, 3) metres, in the dtype and on the device of the pairs.

    Raises:
        ValueError: num is not positive; pairs have no objects; an object has no shape.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    lacking = [name for name in (OBJECT_NAME, *OBJECT_POSE) if name not in pairs.extras]
    if lacking or len(pairs.batch_shape) != 1:
        raise ValueError(
            f"pairs must be a batch (N,) with extras {', '.join((OBJECT_NAME, *OBJECT_POSE))}; "
            + (f"these lack {', '.join(lacking)}" if lacking else f"got the batch shape {tuple(pairs.batch_shape)}")
        )
    names = np.asarray(pairs.extras[OBJECT_NAME], dtype=str)
    unknown = sorted(set(names.tolist()) - set(shapes))
    if "" in unknown:
        raise ValueError(
            f"{int((names == '').sum())} pairs have no object; choose the others: extras['object_name'] != ''"
        )
    if unknown:
        raise ValueError(
            f"there is no shape of {', '.join(unknown)}; import the data set again with its object templates in place, "
            "or choose the other pairs"
        )
    pose = [torch.as_tensor(pairs.extras[name], dtype=pairs.dtype, device=pairs.device) for name in OBJECT_POSE]
    rows_of = 1 if generator is None else len(pairs)
    draws = generator if generator is not None else torch.Generator("cpu").manual_seed(_SEED)
    uniform = torch.rand(rows_of, num, 3, generator=draws, device=draws.device).cpu()
    points = pairs.left.transl.new_empty(len(pairs), num, 3)
    for name in np.unique(names):  # as many as there are objects
        rows = torch.from_numpy(np.flatnonzero(names == name)).to(pairs.device)
        own = uniform if generator is None else uniform[rows.cpu()]
        top, rest = (part.to(points) for part in _spread(shapes[str(name)], own))
        points[rows] = _placed(top, rest, *(value[rows] for value in pose))
    if anchor is None:
        return points
    frame = to_canonical(pairs, pairs.model, anchor)[2]
    own = (points - frame.origin[:, None]) @ frame.rotation
    return mirror_points(own) if anchor == "right" else own


def save_shapes(shapes: Mapping[str, ObjectShape], path: str | os.PathLike[str]) -> Path:
    """Write the shapes of a corpus, whole or not at all."""
    tensors = {f"{name}.{key}": getattr(shape, key).contiguous() for name, shape in shapes.items() for key in _FIELDS}
    return write_atomically(Path(path), serialise_tensors(tensors))


def load_shapes(path: str | os.PathLike[str]) -> dict[str, ObjectShape]:
    """Shapes by the objects' names.

    Args:
        path: what `save_shapes` wrote, or the folder of a corpus.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    path = Path(path)
    path = path / SHAPES_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; `interhand-prior corpus import arctic` writes it where the data set's folder "
            "has the objects' templates"
        )
    try:
        tensors = deserialise_tensors(path.read_bytes())
        names = {key.rpartition(".")[0] for key in tensors}
        return {name: ObjectShape(*(tensors[f"{name}.{key}"] for key in _FIELDS)) for name in sorted(names)}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or holds no shapes ({error}); import the data set again") from None


def _spread(shape: ObjectShape, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform numbers (n, P, 3) -> points on the surface (n, P, 3), what is of the top part and of the rest in them."""
    share = shape.areas.double().cumsum(0)
    wanted = uniform[..., 0].double() * share[-1]
    face = torch.searchsorted(share, wanted.contiguous(), right=True).clamp_max(len(share) - 1)
    # The root makes the density even; of a triangle's weights two are drawn.
    root, along = uniform[..., 1].sqrt(), uniform[..., 2]
    weights = torch.stack((1 - root, root * (1 - along), root * along), -1)[..., None]
    corner = shape.faces[face]  # n, P, 3
    weighted = weights * shape.vertices[corner]
    top = shape.top[corner][..., None]
    return torch.where(top, weighted, 0).sum(-2), torch.where(top, 0, weighted).sum(-2)


def _placed(top: Tensor, rest: Tensor, articulation: Tensor, orient: Tensor, transl: Tensor) -> Tensor:
    """What is of the top part, and of the rest, in points (..., P, 3) -> where the points are, (..., P, 3)."""
    with torch.autocast(transl.device.type, enabled=False):
        hinge = axis_angle_to_matrix(articulation[..., None] * articulation.new_tensor(_HINGE))
        return (top @ hinge.mT + rest) @ axis_angle_to_matrix(orient).mT + transl[..., None, :]
