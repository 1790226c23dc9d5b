"""The numbers of a report, computed from observations: `report.json`. Pure; the page only draws them.

Counts are exact. Numbers that need whole prompts (best of n, margins, overlap, length) are taken from the sample of prompts;
`sample` says how many these are, and `whole` whether they are all. What gold tells is taken from a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config import RunConfig
from pipelines.plan import Plan
from pipelines.report.gains import gains
from pipelines.report.histogram import Histogram
from pipelines.report.judged_pairs import pair_numbers
from pipelines.report.observations import OTHERS, Observations
from pipelines.report.prompt_numbers import by_length, by_prompt, disagreement, gold_means, list_prompts
from pipelines.score.exact_sum import ExactSum

FORMAT = 1
_MOST_BINS = 48
_LEAST_WIDTH = 2.0**-20  # of a bin, also as a share of the largest reward: finer ones look the same on a page
_OUTSIDE = 0.001  # maximum share of rows beyond either end of the chart
_MOST_SOURCES = 12
_DIGITS = 7  # significant ones; further digits may differ between processors

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReportSettings:
    """The settings of a report."""

    unit: str  # of sizes: tokens | characters
    temperature: float | None
    gold: str | None  # name of the column
    ensemble: bool
    preferences: bool = False  # whether the rows are preferences
    signals: tuple[str, ...] = ()  # their names, and those of a model's outputs

    @classmethod
    def of(cls, config: RunConfig, plan: Plan) -> ReportSettings:
        """Return the settings from a configuration and its plan; without a model, sizes are in characters."""
        unit = "tokens" if config.models else "characters"
        judged, several = plan.mapping.preferences is not None, len(config.models) > 1
        signals = (*config.outputs, *config.signals)
        gold = config.report.gold
        return cls(unit, plan.temperature, gold=gold, ensemble=several, preferences=judged, signals=signals)


def report_numbers(observed: Observations, settings: ReportSettings) -> dict[str, Any]:
    """All of `report.json`, as plain JSON values; floats rounded to 7 significant digits."""
    sample, sources = observed.sample, _sources(observed)
    compared, scored = observed.graded if settings.gold is not None else sample, sum(observed.counts().values())
    histogram = _histogram_to_draw(observed, [source["name"] for source in sources if not source["others"]])
    numbers = {
        "format": FORMAT,
        "unit": settings.unit,
        "units": _units(settings),
        "gold": settings.gold,
        "sides": _sides(observed),
        "sources": sources,
        "histogram": histogram,
        "yield": [] if histogram is None else _yield(observed, histogram["edges"][:-1]),
        "whole": sample.num_rows == scored,  # whether all responses are in the sample
        **by_prompt(sample, compared, temperature=settings.temperature),
        "gains": {"whole": compared.num_rows == scored, **gains(compared)},
        "length": by_length(sample),
        "disagreement": disagreement(sample) if settings.ensemble else None,
        "gold_means": gold_means(compared) if settings.gold is not None else None,
        "prompts": list_prompts(sample),
    }
    if settings.preferences:
        numbers["preferences"] = pair_numbers(observed.judged, others=OTHERS, most_sources=_MOST_SOURCES)
    if settings.signals:
        numbers["signals"] = {name: _means(observed, name) for name in settings.signals}
    rounded: dict[str, Any] = _round(numbers)
    return rounded


def _units(settings: ReportSettings) -> dict[str, str]:
    """The units of the numbers by their names; shares are parts of 1, and rows, prompts and responses are counts."""
    raw = "standardised rewards of several models, combined" if settings.ensemble else "raw output of the reward model"
    gold = {} if settings.gold is None else {"gold": f"as in the column {settings.gold}"}
    sizes = {"size": settings.unit, "kept_size": settings.unit, "dropped_size": settings.unit}
    return {"reward": raw, "edges": raw, "threshold": raw, "characters": "characters", "kl": "nats", **sizes, **gold}


def _sides(observed: Observations) -> dict[str, Any]:
    """Rows, sizes and lengths of the kept responses and of the dropped ones."""
    counts, sizes = observed.counts(), observed.sizes()
    return {
        name: {
            "rows": sum(n for (_, kept), n in counts.items() if kept == side),
            "size": sum(n for (_, kept), n in sizes.items() if kept == side),
            "characters": sum(n for (_, kept), n in observed.lengths.items() if kept == side),
        }
        for name, side in (("kept", True), ("dropped", False))
    }


def _means(observed: Observations, name: str) -> dict[str, Any]:
    """The mean of a signal over the kept responses that have a value, and over the dropped ones."""
    sums = observed.signals.get(name, (ExactSum(), ExactSum()))
    sides = zip(("kept", "dropped"), sums, strict=True)
    return {side: {"mean": one.mean(), "responses": one.count} for side, one in sides}


def _sources(observed: Observations) -> list[dict[str, Any]]:
    """Rows and sizes by source, the largest first; the smaller sources are one entry, the last."""
    counts, sizes = observed.counts(), observed.sizes()
    names = {source for source, _ in observed.sides}
    total = {name: counts.get((name, True), 0) + counts.get((name, False), 0) for name in names}
    ordered = sorted(names - {OTHERS}, key=lambda name: (-total[name], name or ""))
    largest, rest = ordered[:_MOST_SOURCES], {*ordered[_MOST_SOURCES:], *(names & {OTHERS})}

    def row(name: str | None, members: set[str | None] | None = None) -> dict[str, Any]:
        sources = members or {name}
        return {
            "name": name,
            "others": members is not None,
            "kept": sum(counts.get((source, True), 0) for source in sources),
            "dropped": sum(counts.get((source, False), 0) for source in sources),
            "kept_size": sum(sizes.get((source, True), 0) for source in sources),
            "dropped_size": sum(sizes.get((source, False), 0) for source in sources),
        }

    return [*(row(name) for name in largest), *([row(None, rest)] if rest else [])]


def _histogram_to_draw(observed: Observations, sources: Sequence[str | None]) -> dict[str, Any] | None:
    """The histogram, also that of these sources, in at most about `_MOST_BINS` bins.

    Rows beyond either end are counted in the first and last bin.
    """
    whole = observed.histogram
    if not whole:
        return None
    totals: Integers = np.sum(list(whole.counts.values()), axis=0)
    cumulative = np.cumsum(totals)
    low = int(np.searchsorted(cumulative, _OUTSIDE * cumulative[-1], side="right"))
    high = int(np.searchsorted(cumulative, (1 - _OUTSIDE) * cumulative[-1], side="left"))
    by = 0
    least = _LEAST_WIDTH * max(1.0, float(np.abs(whole.edges[[low, high]]).max()))
    while 2.0 ** (whole.scale + by) < least or ((whole.first + high) >> by) - ((whole.first + low) >> by) >= _MOST_BINS:
        by += 1
    coarse = whole.coarsen(whole.scale + by)
    start = ((whole.first + low) >> by) - coarse.first
    end = ((whole.first + high) >> by) - coarse.first + 1

    def clip(counts: Integers) -> list[int]:
        inner = counts[start:end].copy()
        inner[0] += counts[:start].sum()
        inner[-1] += counts[end:].sum()
        return [int(n) for n in inner]

    def add_up(groups: Sequence[int]) -> list[int]:
        return clip(sum((coarse.counts[group] for group in groups), np.zeros(coarse.bins, np.int64)))

    every = range(len(observed.sides))
    return {
        "edges": [float(edge) for edge in coarse.edges[start : end + 1]],
        "kept": add_up([group for group in every if observed.sides[group][1]]),
        "dropped": add_up([group for group in every if not observed.sides[group][1]]),
        "below": int(sum(counts[:start].sum() for counts in coarse.counts.values())),
        "above": int(sum(counts[end:].sum() for counts in coarse.counts.values())),
        "by_source": [
            {
                "name": name,
                "kept": add_up([group for group in every if observed.sides[group] == (name, True)]),
                "dropped": add_up([group for group in every if observed.sides[group] == (name, False)]),
            }
            for name in sources
        ],
    }


def _yield(observed: Observations, thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """Rows, size and mean reward (by the middles of bins) that these thresholds would keep of the whole corpus."""
    whole: Histogram = observed.histogram
    counts: Integers = np.sum(list(whole.counts.values()), axis=0)
    sizes: Integers = np.sum(list(whole.sizes.values()), axis=0)
    edges = whole.edges
    middles = (edges[1:] + edges[:-1]) / 2
    points = []
    for threshold in thresholds:
        at = int(np.searchsorted(edges[:-1], threshold, side="left"))
        rows = int(counts[at:].sum())
        if rows:
            mean = float((counts[at:] * middles[at:]).sum() / rows)
            points.append({"threshold": threshold, "rows": rows, "size": int(sizes[at:].sum()), "mean": mean})
    return points


def _round(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _round(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_round(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
