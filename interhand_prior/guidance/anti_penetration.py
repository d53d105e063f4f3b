"""Anti-penetration guidance (paper Section 3.4, Eq. 7-8, step 13 of Algorithm 2).

Let V(x0) be the partner's vertices recovered from the CLEAN estimate x0, and A those of the anchor, which stays. The
loss counts each hand inside the other, and the estimate moves down its gradient g before the next state is made:

    L(x0) = L_pen(V(x0), A) + L_pen(A, V(x0)),        x0 <- x0 - w min(2 L / |g|, clip) g / |g|.

For a sum of squares, 2 L / |g| is the step at which the linearised residuals reach zero (Polyak's rule), so w = 1 is
a natural strength, whatever the units of x0 and however many vertices are inside. The residuals are the depths
along the normals, by which the paper says the amount of penetration is approximated: they vanish at the surface.

This departs from Algorithm 2, which moves x_{t-1} by w g once at every t. Early estimates are blurred means of many
poses, and their penetration says little; a step of fixed weight is too short for a tangle or throws a grazing hand
clear of the other. Here several steps follow each other, at the last levels only (alpha_bar >= `min_alpha_bar`):
they take the penetration away and leave the touch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import (
    MAX_DISTANCE,
    RESIDUALS,
    Residual,
    at_least_float32,
    boundary_vertices,
    mutual_nearest_distances,
    penetration_loss,
    take_vertices,
    vertex_normals,
)
from ..hands.skinning import no_autocast

__all__ = ["AnchoredGuide", "AntiPenetration", "PairSurfaces", "boxes_near", "nearest_few"]

#: Metres; more than rounding can do to a distance between hands.
_SLACK = 1e-4


@dataclass(frozen=True)
class PairSurfaces:
    """How normalised vectors become the two surfaces, both in the anchor's frame, metres.

    Attributes:
        anchor: (B, D) -> vertices (B, V, 3) of the anchor hand.
        partner: (B, D) -> vertices (B, W, 3) of the partner, differentiable.
        anchor_faces: (F, 3) integer, counter-clockwise from outside; every vertex belongs to a face.
        partner_faces: (G, 3) integer, likewise.
    """

    anchor: Callable[[Tensor], Tensor]
    partner: Callable[[Tensor], Tensor]
    anchor_faces: Tensor
    partner_faces: Tensor


class AntiPenetration:
    """Guidance that pushes the partner out of the anchor. The defaults were measured (benchmarks/README.md).

    `prepare` it once for the anchors of a sampling run; the anchors' meshes are made there and not again.

    Args:
        surfaces: of the vectors that are guided.
        scale: w above. 0 switches guidance off, 1 steps as far as the linearised loss asks.
        inner_steps: gradient steps at each guided level.
        min_alpha_bar: guide where alpha_bar = 1 - sigma^2 is at least this.
        clip: longest step, in normalised units (for hands, one unit is some 5 cm of translation). A shorter one
            never overshoots, but leaves more of the deep tangles.
        tolerance: metres of depth that are left alone: skin gives way, and coarse meshes touch a little early.
        max_distance: see `penetration_loss`.
        residual: see `penetration_loss`. With "distance" (Eq. 7 to the letter) the sideways part of it makes steps
            overshoot at a graze.
        contact_vertices: of each hand, only this many vertices, those nearest to the other hand before the first
            inner step, are watched during the inner steps; the rest are too far to matter so soon, and the search
            costs the square. None: all.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        surfaces: PairSurfaces,
        *,
        scale: float = 1.0,
        inner_steps: int = 8,
        min_alpha_bar: float = 0.8,
        clip: float = 0.2,
        tolerance: float = 0.0005,
        max_distance: float = MAX_DISTANCE,
        residual: Residual = "depth",
        contact_vertices: int | None = 256,
    ) -> None:
        for name, value, low, high in (
            ("scale", scale, 0.0, math.inf),
            ("min_alpha_bar", min_alpha_bar, 0.0, 1.0),
            ("clip", clip, 0.0, math.inf),
            ("tolerance", tolerance, 0.0, math.inf),
            ("max_distance", max_distance, 0.0, math.inf),
        ):
            if not low <= value <= high or not math.isfinite(value):
                raise ValueError(f"{name} must be finite and in [{low:g}, {high:g}], got {value}")
        if residual not in RESIDUALS:
            raise ValueError(f"residual must be one of {RESIDUALS}, got {residual!r}")
        for name, count in (("inner_steps", inner_steps), ("contact_vertices", contact_vertices)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}; scale=0 switches guidance off")
        self.surfaces = surfaces
        self.scale = scale
        self.inner_steps = inner_steps
        self.min_alpha_bar = min_alpha_bar
        self.clip = clip
        self.tolerance = tolerance
        self.max_distance = max_distance
        self.residual: Residual = residual
        self.contact_vertices = contact_vertices

    def prepare(self, anchor: Tensor) -> AnchoredGuide:
        """Guide for the partners of these anchors.

        Args:
            anchor: (B, D), normalised.

        Returns:
            A function of (x0 (B, D), sigma) that returns the guided x0.
        """
        return AnchoredGuide(self, anchor)


class AnchoredGuide:
    """Anti-penetration guidance with the anchors fixed. Made by `AntiPenetration.prepare`.

    Work goes where hands penetrate. On the CPU, samples are dropped as soon as they are known to be free: hands whose
    boxes are apart, then hands without penetration, then those that have surfaced. Which samples are left is a question
    to the host, so on other devices, which would have to be waited for, all samples are carried to the end. A free
    sample's loss is exactly zero and so is its step, hence the result is the same.
    """

    def __init__(self, guidance: AntiPenetration, anchor: Tensor) -> None:
        self.guidance = guidance
        surfaces = guidance.surfaces
        self._batch = anchor.shape[0]
        self._drop_free = anchor.device.type == "cpu"
        with torch.inference_mode(False), torch.no_grad(), no_autocast(anchor.device):
            # A copy made out here, so that a caller's inference mode does not follow it into the gradients below.
            vertices = surfaces.anchor(at_least_float32(anchor.detach().clone()))
            self._anchor = _Surface(
                vertices,
                vertex_normals(vertices, surfaces.anchor_faces),
                _rim(surfaces.anchor_faces, vertices),
            )
            self._partner_rim = boundary_vertices(surfaces.partner_faces, int(surfaces.partner_faces.max()) + 1).to(
                anchor.device
            )

    def __call__(self, x0: Tensor, sigma: float) -> Tensor:
        """Move the estimates out of the anchors.

        Args:
            x0: (B, D) normalised clean estimates, of the partners of the B prepared anchors.
            sigma: noise level they were estimated at. Above the guided levels, x0 is returned as it is.

        Returns:
            (B, D), without gradient. A sample with no penetration is returned bit for bit; each depends on itself
            and its anchor only.

        Raises:
            ValueError: not as many estimates as anchors.
        """
        guidance = self.guidance
        if x0.shape[0] != self._batch:
            raise ValueError(f"x0 must hold {self._batch} estimates, one for each prepared anchor, got {x0.shape[0]}")
        if guidance.scale == 0 or 1 - sigma * sigma < guidance.min_alpha_bar:
            return x0
        with torch.inference_mode(False), no_autocast(x0.device):
            result = at_least_float32(x0.detach().clone())
            rows, watched = self._near(result)
            x = result[rows]
            for _ in range(guidance.inner_steps):
                if not len(x):
                    break
                with torch.enable_grad():
                    leaf = x.requires_grad_()
                    loss = self._loss(guidance.surfaces.partner(leaf), watched)
                    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
                loss = loss.detach()
                length = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
                step = (2 * loss[:, None] / length).clamp_max(guidance.clip)
                x = x.detach() - guidance.scale * step * (gradient / length)
                result = result.index_copy(0, rows, x)
                left = self._left(loss > 0)
                if left is not None:
                    rows, x, watched = rows[left], x[left], watched.rows(left)
            return result.to(x0.dtype)

    def _left(self, inside: Tensor) -> Tensor | None:
        """Rows that are to be kept where some may be dropped, else None."""
        if not self._drop_free or inside.all():
            return None
        return inside.nonzero()[:, 0]

    @torch.no_grad()
    def _near(self, x0: Tensor) -> tuple[Tensor, _Watched]:
        """Rows (B',) of the samples that may penetrate, and what of them is watched."""
        guidance, anchor = self.guidance, self._anchor
        vertices, count = guidance.surfaces.partner(x0), guidance.contact_vertices
        rows = torch.arange(len(x0), device=x0.device)
        left = self._left(boxes_near(vertices, anchor.vertices, guidance.max_distance))
        if left is not None:
            rows, vertices, anchor = rows[left], vertices[left], anchor.rows(left)
        if count is None:
            watched = _Watched(anchor, None, self._partner_rim.expand(vertices.shape[:-1]))
        else:
            to_anchor, to_partner = mutual_nearest_distances(vertices, anchor.vertices)
            left = self._left(to_anchor.amin(-1) < (guidance.max_distance + _SLACK) ** 2)
            if left is not None:
                rows, vertices, anchor = rows[left], vertices[left], anchor.rows(left)
                to_anchor, to_partner = to_anchor[left], to_partner[left]
            chosen, rim = nearest_few(to_anchor, count), self._partner_rim.expand(vertices.shape[:-1])
            watched = _Watched(anchor.at(nearest_few(to_partner, count)), chosen, rim.gather(-1, chosen))
        if self._drop_free:
            left = self._left(self._loss(vertices, watched) > 0)
            if left is not None:
                rows, watched = rows[left], watched.rows(left)
        return rows, watched

    def _loss(self, vertices: Tensor, watched: _Watched) -> Tensor:
        """The loss (B,) of partners with these vertices (B, W, 3), on the vertices that may come to touch."""
        guidance, anchor = self.guidance, watched.anchor
        # The normals only decide on which side a point is, or turn with their surface: no gradient is worth it.
        normals = vertex_normals(vertices.detach(), guidance.surfaces.partner_faces)
        if watched.chosen is not None:
            vertices, normals = take_vertices(vertices, watched.chosen), take_vertices(normals, watched.chosen)
        options = {name: getattr(guidance, name) for name in ("max_distance", "tolerance", "residual")}
        return penetration_loss(
            vertices, anchor.vertices, anchor.normals, exclude=anchor.rim, **options
        ) + penetration_loss(anchor.vertices, vertices, normals, exclude=watched.rim, **options)


@dataclass(frozen=True)
class _Surface:
    vertices: Tensor  # (B, V, 3)
    normals: Tensor  # (B, V, 3)
    rim: Tensor  # (B, V) bool

    def at(self, index: Tensor) -> _Surface:
        return _Surface(
            take_vertices(self.vertices, index), take_vertices(self.normals, index), self.rim.gather(-1, index)
        )

    def rows(self, index: Tensor) -> _Surface:
        return _Surface(self.vertices[index], self.normals[index], self.rim[index])


@dataclass(frozen=True)
class _Watched:
    """What the inner steps look at."""

    anchor: _Surface
    chosen: Tensor | None  # (B, K) indices of the partner's vertices; None: all
    rim: Tensor  # (B, K) bool, of these vertices

    def rows(self, index: Tensor) -> _Watched:
        chosen = None if self.chosen is None else self.chosen[index]
        return _Watched(self.anchor.rows(index), chosen, self.rim[index])


def _rim(faces: Tensor, vertices: Tensor) -> Tensor:
    return boundary_vertices(faces, vertices.shape[-2]).to(vertices.device).expand(vertices.shape[:-1])


def boxes_near(a: Tensor, b: Tensor, distance: float) -> Tensor:
    """(B,) bool; where the boxes around the vertices are farther apart along an axis, so are all vertices."""
    (a_low, a_high), (b_low, b_high) = (torch.aminmax(x, dim=-2) for x in (a, b))
    return ((a_low <= b_high + distance) & (b_low <= a_high + distance)).all(-1)


def nearest_few(distance: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the smallest distances, in any order."""
    return distance.topk(min(count, distance.shape[-1]), -1, largest=False, sorted=False).indices
