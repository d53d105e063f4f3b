"""How well a feature network does what it is trained for: the regression of its targets, in physical units."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hands import HandPair
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle, rot6d_to_matrix
from ..train.data import Vectors
from .feature_targets import TARGETS, pose_pairs, target_groups, wanted_targets
from .features import FeatureNetwork

__all__ = ["regression_errors"]

_BATCH = 64


@torch.no_grad()
def regression_errors(network: FeatureNetwork, vectors: Vectors, hands: HandPair) -> dict[str, float]:
    """How well a network regresses its targets from the vertices that its features are of.

    Args:
        network: in evaluation mode.
        vectors: canonical vectors of the pairs, at least one.
        hands: their hand models.

    Returns:
        loss: mean over the groups of the mean squared error, normalised; left_pose_deg, right_pose_deg: mean angle
        between a joint's rotation and its estimate; rotation_deg: the same of the relative rotation; transl_mm: mean
        length of the error of the relative translation; for a network that regresses them, left_joints_mm,
        right_joints_mm, placed_joints_mm: the same of joints and tips; r2_NAME: share of a group's variance that is
        explained.
    """
    count = len(network.mean)
    parts = []
    for start in range(0, len(vectors), _BATCH):
        anchor, partner = vectors.anchor[start : start + _BATCH], vectors.partner[start : start + _BATCH]
        posed = pose_pairs(anchor, partner, hands)
        points, side = posed.cloud()
        kept = network.chosen(len(side), side.device)
        parts.append((network.regress(points[:, kept], side[kept]), wanted_targets(anchor, partner, posed, count)))
    found, physical = (torch.cat(values).float() for values in zip(*parts, strict=True))
    wanted = (physical - network.mean) / network.std
    estimate = found * network.std + network.mean
    square = (found - wanted).square()
    groups = target_groups(count)
    errors = {"loss": sum(float(square[:, group].mean()) for group in groups.values()) / len(groups)}
    for name in ("left_pose", "right_pose"):
        turn = lambda values, group=TARGETS[name]: axis_angle_to_matrix(values[:, group].unflatten(-1, (15, 3)))
        errors[f"{name}_deg"] = _degrees(turn(estimate), turn(physical))
    rotation = lambda values: rot6d_to_matrix(values[:, TARGETS["rot6d"]])
    errors["rotation_deg"] = _degrees(rotation(estimate), rotation(physical))
    for name in ("transl", "left_joints", "right_joints", "placed_joints"):
        if name in groups:
            error = (estimate - physical)[:, groups[name]].unflatten(-1, (-1, 3))
            errors[f"{name}_mm"] = 1000 * float(error.norm(dim=-1).mean())
    for name, group in groups.items():
        spread = (wanted[:, group] - wanted[:, group].mean(0)).square().mean()
        errors[f"r2_{name}"] = 1 - float(square[:, group].mean() / spread.clamp_min(1e-12))
    return errors


def _degrees(estimate: Tensor, wanted: Tensor) -> float:
    """Mean angle between rotations (..., 3, 3)."""
    return float(torch.rad2deg(matrix_to_axis_angle(estimate.mT @ wanted).norm(dim=-1)).mean())
