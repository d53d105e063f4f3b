"""The network of Figure 2: a naive twin, exact pass-through, the null token, independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import generator, make_denoiser
from torch import Tensor, nn

from interhand_prior.canonical import SIZE
from interhand_prior.denoiser import Denoiser, DenoiserConfig, SelfAttention
from interhand_prior.guidance.cfg import guided_x0


def inputs(*batch: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = generator(seed)
    x_t, anchor = torch.randn(2, *batch, SIZE, generator=draw, dtype=dtype)
    return x_t, torch.rand(batch, generator=draw, dtype=dtype), anchor


def naive(model: Denoiser, x_t: Tensor, sigma: Tensor, anchor: Tensor | None) -> Tensor:
    """One sample, written out from the figure."""
    w = model.state_dict()
    linear = lambda name, x: w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return w[f"{name}.weight"] * x + w[f"{name}.bias"]

    def embed(name: str, x: Tensor) -> Tensor:
        hidden = linear(f"{name}.0", x)
        return linear(f"{name}.2", hidden * torch.sigmoid(hidden))

    width = model.config.embed
    time = 1000 * 2 / math.pi * math.asin(sigma.item())
    angles = [time * 10_000 ** (-k / (width // 2)) for k in range(width // 2)]
    encoding = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=x_t.dtype)
    condition = w["null"] if anchor is None else embed("embed_anchor", anchor)
    tokens = [embed("embed_x", x_t), condition, embed("embed_level", encoding)]
    tokens = [token + w["token"][i] for i, token in enumerate(tokens)]
    if model.attention is not None:
        q, k, v = torch.stack([linear("attention.qkv", norm("attention.norm", t)) for t in tokens]).chunk(3, -1)
        size = width // model.config.heads
        mixed = torch.zeros_like(q)
        for head in range(model.config.heads):
            part = slice(head * size, (head + 1) * size)
            weight = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), -1)
            mixed[:, part] = weight @ v[:, part]
        tokens = [token + linear("attention.out", m) for token, m in zip(tokens, mixed, strict=True)]
    h = torch.relu(linear("first", torch.cat(tokens)))
    for i in range(model.config.layers - 1):
        h = h + torch.relu(norm(f"blocks.{i}.norm", linear(f"blocks.{i}.linear", h)))
    return torch.sqrt(1 - sigma**2) * x_t + sigma * linear("last", h)


@pytest.mark.parametrize("attention", [True, False])
def test_against_a_naive_twin(attention: bool) -> None:
    model = make_denoiser(attention=attention).double()
    x_t, sigma, anchor = inputs(4, dtype=torch.float64)
    has_anchor = torch.tensor([True, False, True, False])
    found = model(x_t, sigma, anchor, has_anchor)
    for i in range(4):
        wanted = naive(model, x_t[i], sigma[i], anchor[i] if has_anchor[i] else None)
        torch.testing.assert_close(found[i], wanted, atol=1e-11, rtol=0)
    assert (found - x_t).abs().max() > 0.1


def test_attention_is_torchs() -> None:
    own = SelfAttention(24, 4).double()
    theirs = nn.MultiheadAttention(24, 4, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = own.qkv.weight.data, own.qkv.bias.data
    theirs.out_proj.load_state_dict(own.out.state_dict())
    nn.init.normal_(own.norm.weight, generator=generator())
    nn.init.normal_(own.norm.bias, generator=generator(1))
    tokens = torch.randn(5, 3, 24, generator=generator(2), dtype=torch.float64)
    normal = own.norm(tokens)
    torch.testing.assert_close(own(tokens), theirs(normal, normal, normal)[0], atol=1e-12, rtol=0)
    q, k, v = own.qkv(normal).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(own(tokens), own.out(mixed), atol=1e-12, rtol=0)


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_noise_the_input_passes_exactly(weights: torch.dtype, dtype: torch.dtype) -> None:
    model = make_denoiser().to(weights)
    x_t, _, anchor = inputs(5, dtype=dtype)
    found = model(x_t, torch.zeros((), dtype=dtype), anchor)
    assert found.dtype == dtype
    assert torch.equal(found, x_t)


def test_output_follows_the_input_and_barely_the_weights_type() -> None:
    x_t, sigma, anchor = inputs(20)
    exact = make_denoiser().double()(x_t.double(), sigma.double(), anchor.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(make_denoiser()(x_t, sigma, anchor), exact.float(), atol=1e-4, rtol=0)
    for dtype in (torch.bfloat16, torch.float16):
        found = make_denoiser().to(dtype)(x_t, sigma, anchor)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact.float(), atol=0.1, rtol=0)


def test_half_precision_tells_the_highest_levels_apart() -> None:
    model = make_denoiser().to(torch.bfloat16)
    x_t, _, anchor = inputs(1, dtype=torch.bfloat16)
    almost_one = torch.tensor([0.9990, 0.99995])
    assert (almost_one.bfloat16() == 1).all()
    first, second = model(x_t.expand(2, -1), almost_one, anchor.expand(2, -1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (6,), (2, 3)])
def test_a_sample_does_not_depend_on_its_batch(batch: tuple[int, ...]) -> None:
    model = make_denoiser()
    x_t, sigma, anchor = inputs(*batch)
    together = model(x_t, sigma, anchor)
    assert together.shape == (*batch, SIZE)
    flat = [value.reshape(-1, SIZE) for value in (together, x_t, anchor)]
    for found, x, a, s in zip(*flat, sigma.reshape(-1), strict=True):
        torch.testing.assert_close(found, model(x, s, a), atol=1e-6, rtol=0)


def test_one_level_may_serve_all() -> None:
    model = make_denoiser()
    x_t, _, anchor = inputs(2, 3)
    level = torch.tensor(0.4)
    assert torch.equal(model(x_t, level, anchor), model(x_t, level.expand(2, 3), anchor))


def test_the_null_token_hides_the_anchor() -> None:
    model = make_denoiser()
    x_t, sigma, anchor = inputs(4)
    has_anchor = torch.tensor([True, False, False, True])
    found = model(x_t, sigma, anchor, has_anchor)
    elsewhere = anchor.clone()
    elsewhere[1], elsewhere[2] = 1e3, torch.nan
    assert torch.equal(model(x_t, sigma, elsewhere, has_anchor), found)
    torch.testing.assert_close(found[1:3], model(x_t, sigma)[1:3], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[::3], model(x_t, sigma, anchor)[::3], atol=1e-6, rtol=0)
    assert (model(x_t, sigma) - model(x_t, sigma, anchor)).abs().max() > 1e-3


def test_every_weight_and_every_input_takes_part() -> None:
    model = make_denoiser()
    x_t, sigma, anchor = inputs(8)
    x_t, anchor = x_t.requires_grad_(), anchor.requires_grad_()
    has_anchor = torch.arange(8) % 2 == 0
    model(x_t, sigma, anchor, has_anchor).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert anchor.grad is not None
    assert (anchor.grad.abs().sum(-1) > 0).tolist() == has_anchor.tolist()


def test_the_default_has_the_size_of_the_papers() -> None:
    with torch.device("meta"):
        model = Denoiser()
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 6e6
    assert (model.config.heads, model.config.layers) == (4, 8)
    assert sum(isinstance(m, nn.Linear) and m.out_features == model.config.hidden for m in model.modules()) == 8


def test_it_starts_near_its_best_linear_guess() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Denoiser()
    x_t, sigma, anchor = inputs(200)
    with torch.no_grad():
        difference = model(x_t, sigma, anchor) - torch.sqrt(1 - sigma**2)[:, None] * x_t
    assert difference.std() < 1, "F must not be larger than its target, which has unit variance"


@pytest.mark.parametrize(
    "widths",
    [{"embed": 30}, {"embed": 0}, {"hidden": 0}, {"heads": 3}, {"heads": 0}, {"layers": 0}, {"embed": -32}],
)
def test_impossible_widths_are_refused(widths: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="embed a multiple of 2 \\* heads"):
        DenoiserConfig(**widths)  # type: ignore[arg-type]


def test_weights_load_strictly() -> None:
    weights = make_denoiser().state_dict()
    fresh = make_denoiser(seed=1)
    fresh.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), weights.values(), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({name: w for name, w in weights.items() if name != "null"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_denoiser(hidden=64).load_state_dict(weights)


def test_bfloat16_autocast_is_finite_and_close() -> None:
    model = make_denoiser()
    x_t, sigma, anchor = inputs(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for condition in (anchor, None):
            found = model(x_t, sigma, condition, None if condition is None else torch.arange(16) % 2 == 0)
            assert found.dtype == torch.float32
            assert torch.isfinite(found).all()
        conditional = model(x_t, sigma, anchor)
    torch.testing.assert_close(conditional, model(x_t, sigma, anchor), atol=0.05, rtol=0)
    conditional.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("batch", [(), (4,), (2, 2)])
def test_eq_4(scale: float, batch: tuple[int, ...]) -> None:
    model = make_denoiser().double()
    x_t, sigma, anchor = inputs(*batch, dtype=torch.float64)
    conditional, unconditional = model(x_t, sigma, anchor), model(x_t, sigma)
    found = guided_x0(model, x_t, sigma, anchor, scale)
    torch.testing.assert_close(found, (1 + scale) * conditional - scale * unconditional, atol=1e-12, rtol=0)
    # The same combination of the noises, as the paper writes it.
    signal, level = torch.sqrt(1 - sigma**2)[..., None], sigma[..., None]
    noise = lambda x0: (x_t - signal * x0) / level
    eps = (1 + scale) * noise(conditional) - scale * noise(unconditional)
    torch.testing.assert_close(noise(found), eps, atol=1e-9, rtol=0)
    absent = torch.zeros(batch, dtype=torch.bool)
    torch.testing.assert_close(guided_x0(model, x_t, sigma, anchor, scale, absent), unconditional, atol=1e-12, rtol=0)
