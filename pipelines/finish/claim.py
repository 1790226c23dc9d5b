"""Claim and manifest: the files that say which selection an output belongs to, and that it is complete.

`claim.json` is created first and contains the hashes of inputs and selection; `manifest.json` is written last, and an output
without it is incomplete. Neither contains times, paths or row text: equal inputs and settings give equal bytes.

Shards that a manifest does not name are refused, and never removed. No run leaves any, even if it is killed: all shard names
follow from `owner.json` and `shards.json`, which are never replaced (the tests check this in all states). Unnamed shards
therefore come from another program, or from an earlier release, whose run may still be alive and about to name them. No automatic
sweep is safe: if an output is removed while it is written, another run may own it a moment later. The user has to decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.errors import ConflictError, StorageError
from pipelines.storage import publish
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import anything_below, join, read_bytes, sizes_in
from pipelines.storage.owner import CLAIM, Owner
from rm.conversations import load_json

_SHARD = re.compile(r"data/(train|test)-[^/]*\.parquet")  # the shards that a reader finds


def claim(output: str, *, inputs: str, selection: str, plan: str, evaluations: Mapping[str, Any] | None = None) -> bool:
    """Claim an output for inputs and selection; return whether exactly this plan made the claim.

    A run with an equal claim joins: every write is idempotent. A different claim takes over until something is published, so
    that a corrected input or model can use the same output; after that it is a conflict. A claim does not decide which run owns
    the output: a live run may lose its claim, and two runs may take over from each other at once. `storage.owner` decides, before
    anything is published.
    `plan` also covers file versions, and is not compared: a touched file is not a different input. Nor are the models'
    `evaluations`. The output repeats those of the claim, even if a model is evaluated again while runs publish.
    Raises `ConflictError` (exit 6), or `StorageError` (5) if the output is not writable.
    """
    path, owner = join(output, CLAIM), Owner(output, inputs, selection)
    settled = owner.is_settled()
    content: dict[str, Any] = {"inputs": inputs, "selection": selection, "plan": plan}
    if evaluations:
        content["evaluations"] = dict(evaluations)
    existing = publish.create_or_read(path, to_json(content))
    if existing is None:
        return True
    data, version = existing
    other = owner.differences(data)
    if not other:
        claimed = load_json(data)
        changed = claimed.get("evaluations") != content.get("evaluations")  # a model has been evaluated since
        if changed and not settled and not _holds_data(output):
            publish.replace(path, to_json({**content, "plan": claimed.get("plan")}), version=version)
        return bool(claimed.get("plan") == plan)
    if settled:
        return False  # taken over just as this selection began to publish; the other run publishes nothing
    if _holds_data(output):
        raise owner.conflict(other)
    if not publish.replace(path, to_json(content), version=version):
        raise ConflictError(
            f"output.path {output} has just been claimed by another run; choose another output.path, or run again once "
            "that run has ended"
        )
    owner.is_settled()  # a conflict is reported now, not after hours of scoring
    return True


def claimed_evaluations(output: str) -> dict[str, Any]:
    """The evaluations of the models that an output repeats, by fingerprint."""
    data = read_bytes(join(output, CLAIM))
    evaluations: dict[str, Any] = {} if data is None else load_json(data).get("evaluations", {})
    return evaluations


def _holds_data(output: str) -> bool:
    """Return whether any part of a data set exists."""
    parts = ("manifest.json", "README.md", "data", "rejected", "report.json", "samples.parquet")
    return any(anything_below(join(output, name)) for name in parts)


def read_manifest(output: str) -> dict[str, Any] | None:
    """Return the manifest, or None if the output is not complete."""
    path = join(output, "manifest.json")
    data = read_bytes(path)
    if data is None:
        return None
    try:
        value: dict[str, Any] = load_json(data)
    except ValueError as error:
        raise StorageError(f"{path} is damaged; remove it and run the same command again") from error
    return value


def require_manifest(output: str) -> dict[str, Any]:
    """Return the manifest of a successful run. Raises `StorageError` if it is missing."""
    manifest = read_manifest(output)
    if manifest is None:
        raise StorageError(
            f"the run succeeded, but {output} has no manifest.json; run the same command again, which resumes from there"
        )
    return manifest


def read_complete_manifest(owner: Owner) -> dict[str, Any] | None:
    """The manifest of an output, or None unless every shard exists with its full size.

    Raises `ConflictError` if the output belongs to another selection, or contains other shards as well.
    """
    manifest = read_manifest(owner.output)
    if manifest is None:
        return None
    owner.is_settled()  # read last: the owner is settled before the manifest exists, maybe after our claim
    return None if missing_shards(owner.output, manifest) else manifest


def missing_shards(output: str, manifest: Mapping[str, Any]) -> list[str]:
    """The names of the shards of a manifest that are missing, or not of full size.

    Raises `ConflictError` if there are other shards: a reader of `data/train-*` would also read those.
    """
    sizes = {f"data/{name}": size for name, size in sizes_in(join(output, "data")).items()}
    named = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
    beside = sorted(name for name in sizes.keys() - named.keys() if _SHARD.fullmatch(name))
    if beside:
        raise ConflictError(
            f"{join(output, beside[0])} is a shard that manifest.json does not name ({len(beside):,} such beside "
            f"{len(named):,}), which a reader of data/ would also read; remove it if nothing needs it, or choose another "
            "output.path"
        )
    return [name for name, size in named.items() if sizes.get(name) != size]
