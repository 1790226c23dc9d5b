"""Charts of lines: over any shared x, and a calibration diagram."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from pipelines.report.charts import drawing
from pipelines.report.charts.drawing import (
    BOTTOM,
    GAP,
    LINE,
    RIGHT,
    TOP,
    WIDTH,
    X_LABELS,
    X_TITLE,
    Axis,
    Mark,
    Reference,
    Series,
)

_MOST_DOTS = 24  # more than these run into each other, and the line alone shows more


def line_chart(
    series: Sequence[Series],
    *,
    x_ticks: Sequence[tuple[float, str]],
    x_title: str,
    y_format: Callable[[float], str] | None,
    y_title: str = "",
    references: Sequence[Reference] = (),
) -> Markup:
    """Lines over a shared x, each with the band of its intervals; dashed vertical lines at `references`.

    `x_ticks` are (x, label), in any numbers (`round_ticks` finds some); the drawing holds every point, tick and reference.
    `y_title` says what the y axis counts. Without `y_format` it has no numbers: for shapes, whose height has no unit.
    """
    top = TOP + LINE * (len(references) + bool(y_title))
    height = 254 + top
    values = [v for line in series for _, mark in line.points for v in mark.extent]
    y_ticks = drawing.round_ticks(min(values), max(values))
    xs = [x for x, _ in x_ticks] + [x for line in series for x, _ in line.points] + [r.value for r in references]
    left = drawing.left_of(map(y_format, y_ticks)) if y_format else GAP
    frame = Axis(0, 1, left, WIDTH - RIGHT)
    x = Axis(min(xs), max(xs), left + 8, WIDTH - RIGHT - 8)
    y = Axis(y_ticks[0], y_ticks[-1], height - BOTTOM, top)
    parts = drawing.horizontal_grid(frame, y, y_ticks, y_format)
    parts += drawing.tick_labels(x, height - X_LABELS, x_ticks)
    parts.append(_x_title(left, height, x_title))
    parts += drawing.references(x, top, height - BOTTOM, references)
    parts += [_band(line, x, y) for line in series]
    parts += drawing.y_title(y_title)
    parts += _lines(series, x, y, lambda at, value: _sentence(at, value, x_title, x_ticks, y_format))
    label = "; ".join(
        [f"Lines over {x_title}: " + ", ".join(line.name for line in series), *(r.words for r in references)]
    )
    return drawing.svg(height, parts, label) + drawing.legend([(line.name, line.style) for line in series], "stroke")


def calibration_chart(series: Sequence[Series], *, x_title: str, y_title: str) -> Markup:
    """Observed against predicted probability on the unit square; on the diagonal they agree."""
    height, percent = 310, "{:.0%}".format
    ticks = [0, 0.25, 0.5, 0.75, 1]
    left = drawing.left_of(map(percent, ticks))
    x, y = Axis(0, 1, left + 8, WIDTH - RIGHT - 8), Axis(0, 1, height - BOTTOM, TOP + 20)
    parts = drawing.horizontal_grid(Axis(0, 1, left, WIDTH - RIGHT), y, ticks, percent)
    parts += drawing.tick_labels(x, height - X_LABELS, [(tick, percent(tick)) for tick in ticks])
    parts.append(drawing.rule(x.at(0), y.at(0), x.at(1), y.at(1), "reference"))
    parts.append(_x_title(left, height, x_title))
    parts += drawing.y_title(y_title)
    parts += _lines(series, x, y, lambda at, mark: f"{mark.value:.0%} are {y_title} where {at:.0%} is the {x_title}.")
    names = [(line.name, line.style) for line in series]
    return drawing.svg(height, parts, f"{y_title} against {x_title}") + drawing.legend(names, "stroke")


def _x_title(left: float, height: float, words: str) -> Markup:
    return drawing.text((left + WIDTH) / 2, height - X_TITLE, words, room=WIDTH - left, anchor="middle")


def _band(line: Series, x: Axis, y: Axis) -> Markup:
    known = [(x.at(at), mark) for at, mark in line.points if mark.low is not None and mark.high is not None]
    if len(known) < 2:
        return Markup("")
    upper = [f"{at},{y.at(mark.high or 0.0)}" for at, mark in known]
    lower = [f"{at},{y.at(mark.low or 0.0)}" for at, mark in reversed(known)]
    return Markup('<polygon class="band {}" points="{}"/>').format(line.style, " ".join(upper + lower))


_DASHED = ("length", "dropped", "random", "before", "oracle")  # in the style sheet


def _lines(series: Sequence[Series], x: Axis, y: Axis, words: Callable[[float, Mark], str]) -> list[Markup]:
    """Lines with their dots: dashed ones above solid ones, so that both are seen where they coincide."""
    parts, dots = list[Markup](), list[drawing.Dot]()
    for line in sorted(series, key=lambda line: line.style in _DASHED):
        places = [(x.at(at), y.at(mark.value)) for at, mark in line.points]
        path = Markup('<polyline class="line {}" points="{}"/>')
        parts.append(path.format(line.style, " ".join(f"{a},{b}" for a, b in places)))
        if len(places) <= _MOST_DOTS:
            named = [f"{line.name}: {words(at, mark)}" if words(at, mark) else "" for at, mark in line.points]
            dots += [drawing.Dot(*place, line.style, name) for place, name in zip(places, named, strict=True)]
    return parts + drawing.dots(dots, 3)


def _sentence(
    at: float,
    mark: Mark,
    x_title: str,
    x_ticks: Sequence[tuple[float, str]],
    y_format: Callable[[float], str] | None,
) -> str:
    """A point in words; empty where the y axis has no unit."""
    if y_format is None:
        return ""
    label = next((f" where {x_title} is {label}" for tick, label in x_ticks if tick == at), "")
    ends = "" if mark.low is None or mark.high is None else f", between {y_format(mark.low)} and {y_format(mark.high)}"
    return f"the value is {y_format(mark.value)}{ends}{label}."
