"""Select: score files → kept pointers per input unit, by a columnar shuffle. Text is not here: rows are known by key, reward
and place until export reads them again.

What it costs for 1e9 rows of 1e8 prompts: reading, 40 bytes a row of score files, 40 GB over all workers, for each counting pass
8 (reward and stratum). A rule that needs whole prompts shuffles 52 bytes a row, 52 GB, in about 1,000 partitions of 1e6 rows; a
worker holds one partition at a time: 52 MB, with sorting about 200 MB. Where best-of-N comes first, what a bundle can rule out
stays in it. `top` shuffles counts alone: 65,536 bins of 20 bytes a stratum and worker, three times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations

from pipelines.candidates import Candidates, by_prompt, count_prompts, place_order
from pipelines.columnar import Needs, pack, to_ipc, unpack
from pipelines.config import Limits
from pipelines.cuts import Cut
from pipelines.length import Sample, fit, merge_samples
from pipelines.passes import FindCut, FindEdges, Loader
from pipelines.precombine import Holder
from pipelines.records import KeptUnit, Totals
from pipelines.rules import add_ranks, with_rivals
from pipelines.steps import LoadPartition, LoadScores, Selection, early, read_candidates, take_step
from pipelines.storage import objects
from pipelines.storage.objects import ScoreFile
from pipelines.summaries import ExactSum, SelectionSummary, StepCounts
from pipelines.totals import check_limits, sum_totals, totals_of
from pipelines.workers import carrying_errors

_KEPT_ROWS = 1_000_000  # in one element


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Select(beam.PTransform):  # type: ignore[misc]
    """Descriptors → {kept: KeptUnit, summary, curve, totals, schemas, files, rejected}; fails on `limits` before it selects.

    With `with_cuts`, also {cuts: {step number: (its `Cut`, its `Edges`)}}, for those who explain a selection.
    """

    selection: Selection
    limits: Limits
    with_schemas: bool
    with_cuts: bool = False

    def expand(self, descriptors: Any) -> dict[str, Any]:
        totals = (
            descriptors
            | "CountRows" >> beam.Map(totals_of)
            | "SumTotals" >> beam.CombineGlobally(sum_totals)
            | "CheckLimits" >> beam.ParDo(CheckLimits(self.limits))
        )
        cuts: dict[int, tuple[Any, Any]] = {}
        sides = self._early_sides(descriptors, cuts)
        read_scores = ReadScores(self.selection, self.with_schemas)
        read = descriptors | "ReadScores" >> beam.ParDo(
            read_scores, AsSingleton(totals), *map(AsSingleton, sides)
        ).with_output_types(
            tuple[int, bytes],
            fragments=tuple[int, bytes],
            rejected=tuple[int, bytes],
            schemas=list[Any],
            summary=SelectionSummary,
        ).with_outputs("fragments", "rejected", "schemas", "summary", main="candidates")
        grouped = read.candidates | "ShuffleCandidates" >> beam.GroupByKey()
        kept, summaries = self._late(grouped, cuts)
        summary = (read.summary, *summaries) | "AllSummaries" >> beam.Flatten()
        placed = kept | "GroupByUnit" >> beam.GroupByKey() | "SortKept" >> beam.ParDo(SortKept(self.selection.needs))
        files = read.fragments | "GroupByFile" >> beam.GroupByKey() | "SortFragments" >> beam.Map(sort_fragments)
        return {
            "kept": placed,
            "files": files,
            "summary": summary,
            "curve": sides[0] if self.selection.correction else descriptors.pipeline | "NoCurve" >> beam.Create([]),
            "totals": totals,
            "schemas": read.schemas,
            "rejected": read.rejected,
            **({"cuts": cuts} if self.with_cuts else {}),
        }

    def _cut(self, source: Any, number: int, load: Loader, *, sides: Sequence[Any], cuts: dict[int, Any]) -> Any:
        """The cut of step `number`; entered in `cuts` with what it came to, where that is asked for."""
        rule = self.selection.steps[number].top
        assert rule is not None
        cut = source | f"FindCut{number}" >> FindCut(rule, load, sides)
        if self.with_cuts:
            cuts[number] = (cut, source | f"FindEdges{number}" >> FindEdges(cut, load, sides))
        return cut

    def _early_sides(self, descriptors: Any, cuts: dict[int, Any]) -> list[Any]:
        """The curve of a length correction, then the cut of each early `top`."""
        sides: list[Any] = []
        correction = self.selection.correction
        if correction is not None and correction.length_correction is not None:
            sample = (
                descriptors
                | "SampleLengths" >> beam.ParDo(SampleLengths())
                | "MergeSample" >> beam.CombineGlobally(merge_samples)
            )
            sides.append(sample | "FitLengths" >> beam.Map(fit, span=correction.length_correction.span))
        for number in self.selection.early:
            if self.selection.steps[number].top is not None:
                load = LoadScores(self.selection, until=number)
                sides.append(self._cut(descriptors, number, load, sides=tuple(sides), cuts=cuts))
        return sides

    def _late(self, grouped: Any, cuts: dict[int, Any]) -> tuple[Any, list[Any]]:
        """Partitions → kept rows by unit, and a summary of each run of steps."""
        runs, summaries, load = self.selection.late, [], LoadPartition(self.selection.needs)
        rows = grouped
        for number, run in enumerate(runs):
            own = [self._cut(rows, run[0], load, sides=(), cuts=cuts)] if number else []
            apply = ApplyRules(self.selection, run, first=number == 0, last=number == len(runs) - 1)
            ruled = rows | f"ApplyRules{number}" >> beam.ParDo(apply, *map(AsSingleton, own)).with_output_types(
                tuple[int, bytes]
            ).with_outputs("summary", main="kept")
            summaries.append(ruled.summary)
            rows = ruled.kept
        return rows, summaries


@dataclass(eq=False)
class CheckLimits(beam.DoFn):  # type: ignore[misc]
    limits: Limits

    def process(self, totals: Totals) -> Iterator[Totals]:
        with carrying_errors():
            yield check_limits(totals, self.limits)


class SampleLengths(beam.DoFn):  # type: ignore[misc]
    def process(self, data: bytes) -> Iterator[Sample]:
        with carrying_errors():
            yield Sample.of(read_candidates(ScoreFile.from_bytes(data), Needs(length=True)))


class ReadScores(beam.DoFn):  # type: ignore[misc]
    """Descriptor → candidates by partition of the prompt key; and what else the score file tells, by input file."""

    def __init__(self, selection: Selection, with_schemas: bool) -> None:
        self._selection = selection
        self._with_schemas = with_schemas
        self._holder: Holder | None = None

    def start_bundle(self) -> None:
        self._holder = self._selection.holder

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, data: bytes, _within_limits: Totals, *sides: Any) -> Iterator[Any]:
        with carrying_errors():
            descriptor = ScoreFile.from_bytes(data)
            footer, needs = descriptor.footer, self._selection.needs
            everything = read_candidates(descriptor, needs)
            candidates, counts = early(everything, self._selection, sides, until=len(self._selection.steps))
            yield beam.pvalue.TaggedOutput("summary", self._summary(everything, counts))
            for part in self._holder.add(candidates) if self._holder else [candidates]:
                yield from partitioned(part, self._selection)
            fragment = [footer.unit, footer.fragment, footer.content_hash, footer.rows, footer.responses, footer.scored]
            fragment.append(footer.text_bytes)
            yield beam.pvalue.TaggedOutput("fragments", (descriptor.file, json.dumps(fragment).encode()))
            if footer.rejected:
                yield beam.pvalue.TaggedOutput("rejected", (descriptor.file, to_ipc(rejected_rows(descriptor))))
            if self._with_schemas:
                at = (descriptor.file, footer.unit, footer.fragment)
                original = objects.original_schema(objects.read_columns(descriptor.path, ["row"], footer))
                yield beam.pvalue.TaggedOutput("schemas", [(original, at)])

    def finish_bundle(self) -> Iterator[Any]:
        for part in self._holder.finish() if self._holder else []:
            for element in partitioned(part, self._selection):
                yield GlobalWindows.windowed_value(element)

    def _summary(self, everything: Candidates, counts: StepCounts) -> SelectionSummary:
        sizes = _sizes(everything, self._selection.needs)
        return SelectionSummary(
            candidates=len(everything),
            prompts=None if self._selection.early else 0,
            steps=counts,
            everything=ExactSum.of(everything.raw),
            size=int(sizes.sum(dtype=np.int64)),
            sample=Sample.of(everything.with_columns(tokens=sizes, reward=everything.raw)),
        )


def rejected_rows(descriptor: ScoreFile) -> pa.Table:
    scores = objects.read_columns(descriptor.path, ["row", "response_index", "reason"], descriptor.footer)
    rejected = scores.filter(scores["reason"].is_valid())
    place = pa.array([descriptor.footer.unit_start] * rejected.num_rows, type=pa.int64())
    return rejected.append_column("unit_start", place)


def partitioned(candidates: Candidates, selection: Selection) -> Iterator[tuple[int, bytes]]:
    """Candidates by range of the key's high half: all responses to a prompt in one partition."""
    high = candidates.key_high >> np.uint64(32)
    part = ((high * np.uint64(selection.partitions)) >> np.uint64(32)).astype(np.uint16)
    order = np.argsort(part, kind="stable")  # 16 bits: a radix sort
    bounds = np.searchsorted(part[order], np.arange(selection.partitions + 1))
    for number in range(selection.partitions):
        if bounds[number] < bounds[number + 1]:
            own = candidates.take(order[bounds[number] : bounds[number + 1]])
            yield number, pack(own, selection.needs)


@dataclass(eq=False)
class ApplyRules(beam.DoFn):  # type: ignore[misc]
    """Partitions → what a run of steps keeps of them, by partition, or after the last run by unit; and a summary."""

    selection: Selection
    run: Sequence[int]
    first: bool
    last: bool

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: tuple[int, Any], *cuts: Cut) -> Iterator[Any]:
        partition, data = element
        needs, numbers = self.selection.needs, list(self.run)
        rows = unpack(data if self.first else [data], needs)
        rows = rows.take(by_prompt(rows)[0]) if self.first else rows  # once; what is taken of it stays sorted
        summary = SelectionSummary(prompts=count_prompts(rows) if self.first and not self.selection.early else 0)
        if self.first and (needs.rank or needs.margin):
            rows = add_ranks(rows)
        whole, counts = rows, StepCounts()
        for number in numbers:
            step = self.selection.steps[number]
            cut = cuts[0] if step.top is not None else None
            rows = take_step(rows, step, cut=cut, temperature=self.selection.temperature)
            counts[number] = (step.name, len(rows), count_prompts(rows))
        if self.first and needs.rival:
            rows = with_rivals(rows, whole)
        summary.steps = counts
        if self.last:
            summary.kept = ExactSum.of(rows.raw)
            summary.kept_prompts = count_prompts(rows)
            summary.kept_size = int(_sizes(rows, needs).sum(dtype=np.int64))
            if needs.rival:
                summary.longest = ExactSum.of(rows.rival)
        yield beam.pvalue.TaggedOutput("summary", summary)
        if self.last:
            yield from by_unit(rows, needs)
        elif len(rows):
            yield partition, pack(rows, needs)


def by_unit(rows: Candidates, needs: Needs) -> Iterator[tuple[int, bytes]]:
    """(file << 32 | unit, its rows): no element holds more than a unit has."""
    unit = (rows.file.astype(np.int64) << 32) | rows.unit
    order = np.argsort(unit, kind="stable")
    if not len(order):
        return
    numbers, starts = np.unique(unit[order], return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
        for first in range(start, end, _KEPT_ROWS):
            yield int(number), pack(rows.take(order[first : min(end, first + _KEPT_ROWS)]), needs)


@dataclass(eq=False)
class SortKept(beam.DoFn):  # type: ignore[misc]
    """One unit's kept responses from all partitions → one sorted piece."""

    needs: Needs

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[KeptUnit]:
        number, parts = element
        kept = unpack(parts, self.needs)
        yield KeptUnit(number >> 32, number & 0xFFFFFFFF, pack(kept.take(place_order(kept)), self.needs))


def sort_fragments(element: tuple[int, Iterable[bytes]]) -> tuple[int, list[list[Any]]]:
    """(file, what the manifest says of its fragments)"""
    return element[0], sorted(json.loads(data) for data in element[1])


def _sizes(candidates: Candidates, needs: Needs) -> Any:
    return candidates.tokens if needs.tokens else candidates.length
