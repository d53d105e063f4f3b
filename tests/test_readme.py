"""The README's Python runs as it stands there: only sizes, the device and files that a reader brings are put in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import generator

from interhand_prior import HandParams, TwoHands, load_prior, sample
from interhand_prior.convert import hands_to_hamer
from interhand_prior.hands import open_hands
from interhand_prior.hands.export import export_mano

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def hand(values: torch.Tensor) -> HandParams:
    """What a reader's network says of one hand: 61 numbers."""
    return HandParams(*values.split((3, 45, 10, 3), -1))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the reader has already: a folder, a network, its loader and loss, an estimate, MANO files and layers."""
    monkeypatch.chdir(tmp_path)
    body = torch.nn.Linear(8, 122)
    prior = load_prior()
    pairs = sample(prior, 2, seed=0, steps=2, penetration_scale=0.0)
    export_mano(tmp_path / "mano")
    params, cam_t, is_right = hands_to_hamer(pairs[0])
    return {
        "loader": [torch.randn(3, 8, generator=generator(step)) for step in range(2)],
        "network": lambda batch: tuple(hand(0.1 * half) for half in body(batch).chunk(2, -1)),
        "task_loss": lambda left, right, batch: left.transl.square().mean() + right.transl.square().mean(),
        "body": body,
        "prior": prior,
        "pairs": pairs,
        "left": pairs.left[0],
        "thumbs": torch.tensor([True, False, False, False, False]).expand(2, -1),
        "params": params,
        "cam_t": cam_t,
        "is_right": is_right,
        "left_smplx_layer": open_hands().left,
        "right_smplx_layer": open_hands().right,
    }


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 4
    assert any("sds_loss(prior, left, right" in block for block in BLOCKS[:2])


def test_blocks_run_one_after_another(reader: dict[str, Any]) -> None:
    for number, code in enumerate(BLOCKS):
        for there, here in (
            ('"cuda"', '"cpu"'),
            ("sample(prior, 16,", "sample(prior, 2,"),
            ("sample(prior, 1000,", "sample(prior, 2,"),
            (", steps=25", ", steps=2"),
            ('"folder with MANO_RIGHT.pkl and MANO_LEFT.pkl"', '"mano"'),
        ):
            code = code.replace(there, here)
        exec(compile(code, f"README.md, block {number}", "exec"), reader)
    assert torch.isfinite(reader["loss"])
    assert all(value.grad.abs().sum() > 0 for value in reader["body"].parameters())
    assert isinstance(reader["pairs"], TwoHands)
