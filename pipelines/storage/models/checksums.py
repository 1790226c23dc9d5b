"""A model's directory on an object store: what lies there, and what its checksums file says of it.

`bestkept model fetch` writes that file last. It names every file with its size, its sha256 and the version that the store gave
it, so that a launcher knows what the weights are without reading them. It is believed as long as the store shows the same
versions: what was copied or written since is read and compared.
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

CHECKSUMS_FILE = "bestkept-checksums.json"
_FORMAT = 1


class FileSum(NamedTuple):
    """What a file holds."""

    bytes: int
    sha256: str


Files = Mapping[str, FileSum]


def digest_of(sums: Files) -> str:
    """32 hex digits that name this content: the same for the same files, wherever they lie."""
    fields = {name: list(each) for name, each in sums.items()}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Listing:
    """The files of a model at one moment; `others` lie beside them."""

    url: str
    model: Mapping[str, StoredObject]
    others: Mapping[str, StoredObject]

    @property
    def key(self) -> str | None:
        """Changes whenever a file does; None where the store gives no versions to tell that by."""
        if not all(each.version for each in self.model.values()):
            return None
        fields = {name: list(each) for name, each in self.model.items()}
        return hashlib.sha256(json.dumps([self.url, fields], sort_keys=True).encode()).hexdigest()[:32]


def list_model(url: str, *, with_weights: bool = True) -> Listing:
    """What lies at `url` now. Raises `ModelLoadError` where that is no model, `StorageError` where it cannot be listed."""
    from rm.identity import ModelError, require_weights, select_files

    if url.startswith("hf://"):
        raise ModelLoadError(f"model.path {url!r} is on the hub; write its id instead, 'owner/name'")
    try:
        there = stored_in(url)
    except FileNotFoundError:  # some drivers, where there is no bucket
        there = {}
    if "config.json" not in there:
        found = f"holds no config.json ({len(there):,} files)" if there else "holds nothing"
        raise ModelLoadError(
            f"model.path {url!r} {found}; expected a model's files right there: `bestkept model fetch ID_OR_DIR {url}` puts them"
        )
    if with_weights:
        try:
            require_weights(url, there)
        except ModelError as error:
            raise ModelLoadError(str(error)) from error
    model = select_files(there)
    return Listing(url.rstrip("/"), model, {name: each for name, each in there.items() if name not in model})


class Checksums(NamedTuple):
    """The content of a checksums file."""

    files: dict[str, FileSum]
    versions: dict[str, str]
    source: str

    def to_bytes(self) -> bytes:
        entries = {
            name: {"bytes": each.bytes, "sha256": each.sha256, "version": self.versions[name]}
            for name, each in sorted(self.files.items())
        }
        content = {"format": _FORMAT, "source": self.source, "files": entries}
        return (json.dumps(content, indent=2) + "\n").encode()


def read_checksums(url: str) -> Checksums | None:
    """The checksums file of a directory, None where there is none. Raises `StorageError` where it cannot be understood."""
    place = join(url, CHECKSUMS_FILE)
    data = files.read_bytes(place)
    if data is None:
        return None
    try:
        content: dict[str, Any] = json.loads(data)
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
    """(what the files hold by the checksums file, where the store shows that they are the very objects that it was written of;
    what they should hold by it), each None where it does not say.

    Raises `StorageError` where a file is missing, beyond those named, or of another size.
    """
    noted = read_checksums(listing.url) if CHECKSUMS_FILE in listing.others else None
    if noted is None:
        return None, None
    for name in sorted({*noted.files, *listing.model}):
        expected, there = noted.files.get(name), listing.model.get(name)
        if expected is None or there is None or (there.bytes is not None and expected.bytes != there.bytes):
            are = "is not there" if there is None else f"has {there.bytes:,} bytes"
            should = "names no such file" if expected is None else f"says {expected.bytes:,}"
            raise checksum_error(listing.url, name, f"{are}, and {CHECKSUMS_FILE} {should}")
    same = all(each.version and noted.versions[name] == each.version for name, each in listing.model.items())
    return (noted.files if same else None), noted.files


def checksum_error(url: str, name: str, how: str) -> StorageError:
    """The error where a directory is not what its checksums file says."""
    return StorageError(
        f"{url} is not what {CHECKSUMS_FILE} says, cut, damaged or changed since: {name} {how}; run "
        f"`bestkept model fetch` again, or remove {CHECKSUMS_FILE} to take the files as they are"
    )
