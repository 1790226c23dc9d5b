"""A model's directory on an object store: its listing, and its checksums file.

`bestkept model fetch` writes the checksums file last. It records each file's name, size, sha256 and version on the store, so that
a launcher has the hashes of the weights without reading them. It is trusted as long as the store shows the same versions: files
that have been copied or written since then are read and compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.errors import ModelLoadError, StorageError
from pipelines.storage import files
from pipelines.storage.files import StoredObject, join, stored_in
from rm.conversations import load_json

CHECKSUMS_FILE = "bestkept-checksums.json"
_FORMAT = 1


class FileSum(NamedTuple):
    """Size and checksum of a file."""

    bytes: int
    sha256: str


Files = Mapping[str, FileSum]


def digest_of(sums: Files) -> str:
    """32 hex digits that identify this content: the same for the same files, wherever they are stored."""
    fields = {name: list(file) for name, file in sums.items()}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Listing:
    """The files of a model at one moment; `others` are the other files in its directory."""

    url: str
    model: Mapping[str, StoredObject]
    others: Mapping[str, StoredObject]

    @property
    def key(self) -> str | None:
        """A string that changes when a file does; None if the store reports no versions."""
        if not all(file.version for file in self.model.values()):
            return None
        fields = {name: list(file) for name, file in self.model.items()}
        return hashlib.sha256(json.dumps([self.url, fields], sort_keys=True).encode()).hexdigest()[:32]


def list_model(url: str, *, with_weights: bool = True) -> Listing:
    """List the files at `url`. Raises `ModelLoadError` if they are not a model, `StorageError` if they cannot be listed."""
    from rm.identity import ModelError, refuse_adapters, require_weights, select_files

    if url.startswith("hf://"):
        raise ModelLoadError(f"model.path {url!r} is on the hub; write its id instead, 'owner/name'")
    try:
        stored = stored_in(url)
    except FileNotFoundError:  # raised by some drivers for a missing bucket
        stored = {}
    try:
        refuse_adapters(url, stored)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    if "config.json" not in stored:
        cause = f"has no config.json ({len(stored):,} files)" if stored else "is empty"
        raise ModelLoadError(
            f"model.path {url!r} {cause}; expected a model's files there: `bestkept model fetch ID_OR_DIR {url}` puts them"
        )
    if with_weights:
        try:
            require_weights(url, stored)
        except ModelError as error:
            raise ModelLoadError(str(error)) from error
    model = select_files(stored)
    return Listing(url.rstrip("/"), model, {name: file for name, file in stored.items() if name not in model})


class Checksums(NamedTuple):
    """The content of a checksums file."""

    files: dict[str, FileSum]
    versions: dict[str, str]
    source: str

    def to_bytes(self) -> bytes:
        entries = {
            name: {"bytes": file.bytes, "sha256": file.sha256, "version": self.versions[name]}
            for name, file in sorted(self.files.items())
        }
        content = {"format": _FORMAT, "source": self.source, "files": entries}
        return (json.dumps(content, indent=2) + "\n").encode()


def read_checksums(url: str) -> Checksums | None:
    """Read a directory's checksums file; None if there is none. Raises `StorageError` if it cannot be parsed."""
    place = join(url, CHECKSUMS_FILE)
    data = files.read_bytes(place)
    if data is None:
        return None
    try:
        content: dict[str, Any] = load_json(data)
        if content["format"] != _FORMAT:
            raise ValueError
        entries = content["files"].items()
        sums = {name: FileSum(int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries}
        versions = {name: str(entry["version"]) for name, entry in entries}
        return Checksums(sums, versions, str(content["source"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StorageError(
            f"{place} is not a checksums file of this version of bestkept; run `bestkept model fetch` again, or remove it"
        ) from None


def known_files(listing: Listing) -> tuple[dict[str, FileSum] | None, dict[str, FileSum] | None]:
    """Return (the files' checksums, None unless the store shows the versions that the checksums file names; the checksums in
    that file, None if there is no file).

    Raises `StorageError` if a file is missing, has another size, or is not in the checksums file.
    """
    checksums = read_checksums(listing.url) if CHECKSUMS_FILE in listing.others else None
    if checksums is None:
        return None, None
    for name in sorted({*checksums.files, *listing.model}):
        expected, stored = checksums.files.get(name), listing.model.get(name)
        if expected is None or stored is None or (stored.bytes is not None and expected.bytes != stored.bytes):
            are = "is not there" if stored is None else f"has {stored.bytes:,} bytes"
            should = "names no such file" if expected is None else f"says {expected.bytes:,}"
            raise checksum_error(listing.url, name, f"{are}, and {CHECKSUMS_FILE} {should}")
    same = all(file.version and checksums.versions[name] == file.version for name, file in listing.model.items())
    return (checksums.files if same else None), checksums.files


def checksum_error(url: str, name: str, how: str) -> StorageError:
    """The error for a directory that differs from its checksums file."""
    return StorageError(
        f"{url} is not what {CHECKSUMS_FILE} says, cut, damaged or changed since: {name} {how}; run "
        f"`bestkept model fetch` again, or remove {CHECKSUMS_FILE} to use the files as they are"
    )
