"""Training samples: canonical vectors of pairs and of hands alone.

A pair gives two samples (Algorithm 1, line 2): the right hand given the left one and, seen in the mirror, the left
hand given the right one. In canonical form (Eq. 5) they are the pair with either hand as the anchor. A hand alone
gives one, in right-hand form: it has no anchor, and no place relative to one.

A row of numbers holds what is not constant: the anchor's own part and the whole partner,

    anchor's own 55 | partner 64

and two flags say whether there is an anchor, and whether the partner's relative part means anything. Rows come in the
order of the data, the two views of a pair side by side, however the data is cut into batches.

Their statistics are gathered block by block. With n, m, q the number, mean and sum of squared deviations of one set
and d the difference of two means, the union has (Chan, Golub & LeVeque 1979)

    n = n1 + n2,    m = m1 + d n2 / n,    q = q1 + q2 + d^2 n1 n2 / n.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..canonical import SIZE, SLICES, Normalizer, Side, as_anchor, own_vector, to_canonical
from ..params import TwoHands

__all__ = ["OWN", "WIDTH", "Batch", "Moments", "Rows", "Samples", "VectorSamples", "canonical_rows"]

OWN = SLICES["own"].stop
WIDTH = OWN + SIZE


class Batch(NamedTuple):
    """Samples, not normalised.

    Attributes:
        anchor: (B, 64) canonical vectors; zeros where there is none.
        partner: (B, 64) canonical vectors; the relative part is zeros where it means nothing.
        has_anchor: (B,) bool.
        has_relative: (B,) bool, False: a hand alone.
    """

    anchor: Tensor
    partner: Tensor
    has_anchor: Tensor
    has_relative: Tensor


class Rows(NamedTuple):
    """Samples as they are stored.

    Attributes:
        values: (N, 119) float32.
        flags: (N, 2) bool: has_anchor, has_relative.
    """

    values: Tensor
    flags: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Numbers, means and sums of squared deviations of partner vectors, in float64.

    Attributes:
        own_count: samples that the own part is of; of mixtures it need not be a whole number.
        relative_count: samples that the relative part is of: those that have one.
        mean: (64,).
        square: (64,) sums of squared deviations from the mean.
    """

    own_count: float
    relative_count: float
    mean: Tensor
    square: Tensor

    @classmethod
    def empty(cls) -> Moments:
        """Of no samples."""
        return cls(0, 0, torch.zeros(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64))

    @classmethod
    def of(cls, partner: Tensor, has_relative: Tensor) -> Moments:
        """Of partner vectors (N, 64), whose relative parts count where has_relative (N,) says so."""
        values = partner.double()
        weight = torch.ones_like(values)
        weight[:, OWN:] = has_relative[:, None].double()
        count = weight.sum(0)
        mean = (weight * values).sum(0) / count.clamp_min(1)
        square = (weight * (values - mean).square()).sum(0)
        return cls(float(count[0]), float(count[-1]), mean, square)

    def merged(self, other: Moments) -> Moments:
        """Of the union."""
        n1, n2 = self._counts(), other._counts()
        total = (n1 + n2).clamp_min(1e-300)
        step = other.mean - self.mean
        return Moments(
            self.own_count + other.own_count,
            self.relative_count + other.relative_count,
            self.mean + step * n2 / total,
            self.square + other.square + step.square() * n1 * n2 / total,
        )

    def scaled(self, factor: float) -> Moments:
        """Of `factor` copies."""
        return Moments(factor * self.own_count, factor * self.relative_count, self.mean, factor * self.square)

    def normalizer(self, floor: float = 0.05) -> Normalizer:
        """What `Normalizer.fit` gives for the same samples.

        The relative part's statistics are those of the pairs. With fewer than two of them they are 0 and 1: nothing
        depends on them then.

        Args:
            floor: see `Normalizer.fit`.

        Raises:
            ValueError: there are fewer than two samples.
        """
        if self.own_count < 2:
            raise ValueError(f"pairs: at least 2 samples are needed to fit a normaliser, got {self.own_count:g}")
        std = (self.square / (self._counts() - 1).clamp_min(1)).sqrt()
        mean = self.mean.clone()
        if self.relative_count < 2:
            mean[OWN:], std[OWN:] = 0, 1
        return Normalizer.of_statistics(mean, std, floor)

    def _counts(self) -> Tensor:
        counts = torch.full((SIZE,), float(self.own_count), dtype=torch.float64)
        counts[OWN:] = self.relative_count
        return counts


class Samples(ABC):
    """Samples to train on, read a batch at a time.

    Attributes:
        count: how many there are in one pass; a row is a number in 0..count-1.
        singles: how many different ones are hands alone.
        fingerprint: a hash of the data they come from: a resumed run must go on with the same.
    """

    count: int
    singles: int
    fingerprint: str

    @abstractmethod
    def fetch(self, rows: Tensor) -> Batch:
        """Samples by number; may be called from another thread.

        Args:
            rows: (B,) int64 on the CPU.
        """

    @abstractmethod
    def moments(self) -> Moments:
        """Statistics of the partners in one pass."""


class VectorSamples(Samples):
    """Samples in blocks, in memory or mapped from files.

    Args:
        blocks: in order; mapped tensors are read when they are fetched.
        moments: of all of them.
        fingerprint: see `Samples`.
        singles: see `Samples`.
    """

    def __init__(self, blocks: Sequence[Rows], moments: Moments, fingerprint: str, singles: int) -> None:
        self.blocks = list(blocks)
        self.singles = singles
        self.fingerprint = fingerprint
        self._moments = moments
        self._starts = torch.tensor([0, *accumulate(len(block.values) for block in self.blocks)], dtype=torch.int64)
        self.count = int(self._starts[-1])

    @classmethod
    def of(cls, blocks: Sequence[Rows], fingerprint: str) -> VectorSamples:
        """Samples in memory, with their statistics."""
        moments = Moments.empty()
        for block in blocks:
            moments = moments.merged(Moments.of(block.values[:, OWN:], block.flags[:, 1]))
        singles = sum(int((~block.flags[:, 1]).sum()) for block in blocks)
        return cls(blocks, moments, fingerprint, singles)

    def fetch(self, rows: Tensor) -> Batch:
        """See `Samples.fetch`. The loop is over the blocks that the rows are in."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.count:
            raise IndexError(f"rows must be in 0..{self.count - 1}, got {int(rows.min())}..{int(rows.max())}")
        if len(self.blocks) == 1:
            values, flags = (part.index_select(0, rows) for part in self.blocks[0])
        else:
            # In order of their places: neighbours in a file are read together.
            ordered, order = rows.sort()
            cuts = torch.searchsorted(ordered, self._starts).tolist()
            values = torch.empty(len(rows), WIDTH)
            flags = torch.empty(len(rows), 2, dtype=torch.bool)
            for block, start, a, b in zip(self.blocks, self._starts.tolist(), cuts, cuts[1:], strict=False):
                if a < b:
                    local, place = ordered[a:b] - start, order[a:b]
                    values.index_copy_(0, place, block.values.index_select(0, local))
                    flags.index_copy_(0, place, block.flags.index_select(0, local))
        has_anchor, has_relative = flags.unbind(1)
        return Batch(as_anchor(values[:, :OWN]) * has_anchor[:, None], values[:, OWN:], has_anchor, has_relative)

    def moments(self) -> Moments:
        """See `Samples.moments`."""
        return self._moments


@torch.no_grad()
def canonical_rows(hands: TwoHands, *, mirror: bool) -> Rows:
    """Rows of pairs (N,), each of which has at least one hand.

    Args:
        hands: batch shape (N,).
        mirror: give the second view of each whole pair too, right after the first.
    """
    left, right = hands.valid
    whole = left & right
    pairs = hands[whole]
    sides: tuple[Side, ...] = ("left", "right") if mirror else ("left",)
    seen = [to_canonical(pairs, pairs.model, side) for side in sides]
    views = [torch.cat((anchor[:, :OWN], partner), 1) for anchor, partner, _ in seen]
    number = torch.arange(len(hands), device=hands.device)
    lone = torch.where(left[:, None], own_vector(hands.left, "left"), own_vector(hands.right, "right"))[~whole]
    alone = lone.new_zeros(len(lone), WIDTH)
    alone[:, OWN : 2 * OWN] = lone
    owner = torch.cat([number[whole]] * len(sides) + [number[~whole]])
    order = owner.argsort(stable=True)
    paired = torch.arange(len(owner), device=hands.device) < len(sides) * len(pairs)
    values = torch.cat([*views, alone])[order].float().cpu()
    return Rows(values, paired[order, None].expand(-1, 2).clone().cpu())
