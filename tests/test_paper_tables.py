"""The paper's tables as one command: the whole path at tiny size, resumption, and the layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """The benchmark; as a script it finds its neighbours beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import paper_tables
    finally:
        sys.path.remove(str(BENCHMARKS))
    return paper_tables


@pytest.fixture(scope="module")
def work(tables: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a finished quick run."""
    folder = tmp_path_factory.mktemp("tables")
    tables.main(["--quick", "--work", str(folder / "work"), "--out", str(folder), "--quiet"])
    return folder


@pytest.mark.slow
def test_quick_fills_every_cell_of_every_row(tables: ModuleType, work: Path) -> None:
    rows = json.loads((work / "paper_tables.json").read_text())["numbers"]["rows"]
    assert list(rows) == [tables.REAL, *tables.METHODS, tables.BUNDLED]
    for name, row in rows.items():
        for key in (*tables._TABLE_1A, *tables._TABLE_3B, "touch_share"):
            assert row[key]["mean"] is not None, (name, key)
    # Twenty steps teach nothing: real pairs are nearer to real pairs than anything else.
    assert min(rows, key=lambda name: rows[name]["fhid"]["mean"]) in (tables.REAL, tables.BUNDLED)


@pytest.mark.slow
def test_rows_that_differ_in_sampling_share_a_training(tables: ModuleType, work: Path) -> None:
    trained = {path.name for path in (work / "work" / "training").iterdir()}
    assert trained == {entry.training for entry in tables.METHODS.values()}
    assert len(trained) == len(tables.METHODS) - 2


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_makes_nothing_twice(
    tables: ModuleType, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((work / "paper_tables.json").read_text())["numbers"]["rows"]
    lost = work / "work" / "samples" / "vae" / "0-000.npz"
    kept = {p: p.stat().st_mtime_ns for p in (work / "work").rglob("*") if p.is_file() and p != lost}
    lost.unlink()
    (work / "work" / "scores" / "vae-0.json").unlink()
    tables.main(["--quick", "--work", str(work / "work"), "--out", str(work), "--quiet"])
    after = json.loads((work / "paper_tables.json").read_text())["numbers"]["rows"]
    assert after == before
    changed = {p.name for p, time in kept.items() if p.stat().st_mtime_ns != time}
    assert changed <= {"settings.json", "vae-0.json", "manifest.json"}


@pytest.mark.slow
def test_other_settings_are_not_mixed_in(tables: ModuleType, work: Path) -> None:
    with pytest.raises(SystemExit, match="steps was 20, is 21"):
        tables.main(["--quick", "--work", str(work / "work"), "--steps", "21", "--quiet"])


@pytest.mark.slow
def test_repetitions_are_other_samples(tables: ModuleType, work: Path) -> None:
    flags = ["--quick", "--work", str(work / "work"), "--out", str(work), "--quiet"]
    numbers = tables.main([*flags, "--methods", "VAE", "--repeats", "2"])
    first, second = (json.loads((work / "work" / "scores" / f"vae-{i}.json").read_text()) for i in range(2))
    values = [score["values"]["fhid"]["mean"] for score in (first, second)]
    assert values[0] != values[1]
    cell = numbers["rows"]["VAE"]["fhid"]
    assert cell["mean"] == pytest.approx(sum(values) / 2)
    assert cell["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_the_layout_is_the_papers(tables: ModuleType) -> None:
    columns = {*tables._TABLE_1A, *tables._TABLE_3B, "touch_share"}
    rows = {
        name: {key: {"mean": 10 * i + j / 100, "std": 0.001} for j, key in enumerate(sorted(columns))}
        for i, name in enumerate([tables.REAL, *tables.METHODS])
    }
    text = tables.render({"numbers": {"rows": rows, "paper (InterHand2.6M)": tables.PAPER}})
    first, second, third = text.split("**Table ")[1:]
    for part, names in (
        (first, ["VAE", "BUDDI*", "Ours w/o Decomposition", "Ours w/o Shared Network", "Ours"]),
        (second, ["Ours w/o SelfAtt", "Ours w/o CFG", "Ours"]),
        (third, ["Ours w/o APG", "Ours"]),
    ):
        shown = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")][1:]
        assert [name for name in shown if name in names] == names
    line = next(line for line in first.splitlines() if line.startswith("| BUDDI*"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[2] == f"{rows['BUDDI*']['fhid']['mean']:.2f} ± 0.00"
    assert cells[-7:-1] == ["3.48", "4.10", "2.71", "0.56", "0.47", "0.82"]
