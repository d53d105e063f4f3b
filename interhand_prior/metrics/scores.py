"""Metrics with their spread over repetitions.

Two kinds of spread, both with the divisor `repeats` - 1:

- Metrics of subsets (KHID, diversity, precision, recall) draw anew each time: mean and standard deviation over draws.
- Metrics of the whole set (FHID, PenVol, PenDist, ProxRatio, touch share) have one value, that of the set. Its
  standard deviation is the bootstrap's: the samples are drawn again with replacement, the reference stays. The mean
  over bootstrap sets is not reported: for FHID it would be biased upwards, since a set with copies in it is poorer than
  the one it was drawn from. The resamples are weights on the samples; nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .diversity import diversity
from .frechet import frechet_distance, moments
from .inputs import choose
from .kernel import kernel_distance
from .precision_recall import precision_recall

__all__ = ["FEATURE_METRICS", "Settings", "Value", "score_against_itself", "score_contact", "score_features"]

FEATURE_METRICS = ("fhid", "khid", "diversity", "precision", "recall")


@dataclass(frozen=True)
class Value:
    """A metric's value and its standard deviation over repetitions; NaN where it cannot be known."""

    mean: float
    std: float

    @classmethod
    def of_draws(cls, draws: list[float]) -> Value:
        """Mean and spread of repeated draws."""
        return cls(float(torch.tensor(draws, dtype=torch.float64).mean()), _spread(draws))


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on beside its data.

    Attributes:
        repeats: repetitions of draws and bootstrap resamples.
        k: neighbour of precision and recall.
        precision_recall_num: samples of precision and recall, at most what the smaller set holds; None: all.
        degree: of KHID's kernel.
        subset_size: of KHID's subsets, at most what the smaller set holds; None: the whole sets at once.
        subsets: KHID's subsets in each repetition.
        diversity_pairs: random pairs of diversity.
        seed: of all draws. Each metric has a stream of its own, so leaving one out changes no other.

    Raises:
        ValueError: a number is too small.
    """

    repeats: int = 20
    k: int = 5
    precision_recall_num: int | None = 1000
    degree: int = 3
    subset_size: int | None = 1000
    subsets: int = 10
    diversity_pairs: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("repeats", "k", "degree", "subsets", "diversity_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.subset_size is not None and self.subset_size < 2:
            raise ValueError(f"subset_size must be at least 2, got {self.subset_size}")
        if self.precision_recall_num is not None and self.precision_recall_num <= self.k:
            raise ValueError(f"precision_recall_num must be above k={self.k}, got {self.precision_recall_num}")

    def generator(self, stream: str) -> torch.Generator:
        """The generator of one metric."""
        digest = hashlib.sha256(f"{self.seed} {stream}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


Advance = Callable[[int], object]


def score_features(
    features: Tensor, reference: Tensor, names: Collection[str], settings: Settings, advance: Advance = lambda n: None
) -> dict[str, Value]:
    """Feature metrics of samples against a reference.

    Args:
        features: (N, D).
        reference: (M, D).
        names: which, from `FEATURE_METRICS`.
        settings: repetitions and what they draw.
        advance: told 1 after each of the `settings.repeats` repetitions.

    Raises:
        TypeError, ValueError: as the metrics raise.
    """
    features, reference = features.double(), reference.double()
    streams = {name: settings.generator(name) for name in ("bootstrap", "khid", "diversity", "precision and recall")}
    real = moments(reference) if "fhid" in names else None
    draws: dict[str, list[float]] = {name: [] for name in FEATURE_METRICS if name in names}
    for _ in range(settings.repeats):
        if real is not None:
            counts = _resample(len(features), streams["bootstrap"])
            draws["fhid"].append(frechet_distance(moments(features, counts), real))
        if "diversity" in names:
            pairs, generator = settings.diversity_pairs, streams["diversity"]
            draws["diversity"].append(diversity(features, pairs=pairs, generator=generator))
        _draw_subset_metrics(features, reference, draws, settings, streams)
        advance(1)
    values = {name: Value.of_draws(found) for name, found in draws.items()}
    if real is not None:
        values["fhid"] = Value(frechet_distance(features, real), values["fhid"].std)
    return values


def score_against_itself(
    reference: Tensor, names: Collection[str], settings: Settings, advance: Advance = lambda n: None
) -> dict[str, Value]:
    """What real data scores: feature metrics between two random halves of the reference, split anew each time.

    So the sets have half the size, and the bias of FHID is that of M / 2 against M / 2 samples: to first order twice
    that of M against M. Diversity is that of the whole reference.

    Args:
        reference: (M, D). With too few samples for a half to be scored, nothing is.
        names: which, from `FEATURE_METRICS`.
        settings: repetitions and what they draw.
        advance: told 1 after each repetition.
    """
    reference, half = reference.double(), len(reference) // 2
    if half <= settings.k:
        return {}
    streams = {
        name: settings.generator(f"real {name}") for name in ("halves", "khid", "diversity", "precision and recall")
    }
    draws: dict[str, list[float]] = {name: [] for name in FEATURE_METRICS if name in names}
    for _ in range(settings.repeats):
        order = choose(len(reference), 2 * half, streams["halves"], reference.device)
        a, b = reference[order[:half]], reference[order[half:]]
        if "fhid" in names:
            draws["fhid"].append(frechet_distance(a, b))
        if "diversity" in names:
            pairs, generator = settings.diversity_pairs, streams["diversity"]
            draws["diversity"].append(diversity(reference, pairs=pairs, generator=generator))
        _draw_subset_metrics(a, b, draws, settings, streams)
        advance(1)
    return {name: Value.of_draws(found) for name, found in draws.items()}


def score_contact(values: Tensor, settings: Settings) -> Value:
    """Mean over pairs and its bootstrap spread.

    Args:
        values: (N,), NaN where a pair could not be measured: it is in no mean.
        settings: repetitions and seed.
    """
    values = values.double()
    good = ~values.isnan()
    generator = settings.generator("bootstrap of contact")
    weights = torch.stack([_resample(len(values), generator) for _ in range(settings.repeats)]).to(values)
    means = weights @ values.nan_to_num(nan=0.0) / (weights @ good.to(values))
    return Value(float(values[good].mean()), _spread(means.tolist()))


def _draw_subset_metrics(
    a: Tensor, b: Tensor, draws: dict[str, list[float]], settings: Settings, streams: dict[str, torch.Generator]
) -> None:
    if "khid" in draws:
        size = settings.subset_size
        value = kernel_distance(
            a,
            b,
            degree=settings.degree,
            subset_size=None if size is None else min(size, len(a), len(b)),
            subsets=settings.subsets,
            generator=streams["khid"],
        )
        draws["khid"].append(value)
    if "precision" in draws or "recall" in draws:
        num, generator = settings.precision_recall_num, streams["precision and recall"]
        both = precision_recall(a, b, k=settings.k, num=num, generator=generator)
        for name, value in zip(("precision", "recall"), both, strict=True):
            if name in draws:
                draws[name].append(value)


def _resample(count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` samples is in a bootstrap resample, (count,)."""
    return torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)


def _spread(draws: list[float]) -> float:
    return float(torch.tensor(draws, dtype=torch.float64).std()) if len(draws) > 1 else float("nan")
