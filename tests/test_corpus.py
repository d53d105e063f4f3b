"""The synthetic corpus, end to end: shards, seeds, splits, resume, and what its pairs promise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_oracle import brute_force

from interhand_prior.data.synthetic import ARCHETYPE_NAMES, HELD_OUT, LOOSE, SINGLE, UNTOUCHED, generate_corpus
from interhand_prior.data.synthetic.__main__ import main
from interhand_prior.data.synthetic.shards import SPLITS, CorpusConfig, shard_seed
from interhand_prior.data.synthetic.statistics import relative_pose, summarise
from interhand_prior.hands import sealed_vertices
from interhand_prior.params import FIELDS, TwoHands

ARGS = {"val_num": 6, "test_num": 6, "seed": 7, "shard_size": 12, "single_num": 20, "progress": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "made"
    generate_corpus(out, 24, workers=1, **ARGS)
    return out


def shards(folder: Path, pattern: str = "[tv]*.npz") -> dict[str, TwoHands]:
    """Those of pairs, by default."""
    return {p.name: TwoHands.load(p) for p in sorted(folder.glob(pattern))}


def same(a: TwoHands, b: TwoHands) -> bool:
    fields = itertools.product(("left", "right"), FIELDS)
    equal = all(torch.equal(getattr(getattr(a, s), f), getattr(getattr(b, s), f)) for s, f in fields)
    return equal and all(np.array_equal(a.extras[k], b.extras[k]) for k in a.extras)


def test_layout_and_manifest(corpus: Path) -> None:
    assert sorted(p.name for p in corpus.iterdir()) == [
        "manifest.json", "single-test-00000.npz", "single-train-00000.npz", "single-train-00001.npz",
        "single-val-00000.npz", "test-00000.npz", "train-00000.npz", "train-00001.npz", "val-00000.npz",
    ]  # fmt: skip
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["config"] == {
        "train": 24, "val": 6, "test": 6, "seed": 7, "loose_share": 0.5, "shard_size": 12, "single_train": 20,
        "single_val": 1, "single_test": 1, "archetypes": None,
    }  # fmt: skip
    assert manifest["shards"]["train-00001.npz"] == 12
    assert manifest["shards"]["single-train-00001.npz"] == 8
    assert manifest["singles"] == {"train": 20, "val": 1, "test": 1}
    assert manifest["statistics"]["pairs"] == 36
    assert manifest["generated_now"]["pairs"] == 36
    assert manifest["generated_now"]["singles"] == 22


def test_half_of_each_shard_are_named_kinds(corpus: Path) -> None:
    for pairs in shards(corpus).values():
        names = pairs.extras["archetype"]
        assert (names == LOOSE).sum() == len(pairs) // 2
        assert set(names) <= {*ARCHETYPE_NAMES, LOOSE} - set(HELD_OUT)


def test_hands_alone_are_marked(corpus: Path) -> None:
    hands = TwoHands.cat(list(shards(corpus, "single-*.npz").values()))
    left, right = hands.valid
    assert torch.equal(left, ~right)
    assert 4 <= int(left.sum()) <= 18
    assert (hands.extras["archetype"] == SINGLE).all()
    for side, there in (("left", left), ("right", right)):
        hand = getattr(hands, side)
        for name in FIELDS:
            assert (getattr(hand, name)[~there] == 0).all()
        assert (hand.hand_pose[there].abs().sum(1) > 0.5).all()
        joints = getattr(hands.model, side).joints(hand)
        assert joints[there][:, 4].abs().max() < 1e-6


def test_hands_alone_change_no_pair(corpus: Path, tmp_path: Path) -> None:
    generate_corpus(tmp_path, 12, **(ARGS | {"val_num": 0, "test_num": 0, "single_num": 0}), workers=1)
    assert [p.name for p in tmp_path.glob("*.npz")] == ["train-00000.npz"]
    assert same(shards(corpus)["train-00000.npz"], shards(tmp_path)["train-00000.npz"])


def test_only_the_kinds_asked_for(tmp_path: Path) -> None:
    manifest = generate_corpus(
        tmp_path, 6, val_num=0, test_num=0, archetypes=["heart", "clap", "heart"], workers=1, progress=False
    )
    assert manifest["config"]["archetypes"] == ["heart", "clap"]
    assert manifest["config"]["loose_share"] == 0
    assert manifest["singles"] == {"train": 0, "val": 0, "test": 0}
    assert set(shards(tmp_path)["train-00000.npz"].extras["archetype"]) <= {"heart", "clap"}


def test_contacts_touch_and_do_not_penetrate_on_the_mesh(corpus: Path) -> None:
    """An oracle that shares nothing with the generator: winding numbers and every triangle, on TwoHands.vertices()."""
    pairs = shards(corpus)["train-00000.npz"]
    model = pairs.model
    left, right = (1000 * sealed_vertices(v) for v in pairs.vertices())
    for i, name in enumerate(pairs.extras["archetype"]):
        gap, depth = brute_force(left[i], model.left.sealed_faces, right[i], model.right.sealed_faces)
        assert depth <= (0.2 if name in UNTOUCHED else 2.0) + 0.02, (name, depth)
        assert name in UNTOUCHED or gap < 3.0, (name, gap)
        assert gap < 320
        assert depth == pytest.approx(pairs.extras["depth_mm"][i], abs=0.02)


def test_shapes_nearly_equal_and_left_hand_canonical(corpus: Path) -> None:
    for pairs in shards(corpus).values():
        difference = pairs.left.betas - pairs.right.betas
        assert 0.03 < difference.std() < 0.2
        assert torch.equal(pairs.left.global_orient, torch.zeros_like(pairs.left.global_orient))
        left, _ = pairs.joints()
        assert left[:, 4].abs().max() < 1e-6


def test_same_corpus_whatever_the_workers(corpus: Path, tmp_path: Path) -> None:
    generate_corpus(tmp_path / "two", 24, workers=2, **ARGS)
    one, two = shards(corpus, "*.npz"), shards(tmp_path / "two", "*.npz")
    assert one.keys() == two.keys()
    assert all(same(one[k], two[k]) for k in one)


def test_splits_share_no_seed_and_no_hand(corpus: Path) -> None:
    splits = [*SPLITS, *(f"single-{split}" for split in SPLITS)]
    seeds = [shard_seed(seed, split, i) for seed in (0, 1) for split in splits for i in range(300)]
    assert len(set(seeds)) == len(seeds)
    found = shards(corpus)
    per_shard = [
        {h.hand_pose.numpy()[i].tobytes() for h in (p.left, p.right) for i in range(len(p))} for p in found.values()
    ]
    assert sum(map(len, per_shard)) == len(set().union(*per_shard))


def test_resume_keeps_whole_shards_and_redoes_damaged_ones(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "resumed"
    out.mkdir()
    for p in corpus.iterdir():
        (out / p.name).write_bytes(p.read_bytes())
    (out / "val-00000.npz").unlink()
    data = (out / "test-00000.npz").read_bytes()
    (out / "test-00000.npz").write_bytes(data[: len(data) // 2])
    kept = (out / "train-00000.npz").stat().st_mtime_ns
    manifest = generate_corpus(out, 24, workers=1, **ARGS)
    assert manifest["generated_now"]["pairs"] == 12
    assert (out / "train-00000.npz").stat().st_mtime_ns == kept
    one, two = shards(corpus), shards(out)
    assert all(same(one[k], two[k]) for k in one)


def test_failure_leaves_only_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interhand_prior import pair_files

    real, calls = pair_files.write_atomically, []

    def full_disk(path: Path, data: bytes) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(pair_files, "write_atomically", full_disk)
    args = {"val_num": 2, "test_num": 0, "shard_size": 2, "progress": False, "workers": 1, "loose_share": 1.0}
    args["single_num"] = 0
    with pytest.raises(OSError, match="No space"):
        generate_corpus(tmp_path, 2, **args)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "train-00000.npz"]
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"] is False
    monkeypatch.undo()
    assert generate_corpus(tmp_path, 2, **args)["complete"] is True


def test_another_corpus_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match="another corpus"):
        generate_corpus(corpus, 24, **(ARGS | {"seed": 8}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loose_share": 1.5}, "loose_share"),
        ({"shard_size": 0}, "shard_size"),
        ({"workers": 0}, "workers"),
        ({"seed": -1}, "seed"),
        ({"val_num": -3}, "val"),
        ({"single_num": -20}, "single_train"),
        ({"archetypes": ["heart", "high_five"]}, "high_five"),
        ({"archetypes": []}, "archetypes"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_corpus(tmp_path / "x", 4, **(ARGS | change))
    assert not (tmp_path / "x").exists()


def test_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        CorpusConfig(0, 0, 0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--num", "2", "--val-num", "0", "--test-num", "0", "--workers", "1", "--quiet"]
    main([str(tmp_path / "c"), *few, "--single-num", "3", "--archetypes", "bird,heart"])
    assert "2 pairs, 3 hands alone" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "d"), "--num", "-1"])
    assert stop.value.code == 2
    assert "train must be an integer >= 0" in capsys.readouterr().err


def test_statistics_of_a_known_pair(corpus: Path) -> None:
    pairs = next(iter(shards(corpus).values()))
    rel = relative_pose(pairs)
    # a rigid motion of the pair changes nothing
    turn = torch.tensor([0.3, -0.7, 0.4])
    moved = turned(pairs, turn)
    assert torch.allclose(relative_pose(moved), rel, atol=1e-5)
    found, names = summarise([pairs]), pairs.extras["archetype"]
    assert found["loose"]["pairs"] == len(pairs) // 2
    assert found["contact"]["pairs"] + found["apart"]["pairs"] == len(pairs) - len(pairs) // 2
    assert found["contact"]["pairs"] == sum(name not in UNTOUCHED for name in names)


def turned(pairs: TwoHands, axis_angle: torch.Tensor) -> TwoHands:
    from dataclasses import replace

    from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle

    rotation = axis_angle_to_matrix(axis_angle)

    def turn(hand, model):  # type: ignore[no-untyped-def]
        root = model.rest_joints(hand.betas)[:, 0]
        orient = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(hand.global_orient))
        return replace(hand, global_orient=orient, transl=(root + hand.transl) @ rotation.T - root)

    return replace(pairs, left=turn(pairs.left, pairs.model.left), right=turn(pairs.right, pairs.model.right))
