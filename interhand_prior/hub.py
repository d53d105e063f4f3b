"""Where a prior comes from: the package itself, a folder, or the Hugging Face Hub.

A Hub repository is treated like a folder that must first be fetched. Exactly two files are asked for,
`config.json` and `model.safetensors`, both from one commit: the first answer fixes the commit, the second
file is asked for by its hash. They are then verified like any other checkpoint (see `checkpoint.py`). What is pushed
goes there in one commit, on top of the one whose model card was read. The Hub client is imported only here and only
when it is needed.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .card import CARD_NAME, card_to_send, model_card, read_card
from .checkpoint import CONFIG_NAME, WEIGHTS_NAME, CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from .prior import TwoHandPrior

__all__ = ["fetch_prior", "load_prior", "push_folder"]

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent / "assets" / "prior"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[\w]", re.ASCII)
_HTTP_CLIENTS = {"httpx", "httpx2", "requests", "urllib3"}  # of the Hub client, by version
_FORMS = (
    'It can be "bundled" (the prior inside this package), a folder written by `save_pretrained`, '
    'or "owner/repository" on the Hugging Face Hub.'
)


def load_prior(
    source: str | os.PathLike[str] = BUNDLED,
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    hands: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> TwoHandPrior:
    """Load a two-hand prior.

    Args:
        source: "bundled" (default; needs no network), a folder, or "owner/repository" on the Hub. A folder of
            that name wins over a repository.
        revision: branch, tag or commit hash of the repository; a full hash pins the weights for good.
        device: where to put it; default: the CPU.
        dtype: floating-point type of weights and results; default: float32.
        hands: the hand models your parameters belong to: None (the bundled open hand), a folder with
            MANO_RIGHT.pkl and MANO_LEFT.pkl, a pair of smplx layers (left, right), or a HandPair.
        cache_dir: where the Hub client keeps files; default: its own cache.
        token: for private or gated repositories; default: the one the Hub client has stored.
        local_files_only: never use the network, as does HF_HUB_OFFLINE=1. HF_ENDPOINT is heeded.

    Raises:
        FileNotFoundError: no such folder, repository, revision or file, or not in the cache while offline.
        PermissionError: the repository is gated or the token was refused.
        ConnectionError: the Hub did not answer, and the cache does not hold the files.
        CheckpointError: what was found is damaged, of another version, or not safetensors.
        ValueError: `source` has none of the three forms, or `revision` was given for a folder.
    """
    folder = fetch_prior(source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    from .prior import TwoHandPrior

    try:
        return TwoHandPrior.from_folder(folder, device=device, dtype=dtype, hands=hands)
    except CheckpointError as error:
        if folder.parent.name != "snapshots":  # of the Hub cache, which would give the same file again
            raise
        raise CheckpointError(
            f"{error} If the repository on the Hub is whole, its copy in the cache is not: delete"
            f" {folder.parent.parent} and load it again."
        ) from error


def fetch_prior(
    source: str | os.PathLike[str] = BUNDLED,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a prior, downloaded first if it is a repository; see `load_prior`."""
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"source must be a string or a path, got {type(source).__name__}. {_FORMS}")
    text = os.fspath(source)
    if not text:
        raise ValueError(f"source is empty. {_FORMS}")
    path = Path(text).expanduser()
    is_bundled = text == BUNDLED and isinstance(source, str)
    if is_bundled or path.exists():
        if revision is not None:
            raise ValueError(f"revision is for Hub repositories; source {text!r} is local. Leave it out.")
        if is_bundled:
            return BUNDLED_FOLDER
        if not path.is_dir():
            raise ValueError(f"source {text!r} is a file. Give the folder that holds it. {_FORMS}")
        return path
    if isinstance(source, str) and _REPOSITORY.fullmatch(text):
        return _download(
            text,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only or _says_yes("HF_HUB_OFFLINE"),
        )
    raise FileNotFoundError(f"source {text!r} was not found.{_near_miss(text)} {_FORMS}")


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload two-hand prior",
    replace_card: bool | None = None,
) -> str:
    """Upload a checkpoint folder to the Hub in one commit, making the repository if need be.

    The folder is verified first; only `config.json`, `model.safetensors` and a `README.md` are sent. That is the
    folder's card, or is made (see `card.py`). A card that the repository has keeps what a person has written there.

    Args:
        folder: what `save_pretrained` wrote.
        repo_id: "owner/repository".
        private: make a new repository private; an existing one keeps its visibility.
        token: with write access; default: the one the Hub client has stored.
        revision: branch to commit to, made if missing; default: the main branch.
        commit_message: first line of the commit.
        replace_card: where the folder's card and the repository's were both edited: True sends the folder's, False
            keeps the repository's. Default: refuse.

    Returns:
        The hash of the commit: `load_prior(repo_id, revision=hash)` is this prior for ever.

    Raises:
        ValueError: `repo_id` is not "owner/repository".
        PermissionError: the token is missing or may not write there.
        ConnectionError: the Hub did not answer.
        CheckpointError, FileNotFoundError: the folder does not hold a whole prior. Nothing was sent.
        FileExistsError: two cards were edited, and `replace_card` does not say which is to stand. Nothing was sent.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f'repo_id must look like "owner/repository", got {repo_id!r}.')
    folder = Path(folder)
    from .prior import TwoHandPrior

    prior = TwoHandPrior.from_folder(folder)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=_endpoint(), token=token)
    try:
        # Asked first: who may write to a repository need not have the right to make one.
        if not api.repo_exists(repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        parent = api.repo_info(repo_id, revision=revision).sha
        stored = _stored_card(api, repo_id, parent)
        card = card_to_send(read_card(folder / CARD_NAME), stored, model_card(prior, repo_id), replace=replace_card)
        contents: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG_NAME, WEIGHTS_NAME)}
        if card != stored:
            contents[CARD_NAME] = card.encode("utf-8", "surrogateescape")
        info = api.create_commit(
            repo_id,
            operations=[CommitOperationAdd(path_in_repo=n, path_or_fileobj=c) for n, c in contents.items()],
            commit_message=commit_message,
            revision=revision,
            # Whoever edits the card on the Hub in between is not overwritten: the Hub then refuses the commit.
            parent_commit=parent,
        )
    except Exception as error:
        raise _translate(error, f"cannot upload to {repo_id!r}") from error
    return str(info.oid)


def _stored_card(api: HfApi, repo_id: str, commit: str | None) -> str | None:
    """The card that a repository has at a commit."""
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_card(Path(api.hf_hub_download(repo_id, CARD_NAME, revision=commit, cache_dir=folder)))
        except LocalEntryNotFoundError:  # the Hub did not answer: it may have one
            raise
        except EntryNotFoundError:
            return None


def _download(
    repo_id: str,
    *,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "endpoint": _endpoint(),
    }
    at = "" if revision is None else f" at revision {revision!r}"
    try:
        config = Path(hf_hub_download(repo_id, CONFIG_NAME, revision=revision, **options))
        # The cache keeps one folder per commit, named by its hash: ask for the second file by that hash, so
        # that a push in between cannot pair it with another config.
        commit = config.parent.name
        weights = Path(hf_hub_download(repo_id, WEIGHTS_NAME, revision=commit, **options))
    except Exception as error:
        raise _translate(error, f"cannot load {repo_id!r}{at}", local_files_only) from error
    if weights.parent != config.parent:
        raise CheckpointError(
            f"cannot load {repo_id!r}{at}: the Hub cache holds {CONFIG_NAME} and {WEIGHTS_NAME} of different"
            " commits. Delete the repository from the cache and load it again."
        )
    return config.parent


def _translate(error: Exception, what: str, local_files_only: bool = False) -> Exception:
    """The Hub client's error as a built-in one that says what to do; others pass unchanged."""
    from huggingface_hub import utils as errors  # the one place that has them in every version

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        said = " ".join((getattr(error, "server_message", None) or "").split())
        return PermissionError(
            f"{what}: the repository is gated. Accept its terms on its page, then log in (`hf auth login`) or"
            f" pass token=... of that account.{said and f' The Hub says: {said}'}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{what}: there is no such repository on the Hub, or it is private and needs token=...; and"
            f" there is no such folder here. {_FORMS}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{what}: it has no such revision. Give a branch, a tag or a full commit hash.")
    # The next one is both "not in the cache" and an EntryNotFoundError: keep it before that.
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        if local_files_only or isinstance(error, errors.OfflineModeIsEnabled):
            return FileNotFoundError(
                f"{what}: it is not in the cache, and the network is switched off (local_files_only=True or"
                " HF_HUB_OFFLINE=1). Load it once with the network, or call load_prior() for the bundled one."
            )
        return ConnectionError(
            f"{what}: the Hub did not answer and the files are not in the cache. Check the connection (and"
            " HF_ENDPOINT), or use load_prior() for the bundled prior."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return CheckpointError(
            f"{what}: the repository lacks {CONFIG_NAME} or {WEIGHTS_NAME}. It is not a prior saved by this"
            " library; weights in pickle formats (.bin, .pt) are never opened."
        )
    if status == 412:
        return ConnectionError(f"{what}: the repository was changed meanwhile. Nothing was sent; push again.")
    if status in (401, 403):
        return PermissionError(f"{what}: the Hub refused the token (HTTP {status}). Pass token=... with access.")
    if isinstance(error, errors.HfHubHTTPError):
        return ConnectionError(f"{what}: the Hub answered with HTTP {status}. Try again later. ({error})")
    if type(error).__module__.partition(".")[0] in _HTTP_CLIENTS:
        return ConnectionError(f"{what}: the connection failed ({error}). Check it, and HF_ENDPOINT; then try again.")
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{what}: {error}")
    return error


def _endpoint() -> str | None:
    # Read at each call: the client itself looks only when it is first imported.
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def _near_miss(text: str) -> str:
    path = Path(text).expanduser()
    names = [BUNDLED] if path.name == text else []
    parent = path.parent
    if parent.is_dir():
        try:
            names += [child.name for child in parent.iterdir() if child.is_dir()]
        except OSError:
            names += []
    close = difflib.get_close_matches(path.name, names, n=1)
    if not close:
        return ""
    return f" Did you mean {text.removesuffix(path.name) + close[0]!r}?"
