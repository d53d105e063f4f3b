"""A TwoHandPrior as a checkpoint folder: which of its parts are tensors, and what config.json says of the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .canonical import SIZE, Normalizer
from .card import model_card, write_card
from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .denoiser import ConditionalDenoiser
from .networks import make_denoiser, network_config, network_facts
from .official import OfficialSchedule, PCANormalizer
from .plausibility import Calibration, Critics
from .schedule import CosineSchedule, Schedule

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["SCHEDULES", "read_prior", "save_prior"]

SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (CosineSchedule, OfficialSchedule)}
"""By the name in config.json."""

_PARTS = ("denoiser", "normalizer", "calibration", "critics")


def save_prior(prior: TwoHandPrior, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write config.json, model.safetensors and README.md; see `TwoHandPrior.save_pretrained`."""
    state = prior.denoiser.state_dict(prefix="denoiser.")
    tensors: dict[str, Tensor] = {name: value.to(dtype) if dtype else value for name, value in state.items()}
    tensors |= prior.normalizer.state_dict(prefix="normalizer.")
    if prior.calibration is not None:
        tables = vars(prior.calibration)
        tensors |= {f"calibration.{name}": value for name, value in tables.items() if value is not None}
    if prior.critics is not None:
        tensors |= {f"critics.{name}": value for name, value in prior.critics.tensors().items()}
    config = {
        "denoiser": network_facts(prior.denoiser.config),
        "schedule": prior.schedule.facts(),
        "vector": SIZE,
        "info": prior.info,
    }
    card = model_card(prior)
    path = write_checkpoint(folder, config, tensors)
    write_card(path, card)
    return path


def read_prior(
    folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32
) -> tuple[tuple[ConditionalDenoiser, Normalizer, Schedule], dict[str, Any]]:
    """Read what `save_prior` wrote.

    Args:
        folder: of the checkpoint.
        dtype: of the network's weights; everything else is float32.

    Returns:
        Network, normaliser and schedule; and calibration, critics and info, by the names of TwoHandPrior's arguments.

    Raises:
        FileNotFoundError, CheckpointError: the folder does not hold a whole, unchanged prior.
    """
    config, tensors = read_checkpoint(folder)
    try:
        schedule = dict(config["schedule"])
        name = schedule.pop("name")
        if name not in SCHEDULES or config["vector"] != SIZE:
            raise ValueError(f"schedule {config['schedule']} with vectors of {config['vector']}")
        # Without memory or random numbers: whoever loads a prior finds torch's generators as they were.
        with torch.device("meta"):
            denoiser = make_denoiser(network_config(config["denoiser"]))
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value.to(dtype if part == "denoiser" else torch.float32)
        denoiser.load_state_dict(parts["denoiser"], assign=True)
        kind = PCANormalizer if "components" in parts["normalizer"] else Normalizer
        options = {
            "calibration": Calibration(**parts["calibration"]) if parts["calibration"] else None,
            "critics": Critics.of_tensors(parts["critics"]) if parts["critics"] else None,
            "info": dict(config["info"]),
        }
        return (denoiser, kind(**parts["normalizer"]), SCHEDULES[name](**schedule)), options
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} is no prior of this version ({error}); save it again with this version or upgrade"
        ) from error
