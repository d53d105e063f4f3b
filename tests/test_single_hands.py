"""Single hands of the corpus: coupled joints, no self-collision, marginals and their coverage against oracles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interhand_prior.data.synthetic.alone import SingleHands, draw_single_hands
from interhand_prior.data.synthetic.anatomy import DEGREE, DOF_MAX, DOF_MIN
from interhand_prior.data.synthetic.marginals import POSE_MEAN, POSE_SD, compare_marginals, coverage
from interhand_prior.data.synthetic.single_hand import (
    POSE_NAMES,
    POSE_SHARES,
    POSES,
    Traits,
    correlated_noise,
    draw_archetype_dof,
    draw_free_dof,
)
from interhand_prior.data.synthetic.spheres import MAX_SELF_DEPTH, make_body, open_hand_spheres, self_penetration


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def hands() -> SingleHands:
    return draw_single_hands(3000, seeded(1))


# Poses ----------------------------------------------------------------------------------------------------------------


def test_named_poses_lie_within_the_ranges_and_all_have_a_share() -> None:
    assert set(POSE_NAMES) == set(POSE_SHARES)
    assert min(POSE_SHARES.values()) > 0
    bank = torch.stack(list(POSES.values()))
    assert (bank > DOF_MIN).all()
    assert (bank < DOF_MAX).all()
    apart = torch.cdist(bank, bank) + torch.eye(len(bank)) * 10
    assert apart.min() > 10 * DEGREE  # no pose is named twice


def test_named_poses_hardly_collide_on_the_mean_hand() -> None:
    """A fist presses its thumb on its fingers; no other pose reaches even the limit."""
    n = len(POSES)
    body = make_body(torch.zeros(n, 10), Traits(torch.zeros(n, 45), torch.zeros(n, 15), torch.zeros(n).long()))
    depth = self_penetration(body.balls(torch.stack(list(POSES.values())))[0], body.radii)
    assert {k: float(d) for k, d in zip(POSE_NAMES, depth, strict=True) if d >= 4} == {}


@given(seed=st.integers(0, 10_000), name=st.sampled_from(POSE_NAMES), amount=st.floats(0, 3))
@settings(max_examples=20, deadline=None)
def test_drawn_poses_lie_within_the_ranges(seed: int, name: str, amount: float) -> None:
    dof = draw_archetype_dof([name], 64, seeded(seed), amount=amount)
    assert (dof >= DOF_MIN).all()
    assert (dof <= DOF_MAX).all()
    assert torch.equal(dof, draw_archetype_dof([name], 64, seeded(seed), amount=amount))


def test_without_mixture_and_noise_a_pose_is_itself() -> None:
    still = draw_archetype_dof(["open_relaxed"], 8, seeded(2), amount=0.0, mix=0.0)
    flexion = [i for i in range(16) if i % 4 != 1]
    assert torch.allclose(still[:, flexion], POSES["open_relaxed"][flexion].expand(8, -1), atol=0.01)


def test_noise_is_unit_and_couples_joints_as_hands_do() -> None:
    noise = correlated_noise(40_000, seeded(3))
    assert noise.std(0).sub(1).abs().max() < 0.03
    r = torch.corrcoef(noise.T)
    index, middle, pinky, ring = (0, 4, 8, 12)
    for joint in (0, 2):  # MCP and PIP: neighbours follow each other, the index least
        at = lambda a, b, joint=joint: float(r[a + joint, b + joint])
        assert at(middle, ring) > 0.6
        assert at(ring, pinky) > 0.6
        assert at(index, pinky) < at(index, middle) < at(middle, ring)
    for finger in (index, middle, pinky, ring):
        assert float(r[finger + 2, finger + 3]) == pytest.approx(0.8, abs=0.02)
    assert float(r[1, 5]) == pytest.approx(0.9, abs=0.02)


def test_free_hands_vary_in_every_angle_and_finger() -> None:
    dof = draw_free_dof(4000, seeded(4))
    assert (dof.std(0) > 2 * DEGREE).all()
    r = torch.corrcoef(dof.T)
    assert all(float(r[f + 2, f + 3]) > 0.9 for f in (0, 4, 8, 12))  # DIP follows PIP
    assert float(r[4, 12]) > 0.75  # middle and ring finger
    assert float(r[4, 12]) > float(r[0, 8])  # more than index and little finger


# Hands alone ----------------------------------------------------------------------------------------------------------


def test_single_hands_are_exactly_n_and_free_of_self_collision(hands: SingleHands) -> None:
    """Checked with a double loop's distances, not with the Gram product that `self_penetration` uses."""
    assert [len(hands.betas), len(hands.dof), len(hands.traits.phi)] == [3000] * 3
    assert 0.55 < hands.acceptance < 1
    some = torch.arange(0, 3000, 20)
    spheres, body = open_hand_spheres(), make_body(hands.betas[some], hands.traits[some])
    centres, _, _ = body.balls(hands.dof[some])
    worst = torch.zeros(len(some))
    for p, row in enumerate(spheres.self_rows.tolist()):
        for ball in spheres.self_scale[p].nonzero()[:, 0].tolist():
            reach = spheres.self_scale[p, ball] * (body.radii[:, row] + body.radii[:, ball])
            worst = torch.maximum(worst, reach - (centres[:, row] - centres[:, ball]).norm(dim=1))
    assert (worst < MAX_SELF_DEPTH + 0.02).all()
    assert worst.max() > 1.0  # and the check is not idle


@pytest.mark.parametrize("n", [0, 1, 7])
def test_few_single_hands(n: int) -> None:
    a, b = draw_single_hands(n, seeded(5)), draw_single_hands(n, seeded(5))
    assert a.dof.shape == (n, 20)
    assert a.betas.shape == (n, 10)
    assert a.traits.off_axis.shape == (n, 45)
    assert torch.equal(a.dof, b.dof)
    assert torch.equal(a.traits.variant, b.traits.variant)


def test_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="n must not be negative, got -1"):
        draw_single_hands(-1, seeded())


def test_kept_hands_meet_the_marginals_of_real_fits(hands: SingleHands) -> None:
    pose = make_body(hands.betas, hands.traits).full_pose(hands.dof)
    found = compare_marginals(pose)
    assert found["mean_offset"] < 0.07
    assert found["log_sd_ratio"] < 0.06
    assert found["coverage"] < 0.9
    assert (coverage(pose) < 1.2).all()


# Coverage -------------------------------------------------------------------------------------------------------------


@given(shift=st.floats(-2, 2), scale=st.floats(0.4, 3), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_coverage_is_the_mean_absolute_z_score_of_real_draws(shift: float, scale: float, seed: int) -> None:
    g = seeded(seed)
    ours = POSE_MEAN + POSE_SD * (shift + scale * torch.randn(500, 45, generator=g))
    real = (POSE_MEAN + POSE_SD * torch.randn(200_000, 45, generator=g)).double()
    naive = ((real - ours.mean(0)) / ours.std(0)).abs().mean(0)
    assert torch.allclose(coverage(ours).double(), naive, rtol=0.02)


def test_coverage_of_equal_marginals_and_of_a_wide_sample() -> None:
    unit = torch.randn(100_000, 45, generator=seeded(6))
    unit = (unit - unit.mean(0)) / unit.std(0)
    half_normal = math.sqrt(2 / math.pi)
    assert torch.allclose(coverage(POSE_MEAN + POSE_SD * unit), torch.full((45,), half_normal), atol=1e-3)
    assert torch.allclose(coverage(POSE_MEAN + 2 * POSE_SD * unit), torch.full((45,), half_normal / 2), atol=1e-3)
    far = coverage(POSE_MEAN + POSE_SD * (10 + unit))  # all of the table on one side: |mean z|
    assert torch.allclose(far, torch.full((45,), 10.0), atol=1e-2)


@pytest.mark.parametrize("shape", [(45,), (1, 45), (5, 44), (2, 3, 45)])
def test_coverage_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="hand_pose must have shape"):
        coverage(torch.zeros(shape))
