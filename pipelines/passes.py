"""The counting passes of `cuts` as a graph: elements → one settled cut. Nothing is sorted, nothing but counts travels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.pvalue import AsSingleton
from apache_beam.typehints.decorators import no_annotations

from pipelines.candidates import Candidates
from pipelines.config import Top
from pipelines.cuts import (
    PASSES,
    REWARD_PASSES,
    Bins,
    Cut,
    Edges,
    Ties,
    count_bins,
    list_ties,
    measure_edges,
    merge_bins,
    merge_edges,
    merge_ties,
    refine,
    settle,
)
from pipelines.workers import carrying_errors


class Loader(Protocol):
    """Makes candidates of an element; `sides` are what was found before (a curve, earlier cuts). Hashes and places are needed
    where `ties` are to be told apart."""

    def __call__(self, element: Any, sides: Sequence[Any], *, ties: bool) -> Candidates: ...


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class FindCut(beam.PTransform):  # type: ignore[misc]
    """Elements → their `Cut`, as the only element."""

    rule: Top
    load: Loader
    sides: Sequence[Any]

    def expand(self, source: Any) -> Any:
        sides = [AsSingleton(side) for side in self.sides]
        cut = source.pipeline | "Uncut" >> beam.Create([Cut(self.rule)])
        for number in range(PASSES):
            counted = source | f"Count{number}" >> beam.ParDo(CountBins(self.load), AsSingleton(cut), *sides)
            bins = counted | f"MergeCounts{number}" >> beam.CombineGlobally(merge_bins)
            cut = bins | f"Refine{number}" >> beam.Map(_refine, AsSingleton(cut))
        ties = source | "ListTies" >> beam.ParDo(ListTies(self.load), AsSingleton(cut), *sides)
        return ties | "MergeTies" >> beam.CombineGlobally(merge_ties) | "Settle" >> beam.Map(_settle, AsSingleton(cut))


def _refine(bins: Bins, cut: Cut) -> Cut:
    return cut if cut.decided else refine(cut, bins)


def _settle(ties: Ties, cut: Cut) -> Cut:
    return settle(cut, ties)


@dataclass(eq=False)
class CountBins(beam.DoFn):  # type: ignore[misc]
    load: Loader

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: Any, cut: Cut, *sides: Any) -> Iterator[Bins]:
        if not cut.decided:
            with carrying_errors():
                yield count_bins(self.load(element, sides, ties=cut.digits >= REWARD_PASSES), cut)


@dataclass(eq=False)
class ListTies(beam.DoFn):  # type: ignore[misc]
    load: Loader

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: Any, cut: Cut, *sides: Any) -> Iterator[Ties]:
        if not cut.decided:
            with carrying_errors():
                yield list_ties(self.load(element, sides, ties=True), cut)


@dataclass(eq=False)
class FindEdges(beam.PTransform):  # type: ignore[misc]
    """Elements → the `Edges` of their settled cut, as the only element."""

    cut: Any
    load: Loader
    sides: Sequence[Any]

    def expand(self, source: Any) -> Any:
        sides = [AsSingleton(side) for side in (self.cut, *self.sides)]
        measured = source | "MeasureEdges" >> beam.ParDo(MeasureEdges(self.load), *sides)
        return measured | "MergeEdges" >> beam.CombineGlobally(merge_edges)


@dataclass(eq=False)
class MeasureEdges(beam.DoFn):  # type: ignore[misc]
    load: Loader

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: Any, cut: Cut, *sides: Any) -> Iterator[Edges]:
        with carrying_errors():
            yield measure_edges(self.load(element, sides, ties=True), cut)
