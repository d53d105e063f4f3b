"""The reference: features of a test split, kept so that evaluation needs neither its meshes nor another hour.

A reference belongs to the feature network that made it. Features of another one have other axes, and every distance to
them is a number without meaning: so the network's identity is stored and compared. Features are kept in float16, whose
rounding (1 part in 2000 of each value) changes the distances less than the draw of the test split does; they are
rounded when a reference is made, so that a stored one gives exactly the numbers of a new one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..hands import HandPair
from ..params import TwoHands
from ..progress import progress_bar
from .contact import CONTACT, MeasureContact, measure_contact, summarise
from .inputs import check_features, require_both_hands

__all__ = ["BUNDLED_FOLDER", "FeatureFunction", "Reference", "compute_features", "hands_identity", "load_reference"]

KIND = "reference"
BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / "reference"
_CHUNK = 512

#: Pairs (N,) -> features (N, D), each row from its own pair alone. Its `identity`, if it has one, names it.
FeatureFunction = Callable[[TwoHands], Tensor]
Source = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Features and contact statistics of real (or held-out) pairs.

    Attributes:
        features: (M, D) float32, M >= 2; values that float16 holds exactly, see `from_pairs`.
        identity: of the feature function that made them; None if it has none.
        hands: of the hand models the pairs belong to, see `hands_identity`; None if unknown.
        contact: by metric (`interhand_prior.metrics.contact.CONTACT`), what `summarise` gives.
        info: how it was made; JSON values.

    Raises:
        TypeError, ValueError: the features have a wrong shape, hold NaN or do not fit into float16.
    """

    features: Tensor
    identity: str | None = None
    hands: str | None = None
    contact: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_features(self.features)
        rounded = self.features.detach().cpu().half()
        if not torch.isfinite(rounded).all():
            raise ValueError(
                f"features reach {float(self.features.abs().max()):.3g}, which float16 cannot hold; scale the feature"
                " function's output down"
            )
        object.__setattr__(self, "features", rounded.float())
        unknown = sorted(set(self.contact) - set(CONTACT))
        if unknown:
            raise ValueError(f"contact holds {', '.join(unknown)}; it may hold {', '.join(CONTACT)}")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.features)

    @property
    def dimension(self) -> int:
        """D of the features."""
        return self.features.shape[1]

    @classmethod
    def from_pairs(
        cls,
        pairs: TwoHands,
        features: FeatureFunction,
        *,
        contact: bool | Sequence[str] = True,
        measure: MeasureContact = measure_contact,
        info: Mapping[str, Any] | None = None,
        workers: int | None = None,
        progress: bool = False,
    ) -> Reference:
        """Measure pairs.

        Args:
            pairs: any batch shape, at least 2 pairs.
            features: the feature function.
            contact: contact statistics to keep: all, none, or their names.
            measure: how contact is measured.
            info: anything worth knowing about the pairs; JSON values.
            workers: processes for the volumes.
            progress: show bars.

        Raises:
            TypeError, ValueError: the features have a wrong shape or are not finite.
        """
        pairs = pairs.reshape(-1)
        names = (CONTACT if contact else ()) if isinstance(contact, bool) else tuple(contact)
        rows = compute_features(features, pairs, name="reference", progress=progress)
        values = measure(pairs, names, workers=workers, progress=progress) if names else {}
        return cls(
            rows,
            getattr(features, "identity", None),
            hands_identity(pairs.model),
            {name: summarise(value) for name, value in values.items()},
            dict(info or {}),
        )

    def save(self, folder: Source) -> Path:
        """Write a checkpoint folder, whole or not at all.

        Raises:
            CheckpointError: `info` is not JSON.
            OSError: the folder cannot be written.
        """
        config = {
            "identity": self.identity,
            "hands": self.hands,
            "contact": {name: dict(value) for name, value in self.contact.items()},
            "info": dict(self.info),
        }
        return write_checkpoint(folder, config, {"features": self.features.half()}, kind=KIND)

    @classmethod
    def load(cls, folder: Source) -> Reference:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such folder.
            CheckpointError: it is damaged or not a reference.
        """
        config, tensors = read_checkpoint(folder, kind=KIND)
        if set(config) != {"identity", "hands", "contact", "info"} or set(tensors) != {"features"}:
            raise CheckpointError(
                f"reference: {folder} holds {sorted(config)} and {sorted(tensors)}; another version of interhand_prior"
                " wrote it. Make it again with `interhand-prior evaluate --save-reference`."
            )
        try:
            return cls(tensors["features"].float(), **config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"reference: {folder}: {error}") from error

    def check_features(self, function: FeatureFunction) -> None:
        """Refuse a feature function that did not make this reference.

        Raises:
            ValueError: the identities differ.
        """
        identity = getattr(function, "identity", None)
        if identity != self.identity:
            raise ValueError(
                f"features: this network is {_name(identity)} but the reference was made with {_name(self.identity)}."
                " Pass that network, or the reference's pairs instead of the stored reference"
            )


def load_reference(source: Source = "bundled") -> Reference:
    """A stored reference.

    Args:
        source: "bundled" (the test split of the synthetic corpus, for the bundled feature network) or a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is damaged or not a reference.
    """
    if source != "bundled":
        return Reference.load(source)
    if not BUNDLED_FOLDER.is_dir():
        raise FileNotFoundError(
            "this installation holds no bundled reference; pass pairs or a reference folder instead, which"
            " `interhand-prior evaluate --reference PAIRS --save-reference FOLDER` makes"
        )
    return Reference.load(BUNDLED_FOLDER)


def compute_features(
    function: FeatureFunction, pairs: TwoHands, *, name: str = "samples", progress: bool = False
) -> Tensor:
    """Features of many pairs, a few hundred at a time, on the CPU.

    Args:
        function: the feature function.
        pairs: batch shape (N,).
        name: how to call the pairs on the bar and in errors.
        progress: show a bar.

    Returns:
        (N, D) float32.

    Raises:
        TypeError, ValueError: not a tensor (N, D), or NaN or infinity in it; a hand is missing.
    """
    require_both_hands(pairs, name)
    parts = []
    with torch.no_grad(), progress_bar(len(pairs), f"features of the {name}", "pair", progress) as advance:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            rows = function(chunk)
            check_features(rows, f"features({name})", at_least=len(chunk))
            if len(rows) != len(chunk):
                raise ValueError(
                    f"features({name}) gave {len(rows)} rows for {len(chunk)} pairs; one for each is needed"
                )
            parts.append(rows.detach().cpu().float())
            advance(len(chunk))
    return torch.cat(parts)


def hands_identity(hands: HandPair) -> str:
    """A short hash of the hand models' rest joints, to tell the open hand from MANO."""
    rest = torch.stack([hand.rest_joints(torch.zeros(10, dtype=torch.float64)) for hand in (hands.left, hands.right)])
    return hashlib.sha256(str((1e5 * rest).round().long().tolist()).encode()).hexdigest()[:16]


def _name(identity: str | None) -> str:
    return "one without an identity" if identity is None else repr(identity[:24])
