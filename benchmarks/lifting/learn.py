"""Training a lifter in mixed batches: motion capture with everything, pictures from the wild with 2D joints only.

Every term is about a negative log-likelihood, with an ordinary error as its unit, so that a weight of 1 is natural for
the prior's (sds/loss.py). The one thing that the arms differ in is the last:

    loss = task(mocap, wild) + weight * ramp(step) * sds_loss(prior, left, right, ...)        on the hands of both
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, sds_loss
from interhand_prior.hands import HandPair
from interhand_prior.rotations import axis_angle_to_matrix
from interhand_prior.sds import Uncertainty

from .network import Lifted, Lifter
from .scenes import Images, project

#: left, right, which pairs have a truth in 3D, and the step -> a regulariser, the mean over pairs.
Regulariser = Callable[[HandParams, HandParams, Tensor, int], Tensor]


@dataclass(frozen=True)
class Training:
    """Settings of the task, the same in both arms.

    Attributes:
        steps: of AdamW, on a cosine.
        batch: pictures of each domain in a batch.
        lr: greatest learning rate, after a tenth of the steps.
    """

    steps: int = 4000
    batch: int = 64
    lr: float = 1e-3


@dataclass(frozen=True)
class Pull:
    """How `sds_loss` enters: with the errors that the network makes without it on validation pictures from the wild.

    Attributes:
        weight: its factor; the task's terms are likelihoods, so 1 is natural.
        hand_pose: radians, standard deviation of a finger joint's angles.
        global_orient: radians.
        transl: metres, across the line of sight and along it.
        betas: of each shape parameter.
        ramp: share of the steps in which the factor grows from 0.
    """

    weight: float = 1.0
    hand_pose: float = 0.25
    global_orient: float = 0.2
    transl: tuple[float, float] = (0.02, 0.05)
    betas: float = 0.8
    ramp: float = 0.3

    def regulariser(self, prior: TwoHandPrior, steps: int, seed: int) -> Regulariser:
        """The mean over the pictures without a truth. It has its own noise: everything else is drawn as without it."""
        generator = torch.Generator().manual_seed(seed)
        across, along = self.transl
        place = torch.tensor((across, across, along))
        uncertainty = Uncertainty(self.hand_pose, self.global_orient, place, self.betas)

        def loss(left: HandParams, right: HandParams, solid: Tensor, step: int) -> Tensor:
            factor = self.weight * min(1.0, step / max(1.0, self.ramp * steps))
            left, right = left[~solid], right[~solid]
            # gate=False: in these pictures hands interact.
            return factor * sds_loss(prior, left, right, uncertainty=uncertainty, gate=False, generator=generator)

        return loss


def train(
    models: HandPair,
    mocap: Images,
    wild: Images,
    settings: Training,
    seed: int,
    pull: Regulariser | None = None,
) -> Lifter:
    """A trained lifter; the seed decides its first weights and the order of the pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Lifter(models)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=0.1)
    for step in range(settings.steps):
        studio, street = (
            images[torch.randint(len(images), (settings.batch,), generator=generator)] for images in (mocap, wild)
        )
        loss = batch_loss(network, studio, street, step, pull)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 150.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def batch_loss(network: Lifter, mocap: Images, wild: Images, step: int = 0, pull: Regulariser | None = None) -> Tensor:
    """The loss of one mixed batch."""
    lifted = network(torch.cat((mocap.seen, wild.seen)), torch.cat((mocap.confidence, wild.confidence)))
    labels, labelled = torch.cat((mocap.labels, wild.labels)), torch.cat((mocap.labelled, wild.labelled))
    some = len(mocap)
    loss = flat_loss(lifted.joints, labels, labelled) + shape_loss(lifted, network.mean_pose)
    loss = loss + solid_loss(lifted, mocap, some)
    if pull is not None:
        pair = lifted.pair(network.models)
        loss = loss + pull(pair.left, pair.right, torch.arange(len(labels)) < some, step)  # <- the one line
    return loss


def flat_loss(joints: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Distance to annotated joints, each hand by itself: as in InterWild, they do not say what is between the two.

    Args:
        joints: (N, 2, 21, 3) of each hand by itself.
        labels: (N, 2, 21, 2); not read where `labelled` is 0.
        labelled: (N, 2, 21).

    Returns:
        The mean over pictures of the sum over joints, 5 mm being an ordinary error.
    """
    image = project(joints)
    labels = torch.where(labelled[..., None] > 0, labels, image.detach())
    # Nearer hands are larger: an image distance times the depth is a distance in metres.
    depth = joints.detach()[..., 2].mean((1, 2)).clamp(0.2, 2.0)
    metres = smooth_norm(image - labels) * depth[:, None, None]
    return (metres * labelled).sum((1, 2)).mean() / 0.005


def shape_loss(lifted: Lifted, mean_pose: Tensor) -> Tensor:
    """A weak pull to relaxed fingers and a mean shape, as any fit without a learned prior has it."""
    loss = lifted.apart.new_zeros(())
    for hand, mean in ((lifted.left.mirrored(), mean_pose), (lifted.right, mean_pose)):
        loss = loss + 2.0 * (hand.hand_pose - mean).square().mean() + 0.5 * hand.betas.square().mean()
    return loss


def solid_loss(lifted: Lifted, truth: Images, some: int) -> Tensor:
    """Distance to motion capture: joints about the wrist, the wrists' distance, place, angles and shape."""
    joints = lifted.joints[:some]
    wrists, true_wrists = joints[:, :, 0], truth.joints[:, :, 0]
    around = (joints - wrists[:, :, None]) - (truth.joints - true_wrists[:, :, None])
    loss = smooth_norm(around).sum((1, 2)).mean() / 0.015
    loss = loss + smooth_norm(lifted.apart[:some] - (true_wrists[:, 1] - true_wrists[:, 0])).mean() / 0.03
    loss = loss + smooth_norm(wrists - true_wrists).sum(1).mean() / 0.015
    for side in ("left", "right"):
        ours, theirs = getattr(lifted, side)[:some], getattr(truth.truth, side)
        turns = [axis_angle_to_matrix(hand.global_orient) for hand in (ours, theirs)]
        loss = loss + 28 * (turns[0] - turns[1]).square().sum((-2, -1)).mean()
        loss = loss + 84 * (ours.hand_pose - theirs.hand_pose).square().mean()
        loss = loss + 1.4 * (ours.betas - theirs.betas).square().mean()
    return loss


def smooth_norm(vector: Tensor, scale: float = 1e-3) -> Tensor:
    """Length of vectors (..., D), rounded at zero so that its gradient is finite."""
    return (vector.square().sum(-1) + scale * scale).sqrt() - scale
