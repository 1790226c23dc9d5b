"""Small charts as inline SVG: lines with bands, values with intervals, a calibration diagram.

Pure functions from numbers to markup. Nothing but what is passed in is drawn; every text is escaped; colours come from
the page's style sheet by class (`model`, `length`, `random`, `oracle`), so that they follow light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38
_LABELS = 164
_ROW = 36
_CHARACTER = 8.5  # no narrower than a digit in the style sheet's largest size


@dataclass(frozen=True)
class Mark:
    """A value, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A named line through (x, mark) points; `style` is its class in the style sheet."""

    name: str
    style: str
    points: Sequence[tuple[float, Mark]]


@dataclass(frozen=True)
class Axis:
    """Where a value falls between two ends of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(
    series: Sequence[Series], *, x_ticks: Sequence[tuple[float, str]], x_title: str, y_format: Callable[[float], str]
) -> Markup:
    """Lines over a shared x, each with the band of its intervals. `x_ticks` are (x, label)."""
    height = 260
    values = [v for line in series for _, mark in line.points for v in _extent(mark)]
    xs = [x for x, _ in x_ticks]
    x = Axis(min(xs), max(xs), _LEFT + 8, WIDTH - _RIGHT - 8)
    y_ticks = _ticks(min(values), max(values))
    y = Axis(y_ticks[0], y_ticks[-1], height - _BOTTOM, _TOP)
    parts = [_horizontal_grid(y, y_ticks, y_format)]
    parts += _labels(x, height - 20, x_ticks)
    parts.append(_text((_LEFT + WIDTH) / 2, height - 4, x_title, anchor="middle"))
    parts += [_band(line, x, y) for line in series]
    parts += [_line(line, x, y) for line in series]
    return _svg(height, parts, "Lines: " + ", ".join(line.name for line in series)) + _legend(series)


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Mark | None]]],
    *,
    names: Sequence[tuple[str, str]],
    reference: float,
    x_format: Callable[[float], str],
) -> Markup:
    """One row a label, with one value and interval for each of `names` (name, style); a dashed line at `reference`."""
    height = _TOP + _ROW * len(rows) + 26
    values = [v for _, marks in rows for mark in marks if mark for v in _extent(mark)]
    ticks = _ticks(min([*values, reference]), max([*values, reference]))
    x = Axis(ticks[0], ticks[-1], _LABELS, WIDTH - 20)
    bottom = _TOP + _ROW * len(rows)
    parts = [_rule(x.at(tick), _TOP, x.at(tick), bottom, "grid") for tick in ticks]
    parts += [_text(x.at(tick), bottom + 18, x_format(tick), anchor="middle") for tick in ticks]
    parts.append(_rule(x.at(reference), _TOP, x.at(reference), bottom, "reference"))
    for place, (label, marks) in enumerate(rows):
        middle = _TOP + _ROW * (place + 0.5)
        parts.append(_text(_LABELS - 10, middle + 4, label, anchor="end", most=20))
        for offset, (mark, (_, style)) in enumerate(zip(marks, names, strict=True)):
            if mark is not None:
                parts.append(_whisker(mark, style, x, middle + 11 * (offset - (len(names) - 1) / 2)))
    styles = [Series(name, style, ()) for name, style in names]
    return _svg(height, parts, "Values with intervals: " + ", ".join(label for label, _ in rows)) + _legend(styles)


def calibration_chart(series: Sequence[Series], *, x_title: str, y_title: str) -> Markup:
    """Observed against predicted probability on the unit square; on the diagonal they agree."""
    height = 300
    x, y = Axis(0, 1, _LEFT, WIDTH - _RIGHT), Axis(0, 1, height - _BOTTOM, _TOP + 14)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    parts = [_horizontal_grid(y, ticks, lambda value: f"{value:.0%}")]
    parts += [_text(x.at(tick), height - 20, f"{tick:.0%}", anchor="end" if tick == 1 else "middle") for tick in ticks]
    parts.append(_rule(x.at(0), y.at(0), x.at(1), y.at(1), "reference"))
    parts.append(_text((_LEFT + WIDTH) / 2, height - 4, x_title, anchor="middle"))
    parts.append(_text(4, _TOP + 2, y_title))
    parts += [_line(line, x, y) for line in series]
    return _svg(height, parts, f"{y_title} against {x_title}") + _legend(series)


def _extent(mark: Mark) -> Iterable[float]:
    return (v for v in (mark.value, mark.low, mark.high) if v is not None)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that hold both ends."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, max(last, first + 1) + 1)]


def _labels(x: Axis, y: float, ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    """The labels that have room, from left to right."""
    shown: list[Markup] = []
    free = -math.inf
    for at, label in ticks:
        half = _CHARACTER * len(label) / 2
        if x.at(at) - half >= free:
            shown.append(_text(x.at(at), y, label, anchor="middle"))
            free = x.at(at) + half + _CHARACTER
    return shown


def _horizontal_grid(y: Axis, ticks: Sequence[float], written: Callable[[float], str]) -> Markup:
    lines = [_rule(_LEFT, y.at(tick), WIDTH - _RIGHT, y.at(tick), "grid") for tick in ticks]
    return Markup("").join([*lines, *(_text(_LEFT - 6, y.at(t) + 4, written(t), anchor="end") for t in ticks)])


def _band(line: Series, x: Axis, y: Axis) -> Markup:
    known = [(x.at(at), mark) for at, mark in line.points if mark.low is not None and mark.high is not None]
    if len(known) < 2:
        return Markup("")
    upper = [f"{at},{y.at(mark.high or 0.0)}" for at, mark in known]
    lower = [f"{at},{y.at(mark.low or 0.0)}" for at, mark in reversed(known)]
    return Markup('<polygon class="band {}" points="{}"/>').format(line.style, " ".join(upper + lower))


def _line(line: Series, x: Axis, y: Axis) -> Markup:
    places = [(x.at(at), y.at(mark.value)) for at, mark in line.points]
    path = Markup('<polyline class="line {}" points="{}"/>').format(line.style, " ".join(f"{a},{b}" for a, b in places))
    dots = [Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(line.style, a, b) for a, b in places]
    return Markup("").join([path, *dots])


def _whisker(mark: Mark, style: str, x: Axis, y: float) -> Markup:
    dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="4"/>').format(style, x.at(mark.value), y)
    if mark.low is None or mark.high is None:
        return dot
    return _rule(x.at(mark.low), y, x.at(mark.high), y, f"whisker {style}") + dot


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(style, x1, y1, x2, y2)


def _text(x: float, y: float, words: str, *, anchor: str = "start", most: int = 60) -> Markup:
    shown = words if len(words) <= most else words[: most - 1] + "…"
    title = Markup("<title>{}</title>").format(words) if shown != words else ""
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}{}</text>').format(x, y, anchor, shown, title)


def _svg(height: float, parts: Sequence[Markup], label: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def _legend(series: Sequence[Series]) -> Markup:
    items = Markup("").join(
        Markup('<span><i class="key {}"></i>{}</span>').format(line.style, escape(line.name)) for line in series
    )
    return Markup('<p class="legend">{}</p>').format(items)
