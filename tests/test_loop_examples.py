"""The loop examples run at tiny size, and do what they say."""

from __future__ import annotations

import pytest
import torch
from helpers import generator, load_example, make_prior, random_pairs

from interhand_prior import TwoHandPrior, TwoHands
from interhand_prior.hands import load_hands
from interhand_prior.rotations import axis_angle_to_matrix


@pytest.fixture(scope="module")
def small() -> TwoHandPrior:
    return make_prior(torch.float32)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> str:
    return str(small.save_pretrained(tmp_path_factory.mktemp("prior")))


# The training loop ----------------------------------------------------------------------------------------------


def test_training_loop_prints_three_rows(folder, capsys):
    rows = load_example("training_loop").main(["--prior", folder, "--num", "12", "--steps", "3", "--batch-size", "4"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("estimator", "without prior", "with prior", "MRRPE"))
    assert rows["with prior"] != rows["without prior"] != rows["estimator"]


def test_training_loop_learns_and_reads_no_missing_hand(small):
    loop = load_example("training_loop")
    pairs = random_pairs(64, dtype=torch.float32)
    pairs, labelled = TwoHands(pairs.left, pairs.right, small.hands), torch.ones(64, dtype=torch.bool)
    data = loop.make_batch(pairs, labelled, generator())
    assert not data["present"].all()
    task = lambda network: float(loop.training_step(network, data, small, 0.0)["task_loss"].detach())
    network = loop.train(pairs[:4], labelled[:4], small, 0.0, 60, 16, 0)
    data = loop.make_batch(pairs[:4], labelled[:4], generator(1))
    assert task(network) < 0.97 * task(loop.Corrector())

    data = loop.make_batch(pairs, labelled, generator())
    batch = {name: value[:8] for name, value in data.items()}
    absent = ~batch["present"]
    other = {**batch, "joints": torch.where(absent[..., None, None], 7.0, batch["joints"])}
    first, second = (loop.training_step(network, b, small, generator=generator())["loss"] for b in (batch, other))
    assert absent.any()
    assert torch.equal(first, second)


def test_training_step_takes_pairs_without_any_hand(small):
    loop = load_example("training_loop")
    pairs = random_pairs(4, dtype=torch.float32)
    batch = loop.make_batch(TwoHands(pairs.left, pairs.right, small.hands), torch.arange(4) > 1, generator())
    batch["present"] = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    network = loop.Corrector()
    losses = loop.training_step(network, batch, small, generator=generator())
    losses["loss"].backward()
    assert float(losses["prior_loss"].detach()) > 0
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    batch["present"] = torch.zeros(4, 2, dtype=torch.bool)
    assert float(loop.training_step(network, batch, small)["loss"].detach()) == 0


# smplx ----------------------------------------------------------------------------------------------------------


def test_smplx_fitting_prints_both_rows(folder, capsys):
    pytest.importorskip("smplx")
    rows = load_example("smplx_fitting").main(["--prior", folder, "--num", "2", "--steps", "4"])
    assert "with prior" in capsys.readouterr().out
    assert rows["with prior"] != rows["without prior"]


@pytest.mark.parametrize(
    "options", [{"use_pca": False, "flat_hand_mean": True}, {"use_pca": True, "num_pca_comps": 44}]
)
def test_smplx_fitting_finds_what_it_is_shown(tmp_path, small, options):
    pytest.importorskip("smplx")
    from interhand_prior.hands.export import export_mano

    example = load_example("smplx_fitting")
    export_mano(tmp_path / "mano")
    layers = example.make_layers(tmp_path, 2, **options)
    pairs = random_pairs(2, dtype=torch.float32)
    example.write(layers, pairs)
    truth = example.joints_of(layers).detach()
    if not options["use_pca"]:
        # The layers' parameters are the pair's: their joints are those of our own model.
        torch.testing.assert_close(
            truth, torch.stack(load_hands(layers)(pairs) and pairs.joints21(), 1), atol=1e-5, rtol=0
        )
    with torch.no_grad():
        for layer in layers:
            layer.transl += 0.02
            layer.global_orient += 0.1
    start = (example.joints_of(layers)[..., :2] - truth[..., :2]).norm(dim=-1).mean()
    hands = load_hands(layers)
    found = example.fit(layers, truth[..., :2], truth[..., 2].mean(-1), prior=small, hands=hands, weight=0.1, steps=60)
    assert (found[..., :2] - truth[..., :2]).norm(dim=-1).mean() < 0.2 * start


# Video ----------------------------------------------------------------------------------------------------------


def test_video_smoothing_prints_three_rows(folder, capsys):
    options = ["--prior", folder, "--num", "2", "--frames", "5", "--steps", "4"]
    rows = load_example("video_smoothing").main(options)
    assert "jitter" in capsys.readouterr().out
    assert list(rows) == ["estimates", "smoothed", "with prior"]
    assert rows["with prior"] != rows["smoothed"]


def test_video_clips_begin_at_a_pair_and_move_evenly():
    video = load_example("video_smoothing")
    pairs = random_pairs(4, dtype=torch.float32)
    clips = video.make_clips(pairs, 9)
    assert clips.batch_shape == (2, 9)
    turns = [axis_angle_to_matrix(hand.right.global_orient) for hand in (clips[:, 0], pairs[:2])]
    torch.testing.assert_close(*turns, atol=1e-5, rtol=0)
    path = axis_angle_to_matrix(clips.right.global_orient)
    steps = torch.acos((((path[:, :-1].mT @ path[:, 1:]).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1))
    torch.testing.assert_close(steps, steps.flip(1), atol=2e-3, rtol=0)  # as slow at the end as at the start
    assert (steps[:, 4] > steps[:, 0]).all()


def test_video_smoothing_takes_the_jitter_out():
    video = load_example("video_smoothing")
    pairs = random_pairs(4, dtype=torch.float32)
    truth = video.make_clips(TwoHands(pairs.left, pairs.right), 12)
    start = video.estimated(truth, 0)
    before, after = (video.errors(clips, truth) for clips in (start, video.smooth(start, steps=40)))
    assert after[2] < 0.5 * before[2]


def test_errors_that_stay_are_not_counted_for_every_frame():
    video = load_example("video_smoothing")
    same = torch.ones(2, 8, 3, dtype=torch.float64)
    # Against the likelihood itself: covariance SLOW everywhere plus 1 - SLOW on the diagonal.
    covariance = video.SLOW + (1 - video.SLOW) * torch.eye(8, dtype=torch.float64)
    for error in (same, torch.randn(2, 8, 3, generator=generator(), dtype=torch.float64)):
        exact = torch.einsum("nik,ij,njk->", error, torch.linalg.inv(covariance), error) / 2
        torch.testing.assert_close(video.staying(error), exact)
