r"""What `data_card.py` measures on parameters and joints: distances between pairs, diversity, shape and twist.

    distance of two pairs    mean over both hands' 21 joints of |x - y|, with the left hand's rotation and middle MCP
                             factored out (the canonical frame, paper Eq. 5)
    effective rank           exp(H(l / sum l)), l the eigenvalues of the correlation matrix of the canonical vectors
    effective number         exp(H(l)), l the eigenvalues of K / n,  K_ij = exp(-d_ij^2 / 2 s^2): how many of n pairs
                             differ by more than about s (the Vendi score, Friedman and Dieng 2023)
    twist                    turning a phalanx about its own bone and turning the next joint back moves no joint; its
                             share is that of the variance of `hand_pose` that goes when every such twist is set to zero

The training set counts with its mirror images, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from interhand_prior import HandParams, TwoHands
from interhand_prior.canonical import SLICES, to_canonical
from interhand_prior.hands import HandModel
from interhand_prior.params import FIELDS
from interhand_prior.rotations import axis_angle_to_matrix, mirror_axis_angle

JOINTS = 42
_QUERIES, _BANK = 256, 8192  # a block of distances stays in the cache
_CHUNK = 2048
_TIP_ROWS = (17, 18, 20, 19, 16)  # of `joints21`, in the order of the chains: index, middle, little, ring, thumb


@torch.no_grad()
def canonical_joints(pairs: TwoHands) -> Tensor:
    """(N, 42, 3) mm: 21 joints of the left and of the right hand, in the frame of the left one."""
    parts = []
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        left, right = part.joints21()
        turn = axis_angle_to_matrix(part.left.global_orient)
        parts.append((torch.cat([left, right], 1) - left[:, 4:5]) @ turn * 1e3)
    return torch.cat(parts) if parts else torch.zeros(0, JOINTS, 3)


@torch.no_grad()
def vectors(pairs: TwoHands) -> tuple[Tensor, Tensor]:
    """Canonical anchor and partner vectors, (N, 64) each, right-hand form."""
    anchors, partners = [], []
    for start in range(0, len(pairs), _CHUNK):
        anchor, partner, _ = to_canonical(pairs[start : start + _CHUNK], pairs.model)
        anchors.append(anchor)
        partners.append(partner)
    return torch.cat(anchors), torch.cat(partners)


def hand_poses(pairs: TwoHands) -> Tensor:
    """(M, 45) poses of all hands that are there, in right-hand form: left hands, then right hands."""
    left, right = pairs.valid
    return torch.cat([mirror_axis_angle(pairs.left.hand_pose)[left], pairs.right.hand_pose[right]])


def nearest(queries: Tensor, bank: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest pair of a bank by mean joint distance.

    Args:
        queries: (Q, J, 3) joints.
        bank: (B, J, 3).
        own: (Q, K) rows of the bank that do not count for a query (itself and its mirror image).

    Returns:
        Distance (Q,), in the unit of the joints, and row of the bank (Q,).
    """
    best, row = queries.new_full((len(queries),), float("inf")), torch.zeros(len(queries), dtype=torch.long)
    for start in range(0, len(bank), _BANK):
        block = bank[start : start + _BANK].permute(1, 0, 2).contiguous()
        for first in range(0, len(queries), _QUERIES):
            asked = slice(first, first + _QUERIES)
            total = distances(queries[asked].permute(1, 0, 2).contiguous(), block)
            if own is not None:
                places = own[asked] - start
                hit = (places >= 0) & (places < total.shape[1])
                total[hit.nonzero()[:, 0], places[hit]] = float("inf")
            value, index = total.min(1)
            nearer = value < best[asked]
            best[asked] = torch.where(nearer, value, best[asked])
            row[asked] = torch.where(nearer, index + start, row[asked])
    # Matrix products rank well enough, but are off by a tenth of a millimetre where points coincide.
    return (queries - bank[row]).norm(dim=-1).mean(1).where(best.isfinite(), best), row


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Mean joint distances (P, Q) of joints-first (J, P, 3) and (J, Q, 3)."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=a.dtype)
    for one, two in zip(a, b, strict=True):
        total += torch.cdist(one, two, compute_mode="use_mm_for_euclid_dist")
    return total / len(a)


def spread(joints: Tensor, generator: torch.Generator, draws: int = 20_000) -> float | None:
    """Mean distance of two different pairs of (N, J, 3), over random couples; None of a single pair."""
    n = len(joints)
    if n < 2:
        return None
    a = torch.randint(n, (draws,), generator=generator)
    b = (a + torch.randint(1, n, (draws,), generator=generator)) % n
    return float((joints[a] - joints[b]).norm(dim=-1).mean())


def effective_rank(vector: Tensor) -> float | None:
    """Of (N, D) samples, columns that never move left out; None of fewer than two."""
    if len(vector) < 2:
        return None
    values = vector.double()
    sd = values.std(0)
    values = (values - values.mean(0))[:, sd > 1e-9] / sd[sd > 1e-9]
    return _exp_entropy(torch.linalg.eigvalsh(values.T @ values / (len(values) - 1)))


def effective_number(joints: Tensor, scale: float) -> float | None:
    """How many of (N, J, 3) differ by more than about `scale` (the joints' unit); between 1 and N."""
    if len(joints) == 0:
        return None
    first = joints.permute(1, 0, 2).contiguous().double()
    kernel = (-0.5 * (distances(first, first) / scale).square()).exp()
    return _exp_entropy(torch.linalg.eigvalsh(kernel / len(joints)))


def _exp_entropy(weights: Tensor) -> float:
    share = weights.clamp_min(0) / weights.clamp_min(0).sum()
    return float(torch.special.entr(share).sum().exp())


def twist_share(poses: Tensor, model: HandModel) -> dict[str, float]:
    """How much of the variance of hand poses turns phalanges about their own bones, which moves no joint.

    Args:
        poses: (N, 45), right-hand form.
        model: the right hand; its mean shape says where bones are.

    Returns:
        ``share`` of the summed variance that goes without these twists; ``sd_degrees`` of the twists, root mean square.
    """
    plain, twist = untwisted(poses, model)
    share = 1 - plain.var(0).sum() / poses.var(0).sum()
    return {"share": float(share), "sd_degrees": float(twist.var(0).mean().sqrt().rad2deg())}


def untwisted(poses: Tensor, model: HandModel) -> tuple[Tensor, Tensor]:
    """Poses (N, 45) without twist, the same joint positions, and the twists (N, 15) taken away, radians."""
    mean = HandParams(*(poses.new_zeros(1, width) for width in FIELDS.values()))
    rest = model.joints21(mean)[0]
    chains = torch.cat([rest[1:16].view(5, 3, 3), rest[list(_TIP_ROWS)][:, None]], 1)
    bones = torch.nn.functional.normalize(chains[:, 1:] - chains[:, :-1], dim=-1)  # chain, phalanx, xyz
    turn = _quaternion(poses.view(-1, 5, 3, 3))
    out, twists = [], []
    before = None  # what was taken from the phalanx before, and must be given back
    for k in range(3):
        now = turn[:, :, k] if before is None else _product(before, turn[:, :, k])
        along = (now[..., 1:] * bones[:, k]).sum(-1)
        angle = 2 * torch.atan2(along, now[..., 0])
        angle = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
        before = torch.cat([(angle / 2).cos()[..., None], (angle / 2).sin()[..., None] * bones[:, k]], -1)
        out.append(_axis_angle(_product(now, before * before.new_tensor((1, -1, -1, -1)))))
        twists.append(angle)
    return torch.stack(out, 2).reshape(len(poses), 45), torch.stack(twists, 2).reshape(len(poses), 15)


def _quaternion(axis_angle: Tensor) -> Tensor:
    angle = axis_angle.norm(dim=-1, keepdim=True)
    return torch.cat([(angle / 2).cos(), axis_angle * 0.5 * torch.sinc(angle / (2 * torch.pi))], -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    real = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdim=True)
    cross = torch.linalg.cross(a[..., 1:], b[..., 1:].expand_as(a[..., 1:]))
    return torch.cat([real, a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + cross], -1)


def _axis_angle(q: Tensor) -> Tensor:
    q = torch.where(q[..., :1] < 0, -q, q)
    sine = q[..., 1:].norm(dim=-1, keepdim=True)
    return q[..., 1:] / sine.clamp_min(1e-12) * (2 * torch.atan2(sine, q[..., :1]))


def pair_rows(pairs: TwoHands) -> Tensor:
    """(N, 119) what a pair is, wherever it lies: poses and shapes of both hands, and how they lie to each other."""
    anchor, partner = vectors(pairs)
    return torch.cat([anchor[:, SLICES["own"]], partner], 1)


def repeated(rows: Mapping[str, Tensor]) -> dict[str, int]:
    """Rows (M, D) of each split that occur again, bit for bit.

    Returns:
        ``all`` of them, ``repeated`` (occurrences beyond the first), ``in two splits`` (rows found in more than one).
    """
    seen = {split: [row.tobytes() for row in values.numpy() + np.float32(0)] for split, values in rows.items()}
    distinct = {split: set(keys) for split, keys in seen.items()}  # adding 0 made -0 the same as 0
    total, different = sum(map(len, seen.values())), len(set().union(*distinct.values()))
    shared = sum(map(len, distinct.values())) - different
    return {"all": total, "repeated": total - different, "in two splits": shared}
