"""Table 2's experiment: pictures against closed forms, what nobody may read, and two arms that differ in one term."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import generator, make_prior, random_pairs
from torch import Tensor

from interhand_prior import HandParams, TwoHands
from interhand_prior.hands import HandPair, open_hands

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import reconstruction as bench
from lifting import learn, measure, network, refine, scenes

NUMBER = 24


@pytest.fixture(scope="module")
def models() -> HandPair:
    return open_hands()


@pytest.fixture(scope="module")
def images(models: HandPair) -> scenes.Images:
    return scenes.film(random_pairs(NUMBER, dtype=torch.float32), models, scenes.WILD, generator())


@pytest.fixture
def lifter(models: HandPair) -> network.Lifter:
    """With heads that say something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = network.Lifter(models, width=32, blocks=1).eval()
        for head in (made.hand, made.join[-1]):
            torch.nn.init.normal_(head.weight, std=0.1)
    return made


# Pictures ------------------------------------------------------------------------------------------------------------


def test_projection_is_a_pinholes() -> None:
    """x / z, and as a homogeneous camera matrix has it."""
    points = torch.randn(50, 3, generator=generator(), dtype=torch.float64) + torch.tensor((0.0, 0.0, 4.0))
    torch.testing.assert_close(
        scenes.project(torch.tensor([[0.3, -0.2, 0.5], [0.3, -0.2, 1.0]])), torch.tensor([[0.6, -0.4], [0.3, -0.2]])
    )
    camera = torch.cat((torch.eye(3), torch.zeros(3, 1)), 1).double()
    image = torch.cat((points, torch.ones(50, 1)), 1) @ camera.mT
    torch.testing.assert_close(scenes.project(points), image[:, :2] / image[:, 2:])


def test_pairs_keep_their_form_and_stand_where_they_are_put(images: scenes.Images, models: HandPair) -> None:
    before = torch.stack(random_pairs(NUMBER, dtype=torch.float32).joints21(), 1).flatten(1, 2)
    after = images.joints.flatten(1, 2)
    between = lambda points: torch.cdist(points.double(), points.double())
    torch.testing.assert_close(between(after), between(before), atol=2e-5, rtol=0)
    near, far = scenes.WILD.distance
    middle = after.mean(1)
    assert ((middle[:, 2] >= near) & (middle[:, 2] <= far)).all()
    assert (scenes.project(middle).abs() <= scenes.WILD.offset + 1e-6).all()
    torch.testing.assert_close(torch.stack(images.truth.joints21(), 1), images.joints)


@pytest.mark.parametrize("tilt", [math.pi / 3, math.pi])
def test_views_cover_their_cap_uniformly(tilt: float) -> None:
    rotation = scenes.view_rotations(tilt, 20_000, generator())
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20_000))
    height = rotation[:, 2, 2]  # of the turned z axis; uniform on a sphere (Archimedes)
    share = torch.histc(height, 10, math.cos(tilt), 1) / 20_000
    torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.01, rtol=0)
    assert height.min() >= math.cos(tilt) - 1e-6


def test_flesh_hides_what_is_behind_it() -> None:
    """All joints of a hand at one place but a bone that crosses the line of sight of the other hand's joint."""
    joints = torch.full((1, 2, 21, 3), 0.0)
    joints[0, 0] = torch.tensor((0.0, 0.0, 0.8))  # the left hand, behind
    joints[0, 1] = torch.tensor((0.3, 0.0, 0.5))  # the right hand, aside
    assert not scenes.hidden(joints).any()
    joints[0, 1, 1], joints[0, 1, 2] = torch.tensor((-0.004, 0.0, 0.5)), torch.tensor((0.004, 0.0, 0.5))
    assert scenes.hidden(joints)[0, 0].all()
    behind = joints.clone()
    behind[..., 2] = torch.where(behind[..., 2] == 0.5, 1.1, behind[..., 2])  # now beyond what it hid
    assert not scenes.hidden(behind)[0, 0].any()
    aside = joints.clone()
    aside[0, 1, 1:3, 1] = 0.02  # more than its radius off the line
    assert not scenes.hidden(aside)[0, 0].any()


def test_detections_have_the_noise_that_confidence_says(models: HandPair) -> None:
    views = scenes.WILD._replace(lost=0.3, missed=0.2)
    made = scenes.film(random_pairs(400, dtype=torch.float32), models, views, generator())
    depth = made.joints.mean((1, 2))[:, 2, None, None, None]
    off = (made.seen - scenes.project(made.joints)) * depth
    for confidence, factor in ((1.0, 1.0), (scenes.HIDDEN**-2, scenes.HIDDEN)):
        chosen = off[made.confidence == confidence]
        assert len(chosen) > 500
        assert float(chosen.std()) == pytest.approx(factor * views.noise, rel=0.05)
    visible = ~scenes.hidden(made.joints)
    assert torch.equal(made.labelled > 0, visible)
    found = made.confidence > 0
    assert float(found[visible].float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(found[~visible].float().mean()) == pytest.approx(0.8 * 0.7, abs=0.03)
    assert (made.seen[~found] == 0).all()
    assert (made.labels[~visible] == 0).all()


# Network and losses --------------------------------------------------------------------------------------------------


def test_joints_that_were_not_found_are_never_read(lifter: network.Lifter, images: scenes.Images) -> None:
    """Neither values nor gradients, NaN included."""
    unseen = (images.confidence == 0)[..., None]
    assert unseen.any()
    wanted = lifter(images.seen, images.confidence)
    for garbage in (float("nan"), 1e9):
        seen = torch.where(unseen, garbage, images.seen).requires_grad_()
        found = lifter(seen, images.confidence)
        assert torch.equal(found.apart, wanted.apart)
        assert torch.equal(found.left.hand_pose, wanted.left.hand_pose)
        (found.apart.sum() + found.joints.sum()).backward()
        assert seen.grad is not None
        assert seen.grad.isfinite().all()
        assert (seen.grad[unseen.expand_as(seen)] == 0).all()


def test_annotations_of_hidden_joints_are_never_read(lifter: network.Lifter, images: scenes.Images) -> None:
    hidden = (images.labelled == 0)[..., None]
    spoiled = replace(images, labels=torch.where(hidden, float("nan"), images.labels))
    losses = [learn.batch_loss(lifter, images, wild) for wild in (images, spoiled)]
    assert torch.equal(*losses)
    losses[1].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in lifter.parameters())


def test_of_wild_pictures_nothing_in_3d_is_read(lifter: network.Lifter, images: scenes.Images) -> None:
    other = random_pairs(NUMBER, seed=9, dtype=torch.float32)
    spoiled = replace(images, truth=other, joints=torch.full_like(images.joints, float("nan")))
    assert torch.equal(learn.batch_loss(lifter, images, images), learn.batch_loss(lifter, images, spoiled))
    assert not learn.batch_loss(lifter, spoiled, images).isfinite()  # of motion capture it is


def test_a_pictures_mirror_image_is_the_mirrored_hands(lifter: network.Lifter, images: scenes.Images) -> None:
    flipped = images.seen.flip(1) * torch.tensor((-1.0, 1.0))
    straight, mirror = lifter(images.seen, images.confidence), lifter(flipped, images.confidence.flip(1))
    for side, hand in (("left", mirror.right), ("right", mirror.left)):
        points = getattr(open_hands(), side).joints21(getattr(straight, side))
        other = getattr(open_hands(), "right" if side == "left" else "left").joints21(hand)
        torch.testing.assert_close(other, points * torch.tensor((-1.0, 1.0, 1.0)), atol=1e-5, rtol=1e-4)


def test_a_pictures_answer_is_its_own(lifter: network.Lifter, images: scenes.Images) -> None:
    whole = lifter(images.seen, images.confidence).apart
    torch.testing.assert_close(lifter(images.seen[3:4], images.confidence[3:4]).apart, whole[3:4])


def test_a_pair_stands_as_the_relative_place_says(lifter: network.Lifter, images: scenes.Images) -> None:
    lifted = lifter(images.seen, images.confidence)
    wrists = [joints[:, 0] for joints in lifted.pair(open_hands()).joints()]
    torch.testing.assert_close(wrists[1] - wrists[0], lifted.apart, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(wrists[0], open_hands().left.joints(lifted.left)[:, 0])


def test_the_relative_place_keeps_each_wrist_on_its_ray(lifter: network.Lifter, images: scenes.Images) -> None:
    """Two wrists on the rays of those that the hands have by themselves, as far apart as is said, have no choice."""
    lifted = lifter(images.seen, images.confidence)
    wrists = lifted.joints[:, :, 0]
    rays = (wrists / wrists[..., 2:]).double()
    normal = torch.linalg.cross(rays[:, 0], rays[:, 1])
    out_of_plane = (lifted.apart * normal).sum(-1).abs() / normal.norm(dim=-1)
    assert out_of_plane.max() < 1e-4
    nearer, farther = torch.linalg.lstsq(rays.mT * torch.tensor((-1.0, 1.0)), lifted.apart.double()[..., None])[
        0
    ].unbind(1)
    middle = wrists[..., 2].log().mean(1).exp()
    torch.testing.assert_close((nearer + farther)[:, 0] / 2, middle.double(), atol=1e-4, rtol=1e-3)


def truth_as_lifted(images: scenes.Images) -> network.Lifted:
    return network.Lifted(
        images.truth.left, images.truth.right, images.joints, images.joints[:, 1, 0] - images.joints[:, 0, 0]
    )


def test_losses_of_the_truth_are_zero(images: scenes.Images) -> None:
    """And of a hand that is moved sideways, the distance."""
    lifted, image = truth_as_lifted(images), scenes.project(images.joints)
    assert float(learn.solid_loss(lifted, images, NUMBER)) == pytest.approx(0, abs=1e-4)
    everywhere = torch.ones_like(images.labelled)
    assert float(learn.flat_loss(images.joints, image, everywhere)) == pytest.approx(0, abs=1e-3)
    depth = images.joints[..., 2]
    moved = images.joints + torch.tensor((0.02, 0.0, 0.0))
    loss = float(learn.flat_loss(moved, image, everywhere))
    assert loss == pytest.approx(42 * 0.02 / 0.005 * float((depth.mean((1, 2))[:, None, None] / depth).mean()), rel=0.1)


def test_labels_of_the_wild_teach_nothing_of_the_place(lifter: network.Lifter, images: scenes.Images) -> None:
    """As in InterWild: the head between the hands learns from motion capture alone, and teaches the trunk nothing."""
    lifter = copy.deepcopy(lifter)
    lifted = lifter(images.seen, images.confidence)
    learn.flat_loss(lifted.joints, images.labels, images.labelled).backward()
    assert all(p.grad is None for p in lifter.join.parameters())
    assert any(p.grad is not None for p in lifter.trunk.parameters())
    lifter.zero_grad()
    lifter(images.seen, images.confidence).apart.square().sum().backward()
    assert all(p.grad is None for p in lifter.trunk.parameters())
    assert all(p.grad is not None for p in lifter.join.parameters())


# Errors --------------------------------------------------------------------------------------------------------------


def test_errors_are_what_was_done_to_the_truth(images: scenes.Images) -> None:
    truth = images.truth
    moved = TwoHands(truth.left, replace(truth.right, transl=truth.right.transl + torch.tensor((0.0, 0.003, 0.004))))
    found = bench.errors(moved, truth, chunk=7)
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(bench.METRICS, (NUMBER,))
    torch.testing.assert_close(found["MRRPE"], torch.full((NUMBER,), 5.0), atol=1e-3, rtol=0)
    for name in ("MPJPE", "MPVPE"):
        torch.testing.assert_close(found[name], torch.zeros(NUMBER), atol=1e-3, rtol=0)
    bent = TwoHands(truth.left, replace(truth.right, hand_pose=truth.right.hand_pose + 0.1))
    found, model = bench.errors(bent, truth), open_hands().right
    for name, points in (("MPJPE", model.joints21), ("MPVPE", lambda hand: model(hand)[0])):
        naive = [
            float((points(bent.right[i]) - points(truth.right[i])).norm(dim=-1).mean()) * 500 for i in range(NUMBER)
        ]  # the wrist has not moved; half of the hands are right
        torch.testing.assert_close(found[name], torch.tensor(naive), atol=1e-3, rtol=1e-4)


# Two arms ------------------------------------------------------------------------------------------------------------

SETTINGS = learn.Training(steps=3, batch=6)


def test_arms_differ_in_the_term_alone(models: HandPair, images: scenes.Images) -> None:
    """With a factor of zero the same numbers come out, to the bit; with another, others; a repetition is the same."""
    prior = make_prior(torch.float32)

    def weights(factor: float | None, seed: int = 0) -> Tensor:
        pull = None if factor is None else learn.Pull(weight=factor).regulariser(prior, SETTINGS.steps, seed)
        made = learn.train(models, images, images, SETTINGS, seed, pull)
        return torch.cat([p.detach().flatten() for p in made.parameters()])

    plain, zero, pulled = weights(None), weights(0.0), weights(3.0)
    assert torch.equal(plain, zero)
    assert torch.equal(pulled, weights(3.0))
    assert not torch.equal(plain, pulled)
    assert not torch.equal(plain, weights(None, seed=1))


def test_the_pull_grows_and_moves_both_hands(images: scenes.Images) -> None:
    prior = make_prior(torch.float32)
    pull = learn.Pull(weight=1.0, ramp=0.5)
    values = []
    for step in (0, 25, 50, 99):
        left, right = (
            hand.map(lambda v: v.clone().requires_grad_()) for hand in (images.truth.left, images.truth.right)
        )
        loss = pull.regulariser(prior, 100, 0)(left, right, torch.arange(NUMBER) < 0, step)
        loss.backward()
        values.append(float(loss.detach()))
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2] / 2)
    assert values[2] == values[3]
    for hand in (left, right):
        for name, value in hand.as_dict().items():
            assert value.grad is not None, name
            assert value.grad.abs().sum() > 0, name


def test_pairs_of_known_truth_are_left_alone(images: scenes.Images) -> None:
    """In a batch these are the ones of motion capture; the others' loss is that of a batch of their own."""
    prior, pull = make_prior(torch.float32), learn.Pull(ramp=0.0)
    left, right = (hand.map(lambda v: v.clone().requires_grad_()) for hand in (images.truth.left, images.truth.right))
    solid = torch.arange(NUMBER) < 4
    loss = pull.regulariser(prior, 10, 0)(left, right, solid, 1)
    alone = pull.regulariser(prior, 10, 0)(left[4:], right[4:], solid[4:], 1)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert right.transl.grad is not None
    assert not right.transl.grad[:4].any()
    assert right.transl.grad[4:].any()
    seen: list[Tensor] = []

    def watch(left: HandParams, right: HandParams, solid: Tensor, step: int) -> Tensor:
        seen.append(solid)
        return left.transl.sum() * 0

    learn.batch_loss(network.Lifter(open_hands(), width=8, blocks=1), images[:3], images[:5], 0, watch)
    assert seen[0].tolist() == [True] * 3 + [False] * 5


def test_a_fit_reads_detections_alone(lifter: network.Lifter, images: scenes.Images) -> None:
    """It draws the hands to them, holds what it does not see, and never reads the truth or what was not found."""
    start = measure.lift(lifter, images)
    hold = refine.held(lifter, images)

    def fitted(images: scenes.Images, prior_loss: refine.PairLoss | None = None) -> TwoHands:
        return refine.refined(start, images, hold, scenes.WILD.noise, prior_loss, 15)

    def misfit(pairs: TwoHands) -> float:
        off = (scenes.project(torch.stack(pairs.joints21(), 1)) - images.seen).norm(dim=-1)
        return float((off * images.confidence).sum())

    found = fitted(images)
    assert misfit(found) < 0.8 * misfit(start)
    unseen = (images.confidence == 0)[..., None]
    blind = replace(
        images,
        joints=torch.full_like(images.joints, float("nan")),
        truth=random_pairs(NUMBER, seed=4, dtype=torch.float32),
        seen=torch.where(unseen, 123.0, images.seen),
    )
    torch.testing.assert_close(fitted(blind).left.hand_pose, found.left.hand_pose)
    with_prior = fitted(images, refine.pull(make_prior(torch.float32), hold, 0))
    assert not torch.equal(with_prior.right.transl, found.right.transl)


def test_what_a_network_errs_is_known(lifter: network.Lifter, images: scenes.Images) -> None:
    """Pictures whose truth is the network's answer, and the same with known errors on it."""
    answer = measure.lift(lifter, images)
    wrong = TwoHands(
        answer.left,
        replace(answer.right, transl=answer.right.transl + torch.tensor((0.01, 0.0, 0.02))),
        answer.hands,
    )
    truth = replace(images, truth=wrong, joints=torch.stack(wrong.joints21(), 1))
    hold = refine.held(lifter, truth)
    torch.testing.assert_close(hold.apart, torch.tensor((0.01, 0.0, 0.02)), atol=1e-5, rtol=0)
    torch.testing.assert_close(hold.own["transl"], torch.tensor((0.01, 0.0, 0.02)) / 2**0.5, atol=1e-5, rtol=0)
    assert float(hold.own["hand_pose"].max()) == 0
    turned = replace(images, truth=TwoHands(_bent(answer.left), _bent(answer.right), answer.hands))
    assert (refine.held(lifter, turned).own["hand_pose"] - 0.1).abs().max() < 1e-5


def _bent(hand: HandParams) -> HandParams:
    return replace(hand, hand_pose=hand.hand_pose + 0.1)


# The whole path ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus: half of it of the studio's kinds; a tiny prior beside it."""
    folder = tmp_path_factory.mktemp("data")
    for seed, split in enumerate(("train", "val", "test")):
        pairs = random_pairs(40, seed=seed, dtype=torch.float32)
        kinds = np.array([bench.KINDS[i % 5] if i % 2 else "loose" for i in range(40)])
        replace(pairs, extras={"archetype": kinds}).save(folder / f"{split}-00000.npz")
    make_prior(torch.float32).save_pretrained(folder / "prior")
    return folder


def test_whole_path_and_resumption(data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(data), "--prior", str(data / "prior"), "--work", str(tmp_path / "work"), "--quick"]
    flags += ["--out", str(tmp_path), "--seeds", "0"]
    first = bench.main(flags)
    stored = json.loads((tmp_path / "reconstruction.json").read_text())
    assert set(stored["numbers"]["arms"]) == {bench.PLAIN, *bench.AGAINST}
    for arm in first["arms"].values():
        for domain in bench.DOMAINS:
            assert all(math.isfinite(arm[domain][name]["mean"]) for name in bench.METRICS)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.pt")}
    assert len(kept) == 2
    (tmp_path / "work" / "0.json").unlink()
    again = bench.main(flags)
    assert again["arms"] == first["arms"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = bench.main([*flags, "--sweep"])["rows"]
    assert [row["pull"] is None for row in rows] == [True, False, False]
    with pytest.raises(SystemExit, match="test was 8, is 1000"):
        bench.main([flag for flag in flags if flag != "--quick"])


def test_the_studio_is_narrow(data: Path, models: HandPair) -> None:
    pairs = TwoHands.load(data / "train-00000.npz")
    chosen = bench.of_the_studio(pairs, 0.5)
    assert 0 < len(chosen) < 20
    assert all(pairs.extras["archetype"][i] in bench.KINDS for i in chosen.tolist())
    assert (pairs.left.betas[chosen, 0].abs() < 0.5).all()
    assert len(bench.of_the_studio(pairs)) == 20


def test_gains_are_paired(data: Path) -> None:
    """Seeds differ more than arms do; the gain's spread is that of the differences."""
    arms = (bench.PLAIN, *bench.AGAINST)
    base = {"MPJPE": 10.0, "MPVPE": 12.0, "MRRPE": 30.0}
    rows = [
        {arm: {d: {n: v * size * 0.9**i for n, v in base.items()} for d in bench.DOMAINS} for i, arm in enumerate(arms)}
        for size in (1.0, 2.0)
    ]
    found = bench.summary(rows)
    cell = found[bench.PRIOR]["gain"]["wild"]["MRRPE"]
    assert cell["mean"] == pytest.approx(10)
    assert cell["std"] == pytest.approx(0, abs=1e-9)
    assert found[bench.FIT_PRIOR]["gain"]["over"] == bench.FIT
    assert found[bench.PLAIN]["wild"]["MRRPE"]["std"] == pytest.approx(30 / 2**0.5)
    text = bench.table({"numbers": {"arms": found, "paper": bench.PAPER}})
    lines = [line.split("|") for line in text.splitlines()]
    assert {len(line) for line in lines} == {9}
    line = next(line for line in lines if line[1].strip() == bench.PRIOR)
    assert line[-2].strip() == "40.50 ± 19.09 (+10.0 ± 0.0 %)"
    assert lines[-1][-2].strip() == "26.63 (+15.1 %)"
