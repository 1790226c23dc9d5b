"""Versions of an output under one root, and `latest.json`, which names the last complete one. No Beam.

    ROOT/versions/ID/...      one output each, laid out as without versions; ID is a hash of inputs, model and selection
    ROOT/runs/000042.json     the order in which runs began: each creates the file of the next number
    ROOT/latest.json          replaced atomically, after the manifest of the version that it names exists

No decision depends on clocks: of two concurrent runs, the one that began last wins, and the end of the other does not move the
pointer back. The step that publishes the manifest sets the pointer, so the launcher need not be running. If that step is killed
before it sets the pointer, the next run of the same version does so.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipelines.config import RunConfig
from pipelines.errors import InputError, StorageError
from pipelines.plan import Plans
from pipelines.storage import publish
from pipelines.storage.canonical_json import digest, to_json
from pipelines.storage.files import absolute, describe, filesystem, is_local, join, names_in, read_bytes, size_of
from rm.conversations import load_json

FORMAT = 1
LATEST, VERSIONS, RUNS, REMOVING = "latest.json", "versions", "runs", "removing"
_ID_LENGTH = 16
ID = re.compile(f"[0-9a-f]{{{_ID_LENGTH}}}")


class VersionRun(NamedTuple):
    """A run's place in the order of the runs under one root, and the version that it makes."""

    root: str
    version: str
    number: int  # from 1; 0 if no run is known

    @property
    def path(self) -> str:
        """The version's output."""
        return path_of(self.root, self.version)


class RunRecord(NamedTuple):
    """The record of a run in `runs/`."""

    number: int
    version: str
    started: datetime
    plans: tuple[str, ...]  # names of plan files
    fingerprints: tuple[str, ...]


class Latest(NamedTuple):
    """The content of `latest.json`."""

    version: str
    manifest: str  # SHA-256 of its manifest.json, in hex
    number: int  # of the run that set it


def path_of(root: str, version: str) -> str:
    return join(root, VERSIONS, version)


def version_of(plans: Plans, selection: str) -> str:
    """The id of the output of plans and a selection, their hash: equal for equal files (by name, size and version), model and
    settings."""
    files = [(file.key, file.version) for file in plans.whole.files]
    return digest({"inputs": plans.whole.content_hash, "files": files, "selection": selection})[:_ID_LENGTH]


def take_turn(config: RunConfig, plans: Plans, selection: str) -> VersionRun | None:
    """Register a run that is about to begin; None if outputs have no versions.

    If `latest.json` already names this version, the result is the run that set it: the pointer does not move. Raises
    `StorageError` if the version is being removed.
    """
    if not config.output.versions:
        return None
    root, version = absolute(config.path), version_of(plans, selection)
    latest = read_latest(root)
    if latest is not None and latest.version == version:
        return VersionRun(root, version, latest.number)
    all_plans = (plans.whole, *plans.members)
    return _next_turn(
        root,
        version,
        latest,
        plans=sorted({plan.file_name for plan in all_plans}),
        fingerprints=sorted({fingerprint for plan in all_plans for fingerprint in plan.fingerprints}),
    )


def _next_turn(root: str, version: str, latest: Latest | None, **known: Sequence[str]) -> VersionRun:
    content = {"format": FORMAT, "version": version, "started": datetime.now(UTC).isoformat(), **known}
    publish.sweep((root, join(root, RUNS)))
    number = 1 + max([latest.number if latest else 0, *run_numbers(root)])
    while not publish.create(run_path(root, number), to_json(content)):
        number += 1
    turn = VersionRun(root, version, number)
    # last, since a removal announces itself before it reads the runs: one of the two sees the other
    refuse_removal(turn)
    return turn


def refuse_removal(turn: VersionRun | None) -> None:
    """Raise `StorageError` if the version is being removed."""
    if turn is not None and size_of(join(turn.root, REMOVING, f"{turn.version}.json")) is not None:
        raise StorageError(
            f"{turn.path} is being removed by `bestkept clean {turn.root}`; wait until that ends, or run it again "
            "if it was interrupted; then run the same command again"
        )


def into_version(config: RunConfig, turn: VersionRun | None) -> RunConfig:
    """The configuration of a run that writes its version, with the scores that all versions share."""
    if turn is None:
        return config
    scores = config.scores.model_copy(update={"path": config.scores_path})
    output = config.output.model_copy(update={"path": turn.path})
    return config.model_copy(update={"scores": scores, "output": output})


def set_latest(turn: VersionRun | None) -> bool:
    """Let `latest.json` name a complete version, unless a later run has set it; return whether it then names this one.

    It may be called repeatedly, and by several processes at once: the largest number wins.
    """
    if turn is None:
        return False
    data = read_bytes(join(turn.path, "manifest.json"))
    if data is None:
        raise StorageError(f"{turn.path} no longer has a manifest.json; run the same command again")
    content = {
        "format": FORMAT,
        "version": turn.version,
        "path": f"{VERSIONS}/{turn.version}",
        "manifest": hashlib.sha256(data).hexdigest(),
        "run": turn.number,
        "set": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = join(turn.root, LATEST)

    def accept(data: bytes) -> bool | None:
        latest = _parse_latest(data)
        if latest is None or latest.number < turn.number:
            return None
        if (latest.version, latest.number) == (turn.version, turn.number) and latest.manifest != content["manifest"]:
            return None  # this run set it, to a manifest that has since been replaced
        return latest.version == turn.version

    with _hold_lock(turn.root):
        existing = read_bytes(path)  # first: an existing pointer is not written to
        standing = None if existing is None else accept(existing)
        return publish.settle(path, to_json(content), accepts=accept, ours=True) if standing is None else standing


def is_latest(turn: VersionRun | None) -> bool:
    """Return whether a run's output is the one that `latest.json` names; without versions, it always is."""
    latest = None if turn is None else read_latest(turn.root)
    return turn is None or (latest is not None and latest.version == turn.version)


def read_latest(root: str) -> Latest | None:
    """The content of `latest.json`; None if the file is missing or invalid (the next run replaces it)."""
    data = read_bytes(join(root, LATEST))
    return None if data is None else _parse_latest(data)


def latest_path(root: str) -> str:
    """The path of the latest complete version. Raises `InputError` if there is none."""
    root = absolute(root).rstrip("/")
    for _ in range(2):  # between the reads, the pointer may be replaced and its old version removed
        latest = read_latest(root)
        if latest is None:
            raise InputError(
                f"{root} has no {LATEST} that names a version; give the output.path of runs with output.versions=true, of which "
                "one has ended"
            )
        path = path_of(root, latest.version)
        data = read_bytes(join(path, "manifest.json"))
        if data is not None and hashlib.sha256(data).hexdigest() == latest.manifest:
            return path
    raise InputError(
        f"{join(root, LATEST)} names {path}, whose manifest.json is missing or has changed; run the command that made it again"
    )


def latest_or_self(output: str) -> str:
    """The output itself, or the latest version if it is a root of versions."""
    if size_of(join(output, "manifest.json")) is None and size_of(join(output, LATEST)) is not None:
        return latest_path(output)
    return output


def run_numbers(root: str) -> list[int]:
    """The numbers of all runs with a record, ascending."""
    stems = [name.removesuffix(".json") for name in names_in(join(root, RUNS))]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def run_path(root: str, number: int) -> str:
    return join(root, RUNS, f"{number:06d}.json")


def read_runs(root: str) -> list[RunRecord]:
    """The records of all runs by number. Raises `StorageError` for a damaged record."""
    runs = []
    for number in run_numbers(root):
        data = read_bytes(run_path(root, number))
        if data is None:  # removed since it was listed
            continue
        try:
            record = load_json(data)
            started = datetime.fromisoformat(record["started"])
            plans, fingerprints = tuple(record["plans"]), tuple(record["fingerprints"])
            runs.append(RunRecord(number, record["version"], started, plans, fingerprints))
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{run_path(root, number)} is damaged; remove it and run the same command again"
            ) from error
    return runs


def _parse_latest(data: bytes) -> Latest | None:
    try:
        content: Mapping[str, Any] = load_json(data)
        latest = Latest(str(content["version"]), str(content["manifest"]), int(content["run"]))
    except (ValueError, KeyError, TypeError):
        return None
    return latest if ID.fullmatch(latest.version) else None


@contextmanager
def _hold_lock(root: str) -> Iterator[None]:
    """Admit one process at a time on a local disk, where a rename cannot depend on the current content as on object stores."""
    if not is_local(root):
        yield
        return
    descriptor = _open_lock(join(filesystem(root)[1], ".latest.lock"))
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: str) -> int:
    """Open a lock file, for reading if another user created it. Raises `StorageError` with the name of that user."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY)
        owner, remedy = "", "grant write access to its directory, or choose another output.path"
        with suppress(OSError):
            user = os.stat(path).st_uid
            owner = f", which belongs to {_user_name(user)}"
            remedy = f"let that user grant access (chmod a+rw {path}), run as that user, or choose another output.path"
        raise StorageError(f"cannot open the lock {path}{owner}: {describe(error)}; {remedy}") from error


def _user_name(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:  # as in many containers
        return f"user {user}"
