"""Rows of preferences in a report: how often the model agrees with them, by how much, and what the selection made of them.
Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.report.histogram import Histogram, merge_histograms
from pipelines.select.columns import to_labels
from pipelines.select.preference_rows import RowPairs

_Z = 1.959964  # of a two-sided interval of 95 %
_MOST_BINS = 48
_LEAST_WIDTH = 2.0**-20  # of a bin, also as a share of the largest margin: finer ones look alike on a page
_KEPT, _FLIPPED, _DROPPED = range(3)  # groups of the histogram


class PairCounts(NamedTuple):
    """Counts of pairs of a source."""

    pairs: int = 0
    agreed: int = 0
    level: int = 0  # with the same reward
    kept: int = 0  # as they are judged
    flipped: int = 0

    def plus(self, other: PairCounts) -> PairCounts:
        return PairCounts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class JudgedPairs:
    """The pairs of some rows. A pair is flipped if the kept response is not the one that the row prefers."""

    sources: Mapping[str | None, PairCounts] = field(default_factory=dict)
    margins: Histogram = field(default_factory=Histogram)
    incomplete: int = 0  # rows of which one side has no reward

    @classmethod
    def of(cls, rows: pa.Table) -> JudgedPairs:
        """Return the pairs among scored responses, given in the columns of `observations.ROWS` with all responses of a row
        together."""
        numbers = {name: rows[name].to_numpy() for name in ("file", "unit", "row", "response", "reward")}
        pairs, kept = RowPairs.of(SimpleNamespace(**numbers)), rows["kept"].to_numpy().astype(bool)
        margins, labels = pairs.margins(numbers["reward"]), to_labels(rows["source"])
        taken, rows_in_all = kept[pairs.chosen], len(np.unique(numbers["row"]))
        others = numbers["row"][kept & (numbers["response"] > 0)]
        flipped = ~taken & np.isin(numbers["row"][pairs.chosen], others)
        codes = labels.codes[pairs.chosen]
        counted = np.stack([np.ones(len(margins)), margins > 0, margins == 0, taken, flipped]).astype(np.int64)
        sources = {
            labels.name_of(code): PairCounts(*map(int, counted[:, codes == code].sum(axis=1)))
            for code in np.unique(codes).tolist()
        }
        groups = np.where(taken, _KEPT, np.where(flipped, _FLIPPED, _DROPPED))
        histogram = Histogram.of(margins.astype(np.float32), np.ones(len(margins), np.int64), groups)
        return cls(sources, histogram, rows_in_all - len(margins))

    def renamed(self, names: Mapping[str | None, str | None]) -> JudgedPairs:
        """The same with other source names; sources that get the same name are added up."""
        parts = (JudgedPairs({names.get(source, source): counts}) for source, counts in self.sources.items())
        return replace(self, sources=merge_pairs(parts).sources)


def merge_pairs(parts: Iterable[JudgedPairs]) -> JudgedPairs:
    """All parts as one."""
    whole = list(parts)
    sources: dict[str | None, PairCounts] = {}
    for part in whole:
        for source, counts in part.sources.items():
            sources[source] = sources.get(source, PairCounts()).plus(counts)
    return JudgedPairs(
        sources, merge_histograms(part.margins for part in whole), sum(part.incomplete for part in whole)
    )


def pair_numbers(judged: JudgedPairs, *, others: str, most_sources: int) -> dict[str, Any] | None:
    """The part of `report.json` on preferences, as plain JSON values; None if there is no pair."""
    total = PairCounts()
    for counts in judged.sources.values():
        total = total.plus(counts)
    if not total.pairs:
        return None
    ordered = sorted(judged.sources, key=lambda name: (name == others, -judged.sources[name].pairs, name or ""))
    sources = [
        {"name": None if name == others else name, "others": name == others, **judged.sources[name]._asdict()}
        for name in ordered[:most_sources]
    ]
    if rest := ordered[most_sources:]:
        counts = PairCounts()
        for name in rest:
            counts = counts.plus(judged.sources[name])
        sources = [*sources, {"name": None, "others": True, **counts._asdict()}]
    bins = judged.margins
    while bins.bins > _MOST_BINS or 2.0**bins.scale < _LEAST_WIDTH * max(1.0, float(np.abs(bins.edges).max())):
        bins = bins.coarsen(bins.scale + 1)
    none = np.zeros(bins.bins, np.int64)
    by_group = {name: bins.counts.get(group, none) for name, group in _GROUPS}
    return {
        **total._asdict(),
        "incomplete": judged.incomplete,
        "agreement": agreement(total.agreed + total.level / 2, total.pairs),
        "sources": sources,
        "margins": {
            "edges": [float(edge) for edge in bins.edges],
            **{name: [int(count) for count in counts] for name, counts in by_group.items()},
        },
    }


_GROUPS = (("kept", _KEPT), ("flipped", _FLIPPED), ("dropped", _DROPPED))


def agreement(agreed: float, pairs: int) -> dict[str, float]:
    """The share of pairs that the model orders as judged, equal rewards counting half, with Wilson's 95 % interval for
    independent pairs."""
    share, room = agreed / pairs, _Z**2 / pairs
    middle = (share + room / 2) / (1 + room)
    half = math.sqrt(share * (1 - share) * room + room**2 / 4) / (1 + room)
    return {"value": share, "low": middle - half, "high": middle + half}
