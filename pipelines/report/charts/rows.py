"""Charts with a row for each label: values with intervals, bars, shifts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.charts import drawing
from pipelines.report.charts.drawing import GAP, RIGHT, TOP, WIDTH, Axis, Mark
from pipelines.report.text import width

_LABELS = 184
_ROW = 36
_BAR, _PITCH = 12, 18
_MOST_WORDS = 150  # px for the words at the end of a bar


@dataclass(frozen=True)
class Bar:
    """A length, not below zero, and the words at its end."""

    value: float
    words: str


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Mark | None]]],
    *,
    names: Sequence[tuple[str, str]],
    reference: float,
    x_format: Callable[[float], str],
) -> Markup:
    """One row a label, with one value and interval for each of `names` (name, style); a dashed line at `reference`."""
    values = [v for _, marks in rows for mark in marks if mark for v in mark.extent]
    x, parts = _value_axis([*values, reference], len(rows), x_format)
    parts.append(drawing.rule(x.at(reference), TOP, x.at(reference), TOP + _ROW * len(rows), "reference"))
    for place, (label, marks) in enumerate(rows):
        middle = TOP + _ROW * (place + 0.5)
        parts.append(_label(middle, label))
        for offset, (mark, (_, style)) in enumerate(zip(marks, names, strict=True)):
            if mark is not None:
                parts.append(_whisker(mark, style, x, middle + 11 * (offset - (len(names) - 1) / 2)))
    words = "Values with intervals: " + ", ".join(label for label, _ in rows)
    return drawing.svg(_height(len(rows)), parts, words) + drawing.legend(names)


def bar_rows(rows: Sequence[tuple[str, Sequence[Bar | None]]], *, names: Sequence[tuple[str, str]]) -> Markup:
    """One row a label, with one bar for each of `names` (name, style) from zero on, and its words at its end.

    All bars share one scale: values of other units go into another chart, or are passed as shares. Raises `ValueError` for a
    value below zero.
    """
    bars = [bar for _, row in rows for bar in row if bar is not None]
    if any(bar.value < 0 for bar in bars):
        raise ValueError(
            f"a bar of {min(bar.value for bar in bars)}; bars start at zero: show it as words, or as a shift"
        )
    room = min(_MOST_WORDS, max((width(bar.words) for bar in bars), default=0.0)) + GAP
    x = Axis(0, max((bar.value for bar in bars), default=0.0) or 1.0, _LABELS, WIDTH - RIGHT - room)
    pitch = max(len(names) * _PITCH + 8, 28)
    bottom = TOP + pitch * len(rows)
    parts = [drawing.rule(_LABELS, TOP, _LABELS, bottom, "grid")]
    read = []
    for place, (label, row) in enumerate(rows):
        middle = TOP + pitch * (place + 0.5)
        parts.append(_label(middle, label))
        for offset, (bar, (name, style)) in enumerate(zip(row, names, strict=True)):
            if bar is None:
                continue
            y, end = middle + _PITCH * (offset - (len(names) - 1) / 2), x.at(bar.value)
            parts.append(drawing.box(_LABELS, y - _BAR / 2, end, y + _BAR / 2, style, f"{label}, {name}: {bar.words}"))
            parts.append(drawing.text(end + 6, y + 4, bar.words, room=room - 6))
            read.append(f"{label} {name} {bar.words}")
    return drawing.svg(bottom + TOP, parts, "Bars: " + "; ".join(read)) + drawing.legend(names, "box")


def dot_pairs(
    rows: Sequence[tuple[str, float | None, float | None]],
    *,
    names: tuple[tuple[str, str], tuple[str, str]],
    x_format: Callable[[float], str],
) -> Markup:
    """One row a label, with a dot for the value before, a dot for the value after, and a line between them; None is left out.

    `names` are (name, style) of before and after.
    """
    values = [value for _, *pair in rows for value in pair if value is not None]
    x, parts = _value_axis(values or [0.0, 1.0], len(rows), x_format)
    read = []
    for place, (label, *pair) in enumerate(rows):
        middle = TOP + _ROW * (place + 0.5)
        parts.append(_label(middle, label))
        if pair[0] is not None and pair[1] is not None:
            parts.append(drawing.rule(x.at(pair[0]), middle, x.at(pair[1]), middle, f"shift {names[1][1]}"))
        known = [(value, name, style) for value, (name, style) in zip(pair, names, strict=True) if value is not None]
        parts += [drawing.dot(x.at(value), middle, style) for value, _, style in known]
        read.append(" ".join([label, *(f"{name} {x_format(value)}" for value, name, _ in known)]))
    return drawing.svg(_height(len(rows)), parts, "Shifts: " + "; ".join(read)) + drawing.legend(names)


def _height(rows: int) -> int:
    return TOP + _ROW * rows + 26


def _value_axis(values: Sequence[float], rows: int, x_format: Callable[[float], str]) -> tuple[Axis, list[Markup]]:
    """The axis that holds all values beside the labels, and its grid."""
    ticks = drawing.round_ticks(min(values), max(values))
    bottom = TOP + _ROW * rows
    x = Axis(ticks[0], ticks[-1], _LABELS, WIDTH - 20)
    parts = [drawing.rule(x.at(tick), TOP, x.at(tick), bottom, "grid") for tick in ticks]
    return x, parts + drawing.tick_labels(x, bottom + 18, [(tick, x_format(tick)) for tick in ticks])


def _label(middle: float, words: str) -> Markup:
    return drawing.text(_LABELS - 10, middle + 4, words, room=_LABELS - 14, anchor="end")


def _whisker(mark: Mark, style: str, x: Axis, y: float) -> Markup:
    dot = drawing.dot(x.at(mark.value), y, style)
    if mark.low is None or mark.high is None:
        return dot
    return drawing.rule(x.at(mark.low), y, x.at(mark.high), y, f"whisker {style}") + dot
