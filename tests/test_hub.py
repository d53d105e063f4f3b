"""load_prior from the package, from folders, and from a Hub-like server on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from interhand_prior import hub
from interhand_prior.canonical import Normalizer
from interhand_prior.checkpoint import CONFIG_NAME, WEIGHTS_NAME, CheckpointError
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.hub import load_prior, push_folder
from interhand_prior.prior import TwoHandPrior

TINY = DenoiserConfig(embed=8, hidden=16, heads=1, layers=2)
REPO = "someone/hands"


def make_prior(seed: int = 0) -> TwoHandPrior:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TwoHandPrior(Denoiser(TINY), Normalizer(torch.randn(64), torch.rand(64) + 0.5), info={"seed": seed})


def assert_same(found: TwoHandPrior, wanted: TwoHandPrior) -> None:
    states = found.state_dict(), wanted.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert found.info == wanted.info


# -- folders


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder(tmp_path: Path, kind: Any) -> None:
    prior = make_prior()
    prior.save_pretrained(tmp_path / "mine")
    assert_same(load_prior(kind(tmp_path / "mine")), prior)


def test_a_relative_folder_that_looks_like_a_repository_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_prior().save_pretrained(tmp_path / "runs" / "prior")
    monkeypatch.chdir(tmp_path)
    assert_same(load_prior("runs/prior"), make_prior())


def test_bundled_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_prior(3).save_pretrained(tmp_path)
    monkeypatch.setattr(hub, "BUNDLED_FOLDER", tmp_path)
    assert_same(load_prior(), make_prior(3))
    assert_same(load_prior("bundled"), make_prior(3))


def test_dtype_is_that_of_weights_and_results(tmp_path: Path) -> None:
    make_prior().save_pretrained(tmp_path)
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
    make_prior().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="revision is for Hub"):
        load_prior(tmp_path, revision="main")


def test_loading_a_folder_imports_no_hub_client(tmp_path: Path) -> None:
    make_prior().save_pretrained(tmp_path)
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


class FakeHub:
    """Repositories in memory: commits by hash, refs by name, and every request that was made."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.needs_token: dict[str, str] = {}
        self.gated: set[str] = set()
        self.private: dict[str, bool] = {}
        self.cut: dict[str, int] = {}  # of these files only the first bytes are sent, then the connection is closed
        self.requests: list[str] = []
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes], ref: str = "main") -> str:
        before = self.commits.setdefault(repo, {}).get(self.refs.setdefault(repo, {}).get(ref, ""), {})
        tree = {**before, **files}
        name = hashlib.sha1(repr(sorted(tree.items())).encode()).hexdigest()
        self.commits[repo][name] = tree
        self.refs[repo][ref] = name
        return name

    def commit_folder(self, repo: str, folder: Path, ref: str = "main") -> str:
        return self.commit(repo, {p.name: p.read_bytes() for p in folder.iterdir()}, ref)

    def downloads(self) -> list[str]:
        return [r.rpartition("/")[2] for r in self.requests if r.startswith("GET") and "/resolve/" in r]


def make_handler(fake: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def as_json(self, value: Any, status: int = 200) -> None:
            self.reply(status, json.dumps(value).encode(), Content_Type="application/json")

        def refused(self, repo: str) -> bool:
            given = self.headers.get("Authorization", "")
            if repo not in fake.commits:
                self.reply(404, X_Error_Code="RepoNotFound")
            elif repo in fake.gated and given != f"Bearer {fake.needs_token[repo]}":
                self.reply(403, X_Error_Code="GatedRepo")
            elif repo in fake.needs_token and given != f"Bearer {fake.needs_token[repo]}":
                self.reply(401, X_Error_Code="RepoNotFound")
            else:
                return False
            return True

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            fake.requests.append(f"{self.command} {self.path}")
            parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if parts[:2] == [
                "api",
                "models",
            ]:  # the client looks whether a repository that it may not make is there
                return self.reply(401 if self.headers.get("Authorization") != "Bearer writer" else 404)
            assert parts[2] == "resolve", self.path
            repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            if self.refused(repo):
                return None
            commit = fake.refs[repo].get(revision, revision)
            if commit not in fake.commits[repo]:
                self.reply(404, X_Error_Code="RevisionNotFound")
            elif name not in fake.commits[repo][commit]:
                self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            else:
                data = fake.commits[repo][commit][name]
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                facts = {"ETag": etag, "X_Linked_Etag": etag, "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
                first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                rest = data[int(first[1]) :] if first else data
                if name not in fake.cut or self.command == "HEAD":
                    return self.reply(206 if first else 200, rest, **facts)
                self.send_response(206 if first else 200)
                for key, value in {**facts, "Content-Length": str(len(rest))}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(rest[: fake.cut[name]])
                self.close_connection = True

        def do_POST(self) -> None:
            fake.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
            if not body and self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if parts == ["api", "validate-yaml"]:
                return self.as_json({"warnings": [], "errors": []})
            if parts == ["api", "repos", "create"]:
                wish = json.loads(body)
                repo = f"{wish['organization']}/{wish['name']}"
                if self.headers.get("Authorization") != "Bearer writer":
                    return self.reply(401)
                if repo in fake.commits:
                    return self.as_json({"error": "exists", "url": f"{fake.url}/{repo}"}, 409)
                fake.private[repo] = wish.get("private", wish.get("visibility") == "private")
                fake.commit(repo, {".gitattributes": b""})
                return self.as_json({"url": f"{fake.url}/{repo}", "name": repo, "id": repo})
            repo, action, revision = "/".join(parts[2:4]), parts[4], parts[5]
            if self.headers.get("Authorization") != "Bearer writer":
                return self.reply(403, X_Error_Message="no write access")
            if self.refused(repo):
                return None
            if action == "branch":
                fake.refs[repo].setdefault(revision, fake.refs[repo]["main"])
                return self.as_json({})
            if action == "preupload":
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                return self.as_json({"files": modes})
            assert action == "commit", self.path
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = fake.commit(repo, files, revision)
            return self.as_json({"success": True, "commitOid": name, "commitUrl": f"{fake.url}/{repo}/commit/{name}"})

    return Handler


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(fake))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", fake.url + "/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    disable_progress_bars()
    yield fake
    close = getattr(huggingface_hub, "close_session", None)
    if close is not None:
        close()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make_prior().save_pretrained(tmp_path / "saved")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_from_the_hub(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    (saved / "pytorch_model.bin").write_bytes(b"never fetched")
    (saved / "README.md").write_text("nor this")
    fake_hub.commit_folder(REPO, saved)
    assert_same(load_prior(REPO, cache_dir=cache), make_prior())
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
    fake_hub.commit_folder(REPO, make_prior(1).save_pretrained(tmp_path / "next"))
    assert_same(load_prior(REPO, cache_dir=cache), make_prior(1))
    assert_same(load_prior(REPO, revision="v1", cache_dir=cache), make_prior(0))
    assert_same(load_prior(REPO, revision=first, cache_dir=cache), make_prior(0))


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
    assert_same(load_prior(REPO, **options), make_prior())
    assert fake_hub.requests == []


def test_a_silent_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import LocalEntryNotFoundError

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ConnectionError, match=r"did not answer.*HF_ENDPOINT"):
        load_prior(REPO, cache_dir=cache)


def test_no_such_repository(fake_hub: FakeHub, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such repository.*no such folder.*owner/repository"):
        load_prior("no/body", cache_dir=cache)


def test_no_such_revision(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    fake_hub.commit_folder(REPO, saved)
    with pytest.raises(FileNotFoundError, match=r"'v9'.*no such revision"):
        load_prior(REPO, revision="v9", cache_dir=cache)


def test_gated_and_private_repositories_take_a_token(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    fake_hub.commit_folder(REPO, saved)
    fake_hub.needs_token[REPO] = "secret"
    with pytest.raises(FileNotFoundError, match="private and needs token"):
        load_prior(REPO, cache_dir=cache)
    fake_hub.gated.add(REPO)
    with pytest.raises(PermissionError, match=r"gated.*token="):
        load_prior(REPO, cache_dir=cache, token="wrong")
    assert_same(load_prior(REPO, cache_dir=cache, token="secret"), make_prior())


@pytest.mark.parametrize("missing", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_repository_of_pickles(fake_hub: FakeHub, saved: Path, cache: Path, missing: str) -> None:
    (saved / missing).rename(saved / "pytorch_model.bin")
    fake_hub.commit_folder(REPO, saved)
    with pytest.raises(CheckpointError, match=r"lacks.*never opened"):
        load_prior(REPO, cache_dir=cache)
    assert "pytorch_model.bin" not in fake_hub.downloads()


def test_weights_that_were_exchanged_on_the_hub(fake_hub: FakeHub, saved: Path, cache: Path, tmp_path: Path) -> None:
    fake_hub.commit_folder(REPO, saved)
    other = make_prior(1).save_pretrained(tmp_path / "other")
    fake_hub.commit(REPO, {WEIGHTS_NAME: (other / WEIGHTS_NAME).read_bytes()})
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_prior(REPO, cache_dir=cache)


# -- uploading


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
    assert_same(load_prior(REPO, cache_dir=cache), make_prior())


def test_a_truncated_file_is_refused(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    """Cut before it was uploaded: the Hub's own length and hash fit it, those in config.json do not."""
    data = (saved / WEIGHTS_NAME).read_bytes()
    fake_hub.commit_folder(REPO, saved)
    fake_hub.commit(REPO, {WEIGHTS_NAME: data[: len(data) // 2]})
    with pytest.raises(CheckpointError, match="bytes"):
        load_prior(REPO, cache_dir=cache)


def test_a_config_of_another_schema_is_refused(fake_hub: FakeHub, saved: Path, cache: Path) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text())
    fake_hub.commit_folder(REPO, saved)
    fake_hub.commit(REPO, {CONFIG_NAME: json.dumps({**config, "format_version": 99}).encode()})
    with pytest.raises(CheckpointError, match="version"):
        load_prior(REPO, cache_dir=cache)


def test_push_and_load_again(fake_hub: FakeHub, cache: Path) -> None:
    commit = make_prior().push_to_hub(REPO, token="writer", private=True)
    assert fake_hub.private[REPO]
    assert_same(load_prior(REPO, revision=commit, cache_dir=cache), make_prior())
    second = make_prior(1).push_to_hub(REPO, token="writer", revision="next", commit_message="Again")
    assert second != commit
    assert_same(load_prior(REPO, revision="next", cache_dir=cache), make_prior(1))
    assert_same(load_prior(REPO, cache_dir=cache), make_prior())


def test_push_sends_the_card_and_nothing_else(fake_hub: FakeHub, saved: Path) -> None:
    (saved / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    (saved / "notes.txt").write_text("private")
    commit = push_folder(saved, REPO, token="writer")
    assert set(fake_hub.commits[REPO][commit]) == {".gitattributes", CONFIG_NAME, WEIGHTS_NAME, "README.md"}


def test_push_without_the_right(fake_hub: FakeHub, saved: Path) -> None:
    with pytest.raises(PermissionError, match="token="):
        push_folder(saved, REPO, token="reader")
    assert fake_hub.commits == {}


def test_push_verifies_first(fake_hub: FakeHub, saved: Path) -> None:
    (saved / WEIGHTS_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        push_folder(saved, REPO, token="writer")
    with pytest.raises(ValueError, match="owner/repository"):
        push_folder(saved, "just-a-name", token="writer")
    assert fake_hub.requests == []
