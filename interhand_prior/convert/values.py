"""Small checks and settings that the converters share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hands import skinning

__all__ = ["as_float", "full_precision", "need", "no_autocast", "shaped"]


def as_float(name: str, value: Any, *shape: int) -> Tensor:
    """A tensor (..., *shape) of floating-point numbers from a tensor, an array or nested lists.

    Raises:
        TypeError: not numbers.
        ValueError: wrong shape.
    """
    try:
        # A copy of an array: it may be read-only, or reversed, which torch does not take.
        tensor = torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers ({error})") from None
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    return shaped(name, full_precision(tensor), *shape)


def shaped(name: str, value: Tensor, *shape: int) -> Tensor:
    """`value`, whose last axes are `shape`.

    Raises:
        ValueError: they are not.
    """
    if tuple(value.shape[max(value.ndim - len(shape), 0) :]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape (..., {wanted}), got {tuple(value.shape)}")
    return value


def full_precision(value: Tensor) -> Tensor:
    """Half precision as float32, the rest as it is: in bfloat16 a place half a metre away is known to 2 mm."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def no_autocast(like: Tensor) -> torch.autocast | nullcontext[None]:
    """Autocast off: products in half precision would move hands by millimetres."""
    return skinning.no_autocast(like.device)


def need(name: str, mapping: Any, keys: tuple[str, ...]) -> Mapping[str, Any]:
    """`mapping`, which has these keys.

    Raises:
        TypeError: it is no mapping.
        ValueError: a key is missing.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{name} must be a mapping with the keys {', '.join(keys)}, got {type(mapping).__name__}")
    missing = [key for key in keys if mapping.get(key) is None]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; it must have {', '.join(keys)}")
    return mapping
