"""The charts of a run's report that compare sources. Pure: from report.json."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pipelines.report.charts import Mark, dot_pairs, interval_chart
from pipelines.report.text import share, short
from pipelines.storage.canonical_json import Json

SIDES = (("kept", "kept"), ("dropped", "dropped"))


def source_name(row: Json) -> str:
    """Return the display name of a row of the report's `sources`."""
    return "all others" if row["others"] else "(no source)" if row["name"] is None else row["name"]


def by_source(report: Json) -> dict[str, Any]:
    bins = report["histogram"]
    rows = [
        (
            "(no source)" if source["name"] is None else source["name"],
            [_quartiles(bins["edges"], source[side]) for side in ("kept", "dropped")],
        )
        for source in bins["by_source"]
    ]
    middle = _quartiles(bins["edges"], [a + b for a, b in zip(bins["kept"], bins["dropped"], strict=True)])
    return {
        "title": "Rewards by source",
        "serves": "whether sources can share one threshold: if their rewards differ, cut per source (top.per) or compare "
        "only within prompts.",
        "svg": interval_chart(
            rows, names=SIDES, reference=middle.value if middle else 0.0, x_format=short, extent="the middle half"
        ),
        "note": "Dots are medians of the reward, lines the middle half of the responses; the dashed line is the median of all.",
    }


def _quartiles(edges: Sequence[float], counts: Sequence[int]) -> Mark | None:
    """Return the median and quartiles of binned values, linear within a bin."""
    total = sum(counts)
    if not total:
        return None
    quartiles, cumulative, targets = [], 0.0, [0.25 * total, 0.5 * total, 0.75 * total]
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        while targets and count and cumulative + count >= targets[0]:
            quartiles.append(low + (high - low) * (targets.pop(0) - cumulative) / count)
        cumulative += count
    return Mark(quartiles[1], quartiles[0], quartiles[2])


def mix(report: Json) -> dict[str, Any]:
    kept = sum(row["kept"] for row in report["sources"])
    scored = kept + sum(row["dropped"] for row in report["sources"])
    rows = [
        (source_name(row), (row["kept"] + row["dropped"]) / scored, row["kept"] / kept if kept else None)
        for row in report["sources"]
    ]
    return {
        "title": "Mix of sources",
        "serves": "whether the selection may change the mix: a source that gains or loses much is favoured or penalised by "
        "the model or by a threshold.",
        "svg": dot_pairs(rows, names=(("of all scored", "before"), ("of the kept", "after")), x_format=share),
        "note": "",
    }
