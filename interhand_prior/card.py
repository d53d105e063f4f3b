"""The model card of a prior: README.md beside its weights, made of what the prior records about itself.

A card has front matter (YAML between two lines `---`, which the Hub reads) and Markdown. What is made here stands
between two comments, the first of which carries a hash of it, and is made anew whenever the prior is saved or pushed.
What a person has written is kept:

    no card, or one without text     the made part is put in; front matter that is there stays, missing keys are added
    a made part as it was made       it is made anew; text outside of it and the front matter stay
    anything else                    is a person's card, or a made part that somebody has edited: it is left alone

The one thing that is changed in a person's front matter is `license: unknown`, once the prior records a licence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .files import write_atomically
from .networks import network_facts

if TYPE_CHECKING:
    from .prior import TwoHandPrior

__all__ = ["CARD_NAME", "card_to_send", "model_card", "renewed_card", "write_card"]

CARD_NAME = "README.md"
UNKNOWN = "unknown"

_FRONT = re.compile(r"\A\s*---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"([A-Za-z_][\w-]*)[ \t]*:")
_UNKNOWN_LICENCE = re.compile(rf"^license:[ \t]*{UNKNOWN}[ \t]*$", re.MULTILINE)
_START = (
    "<!-- interhand_prior made this part ({hash}) and makes it anew when the prior is saved: write outside of it -->"
)
_END = "<!-- interhand_prior made this part up to here -->"
_MADE = re.compile(
    rf"^{re.escape(_START).replace(re.escape('{hash}'), '([0-9a-f]{16})')}\n(.*?\n){re.escape(_END)}$",
    re.DOTALL | re.MULTILINE,
)

#: The Hub's identifiers of licences that people give weights; every other licence is "other" to it.
_IDENTIFIER = re.compile(
    r"mit|apache-2\.0|isc|zlib|unlicense|afl-3\.0|artistic-2\.0|c-uda|odbl|mpl-2\.0|bsl-1\.0|bsd|bsd-[23]-clause|cc"
    r"|a?gpl-3\.0|gpl|gpl-2\.0|lgpl|lgpl-2\.1|lgpl-3\.0|cc0-1\.0|cc-by-(2\.0|2\.5|3\.0)|cc-by-(nc-|sa-|nc-sa-|nc-nd-)3\.0"
    r"|cc-by-(nc-|sa-|nd-|nc-sa-|nc-nd-)?4\.0|openrail(\+\+)?|(bigscience|creativeml)-openrail-m|unknown|other"
)

_HEAD = """
# A prior over two interacting hands

A denoising diffusion model of one hand given the other{alone} (InterHandGen, CVPR 2024), in
the parameters of a hand model. It regularises fits and networks (`sds_loss`), samples pairs, completes them and says
how plausible they are.

```python
from interhand_prior import load_prior, sample

prior = load_prior({where})  # {note}
sample(prior, 16, seed=0).export("hands.glb")
```
"""


def model_card(prior: TwoHandPrior, where: str | None = None) -> str:
    """A whole card: front matter and Markdown that say what was trained on what and how, how it did, and its limits.

    Args:
        prior: what its `info` holds is shown, mappings as sections of their own. `info["licence"]` is that of the
            weights: one of the Hub's identifiers, such as "cc-by-nc-4.0", or a sentence; `info["data"]` may hold
            "data sets", "licence" and "hands". What is not recorded is called unknown.
        where: the repository; None: the card is of a folder.
    """
    info = dict(prior.info)
    data = info.pop("data", {})
    data = dict(data) if isinstance(data, Mapping) else {"data sets": data}
    licence = info.pop("licence", None)
    sections = {name: info.pop(name) for name, value in list(info.items()) if isinstance(value, Mapping)}
    # Keep the recipe last: it is the longest.
    sections |= {name: sections.pop(name) for name in ("config", "init") if name in sections}
    count = sum(parameter.numel() for parameter in prior.denoiser.parameters())
    facts = {
        "parameters": count,
        **info,
        "calibrated": prior.calibration is not None,
        "score": prior.critics is not None,
    }
    licences = {"weights": licence or UNKNOWN, "data": data.pop("licence", None) or UNKNOWN}
    if "init" in sections:
        licences["prior that it was fine-tuned from"] = sections["init"].get("licence") or UNKNOWN
    known = {"data sets": data.pop("data sets", None) or UNKNOWN, "hands": data.pop("hands", None) or UNKNOWN}

    note = "this folder, or the repository that holds it" if where is None else "revision=... pins a commit"
    alone = ", and of a hand without the other" if prior.denoiser.config.alone else ""
    text = [_HEAD.format(alone=alone, where=json.dumps(where or "PATH"), note=note)]
    text += ["## Licence", "", *_table(licences), ""]
    if any(UNKNOWN in str(value) for value in licences.values()):
        text += ["Unknown means that it was not recorded. Ask whoever trained this before you use or share it.", ""]
    text += ["## Data", "", *_table(known | data), "", "## Limits", "", *_limits(prior, str(known["hands"])), ""]
    text += ["## Facts", "", *_table(facts), "", "Network:", "", *_table(network_facts(prior.denoiser.config))]
    text += ["", "Noise levels:", "", *_table(prior.schedule.facts())]
    for name, values in sections.items():
        text += ["", f"## {_TITLES.get(name, _shown(name[:1].upper() + name[1:]))}", "", *_table(values)]
    return _front(licence) + "\n" + _marked("\n" + "\n".join(text).strip() + "\n\n") + "\n"


_TITLES = {"config": "Recipe", "init": "Fine-tuned from"}


def renewed_card(old: str | None, new: str) -> str:
    """The card that takes the place of another; see the module's docstring.

    Args:
        old: the text that stands there; None: there is no card.
        new: what `model_card` makes now.

    Returns:
        `new`, a mixture, or `old` itself.
    """
    if old is None or not old.strip():
        return new
    theirs, ours = _parts(old.replace("\r\n", "\n")), _parts(new)
    if theirs.made is None:
        return old if theirs.before.strip() else _completed(theirs.front, ours.front) + "\n" + ours.made_text() + "\n"
    front = ours.front if theirs.front is None else _licensed(theirs.front, ours.front)
    return _fenced(front) + theirs.before + ours.made_text() + theirs.after


def write_card(folder: Path, new: str) -> None:
    """Put a card into a folder, keeping what a person has written there."""
    path = folder / CARD_NAME
    old = read_card(path)
    card = renewed_card(old, new)
    if card != old:
        write_atomically(path, card.encode("utf-8", "surrogateescape"))


def read_card(path: Path) -> str | None:
    """The text of a card, or None. Bytes that are no text survive being written again."""
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def card_to_send(local: str | None, stored: str | None, new: str, *, replace: bool | None = None) -> str:
    """The card for a repository that may have one.

    Args:
        local: the folder's.
        stored: the repository's.
        new: what `model_card` makes for the repository.
        replace: where both have text of a person's: True sends the folder's, False keeps the repository's.

    Raises:
        FileExistsError: both have, and `replace` does not say which is to stand.
    """
    mine = renewed_card(local, new)
    if stored is None or replace:
        return mine
    kept = renewed_card(stored, new)
    if mine in (new, kept) or replace is False:
        return kept
    if kept == new:
        return mine
    raise FileExistsError(
        f"cannot upload: the repository's {CARD_NAME} and the folder's differ, and both were edited. Pass"
        " replace_card=True to send the folder's, or replace_card=False to keep the repository's. Nothing was sent."
    )


# What is said ---------------------------------------------------------------------------------------------------


def _front(licence: Any) -> str:
    name = str(licence).strip().lower() if licence else UNKNOWN
    lines = ("library_name: interhand_prior", f"license: {name if _IDENTIFIER.fullmatch(name) else 'other'}")
    return _fenced("\n".join((*lines, "tags: [hands, two-hand-interaction, diffusion, pose-prior]", "")))


def _limits(prior: TwoHandPrior, hands: str) -> list[str]:
    """What follows from the recorded facts, and what is true of every such prior."""
    info = prior.info
    validation = info.get("validation")
    said = [
        "Plausible is not true: it knows how hands in its data are held, not what anybody did. Nothing in it identifies"
        " a gesture or its meaning.",
        "It knows no motion: every pair stands for itself.",
        f"Shapes (`betas`) belong to the hand models of its data ({_shown(hands)}). With others set"
        ' `group_weights={"betas": 0}` or fine-tune.',
    ]
    if not prior.denoiser.config.alone:
        said.append("It was not trained on hands alone; one hand beside a missing one is judged as a partner of any.")
    if prior.calibration is None:
        said.append("It is not calibrated: `sds_loss` needs `gate=False` until `prior.calibrate(pairs)`.")
    if prior.critics is None:
        said.append("It has no critics: `prior.score` needs `prior.calibrate(pairs)` first.")
    if not isinstance(validation, Mapping) or not validation:
        said.append("No numbers on held-out pairs were recorded.")
    if info.get("complete") is False:
        said.append("Its training was stopped before its end.")
    return [f"- {line}" for line in said]


def _table(values: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {_shown(name)} | {_shown(value)} |" for name, value in values.items())]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        value = "; ".join(value)
    text = value if isinstance(value, str) else json.dumps(value)
    # A bar would end the cell, a comment the made part.
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


# What is kept ---------------------------------------------------------------------------------------------------


class _Card(NamedTuple):
    """Front matter without fences, and text. Without an untouched made part all text is `before`."""

    front: str | None
    before: str
    made: str | None
    after: str

    def made_text(self) -> str:
        return _marked(self.made or "")


def _parts(text: str) -> _Card:
    front = _FRONT.match(text)
    body = text[front.end() :] if front else text
    found = list(_MADE.finditer(body))
    if len(found) != 1 or found[0][1] != _hash(found[0][2]) or body.count(_END) != 1:
        return _Card(front and front[1], body, None, "")
    return _Card(front and front[1], body[: found[0].start()], found[0][2], body[found[0].end() :])


def _marked(content: str) -> str:
    return f"{_START.format(hash=_hash(content))}\n{content}{_END}"


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _fenced(front: str | None) -> str:
    return f"---\n{front or ''}---\n"


def _licensed(theirs: str, ours: str | None) -> str:
    recorded = next(line for line in (ours or "").splitlines() if line.startswith("license:"))
    return _UNKNOWN_LICENCE.sub(recorded, theirs)


def _completed(theirs: str | None, ours: str | None) -> str:
    """Front matter with the keys that it lacks; what is no plain list of keys is left as it is."""
    if theirs is None or ours is None:
        return _fenced(ours)
    lines = [line for line in theirs.splitlines() if line and line[0] not in " \t#-"]
    if not all(map(_KEY.match, lines)):
        return _fenced(theirs)
    known = {found[1] for line in lines if (found := _KEY.match(line))}
    missing = [line for line in ours.splitlines() if line.partition(":")[0] not in known]
    return _fenced(_licensed(theirs, ours) + "".join(f"{line}\n" for line in missing))
