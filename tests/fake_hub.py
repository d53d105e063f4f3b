"""A server on loopback that speaks the Hub's endpoints for files and commits, for the real client to talk to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from interhand_prior.canonical import Normalizer
from interhand_prior.denoiser import Denoiser, DenoiserConfig
from interhand_prior.prior import TwoHandPrior

TINY = DenoiserConfig(embed=8, hidden=16, heads=1, layers=2)
REPO = "someone/hands"


def stored_prior(seed: int = 0) -> TwoHandPrior:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TwoHandPrior(Denoiser(TINY), Normalizer(torch.randn(64), torch.rand(64) + 0.5), info={"seed": seed})


def assert_same(found: TwoHandPrior, wanted: TwoHandPrior) -> None:
    states = found.state_dict(), wanted.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert found.info == wanted.info


class FakeHub:
    """Repositories in memory: commits by hash, refs by name, and every request that was made."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.needs_token: dict[str, str] = {}
        self.gated: set[str] = set()
        self.private: dict[str, bool] = {}
        self.advice = "Access to this model is restricted. Visit its page to ask for access."
        self.cut: dict[str, int] = {}  # of these files only the first bytes are sent, then the connection is closed
        self.garbled: set[str] = set()  # of these files the last byte is sent wrong
        self.before_commit: Callable[[], object] = lambda: None
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


def parts_of(path: str) -> list[str]:
    """A revision may hold slashes of its own, quoted."""
    return [unquote(part) for part in path.partition("?")[0].strip("/").split("/")]


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
                self.reply(403, X_Error_Code="GatedRepo", X_Error_Message=fake.advice)
            elif repo in fake.needs_token and given != f"Bearer {fake.needs_token[repo]}":
                self.reply(401, X_Error_Code="RepoNotFound")
            else:
                return False
            return True

        def facts(self, repo: str, revision: str) -> None:
            if self.headers.get("Authorization") != "Bearer writer" and repo not in fake.commits:
                return self.reply(401)
            if self.refused(repo):
                return None
            commit = fake.refs[repo].get(revision, revision)
            if commit not in fake.commits[repo]:
                return self.reply(404, X_Error_Code="RevisionNotFound")
            return self.as_json({"id": repo, "sha": commit, "private": fake.private.get(repo, False)})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            fake.requests.append(f"{self.command} {self.path}")
            parts = parts_of(self.path)
            if parts[:2] == ["api", "models"]:
                return self.facts("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main")
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
                if name in fake.garbled:
                    data = data[:-1] + bytes([data[-1] ^ 1])
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
            parts = parts_of(self.path)
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
            header = next(line["value"] for line in lines if line["key"] == "header")
            fake.before_commit()
            if header.get("parentCommit", fake.refs[repo][revision]) != fake.refs[repo][revision]:
                return self.reply(412, X_Error_Message="a commit has happened since")
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = fake.commit(repo, files, revision)
            return self.as_json({"success": True, "commitOid": name, "commitUrl": f"{fake.url}/{repo}/commit/{name}"})

    return Handler


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The server, and an environment that sends the client there."""
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
