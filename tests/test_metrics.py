"""Distribution metrics against foreign implementations, closed forms, naive twins, and at their edges."""

from __future__ import annotations

import contextlib
import io
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interhand_prior.metrics import (
    Moments,
    diversity,
    frechet_distance,
    kernel_distance,
    moments,
    precision_recall,
    squared_mmd,
)

SEEDS = st.integers(0, 2**20)


def draw(n: int, d: int, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated, skewed features, as a network's last ReLU leaves them."""
    mix = torch.randn(d, d, generator=generator(991), dtype=torch.float64) / math.sqrt(d)
    normal = torch.randn(n, d, generator=generator(seed), dtype=torch.float64)
    return scale * torch.nn.functional.softplus(normal @ mix) + shift


# Frechet


def scipy_frechet(a: Tensor, b: Tensor) -> float:
    """The usual implementation: numpy's moments and scipy's root of the unsymmetric product."""
    from scipy.linalg import sqrtm

    x, y = a.numpy(), b.numpy()
    c, e = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(c @ e)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c) + np.trace(e) - 2 * np.trace(root).real)


@given(seed=SEEDS, d=st.integers(2, 12), scale=st.floats(0.3, 3), shift=st.floats(-1, 1))
def test_frechet_equals_scipys(seed: int, d: int, scale: float, shift: float) -> None:
    a, b = draw(60, d, seed, shift, scale), draw(80, d, seed + 1)
    assert frechet_distance(a, b) == pytest.approx(scipy_frechet(a, b), rel=1e-8, abs=1e-9)


def test_frechet_of_gaussians_in_closed_form() -> None:
    # Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 in their common axes.
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator(1), dtype=torch.float64)).Q
    s1, s2 = torch.tensor([1, 2, 3, 0.5, 4, 1e-3]).double(), torch.tensor([2, 2, 1, 0.1, 0, 5]).double()
    m1, m2 = torch.arange(6.0).double(), torch.ones(6).double()
    of = lambda m, s: Moments(m, basis @ torch.diag(s**2) @ basis.T)
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(of(m1, s1), of(m2, s2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_many_samples_nears_the_gaussians() -> None:
    a = torch.randn(40_000, 3, generator=generator(2), dtype=torch.float64)
    b = 2 * torch.randn(40_000, 3, generator=generator(3), dtype=torch.float64) + 1
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.03)


@given(seed=SEEDS, shift=st.floats(-50, 50), factor=st.floats(0.1, 10))
def test_frechet_moves_with_neither_translation_nor_order_and_scales_as_a_square(
    seed: int, shift: float, factor: float
) -> None:
    a, b = draw(40, 5, seed), draw(50, 5, seed + 7, 0.4)
    found = frechet_distance(a, b)
    close = lambda value: pytest.approx(value, rel=1e-7, abs=1e-9)
    assert frechet_distance(a + shift, b + shift) == close(found)
    assert frechet_distance(a[torch.randperm(40, generator=generator(seed))], b.flip(0)) == close(found)
    assert frechet_distance(b, a) == close(found)
    assert frechet_distance(factor * a, factor * b) == close(factor**2 * found)
    # What counts as a zero eigenvalue is relative.
    assert 1e16 * frechet_distance(1e-8 * a, 1e-8 * b) == close(found)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator(seed), dtype=torch.float64)).Q
    assert frechet_distance(a @ turn, b @ turn) == close(found)


@pytest.mark.parametrize(("n", "d"), [(50, 4), (5, 20), (2, 3), (30, 1)])
def test_frechet_of_identical_sets_is_zero(n: int, d: int) -> None:
    a = draw(n, d, 3)
    assert frechet_distance(a, a.clone()) == 0.0
    shuffled = a[torch.randperm(n, generator=generator(1))]
    assert 0 <= frechet_distance(a, shuffled) < 1e-12


def test_frechet_with_fewer_samples_than_dimensions_has_a_closed_form() -> None:
    # Two points each: rank one, C = u u^T, so tr (C1 C2)^(1/2) = |u1 . u2|.
    a, b = draw(2, 30, 5), draw(2, 30, 6)
    u = (a[0] - a[1]) / math.sqrt(2)
    v = (b[0] - b[1]) / math.sqrt(2)
    expected = (a.mean(0) - b.mean(0)).square().sum() + u @ u + v @ v - 2 * (u @ v).abs()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_frechet_with_singular_covariances() -> None:
    a, b = draw(40, 4, 8), draw(60, 4, 9, 0.3)
    # Dead and repeated features: with constant columns nothing changes, with every column twice it doubles.
    dead = lambda x: torch.cat((x, torch.full((len(x), 3), 2.5, dtype=x.dtype)), 1)
    assert frechet_distance(dead(a), dead(b)) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(a.repeat(1, 2), b.repeat(1, 2)) == pytest.approx(2 * frechet_distance(a, b), rel=1e-10)
    # One set without any spread: the distance of a point to a Gaussian.
    point = torch.zeros(3, 4, dtype=torch.float64)
    expected = float(b.mean(0).square().sum() + torch.cov(b.T).trace())
    assert frechet_distance(point, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_takes_moments_and_float32() -> None:
    a, b = draw(40, 6, 1), draw(40, 6, 2)
    found = frechet_distance(a, b)
    assert frechet_distance(moments(a), b) == frechet_distance(a, moments(b)) == found
    assert frechet_distance(a.float(), b.float()) == pytest.approx(found, rel=1e-4)


@given(seed=SEEDS)
def test_counts_stand_for_copies(seed: int) -> None:
    a = draw(20, 4, seed)
    counts = torch.randint(0, 4, (20,), generator=generator(seed))
    counts[0] += 2
    found, copied = moments(a, counts), moments(a.repeat_interleave(counts, 0))
    torch.testing.assert_close(found.mean, copied.mean)
    torch.testing.assert_close(found.covariance, copied.covariance)


# Kernel


def naive_mmd(x: Tensor, y: Tensor, degree: int) -> float:
    """The definition, pair by pair in Python."""
    k = lambda u, v: (sum(p * q for p, q in zip(u, v, strict=True)) / len(u) + 1) ** degree
    x, y = x.tolist(), y.tolist()
    mean = lambda pairs: (lambda values: sum(values) / len(values))([k(u, v) for u, v in pairs])
    return mean(itertools.permutations(x, 2)) + mean(itertools.permutations(y, 2)) - 2 * mean(itertools.product(x, y))


@given(seed=SEEDS, n=st.integers(2, 9), m=st.integers(2, 9), degree=st.integers(1, 4), chunk=st.integers(1, 10))
def test_mmd_is_its_definition_in_any_chunks(seed: int, n: int, m: int, degree: int, chunk: int) -> None:
    a, b = draw(n, 3, seed), draw(m, 3, seed + 1, 0.5)
    found = squared_mmd(a, b, degree=degree, chunk=chunk)
    assert found == pytest.approx(naive_mmd(a, b, degree), rel=1e-9, abs=1e-11)


def test_mmd_of_degree_one_in_closed_form() -> None:
    # Expectation: |E x - E y|^2 / D; exactly, with the sample variances subtracted.
    a, b = draw(30, 5, 1), draw(50, 5, 2, 0.7)
    square = (a.mean(0) - b.mean(0)).square().sum() - a.var(0).sum() / 30 - b.var(0).sum() / 50
    assert squared_mmd(a, b, degree=1) == pytest.approx(float(square) / 5, rel=1e-10)


def test_the_default_kernel_is_cubic() -> None:
    a, b = draw(30, 4, 1), draw(30, 4, 2, 0.5)
    assert kernel_distance(a, b, subset_size=None) == squared_mmd(a, b, degree=3)


@given(seed=SEEDS)
def test_mmd_depends_on_no_order(seed: int) -> None:
    a, b = draw(20, 4, seed), draw(25, 4, seed + 3)
    found = squared_mmd(a, b)
    assert squared_mmd(a[torch.randperm(20, generator=generator(seed))], b.flip(0)) == pytest.approx(found, rel=1e-9)
    assert squared_mmd(b, a) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("degree", [1, 3])
def test_mmd_is_unbiased(degree: int) -> None:
    # Equal distributions: the mean over many small draws must be 0 within its error; a biased estimate of sets this
    # small is off by many errors.
    values = torch.tensor([squared_mmd(draw(8, 3, 2 * i), draw(6, 3, 2 * i + 1), degree=degree) for i in range(300)])
    assert abs(float(values.mean())) < 3.5 * float(values.std()) / math.sqrt(len(values))
    assert float(values.min()) < 0 < float(values.max())


def test_subsets_average_to_the_whole_sets() -> None:
    a, b = draw(60, 4, 1), draw(50, 4, 2, 0.4)
    found = kernel_distance(a, b, subset_size=20, subsets=800, generator=generator())
    assert found == pytest.approx(squared_mmd(a, b), rel=0.05)


def test_subsets_are_drawn_without_replacement_and_one_of_all_is_the_whole() -> None:
    a, b = draw(30, 4, 1), draw(30, 4, 2)
    found = kernel_distance(a, b, subset_size=30, subsets=3, generator=generator())
    assert found == pytest.approx(squared_mmd(a, b), rel=1e-9)


def test_one_set_against_itself_is_below_zero_by_the_equal_pairs() -> None:
    a = draw(40, 4, 1)
    kernel = ((a @ a.T) / 4 + 1) ** 3
    equal = kernel.diagonal().mean()
    different = (kernel.sum() - kernel.trace()) / (40 * 39)
    assert squared_mmd(a, a) == pytest.approx(float(2 * (different - equal) / 40), rel=1e-9)


# Diversity


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    a = draw(12, 5, 4)
    expected = float(torch.pdist(a).mean())
    assert diversity(a, pairs=60_000, generator=generator()) == pytest.approx(expected, rel=0.02)
    # For a Gaussian of D dimensions: 2 Gamma((D + 1) / 2) / Gamma(D / 2).
    normal = torch.randn(5000, 4, generator=generator(1), dtype=torch.float64)
    closed = 2 * math.gamma(2.5) / math.gamma(2)
    assert diversity(normal, pairs=20_000, generator=generator(2)) == pytest.approx(closed, rel=0.02)


def test_diversity_never_pairs_a_sample_with_itself() -> None:
    assert diversity(torch.tensor([[0.0], [1.0]]), pairs=500, generator=generator()) == 1.0
    assert diversity(torch.ones(5, 3), generator=generator()) == 0.0


# Precision and recall


def prdc(a: Tensor, b: Tensor, k: int) -> tuple[float, float]:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = compute_prdc(real_features=b.numpy(), fake_features=a.numpy(), nearest_k=k)
    return float(found["precision"]), float(found["recall"])


@settings(max_examples=8)
@given(seed=SEEDS, n=st.integers(8, 60), m=st.integers(8, 60), k=st.integers(1, 6), chunk=st.integers(1, 70))
def test_precision_and_recall_equal_prdcs_in_any_chunks(seed: int, n: int, m: int, k: int, chunk: int) -> None:
    a, b = draw(n, 4, seed, 0.3, 0.8), draw(m, 4, seed + 1)
    assert precision_recall(a, b, k=k, num=None, chunk=chunk) == pytest.approx(prdc(a, b, k), abs=1e-12)


def test_precision_and_recall_equal_prdcs_at_the_papers_size() -> None:
    a, b = draw(1000, 32, 1, 0.02, 0.95), draw(1000, 32, 2)
    assert precision_recall(a, b, num=None) == pytest.approx(prdc(a, b, 5), abs=1e-12)


@given(seed=SEEDS, k=st.integers(1, 5))
def test_precision_and_recall_swap_with_the_sets(seed: int, k: int) -> None:
    a, b = draw(30, 3, seed, 0.2), draw(40, 3, seed + 1)
    precision, recall = precision_recall(a, b, k=k, num=None)
    assert precision_recall(b, a, k=k, num=None) == (recall, precision)
    shuffled = a[torch.randperm(30, generator=generator(seed))]
    assert precision_recall(shuffled + 3, b.flip(0) + 3, k=k, num=None) == pytest.approx((precision, recall))


def test_precision_and_recall_at_the_extremes() -> None:
    a = draw(50, 6, 1)
    assert precision_recall(a, a.clone(), num=None) == (1.0, 1.0)
    assert precision_recall(a, a + 100, num=None) == (0.0, 0.0)
    # Copies of one real sample: all inside, and they cover nothing, as in prdc.
    collapsed = a[:1].repeat(50, 1)
    assert precision_recall(collapsed, a, num=None) == prdc(collapsed, a, 5) == (1.0, 0.0)
    assert precision_recall(a, collapsed, num=None) == prdc(a, collapsed, 5) == (0.0, 1.0)
    # One mode of two: precise, half recalled.
    modes = torch.cat((a, draw(50, 6, 2) + 100))
    precision, recall = precision_recall(draw(100, 6, 3), modes, num=None)
    assert precision > 0.6
    assert 0.3 < recall <= 0.5


def test_fewer_samples_than_asked_are_taken_equally_from_both() -> None:
    a, b = draw(40, 4, 1), draw(20, 4, 2)
    few = precision_recall(a, b, num=1000, generator=generator(3))
    assert few == precision_recall(a, b, num=20, generator=generator(3))
    assert few[0] * 20 == pytest.approx(round(few[0] * 20))


# All of them

DRAWING = {
    "kernel": lambda a, b, g: kernel_distance(a, b, subset_size=10, subsets=3, generator=g),
    "diversity": lambda a, b, g: diversity(a, pairs=20, generator=g),
    "precision and recall": lambda a, b, g: precision_recall(a, b, k=2, num=15, generator=g),
}
COMPARING = {
    "frechet": frechet_distance,
    "mmd": squared_mmd,
    "kernel": lambda a, b: kernel_distance(a, b, subset_size=None),
    "precision and recall": lambda a, b: precision_recall(a, b, k=2, num=None),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_seed_repeats_and_another_does_not(name: str) -> None:
    a, b = draw(60, 4, 1), draw(60, 4, 2, 0.1)
    found = [DRAWING[name](a, b, generator(seed)) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) > 1
    state = torch.get_rng_state()
    DRAWING[name](a, b, generator())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    a, b = draw(20, 4, 1), draw(20, 4, 2)
    spoilt = a.clone()
    spoilt[3, 1] = bad
    with pytest.raises(ValueError, match=r"^features: 1 of 20 samples hold NaN or infinity, the first at index 3"):
        COMPARING[name](spoilt, b)
    with pytest.raises(ValueError, match=r"^reference: 1 of 20"):
        COMPARING[name](a, spoilt)
    with pytest.raises(ValueError, match="index 3"):
        diversity(spoilt, generator=generator())


@pytest.mark.parametrize("name", COMPARING)
def test_wrong_shapes_are_refused_by_name(name: str) -> None:
    a, metric = draw(20, 4, 1), COMPARING[name]
    with pytest.raises(ValueError, match=r"features must be .* \(N, D\), got torch.float64 \(20, 4, 1\)"):
        metric(a[..., None], a)
    with pytest.raises(ValueError, match=r"reference must be .* got torch.int64"):
        metric(a, a.long())
    with pytest.raises(ValueError, match="same feature network"):
        metric(a, a[:, :3])
    with pytest.raises(TypeError, match=r"features must be a torch.Tensor .* got ndarray"):
        metric(a.numpy(), a)
    with pytest.raises(ValueError, match=r"features must hold at least \d samples, got 1"):
        metric(a[:1], a)


def test_settings_out_of_range_are_refused() -> None:
    a = draw(20, 4, 1)
    with pytest.raises(ValueError, match=r"subset_size must be from 2 to .* 20.*got 1000"):
        kernel_distance(a, a, generator=generator())
    with pytest.raises(ValueError, match="generator is needed"):
        kernel_distance(a, a, subset_size=10)
    with pytest.raises(ValueError, match="generator is needed"):
        precision_recall(a, a)
    with pytest.raises(ValueError, match="degree"):
        kernel_distance(a, a, degree=0, subset_size=None)
    with pytest.raises(ValueError, match="degree"):
        squared_mmd(a, a, degree=0)
    with pytest.raises(ValueError, match="num above k"):
        precision_recall(a, a, k=5, num=5)
    with pytest.raises(ValueError, match="at least 21 samples, got 20"):
        precision_recall(a, a, k=20, num=None)
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        diversity(a, pairs=0, generator=generator())
    with pytest.raises(ValueError, match="counts must be 20 numbers"):
        moments(a, torch.ones(3))
    with pytest.raises(ValueError, match="symmetric"):
        Moments(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="shapes"):
        Moments(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="NaN"):
        Moments(torch.zeros(2), torch.eye(2) * math.nan)
