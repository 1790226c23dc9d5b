"""The last steps of a run: the manifest, and the pointer to its version.

A published output must be complete when the run ends with 0, whatever other runs and `bestkept clean` do at the same time. A
removal announces itself before it removes anything, and the shards are checked again after the manifest is written. If that check
passes, no removal began before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.errors import BestkeptError, StorageError
from pipelines.finish.claim import missing_shards
from pipelines.finish.versions import VersionRun, refuse_removal, set_latest
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import join
from pipelines.storage.owner import Owner


def publish(
    manifest: Mapping[str, Any],
    owner: Owner,
    turn: VersionRun | None,
    *,
    describe: Callable[[], None] = lambda: None,
    accept: Callable[[], None] = lambda: None,
) -> None:
    """Publish a manifest whose shards exist, after the files that `describe` writes; then let `latest.json` name its version,
    unless `accept` raises.

    Raises `StorageError` if shards are missing or the version is being removed, and `ConflictError` if the output belongs to
    another run or contains other shards.
    """
    owner.settle()
    _check(manifest, owner.output, turn)
    try:
        describe()
    except BestkeptError:  # if the output has been removed, the files that it reads are missing
        _check(manifest, owner.output, turn)
        raise
    owner.publish("manifest.json", to_json(manifest))
    _check(manifest, owner.output, turn)
    accept()
    set_latest(turn)
    _check(manifest, owner.output, turn)  # again: a removal that begins later spares the latest version


def _check(manifest: Mapping[str, Any], output: str, turn: VersionRun | None) -> None:
    """Check that the shards of a manifest exist, that there are no others, and that no removal has begun."""
    refuse_removal(turn)
    missing = missing_shards(output, manifest)
    if missing:
        raise StorageError(
            f"{join(output, missing[0])} is missing, or not what this run wrote: the output was removed during the run; run the "
            "same command again"
        )
