"""Ours with BUDDI*'s backbone: no row of the paper, but the one that tells its rows apart.

BUDDI* and "Ours w/o Decomposition" model both hands jointly and differ in the network alone; "Ours w/o Decomposition"
and "Ours w/o APG" have one network and differ in the decomposition. This is the fourth cell: the cascade of Eq. 6 with
a transformer over parameter tokens (`token_denoiser`, a leaner one than BUDDI*'s). It is what the bundled prior is.
"""

from __future__ import annotations

from ..token_denoiser import TokenDenoiserConfig
from .ours import Ours

__all__ = ["TokenCascade"]


class TokenCascade(Ours):
    """The cascade p(x_l) p(x_r | x_l) of a transformer over parameter tokens."""

    name = "token cascade"
    network_type = TokenDenoiserConfig
    small_network = TokenDenoiserConfig(width=16, layers=1, heads=2, feedforward=32, embedding=16)
