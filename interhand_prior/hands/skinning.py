"""Linear blend skinning with MANO's interface: parameters -> vertices and joints, differentiable and batched.

With R_0 the global rotation, R_1..R_15 those of the joints, and J = J(beta) the rest joints (Romero et al. 2017;
Loper et al. 2015, Eq. 2-4):

    G_0 = R_0,  p_0 = J_0                     G_k = G_parent R_k,  p_k = p_parent + G_parent (J_k - J_parent)
    v   = sum_k w_k (G_k (v_rest - J_k) + p_k) + transl,   v_rest = v_template + shapedirs beta + posedirs vec(R - I)

So the global rotation pivots about the wrist joint J_0(beta), not about the origin. Everything is computed relative
to that joint and put in its place at the end, which makes a rigid motion of the hand exactly that, even where the
weights sum to 1 only up to rounding, and keeps float32 accurate far from the origin. The numbers equal those of
smplx.MANO(use_pca=False, flat_hand_mean=True). The five fingers are three-joint chains that hang on the wrist, so
three steps, each for all fingers of all samples, walk the whole tree.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..params import HandParams
from ..rotations import axis_angle_to_matrix
from .arrays import TIP_IDS, HandArrays

__all__ = ["Posed", "Skin", "Tables", "build_tables", "no_autocast", "pose", "skin"]


class Skin(NamedTuple):
    """What a set of V vertices needs for skinning. Coordinates stand before vertices, so that one matrix product
    makes all rest vertices, and one all blended transforms.
    """

    template: Tensor  # (3 V)
    basis: Tensor  # (145, 3 V): posedirs 135, shapedirs 10
    weights: Tensor  # (16, V)


class Tables(NamedTuple):
    """One hand's arrays in one dtype on one device."""

    joint_template: Tensor  # (48)
    joint_basis: Tensor  # (10, 48)
    surface: Skin
    tips: Skin
    J_regressor: Tensor


def _chain(local: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (N, 16, 3, 3) and rest joints (N, 16, 3), both relative to the wrist joint -> the posed ones."""
    rotation, place = local[:, :1], rest[:, :1]
    before = place
    fingers = local[:, 1:].unflatten(1, (5, 3))
    knuckles = rest[:, 1:].unflatten(1, (5, 3))
    rotations, places = [], []
    for level in range(3):
        here = knuckles[:, :, level]
        place = place + (rotation @ (here - before)[..., None])[..., 0]
        rotation = rotation @ fingers[:, :, level]
        before = here
        rotations.append(rotation)
        places.append(place)
    return (
        torch.cat((local[:, :1], torch.stack(rotations, 2).flatten(1, 2)), 1),
        torch.cat((rest[:, :1], torch.stack(places, 2).flatten(1, 2)), 1),
    )


class Posed(NamedTuple):
    """N posed skeletons."""

    local: Tensor  # (N, 16, 3, 3) rotations in the parent's frame
    rotation: Tensor  # (N, 16, 3, 3) rotations in the world
    rest: Tensor  # (N, 16, 3) unposed joints
    relative: Tensor  # (N, 16, 3) posed joints minus the wrist joint
    wrist: Tensor  # (N, 1, 3) the posed wrist joint, J_0(beta) + transl
    betas: Tensor  # (N, 10)

    @property
    def joints(self) -> Tensor:
        """(N, 16, 3)."""
        return self.relative + self.wrist


def pose(tables: Tables, hand: HandParams) -> Posed:
    """Forward kinematics of a hand of any batch shape, flattened to N samples."""
    local = axis_angle_to_matrix(torch.cat((hand.global_orient, hand.hand_pose), -1).reshape(-1, 16, 3))
    betas = hand.betas.reshape(-1, 10)
    rest = (tables.joint_template + betas @ tables.joint_basis).unflatten(-1, (16, 3))
    pivot = rest[:, :1]
    rotation, relative = _chain(local, rest - pivot)
    return Posed(local, rotation, rest, relative, pivot + hand.transl.reshape(-1, 1, 3), betas)


def skin(part: Skin, posed: Posed) -> Tensor:
    """Blend shapes, then skinning: (N, V, 3)."""
    offset = posed.local[:, 1:] - torch.eye(3, dtype=posed.local.dtype, device=posed.local.device)
    feature = torch.cat((offset.flatten(1), posed.betas), 1)
    surface = torch.addmm(part.template, feature, part.basis).unflatten(1, (3, -1))  # N, 3, V
    shift = posed.relative - (posed.rotation @ posed.rest[..., None])[..., 0]
    transform = torch.cat((posed.rotation, shift[..., None]), -1)  # N, 16, 3, 4
    blended = transform.permute(0, 2, 3, 1) @ part.weights  # N, 3, 4, V
    vertices = (blended[:, :, :3] * surface[:, None]).sum(2) + blended[:, :, 3]
    return (vertices + posed.wrist.mT).mT.contiguous()


def no_autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Under autocast the products would run in half precision, which costs tenths of a millimetre."""
    # The question breaks a graph that torch 2.4 compiles; every device that is compiled for has autocast.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def build_tables(arrays: HandArrays, dtype: torch.dtype, device: torch.device) -> Tables:
    """The arrays as the forward pass reads them; products of arrays are made before anything is rounded."""
    # Tensors made in inference mode could never take part in a gradient, and these outlive the call.
    with torch.inference_mode(False), torch.no_grad():
        v, s, p, j, w = (
            torch.as_tensor(a)
            for a in (arrays.v_template, arrays.shapedirs, arrays.posedirs, arrays.J_regressor, arrays.weights)
        )

        def take(ids: Tensor) -> Skin:
            basis = torch.cat((p[ids], s[ids]), -1).permute(2, 1, 0).flatten(1)
            pieces = v[ids].mT.flatten(), basis, w[ids].mT
            return Skin(*(part.to(dtype).contiguous().to(device) for part in pieces))

        return Tables(
            (j @ v).flatten().to(dtype).to(device),
            torch.einsum("jv,vcb->bjc", j, s).flatten(1).to(dtype).to(device),
            take(torch.arange(len(v))),
            take(torch.tensor(TIP_IDS)),
            j.to(dtype).to(device),
        )
