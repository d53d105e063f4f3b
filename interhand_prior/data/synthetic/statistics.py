"""What a corpus looks like in numbers: relative poses, finger marginals, contact; for manifests and reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interhand_prior.params import TwoHands
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d, mirror_axis_angle

from .archetypes import LOOSE, UNTOUCHED
from .marginals import REL_MEAN, REL_VAR, compare_marginals


def relative_pose(pairs: TwoHands) -> Tensor:
    """(N, 9): first two rows of R_l^T R_r, then R_l^T (middle MCP of right - of left), metres."""
    to_left = axis_angle_to_matrix(pairs.left.global_orient).transpose(-1, -2)
    rotation = to_left @ axis_angle_to_matrix(pairs.right.global_orient)
    left, right = pairs.joints()
    offset = (to_left @ (right[..., 4, :] - left[..., 4, :])[..., None])[..., 0]
    return torch.cat([matrix_to_rot6d(rotation), offset], -1)


def summarise(shards: Iterable[TwoHands]) -> dict[str, Any]:
    """Statistics over shards of a corpus: what the manifest holds (`benchmarks/data_card.py` measures more)."""
    relative, poses, names, depth, near, betas = [], [], [], [], [], []
    for pairs in shards:
        relative.append(relative_pose(pairs))
        # every pair counts with its mirror image, as in training: so both hands enter in right-hand form
        poses += [pairs.right.hand_pose, mirror_axis_angle(pairs.left.hand_pose)]
        names.append(pairs.extras["archetype"])
        depth.append(pairs.extras["depth_mm"])
        near.append(pairs.extras["near_mm"])
        betas.append(torch.stack([pairs.left.betas, pairs.right.betas]))
    rel, name = torch.cat(relative), np.concatenate(names)
    d, gap, shape = np.concatenate(depth), np.concatenate(near), torch.cat(betas, 1)
    contact, loose = ~np.isin(name, UNTOUCHED), name == LOOSE
    apart = ~contact & ~loose
    digits = lambda values, n=4: [round(float(v), n) for v in values]
    number = lambda value: round(float(value), 4) if np.size(value) else None
    share = lambda mask: number(np.mean(mask)) if len(mask) else None
    kinds, counts = np.unique(name, return_counts=True)
    return {
        "pairs": len(name),
        "relative_pose": {
            "mean": digits(rel.mean(0)),
            "published_mean": digits(REL_MEAN),
            "offset_mm": digits(1000 * (rel.mean(0) - REL_MEAN)[6:], 1),
            "variance_ratio": digits(rel.var(0) / REL_VAR, 3),
        },
        "finger_marginals": {k: round(v, 4) for k, v in compare_marginals(torch.cat(poses)).items()},
        "betas": {
            "mean": number(shape.mean()),
            "sd": number(shape.std()),
            "sd_left_minus_right": number((shape[0] - shape[1]).std()),
        },
        "contact": {
            "pairs": int(contact.sum()),
            "depth_mm_mean": number(d[contact].mean()) if contact.any() else None,
            "depth_mm_p99": number(np.quantile(d[contact], 0.99)) if contact.any() else None,
            "depth_mm_max": number(d[contact].max()) if contact.any() else None,
            "near_mm_mean": number(gap[contact].mean()) if contact.any() else None,
            "near_mm_max": number(gap[contact].max()) if contact.any() else None,
        },
        **{
            label: {
                "pairs": int(mask.sum()),
                "depth_mm_max": number(d[mask].max()) if mask.any() else None,
                "near_mm_median": number(np.median(gap[mask])) if mask.any() else None,
            }
            for label, mask in (("apart", apart), ("loose", loose))
        },
        "touch_share": {"3mm": share(gap < 3), "20mm": share(gap < 20), "100mm": share(gap < 100)},
        "archetype_shares": {str(k): round(float(c) / len(name), 4) for k, c in zip(kinds, counts, strict=True)},
    }  # fmt: skip
