"""Select finds the places of the kept responses of each unit from score files, by a columnar shuffle. It reads no text: a row is
its key, reward and place until export reads it again.

The cost for 1e9 rows of 1e8 prompts: each row takes 40 bytes of score files, 40 GB over all workers, and 8 bytes (reward and
stratum) in each counting pass. A rule that needs whole prompts shuffles 48 bytes a row, 48 GB, in about 1,000 partitions of 1e6
rows. A bundle holds up to 5e6 rows, 250 MB, before it shuffles them, so that an element has thousands of rows of its partition;
if best-of-N comes first, rows that it rules out within a bundle are not shuffled. After the shuffle a worker has at most five
partitions at a time (four threads and one more), about 200 MB each while it sorts. `top` shuffles only counts: 65,536 bins of 24
bytes per stratum and bundle, three times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput

from pipelines.config import Limits
from pipelines.config.prompt_rules import OnTopic
from pipelines.corpus import UnitKey
from pipelines.errors import carrying_errors
from pipelines.runtime.step_times import timing
from pipelines.runtime.threaded_dofn import ThreadedDoFn
from pipelines.runtime.transforms import Gather, PCollection
from pipelines.score.exact_sum import ExactSum
from pipelines.score.rejected import has_rejected
from pipelines.score.score_files import ScoreFile
from pipelines.score.totals import Totals, check_limits, list_beyond_limits, sum_totals, totals_of
from pipelines.select.candidates import Candidates, count_prompts, place_order
from pipelines.select.columns import KeptUnit, Needs, pack, total_size, unpack
from pipelines.select.corpus_standards import merge_moments, settle
from pipelines.select.duplicates_transform import DropDuplicates
from pipelines.select.length_correction import HashSample, fit, merge_samples
from pipelines.select.on_topic import Settled, measure_distances
from pipelines.select.prompt_limits import Quantiles
from pipelines.select.read_transform import ReadScores
from pipelines.select.rules import add_ranks, add_rivals
from pipelines.select.selection import (
    LoadMoments,
    LoadPartition,
    LoadScores,
    Selection,
    apply_step,
    read_candidates,
    top_of,
)
from pipelines.select.summary import FragmentFacts, SelectionSummary, StepCounts, StepSum
from pipelines.select.top import Cut, CutEdges, CutRule
from pipelines.select.top_transform import FindCut, FindEdges, Loader
from rm.relevance_gap import Distances, SettledGap, merge_distances, settle_gap

_KEPT_ROWS = 1_000_000  # in one element
_BUCKETS = 18  # of band hashes for each partition: a row has some 39 of 24 bytes


Cuts = dict[int, tuple[PCollection[Settled], PCollection[CutEdges | SettledGap]]]
"""By number of the step, the cut that it needs, and the edges of the cut; for `on_topic` its gap, twice."""
Dropped = dict[int, PCollection[tuple[int, bytes]]]
"""The rows that each step drops as similar to others, by its number."""


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Select(beam.PTransform):  # type: ignore[misc]
    """Descriptors → {kept: KeptUnit, files, summaries, totals, schemas, rejected}; fails on `limits` before it selects.

    `summaries` are several collections. With a length correction there is also {curve}, and `with_cuts`, which explanations
    need, also {cuts: `Cuts`, means: the `Standards` of `corpus_z`, in the order of `Selection.standardised`}.

        selected = scored | "Select" >> Select(Selection.of(config, plan), config.limits, with_schemas=False)
        selected["kept"]  # one `KeptUnit` for each unit with kept responses
    """

    selection: Selection
    limits: Limits
    with_schemas: bool
    with_cuts: bool = False
    rejected_list: str | None = None  # path for the rejected responses if they exceed `limits`

    def expand(self, descriptors: PCollection[bytes]) -> dict[str, Any]:
        cuts: Cuts = {}
        totals = self._check_limits(descriptors)
        sides = self._early_sides(descriptors, cuts)
        read = self._read(descriptors, totals, sides=sides)
        partitions = read.candidates | "ShuffleCandidates" >> beam.GroupByKey()
        dropped: Dropped = {}
        rows, summaries = self._apply_late_steps(partitions, descriptors, cuts=cuts, dropped=dropped)
        selected = {"kept": self._sort_kept(rows), "files": _sort_files(read.fragments), "totals": totals}
        selected |= {"summaries": (read.summary, *summaries), "schemas": read.schemas, "rejected": read.rejected}
        if self.selection.correction is not None:
            selected["curve"] = sides[0]
        if self.with_cuts:
            first = 0 if self.selection.correction is None else 1
            means = sides[first : first + len(self.selection.standardised)]
            selected |= {"cuts": cuts, "means": means, "dropped": dropped}
        return selected

    def _check_limits(self, descriptors: PCollection[bytes]) -> PCollection[Totals]:
        """The totals of the corpus, once they are within the limits."""
        counts = descriptors | "CountRows" >> beam.Map(totals_of)
        totals = counts | "SumTotals" >> Gather(sum_totals)
        sides = (
            [] if self.rejected_list is None else [AsIter(descriptors | "KeepRejecting" >> beam.Filter(has_rejected))]
        )
        return totals | "CheckLimits" >> beam.ParDo(CheckLimits(self.limits, self.rejected_list), *sides)

    def _early_sides(self, descriptors: PCollection[bytes], cuts: Cuts) -> list[PCollection[Any]]:
        """The curve of a length correction, then the standards of `corpus_z`, then the cut of each early `top`."""
        sides: list[PCollection[Any]] = []
        correction = self.selection.correction
        if correction is not None and correction.length_correction is not None:
            samples = descriptors | "SampleLengths" >> beam.ParDo(SampleLengths())
            sample = samples | "MergeSample" >> Gather(merge_samples)
            sides.append(sample | "FitLengths" >> beam.Map(fit, span=correction.length_correction.span))
        for run, numbers in enumerate(self.selection.standardised):
            measure = MeasureCorpus(self.selection, tuple(numbers))
            moments = descriptors | f"MeasureCorpus{run}" >> beam.ParDo(measure, *map(AsSingleton, sides))
            merged = moments | f"MergeMoments{run}" >> Gather(merge_moments)
            sides.append(merged | f"SettleStandards{run}" >> beam.Map(settle))
        for number in self.selection.early:
            if self.selection.steps[number].top is not None:
                load = LoadScores(self.selection, until=number)
                sides.append(self._find_cut(descriptors, number, load, sides=tuple(sides), cuts=cuts))
        return sides

    def _find_cut(
        self, source: PCollection[Any], number: int, load: Loader, *, sides: Sequence[PCollection[Any]], cuts: Cuts
    ) -> PCollection[Cut]:
        """The cut of step `number`; added to `cuts` with its edges, if these are wanted."""
        step = self.selection.steps[number]
        rule: CutRule | None = top_of(step) if step.drop_prompts is None else Quantiles(step.drop_prompts)
        assert rule is not None
        cut = source | f"FindCut{number}" >> FindCut(rule, load, sides, number)
        if self.with_cuts:
            cuts[number] = (cut, source | f"FindEdges{number}" >> FindEdges(cut, load, sides))
        return cut

    def _read(
        self, descriptors: PCollection[bytes], totals: PCollection[Totals], *, sides: Sequence[PCollection[Any]]
    ) -> Any:
        """The outputs of `ReadScores` by name; it waits for `totals`, so that nothing is read if they exceed the limits."""
        read = beam.ParDo(
            ReadScores(self.selection, self.with_schemas), AsSingleton(totals), *map(AsSingleton, sides)
        ).with_output_types(
            tuple[int, bytes],
            fragments=tuple[int, bytes],
            rejected=tuple[int, bytes],
            schemas=list[Any],
            summary=SelectionSummary,
        )
        outputs = ("fragments", "rejected", "schemas", "summary")
        return descriptors | "ReadScores" >> read.with_outputs(*outputs, main="candidates")

    def _apply_late_steps(
        self,
        partitions: PCollection[tuple[int, Iterable[bytes]]],
        descriptors: PCollection[bytes],
        *,
        cuts: Cuts,
        dropped: Dropped,
    ) -> tuple[PCollection[tuple[int, bytes]], list[PCollection[SelectionSummary]]]:
        """Partitions → kept rows by unit, and the summaries of each run of steps."""
        runs, summaries = self.selection.late, []
        rows = partitions
        for at, steps in enumerate(runs):
            first, cut = self.selection.steps[steps[0]] if at else None, []
            if first is not None and first.compares_texts:
                drop = DropDuplicates(first, steps[0], self.selection.needs, _BUCKETS * self.selection.partitions)
                parts = {"rows": rows, "descriptors": descriptors} | f"DropDuplicates{steps[0]}" >> drop
                rows, dropped[steps[0]] = parts["rows"], parts["dropped"]
                summaries.append(parts["summary"])
            if first is not None and first.on_topic is not None and first.needs_cut:
                cut = [self._settle_gap(rows, steps[0], first.on_topic, cuts=cuts)]
            elif first is not None and first.needs_cut:
                load = LoadPartition(self.selection.needs, first.drop_prompts)
                cut = [self._find_cut(rows, steps[0], load, sides=(), cuts=cuts)]
            apply = ApplyRules(self.selection, steps, first=at == 0, last=at == len(runs) - 1)
            outputs = rows | f"ApplyRules{at}" >> beam.ParDo(apply, *map(AsSingleton, cut)).with_output_types(
                tuple[int, bytes]
            ).with_outputs("summary", main="kept")
            summaries.append(outputs.summary)
            rows = outputs.kept
        return rows, summaries

    def _settle_gap(
        self, rows: PCollection[tuple[int, bytes]], number: int, rule: OnTopic, *, cuts: Cuts
    ) -> PCollection[SettledGap]:
        """The gap of step `number`, settled over all prompts."""
        counts = rows | f"MeasureGap{number}" >> beam.ParDo(MeasureGap(self.selection.needs, rule, number))
        merged = counts | f"MergeGap{number}" >> Gather(merge_distances)
        gap = merged | f"SettleGap{number}" >> beam.Map(settle_gap, rule.max_touched)
        cuts.update({number: (gap, gap)} if self.with_cuts else {})
        return gap

    def _sort_kept(self, rows: PCollection[tuple[int, bytes]]) -> PCollection[KeptUnit]:
        by_unit = rows | "GroupByUnit" >> beam.GroupByKey()
        return by_unit | "SortKept" >> beam.ParDo(SortKept(self.selection.needs.kept))


def _sort_files(fragments: PCollection[tuple[int, bytes]]) -> PCollection[tuple[int, list[FragmentFacts]]]:
    return fragments | "GroupByFile" >> beam.GroupByKey() | "SortFragments" >> beam.Map(sort_fragments)


@dataclass(eq=False)
class CheckLimits(beam.DoFn):  # type: ignore[misc]
    """Totals → the same, or an error if they exceed the limits, with the rejected responses listed in a file."""

    limits: Limits
    rejected_list: str | None

    def process(self, totals: Totals, rejecting: Iterable[bytes] = ()) -> Iterator[Totals]:
        with carrying_errors():
            if self.rejected_list is not None:
                list_beyond_limits(totals, rejecting, self.limits, self.rejected_list)
            yield check_limits(totals, self.limits, listed=self.rejected_list)


class SampleLengths(beam.DoFn):  # type: ignore[misc]
    """Descriptor → a sample of its responses."""

    def process(self, data: bytes) -> Iterator[HashSample]:
        with carrying_errors():
            yield HashSample.of(read_candidates(ScoreFile.from_bytes(data), Needs(length=True)))


@dataclass(eq=False)
class MeasureCorpus(ThreadedDoFn):
    """Descriptor → the moments of the arguments of `corpus_z` in some steps."""

    selection: Selection
    steps: tuple[int, ...]

    def waits_for_store(self) -> bool:
        return self.selection.on_object_store

    def work(self, element: bytes, *sides: Any) -> list[Any]:
        with timing(self.steps[0]):
            return [LoadMoments(self.selection, self.steps)(element, sides)]


@dataclass(eq=False)
class MeasureGap(beam.DoFn):  # type: ignore[misc]
    """(partition, packed candidates) → the distances behind others, counted."""

    needs: Needs
    rule: OnTopic
    step: int

    def process(self, element: tuple[int, bytes]) -> Iterator[Distances]:
        with carrying_errors(), timing(self.step):
            yield measure_distances(unpack([element[1]], self.needs), self.rule.signal)


@dataclass(eq=False)
class ApplyRules(ThreadedDoFn):
    """Partitions → the rows that a run of steps keeps, by partition, or after the last run by unit; and a summary."""

    selection: Selection
    steps: Sequence[int]  # their numbers
    first: bool
    last: bool

    def hold(self, element: tuple[int, Any]) -> tuple[int, Any]:
        return (element[0], list(element[1])) if self.first else element

    def work(self, element: tuple[int, Any], *cuts: Settled) -> list[Any]:
        partition, data = element
        needs = self.selection.needs
        rows = unpack(data, needs.read).sorted_by_prompt() if self.first else unpack([data], needs)
        steps, counts = [*self.steps], StepCounts()
        if steps and self.selection.steps[steps[0]].reward is not None:  # what follows compares only this reward
            rows = self._apply(rows, steps.pop(0), counts)
        prompts = count_prompts(rows) if self.first and not self.selection.early else 0
        if self.first and (needs.rank or needs.margin):
            rows = add_ranks(rows)
        whole = rows
        for number in steps:
            rows = self._apply(rows, number, counts, *cuts)
        if self.first and needs.rival:
            rows = add_rivals(rows, whole)
        settled = zip(self.steps, cuts, strict=False)  # that of the first
        gaps = {number: cut for number, cut in settled if isinstance(cut, SettledGap)}
        return self._outputs(partition, rows, SelectionSummary(prompts=prompts, steps=counts, gaps=gaps))

    def _apply(self, rows: Candidates, number: int, counts: StepCounts, cut: Settled | None = None) -> Candidates:
        """The rows that a step keeps, which are counted."""
        step = self.selection.steps[number]
        cut = cut if step.needs_cut else None
        with timing(number):
            rows = apply_step(rows, step, cut=cut, temperature=self.selection.temperature)
        counts[number] = StepSum(step.name, len(rows), count_prompts(rows), total_size(rows, self.selection.needs))
        return rows

    def _outputs(self, partition: int, rows: Candidates, summary: SelectionSummary) -> list[Any]:
        needs = self.selection.needs
        summary_output = TaggedOutput("summary", summary)
        if not self.last:
            return [summary_output, *([(partition, pack(rows, needs))] if len(rows) else [])]
        summary.kept = ExactSum.of(rows.raw)
        summary.kept_prompts = count_prompts(rows)
        summary.kept_size = total_size(rows, needs)
        if needs.rival:
            summary.longest = ExactSum.of(rows.rival)
        return [summary_output, *split_by_unit(rows, needs.kept)]


def split_by_unit(rows: Candidates, needs: Needs) -> Iterator[tuple[int, bytes]]:
    """(packed `UnitKey`, its rows), with at most `_KEPT_ROWS` per element."""
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
class SortKept(ThreadedDoFn):
    """A unit's kept responses from all partitions → the same in place order, as one element."""

    needs: Needs

    def hold(self, element: tuple[int, Iterable[bytes]]) -> tuple[int, list[bytes]]:
        return element[0], list(element[1])

    def work(self, element: tuple[int, list[bytes]]) -> list[KeptUnit]:
        packed, parts = element
        kept = unpack(parts, self.needs)
        return [KeptUnit(*UnitKey.unpack(packed), pack(kept.take(place_order(kept)), self.needs))]


def sort_fragments(element: tuple[int, Iterable[bytes]]) -> tuple[int, list[FragmentFacts]]:
    """(file, the facts of its fragments in place order)"""
    return element[0], sorted(map(FragmentFacts.from_bytes, element[1]))
