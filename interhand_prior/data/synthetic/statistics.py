"""What a corpus looks like in numbers: relative poses, finger marginals, contact; for manifests and reports.

A made corpus says how deep and how near its hands are, and what each pair is meant to be. An imported data set does
not: those parts are left out there, and named.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interhand_prior.params import TwoHands
from interhand_prior.rotations import axis_angle_to_matrix, matrix_to_rot6d, mirror_axis_angle

from ..groups import groups_of
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
    """Statistics over shards of a corpus: what the manifest holds (`benchmarks/data_card.py` measures more).

    Args:
        shards: (N,) each, made or imported.

    Returns:
        JSON values. `left_out` names the parts that these pairs do not tell, if any.
    """
    relative, poses, betas, groups, noted = [], [], [], [], []
    called: set[str | None] = set()
    for pairs in shards:
        relative.append(relative_pose(pairs))
        # every pair counts with its mirror image, as in training: so both hands enter in right-hand form
        poses += [pairs.right.hand_pose, mirror_axis_angle(pairs.left.hand_pose)]
        betas.append(torch.stack([pairs.left.betas, pairs.right.betas]))
        kind, names = groups_of(pairs)
        called.add(kind)
        groups.append(names)
        noted.append([pairs.extras.get(name) for name in ("depth_mm", "near_mm")])
    rel, name, shape = torch.cat(relative), np.concatenate(groups), torch.cat(betas, 1)
    found = {
        "pairs": len(name),
        "relative_pose": {
            "mean": _digits(rel.mean(0)),
            "published_mean": _digits(REL_MEAN),
            "offset_mm": _digits(1000 * (rel.mean(0) - REL_MEAN)[6:], 1),
            "variance_ratio": _digits(rel.var(0, correction=min(1, len(rel) - 1)) / REL_VAR, 3),
        },
        "finger_marginals": {k: round(v, 4) for k, v in compare_marginals(torch.cat(poses)).items()},
        "betas": {
            "mean": _number(shape.mean()),
            "sd": _number(shape.std()),
            "sd_left_minus_right": _number((shape[0] - shape[1]).std()),
        },
    }
    left_out = []
    if called == {"kind"} and all(value is not None for row in noted for value in row):
        depth, near = (np.concatenate(values) for values in zip(*noted, strict=True))
        found |= _contact(name, depth, near)
    else:
        left_out += ["contact", "apart", "loose", "touch_share"]
    group = called.pop() if len(called) == 1 else None
    if group is None:
        left_out.append("shares of groups")
    else:
        kinds, counts = np.unique(name, return_counts=True)
        shares = {str(k): round(float(c) / len(name), 4) for k, c in zip(kinds, counts, strict=True)}
        found["archetype_shares" if group == "kind" else f"{group}_shares"] = shares
    return found | ({"left_out": left_out} if left_out else {})


def _contact(name: NDArray[np.str_], depth: NDArray[Any], gap: NDArray[Any]) -> dict[str, Any]:
    """Depth and nearness (N,), mm, by what the pairs are meant to be."""
    contact, loose = ~np.isin(name, UNTOUCHED), name == LOOSE
    apart = ~contact & ~loose
    share = lambda mask: _number(np.mean(mask)) if len(mask) else None
    return {
        "contact": {
            "pairs": int(contact.sum()),
            "depth_mm_mean": _number(depth[contact].mean()) if contact.any() else None,
            "depth_mm_p99": _number(np.quantile(depth[contact], 0.99)) if contact.any() else None,
            "depth_mm_max": _number(depth[contact].max()) if contact.any() else None,
            "near_mm_mean": _number(gap[contact].mean()) if contact.any() else None,
            "near_mm_max": _number(gap[contact].max()) if contact.any() else None,
        },
        **{
            label: {
                "pairs": int(mask.sum()),
                "depth_mm_max": _number(depth[mask].max()) if mask.any() else None,
                "near_mm_median": _number(np.median(gap[mask])) if mask.any() else None,
            }
            for label, mask in (("apart", apart), ("loose", loose))
        },
        "touch_share": {"3mm": share(gap < 3), "20mm": share(gap < 20), "100mm": share(gap < 100)},
    }


def _number(value: Any) -> float | None:
    return round(float(value), 4) if np.size(value) else None


def _digits(values: Any, digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]
