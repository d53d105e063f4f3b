"""Several sources of samples in one, in the ratio of weights.

With shares s_i = w_i / sum w, one pass has C rows, of which source i gives the whole number q_i next to s_i C (largest
remainders). Row r is the source's own row

    k mod n_i,    k = the number of rows before r that are of source i,

so each source is gone through again and again without replacement. The rows of the first source are those where
floor(r q_1 / C) rises by one; the others stand in the gaps, by the same rule among themselves (Bresenham's line). So a
row's source and place follow from its number alone, and of any L rows in a row source i has s_i L, but for at most i.

C is m max_i(n_i / s_i), rounded: in one pass the source that is scarcest for its weight is gone through m times, and
every other one at least as often. Where a source does not fit a whole number of times, some of its samples come once
more than the others, in every pass the same. m is the smallest number for which the number of times that a sample comes
has a standard deviation of at most 5 % of its mean, in every source; 10 is always enough.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .vectors import Batch, Moments, Samples

__all__ = ["Mixture", "mixture"]

_UNEVEN = 0.05
_PASSES = 10
# Products of two row numbers must fit into int64.
_MAX_ROWS = 1 << 31


def mixture(samples: Sequence[Samples], weights: Sequence[float] | None = None) -> Samples:
    """Samples of several sources in the ratio of weights; see the module for what a pass is.

    Args:
        samples: at least one source, none of them empty.
        weights: one positive number per source; only their ratios count. Default: the sources' counts, so that each
            sample comes once in a pass.

    Returns:
        Samples whose `count` is that of one pass, and whose statistics are those of what a pass gives.

    Raises:
        ValueError: the weights do not fit; a source is empty; a pass would be too long.
    """
    if not samples:
        raise ValueError("samples is empty; there is nothing to mix")
    if weights is None:
        weights = [float(source.count) for source in samples]
    if len(weights) != len(samples) or not all(w > 0 and math.isfinite(w) for w in weights):
        raise ValueError(f"weights must be {len(samples)} positive numbers, one per source, got {list(weights)}")
    empty = [number for number, source in enumerate(samples) if source.count == 0]
    if empty:
        raise ValueError(f"samples[{empty[0]}] is empty; leave it out")
    return samples[0] if len(samples) == 1 else Mixture(samples, quotas([s.count for s in samples], weights))


def quotas(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows of each source in one pass.

    Args:
        counts: samples of each source, positive.
        weights: positive.

    Raises:
        ValueError: a pass would be too long.
    """
    shares = [weight / math.fsum(weights) for weight in weights]
    once = max(count / share for count, share in zip(counts, shares, strict=True))
    if once > _MAX_ROWS:
        raise ValueError(
            f"weights {list(weights)}: sources of {list(counts)} samples would need {once:.2g} rows until each of them"
            f" has come; choose weights whose ratio is nearer to that of the counts (at most {_MAX_ROWS} rows)"
        )
    chosen = _apportion(round(once), shares, counts)
    for passes in range(2, _PASSES + 1):
        if _unevenness(chosen, counts) <= _UNEVEN or passes * once > _MAX_ROWS:
            break
        chosen = _apportion(round(passes * once), shares, counts)
    return chosen


class Mixture(Samples):
    """Samples of several sources, interleaved; see the module.

    Args:
        samples: the sources.
        rows: of each in one pass, positive.
    """

    def __init__(self, samples: Sequence[Samples], rows: Sequence[int]) -> None:
        self.samples = list(samples)
        self.rows = list(rows)
        self.count = sum(rows)
        self.singles = sum(source.singles for source in samples)
        parts = [[source.fingerprint, number] for source, number in zip(samples, rows, strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def locate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Source (B,) and its own row (B,) of the rows (B,)."""
        source = torch.full_like(rows, len(self.rows) - 1)
        place = torch.zeros_like(rows)
        rest, left = rows, self.count
        undecided = torch.ones_like(rows, dtype=torch.bool)
        for number, (own, samples) in enumerate(zip(self.rows, self.samples, strict=True)):
            before = rest * own // left
            here = undecided & ((rest + 1) * own // left > before)
            source = torch.where(here, number, source)
            place = torch.where(here, before % samples.count, place)
            undecided = undecided & ~here
            # The row's number among those that are not of this source.
            rest, left = rest - before, left - own
            if left == 0:
                break
        return source, place

    def fetch(self, rows: Tensor) -> Batch:
        """See `Samples.fetch`."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.count:
            raise IndexError(f"rows must be in 0..{self.count - 1}, got {int(rows.min())}..{int(rows.max())}")
        source, place = self.locate(rows)
        order = source.argsort(stable=True)
        sizes = torch.bincount(source, minlength=len(self.samples)).tolist()
        parts = [s.fetch(own) for s, own in zip(self.samples, place[order].split(sizes), strict=True)]
        back = order.argsort()
        return Batch(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))

    def moments(self) -> Moments:
        """See `Samples.moments`."""
        total = Moments.empty()
        for source, rows in zip(self.samples, self.rows, strict=True):
            total = total.merged(source.moments().scaled(rows / source.count))
        return total


def _apportion(total: int, shares: Sequence[float], counts: Sequence[int]) -> list[int]:
    """Whole numbers next to `total * share`, with that sum (largest remainders), none below its count."""
    exact = [total * share for share in shares]
    rows = [math.floor(value) for value in exact]
    order = sorted(range(len(rows)), key=lambda i: exact[i] - rows[i], reverse=True)
    for i in order[: total - sum(rows)]:
        rows[i] += 1
    # Rounding must not lose the last sample of a source.
    return [max(own, count) for own, count in zip(rows, counts, strict=True)]


def _unevenness(rows: Sequence[int], counts: Sequence[int]) -> float:
    """Largest relative standard deviation of how often a source's samples come."""
    worst = 0.0
    for own, count in zip(rows, counts, strict=True):
        extra = own % count / count
        worst = max(worst, math.sqrt(extra * (1 - extra)) / (own / count))
    return worst
