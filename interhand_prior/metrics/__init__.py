"""How good samples are: the evaluation protocol of the paper (Sec. 4.1, Tables 1a, 3a and 3b).

`evaluate(samples)` measures everything against the bundled reference and network; `interhand-prior evaluate` is the
same as a command. Each metric is a function of its own, on features (N, D) of any feature network or on pairs.
"""

from __future__ import annotations

from .diversity import diversity
from .frechet import Moments, frechet_distance, moments
from .kernel import kernel_distance, squared_mmd
from .precision_recall import precision_recall
from .reference import Reference, load_reference
from .report import METRICS, Report, evaluate
from .scores import Settings, Value

__all__ = [
    "METRICS",
    "Moments",
    "Reference",
    "Report",
    "Settings",
    "Value",
    "diversity",
    "evaluate",
    "frechet_distance",
    "kernel_distance",
    "load_reference",
    "moments",
    "precision_recall",
    "squared_mmd",
]
