"""Guidance of the reverse process, one method a file; each maps a clean estimate x0 to a better one."""

from __future__ import annotations

from .anti_penetration import AnchoredGuide, AntiPenetration, PairSurfaces
from .cfg import guided_x0

__all__ = ["AnchoredGuide", "AntiPenetration", "PairSurfaces", "guided_x0"]
