"""What users hold: one hand's parameters, and a pair of hands.

Names and meaning are smplx's, so `layer(**hand.as_dict())` works: axis-angle in radians, metres, and an ABSOLUTE
`hand_pose` (smplx with flat_hand_mean=True, use_pca=False). Left and right hands are each in their own model's
convention; Gamma (paper Sec. 3.3) is the mirror x -> -x that turns one into the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from .rotations import mirror_axis_angle, mirror_points

if TYPE_CHECKING:
    from .hands import HandPair

__all__ = ["FIELDS", "HandParams", "TwoHands", "check_same_place"]

#: Name and length of each parameter of one hand, in smplx's order of use.
FIELDS: dict[str, int] = {"global_orient": 3, "hand_pose": 45, "betas": 10, "transl": 3}

HandLike = Union["HandParams", Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class HandParams:
    """One hand.

    Attributes:
        global_orient: (..., 3) axis-angle, radians; turns the hand about its wrist joint.
        hand_pose: (..., 45) absolute axis-angle of 15 joints (index, middle, pinky, ring, thumb x 3), radians.
        betas: (..., 10) shape coefficients, unit variance.
        transl: (..., 3) metres, added after everything else.

    Raises:
        ValueError: a tensor has a wrong shape, dtype or device.
    """

    global_orient: Tensor
    hand_pose: Tensor
    betas: Tensor
    transl: Tensor

    def __post_init__(self) -> None:
        first = self.global_orient
        for name, width in FIELDS.items():
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
            if value.ndim < 1 or value.shape[-1] != width or value.shape[:-1] != first.shape[:-1]:
                raise ValueError(
                    f"{name} must have shape (..., {width}) with the same leading shape as global_orient "
                    f"{tuple(first.shape)}, got {tuple(value.shape)}"
                )
            if not value.is_floating_point():
                raise ValueError(f"{name} must be a floating-point tensor, got {value.dtype}")
            check_same_place(name, value, "global_orient", first)

    @property
    def batch_shape(self) -> torch.Size:
        """The leading shape shared by all parameters."""
        return self.global_orient.shape[:-1]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.global_orient.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return self.global_orient.dtype

    def as_dict(self) -> dict[str, Tensor]:
        """The parameters under smplx's names."""
        return {name: getattr(self, name) for name in FIELDS}

    def map(self, function: Callable[[Tensor], Tensor]) -> HandParams:
        """Apply `function` to each of the four tensors."""
        return HandParams(**{name: function(value) for name, value in self.as_dict().items()})

    def to(self, *args: Any, **kwargs: Any) -> HandParams:
        """`torch.Tensor.to` on every parameter."""
        return self.map(lambda value: value.to(*args, **kwargs))

    def detach(self) -> HandParams:
        """The same numbers, cut from the graph."""
        return self.map(Tensor.detach)

    def reshape(self, *batch: int) -> HandParams:
        """Reshape the leading axes."""
        return self.map(lambda value: value.reshape(*batch, value.shape[-1]))

    def expand(self, *batch: int) -> HandParams:
        """Expand the leading axes."""
        return self.map(lambda value: value.expand(*batch, value.shape[-1]))

    def __getitem__(self, index: Any) -> HandParams:
        """Index the leading axes."""
        _refuse_scalar(self.batch_shape)
        index = index if isinstance(index, tuple) else (index,)
        # The parameter axis is never reached, neither by an Ellipsis nor by an index with too many entries.
        rest = (slice(None),) if any(i is Ellipsis for i in index) else (Ellipsis, slice(None))
        full = index + rest
        return self.map(lambda value: value[full])

    def mirrored(self) -> HandParams:
        """Gamma: the same hand on the other side (paper Sec. 3.3)."""
        return HandParams(
            mirror_axis_angle(self.global_orient),
            mirror_axis_angle(self.hand_pose),
            self.betas,
            mirror_points(self.transl),
        )

    @classmethod
    def coerce(cls, hand: HandLike, name: str = "hand", *, check_finite: bool | None = None) -> HandParams:
        """Read a hand from what users have, with errors that name the argument.

        Args:
            hand: HandParams, or a mapping with the keys global_orient (..., 3), hand_pose (..., 45) or
                (..., 15, 3), betas (..., 10) and transl (..., 3); other keys are ignored, arrays become tensors.
            name: how to call it in errors.
            check_finite: look for NaN and infinity. Default: on the CPU only, because elsewhere it would make the
                host wait for the device.

        Raises:
            TypeError, ValueError: what is wrong, and what to pass instead.
        """
        if not isinstance(hand, HandParams):
            if not isinstance(hand, Mapping):
                raise TypeError(
                    f"{name} must be a HandParams or a mapping with the keys {', '.join(FIELDS)}, "
                    f"got {type(hand).__name__}"
                )
            missing = [key for key in FIELDS if hand.get(key) is None]
            if missing:
                raise ValueError(
                    f"{name} lacks {', '.join(missing)}; it needs {', '.join(FIELDS)} "
                    "(pass zeros for what your model leaves at its mean)"
                )
            values = {key: _as_tensor(f"{name}.{key}", hand[key]) for key in FIELDS}
            if values["hand_pose"].shape[-2:] == (15, 3):
                values["hand_pose"] = values["hand_pose"].flatten(-2)
            try:
                hand = cls(**values)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if check_finite is None:
            check_finite = hand.device.type == "cpu" and not torch.compiler.is_compiling()
        if check_finite:
            for key, value in hand.as_dict().items():
                if not torch.isfinite(value).all():
                    raise ValueError(f"{name}.{key} holds NaN or infinity; clean it or mask the hand out")
        return hand


@dataclass(frozen=True, eq=False)
class TwoHands:
    """A left and a right hand in one common frame, or a batch of such pairs.

    A hand that is not there is marked, not faked: its parameters are placeholders (zeros, best) that nobody reads.

    Attributes:
        left: the left hand, in the left model's convention.
        right: the right hand.
        hands: the hand models the parameters belong to; None means the bundled open hand.
        extras: per-pair facts by name (an archetype label, say): arrays whose leading shape is the batch shape.
        left_valid: (...) bool on the hands' device, False where there is no left hand. None: all are there.
        right_valid: as `left_valid`.

    Raises:
        TypeError: a mask is not a tensor.
        ValueError: the hands differ in batch shape, dtype or device; an extra or a mask does not fit the batch.
    """

    left: HandParams
    right: HandParams
    hands: HandPair | None = None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_valid: Tensor | None = None
    right_valid: Tensor | None = None

    def __post_init__(self) -> None:
        if self.left.batch_shape != self.right.batch_shape:
            raise ValueError(
                f"left and right must have one batch shape, got {tuple(self.left.batch_shape)} "
                f"and {tuple(self.right.batch_shape)}"
            )
        check_same_place("right", self.right.global_orient, "left", self.left.global_orient)
        shape = tuple(self.batch_shape)
        for name, value in self.extras.items():
            if not isinstance(value, np.ndarray) or value.dtype.hasobject or value.shape[: len(shape)] != shape:
                raise ValueError(f"extras[{name!r}] must be an array with leading shape {shape} and no objects in it")
        for name, mask in self._masks().items():
            if mask is None:
                continue
            wanted = f"{name} must be a bool tensor of shape {shape} on {self.device}, or None"
            if not isinstance(mask, Tensor):
                raise TypeError(f"{wanted}, got {type(mask).__name__}")
            if mask.dtype != torch.bool or tuple(mask.shape) != shape or mask.device != self.device:
                raise ValueError(f"{wanted}, got {mask.dtype} {tuple(mask.shape)} on {mask.device}")

    @property
    def batch_shape(self) -> torch.Size:
        """The leading shape of both hands."""
        return self.left.batch_shape

    @property
    def device(self) -> torch.device:
        """Where the hands are."""
        return self.left.device

    @property
    def dtype(self) -> torch.dtype:
        """Their type."""
        return self.left.dtype

    @property
    def model(self) -> HandPair:
        """The hand models: `hands`, or the bundled open hand."""
        if self.hands is not None:
            return self.hands
        from .hands import open_hands

        return open_hands()

    @property
    def valid(self) -> tuple[Tensor, Tensor]:
        """Where there is a left hand, and where a right one: (...) bool each, also where nothing is marked."""
        present = lambda mask: (
            torch.ones(self.batch_shape, dtype=torch.bool, device=self.device) if mask is None else mask
        )
        return present(self.left_valid), present(self.right_valid)

    @property
    def faces(self) -> tuple[Tensor, Tensor]:
        """Triangles of the left and of the right mesh, each (1538, 3)."""
        return self.model.left.faces, self.model.right.faces

    def vertices(self) -> tuple[Tensor, Tensor]:
        """Mesh vertices of the left and of the right hand, each (..., 778, 3), metres.

        Those of a hand that is not there (`valid`) mean nothing.
        """
        return self.model.left(self.left)[0], self.model.right(self.right)[0]

    def joints(self) -> tuple[Tensor, Tensor]:
        """The 16 MANO joints of the left and of the right hand, each (..., 16, 3), metres.

        Those of a hand that is not there (`valid`) mean nothing.
        """
        return self.model.left.joints(self.left), self.model.right.joints(self.right)

    def joints21(self) -> tuple[Tensor, Tensor]:
        """MANO's 16 joints and the tips (thumb, index, middle, ring, pinky), each (..., 21, 3), metres.

        Those of a hand that is not there (`valid`) mean nothing.
        """
        return self.model.left.joints21(self.left), self.model.right.joints21(self.right)

    def mirrored(self) -> TwoHands:
        """Gamma and an exchange of roles: left = Gamma(right), right = Gamma(left) (paper Algorithm 1, line 2)."""
        left, right = self.right.mirrored(), self.left.mirrored()
        return replace(self, left=left, right=right, left_valid=self.right_valid, right_valid=self.left_valid)

    def map(self, function: Callable[[Tensor], Tensor]) -> TwoHands:
        """Apply `function` to every parameter of both hands, keeping the batch shape.

        Marks of missing hands stay as they are; they only follow to another device.
        """
        left, right = self.left.map(function), self.right.map(function)
        masks = self._map_masks(lambda mask: mask.to(left.device))
        return TwoHands(left, right, self.hands, self.extras, **masks)

    def reshape(self, *batch: int) -> TwoHands:
        """Reshape the batch axes, those of `extras` and of the marks of missing hands too."""
        left, right = self.left.reshape(*batch), self.right.reshape(*batch)
        old = len(self.batch_shape)
        extras = {n: v.reshape(*left.batch_shape, *v.shape[old:]) for n, v in self.extras.items()}
        masks = self._map_masks(lambda mask: mask.reshape(left.batch_shape))
        return TwoHands(left, right, self.hands, extras, **masks)

    def to(self, *args: Any, **kwargs: Any) -> TwoHands:
        """`torch.Tensor.to` on every parameter (the hand models follow by themselves)."""
        return self.map(lambda value: value.to(*args, **kwargs))

    def detach(self) -> TwoHands:
        """The same numbers, cut from the graph."""
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        """Size of the first batch axis."""
        _refuse_scalar(self.batch_shape)
        return self.batch_shape[0]

    def __getitem__(self, index: Any) -> TwoHands:
        """Index the batch axes."""
        left, right = self.left[index], self.right[index]
        shape, extras = self.batch_shape, {}
        if self.extras:
            # Which pairs were chosen, by torch's rules: numpy's differ, and an Ellipsis would reach trailing axes.
            chosen = torch.arange(shape.numel(), device=self.device).reshape(shape)[index].cpu().numpy()
            for name, value in self.extras.items():
                flat = value.reshape(shape.numel(), *value.shape[len(shape) :])
                extras[name] = np.asarray(flat[chosen])
        return TwoHands(left, right, self.hands, extras, **self._map_masks(lambda mask: mask[index]))

    def __iter__(self) -> Iterator[TwoHands]:
        """One pair after another."""
        return (self[i] for i in range(len(self)))

    @staticmethod
    def cat(pairs: Sequence[TwoHands]) -> TwoHands:
        """Join batches along the first axis; extras that all of them carry are kept.

        Where only some batches mark missing hands, all hands of the others are there.

        Raises:
            TypeError: a pair has no batch axis.
            ValueError: there is nothing to join, or the pairs belong to different hand models.
        """
        if not pairs:
            raise ValueError("pairs is empty; there is nothing to join")
        for pair in pairs:
            _refuse_scalar(pair.batch_shape)
        if any(pair.model is not pairs[0].model for pair in pairs):
            raise ValueError("pairs belong to different hand models; convert them to one before joining")
        join = lambda side: HandParams(
            **{name: torch.cat([getattr(getattr(p, side), name) for p in pairs]) for name in FIELDS}
        )
        names = [n for n in pairs[0].extras if all(n in p.extras for p in pairs)]
        extras = {name: np.concatenate([p.extras[name] for p in pairs]) for name in names}
        masks: dict[str, Tensor | None] = {}
        for side, name in enumerate(("left_valid", "right_valid")):
            marked = any(p._masks()[name] is not None for p in pairs)
            masks[name] = torch.cat([p.valid[side] for p in pairs]) if marked else None
        return TwoHands(join("left"), join("right"), pairs[0].hands, extras, **masks)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an .npz with arrays `left.hand_pose`, ... and `extras.NAME`; whole or not at all.

        Where missing hands are marked there are also `left.valid`, `right.valid`; parameters of a missing hand are
        written as zeros, whatever they were.

        The hand model is not written: parameters of another model than the open hand must be loaded with it
        (`TwoHands.load(path, hands=...)`).

        Raises:
            ValueError: the name does not end in .npz; a hand holds NaN or infinity, which `load` would refuse.
            OSError: the file cannot be written; an older file is then still there.
        """
        from .pair_files import save_pairs

        return save_pairs(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, hands: HandPair | None = None) -> TwoHands:
        """Read what `save` wrote. No pickle is opened.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not such a file, or is damaged.
        """
        from .pair_files import load_pairs

        return load_pairs(path, hands)

    def export(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write the meshes as .glb, .obj or .ply, without missing hands; see `interhand_prior.viewer.export_mesh`."""
        from .viewer import export_mesh

        return export_mesh(self, path, **options)

    def render(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Draw a PNG, a contact sheet when there are several pairs; see `interhand_prior.viewer.render`.

        Needs no display, no GPU and no graphics library.
        """
        from .viewer import render

        return render(self, path, **options)

    def _masks(self) -> dict[str, Tensor | None]:
        return {"left_valid": self.left_valid, "right_valid": self.right_valid}

    def _map_masks(self, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
        return {name: None if mask is None else function(mask) for name, mask in self._masks().items()}


def check_same_place(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse tensors that differ in device or dtype.

    Raises:
        ValueError: they differ.
    """
    if value.device != other.device or value.dtype != other.dtype:
        raise ValueError(
            f"{name} is {value.dtype} on {value.device} but {other_name} is {other.dtype} on {other.device}; "
            "move them with .to(...) first"
        )


def _refuse_scalar(shape: torch.Size) -> None:
    if len(shape) == 0:
        raise TypeError("a single pair has no batch axis to index; use .reshape(1) or a batch")


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        # A copy of an array: it may be read-only, or reversed, which torch does not take.
        return torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers ({error})") from None
