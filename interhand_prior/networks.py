"""Denoisers by name, as a prior's config.json and the command line know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .denoiser import ConditionalDenoiser, Denoiser, DenoiserConfig
from .official import OfficialConfig, OfficialDenoiser
from .token_denoiser import TokenDenoiser, TokenDenoiserConfig

__all__ = ["NETWORKS", "NEW_NETWORKS", "NetworkConfig", "make_denoiser", "network_config", "network_facts"]

NetworkConfig = DenoiserConfig | TokenDenoiserConfig | OfficialConfig

NETWORKS: dict[str, tuple[type[Any], type[ConditionalDenoiser]]] = {
    "layers": (DenoiserConfig, Denoiser),
    "tokens": (TokenDenoiserConfig, TokenDenoiser),
    "official": (OfficialConfig, OfficialDenoiser),
}
"""Name -> widths, network: "layers" is the paper's Figure 2, "tokens" the bundled prior's, "official" a converted
checkpoint's."""

NEW_NETWORKS: tuple[str, ...] = ("layers", "tokens")
"""Those that a new prior is made with."""


def make_denoiser(config: NetworkConfig | None = None) -> ConditionalDenoiser:
    """A network with fresh weights; None: the bundled prior's widths.

    Raises:
        TypeError: config is of no known network.
    """
    config = TokenDenoiserConfig() if config is None else config
    for kind, network in NETWORKS.values():
        if type(config) is kind:
            return network(config)
    raise TypeError(f"network must be one of {_kinds()}, got {type(config).__name__}")


def network_facts(config: NetworkConfig) -> dict[str, Any]:
    """The network's name and widths, JSON values."""
    name = next((name for name, (kind, _) in NETWORKS.items() if type(config) is kind), type(config).__name__)
    return {"network": name, **dataclasses.asdict(config)}


def network_config(facts: Mapping[str, Any]) -> NetworkConfig:
    """Inverse of `network_facts`. Without a name it is the paper's network.

    Raises:
        ValueError: there is no such network, or a width is impossible.
        TypeError: there is no such width.
    """
    widths = dict(facts)
    name = widths.pop("network", "layers")
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name][0](**widths)


def _kinds() -> str:
    return ", ".join(kind.__name__ for kind, _ in NETWORKS.values())
