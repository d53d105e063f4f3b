"""load_prior from the package, from folders, and from a Hub-like server on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import REPO, FakeHub, assert_same, stored_prior

from interhand_prior import hub
from interhand_prior.checkpoint import CONFIG_NAME, WEIGHTS_NAME, CheckpointError
from interhand_prior.hub import load_prior

# -- folders


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder(tmp_path: Path, kind: Any) -> None:
    prior = stored_prior()
    prior.save_pretrained(tmp_path / "mine")
    assert_same(load_prior(kind(tmp_path / "mine")), prior)


def test_a_relative_folder_that_looks_like_a_repository_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_prior().save_pretrained(tmp_path / "runs" / "prior")
    monkeypatch.chdir(tmp_path)
    assert_same(load_prior("runs/prior"), stored_prior())


def test_bundled_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_prior(3).save_pretrained(tmp_path)
    monkeypatch.setattr(hub, "BUNDLED_FOLDER", tmp_path)
    assert_same(load_prior(), stored_prior(3))
    assert_same(load_prior("bundled"), stored_prior(3))


def test_dtype_is_that_of_weights_and_results(tmp_path: Path) -> None:
    stored_prior().save_pretrained(tmp_path)
    prior = load_prior(tmp_path, dtype=torch.float64, device="cpu")
    assert prior.dtype == torch.float64


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("bundeld", FileNotFoundError, r"Did you mean 'bundled'\?.*owner/repository"),
        ("./myprior", FileNotFoundError, r"Did you mean '\./my_prior'\?"),
        ("a/b/c", FileNotFoundError, r"'a/b/c' was not found\. It can be"),
        ("/nowhere/at/all", FileNotFoundError, "was not found"),
        ("https://example.org/x", FileNotFoundError, "was not found"),
        ("", ValueError, "is empty"),
        ("../up", FileNotFoundError, "was not found"),
        ("a_file", ValueError, "is a file"),
        (7, ValueError, "got int"),
        (Path("owner/repo"), FileNotFoundError, "was not found"),
    ],
)
def test_unknown_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, error: type[Exception], message: str
) -> None:
    (tmp_path / "my_prior").mkdir()
    (tmp_path / "a_file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_prior(source)


def test_revision_is_refused_for_a_folder(tmp_path: Path) -> None:
    stored_prior().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="revision is for Hub"):
        load_prior(tmp_path, revision="main")


def test_loading_a_folder_imports_no_hub_client(tmp_path: Path) -> None:
    stored_prior().save_pretrained(tmp_path)
    code = "import sys; from interhand_prior.hub import load_prior; load_prior(sys.argv[1])\n"
    code += "print([m for m in ('huggingface_hub', 'httpx2', 'httpx', 'requests') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.getcwd(),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.stdout.strip() == "[]"


# -- a Hub-like server


def test_from_the_hub(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    (saved / "pytorch_model.bin").write_bytes(b"never fetched")
    (saved / "README.md").write_text("nor this")
    fake_hub.commit_folder(REPO, saved)
    assert_same(load_prior(REPO, cache_dir=cache), stored_prior())
    assert fake_hub.downloads() == [CONFIG_NAME, WEIGHTS_NAME]
    assert {r.rpartition("/")[2] for r in fake_hub.requests} == {CONFIG_NAME, WEIGHTS_NAME}


def test_both_files_are_of_one_commit(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    commit = fake_hub.commit_folder(REPO, saved)
    load_prior(REPO, cache_dir=cache)
    asked = [r for r in fake_hub.requests if r.endswith(WEIGHTS_NAME)]
    assert asked
    assert all(f"/resolve/{commit}/" in r for r in asked)


def test_a_pinned_revision_stays(fake_hub: FakeHub, saved: Path, cache: Path, tmp_path: Path) -> None:
    first = fake_hub.commit_folder(REPO, saved)
    fake_hub.refs[REPO]["v1"] = first
    fake_hub.commit_folder(REPO, stored_prior(1).save_pretrained(tmp_path / "next"))
    assert_same(load_prior(REPO, cache_dir=cache), stored_prior(1))
    assert_same(load_prior(REPO, revision="v1", cache_dir=cache), stored_prior(0))
    assert_same(load_prior(REPO, revision=first, cache_dir=cache), stored_prior(0))


def test_a_pinned_hash_in_the_cache_needs_no_network(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    commit = fake_hub.commit_folder(REPO, saved)
    load_prior(REPO, cache_dir=cache)
    fake_hub.requests.clear()
    load_prior(REPO, revision=commit, cache_dir=cache)
    assert fake_hub.requests == []


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline(fake_hub: FakeHub, saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    fake_hub.commit_folder(REPO, saved)
    options: dict[str, Any] = {"cache_dir": cache}

    def go_offline() -> None:
        fake_hub.requests.clear()
        if how == "argument":
            options["local_files_only"] = True
        else:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with monkeypatch.context() as patch:
        if how == "variable":
            patch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FileNotFoundError, match=r"not in the cache.*switched off.*bundled"):
            load_prior(REPO, cache_dir=cache, local_files_only=how == "argument")
    load_prior(REPO, cache_dir=cache)
    go_offline()
    assert_same(load_prior(REPO, **options), stored_prior())
    assert fake_hub.requests == []


def test_a_hub_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import LocalEntryNotFoundError

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ConnectionError, match=r"did not answer.*HF_ENDPOINT"):
        load_prior(REPO, cache_dir=cache)


@pytest.mark.slow
def test_a_silent_hub(fake_hub: FakeHub, saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again and again; then what is in the cache is used, and the rest is an error that says so."""
    fake_hub.commit_folder(REPO, saved)
    load_prior(REPO, cache_dir=cache)
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert_same(load_prior(REPO, cache_dir=cache), stored_prior())
        with pytest.raises(ConnectionError, match=r"did not answer.*HF_ENDPOINT"):
            load_prior("some/other", cache_dir=cache)


def test_the_clients_own_cache_is_the_default(
    fake_hub: FakeHub, saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    commit = fake_hub.commit_folder(REPO, saved)
    load_prior(REPO)
    assert (cache / "models--someone--hands" / "snapshots" / commit / CONFIG_NAME).is_file()
    assert_same(load_prior(REPO, local_files_only=True), stored_prior())


def test_no_such_repository(fake_hub: FakeHub, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such repository.*no such folder.*owner/repository"):
        load_prior("no/body", cache_dir=cache)


def test_no_such_revision(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    fake_hub.commit_folder(REPO, saved)
    with pytest.raises(FileNotFoundError, match=r"'v9'.*no such revision"):
        load_prior(REPO, revision="v9", cache_dir=cache)
    fake_hub.refs[REPO]["refs/pr/1"] = fake_hub.refs[REPO]["main"]
    assert_same(load_prior(REPO, revision="refs/pr/1", cache_dir=cache), stored_prior())


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_private_repository_takes_a_token(
    fake_hub: FakeHub, saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fake_hub.commit_folder(REPO, saved)
    fake_hub.needs_token[REPO] = "secret"
    for token in (None, "wrong", False):
        with pytest.raises(FileNotFoundError, match=r"cannot load 'someone/hands'.*private and needs token"):
            load_prior(REPO, cache_dir=cache, token=token)
    options: dict[str, Any] = {"cache_dir": cache}
    if how == "argument":
        options["token"] = "secret"
    else:
        monkeypatch.setenv("HF_TOKEN", "secret")
        with pytest.raises(FileNotFoundError, match="private"):
            load_prior(REPO, cache_dir=cache, token=False)
    assert_same(load_prior(REPO, **options), stored_prior())


def test_a_gated_repository_gives_the_hubs_advice(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    fake_hub.commit_folder(REPO, saved)
    fake_hub.needs_token[REPO] = "secret"
    fake_hub.gated.add(REPO)
    for token in (None, "wrong"):
        with pytest.raises(PermissionError, match=r"gated. Accept its terms.*hf auth login.*token=") as caught:
            load_prior(REPO, cache_dir=cache, token=token)
        assert str(caught.value).endswith(f"The Hub says: {fake_hub.advice}")
    fake_hub.advice = ""
    with pytest.raises(PermissionError, match=r"of that account\.$"):
        load_prior(REPO, cache_dir=cache)
    assert_same(load_prior(REPO, cache_dir=cache, token="secret"), stored_prior())


@pytest.mark.parametrize("missing", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_repository_of_pickles(fake_hub: FakeHub, saved: Path, cache: Path, missing: str) -> None:
    (saved / missing).rename(saved / "pytorch_model.bin")
    fake_hub.commit_folder(REPO, saved)
    with pytest.raises(CheckpointError, match=r"lacks.*never opened"):
        load_prior(REPO, cache_dir=cache)
    assert "pytorch_model.bin" not in fake_hub.downloads()


def test_weights_that_were_exchanged_on_the_hub(fake_hub: FakeHub, saved: Path, cache: Path, tmp_path: Path) -> None:
    fake_hub.commit_folder(REPO, saved)
    other = stored_prior(1).save_pretrained(tmp_path / "other")
    fake_hub.commit(REPO, {WEIGHTS_NAME: (other / WEIGHTS_NAME).read_bytes()})
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_prior(REPO, cache_dir=cache)


def test_a_file_that_was_garbled_on_its_way(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    """Length and name are right, so the client keeps it in its cache; it is refused, and the way out is said."""
    fake_hub.commit_folder(REPO, saved)
    fake_hub.garbled.add(WEIGHTS_NAME)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"SHA-256.*delete (\S+) and load it again") as caught:
            load_prior(REPO, cache_dir=cache)
        fake_hub.garbled.clear()
    folder = re.search(r"delete (\S+) and load", str(caught.value))
    assert folder is not None
    assert Path(folder[1]) == cache / "models--someone--hands"
    shutil.rmtree(folder[1])
    assert_same(load_prior(REPO, cache_dir=cache), stored_prior())


@pytest.mark.slow
def test_a_cut_connection_never_yields_a_prior(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    """The client tries again and gives up; what it has of the file is no prior, and is gone on from afterwards."""
    fake_hub.commit_folder(REPO, saved)
    fake_hub.cut[WEIGHTS_NAME] = 100
    with pytest.raises(ConnectionError, match="the connection failed"):
        load_prior(REPO, cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        load_prior(REPO, cache_dir=cache, local_files_only=True)
    fake_hub.cut.clear()
    assert_same(load_prior(REPO, cache_dir=cache), stored_prior())


def test_a_truncated_file_is_refused(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    """Cut before it was uploaded: the Hub's own length and hash fit it, those in config.json do not."""
    data = (saved / WEIGHTS_NAME).read_bytes()
    fake_hub.commit_folder(REPO, saved)
    fake_hub.commit(REPO, {WEIGHTS_NAME: data[: len(data) // 2]})
    with pytest.raises(CheckpointError, match="bytes"):
        load_prior(REPO, cache_dir=cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"format": "diffusers"}, "not of this library"),
        ({"kind": "features"}, "holds a 'features', not a 'prior'"),
        ({"more": 1}, r"unknown \['more'\]"),
        ({"config": {"denoiser": {"network": "new"}}}, "no prior of this version"),
        ({"weights": {"sha256": "0" * 64, "bytes": 1, "tensors": {}}}, "bytes where config.json says 1"),
    ],
)
def test_a_config_of_another_schema_is_refused(
    fake_hub: FakeHub, saved: Path, cache: Path, change: dict[str, Any], words: str
) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text())
    fake_hub.commit_folder(REPO, saved)
    fake_hub.commit(REPO, {CONFIG_NAME: json.dumps({**config, **change}).encode()})
    with pytest.raises(CheckpointError, match=words):
        load_prior(REPO, cache_dir=cache)
