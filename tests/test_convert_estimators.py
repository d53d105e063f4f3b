"""Converters of estimators' outputs: vertices against each estimator's own way from parameters to vertices."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import assert_close, generator, random_hand, random_pairs
from hypothesis import given
from torch import Tensor

from interhand_prior import HandParams, TwoHands, sds_loss
from interhand_prior.convert import (
    HaMeRHands,
    crop_to_full,
    demo_focal_length,
    full_to_crop,
    hamer_to_hands,
    hand_or_none,
    hands_to_hamer,
    hands_to_interwild,
    interwild_to_hands,
    matrices_to_pose,
    moved,
    of_detections,
    pair_of,
    pose_to_matrices,
)
from interhand_prior.hands import open_hands
from interhand_prior.rotations import axis_angle_to_matrix, rot6d_to_matrix

pytest.importorskip("smplx")
from test_smplx_parity import make_layer

#: smplx perturbs every axis-angle by 1e-8.
METRES = 2e-7


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# HaMeR and WiLoR ------------------------------------------------------------------------------------------------


def detections(number: int, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the network wrote, and its batch."""
    params = {
        "global_orient": rot6d_to_matrix(normal(number, 1, 6, seed=seed)),
        "hand_pose": axis_angle_to_matrix(normal(number, 15, 3, seed=seed + 1, scale=0.5)),
        "betas": normal(number, 10, seed=seed + 2),
    }
    draw = generator(seed + 3)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)
    batch = {
        "pred_cam": torch.cat((uniform(0.5, 1.2, number, 1), uniform(-0.3, 0.3, number, 2)), -1),
        "box_center": uniform(100, 500, number, 2),
        "box_size": uniform(80, 300, number),
        "img_size": torch.tensor([[640.0, 480.0]], dtype=torch.float64).expand(number, 2),
        "right": (torch.rand(number, generator=draw) > 0.5).double(),
    }
    return params, batch


def demo_vertices(params: dict[str, Tensor], batch: dict[str, Tensor], focal: float) -> np.ndarray:
    """The demos of HaMeR and WiLoR, one detection after another: right hands only, vertices flipped at the end."""
    layer = make_layer("right", kind="MANOLayer", dtype=torch.float64)
    vertices = layer(**params).vertices.numpy().copy()
    for n, (right, cam, (cx, cy), size, (w, h)) in enumerate(
        zip(*(batch[k].numpy() for k in ("right", "pred_cam", "box_center", "box_size", "img_size")), strict=True)
    ):
        scale, tx, ty = cam
        sign = 2 * right - 1
        bs = size * scale + 1e-9
        shift = np.array([2 * (cx - w / 2) / bs + sign * tx, 2 * (cy - h / 2) / bs + ty, 2 * focal / bs])
        vertices[n, :, 0] *= sign
        vertices[n] += shift
    return vertices


def camera(batch: dict[str, Tensor], **options: object) -> Tensor:
    return crop_to_full(
        batch["pred_cam"], batch["box_center"], batch["box_size"], batch["img_size"], batch["right"], **options
    )


@pytest.mark.parametrize("focal", [None, 777.0])
def test_hamer_vertices_are_those_of_its_demo(focal):
    params, batch = detections(12)
    expected = demo_vertices(params, batch, 5000 / 256 * 640 if focal is None else focal)
    # Each detection in an image of its own.
    pair = hamer_to_hands(
        params, camera(batch, focal_length=focal), batch["right"], image=torch.arange(12), num_images=12
    )
    assert torch.equal(pair.right_valid, batch["right"] > 0)
    assert torch.equal(pair.left_valid, batch["right"] < 1)
    left, right = pair.vertices()
    found = torch.where(pair.right_valid[:, None, None], right, left)
    assert 0 < pair.right_valid.sum() < 12
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=METRES)


def test_hamer_there_and_back():
    pair = random_pairs(3, 2)
    written = hands_to_hamer(pair)
    assert written.mano_params["global_orient"].shape == (3, 2, 2, 1, 3, 3)
    assert written.mano_params["hand_pose"].shape == (3, 2, 2, 15, 3, 3)
    flat = HaMeRHands(
        {k: v.flatten(0, 2) for k, v in written.mano_params.items()},
        written.cam_t.flatten(0, 2),
        written.is_right.flatten(),
    )
    again = hamer_to_hands(*flat, image=torch.arange(12) // 2, num_images=6).reshape(3, 2)
    for found, wanted in zip(again.vertices(), pair.vertices(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    again = hands_to_hamer(again)
    for name, value in written.mano_params.items():
        torch.testing.assert_close(again.mano_params[name], value, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.cam_t, written.cam_t)


def test_crop_camera_there_and_back_and_projects_alike():
    _, batch = detections(7)
    cam_t = camera(batch)
    again = full_to_crop(cam_t, batch["box_center"], batch["box_size"], batch["img_size"], batch["right"])
    torch.testing.assert_close(again, batch["pred_cam"], rtol=0, atol=1e-9)
    # A point near the hand's origin falls on the same pixel through the crop's weak perspective and the full camera.
    scale, tx, ty = batch["pred_cam"].unbind(-1)
    sign = 2 * batch["right"] - 1
    crop = batch["box_size"][:, None] / 2 * scale[:, None] * torch.stack((sign * tx, ty), -1) + batch["box_center"]
    focal = demo_focal_length(batch["img_size"])[:, None]
    assert float(focal[0]) == pytest.approx(5000 / 256 * 640)
    full = focal * cam_t[:, :2] / cam_t[:, 2:] + batch["img_size"] / 2
    torch.testing.assert_close(full, crop, rtol=0, atol=1e-5)


def test_gradient_reaches_what_the_network_wrote(prior):
    params, batch = detections(4)
    sixd, pose, betas, cam = (
        x.requires_grad_() for x in (normal(4, 1, 6), normal(4, 15, 6, seed=1), params["betas"], batch["pred_cam"])
    )
    is_right = torch.tensor([True, False, True, True])
    where = torch.tensor([0, 0, 1, 1])  # image 0: both hands; image 1: two right ones
    params = {"global_orient": rot6d_to_matrix(sixd), "hand_pose": rot6d_to_matrix(pose), "betas": betas}
    pair = hamer_to_hands(
        params, camera(batch), is_right, score=torch.tensor([0.1, 0.2, 0.3, 0.9]), image=where, num_images=3
    )
    loss = sds_loss(
        prior, pair.left, pair.right, left_valid=pair.left_valid, right_valid=pair.right_valid, generator=generator()
    )
    for name, gradient in zip(
        ("orient", "pose", "betas", "camera"), torch.autograd.grad(loss, (sixd, pose, betas, cam)), strict=True
    ):
        assert torch.isfinite(gradient).all()
        reached = gradient.flatten(1).abs().sum(-1) > 0
        # The lower-scored right hand was not taken; a hand alone has no placement.
        wanted = [True, True, False, name in ("pose", "betas")]
        assert reached.tolist() == wanted, name


@pytest.mark.parametrize("right", [True, False])
def test_gradients_are_right(right):
    def own_parameters(sixd: Tensor, pose: Tensor, betas: Tensor, cam: Tensor) -> tuple[Tensor, ...]:
        params = {"global_orient": rot6d_to_matrix(sixd), "hand_pose": rot6d_to_matrix(pose), "betas": betas}
        batch = {**detections(1)[1], "pred_cam": cam, "right": torch.tensor([float(right)])}
        pair = hamer_to_hands(params, camera(batch), batch["right"])
        return tuple(getattr(pair, "right" if right else "left").as_dict().values())

    inputs = (normal(1, 1, 6), normal(1, 15, 6, seed=1), normal(1, 10), detections(1)[1]["pred_cam"].clone())
    assert torch.autograd.gradcheck(own_parameters, tuple(x.requires_grad_() for x in inputs), fast_mode=True)


# Zero, one or two hands -----------------------------------------------------------------------------------------


@given(st.data())
def test_detections_against_a_loop(data):
    number, images = data.draw(st.integers(0, 7)), data.draw(st.integers(0, 3))
    if images == 0:
        number = 0
    draw = lambda strategy: data.draw(st.lists(strategy, min_size=number, max_size=number))
    is_right, image = draw(st.booleans()), draw(st.integers(0, max(images - 1, 0)))
    score = data.draw(
        st.sampled_from([None, draw(st.sampled_from([0.0, 0.5, 1.0, -3.0, float("nan"), float("-inf")]))])
    )
    hand = random_hand(number)
    pair = of_detections(
        hand,
        torch.tensor(is_right, dtype=torch.bool),
        score=None if score is None else torch.tensor(score),
        image=torch.tensor(image, dtype=torch.long),
        num_images=images,
    )
    assert pair.batch_shape == (images,)
    for i in range(images):
        for side, flag in (("left", False), ("right", True)):
            mine = [n for n in range(number) if image[n] == i and is_right[n] == flag]
            valid, got = getattr(pair, f"{side}_valid")[i], getattr(pair, side)[i]
            assert bool(valid) == bool(mine)
            if not mine:
                assert all((value == 0).all() for value in got.as_dict().values())
                continue
            worth = lambda n: float("-inf") if score is None or not score[n] > float("-inf") else score[n]
            best = max(mine, key=worth)  # the first of equals
            assert all(
                torch.equal(a, b) for a, b in zip(got.as_dict().values(), hand[best].as_dict().values(), strict=True)
            )


def test_detections_of_one_image_and_integer_scores():
    hand = random_hand(3)
    pair = of_detections(hand, torch.tensor([1, 1, 1]), score=torch.tensor([3, 9, 4]))
    assert pair.batch_shape == ()
    assert (bool(pair.left_valid), bool(pair.right_valid)) == (False, True)
    assert torch.equal(pair.right.transl, hand.transl[1])


def test_a_broken_detection_spoils_no_other_image():
    hand = random_hand(2)
    hand.transl[1] = torch.nan
    hand = hand.map(lambda value: value.clone().requires_grad_())
    pair = of_detections(hand, torch.tensor([True, True]), image=torch.tensor([0, 1]), num_images=3)
    total = sum(value[::2].square().sum() for h in (pair.left, pair.right) for value in h.as_dict().values())
    total.backward()
    assert all(torch.isfinite(value.grad).all() for value in hand.as_dict().values())


def test_wrong_detections_are_refused():
    hand, flags = random_hand(2), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"is_right must have shape \(2,\), got \(3,\)"):
        of_detections(hand, torch.ones(3))
    with pytest.raises(ValueError, match="image and num_images belong together"):
        of_detections(hand, flags, image=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="list of detections"):
        of_detections(random_hand(2, 2), torch.ones(2, 2))
    params, batch = detections(2)
    with pytest.raises(ValueError, match=r"mano_params lacks betas"):
        hamer_to_hands({k: v for k, v in params.items() if k != "betas"}, camera(batch), flags)
    with pytest.raises(ValueError, match=r"hand_pose must have shape \(\.\.\., 15, 3, 3\), got \(2, 45\)"):
        hamer_to_hands({**params, "hand_pose": torch.zeros(2, 45)}, camera(batch), flags)
    with pytest.raises(ValueError, match=r"pred_cam must have shape \(\.\.\., 3\)"):
        camera({**batch, "pred_cam": torch.zeros(2, 4)})


def test_pairs_of_hands_that_are_not_there():
    hand = random_hand(2)
    only = pair_of(None, hand, right_valid=torch.tensor([True, False]))
    assert [mask.tolist() for mask in only.valid] == [[False, False], [True, False]]
    assert hand_or_none(only, "left") is None
    assert hand_or_none(only, "right") is only.right
    none = pair_of(None, None)
    assert none.batch_shape == ()
    assert [bool(mask) for mask in none.valid] == [False, False]
    assert hand_or_none(pair_of(hand, hand), "left") is hand


# InterWild ------------------------------------------------------------------------------------------------------


def interwild_output(*batch: int, seed: int = 0) -> dict[str, Tensor]:
    output = {}
    for k, side in enumerate("lr"):
        output[f"{side}mano_root_pose"] = normal(*batch, 3, seed=seed + k)
        output[f"{side}mano_hand_pose"] = normal(*batch, 45, seed=seed + 2 + k, scale=0.4)
        output[f"{side}mano_shape"] = normal(*batch, 10, seed=seed + 4 + k)
    output["rel_trans"] = normal(*batch, 3, seed=seed + 6, scale=0.1)
    output["rroot_cam"] = normal(*batch, 3, seed=seed + 7, scale=0.1) + torch.tensor(
        [0.0, 0.0, 0.8], dtype=torch.float64
    )
    return output


def interwild_vertices(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """`get_coord` of InterWild's model and the placement of its demo."""
    vertices = {}
    for side in ("left", "right"):
        layer = make_layer(side, dtype=torch.float64, flat_hand_mean=False)
        own = {k[6:]: v for k, v in output.items() if k.startswith(f"{side[0]}mano_")}
        cam_trans = normal(*own["shape"].shape[:-1], 3, seed=99)  # any: the root is subtracted again
        mesh = layer(
            betas=own["shape"], hand_pose=own["hand_pose"], global_orient=own["root_pose"], transl=cam_trans
        ).vertices
        root = torch.einsum("v,bvc->bc", layer.J_regressor[0], mesh)
        mesh = mesh - root[:, None] + output["rroot_cam"][:, None]
        vertices[side] = mesh if side == "right" else mesh + output["rel_trans"][:, None]
    return vertices


def test_interwild_vertices_are_its_own():
    output = interwild_output(5)
    pair = interwild_to_hands(output, open_hands())
    expected = interwild_vertices(output)
    for found, side in zip(pair.vertices(), ("left", "right"), strict=True):
        torch.testing.assert_close(found, expected[side], rtol=0, atol=METRES)
    # Without the camera the right root is at the origin, and nothing else changes.
    alone = interwild_to_hands({k: v for k, v in output.items() if k != "rroot_cam"}, open_hands())
    shift = -output["rroot_cam"]
    for found, wanted in zip(alone.vertices(), pair.vertices(), strict=True):
        torch.testing.assert_close(found, wanted + shift[:, None], rtol=0, atol=1e-12)


def test_interwild_there_and_back():
    pair = random_pairs(2, 3)
    output = hands_to_interwild(pair)
    again = interwild_to_hands(output, open_hands())
    assert_close(again, pair, atol=1e-8)  # the regressor's weights sum to 1 up to float32
    written = interwild_output(4)
    once = hands_to_interwild(interwild_to_hands(written, open_hands()))
    for name, value in written.items():
        torch.testing.assert_close(once[name], value, rtol=0, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_interwild_carries_gradients_masks_and_says_what_lacks(prior):
    output = {k: v.requires_grad_() for k, v in interwild_output(3).items()}
    masks = {"left_valid": torch.tensor([True, False, True]), "right_valid": torch.tensor([True, True, False])}
    pair = interwild_to_hands(output, open_hands(), **masks)
    sds_loss(prior, pair.left, pair.right, **masks, generator=generator()).backward()
    assert output["rel_trans"].grad[0].abs().sum() > 0
    assert (output["rel_trans"].grad[1:].abs() < 1e-12).all()
    assert (output["lmano_hand_pose"].grad[[0, 2]].abs().sum(-1) > 0).all()
    assert all(torch.isfinite(v.grad).all() for v in output.values())
    with pytest.raises(ValueError, match="output lacks lmano_shape"):
        interwild_to_hands({k: v for k, v in output.items() if k != "lmano_shape"}, open_hands())
    with pytest.raises(ValueError, match=r"rmano_root_pose must have shape \(\.\.\., 3\), got \(3, 6\)"):
        interwild_to_hands({**output, "rmano_root_pose": torch.zeros(3, 6)}, open_hands())
    with pytest.raises(TypeError, match="output must be a mapping"):
        interwild_to_hands([1], open_hands())


# Frames, precision ----------------------------------------------------------------------------------------------


def test_moving_a_pair_moves_its_vertices():
    pair = replace(random_pairs(4), left_valid=torch.tensor([True, True, False, True]))
    rotation, translation = axis_angle_to_matrix(normal(4, 3)), normal(4, 3, seed=1)
    there = moved(pair, rotation, translation)
    assert there.left_valid is pair.left_valid
    for found, points in zip(there.vertices(), pair.vertices(), strict=True):
        torch.testing.assert_close(found, points @ rotation.mT + translation[:, None], rtol=0, atol=1e-12)
    one = moved(pair, rotation[0], translation[0])  # one camera for all
    torch.testing.assert_close(one.vertices()[1][0], there.vertices()[1][0])
    with pytest.raises(ValueError, match=r"rotation is torch\.float32"):
        moved(pair, rotation.float(), translation)
    with pytest.raises(ValueError, match=r"translation must have shape \(\.\.\., 3\)"):
        moved(pair, rotation, torch.zeros(4))


@pytest.mark.parametrize("batch", [(), (3,), (2, 0), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_batch_shape_and_type(batch, dtype):
    pair = random_pairs(*batch).to(dtype)
    full = torch.promote_types(dtype, torch.float32)
    again = interwild_to_hands({k: v.to(dtype) for k, v in hands_to_interwild(pair.to(full)).items()}, open_hands())
    assert again.batch_shape == batch
    assert again.dtype == full
    matrices = pose_to_matrices(pair.left.hand_pose)
    assert matrices.dtype == matrices_to_pose(matrices).dtype == full
    written = hands_to_hamer(pair)
    assert written.cam_t.dtype == written.mano_params["hand_pose"].dtype == full
    assert written.cam_t.shape == (*batch, 2, 3)


def test_autocast_moves_nothing():
    pair = random_pairs(3, dtype=torch.float32)
    output = hands_to_interwild(pair)
    plain = interwild_to_hands(output, open_hands())
    turn, shift = axis_angle_to_matrix(normal(3).float()), normal(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(interwild_to_hands(output, open_hands()), plain, atol=1e-7)
        assert_close(moved(plain, turn, shift), moved_plain(plain, turn, shift), atol=1e-7)


def moved_plain(pair: TwoHands, rotation: Tensor, translation: Tensor) -> TwoHands:
    with torch.autocast("cpu", enabled=False):
        return moved(pair, rotation, translation)


def test_hands_of_another_type_than_float_are_made_so():
    output = {k: v.tolist() for k, v in hands_to_interwild(random_pairs(2, dtype=torch.float32)).items()}
    assert interwild_to_hands(output, open_hands()).dtype == torch.float32
    assert isinstance(interwild_to_hands(output, open_hands()).left, HandParams)
