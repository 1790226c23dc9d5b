"""Claim and manifest: the files that say which selection an output belongs to, and that it is complete.

`claim.json` is created first and holds the hashes of inputs and selection; `manifest.json` is written last, and an output
without it is incomplete. Neither holds times, places or row text: equal inputs and settings give equal bytes.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.errors import ConflictError, StorageError
from pipelines.storage import publish
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import anything_below, join, read_bytes, read_with_version, size_of


def claim(output: str, *, inputs: str, selection: str, plan: str) -> bool:
    """Claim an output for inputs and selection; return whether exactly this plan made the claim.

    An equal claim joins: every write is idempotent. A different one takes over as long as nothing is published there, so
    that a corrected input or model can go to the same place; after that it is a conflict. Two runs that take over from each
    other at once still cannot mix: shards and manifest are created once, and must be equal.
    `plan` also covers file versions, and is no part of the comparison: a touched file is not another input.
    Raises `ConflictError` (exit 6), or `StorageError` (5) where the place is not writable.
    """
    path = join(output, "claim.json")
    content = {"inputs": inputs, "selection": selection, "plan": plan}
    existing = None
    while existing is None:  # a claim that is removed before it is read does not count
        if publish.create(path, to_json(content)):
            return True
        existing = read_with_version(path)
    data, version = existing
    try:
        claimed = json.loads(data)
    except ValueError:
        claimed = {}
    parts = {"inputs": "input files or model", "selection": "select or output settings"}
    other = [words for key, words in parts.items() if claimed.get(key) != content[key]]
    if not other:
        return bool(claimed.get("plan") == plan)
    if _holds_data(output):
        raise ConflictError(
            f"output.path {output} belongs to a run with other {' and '.join(other)}; choose another output.path "
            f"(scores.path={join(output, 'scores')} re-uses what is scored there)"
        )
    if not publish.replace(path, to_json(content), version=version):
        raise ConflictError(
            f"output.path {output} has been claimed by another run at this moment; choose another output.path, or run again when "
            "that one has ended"
        )
    return True


def _holds_data(output: str) -> bool:
    """Return whether any part of a data set is there."""
    parts = ("manifest.json", "README.md", "data", "rejected", "report.json", "samples.parquet")
    return any(anything_below(join(output, name)) for name in parts)


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


def require_manifest(output: str) -> dict[str, Any]:
    """The manifest of a run that has ended well. Raises `StorageError` where it is missing nevertheless."""
    manifest = read_manifest(output)
    if manifest is None:
        raise StorageError(
            f"the run has ended well, and {output} has no manifest.json; run the same command again, which resumes from there"
        )
    return manifest


def read_complete_manifest(output: str) -> dict[str, Any] | None:
    """The manifest of an output whose every shard is there in full size, else None."""
    manifest = read_manifest(output)
    if manifest is None:
        return None
    for shard in manifest["shards"]:
        if size_of(join(output, shard["name"])) != shard["bytes"]:
            return None
    return manifest
