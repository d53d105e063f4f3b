"""The released InterHandGen checkpoint -> a prior's folder, on its owner's machine.

    interhand-prior convert official ckpt.pth --stats FOLDER --mano FOLDER --out prior/

The file is a list [network, optimiser, epoch, step(, average)]; its first entry holds 56 tensors, each key with the
prefix `module.`. The statistics are four .npy files: mano_mean, mano_var (55: PCA coefficients and betas) and rel_mean,
rel_var (9: rotation and translation). Neither is part of this package, nor is what comes out: its weights stay under
whatever terms their owner has them.

Opening the file runs no code: torch's reader of tensors alone takes it, and refuses whatever else is in it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..canonical import SLICES
from ..hands import load_hands
from ..official import OfficialConfig, OfficialDenoiser, OfficialSchedule, PCANormalizer
from ..prior import TwoHandPrior

__all__ = ["convert_official", "coupling", "official_statistics", "read_official", "read_tensors"]

_PREFIX = "module."
#: What torch's reader raises at a file that is cut, changed, or holds what it does not take.
_DAMAGE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError),
    *(LookupError, TypeError, AttributeError, AssertionError, MemoryError),
)
_SIZES = {"mano_mean": 55, "mano_var": 55, "rel_mean": 9, "rel_var": 9}


def convert_official(
    checkpoint: str | os.PathLike[str],
    stats: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    hands: Any = None,
    coupled: bool = False,
) -> TwoHandPrior:
    """Convert the released checkpoint and write it as a prior's folder.

    Args:
        checkpoint: the .pth file.
        stats: folder with mano_mean.npy, mano_var.npy, rel_mean.npy, rel_var.npy.
        out: folder for config.json and model.safetensors.
        hands: whose hands_mean and hands_components the PCA coefficients belong to: a MANO folder, or whatever
            `load_hands` takes. None: the open hand's, whose components are others than MANO's: poses will look
            like hands, but not be those that the network means. A warning says so.
        coupled: attention over the batch, as released; see `interhand_prior.official`.

    Returns:
        The prior, with these hands.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be; the message says what was found. Nothing was written.
    """
    network = read_official(checkpoint, coupled=coupled)
    mean, divisor = official_statistics(stats)
    pair = load_hands(hands)
    right = pair.right.arrays
    if right.hands_mean is None or right.hands_components is None:
        raise ValueError("hands: these models have no hands_mean and hands_components; pass a folder with MANO files")
    if hands is None:
        warnings.warn(
            "no MANO given: the PCA coefficients are read with the open hand's components, which are others. Pass"
            " --mano FOLDER (hands=) to get the poses that the network means.",
            stacklevel=2,
        )
    component = lambda values: torch.from_numpy(np.array(values)).float()
    normalizer = PCANormalizer(mean, divisor, component(right.hands_mean), component(right.hands_components))
    info = {
        "source": "official InterHandGen checkpoint, converted",
        "components": "open hand" if hands is None else "given hands",
        "x0 alone against in batches of 64": coupling(network),
        "licence": "that of the checkpoint; not granted by this package",
    }
    prior = TwoHandPrior(network, normalizer, OfficialSchedule(), hands=pair, info=info)
    prior.save_pretrained(out)
    return prior


@torch.no_grad()
def coupling(network: OfficialDenoiser, size: int = 64) -> float:
    """How much attention over the batch matters to a network: the root mean square of what it changes in x0, as a share
    of x0's, over three levels, for standard normal vectors in batches of `size`.
    """
    x, condition = torch.randn(2, size, network.config.size, generator=torch.Generator().manual_seed(0))
    as_released = copy.copy(network)
    changed = total = 0.0
    for t in (10, 60, 120):
        answers = []
        for coupled in (False, True):
            as_released.config = dataclasses.replace(network.config, coupled=coupled)
            answers.append(as_released(x, torch.full((size,), t), condition))
        changed += float((answers[1] - answers[0]).square().mean())
        total += float(answers[1].square().mean())
    return math.sqrt(changed / total) if total else 0.0


def read_official(path: str | os.PathLike[str], *, coupled: bool = False) -> OfficialDenoiser:
    """The network in a released checkpoint; widths are read off its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint.
    """
    found = read_tensors(path)
    if not isinstance(found, (list, tuple)) or not found or not isinstance(found[0], Mapping):
        raise ValueError(f"{path}: expected a list whose first entry is the network's state dict, got {_said(found)}")
    state = {str(name).removeprefix(_PREFIX): value for name, value in found[0].items()}
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    try:
        config = OfficialConfig(
            embed=state["temb.dense.1.weight"].shape[0],
            hidden=state["fc_output.weight"].shape[1],
            feedforward=state["trans_enc.layers.0.linear1.weight"].shape[0],
            coupled=coupled,
        )
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path}: this is not the two-hand network's state dict ({error} is missing or no matrix)"
        ) from (error)
    with torch.device("meta"):
        network = OfficialDenoiser(config)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items() if name != "null"}
    got = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    if wrong or wanted != got:
        differ = sorted(wrong) or sorted(n for n in {*wanted, *got} if wanted.get(n) != got.get(n))
        raise ValueError(
            f"{path}: {len(differ)} tensors are missing, unknown or of another shape: {', '.join(differ[:5])}"
            f"{' ...' if len(differ) > 5 else ''}"
        )
    bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{path}: NaN or infinity in {', '.join(bad[:5])}; fetch the file again")
    tensors = {name: value.float() for name, value in state.items()}
    network.load_state_dict({**tensors, "null": torch.zeros(config.size)}, assign=True)
    return network


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """What a .pth file holds, where that is tensors and plain containers; no code of the file's is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; pass the .pth checkpoint")
    with path.open("rb"):
        pass  # what the system refuses is its own error, not the file's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's version: what matters is whether it can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} was refused: it is damaged, or holds more than tensors and containers, and such a file can run"
            f" code when it is opened ({reason})"
        ) from error


def official_statistics(folder: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Mean (64,) and divisor (64,), the variance + 1e-6, from the four .npy files.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is no array of the right size, or a variance is negative.
    """
    folder = Path(folder)
    values = {}
    for name, size in _SIZES.items():
        path = folder / f"{name}.npy"
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in folder.glob("*.npy"))) or "no .npy file"
            raise FileNotFoundError(f"{path} is missing ({there} in {folder}); --stats is the folder with all four")
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} is no array of numbers ({error})") from error
        array = np.asarray(array).reshape(-1)
        if array.shape != (size,) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ValueError(f"{path} must hold {size} finite numbers, got {array.dtype} {array.shape}")
        if name.endswith("var") and (array < 0).any():
            raise ValueError(f"{path} holds negative variances")
        values[name] = torch.from_numpy(array.astype(np.float32))
    assert SLICES["own"].stop == _SIZES["mano_mean"]
    mean = torch.cat((values["mano_mean"], values["rel_mean"]))
    return mean, torch.cat((values["mano_var"], values["rel_var"])) + 1e-6


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, list(value)[:3]))} ..."
    return f"{type(value).__name__}"
