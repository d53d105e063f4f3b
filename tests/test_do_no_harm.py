"""The curve of harm: its ratios, its loop, and a small run of the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import random_pairs
from torch import Tensor

from interhand_prior import HandParams, load_prior

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
try:
    import do_no_harm as bench
finally:
    sys.path.pop(0)


def test_ratios_are_of_means_and_shares_of_pairs() -> None:
    before = torch.tensor([[1.0, 3.0, 8.0, 4.0]]).expand(3, 2, 4) * torch.tensor((1.0, 0.0))[:, None]
    after = before + torch.tensor((2.0, -1.0, 6.0, 0.0))
    row = bench.compare(before, after, draws=2000, seed=0)["MRRPE"]
    assert float(row["ratio"][0]) == pytest.approx(23 / 16)
    assert row["ratio"][1].isnan()  # there was no error
    assert row["worse by > 1"][0] == 0.5
    assert row["worse by > 5"][0] == 0.25
    # Against the delta method: the ratio of two means over four pairs.
    off = after[2, 0] - 23 / 16 * before[2, 0]
    assert float(row["std"][0]) == pytest.approx(float(off.square().mean().sqrt() / 2 / 4), rel=0.3)


def test_the_loop_ends_at_the_posterior_of_a_gaussian() -> None:
    """The data term beside k/2 |betas|^2 of both hands: each goes to 1 / (1 + k s^2) of where it began."""
    pairs = random_pairs(3, dtype=torch.float32)
    start = type(pairs)(pairs.left, pairs.right, load_prior().hands)
    std = bench.deviations(torch.full((3,), 0.5), 0.02)

    def prior_loss(left: HandParams, right: HandParams) -> Tensor:
        return 10.0 * (left.betas.square().sum() + right.betas.square().sum())

    made = bench.fit(start, std, prior_loss, None, 200, torch.full((3, 1), 0.5))
    share = 1 / (1 + 20.0 * std["betas"] ** 2)
    torch.testing.assert_close(made.left.betas, share * start.left.betas, atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(made.right.hand_pose, start.right.hand_pose)


def test_errors_are_what_was_done() -> None:
    pairs = random_pairs(4, dtype=torch.float32)
    hands = type(pairs)(pairs.left, pairs.right, load_prior().hands)
    moved = hands.map(lambda v: v.clone())
    moved.right.transl.add_(torch.tensor((0.0, 0.003, 0.004)))
    pose, turn, place = bench.errors(moved, hands)
    torch.testing.assert_close(place, torch.full((4,), 5.0), atol=1e-3, rtol=0)
    assert pose.max() < 1e-3
    assert turn.max() < 1e-2


def test_a_small_run(tmp_path: Path) -> None:
    """Samples in place of a corpus, two seeds of four pairs: all parts are there, and nothing moves far at no error."""
    argv = ["--num", "4", "--train", "200", "--steps", "3", "--seeds", "0", "1", "--loops", "2D, 4 cm"]
    numbers = bench.main([*argv, "--out", str(tmp_path)])
    assert json.loads((tmp_path / "do_no_harm.json").read_text())["numbers"]["seeds"] == [0, 1]
    assert numbers["num"] == {"corpus": 8, "20 cm apart": 8}
    for kind in numbers["pairs"].values():
        for arm in kind["2D, 4 cm"]["arms"].values():
            assert float(arm["MRRPE"]["error"][0]) < 0.1
            assert bool(arm["MRRPE"]["ratio"][1:].isfinite().all())
    assert "20 cm apart" in bench.table({"numbers": json.loads(json.dumps(numbers, default=lambda t: t.tolist()))})
