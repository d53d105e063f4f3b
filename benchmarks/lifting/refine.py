"""A network's answer refined by a fit to the detected joints, the loop of examples/fit_keypoints.py.

The fit is held to the network's answer by the errors that the network makes on validation pictures: each hand's
parameters by themselves, and the place of the hands relative to each other, which it knows better than their depths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from pairs import example
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, sds_loss
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from interhand_prior.sds import Uncertainty

from .measure import lift
from .network import Lifter
from .scenes import Images

fitting = example("fit_keypoints")
PairLoss = Callable[[HandParams, HandParams], Tensor]


class Hold(NamedTuple):
    """Standard deviations of a network's errors.

    Attributes:
        own: of each hand's parameters, as `Start.std` wants them.
        apart: (3,) metres, of the vector between the wrists.
    """

    own: Mapping[str, Tensor]
    apart: Tensor


def held(network: Lifter, images: Images) -> Hold:
    """What a network errs on pictures whose truth is known."""
    pairs, truth = lift(network, images), images.truth
    square: dict[str, list[Tensor]] = {"global_orient": [], "hand_pose": [], "betas": [], "transl": []}
    for side in ("left", "right"):
        ours, theirs = getattr(pairs, side), getattr(truth, side)
        turns = [axis_angle_to_matrix(hand.global_orient) for hand in (ours, theirs)]
        off = {name: getattr(ours, name) - getattr(theirs, name) for name in square}
        off["global_orient"] = matrix_to_axis_angle(turns[0].mT @ turns[1])
        for name, value in off.items():
            square[name].append(value.square().mean(0))
    rms = {name: torch.stack(values).mean(0).sqrt() for name, values in square.items()}
    for name in ("global_orient", "betas"):  # one number each: no axis is special
        rms[name] = rms[name].square().mean().sqrt()
    apart = wrists_apart(pairs.left, pairs.right, pairs) - (images.joints[:, 1, 0] - images.joints[:, 0, 0])
    return Hold(rms, apart.square().mean(0).sqrt())


def pull(prior: TwoHandPrior, hold: Hold, seed: int) -> PairLoss:
    """`sds_loss` of hands that are known so well, the sum over pairs."""
    pose = hold.own["hand_pose"].unflatten(-1, (15, 3)).square().mean(-1).sqrt()
    known = Uncertainty(pose, hold.own["global_orient"], hold.apart, hold.own["betas"])
    generator = torch.Generator().manual_seed(seed)
    return lambda left, right: sds_loss(
        prior, left, right, uncertainty=known, gate=False, reduction="sum", generator=generator
    )


def refined(
    start: TwoHands, images: Images, hold: Hold, noise: float, prior_loss: PairLoss | None, steps: int
) -> TwoHands:
    """Fit pairs to the detections of pictures.

    Args:
        start: (N,) pairs that a network sees in them.
        images: the pictures; of their truth nothing is read.
        hold: how well the start is known.
        noise: standard deviation of a visible joint's detection, metres at the pair's distance.
        prior_loss: a regulariser of the pairs, their sum.
        steps: of Adam.
    """
    depth = torch.stack(start.joints21(), 1)[..., 2].mean((1, 2)).clamp_min(0.1)
    seen = fitting.Keypoints(images.seen, range(21), images.confidence, (noise / depth)[:, None, None, None])
    goal = wrists_apart(start.left, start.right, start)

    def together(left: HandParams, right: HandParams) -> Tensor:
        loss = 0.5 * ((wrists_apart(left, right, start) - goal) / hold.apart).square().sum()
        return loss if prior_loss is None else loss + prior_loss(left, right)

    camera = fitting.Camera(1.0, 0.0, 0.0)
    return fitting.fit(fitting.Start(start, hold.own), seen, camera=camera, prior_loss=together, steps=steps)


def wrists_apart(left: HandParams, right: HandParams, like: TwoHands) -> Tensor:
    """From the left wrist to the right one, (N, 3) metres."""
    places = [
        hand.transl + model.rest_joints(hand.betas)[:, 0]
        for hand, model in ((left, like.model.left), (right, like.model.right))
    ]
    return places[1] - places[0]
