"""Beam's Reshuffle and CombineGlobally in fewer steps. No files.

Each step of a graph costs 5 to 10 ms on every runner before it does any work. This is most of the time of a small selection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter, TaggedOutput

# re-exported: `PCollection[T]` names the elements that flow in and out of an `expand` (to mypy it is Any)
from apache_beam.pvalue import PCollection as PCollection
from apache_beam.transforms.window import GlobalWindows

_MERGED = 16  # elements are merged when this many are waiting; those of a cut may have 1.6 MB a stratum


class Spread(beam.Reshuffle):  # type: ignore[misc]
    """The same elements, redistributed over the workers and materialised by the runner.

    Runners that support Reshuffle treat it as one. It does not preserve windows and timestamps, which a batch does not need.
    """

    def expand(self, elements: PCollection[Any]) -> PCollection[Any]:
        kind = elements.element_type
        keyed = elements | "AddKeys" >> beam.Map(_add_key).with_output_types(beam.typehints.Tuple[int, kind])
        return keyed | "Deal" >> beam.GroupByKey() | "DropKeys" >> beam.FlatMap(_drop_key).with_output_types(kind)


def _add_key(element: Any) -> tuple[int, Any]:
    return random.getrandbits(32), element


def _drop_key(group: tuple[int, Iterable[Any]]) -> Iterable[Any]:
    return group[1]


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Gather(beam.PTransform):  # type: ignore[misc]
    """All elements of one or several collections → the one element into which `merge` combines them.

    `merge` is associative, and also accepts an empty sequence. Each bundle is merged first, then one worker merges the
    bundles, in a third of CombineGlobally's steps.
    """

    merge: Callable[[Iterable[Any]], Any]

    def expand(self, sources: PCollection[Any] | tuple[PCollection[Any], ...]) -> PCollection[Any]:
        several = sources if isinstance(sources, tuple) else (sources,)
        merged = [
            source | f"MergeBundles{number or ''}" >> beam.ParDo(MergeBundles(self.merge))
            for number, source in enumerate(several)
        ]
        parts = tuple(merged) | "AllBundles" >> beam.Flatten() if len(merged) > 1 else merged[0]
        impulse = several[0].pipeline | "One" >> beam.Impulse()
        return impulse | "Merge" >> beam.Map(_merge, AsIter(parts), self.merge)


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
    """Wrap an output as `finish_bundle` must return it."""
    if isinstance(output, TaggedOutput):
        return TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)
