"""The data sets that can be read, by name."""

from __future__ import annotations

from .arctic import ARCTIC
from .base import DataSet
from .h2o import H2O
from .hic import HIC
from .hot3d import HOT3D
from .intaghand import INTAGHAND
from .interhand26m import INTERHAND26M
from .reinterhand import REINTERHAND

__all__ = ["DATASETS", "dataset_named"]

DATASETS: dict[str, DataSet] = {
    item.name: item for item in (INTERHAND26M, INTAGHAND, ARCTIC, HIC, H2O, HOT3D, REINTERHAND)
}


def dataset_named(name: str) -> DataSet:
    """The data set of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in DATASETS:
        raise ValueError(f"{name!r} is no data set that is known here; choose from {', '.join(DATASETS)}")
    return DATASETS[name]
