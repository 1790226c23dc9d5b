"""Beam's Reshuffle and CombineGlobally in fewer steps: each step of a graph costs 5 to 10 ms before it does anything, on
every runner, and that is most of what a small selection takes. No files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter, TaggedOutput

# for all: `PCollection[T]` says what flows in and out of an `expand` (to mypy it is Any)
from apache_beam.pvalue import PCollection as PCollection
from apache_beam.transforms.window import GlobalWindows

_MERGED = 16  # elements are merged when there are so many; of a cut they may be 1.6 MB a stratum each


class Spread(beam.Reshuffle):  # type: ignore[misc]
    """The same elements, dealt out anew, and kept by the runner from here on. A Reshuffle to the runners that know one, without
    what carries windows and timestamps over it, which a batch has none of."""

    def expand(self, elements: PCollection[Any]) -> PCollection[Any]:
        kind = elements.element_type
        keyed = elements | "AddKeys" >> beam.Map(_add_key).with_output_types(beam.typehints.Tuple[int, kind])
        return keyed | "Deal" >> beam.GroupByKey() | "DropKeys" >> beam.FlatMap(_drop_key).with_output_types(kind)


def _add_key(element: Any) -> tuple[int, Any]:
    return random.getrandbits(32), element


def _drop_key(dealt: tuple[int, Iterable[Any]]) -> Iterable[Any]:
    return dealt[1]


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Gather(beam.PTransform):  # type: ignore[misc]
    """All elements, of one collection or of several → the one that `merge` makes of them, also where there are none; `merge` is
    associative.

    Elements are merged by bundle first, and one worker merges these: a third of CombineGlobally's steps.
    """

    merge: Callable[[Iterable[Any]], Any]

    def expand(self, sources: PCollection[Any] | tuple[PCollection[Any], ...]) -> PCollection[Any]:
        several = sources if isinstance(sources, tuple) else (sources,)
        merged = [
            source | f"MergeBundles{number or ''}" >> beam.ParDo(MergeBundles(self.merge))
            for number, source in enumerate(several)
        ]
        parts = tuple(merged) | "AllBundles" >> beam.Flatten() if len(merged) > 1 else merged[0]
        one = several[0].pipeline | "One" >> beam.Impulse()
        return one | "Merge" >> beam.Map(_merge, AsIter(parts), self.merge)


def _merge(_impulse: bytes, parts: Iterable[Any], merge: Callable[[Iterable[Any]], Any]) -> Any:
    return merge(parts)


@dataclass(eq=False)
class MergeBundles(beam.DoFn):  # type: ignore[misc]
    """The elements of a bundle → one."""

    merge: Callable[[Iterable[Any]], Any]

    def start_bundle(self) -> None:
        self._parts: list[Any] = []

    def process(self, element: Any) -> Iterator[Any]:
        self._parts.append(element)
        if len(self._parts) >= _MERGED:
            self._parts = [self.merge(self._parts)]
        return iter(())

    def finish_bundle(self) -> Iterator[Any]:
        if self._parts:
            yield in_global_window(self.merge(self._parts))


def in_global_window(output: Any) -> Any:
    """An output as it must be at the end of a bundle."""
    if isinstance(output, TaggedOutput):
        return TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)
