"""Select: score files → kept pointers per input file, by a columnar shuffle of about 48 bytes a response.

Text is not here: rows are known by key, reward and place until export reads them again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton

from pipelines.columnar import (
    CANDIDATES,
    from_ipc,
    scored_candidates,
    sort_by_place,
    to_candidates,
    to_ipc,
    to_table,
)
from pipelines.config import Limits, Step
from pipelines.errors import RejectedError, StorageError
from pipelines.inputs import place_of
from pipelines.records import KeptFile, Totals
from pipelines.rules import Candidates, apply_steps, count_prompts
from pipelines.storage import objects
from pipelines.storage.objects import ScoreFile
from pipelines.summaries import ExactSum, SelectionSummary
from pipelines.workers import carrying_errors


def totals_of(data: bytes) -> Totals:
    footer = ScoreFile.from_bytes(data).footer
    return Totals(
        rows=footer.rows,
        read=footer.responses,
        scored=footer.scored,
        rejected=Counter(footer.rejected),
        truncated=footer.truncated,
        tokens=footer.tokens,
        examples=tuple((footer.file_key, footer.unit_start, row, reason) for row, reason in footer.first_rejected),
    )


def sum_totals(totals: Iterable[Totals]) -> Totals:
    return sum(totals, Totals())


def check_limits(totals: Totals, limits: Limits) -> Totals:
    """`totals` where they are within the limits; raises `RejectedError` (exit 4) with counts by reason."""
    if totals.read != totals.scored + totals.rejected.total():
        raise StorageError(
            f"score files say {totals.read} read, {totals.scored} scored and {totals.rejected.total()} rejected, which "
            "does not add up; remove the scores directory and score again"
        )
    fraction = totals.rejected.total() / totals.read if totals.read else 0.0
    if fraction > limits.max_rejected_fraction:
        reasons = ", ".join(f"{reason} {count}" for reason, count in totals.rejected.most_common())
        first = ", ".join(f"{key} {place_of(key, start, row)} {reason}" for key, start, row, reason in totals.examples)
        raise RejectedError(
            f"{totals.rejected.total()} of {totals.read} responses were rejected ({fraction:.4%}: {reasons}; first: {first}), "
            f"more than limits.max_rejected_fraction={limits.max_rejected_fraction}; mend the input, or raise the limit: "
            "nothing is scored again"
        )
    return totals


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Select(beam.PTransform):  # type: ignore[misc]
    """Descriptors → {kept: KeptFile, summary, totals, schemas, files, rejected}; fails on `limits` before it selects."""

    steps: Sequence[Step]
    limits: Limits
    partitions: int
    with_schemas: bool

    def expand(self, descriptors: Any) -> dict[str, Any]:
        totals = (
            descriptors
            | "CountRows" >> beam.Map(totals_of)
            | "SumTotals" >> beam.CombineGlobally(sum_totals)
            | "CheckLimits" >> beam.ParDo(CheckLimits(self.limits))
        )
        read_scores = beam.ParDo(ReadScores(self.partitions, self.with_schemas), AsSingleton(totals))
        read = descriptors | "ReadScores" >> read_scores.with_output_types(
            tuple[int, bytes], fragments=tuple[int, bytes], rejected=tuple[int, bytes], schemas=list[Any]
        ).with_outputs("fragments", "rejected", "schemas", main="candidates")
        ruled = (
            read.candidates
            | "ShuffleCandidates" >> beam.GroupByKey()
            | "ApplyRules"
            >> beam.ParDo(ApplyRules(self.steps))
            .with_output_types(tuple[int, bytes])
            .with_outputs("summary", main="kept")
        )
        files = {"kept": ruled.kept, "fragments": read.fragments} | "GroupByFile" >> beam.CoGroupByKey()
        placed = files | "SortKept" >> beam.ParDo(SortKept()).with_outputs("files", main="kept")
        return {
            "kept": placed.kept,
            "files": placed.files,
            "summary": ruled.summary,
            "totals": totals,
            "schemas": read.schemas,
            "rejected": read.rejected,
        }


@dataclass(eq=False)
class CheckLimits(beam.DoFn):  # type: ignore[misc]
    limits: Limits

    def process(self, totals: Totals) -> Iterator[Totals]:
        with carrying_errors():
            yield check_limits(totals, self.limits)


@dataclass(eq=False)
class ReadScores(beam.DoFn):  # type: ignore[misc]
    """Descriptor → candidates by partition of the prompt key; and what else the score file tells, by input file."""

    partitions: int
    with_schemas: bool

    def process(self, data: bytes, _within_limits: Totals) -> Iterator[Any]:
        with carrying_errors():
            descriptor = ScoreFile.from_bytes(data)
            there = objects.read(descriptor.path)
            if there is None:
                raise StorageError(f"score file {descriptor.path} is gone or damaged; run the same command again")
            scores, footer = there
            candidates = scored_candidates(scores, file=descriptor.file, unit=footer.unit)
            for partition, part in partitioned(candidates, self.partitions):
                yield partition, to_ipc(to_table(part))
            fragment = [footer.unit, footer.fragment, footer.content_hash, footer.rows, footer.responses, footer.scored]
            yield beam.pvalue.TaggedOutput("fragments", (descriptor.file, json.dumps(fragment).encode()))
            rejected = scores.filter(scores["reason"].is_valid()).select(["row", "response_index", "reason"])
            if rejected.num_rows:
                place = pa.array([footer.unit_start] * rejected.num_rows, type=pa.int64())
                rejected = rejected.append_column("unit_start", place)
                yield beam.pvalue.TaggedOutput("rejected", (descriptor.file, to_ipc(rejected)))
            if self.with_schemas:
                at = (descriptor.file, footer.unit, footer.fragment)
                yield beam.pvalue.TaggedOutput("schemas", [(objects.original_schema(scores), at)])


def partitioned(candidates: Candidates, partitions: int) -> Iterator[tuple[int, Candidates]]:
    """Candidates by range of the key's high half: all responses to a prompt in one partition."""
    high = candidates.key_high >> np.uint64(32)
    part = (high * np.uint64(partitions)) >> np.uint64(32)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(partitions + 1, dtype=np.uint64))
    for number in range(partitions):
        if bounds[number] < bounds[number + 1]:
            yield number, candidates.take(order[bounds[number] : bounds[number + 1]])


@dataclass(eq=False)
class ApplyRules(beam.DoFn):  # type: ignore[misc]
    """All candidates of a partition → what is kept of them, by input file; and a summary."""

    steps: Sequence[Step]

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        candidates = to_candidates(from_ipc(element[1], CANDIDATES))
        kept, counts = apply_steps(candidates, self.steps)
        everything, remaining = ExactSum.of(candidates.reward), ExactSum.of(kept.reward)
        yield beam.pvalue.TaggedOutput(
            "summary",
            SelectionSummary(
                candidates=len(candidates),
                prompts=count_prompts(candidates),
                steps=[(count.rule, count.rows, count.prompts) for count in counts],
                kept=remaining,
                dropped=everything - remaining,
                kept_prompts=count_prompts(kept),
            ),
        )
        for file in np.unique(kept.file):
            yield int(file), to_ipc(to_table(kept.take(kept.file == file)))


class SortKept(beam.DoFn):  # type: ignore[misc]
    """One input file's kept responses from all partitions → one sorted piece; and what the manifest says of the file."""

    def process(self, element: tuple[int, dict[str, Iterable[bytes]]]) -> Iterator[Any]:
        file, grouped = element
        fragments = sorted(json.loads(data) for data in grouped["fragments"])
        kept = sort_by_place(from_ipc(grouped["kept"], CANDIDATES))
        if kept.num_rows:
            checks = [(unit, number, content) for unit, number, content, *_ in fragments]
            yield KeptFile(file, to_ipc(kept), checks)
        yield beam.pvalue.TaggedOutput("files", (file, fragments))
