"""Anti-penetration guidance (paper Section 3.4, Eq. 7-8, Algorithm 2 step 13).

Let V(x0) be the partner's vertices recovered from the CLEAN estimate x0 and V_a those of the anchor. The estimate is
moved down the gradient of the penetration loss, both hands into each other,

    x0 <- x0 - clip(w grad L(x0)),      L(x0) = L_pen(V(x0), V_a) + L_pen(V_a, V(x0)),

before the sampler forms its next state from it. The anchor stays where it is.

Where this departs from Algorithm 2: the paper moves x_{t-1}, one step at every t. But early estimates are blurred
means of many poses, whose penetration means little, and a long step throws a hand clear of the other. Many SHORT
steps at the last, nearly clean levels (alpha_bar > `min_alpha_bar`) remove the penetration and leave the touch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import (
    MAX_DISTANCE,
    Residual,
    boundary_vertices,
    nearest_vertices,
    penetration_loss,
    vertex_normals,
)

__all__ = ["AnchoredGuide", "AntiPenetration", "PairSurfaces"]


@dataclass(frozen=True)
class PairSurfaces:
    """How normalised vectors become the two surfaces, both in the anchor's frame, metres.

    Attributes:
        anchor: (B, D) -> vertices (B, V, 3) of the anchor hand.
        partner: (B, D) -> vertices (B, W, 3) of the partner; differentiable.
        anchor_faces: (F, 3) integer, counter-clockwise from outside.
        partner_faces: (G, 3) integer.
    """

    anchor: Callable[[Tensor], Tensor]
    partner: Callable[[Tensor], Tensor]
    anchor_faces: Tensor
    partner_faces: Tensor


class AntiPenetration:
    def __init__(
        self,
        surfaces: PairSurfaces,
        *,
        scale: float = 1.0,
        inner_steps: int = 8,
        min_alpha_bar: float = 0.9,
        clip: float = 0.05,
        tolerance: float = 0.001,
        max_distance: float = MAX_DISTANCE,
        residual: Residual = "distance",
        search_every: int = 1,
        detach_normals: bool = True, polyak=2.0, near=0
    ) -> None:
        self.surfaces = surfaces
        self.scale, self.inner_steps, self.min_alpha_bar, self.clip = scale, inner_steps, min_alpha_bar, clip
        self.tolerance, self.max_distance, self.residual, self.search_every = tolerance, max_distance, residual, search_every
        self.detach_normals = detach_normals; self.polyak=polyak; self.near=near

    def prepare(self, anchor: Tensor) -> AnchoredGuide:
        return AnchoredGuide(self, anchor)


class AnchoredGuide:
    def __init__(self, config: AntiPenetration, anchor: Tensor) -> None:
        self.config = config
        s = config.surfaces
        with torch.no_grad():
            self.vertices = s.anchor(anchor)
            self.normals = vertex_normals(self.vertices, s.anchor_faces)
        self.anchor_rim = boundary_vertices(s.anchor_faces, self.vertices.shape[-2])
        self.partner_rim = boundary_vertices(s.partner_faces, int(s.partner_faces.max()) + 1)

    def loss(self, vertices, into_anchor=None, into_partner=None):
        c = self.config
        o = dict(max_distance=c.max_distance, tolerance=c.tolerance, residual=c.residual)
        n = vertex_normals(vertices.detach() if c.detach_normals else vertices, c.surfaces.partner_faces)
        a = penetration_loss(vertices, self.vertices, self.normals, exclude=self.anchor_rim, index=into_anchor, **o)
        b = penetration_loss(self.vertices, vertices, n, exclude=self.partner_rim, index=into_partner, **o)
        return (a + b) * 1e4

    def __call__(self, x0: Tensor, sigma: float) -> Tensor:
        c = self.config
        if 1 - sigma * sigma < c.min_alpha_bar or c.scale == 0:
            return x0
        ia = ip = None
        if c.near:
            with torch.no_grad():
                v = c.surfaces.partner(x0)
                d1 = nearest_vertices(v, self.vertices).squared_distance; d2 = nearest_vertices(self.vertices, v).squared_distance
                s1 = d1.topk(c.near, -1, largest=False).indices; s2 = d2.topk(c.near, -1, largest=False).indices
                from ..geometry import _take
                av, an, ar = _take(self.vertices, s2), _take(self.normals, s2), self.anchor_rim[s2]
                pr = self.partner_rim[s1]
            def near_loss(v):
                o = dict(max_distance=c.max_distance, tolerance=c.tolerance, residual=c.residual)
                n = _take(vertex_normals(v.detach(), c.surfaces.partner_faces), s1)
                v = _take(v, s1)
                return 1e4 * (penetration_loss(v, av, an, exclude=ar, **o) + penetration_loss(av, v, n, exclude=pr, **o))
        for k in range(c.inner_steps):
            with torch.enable_grad():
                z = x0.detach().requires_grad_(True)
                v = c.surfaces.partner(z)
                if not c.near and k % c.search_every == 0:
                    ia = nearest_vertices(v.detach(), self.vertices).indices
                    ip = nearest_vertices(self.vertices, v.detach()).indices
                L = near_loss(v) if c.near else self.loss(v, ia, ip)
                (g,) = torch.autograd.grad(L.sum(), z)
            n = g.norm(dim=-1, keepdim=True).clamp_min(1e-20)
            if c.polyak:
                x0 = x0 - c.scale * g / n * (c.polyak * L.detach()[:, None] / n).clamp_max(c.clip)
            else:
                d = c.scale * g
                x0 = x0 - d * (c.clip / d.norm(dim=-1, keepdim=True).clamp_min(c.clip))
        return x0
