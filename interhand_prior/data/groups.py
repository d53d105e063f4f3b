"""What the pairs of a corpus are told apart by: kinds of interaction, objects or sequences, as far as it knows them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..params import TwoHands

__all__ = ["MAX_GROUPS", "groups_of"]

#: A table of more sequences than these says nothing.
MAX_GROUPS = 50
#: Names of extras, the most telling first, and what one of their values is called.
_EXTRAS = {"archetype": "kind", "object_name": "object", "sequence": "sequence"}


def groups_of(pairs: TwoHands) -> tuple[str | None, NDArray[np.str_]]:
    """The group of each pair.

    Kinds where the pairs have them (a made corpus does), else the objects in the hands, else the sequences that were
    recorded; of more than `MAX_GROUPS` sequences their beginnings (what stands before the first "/" or "_"), which
    name persons or takes.

    Args:
        pairs: (N,).

    Returns:
        What a group is called ("kind", "object", "sequence"; None where nothing tells pairs apart), and its name (N,).
    """
    for extra, called in _EXTRAS.items():
        if extra not in pairs.extras:
            continue
        names = np.asarray(pairs.extras[extra], dtype=str)
        if called == "object":
            if not (names != "").any():
                continue
            names = np.where(names == "", "no object", names)
        if called == "sequence" and len(np.unique(names)) > MAX_GROUPS:
            names = np.array([name.replace("_", "/").partition("/")[0] for name in names.tolist()], dtype=str)
            if len(np.unique(names)) > MAX_GROUPS:
                continue
        return called, names
    return None, np.full(len(pairs), "unnamed")
