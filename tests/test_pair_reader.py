"""The pair reader against one written out, and what its features may not depend on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from helpers import generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from interhand_prior.metrics.pair_reader import JOINTS, Frame, PairReader, PairReaderConfig, Taught, around
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d, rot6d_to_matrix

SMALL = PairReaderConfig(
    locator_centres=5, hand_centres=6, surface=3, refinements=2, locator=7, estimate=8, refine=9, hand=4, relation=5,
    head=(11, 6),
)  # fmt: skip


def make(config: PairReaderConfig = SMALL, dtype: torch.dtype = torch.float64) -> PairReader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = PairReader(config).to(dtype)
        for parameter in reader.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return reader.eval()


def clouds(seed: int, count: int = 3, left: int = 40, right: int = 30) -> tuple[Tensor, Tensor]:
    draw = lambda *shape: 0.06 * torch.randn(*shape, 3, generator=generator(seed), dtype=torch.float64)
    return draw(count, left), draw(count, right) + torch.tensor([0.05, -0.1, 0.02], dtype=torch.float64)


def naive_around(points: Tensor, centres: Tensor, length: float) -> Tensor:
    """One cloud (P, 3), centre by centre."""
    found = []
    for centre in centres:
        point = min(points, key=lambda p: float((p - centre).norm()))
        way = (point - centre) / length
        found.append(torch.cat((way / (1 + way.norm() / 3), (-way.norm()).exp()[None])))
    return torch.cat(found)


def naive_reader(reader: PairReader, left: Tensor, right: Tensor) -> Tensor:
    """One pair, (P, 3) and (Q, 3)."""
    mirror = torch.tensor([-1.0, 1, 1], dtype=left.dtype)

    def layers(parts: torch.nn.Sequential, x: Tensor) -> Tensor:
        for i, part in enumerate(parts):
            if i % 3 == 0:
                x = x @ part.weight.T + part.bias
            elif i % 3 == 1:
                x = (x - x.mean()) / (x.var(correction=0) + part.eps).sqrt() * part.weight + part.bias
            else:
                x = x / (1 + (-x).exp())
        return x

    def estimate(estimator: torch.nn.Module, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape, estimator.norm.weight, estimator.norm.bias)
        return estimator.linear(x) + layers(estimator.layers, x)

    mean = right.mean(0)
    found = estimate(reader.locator, naive_around(right - mean, reader.locator_centres, 0.03))
    turn = rot6d_to_matrix(found[:6] + torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=left.dtype))
    origin = mean + 0.03 * found[6:]
    into = lambda points: (points - origin) @ turn
    hands = []
    for points in (left * mirror, into(right)):
        values = estimate(reader.estimator, naive_around(points, reader.hand_centres, 0.02))
        for refine, step in zip(reader.refiners, reader.steps, strict=True):
            centres = reader.keypoint_mean + reader.keypoint_spread * values.view(-1, 3)
            features = F.silu(layers(refine, torch.cat((values, naive_around(points, centres, 0.01)))))
            values = values + step(features)
        hands.append((features, values, reader.keypoint_mean + reader.keypoint_spread * values.view(-1, 3)))
    joints = [hand[2][-JOINTS:] for hand in hands]
    others = ((joints[1] @ turn.T + origin) * mirror, into(joints[0] * mirror))
    parts = []
    for i, crossed in enumerate((right * mirror, into(left))):
        found = (naive_around(crossed, joints[i], 0.02), 15 * joints[i].flatten(), 8 * others[i].flatten())
        parts += [hands[i][0], F.silu(reader.relation(torch.cat(found))), hands[i][1][-3 * JOINTS :]]
    return layers(reader.head, torch.cat((*parts, matrix_to_rot6d(turn), 10 * origin)))


def test_the_reader_equals_one_written_out() -> None:
    reader, (left, right) = make(), clouds(0)
    with torch.no_grad():
        found = reader(left, right)
        wanted = torch.stack([naive_reader(reader, a, b) for a, b in zip(left, right, strict=True)])
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    assert found.std(0).min() > 1e-2


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 1000))
def test_what_is_found_about_centres(number: int, count: int, seed: int) -> None:
    draw = generator(seed)
    points, centres = (torch.randn(20, n, 3, generator=draw, dtype=torch.float64) for n in (number, count))
    found = around(points, centres, 0.7)
    assert found.shape == (20, 4 * count)
    wanted = torch.stack([naive_around(p, c, 0.7) for p, c in zip(points, centres, strict=True)])
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_a_point_at_a_centre_has_a_gradient() -> None:
    points = torch.zeros(1, 2, 3, requires_grad=True)
    around(points, torch.zeros(1, 3, 3), 0.01).sum().backward()
    assert torch.isfinite(points.grad).all()
    assert around(torch.zeros(0, 2, 3), torch.zeros(0, 3, 3), 0.01).shape == (0, 12)


def test_order_and_repetition_of_points_do_not_matter() -> None:
    reader, (left, right) = make(), clouds(1)
    order = torch.randperm(40, generator=generator(2))
    with torch.no_grad():
        wanted = reader(left, right)
        torch.testing.assert_close(reader(left[:, order], right[:, order[order < 30]]), wanted, atol=1e-6, rtol=0)
        repeated = torch.cat((right, right[:, 5:6].expand(-1, 9, -1)), 1)
        torch.testing.assert_close(reader(left, repeated, right.mean(1)), wanted, atol=1e-6, rtol=0)


def test_a_pairs_features_do_not_depend_on_its_batch() -> None:
    reader, (left, right) = make(dtype=torch.float32), clouds(3, count=20)
    left, right = left.float(), right.float()
    with torch.no_grad():
        whole = reader(left, right)
        assert torch.equal(whole, reader(left, right))
        one_by_one = torch.cat([reader(left[i : i + 1], right[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(one_by_one, whole, atol=2e-5, rtol=1e-4)
    assert reader(left[:0], right[:0]).shape == (0, 6)


def test_a_frame_is_read_in_where_it_is_taught() -> None:
    reader, (left, right) = make(), clouds(4)
    free = reader.read(left, right)
    frame = Frame(axis_angle_to_matrix(torch.eye(3, dtype=torch.float64)), right.mean(1))
    taught = reader.read(left, right, taught=Taught(torch.tensor([True, False, True]), frame))
    changed = (taught.features - free.features).abs().amax(1)
    assert changed[1] < 1e-9 < 1e-3 < changed[[0, 2]].min()
    assert torch.equal(taught.rotation, free.rotation)
    assert torch.equal(taught.frame.origin[0], frame.origin[0])
    assert torch.equal(taught.frame.rotation[1], free.rotation[1])


def test_frames_are_inverted() -> None:
    frame = Frame(axis_angle_to_matrix(torch.tensor([[0.3, -1.0, 2.0]])), torch.tensor([[0.1, 0.2, -0.3]]))
    points = torch.randn(1, 5, 3, generator=generator())
    torch.testing.assert_close(frame.out_of(frame.into(points)), points, atol=1e-6, rtol=0)
    torch.testing.assert_close(frame.into(frame.origin[:, None]), torch.zeros(1, 1, 3))


def test_the_whole_way_has_gradients() -> None:
    reader, (left, right) = make(), clouds(5)
    reading = reader.read(left.requires_grad_(), right.requires_grad_())
    total = sum(value.square().sum() for value in (reading.features, reading.rotation, reading.origin))
    (total + sum(k.square().sum() for k in reading.keypoints)).backward()
    for name, value in (*reader.named_parameters(), ("left", left), ("right", right)):
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.abs().max() > 0, name


def test_fitted_centres_are_points_of_hands() -> None:
    reader = make(dtype=torch.float32)
    draw = generator(6)
    hands, turned = (0.05 * torch.randn(4, 30, 3, generator=draw) for _ in range(2))
    keypoints = 0.05 * torch.randn(4, SMALL.keypoints, 3, generator=draw)
    reader.fit(hands, keypoints, turned + 3.0)
    assert torch.cdist(reader.hand_centres, hands.flatten(0, 1)).amin(1).max() < 1e-4
    centred = turned - turned.mean(1, keepdim=True)
    assert torch.cdist(reader.locator_centres, centred.flatten(0, 1)).amin(1).max() < 1e-4
    torch.testing.assert_close(reader.keypoint_mean, keypoints.mean(0))
    units = (keypoints - reader.keypoint_mean) / reader.keypoint_spread
    assert float(units.square().mean()) == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match="between 1 and the 2 points"):
        reader.fit(hands[:1, :2], keypoints, turned)


def test_half_precision_keeps_places() -> None:
    reader, (left, right) = make(dtype=torch.float32), clouds(7)
    left, right = left.float(), right.float()
    with torch.no_grad():
        exact = reader.read(left, right)
        with torch.autocast("cpu", torch.bfloat16):
            rough = reader.read(left, right, taught=Taught(torch.ones(3, dtype=torch.bool), exact.frame))
    torch.testing.assert_close(rough.keypoints[0], exact.keypoints[0], atol=5e-3, rtol=0)
    assert rough.rotation.dtype == torch.float32
    torch.testing.assert_close(rough.rotation.mT @ rough.rotation, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)


def test_sizes_go_through_json() -> None:
    values = SMALL.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert PairReaderConfig.from_dict(values) == SMALL
    for broken in ({**values, "more": 1}, {k: v for k, v in values.items() if k != "hand"}, {**values, "head": 3}):
        with pytest.raises(ValueError, match="not the configuration"):
            PairReaderConfig.from_dict(broken)
    for wrong in ({"hand": 0}, {"surface": -1}, {"head": ()}, {"head": (3, 0)}, {"refinements": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(SMALL, **wrong)
    assert SMALL.features == 6
    assert SMALL.keypoints == 24
