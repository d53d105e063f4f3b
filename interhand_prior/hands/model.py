"""Hand models: one hand, and a pair. The mathematics is in `skinning`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..params import HandParams
from .arrays import MIDDLE_MCP, PARENTS, TIP_IDS, WRIST_LOOP, HandArrays, HandSide
from .skinning import Tables, build_tables, no_autocast, pose, skin
from .wrist import sealed_faces

if TYPE_CHECKING:
    from ..params import TwoHands

__all__ = ["MIDDLE_MCP", "PARENTS", "TIP_IDS", "WRIST_LOOP", "HandModel", "HandPair"]


class HandModel(nn.Module):
    """One hand.

    The arrays are kept in full precision and read in whatever dtype and on whatever device the parameters have, so
    nothing is lost by `.to(torch.bfloat16).to(torch.float32)` and no `.to` is needed before a call. `.to` sets what
    the attributes below show. They are not in the state_dict: a checkpoint of a network that holds a licensed hand
    model carries none of the licensed arrays.

    Args:
        arrays: the checked arrays; see `HandArrays.from_mapping`, and `load_hands` for files and smplx layers.
        dtype: of the attributes.
        device: of the attributes.

    Attributes:
        arrays: what it was built from.
        v_template, shapedirs, posedirs, J_regressor, weights: MANO's arrays (see `HandArrays`), to be read only.
        faces: (1538, 3) int64, outward.
        sealed_faces: (1554, 3) int64, with the wrist capped round vertex 778; see `sealed_vertices`.
        hands_mean, hands_components: (45,) and (45, 45), or None where the source had none. They play no part in
            the forward pass, whose pose is absolute; converters of other pose forms use them.
        parents: the kinematic tree.
    """

    parents: tuple[int, ...] = PARENTS

    def __init__(
        self,
        arrays: HandArrays,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.arrays = arrays
        self._cache: dict[tuple[torch.dtype, torch.device], Tables] = {}
        self._faces: dict[torch.device, tuple[Tensor, Tensor]] = {}
        # Follows `.to` and so remembers where the module is; it holds nothing.
        self.register_buffer("_place", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self._warm()

    @property
    def side(self) -> HandSide:
        """ "left" or "right"."""
        return self.arrays.side

    @property
    def dtype(self) -> torch.dtype:
        """Type of the attributes; the forward pass follows its input instead."""
        return self._where.dtype

    @property
    def device(self) -> torch.device:
        """Place of the attributes; the forward pass follows its input instead."""
        return self._where.device

    def forward(self, hand: HandParams) -> tuple[Tensor, Tensor]:
        """Vertices and joints.

        Args:
            hand: parameters of this side's hand, any batch shape (...), also an empty one.

        Returns:
            vertices (..., 778, 3) and MANO's 16 joints (..., 16, 3), metres, in the dtype and on the device of `hand`.

        Raises:
            TypeError: not a HandParams.
        """
        tables = self._tables_for(hand)
        with no_autocast(hand.device):
            posed = pose(tables, hand)
            vertices = skin(tables.surface, posed)
        return _batched(vertices, hand), _batched(posed.joints, hand)

    def joints(self, hand: HandParams) -> Tensor:
        """MANO's 16 joints (..., 16, 3), metres, by forward kinematics alone (no vertices are made)."""
        tables = self._tables_for(hand)
        with no_autocast(hand.device):
            return _batched(pose(tables, hand).joints, hand)

    def joints21(self, hand: HandParams) -> Tensor:
        """The 16 joints and the tips of thumb, index, middle, ring, pinky (smplx's vertices): (..., 21, 3), metres.

        Only the five tip vertices are skinned.
        """
        tables = self._tables_for(hand)
        with no_autocast(hand.device):
            posed = pose(tables, hand)
            joints = torch.cat((posed.joints, skin(tables.tips, posed)), 1)
        return _batched(joints, hand)

    def rest_joints(self, betas: Tensor) -> Tensor:
        """Joints of the unposed hand, linear in the shape.

        Args:
            betas: (..., 10).

        Returns:
            (..., 16, 3) metres.

        Raises:
            ValueError: wrong shape.
        """
        if betas.shape[-1:] != (10,):
            raise ValueError(f"betas must have shape (..., 10), got {tuple(betas.shape)}")
        tables = self._tables(betas.dtype, betas.device)
        with no_autocast(betas.device):
            return (tables.joint_template + betas @ tables.joint_basis).unflatten(-1, (16, 3))

    def mirrored(self) -> HandModel:
        """The exact mirror model: `model.mirrored()(hand.mirrored())` is the mirror image of `model(hand)`."""
        return HandModel(self.arrays.mirrored(), dtype=self.dtype, device=self.device)

    def extra_repr(self) -> str:
        """For printing."""
        return f"side={self.side!r}"

    # Reading the arrays ------------------------------------------------------------------------------------------

    @property
    def v_template(self) -> Tensor:
        """(778, 3) metres."""
        return self._own().surface.template.unflatten(0, (3, -1)).mT

    @property
    def shapedirs(self) -> Tensor:
        """(778, 3, 10) metres per unit of beta."""
        return self._own().surface.basis[135:].unflatten(1, (3, -1)).permute(2, 1, 0)

    @property
    def posedirs(self) -> Tensor:
        """(778, 3, 135) metres per entry of R - I."""
        return self._own().surface.basis[:135].unflatten(1, (3, -1)).permute(2, 1, 0)

    @property
    def J_regressor(self) -> Tensor:
        """(16, 778)."""
        return self._own().J_regressor

    @property
    def weights(self) -> Tensor:
        """(778, 16)."""
        return self._own().surface.weights.mT

    @property
    def faces(self) -> Tensor:
        """(1538, 3) int64."""
        return self._triangles()[0]

    @property
    def sealed_faces(self) -> Tensor:
        """(1554, 3) int64."""
        return self._triangles()[1]

    @property
    def hands_mean(self) -> Tensor | None:
        """(45,) radians, or None."""
        value = self.arrays.hands_mean
        return None if value is None else self._where.new_tensor(value)

    @property
    def hands_components(self) -> Tensor | None:
        """(45, 45), or None."""
        value = self.arrays.hands_components
        return None if value is None else self._where.new_tensor(value)

    # Tables ------------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> Tensor:
        return self.get_buffer("_place")

    def _own(self) -> Tables:
        return self._tables(self.dtype, self.device)

    def _tables_for(self, hand: HandParams) -> Tables:
        if not isinstance(hand, HandParams):
            raise TypeError(
                f"hand must be a HandParams, got {type(hand).__name__}; HandParams.coerce reads a mapping with "
                "smplx's names"
            )
        return self._tables(hand.dtype, hand.device)

    def _tables(self, dtype: torch.dtype, device: torch.device) -> Tables:
        key = (dtype, device)
        if key not in self._cache:
            self._cache[key] = build_tables(self.arrays, dtype, device)
        return self._cache[key]

    def _triangles(self) -> tuple[Tensor, Tensor]:
        device = self.device
        if device not in self._faces:
            # Made outside inference mode, because it outlives this call.
            with torch.inference_mode(False):
                faces = torch.as_tensor(self.arrays.faces)
                self._faces[device] = faces.to(device), sealed_faces(faces).to(device)
        return self._faces[device]

    def _warm(self) -> None:
        # Before the first call, so that a compiled call finds the tables and does not trace their making.
        self._cache.clear()
        self._faces.clear()
        self._own()
        self._triangles()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HandModel:
        place = (self.dtype, self.device)
        super()._apply(fn, recurse)
        if (self.dtype, self.device) != place:
            self._warm()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles remake the tables."""
        return {**self.__dict__, "_cache": {}, "_faces": {}}


class HandPair(nn.Module):
    """A left and a right hand model.

    Args:
        left: a left hand.
        right: a right hand.

    Raises:
        TypeError: not HandModels (`load_hands` accepts smplx layers and files).
        ValueError: a hand is of the wrong side.
    """

    def __init__(self, left: HandModel, right: HandModel) -> None:
        super().__init__()
        for name, model in (("left", left), ("right", right)):
            if not isinstance(model, HandModel):
                raise TypeError(f"{name} must be a HandModel, got {type(model).__name__}; see load_hands")
            if model.side != name:
                raise ValueError(
                    f"{name} is a {model.side} hand; the order is (left, right), and model.mirrored() is its other side"
                )
        self.left = left
        self.right = right

    @property
    def faces(self) -> tuple[Tensor, Tensor]:
        """Triangles of the left and of the right surface, each (1538, 3)."""
        return self.left.faces, self.right.faces

    @property
    def sealed_faces(self) -> tuple[Tensor, Tensor]:
        """The same with capped wrists, each (1554, 3); for vertices that went through `sealed_vertices`."""
        return self.left.sealed_faces, self.right.sealed_faces

    def forward(self, hands: TwoHands) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(vertices, joints) of the left and of the right hand; see `HandModel.forward`."""
        return self.left(hands.left), self.right(hands.right)

    def vertices(self, hands: TwoHands) -> tuple[Tensor, Tensor]:
        """Vertices of the left and of the right hand, each (..., 778, 3), metres."""
        return self.left(hands.left)[0], self.right(hands.right)[0]

    def joints(self, hands: TwoHands) -> tuple[Tensor, Tensor]:
        """The 16 joints of the left and of the right hand, each (..., 16, 3), metres."""
        return self.left.joints(hands.left), self.right.joints(hands.right)

    def joints21(self, hands: TwoHands) -> tuple[Tensor, Tensor]:
        """The 16 joints and 5 tips of the left and of the right hand, each (..., 21, 3), metres."""
        return self.left.joints21(hands.left), self.right.joints21(hands.right)

    def mirrored(self) -> HandPair:
        """The pair for Gamma-mirrored hands: each side's model is the mirror of the other side's."""
        return HandPair(self.right.mirrored(), self.left.mirrored())


def _batched(points: Tensor, hand: HandParams) -> Tensor:
    return points.reshape(*hand.batch_shape, *points.shape[1:])
