"""The check of a new version against the latest one: its drift, written as `drift.json`, and the limits on it."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.config.run import Limits
from pipelines.errors import InputError, RejectedError
from pipelines.finish.claim import read_manifest, require_manifest
from pipelines.finish.versions import VersionRun, path_of, read_latest, refuse_removal
from pipelines.report.drift import drift
from pipelines.report.write import DRIFT, read_numbers
from pipelines.storage import publish
from pipelines.storage.canonical_json import Json, to_json
from pipelines.storage.files import join

log = logging.getLogger(__name__)


def write_drift(turn: VersionRun | None, manifest: Json) -> dict[str, Any] | None:
    """Compare a version that has its report's numbers with the one that `latest.json` names, and write `drift.json`.

    Return its content; None if no earlier version has the numbers of a report of this release.
    """
    latest = None if turn is None else read_latest(turn.root)
    if turn is None or latest is None or latest.version == turn.version:
        return None
    path = path_of(turn.root, latest.version)
    before = read_manifest(path)
    if before is None:
        log.warning("the drift since the previous version is unknown: %s has no manifest.json", path)
        return None
    try:
        found = drift((before, read_numbers(path)), (manifest, read_numbers(turn.path)))
    except InputError as error:
        log.warning("the drift since the previous version is unknown: %s", error.message)
        return None
    refuse_removal(turn)
    content = {"against": latest.version, **found}
    publish.replace(join(turn.path, DRIFT), to_json(content))
    return content


def check_drift(turn: VersionRun | None, limits: Limits) -> None:
    """Compare a published version with the one that `latest.json` names, if a limit requires it.

    Raises `RejectedError` if a limit is exceeded; the pointer must then not be moved.
    """
    if turn is None or (limits.max_reward_shift is None and limits.max_rejected_shift is None):
        return
    found = write_drift(turn, require_manifest(turn.path))
    if found is None:
        return
    reward, against = found["reward"], found["against"]
    shift = None if reward is None else reward["shift"]
    if limits.max_reward_shift is not None and shift is None and found["responses"]["new"]:
        log.warning("limits.max_reward_shift is not checked: the model has changed, or all previous rewards were equal")
    after = "new rows" if found["rows"] == "new" else "rows"
    if limits.max_reward_shift is not None and shift is not None and abs(shift) > limits.max_reward_shift:
        raise RejectedError(
            f"the mean reward of the {after} is {reward['new']:.4g}, and was {reward['old']:.4g} in version {against}: a "
            f"shift of {shift:+.2f} standard deviations, more than limits.max_reward_shift={limits.max_reward_shift:g}; "
            + _remedy(turn, "max_reward_shift")
        )
    rejected = found["rejected_shift"]
    if limits.max_rejected_shift is not None and rejected is not None and rejected > limits.max_rejected_shift:
        raise RejectedError(
            f"the share of rejected responses among the {after} is {rejected:.4%} larger than in version {against}, more "
            f"than limits.max_rejected_shift={limits.max_rejected_shift:g}; " + _remedy(turn, "max_rejected_shift")
        )


def _remedy(turn: VersionRun, limit: str) -> str:
    return (
        f"{join(turn.path, DRIFT)} has the figures. latest.json still names the previous version: correct the input, or, to "
        f"accept this version, run the same command with a higher limits.{limit}; nothing is scored again"
    )
