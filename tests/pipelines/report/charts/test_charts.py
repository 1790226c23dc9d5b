"""Charts are well-formed, escape what they are given, and put values where a ruler finds them."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from pipelines.report import charts
from pipelines.report.charts import Bar, Counts, Mark, Reference, Series
from pipelines.report.text import crop, crop_to_width, rate, shorten, width, wrap_to_width

KEPT_DROPPED = (("kept", "kept"), ("dropped", "dropped"))
BEFORE_AFTER = (("before", "before"), ("after", "after"))
HOSTILE = '</svg><script>alert("1")</script>\'&x'


def drawn(markup):
    """The elements of a chart that parses as XML."""
    root = ElementTree.fromstring(f"<div>{markup}</div>")
    return [element for element in root.iter() if element is not root]


def bars(markup):
    """[(style, x, y, width, height)] of the bars."""
    return [
        (e.get("class").removeprefix("bar "), *(float(e.get(key)) for key in ("x", "y", "width", "height")))
        for e in drawn(markup)
        if e.tag == "rect"
    ]


def dots(markup):
    return [
        (e.get("class").removeprefix("dot "), float(e.get("cx")), float(e.get("cy")))
        for e in drawn(markup)
        if e.tag == "circle"
    ]


def rules(markup, style):
    return [
        tuple(float(e.get(key)) for key in ("x1", "y1", "x2", "y2"))
        for e in drawn(markup)
        if e.tag == "line" and e.get("class") == style
    ]


def texts(markup):
    return {
        e.text: (float(e.get("x")), float(e.get("y")), e.get("text-anchor")) for e in drawn(markup) if e.tag == "text"
    }


def two(**more):
    series = (Counts("kept", "kept", [1, 0, 4]), Counts("dropped", "dropped", [2, 6, 0]))
    said = {"x_title": "reward", "x_format": "{:g}".format, "y_format": "{:g}".format, **more}
    return charts.histogram([0, 1, 2, 4], series, **said)


def test_a_stacked_histogram_puts_the_second_series_upon_the_first():
    # y runs from 202 (0) to 10 (6, the last of the ticks 0, 2, 4, 6): 32 px a row; x from 54 to 420: 91.5 px a unit
    assert bars(two()) == [
        ("kept", 54.0, 170.0, 91.5, 32.0),
        ("kept", 237.0, 74.0, 183.0, 128.0),
        ("dropped", 54.0, 106.0, 91.5, 64.0),
        ("dropped", 145.5, 10.0, 91.5, 192.0),
    ]


def test_an_overlaid_histogram_starts_every_bar_at_zero():
    assert bars(two(overlaid=True)) == [
        ("kept over", 54.0, 170.0, 91.5, 32.0),
        ("kept over", 237.0, 74.0, 183.0, 128.0),
        ("dropped over", 54.0, 138.0, 91.5, 64.0),
        ("dropped over", 145.5, 10.0, 91.5, 192.0),
    ]


def test_a_histogram_shows_its_reference_and_widens_to_hold_it():
    at_two = two(references=[Reference(2.0, "threshold 2")])
    assert rules(at_two, "reference") == [(237.0, 10.0, 237.0, 218.0)]
    assert texts(at_two)["threshold 2"] == (233.0, 20.0, "end")
    beyond = two(references=[Reference(2.0, "threshold 2"), Reference(8.0, "mean of all")])
    assert [(x, y) for x, y, *_ in rules(beyond, "reference")] == [(145.5, 10.0), (420.0, 26.0)]
    assert (texts(beyond)["threshold 2"][2], texts(beyond)["mean of all"][2]) == ("start", "end")
    assert bars(beyond)[1] == ("kept", 145.5, 106.0, 91.5, 128.0)


def test_bars_of_a_histogram_say_what_they_hold():
    titles = [e.text for e in drawn(two()) if e.tag == "title"]
    assert titles == [
        "There is 1 kept with a reward from 0 to 1.",
        "There are 4 kept with a reward from 2 to 4.",
        "There are 2 dropped with a reward from 0 to 1.",
        "There are 6 dropped with a reward from 1 to 2.",
    ]


@pytest.mark.parametrize(
    ("edges", "counts", "message"),
    [
        ([0.0], [], "two or more"),
        ([0.0, 1.0, 1.0], [1, 2], "each greater"),
        ([0.0, 1.0], [1, 2], "expected 1"),
        ([0.0, 1.0, 2.0], [1, -2], "none below zero"),
    ],
)
def test_a_histogram_refuses_what_does_not_fit(edges, counts, message):
    with pytest.raises(ValueError, match=message):
        charts.histogram(edges, [Counts("a", "kept", counts)], x_title="x", x_format=str, y_format=str)
    with pytest.raises(ValueError, match="no series"):
        charts.histogram([0, 1], [], x_title="x", x_format=str, y_format=str)


def test_a_histogram_of_zeros_is_drawn():
    empty = charts.histogram([0, 1], [Counts("a", "kept", [0])], x_title="x", x_format=str, y_format=str)
    assert bars(empty) == []


def test_bars_in_rows_are_as_long_as_their_values():
    rows = [("a", [Bar(50, "50"), Bar(200, "200")]), ("b", [None, Bar(120, "120")])]
    chart = charts.bar_rows(rows, names=KEPT_DROPPED)
    # words of 3 digits: 27.3 px and a gap of 8, so bars run from 184 to 428 - 35.3 = 392.7: 208.7 px for 200; rows of 44 px
    assert bars(chart) == [
        ("kept", 184, 17.0, 52.2, 12.0),
        ("dropped", 184, 35.0, 208.7, 12.0),
        ("dropped", 184, 79.0, 125.2, 12.0),
    ]
    assert texts(chart)["200"] == (398.7, 45.0, "start")
    assert texts(chart)["b"] == (174.0, 80.0, "end")
    assert drawn(chart)[0].get("aria-label") == "Bars: a kept 50; a dropped 200; b dropped 120"


def test_bars_in_rows_refuse_what_is_below_zero():
    with pytest.raises(ValueError, match="a bar of -1"):
        charts.bar_rows([("a", [Bar(-1, "-1")])], names=[("kept", "kept")])


def test_shifts_go_from_before_to_after():
    chart = charts.dot_pairs([("a", 0.0, 10.0), ("b", 5.0, None), ("c", None, None)], names=BEFORE_AFTER, x_format=str)
    # x from 184 (0) to 420 (10); rows of 36 px
    assert dots(chart) == [("before", 184.0, 28.0), ("after", 420.0, 28.0), ("before", 302.0, 64.0)]
    assert rules(chart, "shift after") == [(184.0, 28.0, 420.0, 28.0)]
    assert drawn(chart)[0].get("aria-label") == "Shifts: a before 0.0 after 10.0; b before 5.0; c"


def test_lines_over_numbers_keep_points_beyond_the_ticks_inside():
    line = Series("model", "model", [(0.0, Mark(0.0)), (10.0, Mark(4.0)), (20.0, Mark(2.0))])
    ticks = [(5.0, "5"), (15.0, "15")]
    chart = charts.line_chart([line], x_ticks=ticks, x_title="n", y_format="{:g}".format)
    # x from 54 (0) to 420 (20), y from 222 (0) to 10 (4)
    assert dots(chart) == [("model", 54.0, 222.0), ("model", 237.0, 10.0), ("model", 420.0, 116.0)]
    assert (texts(chart)["5"], texts(chart)["15"]) == ((145.5, 243, "middle"), (328.5, 243, "middle"))
    assert texts(chart)["4"] == (40.0, 14.0, "end")


def test_a_reference_of_lines_takes_a_line_above_them():
    line = Series("model", "model", [(0.0, Mark(0.0)), (10.0, Mark(4.0))])
    chart = charts.line_chart(
        [line], x_ticks=[(0.0, "0")], x_title="n", y_format="{:g}".format, references=[Reference(5.0, "here")]
    )
    assert rules(chart, "reference") == [(237.0, 10.0, 237.0, 238.0)]
    assert dots(chart) == [("model", 54.0, 238.0), ("model", 420.0, 26.0)]


def test_lines_widen_to_hold_their_reference():
    line = Series("model", "model", [(0.0, Mark(0.0)), (10.0, Mark(4.0))])
    beyond = [Reference(20.0, "here")]
    chart = charts.line_chart([line], x_ticks=[(0.0, "0")], x_title="n", y_format="{:g}".format, references=beyond)
    assert rules(chart, "reference") == [(420.0, 10.0, 420.0, 238.0)]
    assert [x for _, x, _ in dots(chart)] == [54.0, 237.0]


def test_without_a_format_the_y_axis_has_no_numbers_and_lines_take_their_room():
    line = Series("model", "model", [(0.0, Mark(0.0)), (1.0, Mark(4.0))])
    chart = charts.line_chart([line], x_ticks=[(0.0, "left")], x_title="n", y_format=None)
    assert set(texts(chart)) == {"left", "n"}
    assert [x for _, x, _ in dots(chart)] == [16.0, 420.0]


def test_long_numbers_of_an_axis_move_the_drawing_to_the_right():
    line = Series("model", "model", [(0.0, Mark(0.0)), (1.0, Mark(4e6))])
    chart = charts.line_chart([line], x_ticks=[(0.0, "0")], x_title="n", y_format="{:,.0f}".format)
    # "1,000,000": 7 digits of 9.1 px and 2 commas of 6.3, 77 with rounding up, and a gap of 8
    assert dots(chart)[0][1] == 93.0
    assert texts(chart)["1,000,000"][0] == 79.0


def test_a_line_of_many_points_has_no_dots():
    line = Series("model", "model", [(float(k), Mark(float(k))) for k in range(25)])
    assert dots(charts.line_chart([line], x_ticks=[(0.0, "0")], x_title="n", y_format=None)) == []


@pytest.mark.parametrize(
    "words", [HOSTILE, "x" * 100_000, "\u202e\u05d0" * 300, "e" + "\u0301" * 100_000, "😀" * 500, "\x00\x1b"]
)
def test_every_text_is_escaped_and_cropped(words):
    said = {"x_title": words, "y_format": lambda value: words}
    mark, reference = Mark(0.5, 0.4, 0.6), [Reference(1.0, words)]
    line = Series(words, "model", [(0.0, mark), (1.0, mark)])
    for chart in (
        charts.line_chart([line], x_ticks=[(0.0, words)], references=reference, **said),
        charts.calibration_chart([line], x_title=words, y_title=words),
        charts.histogram([0, 1], [Counts(words, "kept", [1])], x_format=lambda v: words, references=reference, **said),
        charts.bar_rows([(words, [Bar(1, words)])], names=[(words, "kept")]),
        charts.dot_pairs([(words, 0.0, 1.0)], names=((words, "before"), (words, "after")), x_format=lambda v: words),
        charts.interval_chart([(words, [mark])], names=[(words, "model")], reference=0.5, x_format=lambda v: words),
    ):
        assert {e.tag for e in drawn(chart)} <= set(
            "svg line rect circle polyline polygon text tspan title p span i".split()
        )
        assert len(chart) < 30_000
        assert all(width(e.text or "") <= charts.drawing.WIDTH for e in drawn(chart) if e.tag == "text")
        chart.encode()


def test_words_are_cut_at_characters_and_say_so():
    assert crop("x" * 200) == "x" * 200
    assert crop("x" * 201) == "x" * 199 + "…"
    assert crop("e" + "\u0301" * 9 + "f") == "e" + "\u0301" * 4 + "f"
    assert crop("a\nb\x00\ud800") == "a b\ufffd\ufffd"
    assert crop_to_width("abc", width("abc")) == "abc"
    assert crop_to_width("abc", width("abc") - 1) == "a…"
    assert crop_to_width("漢字漢字", 60) == "漢…字"
    assert crop_to_width("a source of the year 2025", 100).startswith("a so")
    assert crop_to_width("a source of the year 2025", 100).endswith("025")
    assert shorten("x" * 200 + "end", 60)[-4:] == "xend"
    assert len(shorten("x" * 300, 60)) == 60
    assert "e\u0301" in crop_to_width("e\u0301" * 40, 100)
    assert crop_to_width("e\u0301" * 40, 100).count("e") == crop_to_width("e\u0301" * 40, 100).count("\u0301")


def test_long_labels_are_wrapped_and_nothing_of_them_is_lost():
    name = "allenai/tulu-3-sft-personas_instruction_following"
    chart = charts.dot_pairs([("a", 0.0, 1.0), (name, 0.5, 0.7)], names=BEFORE_AFTER, x_format=str)
    lines = [(e.text, float(e.get("x")), float(e.get("y"))) for e in drawn(chart) if e.tag == "tspan"]
    assert "".join(words for words, *_ in lines) == name
    assert 1 < len(lines) <= 3
    assert all(width(words) <= 170 and x == 174.0 for words, x, _ in lines)
    assert [b - a for (*_, a), (*_, b) in itertools.pairwise(lines)] == [16] * (len(lines) - 1)
    assert wrap_to_width("x" * 5_000, 170, lines=3)[0].startswith("xxx")
    assert all(width(line) <= 170 for line in wrap_to_width("word " * 500, 170, lines=3))
    assert wrap_to_width("", 170, lines=3) == [""]


def test_marks_at_one_place_are_rings_around_each_other():
    pair = charts.dot_pairs([("a", 1.0, 1.0)], names=BEFORE_AFTER, x_format=str)
    before, after = (e for e in drawn(pair) if e.tag == "circle")
    assert (before.get("class"), before.get("r"), after.get("class"), after.get("r")) == (
        "dot before ring", "7", "dot after", "4",
    )  # fmt: skip
    series = [
        Series(name, name, [(0.0, Mark(1.0)), (1.0, Mark(2.0 + 9 * (name == "model")))]) for name in ("length", "model")
    ]
    chart = charts.line_chart(series, x_ticks=[(0.0, "0")], x_title="n", y_format=str)
    radii = [(e.get("class"), e.get("r")) for e in drawn(chart) if e.tag == "circle"]
    assert radii == [("dot model ring", "6"), ("dot model", "3"), ("dot length", "3"), ("dot length", "3")]
    pile = [(0.0, Mark(0.0)), (0.001, Mark(0.0)), (0.004, Mark(0.0)), (0.0, Mark(0.001))]
    chart = charts.calibration_chart(
        [Series("a", "random", pile), Series("b", "model", pile)], x_title="x", y_title="y"
    )
    circles = [e for e in drawn(chart) if e.tag == "circle"]
    places = [(float(e.get("cx")), float(e.get("cy")), float(e.get("r")), e.get("class")) for e in circles]
    assert {one[3].split()[1] for one in places} == {"random", "model"}
    for one, other in itertools.combinations(places, 2):
        assert math.dist(one[:2], other[:2]) >= 1 or abs(one[2] - other[2]) >= 3
    twice = two(references=[Reference(2.0, "threshold 2"), Reference(2.0, "median 2")])
    assert len(rules(twice, "reference")) == 1
    assert {"threshold 2", "median 2"} <= set(texts(twice))


def test_tooltips_are_sentences():
    rows, line = [("code", [Mark(0.5, 0.25, 0.75)])], Series("model", "model", [(0.0, Mark(1.0, 0.5, 2.0))])
    for chart in (
        two(subject="responses"),
        charts.bar_rows([("code", [Bar(50, "50")])], names=[("kept", "kept")]),
        charts.dot_pairs([("code", 0.0, 1.0)], names=BEFORE_AFTER, x_format=str),
        charts.interval_chart(rows, names=[("model", "model")], reference=0.5, x_format=str),
        charts.line_chart([line], x_ticks=[(0.0, "0")], x_title="n", y_format=str),
        charts.calibration_chart([Series("model", "model", [(0.5, Mark(0.4))])], x_title="stated", y_title="observed"),
    ):
        titles = [e.text for e in drawn(chart) if e.tag == "title"]
        assert titles
        assert all(re.search(r"\b(is|are|has)\b.*\.$", title) for title in titles), titles


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (0.00321, "0.0032"),
        (0.0999, "0.1"),
        (0.56, "0.56"),
        (3.44, "3.4"),
        (9.96, "10"),
        (52.4, "52"),
        (1234.5, "1,234"),
    ],
)
def test_a_rate_has_two_significant_digits_or_is_whole(value, words):
    assert rate(value) == words
