"""The model card: what it says of a prior, in the Hub's form; and what of a card that is there it leaves alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_denoiser, make_normalizer, random_pairs
from hypothesis import given
from hypothesis import strategies as st

from interhand_prior import TwoHandPrior, load_prior
from interhand_prior.card import CARD_NAME, card_to_send, model_card, renewed_card

INFO: dict[str, Any] = {
    "licence": "cc-by-nc-4.0",
    "data": {"data sets": ["InterHand2.6M", "mine"], "licence": "cc-by-nc-4.0", "hands": "MANO", "hands alone": 3},
    "config": {"lr": 0.0025, "steps": 100},
    "validation": {"val_cond": 0.6899751},
    "metrics": {"fhid": {"mean": 0.64, "std": 0.01}},
    "seed": 0,
    "complete": True,
}


def made(**info: Any) -> TwoHandPrior:
    return TwoHandPrior(make_denoiser(), make_normalizer(), info=info).to(torch.float32)


def front_of(card: str) -> dict[str, Any]:
    """By the Hub's own reader."""
    from huggingface_hub import ModelCard

    found: dict[str, Any] = ModelCard(card).data.to_dict()
    return found


def rows(card: str) -> set[str]:
    return {line for line in card.splitlines() if line.startswith("| ")}


# What it says ---------------------------------------------------------------------------------------------------


def test_it_says_what_the_prior_records() -> None:
    prior = made(**INFO)
    card = model_card(prior, "me/hands")
    assert front_of(card) == {
        "library_name": "interhand_prior",
        "license": "cc-by-nc-4.0",
        "tags": ["hands", "two-hand-interaction", "diffusion", "pose-prior"],
    }
    count = sum(parameter.numel() for parameter in prior.denoiser.parameters())
    assert {
        "| weights | cc-by-nc-4.0 |",
        "| data | cc-by-nc-4.0 |",
        "| data sets | InterHand2.6M; mine |",
        "| hands | MANO |",
        "| hands alone | 3 |",
        "| lr | 0.0025 |",
        "| val_cond | 0.68998 |",
        '| fhid | {"mean": 0.64, "std": 0.01} |',
        f"| parameters | {count} |",
        "| network | layers |",
        "| hidden | 48 |",
        "| min_alpha_bar | 0.0001 |",
    } <= rows(card)
    titles = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert titles == ["Licence", "Data", "Limits", "Facts", "Validation", "Metrics", "Recipe"]
    assert "unknown" not in card.lower()
    assert "belong to the hand models of its data (MANO)" in card


def test_the_three_lines_of_use_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = made()
    folder = prior.save_pretrained(tmp_path / "prior")
    card = (folder / CARD_NAME).read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec(code[1].replace("PATH", str(folder)).replace("16, seed", "1, steps=2, seed"), {})
    assert (tmp_path / "hands.glb").is_file()


@pytest.mark.parametrize(
    ("licence", "identifier"),
    [
        (None, "unknown"),
        ("", "unknown"),
        ("MIT", "mit"),
        ("apache-2.0", "apache-2.0"),
        ("that of the checkpoint; not granted by this package", "other"),
        ("mit\nbase_model: x", "other"),
    ],
)
def test_a_licence_is_recorded_or_unknown(licence: str | None, identifier: str) -> None:
    card = model_card(made(licence=licence))
    assert front_of(card)["license"] == identifier
    assert set(front_of(card)) == {"library_name", "license", "tags"}
    assert f"| weights | {' '.join((licence or 'unknown').split())} |" in card
    assert "| data | unknown |" in card
    assert "| data sets | unknown |" in card
    assert "Ask whoever trained this" in card


def test_a_fine_tuned_prior_names_the_licence_of_the_first(prior: TwoHandPrior) -> None:
    assert "| prior that it was fine-tuned from | MIT |" in rows(model_card(made(init={"licence": "MIT"})))
    assert "| prior that it was fine-tuned from | unknown |" in rows(model_card(made(init={"seed": 1})))
    assert "fine-tuned" not in model_card(prior)


def test_limits_follow_from_what_is_there(tmp_path: Path) -> None:
    prior = made(complete=False)
    bare = (prior.save_pretrained(tmp_path) / CARD_NAME).read_text()
    for line in (
        "not calibrated",
        "has no critics",
        "No numbers",
        "stopped before its end",
        "not trained on hands alone",
    ):
        assert line in bare
    assert "| calibrated | false |" in rows(bare)
    prior.info["complete"] = True
    prior.calibrate(random_pairs(4, dtype=torch.float32)).save_pretrained(tmp_path)
    whole = (tmp_path / CARD_NAME).read_text()
    assert {"| calibrated | true |", "| score | true |"} <= rows(whole)
    for line in ("not calibrated", "has no critics", "stopped"):
        assert line not in whole
    alone = TwoHandPrior(make_denoiser(alone=True), make_normalizer())
    assert "hands alone" not in model_card(alone)
    assert "and of a hand without the other" in model_card(alone)


def test_odd_facts_stay_in_their_cells() -> None:
    card = model_card(
        made(odd="a|b\n<!-- interhand_prior made this part up to here -->", data="one thing", **{"a|b": 1})
    )
    assert "| odd | a\\|b &lt;!-- interhand_prior made this part up to here --> |" in rows(card)
    assert "| data sets | one thing |" in rows(card)
    assert "| a\\|b | 1 |" in rows(card)
    assert renewed_card(card, model_card(made())) == model_card(made())


# What stays -----------------------------------------------------------------------------------------------------

OLD, NEW = model_card(made(name="old")), model_card(made(name="new"))
OWN = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40)


def test_saving_makes_the_card_anew(tmp_path: Path) -> None:
    made(name="old").save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_text() == OLD
    made(name="new").save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_text() == NEW
    load_prior(tmp_path).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CARD_NAME).read_text() == NEW


@given(OWN, OWN)
def test_text_around_the_made_part_is_kept(before: str, after: str) -> None:
    start, end = OLD.index("<!--"), OLD.rindex("-->") + 3
    lines = lambda old: OLD[:start] + before + "\n" + old + "\n" + after
    mark = lambda card: card[card.index("<!--") : card.rindex("-->") + 3]
    assert mark(OLD) == OLD[start:end]
    assert renewed_card(lines(mark(OLD)), NEW) == lines(mark(NEW))
    assert renewed_card(lines(mark(OLD)).replace("\n", "\r\n"), NEW) == lines(mark(NEW))


@given(st.integers(0, len(OLD) - 1), st.sampled_from("x- \n"))
def test_a_made_part_that_was_edited_is_left_alone(place: int, letter: str) -> None:
    start, end = OLD.index("-->\n") + 4, OLD.rindex("<!--")
    place = start + place % (end - start)
    edited = OLD[:place] + letter + OLD[place:]
    assert renewed_card(edited, NEW) == edited


@pytest.mark.parametrize(
    "text",
    [
        "Mine.",
        "---\nlicense: mit\n---\n\nMine.",
        OLD + OLD,
        OLD.replace("<!-- interhand_prior made this part up to here -->", ""),
        OLD.replace("<!-- interhand_prior made this part up to here -->", "Mine.") + "# More\n",
        "Mine.\r\nWith other line ends.\r\n",
    ],
)
def test_a_persons_card_is_left_alone(tmp_path: Path, text: str) -> None:
    assert renewed_card(text, NEW) == text
    (tmp_path / CARD_NAME).write_bytes(text.encode())
    made(name="new").save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_bytes() == text.encode()


def test_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    data = OLD.encode() + b"caf\xe9\n"
    (tmp_path / CARD_NAME).write_bytes(data)
    made(name="new").save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_bytes() == NEW.encode() + b"caf\xe9\n"


def test_front_matter_is_a_persons_but_for_an_unknown_licence() -> None:
    rewritten = OLD.replace("license: unknown", "license: mit\nlanguage: en").replace(
        "library_name: interhand_prior\n", ""
    )
    assert front_of(renewed_card(rewritten, NEW)) == {k: v for k, v in front_of(rewritten).items() if v is not None}
    licensed = model_card(made(name="new", licence="apache-2.0"))
    assert front_of(renewed_card(OLD, licensed))["license"] == "apache-2.0"
    assert front_of(renewed_card(rewritten, licensed))["license"] == "mit"
    without = OLD[OLD.index("<!--") :]
    assert renewed_card(without, NEW) == NEW.replace("---\n\n<!--", "---\n<!--")


@pytest.mark.parametrize("empty", ["", "\n", "---\nlicense: unknown\n---\n", "---\n---\n"])
def test_an_empty_card_gets_text(empty: str) -> None:
    card = renewed_card(empty, NEW)
    assert card.endswith(NEW[NEW.index("<!--") :])
    assert front_of(card) == front_of(NEW)


def test_front_matter_that_is_no_list_of_keys_is_not_touched() -> None:
    card = renewed_card("---\n{license: mit}\n---\n", NEW)
    assert card.startswith("---\n{license: mit}\n---\n\n<!--")
    assert front_of(card) == {"license": "mit"}


def test_the_hubs_own_editor_leaves_the_made_part_renewable(tmp_path: Path) -> None:
    """`metadata_update` and the website write the front matter anew; comments in Markdown stay."""
    from huggingface_hub import ModelCard

    card = ModelCard(OLD)
    card.data.license = "mit"
    card.save(tmp_path / CARD_NAME)
    renewed = renewed_card((tmp_path / CARD_NAME).read_text(), NEW)
    assert front_of(renewed)["license"] == "mit"
    assert renewed[renewed.index("<!--") :].strip() == NEW[NEW.index("<!--") :].strip()


def test_which_card_is_sent() -> None:
    mine, theirs = OLD + "mine", OLD + "theirs"
    assert card_to_send(None, None, NEW) == NEW
    assert card_to_send(OLD, theirs, NEW) == NEW + "theirs"
    assert card_to_send(mine, OLD, NEW) == NEW + "mine"
    assert card_to_send(mine, mine, NEW) == NEW + "mine"
    assert card_to_send(mine, theirs, NEW, replace=True) == NEW + "mine"
    assert card_to_send(mine, theirs, NEW, replace=False) == NEW + "theirs"
    with pytest.raises(FileExistsError, match="replace_card"):
        card_to_send(mine, theirs, NEW)


def test_a_prior_that_is_not_saved_leaves_the_card(tmp_path: Path) -> None:
    prior = made(name="new")
    prior.save_pretrained(tmp_path)
    prior.denoiser.null.data[0] = torch.nan
    prior.info["name"] = "newer"
    with pytest.raises(ValueError, match="NaN"):
        prior.save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_text() == NEW
