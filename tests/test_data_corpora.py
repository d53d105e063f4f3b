"""Imported data sets as corpora: training, statistics, the data card and evaluation run on them unchanged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from data_sets import assert_vertices, make_arctic, make_h2o, make_interhand, make_template
from helpers import random_pairs

from interhand_prior import TwoHands, cli, load_prior
from interhand_prior.data.groups import MAX_GROUPS, groups_of
from interhand_prior.data.importing import import_corpus
from interhand_prior.data.synthetic.statistics import summarise
from interhand_prior.hands import HandPair, load_hands
from interhand_prior.hands.export import export_mano

pytestmark = pytest.mark.usefixtures("one_thread")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SIZES = {"train": 17, "val": 9, "test": 11}  # of which two are not pairs, and one is not valid


@pytest.fixture(scope="module")
def mano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand that is not the open hand: a tenth larger."""
    from interhand_prior.hands import HandModel, open_hands

    arrays = open_hands().right.arrays
    larger = HandModel(replace(arrays, v_template=1.1 * arrays.v_template))
    folder = tmp_path_factory.mktemp("mano")
    export_mano(folder, HandPair(larger.mirrored(), larger))
    return folder


@pytest.fixture(scope="module")
def hands(mano: Path) -> HandPair:
    return load_hands(mano)


@pytest.fixture(scope="module")
def written(hands: HandPair) -> dict[str, TwoHands]:
    return {
        split: replace(random_pairs(count, seed=seed), hands=hands)
        for seed, (split, count) in enumerate(SIZES.items(), 40)
    }


@pytest.fixture(scope="module")
def interhand(tmp_path_factory: pytest.TempPathFactory, written: dict[str, TwoHands], mano: Path) -> Path:
    """InterHand2.6M's three splits, imported by the command."""
    folder = tmp_path_factory.mktemp("interhand")
    for split, pairs in written.items():
        make_interhand(folder / "set", pairs, split)
    place = ["--out", str(folder / "shards"), "--hands", str(mano), "--singles", "--shard-size", "5"]
    assert cli.main(["corpus", "import", "interhand26m", str(folder / "set"), *place]) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    """The benchmarks; as scripts they find their neighbours beside them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import data_card
        import paper_tables
        from card import sheets

        yield {"card": data_card, "tables": paper_tables, "sheets": sheets}
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_prior_is_trained_and_evaluated_on_an_import(
    interhand: Path, mano: Path, hands: HandPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["--network", "layers", "--embed", "16", "--hidden", "24", "--layers", "2", "--alone"]
    options = ["--steps", "3", "--batch-size", "8", "--threads", "1", "--amp", "off", "--quiet", "--hands", str(mano)]
    run = tmp_path / "run"
    assert cli.main(["train", "--data", str(interhand), "--out", str(run), *network, *options]) == 0
    prior = load_prior(run / "prior", hands=hands)
    assert (run / "log.csv").read_text().count("\n") >= 2
    drawn = tmp_path / "drawn"
    flags = [
        "--num",
        "12",
        "--steps",
        "2",
        "--penetration-scale",
        "0",
        "--no-glb",
        "--no-png",
        "--quiet",
        "--hands",
        str(mano),
    ]
    assert cli.main(["sample", "--prior", str(run / "prior"), "--out", str(drawn), *flags]) == 0
    samples = TwoHands.load(drawn / "hands.npz", hands=hands)
    assert len(samples) == 12
    assert prior.info["complete"]
    report = tmp_path / "report.json"
    flags = ["--samples", str(drawn / "hands.npz"), "--reference", str(interhand), "--hands", str(mano)]
    few = ["--repeats", "2", "--workers", "1", "--no-floor", "--metrics", "fhid", "proximity_ratio"]
    assert cli.main(["evaluate", *flags, *few, "--out", str(report)]) == 0
    values = json.loads(report.read_text())["values"]
    assert all(np.isfinite(values[name]["mean"]) for name in few[few.index("--metrics") + 1 :])
    assert "FHID" in capsys.readouterr().out


def test_the_wrong_hands_are_refused_wherever_an_import_is_read(
    interhand: Path, hands: HandPair, tmp_path: Path, capsys: pytest.CaptureFixture[str], bench: dict[str, ModuleType]
) -> None:
    """Forgotten --hands would make other hands of the parameters, and nobody would see it."""
    shard = interhand / "train-00000.npz"
    with pytest.raises(ValueError, match="other hand models than the open hand; pass them"):
        TwoHands.load(shard)
    assert cli.main(["train", "--data", str(interhand), "--out", str(tmp_path / "run"), "--steps", "1", "--quiet"]) == 1
    assert "other hand models than the open hand" in capsys.readouterr().err
    assert cli.main(["evaluate", "--samples", str(interhand), "--reference", str(interhand)]) == 2
    assert "other hand models than the open hand" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench["card"].main([str(interhand), "--out", str(tmp_path / "card")])
    assert "other hand models than the open hand" in capsys.readouterr().err
    # The same model from other files, in float32, is the same; one with other shapes is not, though it rests alike.
    rounded = replace(hands.right.arrays, v_template=np.float64(np.float32(hands.right.arrays.v_template)))
    again = type(hands.right)(rounded)
    assert_vertices(TwoHands.load(shard, hands=HandPair(again.mirrored(), again)), TwoHands.load(shard, hands=hands))
    from interhand_prior.convert import with_released_left

    with pytest.raises(ValueError, match="other hand models than those that were passed"):
        TwoHands.load(shard, hands=with_released_left(hands))


def test_only_files_of_other_hands_are_marked(interhand: Path, tmp_path: Path) -> None:
    """Four numbers, of which no hand model can be told."""
    open_path = random_pairs(2, dtype=torch.float32).save(tmp_path / "open.npz")
    for path, marks in ((open_path, []), (interhand / "train-00000.npz", [(4,)])):
        with np.load(path) as archive:
            assert [archive[name].shape for name in archive.files if name.startswith("hands")] == marks


def test_the_manifest_has_the_statistics_of_what_is_written(
    interhand: Path, written: dict[str, TwoHands], hands: HandPair
) -> None:
    manifest = json.loads((interhand / "manifest.json").read_text())
    kept = TwoHands.cat([pairs[[0, *range(4, len(pairs))]] for pairs in written.values()])
    assert manifest["pairs"] == {split: count - 3 for split, count in SIZES.items()}
    assert manifest["singles"] == dict.fromkeys(SIZES, 1)
    found = manifest["statistics"]
    assert found["pairs"] == len(kept) == 28
    assert found["left_out"] == ["contact", "apart", "loose", "touch_share"]
    assert found["sequence_shares"] == {"capture7": round(3 / 28, 4), "capture8": round(25 / 28, 4)}
    left, right = (side[:, 4] for side in kept.joints())
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(kept.left.global_orient.numpy()).inv()
    place = turn.apply((right - left).numpy()).mean(0)
    np.testing.assert_allclose(found["relative_pose"]["mean"][6:], place, atol=1e-4)
    assert found["betas"]["mean"] == pytest.approx(
        float(torch.cat([kept.left.betas, kept.right.betas]).mean()), abs=1e-4
    )


def test_the_card_of_an_import(
    interhand: Path,
    mano: Path,
    tmp_path: Path,
    bench: dict[str, ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SystemExit):
        bench["card"].main([str(interhand), "--hands", str(mano)])
    assert "give --out" in capsys.readouterr().err
    options = ["--surfaces", "2", "--per-kind", "1", "--queries", "2", "--quiet", "--sheets", "--hands", str(mano)]
    monkeypatch.setattr(bench["sheets"], "SIZE", 24)
    monkeypatch.setattr(bench["sheets"], "PAIRS", 1)
    n = bench["card"].main([str(interhand), *options, "--out", str(tmp_path)])
    assert n["kinds are"] == "sequence"
    assert {name: row["pairs"] for name, row in n["kinds"].items()} == {"capture7": 3, "capture8": 25}
    assert n["noted by the generator"] is None
    statistics = json.loads((interhand / "manifest.json").read_text())["statistics"]
    assert n["relative pose"]["mean"] == pytest.approx(statistics["relative_pose"]["mean"], abs=1e-4)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Data card of InterHand2.6M\n")
    for part in (
        "The data set does not say what the hands do",
        "told apart by sequence",
        "## Every sequence",
        "3 x hand_type is not valid",
        "](capture8.png)",
    ):
        assert part in text
    assert "What was wanted" not in text
    assert "synthetic" not in text
    assert max(len(line) for line in text.splitlines() if line[:1] not in ("|", "!")) <= 120


def test_the_papers_tables_read_an_import(
    interhand: Path, mano: Path, hands: HandPair, tmp_path: Path, bench: dict[str, ModuleType]
) -> None:
    tables = bench["tables"]
    work = tables.Work(tmp_path / "work", tables.QUICK, interhand, str(mano), progress=False)
    test = TwoHands.cat([TwoHands.load(path, hands=hands) for path in sorted(interhand.glob("test-*.npz"))])
    pairs = tables.read_pairs(work.data, "test", None, hands=work.hands)
    assert_vertices(pairs, test)
    assert len(work.reference()) == 8
    assert len(work.samples(tables.REAL, 0)) == tables.QUICK.num


def test_an_import_with_objects_is_told_apart_by_them(
    tmp_path: Path, mano: Path, written: dict[str, TwoHands], bench: dict[str, ModuleType]
) -> None:
    make_arctic(tmp_path / "set", written["val"])
    make_arctic(tmp_path / "set", written["test"], "s02/mixer_grab_01", "test")
    make_template(tmp_path / "set")
    shards = tmp_path / "shards"
    command = [
        "import",
        "arctic",
        str(tmp_path / "set"),
        "--out",
        str(shards),
        "--hands",
        str(mano),
        "--nearer-than",
        "0",
    ]
    assert cli.main(["corpus", *command]) == 0
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["statistics"]["object_shares"] == {"box": 9 / 20, "mixer": 11 / 20}
    assert manifest["objects"] == {"shapes": ["box"], "without a shape": ["mixer"], "note": "1 shapes"}
    out = tmp_path / "card"
    n = bench["card"].main([str(shards), "--surfaces", "4", "--per-kind", "2", "--queries", "2", "--quiet",
                            "--hands", str(mano), "--out", str(out)])  # fmt: skip
    assert set(n["kinds"]) == {"box", "mixer"}
    assert "## Every object" in (out / "README.md").read_text()
    assert "Objects: 1 shapes." in (out / "README.md").read_text()


def test_absolute_poses_without_hands_are_called_what_they_are(tmp_path: Path, hands: HandPair) -> None:
    pairs = replace(random_pairs(6, seed=3), hands=hands)
    make_h2o(tmp_path / "set", pairs)
    manifest = import_corpus("h2o", tmp_path / "set", tmp_path / "out")
    assert manifest["hands"].startswith("MANO, not given")
    assert manifest["hands_key"] is None
    (path,) = (tmp_path / "out").glob("*.npz")
    assert len(TwoHands.load(path, hands=hands)) == sum(manifest["pairs"].values())  # whosever they are
    given = import_corpus("h2o", tmp_path / "set", tmp_path / "again", hands=hands)
    assert given["hands"] == "MANO"
    opened = import_corpus("h2o", tmp_path / "set", tmp_path / "open", hands="open")
    assert opened["hands"] == "open hand"
    assert len({given["hands_key"], opened["hands_key"], None}) == 3


def test_a_corpus_without_facts_and_one_of_a_single_pair_have_statistics() -> None:
    pairs = random_pairs(5, dtype=torch.float32)
    found = summarise([pairs[:2], pairs[2:]])
    assert found["left_out"] == ["contact", "apart", "loose", "touch_share", "shares of groups"]
    assert found["pairs"] == 5
    one = summarise([pairs[:1]])
    assert one["relative_pose"]["variance_ratio"] == [0.0] * 9
    assert json.loads(json.dumps(one, allow_nan=False)) == one


def test_groups_are_kinds_then_objects_then_sequences() -> None:
    many = 2 * MAX_GROUPS
    pairs = random_pairs(many, dtype=torch.float32)
    told = lambda **extras: groups_of(replace(pairs, extras={k: np.array(v) for k, v in extras.items()}))
    takes = [f"P{i % 7}_{i}" for i in range(many)]
    assert told()[0] is None
    assert told(sequence=[f"take{i}" for i in range(many)])[0] is None
    called, names = told(sequence=takes)
    assert called == "sequence"
    assert names.tolist() == [f"P{i % 7}" for i in range(many)]
    few = [f"a/{i % 3}" for i in range(many)]
    assert told(sequence=few)[1].tolist() == few
    objects = ["box"] * many
    assert told(sequence=takes, object_name=objects)[0] == "object"
    assert told(sequence=takes, object_name=objects, archetype=objects)[0] == "kind"
