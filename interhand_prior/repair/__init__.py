"""Hands that are wrong or not there: out of each other, back to plausible ones, completed from what is seen."""

from .completion import complete, complete_fingers
from .refinement import refine
from .separation import separate_pairs

__all__ = ["complete", "complete_fingers", "refine", "separate_pairs"]
