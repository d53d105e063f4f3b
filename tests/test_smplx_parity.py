"""The hand layer against smplx on the same arrays, and a user's own layers taken in place of files."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from mano_makers import assert_pose_tables
from torch import nn

from interhand_prior.hands import HandArrays, HandModel, HandPair, load_hands, open_hands
from interhand_prior.params import HandParams

smplx = pytest.importorskip("smplx")
from smplx.utils import Struct  # noqa: E402


def mano_arrays(side: str, *, left_bug: bool = False) -> dict[str, np.ndarray]:
    """The open hand under MANO's keys."""
    pair = open_hands()
    arrays = getattr(pair, side).arrays
    return {
        "v_template": arrays.v_template,
        "shapedirs": pair.right.arrays.shapedirs if left_bug else arrays.shapedirs,
        "posedirs": arrays.posedirs,
        "J_regressor": arrays.J_regressor,
        "weights": arrays.weights,
        "f": arrays.faces.astype(np.uint32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], range(16)]),
        "hands_mean": arrays.hands_mean,
        "hands_components": arrays.hands_components,
    }


def make_layer(side: str, *, left_bug: bool = False, kind: str = "MANO", dtype=torch.float32, **options) -> nn.Module:
    options = {"use_pca": False, "flat_hand_mean": True, **options}
    data = Struct(**mano_arrays(side, left_bug=left_bug))
    layer = getattr(smplx, kind)("", data_struct=data, is_rhand=side == "right", dtype=dtype, **options)
    return layer.to(dtype)


def draw(*batch: int, seed: int = 0, dtype=torch.float32, requires_grad: bool = False) -> HandParams:
    generator = torch.Generator().manual_seed(seed)
    scale = {"global_orient": (3, 2.0), "hand_pose": (45, 0.5), "betas": (10, 1.5), "transl": (3, 0.3)}
    return HandParams(
        **{
            name: (torch.randn(*batch, n, generator=generator, dtype=torch.float64) * s)
            .to(dtype)
            .requires_grad_(requires_grad)
            for name, (n, s) in scale.items()
        }
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["left", "right"])
def test_vertices_joints_and_gradients_equal_smplx(side, dtype):
    layer = make_layer(side, dtype=dtype)
    model = getattr(open_hands(), side)
    ours, theirs = draw(9, dtype=dtype, requires_grad=True), draw(9, dtype=dtype, requires_grad=True)
    vertices, joints = model(ours)
    output = layer(**theirs.as_dict())
    # smplx perturbs every axis-angle by 1e-8, and its wrist moves by J_0 times the rounding of the weights' sum.
    metres = 1e-6 if dtype == torch.float32 else 1e-7
    assert vertices.dtype == dtype
    torch.testing.assert_close(vertices, output.vertices, rtol=0, atol=metres)
    torch.testing.assert_close(joints, output.joints, rtol=0, atol=metres)

    generator = torch.Generator().manual_seed(1)
    a = torch.randn(vertices.shape, generator=generator, dtype=dtype)
    b = torch.randn(joints.shape, generator=generator, dtype=dtype)
    ((vertices * a).sum() + (joints * b).sum()).backward()
    ((output.vertices * a).sum() + (output.joints * b).sum()).backward()
    for name, value in ours.as_dict().items():
        other = theirs.as_dict()[name].grad
        bound = (1e-4 if dtype == torch.float32 else 1e-6) * float(other.abs().max())
        torch.testing.assert_close(value.grad, other, rtol=0, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def test_joints21_are_smplx_joints_and_tips():
    layer, hand = make_layer("right"), draw(4)
    output = layer(**hand.as_dict())
    expected = layer.vertex_joint_selector(output.vertices, output.joints)
    torch.testing.assert_close(open_hands().right.joints21(hand), expected.detach(), rtol=0, atol=1e-6)


def test_manolayer_with_rotation_matrices():
    from interhand_prior.rotations import axis_angle_to_matrix

    layer, hand = make_layer("left", kind="MANOLayer"), draw(3)
    output = layer(
        betas=hand.betas,
        global_orient=axis_angle_to_matrix(hand.global_orient)[:, None],
        hand_pose=axis_angle_to_matrix(hand.hand_pose.unflatten(-1, (15, 3))),
        transl=hand.transl,
    )
    models = load_hands({"left": layer, "right": make_layer("right", kind="MANOLayer")})
    torch.testing.assert_close(models.left(hand)[0], output.vertices, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "mean_known", "components_known"),
    [
        ({"use_pca": False, "flat_hand_mean": True}, False, False),
        ({"use_pca": False, "flat_hand_mean": False}, True, False),
        ({"use_pca": True, "flat_hand_mean": True, "num_pca_comps": 6}, False, False),
        ({"use_pca": True, "flat_hand_mean": False, "num_pca_comps": 45}, True, True),
    ],
)
def test_layers_are_taken_however_they_treat_the_pose(options, mean_known, components_known):
    models = load_hands((make_layer("left", **options), make_layer("right", **options)))
    hand = draw(2, dtype=torch.float64)
    for side in ("left", "right"):
        ours, bundled = getattr(models, side), getattr(open_hands(), side)
        # The layer holds float32, as the open hand does: nothing is lost.
        torch.testing.assert_close(ours(hand)[0], bundled(hand)[0], rtol=0, atol=1e-12)
        assert_pose_tables(ours, bundled, mean_known, components_known)


def test_absolute_pose_against_a_layer_that_adds_its_mean():
    options = {"flat_hand_mean": False}
    layers = make_layer("left", **options), make_layer("right", **options)
    hand = draw(3)
    offset = {**hand.as_dict(), "hand_pose": hand.hand_pose - layers[1].hand_mean}
    torch.testing.assert_close(
        load_hands(layers).right(hand)[0], layers[1](**offset).vertices.detach(), rtol=0, atol=1e-6
    )


def test_dtype_follows_the_layer():
    models = load_hands((make_layer("left", dtype=torch.float64), make_layer("right", dtype=torch.float64)))
    assert models.left.dtype == models.left.v_template.dtype == torch.float64


def test_known_bug_of_the_left_shapedirs_is_repaired_in_the_copy(caplog):
    left, right = make_layer("left", left_bug=True), make_layer("right")
    before = left.shapedirs.clone()
    hand = draw(2)
    with caplog.at_level(logging.INFO, logger="interhand_prior"):
        repaired = load_hands((left, right))
    assert "mirrored" in caplog.text
    assert repaired.left.arrays.shapedirs_fixed
    assert not load_hands((make_layer("left"), right)).left.arrays.shapedirs_fixed
    torch.testing.assert_close(repaired.left(hand)[0], open_hands().left(hand)[0])
    torch.testing.assert_close(left.shapedirs, before)

    kept = load_hands((left, right), fix_left_shapedirs=False)
    torch.testing.assert_close(kept.left(hand)[0], left(**hand.as_dict()).vertices.detach(), rtol=0, atol=1e-6)
    assert (kept.left(hand)[0] - repaired.left(hand)[0]).abs().max() > 1e-3


def test_layers_are_copied():
    left, right = make_layer("left"), make_layer("right")
    models, hand = load_hands((left, right)), draw()
    before = models.right(hand)[0]
    right.v_template += 1
    right.faces_tensor.zero_()
    torch.testing.assert_close(models.right(hand)[0], before)
    assert models.right.faces.any()


def test_wrong_sources_are_named(tmp_path):
    left, right = make_layer("left"), make_layer("right")
    with pytest.raises(ValueError, match=r"exchanged.*\(left_layer, right_layer\)"):
        load_hands((right, left))
    with pytest.raises(ValueError, match=r"both layers are right hands.*MANO_LEFT.pkl"):
        load_hands((right, right))
    with pytest.raises(ValueError, match=r"both layers are left hands.*MANO_RIGHT.pkl"):
        load_hands((left, left))
    with pytest.raises(TypeError, match="single MANO; pass both"):
        load_hands(right)
    with pytest.raises(TypeError, match="single HandModel; pass both"):
        load_hands(open_hands().right)
    with pytest.raises(TypeError, match=r"got Linear, which lacks v_template, shapedirs"):
        load_hands((nn.Linear(2, 2), right))
    with pytest.raises(TypeError, match=r"open hand.*MANO_RIGHT.*got int"):
        load_hands(3)
    with pytest.raises(FileNotFoundError, match=r"'manoo' does not exist; pass None or \"open\""):
        load_hands("manoo")
    with pytest.raises(ValueError, match="num_betas=10"):
        load_hands((make_layer("left", num_betas=5), right))


def test_sources_that_are_taken_as_they_are():
    pair = open_hands()
    assert load_hands(pair) is pair
    models = (pair.left, pair.right.double())
    pair.right.float()
    assert load_hands(models).right.arrays is pair.right.arrays
    assert load_hands("open").left.side == "left"
    assert load_hands() is not open_hands()  # a prior's own, which it may move


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("v_template", np.zeros((6890, 3)), r"v_template must be numbers of shape \(778, 3\), got .*6890"),
        ("weights", np.full((778, 16), 0.5), "sum to 1"),
        ("posedirs", np.full((778, 3, 135), np.nan), "posedirs holds NaN"),
        ("f", np.full((1538, 3), 778), "must index 778 vertices"),
        ("f", np.zeros((1538, 3)), "f must be integers"),
        ("f", np.zeros((1538, 3), np.int64), "wrist loop"),
        ("kintree_table", np.zeros((2, 16), np.int64), "MANO's parents"),
        ("hands_mean", np.array(["a"] * 45), "hands_mean must be numbers"),
        ("J_regressor", None, "lacks J_regressor"),
    ],
)
def test_arrays_are_checked(key, value, message):
    with pytest.raises(ValueError, match=f"a file.*{message}"):
        HandArrays.from_mapping({**mano_arrays("right"), key: value}, "a file")


def test_a_pair_is_left_and_right():
    pair = open_hands()
    with pytest.raises(ValueError, match="left is a right hand"):
        HandPair(pair.right, pair.left)
    with pytest.raises(TypeError, match="load_hands"):
        HandPair(pair.left, make_layer("right"))
    assert isinstance(pair.left, HandModel)
