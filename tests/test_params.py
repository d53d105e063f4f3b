"""HandParams and TwoHands: reading what users have, indexing, Gamma."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, random_hand, random_pairs

from interhand_prior import HandParams, TwoHands
from interhand_prior.hands import HandPair, load_hands, open_hands
from interhand_prior.params import FIELDS


def as_mapping(*batch: int) -> dict[str, Any]:
    return dict(random_hand(*batch).as_dict())


def labelled(*batch: int) -> TwoHands:
    """Pairs that carry their own number, a name, and an array with a trailing axis."""
    pairs = random_pairs(*batch)
    number = np.arange(int(np.prod(batch))).reshape(batch)
    extras = {"number": number, "name": number.astype("<U8"), "wide": np.stack([number, -number], -1)}
    return TwoHands(pairs.left, pairs.right, extras=extras)


# Reading ---------------------------------------------------------------------------------------------------------


def test_coerce_reads_tensors_arrays_lists_and_joint_axes() -> None:
    hand = random_hand(2)
    arrays = {name: value.numpy() for name, value in hand.as_dict().items()}
    arrays["transl"].flags.writeable = False
    arrays["betas"] = np.ascontiguousarray(arrays["betas"][:, ::-1])[:, ::-1]
    mappings: list[dict[str, Any]] = [
        hand.as_dict(),
        arrays,
        hand.as_dict() | {"hand_pose": hand.hand_pose.unflatten(-1, (15, 3)), "expression": None},
    ]
    for mapping in mappings:
        found = HandParams.coerce(mapping)
        for name, value in hand.as_dict().items():
            assert torch.equal(getattr(found, name), value)
    assert HandParams.coerce(hand) is hand
    from_lists = HandParams.coerce({name: [0.5] * width for name, width in FIELDS.items()})
    assert from_lists.dtype == torch.float32
    assert from_lists.batch_shape == ()


def test_coerce_does_not_share_memory_with_an_array() -> None:
    mapping = {name: value.numpy() for name, value in random_hand(2).as_dict().items()}
    found = HandParams.coerce(mapping)
    before = found.betas.clone()
    mapping["betas"][:] = 9
    assert torch.equal(found.betas, before)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"betas": None}, ValueError, ["thumbs lacks betas", "zeros"]),
        ({"betas": torch.zeros(2, 9)}, ValueError, ["thumbs", "betas", "(2, 9)", "(..., 10)"]),
        ({"betas": torch.zeros(1, 10)}, ValueError, ["thumbs", "betas", "(1, 10)"]),
        ({"hand_pose": torch.zeros(2, 6)}, ValueError, ["thumbs", "hand_pose", "(2, 6)"]),
        ({"transl": torch.zeros(2, 3)}, ValueError, ["thumbs", "transl", "float32", "float64", ".to("]),
        ({"transl": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, ["thumbs", "transl", "int64"]),
        ({"transl": torch.zeros(2, 3, device="meta").double()}, ValueError, ["thumbs", "transl", "meta", ".to("]),
        ({"transl": torch.full((2, 3), torch.nan).double()}, ValueError, ["thumbs.transl", "NaN"]),
        ({"transl": torch.full((2, 3), torch.inf).double()}, ValueError, ["thumbs.transl", "infinity"]),
        ({"transl": "here"}, TypeError, ["thumbs.transl", "numbers"]),
        ({"transl": [[0.0], [0.0, 1.0]]}, TypeError, ["thumbs.transl", "numbers"]),
        ({"transl": np.array([None, 1])}, TypeError, ["thumbs.transl", "numbers"]),
        ({"global_orient": torch.zeros(())}, ValueError, ["thumbs", "global_orient", "()"]),
    ],
)
def test_coerce_says_what_is_wrong_with_which_argument(
    change: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        HandParams.coerce(as_mapping(2) | change, "thumbs")
    for word in words:
        assert word in str(caught.value)


def test_coerce_refuses_what_is_no_mapping() -> None:
    with pytest.raises(TypeError, match=r"elbow must be a HandParams or a mapping .* got Tensor"):
        HandParams.coerce(torch.zeros(3), "elbow")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"global_orient must be a torch\.Tensor, got list"):
        HandParams([0.0] * 3, torch.zeros(45), torch.zeros(10), torch.zeros(3))  # type: ignore[arg-type]


def test_the_two_hands_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one batch shape, got \(2,\) and \(3,\)"):
        TwoHands(random_hand(2), random_hand(3))
    with pytest.raises(ValueError, match=r"right is torch\.float32"):
        TwoHands(random_hand(2), random_hand(2).to(torch.float32))
    for wrong in (np.zeros(3), [1, 2], np.array([None, None])):
        with pytest.raises(ValueError, match=r"extras\['x'\]"):
            TwoHands(random_hand(2), random_hand(2), extras={"x": wrong})  # type: ignore[dict-item]


def test_as_dict_feeds_smplx() -> None:
    smplx = pytest.importorskip("smplx")
    arrays = open_hands().right.arrays
    hand = random_hand(3, dtype=torch.float32)
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean", "hands_components")
    tree = np.stack([open_hands().right.parents, range(16)])
    data = smplx.utils.Struct(f=arrays.faces, kintree_table=tree, **{name: getattr(arrays, name) for name in names})
    layer = smplx.MANO("", data_struct=data, use_pca=False, flat_hand_mean=True, batch_size=3)
    found = layer(**hand.as_dict())
    vertices, joints = open_hands().right(hand)
    torch.testing.assert_close(found.vertices, vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.joints, joints, atol=1e-5, rtol=0)


# Indexing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        1,
        -1,
        np.int64(2),
        slice(1, None),
        slice(None, None, 2),
        ...,
        None,
        [2, 0],
        torch.tensor([2, -1]),
        np.array([0, 0]),
        torch.tensor([True, False, True]),
        np.array([False, False, False]),
        (1, 0),
        (..., 1),
        (..., -1, slice(1, 3)),
        (slice(None), None, 0),
        (torch.tensor([0, 2]), torch.tensor([1, 0])),
        (0, slice(None), [1, 0]),
        (..., [0, 1]),
        torch.arange(24).reshape(3, 2, 4) % 5 == 0,
    ],
    ids=str,
)
def test_indexing_selects_pairs_and_their_extras(index: Any) -> None:
    pairs = labelled(3, 2, 4)
    number = torch.arange(24).reshape(3, 2, 4)[index]
    part = pairs[index]
    assert part.batch_shape == number.shape
    assert part.extras["number"].tolist() == number.tolist()
    assert part.extras["wide"][..., 1].tolist() == (-number).tolist()
    assert part.extras["name"].tolist() == number.numpy().astype("<U8").tolist()
    flat = number.reshape(-1)
    for side in ("left", "right"):
        for name, width in FIELDS.items():
            whole = getattr(getattr(pairs, side), name).reshape(24, width)
            assert torch.equal(getattr(getattr(part, side), name).reshape(-1, width), whole[flat])


def test_an_index_never_reaches_into_the_parameters() -> None:
    with pytest.raises(IndexError):
        random_pairs(5)[0, 1]
    with pytest.raises(IndexError):
        random_pairs(5)[5]


def test_length_iteration_and_reshape() -> None:
    pairs = labelled(3, 2)
    assert len(pairs) == 3
    assert [pair.extras["number"].tolist() for pair in pairs] == [[0, 1], [2, 3], [4, 5]]
    assert_same(TwoHands.cat(list(pairs)), pairs.reshape(6))
    assert pairs.reshape(-1, 1).batch_shape == (6, 1)
    assert pairs.reshape(6).extras["wide"].tolist() == [[i, -i] for i in range(6)]
    single = random_pairs()
    for refused in (lambda: len(single), lambda: single[0], lambda: list(single), lambda: TwoHands.cat([single])):
        with pytest.raises(TypeError, match=r"reshape\(1\)"):
            refused()
    assert len(single.reshape(1)) == 1
    assert random_hand(4).expand(2, 4).batch_shape == (2, 4)


def test_empty_batches() -> None:
    pairs = labelled(3)[:0]
    assert len(pairs) == 0
    assert list(pairs) == []
    assert pairs.mirrored().batch_shape == (0,)
    assert [v.shape for v in pairs.vertices()] == [(0, 778, 3)] * 2
    assert [j.shape for j in pairs.joints()] == [(0, 16, 3)] * 2
    assert TwoHands.cat([pairs, labelled(2)]).extras["number"].tolist() == [0, 1]


# Joining and moving ----------------------------------------------------------------------------------------------


def test_cat_joins_and_keeps_common_extras() -> None:
    first, second = labelled(2), labelled(3)
    second = TwoHands(second.left, second.right, extras={"number": second.extras["number"]})
    joined = TwoHands.cat([first, second])
    assert_same(joined[:2], first)
    assert_same(joined[2:], second)
    assert set(joined.extras) == {"number"}
    assert joined.extras["number"].tolist() == [0, 1, 0, 1, 2]


def test_cat_knows_the_open_hand_by_both_its_names() -> None:
    pair = random_pairs(1)
    named = TwoHands(pair.left, pair.right, open_hands())
    assert len(TwoHands.cat([pair, named])) == 2
    other = TwoHands(pair.left, pair.right, load_hands((open_hands().left, open_hands().right)))
    with pytest.raises(ValueError, match="different hand models"):
        TwoHands.cat([pair, other])
    with pytest.raises(ValueError, match="nothing to join"):
        TwoHands.cat([])


def test_to_and_detach() -> None:
    pairs = random_pairs(2).map(lambda value: value.requires_grad_())
    half = pairs.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.left.betas.requires_grad
    assert not pairs.detach().right.transl.requires_grad
    assert half.device == torch.device("cpu")


# Gamma and the surface -------------------------------------------------------------------------------------------


def test_gamma_is_an_involution_and_mirrors_the_surface() -> None:
    pairs = labelled(3)
    mirrored = pairs.mirrored()
    assert_same(mirrored.mirrored(), pairs)
    assert mirrored.extras is pairs.extras
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    for points in ("vertices", "joints", "joints21"):
        left, right = getattr(pairs, points)()
        mirror_left, mirror_right = getattr(mirrored, points)()
        torch.testing.assert_close(mirror_left, right * flip, atol=1e-12, rtol=0)
        torch.testing.assert_close(mirror_right, left * flip, atol=1e-12, rtol=0)


def test_the_model_is_the_open_hand_unless_another_is_named() -> None:
    pairs = random_pairs(1)
    assert pairs.model is open_hands()
    mine = HandPair(open_hands().left, open_hands().right)
    named = TwoHands(pairs.left, pairs.right, mine)
    assert named.model is named[0].model is named.mirrored().model is mine
    assert [f.shape for f in pairs.faces] == [(1538, 3)] * 2
