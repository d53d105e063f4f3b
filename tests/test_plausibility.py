"""Scores and the gate: naive twins, closed forms, uniform shares on held-out pairs, invariances, monotony."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import far_apart, gaussian_prior, generator, make_prior, random_pairs, rigidly_moved
from hypothesis import given
from hypothesis import strategies as st

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior, sample
from interhand_prior.canonical import SLICES, canonical_pair, to_canonical
from interhand_prior.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from interhand_prior.geometry import boundary_vertices, min_distance, vertex_normals
from interhand_prior.hands import open_hands
from interhand_prior.plausibility import BLOCKS, FINGERS, LEVELS, Calibration, log_residuals, placement_gate
from interhand_prior.plausibility.contact import CONTACT_SIZE, contact_evidence
from interhand_prior.plausibility.corruption import PLACEMENT, corrupted, noisy_fingers, strayed
from interhand_prior.plausibility.critic import fit_critic
from interhand_prior.plausibility.evidence import FINGER_SIZE, HAND_SIZE, PAIR_SIZE, own_evidence
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sds.uncertainty import measured, placement_trust
from interhand_prior.train import recalibrate

SHAPE = (len(LEVELS), len(BLOCKS))


def residuals(*batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*batch, *SHAPE, generator=generator(seed), dtype=torch.float64)


def test_quantiles_are_numpys() -> None:
    corpus = residuals(357)
    table = Calibration.fit(corpus).table
    wanted = np.quantile(corpus.numpy(), np.linspace(0, 1, 101), axis=0)
    np.testing.assert_allclose(table.numpy(), wanted.transpose(1, 2, 0), atol=1e-6)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_share_above_is_numpys_interpolation(seed: int, scale: float) -> None:
    calibration = Calibration.fit(residuals(200, seed=1))
    asked = scale * residuals(4, 3, seed=seed)
    asked[0, 0] = calibration.table[..., 37].double()  # exactly on an entry
    found = calibration.share_above(asked)
    assert found.shape == asked.shape
    for index in np.ndindex(*asked.shape):
        table = calibration.table[index[-2:]].double().numpy()
        below = np.interp(asked[index].item(), table, np.linspace(0, 1, 101))
        assert found[index].item() == pytest.approx(1 - below, abs=1e-9)


def test_share_above_survives_equal_quantiles() -> None:
    calibration = Calibration(torch.zeros(*SHAPE, 101))
    for value, wanted in ((-1.0, 1.0), (1.0, 0.0)):
        assert (calibration.share_above(torch.full(SHAPE, value)) == wanted).all()
    assert torch.isfinite(calibration.share_above(torch.zeros(SHAPE))).all()


def test_the_corpus_itself_is_scored_evenly() -> None:
    corpus = residuals(5000)
    shares = Calibration.fit(corpus).share_above(corpus)
    even = torch.linspace(1, 0, 5000, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(shares.sort(0, descending=True).values, even.expand_as(shares), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "table", [torch.zeros(2, 2, 100), torch.full((2, 2, 101), math.nan), -torch.arange(404.0).reshape(2, 2, 101)]
)
def test_a_bad_table_is_refused(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"finite, rising, of shape \(2, 2, 101\)"):
        Calibration(table)


def test_log_residuals_against_a_loop(prior: TwoHandPrior) -> None:
    hands = random_pairs(2, 2)
    partner, anchor = canonical_pair(prior, hands)
    found = log_residuals(prior, partner, anchor)
    assert found.shape == (2, 2, *SHAPE)
    noise = prior.probe_noise.double()
    assert len(noise) == 4
    assert torch.equal(noise[:2], -noise[2:]), "opposite noises"
    for i, j in np.ndindex(2, 2):
        for at, sigma in enumerate(LEVELS):
            level = torch.tensor(sigma, dtype=torch.float64)
            square = torch.zeros(64, dtype=torch.float64)
            for probe in noise:
                for direction in (0, 1):
                    x = partner[direction, i, j]
                    x0 = prior.denoiser(math.sqrt(1 - sigma**2) * x + sigma * probe, level, anchor[direction, i, j])
                    square += (x - x0) ** 2 / 8
            for block, name in enumerate(BLOCKS):
                wanted = math.log((1 - sigma**2) / sigma**2 * square[SLICES[name]].mean().item())
                assert found[i, j, at, block].item() == pytest.approx(wanted, abs=1e-9)


# The gate --------------------------------------------------------------------------------------------------------


def test_the_gate_falls_from_the_70th_to_the_99th_percentile() -> None:
    calibration = Calibration.fit(residuals(1000))
    relative = BLOCKS.index("relative")
    open_at, shut_at = calibration.table[:, relative, 70].double(), calibration.table[:, relative, 99].double()
    asked = torch.zeros(5, *SHAPE, dtype=torch.float64)
    asked[..., relative] = torch.stack([open_at - 1, open_at, (open_at + shut_at) / 2, shut_at, shut_at + 9])
    found = placement_gate(calibration, asked)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]).double(), atol=1e-6, rtol=0)
    asked[..., 1 - relative] = 99.0
    assert torch.equal(placement_gate(calibration, asked), found), "fingers do not count"
    asked[0, 1, relative] = 99.0
    assert placement_gate(calibration, asked)[0] == 0, "the worst level decides"


@given(seed=st.integers(0, 1000), more=st.floats(0, 5))
def test_the_gate_never_opens_when_a_residual_grows(seed: int, more: float) -> None:
    calibration = Calibration.fit(residuals(300))
    asked = residuals(8, seed=seed)
    gate = placement_gate(calibration, asked)
    assert ((gate >= 0) & (gate <= 1)).all()
    worse = asked + more * torch.rand(asked.shape, generator=generator(seed), dtype=torch.float64)
    assert (placement_gate(calibration, worse) <= gate).all()
    assert (calibration.share_above(worse) <= calibration.share_above(asked)).all()


# What the critics read ---------------------------------------------------------------------------------------------


def test_contact_against_a_loop() -> None:
    hands = random_pairs(2, seed=3)
    models = open_hands()
    found = contact_evidence(hands, models)
    assert found.shape == (2, 2, CONTACT_SIZE)
    left, right = hands.vertices()
    sides = ((right, left, models.right, models.left), (left, right, models.left, models.right))
    for view, (points, surface, model, other) in enumerate(sides):
        rim = boundary_vertices(other.faces, 778)
        for pair in range(2):
            normals = vertex_normals(surface[pair], other.faces)
            nearest = dict.fromkeys(range(16), 1.0)
            signed = []
            for at in range(0, 778, 2):
                offset = surface[pair] - points[pair, at]
                index = int(offset.norm(dim=-1).argmin())
                distance, depth = offset[index].norm().item(), (normals[index] @ offset[index]).item()
                inside = depth > 0 and distance < 0.025 and not rim[index]
                signed.append(-depth if inside else distance)
                part = int(model.arrays.weights[at].argmax())
                nearest[part] = min(nearest[part], signed[-1])
            row = found[view, pair]
            for part, value in nearest.items():
                assert row[part].item() == pytest.approx(math.exp(-max(value, 0) / 0.006), abs=1e-9)
                assert row[32 + part].item() == pytest.approx(math.log1p(min(max(-1e3 * value, 0), 15)), abs=1e-9)
            assert row[48].item() == pytest.approx(min(signed), abs=1e-12)
            assert row[51].item() == pytest.approx(math.log1p(sum(value < 0 for value in signed)), abs=1e-12)
            assert row[-1].item() == pytest.approx(math.log1p(1e3 * sum(max(-value, 0) for value in signed)), abs=1e-9)


def test_evidence_of_a_hand_does_not_depend_on_its_place_or_partner(prior: TwoHandPrior) -> None:
    hands = random_pairs(3)
    partner, _ = canonical_pair(prior, hands)
    elsewhere = partner.clone()
    elsewhere[..., SLICES["relative"]] += 1
    for mine, moved in zip(own_evidence(prior, partner), own_evidence(prior, elsewhere), strict=True):
        torch.testing.assert_close(mine, moved, atol=1e-12, rtol=0)
    own = own_evidence(prior, partner)
    assert own.hand.shape == (2, 3, 1, HAND_SIZE)
    assert own.finger.shape == (2, 3, 5, 1, FINGER_SIZE)
    bent = partner.clone()
    bent[0, 0, 9:18] += 2.0  # the middle finger of the first right hand
    change = (own_evidence(prior, bent).finger - own.finger).abs().amax((-1, -2))
    assert change[0, 0].argmax() == FINGERS.index("middle")
    assert change[1].max() == change[0, 1:].max() == 0


# Corruptions -------------------------------------------------------------------------------------------------------


def test_corruptions_are_what_they_say() -> None:
    hands, models = random_pairs(200), open_hands()
    wrong, kind = corrupted(hands, models, generator(1))
    again, _ = corrupted(hands, models, generator(1))
    assert torch.equal(wrong.right.transl, again.right.transl)
    assert set(kind.tolist()) == set(range(7))
    (_, before, _), (_, after, _) = to_canonical(hands, models), to_canonical(wrong, models)
    changed = lambda name: ((after - before)[:, SLICES[name]].abs() > 1e-7).any(-1)
    placement = kind < PLACEMENT
    assert torch.equal(changed("relative"), placement)
    assert torch.equal(changed("hand_pose") | changed("betas"), kind == 5) or (kind == 6).any()
    assert not changed("own")[placement].any()
    length = (after - before)[kind == 1][:, SLICES["transl"]].norm(dim=-1)
    assert 0.01 <= length.min() < 0.03 < 0.06 < length.max() <= 0.08
    left, right = wrong[kind == 2].vertices()
    assert (min_distance(left, right) < 0.01).all(), "pushed hands meet"
    norm = lambda value: value[kind == 3][:, SLICES["transl"]].norm(dim=-1)
    torch.testing.assert_close(norm(after), norm(before))


def test_strayed_hands_are_far() -> None:
    hands, models = random_pairs(40), open_hands()
    (_, before, _), (_, after, _) = (to_canonical(h, models) for h in (hands, strayed(hands, models, generator(2))))
    change = after - before
    length = change[:, SLICES["transl"]].norm(dim=-1)
    assert 0.1 <= length.min() < 0.2 < 0.5 < length.max() <= 0.6
    assert change[:, : SLICES["transl"].start].abs().max() < 1e-9


def test_noisy_fingers_say_which() -> None:
    hands = random_pairs(50)
    noisy, masks = noisy_fingers(hands, generator())
    for mine, old, mask in ((noisy.right, hands.right, masks[0]), (noisy.left, hands.left, masks[1])):
        moved = (mine.hand_pose != old.hand_pose).unflatten(-1, (5, 9))
        assert torch.equal(moved.any(-1), mask)
        assert torch.equal(moved.all(-1), mask)
        assert torch.equal(mine.transl, old.transl)
    assert 0.4 < masks.float().mean() < 0.6


# The critic --------------------------------------------------------------------------------------------------------


def test_a_critic_finds_the_likelihood_ratio() -> None:
    """N(0, 1) against N(2, 1): the best AUROC is Phi(sqrt 2) = .921, and the logit falls with x."""
    draw = generator()
    real, wrong = torch.randn(800, 1, 1, generator=draw), 2 + torch.randn(2, 800, 1, 1, generator=draw)
    critic = fit_critic(real, wrong, seed=0)
    grid = torch.linspace(-2, 4, 50)[:, None, None]
    assert (critic.logits(grid).diff() < 0).all()
    fresh, other = torch.randn(2000, 1, 1, generator=draw), 2 + torch.randn(2000, 1, 1, generator=draw)
    a, b = critic.logits(fresh), critic.logits(other)
    found = (a[:1000, None] > b[None, :1000]).float().mean().item()
    assert found == pytest.approx(0.921, abs=0.02)
    # Shares of real ones are even, and equal to those of the only statistic there is.
    torch.testing.assert_close(critic.shares(fresh), torch.special.ndtr(-fresh[:, 0, 0]), atol=0.08, rtol=0)


def test_percentiles_are_of_pairs_that_were_not_fitted_on() -> None:
    """Evidence that says nothing, and much of it: a critic learns its pairs by heart, and shares stay even."""
    draw = generator(4)
    real, wrong = torch.randn(120, 1, 60, generator=draw), torch.randn(4, 120, 1, 60, generator=draw)
    critic = fit_critic(real, wrong, seed=0)
    by_heart = critic.shares(real).mean().item()
    fresh = critic.shares(torch.randn(3000, 1, 60, generator=draw)).mean().item()
    assert by_heart > 0.6, "the test is no test if nothing was learned by heart"
    assert fresh == pytest.approx(0.5, abs=0.09)


def test_copies_that_are_not_wrong_do_not_count() -> None:
    draw = generator(5)
    real, wrong = torch.randn(50, 2, 3, generator=draw), 1 + torch.randn(2, 50, 2, 3, generator=draw)
    void = torch.full((1, 50, 2, 3), math.nan)
    assert torch.equal(
        fit_critic(real, torch.cat((wrong, void)), seed=0).weight, fit_critic(real, wrong, seed=0).weight
    )


def test_views_are_exchangeable_and_kinds_have_tables() -> None:
    draw = generator(6)
    real, wrong = torch.randn(40, 2, 5, 1, 3, generator=draw), 1 + torch.randn(1, 40, 2, 5, 1, 3, generator=draw)
    critic = fit_critic(real, wrong, seed=0, kinds=1)
    assert critic.table.shape == (5, 101)
    assert critic.shares(real).shape == (40, 2, 5)
    pair = torch.randn(7, 2, 3, generator=draw)
    assert torch.equal(critic.logits(pair), critic.logits(pair.flip(1)))


# Through the prior -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def critical() -> TwoHandPrior:
    """A prior that knows its random pairs exactly, with critics; tests must not change it."""
    return gaussian_prior().calibrate(random_pairs(150))


def with_noise(pairs: TwoHands, radians: float) -> TwoHands:
    noise = radians * torch.randn(*pairs.left.hand_pose.shape, generator=generator(8), dtype=torch.float64)
    values = pairs.left.as_dict() | {"hand_pose": pairs.left.hand_pose + noise}
    return TwoHands(HandParams(**values), pairs.right)


def test_scores_of_held_out_pairs_are_even(critical: TwoHandPrior) -> None:
    for name, value in vars(critical.score(random_pairs(200, seed=9))).items():
        assert ((value >= 0) & (value <= 1)).all()
        columns = value.reshape(200, -1)
        assert columns.mean().item() == pytest.approx(0.5, abs=0.09), name
        assert 0.2 < columns.std() < 0.35, name


def test_the_more_is_wrong_the_lower_the_score(critical: TwoHandPrior) -> None:
    pairs = random_pairs(40, seed=11)
    hand, apart = [], []
    for size in (0.0, 0.4, 1.2):
        score = critical.score(with_noise(pairs, size))
        hand.append((score.left.mean().item(), score.left_fingers.mean().item(), score.pair.mean().item()))
        assert torch.equal(score.right, critical.score(pairs).right), "the other hand by itself is as it was"
    for size in (0.0, 0.2, 0.5):
        score = critical.score(far_apart(pairs, size))
        apart.append((score.placement.mean().item(), score.pair.mean().item()))
    for rows in (hand, apart):
        for part in zip(*rows, strict=True):
            assert list(part) == sorted(part, reverse=True)
            assert part[-1] < 0.2 < part[0]


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 2)])
def test_a_score_depends_on_the_pair_alone(calibrated: TwoHandPrior, batch: tuple[int, ...]) -> None:
    hands = random_pairs(*batch)
    score = calibrated.score(hands)
    for name, value in vars(score).items():
        assert value.shape == (*batch, 5) if "fingers" in name else value.shape == batch
    rotation = axis_angle_to_matrix(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
    for name, value in vars(calibrated.score(rigidly_moved(hands, rotation, rotation[0]))).items():
        torch.testing.assert_close(value, getattr(score, name), atol=1e-9, rtol=0)
    other_side = {"left": "right", "right": "left", "left_fingers": "right_fingers", "right_fingers": "left_fingers"}
    for name, value in vars(calibrated.score(hands.mirrored())).items():
        torch.testing.assert_close(value, getattr(score, other_side.get(name, name)), atol=1e-12, rtol=0)
    if len(batch) == 1 and batch[0]:
        for name, value in vars(calibrated.score(hands[1])).items():
            torch.testing.assert_close(value, getattr(score, name)[1], atol=1e-9, rtol=0)


def test_batches_are_cut_without_a_trace(calibrated: TwoHandPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    hands = random_pairs(5)
    whole = calibrated.score(hands)
    monkeypatch.setattr("interhand_prior.plausibility.scoring.CHUNK", 2)
    for name, value in vars(calibrated.score(hands)).items():
        torch.testing.assert_close(value, getattr(whole, name), atol=1e-9, rtol=0)


@pytest.mark.parametrize("rubbish", [0.0, math.nan])
def test_missing_hands(calibrated: TwoHandPrior, rubbish: float) -> None:
    hands = random_pairs(4)
    whole = calibrated.score(hands)
    left_valid = torch.tensor([True, False, True, False])
    right_valid = torch.tensor([True, True, False, False])
    hide = lambda hand, valid: hand.map(lambda value: value.where(valid[:, None], rubbish))
    some = TwoHands(hide(hands.left, left_valid), hide(hands.right, right_valid), None, {}, left_valid, right_valid)
    there = {"left": left_valid, "right": right_valid, "pair": left_valid & right_valid}
    for name, value in vars(calibrated.score(some)).items():
        valid = there[{"placement": "pair"}.get(name, name.removesuffix("_fingers"))]
        assert value[~valid].isnan().all()
        torch.testing.assert_close(value[valid], getattr(whole, name)[valid], atol=1e-9, rtol=0)


def test_trust_and_measure_are_made_of_the_residuals(calibrated: TwoHandPrior) -> None:
    hands, calibration = random_pairs(3), calibrated.require_calibration()
    residuals = log_residuals(calibrated, *canonical_pair(calibrated, hands))
    assert torch.equal(calibrated.trust(hands), placement_gate(calibration, residuals))
    known = measured(calibration, residuals)
    assert torch.equal(torch.as_tensor(calibrated.measure(hands).transl), torch.as_tensor(known.transl))
    assert torch.equal(calibrated.trust(hands, known), placement_trust(calibration, residuals, known))


def test_calibration_is_repeatable_and_follows_its_seed() -> None:
    pairs, prior = random_pairs(6), make_prior()
    state = torch.get_rng_state()

    def learned(seed: int) -> dict[str, torch.Tensor]:
        prior.calibrate(pairs, seed=seed)
        return prior.require_critics().tensors() | {"table": prior.require_calibration().table}

    first, again, other = learned(0), learned(0), learned(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not torch.equal(other["table"], first["table"])
    assert not torch.equal(other["pair.weight"], first["pair.weight"])
    assert prior.calibrate(random_pairs(2)).score(pairs).pair.isfinite().all(), "two pairs are enough to run"


def test_critics_come_back_bit_for_bit(calibrated: TwoHandPrior, tmp_path: Path) -> None:
    first = load_prior(calibrated.save_pretrained(tmp_path / "first"), dtype=torch.float64)
    again = load_prior(first.save_pretrained(tmp_path / "again"), dtype=torch.float64)
    hands = random_pairs(3)
    wanted = first.score(hands)
    for name, value in vars(again.score(hands)).items():
        assert torch.equal(value, getattr(wanted, name)), name
    tables = [vars(prior.require_calibration()) for prior in (again, calibrated)]
    assert all(torch.equal(tables[0][name], value) for name, value in tables[1].items())
    for name, value in calibrated.require_critics().tensors().items():
        assert torch.equal(again.require_critics().tensors()[name], value), name


def test_a_folder_without_critics_gates_and_does_not_score(calibrated: TwoHandPrior, tmp_path: Path) -> None:
    config, tensors = read_checkpoint(calibrated.save_pretrained(tmp_path))
    old = {name: value for name, value in tensors.items() if not name.startswith("critics.")}
    del old["calibration.noise_table"]
    write_checkpoint(tmp_path, config, old)
    prior = load_prior(tmp_path, dtype=torch.float64)
    hands = random_pairs(2)
    torch.testing.assert_close(prior.trust(hands), calibrated.trust(hands), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no noise table"):
        prior.measure(hands)
    with pytest.raises(ValueError, match=r"no critics to score with.*prior\.calibrate"):
        prior.score(hands)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("calibration.noise_table", torch.zeros(10, 3, 4), "noise_table must be"),
        ("critics.pair.mean", None, "missing"),
        ("critics.hand.table", torch.zeros(5, 101), r"hand\.table"),
        ("critics.finger.table", -torch.arange(505.0).reshape(5, 101), "rising"),
        ("critics.pair.spread", torch.zeros(PAIR_SIZE), "positive"),
        ("critics.pair.weight", torch.zeros(32, 3), r"pair\.weight"),
        ("critics.pair.colour", torch.zeros(1), "colour"),
        ("critics.judge.mean", torch.zeros(1), "missing|judge"),
    ],
)
def test_what_is_no_critic_is_refused(
    calibrated: TwoHandPrior, tmp_path: Path, name: str, value: torch.Tensor | None, words: str
) -> None:
    config, tensors = read_checkpoint(calibrated.save_pretrained(tmp_path))
    tensors.pop(name, None)
    write_checkpoint(tmp_path, config, tensors if value is None else tensors | {name: value})
    with pytest.raises(CheckpointError, match=words):
        load_prior(tmp_path)


def test_wrong_pairs_are_refused(prior: TwoHandPrior, calibrated: TwoHandPrior) -> None:
    with pytest.raises(ValueError, match="no critics"):
        prior.score(random_pairs(1))
    for batch in ((), (1,), (0,), (2, 3)):
        with pytest.raises(ValueError, match=r"batch shape \(N,\) with N >= 2"):
            prior.calibrate(random_pairs(*batch))
    bad = random_pairs(2)
    bad.right.transl[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"hands\.right\.transl holds NaN"):
        calibrated.score(bad)
    with pytest.raises(ValueError, match=r"hands\.right\.transl holds NaN"):
        make_prior().calibrate(bad)


def test_recalibration_keeps_everything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = make_prior(torch.float32).calibrate(random_pairs(4, seed=1, dtype=torch.float32))
    folder = old.save_pretrained(tmp_path / "old", dtype=torch.float16)
    (tmp_path / "corpus").mkdir()
    random_pairs(5, seed=2, dtype=torch.float32).save(tmp_path / "corpus" / "val-00000.npz")
    arguments = ["--prior", str(folder), "--data", str(tmp_path / "corpus"), "--out", str(tmp_path / "new")]
    assert recalibrate.main(arguments) == 0
    (config, before), (new_config, after) = read_checkpoint(folder), read_checkpoint(tmp_path / "new")
    assert new_config == config
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        same = torch.equal(after[name], value)
        assert same or name.startswith("critics."), name
    assert not torch.equal(after["critics.pair.weight"], before["critics.pair.weight"])
    assert load_prior(tmp_path / "new").score(random_pairs(2, dtype=torch.float32)).pair.isfinite().all()
    assert recalibrate.main([*arguments[:3], str(tmp_path / "nowhere"), *arguments[4:]]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_the_bundled_prior_tells_its_samples_from_pushed_ones() -> None:
    prior = load_prior()
    pairs = sample(prior, 24, seed=0, steps=10, penetration_scale=0)
    left, right = (value.mean(-2) for value in pairs.vertices())
    inwards = 0.06 * torch.nn.functional.normalize(left - right, dim=-1)
    values = pairs.right.as_dict() | {"transl": pairs.right.transl + inwards}
    usual, wrong = prior.score(pairs), prior.score(TwoHands(pairs.left, HandParams(**values)))
    assert wrong.pair.mean() < 0.5 * usual.pair.mean()
    torch.testing.assert_close(wrong.left, usual.left, atol=1e-4, rtol=0)
