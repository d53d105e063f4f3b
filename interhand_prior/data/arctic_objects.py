"""ARCTIC's object templates: `meta/object_vtemplates/{object}/mesh.obj` in millimetres, and `parts.json`.

parts.json holds a number for each vertex of the mesh; 0 is the top part, as the published code reads it. Nothing else
of a template is needed: the hinge is the same for all objects (`interhand_prior.objects`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..objects import ObjectShape
from .base import Shapes, load_json
from .meshes import read_obj

__all__ = ["TEMPLATES", "read_templates"]

TEMPLATES = "meta/object_vtemplates"
_FILES = ("mesh.obj", "parts.json")


def read_templates(raw: Path) -> Shapes:
    """The shapes of all objects whose templates are there.

    Args:
        raw: the folder raw_seqs; templates are in meta beside it.

    Raises:
        ValueError: a file is damaged or of another layout.
    """
    folder = raw.parent / TEMPLATES
    if not folder.is_dir():
        return Shapes(
            {},
            f"{folder} is not there: pairs say which object they hold and where it is, but the shapes "
            "are missing, so there are no points on objects",
        )
    found, lacking = {}, []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        missing = [name for name in _FILES if not (place / name).is_file()]
        if missing:
            lacking.append(f"{place.name} lacks {' and '.join(missing)}")
        else:
            found[place.name] = _read_template(place)
    note = f"{len(found)} shapes" + (f"; {'; '.join(lacking)}" if lacking else "")
    return Shapes(found, note if found or lacking else f"{folder} is empty, so there are no points on objects")


def _read_template(folder: Path) -> ObjectShape:
    mesh, parts = (folder / name for name in _FILES)
    vertices, faces = read_obj(mesh)
    try:
        labels = np.asarray(load_json(parts), dtype=np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{parts} should hold a number for each vertex ({error})") from None
    if len(labels) != len(vertices):
        raise ValueError(f"{parts} has {len(labels)} numbers, but {mesh.name} has {len(vertices)} vertices")
    try:
        metres = torch.from_numpy((vertices / 1000).astype(np.float32))
        return ObjectShape(metres, torch.from_numpy(faces), torch.from_numpy(labels == 0))
    except ValueError as error:
        raise ValueError(f"{mesh}: {error}") from None
