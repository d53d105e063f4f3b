"""push_to_hub: one commit of weights, config and model card; what a person has written on a card is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import REPO, FakeHub, assert_same, stored_prior

from interhand_prior.card import CARD_NAME, model_card
from interhand_prior.checkpoint import CONFIG_NAME, WEIGHTS_NAME, CheckpointError
from interhand_prior.hub import load_prior, push_folder
from interhand_prior.prior import TwoHandPrior


def test_push_and_load_again(fake_hub: FakeHub, cache: Path) -> None:
    commit = stored_prior().push_to_hub(REPO, token="writer", private=True)
    assert fake_hub.private[REPO]
    assert_same(load_prior(REPO, revision=commit, cache_dir=cache), stored_prior())
    second = stored_prior(1).push_to_hub(REPO, token="writer", revision="next", commit_message="Again")
    assert second != commit
    assert_same(load_prior(REPO, revision="next", cache_dir=cache), stored_prior(1))
    assert_same(load_prior(REPO, cache_dir=cache), stored_prior())


def test_push_sends_the_card_and_nothing_else(fake_hub: FakeHub, saved: Path) -> None:
    (saved / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    (saved / "notes.txt").write_text("private")
    commit = push_folder(saved, REPO, token="writer")
    assert set(fake_hub.commits[REPO][commit]) == {".gitattributes", CONFIG_NAME, WEIGHTS_NAME, "README.md"}


@pytest.mark.parametrize("token", ["reader", None, False])
def test_push_without_the_right(fake_hub: FakeHub, saved: Path, token: str | bool | None) -> None:
    with pytest.raises(PermissionError, match="token="):
        push_folder(saved, REPO, token=token)
    assert fake_hub.commits == {}
    push_folder(saved, REPO, token="writer")
    commits = dict(fake_hub.commits[REPO])
    with pytest.raises(PermissionError, match="token="):
        push_folder(saved, REPO, token=token)
    assert fake_hub.commits[REPO] == commits


def test_push_with_the_stored_token_to_a_private_repository(
    fake_hub: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "writer")
    stored_prior().push_to_hub(REPO, private=True)
    fake_hub.needs_token[REPO] = "writer"
    stored_prior(1).push_to_hub(REPO)
    assert fake_hub.private[REPO], "an existing repository keeps its visibility"
    assert_same(load_prior(REPO, cache_dir=cache), stored_prior(1))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="private"):
        load_prior(REPO, cache_dir=tmp_path / "of somebody else")


def test_push_verifies_first(fake_hub: FakeHub, saved: Path) -> None:
    (saved / WEIGHTS_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        push_folder(saved, REPO, token="writer")
    with pytest.raises(ValueError, match="owner/repository"):
        push_folder(saved, "just-a-name", token="writer")
    assert fake_hub.requests == []


# -- the card


def card_of(fake_hub: FakeHub, commit: str) -> str:
    return fake_hub.commits[REPO][commit][CARD_NAME].decode()


def renamed(prior: TwoHandPrior, name: str) -> TwoHandPrior:
    prior.info["name"] = name
    return prior


def test_weights_config_and_card_go_in_one_commit(fake_hub: FakeHub) -> None:
    commit = stored_prior().push_to_hub(REPO, token="writer")
    assert len([r for r in fake_hub.requests if r.startswith("POST") and "/commit/" in r]) == 1
    assert card_of(fake_hub, commit) == model_card(stored_prior(), REPO)
    assert f'load_prior("{REPO}")' in card_of(fake_hub, commit)


def test_a_pushed_folder_gets_a_card_with_the_repositorys_name(fake_hub: FakeHub, saved: Path) -> None:
    before = (saved / CARD_NAME).read_bytes()
    assert b'load_prior("PATH")' in before
    commit = push_folder(saved, REPO, token="writer")
    assert card_of(fake_hub, commit) == model_card(stored_prior(), REPO)
    assert (saved / CARD_NAME).read_bytes() == before
    (saved / CARD_NAME).unlink()
    assert card_of(fake_hub, push_folder(saved, REPO, token="writer")) == model_card(stored_prior(), REPO)


def test_what_was_written_on_the_hub_stays(fake_hub: FakeHub) -> None:
    first = stored_prior().push_to_hub(REPO, token="writer")
    edited = card_of(fake_hub, first).replace("license: unknown", "license: mit") + "\nCall me.\n"
    fake_hub.commit(REPO, {CARD_NAME: edited.encode()})
    card = card_of(fake_hub, renamed(stored_prior(), "second").push_to_hub(REPO, token="writer"))
    assert card == model_card(renamed(stored_prior(), "second"), REPO).replace("license: unknown", "license: mit") + (
        "\nCall me.\n"
    )
    fake_hub.commit(REPO, {CARD_NAME: b"Mine.\n\xff"})
    commit = renamed(stored_prior(), "third").push_to_hub(REPO, token="writer")
    assert fake_hub.commits[REPO][commit][CARD_NAME] == b"Mine.\n\xff"


def test_a_repository_made_on_the_website_keeps_its_licence(fake_hub: FakeHub) -> None:
    fake_hub.commit(REPO, {CARD_NAME: b"---\nlicense: cc-by-4.0\n---\n"})
    card = card_of(fake_hub, stored_prior().push_to_hub(REPO, token="writer"))
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: interhand_prior\ntags:")
    assert "license: unknown" not in card
    assert "# A prior over two interacting hands" in card


def test_the_card_of_the_branch_counts(fake_hub: FakeHub) -> None:
    stored_prior().push_to_hub(REPO, token="writer")
    fake_hub.commit(REPO, {CARD_NAME: b"of main"})
    commit = stored_prior().push_to_hub(REPO, token="writer", revision="next")
    assert card_of(fake_hub, commit) == "of main"
    fake_hub.commit(REPO, {CARD_NAME: b"of next"}, "next")
    assert card_of(fake_hub, stored_prior(1).push_to_hub(REPO, token="writer", revision="next")) == "of next"
    assert fake_hub.commits[REPO][fake_hub.refs[REPO]["main"]][CARD_NAME] == b"of main"


def test_two_edited_cards_are_a_question(fake_hub: FakeHub, saved: Path) -> None:
    (saved / CARD_NAME).write_text("The folder's.")
    assert card_of(fake_hub, push_folder(saved, REPO, token="writer")) == "The folder's."
    again = push_folder(saved, REPO, token="writer")
    assert card_of(fake_hub, again) == "The folder's."
    (saved / CARD_NAME).write_text("The folder's, better.")
    count = len(fake_hub.commits[REPO])
    with pytest.raises(FileExistsError, match=r"cannot upload.*replace_card=True.*Nothing was sent"):
        push_folder(saved, REPO, token="writer")
    assert len(fake_hub.commits[REPO]) == count
    assert card_of(fake_hub, push_folder(saved, REPO, token="writer", replace_card=False)) == "The folder's."
    commit = push_folder(saved, REPO, token="writer", replace_card=True)
    assert card_of(fake_hub, commit) == "The folder's, better."


def test_an_edit_in_between_is_not_overwritten(fake_hub: FakeHub) -> None:
    stored_prior().push_to_hub(REPO, token="writer")
    fake_hub.before_commit = lambda: fake_hub.commit(REPO, {CARD_NAME: b"just now"})
    with pytest.raises(ConnectionError, match=r"changed meanwhile.*push again"):
        stored_prior(1).push_to_hub(REPO, token="writer")
    assert fake_hub.commits[REPO][fake_hub.refs[REPO]["main"]][CARD_NAME] == b"just now"
    fake_hub.before_commit = lambda: None
    assert card_of(fake_hub, stored_prior(1).push_to_hub(REPO, token="writer")) == "just now"
