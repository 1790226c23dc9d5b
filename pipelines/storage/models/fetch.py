"""`bestkept model fetch`: copies a hub model or a local directory to a directory on an object store, or to a local one.

Files are created one after the other, the checksums file last: without it, no run treats the copy as complete, and the same
command resumes where it stopped. A model is never overwritten by another one, since a run may be reading it.
"""

from __future__ import annotations

import logging
import shutil
from hashlib import file_digest, sha256
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import (
    ConfigError,
    ConflictError,
    ModelLoadError,
    StorageError,
    hide_credentials,
    holds_credentials,
)
from pipelines.storage import files, publish
from pipelines.storage.files import StoredObject, absolute, join, stored_in
from pipelines.storage.models.cache import parts_of
from pipelines.storage.models.checksums import CHECKSUMS_FILE, Checksums, Files, FileSum, read_checksums
from pipelines.storage.models.locate import is_remote

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


class FetchResult(NamedTuple):
    """The result of a fetch."""

    destination: str
    source: str  # a directory's name, or a hub id with its commit
    files: dict[str, FileSum]
    sent: int  # number of files sent; the others existed there


def fetch_model(source: str, destination: str, *, revision: str | None = None) -> FetchResult:
    """Copy a model; files that exist at the destination are not sent again.

    Raises `ConfigError` for an invalid argument, `ModelLoadError` for a source that is not a model or has only pickled weights,
    `ConflictError` if there is another model at the destination, and `StorageError`.
    """
    from rm.calibration_record import CALIBRATION_FILE
    from rm.identity import ModelError, file_hashes, resolve_model, select_files

    _check_arguments(source, destination)
    try:
        directory = resolve_model(source, revision)
        _refuse_same(directory, destination)
        model: dict[str, Path] = select_files({file.name: file for file in directory.iterdir()})
        hashes = file_hashes(model)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    sums = {name: FileSum(file.stat().st_size, hashes[name]) for name, file in model.items()}
    place = absolute(destination).rstrip("/")
    complete = _is_complete(place, sums)
    sent = 0 if complete else sum(_send(file, join(place, name), sums[name]) for name, file in model.items())
    calibration = directory / CALIBRATION_FILE
    if calibration.is_file():  # no reward depends on it, and a later evaluation may have changed it
        publish.replace(join(place, CALIBRATION_FILE), calibration.read_bytes())
    local = Path(source).expanduser().is_dir()
    named = Path(directory).resolve().name if local else f"{source}@{directory.name}"  # for a hub model, its commit
    if not complete:
        stored = _list_stored(place)
        checksums = Checksums(sums, {name: stored[name].version for name in sums}, named)
        publish.replace(join(place, CHECKSUMS_FILE), checksums.to_bytes())
    return FetchResult(place, named, sums, sent)


def _check_arguments(source: str, destination: str) -> None:
    for name, argument in (("ID_OR_DIR", source), ("DESTINATION", destination)):
        if holds_credentials(argument):
            shown = hide_credentials(argument)
            raise ConfigError(f"{name} {shown!r} contains credentials; give them through the environment instead")
    if is_remote(source):
        raise ConfigError(
            f"ID_OR_DIR {source!r} is on an object store; expected a hub id or a local directory. Copy between stores with their "
            "own tools (`gcloud storage cp -r`, `aws s3 cp --recursive`)"
        )


def _refuse_same(directory: Path, destination: str) -> None:
    if not is_remote(destination) and Path(destination).expanduser().resolve() == directory.resolve():
        raise ConfigError(f"DESTINATION {destination!r} is the model's own directory; give another one")


def _is_complete(place: str, sums: Files) -> bool:
    """Return whether the whole model is there, according to a valid checksums file. Raises `ConflictError` if another model is
    there, before anything is sent."""
    from rm.identity import select_files

    stored = _list_stored(place)
    strange = sorted(select_files(stored).keys() - sums.keys())
    if strange:
        raise _conflict(place, strange[0], "which this model does not have")
    checksums = read_checksums(place) if CHECKSUMS_FILE in stored else None
    for name, expected in sums.items():
        if name in stored and stored[name].bytes not in (None, expected.bytes):
            raise _conflict(place, name, f"of {stored[name].bytes:,} bytes, not {expected.bytes:,}")
    if checksums is None or checksums.files != sums or not sums.keys() <= stored.keys():
        return False
    return all(checksums.versions[name] and checksums.versions[name] == stored[name].version for name in sums)


def _send(file: Path, place: str, expected: FileSum) -> bool:
    """Send a file; False if the same file exists there. Raises `ConflictError` if another one does."""
    remote, sent = files.object_at(place), False
    if (remote is None and not Path(place).exists()) or (remote is not None and remote.stat() is None):
        log.info("sending %s, %s bytes", place, f"{expected.bytes:,}")
        with file.open("rb") as stream:
            if remote is None:
                sent = publish.create(place, lambda out: shutil.copyfileobj(stream, out, _CHUNK))
            else:
                sent = remote.create(stream, expected.bytes)
    if not sent and _content(place) != expected:
        directory, _, name = place.rpartition("/")
        raise _conflict(directory, name, "with other content")
    return sent


def _content(place: str) -> FileSum:
    """Read an object, and return its size and checksum."""
    remote = files.object_at(place)
    if remote is None:
        with open(place, "rb") as file:
            return FileSum(Path(place).stat().st_size, file_digest(file, "sha256").hexdigest())
    seen, digest, size = remote.stat(), sha256(), 0
    if seen is None:
        raise StorageError(f"{place} has disappeared since it was listed; run the same command again")
    for part in parts_of(remote, seen):
        digest.update(part)
        size += len(part)
    return FileSum(size, digest.hexdigest())


def _list_stored(place: str) -> dict[str, StoredObject]:
    try:
        return stored_in(place)
    except FileNotFoundError:  # raised by some drivers for a missing bucket
        raise StorageError(f"cannot write {place}: there is no such bucket; create it, or fix its name") from None


def _conflict(place: str, name: str, what: str) -> ConflictError:
    return ConflictError(
        f"{place} holds {name}, {what}: another model lies there, or one that was cut; choose another DESTINATION, or remove "
        "that model if no run uses it"
    )
