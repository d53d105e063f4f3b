"""Scores of pairs: percentiles of the critics' answers against held-out real pairs.

    score = share of held-out pairs that are less usual,        in [0, 1], uniform on such pairs

Four critics, each with corrupted pairs of its own kind to tell from real ones: of the pair (wrong in any way), of the
relative placement (turned, shifted, pushed into each other, mirrored, another pair's, far away), of a hand and of a
finger by themselves (noise on the joints). What a hand alone can be judged by does not depend on the other hand, so
both hands of a pair have the scores that each would have alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..canonical import canonical_pair
from ..params import TwoHands
from .corruption import PLACEMENT, corrupted, noisy_fingers, strayed
from .critic import Critic, fit_critic
from .evidence import FINGER_SIZE, FINGERS, HAND_SIZE, PAIR_SIZE, OwnEvidence, own_evidence, pair_evidence

if TYPE_CHECKING:
    from ..prior import TwoHandPrior

__all__ = ["Critics", "Score", "fit_critics", "gather_evidence", "score"]

#: Pairs at once: enough to fill the matrix products, few enough to stay in cache.
CHUNK = 256
_COPIES = 4


@dataclass(frozen=True)
class Score:
    """Plausibility, each in [0, 1]: the share of held-out real pairs that are less usual.

    NaN where there is nothing to judge: `pair` and `placement` need both hands, the others their own.

    Attributes:
        pair: (...) of everything together; the one to filter by.
        placement: (...) of the relative rotation and translation.
        left: (...) of the left hand by itself.
        right: (...) of the right hand by itself.
        left_fingers: (..., 5) index, middle, pinky, ring, thumb.
        right_fingers: (..., 5).
    """

    pair: Tensor
    placement: Tensor
    left: Tensor
    right: Tensor
    left_fingers: Tensor
    right_fingers: Tensor


@dataclass(frozen=True)
class Critics:
    """One critic for each part of a score.

    Raises:
        ValueError: one is not of the wanted shape.
    """

    pair: Critic
    placement: Critic
    hand: Critic
    finger: Critic

    def __post_init__(self) -> None:
        for name, size in (("pair", PAIR_SIZE), ("placement", PAIR_SIZE), ("hand", HAND_SIZE), ("finger", FINGER_SIZE)):
            getattr(self, name).check(name, size, (len(FINGERS),) if name == "finger" else ())

    def tensors(self) -> dict[str, Tensor]:
        """By name, `pair.mean` and so on, to be stored."""
        critics = {field.name: vars(getattr(self, field.name)) for field in fields(self)}
        return {f"{part}.{name}": value for part, critic in critics.items() for name, value in critic.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Critics:
        """Inverse of `tensors`.

        Raises:
            TypeError: a tensor is missing or unknown.
            ValueError: a tensor has a wrong shape.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        return cls(**{name: Critic(**values) for name, values in parts.items()})


@torch.no_grad()
def score(prior: TwoHandPrior, critics: Critics, hands: TwoHands) -> Score:
    """Scores of pairs.

    Args:
        prior: with its denoiser.
        critics: of this prior.
        hands: (N,) pairs of finite numbers; NaN is put where `hands` marks that a hand is missing.

    Returns:
        Tensors (N,) and (N, 5).
    """
    parts = [_score(prior, critics, hands[start : start + CHUNK]) for start in range(0, max(len(hands), 1), CHUNK)]
    return Score(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Score)))


def _score(prior: TwoHandPrior, critics: Critics, hands: TwoHands) -> Score:
    own, pair = _evidence(prior, hands)
    left, right = hands.valid
    both = left & right
    there = lambda valid, value: value.masked_fill(~valid, torch.nan)
    hand, finger = critics.hand.shares(own.hand), critics.finger.shares(own.finger)
    return Score(
        there(both, critics.pair.shares(pair)),
        there(both, critics.placement.shares(pair)),
        there(left, hand[1]),
        there(right, hand[0]),
        there(left[:, None], finger[1]),
        there(right[:, None], finger[0]),
    )


def _evidence(prior: TwoHandPrior, hands: TwoHands) -> tuple[OwnEvidence, Tensor]:
    models = prior.hands if hands.hands is None else hands.hands
    partner, anchor = canonical_pair(prior, hands)
    own = own_evidence(prior, partner)
    return own, pair_evidence(prior, hands, models, partner, anchor, own.logs)


@torch.no_grad()
def fit_critics(prior: TwoHandPrior, hands: TwoHands, seed: int = 0) -> Critics:
    """Critics of a prior, fitted on held-out pairs and on corrupted copies of them.

    Args:
        prior: with its denoiser.
        hands: (N,) clean pairs, N >= 2, on the prior's device; both hands are there.
        seed: of the corruptions and of the critics' start.

    Returns:
        The critics, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    models = prior.hands if hands.hands is None else hands.hands
    real_own, real_pair = gather_evidence(prior, hands)
    # What is not wrong in the eyes of a critic is NaN, and does not count.
    noisy, masks = noisy_fingers(hands, generator)
    wrong_own, _ = gather_evidence(prior, noisy)
    masks = masks.cpu()
    wrong_hand = wrong_own.hand.masked_fill(~masks.any(-1)[..., None, None], torch.nan)
    wrong_finger = wrong_own.finger.masked_fill(~masks[..., None, None], torch.nan)
    far = gather_evidence(prior, strayed(hands, models, torch.Generator().manual_seed(seed)))[1]
    wrong_pair, wrong_placement = [far], [far]
    for _ in range(_COPIES):
        wrong, kind = corrupted(hands, models, generator)
        copy = gather_evidence(prior, wrong)[1]
        wrong_pair.append(copy)
        wrong_placement.append(copy.masked_fill(~(kind.cpu() < PLACEMENT)[:, None, None], torch.nan))
    pairs_first = lambda value: value.transpose(0, 1)
    return Critics(
        fit_critic(real_pair, torch.stack(wrong_pair), seed),
        fit_critic(real_pair, torch.stack(wrong_placement), seed),
        fit_critic(pairs_first(real_own.hand), pairs_first(wrong_hand)[None], seed),
        fit_critic(pairs_first(real_own.finger), pairs_first(wrong_finger)[None], seed, kinds=1),
    )


def gather_evidence(prior: TwoHandPrior, hands: TwoHands) -> tuple[OwnEvidence, Tensor]:
    """Evidence of (N,) pairs, on the CPU in float32."""
    parts = [_evidence(prior, hands[start : start + CHUNK]) for start in range(0, len(hands), CHUNK)]
    own = OwnEvidence(*(torch.cat(part, 1).float().cpu() for part in zip(*(own for own, _ in parts), strict=True)))
    return own, torch.cat([pair for _, pair in parts]).float().cpu()
