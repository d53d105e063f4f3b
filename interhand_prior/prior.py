"""TwoHandPrior: the denoiser with everything that gives its numbers a meaning.

hand parameters --canonical--> vectors --normaliser--> x --schedule, denoiser--> x0 --> back again
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .canonical import SIZE, Normalizer, Side, from_canonical, to_canonical
from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .denoiser import ConditionalDenoiser
from .guidance.anti_penetration import PairSurfaces
from .guidance.cfg import guided_x0
from .hands import HandPair, load_hands, open_hands
from .networks import make_denoiser, network_config, network_facts
from .params import HandLike, HandParams, TwoHands
from .plausibility import Calibration, Score, log_residuals, placement_gate, probe_noise
from .refinement import refine
from .sampling import sample
from .schedule import CosineSchedule, add_noise, check_sigma
from .sds import DEFAULT_SIGMA, canonical_pair

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
        calibration: quantiles of its residuals on held-out pairs.
        info: facts about its making (corpus, seed, ...), JSON values; kept in config.json.
    """

    probe_noise: Tensor

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        normalizer: Normalizer,
        schedule: CosineSchedule | None = None,
        *,
        hands: Any = None,
        calibration: Calibration | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.normalizer = normalizer
        self.schedule = schedule or CosineSchedule()
        # The hand models are the user's own: not moved, saved or counted with the prior.
        self._hands: list[HandPair] = [open_hands() if hands is None else load_hands(hands)]
        self.calibration = calibration
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
        given, hands = hands, _checked(hands)
        models = self.hands if hands.hands is None else hands.hands
        partner, anchor = canonical_pair(self, hands)
        noise = torch.randn(partner.shape[1:], generator=generator, device=partner.device, dtype=partner.dtype)
        level = partner.new_tensor(sigma).expand(partner.shape[:-1])
        x0 = self.estimate(add_noise(partner, noise, level), level, anchor, cfg_scale=cfg_scale)
        x0 = self.normalizer.partner_inverse(x0)
        result = {}
        directions: tuple[tuple[Side, Side], ...] = (("right", "left"), ("left", "right"))
        for index, (side, anchor_side) in enumerate(directions):
            vector, _, frame = to_canonical(hands, models, anchor_side)
            moved = from_canonical(vector, x0[index].to(vector), models, frame, anchor_side)
            result[side] = getattr(moved, side)
        return TwoHands(result["left"], result["right"], given.hands, given.extras).to(given.dtype)

    def refine(self, hands: TwoHands, **options: Any) -> TwoHands:
        """Pull estimated pairs towards plausible ones; see `interhand_prior.refinement.refine`."""
        return refine(self, hands, **options)

    def complete(self, hand: HandLike, side: Side = "left", num_samples: int = 1, **options: Any) -> TwoHands:
        """Draw partners for one hand that is kept as it is.

        Args:
            hand: HandParams or a mapping, of batch shape () or (num_samples,).
            side: which hand it is.
            num_samples: how many partners.
            options: of `sample`.

        Returns:
            (num_samples,) pairs in the frame of `hand`.
        """
        return sample(self, num_samples, given=hand, given_side=side, **options)

    @torch.no_grad()
    def score(self, hands: TwoHands) -> Score:
        """How usual pairs are, against held-out pairs of the training corpus; see `plausibility`.

        Args:
            hands: pairs of any batch shape (...).

        Returns:
            hand_pose and placement, each (...) in [0, 1].

        Raises:
            ValueError: the prior is not calibrated; a hand holds NaN.
        """
        calibration = self.require_calibration()
        partner, anchor = canonical_pair(self, _checked(hands))
        share = calibration.share_above(log_residuals(self, partner, anchor)).mean(-2)
        return Score(share[..., 0], share[..., 1])

    @torch.no_grad()
    def trust(self, hands: TwoHands) -> Tensor:
        """How far `sds_loss` may move the placement of pairs; made once, it is the `gate` of a whole fit.

        Args:
            hands: pairs of any batch shape (...).

        Returns:
            (...) in [0, 1]; see `plausibility.placement_gate`.

        Raises:
            ValueError: the prior is not calibrated; a hand holds NaN.
        """
        calibration = self.require_calibration()
        return placement_gate(calibration, log_residuals(self, *canonical_pair(self, _checked(hands))))

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
        """Learn what residuals ordinary estimates have, from held-out pairs with the noise of an estimate on them.

        Args:
            pairs: (N,) clean pairs, N >= 2; hundreds make good quantiles.
            pose_noise: standard deviation on hand_pose, radians.
            rotation_noise: on global_orient, radians.
            translation_noise: on transl, metres.
            seed: of the noise.

        Returns:
            self.

        Raises:
            ValueError: the pairs are too few, have another batch shape than (N,), or hold NaN.
        """
        if len(pairs.batch_shape) != 1 or len(pairs) < 2:
            raise ValueError(f"pairs must have batch shape (N,) with N >= 2, got {tuple(pairs.batch_shape)}")
        generator = torch.Generator().manual_seed(seed)
        spread = {"hand_pose": pose_noise, "global_orient": rotation_noise, "transl": translation_noise, "betas": 0.0}

        def noisy(hand: HandParams) -> HandParams:
            draw = lambda value: torch.randn(value.shape, generator=generator).to(value)
            return HandParams(**{name: value + spread[name] * draw(value) for name, value in hand.as_dict().items()})

        residuals = []
        for start in range(0, len(pairs), 1024):
            part = pairs[start : start + 1024]
            part = _checked(TwoHands(noisy(part.left), noisy(part.right), part.hands)).to(self.device)
            residuals.append(log_residuals(self, *canonical_pair(self, part)).cpu())
        self.calibration = Calibration.fit(torch.cat(residuals))
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
        """Write config.json and model.safetensors, whole or not at all.

        Args:
            folder: made if missing.
            dtype: of the stored weights, e.g. torch.float16 to halve them. Default: as they are.

        Returns:
            The folder.
        """
        tensors = {k: v.to(dtype) if dtype else v for k, v in self.denoiser.state_dict(prefix="denoiser.").items()}
        tensors |= {f"normalizer.{k}": v for k, v in self.normalizer.state_dict().items()}
        if self.calibration is not None:
            tensors["calibration.table"] = self.calibration.table
        config = {
            "denoiser": network_facts(self.denoiser.config),
            "schedule": {"name": "cosine", "min_alpha_bar": self.schedule.min_alpha_bar},
            "vector": SIZE,
            "info": self.info,
        }
        return write_checkpoint(folder, config, tensors)

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
        config, tensors = read_checkpoint(folder)
        try:
            schedule = dict(config["schedule"])
            if schedule.pop("name") != "cosine" or config["vector"] != SIZE:
                raise ValueError(f"schedule {config['schedule']} with vectors of {config['vector']}")
            # Without memory or random numbers: whoever loads a prior finds torch's generators as they were.
            with torch.device("meta"):
                denoiser = make_denoiser(network_config(config["denoiser"]))
            parts: dict[str, dict[str, Tensor]] = {"denoiser": {}, "normalizer": {}, "calibration": {}}
            for name, value in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = value.to(dtype if part == "denoiser" else torch.float32)
            denoiser.load_state_dict(parts["denoiser"], assign=True)
            normalizer = Normalizer(**parts["normalizer"])
            calibration = Calibration(**parts["calibration"]) if parts["calibration"] else None
            facts = {"calibration": calibration, "info": config["info"]}
            prior = cls(denoiser, normalizer, CosineSchedule(**schedule), hands=hands, **facts)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} is no prior of this version ({error}); save it again with this version or upgrade"
            ) from error
        return prior.to(device=device, dtype=dtype)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hugging Face Hub; for the options see `interhand_prior.hub.push_folder`.

        Returns:
            The commit hash: `load_prior(repo_id, revision=hash)` is this prior for ever.
        """
        import tempfile

        from .hub import push_folder

        with tempfile.TemporaryDirectory() as folder:
            return push_folder(self.save_pretrained(folder), repo_id, **options)


def _checked(hands: TwoHands) -> TwoHands:
    """Both hands there, without NaN, and in float32 at least."""
    if any(mask is not None and not bool(mask.all()) for mask in (hands.left_valid, hands.right_valid)):
        raise ValueError(
            "hands: a hand is missing in some pairs. Choose those that have both: left, right = hands.valid;"
            " hands[left & right]. sds_loss and refine take hands alone."
        )
    left, right = HandParams.coerce(hands.left, "hands.left"), HandParams.coerce(hands.right, "hands.right")
    return TwoHands(left, right, hands.hands).to(torch.promote_types(hands.dtype, torch.float32))
