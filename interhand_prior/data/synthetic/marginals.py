"""Rounded marginals of real MANO fits: what finger poses look like in recordings of hands.

Each of the 15 joints' absolute axis-angle (right-hand form, ``flat_hand_mean=True``, radians) is summarised by its
mean and standard deviation along x, y and z. The numbers are means and deviations over real MANO fits of hands that
hold objects, rounded to .05 by the authors of this package; no pose of any data set can be recovered from them.
Fits differ from anatomy: every joint carries off-axis twist and abduction, and the thumb rests in palmar abduction
with compensating rotations down its chain. A corpus that lacks this makes a prior that harms on real hands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TABLE: dict[str, tuple[float, float, float, float, float, float]] = {
    # joint: mean x, y, z, standard deviation x, y, z (rad), in MANO's joint order
    "index1": (0.10, -0.20, 0.40, 0.15, 0.30, 0.40),
    "index2": (0.00, 0.10, 0.40, 0.20, 0.15, 0.40),
    "index3": (0.10, 0.00, 0.20, 0.20, 0.10, 0.30),
    "middle1": (-0.05, 0.00, 0.60, 0.20, 0.30, 0.50),
    "middle2": (-0.20, -0.10, 0.45, 0.15, 0.10, 0.45),
    "middle3": (-0.10, 0.05, 0.20, 0.10, 0.10, 0.20),
    "pinky1": (-0.55, 0.30, 0.75, 0.60, 0.35, 0.50),
    "pinky2": (0.20, -0.05, 0.30, 0.60, 0.20, 0.40),
    "pinky3": (-0.55, 0.00, -0.30, 0.40, 0.20, 0.40),
    "ring1": (-0.10, 0.10, 0.75, 0.20, 0.20, 0.50),
    "ring2": (-0.30, 0.10, 0.10, 0.15, 0.15, 0.45),
    "ring3": (-0.15, 0.05, 0.25, 0.10, 0.10, 0.25),
    "thumb1": (0.90, -0.15, -0.20, 0.40, 0.25, 0.30),
    "thumb2": (-0.75, -0.35, 0.50, 0.25, 0.30, 0.45),
    "thumb3": (0.70, 0.20, -0.25, 0.30, 0.40, 0.45),
}

JOINT_NAMES: tuple[str, ...] = tuple(_TABLE)
_rows = torch.tensor(list(_TABLE.values()), dtype=torch.float32)
POSE_MEAN: Tensor = _rows[:, :3].reshape(45).clone()
"""Mean of ``hand_pose`` over real fits, (45,), radians."""
POSE_SD: Tensor = _rows[:, 3:].reshape(45).clone()
"""Standard deviation of ``hand_pose`` over real fits, (45,), radians."""

REL_MEAN: Tensor = torch.tensor([-0.718, 0.216, -0.009, -0.217, -0.462, -0.088, 0.005, -0.082, -0.004])
"""Published mean of InterHand2.6M's relative pose (9,): first two rows of R_l^T R_r, then the right middle MCP in the
left hand's frame, metres (normaliser of the official InterHandGen code)."""
REL_VAR: Tensor = torch.tensor([0.122, 0.105, 0.211, 0.105, 0.407, 0.219, 0.00156, 0.00566, 0.00442])
"""Published variance of the same nine numbers."""


def coverage(hand_pose: Tensor) -> Tensor:
    r"""How far out real fits lie in a sample: mean absolute z-score of the table's marginals under the sample's.

    Where a real coordinate is N(m_r, s_r^2) and the sample's has mean m_o and deviation s_o, z = (x - m_o) / s_o is
    normal with mean mu = (m_r - m_o) / s_o and deviation sigma = s_r / s_o; so \|z\| is folded normal:

    .. math::  E|z| = \sigma \sqrt{2 / \pi}\, e^{-\mu^2 / 2 \sigma^2}
               + \mu \operatorname{erf}\bigl(\mu / \sqrt{2} \sigma\bigr)

    It is .80 for equal marginals, less for a wider sample, more for a narrower or shifted one.

    Args:
        hand_pose: (N, 45) right-hand form, absolute axis-angle, radians.

    Returns:
        (45,) E|z| of each coordinate.

    Raises:
        ValueError: hand_pose is not (N, 45) with N > 1.
    """
    if hand_pose.ndim != 2 or hand_pose.shape[1] != 45 or len(hand_pose) < 2:
        raise ValueError(f"hand_pose must have shape (N, 45) with N > 1, got {tuple(hand_pose.shape)}")
    sd = hand_pose.std(0).clamp_min(1e-4)
    mu, sigma = (POSE_MEAN.to(sd) - hand_pose.mean(0)) / sd, POSE_SD.to(sd) / sd
    ratio = mu / sigma
    return sigma * (2 / math.pi) ** 0.5 * (-ratio.square() / 2).exp() + mu * torch.erf(ratio / 2**0.5)


def compare_marginals(hand_pose: Tensor) -> dict[str, float]:
    """How far a sample's marginals are from the table.

    Args:
        hand_pose: (N, 45) right-hand form, absolute axis-angle, radians.

    Returns:
        ``mean_offset`` and ``mean_offset_max``: |difference of means| over the table's deviation; ``log_sd_ratio`` and
        ``log_sd_ratio_max``: |log ratio of deviations|; ``abs_z``: mean |z| of the samples under the table;
        ``coverage``: mean over coordinates of `coverage`, |z| of the table under the samples.
    """
    offset = ((hand_pose.mean(0) - POSE_MEAN) / POSE_SD).abs()
    ratio = (hand_pose.std(0).clamp_min(1e-4) / POSE_SD).log().abs()
    return {
        "mean_offset": float(offset.mean()),
        "mean_offset_max": float(offset.max()),
        "log_sd_ratio": float(ratio.mean()),
        "log_sd_ratio_max": float(ratio.max()),
        "abs_z": float(((hand_pose - POSE_MEAN) / POSE_SD).abs().mean()),
        "coverage": float(coverage(hand_pose).mean()),
    }
