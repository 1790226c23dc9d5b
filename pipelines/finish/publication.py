"""The last steps of a run: the manifest, and the pointer to its version.

What is published must be whole when the run ends with 0, whatever other runs and `bestkept clean` do meanwhile. A removal
announces itself before it removes anything, and the shards are looked at again when the manifest is there: then no removal has
begun before it was.
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
    """Publish a manifest whose shards stand, after what `describe` writes; then let `latest.json` name its version,
    unless `accept` raises.

    Raises `StorageError` where the shards are gone or the version is being removed, `ConflictError` where the output is another
    run's or holds other shards.
    """
    owner.settle()
    _check(manifest, owner.output, turn)
    try:
        describe()
    except BestkeptError:  # where the output was removed meanwhile, what it reads is missing
        _check(manifest, owner.output, turn)
        raise
    owner.publish("manifest.json", to_json(manifest))
    _check(manifest, owner.output, turn)
    accept()
    set_latest(turn)
    _check(manifest, owner.output, turn)  # once more: now nothing removes it that had not begun before


def _check(manifest: Mapping[str, Any], output: str, turn: VersionRun | None) -> None:
    """Check that the shards of a manifest stand, alone and to stay."""
    refuse_removal(turn)
    missing = missing_shards(output, manifest)
    if missing:
        raise StorageError(
            f"{join(output, missing[0])} is missing, or not what this run wrote: the output was removed during the run; run the "
            "same command again"
        )
