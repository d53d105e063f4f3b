"""TwoHandPrior: made, saved, loaded, moved; `denoise`; what is not a whole prior is refused."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    assert_same,
    gaussian_prior,
    generator,
    make_denoiser,
    make_normalizer,
    make_prior,
    other_hands,
    random_pairs,
    rigidly_moved,
)
from torch import Tensor

from interhand_prior import TwoHandPrior, TwoHands, load_prior, sample, sds_loss
from interhand_prior.canonical import canonical_pair
from interhand_prior.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from interhand_prior.hands import load_hands, open_hands
from interhand_prior.plausibility import Calibration, Critics
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.schedule import CosineSchedule

Tensors = dict[str, Tensor]


def complete_prior(dtype: torch.dtype = torch.float32) -> TwoHandPrior:
    prior = bare_prior(dtype)
    prior.calibration, prior.critics = learned(dtype)
    return prior


def bare_prior(dtype: torch.dtype) -> TwoHandPrior:
    info = {"corpus": "random", "seed": 3}
    return TwoHandPrior(make_denoiser(), make_normalizer(), CosineSchedule(2e-4), info=info).to(dtype)


@functools.cache
def learned(dtype: torch.dtype) -> tuple[Calibration, Critics]:
    prior = bare_prior(dtype).calibrate(random_pairs(20))
    return prior.require_calibration(), prior.require_critics()


def estimate(prior: TwoHandPrior, dtype: torch.dtype = torch.float32) -> Tensor:
    x_t, anchor = torch.randn(2, 6, 64, generator=generator()).to(dtype)
    has_anchor = torch.arange(6) % 2 == 0
    return prior.estimate(x_t, torch.linspace(0.1, 0.9, 6), anchor, has_anchor, cfg_scale=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return complete_prior().save_pretrained(tmp_path / "prior")


# Saving and loading ----------------------------------------------------------------------------------------------


def test_a_prior_comes_back_bit_for_bit(folder: Path) -> None:
    prior, found = complete_prior(), load_prior(folder)
    assert torch.equal(estimate(found), estimate(prior))
    assert torch.equal(found.require_calibration().table, prior.require_calibration().table)
    assert found.info == prior.info == {"corpus": "random", "seed": 3}
    assert found.schedule.min_alpha_bar == 2e-4
    assert found.denoiser.config == prior.denoiser.config
    assert_same(sample(found, 2, steps=3, seed=0), sample(prior, 2, steps=3, seed=0))
    hands = random_pairs(2, dtype=torch.float32)
    losses = [sds_loss(p, hands.left, hands.right, generator=generator()) for p in (found, prior)]
    assert torch.equal(*losses)


def test_a_loaded_prior_is_frozen_and_evaluating(folder: Path) -> None:
    prior = load_prior(folder)
    assert not prior.denoiser.training
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    assert all(value.device.type == "cpu" for value in prior.state_dict().values())
    assert not estimate(prior).requires_grad


def test_saving_again_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = load_prior(folder).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_prior_without_calibration_comes_back_without(tmp_path: Path) -> None:
    assert load_prior(make_prior().save_pretrained(tmp_path)).calibration is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_the_bytes_nearly_the_same_estimate(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    prior = load_prior(folder)
    small = prior.save_pretrained(tmp_path / "small", dtype=dtype)
    found = load_prior(small)
    assert found.dtype == torch.float32
    torch.testing.assert_close(estimate(found), estimate(prior), atol=0.05, rtol=0)
    assert torch.equal(found.normalizer.std, prior.normalizer.std), "statistics are kept whole"
    assert torch.equal(found.require_calibration().table, prior.require_calibration().table)
    size = lambda path: (path / "model.safetensors").stat().st_size
    saved = 2 * sum(value.numel() for value in prior.denoiser.state_dict().values())
    assert size(folder) - size(small) == pytest.approx(saved, abs=500)
    assert torch.equal(estimate(load_prior(load_prior(small).save_pretrained(tmp_path / "s2"))), estimate(found))


def test_double_precision_comes_back_whole(tmp_path: Path) -> None:
    prior = complete_prior(torch.float64)
    with torch.no_grad():
        prior.denoiser.last.bias.add_(1e-12)
    found = load_prior(prior.save_pretrained(tmp_path), dtype=torch.float64)
    assert found.dtype == torch.float64
    assert torch.equal(estimate(found, torch.float64), estimate(prior, torch.float64))


def test_loading_leaves_torchs_generator_as_it_was(folder: Path) -> None:
    before = torch.get_rng_state()
    load_prior(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hands_may_be_ones_own(folder: Path) -> None:
    assert load_prior(folder).hands is open_hands()
    own = load_hands((open_hands().left, open_hands().right))
    prior = load_prior(folder, hands=own)
    assert prior.hands is own
    assert sample(prior, 1, steps=2, seed=0).hands is own
    assert not any("hands" in name or "template" in name for name in prior.state_dict())
    with pytest.raises(FileNotFoundError, match="does not exist") as caught:
        load_prior(folder, hands=folder / "no_mano_here")
    assert not isinstance(caught.value, CheckpointError)
    with pytest.raises(TypeError, match="source must be"):
        load_prior(folder, hands=3)
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        load_prior(folder, dtype=torch.int64)


def test_pairs_that_name_their_hands_are_read_with_them() -> None:
    hands, other = random_pairs(2), other_hands()
    mine = TwoHands(hands.left, hands.right, other)
    prior, theirs = complete_prior(torch.float64), complete_prior(torch.float64)
    theirs._hands[0] = other
    unnamed = prior.denoise(hands, generator=generator())
    for run in (
        lambda prior, pairs: prior.denoise(pairs, generator=generator()).right.transl,
        lambda prior, pairs: prior.refine(pairs, steps=2).right.transl,
        lambda prior, pairs: prior.score(pairs).placement,
    ):
        torch.testing.assert_close(run(prior, mine), run(theirs, hands), atol=1e-12, rtol=0)
    assert not torch.allclose(prior.denoise(mine, generator=generator()).right.transl, unnamed.right.transl)
    for result in (prior.denoise(mine), prior.refine(mine, steps=1)):
        assert result.hands is other


# Refusal ---------------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda config, tensors: tensors.__delitem__(name)


def replaced(name: str, value: Tensor) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda config, tensors: tensors.update({name: value})


def configured(**change: Any) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda config, tensors: config.update(change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("denoiser.null"), "null"),
        (without("normalizer.std"), "std"),
        (replaced("denoiser.null", torch.zeros(31)), "size mismatch for null"),
        (replaced("denoiser.extra", torch.zeros(1)), "Unexpected key.*extra"),
        (replaced("normalizer.std", torch.zeros(64)), "std positive"),
        (replaced("normalizer.mean", torch.zeros(63)), "must have shape"),
        (replaced("calibration.table", torch.zeros(2, 2, 9)), "calibration must be"),
        (replaced("optimizer.step", torch.zeros(1)), "optimizer"),
        (configured(denoiser={"embed": 32, "hidden": 64, "layers": 3}), "size mismatch"),
        (configured(denoiser={"embed": 800_000, "hidden": 800_000, "layers": 3}), "size mismatch"),
        (configured(denoiser={"embed": 32, "depth": 3}), "depth"),
        (configured(denoiser={"embed": 30}), "multiple of 2"),
        (configured(denoiser=None), "no prior of this version"),
        (configured(schedule={"name": "linear", "min_alpha_bar": 1e-4}), "linear"),
        (configured(schedule={"name": "cosine", "min_alpha_bar": 2.0}), "min_alpha_bar"),
        (configured(schedule={"name": "cosine"}, vector=61), "61"),
        (configured(schedule=7), "no prior of this version"),
        (configured(info=[1]), "no prior of this version"),
        (lambda config, tensors: config.__delitem__("info"), "info"),
    ],
)
def test_a_checkpoint_that_is_no_prior_is_refused(
    folder: Path, change: Callable[[dict[str, Any], Tensors], None], words: str
) -> None:
    config, tensors = read_checkpoint(folder)
    change(config, tensors)
    write_checkpoint(folder, config, tensors)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_prior(folder)
    assert str(folder) in str(caught.value)


def test_damaged_and_half_written_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        load_prior(folder)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_prior(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_prior(folder)
    weights.write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_prior(folder)
    (folder / "config.json").write_text(json.dumps(config)[:-20])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_prior(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        load_prior(tmp_path / "empty")


def test_a_diverged_prior_is_not_saved(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    prior = load_prior(folder)
    prior.denoiser.null.data[0] = math.nan
    with pytest.raises(CheckpointError, match="NaN"):
        prior.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before


# As a module -----------------------------------------------------------------------------------------------------


def test_to_and_copies() -> None:
    prior = complete_prior()
    double = copy.deepcopy(prior).double()
    assert (double.dtype, prior.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(estimate(double, torch.float64).float(), estimate(prior), atol=1e-4, rtol=0)
    half = copy.deepcopy(prior).to(torch.bfloat16)
    assert half.normalizer.std.dtype == torch.float32
    torch.testing.assert_close(estimate(half), estimate(prior), atol=0.1, rtol=0)
    assert prior.to("meta").device.type == "meta"


# One forward-reverse step ----------------------------------------------------------------------------------------


def test_denoise_is_the_estimate_of_eq_9(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    found = prior.denoise(hands, 0.3, generator=generator())
    partner, anchor = canonical_pair(prior, hands)
    noise = torch.randn(3, 64, generator=generator(), dtype=torch.float64)
    level = torch.tensor(0.3, dtype=torch.float64)
    x0 = prior.denoiser(math.sqrt(1 - 0.3**2) * partner + 0.3 * noise, level, anchor)
    # The right hand beside the given left one, and the left beside the given right one.
    for index, both in enumerate((TwoHands(hands.left, found.right), TwoHands(found.left, hands.right))):
        again = canonical_pair(prior, both)[0][index]
        torch.testing.assert_close(again[..., :55], x0[index][..., :55], atol=1e-10, rtol=0)
        torch.testing.assert_close(again[..., 61:], x0[index][..., 61:], atol=1e-9, rtol=0)


def test_denoise_at_almost_no_noise_returns_the_pair(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    found = prior.denoise(hands, 1e-9, generator=generator())
    for a, b in zip(found.joints21(), hands.joints21(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_denoise_moves_with_the_pair_and_mirrors_with_it(prior: TwoHandPrior) -> None:
    hands = random_pairs(2)
    rotation = axis_angle_to_matrix(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    translation = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    run = lambda h: prior.denoise(h, generator=generator())
    for side in (0, 1):
        wanted = run(hands).joints()[side] @ rotation.T + translation
        found = run(rigidly_moved(hands, rotation, translation)).joints()[side]
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
        mirrored = run(hands.mirrored()).mirrored().joints()[side]
        torch.testing.assert_close(mirrored, run(hands).joints()[side], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [(), (0,), (2, 2)])
def test_denoise_keeps_shape_and_type(dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    hands = random_pairs(*batch, dtype=dtype).map(lambda value: value.requires_grad_())
    found = gaussian_prior().to(torch.float32).denoise(hands)
    assert found.batch_shape == batch
    assert found.dtype == dtype
    assert not found.left.betas.requires_grad


def test_denoise_refuses_bad_input(prior: TwoHandPrior) -> None:
    hands = random_pairs(1)
    with pytest.raises(ValueError, match="sigma must be a noise level"):
        prior.denoise(hands, 1.0)
    hands.left.betas[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"hands\.left\.betas holds NaN or infinity"):
        prior.denoise(hands)
