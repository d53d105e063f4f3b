"""The evaluation report, the stored reference, and the command around them."""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import far_apart, generator, other_hands, random_pairs
from torch import Tensor

from interhand_prior import TwoHands
from interhand_prior.checkpoint import CheckpointError, write_checkpoint
from interhand_prior.metrics import (
    METRICS,
    Reference,
    Report,
    Settings,
    Value,
    diversity,
    evaluate,
    frechet_distance,
    load_reference,
    precision_recall,
    reference,
    squared_mmd,
)
from interhand_prior.metrics import __main__ as command
from interhand_prior.metrics.contact import CONTACT, measure_contact, summarise
from interhand_prior.metrics.features import FeatureNetwork
from interhand_prior.metrics.penetration import penetration_distance, penetration_volume
from interhand_prior.metrics.scores import FEATURE_METRICS, score_against_itself, score_contact, score_features


class Poses:
    """A feature function without a network: some of the parameters."""

    identity: str | None = "poses"

    def __init__(self, width: int = 6) -> None:
        self.width, self.seen = width, 0

    def __call__(self, pairs: TwoHands) -> Tensor:
        self.seen += len(pairs)
        return torch.cat((pairs.right.transl, pairs.left.hand_pose), -1)[:, : self.width].float()


class Contact:
    """Contact without meshes: sizes of parameters, and a failure wherever the left hand is far to the left."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[str, ...], int | None]] = []

    def __call__(
        self, pairs: TwoHands, names: Sequence[str] = CONTACT, /, *, workers: int | None = None, progress: bool = False
    ) -> Mapping[str, Tensor]:
        self.calls.append((len(pairs), tuple(names), workers))
        size = pairs.right.transl.double().norm(dim=-1)
        volume = torch.where(pairs.left.transl[:, 0] < -10, math.nan, size)
        near = lambda threshold: (size < threshold).double()
        values = dict(zip(CONTACT, (volume, 2 * size, near(0.4), near(0.2)), strict=True))
        return {name: values[name] for name in names}


def fails(pairs: TwoHands, *which: int) -> TwoHands:
    """The same pairs, for some of which `Contact` fails."""
    transl = pairs.left.transl.clone()
    transl[list(which), 0] -= 100
    return replace(pairs, left=replace(pairs.left, transl=transl))


@pytest.fixture(scope="module")
def samples() -> TwoHands:
    return random_pairs(40, seed=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def real() -> TwoHands:
    return random_pairs(50, seed=2, dtype=torch.float32)


QUICK = {"repeats": 4, "precision_recall_num": 30, "subset_size": 20, "subsets": 3}


def quick(samples: TwoHands, real: TwoHands | Reference | None, **more: object) -> Report:
    options = {"features": Poses(), "contact": Contact(), **QUICK, **more}
    return evaluate(samples, real, **options)  # type: ignore[arg-type]


# Scores


def features(n: int, seed: int = 0, shift: float = 0.0, d: int = 4) -> Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64) + shift


def test_scores_are_the_metrics() -> None:
    a, b = features(60, 1), features(50, 2, 0.4)
    settings = Settings(repeats=3, precision_recall_num=None, subset_size=None)
    found = score_features(a, b, FEATURE_METRICS, settings)
    assert list(found) == list(FEATURE_METRICS)
    assert found["fhid"].mean == frechet_distance(a, b)
    assert found["khid"].mean == pytest.approx(squared_mmd(a, b), rel=1e-12)
    assert (found["precision"].mean, found["recall"].mean) == pytest.approx(precision_recall(a, b, num=None))
    stream = settings.generator("diversity")
    draws = torch.tensor([diversity(a, generator=stream) for _ in range(3)], dtype=torch.float64)
    assert found["diversity"] == Value(float(draws.mean()), float(draws.std()))
    # Nothing was drawn for these, so nothing spreads.
    assert found["khid"].std == found["precision"].std == found["recall"].std == 0


def test_a_metric_does_not_depend_on_its_company() -> None:
    a, b = features(60, 1), features(50, 2, 0.4)
    settings = Settings(repeats=3, precision_recall_num=30, subset_size=20, subsets=2)
    together = score_features(a, b, FEATURE_METRICS, settings)
    apart = score_against_itself(b, FEATURE_METRICS, settings)
    for name in FEATURE_METRICS:
        assert score_features(a, b, [name], settings) == {name: together[name]}
        assert score_against_itself(b, [name], settings) == {name: apart[name]}
    other = score_features(a, b, FEATURE_METRICS, replace(settings, seed=1))
    assert all(other[name] != together[name] for name in FEATURE_METRICS)
    assert other["fhid"].mean == together["fhid"].mean


def test_the_bootstrap_tells_the_spread_over_new_samples() -> None:
    # FHID and a mean, over many fresh sets and from one set alone.
    b = features(400, 999, 0.5)
    settings = Settings(repeats=60)
    fresh = torch.tensor([frechet_distance(features(200, i), b) for i in range(80)])
    told = torch.tensor([score_features(features(200, i), b, ["fhid"], settings)["fhid"].std for i in range(8)])
    assert float(told.mean()) == pytest.approx(float(fresh.std()), rel=0.3)

    values = features(500, 5)[:, 0]
    value = score_contact(values, Settings(repeats=400))
    assert value.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert value.std == pytest.approx(float(values.std()) / math.sqrt(500), rel=0.12)


def test_contact_that_failed_is_in_no_mean() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, 2.0, math.nan, 2.0] * 20)
    kept = values[~values.isnan()]
    value = score_contact(values, Settings(repeats=300))
    assert value.mean == 2.0
    assert value.std == pytest.approx(float(kept.std()) / math.sqrt(80), rel=0.2)
    assert summarise(values) == {"mean": 2.0, "sd": pytest.approx(float(kept.std())), "count": 80, "failed": 40}
    nothing = torch.full((3,), math.nan)
    assert math.isnan(score_contact(nothing, Settings()).mean)
    assert summarise(nothing) == {"mean": None, "sd": None, "count": 0, "failed": 3}


def test_real_data_against_itself_is_the_floor() -> None:
    b = features(400, 3)
    floor = score_against_itself(b, FEATURE_METRICS, Settings(repeats=6, subset_size=150))
    assert floor["fhid"].mean == pytest.approx(frechet_distance(features(200, 4), features(200, 5)), abs=0.1)
    assert abs(floor["khid"].mean) < 0.05
    assert floor["precision"].mean > 0.85
    assert floor["recall"].mean > 0.85
    assert score_against_itself(b[:9], FEATURE_METRICS, Settings()) == {}


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"k": 0}, {"subset_size": 1}, {"precision_recall_num": 5}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


# Report


def test_a_report_holds_every_metric(samples: TwoHands, real: TwoHands) -> None:
    poses, contact = Poses(), Contact()
    report = quick(samples, real, features=poses, contact=contact, workers=3, reference_contact=True)
    assert list(report.values) == list(report.floor) == list(METRICS)
    assert all(math.isfinite(value.mean) and value.std >= 0 for value in report.values.values())
    assert report["fhid"].mean == pytest.approx(frechet_distance(poses(samples), poses(real)), rel=1e-3)
    assert report["penetration_volume"].mean == pytest.approx(float(samples.right.transl.norm(dim=-1).mean()))
    assert report.floor["penetration_volume"].mean == pytest.approx(float(real.right.transl.norm(dim=-1).mean()))
    assert contact.calls == [(40, CONTACT, 3), (50, CONTACT, 3)]
    assert report.counts == {
        "samples": 40,
        "failed_booleans": 0,
        "reference_failed_booleans": 0,
        "reference": 50,
        "dimension": 6,
    }
    assert report.settings["repeats"] == 4
    assert report.settings["features"] == "poses"


def test_a_seed_repeats_a_report(samples: TwoHands, real: TwoHands) -> None:
    found = [quick(samples, real, seed=seed).as_dict()["values"] for seed in (5, 5, 6)]
    assert found[0] == found[1]
    assert found[0]["khid"] != found[2]["khid"]
    assert found[0]["fhid"]["mean"] == found[2]["fhid"]["mean"]


def test_better_samples_score_better(samples: TwoHands, real: TwoHands) -> None:
    good, bad = quick(samples, real), quick(far_apart(samples, 1.0), real)
    for name in ("fhid", "khid"):
        assert good[name].mean < bad[name].mean
    for name in ("precision", "recall"):
        assert good[name].mean > bad[name].mean
    same = quick(real, real)
    assert same["fhid"].mean < 1e-6
    assert same["precision"].mean == quick(real, real, metrics="precision")["precision"].mean


def test_only_what_is_asked_for_is_computed(samples: TwoHands, real: TwoHands) -> None:
    poses, contact = Poses(), Contact()
    report = quick(samples, None, features=poses, contact=contact, metrics=("touch_share", "penetration_distance"))
    assert list(report.values) == ["penetration_distance", "touch_share"]
    assert report.counts == {"samples": 40}
    assert report.floor == {}
    assert (poses.seen, contact.calls) == (0, [(40, ("penetration_distance", "touch_share"), None)])

    report = quick(samples, real, contact=contact, metrics=["recall"], floor=False)
    assert (list(report.values), report.floor, len(contact.calls)) == (["recall"], {}, 1)


def test_failed_booleans_are_counted_and_said(samples: TwoHands, real: TwoHands) -> None:
    report = quick(fails(samples, 3, 7), fails(real, 1), reference_contact=True)
    assert report.counts["failed_booleans"] == 2
    assert report.counts["reference_failed_booleans"] == 1
    kept = [i for i in range(40) if i not in (3, 7)]
    assert report["penetration_volume"].mean == pytest.approx(float(samples.right.transl[kept].norm(dim=-1).mean()))
    assert "2 of 40 pairs could not be computed" in report.notices[0]
    assert "failed booleans 2" in report.table()
    lost = quick(fails(samples, *range(40)), real)
    assert "unknown" in lost.table()
    assert lost.as_dict()["values"]["penetration_volume"] == {"mean": None, "std": None}


def test_what_spoils_a_comparison_is_said(samples: TwoHands, real: TwoHands) -> None:
    assert quick(samples, real).notices == ()
    wide = quick(samples, real, features=Poses(45), repeats=1, subset_size=1000, precision_recall_num=1000)
    said = " ".join(wide.notices)
    for text in ("40 samples in 45 feature dimensions", "KHID", "precision and recall", "no standard deviations"):
        assert text in said
    assert wide.as_dict()["values"]["khid"]["std"] is None
    others = replace(samples, hands=other_hands())
    assert "different hand models" in quick(others, real).notices[0]
    assert "different hand models" in quick(others, Reference.from_pairs(real, Poses(), contact=False)).notices[0]


def test_a_table_is_aligned_text(samples: TwoHands, real: TwoHands) -> None:
    table = quick(samples, real).table()
    assert table.isascii()
    lines = table.splitlines()
    assert lines[0].split() == ["metric", "samples", "real", "against", "real"]
    assert [line.split()[0] for line in lines[2:11]] == [metric.label for metric in METRICS.values()]
    column = lines[0].index("real")
    assert all(line[column - 2 : column] == "  " for line in lines[2:7])
    assert "cm^3, lower is better" in table
    assert "+-" in table


def test_a_report_is_written_whole_or_not_at_all(
    samples: TwoHands, real: TwoHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = quick(samples, real)
    path = report.save(tmp_path / "report.json")
    found = json.loads(path.read_text())
    assert found == report.as_dict()
    assert found["values"]["fhid"]["mean"] == report["fhid"].mean
    assert found["units"] == {"penetration_volume": "cm^3", "penetration_distance": "cm"}
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        quick(samples, real, seed=1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_wrong_arguments_are_refused_before_the_work(samples: TwoHands, real: TwoHands) -> None:
    contact = Contact()
    refuse = lambda match, *args, **more: pytest.raises(ValueError, match=match)
    with pytest.raises(ValueError, match=r"metrics must be names from fhid, .*; got fid"):
        quick(samples, real, metrics=["fid", "khid"], contact=contact)
    with pytest.raises(ValueError, match="got none"):
        quick(samples, real, metrics=[], contact=contact)
    with refuse("at least 2 pairs, got 1"):
        quick(samples[:1], real, contact=contact)
    with pytest.raises(TypeError, match="samples must be TwoHands"):
        quick(samples.left, real, contact=contact)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="reference must be TwoHands, a Reference or None, got str"):
        quick(samples, "bundled", contact=contact)  # type: ignore[arg-type]
    broken = replace(samples, left=replace(samples.left, betas=samples.left.betas * math.nan))
    with refuse("NaN"):
        quick(broken, real, contact=contact)
    with pytest.raises(ValueError, match=r"samples.left.betas"):
        quick(broken, real, contact=contact)
    with pytest.raises(ValueError, match=r"reference.left.betas"):
        quick(samples, broken, contact=contact)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        quick(samples, real, repeats=0, contact=contact)
    with pytest.raises(TypeError, match="repeat"):
        quick(samples, real, repeat=3, contact=contact)
    for wrong, text in [(lambda p: p.left.betas[0], "shape"), (lambda p: p.left.betas * math.nan, "NaN")]:
        with pytest.raises(ValueError, match=text):
            quick(samples, real, features=wrong, contact=contact)
    with pytest.raises(ValueError, match="3 rows for 2 pairs"):
        quick(samples, real, features=lambda p: torch.ones(3, 4), contact=contact)
    assert contact.calls == []


def test_any_batch_shape_and_dtype_is_taken(samples: TwoHands, real: TwoHands) -> None:
    flat = quick(samples, real).as_dict()["values"]
    assert quick(samples.reshape(4, 10), real.reshape(5, 10)).as_dict()["values"] == flat
    found = quick(samples.to(torch.float64), real).as_dict()["values"]
    assert found["fhid"]["mean"] == pytest.approx(flat["fhid"]["mean"], rel=1e-4)


def test_bars_are_shown_on_stderr_only(samples: TwoHands, real: TwoHands, capsys: pytest.CaptureFixture[str]) -> None:
    silent = quick(samples, real)
    assert capsys.readouterr() == ("", "")
    assert quick(samples, real, progress=True).as_dict() == silent.as_dict()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "features of the samples" in printed.err
    assert "4/4" in printed.err


def test_contact_is_measured_on_the_meshes(samples: TwoHands) -> None:
    pairs = TwoHands.cat([far_apart(samples[:3], metres) for metres in (0.0, 5.0)])
    found = measure_contact(pairs, ["touch_share", "proximity_ratio"])
    assert list(found) == ["proximity_ratio", "touch_share"]
    left, right = pairs.vertices()
    gap = torch.cdist(left, right).amin((1, 2))
    assert found["proximity_ratio"].tolist() == (gap < 0.02).double().tolist()
    assert found["touch_share"].tolist() == (gap < 0.003).double().tolist()
    assert found["proximity_ratio"][3:].tolist() == [0, 0, 0]


def test_volumes_and_depths_come_from_their_own_module(samples: TwoHands) -> None:
    found = measure_contact(samples[:4], ["penetration_volume", "penetration_distance"], workers=1)
    volumes = penetration_volume(samples[:4], workers=1)
    torch.testing.assert_close(found["penetration_volume"], volumes.cm3, equal_nan=True)
    torch.testing.assert_close(found["penetration_distance"], penetration_distance(samples[:4]).double())


# Reference


def test_a_reference_goes_round(real: TwoHands, samples: TwoHands, tmp_path: Path) -> None:
    made = Reference.from_pairs(fails(real, 2), Poses(), measure=Contact(), info={"split": "test"})
    loaded = Reference.load(made.save(tmp_path / "reference"))
    assert torch.equal(loaded.features, made.features)
    assert (loaded.identity, loaded.hands, loaded.info) == ("poses", made.hands, {"split": "test"})
    assert loaded.contact == made.contact
    assert loaded.contact["penetration_volume"]["failed"] == 1
    assert (len(loaded), loaded.dimension) == (50, 6)
    torch.testing.assert_close(loaded.features, Poses()(fails(real, 2)), rtol=6e-4, atol=1e-6)
    assert quick(samples, loaded).as_dict() == quick(samples, made).as_dict()
    assert quick(samples, loaded).floor.keys() == METRICS.keys()
    # Pairs in memory give the same scores as the reference made of them.
    direct = quick(samples, fails(real, 2), reference_contact=True)
    assert direct.values == quick(samples, loaded).values
    for name, value in direct.floor.items():
        assert quick(samples, loaded).floor[name] == value


def test_a_reference_stays_with_its_network(samples: TwoHands, real: TwoHands) -> None:
    contact, made = Contact(), Reference.from_pairs(real, Poses(), contact=False)
    other = Poses()
    other.identity = "another"
    with pytest.raises(ValueError, match=r"this network is 'another' but the reference was made with 'poses'"):
        quick(samples, made, features=other, contact=contact)
    with pytest.raises(ValueError, match="without an identity"):
        quick(samples, made, features=lambda p: Poses()(p), contact=contact)
    with pytest.raises(ValueError, match=r"dimension 5 but the reference's have 6"):
        quick(samples, made, features=Poses(5), contact=contact)
    assert contact.calls == []
    # Functions without an identity are trusted.
    plain = lambda pairs: pairs.left.betas
    assert quick(samples, Reference.from_pairs(real, plain, contact=False), features=plain)["fhid"].mean >= 0


def test_what_is_no_reference_is_refused(tmp_path: Path, real: TwoHands, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_reference(tmp_path / "nowhere")
    monkeypatch.setattr(reference, "BUNDLED_FOLDER", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no bundled reference"):
        load_reference()
    write_checkpoint(tmp_path / "prior", {}, {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="not a 'reference'"):
        load_reference(tmp_path / "prior")
    write_checkpoint(tmp_path / "old", {"identity": None}, {"features": torch.ones(3, 2)}, kind="reference")
    with pytest.raises(CheckpointError, match="another version"):
        load_reference(tmp_path / "old")
    with pytest.raises(ValueError, match="float16"):
        Reference(torch.full((3, 2), 1e5))
    with pytest.raises(ValueError, match="1 of 3 samples hold NaN"):
        Reference(torch.tensor([[1.0], [math.nan], [2.0]]))
    with pytest.raises(ValueError, match="contact holds volume"):
        Reference(torch.ones(3, 2), contact={"volume": {}})
    Reference.from_pairs(real, Poses(), contact=False).save(tmp_path / "bundled")
    monkeypatch.setattr(reference, "BUNDLED_FOLDER", tmp_path / "bundled")
    assert load_reference().identity == "poses"


# Command


@pytest.fixture
def place(tmp_path: Path, samples: TwoHands, real: TwoHands, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with samples, a corpus, and a feature network that needs no weights."""
    samples.save(tmp_path / "samples.npz")
    (tmp_path / "corpus").mkdir()
    for name, pairs in {"test-0": real[:20], "test-1": real[20:], "train-0": samples, "val-0": samples}.items():
        pairs.save(tmp_path / "corpus" / f"{name}.npz")
    monkeypatch.setattr(command, "bundled_network", Poses)
    contact = Contact()
    keywords = {"contact": contact}
    monkeypatch.setattr(command, "evaluate", lambda *a, **k: evaluate(*a, **k, **keywords))
    make = Reference.from_pairs
    monkeypatch.setattr(Reference, "from_pairs", lambda *a, **k: make(*a, **k | {"measure": contact}))
    return tmp_path


def run(place: Path, *more: str) -> int:
    names = ["--samples", str(place / "samples.npz"), "--reference", str(place / "corpus")]
    return command.main([*names, "--repeats", "3", "--pr-num", "20", *more])


def test_the_command_prints_a_table_and_writes_json(
    place: Path, samples: TwoHands, real: TwoHands, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "deep" / "report.json"
    assert run(place, "--out", str(out), "--seed", "4", "--k", "3", "--degree", "1", "--khid-subsets", "2") == 0
    printed = capsys.readouterr()
    wanted = quick(
        samples, real, repeats=3, precision_recall_num=20, subset_size=1000, subsets=2, degree=1, k=3, seed=4
    )
    assert printed.out == f"{wanted.table()}\nwrote {out}\n"
    assert printed.err == ""
    assert json.loads(out.read_text()) == wanted.as_dict()


def test_the_command_is_quiet_and_takes_parts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "report.json"
    assert (
        run(place, "--quiet", "--num", "30", "--metrics", "fhid", "touch_share", "--no-floor", "--out", str(out)) == 0
    )
    assert capsys.readouterr() == ("", "")
    found = json.loads(out.read_text())
    assert list(found["values"]) == ["fhid", "touch_share"]
    assert found["counts"]["samples"] == 30
    assert found["real_against_real"] == {}


def test_the_command_stores_a_reference_and_reads_it(
    place: Path, real: TwoHands, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "reference"
    alone = ["--reference", str(place / "corpus"), "--save-reference", str(folder)]
    assert command.main(alone) == 0
    assert "reference of 50 pairs" in capsys.readouterr().out
    stored = Reference.load(folder)
    assert stored.info == {"source": "corpus"}
    assert set(stored.contact) == set(CONTACT)
    assert torch.equal(stored.features, Reference.from_pairs(real, Poses(), contact=False).features)
    command.main(["--samples", str(place / "samples.npz"), "--reference", str(folder), "--repeats", "2"])
    first = capsys.readouterr().out
    assert "FHID" in first
    # Made anew, in the same folder, and used at once.
    command.main(["--samples", str(place / "samples.npz"), *alone, "--repeats", "2"])
    assert capsys.readouterr().out.endswith(first)
    with pytest.raises(ValueError, match="--save-reference needs --reference with pairs"):
        command.main(["--reference", str(folder), "--save-reference", str(place / "again")])
    with pytest.raises(ValueError, match="--save-reference needs --reference with pairs"):
        command.main(["--save-reference", str(place / "again")])


def test_the_command_reads_folders_of_samples(place: Path, samples: TwoHands, real: TwoHands) -> None:
    assert len(command.read_pairs(place / "corpus")) == 50
    (place / "drawn").mkdir()
    samples.save(place / "drawn" / "b.npz")
    real.save(place / "drawn" / "a.npz")
    assert torch.equal(command.read_pairs(place / "drawn").left.betas[:50], real.left.betas)
    for name in ("test-0", "test-1"):
        (place / "corpus" / f"{name}.npz").unlink()
    with pytest.raises(FileNotFoundError, match="of a test split"):
        command.read_pairs(place / "corpus")


def test_the_command_with_a_network_and_real_contact(
    tmp_path: Path, real: TwoHands, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = FeatureNetwork(), FeatureNetwork()
    first.save(tmp_path / "network")
    real[:8].save(tmp_path / "samples.npz")
    flags = ["--samples", str(tmp_path / "samples.npz"), "--features", str(tmp_path / "network"), "--workers", "1"]
    assert command.main([*flags, "--reference", str(tmp_path / "samples.npz"), "--repeats", "2"]) == 0
    table = capsys.readouterr().out
    for label in ("FHID", "PenVol", "PenDist", "failed booleans 0", "samples 8"):
        assert label in table
    # A second network is another one.
    folder = str(tmp_path / "reference")
    make = ["--reference", str(tmp_path / "samples.npz"), "--features", str(tmp_path / "network"), "--workers", "1"]
    assert command.main([*make, "--save-reference", folder]) == 0
    second.save(tmp_path / "network")
    with pytest.raises(ValueError, match="but the reference was made with"):
        command.main([*flags, "--reference", folder])


@pytest.mark.parametrize(
    ("flags", "error", "match"),
    [
        (["--samples", "nowhere.npz"], FileNotFoundError, "nowhere.npz does not exist"),
        (["--reference", "nowhere"], FileNotFoundError, "nowhere does not exist"),
        (["--num", "41"], ValueError, "--num must be from 2 to the 40 samples"),
        (["--hands", "nowhere"], FileNotFoundError, "nowhere"),
        (["--repeats", "0"], ValueError, "repeats must be at least 1"),
        (["--pr-num", "4"], ValueError, "precision_recall_num must be above k"),
        (["--out", "."], IsADirectoryError, "is a folder"),
        (["--out", "samples.npz/report.json"], OSError, "cannot write into samples.npz"),
        (["--save-reference", "prior"], CheckpointError, "not a 'reference'"),
    ],
)
def test_the_command_refuses_before_the_work(
    place: Path, flags: list[str], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    write_checkpoint("prior", {}, {"x": torch.ones(1)})
    poses = Poses()
    monkeypatch.setattr(command, "bundled_network", lambda: poses)
    with pytest.raises(error, match=match):
        run(place, *flags)
    assert poses.seen == 0


def test_samples_with_nan_and_a_missing_flag_are_refused(place: Path) -> None:
    import numpy as np

    with np.load(place / "samples.npz") as archive:
        arrays = dict(archive)
    arrays["left.betas"][3, 0] = math.nan
    np.savez(place / "samples.npz", **arrays)
    with pytest.raises(ValueError, match="NaN"):
        run(place)
    with pytest.raises(ValueError, match="--samples is missing"):
        command.main([])


def test_as_a_module_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metrics", "--samples", "nowhere.npz"])
    monkeypatch.delitem(sys.modules, "interhand_prior.metrics.__main__")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("interhand_prior.metrics", run_name="__main__")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("interhand-prior evaluate: error: nowhere.npz does not exist")
    assert printed.err.count("\n") == 1
