"""The released network, its units and its sampler, against independent statements of them in plain numpy; and the
conversion of a checkpoint in its layout, with hostile and damaged ones refused.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import generator, random_pairs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interhand_prior import TwoHandPrior, load_prior, sample, sds_loss
from interhand_prior.canonical import to_canonical
from interhand_prior.cli import main
from interhand_prior.convert.official import (
    convert_official,
    coupling,
    official_statistics,
    read_official,
    read_tensors,
)
from interhand_prior.hands import open_hands
from interhand_prior.hands.export import export_mano
from interhand_prior.metrics.features import FeatureNetwork, load_feature_network, official_key
from interhand_prior.official import OfficialConfig, OfficialDenoiser, OfficialSchedule, PCANormalizer
from interhand_prior.official_sampling import official_guidance, official_reverse, official_sample, official_update
from interhand_prior.pointnet2 import PAPER
from interhand_prior.train import TrainConfig, train

TINY = OfficialConfig(embed=16, hidden=24, heads=4, feedforward=20)
Arrays = Mapping[str, np.ndarray]


def make_network(config: OfficialConfig = TINY, seed: int = 0, gain: float = 2.0) -> OfficialDenoiser:
    """Fresh weights, larger than usual: nothing fades on the way through eight layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = OfficialDenoiser(config).eval().requires_grad_(False)
    for value in network.parameters():
        value *= gain if value.ndim > 1 else 1
    return network


def make_stats(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Of about the size of real ones: variances far below one."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    stats = {
        "mano_mean": 0.1 * rng.normal(size=55), "mano_var": rng.uniform(0.05, 1.0, 55),
        "rel_mean": np.array([-0.718, 0.216, -0.009, -0.217, -0.462, -0.088, 0.005, -0.082, -0.004]),
        "rel_var": np.array([0.122, 0.105, 0.211, 0.105, 0.407, 0.219, 0.002, 0.006, 0.004]),
    }  # fmt: skip
    for name, value in stats.items():
        np.save(folder / f"{name}.npy", value.astype(np.float32))
    return stats


def make_checkpoint(path: Path, network: OfficialDenoiser) -> Path:
    state = {f"module.{name}": value for name, value in network.state_dict().items() if name != "null"}
    optimiser = {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": list(range(56))}]}
    torch.save([state, optimiser, 79, 12345], path)
    return path


# -- an independent statement of the network, a sample after another, from the facts about the released file


def linear(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def swish_mlp(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    h = linear(w, f"{name}.dense.0", x)
    return linear(w, f"{name}.dense.1", h / (1 + np.exp(-h)))


def layer_norm(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def encoder(w: Arrays, sequence: list[np.ndarray], heads: int) -> list[np.ndarray]:
    """Two post-norm layers over a sequence of tokens."""
    width = len(sequence[0])
    size = width // heads
    for k in range(2):
        p = f"trans_enc.layers.{k}"
        weight, bias = w[f"{p}.self_attn.in_proj_weight"], w[f"{p}.self_attn.in_proj_bias"]
        q, key, value = (
            [weight[i * width : (i + 1) * width] @ s + bias[i * width : (i + 1) * width] for s in sequence]
            for i in range(3)
        )
        attended = []
        for i in range(len(sequence)):
            parts = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                score = np.array([q[i][part] @ other[part] / np.sqrt(size) for other in key])
                share = np.exp(score - score.max())
                share /= share.sum()
                parts.append(sum(a * v[part] for a, v in zip(share, value, strict=True)))
            attended.append(linear(w, f"{p}.self_attn.out_proj", np.concatenate(parts)))
        sequence = [layer_norm(w, f"{p}.norm1", s + a) for s, a in zip(sequence, attended, strict=True)]
        inner = [linear(w, f"{p}.linear2", np.maximum(linear(w, f"{p}.linear1", s), 0)) for s in sequence]
        sequence = [layer_norm(w, f"{p}.norm2", s + a) for s, a in zip(sequence, inner, strict=True)]
    return sequence


def stated(network: OfficialDenoiser, x: Tensor, t: Tensor, condition: Tensor, coupled: bool) -> np.ndarray:
    """x0 of a batch."""
    w = {name: value.double().numpy() for name, value in network.state_dict().items()}
    embed, heads = network.config.embed, network.config.heads
    tokens = []
    for row in range(len(x)):
        k = np.arange(embed // 2)
        angle = float(t[row]) * np.exp(-np.log(10000) * k / (embed // 2 - 1))
        time = swish_mlp(w, "temb", np.concatenate((np.sin(angle), np.cos(angle))))
        given = swish_mlp(w, "cemb", condition[row].double().numpy())
        tokens.append((time, given, swish_mlp(w, "iemb", x[row].double().numpy())))
    related = [list(row) for row in tokens]
    for slot in range(3):
        column = [row[slot] for row in tokens]
        done = encoder(w, column, heads) if coupled else [encoder(w, [one], heads)[0] for one in column]
        for row, value in enumerate(done):
            related[row][slot] = value
    result = []
    for row, (time, given, _) in enumerate(tokens):
        h = linear(w, "trans_out", np.concatenate(related[row]))
        again = linear(w, "fc_input", x[row].double().numpy())
        for k in range(7):
            parts = (h, again, time, given) if k in (1, 3, 5, 6) else (h, time, given)
            h = np.maximum(linear(w, f"fc_layers.{k}", np.concatenate(parts)), 0)
        result.append(linear(w, "fc_output", h))
    return np.stack(result)


@pytest.mark.parametrize("coupled", [False, True])
def test_the_network_is_the_stated_one(coupled: bool) -> None:
    network = make_network(replace(TINY, coupled=coupled))
    x, anchor = torch.randn(2, 5, 64, generator=generator())
    t = torch.tensor([0, 3, 64, 126, 128])
    for condition in (anchor, None):
        found = network(x, t, condition).double().numpy()
        wanted = stated(network, x, t, torch.zeros_like(x) if condition is None else condition, coupled)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    present = torch.tensor([True, False, True, True, False])
    mixed = stated(network, x, t, torch.where(present[:, None], anchor, 0.0), coupled)
    np.testing.assert_allclose(network(x, t, anchor, present).double().numpy(), mixed, atol=1e-5)


def test_only_the_coupled_network_lets_samples_see_each_other() -> None:
    x, anchor = torch.randn(2, 6, 64, generator=generator())
    t = torch.full((6,), 30)
    alone, coupled = make_network(), make_network(replace(TINY, coupled=True))
    torch.testing.assert_close(alone(x, t, anchor)[:2], alone(x[:2], t[:2], anchor[:2]), atol=1e-6, rtol=1e-5)
    assert (coupled(x, t, anchor)[:2] - coupled(x[:2], t[:2], anchor[:2])).abs().max() > 1e-3
    torch.testing.assert_close(coupled(x[:1], t[:1], anchor[:1]), alone(x[:1], t[:1], anchor[:1]))

    def rms(value: Tensor) -> float:
        return float(value.square().mean().sqrt())

    x, anchor = torch.randn(2, 8, 64, generator=generator(0))
    steps = [torch.full((8,), t) for t in (10, 60, 120)]
    both = [torch.cat([network(x, t, anchor) for t in steps]) for network in (alone, coupled)]
    assert coupling(alone, 8) == coupling(coupled, 8) == pytest.approx(rms(both[1] - both[0]) / rms(both[1]), rel=1e-4)


def test_sizes_are_those_of_the_released_file() -> None:
    with torch.device("meta"):
        state = OfficialDenoiser().state_dict()
    state.pop("null")
    assert len(state) == 56
    assert sum(value.numel() for value in state.values()) == 75_461_984
    assert state["fc_layers.2.weight"].shape == (2056, 3080)
    assert state["fc_layers.6.weight"].shape == (2056, 5136)
    assert state["trans_enc.layers.1.self_attn.in_proj_weight"].shape == (1536, 512)


# -- levels and units


def test_levels() -> None:
    schedule = OfficialSchedule()
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 1e-2, 129))
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), alpha_bar, rtol=1e-12)
    assert 0.51 < alpha_bar[128] < 0.53
    assert len(schedule.visited) == 43  # 42 steps between them
    sigma = torch.tensor(np.sqrt(1 - alpha_bar))
    torch.testing.assert_close(schedule.step_of(sigma), torch.arange(129.0, dtype=torch.float64), atol=1e-9, rtol=0)
    assert schedule.step_of(torch.tensor([1e-4, 0.99])).tolist() == [0, 128]
    levels = schedule.steps(42)
    assert levels[0] == pytest.approx(schedule.max_sigma) == pytest.approx(float(sigma[126]))
    assert levels[-1] == 0
    np.testing.assert_allclose(levels[:-1], sigma[torch.arange(126, 0, -3)].numpy())
    u = torch.linspace(0, 1, 50)
    assert (schedule.sigma(u).diff() > 0).all()
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        schedule.steps(0)


@given(t=st.integers(0, 128))
def test_a_level_is_its_step(t: int) -> None:
    network, schedule = make_network(), OfficialSchedule()
    x = torch.randn(2, 64, generator=generator(t))
    level = (1 - schedule.alpha_bar[t]).sqrt().float().expand(2)
    torch.testing.assert_close(network(x, level, x), network(x, torch.full((2,), t), x), atol=2e-4, rtol=1e-3)


def make_normalizer(tmp_path: Path) -> tuple[PCANormalizer, dict[str, np.ndarray]]:
    stats = make_stats(tmp_path)
    mean, divisor = official_statistics(tmp_path)
    arrays = open_hands().right.arrays
    components = lambda value: torch.from_numpy(np.array(value))
    return PCANormalizer(
        mean.double(), divisor.double(), components(arrays.hands_mean), components(arrays.hands_components)
    ), stats


def test_units_are_the_stated_ones(tmp_path: Path) -> None:
    """A pose made of known PCA coefficients is those coefficients, less the mean, over variance + 1e-6."""
    normalizer, stats = make_normalizer(tmp_path)
    arrays = open_hands().right.arrays
    rng = np.random.default_rng(1)
    coefficients = rng.normal(size=(4, 45))
    rest = rng.normal(size=(4, 19))
    vector = np.concatenate((coefficients @ arrays.hands_components + arrays.hands_mean, rest), 1)
    mean = np.concatenate((stats["mano_mean"], stats["rel_mean"])).astype(np.float32)
    variance = np.concatenate((stats["mano_var"], stats["rel_var"])).astype(np.float32)
    wanted = (np.concatenate((coefficients, rest), 1) - mean) / (variance + 1e-6)
    found = normalizer.partner(torch.from_numpy(vector))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalizer.partner_inverse(found), torch.from_numpy(vector))
    anchor = normalizer.anchor(torch.from_numpy(vector))
    np.testing.assert_allclose(anchor[:, :55].numpy(), wanted[:, :55], atol=1e-5, rtol=1e-5)
    assert anchor[:, 55:].tolist() == [[1, 0, 0, 0, 1, 0, 0, 0, 0]] * 4
    torch.testing.assert_close(normalizer.anchor_inverse(anchor)[:, :55], torch.from_numpy(vector[:, :55]))


def test_components_that_cannot_be_inverted(tmp_path: Path) -> None:
    normalizer, _ = make_normalizer(tmp_path)
    with pytest.raises(ValueError, match="inverse"):
        PCANormalizer(normalizer.mean, normalizer.std, normalizer.hands_mean, torch.zeros(45, 45))
    with pytest.raises(ValueError, match=r"\(45,\) and \(45, 45\), got \(45,\), \(6, 45\)"):
        PCANormalizer(normalizer.mean, normalizer.std, normalizer.hands_mean, normalizer.components[:6])


# -- the sampler


def test_the_reverse_process_is_the_stated_one() -> None:
    """Written out in numpy for a linear estimate."""
    x = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    seen: list[tuple[int, int]] = []

    def estimate(state: Tensor, t: int, number: int) -> Tensor:
        seen.append((t, number))
        return 0.8 * state + t / 100

    found = official_reverse(estimate, x)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 1e-2, 129))
    wanted = x.numpy()
    for t in range(126, 0, -3):
        x0 = 0.8 * wanted + t / 100
        wanted = np.sqrt(alpha_bar[t - 3]) * x0 + np.sqrt(1 - alpha_bar[t - 3]) * (x0 - wanted)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)
    assert seen == [(126 - 3 * i, i) for i in range(42)]
    torch.testing.assert_close(official_update(x, 2 * x, 1.0), 2 * x)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> TwoHandPrior:
    folder = tmp_path_factory.mktemp("official")
    make_stats(folder / "stats")
    export_mano(folder / "mano")
    checkpoint = make_checkpoint(folder / "ckpt.pth", make_network())
    convert_official(checkpoint, folder / "stats", folder / "out", hands=folder / "mano")
    return load_prior(folder / "out", hands=folder / "mano")


def test_guidance_is_cfg_on_the_placement_alone(converted: TwoHandPrior) -> None:
    """The whole cascade by hand, without anti-penetration guidance."""
    found = official_sample(converted, 3, guidance=False, seed=4)
    network, normalizer = converted.denoiser, converted.normalizer
    draw = generator(4)
    first, second = torch.randn(3, 64, generator=draw), torch.randn(3, 64, generator=draw)
    step = lambda t: torch.full((3,), t)
    own = official_reverse(lambda x, t, _: network(x, step(t)), first)[:, :55]
    anchor = torch.cat((own, torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0, 0]).expand(3, -1)), 1)

    def estimate(x: Tensor, t: int, number: int) -> Tensor:
        with_anchor, without = network(x, step(t), anchor), network(x, step(t))
        return torch.cat((with_anchor[:, :55], 1.1 * with_anchor[:, 55:] - 0.1 * without[:, 55:]), 1)

    vector = normalizer.partner_inverse(official_reverse(estimate, second))
    anchors, partners, _ = to_canonical(found, converted.hands)
    torch.testing.assert_close(partners[:, :55], vector[:, :55], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(partners[:, 61:], vector[:, 61:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(anchors[:, :55], normalizer.anchor_inverse(anchor)[:, :55], atol=1e-3, rtol=1e-3)


def test_its_anti_penetration_step_goes_down_the_gradient(converted: TwoHandPrior) -> None:
    """Hands in the same place part; at the last step rotation and pose move a tenth; apart, nothing moves."""
    surfaces, normalizer = converted.surfaces(), converted.normalizer
    vector = torch.zeros(2, 64)
    vector[:, 55:] = torch.tensor([1.0, 0, 0, 0, 1, 0, 0.0, 0.01, 0.0])
    vector[1, 61:] = torch.tensor([0.5, 0.0, 0.0])  # half a metre apart
    x0 = normalizer.partner(vector)
    anchor = surfaces.anchor(normalizer.anchor(torch.zeros(2, 64)))
    steps = {number: official_guidance(x0, number, anchor, surfaces) - x0 for number in (40, 41)}
    assert torch.equal(steps[40][1], torch.zeros(64))
    assert steps[40][0].abs().max() > 0
    torch.testing.assert_close(steps[41][0, 61:], steps[40][0, 61:] / 0.9)
    torch.testing.assert_close(steps[41][0, :61], steps[40][0, :61] / 9)


def test_parity_needs_a_converted_checkpoint(converted: TwoHandPrior) -> None:
    with pytest.raises(ValueError, match="converted official checkpoint; use `sample`"):
        official_sample(load_prior(), 2)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        official_sample(converted, 0)
    with pytest.raises(ValueError, match="seed or generator"):
        official_sample(converted, 1, seed=0, generator=generator())


# -- the converted prior is an ordinary one


def test_an_ordinary_prior(converted: TwoHandPrior, tmp_path: Path) -> None:
    pairs = sample(converted, 3, seed=0, steps=4)
    torch.testing.assert_close(
        pairs.left.hand_pose, sample(converted, 3, seed=0, steps=4, batch_size=1).left.hand_pose, atol=1e-4, rtol=1e-3
    )
    hands = replace(random_pairs(4, dtype=torch.float32), hands=converted.hands)
    left = hands.left.map(lambda value: value.clone().requires_grad_())
    sds_loss(converted, left, hands.right, gate=False, generator=generator()).backward()
    for value in left.as_dict().values():
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()
        assert value.grad.abs().max() > 0
    again = load_prior(converted.save_pretrained(tmp_path / "again"), hands=converted.hands)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in converted.state_dict().items())
    assert isinstance(again.schedule, OfficialSchedule)
    assert again.info == converted.info
    assert "not granted" in converted.info["licence"]


def test_it_can_be_fine_tuned(converted: TwoHandPrior, tmp_path: Path) -> None:
    pairs = replace(random_pairs(24, dtype=torch.float32), hands=converted.hands)
    config = TrainConfig(steps=3, batch_size=8, warmup=0, lr=1e-4)
    tuned = train(pairs[:16], config, tmp_path / "run", val_pairs=pairs[16:], init=converted, hands=converted.hands)
    assert isinstance(tuned.normalizer, PCANormalizer)
    assert isinstance(tuned.schedule, OfficialSchedule)
    weights = [prior.denoiser.state_dict()["fc_output.weight"] for prior in (converted, tuned)]
    assert 0 < float((weights[0] - weights[1]).abs().max()) < 0.01
    with pytest.raises(ValueError, match="its network knows its own units"):
        train(pairs, config, tmp_path / "other", init=converted, normalizer="data", hands=converted.hands)


def test_the_bundled_solver_is_not_touched() -> None:
    with pytest.raises(ValueError, match="solver must be one of multistep, ddim"):
        sample(load_prior(), 1, solver="euler")


def test_the_network_survives_the_way(converted: TwoHandPrior) -> None:
    x, t = torch.randn(3, 64, generator=generator()), torch.tensor([5, 60, 120])
    assert torch.equal(converted.denoiser(x, t, x), make_network()(x, t, x))


@pytest.mark.slow
def test_a_checkpoint_of_the_released_size(tmp_path: Path) -> None:
    network = make_network(OfficialConfig(), gain=1.0)
    make_stats(tmp_path / "stats")
    checkpoint = make_checkpoint(tmp_path / "ckpt.pth", network)
    with pytest.warns(UserWarning, match="open hand's components"):
        convert_official(checkpoint, tmp_path / "stats", tmp_path / "out", coupled=True)
    checkpoint.unlink()
    prior = load_prior(tmp_path / "out")
    x, anchor = torch.randn(2, 3, 64, generator=generator())
    t = torch.tensor([1, 50, 126])
    found = prior.denoiser(x, t, anchor).double().numpy()
    np.testing.assert_allclose(found, stated(network, x, t, anchor, coupled=True), atol=1e-5)


# -- refusals


class Hostile:
    """Runs a command where it is unpickled carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for number, save in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2)))):
        path = tmp_path / f"{number}.pth"
        save([{"module.fc_output.weight": Hostile(ran)}], path)
        with pytest.raises(ValueError, match="was refused: it is damaged, or holds more than tensors"):
            read_tensors(path)
    assert not ran.exists()


@given(cut=st.floats(0, 0.999))
def test_half_a_checkpoint(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("half")
    path = make_checkpoint(folder / "ckpt.pth", make_network(OfficialConfig(embed=8, hidden=8, feedforward=8)))
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ValueError, match=r"was refused|expected a list|missing"):
        read_official(path)


def test_what_is_no_checkpoint_of_it(tmp_path: Path) -> None:
    path, network = tmp_path / "ckpt.pth", make_network()
    with pytest.raises(FileNotFoundError, match=r"pass the \.pth checkpoint"):
        read_official(path)
    state = {f"module.{k}": v for k, v in network.state_dict().items() if k != "null"}
    for content, message in (
        ({"model_state_dict": state}, "expected a list .* got a mapping with model_state_dict"),
        ([], "expected a list"),
        ([{"module.x": torch.zeros(2)}], "this is not the two-hand network's state dict"),
        ([{k: v for k, v in state.items() if "fc_layers.3.bias" not in k}], "1 tensors are missing.*fc_layers.3.bias"),
        ([{**state, "module.extra": torch.zeros(1)}], "extra"),
        ([{**state, "module.fc_output.bias": torch.zeros(63)}], "fc_output.bias"),
        ([{**state, "module.fc_output.bias": torch.full((64,), torch.nan)}], "NaN or infinity in fc_output.bias"),
        ([{**state, "module.fc_output.bias": 3}], "fc_output.bias"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_official(path)


def test_statistics_that_are_none(tmp_path: Path) -> None:
    make_stats(tmp_path)
    path = tmp_path / "rel_var.npy"
    np.save(path, np.full(9, -1.0))
    with pytest.raises(ValueError, match=r"rel_var\.npy holds negative variances"):
        official_statistics(tmp_path)
    np.save(path, np.zeros(8))
    with pytest.raises(ValueError, match=r"must hold 9 finite numbers, got float64 \(8,\)"):
        official_statistics(tmp_path)
    np.save(path, np.array([Hostile(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no array of numbers"):
        official_statistics(tmp_path)
    assert not (tmp_path / "ran").exists()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"rel_var\.npy is missing \(mano_mean\.npy, mano_var\.npy, rel_mean"):
        official_statistics(tmp_path)


def test_nothing_is_written_where_something_is_wrong(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "ckpt.pth", make_network())
    with pytest.raises(FileNotFoundError, match="stats"):
        convert_official(checkpoint, tmp_path / "stats", tmp_path / "out", hands="open")
    assert not (tmp_path / "out").exists()


# -- the command line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_stats(tmp_path / "stats")
    export_mano(tmp_path / "mano")
    checkpoint = make_checkpoint(tmp_path / "ckpt.pth", make_network())
    folders = ["--stats", str(tmp_path / "stats"), "--mano", str(tmp_path / "mano"), "--out", str(tmp_path / "out")]
    assert main(["convert", "official", str(checkpoint), "--coupled", *folders]) == 0
    assert f"load_prior({str(tmp_path / 'out')!r}, hands=" in capsys.readouterr().out
    assert load_prior(tmp_path / "out").info["x0 alone against in batches of 64"] > 0
    assert load_prior(tmp_path / "out").denoiser.config == replace(TINY, coupled=True)
    checkpoint.write_bytes(b"nothing")
    assert main(["convert", "official", str(checkpoint), *folders]) == 2
    assert "was refused" in capsys.readouterr().err


@pytest.mark.slow
def test_the_feature_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights under the released names and shapes: the converted network has them, and its features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FeatureNetwork(PAPER)
    own = {name: value for name, value in network.state_dict().items() if name not in ("mean", "std")}
    conv = lambda name, value: value[..., None, None] if value.ndim == 2 and name.startswith("sa") else value
    state = {official_key(name): conv(official_key(name), value) for name, value in own.items()}
    assert state["sa1.conv_blocks.0.0.weight"].shape == (32, 5, 1, 1)
    assert len(state) == 163
    path = tmp_path / "features.pth"
    torch.save({"model_state_dict": state, "epoch": 3}, path)
    assert main(["convert", "official-features", str(path), "--out", str(tmp_path / "features")]) == 0
    found = load_feature_network(tmp_path / "features")
    pairs = random_pairs(2, dtype=torch.float32)
    torch.testing.assert_close(found(pairs), network(pairs))
    for damaged, message in (
        ({k: v for k, v in state.items() if k != "fc3.bias"}, "fc3.bias"),
        ({**state, "fc3.bias": torch.zeros(98)}, "fc3.bias"),
    ):
        torch.save({"model_state_dict": damaged}, path)
        assert main(["convert", "official-features", str(path), "--out", str(tmp_path / "again")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
