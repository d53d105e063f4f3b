"""A video fit: per-frame estimates of two moving hands, made smooth, and plausible by the prior.

An estimator that looks at one frame at a time jitters, and its two hands are some centimetres too near or too far, for
many frames in a row. Smoothing cures the first, not the second. The fit below has three terms: staying near the
estimates, small accelerations, and the prior, which sees all frames of all clips in one batched call,
marked below.

    python examples/video_smoothing.py

The clips are made by moving one sample of the prior towards another, and the estimates by adding noise to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior, sample, sds_loss
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_axis_angle

STEP = {"global_orient": 0.01, "hand_pose": 0.01, "betas": 0.05, "transl": 0.002}
#: Errors of the estimator: radians, units of shape, metres along x, y and z.
STD: Mapping[str, Sequence[float]] = {
    "global_orient": (0.1,), "hand_pose": (0.15,), "betas": (0.5,), "transl": (0.005, 0.005, 0.025),
}  # fmt: skip
SLOW = 0.9  # share of the errors' variance that stays from frame to frame
ACCELERATION_STD = 0.001  # metres a frame squared
REACH = 0.3  # how far a clip goes on its way to another pair


def make_clips(pairs: TwoHands, frames: int) -> TwoHands:
    """Clips (N, frames) from pairs (2 N): the first half moves towards the second, slowly at both ends."""
    number = len(pairs) // 2
    share = REACH * (1 - torch.cos(torch.linspace(0, torch.pi, frames))) / 2

    def between(hand: HandParams) -> HandParams:
        first, last = hand[:number, None], hand[number:, None]
        blend = lambda name: torch.lerp(getattr(first, name), getattr(last, name), share[:, None])
        begin = axis_angle_to_matrix(first.global_orient)
        turn = matrix_to_axis_angle(begin.mT @ axis_angle_to_matrix(last.global_orient)) * share[:, None]
        orient = matrix_to_axis_angle(begin @ axis_angle_to_matrix(turn))
        betas = first.betas.expand(-1, frames, -1)  # the same person in all frames
        return HandParams(orient, blend("hand_pose"), betas, blend("transl"))

    return TwoHands(between(pairs.left), between(pairs.right), pairs.hands)


def estimated(clips: TwoHands, seed: int) -> TwoHands:
    """The clips with errors of standard deviation STD, most of which stay from frame to frame."""
    draw = torch.Generator().manual_seed(seed)

    def noisy(hand: HandParams) -> HandParams:
        values = {}
        for name, value in hand.as_dict().items():
            normal = torch.randn(value.shape, generator=draw)
            slow = normal[:, :1] * SLOW**0.5 + normal * (1 - SLOW) ** 0.5
            values[name] = value + slow * torch.tensor(STD[name])
        return HandParams(**values)

    return TwoHands(noisy(clips.left), noisy(clips.right), clips.hands)


def smooth(
    start: TwoHands, *, prior: TwoHandPrior | None = None, weight: float = 0.3, steps: int = 60, seed: int = 0
) -> TwoHands:
    """Clips (N, T) near `start`, with small accelerations, and with the prior if there is one.

    Args:
        start: per-frame estimates (N, T).
        prior: from `load_prior`.
        weight: of the prior, for each frame. For pairs of their own 1 is natural, since the other terms are squared
            errors over squared standard deviations; frames of a clip repeat each other and together say less.
        steps: of Adam.
        seed: of the prior's noise.
    """
    begin = {side: getattr(start, side).as_dict() for side in ("left", "right")}
    for values in begin.values():  # a person's shape does not change
        values["betas"] = values["betas"].mean(1, keepdim=True).expand_as(values["betas"])
    # Two changes of every parameter, one for all frames of a clip and one for each frame. They are of different
    # stiffness, and Adam, which scales each number by its own gradients, then finds both.
    common = {side: {n: torch.zeros_like(v[:, :1]).requires_grad_() for n, v in begin[side].items()} for side in begin}
    single = {side: {n: torch.zeros_like(v).requires_grad_() for n, v in begin[side].items()} for side in begin}
    groups = [{"params": [c[s][n] for c in (common, single) for s in begin], "lr": lr} for n, lr in STEP.items()]
    optimizer = torch.optim.Adam(groups, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    # How much to trust the placement of each frame is asked once, not at every step.
    gate = prior.trust(start) if prior is not None and prior.calibration is not None else None
    for _ in range(steps):
        change = {side: {name: common[side][name] + single[side][name] for name in STEP} for side in begin}
        left, right = (HandParams(**{n: begin[s][n] + change[s][n] for n in STEP}) for s in ("left", "right"))
        # Smoothness is between the frames: what they have in common must not follow the jitter's large gradients.
        paths = [path_of(**{n: begin[s][n] + common[s][n].detach() + single[s][n] for n in STEP}) for s in begin]
        path = torch.cat(paths, -1)
        acceleration = (path[:, 2:] - 2 * path[:, 1:-1] + path[:, :-2]) / ACCELERATION_STD
        loss = acceleration.square().sum() / 2
        loss = loss + sum(staying(change[s][name] / torch.tensor(STD[name])) for name in STEP for s in begin)

        if prior is not None:
            critic = {"gate": gate, "reduction": "sum", "generator": generator}
            loss = loss + weight * sds_loss(prior, left, right, **critic)  # <- the one line: (N, T) pairs at once
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return TwoHands(left, right, start.hands).detach()


def path_of(global_orient: Tensor, hand_pose: Tensor, transl: Tensor, **rest: Tensor) -> Tensor:
    """What is to move smoothly, in metres: the place, and rotations at a lever. (N, T, k)."""
    rotations = axis_angle_to_matrix(torch.cat((global_orient, hand_pose), -1).unflatten(-1, (16, 3)))
    lever = torch.tensor([0.1] + 15 * [0.03])[:, None, None]
    return torch.cat(((lever * rotations).flatten(-3), transl), -1)


def staying(error: Tensor) -> Tensor:
    """Negative log-likelihood of errors (N, T, k) of variance 1, of which SLOW is one draw for all frames.

    Frames that err alike are no independent witnesses; a plain sum over them would be T times too sure.
    """
    mean, frames = error.mean(1, keepdim=True), error.shape[1]
    fast, slow = (error - mean).square().sum() / (1 - SLOW), mean.square().sum() / (SLOW + (1 - SLOW) / frames)
    return (fast + slow) / 2


def joints_of(clips: TwoHands) -> Tensor:
    """Joints of both hands, (N, T, 2, 21, 3), metres."""
    return torch.stack(clips.joints21(), -3)


def errors(clips: TwoHands, truth: TwoHands) -> tuple[float, float, float]:
    """MPJPE about each wrist, MRRPE from wrist to wrist (mm), and the error of accelerations (mm a frame squared)."""
    off = joints_of(clips) - joints_of(truth)
    mpjpe = (off - off[..., :1, :]).norm(dim=-1).mean()
    mrrpe = (off[..., 1, 0, :] - off[..., 0, 0, :]).norm(dim=-1).mean()
    jitter = (off[:, 2:] - 2 * off[:, 1:-1] + off[:, :-2]).norm(dim=-1).mean()
    return 1e3 * float(mpjpe), 1e3 * float(mrrpe), 1e3 * float(jitter)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float, float]]:
    """Smooth clips without and with the prior and print the errors; returns them."""
    parser = argparse.ArgumentParser(description="Smooth estimates of moving hands without and with the prior.")
    parser.add_argument("--prior", default="bundled", help="'bundled', a folder, or 'owner/repo' on the Hub")
    parser.add_argument("--num", type=int, default=4, help="clips")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--weight", type=float, default=0.3, help="of the prior")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    truth = make_clips(sample(prior, 2 * args.num, seed=args.seed), args.frames)
    start = estimated(truth, args.seed)
    options = {"steps": args.steps, "seed": args.seed}
    results = {
        "estimates": start,
        "smoothed": smooth(start, **options),
        "with prior": smooth(start, prior=prior, weight=args.weight, **options),
    }
    rows = {name: errors(clips, truth) for name, clips in results.items()}
    print(f"{'':12s} {'MPJPE mm':>9s} {'MRRPE mm':>9s} {'jitter mm':>10s}")
    for name, (mpjpe, mrrpe, jitter) in rows.items():
        print(f"{name:12s} {mpjpe:9.2f} {mrrpe:9.2f} {jitter:10.2f}")
    return rows


if __name__ == "__main__":
    main()
