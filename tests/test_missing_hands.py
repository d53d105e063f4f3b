"""Hands that are not there: marked in TwoHands, left out by what shows them, refused by what needs two."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, leaves, make_prior, random_hand, random_pairs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interhand_prior import TwoHands
from interhand_prior.metrics.contact import CONTACT, measure_contact
from interhand_prior.metrics.penetration import penetration_volume
from interhand_prior.metrics.penetration_depth import penetration_distance
from interhand_prior.metrics.proximity import proximity_ratio
from interhand_prior.metrics.reference import Reference, compute_features
from interhand_prior.metrics.report import evaluate
from interhand_prior.params import FIELDS
from interhand_prior.viewer.sheet import contact_sheet


def marked(*batch: int, seed: int = 0) -> TwoHands:
    """Pairs in which every third left hand and every fourth right hand is missing, and each carries its number."""
    pairs = random_pairs(*batch, seed=seed)
    number = torch.arange(int(np.prod(batch))).reshape(batch)
    return replace(pairs, extras={"number": number.numpy()}, left_valid=number % 3 != 1, right_valid=number % 4 != 2)


def assert_marks_follow(found: TwoHands) -> None:
    """Each pair's marks are those that `marked` gave to its number."""
    number = torch.as_tensor(found.extras["number"])
    assert found.left_valid is not None
    assert found.right_valid is not None
    assert torch.equal(found.left_valid, number % 3 != 1)
    assert torch.equal(found.right_valid, number % 4 != 2)


# TwoHands --------------------------------------------------------------------------------------------------------


def test_without_marks_all_hands_are_there() -> None:
    pairs = random_pairs(2, 3)
    assert pairs.left_valid is None
    assert [mask.tolist() for mask in pairs.valid] == [[[True] * 3] * 2] * 2
    half = replace(pairs, left_valid=torch.zeros(2, 3, dtype=torch.bool))
    assert not half.valid[0].any()
    assert half.valid[1].all()
    assert half.mirrored().left_valid is None
    for part in (pairs[0], pairs.reshape(6), pairs.mirrored(), pairs.to(torch.float32), TwoHands.cat([pairs, pairs])):
        assert part.left_valid is None
        assert part.right_valid is None


@pytest.mark.parametrize(
    "index",
    [
        1,
        np.int64(-1),
        slice(1, None),
        ...,
        None,
        [2, 0],
        (1, 0),
        (..., 1),
        (slice(None), None, 0),
        torch.arange(24).reshape(3, 2, 4) % 5 == 0,
        np.array([False, False, False]),
    ],
    ids=str,
)
def test_marks_follow_an_index(index: Any) -> None:
    part = marked(3, 2, 4)[index]
    assert_marks_follow(part)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_marks_follow_cutting_joining_and_reshaping(sizes: list[int], data: st.DataObject) -> None:
    pairs = marked(sum(sizes))
    parts = [pairs[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    joined = TwoHands.cat(parts)
    assert_same(joined, pairs)
    assert_marks_follow(joined)
    order = data.draw(st.permutations(range(sum(sizes))))
    shuffled = joined[torch.tensor(order, dtype=torch.int64)].reshape(-1, 1)
    assert_marks_follow(shuffled)
    if len(pairs):
        assert_marks_follow(TwoHands.cat([one.reshape(1) for one in pairs]))


def test_batches_without_marks_join_as_hands_that_are_there() -> None:
    whole, part = random_pairs(2), marked(5)
    left_only = replace(random_pairs(3), left_valid=torch.tensor([True, False, True]))
    joined = TwoHands.cat([whole, part, left_only])
    assert joined.left_valid is not None
    assert joined.right_valid is not None
    assert joined.left_valid.tolist() == [True] * 2 + [True, False, True, True, False] + [True, False, True]
    assert joined.right_valid.tolist() == [True] * 2 + [True, True, False, True, True] + [True] * 3
    assert TwoHands.cat([whole, left_only]).right_valid is None


def test_gamma_exchanges_the_marks() -> None:
    pairs = marked(12)
    mirrored = pairs.mirrored()
    assert mirrored.left_valid is pairs.right_valid
    assert mirrored.right_valid is pairs.left_valid
    assert_marks_follow(mirrored.mirrored())


def test_marks_stay_bool_and_go_to_the_device() -> None:
    pairs = marked(12)
    for moved in (pairs.to(torch.float32), pairs.detach(), pairs.map(lambda value: 2 * value)):
        assert_marks_follow(moved)
    away = pairs.to("meta")
    assert [mask.device.type for mask in away.valid] == ["meta"] * 2
    assert all(mask.dtype == torch.bool for mask in away.valid)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.ones(2, 1, dtype=torch.bool), ValueError, r"\(2,\).* got torch\.bool \(2, 1\)"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"\(2,\).* got torch\.bool \(3,\)"),
        (torch.ones(2), ValueError, r"bool tensor .* got torch\.float32"),
        (torch.ones(2, dtype=torch.bool, device="meta"), ValueError, r"on cpu.* on meta"),
        ([True, False], TypeError, "bool tensor .* got list"),
        (np.ones(2, bool), TypeError, "bool tensor .* got ndarray"),
    ],
)
@pytest.mark.parametrize("name", ["left_valid", "right_valid"])
def test_marks_that_do_not_fit_are_refused(mask: Any, error: type[Exception], words: str, name: str) -> None:
    with pytest.raises(error, match=f"{name} must be a .*{words}"):
        TwoHands(random_hand(2), random_hand(2), **{name: mask})


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
def test_saved_marks_come_back(tmp_path: Path, batch: tuple[int, ...]) -> None:
    pairs = marked(*batch)
    found = TwoHands.load(pairs.save(tmp_path / "pairs.npz"))
    assert_marks_follow(found)
    for name, value in leaves(pairs).items():
        there = pairs.valid[name.startswith("right")][..., None]
        assert torch.equal(leaves(found)[name], torch.where(there, value, torch.zeros_like(value)))


def test_what_stands_for_a_missing_hand_is_not_stored(tmp_path: Path) -> None:
    pairs = marked(5).map(torch.clone)
    pairs.left.betas[1] = torch.nan
    assert not TwoHands.load(pairs.save(tmp_path / "pairs.npz")).left.betas[1].any()
    pairs.left.betas[0] = torch.nan
    with pytest.raises(ValueError, match=r"left\.betas holds NaN"):
        pairs.save(tmp_path / "pairs.npz")


def test_files_without_marks_have_none_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    path = random_pairs(3).save(tmp_path / "pairs.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    assert set(arrays) == {f"{side}.{name}" for side in ("left", "right") for name in FIELDS}
    assert TwoHands.load(path).left_valid is None
    for wrong in (np.ones(3), np.ones(2, bool)):
        np.savez(path, **(arrays | {"right.valid": wrong}))
        with pytest.raises(ValueError, match=r"pairs\.npz: right_valid must be a bool tensor of shape \(3,\)"):
            TwoHands.load(path)


# What shows them -------------------------------------------------------------------------------------------------


def names_in_glb(path: Path) -> list[str]:
    data = path.read_bytes()
    size = struct.unpack("<I", data[12:16])[0]
    return [node["name"] for node in json.loads(data[20 : 20 + size])["nodes"]]


def test_exported_meshes_leave_missing_hands_out(tmp_path: Path) -> None:
    pairs = marked(4).map(torch.clone)
    pairs.left.transl[1] = torch.nan
    whole = random_pairs(4)
    assert names_in_glb(pairs.export(tmp_path / "all.glb")) == [
        "left_0",
        "right_0",
        "right_1",
        "left_2",
        "left_3",
        "right_3",
    ]
    pairs.export(tmp_path / "one_{index}.glb")
    assert [names_in_glb(tmp_path / f"one_{i}.glb") for i in range(4)] == [
        ["left", "right"],
        ["right"],
        ["left"],
        ["left", "right"],
    ]
    whole.export(tmp_path / "both_{index}.glb")
    assert (tmp_path / "one_3.glb").read_bytes() == (tmp_path / "both_3.glb").read_bytes()
    text = pairs[1].export(tmp_path / "right.obj").read_text()
    assert [line for line in text.splitlines() if line.startswith("o ")] == ["o right"]
    assert text.count("\nv ") == 778
    assert b"element vertex 778\n" in pairs[1].export(tmp_path / "right.ply").read_bytes()


def test_pictures_leave_missing_hands_out(tmp_path: Path) -> None:
    pairs = marked(3)
    left, right = pairs.vertices()
    sheet = lambda chosen: contact_sheet(
        [left[chosen], right[chosen]], pairs.faces, present=[m[chosen] for m in pairs.valid], size=48, columns=1
    )
    warm = lambda image: (image[..., 0].astype(int) - image[..., 2] > 20).any()
    cold = lambda image: (image[..., 2].astype(int) - image[..., 0] > 20).any()
    images = sheet(slice(None)).reshape(3, 48, 48, 3)
    assert [(bool(warm(image)), bool(cold(image))) for image in images] == [(True, True), (False, True), (True, False)]
    # What stands for the missing hand does not move the camera either.
    path = pairs[1].render(tmp_path / "right.png", size=48)
    twin = replace(pairs, left=pairs.left.map(lambda value: value + 5))
    assert path.read_bytes() == twin[1].render(tmp_path / "twin.png", size=48).read_bytes()


def test_masks_of_a_sheet_are_checked() -> None:
    pairs = random_pairs(2)
    vertices, faces = pairs.vertices(), pairs.faces
    yes = np.ones(2, bool)
    for wrong in ([yes], [yes, np.ones(3, bool)], [yes, np.ones(2)]):
        with pytest.raises(ValueError, match=r"present must hold one bool array \(2,\) for each of 2 meshes"):
            contact_sheet(vertices, faces, present=wrong)
    with pytest.raises(ValueError, match="without any mesh"):
        contact_sheet(vertices, faces, present=[np.array([True, False])] * 2)


def test_a_pair_of_no_hands_cannot_be_shown(tmp_path: Path) -> None:
    pairs = marked(12)
    assert not (pairs.valid[0] | pairs.valid[1]).all()
    for name in ("hands.glb", "hands.png"):
        with pytest.raises(ValueError, match=r"1 of 12 pairs have neither .* at index 10"):
            pairs.export(tmp_path / name) if name.endswith("glb") else pairs.render(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# What needs both -------------------------------------------------------------------------------------------------


def flat_features(pairs: TwoHands) -> Tensor:
    return torch.cat(pairs.joints(), -2).flatten(-2)


@pytest.mark.parametrize(
    "measure",
    [
        proximity_ratio,
        penetration_volume,
        penetration_distance,
        lambda pairs: measure_contact(pairs, CONTACT[-1:]),
        lambda pairs: compute_features(flat_features, pairs, name="pairs"),
        lambda pairs: Reference.from_pairs(pairs, flat_features, contact=False),
        lambda pairs: evaluate(pairs, None),
        lambda pairs: evaluate(random_pairs(6), pairs),
    ],
)
def test_metrics_refuse_pairs_that_lack_a_hand(measure: Callable[[TwoHands], object]) -> None:
    with pytest.raises(ValueError, match=r"a hand is missing in 3 of 6 pairs, the first at index 1.*left & right"):
        measure(marked(6))


def test_the_advice_of_the_metrics_works() -> None:
    pairs = marked(6)
    left, right = pairs.valid
    whole = pairs[left & right]
    assert whole.extras["number"].tolist() == [0, 3, 5]
    assert proximity_ratio(whole) == proximity_ratio(random_pairs(6)[[0, 3, 5]])


# -- the prior


def test_a_hand_alone_is_refined_by_itself() -> None:
    prior = make_prior()
    pairs = random_pairs(3, seed=2)
    masked = replace(pairs, left_valid=torch.tensor([True, False, True]))
    elsewhere = replace(masked, left=random_pairs(3, seed=9).left)
    found, again = (prior.refine(one, steps=3, gate=False) for one in (masked, elsewhere))
    assert torch.equal(found.left_valid, masked.left_valid)
    for name, value in found.right.as_dict().items():
        assert torch.equal(value[1], getattr(again.right, name)[1]), name
    assert not torch.equal(found.right.hand_pose[0], again.right.hand_pose[0])
    assert (found.right.hand_pose - pairs.right.hand_pose).abs().amax(-1).min() > 0


@pytest.mark.parametrize("call", ["denoise", "measure", "trust"])
def test_what_needs_both_hands_says_so(call: str) -> None:
    prior = make_prior().calibrate(random_pairs(8))
    pairs = replace(random_pairs(2), right_valid=torch.tensor([True, False]))
    with pytest.raises(ValueError, match="a hand is missing in some pairs"):
        getattr(prior, call)(pairs)
    getattr(prior, call)(replace(pairs, right_valid=torch.tensor([True, True])))
