"""`bestkept clean`: removes versions of an output that are no longer needed, and with `scores` the files that only they needed.

It keeps the version that `latest.json` names, the newest complete versions, those whose run began after the one that set
`latest.json` and may be about to set it, and incomplete versions that a run may still be working on. The newest version is that
whose run began last (`versions`). The manifest of a version is removed first, so a version with a manifest always has its shards.
Before that, a file in `removing/` announces the removal: a run that begins to make the version again then ends. An interrupted
removal is finished by the next `clean`, or cancelled if a run has begun since and the manifest still exists. Two cleanings of one
root at once are not safe: one may still be removing a version that the other has removed and a run has begun to make again.
No Beam.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.errors import InputError
from pipelines.finish.claim import read_manifest
from pipelines.finish.versions import (
    ID,
    LATEST,
    REMOVING,
    RUNS,
    VERSIONS,
    Latest,
    RunRecord,
    path_of,
    read_latest,
    read_runs,
    run_numbers,
    run_path,
)
from pipelines.score import score_files
from pipelines.storage import publish
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import REQUESTS_AT_ONCE, absolute, join, names_in, read_bytes, size_of
from pipelines.storage.removal import DatedFile, directories_in, files_below, remove, remove_all

log = logging.getLogger(__name__)

_FINGERPRINT = re.compile("[0-9a-f]{24}")


@dataclass(frozen=True)
class Version:
    """One of the outputs under a root."""

    id: str
    run: RunRecord | None  # the last run that began to make it
    manifest: dict[str, Any] | None  # None if it is not complete
    going: bool = False  # whether its removal has begun

    @property
    def number(self) -> int:
        return 0 if self.run is None else self.run.number


@dataclass
class CleanResult:
    """The versions and scores that were removed or, in a dry run, would be."""

    root: str
    kept: list[str] = field(default_factory=list)  # version ids, the newest first
    versions: list[str] = field(default_factory=list)  # version ids
    scores: list[str] = field(default_factory=list)  # names below the root's scores


def clean(root: str, *, keep: int, unfinished_days: float, scores: bool, dry_run: bool) -> CleanResult:
    """Remove all but the `keep` newest complete versions and others that must stay; unfinished versions and scores only if they
    are `unfinished_days` old. Raises `InputError` for a directory that is not a root of versions, and `StorageError`."""
    root = absolute(root).rstrip("/")
    _refuse_others(root)
    before = datetime.now(UTC) - timedelta(days=unfinished_days)
    versions = list_versions(root)
    staying = kept_of(versions, keep=keep, latest=read_latest(root), before=before)
    going = [version for version in versions if version.id not in staying]
    cleaned = CleanResult(root, kept=[version.id for version in versions if version.id in staying])
    for version in reversed(going):  # the oldest first
        if dry_run or remove_version(root, version):
            cleaned.versions.append(version.id)
    if not dry_run:
        for version in versions:
            if version.going and version.id in staying:
                remove(_mark(root, version.id))
        _remove_runs(root, before, [version for version in going if version.id in cleaned.versions])
    if scores:  # listed again: a run may have begun since
        left = [version for version in list_versions(root) if version.id not in cleaned.versions]
        cleaned.scores = unneeded_scores(join(root, "scores"), left, before=before)
        if not dry_run:
            remove_all(join(root, "scores"), cleaned.scores)
    return cleaned


def _refuse_others(root: str) -> None:
    if size_of(join(root, LATEST)) is None and not run_numbers(root):
        raise InputError(
            f"{root} is not a root of versions: it has neither {LATEST} nor {RUNS}/; give the output.path of runs with "
            "output.versions=true"
        )
    if size_of(join(root, LATEST)) is not None and read_latest(root) is None:
        raise InputError(
            f"{join(root, LATEST)} does not name a version, so the versions in use are unknown; run the command of the "
            "latest version again to fix it"
        )


def _latest(root: str) -> str | None:
    latest = read_latest(root)
    return None if latest is None else latest.version


def list_versions(root: str) -> list[Version]:
    """All versions, newest first: by the number of the last run that began to make each."""
    runs = {run.version: run for run in read_runs(root)}  # ascending, so the last one is kept
    ids = [name for name in directories_in(join(root, VERSIONS)) if ID.fullmatch(name)]
    going = {name.removesuffix(".json") for name in names_in(join(root, REMOVING))}
    versions = [Version(name, runs.get(name), read_manifest(path_of(root, name)), name in going) for name in ids]
    return sorted(versions, key=lambda version: (version.number, version.id), reverse=True)


def kept_of(versions: Iterable[Version], *, keep: int, latest: Latest | None, before: datetime) -> set[str]:
    """The ids of the versions to keep. Pure.

    They are the latest, the newest `keep` complete ones, complete ones that may become the latest, and unfinished ones begun at
    `before` or later, or at an unknown time. If their removal has begun, only the first and the third kind are kept.
    """
    versions = list(versions)  # the newest first
    last = 0 if latest is None else latest.number
    complete = [version for version in versions if version.manifest is not None]
    newest = [version.id for version in complete if not version.going][:keep]
    next_ones = [version.id for version in complete if version.number > last]
    unfinished = [version for version in versions if version.manifest is None and not version.going]
    young = [version.id for version in unfinished if not _is_older(version.run, before)]
    return {*newest, *next_ones, *young, *([] if latest is None else [latest.version])}


def _is_older(run: RunRecord | None, before: datetime) -> bool:
    return run is not None and run.started < before


def remove_version(root: str, version: Version) -> bool:
    """Remove a version, unless, since it was listed, a run has begun to make it or has completed it, or it became the latest."""
    mark = _mark(root, version.id)
    publish.create(mark, to_json({"version": version.id}))
    begun = max((run.number for run in read_runs(root) if run.version == version.id), default=0)
    path = path_of(root, version.id)
    ended = version.manifest is None and not version.going and read_manifest(path) is not None
    if begun != version.number or ended or _latest(root) == version.id:
        remove(mark)
        log.info("version %s is in use again, and is kept", version.id)
        return False
    remove(join(path, "manifest.json"))
    remove_all(path, [file.name for file in files_below(path)])
    remove(mark)
    return True


def _mark(root: str, version: str) -> str:
    return join(root, REMOVING, f"{version}.json")


def _remove_runs(root: str, before: datetime, removed: Iterable[Version]) -> None:
    """Remove the records of runs that are not the last of their version, whose version was `removed`, or that began before
    `before` and left no version. The record with the largest number stays, so that no number is used twice."""
    gone = {version.id: version.number for version in removed}
    runs = read_runs(root)
    existing = set(directories_in(join(root, VERSIONS)))
    last = {run.version: run.number for run in runs}
    needed = {number for version, number in last.items() if version in existing} | {max(last.values(), default=0)}
    for run in runs:
        begun = run.number == last[run.version] > gone.get(run.version, 0)  # it may not have written anything yet
        young = begun and not _is_older(run, before)
        if run.number not in needed and not young:
            remove(run_path(root, run.number))


def unneeded_scores(scores: str, versions: Iterable[Version], *, before: datetime) -> list[str]:
    """Names of files below a directory of scores that none of these versions needs and that are older than `before`: score files
    of models or input files that no version has, plans, and rewritten copies of inputs (the latter two only if the runs of all
    versions have records). Raises `InputError` if an unfinished version has no record of the scores that it needs."""
    versions = list(versions)
    needed, names = _needed(versions), list[str]()
    if all(version.run is not None for version in versions):
        plans = {name for version in versions if version.run is not None for name in version.run.plans}
        copies = {copy for name in plans for copy in _copies(join(scores, "plans", name))}
        old_plans = _old_names(files_below(join(scores, "plans")), before)
        names += [f"plans/{name}" for name in old_plans if name not in plans]
        rewritten = _old_names(files_below(join(scores, "rewritten")), before)
        names += [f"rewritten/{name}" for name in rewritten if name.split("/", maxsplit=1)[0] not in copies]
    for fingerprint in filter(_FINGERPRINT.fullmatch, directories_in(scores)):
        directory = join(scores, fingerprint)
        old = _old_names(files_below(directory), before)
        keys = needed.get(fingerprint, frozenset())
        if keys is not None:
            names += [f"{fingerprint}/{name}" for name in (_scores_of_others(directory, old, keys) if keys else old)]
    return sorted(names)


def _needed(versions: Iterable[Version]) -> dict[str, frozenset[str] | None]:
    """Fingerprint → keys of the input files whose scores are needed, None for all."""
    needed: dict[str, frozenset[str] | None] = {}
    for version in versions:
        if version.manifest is not None:
            keys = frozenset(file["key"] for file in version.manifest["inputs"])
            for fingerprint in _fingerprints(version.manifest):
                known = needed.get(fingerprint, frozenset())
                needed[fingerprint] = None if known is None else known | keys
        elif version.run is not None:
            needed.update(dict.fromkeys(version.run.fingerprints))
        else:
            raise InputError(
                f"version {version.id} is unfinished, and {RUNS}/ does not say which scores it needs; remove it, or leave "
                "--scores out"
            )
    return needed


def _fingerprints(manifest: dict[str, Any]) -> Iterator[str]:
    """The fingerprints of the rewards of an output, of the models of an ensemble, and of measures without a model."""
    yield manifest["fingerprint"]
    for measure in manifest.get("measures", ()):
        yield measure["fingerprint"]
    for signal in manifest.get("signals", {}).values():
        if "fingerprint" in signal:
            yield signal["fingerprint"]
    for member in manifest["model"].get("members", ()):
        yield member["fingerprint"]


def _copies(plan: str) -> Iterator[str]:
    """The folders of rewritten inputs that a plan file names."""
    data = read_bytes(plan)
    for file in json.loads(data)["files"] if data is not None else ():
        if file.get("copy") is not None:
            yield file["copy"].rstrip("/").rsplit("/", 1)[-1]


def _old_names(files: Iterable[DatedFile], before: datetime) -> list[str]:
    return [file.name for file in files if file.modified is not None and file.modified < before]


def _scores_of_others(directory: str, names: Collection[str], keys: Collection[str]) -> list[str]:
    """The names of valid score files of input files other than these."""
    candidates = [name for name in names if name.endswith(".parquet") and "/" not in name]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        read = pool.map(lambda name: score_files.read(join(directory, name)), candidates)
        return [name for name, file in zip(candidates, read, strict=True) if file and file[1].file_key not in keys]
