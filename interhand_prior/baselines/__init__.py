"""The compared methods of Tables 1a, 3a and 3b, one a file, all with one protocol: `fit` on a corpus, `sample` N.

    for label, row in METHODS.items():
        method = row.fit("corpus/", TrainConfig(minutes=15), f"runs/{row.training}", resume=True)
        row.sample(method, 10_000, seed=0)

Rows with the same `training` differ in sampling alone: with `resume=True` the second one finds the run finished.
"""

from __future__ import annotations

from .buddi import Buddi
from .ours import Ours
from .protocol import Entry, Method
from .token_cascade import TokenCascade
from .vae import VAE
from .without_decomposition import WithoutDecomposition
from .without_shared_network import WithoutSharedNetwork

__all__ = ["METHODS", "Entry", "Method"]

METHODS: dict[str, Entry] = {
    row.label: row
    for row in (
        Entry("VAE", VAE, "vae"),
        Entry("BUDDI*", Buddi, "buddi"),
        Entry("Ours w/o Decomposition", WithoutDecomposition, "without_decomposition"),
        Entry("Ours w/o Shared Network", WithoutSharedNetwork, "without_shared_network"),
        Entry("Ours", Ours, "ours"),
        Entry("Ours w/o SelfAtt", Ours, "without_self_attention", changes={"attention": False}),
        Entry("Ours w/o CFG", Ours, "ours", options={"cfg_scale": 0.0}),
        Entry("Ours w/o APG", Ours, "ours", options={"penetration_scale": 0.0}),
        Entry("Ours with BUDDI*'s backbone", TokenCascade, "token_cascade"),
    )
}
"""The rows in the paper's order, by its labels: Table 1a, the ablations of Tables 3a and 3b; then one of our own."""
