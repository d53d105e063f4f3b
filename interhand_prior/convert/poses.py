"""How a finger pose is written: offsets from a mean, PCA coefficients, rotation matrices.

With the mean pose m (45) and components C (n, 45), one a row, what MANO's users write as x is the absolute pose

    x C + m   (use_pca=True)          x + m   (use_pca=False)          m = 0 with flat_hand_mean=True,

in smplx's words. The rows of MANO's C are not unit vectors, so the way back is the pseudo-inverse, not the transpose.

A sum of two rotation vectors may be longer than pi (ARCTIC's are). It is still a rotation, but a network that learned
absolute poses has never seen it: the absolute pose is always wrapped here to vectors of length at most pi.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle
from .values import full_precision, no_autocast, shaped

if TYPE_CHECKING:
    from ..hands import HandModel

__all__ = ["PoseForm", "matrices_to_pose", "pose_to_matrices", "wrapped"]

_MATRIX_LAYERS = ("MANOLayer", "SMPLHLayer", "SMPLXLayer")


@dataclass(frozen=True, eq=False)
class PoseForm:
    """How one side's finger poses are written.

    Attributes:
        mean: (45,) radians, float64; None for a flat mean.
        components: (n, 45), float64; None for axis-angles.
    """

    mean: Tensor | None = None
    components: Tensor | None = None

    @classmethod
    def of(
        cls, model: HandModel, *, use_pca: bool = False, flat_hand_mean: bool = False, num_pca_comps: int = 45
    ) -> PoseForm:
        """The form that a hand model's own mean and components make.

        Args:
            model: one side's hand.
            use_pca: poses are PCA coefficients.
            flat_hand_mean: nothing is added to them.
            num_pca_comps: how many coefficients, the first ones.

        Raises:
            ValueError: the model has no mean pose or no components, or not that many.
        """
        arrays = model.arrays
        mean = None if flat_hand_mean else _known(arrays.hands_mean, "hands_mean", model)
        if not use_pca:
            return cls(mean)
        if not 1 <= num_pca_comps <= 45:
            raise ValueError(f"num_pca_comps must be from 1 to 45, got {num_pca_comps}")
        return cls(mean, _known(arrays.hands_components, "hands_components", model)[:num_pca_comps])

    @classmethod
    def of_layer(cls, layer: Any, side: str | None = None) -> PoseForm:
        """The form that a user's layer reads: `form.to_pose(layer.hand_pose)` is the absolute pose.

        Args:
            layer: smplx.MANO, SMPLH or SMPLX (from `smplx.create`); or manopth's or manotorch's ManoLayer, whose poses
                are what stands behind the global rotation.
            side: of a layer with two hands, "left" or "right".

        Raises:
            TypeError: it is none of these. The classes MANOLayer, SMPLHLayer and SMPLXLayer take rotation matrices
                (see `matrices_to_pose`), and so may a ManoLayer, or quaternions.
            ValueError: `side` is wanting, or of no use.
        """
        kind = type(layer).__name__
        if kind in _MATRIX_LAYERS:
            raise TypeError(f"layer is a {kind}, which takes rotation matrices; use matrices_to_pose")
        if side not in (None, "left", "right"):
            raise ValueError(f"side must be 'left', 'right' or None, got {side!r}")
        if hasattr(layer, "th_v_template"):
            return cls._of_manopth(layer, side)
        prefix = "" if side is None else f"{side}_"
        mean = getattr(layer, f"{prefix}hand_mean", None)
        if mean is None or not hasattr(layer, "use_pca"):
            if getattr(layer, "left_hand_mean" if side is None else "hand_mean", None) is not None:
                raise ValueError(f"side must be {'given for' if side is None else 'None for'} a {kind}, got {side!r}")
            raise TypeError(f"layer must be a smplx.MANO, SMPLH or SMPLX, or a ManoLayer, got {kind}")
        # The mean is all zeros when the layer was made with flat_hand_mean=True.
        components = getattr(layer, f"{prefix}hand_components").detach().double() if layer.use_pca else None
        return cls(torch.as_tensor(mean).detach().double(), components)

    @classmethod
    def _of_manopth(cls, layer: Any, side: str | None) -> PoseForm:
        """By the buffers of manopth's ManoLayer, whose names manotorch has kept."""
        mean = getattr(layer, "th_hands_mean", None)
        if mean is None:
            raise TypeError("layer is a ManoLayer that takes rotation matrices or quaternions; see matrices_to_pose")
        if side is not None:
            raise ValueError(f"side must be None for a ManoLayer, got {side!r}")
        components = layer.th_selected_comps.detach().double() if layer.use_pca else None
        return cls(mean.detach().double().reshape(45), components)

    @property
    def width(self) -> int:
        """How many numbers a pose has."""
        return 45 if self.components is None else len(self.components)

    def to_pose(self, written: Tensor) -> Tensor:
        """What is written, as an absolute pose.

        Args:
            written: (..., width); axis-angles also as (..., 15, 3).

        Returns:
            (..., 45) axis-angles of 15 joints, each of length at most pi.

        Raises:
            ValueError: wrong shape.
        """
        if self.components is None and written.shape[-2:] == (15, 3):
            written = written.flatten(-2)
        written = shaped("the finger pose", full_precision(written), self.width)
        if self.components is not None:
            with no_autocast(written):
                written = written @ self.components.to(written)
        return wrapped(written if self.mean is None else written + self.mean.to(written))

    def from_pose(self, pose: Tensor) -> Tensor:
        """Inverse of `to_pose`; with fewer than 45 components the least-squares one.

        Args:
            pose: (..., 45), absolute.

        Returns:
            (..., width).

        Raises:
            ValueError: wrong shape.
        """
        pose = shaped("hand_pose", full_precision(pose), 45)
        offset = pose if self.mean is None else pose - self.mean.to(pose)
        if self.components is None:
            return offset
        with no_autocast(offset):
            return offset @ self._inverse.to(offset)

    @functools.cached_property
    def _inverse(self) -> Tensor:
        assert self.components is not None
        return torch.linalg.pinv(self.components)


def wrapped(axis_angle: Tensor) -> Tensor:
    """The same rotations with vectors of length at most pi; those that are short enough are not touched.

    Args:
        axis_angle: (..., 3 k) radians.

    Returns:
        The same shape. The gradient is the wrapped vector's own: finite everywhere, 1 where nothing is wrapped.
    """
    vectors = axis_angle.unflatten(-1, (-1, 3))
    square = vectors.square().sum(-1, keepdim=True)
    long = square > math.pi**2
    angle = torch.where(long, square, torch.ones_like(square)).sqrt()
    turns = torch.where(long, (angle / (2 * math.pi)).round(), torch.zeros_like(angle))
    return (vectors * (1 - 2 * math.pi * turns / angle)).flatten(-2)


def matrices_to_pose(matrices: Tensor) -> Tensor:
    """Rotation matrices of 15 joints (..., 15, 3, 3) -> absolute pose (..., 45).

    Raises:
        ValueError: wrong shape.
    """
    return matrix_to_axis_angle(shaped("hand_pose", full_precision(matrices), 15, 3, 3)).flatten(-2)


def pose_to_matrices(pose: Tensor) -> Tensor:
    """Absolute pose (..., 45) -> rotation matrices of 15 joints (..., 15, 3, 3).

    Raises:
        ValueError: wrong shape.
    """
    return axis_angle_to_matrix(shaped("hand_pose", full_precision(pose), 45).unflatten(-1, (15, 3)))


def _known(value: np.ndarray | None, name: str, model: HandModel) -> Tensor:
    if value is None:
        raise ValueError(
            f"hands.{model.side} has no {name}, which this form of the pose needs; load the hands from MANO's files, "
            "or from smplx layers made with flat_hand_mean=False and all components"
        )
    return torch.as_tensor(value)
