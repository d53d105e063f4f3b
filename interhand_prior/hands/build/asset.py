"""The whole build and the asset file: MANO's keys, metres, float32."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import checks
from .assemble import assemble, face_normals
from .correctives import posedirs
from .field import field, value_and_gradient
from .pose_statistics import hands_components, hands_mean
from .shape import joint_regressor, shape_space
from .skeleton import JOINTS, PARENTS
from .skinning import skinning_weights

SEED = 0
MILLIMETRE = 1e-3


def build(seed: int = SEED, say: Callable[[str], None] = lambda _: None) -> dict[str, np.ndarray]:
    """All arrays of the right hand, float64, in metres and radians.

    `seed` draws the poses that the correctives are fitted on; everything else is without chance. Raises
    RuntimeError when the mesh breaks a promise of `checks`.
    """
    vertices, faces, part = assemble()
    say("mesh")
    errors = checks.topology_errors(faces)
    gradient = value_and_gradient(field, vertices[faces].mean(1))[1]
    if ((face_normals(vertices, faces) * gradient).sum(1) <= 0).any():
        errors.append("a face looks inward")
    if checks.self_intersections(vertices, faces):
        errors.append("the surface intersects itself")
    if errors:
        raise RuntimeError("; ".join(errors))
    weights = skinning_weights(vertices, faces, part)
    space = shape_space(vertices, faces, weights, part)
    regressor = joint_regressor(vertices, space)
    if np.abs(regressor @ vertices - JOINTS).max() > 1e-6:
        raise RuntimeError("the joint regressor misses the joints")
    say("skinning weights and shape space")
    directions = posedirs(vertices, faces, weights, part, seed)
    say("pose correctives")
    parents = np.array(PARENTS, dtype=np.int64)
    parents[0] = 2**32 - 1  # as MANO's own files have it
    return {
        "v_template": vertices * MILLIMETRE,
        "f": faces.astype(np.uint32),
        "J_regressor": regressor,
        "weights": weights,
        "shapedirs": space.shapedirs * MILLIMETRE,
        "posedirs": directions * MILLIMETRE,
        "kintree_table": np.stack([parents, np.arange(16)]),
        "hands_mean": hands_mean(),
        "hands_components": hands_components(),
        "part": part.astype(np.int8),
    }


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write the asset as a compressed npz, floating arrays as float32; the file appears whole or not at all."""
    single = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()}
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **single)  # type: ignore[arg-type]
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
