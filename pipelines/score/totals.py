"""Totals of scoring, summed over score files and checked against the limits, and the list of skipped files. No Beam."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipelines.config import Limits
from pipelines.corpus import place_of
from pipelines.corpus.files import place_in_file
from pipelines.errors import RejectedError, StorageError, carrying_errors
from pipelines.plan import Plan, plan_at
from pipelines.score.rejected import write_list
from pipelines.score.score_files import EXAMPLES, ScoreFile
from pipelines.score.work import CorpusShard
from pipelines.storage import canonical_json, publish
from pipelines.storage.files import read_bytes

log = logging.getLogger(__name__)

_OFTEN_EMPTY = ("cut_prompts", "left_out", "truncated_by_signals")
_COUNTERS = ("rejected", "left_out", "truncated_by_signals")


def totals_of(data: bytes) -> Totals:
    """The totals of one score file, from its descriptor as bytes."""
    descriptor = ScoreFile.from_bytes(data)
    footer = descriptor.footer
    cut = {side.columns[0].partition(".")[2]: side.truncated[0] for side in descriptor.sides if any(side.truncated)}
    return Totals(
        rows=footer.rows,
        read=footer.responses,
        scored=footer.scored,
        rejected=Counter(footer.rejected),
        truncated=footer.truncated,
        tokens=footer.tokens,
        cut_prompts=footer.cut_prompts,
        left_out=Counter(footer.left_out),
        truncated_by_signals=Counter(cut),
        examples=tuple(
            (footer.file_key, *place_in_file(footer.file_key, footer.unit_start, row), reason)
            for row, reason in footer.first_rejected
        ),
    )


def read_totals(path: str) -> Totals:
    """The totals that a job has published at `path`. Raises `StorageError` if there are none."""
    data = read_bytes(path)
    if data is None:
        raise StorageError(
            f"scoring has ended, and {path} is not there; run the same command again: finished scores are kept"
        )
    return Totals.from_json(json.loads(data))


def sum_totals(totals: Iterable[Totals]) -> Totals:
    return sum(totals, Totals())


def exceeds(totals: Totals, limits: Limits) -> bool:
    """Return whether more responses were rejected than the limits allow."""
    return totals.rejected.total() > limits.most_rejected(totals.read)


def check_limits(totals: Totals, limits: Limits, *, model: str | None = None, listed: str | None = None) -> Totals:
    """Return `totals` if they are within the limits; else raise `RejectedError` (exit 4) with counts by reason, the name of the
    `model` if there are several, and the path of the list of rejected responses, if they are `listed`."""
    if totals.read != totals.scored + totals.rejected.total():
        raise StorageError(
            f"score files count {totals.read} responses read, {totals.scored} scored and {totals.rejected.total()} rejected, "
            "which does not add up; remove the scores directory and score again"
        )
    if exceeds(totals, limits):
        fraction = totals.rejected.total() / totals.read
        reasons = ", ".join(f"{reason} {count}" for reason, count in totals.rejected.most_common())
        by = "" if model is None else f" by model {model}"
        first = ", ".join(f"{key} {place_of(key, start, row)} {reason}" for key, start, row, reason in totals.examples)
        raise RejectedError(
            f"{totals.rejected.total()} of {totals.read} responses were rejected{by} ({fraction:.4%}: {reasons}; "
            f"first: {first}), more than {limits.described_most_rejected}; fix the input, or raise the limit: nothing is scored "
            "again" + ("" if listed is None else f"; the rejected rows are listed in {listed}"),
            counts={name: count for name, count in totals.to_json().items() if name != "examples"},
        )
    return totals


def check_shard(
    totals: Totals, limits: Limits, shard: CorpusShard | None, *, model: str | None = None, listed: str | None = None
) -> None:
    """`check_limits`; for a shard, log a warning instead of raising the error."""
    try:
        check_limits(totals, limits, model=model, listed=listed)
    except RejectedError as error:
        if shard is None:
            raise
        log.warning("in shard %s alone, %s", shard, error.message)


@dataclass(frozen=True)
class Totals:
    """Counts of responses, with read = scored + rejected."""

    rows: int = 0
    read: int = 0
    scored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    # the first rejected responses: file, start of the unit, row in it, reason
    examples: tuple[tuple[str, int, int, str], ...] = ()
    cut_prompts: int = 0  # responses from which a repeated prompt was removed
    left_out: Counter[str] = field(default_factory=Counter)  # scored responses by key that the template leaves out
    truncated_by_signals: Counter[str] = field(default_factory=Counter)  # truncated responses by signal

    def to_json(self) -> dict[str, Any]:
        """Return the counts; rare ones only if they are not zero."""
        counts = {name: value for name, value in asdict(self).items() if name not in _OFTEN_EMPTY or value}
        for name in ("left_out", "truncated_by_signals"):
            if name in counts:
                counts[name] = dict(sorted(getattr(self, name).items()))
        return {
            **counts,
            "rejected": dict(sorted(self.rejected.items())),
            "examples": [*map(list, self.examples)],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Totals:
        names = [entry.name for entry in fields(cls) if entry.name in values or entry.name not in _OFTEN_EMPTY]
        known = {name: values[name] for name in names}
        counters: dict[str, Any] = {name: Counter(known[name]) for name in _COUNTERS if name in known}
        return cls(**{**known, **counters, "examples": tuple(map(tuple, known["examples"]))})

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.rows + other.rows,
            self.read + other.read,
            self.scored + other.scored,
            self.rejected + other.rejected,
            self.truncated + other.truncated,
            self.tokens + other.tokens,
            tuple(sorted(self.examples + other.examples)[:EXAMPLES]),
            self.cut_prompts + other.cut_prompts,
            self.left_out + other.left_out,
            self.truncated_by_signals + other.truncated_by_signals,
        )


def publish_totals(totals: Totals, path: str, *, replace: bool = False) -> None:
    """Write the totals to `path`; `replace`, if files are skipped, overwrites those of a run that could read other files."""
    with carrying_errors():
        (publish.replace if replace else publish.create_or_equal)(path, canonical_json.to_json(totals.to_json()))


def list_beyond_limits(totals: Totals, descriptors: Iterable[bytes], limits: Limits, path: str) -> None:
    """Write the list of the rejected responses to `path` if these exceed the limits."""
    if exceeds(totals, limits):
        with carrying_errors():
            write_list(descriptors, path)


def skipped_files(skipped: Mapping[int, str], plan: Plan) -> list[dict[str, str]]:
    """Files that could not be read (file number → reason) as the manifest lists them."""
    return [{"key": plan.files[number].key, "reason": reason} for number, reason in sorted(skipped.items())]


def publish_skipped(skipped: Mapping[int, str], path: str, plan_path: str) -> None:
    """Write the list of skipped files, and overwrite that of a run that could read other files."""
    with carrying_errors():
        publish.replace(path, json.dumps(skipped_files(skipped, plan_at(plan_path))).encode())
