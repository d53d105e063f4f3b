"""Eq. 9 in real loops: compiled, under autocast, checkpointed, mapped, distributed, in every batch."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sds_processes
import torch
from helpers import generator, leaves, make_prior, random_pairs, with_grad
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interhand_prior import HandParams, TwoHandPrior, TwoHands, canonical, sds_loss
from interhand_prior.plausibility import Calibration


@pytest.fixture(scope="module")
def single() -> TwoHandPrior:
    """The tiny prior in float32."""
    return make_prior(torch.float32)


def noise_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 64, generator=generator(seed))


def gradients(loss: Tensor, hands: TwoHands) -> dict[str, Tensor]:
    return dict(zip(leaves(hands), torch.autograd.grad(loss.sum(), list(leaves(hands).values())), strict=True))


def assert_same_step(step: Any, other: Any, hands: TwoHands, **tolerance: float) -> None:
    """Two functions of both hands agree in value and gradient; both draw from torch's own generator."""
    found = []
    for function in (step, other):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            leaf = with_grad(hands)
            loss = function(leaf.left, leaf.right)
            found.append((loss.detach(), gradients(loss, leaf)))
    (loss, grads), (wanted, wanted_grads) = found
    torch.testing.assert_close(loss, wanted, **tolerance)
    for name, value in grads.items():
        say = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(value, wanted_grads[name], **tolerance, msg=say)


# torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_compiled_in_one_graph(every: bool) -> None:
    prior, hands = make_prior(), random_pairs(3)
    if every:
        prior.calibration = Calibration(torch.linspace(-3, 3, 101).expand(2, 2, 101))
    confidence = torch.rand(3, 15, generator=generator(), dtype=torch.float64)
    level = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    options: dict[str, Any] = {
        "sigma": level, "weight": level, "left_valid": level < 0.5, "right_confidence": confidence, "anchor": "left",
        "space": "metric", "squared": False, "num_draws": 2, "antithetic": True, "cfg_scale": 0.3, "clip": 0.5,
        "reduction": "sum", "return_info": True,
    } if every else {}  # fmt: skip

    def step(left: HandParams, right: HandParams) -> Tensor:
        result = sds_loss(prior, left, right, **options)
        if not every:
            return result
        loss, info = result
        return loss + info.residuals["transl"].sum() + info.hands.right.transl.sum()

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert_same_step(compiled, step, hands, rtol=1e-10, atol=1e-12)


# Autocast, types, devices ----------------------------------------------------------------------------------------


def test_under_autocast_the_network_alone_is_rounded(single: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(4, dtype=torch.float32))
    options: dict[str, Any] = {"noise": noise_of(4), "reduction": "none", "gate": False}
    exact = sds_loss(single, hands.left, hands.right, **options)
    with torch.autocast("cpu", torch.bfloat16):
        rough, info = sds_loss(single, hands.left, hands.right, return_info=True, **options)
    assert rough.dtype == torch.float32
    assert info.hands.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=1e-2, atol=0)
    assert not torch.equal(rough, exact)
    for name, value in gradients(rough, hands).items():
        wanted = gradients(sds_loss(single, hands.left, hands.right, **options), hands)[name]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_hands_in_half_precision_are_pulled_the_same_way(single: TwoHandPrior) -> None:
    hands = random_pairs(4, dtype=torch.bfloat16)
    options: dict[str, Any] = {"noise": noise_of(4), "reduction": "sum", "gate": False}
    half, whole = with_grad(hands), with_grad(hands.to(torch.float32))
    rough, exact = (gradients(sds_loss(single, h.left, h.right, **options), h) for h in (half, whole))
    for name, value in rough.items():
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.float(), exact[name], rtol=0.02, atol=0.02 * float(exact[name].abs().max()))


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor on "meta" has no numbers: whatever looked at one on the host would raise."""
    monkeypatch.setattr(canonical, "_full_precision", lambda like: nullcontext())  # no autocast there to switch off
    prior, hands = make_prior(torch.float32).to("meta"), random_pairs(3, dtype=torch.float32).to("meta")
    hands = hands.map(lambda value: value.requires_grad_())
    number = torch.rand(3, device="meta")
    loss, info = sds_loss(
        prior, hands.left, hands.right, sigma=number, weight=number, gate=number, left_valid=number > 0,
        left_confidence=torch.rand(3, 15, device="meta"), space="metric", clip=1.0, num_draws=2, antithetic=True,
        return_info=True,
    )  # fmt: skip
    loss.backward()
    assert loss.is_meta
    assert info.hands.left.transl.is_meta
    assert sds_loss(prior, hands.left, hands.right, sigma=(0.1, 0.2), squared=False).is_meta


# Checkpointing, mapping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(single: TwoHandPrior, reentrant: bool) -> None:
    hands = random_pairs(3, dtype=torch.float32)

    def step(left: HandParams, right: HandParams) -> Tensor:
        return sds_loss(single, left, right, sigma=(0.2, 0.6), num_draws=2)

    def checkpointed(left: HandParams, right: HandParams) -> Tensor:
        def inner(*values: Tensor) -> Tensor:
            return step(HandParams(*values[:4]), HandParams(*values[4:]))

        return checkpoint(inner, *left.as_dict().values(), *right.as_dict().values(), use_reentrant=reentrant)

    if reentrant:  # torch.autograd.grad is not for it
        found = []
        for function in (step, checkpointed):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                leaf = with_grad(hands)
                function(leaf.left, leaf.right).backward()
                found.append([value.grad for value in leaves(leaf).values()])
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)
    else:
        assert_same_step(checkpointed, step, hands, rtol=1e-6, atol=1e-7)


def test_draws_can_be_mapped(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    noises = noise_of(4, 3).double()
    step = lambda noise: sds_loss(prior, hands.left, hands.right, noise=noise, clip=1.0, reduction="none")
    mapped = torch.func.vmap(step)(noises)
    torch.testing.assert_close(mapped, torch.stack([step(noise) for noise in noises]), rtol=1e-10, atol=0)
    pose_loss = lambda pose, noise: sds_loss(
        prior, {**hands.left.as_dict(), "hand_pose": pose}, hands.right, noise=noise
    )
    slope = torch.func.grad(pose_loss)(hands.left.hand_pose, noises[0])
    pose = hands.left.hand_pose.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(pose_loss(pose, noises[0]), pose)
    torch.testing.assert_close(slope, wanted)


# Batches ---------------------------------------------------------------------------------------------------------


def test_a_pairs_loss_does_not_depend_on_its_batch(single: TwoHandPrior) -> None:
    hands = with_grad(random_pairs(4096, dtype=torch.float32))
    noise, draw = noise_of(4096), generator()
    valid = torch.rand(2, 4096, generator=draw) < 0.8
    gate = torch.rand(4096, generator=draw)

    def step(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        few = hands[part].detach().map(lambda value: value.clone().requires_grad_())
        masks = {"left_valid": valid[0, part], "right_valid": valid[1, part], "gate": gate[part]}
        loss = sds_loss(single, few.left, few.right, noise=noise[part], reduction="none", **masks)
        return loss.detach(), gradients(loss, few)

    whole, grads = step(slice(None))
    assert whole.shape == (4096,)
    assert all(torch.isfinite(value).all() for value in (whole, *grads.values()))
    assert ((whole == 0) == ~valid.any(0)).all()
    for part in (slice(0, 1), slice(7, 8), slice(100, 164), slice(4095, 4096)):
        loss, few = step(part)
        torch.testing.assert_close(loss, whole[part], rtol=1e-4, atol=1e-4)
        for name, value in few.items():
            torch.testing.assert_close(value, grads[name][part], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_distributed(tmp_path: Path) -> None:
    """Two processes with half of the pairs each average to the gradient of one with all of them."""
    script = sds_processes.__file__
    runs = [
        subprocess.Popen([sys.executable, script, str(index), "2", str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    for run in runs:
        _, error = run.communicate(timeout=300)
        assert run.returncode == 0, error
    found = [torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(2)]
    assert torch.equal(*found)
    model = sds_processes.Corrector(make_prior())
    model(*sds_processes.inputs()).backward()
    torch.testing.assert_close(found[0], model.shift.grad, rtol=1e-9, atol=1e-12)
    assert (found[0] != 0).all()
