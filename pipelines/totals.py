"""What scoring came to, summed over score files, and whether it is within the limits. No Beam."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable

from pipelines.config import Limits
from pipelines.corpus import place_of
from pipelines.corpus.files import counted_in_file
from pipelines.errors import RejectedError, StorageError
from pipelines.pieces import Share
from pipelines.records import Totals
from pipelines.storage.files import read_bytes
from pipelines.storage.objects import ScoreFile

log = logging.getLogger(__name__)


def totals_of(data: bytes) -> Totals:
    footer = ScoreFile.from_bytes(data).footer
    return Totals(
        rows=footer.rows,
        read=footer.responses,
        scored=footer.scored,
        rejected=Counter(footer.rejected),
        truncated=footer.truncated,
        tokens=footer.tokens,
        examples=tuple(
            (footer.file_key, *counted_in_file(footer.file_key, footer.unit_start, row), reason)
            for row, reason in footer.first_rejected
        ),
    )


def totals_at(path: str) -> Totals:
    """Those that a job has published. Raises `StorageError` where it has not."""
    data = read_bytes(path)
    if data is None:
        raise StorageError(
            f"scoring has ended, and {path} is not there; run the same command again: what is scored stays"
        )
    return Totals.from_json(json.loads(data))


def sum_totals(totals: Iterable[Totals]) -> Totals:
    return sum(totals, Totals())


def check_limits(totals: Totals, limits: Limits, *, model: str | None = None) -> Totals:
    """`totals` where they are within the limits; raises `RejectedError` (exit 4) with counts by reason, and with the name of the
    `model` where there are several."""
    if totals.read != totals.scored + totals.rejected.total():
        raise StorageError(
            f"score files say {totals.read} read, {totals.scored} scored and {totals.rejected.total()} rejected, which "
            "does not add up; remove the scores directory and score again"
        )
    fraction = totals.rejected.total() / totals.read if totals.read else 0.0
    if fraction > limits.max_rejected_fraction:
        reasons = ", ".join(f"{reason} {count}" for reason, count in totals.rejected.most_common())
        by = "" if model is None else f" by model {model}"
        first = ", ".join(f"{key} {place_of(key, start, row)} {reason}" for key, start, row, reason in totals.examples)
        raise RejectedError(
            f"{totals.rejected.total()} of {totals.read} responses were rejected{by} ({fraction:.4%}: {reasons}; "
            f"first: {first}), more than limits.max_rejected_fraction={limits.max_rejected_fraction}; mend the input, or raise "
            "the limit: nothing is scored again"
        )
    return totals


def check_share(totals: Totals, limits: Limits, share: Share | None, *, model: str | None = None) -> None:
    """`check_limits` of the whole; of a share, a warning."""
    try:
        check_limits(totals, limits, model=model)
    except RejectedError as error:
        if share is None:
            raise
        log.warning("in shard %s alone, %s", share, error.message)
