"""PointNet++: geometry against naive twins, what the network is invariant to, and its sizes."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from interhand_prior.point_sets import ball_query, farthest_points, squared_distances
from interhand_prior.pointnet2 import (
    COMPACT,
    PAPER,
    Dense,
    Level,
    PointMLP,
    PointNet2,
    PointNet2Config,
    Scale,
)

TINY = PointNet2Config(
    channels=2,
    levels=(Level(12, (Scale(3.0, 8, (5, 6)), Scale(6.0, 12, (4,)))), Level(4, (Scale(9.0, 6, (8, 7)),))),
    pooled=(9, 10),
    head=(8, 5),
)
CONFIGS = {"local_norm": TINY, "pooled_norm": replace(TINY, local_norm=False, absolute=True)}


def make(config: PointNet2Config, dtype: torch.dtype = torch.float64, seed: int = 0) -> PointNet2:
    """With running statistics that are not those of a new network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = PointNet2(config).to(dtype)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.normal_(1, 0.5)
                module.bias.data.normal_(0, 0.3)
    return net.eval()


def cloud(batch: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    points = 0.3 * torch.randn(batch, count, 3, generator=generator(seed), dtype=torch.float64)
    return points.to(dtype), torch.rand(batch, count, 2, generator=generator(seed + 1), dtype=torch.float64).to(dtype)


# -- geometry


def naive_farthest(points: list[list[float]], count: int, start: int | None) -> list[int]:
    square = lambda a, b: sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    if start is None:
        mean = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
        start = max(range(len(points)), key=lambda i: square(points[i], mean))
    chosen = [start]
    while len(chosen) < count:
        gap = [min(square(p, points[c]) for c in chosen) for p in points]
        chosen.append(gap.index(max(gap)))
    return chosen


@given(st.integers(1, 12), st.data())
def test_farthest_points_equal_the_naive_ones(number: int, data: st.DataObject) -> None:
    seed, count = data.draw(st.integers(0, 10_000)), data.draw(st.integers(1, number))
    start = data.draw(st.none() | st.integers(0, number - 1))
    # Integers times a power of two: distances are exact, and there are many ties.
    points = torch.randint(-4, 5, (3, number, 3), generator=generator(seed)).double() / 4
    found = farthest_points(points, count, start)
    for i in range(3):
        mean_is_exact = float((points[i].mean(0) * 4 * number).frac().abs().max()) == 0
        if start is not None or mean_is_exact:
            wanted = naive_farthest(points[i].tolist(), count, start)
            if start is None and found.order[i, 0] != wanted[0]:  # a tie about a rounded mean
                wanted = naive_farthest(points[i].tolist(), count, int(found.order[i, 0]))
            assert found.order[i].tolist() == wanted
    chosen = points.gather(1, found.order[..., None].expand(-1, -1, 3))
    assert torch.equal(found.squared, squared_distances(chosen, points))
    torch.testing.assert_close(found.squared, torch.cdist(chosen, points).square(), atol=1e-12, rtol=0)


def test_the_first_point_is_the_farthest_from_the_mean() -> None:
    points, _ = cloud(20, 50)
    found = farthest_points(points, 1).order[:, 0]
    assert torch.equal(found, (points - points.mean(1, keepdim=True)).norm(dim=-1).argmax(1))


def test_a_farthest_sequence_is_nested() -> None:
    points, _ = cloud(4, 60)
    order = farthest_points(points, 30).order
    chosen = points.gather(1, order[..., None].expand(-1, -1, 3))
    assert torch.equal(farthest_points(points, 9).order, order[:, :9])
    assert torch.equal(farthest_points(chosen, 9, start=0).order, torch.arange(9).expand(4, 9))


def test_farthest_points_do_not_depend_on_the_batch_or_the_generator() -> None:
    points, _ = cloud(7, 300, dtype=torch.float32)
    whole = farthest_points(points, 64)
    torch.manual_seed(1)
    for i in range(7):
        alone = farthest_points(points[i : i + 1], 64)
        assert torch.equal(alone.order[0], whole.order[i])
        assert torch.equal(alone.squared[0], whole.squared[i])


def test_repeated_points_are_drawn_again_when_there_are_no_others() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]])[None]
    assert farthest_points(points, 4, start=1).order.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 5 points"):
        farthest_points(torch.zeros(1, 5, 3), count)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 10_000), st.sampled_from([0.25, 0.5, 1.0, 2.0, 9.0]))
def test_ball_query_equals_the_naive_one(number: int, neighbours: int, seed: int, radius: float) -> None:
    points = torch.randint(-4, 5, (2, number, 3), generator=generator(seed)).double() / 4
    squared = squared_distances(points, points)  # on the boundary too, exactly
    found = ball_query(squared, radius, neighbours)
    for b in range(2):
        for i in range(number):
            inside = [j for j in range(number) if math.dist(points[b, i], points[b, j]) <= radius][:neighbours]
            assert found[b, i].tolist() == inside + inside[:1] * (neighbours - len(inside))


@pytest.mark.parametrize("far", [5.0, torch.nan])
def test_an_empty_ball_is_refused(far: float) -> None:
    squared = torch.tensor([[[0.0, 4.0], [far, far]]])
    with pytest.raises(ValueError, match="holds no point"):
        ball_query(squared, 1.0, 3)


def test_no_clouds_give_no_balls() -> None:
    assert ball_query(torch.empty(0, 4, 9), 1.0, 3).shape == (0, 4, 3)


# -- the network against one written out


def naive_network(net: PointNet2, points: Tensor, channels: Tensor) -> Tensor:
    """One cloud (N, 3), (N, C), level by level and centre by centre, with torch's own batch norm."""
    config = net.config

    def layers(mlp: PointMLP, x: Tensor, relu: bool) -> Tensor:
        for i, linear in enumerate(mlp.linears):
            x = linear(x)
            x = mlp.norms[i](x) if len(mlp.norms) else x
            x = x.relu() if relu or i + 1 < len(mlp.linears) else x
        return x

    points = config.scale * points
    features = torch.cat((channels, points), -1) if config.absolute else channels
    start: int | None = None
    for level, groupings in zip(config.levels, net.levels, strict=True):
        order = naive_farthest(points.tolist(), min(level.centres, len(points)), start)
        rows = []
        for i in order:
            parts = []
            for scale, grouping in zip(level.scales, groupings, strict=True):
                inside = ((points - points[i]).square().sum(-1) <= scale.radius**2).nonzero()[:, 0][: scale.neighbours]
                group = torch.cat((features[inside], points[inside] - points[i]), -1)
                if config.local_norm:
                    parts.append(layers(grouping.mlp, group, True).amax(0))
                else:
                    parts.append(grouping.norm(layers(grouping.mlp, group, False).amax(0)[None])[0].relu())
            rows.append(torch.cat(parts))
        points, features, start = points[order], torch.stack(rows), 0
    whole = layers(net.pool, torch.cat((points, features), -1), True).amax(0, keepdim=True)
    return layers(net.head, whole, False)[0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", [40, 7, 1])
def test_the_network_equals_one_written_out(name: str, count: int) -> None:
    net = make(CONFIGS[name])
    points, channels = cloud(3, count)
    with torch.no_grad():
        found = net(points, channels)
        wanted = torch.stack([naive_network(net, p, c) for p, c in zip(points, channels, strict=True)])
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_mode_has_the_batchs_statistics(name: str) -> None:
    """With running statistics replaced by those of this very batch, evaluation gives what training gave."""
    net = make(CONFIGS[name])
    points, channels = cloud(6, 40)
    trained = copy.deepcopy(net).train()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        wanted = trained(points, channels)
        for module in trained.modules():
            if isinstance(module, torch.nn.BatchNorm1d):  # the running variance is the unbiased one
                count = _rows(module, trained, len(points), points.shape[1])
                module.running_var *= (count - 1) / count
        found = trained.eval()(points, channels)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def _rows(norm: torch.nn.BatchNorm1d, net: PointNet2, batch: int, count: int) -> int:
    """How many rows a batch norm saw."""
    for level, groupings in zip(net.config.levels, net.levels, strict=True):
        for scale, grouping in zip(level.scales, groupings, strict=True):
            if norm is grouping.norm:
                return batch * min(level.centres, count)
            if any(norm is own for own in grouping.mlp.norms):
                return batch * min(level.centres, count) * scale.neighbours
    if any(norm is own for own in net.pool.norms):
        return batch * min(net.config.levels[-1].centres, count)
    return batch


# -- invariance


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_of_points_does_not_matter_while_the_balls_are_not_full(name: str) -> None:
    roomy = tuple(
        replace(level, scales=tuple(replace(s, neighbours=40) for s in level.scales)) for level in TINY.levels
    )
    net = make(replace(CONFIGS[name], levels=roomy))
    points, channels = cloud(3, 40)
    order = torch.randperm(40, generator=generator(5))
    with torch.no_grad():
        torch.testing.assert_close(net(points, channels), net(points[:, order], channels[:, order]), atol=1e-10, rtol=0)
    full = make(CONFIGS[name])
    with torch.no_grad():
        assert not torch.allclose(full(points, channels), full(points[:, order], channels[:, order]))


@pytest.mark.parametrize("name", CONFIGS)
def test_grouping_does_not_see_where_the_cloud_is(name: str) -> None:
    net = make(CONFIGS[name])
    points, channels = cloud(3, 40)
    shift = torch.tensor([0.7, -2.0, 1.1], dtype=torch.float64)
    seen = []
    for moved in (points, points + shift):
        order, squared = farthest_points(moved, 12)
        centres = moved.gather(1, order[..., None].expand(-1, -1, 3))
        with torch.no_grad():
            features = F.pad(channels, (0, 3 * net.config.absolute))
            seen.append(net.levels[0][0](moved, features, centres, squared))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-10, rtol=0)
    with torch.no_grad():  # the last level does
        assert not torch.allclose(net(points, channels), net(points + shift, channels))


@pytest.mark.parametrize("config", [*CONFIGS.values(), COMPACT], ids=[*CONFIGS, "compact"])
def test_a_clouds_features_do_not_depend_on_its_batch(config: PointNet2Config) -> None:
    net = make(config, torch.float32)
    points, channels = cloud(5, 150, dtype=torch.float32)
    with torch.no_grad():
        whole = net(points, channels)
        assert torch.equal(whole, net(points, channels))
        for size in (1, 2):
            parts = [net(points[i : i + size], channels[i : i + size]) for i in range(0, 5, size)]
            torch.testing.assert_close(torch.cat(parts), whole, atol=2e-5, rtol=1e-5)
        strange = torch.cat((points[:1], 100 * points[1:2]))
        torch.testing.assert_close(net(strange, channels[:2])[0], whole[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_gradients(name: str, training: bool) -> None:
    """Of points, channels and every weight; `fast_mode` checks them along random directions."""
    small = (Level(4, (Scale(6.0, 5, (3, 4)), Scale(2.0, 3, (7, 2)))),)
    net = make(replace(CONFIGS[name], levels=small, pooled=(5,), head=(3,))).train(training)
    names, values = zip(*net.named_parameters(), strict=True)
    inputs = [v.detach().clone().requires_grad_() for v in (*cloud(3, 7), *values)]
    function = lambda p, c, *v: torch.func.functional_call(net, dict(zip(names, v, strict=True)), (p, c))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_half_precision_points_and_points_far_from_the_network_are_taken() -> None:
    net = make(TINY, torch.float32)
    points, channels = cloud(2, 30, dtype=torch.float32)
    with torch.no_grad():
        assert net(points.double(), channels.double()).dtype == torch.float32
        assert net(points[:0], channels[:0]).shape == (0, 5)


def test_without_channels() -> None:
    net = make(replace(TINY, channels=0))
    points, _ = cloud(2, 30)
    with torch.no_grad():
        assert torch.equal(net(points), net(points, points[..., :0]))


# -- refusals


@pytest.mark.parametrize(
    ("points", "channels", "match"),
    [
        (torch.zeros(2, 5, 2), torch.zeros(2, 5, 2), r"points must have shape \(B, N, 3\)"),
        (torch.zeros(2, 0, 3), torch.zeros(2, 0, 2), r"N >= 1, got \(2, 0, 3\)"),
        (torch.zeros(5, 3), torch.zeros(5, 2), "points must have shape"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), r"channels must have shape \(2, 5, 2\), got \(2, 5, 3\)"),
        (torch.zeros(2, 5, 3), None, "got None"),
        (torch.full((2, 5, 3), torch.nan), torch.zeros(2, 5, 2), "NaN or infinity"),
    ],
)
def test_wrong_input_is_refused(points: Tensor, channels: Tensor | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(TINY)(points, channels)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"channels": -1}, "channels"),
        ({"levels": ()}, "levels is empty"),
        ({"levels": TINY.levels[::-1]}, "more centres"),
        ({"pooled": ()}, "pooled"),
        ({"head": (4, 0)}, "head"),
        ({"scale": 0.0}, "scale"),
    ],
)
def test_wrong_sizes_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_wrong_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="radius"):
        Scale(0.0, 3, (4,))
    with pytest.raises(ValueError, match="neighbours"):
        Scale(1.0, 0, (4,))
    with pytest.raises(ValueError, match="scales is empty"):
        Level(3, ())


# -- configurations


@pytest.mark.parametrize("config", [COMPACT, PAPER, TINY], ids=["compact", "paper", "tiny"])
def test_sizes_go_through_json(config: PointNet2Config) -> None:
    values = config.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert PointNet2Config.from_dict(values) == config
    for broken in ({**values, "more": 1}, {k: v for k, v in values.items() if k != "head"}, {**values, "levels": [3]}):
        with pytest.raises(ValueError, match="not the configuration"):
            PointNet2Config.from_dict(broken)


def test_a_convolutions_weights_load_as_a_linear_layers() -> None:
    conv, dense = torch.nn.Conv2d(4, 6, 1), Dense(4, 6)
    dense.load_state_dict(conv.state_dict())
    x = torch.randn(2, 5, 7, 4, generator=generator())
    torch.testing.assert_close(dense(x), conv(x.movedim(-1, 1)).movedim(1, -1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        dense.load_state_dict(torch.nn.Conv2d(4, 6, 3).state_dict())
