"""The data card: each measure against a naive one or a known answer, and the whole command on a tiny corpus."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import generator, random_hand, random_pairs, rigidly_moved
from hypothesis import given
from hypothesis import strategies as st
from mesh_oracle import brute_force
from PIL import Image

from interhand_prior import HandParams, TwoHands
from interhand_prior.data.synthetic import generate_corpus
from interhand_prior.data.synthetic.gauge import twist_gauge
from interhand_prior.data.synthetic.skeleton import open_hand_skeleton
from interhand_prior.hands import TIP_IDS, open_hands, sealed_vertices
from interhand_prior.params import FIELDS
from interhand_prior.rotations import axis_angle_to_matrix

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def card() -> Iterator[SimpleNamespace]:
    """The benchmark's files; as scripts they find their neighbours beside them, in further processes too."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import data_card
        from card import poses, readme, sheets, surfaces

        yield SimpleNamespace(
            main=data_card, poses=poses, readme=readme, sheets=sheets,
            surfaces=surfaces,
        )  # fmt: skip
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs as the generator makes them, under names of kinds that it does not have; and ten hands alone."""
    folder = tmp_path_factory.mktemp("card") / "corpus"
    generate_corpus(folder, 36, val_num=8, test_num=16, seed=3, workers=1, shard_size=18, single_num=0, progress=False)
    for path in folder.glob("*.npz"):
        pairs = TwoHands.load(path)
        touching = pairs.extras.get("near_mm", np.zeros(len(pairs))) < 3
        names = np.where(touching, "new kind", "far / apart")
        TwoHands(pairs.left, pairs.right, None, {**pairs.extras, "archetype": names}).save(path)
    hands = random_hand(10, seed=1, dtype=torch.float32)
    left = torch.arange(10) < 4
    alone = TwoHands(hands, hands, None, {"archetype": np.full(10, "alone")}, left_valid=left, right_valid=~left)
    alone.save(folder / "single-train-00000.npz")
    return folder


@pytest.fixture(scope="module")
def made(card: SimpleNamespace, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of that corpus, with pictures as small as they can be."""
    out = tmp_path_factory.mktemp("made")
    (out / "old_kind.png").write_bytes(b"")
    size, card.sheets.SIZE = card.sheets.SIZE, 24
    try:
        options = ["--surfaces", "12", "--per-kind", "9", "--queries", "5", "--quiet", "--sheets"]
        card.main.main([str(corpus), *options, "--out", str(out)])
    finally:
        card.sheets.SIZE = size
    return out


def placed(offset: torch.Tensor) -> TwoHands:
    """Left hand at rest, right hand with its palm to the left one's, `offset` (N, 3) metres from the same place."""
    zero = lambda width: offset.new_zeros(len(offset), width)
    flat = HandParams(*(zero(width) for width in FIELDS.values()))
    turned = replace(flat, global_orient=torch.tensor([0.0, 0.0, torch.pi]).expand(len(offset), 3))
    left, right = TwoHands(flat, turned).joints()
    return TwoHands(flat, replace(turned, transl=left[:, 4] + offset - right[:, 4]))


def test_the_card_counts_everything(card: SimpleNamespace, made: Path, corpus: Path) -> None:
    result = json.loads((made / "data_card.json").read_text())
    assert result["commit"].keys() == {"hash", "dirty"}
    n = result["numbers"]
    assert n["splits"] == {"test": 16, "val": 8, "train": 36}
    alone = n["single hands"]["train"]
    assert (alone["samples"], alone["left"], alone["right"], alone["kinds"]) == (10, 4, 6, {"alone": 10})
    assert set(n["kinds"]) == {"new kind", "far / apart"}
    assert sum(row["pairs"] for row in n["kinds"].values()) == 60
    assert n["surfaces"]["measured"] == 12
    assert all(row["measured"] >= 9 for row in n["kinds"].values())
    assert n["kinds"]["new kind"]["share within 3 mm"] == 1
    assert n["kinds"]["far / apart"]["share within 3 mm"] == 0
    assert n["kinds"]["new kind"]["parts per touch"] >= 2  # one of each hand
    assert n["kinds"]["far / apart"]["parts per touch"] is None
    assert n["noted by the generator"]["largest difference mm"] < 0.02
    assert n["surfaces"]["arms have room"] == 1
    assert n["repeated pairs"] == {"all": 60, "repeated": 0, "in two splits": 0}
    assert n["repeated hands"]["all"] == 130
    assert n["neighbours"]["bank"] == 72
    assert {"test", "val", "train"} < set(n["neighbours"])
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert n["generation"]["pairs"] == 60
    assert n["corpus"]["config"] == manifest["config"]


def test_moments_are_those_of_the_manifest(made: Path, corpus: Path) -> None:
    """The manifest's were summed shard by shard, by the generator."""
    n = json.loads((made / "data_card.json").read_text())["numbers"]
    theirs = json.loads((corpus / "manifest.json").read_text())["statistics"]
    assert n["relative pose"]["mean"] == pytest.approx(theirs["relative_pose"]["mean"], abs=1e-4)
    assert n["relative pose"]["variance ratio"] == pytest.approx(theirs["relative_pose"]["variance_ratio"], abs=2e-3)
    for key, value in theirs["finger_marginals"].items():
        assert n["fingers"][key] == pytest.approx(value, abs=1e-3)


def test_readme_and_pictures(made: Path, card: SimpleNamespace) -> None:
    text = (made / "README.md").read_text()
    assert "**Not met: training pairs" in text  # thirty-six
    assert "| training pairs | 36 | at least 100,000 | **no** |" in text
    pictures = {path.name for path in made.glob("*.png")}
    assert pictures == {"new_kind.png", "far_apart.png", "single_alone.png"}  # the old one has gone
    assert "Hardly any touch." in text
    for name in pictures:
        assert f"]({name})" in text
        assert (made / name).stat().st_size <= card.sheets.LIMIT
        with Image.open(made / name) as picture:
            assert picture.mode == "P"
            assert picture.width == 24 * 2 * 3
    columns = {len(line.split(" | ")) for line in text.splitlines() if line.startswith("| new kind")}
    heads = [line for line in text.splitlines() if line.startswith("| kind |")]
    assert columns == {len(heads[0].split(" | "))}
    assert max(len(line) for line in text.splitlines() if line[:1] not in ("|", "!")) <= 120


def test_remarks_belong_to_one_corpus(made: Path, card: SimpleNamespace) -> None:
    result = json.loads((made / "data_card.json").read_text())
    remarks = {"config": result["numbers"]["corpus"]["config"], "remarks": {"new_kind": "Believable."}}
    path = made / card.readme.REMARKS
    path.write_text(json.dumps(remarks))
    try:
        assert "*Seen:* Believable." in card.readme.readme(result, made)
        assert card.main.main(["--text", "--out", str(made)]) == result["numbers"]
        assert "*Seen:* Believable." in (made / "README.md").read_text()
        remarks["config"] = {**remarks["config"], "seed": 4}
        path.write_text(json.dumps(remarks))
        assert "Believable" not in card.readme.readme(result, made)
    finally:
        path.unlink()


def test_pairs_without_a_manifest_or_names(card: SimpleNamespace, tmp_path: Path) -> None:
    random_pairs(3, dtype=torch.float32).save(tmp_path / "test-00000.npz")
    out = tmp_path / "out"
    n = card.main.main([str(tmp_path), "--quiet", "--out", str(out)])
    assert list(n["kinds"]) == ["unnamed"]
    assert n["neighbours"] is None
    assert "There is no training split." in (out / "README.md").read_text()


def test_an_empty_folder_is_refused(card: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        card.main.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "holds no shards of pairs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rare_kinds_are_filled_up(card: SimpleNamespace) -> None:
    kinds = np.array(["a"] * 50 + ["b"] * 3 + ["a"] * 20 + ["b"] * 20)
    rows, even = card.main.surface_rows(kinds, 50, 10, 5)
    assert even == 10
    assert np.array_equal(rows[:10], np.linspace(0, 49, 10).round())
    assert (kinds[rows] == "b").sum() == 5
    assert len(set(rows)) == len(rows)


def test_parts_of_the_hand(card: SimpleNamespace) -> None:
    s, model = card.surfaces, open_hands().right
    names = np.array(s.PARTS)[s.part_of_vertex(model)]
    assert set(names) == set(s.PARTS)
    rest = model.v_template
    for finger, tip in zip(s.FINGERS, TIP_IDS, strict=True):
        assert names[tip].startswith(finger)
    for finger in s.FINGERS[1:]:  # the palm faces -y, the thumb lies aside of it
        assert rest[names == f"{finger} pad", 1].mean() < rest[names == f"{finger} back", 1].mean() - 0.005
    assert rest[names == "palm", 1].mean() < rest[names == "back of hand", 1].mean() - 0.02
    assert rest[names == "wrist", 0].min() > rest[names == "palm", 0].mean()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_palms_and_backs_that_meet(card: SimpleNamespace, sign: float) -> None:
    """Hands brought together, palm to palm or back to back: what touches first, thumbs and wrists aside."""
    names = card.surfaces.PARTS
    offset = torch.zeros(25, 3)
    offset[:, 1] = sign * torch.linspace(0.075, 0.015, 25)
    pairs = placed(offset)
    gap, touching = card.surfaces.contacts(pairs, pairs.vertices())
    rest = torch.tensor([not name.startswith(("thumb", "wrist")) for name in names])
    meet = touching & rest[:, None] & rest
    assert not meet[0].any()
    first = int(meet.flatten(1).any(1).nonzero()[0])
    parts = {names[i] for couple in meet[first].nonzero().tolist() for i in couple}
    seen, hidden = (("pad", "palm"), "back") if sign < 0 else (("back",), "pad")
    assert any(word in part for part in parts for word in seen)
    assert not any(hidden in part for part in parts)
    assert gap[first] < 3


def test_gaps_and_depths_against_every_triangle(card: SimpleNamespace, corpus: Path) -> None:
    pairs = TwoHands.load(corpus / "val-00000.npz")
    found = card.surfaces.measure_surfaces(pairs)
    left, right = (1000 * sealed_vertices(v) for v in pairs.vertices())
    for i in range(len(pairs)):
        gap, depth = brute_force(left[i], pairs.model.left.sealed_faces, right[i], pairs.model.right.sealed_faces)
        assert found["depth_mm"][i] == pytest.approx(depth, abs=2e-3)
        if gap < 3:
            assert found["gap_mm"][i] == pytest.approx(gap, abs=2e-3)
            assert found["touching"][i].any()
        else:
            assert found["gap_mm"][i] > gap - 2e-3
            assert not found["touching"][i].any()


def test_arms_need_room(card: SimpleNamespace) -> None:
    """Hands one above the other; a hand in the way of the straight forearm; hands farther apart than arms are long."""
    away = torch.tensor([0.0, -0.3, 0.0])
    across = torch.tensor([-0.22, 0.0, 0.0])  # the left forearm lies at -x
    pairs = placed(torch.stack([away, across]))
    straight, bent = card.surfaces.arms_free(pairs, pairs.vertices())
    assert straight.tolist() == [True, False]
    assert bent.tolist() == [True, True]
    far = placed(torch.tensor([[0.0, -2.0, 0.0]]))
    assert not card.surfaces.arms_free(far, far.vertices())[1].any()  # nobody's arms are two metres long


def test_processes_change_nothing(card: SimpleNamespace, corpus: Path) -> None:
    pairs = TwoHands.load(corpus / "val-00000.npz")
    whole, parts = card.surfaces.measure_surfaces(pairs), card.surfaces.measure_all(pairs, chunk=3)
    for name, value in whole.items():
        assert np.allclose(parts[name], value, atol=1e-3)  # mm, cm^3: sums of float32 in another order


@pytest.mark.slow
def test_two_processes_give_the_same(card: SimpleNamespace, corpus: Path) -> None:
    pairs = TwoHands.load(corpus / "val-00000.npz")
    one, two = (card.surfaces.measure_all(pairs, workers, chunk=4) for workers in (1, 2))
    for name, value in one.items():
        assert np.allclose(two[name], value, atol=1e-5)


def test_canonical_joints_forget_where_the_pair_is(card: SimpleNamespace) -> None:
    pairs = random_pairs(5)
    moved = rigidly_moved(pairs, axis_angle_to_matrix(torch.tensor([0.4, -1.0, 0.2]).double()), torch.ones(3).double())
    here, there = card.poses.canonical_joints(pairs), card.poses.canonical_joints(moved)
    assert torch.allclose(here, there, atol=1e-9)
    assert here[:, 4].abs().max() < 1e-9
    left, right = pairs.joints21()
    apart = (left[:, 8] - right[:, 20]).norm(dim=-1) * 1e3
    assert torch.allclose((here[:, 8] - here[:, 41]).norm(dim=-1), apart)


@given(st.integers(1, 7), st.integers(2, 40), st.integers(0, 10_000))
def test_nearest_against_a_loop(card: SimpleNamespace, queries: int, bank: int, seed: int) -> None:
    draw = generator(seed)
    a = 100 * torch.randn(queries, 4, 3, generator=draw, dtype=torch.float64)
    b = 100 * torch.randn(bank, 4, 3, generator=draw, dtype=torch.float64)
    own = torch.randint(bank, (queries, 1), generator=draw)
    blocks, (card.poses._QUERIES, card.poses._BANK) = (card.poses._QUERIES, card.poses._BANK), (3, 16)
    try:
        distance, row = card.poses.nearest(a, b, own)
    finally:
        card.poses._QUERIES, card.poses._BANK = blocks
    for i in range(queries):
        each = [float("inf") if j == own[i, 0] else float((a[i] - b[j]).norm(dim=-1).mean()) for j in range(bank)]
        assert distance[i] == pytest.approx(min(each))
        assert row[i] == int(np.argmin(each))


def test_a_copy_is_found_and_itself_is_not(card: SimpleNamespace) -> None:
    joints = card.poses.canonical_joints(random_pairs(6, dtype=torch.float32))
    bank = torch.cat([joints, joints[2:3]])
    assert card.poses.nearest(joints, bank)[0].max() == 0
    distance, row = card.poses.nearest(joints, bank, torch.arange(6)[:, None])
    assert (distance == 0).nonzero().tolist() == [[2]]
    assert row[2] == 6


def test_effective_counts_of_known_samples(card: SimpleNamespace) -> None:
    far = torch.arange(7.0)[:, None, None].expand(7, 2, 3) * 1e3
    assert card.poses.effective_number(far, 25.0) == pytest.approx(7)
    assert card.poses.effective_number(torch.cat([far, far]), 25.0) == pytest.approx(7)
    assert card.poses.effective_number(far[:1].expand(9, 2, 3), 25.0) == pytest.approx(1)
    draw = torch.randn(4000, 6, generator=generator())
    mixed = torch.cat([draw, 3 * draw[:, :2], torch.ones(4000, 1)], 1)  # copies and a constant
    assert card.poses.effective_rank(draw) == pytest.approx(6, abs=0.02)
    assert 5 < card.poses.effective_rank(mixed) < 6
    assert card.poses.spread(far[:2], generator()) == pytest.approx(1e3 * 3**0.5)
    assert card.poses.spread(far[:1], generator()) is None


def test_untwisting_moves_no_joint_and_undoes_the_gauge(card: SimpleNamespace) -> None:
    draw, model = generator(3), open_hands().right
    hand = random_hand(20, seed=3, dtype=torch.float32)
    bones = open_hand_skeleton().bone_directions[None]
    twisted = twist_gauge(hand.hand_pose, torch.randn(20, 15, generator=draw), bones)
    plain, _ = card.poses.untwisted(hand.hand_pose, model)
    again, _ = card.poses.untwisted(twisted, model)
    assert torch.allclose(axis_angle_to_matrix(plain.view(-1, 3)), axis_angle_to_matrix(again.view(-1, 3)), atol=1e-4)
    assert card.poses.untwisted(plain, model)[1].abs().max() < 1e-4
    mean = replace(hand, betas=torch.zeros(20, 10))
    assert torch.allclose(model.joints(mean), model.joints(replace(mean, hand_pose=plain)), atol=1e-6)
    assert (hand.hand_pose - plain).abs().max() > 0.1


def test_repeated_rows(card: SimpleNamespace) -> None:
    rows = torch.randn(8, 5, generator=generator())
    rows[0, 0] = 0.0
    mirrored = rows[:1].clone()
    mirrored[0, 0] = -0.0
    found = card.poses.repeated({"train": torch.cat([rows, rows[3:4]]), "test": torch.cat([mirrored, rows[3:4] + 1])})
    assert found == {"all": 11, "repeated": 2, "in two splits": 1}


@pytest.mark.slow
def test_fitted_recordings_find_themselves(card: SimpleNamespace, corpus: Path, tmp_path: Path) -> None:
    """A tracker that sees exactly the model's joints of training pairs: fits end up near those pairs."""
    from card import real

    pairs = TwoHands.cat([TwoHands.load(path) for path in sorted(corpus.glob("train-*.npz"))])
    seen = [joints[:, list(real.leap_order())].roll(1, -1) for joints in pairs.joints21()]  # y is the depth
    recording = np.array(["a"] * 12 + ["b"] * 24)
    np.savez(
        tmp_path / "leap.npz", joints_l=seen[0].numpy(), joints_r=seen[1].numpy(), confidence=np.ones((36, 2)),
        recording=recording,
    )  # fmt: skip
    found = real.real_neighbours(tmp_path / "leap.npz", {"train": pairs, "test": pairs[:4]}, 24)
    assert found["frames"] == 24
    assert found["residual of the fit mm"] < 1
    assert found["test"]["pair mm"]["90%"] == 0
    assert found["real"]["pair mm"]["50%"] < 4
    assert found["real"]["hand mm"]["50%"] < 4
    assert found["real"]["placement mm"]["50%"] < 6
    assert found["test"]["placement mm"]["90%"] == 0
