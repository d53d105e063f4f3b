"""The licence-free corpus: pairs of interacting hands made on the bundled open hand.

    angles and poses of one hand      anatomy, single_hand (fitted_poses), alone, marginals, gauge, skeleton
    what stands in for skin           spheres
    where pairs start                 archetypes, placement (fitted_placement), loose
    contact                           contact (balls), surface (the real mesh), arms
    shards                            pairs, statistics, shards

``python -m interhand_prior.data.synthetic OUT --num N`` or `generate_corpus`.
"""

from __future__ import annotations

from .archetypes import ARCHETYPE_NAMES, HELD_OUT, LOOSE, SINGLE, UNTOUCHED
from .shards import CorpusConfig, generate_corpus

__all__ = ["ARCHETYPE_NAMES", "HELD_OUT", "LOOSE", "SINGLE", "UNTOUCHED", "CorpusConfig", "generate_corpus"]
