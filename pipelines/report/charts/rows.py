"""Charts with a row for each label: values with intervals, bars, shifts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.charts import drawing
from pipelines.report.charts.drawing import GAP, LINE, RIGHT, TOP, WIDTH, Axis, Mark
from pipelines.report.text import width, wrap_to_width

_LABELS = 184
_ROW = 36
_AXIS = 26  # px below the rows
_MOST_LINES = 3  # of a label
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
    extent: str = "an interval",
) -> Markup:
    """One row a label, with one value and its `extent` for each of `names` (name, style); a dashed line at `reference`."""
    values = [v for _, marks in rows for mark in marks if mark for v in mark.extent]
    labels = _Labels([label for label, _ in rows], _ROW)
    x, parts = _value_axis([*values, reference], labels, x_format)
    parts.append(drawing.rule(x.at(reference), TOP, x.at(reference), labels.bottom, "reference"))
    for place, (label, marks) in enumerate(rows):
        parts.append(labels.drawn(place))
        for offset, (mark, (name, style)) in enumerate(zip(marks, names, strict=True)):
            if mark is not None:
                words = f"{label}, {name}: the value is {x_format(mark.value)}"
                if mark.low is not None and mark.high is not None:
                    words += f", with {extent} from {x_format(mark.low)} to {x_format(mark.high)}"
                y = labels.middle(place) + 11 * (offset - (len(names) - 1) / 2)
                parts.append(_whisker(mark, style, x, y, f"{words}."))
    read = "Values with intervals: " + ", ".join(label for label, _ in rows)
    return drawing.svg(labels.bottom + _AXIS, parts, read) + drawing.legend(names)


def bar_rows(
    rows: Sequence[tuple[str, Sequence[Bar | None]]],
    *,
    names: Sequence[tuple[str, str]],
    whole: float = 0.0,
    sentence: Callable[[str, str, str], str] = lambda label, name, words: f"{label} has {words} {name}".rstrip() + ".",
) -> Markup:
    """One row a label, with one bar for each of `names` (name, style) from zero on, and its words at its end.

    All bars share one scale, which reaches `whole` at the least: 1 for shares. Values of other units go into another chart.
    `sentence` makes one of a label, a name and words. Raises `ValueError` for a value below zero.
    """
    bars = [bar for _, row in rows for bar in row if bar is not None]
    if any(bar.value < 0 for bar in bars):
        raise ValueError(
            f"a bar of {min(bar.value for bar in bars)}; bars start at zero: show it as words, or as a shift"
        )
    room = min(_MOST_WORDS, max((width(bar.words) for bar in bars), default=0.0)) + GAP
    x = Axis(0, max((whole, *(bar.value for bar in bars))) or 1.0, _LABELS, WIDTH - RIGHT - room)
    labels = _Labels([label for label, _ in rows], max(len(names) * _PITCH + 8, 28))
    parts = [drawing.rule(_LABELS, TOP, _LABELS, labels.bottom, "grid")]
    read = []
    for place, (label, row) in enumerate(rows):
        parts.append(labels.drawn(place))
        for offset, (bar, (name, style)) in enumerate(zip(row, names, strict=True)):
            if bar is None:
                continue
            y, end = labels.middle(place) + _PITCH * (offset - (len(names) - 1) / 2), x.at(bar.value)
            words = sentence(label, name, bar.words)
            parts.append(drawing.box(_LABELS, y - _BAR / 2, end, y + _BAR / 2, style, words))
            parts.append(drawing.text(end + 6, y + 4, bar.words, room=room - 6))
            read.append(f"{label} {name} {bar.words}")
    return drawing.svg(labels.bottom + TOP, parts, "Bars: " + "; ".join(read)) + drawing.legend(names, "box")


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
    labels = _Labels([label for label, *_ in rows], _ROW)
    x, parts = _value_axis(values or [0.0, 1.0], labels, x_format)
    read = []
    for place, (label, *pair) in enumerate(rows):
        middle = labels.middle(place)
        parts.append(labels.drawn(place))
        if pair[0] is not None and pair[1] is not None:
            parts.append(drawing.rule(x.at(pair[0]), middle, x.at(pair[1]), middle, f"shift {names[1][1]}"))
        known = [(value, name, style) for value, (name, style) in zip(pair, names, strict=True) if value is not None]
        parts += drawing.dots(
            [
                drawing.Dot(x.at(value), middle, style, f"{label} has {x_format(value)} {name}.")
                for value, name, style in known
            ]
        )
        read.append(" ".join([label, *(f"{name} {x_format(value)}" for value, name, _ in known)]))
    return drawing.svg(labels.bottom + _AXIS, parts, "Shifts: " + "; ".join(read)) + drawing.legend(names)


class _Labels:
    """The labels of rows, wrapped; all rows are as high as the one with the most lines, `least` px at least."""

    def __init__(self, names: Sequence[str], least: float) -> None:
        self._names = names
        self._lines = [wrap_to_width(name, _LABELS - 14, lines=_MOST_LINES) for name in names]
        self._pitch = max(least, LINE * max(map(len, self._lines), default=1) + 4)

    @property
    def bottom(self) -> float:
        return TOP + self._pitch * len(self._names)

    def middle(self, place: int) -> float:
        """The height of a row's middle."""
        return TOP + self._pitch * (place + 0.5)

    def drawn(self, place: int) -> Markup:
        return drawing.label(_LABELS - 10, self.middle(place), self._names[place], self._lines[place])


def _value_axis(
    values: Sequence[float], labels: _Labels, x_format: Callable[[float], str]
) -> tuple[Axis, list[Markup]]:
    """The axis that holds all values beside the labels, and its grid."""
    ticks = drawing.round_ticks(min(values), max(values))
    x = Axis(ticks[0], ticks[-1], _LABELS, WIDTH - 20)
    parts = [drawing.rule(x.at(tick), TOP, x.at(tick), labels.bottom, "grid") for tick in ticks]
    return x, parts + drawing.tick_labels(x, labels.bottom + 18, [(tick, x_format(tick)) for tick in ticks])


def _whisker(mark: Mark, style: str, x: Axis, y: float, words: str) -> Markup:
    (dot,) = drawing.dots([drawing.Dot(x.at(mark.value), y, style, words)])
    if mark.low is None or mark.high is None:
        return dot
    return drawing.rule(x.at(mark.low), y, x.at(mark.high), y, f"whisker {style}") + dot
