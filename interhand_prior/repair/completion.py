"""Drawing what is missing of a pair: a whole hand, by `sample`, or fingers, given all that is there.

Fingers: RePaint (Lugmayr et al., CVPR 2022) in the canonical vectors. A sample comes down the levels sigma_K > ... > 0.
At each, the known entries of x_t are noised afresh from what they are, the missing ones are the sample's own,

    x_t = known ? sqrt(alpha_bar) x + sigma eps : x_t,

the denoiser estimates x0, and an ancestral step goes to the next level. Known and missing entries then come from
different draws and do not fit; so from each level the sample is noised back to the one before and comes down again,
`resample` times in all, before it goes on.

Both hands are denoised at once, each beside the other's current estimate (its own known fingers are exact). So
fingers may be missing on both. What is left of penetration is taken away at the end by moving drawn joints alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..canonical import SIZE, SLICES, Side, canonical_pair, without_place
from ..checked import present
from ..params import FIELDS, HandLike, HandParams, TwoHands
from ..rotations import mirror_axis_angle
from ..sampling import check_draws, chosen_generator, sample
from .separation import joined, separate_pairs, split

if TYPE_CHECKING:
    from ..prior import TwoHandPrior

__all__ = ["FINGERS", "complete", "complete_fingers"]

#: The order of a mask by finger.
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
#: Where they are among the blocks of hand_pose: index, middle, pinky, ring, thumb.
_BLOCKS = [FINGERS.index(name) for name in ("index", "middle", "pinky", "ring", "thumb")]
_SEPARATING = 20


def complete(
    prior: TwoHandPrior,
    hand: HandLike,
    side: Side = "left",
    num_samples: int = 1,
    *,
    samples_each: int | None = None,
    **options: Any,
) -> TwoHands:
    """Draw partners for hands that are kept as they are.

    Args:
        prior: from `load_prior`.
        hand: HandParams or a mapping, of batch shape () or (num_samples,); with `samples_each` of any (...).
        side: which hand it is.
        num_samples: how many partners of one hand, or of so many hands one partner each.
        samples_each: how many partners of every hand of a batch.
        options: of `sample`.

    Returns:
        (num_samples,) pairs, or (samples_each, ...), in the frame of `hand`.

    Raises:
        ValueError: num_samples and samples_each are both given; anything that `sample` refuses.
    """
    if samples_each is None:
        return sample(prior, num_samples, given=hand, given_side=side, **options)
    if num_samples != 1:
        raise ValueError("num_samples and samples_each are both given; pass one of them")
    if not isinstance(samples_each, int) or samples_each < 1:
        raise ValueError(f"samples_each must be a positive integer, got {samples_each!r}")
    hand = HandParams.coerce(hand, "hand")
    batch = hand.batch_shape
    if not batch.numel():
        raise ValueError(f"hand has batch shape {tuple(batch)}: there is none to complete")
    # Hands first: the noise of the first ones does not depend on how many follow.
    rows = hand.map(lambda value: value.reshape(-1, 1, value.shape[-1]).expand(-1, samples_each, -1).flatten(0, 1))
    pairs = sample(prior, len(rows.betas), given=rows, given_side=side, **options)
    turned = lambda value: value.unflatten(0, (-1, samples_each)).transpose(0, 1)
    return pairs.map(lambda value: turned(value).reshape(samples_each, *batch, value.shape[-1]))


@torch.no_grad()
def complete_fingers(
    prior: TwoHandPrior,
    hands: TwoHands,
    left_missing: Tensor | None = None,
    right_missing: Tensor | None = None,
    num_samples: int = 1,
    *,
    steps: int = 15,
    resample: int = 3,
    cfg_scale: float = 0.0,
    penetration_scale: float = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> TwoHands:
    """Draw the missing finger joints of pairs; everything else is kept, bit for bit.

    Args:
        prior: from `load_prior`.
        hands: (...) pairs; where a hand is missing altogether the other one's fingers are drawn without it. What
            hand_pose holds for missing joints is not read (it may be NaN).
        left_missing: bool, (..., 5) by finger (thumb, index, middle, ring, pinky), or (..., 15) by joint in MANO's
            order; a mask without batch axes is for all pairs. None: nothing is missing.
        right_missing: as `left_missing`.
        num_samples: completions of each pair.
        steps: levels.
        resample: how often each level is gone through; 1 is quicker, but fingers fit together less.
        cfg_scale: classifier-free guidance, Eq. 4.
        penetration_scale: 1 moves drawn joints out of the other hand, 0 does not.
        seed: of a private generator. A pair's completions depend on it and on the pair's place in the batch only.
        generator: to draw from instead, on the CPU. With neither, torch's own generator is drawn from.

    Returns:
        (num_samples, ...) pairs in the frame and type of `hands`, with their extras left out.

    Raises:
        TypeError, ValueError: a mask does not fit; a number is out of range; a known joint holds NaN.
    """
    check_draws({"num_samples": num_samples, "steps": steps, "resample": resample}, cfg_scale, penetration_scale)
    generator = chosen_generator(seed, generator)
    missing = torch.stack([_by_entry(hands, *one) for one in (("left", left_missing), ("right", right_missing))])
    known = _without(hands, missing)

    # (2, N, 1, 64): the right hand beside the left one, and the left one beside the right one.
    partner, anchor = (v.reshape(2, -1, 1, SIZE) for v in canonical_pair(prior, known))
    drawn = torch.zeros_like(partner, dtype=torch.bool)
    drawn[..., SLICES["hand_pose"]] = missing.flip(0).reshape(2, -1, 1, 45)
    paired = torch.stack(known.valid).all(0).reshape(-1, 1)
    partner = without_place(partner, paired)
    pose = _drawn(prior, partner, anchor, drawn, paired, num_samples, steps, resample, cfg_scale, generator)

    # Back to each hand's own convention, (left, right): (2, S, ..., 45).
    pose = pose.flip(0).transpose(1, 2).reshape(2, num_samples, *hands.batch_shape, 45)
    found = _with_poses(known, missing, (mirror_axis_angle(pose[0]), pose[1]))
    if penetration_scale:
        found = _apart(prior, found, missing, penetration_scale)
    # The given numbers themselves, not what became of them in full precision.
    return _with_poses(hands, missing, (found.left.hand_pose, found.right.hand_pose))


def _with_poses(hands: TwoHands, missing: Tensor, poses: tuple[Tensor, Tensor]) -> TwoHands:
    """Pairs (S, ...) from pairs (...): hand_pose of (left, right), (S, ..., 45), where it is missing (2, ..., 45)."""
    shape = poses[0].shape[:-1]

    def one(hand: HandParams, gone: Tensor, pose: Tensor) -> HandParams:
        drawn = torch.where(gone, pose.to(hand.dtype), hand.hand_pose)
        return HandParams(**{**hand.expand(*shape).as_dict(), "hand_pose": drawn})

    masks = {name: getattr(hands, name) for name in ("left_valid", "right_valid")}
    masks = {name: None if mask is None else mask.expand(shape) for name, mask in masks.items()}
    left, right = one(hands.left, missing[0], poses[0]), one(hands.right, missing[1], poses[1])
    return TwoHands(left, right, hands.hands, **masks)


def _drawn(
    prior: TwoHandPrior,
    partner: Tensor,
    anchor: Tensor,
    drawn: Tensor,
    paired: Tensor,
    num_samples: int,
    steps: int,
    resample: int,
    cfg_scale: float,
    generator: torch.Generator,
) -> Tensor:
    """Hand poses (2, N, S, 45) in right-hand form, radians."""
    shape = (2, partner.shape[1], num_samples, SIZE)
    draws = torch.Generator()

    def noise() -> Tensor:
        # Begun anew each time, pairs first: the numbers of a pair do not depend on how many follow it.
        draws.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        rows = torch.randn(shape[1], 2, num_samples, SIZE, generator=draws)
        return rows.transpose(0, 1).to(partner)

    partner, anchor, drawn = (value.expand(shape) for value in (partner, anchor, drawn))
    paired = paired.expand(shape[:-1])
    own = SLICES["own"].stop
    x, x0 = noise(), torch.where(drawn, torch.zeros_like(partner), partner)
    levels = prior.schedule.steps(steps)
    for now, after in pairwise(levels):
        a, b = math.sqrt(1 - now * now), math.sqrt(1 - after * after)
        for again in reversed(range(resample if after else 1)):
            x_t = torch.where(drawn, x, a * partner + now * noise())
            beside = torch.cat((x0.flip(0)[..., :own], anchor[..., own:]), -1)
            level = partner.new_tensor(now).expand(shape[:-1])
            x0 = torch.where(drawn, prior.estimate(x_t, level, beside, paired, paired, cfg_scale=cfg_scale), partner)
            if not after:
                break
            spread = after / now * math.sqrt(1 - (a / b) ** 2)
            x = b * x0 + math.sqrt(after * after - spread * spread) * (x_t - a * x0) / now + spread * noise()
            if again:
                x = a / b * x + math.sqrt(1 - (a / b) ** 2) * noise()
    return prior.normalizer.partner_inverse(x0)[..., SLICES["hand_pose"]]


def _apart(prior: TwoHandPrior, hands: TwoHands, missing: Tensor, scale: float) -> TwoHands:
    """The drawn joints moved out of the other hand."""
    spread = prior.normalizer.std[SLICES["hand_pose"]].to(missing.device, hands.dtype)
    rows = {name: torch.zeros(*missing.shape[:-1], width).to(spread) for name, width in FIELDS.items()}
    rows["hand_pose"] = torch.where(missing, spread, torch.zeros_like(spread))
    std = torch.cat(list(rows.values()), -1).movedim(0, -2)
    models = prior.hands if hands.hands is None else hands.hands
    centre = joined(hands)
    with torch.inference_mode(False):
        moves = separate_pairs(torch.zeros_like(centre), hands, std, models, steps=_SEPARATING, scale=scale)
    left, right = split(centre + std * moves)
    return replace(hands, left=left, right=right)


def _without(hands: TwoHands, missing: Tensor) -> TwoHands:
    """The pairs with zeros for what is not there, in full precision."""
    blank = lambda hand, gone: HandParams(
        **{**hand.as_dict(), "hand_pose": torch.where(gone, torch.zeros_like(hand.hand_pose), hand.hand_pose)}
    )
    bare = replace(hands, left=blank(hands.left, missing[0]), right=blank(hands.right, missing[1]), extras={})
    return present(bare.detach().to(torch.promote_types(hands.dtype, torch.float32)))


def _by_entry(hands: TwoHands, side: str, mask: Tensor | None) -> Tensor:
    """A mask as (..., 45), in the order of hand_pose."""
    shape = tuple(hands.batch_shape)
    if mask is None:
        return torch.zeros(*shape, 45, dtype=torch.bool, device=hands.device)
    wanted = f"{side}_missing must be a bool tensor of shape (..., 5) by finger or (..., 15) by joint"
    if not isinstance(mask, Tensor):
        raise TypeError(f"{wanted}, got {type(mask).__name__}")
    if mask.dtype != torch.bool or mask.ndim < 1 or mask.shape[-1] not in (5, 15):
        raise ValueError(f"{wanted}, got {mask.dtype} {tuple(mask.shape)}")
    if mask.shape[:-1] not in ((), shape) or mask.device != hands.device:
        raise ValueError(
            f"{wanted}, with the batch shape {shape} of the hands or none, on {hands.device}; "
            f"got {tuple(mask.shape)} on {mask.device}"
        )
    if mask.shape[-1] == 5:
        mask = mask[..., _BLOCKS].repeat_interleave(3, -1)
    return mask.repeat_interleave(3, -1).expand(*shape, 45)
