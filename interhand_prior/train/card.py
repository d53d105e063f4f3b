"""The model card of a trained prior: README.md beside its weights, made of what the prior says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..networks import network_facts
from ..prior import TwoHandPrior

__all__ = ["model_card"]

_SECTIONS = {"Data": "data", "Validation": "validation", "Settings": "config", "Fine-tuned from": "init"}
_FRONT = """---
library_name: interhand_prior
tags: [hands, two-hand-interaction, diffusion, prior]
---
"""
_USE = """
```python
from interhand_prior import load_prior, sample

prior = load_prior("{where}")  # this folder, or the repository that holds it
hands = sample(prior, 16, seed=0)
```
"""


def model_card(prior: TwoHandPrior, where: str = "PATH") -> str:
    """Markdown that says what was trained on what and how, and how it did.

    Args:
        prior: its `info` is what a run of `train` records: `data`, `config`, `validation`, `init` and single facts.
        where: what to give `load_prior`.
    """
    info = dict(prior.info)
    sections = {title: info.pop(name, {}) for title, name in _SECTIONS.items()}
    count = sum(parameter.numel() for parameter in prior.denoiser.parameters())
    facts = {"parameters": count, **info, "calibrated": prior.calibration is not None}
    text = [
        _FRONT,
        "# A prior over two interacting hands",
        "",
        "A denoising diffusion model of one hand given the other, and of a hand without the other (InterHandGen,"
        " CVPR 2024), in hand-model parameters.",
        _USE.format(where=where),
        "## Facts",
        "",
        *_table(facts),
        "",
        "Network:",
        "",
        *_table(network_facts(prior.denoiser.config)),
    ]
    for title, values in sections.items():
        if values:
            text += ["", f"## {title}", "", *_table(values)]
    return "\n".join(text) + "\n"


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_shown(value)} |" for name, value in values.items()]
    return ["| | |", "|---|---|", *rows]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    # A bar would end the cell.
    return (value if isinstance(value, str) else json.dumps(value)).replace("|", "\\|").replace("\n", " ")
