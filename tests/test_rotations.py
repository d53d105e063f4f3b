"""Rotations against scipy and the matrix exponential, at and near the singular angles 0 and pi."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import generator
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from interhand_prior.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rot6d,
    mirror_axis_angle,
    mirror_points,
    rot6d_to_matrix,
)

# 0.1 and sqrt(0.1) are where the series takes over, in float64 and in float32.
ANGLES = (
    0.0, 1e-300, 1e-20, 1e-12, 1e-8, 1e-4, 0.0999999, 0.1000001, 0.3162, 0.3163, 1.0, math.pi / 2, 2.0,
    math.pi - 1e-2, math.pi - 1e-4, math.pi - 1e-8, math.pi - 1e-12, math.pi,
)  # fmt: skip
M = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))


def axes() -> st.SearchStrategy[np.ndarray]:
    number = st.floats(-1, 1, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -1.0, 1e-9])
    vectors = st.tuples(number, number, number).map(np.array)
    return vectors.filter(lambda v: np.linalg.norm(v) > 1e-3).map(lambda v: v / np.linalg.norm(v))


def rotation_vectors(angles: st.SearchStrategy[float] | None = None) -> st.SearchStrategy[Tensor]:
    angles = angles if angles is not None else st.sampled_from(ANGLES) | st.floats(0, math.pi)
    return st.tuples(axes(), angles).map(lambda pair: torch.tensor(pair[0] * pair[1]))


def skew(w: Tensor) -> Tensor:
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


@given(rotation_vectors() | rotation_vectors(st.floats(0, 30)))
def test_matrix_is_the_exponential_and_scipys(w: Tensor) -> None:
    matrix = axis_angle_to_matrix(w)
    torch.testing.assert_close(matrix, torch.linalg.matrix_exp(skew(w)), atol=1e-13, rtol=0)
    np.testing.assert_allclose(matrix.numpy(), Rotation.from_rotvec(w.numpy()).as_matrix(), atol=1e-13)


@given(rotation_vectors())
def test_axis_angle_comes_back(w: Tensor) -> None:
    back = matrix_to_axis_angle(axis_angle_to_matrix(w))
    # At pi itself, to rounding, both signs are right.
    if w.norm() > math.pi - 1e-7 and (back - w).norm() > 1:
        back = -back
    torch.testing.assert_close(back, w, atol=1e-7 if w.norm() > 3 else 1e-13, rtol=0)


@given(rotation_vectors())
def test_matrix_comes_back_through_axis_angle_and_rot6d(w: Tensor) -> None:
    matrix = torch.tensor(Rotation.from_rotvec(w.numpy()).as_matrix())
    vector = matrix_to_axis_angle(matrix)
    assert vector.norm() <= math.pi + 1e-12
    torch.testing.assert_close(axis_angle_to_matrix(vector), matrix, atol=1e-14 * 50, rtol=0)
    torch.testing.assert_close(rot6d_to_matrix(matrix_to_rot6d(matrix)), matrix, atol=1e-14, rtol=0)


@pytest.mark.parametrize("diagonal", [(1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
def test_exact_half_turns(diagonal: tuple[int, int, int]) -> None:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)).requires_grad_()
    vector = matrix_to_axis_angle(matrix)
    torch.testing.assert_close(vector.abs(), math.pi * (torch.tensor(diagonal) > 0).double())
    (grad,) = torch.autograd.grad(vector.sum(), matrix)
    assert torch.isfinite(grad).all()


@given(rotation_vectors(st.sampled_from(ANGLES[:-2]) | st.floats(0, 3)))
def test_derivative_of_the_matrix(w: Tensor) -> None:
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (w.requires_grad_(),), atol=1e-7)


@given(rotation_vectors(st.sampled_from(ANGLES[:-3]) | st.floats(0, 3.1)))
def test_derivative_of_the_round_trip_is_the_identity(w: Tensor) -> None:
    jacobian = torch.autograd.functional.jacobian(lambda v: matrix_to_axis_angle(axis_angle_to_matrix(v)), w)
    torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("angle", [0.0, 1e-30, math.pi])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, -1), (0.6, 0, 0.8)])
def test_gradients_are_finite_at_the_singular_angles(dtype: torch.dtype, angle: float, axis: tuple[float, ...]) -> None:
    w = (angle * torch.tensor(axis, dtype=torch.float64)).to(dtype).requires_grad_()
    matrix = axis_angle_to_matrix(w)
    upper = matrix[0, 1] + matrix[1, 2] + matrix[0, 2]
    (through_matrix,) = torch.autograd.grad(upper, w, retain_graph=True)
    (through_both,) = torch.autograd.grad(matrix_to_axis_angle(matrix).sum(), w)
    for grad in (through_matrix, through_both):
        assert grad.dtype == dtype
        assert torch.isfinite(grad).all()
    assert through_matrix.abs().sum() > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_accurate_to_rounding_across_the_change_to_the_series(dtype: torch.dtype, tolerance: float) -> None:
    angle = torch.cat((torch.logspace(-6, 0, 400), torch.linspace(1, math.pi - 1e-3, 200))).double()
    w = (angle[:, None] * torch.tensor([0.36, -0.48, 0.8])).to(dtype)
    exact = torch.tensor(Rotation.from_rotvec(w.double().numpy()).as_matrix())
    torch.testing.assert_close(axis_angle_to_matrix(w).double(), exact, atol=tolerance, rtol=0)
    torch.testing.assert_close(matrix_to_axis_angle(exact.to(dtype)), w, atol=3 * tolerance, rtol=0)


def test_rot6d_holds_rows() -> None:
    quarter_turn_about_z = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert matrix_to_rot6d(quarter_turn_about_z).tolist() == [0, -1, 0, 1, 0, 0]
    assert torch.equal(rot6d_to_matrix(torch.tensor([0.0, -1.0, 0.0, 1.0, 0.0, 0.0])), quarter_turn_about_z)


def test_rot6d_is_gram_schmidt() -> None:
    sixes = torch.randn(50, 6, generator=generator(), dtype=torch.float64)
    for six, matrix in zip(sixes.numpy(), rot6d_to_matrix(sixes).numpy(), strict=True):
        first = six[:3] / np.linalg.norm(six[:3])
        second = six[3:] - first * (first @ six[3:])
        second /= np.linalg.norm(second)
        np.testing.assert_allclose(matrix, [first, second, np.cross(first, second)], atol=1e-12)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) > 0.999
    assert torch.autograd.gradcheck(rot6d_to_matrix, (sixes[:3].requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("six", [(0.0,) * 6, (1.0, 2.0, 3.0, 2.0, 4.0, 6.0), (0, 0, 0, 1, 0, 0), (1, 0, 0, 0, 0, 0)])
def test_degenerate_rot6d_stays_finite(dtype: torch.dtype, six: tuple[float, ...]) -> None:
    value = torch.tensor(six, dtype=dtype, requires_grad=True)
    matrix = rot6d_to_matrix(value)
    (grad,) = torch.autograd.grad(matrix.sum(), value)
    assert torch.isfinite(matrix).all()
    assert torch.isfinite(grad).all()
    assert matrix.abs().max() <= 1 + 1e-6


@given(rotation_vectors())
def test_mirror_is_conjugation_by_the_reflection(w: Tensor) -> None:
    torch.testing.assert_close(
        axis_angle_to_matrix(mirror_axis_angle(w)), M @ axis_angle_to_matrix(w) @ M, atol=1e-15, rtol=0
    )
    assert torch.equal(mirror_axis_angle(mirror_axis_angle(w)), w)


def test_mirror_of_a_hand_pose_is_that_of_each_joint() -> None:
    pose = torch.randn(4, 2, 45, generator=generator())
    one_by_one = torch.cat([mirror_axis_angle(joint) for joint in pose.split(3, -1)], -1)
    assert torch.equal(mirror_axis_angle(pose), one_by_one)
    assert mirror_points(torch.tensor([1.0, 2.0, 3.0])).tolist() == [-1, 2, 3]


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3), (2, 0, 3)])
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    w = torch.randn(*batch, 3, generator=generator(), dtype=torch.float64)
    matrix = axis_angle_to_matrix(w)
    assert matrix.shape == (*batch, 3, 3)
    assert matrix_to_axis_angle(matrix).shape == (*batch, 3)
    assert matrix_to_rot6d(matrix).shape == (*batch, 6)
    assert rot6d_to_matrix(matrix_to_rot6d(matrix)).shape == (*batch, 3, 3)
    assert mirror_axis_angle(w).shape == mirror_points(w).shape == (*batch, 3)
    for found, one in zip(matrix.reshape(-1, 3, 3), w.reshape(-1, 3), strict=True):
        torch.testing.assert_close(found, axis_angle_to_matrix(one), atol=1e-15, rtol=0)
