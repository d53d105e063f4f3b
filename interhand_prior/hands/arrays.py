"""The arrays of one hand in MANO's format, checked once on the way in.

A hand with vertices v, joints J and pose feature p = vec(R_1 - I, ..., R_15 - I) is (Romero et al. 2017, Eq. 1-4)

    v = LBS(v_template + shapedirs beta + posedirs p,  J,  weights),      J = J_regressor (v_template + shapedirs beta)

Everything downstream relies on MANO's topology (778 vertices, 1538 faces, one open wrist loop of 16 vertices), its
16 joints and its rest frame: right fingers point to -x, the palm faces -y, the thumb +z; the left hand is the x-mirror.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["MIDDLE_MCP", "NUM_FACES", "NUM_VERTICES", "PARENTS", "TIP_IDS", "WRIST_LOOP", "HandArrays", "HandSide"]

HandSide = Literal["left", "right"]

NUM_VERTICES = 778
NUM_FACES = 1538
#: Parent of each joint: wrist; index 1-3; middle 1-3; pinky 1-3; ring 1-3; thumb 1-3.
PARENTS: tuple[int, ...] = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
#: The middle finger's first joint, the origin of the canonical frame (paper Sec. 3.2).
MIDDLE_MCP = 4
#: smplx's tip vertices: thumb, index, middle, ring, pinky.
TIP_IDS: tuple[int, ...] = (744, 320, 443, 554, 671)
#: The open wrist boundary, in order.
WRIST_LOOP: tuple[int, ...] = (108, 79, 78, 121, 214, 215, 279, 239, 234, 92, 38, 122, 118, 117, 119, 120)

Floats = npt.NDArray[np.float64]

_SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (NUM_VERTICES, 3),
    "shapedirs": (NUM_VERTICES, 3, 10),
    "posedirs": (NUM_VERTICES, 3, 135),
    "J_regressor": (16, NUM_VERTICES),
    "weights": (NUM_VERTICES, 16),
    "hands_mean": (45,),
    "hands_components": (45, 45),
}
_OPTIONAL = ("hands_mean", "hands_components")

# Two vertices across the palm (IntagHand's handedness test); their order along x tells the side.
_ULNAR, _RADIAL = 270, 216

# vec of outer(m, m) with m = (-1, 1, 1): how R -> M R M changes the nine entries of a rotation.
_MIRROR_ROTATION = np.outer([-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]).ravel()
_MIRROR_POINT = np.array([-1.0, 1.0, 1.0])
_MIRROR_AXIS_ANGLE = np.tile([1.0, -1.0, -1.0], 15)


@dataclass(frozen=True, eq=False)
class HandArrays:
    """One hand's arrays, in float64 (exact for a float32 file).

    Attributes:
        v_template: (778, 3) metres, the rest surface.
        shapedirs: (778, 3, 10) metres per unit of beta.
        posedirs: (778, 3, 135) metres per entry of R_k - I, k = 1..15, row-major.
        J_regressor: (16, 778) joints from rest vertices.
        weights: (778, 16) skinning weights, rows sum to 1.
        faces: (1538, 3) int64, outward.
        hands_mean: (45,) radians, the mean pose that `flat_hand_mean=False` adds; None when the source lacks it.
        hands_components: (45, 45) pose basis, one component a row; None when the source lacks it.
        shapedirs_fixed: the left hand's shapedirs were mirrored on loading (the bug of the released left MANO).
    """

    v_template: Floats
    shapedirs: Floats
    posedirs: Floats
    J_regressor: Floats
    weights: Floats
    faces: npt.NDArray[np.int64]
    hands_mean: Floats | None = None
    hands_components: Floats | None = None
    shapedirs_fixed: bool = False

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], name: str) -> HandArrays:
        """Check and copy arrays under MANO's keys.

        Args:
            data: v_template, shapedirs, posedirs, J_regressor (dense), weights, f, kintree_table, and optionally
                hands_mean and hands_components; other keys are ignored.
            name: what to call the source in errors (a file's name, an argument).

        Raises:
            ValueError: an array is missing, has a wrong shape or type, or holds values that cannot be.
        """
        required = [*(key for key in _SHAPES if key not in _OPTIONAL), "f", "kintree_table"]
        missing = [key for key in required if data.get(key) is None]
        if missing:
            raise ValueError(
                f"{name} lacks {', '.join(missing)}; it must hold MANO's arrays ({', '.join([*required, *_OPTIONAL])})"
            )
        floats = {key: _floats(data[key], key, shape, name) for key, shape in _SHAPES.items() if _has(data, key)}
        weights = floats["weights"]
        if weights.min() < -1e-6 or abs(weights.sum(1) - 1).max() > 1e-2:
            raise ValueError(
                f"{name}: weights must be >= 0 and sum to 1 for each vertex, got a minimum of {weights.min():.3g} "
                f"and sums from {weights.sum(1).min():.3g} to {weights.sum(1).max():.3g}; the file is damaged"
            )
        faces = _integers(data["f"], "f", (NUM_FACES, 3), name)
        if faces.min() < 0 or faces.max() >= NUM_VERTICES:
            raise ValueError(
                f"{name}: f must index {NUM_VERTICES} vertices, got {faces.min()} to {faces.max()}; the file is damaged"
            )
        _check_boundary(faces, name)
        _check_parents(_integers(data["kintree_table"], "kintree_table", (2, 16), name)[0], name)
        mean, components = (floats.pop(key, None) for key in _OPTIONAL)
        return cls(faces=faces, hands_mean=mean, hands_components=components, shapedirs_fixed=False, **floats)

    @property
    def side(self) -> HandSide:
        """Which hand this is, told by its rest surface: a right thumb-side knuckle lies at larger x."""
        return "right" if self.v_template[_ULNAR, 0] < self.v_template[_RADIAL, 0] else "left"

    def mirrored(self) -> HandArrays:
        """The exact x-mirror: the same hand on the other side.

        With M = diag(-1, 1, 1), v -> M v and R -> M R M. So x of v_template, shapedirs and posedirs is negated, the
        columns of posedirs take the signs of vec(M R M), and axis-angles become (x, -y, -z). Faces are reversed to
        stay outward.
        """
        columns = np.tile(_MIRROR_ROTATION, 15)
        return replace(
            self,
            v_template=self.v_template * _MIRROR_POINT,
            shapedirs=self.shapedirs * _MIRROR_POINT[:, None],
            posedirs=self.posedirs * _MIRROR_POINT[:, None] * columns,
            faces=np.ascontiguousarray(self.faces[:, ::-1]),
            hands_mean=None if self.hands_mean is None else self.hands_mean * _MIRROR_AXIS_ANGLE,
            hands_components=None if self.hands_components is None else self.hands_components * _MIRROR_AXIS_ANGLE,
        )

    def with_left_shapedirs_fixed(self, right: HandArrays) -> HandArrays:
        """Mirror this left hand's shapedirs if they equal the right hand's, as in the released MANO_LEFT.

        The test is the one in common use: the x entries differ by less than 1 in sum. Betas then mean the same
        change of shape on both hands. (InterHand2.6M's betas are for the fixed left model, those of ARCTIC and
        DexYCB for the released one.)
        """
        if np.abs(self.shapedirs[:, 0] - right.shapedirs[:, 0]).sum() >= 1:
            return self
        return replace(self, shapedirs=self.shapedirs * _MIRROR_POINT[:, None], shapedirs_fixed=True)


def _has(data: Mapping[str, Any], key: str) -> bool:
    return data.get(key) is not None


def _floats(value: Any, key: str, shape: tuple[int, ...], name: str) -> Floats:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != shape:
        raise ValueError(
            f"{name}: {key} must be numbers of shape {shape}, got {array.dtype} of shape {array.shape}; "
            "only MANO's own topology with 10 betas is understood"
        )
    array = np.array(array, np.float64)  # a copy: the caller may go on changing theirs
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {key} holds NaN or infinity; the file is damaged, fetch or export it again")
    return array


def _integers(value: Any, key: str, shape: tuple[int, ...], name: str) -> npt.NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.shape != shape:
        raise ValueError(
            f"{name}: {key} must be integers of shape {shape}, got {array.dtype} of shape {array.shape}; "
            "only MANO's own topology is understood"
        )
    return array.astype(np.int64)


def _check_parents(parents: npt.NDArray[np.int64], name: str) -> None:
    # The root's parent is written -1, or as the same bits unsigned; smplx overwrites it.
    if parents[0] not in (-1, 2**32 - 1) or tuple(parents[1:]) != PARENTS[1:]:
        raise ValueError(
            f"{name}: kintree_table[0] must be MANO's parents {PARENTS} (the first may be 4294967295), "
            f"got {tuple(int(p) for p in parents)}"
        )


def _check_boundary(faces: npt.NDArray[np.int64], name: str) -> None:
    """Refuse faces whose only boundary is not the wrist loop: caps and the inside tests rely on it."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    codes, opposite = edges @ [NUM_VERTICES, 1], edges @ [1, NUM_VERTICES]
    boundary = set(codes[~np.isin(codes, opposite)].tolist())
    loop = np.array(WRIST_LOOP)
    following = np.roll(loop, -1)
    forward, backward = loop * NUM_VERTICES + following, following * NUM_VERTICES + loop
    if len(set(codes.tolist())) != codes.size or boundary not in (set(forward.tolist()), set(backward.tolist())):
        raise ValueError(
            f"{name}: f must be a consistently oriented surface that is open only at MANO's 16-vertex wrist loop; "
            "this is another mesh than MANO's, or the file is damaged"
        )
