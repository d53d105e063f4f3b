"""The parts of the synthetic corpus against oracles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_oracle import brute_force

from interhand_prior.data.synthetic import arms
from interhand_prior.data.synthetic.anatomy import DOF_MAX, DOF_MIN, dof_axes, off_axis_projector, soft_clamp
from interhand_prior.data.synthetic.archetypes import (
    APART,
    ARCHETYPE_NAMES,
    ARCHETYPES,
    HELD_OUT,
    WEIGHTS,
    kind_weights,
    regions,
)
from interhand_prior.data.synthetic.arms import ALONG, ELBOW, ELBOWS_APART, RADII, arms_fit, bend_directions
from interhand_prior.data.synthetic.contact import BallPenetration, reach_tables
from interhand_prior.data.synthetic.fit_placement import max_entropy
from interhand_prior.data.synthetic.gauge import twist_gauge
from interhand_prior.data.synthetic.loose import draw_candidates
from interhand_prior.data.synthetic.marginals import POSE_MEAN, POSE_SD, REL_MEAN, compare_marginals
from interhand_prior.data.synthetic.pairs import named_batch, to_two_hands
from interhand_prior.data.synthetic.placement import draw_shapes, draw_starts, mirror_relative, relative_numbers
from interhand_prior.data.synthetic.single_hand import draw_free_dof, draw_traits, fit_dof
from interhand_prior.data.synthetic.skeleton import bone_directions, forward_kinematics, open_hand_skeleton
from interhand_prior.data.synthetic.spheres import make_body, open_hand_spheres
from interhand_prior.data.synthetic.statistics import relative_pose
from interhand_prior.data.synthetic.surface import closest_on_triangles, meshes, skin, surface_report
from interhand_prior.hands import open_hands
from interhand_prior.params import HandParams


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Gauge and skeleton ---------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), size=st.floats(0.01, 3.0))
@settings(max_examples=20, deadline=None)
def test_gauge_moves_no_joint(seed: int, size: float) -> None:
    g = seeded(seed)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    betas, pose, phi = normal(8, 10), size * normal(8, 45), normal(8, 15)
    model = open_hands().right
    rest = model.rest_joints(betas)
    tips = open_hand_skeleton().tips.double().expand(8, 5, 3) / 1000
    zero = torch.zeros(8, 3, dtype=torch.float64)
    joints = lambda p: model.joints(HandParams(zero, p, betas, zero))
    moved = twist_gauge(pose, phi, bone_directions(rest, tips))
    assert (joints(moved) - joints(pose)).abs().max() < 1e-6
    assert (moved - pose).abs().max() > 1e-3


def test_gauge_turns_each_phalanx_about_its_own_bone() -> None:
    """Global rotations become G_k Rot(b_k, phi_k): checked through the chain, not through the gauge's own formula."""
    from interhand_prior.rotations import axis_angle_to_matrix

    g = seeded(1)
    pose, phi = torch.randn(4, 45, generator=g).double(), torch.randn(4, 15, generator=g).double()
    joints, tips = (v.double() for v in open_hand_skeleton().rest(torch.zeros(4, 10)))
    bones = bone_directions(joints, tips)
    before, _ = forward_kinematics(pose, joints)
    after, _ = forward_kinematics(twist_gauge(pose, phi, bones), joints)
    twist = axis_angle_to_matrix(bones.reshape(4, 15, 3) * phi[..., None])
    assert torch.allclose(after[:, 1:], before[:, 1:] @ twist, atol=1e-9)


def test_forward_kinematics_is_the_hand_models() -> None:
    g = seeded(2)
    pose, betas = torch.randn(5, 45, generator=g), torch.randn(5, 10, generator=g)
    rest, _ = open_hand_skeleton().rest(betas)
    _, places = forward_kinematics(pose, rest)
    zero = torch.zeros(5, 3)
    joints = open_hands().right.joints(HandParams(zero, pose, betas, zero)) * 1000
    assert torch.allclose(places - places[:, 4:5], joints - joints[:, 4:5], atol=1e-3)


# Single hands ---------------------------------------------------------------------------------------------------------


def test_axes_and_ranges() -> None:
    axes = dof_axes()
    assert torch.linalg.matrix_rank(axes) == 20
    assert (off_axis_projector() @ axes).abs().max() < 1e-5
    clamped = soft_clamp(torch.linspace(-4, 4, 50)[:, None].expand(50, 20))
    assert (clamped >= DOF_MIN).all()
    assert (clamped <= DOF_MAX).all()


def test_marginals_of_single_hands_meet_the_table() -> None:
    g, n = seeded(3), 4000
    traits = draw_traits(n, g)
    body = make_body(torch.zeros(n, 10), traits)
    dof = fit_dof(draw_free_dof(n, g), traits.variant, g)
    both = compare_marginals(body.full_pose(dof))
    assert both["mean_offset"] < 0.08
    assert both["log_sd_ratio"] < 0.1
    # without off-axis part and gauge the same anatomy is far off: that is what they are for
    plain = compare_marginals(dof @ dof_axes().T)
    assert plain["log_sd_ratio"] > 4 * both["log_sd_ratio"]


def test_compare_marginals_on_a_known_distribution() -> None:
    sample = POSE_MEAN + 0.5 * POSE_SD + 2 * POSE_SD * torch.randn(20_000, 45, generator=seeded(4))
    found = compare_marginals(sample)
    assert found["mean_offset"] == pytest.approx(0.5, abs=0.03)
    assert found["log_sd_ratio"] == pytest.approx(np.log(2), abs=0.02)


# Balls and contact ----------------------------------------------------------------------------------------------------


def test_balls_fill_the_skin() -> None:
    """Posed, shaped hands: nearly no vertex is far from the union of balls, and balls do not stand out."""
    g, n = seeded(5), 12
    betas, traits = torch.randn(n, 10, generator=g), draw_traits(n, g)
    body = make_body(betas, traits)
    dof = fit_dof(draw_free_dof(n, g), traits.variant, g)
    vertices = skin(body, dof, betas)[:, :778]
    count = len(open_hand_spheres())
    gap = (torch.cdist(vertices, body.balls(dof)[0][:, :count]) - body.radii[:, None, :count]).amin(2)
    assert gap.abs().mean() < 2.0
    assert gap.quantile(0.95) < 5.0
    assert gap.quantile(0.02) > -5.0


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_analytic_penetration_gradient_is_autograds(seed: int) -> None:
    g = seeded(seed)
    a, b = (8 * torch.randn(3, k, 3, generator=g, dtype=torch.float64) for k in (7, 5))
    ra, rb = (2 + 4 * torch.rand(3, k, generator=g, dtype=torch.float64) for k in (7, 5))
    scale = (torch.rand(7, 5, generator=g) < 0.8).double()
    half, inverse = reach_tables(ra, rb, scale)
    a.requires_grad_(True)
    b.requires_grad_(True)
    reach = ((ra[:, :, None] + rb[:, None]) * scale).clamp_min(0.02)
    naive = ((reach.square() - (a[:, :, None] - b[:, None]).square().sum(-1)) / (2 * reach)).clamp_min(0)
    naive = naive.square().sum((1, 2))
    weights = torch.randn(3, generator=g, dtype=torch.float64)
    expected = torch.autograd.grad((weights * naive).sum(), (a, b))
    value = BallPenetration.apply(a, b, half, inverse)
    found = torch.autograd.grad((weights * value).sum(), (a, b))
    assert torch.allclose(value, naive, rtol=1e-9, atol=1e-9)
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-8, atol=1e-9)


def test_archetypes_and_regions() -> None:
    assert len(ARCHETYPE_NAMES) >= 45
    assert set(HELD_OUT) == {"heart", "frame", "bird"}
    assert {a.left_region for a in ARCHETYPES.values()} | {a.right_region for a in ARCHETYPES.values()} <= {*regions()}
    # the rarest kind: 3 in a thousand of a corpus of which half are named kinds, before any is refused
    assert (WEIGHTS[WEIGHTS > 0] / WEIGHTS.sum()).min() > 2 * 0.003
    for name, region in regions().items():
        assert len(region.balls) >= 1, name
        assert torch.allclose(region.normals.norm(dim=1), torch.ones(len(region.balls)), atol=1e-5)


def test_solved_contacts_keep_their_traits() -> None:
    """Contact is solved with off-axis part, gauge and shape fixed; only the 40 angles and the relative pose move."""
    batch = named_batch(12, seeded(6))
    p = batch.pairs
    assert len(p) >= 6
    off = p.left.pose(p.dof_left) - p.dof_left @ dof_axes().T
    assert torch.allclose(off, p.left.traits.off_axis, atol=1e-5)
    assert (p.dof_left >= DOF_MIN - 1e-5).all()
    assert (p.dof_right <= DOF_MAX + 1e-5).all()
    hands = to_two_hands(p, batch.betas_left, batch.betas_right)
    assert torch.allclose(relative_pose(hands), relative_numbers(p.rotation, p.translation), atol=1e-5)
    mirrored = relative_numbers(*mirror_relative(p.rotation, p.translation))
    assert torch.allclose(relative_pose(hands.mirrored()), mirrored, atol=1e-5)


def only(*names: str) -> torch.Tensor:
    return kind_weights(names)


def test_kinds_asked_for_are_drawn_and_held_out_ones_are_not() -> None:
    start, *_ = draw_starts(400, seeded(20), power=0.0)
    assert not {ARCHETYPE_NAMES[k] for k in start.kind.tolist()} & set(HELD_OUT)
    start, *_ = draw_starts(300, seeded(21), power=1.0, weights=only("heart", "clap", "rope"), keep_kinds=True)
    count = torch.bincount(start.kind, minlength=len(ARCHETYPE_NAMES))
    assert int(count.sum()) == sum(int(count[ARCHETYPE_NAMES.index(n)]) for n in ("heart", "clap", "rope"))
    # the tilt chooses among placements of a kind, so shares are those of the weights
    wanted = only("heart", "clap", "rope")
    share = wanted / wanted.sum()
    assert ((count / 300 - share).abs() < 4 * (share / 300).sqrt() + 1e-6).all()


@pytest.mark.parametrize(("name", "crossed"), [("heart", False), ("frame", True)])
def test_two_contacts_meet_at_once(name: str, crossed: bool) -> None:
    """Same dof and shape on both sides: the right hand is the left one's image, but for the small noise of the pose."""
    start, goal, _, _ = draw_starts(24, seeded(22), power=0.0, weights=only(name))
    a, b = start.balls()
    rows = torch.arange(24)[:, None]
    gap = (a[rows, goal.ball_left] - b[rows, goal.ball_right]).norm(dim=-1)
    other = (a[rows, goal.ball_left] - b[rows, goal.ball_right.flip(1)]).norm(dim=-1)
    assert (goal.ball_left[:, 0] == goal.ball_right[:, int(crossed)]).all()
    assert gap.mean() < 40 < other.mean()


def test_kinds_that_do_not_touch_stay_apart_and_keep_their_name() -> None:
    batch = named_batch(24, seeded(23), weights=only("clap", "box", "typing"))
    assert len(batch.pairs) > 12
    assert APART[batch.pairs.kind].all()
    assert (batch.report["depth"] <= 0.2).all()
    assert (batch.report["near"] > 5).any()
    box = batch.pairs.kind == ARCHETYPE_NAMES.index("box")
    assert (batch.report["near"][box] > 20).all()


# Arms -----------------------------------------------------------------------------------------------------------------


def test_wrist_bends() -> None:
    """In a right hand the palm faces -y and the little finger lies at -z; a straight forearm runs to +x."""
    d = bend_directions()
    assert torch.allclose(d.norm(dim=1), torch.ones(15))
    assert (d[:, 0] > 0).all()
    assert torch.rad2deg(torch.asin(-d[:, 1].min())) == pytest.approx(60, abs=3)
    assert torch.rad2deg(torch.asin(-d[:, 2])).max() == pytest.approx(35, abs=0.1)
    assert torch.rad2deg(torch.asin(-d[:, 2])).min() == pytest.approx(-20, abs=0.1)


def naive_arms_fit(pairs, tolerance: float) -> list[bool]:  # type: ignore[no-untyped-def]
    """The same in loops over pairs, bends and balls."""
    hands, count = pairs.balls(), len(open_hand_spheres())
    out = []
    for n in range(len(pairs)):
        both = []
        for body, turn in ((pairs.left, "left"), (pairs.right, "right")):
            world = lambda p, turn=turn, n=n: (
                p * torch.tensor([-1.0, 1.0, 1.0]) if turn == "left" else pairs.rotation[n] @ p + pairs.translation[n]
            )
            wrist = body.joints[n, 0]
            both.append([([world(wrist + t * d) for t in ALONG], world(wrist + ELBOW * d)) for d in bend_directions()])

        def clear(arm, hand, radii):  # type: ignore[no-untyped-def]
            gaps = [(hand - p).norm(dim=1) - r - radii for p, r in zip(arm, RADII, strict=True)]
            return float(torch.stack(gaps).min()) > -tolerance

        ok = False
        for ball_l, elbow_l in both[0]:
            for ball_r, elbow_r in both[1]:
                good = clear(ball_l, hands[1][n, :count], pairs.right.radii[n, :count])
                good = good and clear(ball_r, hands[0][n, :count], pairs.left.radii[n, :count])
                good = good and clear(ball_l, torch.stack(ball_r), RADII)
                good = good and ELBOWS_APART[0] <= float((elbow_l - elbow_r).norm()) <= ELBOWS_APART[1]
                ok = ok or good
        out.append(ok)
    return out


def test_arms_fit_is_its_naive_twin() -> None:
    pairs, _, _, _ = draw_starts(8, seeded(24), power=0.0, weights=only("wrist_hold", "wrist_cross", "palm_on_back"))
    # some moved along the other hand's arm, where nothing fits
    shift = torch.tensor([-110.0, 0.0, 0.0]) * (torch.arange(8) % 2)[:, None]
    pairs = replace(pairs, translation=pairs.translation + shift)
    found = arms_fit(pairs, 2.0)
    assert found.tolist() == naive_arms_fit(pairs, 2.0)


def test_a_bent_wrist_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand on the axis of the other one's forearm: refused for a straight wrist, possible for a bent one."""
    pairs, _, _, _ = draw_starts(4, seeded(25), power=0.0, weights=only("prayer"))
    behind = pairs.left.joints[:, 0] + torch.tensor([32.0, 0.0, 0.0])
    inside = replace(pairs, translation=behind * torch.tensor([-1.0, 1.0, 1.0]))
    assert arms_fit(inside, 2.0).all()
    far = replace(pairs, translation=pairs.translation + torch.tensor([0.0, -1800.0, 0.0]))
    assert not arms_fit(far, 2.0).any()  # nobody's elbows
    monkeypatch.setattr(arms, "bend_directions", lambda: torch.tensor([[1.0, 0.0, 0.0]]))
    assert not arms_fit(inside, 2.0).any()


# Surface --------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), flat=st.sampled_from([1.0, 1e-3]))
@settings(max_examples=25, deadline=None)
def test_closest_point_on_triangle(seed: int, flat: float) -> None:
    g = seeded(seed)
    draw = lambda: torch.randn(6, 3, generator=g, dtype=torch.float64)
    p, a, b = 2 * draw(), draw(), draw()
    c = a + (b - a) * 0.3 + flat * draw()
    w = closest_on_triangles(p, a, b, c)
    assert torch.allclose(w.sum(-1), torch.ones(6, dtype=torch.float64))
    assert (w > -1e-9).all()
    point = lambda w: w[..., :1] * a + w[..., 1:2] * b + w[..., 2:] * c
    best = (p - point(w)).norm(dim=-1)
    others = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((400, 6))
    assert ((p - point(others)).norm(dim=-1) >= best - 1e-9).all()


def test_surface_report_is_brute_force() -> None:
    """Pairs deep in each other and apart: winding numbers over every triangle find the same depth and gap."""
    pairs, _, betas_l, betas_r = draw_starts(6, seeded(12), power=0.0)
    left, right = meshes(pairs, betas_l, betas_r)
    away = torch.nn.functional.normalize(right.mean(1) - left.mean(1), dim=1)
    right = right + torch.tensor([0, 0, 5, 5, 40, 120])[:, None, None] * away[:, None]
    report = surface_report(left, right)
    faces = open_hands().right.sealed_faces
    for i in range(6):
        gap, depth = brute_force(left[i], faces, right[i], faces)
        # deep inside, the nearest vertex need not belong to the nearest triangle
        loosely = 0.15 if depth > 10 else 0.05 if depth > 3 else 0
        assert float(report["depth"][i]) == pytest.approx(depth, abs=0.02, rel=loosely)
        assert float(report["near"][i]) == pytest.approx(gap, abs=0.02)
    assert (report["depth"] > 2).any()
    assert (report["depth"] == 0).any()


# Placement ------------------------------------------------------------------------------------------------------------


def test_max_entropy_recovers_a_known_tilt() -> None:
    """exp(t x) moves N(0, I) to N(t, I): so the tilt that makes the mean t is t."""
    wanted = torch.tensor([0.5, -0.3, 0.0])
    tilt, share = max_entropy(torch.randn(200_000, 3, generator=seeded(7)), wanted, ridge=0.0)
    assert torch.allclose(tilt.float(), wanted, atol=0.02)
    assert share == pytest.approx(float(torch.exp(-wanted @ wanted)), abs=0.03)


def test_mirror_is_an_involution() -> None:
    start, _, _, _ = draw_starts(16, seeded(8), power=0.0)
    again = mirror_relative(*mirror_relative(start.rotation, start.translation))
    assert torch.allclose(again[0], start.rotation, atol=1e-6)
    assert torch.allclose(again[1], start.translation, atol=1e-3)


def test_tilted_starts_come_nearer_to_the_published_rotations() -> None:
    distance = lambda power: float((relative_numbers(*rotations(power)).mean(0)[:6] - REL_MEAN[:6]).norm())

    def rotations(power: float) -> tuple[torch.Tensor, torch.Tensor]:
        start, _, _, _ = draw_starts(1500, seeded(9), power=power)
        return start.rotation, start.translation

    assert distance(1.0) < 0.6 * distance(0.0)


def test_loose_candidates_are_apart_and_in_front_of_the_palm() -> None:
    pairs, betas_l, betas_r = draw_candidates(800, seeded(10))
    assert len(pairs) == len(betas_l) == len(betas_r) > 50
    assert -150 < pairs.translation[:, 1].mean() < -60  # palm faces -y: 6 to 15 cm between the knuckles
    assert 40 < pairs.translation[:, 1].std() < 110


def test_shapes_are_unit_normal_and_nearly_equal() -> None:
    left, right = draw_shapes(20_000, seeded(11))
    assert left.std(0).sub(1).abs().max() < 0.02
    assert (left - right).std() == pytest.approx(0.1, abs=0.01)
