"""Hand models: parameters -> vertices, joints, faces.

`open_hands()` is the bundled open hand; `load_hands(source)` also takes MANO's files and a user's own smplx layers.
`python -m interhand_prior.hands export-mano FOLDER` writes the open hand in MANO's format.
"""

from __future__ import annotations

from .arrays import MIDDLE_MCP, PARENTS, TIP_IDS, WRIST_LOOP, HandArrays, HandSide
from .load import load_hands, open_hands
from .model import HandModel, HandPair
from .wrist import sealed, sealed_faces, sealed_vertices

__all__ = [
    "MIDDLE_MCP",
    "PARENTS",
    "TIP_IDS",
    "WRIST_LOOP",
    "HandArrays",
    "HandModel",
    "HandPair",
    "HandSide",
    "load_hands",
    "open_hands",
    "sealed",
    "sealed_faces",
    "sealed_vertices",
]
