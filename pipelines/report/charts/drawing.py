"""Elements of charts: axes, rules, texts, legends. Coordinates are pixels of a drawing `WIDTH` wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.text import crop, crop_to_width, shorten, width

WIDTH = 440
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 42
X_LABELS, X_TITLE = 21, 4  # from the lower edge
GAP = 8.0  # at least, between two texts in a line
LINE = 16  # from one line of text to the next
_MOST_LABEL = 120.0  # of a vertical axis
_MOST_NAME = 60  # characters of a name below a chart
_MOST_READ = 300  # characters of the label of a chart for screen readers


@dataclass(frozen=True)
class Mark:
    """A value, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def extent(self) -> Iterable[float]:
        return (v for v in (self.value, self.low, self.high) if v is not None)


@dataclass(frozen=True)
class Series:
    """A named line through (x, mark) points; `style` is its class in the style sheet."""

    name: str
    style: str
    points: Sequence[tuple[float, Mark]]


@dataclass(frozen=True)
class Reference:
    """A value to compare with, such as a threshold: a dashed line with its words."""

    value: float
    words: str


@dataclass(frozen=True)
class Axis:
    """A linear scale: values `low` to `high` at pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def round_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that hold both ends."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, max(last, first + 1) + 1)]


def left_of(labels: Iterable[str]) -> float:
    """The x at which a drawing begins, to the right of these labels of its vertical axis."""
    return max(LEFT, math.ceil(min(_MOST_LABEL, max(map(width, labels), default=0.0))) + GAP)


def horizontal_grid(x: Axis, y: Axis, ticks: Sequence[float], y_format: Callable[[float], str] | None) -> list[Markup]:
    """A rule across at each tick, labelled if `y_format` is not None."""
    rules = [rule(x.start, y.at(tick), x.end, y.at(tick), "grid") for tick in ticks]
    if y_format is None:
        return rules
    return rules + [text(x.start - 6, y.at(tick) + 4, y_format(tick), room=x.start - 6, anchor="end") for tick in ticks]


def y_title(words: str) -> list[Markup]:
    """The title of a vertical axis, above it, where there is one."""
    return [text(4, TOP + 4, words, room=WIDTH - 4)] if words else []


def tick_labels(x: Axis, y: float, ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    """The labels that have room, from left to right; those at the edges are moved inside."""
    texts: list[Markup] = []
    free = -math.inf
    for value, label in ticks:
        half = width(label) / 2
        place = min(max(x.at(value), half), WIDTH - half)
        if place - half >= free:
            texts.append(text(place, y, label, room=WIDTH, anchor="middle"))
            free = place + half + GAP
    return texts


def references(x: Axis, top: float, bottom: float, values: Sequence[Reference]) -> list[Markup]:
    """Dashed vertical lines; the words stand above `top`, each in a line of its own, on the side with more room."""
    rules: dict[float, Markup] = {}  # one for all references at a place
    texts: list[Markup] = []
    for place, reference in enumerate(values):
        at, y = x.at(reference.value), top - LINE * (len(values) - place)
        rules.setdefault(at, rule(at, y, at, bottom, "reference"))
        right = at <= WIDTH / 2
        room = (WIDTH - at if right else at) - 4
        beside, anchor = (at + 4, "start") if right else (at - 4, "end")
        texts.append(text(beside, y + 10, reference.words, room=room, anchor=anchor, style="over"))
    return [*rules.values(), *texts]


def rule(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(style, x1, y1, x2, y2)


def box(x1: float, y1: float, x2: float, y2: float, style: str, title: str = "") -> Markup:
    """A bar between two corners; browsers show `title` when pointed at."""
    left, top, across, down = min(x1, x2), min(y1, y2), round(abs(x2 - x1), 1), round(abs(y2 - y1), 1)
    shape = Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}">').format(style, left, top, across, down)
    return shape + (Markup("<title>{}</title>").format(crop(title)) if title else "") + Markup("</rect>")


@dataclass(frozen=True)
class Dot:
    """A value at a point; browsers show `title` when pointed at."""

    x: float
    y: float
    style: str
    title: str = ""


def dots(marks: Sequence[Dot], radius: float = 4) -> list[Markup]:
    """Dots, the later ones above; one that others would hide is a ring around them, wider than each of these.

    Dots of one style at one place look like one, and are one.
    """
    placed = list[tuple[Dot, float]]()  # with their radii, the uppermost first
    for mark in reversed(marks):
        near = [(math.hypot(one.x - mark.x, one.y - mark.y), one, size) for one, size in placed]
        if not any(gap < 1 and one.style == mark.style for gap, one, _ in near):
            placed.append((mark, max((size + 3 for gap, _, size in near if gap < radius), default=radius)))
    circle = Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}">{}</circle>')
    return [
        circle.format(
            f"{mark.style} ring" if size > radius else mark.style, mark.x, mark.y, size,
            Markup("<title>{}</title>").format(crop(mark.title)) if mark.title else "",
        )
        for mark, size in reversed(placed)
    ]  # fmt: skip


def text(x: float, y: float, words: str, *, room: float, anchor: str = "start", style: str = "") -> Markup:
    """As much of `words` as fits `room`; if some are left out, browsers show more of them when pointed at."""
    short = crop_to_width(words, room)
    title = Markup("<title>{}</title>").format(crop(words)) if short != words else ""
    class_attribute = Markup(' class="{}"').format(style) if style else ""
    place = (class_attribute, round(x, 1), y, anchor, short, title)
    return Markup('<text{} x="{}" y="{}" text-anchor="{}">{}{}</text>').format(*place)


def label(x: float, middle: float, words: str, lines: Sequence[str]) -> Markup:
    """Words that end at `x`, wrapped into `lines` around a height."""
    if len(lines) == 1:
        return text(x, middle + 4, words, room=x - 4, anchor="end")
    top = middle + 4 - LINE * (len(lines) - 1) / 2
    spans = Markup("").join(
        Markup('<tspan x="{}" y="{}">{}</tspan>').format(x, top + LINE * number, line)
        for number, line in enumerate(lines)
    )
    title = Markup("<title>{}</title>").format(crop(words)) if any("…" in line for line in lines) else ""
    return Markup('<text text-anchor="end">{}{}</text>').format(spans, title)


def svg(height: float, parts: Iterable[Markup], label: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(WIDTH, height, crop(label, _MOST_READ)) + Markup("").join(parts) + Markup("</svg>")


def legend(entries: Iterable[tuple[str, str]], kind: str = "round") -> Markup:
    """A legend of the entries (name, style) that have a name; empty where none has."""
    items = Markup("").join(
        Markup('<span><i class="key {} {}"></i>{}</span>').format(kind, style, shorten(name, _MOST_NAME))
        for name, style in entries
        if name
    )
    return Markup('<p class="legend">{}</p>').format(items) if items else items
