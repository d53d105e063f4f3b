"""Every example runs at tiny size; the fitting loop recovers hands from exact joints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import load_example

from interhand_prior import HandParams, TwoHandPrior, TwoHands
from interhand_prior.canonical import Normalizer
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.hands import open_hands

fitting = load_example("fit_keypoints")


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    """A prior with few and random weights, around relaxed hands that face each other."""
    torch.manual_seed(0)
    mean, std = torch.zeros(64), torch.full((64,), 0.2)
    mean[:45] = open_hands().right.hands_mean
    mean[55:] = torch.tensor((-0.72, 0.22, 0.0, -0.22, -0.46, -0.09, 0.005, -0.082, -0.004))
    std[45:55], std[61:] = 1.0, torch.tensor((0.045, 0.077, 0.063))
    small = TwoHandPrior(Denoiser(DenoiserConfig(embed=16, hidden=24, layers=2)), Normalizer(mean, std))
    return str(small.save_pretrained(tmp_path_factory.mktemp("prior")))


def some_pairs(number: int, seed: int = 0) -> TwoHands:
    """Hands in all orientations half a metre before the camera."""
    draw = torch.Generator().manual_seed(seed)
    models = open_hands()

    def hand(mean: torch.Tensor, x: float) -> HandParams:
        normal = lambda size: torch.randn(number, size, generator=draw)
        place = torch.tensor((x, 0.0, 0.5)) + 0.05 * normal(3)
        return HandParams(0.8 * normal(3), mean + 0.3 * normal(45), 0.7 * normal(10), place)

    return TwoHands(hand(models.left.hands_mean, -0.05), hand(models.right.hands_mean, 0.05), models)


def exact(pairs: TwoHands, order) -> tuple:
    joints = fitting.joints_of(pairs, order)
    return fitting.Keypoints(joints, order, torch.ones(joints.shape[:-1]), 0.001), joints


@pytest.mark.parametrize("order", ["interhand2.6m", "leap"])
def test_fit_recovers_hands_from_exact_3d_joints(order):
    order = fitting.JOINT_ORDERS[order]
    seen, truth = exact(some_pairs(6), order)
    start = fitting.start_from(open_hands(), seen)
    fitted = fitting.joints_of(fitting.fit(start, seen, steps=150), order)
    distance = (fitted - truth).norm(dim=-1) * 1e3
    assert distance.max() < 3
    assert (fitting.joints_of(start.hands, order) - truth).norm(dim=-1).mean() * 1e3 > 10  # there was work to do


def test_fit_from_a_subset_of_joints_and_missing_ones():
    order = (16, 17, 18, 19, 20, 1, 4, 7, 10)  # tips and knuckles
    seen, truth = exact(some_pairs(4), order)
    seen.confidence[0, 1, 2] = 0
    seen.joints[0, 1, 2] += 1.0  # a lost joint says nothing
    fitted = fitting.joints_of(fitting.fit(fitting.start_from(open_hands(), seen), seen, steps=150), order)
    distance = (fitted - truth).norm(dim=-1) * 1e3
    assert distance[seen.confidence > 0].max() < 3


@pytest.mark.parametrize("camera", [None, (1000.0, 500.0, 500.0)])
def test_fit_2d_explains_the_image_from_a_rough_depth(camera):
    camera = None if camera is None else fitting.Camera(*camera)
    order = fitting.JOINT_ORDERS["openpose"]
    truth = fitting.joints_of(some_pairs(4), order)
    image = fitting.project(truth, camera)
    unit = 0.001 if camera is None else 2.0  # pixels of about a millimetre
    seen = fitting.Keypoints(image, order, torch.ones(image.shape[:-1]), unit)
    depth = truth[..., 2].mean(-1) + 0.01
    start = fitting.start_from(open_hands(), seen, camera=camera, depth=depth, depth_std=0.01)
    fitted = fitting.joints_of(fitting.fit(start, seen, camera=camera, steps=150), order)
    assert (fitting.project(fitted, camera) - image).norm(dim=-1).mean() < 2 * unit
    assert (fitted[..., 2].mean(-1) - truth[..., 2].mean(-1)).abs().max() < 0.04


def test_pairs_of_a_batch_do_not_touch_each_other():
    order = fitting.JOINT_ORDERS["mano"]
    pairs = some_pairs(3)
    seen, _ = exact(pairs, order)
    alone, _ = exact(pairs[1:2], order)
    both = [
        fitting.joints_of(fitting.fit(fitting.start_from(open_hands(), s), s, steps=20), order) for s in (seen, alone)
    ]
    torch.testing.assert_close(both[0][1:2], both[1], atol=1e-5, rtol=0)


def test_kabsch_finds_the_rotation_and_never_a_reflection():
    draw = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(5, 3, 3, generator=draw, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    points = torch.randn(8, 3, generator=draw, dtype=torch.float64)
    target = points @ rotation.mT + 0.3
    found, shift = fitting.kabsch(points, target, torch.rand(5, 8, generator=draw, dtype=torch.float64) + 0.1)
    torch.testing.assert_close(found, rotation)
    torch.testing.assert_close(shift, torch.full_like(shift, 0.3))
    mirrored = target * torch.tensor((-1.0, 1.0, 1.0), dtype=torch.float64)
    assert (torch.linalg.det(fitting.kabsch(points, mirrored, torch.ones(5, 8, dtype=torch.float64))[0]) > 0.999).all()


def test_errors_ignore_what_they_should():
    order = fitting.JOINT_ORDERS["openpose"]
    truth = fitting.joints_of(some_pairs(2), order)
    moved = truth + 0.01  # the pair as a whole
    assert max(e.max() for e in fitting.errors(moved, truth, 0)) < 1e-2
    apart = truth.clone()
    apart[:, 1, :, 0] += 0.02  # one hand alone
    mpjpe, mrrpe = fitting.errors(apart, truth, 0)
    assert mpjpe.max() < 1e-2
    torch.testing.assert_close(mrrpe, torch.full((2,), 20.0), atol=1e-2, rtol=0)


def test_joint_orders_agree_with_each_other():
    orders = fitting.JOINT_ORDERS
    # InterHand2.6M's own gather into the OpenPose order
    gather = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
    assert tuple(orders["interhand2.6m"][i] for i in gather) == orders["openpose"]
    assert sorted(orders["openpose"]) == sorted(orders["interhand2.6m"]) == list(range(21))
    assert 0 not in orders["leap"]


@pytest.mark.parametrize("extra", [["--dims", "3"], ["--dims", "2", "--depth-std", "0.03"]])
def test_fit_example_prints_both_columns(prior, capsys, tmp_path, extra):
    out = tmp_path / "fit.npz"
    rows = fitting.main(["--prior", prior, "--num", "2", "--steps", "8", "--out", str(out), *extra])
    printed = capsys.readouterr().out
    assert "without prior" in printed
    assert "with prior" in printed
    assert set(rows) == {"start", "without prior", "with prior"}
    assert rows["with prior"] != rows["without prior"]
    assert len(TwoHands.load(out)) == 2


def test_fit_example_reads_a_trackers_file(prior, tmp_path, capsys):
    joints = fitting.joints_of(some_pairs(5), fitting.JOINT_ORDERS["leap"]).numpy()
    confidence = np.ones((5, 2), np.float32)
    confidence[3, 1] = 0.2  # this frame is left out
    path = tmp_path / "frames.npz"
    np.savez(path, joints_l=joints[:, 0], joints_r=joints[:, 1], confidence=confidence)
    options = ["--joint-order", "leap", "--noise", "0", "--steps", "80", "--weight", "0"]
    rows = fitting.main(["--prior", prior, "--input", str(path), *options])
    assert "4 pairs, 20 joints" in capsys.readouterr().out
    assert rows["without prior"][0] < 3
    assert rows["with prior"] == rows["without prior"]  # weight 0
    with pytest.raises(ValueError, match="joint-order"):
        fitting.main(["--prior", prior, "--input", str(path), "--joint-order", "mano"])


def test_another_depth_axis_is_a_rotation():
    joints = fitting.joints_of(some_pairs(1), fitting.JOINT_ORDERS["mano"])
    # Were it a reflection, no left hand would fit.
    joints = torch.cat((joints.roll(1, -1), joints.roll(2, -1)))
    seen = fitting.Keypoints(joints, fitting.JOINT_ORDERS["mano"], torch.ones(2, 2, 21))
    fitted = fitting.fit(fitting.start_from(open_hands(), seen), seen)
    assert fitting.errors(fitting.joints_of(fitted, seen.order), seen.joints, 0)[0].max() < 3


def test_quickstart(prior, tmp_path, capsys):
    hands = load_example("quickstart").main(["--prior", prior, "--num", "2", "--out", str(tmp_path)])
    assert len(hands) == 2
    for name in ("hands.glb", "hands.npz", "hands.png"):
        assert (tmp_path / name).stat().st_size > 1000
    torch.testing.assert_close(TwoHands.load(tmp_path / "hands.npz").left.hand_pose, hands.left.hand_pose)


def test_refine_example(prior, tmp_path, capsys):
    refine = load_example("refine_noisy_pair")
    path = some_pairs(3).save(tmp_path / "pairs.npz")
    rows = refine.main(["--prior", prior, "--input", str(path), "--num", "2", "--steps", "3"])
    assert "MRRPE" in capsys.readouterr().out
    assert rows["MPJPE"][0] > 3  # the noise is there
    assert all(np.isfinite(value).all() for value in rows.values())


def test_refine_example_measures_penetration():
    refine = load_example("refine_noisy_pair")
    pairs = some_pairs(1)
    left, right = pairs.joints()
    knuckles_apart = left[:, 4] - right[:, 4]
    moved = {**pairs.right.as_dict(), "transl": pairs.right.transl + knuckles_apart}
    into = TwoHands(pairs.left, HandParams(**moved), pairs.hands)
    assert refine.deepest(into).item() > 0.005
    moved["transl"] = moved["transl"] + 0.3
    assert refine.deepest(TwoHands(pairs.left, HandParams(**moved), pairs.hands)).item() == 0
