"""TwoHandPrior: the denoiser with everything that gives its numbers a meaning.

hand parameters --canonical--> vectors --normaliser--> x --schedule, denoiser--> x0 --> back again
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .calibrating import calibrated
from .canonical import Normalizer, Side, canonical_pair, from_canonical
from .checked import checked_pairs, present
from .denoiser import ConditionalDenoiser
from .guidance.anti_penetration import PairSurfaces
from .guidance.cfg import guided_x0
from .hands import HandPair, load_hands, open_hands
from .params import HandLike, TwoHands
from .plausibility import Calibration, Critics, Score, log_residuals, placement_gate, probe_noise, score
from .prior_files import read_prior, save_prior
from .repair import complete, complete_fingers, refine
from .schedule import CosineSchedule, Schedule, add_noise, check_sigma
from .sds.levels import DEFAULT_SIGMA
from .sds.terms import denoised_pair
from .sds.uncertainty import Uncertainty, measured, placement_trust

__all__ = ["TwoHandPrior"]


class TwoHandPrior(nn.Module):
    """A generative prior over two interacting hands. Made by `load_prior`, or by training.

    Its parameters are frozen (requires_grad False) and it is in evaluation mode; `train.train` thaws its own copy.

    Args:
        denoiser: the network.
        normalizer: statistics of the vectors it was trained on.
        schedule: the noise levels it was trained on.
        hands: hand models that parameters belong to: None, a folder, a pair of smplx layers, or a HandPair (see
            `interhand_prior.hands.load_hands`).
        calibration: quantiles of its residuals on held-out pairs, for the placement gate.
        critics: what `score` asks.
        info: facts about its making (corpus, seed, ...), JSON values; kept in config.json and shown on its card
            (see `card.model_card`), such as "licence", that of the weights.
    """

    probe_noise: Tensor

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        normalizer: Normalizer,
        schedule: Schedule | None = None,
        *,
        hands: Any = None,
        calibration: Calibration | None = None,
        critics: Critics | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.normalizer = normalizer
        self.schedule: Schedule = schedule or CosineSchedule()
        # The hand models are the user's own: not moved, saved or counted with the prior.
        self._hands: list[HandPair] = [open_hands() if hands is None else load_hands(hands)]
        self.calibration = calibration
        self.critics = critics
        self.info: dict[str, Any] = dict(info or {})
        self.register_buffer("probe_noise", probe_noise(self.dtype, self.device), persistent=False)

    @property
    def hands(self) -> HandPair:
        """The hand models that parameters belong to."""
        return self._hands[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.denoiser.null.device

    @property
    def dtype(self) -> torch.dtype:
        """The network's type; results of `sample` have it."""
        return self.denoiser.null.dtype

    def require_calibration(self) -> Calibration:
        """The calibration.

        Raises:
            ValueError: there is none.
        """
        if self.calibration is None:
            raise ValueError(
                "this prior has no calibration: call prior.calibrate(pairs) with held-out pairs, or pass gate=False"
            )
        return self.calibration

    def require_critics(self) -> Critics:
        """What `score` asks.

        Raises:
            ValueError: there are none.
        """
        if self.critics is None:
            raise ValueError(
                "this prior has no critics to score with (it is not calibrated, or was stored by a version without "
                "them): call prior.calibrate(pairs) with held-out pairs"
            )
        return self.critics

    @torch.no_grad()
    def estimate(
        self,
        x_t: Tensor,
        sigma: Tensor,
        anchor: Tensor,
        has_anchor: Tensor | None = None,
        has_relative: Tensor | None = None,
        *,
        cfg_scale: float = 0.0,
    ) -> Tensor:
        """Clean estimate of normalised partners, without gradients.

        Args:
            x_t: (..., 64).
            sigma: (...).
            anchor: (..., 64), normalised.
            has_anchor: (...) bool.
            has_relative: (...) bool, False for a hand alone; see `ConditionalDenoiser.forward`.
            cfg_scale: classifier-free guidance, Eq. 4.

        Returns:
            (..., 64), in x_t's type; the network works in its own.
        """
        return guided_x0(self.denoiser, x_t, sigma, anchor, cfg_scale, has_anchor, has_relative)

    @torch.no_grad()
    def denoise(
        self,
        hands: TwoHands,
        sigma: float = DEFAULT_SIGMA,
        *,
        cfg_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> TwoHands:
        """S of Eq. 9: one forward-reverse step of each hand given the other.

        Args:
            hands: pairs of any batch shape.
            sigma: noise level in (0, 1).
            cfg_scale: classifier-free guidance, Eq. 4.
            generator: of the noise, on the hands' device.

        Returns:
            Pairs in the same frame: the right hand as the prior sees it beside the given left one, and the left
            hand as it sees it beside the given right one.

        Raises:
            ValueError: sigma is out of range; a hand holds NaN, or is on another device than the prior.
        """
        check_sigma(sigma)
        given, hands = hands, checked_pairs(hands)
        partner, anchor = canonical_pair(self, hands)
        noise = torch.randn(partner.shape[1:], generator=generator, device=partner.device, dtype=partner.dtype)
        level = partner.new_tensor(sigma).expand(partner.shape[:-1])
        x0 = self.estimate(add_noise(partner, noise, level), level, anchor, cfg_scale=cfg_scale)
        return replace(denoised_pair(self, hands, x0), extras=given.extras).to(given.dtype)

    def refine(self, hands: TwoHands, **options: Any) -> TwoHands:
        """Pull estimated pairs towards plausible ones and out of each other; see `repair.refine`."""
        return refine(self, hands, **options)

    def complete(self, hand: HandLike, side: Side = "left", num_samples: int = 1, **options: Any) -> TwoHands:
        """Draw partners for one hand that is kept as it is.

        Args:
            hand: HandParams or a mapping, of batch shape () or (num_samples,).
            side: which hand it is.
            num_samples: how many partners.
            options: `samples_each` draws so many partners for every hand of a batch (...), which gives
                (samples_each, ...) pairs (see `interhand_prior.repair.complete`); or of `sample`.

        Returns:
            (num_samples,) pairs in the frame of `hand`.
        """
        return complete(self, hand, side, num_samples, **options)

    def complete_fingers(
        self,
        hands: TwoHands,
        left_missing: Tensor | None = None,
        right_missing: Tensor | None = None,
        num_samples: int = 1,
        **options: Any,
    ) -> TwoHands:
        """Draw missing finger joints, given the others and the other hand; all else is kept, bit for bit.

        Args:
            hands: (...) pairs; what hand_pose holds for missing joints is not read.
            left_missing: bool, (..., 5) by finger (thumb, index, middle, ring, pinky), or (..., 15) by joint in
                MANO's order; None: nothing.
            right_missing: as `left_missing`.
            num_samples: completions of each pair.
            options: see `interhand_prior.repair.complete_fingers`.

        Returns:
            (num_samples, ...) pairs.
        """
        return complete_fingers(self, hands, left_missing, right_missing, num_samples, **options)

    def score(self, hands: TwoHands) -> Score:
        """How plausible pairs are: percentiles against held-out pairs of the training corpus; see `plausibility`.

        Args:
            hands: pairs of any batch shape (...); a hand may be missing (`left_valid`, `right_valid`).

        Returns:
            pair, placement, left and right, each (...), and left_fingers and right_fingers (..., 5), all in [0, 1].
            NaN where there is nothing to judge: of a missing hand, and of pair and placement beside one.

        Raises:
            ValueError: the prior has no critics; a hand that is there holds NaN.
        """
        critics = self.require_critics()
        shape, known = hands.batch_shape, present(hands).reshape(-1)
        found = score(self, critics, known.to(torch.promote_types(hands.dtype, torch.float32)))
        return Score(**{name: value.reshape((*shape, *value.shape[1:])) for name, value in vars(found).items()})

    @torch.no_grad()
    def trust(self, hands: TwoHands, uncertainty: Uncertainty | None = None) -> Tensor:
        """How far `sds_loss` may move the placement of pairs; made once, it is the `gate` of a whole fit.

        Args:
            hands: pairs of any batch shape (...).
            uncertainty: of the pairs, such as `measure` gives. None: that of an ordinary estimate.

        Returns:
            (...) in [0, 1]; see `plausibility.placement_gate` and `sds.uncertainty.placement_trust`.

        Raises:
            ValueError: the prior is not calibrated; a hand holds NaN.
        """
        calibration = self.require_calibration()
        residuals = log_residuals(self, *canonical_pair(self, checked_pairs(hands)))
        if uncertainty is None:
            return placement_gate(calibration, residuals)
        return placement_trust(calibration, residuals, uncertainty)

    @torch.no_grad()
    def measure(self, hands: TwoHands) -> Uncertainty:
        """How uncertain pairs are, by what noise explains their residuals; the `uncertainty` of a whole fit.

        Args:
            hands: pairs of any batch shape (...).

        Returns:
            The uncertainty, each part (...); see `sds.uncertainty.measured`.

        Raises:
            ValueError: the prior is not calibrated, or without a noise table; a hand holds NaN.
        """
        residuals = log_residuals(self, *canonical_pair(self, checked_pairs(hands)))
        return measured(self.require_calibration(), residuals)

    @torch.no_grad()
    def calibrate(
        self,
        pairs: TwoHands,
        *,
        pose_noise: float = 0.1,
        rotation_noise: float = 0.05,
        translation_noise: float = 0.005,
        seed: int = 0,
    ) -> TwoHandPrior:
        """Learn from held-out pairs what is usual: for `trust` and the gate of `sds_loss`, and for `score`.

        The gate's table is of residuals that ordinary estimates have: of the pairs with the noise of an estimate on
        them; what smaller and larger noise does is kept for `measure`. The critics of `score` learn to tell the clean
        pairs from corrupted copies. Some 40 ms a pair on one core.

        Args:
            pairs: (N,) clean pairs, N >= 2; hundreds make good quantiles, thousands good critics.
            pose_noise: standard deviation on hand_pose, radians.
            rotation_noise: on global_orient, radians.
            translation_noise: on transl, metres.
            seed: of the noise, the corrupted copies and the critics' start.

        Returns:
            self.

        Raises:
            ValueError: the pairs are too few, have another batch shape than (N,), or hold NaN.
        """
        noise = {"hand_pose": pose_noise, "global_orient": rotation_noise, "transl": translation_noise}
        self.calibration, self.critics = calibrated(self, pairs, noise, seed)
        return self

    def surfaces(self, anchor_side: Side = "left") -> PairSurfaces:
        """How normalised vectors (..., 64) become meshes in the anchor's frame, for guidance."""
        sides: tuple[Side, Side] = ("left", "right") if anchor_side == "left" else ("right", "left")
        model_a, model_p = getattr(self.hands, sides[0]), getattr(self.hands, sides[1])
        normalizer = self.normalizer

        def anchor(vector: Tensor) -> Tensor:
            physical = normalizer.anchor_inverse(vector)
            pair = from_canonical(physical, physical, self.hands, anchor_side=anchor_side)
            return model_a(getattr(pair, sides[0]))[0]

        def partner(vector: Tensor) -> Tensor:
            physical = normalizer.partner_inverse(vector)
            pair = from_canonical(physical, physical, self.hands, anchor_side=anchor_side)
            return model_p(getattr(pair, sides[1]))[0]

        return PairSurfaces(anchor, partner, model_a.faces.to(self.device), model_p.faces.to(self.device))

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors, whole or not at all, and then a model card, README.md.

        The card is made of what the prior records: data, licences (`prior.info["licence"]` is that of the weights),
        recipe, numbers, limits. A card that is there keeps what a person has written: outside of the made part it stays
        as it is, and one without an untouched made part is left alone.

        Args:
            folder: made if missing.
            dtype: of the stored weights, e.g. torch.float16 to halve them. Default: as they are.

        Returns:
            The folder.
        """
        return save_prior(self, folder, dtype)

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        hands: Any = None,
    ) -> TwoHandPrior:
        """Read what `save_pretrained` wrote; `load_prior` is the way in.

        Raises:
            FileNotFoundError, CheckpointError: the folder does not hold a whole, unchanged prior.
            ValueError: dtype is no floating-point type.
        """
        dtype = dtype or torch.float32
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        hands = None if hands is None else load_hands(hands)
        parts, options = read_prior(folder, dtype)
        return cls(*parts, hands=hands, **options).to(device=device, dtype=dtype)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hugging Face Hub, with a model card, in one commit.

        Args:
            repo_id: "owner/repository".
            options: of `interhand_prior.hub.push_folder`: private, token, revision, commit_message, replace_card.

        Returns:
            The commit hash: `load_prior(repo_id, revision=hash)` is this prior for ever.
        """
        from .hub import push_folder

        with tempfile.TemporaryDirectory() as folder:
            return push_folder(self.save_pretrained(folder), repo_id, **options)
