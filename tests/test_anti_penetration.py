"""Anti-penetration guidance: on spheres, where everything is known, and on hands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import generator, make_prior
from hypothesis import given
from hypothesis import strategies as st
from solids import icosphere
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interhand_prior import TwoHandPrior
from interhand_prior.canonical import SLICES
from interhand_prior.geometry import (
    boundary_vertices,
    min_distance,
    mutual_penetration_loss,
    penetration_depth,
    vertex_normals,
)
from interhand_prior.guidance import AntiPenetration, PairSurfaces
from interhand_prior.guidance.anti_penetration import boxes_near
from interhand_prior.rotations import axis_angle_to_matrix

RADIUS = 0.04
UNIT = 0.05  # metres of translation in one normalised unit, as for hands
SPHERE, FACES = icosphere(2, RADIUS)
LATE, EARLY = 0.1, 0.9  # levels that are guided by default, and not


# Turned about x, so that no vertex is equally near to two of the other sphere's.
TURNED = SPHERE @ axis_angle_to_matrix(torch.tensor([0.3, 0.0, 0.0]).double())


def anchor_at(vector: Tensor) -> Tensor:
    """Vectors (B, 4): a centre, and one entry that leaves the surface alone -> vertices of spheres."""
    return SPHERE.to(vector) + UNIT * vector[:, None, :3]


def partner_at(vector: Tensor) -> Tensor:
    return TURNED.to(vector) + UNIT * vector[:, None, :3]


SURFACES = PairSurfaces(anchor_at, partner_at, FACES, FACES)


def overlapping(*overlaps: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Anchors and partners (B, 4) whose spheres overlap by so much along x; negative: a gap."""
    anchor = torch.randn(len(overlaps), 4, generator=generator(), dtype=torch.float64)
    partner = torch.randn(len(overlaps), 4, generator=generator(1), dtype=torch.float64)
    partner[:, :3] = anchor[:, :3]
    partner[:, 0] += (2 * RADIUS - torch.tensor(overlaps).double()) / UNIT
    return anchor.to(dtype), partner.to(dtype)


def overlap(anchor: Tensor, partner: Tensor) -> Tensor:
    """By how many metres the two spheres overlap."""
    return 2 * RADIUS - UNIT * (partner - anchor)[:, :3].double().norm(dim=1)


def guided(anchor: Tensor, partner: Tensor, sigma: float = LATE, **options: Any) -> Tensor:
    return AntiPenetration(SURFACES, **options).prepare(anchor)(partner, sigma)


# On spheres ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0.002, 0.006, 0.012, 0.02])
def test_penetration_goes_and_touch_stays(depth: float) -> None:
    anchor, partner = overlapping(depth)
    after = overlap(anchor, guided(anchor, partner)).item()
    assert 0 < after < 0.001, "what is left must be about the tolerance of half a millimetre: not more, and no gap"


def test_one_step_is_the_formula() -> None:
    """x0 - w min(2 L / |g|, clip) g / |g| with the paper's loss, which the geometry module differentiates itself."""
    anchor, partner = overlapping(0.006, 0.001, -0.01)
    # Distances do not ask for normals, whose gradient the guidance leaves out.
    options: dict[str, Any] = {"tolerance": 0.0005, "max_distance": 0.03, "residual": "distance"}
    leaf = partner.clone().requires_grad_()
    loss = mutual_penetration_loss(partner_at(leaf), anchor_at(anchor), FACES, FACES, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    length = gradient.norm(dim=1)
    assert (length > 0).tolist() == [True, True, False]
    for scale, clip in ((1.0, 10.0), (0.5, 10.0), (1.0, 0.01), (2.0, 0.01)):
        step = scale * (2 * loss.detach() / length).clamp_max(clip)
        wanted = partner - torch.where(length > 0, step / length, 0.0)[:, None] * gradient
        found = guided(anchor, partner, inner_steps=1, scale=scale, clip=clip, **options)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_what_does_not_penetrate_is_returned_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        anchor, partner = overlapping(-0.002, 0.006, -0.1, -3.0, dtype=dtype)
        found = guided(anchor, partner)
        assert torch.equal(found[[0, 2, 3]], partner[[0, 2, 3]])
        assert not torch.equal(found[1], partner[1])
        assert torch.equal(found[:, 3], partner[:, 3]), "an entry that moves nothing must stay"


def test_levels_and_scale() -> None:
    anchor, partner = overlapping(0.006)
    guide = AntiPenetration(SURFACES, min_alpha_bar=0.75).prepare(anchor)
    assert guide(partner, 0.51) is partner
    assert not torch.equal(guide(partner, 0.49), partner)
    assert guided(anchor, partner, scale=0.0) is partner
    moved = [(guided(anchor, partner, inner_steps=1, scale=s) - partner).norm().item() for s in (0.25, 0.5, 1.0)]
    assert moved == pytest.approx([moved[2] / 4, moved[2] / 2, moved[2]])


def test_steps_are_clipped() -> None:
    anchor, partner = overlapping(0.02)
    moved = guided(anchor, partner, inner_steps=3, clip=0.01) - partner
    assert moved.norm().item() == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize("contact_vertices", [None, 40])
def test_a_sample_does_not_depend_on_its_batch(contact_vertices: int | None) -> None:
    depths = (0.006, -0.01, 0.001, 0.015)
    anchor, partner = overlapping(*depths)
    whole = guided(anchor, partner, contact_vertices=contact_vertices)
    order = [3, 1, 0, 2]
    shuffled = guided(anchor[order], partner[order], contact_vertices=contact_vertices)
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-12)
    for i in range(len(depths)):
        alone = guided(anchor[i : i + 1], partner[i : i + 1], contact_vertices=contact_vertices)
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-12)


def test_watching_the_nearest_vertices_is_enough() -> None:
    anchor, partner = overlapping(0.006, 0.01)
    wanted = guided(anchor, partner, contact_vertices=None)
    torch.testing.assert_close(guided(anchor, partner, contact_vertices=60), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(guided(anchor, partner, contact_vertices=9999), wanted, rtol=0, atol=1e-12)


def test_the_open_rim_does_not_push() -> None:
    """A sphere in the mouth of an open half sphere is behind the rim's normals, yet inside of nothing."""
    half = FACES[(SPHERE[FACES].mean(1)[:, 0] < 0.0)]
    used, faces = half.unique(return_inverse=True)
    bowl = SPHERE[used]
    small, ball = icosphere(2, 0.004)
    rim = bowl[boundary_vertices(faces, len(bowl))]
    mouth = rim[rim[:, 1].argmax()] * torch.tensor([1.0, 0.9, 1.0]) + torch.tensor([0.003, 0, 0])
    surfaces = PairSurfaces(
        lambda v: bowl.to(v) + 0 * v[:, None, :3], lambda v: small.to(v) + mouth + UNIT * v[:, None, :3], faces, ball
    )
    anchor, partner = torch.zeros(1, 4).double(), torch.zeros(1, 4).double()
    normals = vertex_normals(bowl, faces)
    assert penetration_depth(small + mouth, bowl, normals) > 0.001, "without the rim's exclusion it would count"
    assert torch.equal(AntiPenetration(surfaces).prepare(anchor)(partner, LATE), partner)


# What is dropped -------------------------------------------------------------------------------------------------


def counted(rows: list[int]) -> PairSurfaces:
    """The spheres, noting how many partners are decoded at a time."""

    def decode(vector: Tensor) -> Tensor:
        rows.append(len(vector))
        return partner_at(vector)

    return PairSurfaces(anchor_at, decode, FACES, FACES)


def test_only_what_penetrates_is_worked_on() -> None:
    rows: list[int] = []
    # Deep, not inside, boxes apart, and a graze that one step of this scale takes clear of the anchor.
    anchor, partner = overlapping(0.012, -0.002, -0.2, 0.001, 0.012)
    guide = AntiPenetration(counted(rows), scale=1.5, clip=0.05, inner_steps=3).prepare(anchor)
    found = guide(partner, LATE)
    assert rows == [5, 3, 3, 2], "all once, then those inside; that one surfaced shows in the next loss"
    assert torch.equal(found[[1, 2]], partner[[1, 2]])
    assert overlap(anchor, found)[3] < 0.0005
    assert (overlap(anchor, found)[[0, 4]] < 0.006).all()
    rows.clear()
    free = AntiPenetration(counted(rows)).prepare(anchor[[1, 2]])
    assert torch.equal(free(partner[[1, 2]], LATE), partner[[1, 2]])
    assert rows == [2], "nothing is left after the first look"


@pytest.mark.parametrize("contact_vertices", [None, 60])
@pytest.mark.parametrize("residual", ["depth", "distance"])
def test_dropping_changes_nothing(contact_vertices: int | None, residual: Any) -> None:
    depths = (0.012, -0.002, 0.0004, -3.0, 0.001, 0.02, -0.024)
    for scale in (0.7, 1.0, 1.5):
        anchor, partner = overlapping(*depths)
        options: dict[str, Any] = {"contact_vertices": contact_vertices, "residual": residual, "scale": scale}
        guide = AntiPenetration(SURFACES, **options).prepare(anchor)
        dropped = guide(partner, LATE)
        guide._drop_free = False
        torch.testing.assert_close(dropped, guide(partner, LATE), rtol=0, atol=1e-12)
        for i in range(len(depths)):
            alone = AntiPenetration(SURFACES, **options).prepare(anchor[i : i + 1])(partner[i : i + 1], LATE)
            torch.testing.assert_close(alone[0], dropped[i], rtol=0, atol=1e-12)


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3),
    st.floats(0, 0.05),
)
def test_hands_in_boxes_apart_are_apart(offset: list[float], distance: float) -> None:
    a, b = SPHERE[None], TURNED[None] + torch.tensor(offset).double()
    if not boxes_near(a, b, distance):
        assert min_distance(a, b) > distance
        assert not boxes_near(b, a, distance)


# In whatever surroundings ----------------------------------------------------------------------------------------


def test_the_anchor_is_decoded_once() -> None:
    calls = {"anchor": 0, "partner": 0}

    def counted(name: str) -> Callable[[Tensor], Tensor]:
        def decode(vector: Tensor) -> Tensor:
            calls[name] += 1
            return anchor_at(vector)

        return decode

    surfaces = PairSurfaces(counted("anchor"), counted("partner"), FACES, FACES)
    anchor, partner = overlapping(0.006)
    before = anchor.clone()
    guide = AntiPenetration(surfaces, inner_steps=3).prepare(anchor)
    for _ in range(2):
        guide(partner, LATE)
    assert calls == {"anchor": 1, "partner": 2 * (1 + 3)}
    assert torch.equal(anchor, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    exact = guided(*overlapping(0.006, 0.01))
    found = guided(*overlapping(0.006, 0.01, dtype=dtype))
    assert found.dtype == dtype
    assert not found.requires_grad
    tolerance = {torch.float64: 0.0, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "requires_grad"])
def test_modes(mode: str) -> None:
    anchor, partner = overlapping(0.006, dtype=torch.float32)
    wanted = guided(anchor, partner)
    contexts: dict[str, Any] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "requires_grad": nullcontext,
    }
    with contexts[mode]():
        found = guided(anchor + 0, (partner + 0).requires_grad_(mode == "requires_grad"))
    assert torch.equal(found, wanted)
    assert not found.requires_grad


class NoSynchronisation(TorchDispatchMode):
    """Refuses what would make the host wait for a device: values, or shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert not any(s in name for s in ("_local_scalar_dense", "nonzero", "masked_select", "unique")), name
        return func(*args, **(kwargs or {}))


def test_the_loop_never_waits_for_the_device() -> None:
    anchor, partner = overlapping(0.006, -0.01)
    guide = AntiPenetration(SURFACES).prepare(anchor)
    guide._drop_free = False  # as on every device but the CPU
    with NoSynchronisation():
        found = guide(partner, LATE)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            found.sum().item()
    assert not torch.equal(found, partner)


# On hands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior32() -> TwoHandPrior:
    return make_prior(torch.float32)


def pushed(surfaces: PairSurfaces, count: int, depth: float) -> tuple[Tensor, Tensor]:
    """Random pairs of hands (count, 64), normalised, the partner moved until it is so deep in the anchor."""
    prior = make_prior(torch.float32)
    anchor, partner = (0.5 * torch.randn(count, 64, generator=generator(i)) for i in (0, 1))
    anchor[:, SLICES["relative"]] = 0
    offset = surfaces.partner(partner).mean(1) - surfaces.anchor(anchor).mean(1)
    away = offset / offset.norm(dim=1, keepdim=True) / prior.normalizer.std[SLICES["transl"]]
    shifts = torch.linspace(0.1, -0.2, 76)
    tries = partner.expand(len(shifts), -1, -1).clone()
    tries[..., SLICES["transl"]] += shifts[:, None, None] * away
    depths = depth_of(surfaces, anchor.expand_as(tries).flatten(0, 1), tries.flatten(0, 1)).view(len(shifts), count)
    first = (depths > depth).int().argmax(0)
    return anchor, tries[first, torch.arange(count)]


def depth_of(surfaces: PairSurfaces, anchor: Tensor, partner: Tensor) -> Tensor:
    a, b = surfaces.anchor(anchor), surfaces.partner(partner)
    rim = boundary_vertices(surfaces.anchor_faces, 778)
    into_a = penetration_depth(b, a, vertex_normals(a, surfaces.anchor_faces), exclude=rim)
    into_b = penetration_depth(a, b, vertex_normals(b, surfaces.partner_faces), exclude=rim)
    return torch.maximum(into_a, into_b)


def test_dropping_changes_nothing_on_hands(prior32: TwoHandPrior) -> None:
    surfaces = prior32.surfaces("left")
    anchor, partner = (vector.repeat(3, 1) for vector in pushed(surfaces, 2, 0.004))
    partner[2:4, SLICES["transl"]] += torch.tensor([0.3, 0.0, 0.0])  # some centimetres away, and far away
    partner[4:, SLICES["transl"]] += 10
    guide = AntiPenetration(surfaces).prepare(anchor)
    dropped = guide(partner, LATE)
    guide._drop_free = False
    torch.testing.assert_close(dropped, guide(partner, LATE), rtol=0, atol=1e-4)
    assert torch.equal(dropped[4:], partner[4:])
    assert not torch.equal(dropped[0], partner[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_hands_pushed_into_each_other(prior32: TwoHandPrior, side: Any) -> None:
    surfaces = prior32.surfaces(side)
    anchor, partner = pushed(surfaces, 3, 0.005)
    before = depth_of(surfaces, anchor, partner)
    assert before.min() > 0.005
    guide = AntiPenetration(surfaces).prepare(anchor)
    found = partner
    for _ in range(2):
        found = guide(found, LATE)
    after = depth_of(surfaces, anchor, found)
    assert torch.isfinite(found).all()
    assert after.max() < 0.001, "more is left than the tolerance"
    gap = min_distance(surfaces.anchor(anchor), surfaces.partner(found))
    assert gap.median() < 0.004, "the hands no longer touch"
    assert gap.max() < 0.015, "a hand was thrown away"
    assert (found - partner).norm(dim=1).max() < 0.3, "a few millimetres are not far"


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale must be finite and in"),
        ({"scale": float("nan")}, "scale"),
        ({"clip": float("inf")}, "clip"),
        ({"min_alpha_bar": 1.5}, r"min_alpha_bar must be finite and in \[0, 1\], got 1.5"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
        ({"contact_vertices": 0}, "contact_vertices must be at least 1"),
        ({"residual": "volume"}, "residual must be one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AntiPenetration(SURFACES, **options)


def test_as_many_estimates_as_anchors() -> None:
    anchor, partner = overlapping(0.006, 0.002)
    with pytest.raises(ValueError, match=r"x0 must hold 2 estimates, one for each prepared anchor, got 1"):
        AntiPenetration(SURFACES).prepare(anchor)(partner[:1], LATE)
