"""Select: score files → kept pointers per input unit, by a columnar shuffle. Text is not here: rows are known by key, reward
and place until export reads them again.

What it costs for 1e9 rows of 1e8 prompts: reading, 40 bytes a row of score files, 40 GB over all workers, for each counting pass
8 (reward and stratum). A rule that needs whole prompts shuffles 48 bytes a row, 48 GB, in about 1,000 partitions of 1e6 rows. A
bundle holds up to 5e6 rows, 250 MB, before it shuffles them, so that an element has thousands of rows of its partition; where
best-of-N comes first, what a bundle can rule out stays in it. After the shuffle a worker has at most five partitions at a time
(four threads and one more), about 200 MB each while it sorts. `top` shuffles counts alone: 65,536 bins of 24 bytes a stratum and
bundle, three times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, TaggedOutput

from pipelines.config import Limits
from pipelines.corpus import UnitKey
from pipelines.errors import carrying_errors
from pipelines.runtime.threaded_dofn import ThreadedDoFn
from pipelines.runtime.transforms import Gather
from pipelines.score.exact_sum import ExactSum
from pipelines.score.score_files import ScoreFile
from pipelines.score.totals import Totals, check_limits, sum_totals, totals_of
from pipelines.select.candidates import Candidates, count_prompts, place_order
from pipelines.select.columns import KeptUnit, Needs, pack, total_size, unpack
from pipelines.select.length_correction import HashSample, fit, merge_samples
from pipelines.select.read_transform import ReadScores
from pipelines.select.rules import add_ranks, add_rivals
from pipelines.select.selection import LoadPartition, LoadScores, Selection, apply_step, read_candidates
from pipelines.select.summary import FragmentFacts, SelectionSummary, StepCounts, StepSum
from pipelines.select.top import Cut
from pipelines.select.top_transform import FindCut, FindEdges, Loader

_KEPT_ROWS = 1_000_000  # in one element


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Select(beam.PTransform):  # type: ignore[misc]
    """Descriptors → {kept: KeptUnit, summaries, totals, schemas, files, rejected}; fails on `limits` before it selects.

    With a length correction, also {curve}; `with_cuts`, also {cuts: {step number: (its `Cut`, its `Edges`)}}, for those who
    explain a selection. `summaries` are several collections.
    """

    selection: Selection
    limits: Limits
    with_schemas: bool
    with_cuts: bool = False

    def expand(self, descriptors: Any) -> dict[str, Any]:
        totals = (
            descriptors
            | "CountRows" >> beam.Map(totals_of)
            | "SumTotals" >> Gather(sum_totals)
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
        placed = (
            kept | "GroupByUnit" >> beam.GroupByKey() | "SortKept" >> beam.ParDo(SortKept(self.selection.needs.kept))
        )
        files = read.fragments | "GroupByFile" >> beam.GroupByKey() | "SortFragments" >> beam.Map(sort_fragments)
        return {
            "kept": placed,
            "files": files,
            "summaries": (read.summary, *summaries),
            "totals": totals,
            "schemas": read.schemas,
            "rejected": read.rejected,
            **({"curve": sides[0]} if self.selection.correction else {}),
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
                descriptors | "SampleLengths" >> beam.ParDo(SampleLengths()) | "MergeSample" >> Gather(merge_samples)
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
    def process(self, data: bytes) -> Iterator[HashSample]:
        with carrying_errors():
            yield HashSample.of(read_candidates(ScoreFile.from_bytes(data), Needs(length=True)))


@dataclass(eq=False)
class ApplyRules(ThreadedDoFn):
    """Partitions → what a run of steps keeps of them, by partition, or after the last run by unit; and a summary."""

    selection: Selection
    run: Sequence[int]
    first: bool
    last: bool

    def hold(self, element: tuple[int, Any]) -> tuple[int, Any]:
        return (element[0], list(element[1])) if self.first else element

    def work(self, element: tuple[int, Any], *cuts: Cut) -> list[Any]:
        partition, data = element
        needs = self.selection.needs
        rows = unpack(data, needs).sorted_by_prompt() if self.first else unpack([data], needs)
        prompts = count_prompts(rows) if self.first and not self.selection.early else 0
        if self.first and (needs.rank or needs.margin):
            rows = add_ranks(rows)
        whole, counts = rows, StepCounts()
        for number in self.run:
            step = self.selection.steps[number]
            cut = cuts[0] if step.top is not None else None
            rows = apply_step(rows, step, cut=cut, temperature=self.selection.temperature)
            counts[number] = StepSum(step.name, len(rows), count_prompts(rows), total_size(rows, needs))
        if self.first and needs.rival:
            rows = add_rivals(rows, whole)
        summary = SelectionSummary(prompts=prompts, steps=counts)
        told = TaggedOutput("summary", summary)
        if not self.last:
            return [told, (partition, pack(rows, needs))] if len(rows) else [told]
        summary.kept = ExactSum.of(rows.raw)
        summary.kept_prompts = count_prompts(rows)
        summary.kept_size = total_size(rows, needs)
        if needs.rival:
            summary.longest = ExactSum.of(rows.rival)
        return [told, *split_by_unit(rows, needs.kept)]


def split_by_unit(rows: Candidates, needs: Needs) -> Iterator[tuple[int, bytes]]:
    """(packed `UnitKey`, its rows): no element holds more than a unit has."""
    unit = UnitKey.pack_columns(rows.file, rows.unit)
    if not len(unit):
        return
    order = np.argsort(unit)
    ordered, unit = rows.take(order), unit[order]
    starts = np.flatnonzero(np.append(True, unit[1:] != unit[:-1]))
    for start, end in itertools.pairwise([*starts.tolist(), len(unit)]):
        for first in range(start, end, _KEPT_ROWS):
            yield int(unit[start]), pack(ordered.slice(first, min(end, first + _KEPT_ROWS)), needs)


@dataclass(eq=False)
class SortKept(beam.DoFn):  # type: ignore[misc]
    """One unit's kept responses from all partitions → one sorted piece."""

    needs: Needs

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[KeptUnit]:
        packed, parts = element
        kept = unpack(parts, self.needs)
        yield KeptUnit(*UnitKey.unpack(packed), pack(kept.take(place_order(kept)), self.needs))


def sort_fragments(element: tuple[int, Iterable[bytes]]) -> tuple[int, list[FragmentFacts]]:
    """(file, the facts of its fragments in place order)"""
    return element[0], sorted(map(FragmentFacts.from_bytes, element[1]))
