"""Histograms of named series over shared numeric bins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from pipelines.report.charts import drawing
from pipelines.report.charts.drawing import BOTTOM, LINE, RIGHT, TOP, WIDTH, X_LABELS, X_TITLE, Axis, Reference


@dataclass(frozen=True)
class Counts:
    """A named series with one number for each bin, none below zero; `style` is its class in the style sheet."""

    name: str
    style: str
    counts: Sequence[float]


def histogram(
    edges: Sequence[float],
    series: Sequence[Counts],
    *,
    x_title: str,
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
    subject: str = "",
    y_title: str = "",
    overlaid: bool = False,
    references: Sequence[Reference] = (),
) -> Markup:
    """Bars between `edges` (one more than bins, rising), dashed vertical lines at `references`.

    Stacked in the order given, the first at the bottom, so that the whole is seen; or `overlaid`, all from zero, so that
    shapes are compared. Height is the number, whatever the bin's width, of what `y_title` says; `subject` says what is counted,
    behind the names of the series. Raises `ValueError` where edges and counts do not fit.
    """
    _check(edges, series)
    top = TOP + LINE * (len(references) + bool(y_title))
    height = 234 + top
    bottoms = [[0.0] * (len(edges) - 1) if overlaid or not k else _sums(series[:k]) for k in range(len(series))]
    tops = [[low + count for low, count in zip(b, s.counts, strict=True)] for b, s in zip(bottoms, series, strict=True)]
    y_ticks = drawing.round_ticks(0, max(max(values) for values in tops) or 1)
    left = drawing.left_of(map(y_format, y_ticks))
    x_ticks = drawing.round_ticks(edges[0], edges[-1])
    ends = [*edges, *(reference.value for reference in references)]
    x = Axis(min(ends), max(ends), left + 8, WIDTH - RIGHT - 8)
    y = Axis(0, y_ticks[-1], height - BOTTOM, top)
    parts = drawing.horizontal_grid(Axis(0, 1, left, WIDTH - RIGHT), y, y_ticks, y_format)
    inside = [(tick, x_format(tick)) for tick in x_ticks if x.low <= tick <= x.high]
    parts += drawing.tick_labels(x, height - X_LABELS, inside)
    parts.append(drawing.text((left + WIDTH) / 2, height - X_TITLE, x_title, room=WIDTH - left, anchor="middle"))
    for one, lows, highs in zip(series, bottoms, tops, strict=True):
        style = f"{one.style} over" if overlaid else one.style
        for (start, end), low, high, count in zip(pairwise(edges), lows, highs, one.counts, strict=True):
            if count:
                what = f"{one.name} {subject}".strip()
                words = f"There {'is' if count == 1 else 'are'} {y_format(count)} {what} with a {x_title} from "
                words += f"{x_format(start)} to {x_format(end)}."
                parts.append(drawing.box(x.at(start), y.at(low), x.at(end), y.at(high), style, words))
    parts += drawing.y_title(y_title)
    parts += drawing.references(x, top, height - BOTTOM, references)
    label = f"Histogram of {x_title}: " + ", ".join(one.name for one in series)
    label = "; ".join([label, *(reference.words for reference in references)])
    return drawing.svg(height, parts, label) + drawing.legend([(one.name, one.style) for one in series], "box")


def _sums(series: Sequence[Counts]) -> list[float]:
    return [sum(counts) for counts in zip(*(one.counts for one in series), strict=True)]


def _check(edges: Sequence[float], series: Sequence[Counts]) -> None:
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges are {list(edges)[:9]}; expected two or more, each greater than the one before")
    if not series:
        raise ValueError("a histogram of no series; give at least one")
    for one in series:
        if len(one.counts) != len(edges) - 1 or min(one.counts) < 0:
            raise ValueError(
                f"{len(one.counts)} counts, the least {min(one.counts, default=None)}, between {len(edges)} edges; "
                f"expected {len(edges) - 1}, none below zero"
            )
