"""Normals, nearest vertices, penetration (Eq. 7-8): against loops, spheres, solid angles and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import generator, random_hand
from hypothesis import given
from hypothesis import strategies as st
from solids import icosphere, inside
from torch import Tensor

from interhand_prior import HandParams
from interhand_prior.geometry import (
    MAX_DISTANCE,
    boundary_vertices,
    min_distance,
    mutual_nearest_distances,
    mutual_penetration_loss,
    nearest_vertices,
    penetration_depth,
    penetration_loss,
    take_vertices,
    vertex_normals,
)
from interhand_prior.hands import WRIST_LOOP, open_hands, sealed_vertices
from interhand_prior.rotations import axis_angle_to_matrix

RADIUS = 0.04


def cloud(*shape: int, seed: int = 0, scale: float = 0.05) -> Tensor:
    return scale * torch.randn(*shape, 3, generator=generator(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    value = cloud(*shape, seed=seed)
    return value / value.norm(dim=-1, keepdim=True)


def spheres(overlap: float, level: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Two equal spheres of RADIUS whose surfaces overlap by that much, along the x axis; and the faces of both."""
    vertices, faces = icosphere(level, RADIUS)
    return vertices, vertices + torch.tensor([2 * RADIUS - overlap, 0, 0], dtype=torch.float64), faces


# Normals ---------------------------------------------------------------------------------------------------------


def test_normals_of_a_sphere() -> None:
    vertices, faces = icosphere(3)
    normals = vertex_normals(vertices, faces)
    assert normals.norm(dim=1).sub(1).abs().max() < 1e-12
    # The error of a mean over flat faces of this size; inward or mis-weighted normals would be far beyond it.
    assert torch.rad2deg(torch.acos((normals * vertices).sum(1).clamp(max=1))).max() < 1.0
    torch.testing.assert_close(vertex_normals(vertices, faces.flip(1)), -normals)
    torch.testing.assert_close(vertex_normals(vertices, faces.to(torch.int32)), normals)


def test_normals_against_a_loop() -> None:
    vertices, faces = cloud(20), torch.randint(0, 20, (30, 3), generator=generator(1))
    wanted = torch.zeros_like(vertices)
    for triangle in faces.tolist():
        a, b, c = vertices[triangle]
        for corner in triangle:
            wanted[corner] += torch.linalg.cross(b - a, c - a)
    length = wanted.norm(dim=1, keepdim=True)
    wanted = torch.where(length > 0, wanted / length, 0.0)
    torch.testing.assert_close(vertex_normals(vertices, faces), wanted)
    batch = torch.stack((vertices, 2 * vertices, -vertices)).reshape(3, 1, 20, 3)
    torch.testing.assert_close(vertex_normals(batch, faces), torch.stack((wanted, wanted, wanted))[:, None])


def test_normals_of_degenerate_faces_are_finite() -> None:
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [5, 5, 5]]).double().requires_grad_()
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [3, 3, 3]])  # flat, collinear, a point; vertex 4 has no face
    normals = vertex_normals(vertices, faces)
    up = torch.tensor([0.0, 0, 1]).double()
    torch.testing.assert_close(normals, torch.stack((up, up, up, 0 * up, 0 * up)))
    normals.square().sum().backward()
    assert vertices.grad is not None
    assert torch.isfinite(vertices.grad).all()


def test_gradient_of_normals() -> None:
    vertices, faces = icosphere(0)
    vertices = (vertices + cloud(12)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, faces), vertices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_are_kept(dtype: torch.dtype) -> None:
    a, b, faces = spheres(0.006, level=2)
    exact = vertex_normals(b, faces)
    a, b = a.to(dtype), b.to(dtype)
    normals = vertex_normals(b, faces)
    assert normals.dtype == dtype
    # At this size half precision moves vertices by a hundredth of their distance, and normals by degrees.
    assert (normals.double() * exact).sum(-1).min() > 0.95
    loss = penetration_loss(a, b, normals)
    assert loss.dtype == nearest_vertices(a, b).squared_distance.dtype == min_distance(a, b).dtype == dtype
    assert loss > 0


# Open edges ------------------------------------------------------------------------------------------------------


def test_the_boundary_of_a_hand_is_its_wrist_loop() -> None:
    for model in (open_hands().left, open_hands().right):
        assert boundary_vertices(model.faces, 778).nonzero().flatten().tolist() == sorted(WRIST_LOOP)
        assert not boundary_vertices(model.sealed_faces, 779).any()


# Nearest vertices ------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 9))


@given(shapes, st.integers(0, 99), st.sampled_from([1, 200, 2**20]), st.booleans())
def test_nearest_against_a_loop(shape: tuple[int, int, int], seed: int, max_bytes: int, far: bool) -> None:
    batch, n, m = shape
    points, targets = cloud(batch, n, seed=seed), cloud(batch, m, seed=seed + 1)
    if far:
        points, targets = points + 5.0, targets + 5.0
    found = nearest_vertices(points, targets, max_bytes=max_bytes)
    assert found.indices.shape == found.squared_distance.shape == (batch, n)
    for s in range(batch):
        for i in range(n):
            squares = [(points[s, i] - target).square().sum().item() for target in targets[s]]
            assert found.squared_distance[s, i].item() == pytest.approx(min(squares), rel=1e-9, abs=1e-15)
            assert squares[found.indices[s, i]] == pytest.approx(min(squares), rel=1e-9, abs=1e-15)


def test_nearest_broadcasts() -> None:
    points, targets = cloud(2, 1, 6), cloud(4, 7, seed=1)
    found = nearest_vertices(points, targets)
    assert found.indices.shape == (2, 4, 6)
    for i in range(2):
        for j in range(4):
            assert torch.equal(found.indices[i, j], nearest_vertices(points[i, 0], targets[j]).indices)


@pytest.mark.parametrize("setting", ["plain", "autocast", "medium"])
def test_nearest_is_exact_in_float32_metres_from_the_origin(setting: str) -> None:
    """Products of uncentred coordinates, or products in bfloat16, would be wrong by millimetres here."""
    points, targets = (cloud(2, 500, seed=i).float() + torch.tensor([3.0, -2.0, 4.0]) for i in (0, 1))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if setting == "medium" else "highest")
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            found = nearest_vertices(points, targets)
    finally:
        torch.set_float32_matmul_precision(before)
    exact = torch.cdist(points.double(), targets.double()).amin(-1)
    chosen = (points.double() - take_vertices(targets.double(), found.indices)).norm(dim=-1)
    assert (chosen - exact).max() < 1e-5
    assert (found.squared_distance.double().sqrt() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("setting", ["plain", "autocast", "medium"])
@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 2)])
def test_distances_both_ways_are_those_of_two_searches(setting: str, batch: tuple[int, ...]) -> None:
    a, b = cloud(*batch, 778, seed=1), cloud(*batch, 500, seed=2) + 5.0
    a = a + 5.0
    torch.set_float32_matmul_precision("medium" if setting == "medium" else "highest")
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            found = mutual_nearest_distances(a.float(), b.float())
    finally:
        torch.set_float32_matmul_precision("highest")
    for value, wanted in zip(found, (nearest_vertices(a, b), nearest_vertices(b, a)), strict=True):
        torch.testing.assert_close(value.double(), wanted.squared_distance, rtol=1e-3, atol=1e-7)
        assert not value.requires_grad


def test_gradient_of_the_distance() -> None:
    points, targets = cloud(2, 5).requires_grad_(), cloud(2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: nearest_vertices(p, t).squared_distance, (points, targets))
    assert torch.autograd.gradcheck(min_distance, (points, targets))


def test_min_distance() -> None:
    a, b, _ = spheres(-0.01)
    torch.testing.assert_close(min_distance(a, b), torch.tensor(0.01).double())
    a, b = cloud(3, 6), cloud(3, 5, seed=1)
    torch.testing.assert_close(min_distance(a, b), torch.cdist(a, b).amin((-1, -2)))
    touching = a.clone().requires_grad_()
    distance = min_distance(touching, a)
    distance.sum().backward()
    assert torch.equal(distance, torch.zeros(3).double())
    assert touching.grad is not None
    assert torch.equal(touching.grad, torch.zeros_like(a))


# Penetration -----------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"squared": False},
    {"tolerance": 0.004},
    {"max_distance": None},
    {"max_distance": 0.02, "residual": "depth", "tolerance": 0.002},
    {"residual": "depth", "squared": False},
]


def naive_loss(
    points: Tensor,
    vertices: Tensor,
    normals: Tensor,
    exclude: Tensor,
    max_distance: float | None = MAX_DISTANCE,
    tolerance: float = 0.0,
    residual: str = "distance",
    squared: bool = True,
) -> float:
    """Eq. 7-8 word for word, one vertex at a time."""
    total = 0.0
    for point in points:
        j = min(range(len(vertices)), key=lambda k: (point - vertices[k]).norm().item())
        offset = point - vertices[j]
        depth, distance = -(normals[j] @ offset).item(), offset.norm().item()
        if depth > tolerance and (max_distance is None or distance < max_distance) and not exclude[j]:
            value = depth - tolerance if residual == "depth" else distance
            total += value**2 if squared else value
    return total


@given(st.sampled_from(OPTIONS), st.integers(0, 99))
def test_loss_against_a_loop(options: dict[str, Any], seed: int) -> None:
    points, vertices, normals = cloud(3, 12, seed=seed), cloud(3, 7, seed=seed + 1), unit(3, 7, seed=seed + 2)
    exclude = torch.rand(7, generator=generator(seed)) < 0.3
    found = penetration_loss(points, vertices, normals, exclude=exclude, **options)
    wanted = [naive_loss(*row, exclude, **options) for row in zip(points, vertices, normals, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted).double())
    each = exclude.expand(3, 7)
    index = nearest_vertices(points, vertices).indices
    again = penetration_loss(points, vertices, normals, exclude=each, index=index, **options)
    torch.testing.assert_close(again, found)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_of_the_loss(options: dict[str, Any]) -> None:
    """Holding the indices and the set constant gives the exact gradient (normals move with their vertices)."""
    a, b, faces = spheres(0.012, level=0)
    a, b = (a + cloud(12, scale=1e-3)).requires_grad_(), (b + cloud(12, seed=1, scale=1e-3)).requires_grad_()
    loss = lambda a, b: 1e3 * mutual_penetration_loss(a, b, faces, faces, **options)
    assert loss(a, b) > 0
    assert torch.autograd.gradcheck(loss, (a, b), eps=1e-7, atol=1e-5)


def test_gradient_where_vertices_coincide() -> None:
    """Depth 0 is not inside; with a hidden square root it would give NaN all the same."""
    point = torch.zeros(1, 3).double().requires_grad_()
    penetration_loss(point, torch.zeros(1, 3).double(), unit(1), squared=False).backward()
    assert torch.equal(point.grad, torch.zeros(1, 3).double())


@pytest.mark.parametrize("overlap", [0.002, 0.005, 0.009])
def test_depth_of_overlapping_spheres(overlap: float) -> None:
    """The poles face each other on the x axis, where the deepest point is at exactly the overlap."""
    a, b, faces = spheres(overlap)
    found = penetration_depth(a, b, vertex_normals(b, faces))
    torch.testing.assert_close(found, torch.tensor(overlap).double(), rtol=1e-3, atol=0)


def test_penetrated_vertices_are_those_inside() -> None:
    a, b, faces = spheres(0.012)
    normals = vertex_normals(b, faces)
    counted = penetration_loss(a[:, None], b, normals) > 0
    distance = (a - b.mean(0)).norm(dim=1)
    within, without = distance < RADIUS - 0.0005, distance > RADIUS + 0.0005
    assert within.sum() > 20
    assert counted[within].all()
    assert not counted[without].any()
    assert torch.equal(inside(a[within | without], b, faces), counted[within | without])


def test_loss_grows_with_the_overlap_and_is_exactly_zero_apart() -> None:
    losses = [mutual_penetration_loss(*spheres(h)[:2], *[spheres(h)[2]] * 2).item() for h in (0.002, 0.004, 0.008)]
    assert 0 < losses[0] < losses[1] < losses[2]
    for gap in (0.001, 0.1, 3.0):
        a, b, faces = spheres(-gap)
        assert mutual_penetration_loss(a, b, faces, faces) == 0
        assert penetration_depth(a, b, vertex_normals(b, faces)) == 0


def test_each_sample_has_its_own_loss() -> None:
    pairs = [spheres(h) for h in (0.004, -0.02, 0.01)]
    faces = pairs[0][2]
    a, b = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    together = mutual_penetration_loss(a, b, faces, faces)
    alone = torch.stack([mutual_penetration_loss(pair[0], pair[1], faces, faces) for pair in pairs])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    assert (together > 0).tolist() == [True, False, True]
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(mutual_penetration_loss(a, b, faces, faces)[0], a)
    assert gradient[0].any()
    assert not gradient[1:].any()


@given(st.integers(0, 99), st.sampled_from(["distance", "depth"]))
def test_loss_is_invariant(seed: int, residual: Any) -> None:
    """To a rigid motion of the pair, and to swapping and mirroring the hands."""
    a, b, faces = spheres(0.01, level=2)
    a, b = a + cloud(162, seed=seed, scale=5e-4), b + cloud(162, seed=seed + 1, scale=5e-4)
    wanted = mutual_penetration_loss(a, b, faces, faces, residual=residual)
    assert wanted > 0
    turn, shift = axis_angle_to_matrix(3 * unit(seed=seed)), cloud(1, seed=seed + 2, scale=2.0)
    moved = [v @ turn.mT + shift for v in (a, b)]
    torch.testing.assert_close(mutual_penetration_loss(*moved, faces, faces, residual=residual), wanted)
    mirror = torch.tensor([-1.0, 1.0, 1.0]).double()
    swapped = mutual_penetration_loss(b * mirror, a * mirror, faces.flip(1), faces.flip(1), residual=residual)
    torch.testing.assert_close(swapped, wanted)


# Where Eq. 8 alone misfires --------------------------------------------------------------------------------------


def random_surface(count: int, hand_seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An open hand of random shape (vertices, faces, sealed vertices), points on its skin and their normals."""
    model = open_hands().right
    # Flat: a fist crosses itself, and there the skin is not the boundary of the inside.
    flat = random_hand(seed=hand_seed).as_dict() | {"hand_pose": torch.zeros(45).double()}
    vertices = model(HandParams(**flat))[0]
    triangles = vertices[model.faces]
    normal = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = normal.norm(dim=1)
    draw = generator(hand_seed)
    which = torch.multinomial(area, count, replacement=True, generator=draw)
    weights = torch.distributions.Exponential(1.0).icdf(torch.rand(count, 3, generator=draw).double())
    weights = weights / weights.sum(1, keepdim=True)
    points = (triangles[which] * weights[..., None]).sum(1)
    return vertices, model.faces, sealed_vertices(vertices), points, normal[which] / area[which, None]


@pytest.mark.parametrize("seed", [0, 1])
def test_near_the_skin_of_a_hand_it_agrees_with_the_solid_angle(seed: int) -> None:
    vertices, faces, sealed, skin, up = random_surface(800, seed)
    height = 0.012 * torch.rand(800, generator=generator(seed + 9)).double() - 0.006
    points = skin + height[:, None] * up
    truth = inside(points, sealed, open_hands().right.sealed_faces)
    normals, rim = vertex_normals(vertices, faces), boundary_vertices(faces, 778)
    counted = penetration_loss(points[:, None], vertices, normals, exclude=rim, tolerance=0.001) > 0
    elsewhere = ~rim[nearest_vertices(points, vertices).indices]
    assert counted[~truth & elsewhere].double().mean() < 0.04
    deep = truth & elsewhere & (height < -0.003)
    assert deep.sum() > 100
    assert counted[deep].double().mean() > 0.96


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_everything_inside_a_hand_is_within_the_largest_distance(seed: int) -> None:
    vertices, _, sealed, _, _ = random_surface(1, seed)
    low, high = vertices.amin(0), vertices.amax(0)
    points = low + (high - low) * torch.rand(1500, 3, generator=generator(seed)).double()
    points = points[inside(points, sealed, open_hands().right.sealed_faces)]
    assert len(points) > 30
    assert nearest_vertices(points, vertices).squared_distance.max() < MAX_DISTANCE**2


def test_beyond_the_open_wrist_nothing_is_inside() -> None:
    model = open_hands().right
    vertices = model.v_template.double()
    loop = vertices[list(WRIST_LOOP)]
    out = loop.mean(0) - vertices.mean(0)
    steps = torch.linspace(0.002, 0.05, 25)[:, None].double()
    points = loop.mean(0) + steps * out / out.norm()
    assert not inside(points, sealed_vertices(vertices), model.sealed_faces).any()
    normals, rim = vertex_normals(vertices, model.faces), boundary_vertices(model.faces, 778)
    assert penetration_loss(points, vertices, normals, max_distance=None) > 0, "Eq. 8 as printed does misfire"
    assert penetration_loss(points, vertices, normals, exclude=rim) == 0


# Errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument() -> None:
    points, faces = cloud(4), torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match=r"vertices must be .* got torch.float64 \(4, 2\)"):
        vertex_normals(points[:, :2], faces)
    with pytest.raises(ValueError, match="faces must be integers"):
        vertex_normals(points, faces.double())
    with pytest.raises(ValueError, match="faces must be integers"):
        vertex_normals(points, faces[None])
    with pytest.raises(ValueError, match="points must be a floating-point"):
        nearest_vertices(faces, points)
    with pytest.raises(ValueError, match="targets must hold at least one"):
        nearest_vertices(points, points[:0])
    with pytest.raises(ValueError, match="residual must be one of"):
        penetration_loss(points, points, points, residual="area")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"normals must have one row .* vertex_normals"):
        penetration_loss(points, points, points[:3])


def test_area_weights_not_plain_ones() -> None:
    """A large face and a small one share an edge: the normal there must lean to the large one."""
    vertices = torch.tensor([[0, 0, 0], [0, 1, 0], [9, 0, 0], [0, 0, 1]]).double()
    normal = vertex_normals(vertices, torch.tensor([[0, 2, 1], [0, 1, 3]]))[0]
    torch.testing.assert_close(normal, torch.tensor([1.0, 0, 9]).double() / math.sqrt(82))
