"""The evaluation protocol (paper Sec. 4.1, Tables 1a and 3b) in one call: all metrics, each with its spread.

What mean and standard deviation are of is said in `scores`. Beside the samples stands what real data scores against
itself: feature metrics between random halves of the reference, and the reference's contact as it was stored. No
generator can be expected to do better.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .._version import __version__
from ..files import write_atomically
from ..params import HandParams, TwoHands
from ..progress import progress_bar
from .contact import CONTACT, MeasureContact, measure_contact, summarise
from .inputs import require_both_hands
from .reference import FeatureFunction, Reference, compute_features, hands_identity, load_reference
from .scores import FEATURE_METRICS, Settings, Value, score_against_itself, score_contact, score_features

__all__ = ["METRICS", "Metric", "Report", "evaluate"]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: its name in tables.
        unit: "" for a pure number.
        better: "lower", "higher" or, where real data shows what is right, "".
    """

    label: str
    unit: str
    better: str


METRICS: dict[str, Metric] = {
    "fhid": Metric("FHID", "", "lower"),
    "khid": Metric("KHID", "", "lower"),
    "diversity": Metric("Diversity", "", "higher"),
    "precision": Metric("Precision", "", "higher"),
    "recall": Metric("Recall", "", "higher"),
    "penetration_volume": Metric("PenVol", "cm^3", "lower"),
    "penetration_distance": Metric("PenDist", "cm", "lower"),
    "proximity_ratio": Metric("ProxRatio", "", "higher"),
    "touch_share": Metric("Touch", "", ""),
}


@dataclass(frozen=True)
class Report:
    """Result of `evaluate`.

    Attributes:
        values: by metric, in the order of `METRICS`; also `report["fhid"]`.
        floor: of the reference against itself, where known.
        counts: samples, reference and dimension (of the features), failed_booleans (pairs whose volume could not be
            computed; they are not in its mean) and reference_failed_booleans, as far as they apply.
        settings: what the numbers depend on.
        notices: what to know before comparing these numbers with others.
    """

    values: Mapping[str, Value]
    floor: Mapping[str, Value]
    counts: Mapping[str, int]
    settings: Mapping[str, Any]
    notices: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Value:
        """The value of a metric."""
        return self.values[name]

    def table(self) -> str:
        """Aligned text: a row for each metric, then counts and notices."""
        rows = [("metric", "samples", "real against real", "")]
        for name, value in self.values.items():
            metric = METRICS[name]
            note = ", ".join(filter(None, [metric.unit, f"{metric.better} is better" if metric.better else ""]))
            rows.append((metric.label, _show(value), _show(self.floor.get(name)), note))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in self.counts.items())
        return "\n".join([*lines, counts, *(f"note: {text}" for text in self.notices)])

    def as_dict(self) -> dict[str, Any]:
        """JSON values; what cannot be known is None."""
        known = lambda number: number if math.isfinite(number) else None
        plain = lambda values: {name: {k: known(v) for k, v in asdict(x).items()} for name, x in values.items()}
        return {
            "values": plain(self.values),
            "real_against_real": plain(self.floor),
            "units": {name: METRICS[name].unit for name in self.values if METRICS[name].unit},
            "counts": dict(self.counts),
            "settings": dict(self.settings),
            "notices": list(self.notices),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON, whole or not at all.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        return write_atomically(path, (json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n").encode())


def evaluate(
    samples: TwoHands,
    reference: TwoHands | Reference | None = None,
    *,
    features: FeatureFunction | None = None,
    metrics: Sequence[str] = tuple(METRICS),
    floor: bool = True,
    reference_contact: bool = False,
    contact: MeasureContact = measure_contact,
    workers: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Report:
    """Evaluate samples of a prior against real pairs.

    Args:
        samples: any batch shape, at least 2 pairs, finite. The paper takes 10,000.
        reference: pairs, or a stored reference; default: the bundled one.
        features: the feature function, each row of whose output depends on its own pair alone; default: the bundled
            network.
        metrics: names from `METRICS`.
        floor: also score the reference against itself.
        reference_contact: measure the contact of reference pairs too (a stored reference knows its own).
        contact: how contact is measured.
        workers: processes for the volumes.
        progress: show bars on stderr.
        **settings: the fields of `interhand_prior.metrics.Settings`: repeats, k, precision_recall_num, degree,
            subset_size, subsets, diversity_pairs, seed.

    Returns:
        Values with mean and standard deviation; see the module `scores` for what they are of.

    Raises:
        TypeError, ValueError: an argument is wrong; pairs hold NaN; the reference belongs to another feature network.
        FileNotFoundError: the bundled network or reference is wanted and not there.
        ImportError: volumes are wanted and manifold3d is not installed.
    """
    names = _check_names(metrics)
    by_features = [name for name in FEATURE_METRICS if name in names]
    by_contact = [name for name in CONTACT if name in names]
    chosen = Settings(**settings)
    samples = _check_pairs(samples, "samples")
    if isinstance(reference, TwoHands):
        reference = _check_pairs(reference, "reference")
    elif reference is None and by_features:
        reference = load_reference()
    elif not (reference is None or isinstance(reference, Reference)):
        raise TypeError(f"reference must be TwoHands, a Reference or None, got {type(reference).__name__}")
    if by_features:
        features = bundled_network() if features is None else features
        _check_fit(features, samples, reference)

    # Contact first: a library that is missing shows itself before the features' minutes are spent.
    measured = contact(samples, by_contact, workers=workers, progress=progress) if by_contact else {}
    values = {name: score_contact(measured[name], chosen) for name in by_contact}
    theirs = by_contact if reference_contact and floor else []
    real_contact: Mapping[str, Mapping[str, Any]] = {}
    if isinstance(reference, Reference):
        real_contact = reference.contact
    elif reference is not None and theirs:
        found = contact(reference, theirs, workers=workers, progress=progress)
        real_contact = {name: summarise(found[name]) for name in theirs}
    lowest = {name: _stored_value(real_contact[name]) for name in by_contact if floor and name in real_contact}
    counts = _counts(len(samples), measured, real_contact if floor else {})
    notices = _notices_of_hands(samples, reference)

    if by_features:
        # Both were chosen above; this tells the type checker.
        assert features is not None
        assert reference is not None
        rows = compute_features(features, samples, progress=progress)
        if isinstance(reference, TwoHands):
            reference = Reference.from_pairs(reference, features, contact=False, progress=progress)
        counts |= {"reference": len(reference), "dimension": reference.dimension}
        with progress_bar(chosen.repeats, "scores of the samples", "draw", progress) as advance:
            values |= score_features(rows, reference.features, by_features, chosen, advance)
        if floor:
            with progress_bar(chosen.repeats, "scores of the reference", "draw", progress) as advance:
                lowest |= score_against_itself(reference.features, by_features, chosen, advance)
    notices += _notices(counts, by_features, chosen)
    order = [name for name in METRICS if name in names]
    facts = asdict(chosen) | {"features": getattr(features, "identity", None) if by_features else None}
    facts |= {"reference": dict(reference.info) if isinstance(reference, Reference) else {}, "version": __version__}
    return Report(
        {name: values[name] for name in order},
        {name: lowest[name] for name in order if name in lowest},
        counts,
        facts,
        tuple(notices),
    )


def bundled_network() -> FeatureFunction:
    """The feature network inside this package."""
    from .features import load_feature_network

    return load_feature_network()


def _check_names(metrics: Sequence[str]) -> list[str]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = sorted(set(names) - set(METRICS))
    if unknown or not names:
        raise ValueError(f"metrics must be names from {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}")
    return names


def _check_pairs(pairs: TwoHands, name: str) -> TwoHands:
    if not isinstance(pairs, TwoHands):
        raise TypeError(f"{name} must be TwoHands, got {type(pairs).__name__}; TwoHands.load reads files")
    pairs = pairs.reshape(-1).detach()
    if len(pairs) < 2:
        raise ValueError(f"{name} must hold at least 2 pairs, got {len(pairs)}; the paper takes 10,000")
    require_both_hands(pairs, name)
    for side in ("left", "right"):
        HandParams.coerce(getattr(pairs, side), f"{name}.{side}", check_finite=True)
    return pairs


def _check_fit(features: FeatureFunction, samples: TwoHands, reference: TwoHands | Reference | None) -> None:
    """Try the feature function on two pairs: what does not fit is refused before the work."""
    dimension = compute_features(features, samples[:2]).shape[1]
    if isinstance(reference, Reference):
        reference.check_features(features)
        if reference.dimension != dimension:
            raise ValueError(
                f"features have dimension {dimension} but the reference's have {reference.dimension}; compute both"
                " with the same feature network"
            )


def _stored_value(statistics: Mapping[str, Any]) -> Value:
    """A mean over pairs; its spread is the standard error, to which the bootstrap's tends."""
    mean, sd, count = statistics["mean"], statistics["sd"], statistics["count"]
    return Value(math.nan if mean is None else mean, math.nan if sd is None else sd / math.sqrt(count))


def _counts(
    samples: int, measured: Mapping[str, Tensor], real_contact: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    counts, name = {"samples": samples}, "penetration_volume"
    if name in measured:
        counts["failed_booleans"] = int(measured[name].isnan().sum())
        if name in real_contact:
            counts["reference_failed_booleans"] = int(real_contact[name]["failed"])
    return counts


def _notices_of_hands(samples: TwoHands, reference: TwoHands | Reference | None) -> list[str]:
    if reference is None:
        return []
    theirs = reference.hands if isinstance(reference, Reference) else hands_identity(reference.model)
    if theirs is None or theirs == hands_identity(samples.model):
        return []
    return ["samples and reference belong to different hand models: feature metrics see the hands' shapes too"]


def _notices(counts: Mapping[str, int], by_features: Sequence[str], settings: Settings) -> list[str]:
    notices = []
    if counts.get("failed_booleans"):
        notices.append(
            f"the intersection of {counts['failed_booleans']} of {counts['samples']} pairs could not be computed; they"
            " are not in PenVol"
        )
    if by_features:
        size, dimension = min(counts["samples"], counts["reference"]), counts["dimension"]
        if "fhid" in by_features and size <= dimension:
            notices.append(
                f"{size} samples in {dimension} feature dimensions: a covariance is singular and FHID biased upwards"
            )
        if "khid" in by_features and settings.subset_size is not None and size <= settings.subset_size:
            notices.append(f"KHID: subsets hold {size} samples, a whole set; its spread is too small")
        num = settings.precision_recall_num
        if {"precision", "recall"} & set(by_features) and num is not None and size <= num:
            notices.append(f"precision and recall: on {size} samples, a whole set; their spread is too small")
    if settings.repeats == 1:
        notices.append("a single repetition: no standard deviations")
    return notices


def _show(value: Value | None) -> str:
    if value is None:
        return ""
    if not math.isfinite(value.mean):
        return "unknown"
    return f"{value.mean:.4g}" + (f" +- {value.std:.2g}" if math.isfinite(value.std) else "")
