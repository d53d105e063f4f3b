"""The feature network: invariance, storage, refusals, training, and the official checkpoint's shapes."""

from __future__ import annotations

import dataclasses
import math
import re
import signal
from pathlib import Path

import pytest
import torch
from helpers import generator, other_hands, random_pairs, rigidly_moved
from torch import Tensor

from interhand_prior import TwoHands
from interhand_prior.canonical import SLICES, to_canonical
from interhand_prior.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from interhand_prior.hands import open_hands
from interhand_prior.metrics import features as features_module
from interhand_prior.metrics.augmentation import Augmentation, PointDraws
from interhand_prior.metrics.feature_targets import ALL_TARGETS, all_targets, pose_pairs, target_moments
from interhand_prior.metrics.features import (
    TARGET_SIZE,
    TARGETS,
    FeatureNetwork,
    NetworkConfig,
    canonical_points,
    load_feature_network,
    official_key,
    split_hands,
    targets,
    vector_points,
)
from interhand_prior.metrics.pair_reader import Frame, PairReaderConfig, Reading
from interhand_prior.metrics.regression import regression_errors
from interhand_prior.metrics.train_features import FeatureTask, main, train_features
from interhand_prior.pointnet2 import PAPER, Level, PointNet2Config, Scale
from interhand_prior.rotations import axis_angle_to_matrix, rot6d_to_matrix
from interhand_prior.train import TrainConfig
from interhand_prior.train.data import Vectors, to_vectors
from interhand_prior.train.log import read_log
from interhand_prior.train.task import map_tensors
from interhand_prior.train.trainer import Trainer

TINY = PointNet2Config(
    channels=2,
    levels=(Level(16, (Scale(0.3, 8, (6, 8)),)), Level(6, (Scale(0.8, 4, (8, 10)),))),
    pooled=(12, 24),
    head=(16, 8),
    local_norm=False,
    absolute=True,
)
READER = PairReaderConfig(
    locator_centres=12, hand_centres=14, surface=5, locator=8, estimate=10, refine=9, hand=6, relation=4, head=(16, 8)
)
KINDS = {"pointnet2": TINY, "reader": READER}
CONFIG = TrainConfig(
    steps=6, batch_size=4, lr=1e-2, warmup=1, log_every=2, val_every=3, max_val=4, ema_warmup=1, amp="off",
    weights="float32",
)  # fmt: skip


def make(config: NetworkConfig = TINY, seed: int = 0) -> FeatureNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FeatureNetwork(config, torch.linspace(-1, 1, TARGET_SIZE), torch.linspace(0.5, 2, TARGET_SIZE))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
        return network


@pytest.fixture(scope="module", params=KINDS)
def network(request: pytest.FixtureRequest) -> FeatureNetwork:
    return make(KINDS[request.param])


@pytest.fixture(scope="module")
def pairs() -> TwoHands:
    return random_pairs(12, seed=3)


# -- features


def test_features_do_not_change_under_a_rigid_motion(network: FeatureNetwork, pairs: TwoHands) -> None:
    rotation = axis_angle_to_matrix(torch.tensor([0.4, -1.9, 0.7], dtype=torch.float64))
    moved = rigidly_moved(pairs, rotation, torch.tensor([3.0, -20.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(network(moved), network(pairs), atol=2e-5, rtol=0)
    assert network(pairs).std(0).max() > 1e-3  # and they do change with the pair


def test_features_are_those_of_the_vertices_about_the_left_knuckle(network: FeatureNetwork, pairs: TwoHands) -> None:
    left, right = pairs.vertices()
    rotation = axis_angle_to_matrix(pairs.left.global_orient)
    origin = pairs.joints()[0][:, 4:5]
    points = (torch.cat((left, right), 1) - origin) @ rotation
    found, side = canonical_points(pairs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, points.float(), atol=1e-6, rtol=0)
    assert side.tolist() == [0] * 778 + [1] * 778
    kept = network.chosen(1556)
    assert sorted(kept.tolist()) == list(range(1556))
    with torch.no_grad():
        assert torch.equal(network.embed(found[:, kept], side[kept]), network(pairs))
        each_its_own = network.embed(found[:, kept], side[kept].expand(len(found), -1))
    torch.testing.assert_close(each_its_own, network(pairs), atol=1e-5, rtol=0)


def test_fewer_vertices_may_be_read(pairs: TwoHands, tmp_path: Path) -> None:
    whole, fewer = make(), make()
    fewer.points = 300
    kept = fewer.chosen(1556)
    assert torch.equal(kept, whole.chosen(1556)[:300])
    assert torch.equal(fewer.chosen(200), whole.chosen(200))
    points, side = canonical_points(pairs)
    with torch.no_grad():
        assert torch.equal(fewer(pairs), whole.embed(points[:, kept], side[kept]))
    assert fewer.identity != whole.identity
    fewer.save(tmp_path)
    assert FeatureNetwork.from_folder(tmp_path).identity == fewer.identity
    with pytest.raises(ValueError, match="points must be at least 1"):
        FeatureNetwork(TINY, points=0)


def test_the_right_hand_as_the_anchor_gives_the_mirrored_pair(pairs: TwoHands) -> None:
    anchor, partner, _ = to_canonical(pairs, pairs.model, "right")
    mirrored, _ = vector_points(anchor, partner, pairs.model)
    torch.testing.assert_close(mirrored, canonical_points(pairs.mirrored())[0], atol=1e-6, rtol=0)


def test_a_pairs_features_do_not_depend_on_its_batch(network: FeatureNetwork, pairs: TwoHands) -> None:
    whole = network(pairs)
    assert torch.equal(whole, network(pairs))
    for size in (1, 5, 12):
        torch.testing.assert_close(network(pairs, batch_size=size), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(pairs[[7]])[0], whole[7], atol=1e-5, rtol=1e-5)
    assert torch.equal(network(pairs.reshape(3, 4)), network(pairs).reshape(3, 4, 8))
    assert network(pairs[:0]).shape == (0, 8)


def test_features_are_in_float32_without_gradient_for_any_input(network: FeatureNetwork, pairs: TwoHands) -> None:
    half = network(pairs.to(torch.float32).map(lambda v: v.requires_grad_()), progress=False)
    assert half.dtype == torch.float32
    assert not half.requires_grad
    torch.testing.assert_close(half, network(pairs), atol=1e-3, rtol=1e-3)


def test_another_hand_model_gives_its_own_points(network: FeatureNetwork, pairs: TwoHands) -> None:
    other = TwoHands(pairs.left, pairs.right, other_hands())
    assert not torch.allclose(network(other), network(pairs))
    torch.testing.assert_close(network(TwoHands(pairs.left, pairs.right, open_hands())), network(pairs))


@pytest.mark.parametrize("count", [2, 3, 50, 2000])
def test_any_number_of_points_will_do(network: FeatureNetwork, count: int) -> None:
    points = 0.1 * torch.randn(2, count, 3, generator=generator())
    points.requires_grad_()
    found = network.embed(points, torch.arange(count) % 2)
    assert found.shape == (2, network.dimension)
    found.square().sum().backward()
    assert torch.isfinite(points.grad).all()


def test_the_side_matters(network: FeatureNetwork, pairs: TwoHands) -> None:
    points, side = canonical_points(pairs)
    with torch.no_grad():
        assert not torch.allclose(network.embed(points, side), network.embed(points, 1 - side))


def test_the_regression_follows_the_features(network: FeatureNetwork, pairs: TwoHands) -> None:
    points, side = canonical_points(pairs)
    with torch.no_grad():
        wanted = network.regressor(network.embed(points, side).relu())
        assert torch.equal(network.regress(points, side), wanted)
    assert wanted.shape == (12, TARGET_SIZE)


def test_hands_are_told_apart() -> None:
    points = torch.randn(2, 7, 3, generator=generator())
    left, right, mean = split_hands(points, torch.tensor([0, 1, 1, 0, 1, 0, 0]))
    assert torch.equal(left, points[:, [0, 3, 5, 6]])
    assert torch.equal(right, points[:, [1, 2, 4]])
    torch.testing.assert_close(mean, right.mean(1))
    side = torch.tensor([[0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1, 1]])
    left, right, mean = split_hands(points, side)
    for i in range(2):
        for label, hand in ((0, left), (1, right)):
            own = points[i][side[i] == label]
            assert {tuple(p) for p in hand[i].tolist()} == {tuple(p) for p in own.tolist()}
        torch.testing.assert_close(mean[i], points[i][side[i] == 1].mean(0))


def test_targets(pairs: TwoHands) -> None:
    anchor, partner, _ = to_canonical(pairs, pairs.model)
    found = targets(anchor, partner)
    mirror = torch.tensor([1.0, -1, -1]).repeat(15)
    assert torch.equal(found[:, TARGETS["left_pose"]], pairs.left.hand_pose * mirror)
    assert torch.equal(found[:, TARGETS["right_pose"]], pairs.right.hand_pose)
    assert torch.equal(found[:, TARGETS["rot6d"]], partner[:, 55:61])
    assert torch.equal(found[:, TARGETS["transl"]], partner[:, 61:])
    assert sum(group.stop - group.start for group in TARGETS.values()) == TARGET_SIZE == found.shape[1]


def test_wrong_input_is_refused(network: FeatureNetwork, pairs: TwoHands) -> None:
    points, side = torch.zeros(2, 5, 3), torch.zeros(5, dtype=torch.int64)
    for wrong, match in (
        (side[:4], "side"),
        (side.expand(3, -1), "side"),
        (side + 2, "0 .left. to 1"),
        (side - 1, "-1"),
    ):
        with pytest.raises(ValueError, match=match):
            network.embed(points, wrong)
    with pytest.raises(ValueError, match="points must have shape"):
        network.embed(points[0], side)
    with pytest.raises(ValueError, match="NaN"):
        network.embed(points + torch.nan, side)
    with pytest.raises(TypeError, match="integers"):
        network.embed(points, side.float())
    for one_hand in (side, side + 1, torch.stack((torch.arange(5) % 2, side))):
        with pytest.raises(ValueError, match="both hands"):
            make(READER).embed(points, one_hand)
    with pytest.raises(TypeError, match="TwoHands"):
        network(points)
    training = make().train()
    with pytest.raises(RuntimeError, match="eval"):
        training(pairs)
    with pytest.raises(RuntimeError, match="eval"):
        training.embed(points, side)
    for mean, std in ((torch.zeros(3), torch.ones(4)), (torch.zeros(2, 2), torch.ones(2, 2))):
        with pytest.raises(ValueError, match="one shape"):
            FeatureNetwork(TINY, mean, std)
    with pytest.raises(ValueError, match="std positive"):
        FeatureNetwork(TINY, torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))


# -- storage


def test_a_stored_network_gives_the_same_features(network: FeatureNetwork, pairs: TwoHands, tmp_path: Path) -> None:
    network.info["note"] = "a test"
    network.save(tmp_path / "a")
    found = FeatureNetwork.from_folder(tmp_path / "a")
    assert torch.equal(found(pairs), network(pairs))
    assert found.identity == network.identity
    assert found.info == network.info
    assert found.config == network.config
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_half_precision_is_for_matrices_only(network: FeatureNetwork, pairs: TwoHands, tmp_path: Path) -> None:
    network.save(tmp_path, dtype=torch.float16)
    stored = read_checkpoint(tmp_path, kind="feature network")[1]
    assert stored["regressor.weight"].dtype == torch.float16
    assert {stored[name].dtype for name in stored if stored[name].ndim < 2} <= {torch.float32, torch.int64}
    found = load_feature_network(tmp_path)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert found.identity != network.identity
    torch.testing.assert_close(found(pairs), network(pairs), atol=0.1, rtol=0.1)


def test_the_identity_tells_networks_apart() -> None:
    first = make()
    assert first.identity == make().identity
    assert re.fullmatch("[0-9a-f]{64}", first.identity)
    assert first.identity != make(seed=1).identity
    changed = make()
    changed.backbone.head.norms[0].running_mean[0] += 1e-6
    assert first.identity != changed.identity
    assert first.identity != make(dataclasses.replace(TINY, scale=11.0)).identity
    assert len({first.identity, make(READER).identity, make(READER, seed=1).identity}) == 3


def test_what_is_no_feature_network_is_refused(tmp_path: Path) -> None:
    network = make()
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_feature_network(tmp_path / "none")
    tensors = network.state_dict()
    config = {"network": TINY.as_dict(), "points": None, "targets": TARGET_SIZE, "info": {}}
    write_checkpoint(tmp_path / "kind", config, tensors)
    with pytest.raises(CheckpointError, match="not a 'feature network'"):
        load_feature_network(tmp_path / "kind")
    wide = {**config, "network": dataclasses.replace(TINY, head=(16, 9)).as_dict()}
    short = {k: v for k, v in tensors.items() if k != "std"}
    cases = {"shape": (wide, tensors), "missing": (config, short), "config": ({"network": {}}, tensors)}
    cases["targets"] = ({**config, "targets": 7}, tensors)
    strange = {**READER.as_dict(), "more": 1}
    cases["reader"] = ({**config, "network": strange}, tensors)
    cases["points"] = ({**config, "points": -1}, tensors)
    for name, (header, weights) in cases.items():
        write_checkpoint(tmp_path / name, header, weights, kind="feature network")
        with pytest.raises(CheckpointError, match="does not fit together"):
            load_feature_network(tmp_path / name)


def test_the_bundled_network(pairs: TwoHands) -> None:
    bundled = load_feature_network()
    assert bundled(pairs[:2]).shape == (2, bundled.dimension)
    size = sum(p.stat().st_size for p in features_module.BUNDLED_FOLDER.iterdir())
    assert size < 5 * 2**20


# -- the official checkpoint

_MLPS = (("sa1", "conv_blocks", "bn_blocks"), ("sa2", "conv_blocks", "bn_blocks"))


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official feature network's tensors, from its widths."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(linear: str, norm: str, inputs: int, width: int, ones: int) -> None:
        shapes[f"{linear}.weight"] = (width, inputs, *(1,) * ones)
        shapes[f"{linear}.bias"] = (width,)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{leaf}"] = (width,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    scales = {
        "sa1": (5, ((32, 32, 64), (64, 64, 128), (64, 96, 128))),
        "sa2": (323, ((64, 64, 128), (128, 128, 256), (128, 128, 256))),
    }
    for name, (inputs, blocks) in scales.items():
        for i, widths in enumerate(blocks):
            for j, width in enumerate(widths):
                before = inputs if j == 0 else widths[j - 1]
                layer(f"{name}.conv_blocks.{i}.{j}", f"{name}.bn_blocks.{i}.{j}", before, width, 2)
    for j, (before, width) in enumerate(((643, 256), (256, 512), (512, 2048))):
        layer(f"sa3.mlp_convs.{j}", f"sa3.mlp_bns.{j}", before, width, 2)
    layer("fc1", "bn1", 2048, 2048, 0)
    layer("fc2", "bn2", 2048, 256, 0)
    shapes |= {"fc3.weight": (99, 256), "fc3.bias": (99,)}
    return shapes


def test_the_official_checkpoint_loads_by_renaming() -> None:
    shapes = official_shapes()
    assert len(shapes) == 163
    learnable = [s for k, s in shapes.items() if not re.search("running|num_batches", k)]
    assert sum(torch.Size(s).numel() for s in learnable) == 6_358_051
    draw = generator()
    theirs = {
        k: torch.rand(s, generator=draw) if "num_batches" not in k else torch.tensor(3) for k, s in shapes.items()
    }
    network = FeatureNetwork(PAPER)
    own = {"mean": network.mean, "std": network.std}
    names = {name: official_key(name) for name in network.state_dict() if name not in own}
    assert sorted(names.values()) == sorted(shapes)
    network.load_state_dict(own | {ours: theirs[name] for ours, name in names.items()})
    for ours, name in names.items():
        assert torch.equal(network.state_dict()[ours].flatten(), theirs[name].flatten()), name
    with pytest.raises(KeyError):
        official_key("mean")


def test_the_papers_network_takes_two_hands() -> None:
    network = FeatureNetwork(PAPER)
    points = 0.05 * torch.randn(1, 600, 3, generator=generator())
    with torch.no_grad():
        assert network.embed(points, torch.arange(600) % 2).shape == (1, 256)


# -- training


@pytest.mark.parametrize("kind", KINDS)
def test_training_overfits_a_few_pairs(pairs: TwoHands, tmp_path: Path, kind: str) -> None:
    config = dataclasses.replace(CONFIG, steps=50, batch_size=6, lr=2e-2, val_every=50, ema=0.8)
    few = pairs[:3]
    augmentation = Augmentation(least_share=0.8, most_share=1.0)
    train_features(few, config, tmp_path, val_pairs=few, network=KINDS[kind], augmentation=augmentation)
    lines = read_log(tmp_path / "log.csv")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    last = [line for line in lines if "val_loss" in line][-1]
    assert {"val_left_pose_deg", "val_rotation_deg", "val_transl_mm", "val_r2_transl"} <= last.keys()
    assert ({"val_left_joints_mm", "val_r2_nearness"} <= last.keys()) == (kind == "reader")
    assert last["val_r2_transl"] > 0.2


def stop_after(count: int) -> object:
    left = iter(range(count))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_and_resuming_changes_no_bit(pairs: TwoHands, tmp_path: Path, kind: str) -> None:
    def go(name: str, **options: object) -> FeatureNetwork:
        return train_features(pairs, CONFIG, tmp_path / name, network=KINDS[kind], **options)  # type: ignore[arg-type]

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    whole = go("whole")
    assert torch.equal(torch.rand(2), expected)  # the global generator was not touched
    go("parts", should_stop=stop_after(2))
    torch.manual_seed(77)
    parts = go("parts", resume=True)
    assert whole.identity == parts.identity
    assert whole.info["steps"] == 6
    states = [read_checkpoint(tmp_path / n / "state", kind="training state")[1] for n in ("whole", "parts")]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    with pytest.raises(CheckpointError, match="augmentation"):
        go("parts", resume=True, augmentation=Augmentation(jitter=0.5))
    with pytest.raises(FileExistsError, match="resume"):
        go("parts")


def test_the_augmentation() -> None:
    points, side = torch.randn(3, 100, 3, generator=generator()), torch.arange(100)

    def apply(augmentation: Augmentation, seed: int) -> tuple[Tensor, Tensor]:
        return augmentation(points, side, augmentation.draw(3, 100, generator(seed)))

    counts = []
    for seed in range(30):
        found, kept = apply(Augmentation(0.4, 0.9, 0.0), seed)
        assert torch.equal(found, points[:, kept])
        assert len(set(kept.tolist())) == len(kept)
        counts.append(len(kept))
    assert 40 <= min(counts) < 50
    assert 80 < max(counts) <= 90
    augmentation = Augmentation(1.0, 1.0, 0.01)
    draws = augmentation.draw(3, 100, generator(1))
    moved, kept = augmentation(points, side, draws)
    assert len(kept) == 100
    assert 0.008 < float((moved - points[:, kept]).std()) < 0.012
    part, _ = augmentation(points[1:], side, PointDraws(*(value[1:] for value in draws)))
    assert torch.equal(part, moved[1:])
    for wrong in ((0.0, 0.5, 0.0), (0.5, 1.1, 0.0), (0.6, 0.5, 0.0), (0.5, 1.0, -1.0), (0.5, 1.0, float("nan"))):
        with pytest.raises(ValueError, match="least_share"):
            Augmentation(*wrong)


class Oracle(FeatureNetwork):
    """Regresses what it is told to, in the order of the calls."""

    def __init__(self, answers: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__(TINY, mean, std)
        self.answers = answers

    def regress(self, points: Tensor, side: Tensor) -> Tensor:
        taken, self.answers = self.answers[: len(points)], self.answers[len(points) :]
        return taken


def test_regression_errors_in_physical_units(pairs: TwoHands) -> None:
    vectors = to_vectors([pairs], mirror=True)
    wanted = targets(vectors.anchor, vectors.partner)
    std, mean = torch.std_mean(wanted, 0)
    exact = (wanted - mean) / std
    errors = regression_errors(Oracle(exact, mean, std), vectors, open_hands())
    for name in ("left_pose_deg", "right_pose_deg", "rotation_deg", "transl_mm", "loss"):
        assert errors[name] == pytest.approx(0, abs=0.05), name
    for name in TARGETS:
        assert errors[f"r2_{name}"] == pytest.approx(1, abs=1e-5)
    moved = wanted.clone()
    moved[:, 96:] += torch.tensor([0.003, 0.0, 0.004])
    errors = regression_errors(Oracle((moved - mean) / std, mean, std), vectors, open_hands())
    assert errors["transl_mm"] == pytest.approx(5, abs=1e-3)
    means = regression_errors(Oracle(torch.zeros_like(exact), mean, std), vectors, open_hands())
    assert means["r2_left_pose"] == pytest.approx(0, abs=1e-5)
    assert means["rotation_deg"] > 10


def test_joint_errors_in_physical_units(pairs: TwoHands) -> None:
    vectors = to_vectors([pairs], mirror=True)
    wanted = all_targets(*vectors_of(vectors), pose_pairs(*vectors_of(vectors), open_hands()))
    mean, std = target_moments(wanted)
    exact = ((wanted - mean) / std).float()
    errors = regression_errors(Oracle(exact, mean, std), vectors, open_hands())
    for name in ALL_TARGETS:
        assert errors[f"r2_{name}"] == pytest.approx(1, abs=1e-5)
    wanted[:, ALL_TARGETS["left_joints"]] += torch.tensor([0.0, 0.003, -0.004]).repeat(21)
    errors = regression_errors(Oracle(((wanted - mean) / std).float(), mean, std), vectors, open_hands())
    assert errors["left_joints_mm"] == pytest.approx(5, abs=1e-3)
    for name in ("right_joints_mm", "placed_joints_mm"):
        assert errors[name] == pytest.approx(0, abs=1e-3)


def vectors_of(vectors: Vectors) -> tuple[Tensor, Tensor]:
    return vectors.anchor, vectors.partner


def test_the_loss_weighs_the_groups_equally(pairs: TwoHands) -> None:
    task = FeatureTask(TINY, [pairs], [], CONFIG, Augmentation(1.0, 1.0, 0.0))
    vectors = to_vectors([pairs], mirror=True)
    assert task.count == 24
    assert task.validate(task.network) == {}
    rows = torch.tensor([3, 17])
    wanted = (targets(vectors.anchor, vectors.partner)[rows] - task.network.mean) / task.network.std
    answers = wanted.clone()
    answers[:, TARGETS["transl"]] += 2.0
    oracle = Oracle(answers, task.network.mean, task.network.std)
    task.network = oracle
    draws = task.draw(2, generator())
    assert float(task.loss(rows, draws)) == pytest.approx(1.0)  # 2^2 on one group of four


def test_the_loss_is_a_mean_over_samples(pairs: TwoHands) -> None:
    """So that parts of a batch may be computed one by one."""
    task = FeatureTask(READER, [pairs], [], CONFIG)
    rows, draws = torch.tensor([3, 17, 5, 8]), task.draw(4, generator())
    with torch.no_grad():
        whole = task.loss(rows, draws)
        halves = [task.loss(rows[part], map_tensors(lambda v, p=part: v[p], draws)) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole, atol=1e-5, rtol=1e-5)


def test_the_reader_is_taught_the_truth(pairs: TwoHands) -> None:
    """A reader that finds everything on its way has no loss there."""
    task = FeatureTask(READER, [pairs], [], CONFIG, Augmentation(1.0, 1.0, 0.0))
    rows = torch.tensor([2, 20])
    anchor, partner = task.vectors.anchor[rows], task.vectors.partner[rows]
    posed = pose_pairs(anchor, partner, task.hands)
    rotation, origin = rot6d_to_matrix(partner[:, SLICES["rot6d"]]), partner[:, SLICES["transl"]]
    turn = axis_angle_to_matrix(torch.tensor([[0.1, 0.0, 0.2], [0.0, -0.3, 0.0]]))
    read_in = Frame(rotation @ turn, origin + 0.01)
    left, right = task._keypoints(posed)
    assert left.shape == right.shape == (2, READER.keypoints, 3)
    found = torch.cat((left, (right - read_in.origin[:, None]) @ read_in.rotation))
    perfect = Reading(torch.empty(0), rotation, origin, read_in, (found, found))
    assert float(task._way(perfect, posed, Frame(rotation, origin))) == pytest.approx(0, abs=1e-6)
    off = perfect._replace(origin=origin + torch.tensor([0.0, 0.01, 0.0]))
    assert float(task._way(off, posed, Frame(rotation, origin))) == pytest.approx(0.03, rel=1e-3)
    off = perfect._replace(keypoints=(found, found + task.network.backbone.keypoint_spread))
    assert float(task._way(off, posed, Frame(rotation, origin))) == pytest.approx(2, rel=1e-3)


def test_the_readers_centres_are_where_hands_are(pairs: TwoHands) -> None:
    task = FeatureTask(READER, [pairs], [], CONFIG)
    backbone = task.network.backbone
    mirrored = torch.tensor([-1.0, 1.0, 1.0])
    hands = pose_pairs(task.vectors.anchor, task.vectors.partner, task.hands).left * mirrored
    assert float(torch.cdist(backbone.hand_centres, hands.flatten(0, 1)).amin(1).max()) < 1e-4
    again = FeatureTask(READER, [pairs], [], CONFIG)
    assert again.network.identity == task.network.identity


# -- targets


def test_all_targets(pairs: TwoHands) -> None:
    anchor, partner, _ = to_canonical(pairs, pairs.model)
    posed = pose_pairs(anchor, partner, pairs.model)
    found = all_targets(anchor, partner, posed)
    assert torch.equal(found[:, :TARGET_SIZE], targets(anchor, partner))
    assert found.shape[1] == max(group.stop for group in ALL_TARGETS.values()) == 330
    left, right = pairs.joints21()
    own = lambda hand, joints: (joints - joints[:, 4:5]) @ axis_angle_to_matrix(hand.global_orient)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    close = lambda name, wanted: torch.testing.assert_close(
        found[:, ALL_TARGETS[name]], wanted.flatten(1).to(found), atol=1e-6, rtol=0
    )
    close("left_joints", own(pairs.left, left) * mirror)
    close("right_joints", own(pairs.right, right))
    close("placed_joints", (right - left[:, 4:5]) @ axis_angle_to_matrix(pairs.left.global_orient))
    vertices = pairs.vertices()
    for i in (0, 7):
        for side, joints in enumerate((left, right)):
            for j in (0, 13, 20):
                apart = float((vertices[1 - side][i] - joints[i, j]).norm(dim=-1).min())
                value = float(found[i, ALL_TARGETS["nearness"]][21 * side + j])
                assert value == pytest.approx(math.exp(-apart / 0.02), abs=1e-5)


def test_targets_moments(pairs: TwoHands) -> None:
    anchor, partner, _ = to_canonical(pairs, pairs.model)
    values = all_targets(anchor, partner, pose_pairs(anchor, partner, pairs.model))
    mean, std = target_moments(values)
    torch.testing.assert_close(mean, values.double().mean(0))
    torch.testing.assert_close(std[:TARGET_SIZE], values[:, :TARGET_SIZE].double().std(0).clamp_min(1e-3))
    for name in ALL_TARGETS.keys() - TARGETS.keys():
        group = std[ALL_TARGETS[name]]
        assert len(set(group.tolist())) == 1
        wanted = values[:, ALL_TARGETS[name]].double().var(0).mean().sqrt()
        assert float(group[0]) == pytest.approx(float(wanted))
    assert len(target_moments(values[:, :TARGET_SIZE])[0]) == TARGET_SIZE


def test_pairs_of_several_models_are_refused(pairs: TwoHands) -> None:
    other = TwoHands(pairs.left, pairs.right, other_hands())
    with pytest.raises(ValueError, match="several hand models"):
        FeatureTask(TINY, [pairs, other], [], CONFIG)
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        FeatureTask(TINY, [pairs], [], dataclasses.replace(CONFIG, batch_size=1))
    with pytest.raises(ValueError, match="at least 2 training pairs"):
        FeatureTask(TINY, [pairs[:1]], [], dataclasses.replace(CONFIG, mirror=False))


def test_the_command(pairs: TwoHands, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs.to(torch.float32).save(tmp_path / "pairs.npz")
    fixed = ["--data", str(tmp_path / "pairs.npz"), "--steps", "1", "--batch-size", "2", "--max-val", "1", "--quiet"]
    assert main([*fixed, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/run/features"
    assert load_feature_network(tmp_path / "run" / "features").info["steps"] == 1
    assert main([*fixed, "--out", str(tmp_path / "run")]) == 1
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*fixed, "--out", str(tmp_path / "x"), "--least-share", "0"])
    assert not (tmp_path / "x").exists()


def test_an_interrupted_command_saves_the_state(
    pairs: TwoHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs.to(torch.float32).save(tmp_path / "pairs.npz")
    out, real = tmp_path / "run", Trainer.step

    def interrupted(self: Trainer) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    fixed = ["--data", str(tmp_path / "pairs.npz"), "--batch-size", "2", "--max-val", "1", "--quiet", "--threads", "1"]
    assert main([*fixed, "--out", str(out), "--steps", "9"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert read_checkpoint(out / "state", kind="training state")[0]["position"]["step"] == 1


def test_both_views_of_a_pair_are_trained_on(pairs: TwoHands) -> None:
    with_mirror = FeatureTask(TINY, [pairs], [], CONFIG)
    assert isinstance(with_mirror.vectors, Vectors)
    assert with_mirror.count == 2 * FeatureTask(TINY, [pairs], [], dataclasses.replace(CONFIG, mirror=False)).count
