"""Volume, depth and nearness of two hands, against closed forms and against slow and sure measures."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_close, far_apart, other_hands, random_hand, random_pairs, rigidly_moved
from hypothesis import given
from hypothesis import strategies as st
from mesh_oracle import brute_force, point_mesh_distance, winding_number
from solids import icosphere
from torch import Tensor

from interhand_prior import HandParams, TwoHands
from interhand_prior.hands import HandModel, open_hands, sealed_vertices
from interhand_prior.metrics import penetration
from interhand_prior.metrics.hand_parts import hand_parts, with_caps
from interhand_prior.metrics.mesh_volume import intersection_volume, union_intersection_volume
from interhand_prior.metrics.penetration import penetration_distance, penetration_volume
from interhand_prior.metrics.penetration_depth import triangle_distances, winding_numbers
from interhand_prior.metrics.proximity import inter_hand_distance, proximity_ratio, touch_share
from interhand_prior.rotations import axis_angle_to_matrix

pytest.importorskip("manifold3d")

Mesh = tuple[Tensor, Tensor]


def sphere(level: int, radius: float, x: float = 0.0) -> Mesh:
    vertices, faces = icosphere(level, radius)
    return vertices + torch.tensor([x, 0.0, 0.0]).double(), faces


def box(low: tuple[float, ...], high: tuple[float, ...]) -> Mesh:
    corners = torch.tensor([[(low, high)[b][i] for i, b in enumerate(bits)] for bits in np.ndindex(2, 2, 2)]).double()
    quads = torch.tensor([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    return corners, torch.cat((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]))


def lens(r: float, big: float, d: float) -> float:
    """Volume common to two balls whose surfaces cross."""
    return math.pi * (r + big - d) ** 2 * (d * d + 2 * d * (r + big) - 3 * (r - big) ** 2) / (12 * d)


def overlapping(count: int = 4, seed: int = 0, bend: float = 1.0) -> TwoHands:
    """Hands of random shape, pose and orientation, with their middles within two centimetres: inside each other."""
    hands = []
    for side, model in enumerate((open_hands().left, open_hands().right)):
        hand = random_hand(count, seed=seed + 50 * side)
        hand = replace(hand, hand_pose=bend * hand.hand_pose, transl=torch.zeros_like(hand.transl))
        shift = 0.01 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed + side)).double()
        hands.append(replace(hand, transl=shift - model(hand)[0].mean(-2)))
    return TwoHands(*hands)


def pushed_together(distance: float) -> TwoHands:
    """Two flat hands over each other, `distance` metres between their middles across the palm."""
    hands = []
    for model, y in ((open_hands().left, distance), (open_hands().right, 0.0)):
        flat = HandParams(*(torch.zeros(1, width).double() for width in (3, 45, 10, 3)))
        place = torch.tensor([0.0, y, 0.0]).double() - model(flat)[0].mean(-2)
        hands.append(replace(flat, transl=place))
    return TwoHands(*hands)


# Solids ----------------------------------------------------------------------------------------------------------


def test_lens_of_two_spheres_converges_to_the_closed_form() -> None:
    wanted = lens(0.03, 0.05, 0.06)
    errors = [wanted - intersection_volume(*sphere(level, 0.03), *sphere(level, 0.05, 0.06)) for level in (1, 2, 3, 4)]
    assert all(0 < fine < coarse / 3.5 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 0.01 * wanted


@given(st.floats(0.01, 0.05), st.floats(0.01, 0.05), st.floats(0.1, 0.9))
def test_lens_at_any_size(r: float, big: float, share: float) -> None:
    d = abs(r - big) + share * (r + big - abs(r - big))
    found = intersection_volume(*sphere(3, r), *sphere(3, big, d))
    smaller = 4 / 3 * math.pi * min(r, big) ** 3
    assert found == pytest.approx(lens(r, big, d), rel=0.03, abs=0.01 * smaller)
    assert found <= lens(r, big, d) * (1 + 1e-9), "the polyhedra lie inside the balls"


@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_boxes_exactly(shift: tuple[float, float, float]) -> None:
    a, b = box((0, 0, 0), (1, 1, 1)), box(shift, tuple(x + 1 for x in shift))
    wanted = math.prod(max(0.0, 1 - abs(x)) for x in shift)
    assert intersection_volume(*a, *b) == pytest.approx(wanted, rel=1e-7, abs=1e-7)


def test_disjoint_and_nested() -> None:
    small, large = sphere(2, 0.01, 0.01), sphere(3, 0.05)
    assert intersection_volume(*sphere(2, 0.01, 0.2), *large) == 0
    assert intersection_volume(*sphere(2, 0.01, 0.0601), *large) == 0, "the boxes meet, the solids do not"
    volume = torch.linalg.det(small[0][small[1]] - small[0].mean(0)).sum().item() / 6
    assert intersection_volume(*small, *large) == pytest.approx(volume, rel=1e-9)
    assert intersection_volume(*large, *large) == pytest.approx(5.2e-4, rel=0.02), "a solid shares all with itself"


@given(st.integers(0, 99))
def test_invariant_to_motion_swap_and_mirror(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    (a, faces), (b, _) = sphere(2, 0.03), sphere(2, 0.03, 0.04)
    b = b + 0.01 * torch.rand(3, generator=draw).double()
    wanted = intersection_volume(a, faces, b, faces)
    turn = axis_angle_to_matrix(torch.randn(3, generator=draw).double())
    moved = [v @ turn.mT + torch.randn(3, generator=torch.Generator().manual_seed(seed)).double() for v in (a, b)]
    mirror = torch.tensor([-1.0, 1.0, 1.0]).double()
    assert intersection_volume(moved[0], faces, moved[1], faces) == pytest.approx(wanted, rel=1e-9)
    assert intersection_volume(b, faces, a, faces) == pytest.approx(wanted, rel=1e-9)
    assert intersection_volume(a * mirror, faces.flip(1), b * mirror, faces.flip(1)) == pytest.approx(wanted, rel=1e-9)


def test_a_mesh_that_crosses_itself_counts_twice_its_parts_once() -> None:
    (a, faces), (b, _) = box((0, 0, 0), (2, 1, 1)), box((1, 0, 0), (3, 1, 1))
    large = box((-1, -1, -1), (4, 0.5, 4))
    both = torch.cat((a, b)), torch.cat((faces, faces + len(a)))
    assert intersection_volume(*both, *large) == pytest.approx(2.0), "one of two overlaps twice"
    assert union_intersection_volume([(a, faces), (b, faces)], [large]) == pytest.approx(1.5)


def test_what_is_no_solid_is_a_failure_not_zero() -> None:
    vertices, faces = sphere(2, 0.03)
    other = sphere(2, 0.03, 0.02)
    far = sphere(2, 0.03, 9.0)
    nan = vertices.clone()
    nan[5, 1] = math.nan
    infinite = vertices.clone()
    infinite[5, 1] = math.inf
    flipped = torch.cat((faces[:1].flip(1), faces[1:]))
    broken = {
        "open": (vertices, faces[1:]),
        "NaN": (nan, faces),
        "infinite": (infinite, faces),
        "not oriented": (vertices, flipped),
        "inside out": (vertices, faces.flip(1)),
        "flat": (vertices * torch.tensor([1.0, 1.0, 0.0]).double(), faces),
    }
    for name, mesh in broken.items():
        for second in (other, far, mesh):
            assert math.isnan(intersection_volume(*mesh, *second)), name
            assert math.isnan(intersection_volume(*second, *mesh)), name


def test_a_refused_result_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import manifold3d

    a, b = sphere(1, 0.03), sphere(1, 0.03, 0.02)
    assert intersection_volume(*a, *b) > 0
    monkeypatch.setattr(manifold3d.Manifold, "volume", lambda self: -1.0)
    assert math.isnan(intersection_volume(*a, *b))
    monkeypatch.undo()

    def refuse(self: object, mesh: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(manifold3d.Manifold, "__xor__", refuse)
    assert math.isnan(intersection_volume(*a, *b))


def test_errors_of_meshes() -> None:
    vertices, faces = sphere(0, 1.0)
    with pytest.raises(ValueError, match=r"parts_a\[0\]: vertices must have shape \(V, 3\)"):
        intersection_volume(vertices[:, :2], faces, vertices, faces)
    with pytest.raises(ValueError, match=r"parts_b\[0\]: faces must be integers"):
        intersection_volume(vertices, faces, vertices, faces.double())
    with pytest.raises(ValueError, match="at least one"):
        intersection_volume(vertices, faces[:0], vertices, faces)
    with pytest.raises(ValueError, match="faces name vertices 0 to 12, but there are 12"):
        intersection_volume(vertices, faces.where(faces < 11, 12), vertices, faces)


# A hand in parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [open_hands().left, open_hands().right, other_hands().right])
def test_parts_are_closed_and_add_up_to_the_hand(model: HandModel) -> None:
    cuts = hand_parts(model)
    assert len(cuts.parts) == 15
    assert hand_parts(model) is cuts
    whole = sealed_vertices(model(random_hand(3, seed=4))[0])
    capped = torch.from_numpy(with_caps(whole.numpy(), cuts))
    volume = lambda v, f: torch.linalg.det(v[:, f] - v[:, :1, None].mean(1, keepdim=True)).sum(-1) / 6
    total = torch.zeros(3).double()
    for part in cuts.parts:
        faces = torch.from_numpy(part.faces)
        edges = torch.cat((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]])).tolist()
        assert sorted(edges) == sorted([b, a] for a, b in edges)
        assert len({tuple(edge) for edge in edges}) == len(edges)
        total += volume(capped[:, part.vertices], faces)
    torch.testing.assert_close(total, volume(whole, model.sealed_faces), rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_winding_numbers_of_the_parts_add_up_in_any_pose(seed: int) -> None:
    model = open_hands().right
    pose = random_hand(1, seed=seed).as_dict()
    hand = HandParams(**pose | {"hand_pose": 2.5 * pose["hand_pose"]})  # far beyond what a hand can do
    whole = sealed_vertices(model(hand)[0])
    cuts = hand_parts(model)
    capped = torch.from_numpy(with_caps(whole.numpy(), cuts))
    low, high = whole[0].amin(0), whole[0].amax(0)
    points = low + (high - low) * torch.rand(600, 3, generator=torch.Generator().manual_seed(seed)).double()
    zero = torch.zeros(600, dtype=torch.int64)
    parts = [winding_numbers(points, capped[:, p.vertices], torch.from_numpy(p.faces), zero) for p in cuts.parts]
    wanted = winding_number(points, whole[0], model.sealed_faces)
    torch.testing.assert_close(torch.stack(parts).sum(0), wanted, rtol=0, atol=1e-6)
    assert (wanted.round() != 0).sum() > 20


# Volume of hands -------------------------------------------------------------------------------------------------


def counted(pairs: TwoHands, side: int = 17) -> tuple[Tensor, Tensor]:
    """cm^3 where both winding numbers are positive, and the integral of their product: each with standard error."""
    left, right = (sealed_vertices(v)[0] for v in pairs.vertices())
    low, high = torch.maximum(left.amin(0), right.amin(0)), torch.minimum(left.amax(0), right.amax(0))
    cells = torch.cartesian_prod(*[torch.arange(side)] * 3).double()
    points = cells + torch.rand(cells.shape, generator=torch.Generator().manual_seed(0)).double()
    points = low + (high - low) * points / side
    scale = (high - low).prod() * 1e6
    faces = pairs.model.sealed_faces
    zero = torch.zeros(len(points), dtype=torch.int64)
    w = winding_numbers(points, left[None], faces[0], zero).round()
    w[w != 0] *= winding_numbers(points[w != 0], right[None], faces[1], zero[w != 0]).round()
    once = (w > 0).double()
    pick = lambda x: torch.stack((x.mean(), x.std() / len(x) ** 0.5)) * scale
    return pick(once), pick(w - once)


def whole_mesh_volume(pairs: TwoHands, i: int) -> float:
    """cm^3 by one boolean operation on the whole meshes."""
    (left, right), (faces_l, faces_r) = (map(sealed_vertices, pairs.vertices())), pairs.model.sealed_faces
    return 1e6 * intersection_volume(left[i], faces_l, right[i], faces_r)


def test_flat_hands_have_the_volume_of_the_whole_meshes() -> None:
    """A flat hand does not cross itself: cutting it into parts changes nothing."""
    pairs = overlapping(6, bend=0.0)
    found = penetration_volume(pairs, workers=1)
    assert not found.failed.any()
    assert (found.cm3 > 1).sum() >= 4
    for i in range(6):
        assert found.cm3[i].item() == pytest.approx(whole_mesh_volume(pairs, i), rel=1e-6, abs=1e-9)


def test_hands_that_cross_themselves_are_counted_once() -> None:
    """Against points whose winding numbers are positive; the whole meshes give the integral of the product."""
    pairs = overlapping(40, seed=7, bend=2.0)[[28]]
    found = penetration_volume(pairs, workers=1).cm3.item()
    excess = whole_mesh_volume(pairs, 0) - found
    (once, error), (twice, error_of_twice) = counted(pairs)
    assert abs(found - once) < 3 * error
    assert abs(excess - twice) < 3 * error_of_twice
    assert twice > 6 * error_of_twice, "the test must hold a hand that crosses itself"


def test_volume_is_invariant() -> None:
    pairs = overlapping(4, seed=3)
    wanted = penetration_volume(pairs, workers=1).cm3
    assert (wanted > 1).all()
    turn = axis_angle_to_matrix(torch.tensor([0.4, -1.0, 2.0]).double())
    for other in (rigidly_moved(pairs, turn, torch.tensor([1.0, 2.0, -3.0]).double()), pairs.mirrored()):
        torch.testing.assert_close(penetration_volume(other, workers=1).cm3, wanted, rtol=1e-3, atol=1e-6)
    single = penetration_volume(pairs.to(torch.float32), workers=1).cm3
    torch.testing.assert_close(single, wanted, rtol=1e-3, atol=1e-3)
    assert single.dtype == torch.float64


def test_hands_apart_share_nothing_and_the_deeper_the_more() -> None:
    apart = penetration_volume(far_apart(random_pairs(3), 1.0), workers=1)
    assert (apart.cm3 == 0).all()
    assert not apart.computed.any()
    assert not apart.failed.any()
    assert penetration_volume(pushed_together(0.3), workers=1).cm3.item() == 0
    volumes = [penetration_volume(pushed_together(d), workers=1).cm3.item() for d in (0.05, 0.03, 0.025, 0.02, 0.012)]
    assert volumes[0] == 0
    assert all(a < b for a, b in itertools.pairwise(volumes))
    depths = [penetration_distance(pushed_together(d)).item() for d in (0.3, 0.03, 0.025, 0.02)]
    assert depths[0] == 0
    assert 0 < depths[1] < depths[2] < depths[3]


def test_a_broken_hand_is_a_failure() -> None:
    pairs = overlapping(3)
    pairs.left.transl[1, 0] = math.nan
    found = penetration_volume(pairs, workers=1)
    assert found.failed.tolist() == [False, True, False]
    assert found.cm3.isnan().tolist() == [False, True, False]
    assert penetration_distance(pairs).isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="1 distances are NaN"):
        proximity_ratio(pairs)


def test_a_failed_operation_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = overlapping(2)
    monkeypatch.setattr(penetration, "union_intersection_volume", lambda *sides: math.nan)
    found = penetration_volume(pairs, workers=1)
    assert found.failed.all()
    assert found.computed.all()


@pytest.mark.slow
def test_result_does_not_depend_on_workers_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = TwoHands.cat([overlapping(3), far_apart(overlapping(2), 1.0)])
    wanted = penetration_volume(pairs, workers=1)
    monkeypatch.setattr(penetration, "_CHUNK", 2)
    for workers in (1, 2):
        found = penetration_volume(pairs, workers=workers)
        torch.testing.assert_close(found.cm3, wanted.cm3, rtol=1e-12, atol=0)
        assert torch.equal(found.computed, wanted.computed)


def test_units_and_empty_batch() -> None:
    found = penetration_volume(overlapping(2), workers=1)
    assert torch.equal(found.mm3, 1000 * found.cm3)
    assert found.cm3.max() < 800, "a hand has less than that many cubic centimetres"
    none = overlapping(2)[:0]
    assert penetration_volume(none).cm3.shape == penetration_volume(none).failed.shape == (0,)
    assert penetration_distance(none).shape == inter_hand_distance(none).shape == (0,)


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    penetration_volume(overlapping(2), workers=1, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "manifold3d", None)
    with pytest.raises(ImportError, match=r'pip install "interhand_prior\[metrics\]"'):
        penetration_volume(overlapping(1))
    with pytest.raises(ImportError, match=r"interhand_prior\[metrics\]"):
        intersection_volume(*sphere(0, 1.0), *sphere(0, 1.0))
    assert penetration_distance(overlapping(1)) > 0


@pytest.mark.parametrize("function", [penetration_volume, penetration_distance, inter_hand_distance])
def test_errors_name_the_argument(function: object) -> None:
    with pytest.raises(TypeError, match="pairs must be TwoHands, got HandParams"):
        function(overlapping(2).left)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"pairs must have batch shape \(N,\), got \(\)"):
        function(overlapping(2)[0])  # type: ignore[operator]
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        penetration_volume(overlapping(1), workers=0)


# Depth -----------------------------------------------------------------------------------------------------------


def test_distance_to_triangles_is_that_of_the_naive_twin() -> None:
    draw = torch.Generator().manual_seed(0)
    vertices, faces = sphere(1, 1.0)
    surfaces = torch.stack((vertices, 1.5 * vertices + 0.2))
    points = 1.5 * torch.randn(400, 3, generator=draw).double()
    sample = torch.arange(400) % 2
    found = triangle_distances(points, surfaces, faces, sample)
    for i in (0, 1):
        wanted = point_mesh_distance(points[i::2], surfaces[i], faces)
        torch.testing.assert_close(found[i::2], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bend", [0.0, 1.0])
def test_depth_is_that_of_the_naive_twin(bend: float) -> None:
    pairs = overlapping(1, seed=11, bend=bend)
    found = penetration_distance(pairs)
    left, right = (1000 * sealed_vertices(v) for v in pairs.vertices())
    _, depth = brute_force(left[0], pairs.model.sealed_faces[0], right[0], pairs.model.sealed_faces[1])
    assert 10 * found.item() == pytest.approx(depth, rel=1e-6)


def test_depth_is_invariant_and_the_same_in_any_batch() -> None:
    pairs = overlapping(4, seed=5)
    wanted = penetration_distance(pairs)
    assert (wanted > 0.1).all()
    torch.testing.assert_close(penetration_distance(pairs.mirrored()), wanted, rtol=1e-9, atol=0)
    turn = axis_angle_to_matrix(torch.tensor([0.4, -1.0, 2.0]).double())
    moved = rigidly_moved(pairs, turn, torch.tensor([1.0, 2.0, -3.0]).double())
    torch.testing.assert_close(penetration_distance(moved), wanted, rtol=1e-6, atol=0)
    one_by_one = torch.cat([penetration_distance(pairs[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(one_by_one, wanted, rtol=1e-12, atol=0)


# Nearness --------------------------------------------------------------------------------------------------------


def test_distance_between_hands() -> None:
    pairs = random_pairs(5)
    left, right = pairs.vertices()
    wanted = torch.cdist(left, right).amin((1, 2))
    torch.testing.assert_close(inter_hand_distance(pairs), wanted, rtol=1e-9, atol=1e-12)
    assert_close(pairs, random_pairs(5))
    for threshold in (0.01, 0.02, 0.1):
        share = (wanted < threshold).double().mean().item()
        assert proximity_ratio(pairs, threshold) == proximity_ratio(wanted, threshold) == share


def test_shares_at_their_thresholds() -> None:
    distances = torch.tensor([0.0, 0.0029, 0.0031, 0.0199, 0.0201])
    assert proximity_ratio(distances) == pytest.approx(0.8)
    assert touch_share(distances) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="at least one pair"):
        proximity_ratio(distances[:0])
