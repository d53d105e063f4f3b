"""Fit two hands to 3D or 2D joints, without and with the prior, and print the errors side by side.

The loop is the ordinary one: forward kinematics, a robust distance to the keypoints, weak pulls towards a relaxed
hand of mean shape, Adam on all pairs at once. The prior enters it in one line, in `fit`:

    loss = task_loss + weight * sds_loss(prior, left, right)

`task_loss` is a negative log-likelihood (squared errors over squared standard deviations), and so is `sds_loss`:
weight 1 is the natural choice.

    python examples/fit_keypoints.py                                  # a small problem made of samples of the prior
    python examples/fit_keypoints.py --dims 2 --depth-std 0.04        # depth of each hand known to 4 cm only
    python examples/fit_keypoints.py --input frames.npz --joint-order leap --noise 0.01

`--input` is an .npz with `joints_l` and `joints_r`, (N, K, 3) in metres with z the depth, or (N, K, 2): metres in a
plane parallel to the image, or pixels with --camera. NaN marks a missing joint. Optional: `confidence` (N, 2) or
(N, 2, K), left before right. Errors are measured against the file's own 3D joints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interhand_prior import HandParams, TwoHands, load_prior, sample, sds_loss
from interhand_prior.hands import HandPair
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle

_OPENPOSE = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
#: For each joint of an order, which of MANO's 16 joints and 5 tips it is (the order of `TwoHands.joints21`).
JOINT_ORDERS: dict[str, tuple[int, ...]] = {
    "mano": tuple(range(21)),
    "openpose": _OPENPOSE,  # MediaPipe's too: wrist, then thumb to little finger, base to tip
    "interhand2.6m": (16, 15, 14, 13, 17, 3, 2, 1, 18, 6, 5, 4, 19, 12, 11, 10, 20, 9, 8, 7, 0),  # tip to base, wrist
    "leap": _OPENPOSE[1:],  # thumb to little finger, base to tip, no wrist
}
_STEP = {"global_orient": 0.02, "hand_pose": 0.02, "betas": 0.05, "transl": 0.002}  # of Adam: radians, metres
_INFINITE = float("inf")

PairLoss = Callable[[HandParams, HandParams], Tensor]


class Camera(NamedTuple):
    """Pinhole that looks along +z, pixels."""

    focal: float
    centre_x: float
    centre_y: float


@dataclass(frozen=True)
class Keypoints:
    """What was seen of N pairs.

    Attributes:
        joints: (N, 2, K, D), left hand first. D = 3: metres, z is the depth. D = 2: what `project` gives.
        order: the K joints' places in MANO's 16 joints and 5 tips, any subset; or weights (K, 21) that make each of
            them from those (for a tracker whose joints lie elsewhere).
        confidence: (N, 2, K) in [0, 1]; 0 where a joint is missing.
        std: standard deviation of the noise, in the joints' unit: a number, or (D,) by axis.
    """

    joints: Tensor
    order: Sequence[int] | Tensor
    confidence: Tensor
    std: float | Tensor = 0.003


@dataclass(frozen=True)
class Start:
    """Where a fit starts, and how strongly it is held there.

    Attributes:
        hands: (N,) pairs.
        std: standard deviation of each parameter about its start, infinite where nothing holds it.
    """

    hands: TwoHands
    std: Mapping[str, float | Tensor]


#: A fit from keypoints alone: relaxed fingers and a mean shape, wherever the hand is.
LOOSE: Mapping[str, float | Tensor] = {
    "global_orient": _INFINITE, "hand_pose": 0.5, "betas": 1.0, "transl": _INFINITE,
}  # fmt: skip


def joints_of(hands: TwoHands, order: Sequence[int] | Tensor) -> Tensor:
    """The joints of a pair, as `Keypoints.order` says: (..., 2, K, 3), left hand first, metres."""
    return arranged(torch.stack(hands.joints21(), -3), order)


def arranged(joints: Tensor, order: Sequence[int] | Tensor) -> Tensor:
    """Joints (..., 21, 3) -> (..., K, 3)."""
    return order @ joints if isinstance(order, Tensor) else joints[..., list(order), :]


def project(points: Tensor, camera: Camera | None) -> Tensor:
    """Points (..., 3) -> (..., 2): pixels, or without a camera the orthographic x and y in metres."""
    if camera is None:
        return points[..., :2]
    centre = points.new_tensor((camera.centre_x, camera.centre_y))
    return camera.focal * points[..., :2] / points[..., 2:].clamp_min(0.05) + centre


def fit(
    start: Start,
    seen: Keypoints,
    *,
    camera: Camera | None = None,
    prior_loss: PairLoss | None = None,
    weight: float = 1.0,
    steps: int = 100,
) -> TwoHands:
    """Fit pairs to keypoints; all pairs at once, none touching another.

    Args:
        start: (N,) pairs to begin with.
        seen: their keypoints.
        camera: of 2D keypoints; None is orthographic.
        prior_loss: left and right hands -> the sum over pairs of a regulariser, e.g. of `sds_loss`.
        weight: its factor.
        steps: of Adam.

    Returns:
        The fitted pairs, (N,).
    """
    flat = seen.joints.shape[-1] == 2
    begin = {side: getattr(start.hands, side).as_dict() for side in ("left", "right")}
    leaves = {side: {name: value.clone().requires_grad_() for name, value in begin[side].items()} for side in begin}
    optimizer = torch.optim.Adam(
        [{"params": [leaves[side][name] for side in leaves], "lr": lr} for name, lr in _STEP.items()],
        betas=(0.8, 0.95),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        left, right = HandParams(**leaves["left"]), HandParams(**leaves["right"])
        joints = joints_of(TwoHands(left, right, start.hands.hands), seen.order)
        error = ((project(joints, camera) if flat else joints) - seen.joints) / seen.std
        task_loss = (seen.confidence * robust(error.square().sum(-1))).sum()
        for name, std in start.std.items():
            for side in leaves:
                task_loss = task_loss + 0.5 * ((leaves[side][name] - begin[side][name]) / std).square().sum()

        loss = task_loss
        if prior_loss is not None:
            loss = task_loss + weight * prior_loss(left, right)  # <- the one line
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return TwoHands(HandParams(**leaves["left"]), HandParams(**leaves["right"]), start.hands.hands).detach()


def robust(square: Tensor, scale: float = 4.0) -> Tensor:
    """Half of `square` near zero, growing only linearly beyond `scale` standard deviations (pseudo-Huber)."""
    return scale * scale * ((1 + square / scale**2).sqrt() - 1)


def start_from(
    models: HandPair,
    seen: Keypoints,
    *,
    camera: Camera | None = None,
    depth: Tensor | None = None,
    depth_std: float = 0.0,
) -> Start:
    """Relaxed hands laid rigidly onto the keypoints.

    In 3D by Kabsch's algorithm (1976). In 2D by trying many orientations; a hand's depth is then `depth`, or follows
    from its size in the pinhole image, or is zero.

    Args:
        models: the hands to fit.
        seen: the keypoints.
        camera: of 2D keypoints.
        depth: (N, 2) metres, a rough depth of each hand's middle.
        depth_std: its standard deviation.

    Raises:
        ValueError: a hand has fewer than three joints.
    """
    if (seen.confidence > 0).sum(-1).min() < 3:
        raise ValueError("every hand needs at least three joints; drop the frames that have fewer")
    number = len(seen.joints)
    place = kabsch if seen.joints.shape[-1] == 3 else _place_2d
    hands = {}
    for index, (side, model) in enumerate((("left", models.left), ("right", models.right))):
        relaxed = _relaxed(model.hands_mean, seen.joints)
        template, wrist = arranged(model.joints21(relaxed), seen.order), model.rest_joints(relaxed.betas)[0]
        target, trust = seen.joints[:, index], seen.confidence[:, index]
        if place is kabsch:
            rotation, shift = kabsch(template, target, trust)
        else:
            rotation, shift = _place_2d(template, target, trust, camera, None if depth is None else depth[:, index])
        transl = (rotation @ wrist) - wrist + shift  # the model turns about its wrist, the template about the origin
        hands[side] = replace(relaxed.expand(number), global_orient=matrix_to_axis_angle(rotation), transl=transl)
    std = dict(LOOSE)
    if depth is not None:
        std["transl"] = seen.joints.new_tensor((_INFINITE, _INFINITE, depth_std))
    return Start(TwoHands(hands["left"], hands["right"], models), std)


def kabsch(source: Tensor, target: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """The rigid motion that lays points (K, 3) onto (N, K, 3) with weights (N, K): rotation and shift."""
    trust = (trust / trust.sum(-1, keepdim=True))[..., None]
    middle, goal = (trust * source).sum(-2), (trust * target).sum(-2)
    spread = ((target - goal[:, None]) * trust).mT @ (source - middle[:, None])
    u, _, v = torch.linalg.svd(spread)
    flip = torch.ones_like(goal)
    flip[:, 2] = torch.linalg.det(u @ v).sign()  # a rotation, never a reflection
    rotation = (u * flip[:, None]) @ v
    return rotation, goal - (rotation @ middle[..., None])[..., 0]


def _place_2d(
    source: Tensor, target: Tensor, trust: Tensor, camera: Camera | None, depth: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The best of 3000 orientations of points (K, 3) for their image (N, K, 2): rotation and shift."""
    turns = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)).to(source)
    turns = torch.nn.functional.normalize(turns, dim=-1)
    angle = 2 * torch.atan2(turns[:, 1:].norm(dim=-1), turns[:, 0])
    rotations = axis_angle_to_matrix(torch.nn.functional.normalize(turns[:, 1:], dim=-1) * angle[:, None])
    trust = (trust / trust.sum(-1, keepdim=True))[..., None]
    middle, goal = (trust * source).sum(-2), (trust * target).sum(-2)
    image = (trust.sqrt() * (target - goal[:, None])).flatten(1)  # N, 2 K
    shape = (source - middle[:, None])[:, None] * trust.sqrt()[:, None]
    shapes = (shape @ rotations[:, :2].mT).flatten(2)  # N, orientations, 2 K
    along = (shapes @ image[..., None])[..., 0]
    size = shapes.square().sum(-1)
    scale = along.clamp_min(1e-9) / size if camera is not None else torch.ones_like(along)
    best = (scale * scale * size - 2 * scale * along).argmin(-1, keepdim=True)  # of the squared distance
    rotation, scale = rotations[best[:, 0]], scale.gather(1, best)[:, 0]
    if camera is not None:
        depth = camera.focal / scale if depth is None else depth
        centre = goal.new_tensor((camera.centre_x, camera.centre_y))
        goal = (goal - centre) * (depth / camera.focal)[:, None]
    depth = torch.zeros_like(scale) if depth is None else depth
    return rotation, torch.cat((goal, depth[:, None]), -1) - (rotation @ middle[..., None])[..., 0]


def _relaxed(hands_mean: Tensor | None, like: Tensor) -> HandParams:
    pose = like.new_zeros(45) if hands_mean is None else hands_mean.to(like)
    return HandParams(like.new_zeros(3), pose, like.new_zeros(10), like.new_zeros(3))


def errors(joints: Tensor, truth: Tensor, root: int | None = None) -> tuple[Tensor, Tensor]:
    """MPJPE and MRRPE of each pair in millimetres, (N,) both.

    MPJPE is the mean joint error of hands whose roots are laid onto the true ones; MRRPE the error of the vector from
    the left root to the right one.

    Args:
        joints: (N, 2, K, 3) metres.
        truth: (N, 2, K, 3); a NaN joint does not count.
        root: which joint is the wrist; None where there is no wrist: the mean of the joints stands in for it.
    """
    joints = torch.where(truth.isnan(), truth, joints)
    middle = lambda j: j.nanmean(-2, keepdim=True) if root is None else j[..., root : root + 1, :]
    distance = ((joints - middle(joints)) - (truth - middle(truth))).norm(dim=-1)
    apart = lambda j: (middle(j)[:, 1] - middle(j)[:, 0])[:, 0]
    return distance.nanmean((1, 2)) * 1e3, (apart(joints) - apart(truth)).norm(dim=-1) * 1e3


def read_keypoints(path: Path, order: str, depth_axis: str = "z", min_confidence: float = 0.5) -> tuple[Tensor, Tensor]:
    """Joints (N, 2, K, D) and confidence (N, 2, K) of an .npz file, frames with two confident hands only.

    Raises:
        ValueError: the file does not fit the order.
    """
    with np.load(path, allow_pickle=False) as archive:
        joints = torch.from_numpy(np.stack((archive["joints_l"], archive["joints_r"]), 1)).float()
        trust = torch.ones(len(joints), 2)
        if "confidence" in archive:
            trust = torch.from_numpy(archive["confidence"]).float()
    if joints.shape[2] != len(JOINT_ORDERS[order]):
        raise ValueError(
            f"{path.name} has {joints.shape[2]} joints per hand, the order {order!r} has {len(JOINT_ORDERS[order])}; "
            f"--joint-order is one of {', '.join(JOINT_ORDERS)}"
        )
    trust = (trust[..., None] if trust.ndim == 2 else trust).expand(joints.shape[:-1])
    trust = trust * joints.isfinite().all(-1)
    joints, trust = (value[(trust.mean(-1) > min_confidence).all(-1)] for value in (joints, trust))
    if joints.shape[-1] == 3:  # a cyclic exchange of axes is a rotation: left hands stay left hands
        joints = joints.roll({"z": 0, "y": 1, "x": 2}[depth_axis], -1)
    return joints, trust


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Run the example; returns mean MPJPE and MRRPE of each row that it prints."""
    parser = argparse.ArgumentParser(description="Fit two hands to joints, without and with the prior.")
    parser.add_argument("--input", type=Path, help="an .npz with joints_l and joints_r; default: samples of the prior")
    parser.add_argument("--prior", default="bundled", help="what load_prior takes")
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3, help="2: drop the depth")
    parser.add_argument("--joint-order", choices=JOINT_ORDERS, default="openpose")
    parser.add_argument("--depth-axis", choices="xyz", default="z", help="which axis of the input is the depth")
    parser.add_argument("--camera", type=float, nargs=3, metavar=("F", "CX", "CY"), help="2D input is in pixels")
    parser.add_argument("--noise", type=float, default=0.003, help="standard deviation of noise to add, input's unit")
    parser.add_argument("--depth-std", type=float, help="2D only: how well the depth of each hand is known, metres")
    parser.add_argument("--weight", type=float, default=1.0, help="factor of sds_loss")
    parser.add_argument("--num", type=int, default=32, help="at most so many pairs, evenly spaced over the input")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the pairs fitted with the prior to this .npz")
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    order, camera = JOINT_ORDERS[args.joint_order], Camera(*args.camera) if args.camera else None
    if args.input is None:
        truth = joints_of(sample(prior, args.num, seed=args.seed), order)
        trust = torch.ones(truth.shape[:-1])
        if camera is not None:
            truth[..., 2] += 0.6
    else:
        truth, trust = read_keypoints(args.input, args.joint_order, args.depth_axis)
        chosen = torch.linspace(0, len(truth) - 1, min(args.num, len(truth))).round().long()
        truth, trust = truth[chosen], trust[chosen]

    generator = torch.Generator().manual_seed(args.seed)
    depth = None
    measured = truth
    if args.dims == 2 and truth.shape[-1] == 3:
        measured = project(truth, camera)
        if args.depth_std is not None:
            depth = truth[..., 2].nanmean(-1)
            depth = depth + args.depth_std * torch.randn(depth.shape, generator=generator)
    measured = measured + args.noise * torch.randn(measured.shape, generator=generator)
    pixels = camera is not None and measured.shape[-1] == 2
    seen = Keypoints(measured.nan_to_num(), order, trust, max(args.noise, 3.0 if pixels else 0.003))
    start = start_from(prior.hands, seen, camera=camera, depth=depth, depth_std=args.depth_std or 0.0)

    def prior_loss(left: HandParams, right: HandParams) -> Tensor:
        return sds_loss(prior, left, right, reduction="sum", generator=generator)

    plain = fit(start, seen, camera=camera, steps=args.steps)
    helped = fit(start, seen, camera=camera, steps=args.steps, prior_loss=prior_loss, weight=args.weight)
    if args.out is not None:
        helped.save(args.out)

    print(f"{len(truth)} pairs, {len(order)} joints per hand, {measured.shape[-1]}D")
    if truth.shape[-1] == 2:  # nothing to measure against but the image
        for name, pairs in (("without prior", plain), ("with prior", helped)):
            off = (project(joints_of(pairs, order), camera) - truth).norm(dim=-1).nanmean()
            print(f"{name:15s} reprojection error {float(off):.4g}")
        return {}
    rows = {}
    root = order.index(0) if 0 in order else None
    base = errors(joints_of(plain, order), truth, root)
    print(f"{'':15s} {'MPJPE mm':>9s} {'MRRPE mm':>9s}   pairs worse by > 1 mm, MPJPE and MRRPE")
    for name, pairs in (("start", start.hands), ("without prior", plain), ("with prior", helped)):
        now = errors(joints_of(pairs, order), truth, root)
        rows[name] = (float(now[0].nanmean()), float(now[1].nanmean()))
        worse = "".join(f"{float((a > b + 1).float().mean()):9.0%}" for a, b in zip(now, base, strict=True))
        print(f"{name:15s} {rows[name][0]:9.2f} {rows[name][1]:9.2f} ", worse if name == "with prior" else "")
    return rows


if __name__ == "__main__":
    main()
