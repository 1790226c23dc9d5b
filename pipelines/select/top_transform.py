"""The counting passes of `top` as a graph: elements → one settled cut. Nothing is sorted, and only counts are shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.typehints.decorators import no_annotations

from pipelines.errors import carrying_errors
from pipelines.runtime.step_times import timing
from pipelines.runtime.threaded_dofn import ThreadedDoFn
from pipelines.runtime.transforms import Gather, MergeBundles, PCollection
from pipelines.select.candidates import Candidates
from pipelines.select.prompt_limits import Quantiles, close
from pipelines.select.top import (
    PASSES,
    REWARD_PASSES,
    Bins,
    Cut,
    CutEdges,
    CutRule,
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


class Loader(Protocol):
    """Makes candidates of an element; `sides` are a curve and earlier cuts. With `ties`, hashes and places are filled in."""

    @property
    def on_object_store(self) -> bool:
        """True if it mostly waits for an object store."""
        ...

    def __call__(self, element: Any, sides: Sequence[Any], *, ties: bool) -> Candidates: ...


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class FindCut(beam.PTransform):  # type: ignore[misc]
    """Elements → their `Cut`, as the only element."""

    rule: CutRule
    load: Loader
    sides: Sequence[PCollection[Any]]
    step: int = 0  # its number

    def expand(self, source: PCollection[Any]) -> PCollection[Cut]:
        sides = [AsSingleton(side) for side in self.sides]
        cut = source.pipeline | "Once" >> beam.Impulse() | "Uncut" >> beam.Map(_uncut, self.rule)
        quantiles = isinstance(self.rule, Quantiles)  # decided by values alone
        for number in range(REWARD_PASSES if quantiles else PASSES):
            bins = source | f"Count{number}" >> beam.ParDo(CountBins(self.load, self.step), AsSingleton(cut), *sides)
            bins |= f"MergeCounts{number}" >> beam.ParDo(MergeBundles(merge_bins))
            cut = cut | f"Refine{number}" >> beam.Map(_refine, AsIter(bins))
        if quantiles:
            return cut | "Close" >> beam.Map(close)
        ties = source | "ListTies" >> beam.ParDo(ListTies(self.load, self.step), AsSingleton(cut), *sides)
        return cut | "Settle" >> beam.Map(_settle, AsIter(ties))


def _uncut(_impulse: bytes, rule: CutRule) -> Cut:
    return Cut(rule)


def _refine(cut: Cut, bins: Iterable[Bins]) -> Cut:
    return cut if cut.decided else refine(cut, merge_bins(bins))


def _settle(cut: Cut, ties: Iterable[Ties]) -> Cut:
    return settle(cut, merge_ties(ties))


@dataclass(eq=False)
class _Loading(ThreadedDoFn):
    load: Loader
    step: int

    def waits_for_store(self) -> bool:
        return self.load.on_object_store


class CountBins(_Loading):
    """Elements → the bins of each, as `count_bins` counts them."""

    def work(self, element: Any, cut: Cut, *sides: Any) -> list[Bins]:
        ties = cut.digits >= REWARD_PASSES
        with timing(self.step):
            return [] if cut.decided else [count_bins(self.load(element, sides, ties=ties), cut)]


class ListTies(_Loading):
    """Elements → the rows that are still undecided after all passes."""

    def work(self, element: Any, cut: Cut, *sides: Any) -> list[Ties]:
        with timing(self.step):
            return [] if cut.decided else [list_ties(self.load(element, sides, ties=True), cut)]


@dataclass(eq=False)
class FindEdges(beam.PTransform):  # type: ignore[misc]
    """Elements → the `CutEdges` of their settled cut, as the only element."""

    cut: PCollection[Cut]
    load: Loader
    sides: Sequence[PCollection[Any]]

    def expand(self, source: PCollection[Any]) -> PCollection[CutEdges]:
        sides = [AsSingleton(side) for side in (self.cut, *self.sides)]
        edges = source | "MeasureEdges" >> beam.ParDo(MeasureEdges(self.load), *sides)
        return edges | "MergeEdges" >> Gather(merge_edges)


@dataclass(eq=False)
class MeasureEdges(beam.DoFn):  # type: ignore[misc]
    """Elements → the edges of the settled cut in each."""

    load: Loader

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: Any, cut: Cut, *sides: Any) -> Iterator[CutEdges]:
        with carrying_errors():
            yield measure_edges(self.load(element, sides, ties=True), cut)
