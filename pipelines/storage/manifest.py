"""Claim and manifest: which selection an output belongs to, and that it is complete.

`claim.json` is created first and holds the hash of plan and selection; `manifest.json` is written last, and until it is
there, the output is not. Neither holds times, places or row text: equal inputs and settings give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipelines.errors import ConflictError, StorageError
from pipelines.storage import publish
from pipelines.storage.files import filesystem, join, read_bytes


def to_json(value: Mapping[str, Any]) -> bytes:
    """Canonical, readable JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def claim(output: str, *, plan: str, selection: str) -> None:
    """Claim an output for one plan and selection; an equal claim joins.

    Raises `ConflictError` (exit 6) where another one holds it, `StorageError` (5) where the place is not writable.
    """
    path = join(output, "claim.json")
    mine = {"plan": plan, "selection": selection}
    if publish.create(path, to_json(mine)):
        return
    data = read_bytes(path)
    try:
        theirs = json.loads(data or b"")
    except ValueError as error:
        raise StorageError(f"{path} is damaged; remove it if no other run uses this output") from error
    if theirs != mine:
        parts = {"plan": "input files or model", "selection": "select or output settings"}
        what = " and ".join(words for key, words in parts.items() if theirs.get(key) != mine[key])
        raise ConflictError(
            f"output.path {output} belongs to a run with other {what}; choose another output.path "
            f"(scores.path={join(output, 'scores')} re-uses what is scored there)"
        )


def read_manifest(output: str) -> dict[str, Any] | None:
    """The manifest, or None where the output is not complete."""
    path = join(output, "manifest.json")
    data = read_bytes(path)
    if data is None:
        return None
    try:
        value: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{path} is damaged; remove it and run the same command again") from error
    return value


def complete(output: str) -> dict[str, Any] | None:
    """The manifest of an output whose every shard is there in full size, else None."""
    manifest = read_manifest(output)
    if manifest is None:
        return None
    for shard in manifest["shards"]:
        fs, name = filesystem(join(output, shard["name"]))
        try:
            if fs.info(name)["size"] != shard["bytes"]:
                return None
        except FileNotFoundError:
            return None
    return manifest
