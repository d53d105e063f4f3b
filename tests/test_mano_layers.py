"""Layers of other libraries, by the attributes that manopth's and manotorch's ManoLayer have in each of their modes."""

from __future__ import annotations

import logging
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_hand
from mano_makers import assert_pose_tables
from torch import Tensor, nn

from interhand_prior import load_prior, sample
from interhand_prior.convert.poses import PoseForm
from interhand_prior.hands import load_hands, open_hands, smplx_layer
from interhand_prior.hands.export import export_mano
from interhand_prior.rotations import axis_angle_to_matrix

SIDES = ("left", "right")


class _Layer(nn.Module):
    """What both libraries register, from the same file."""

    def __init__(self, side: str, *, left_bug: bool) -> None:
        super().__init__()
        arrays = getattr(open_hands(), side).arrays
        shapedirs = open_hands().right.arrays.shapedirs if left_bug else arrays.shapedirs
        self.side, self.arrays = side, arrays
        self.register_buffer("th_betas", torch.zeros(1, 10))
        self.register_buffer("th_shapedirs", torch.Tensor(shapedirs))
        self.register_buffer("th_posedirs", torch.Tensor(arrays.posedirs))
        self.register_buffer("th_v_template", torch.Tensor(arrays.v_template)[None])
        self.register_buffer("th_J_regressor", torch.Tensor(arrays.J_regressor))
        self.register_buffer("th_weights", torch.Tensor(arrays.weights))
        self.register_buffer("th_faces", torch.Tensor(arrays.faces.astype(np.int32)).long())
        self.kintree_parents = [2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]

    def mean(self, flat: bool) -> Tensor:
        return torch.zeros(1, 45) if flat else torch.Tensor(self.arrays.hands_mean)[None]


class Manopth(_Layer):
    """manopth: all components as `th_comps`, the first ncomps as `th_selected_comps`, whether they are used or not."""

    def __init__(
        self, side: str, use_pca: bool = True, ncomps: int = 6, flat_hand_mean: bool = True,
        joint_rot_mode: str = "axisang", left_bug: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(side, left_bug=left_bug)
        self.use_pca, self.joint_rot_mode, self.flat_hand_mean = use_pca, joint_rot_mode, flat_hand_mean
        self.ncomps = ncomps if use_pca else 45
        if use_pca or joint_rot_mode == "axisang":
            self.register_buffer("th_hands_mean", self.mean(flat_hand_mean))
            self.register_buffer("th_comps", torch.Tensor(self.arrays.hands_components))
            self.register_buffer("th_selected_comps", torch.Tensor(self.arrays.hands_components[:ncomps]))
        else:
            mean = self.mean(flat_hand_mean).view(15, 3)
            self.register_buffer("th_hands_mean_rotmat", axis_angle_to_matrix(mean))


class Manotorch(_Layer):
    """manotorch: the first ncomps components, only where they are used; no mean where poses are quaternions."""

    def __init__(
        self, side: str, use_pca: bool = False, ncomps: int = 15, flat_hand_mean: bool = True,
        rot_mode: str = "axisang", left_bug: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(side, left_bug=left_bug)
        self.use_pca, self.rot_mode = use_pca, rot_mode
        if rot_mode == "axisang":
            self.register_buffer("th_hands_mean", self.mean(flat_hand_mean))
        if rot_mode == "axisang" and use_pca:
            self.register_buffer("th_selected_comps", torch.Tensor(self.arrays.hands_components[:ncomps]))


MODES: list[tuple[type[_Layer], dict[str, Any], bool, bool]] = [
    (Manopth, {}, False, True),
    (Manopth, {"flat_hand_mean": False, "ncomps": 45}, True, True),
    (Manopth, {"flat_hand_mean": False, "use_pca": False}, True, True),
    (Manopth, {"use_pca": False, "joint_rot_mode": "rotmat"}, False, False),
    (Manotorch, {}, False, False),
    (Manotorch, {"use_pca": True, "flat_hand_mean": False}, True, False),
    (Manotorch, {"use_pca": True, "flat_hand_mean": False, "ncomps": 45}, True, True),
    (Manotorch, {"flat_hand_mean": False}, True, False),
    (Manotorch, {"rot_mode": "quat"}, False, False),
]


@pytest.mark.parametrize(("kind", "options", "mean_known", "components_known"), MODES)
def test_hands_are_the_same_in_every_mode(
    kind: Any, options: dict[str, Any], mean_known: bool, components_known: bool
) -> None:
    pair = load_hands({side: kind(side, **options) for side in SIDES})
    hand = random_hand(2)
    for side in SIDES:
        found, wanted = getattr(pair, side), getattr(open_hands(), side)
        for a, b in zip(found(hand), wanted(hand), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert_pose_tables(found, wanted, mean_known, components_known)


@pytest.mark.parametrize("kind", [Manopth, Manotorch])
def test_unmended_left_shapedirs_are_found_and_said(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    layers = kind("left", left_bug=True), kind("right")
    hand = random_hand(2)
    with caplog.at_level(logging.INFO, logger="interhand_prior"):
        mended = load_hands(layers)
        assert "left shapedirs equalled the right ones" in caplog.text
        caplog.clear()
        assert not load_hands((kind("left"), kind("right"))).left.arrays.shapedirs_fixed
        kept = load_hands(layers, fix_left_shapedirs=False)
        assert not caplog.text
    assert mended.left.arrays.shapedirs_fixed
    torch.testing.assert_close(mended.left(hand)[0], open_hands().left(hand)[0], rtol=0, atol=1e-6)
    assert (kept.left(hand)[0] - mended.left(hand)[0]).abs().max() > 1e-3
    assert torch.equal(layers[0].th_shapedirs, layers[1].th_shapedirs), "the user's own layer is as it was"


@pytest.mark.parametrize("kind", [Manopth, Manotorch])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("ncomps", [None, 12, 45])
def test_the_form_of_its_poses(kind: Any, flat: bool, ncomps: int | None) -> None:
    """By the two lines in which both libraries make a pose of coefficients."""
    layer = kind("right", use_pca=ncomps is not None, ncomps=ncomps or 6, flat_hand_mean=flat)
    form = PoseForm.of_layer(layer)
    written = 0.3 * torch.randn(4, form.width, generator=torch.Generator().manual_seed(0))
    pose = written.mm(layer.th_selected_comps) if layer.use_pca else written
    torch.testing.assert_close(form.to_pose(written), layer.th_hands_mean + pose, rtol=0, atol=1e-5)
    torch.testing.assert_close(form.from_pose(form.to_pose(written)), written, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="side must be None for a ManoLayer"):
        PoseForm.of_layer(layer, "right")


@pytest.mark.parametrize("options", [{"use_pca": False, "joint_rot_mode": "rotmat"}, {"rot_mode": "quat"}])
def test_matrices_and_quaternions_have_no_form(options: dict[str, Any]) -> None:
    kind: Any = Manotorch if "rot_mode" in options else Manopth
    with pytest.raises(TypeError, match="rotation matrices or quaternions"):
        PoseForm.of_layer(kind("right", **options))


@pytest.mark.parametrize("missing", ["th_weights", "th_v_template", "kintree_parents"])
def test_what_a_layer_lacks_is_named(missing: str) -> None:
    layer = Manopth("left")
    delattr(layer, missing)
    names = {"th_weights": "weights", "th_v_template": "v_template", "kintree_parents": "parents"}
    with pytest.raises(
        TypeError, match=rf"left_layer must be a MANO layer.*got Manopth, which lacks \w*{names[missing]}"
    ):
        load_hands((layer, Manopth("right")))
    with pytest.raises(ValueError, match="both layers are right hands"):
        load_hands((Manopth("right"), Manotorch("right")))


def test_parameters_in_the_place_of_buffers_are_read_without_a_gradient() -> None:
    """People optimise shapedirs and templates."""
    layers = {side: Manotorch(side) for side in SIDES}
    template = layers["right"].th_v_template
    del layers["right"].th_v_template
    layers["right"].th_v_template = nn.Parameter(template + 1e-3)
    model = load_hands(layers).right
    assert not model.v_template.requires_grad
    torch.testing.assert_close(model.v_template, template[0] + 1e-3, rtol=0, atol=1e-6, check_dtype=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export_mano(folder / "mano")
    return folder


def test_the_example_with_smplx_runs(models: Path) -> None:
    smplx = pytest.importorskip("smplx")
    text = smplx_layer.__doc__ or ""
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    space: dict[str, Any] = {"smplx": smplx, "MODELS": str(models), "PoseForm": PoseForm, "load_prior": load_prior}
    space["sample"] = lambda prior, count, seed: sample(prior, count, seed=seed, steps=2, penetration_scale=0.0)
    exec(code, space)
    pairs, form = space["pairs"], space["form"]
    assert pairs.hands is space["prior"].hands
    torch.testing.assert_close(space["vertices"], pairs.vertices()[0], rtol=0, atol=1e-6)
    # The nearest pose of six components is no worse than the mean pose, which is one of them.
    off = lambda pose: (pose - pairs.right.hand_pose).norm(dim=-1)
    nearest = form.to_pose(form.from_pose(pairs.right.hand_pose))
    assert (off(nearest) <= off(form.mean) + 1e-5).all()
    same = pairs.right.map(lambda value: value)
    wanted = open_hands().right(replace(same, hand_pose=nearest))[0]
    torch.testing.assert_close(space["nearest"].detach(), wanted, rtol=0, atol=1e-5)
