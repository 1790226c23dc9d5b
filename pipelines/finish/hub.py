"""Uploads a finished output to the Hugging Face Hub: the data set and its description, and no file twice.

The upload consists of `data/`, the card, the manifest and the report. It excludes `scores/` (checkpoints of this project, larger
than the data set and useless elsewhere), `rejected/`, `claim.json` and `run.json` (they name files and machines of the run), and
files that only runs use.
The output directory is only read: no state of the upload is stored in it, since the repository itself lists its files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple, TypeVar

from pipelines.config.output import HubConfig
from pipelines.errors import ConfigError, ConflictError, StorageError
from pipelines.storage.stores.retry import pause_after

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_ATTEMPTS = 4  # of each step; within each, the client also retries its requests
_CHUNK = 1 << 20
_TRANSIENT = {408, 409, 425, 429}
_SHARDS = ["data/train-*.parquet", "data/test-*.parquet"]
_MANIFEST = "manifest.json"
_FILES = ["README.md", _MANIFEST, "report.html"]
_RESUMES = "the output is complete; run the same command again to upload the missing files"
_REMEDIES = {
    400: "the Hub rejects the name or the card; also check output.license",
    401: "give a token that is still valid in HF_TOKEN, or sign in with `hf auth login`",
    403: "give a token in HF_TOKEN with write access to this repository, and create it if it does not exist",
    404: "check the name, and that the token in HF_TOKEN has access to it",
}


class PushResult(NamedTuple):
    """The address of an output on the Hub, and whether this run uploaded it."""

    url: str
    fresh: bool


def check(hub: HubConfig | None) -> None:
    """Check the settings of an upload before the run does any work, without network access. Raises `ConfigError`."""
    if hub is None:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            "output.push_to_hub needs the network, and HF_HUB_OFFLINE is set; unset it, or leave push_to_hub out"
        )
    if not get_token():
        raise ConfigError(
            f"output.push_to_hub is {hub.repo!r}, and there is no token for it; set HF_TOKEN, or sign in with "
            "`hf auth login`"
        )


def push(output: str, hub: HubConfig, manifest: Mapping[str, Any]) -> PushResult:
    """Upload a finished local output, unless the repository already has exactly these files.

    At most 256 files, or any number with a client older than 2.0, are one commit. More files are several commits, which the next
    call resumes after an interruption. Shards of an earlier upload are removed from the branch; its history keeps them. Raises
    `ConflictError` if the repository has other data, and `StorageError` with a remedy for failures of the Hub or the network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # bestkept shows its own
    api = HfApi()
    repo = {"repo_id": hub.repo, "repo_type": "dataset"}
    branch = {**repo, "revision": hub.revision}
    url = f"{api.endpoint}/datasets/{hub.repo}" + (f"/tree/{hub.revision}" if hub.revision else "")
    private = hub.private is not False
    _retry(lambda: api.create_repo(**repo, private=private, exist_ok=True), "create", hub)
    if hub.revision is not None:
        _retry(lambda: api.create_branch(**repo, branch=hub.revision, exist_ok=True), "create the branch of", hub)
    remote = _retry(lambda: _list_files(api.list_repo_tree(**branch, recursive=True)), "list", hub)
    local = _local_files(output, manifest)
    shards = sorted(name for name in remote if any(fnmatch(name, pattern) for pattern in _SHARDS))
    if _MANIFEST not in remote:
        _refuse_others(shards, output, local, remote, hub)
    if set(shards) <= local.keys() and all(_is_same(output, name, local, remote) for name in local):
        return PushResult(url, fresh=False)
    log.info("uploading %d files to %s", len(local), url)

    def upload() -> None:
        api.upload_folder(
            **branch,
            folder_path=output,
            allow_patterns=[*_SHARDS, *_FILES],
            delete_patterns=_SHARDS,
            commit_message="Upload a data set curated by bestkept",
        )

    _retry(upload, "upload to", hub)
    return PushResult(url, fresh=True)


def _local_files(output: str, manifest: Mapping[str, Any]) -> dict[str, int]:
    """The files of the data set: name → bytes."""
    names = [*(shard["name"] for shard in manifest["shards"]), *_FILES]
    return {name: os.path.getsize(path) for name in names if os.path.isfile(path := os.path.join(output, name))}


def _list_files(entries: Any) -> dict[str, Any]:
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}  # folders have none


def _refuse_others(
    shards: Iterable[str], output: str, local: Mapping[str, int], remote: Mapping[str, Any], hub: HubConfig
) -> None:
    """Raise `ConflictError` for shards without a manifest, unless an interrupted upload of this output left them;
    other tools use the same names."""
    for name in shards:
        if name not in local or not _is_same(output, name, local, remote, by_content=True):
            raise ConflictError(
                f"output.push_to_hub names {hub.repo}, which contains data not written by bestkept ({name}); name another "
                "repository or revision, or remove that data"
            )


def _is_same(
    output: str, name: str, local: Mapping[str, int], remote: Mapping[str, Any], *, by_content: bool = False
) -> bool:
    """Return whether the repository has the same file. Shards are compared by size alone, unless `by_content`: the manifest,
    which is compared by content, contains their digests."""
    entry = remote.get(name)
    if entry is None or entry.size != local[name]:
        return False
    if name not in _FILES and not by_content:
        return True
    with open(os.path.join(output, name), "rb") as file:
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest())
        blob = hashlib.sha1(b"blob %d\0" % local[name], usedforsecurity=False)  # git's name for a file
        while chunk := file.read(_CHUNK):
            blob.update(chunk)
    return bool(entry.blob_id == blob.hexdigest())


def _retry(step: Callable[[], Result], doing: str, hub: HubConfig) -> Result:
    """The result of `step`, retried after transient failures; messages of the client are never passed on."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return step()
        except Exception as error:
            status, cause = _status(error), _cause(error)
            if status is None and isinstance(error, ValueError | TypeError | LookupError | AttributeError):
                raise  # a programming error, which must not be hidden
        may_pass = status is None or status in _TRANSIENT or status >= 500
        if not may_pass:
            remedy = _REMEDIES.get(status or 0, "check the name and the token")
            raise StorageError(f"cannot {doing} {hub.repo} on the Hub: {cause}; {remedy}; {_RESUMES}")
        if attempt < _ATTEMPTS:
            log.info("trying to %s %s again: %s", doing, hub.repo, cause)
            time.sleep(pause_after(attempt))
    raise StorageError(
        f"cannot {doing} {hub.repo} on the Hub: {cause}, {_ATTEMPTS} attempts; check the network and HF_ENDPOINT; {_RESUMES}"
    )


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an exception or of its causes, if one has a status."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _cause(error: BaseException) -> str:
    status = _status(error)
    return type(error).__name__ if status is None else f"{status} ({type(error).__name__})"
