"""The pages that the browser is shown: real renderings of documents with every chart, and of names that mean harm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from support.evaluation_groups import group

from pipelines.report import charts
from pipelines.report.charts import Bar, Counts, Mark, Reference, Series
from pipelines.report.pages import evaluation
from pipelines.report.pages.base import STYLE
from pipelines.report.verdict import words_of
from rm.evaluate import Bootstrap, Relevance, evaluate

PLAIN = ("helpful_base", "helpful_online", "harmless", "code", "summaries", "mathematics", "dialogue")
HOSTILE = (
    "</title></style></script><script>document.title='run'; fetch('http://example.com/')</script>",
    "\"><img src=http://example.com/x onerror=alert(1)>'&quot;{{ 7*7 }}",
    "javascript:alert(1)//" + "a" * 100_000,
    "\u202e\u2067\u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629" * 40,
    "Z\u0351\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308" * 200,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea" * 60,
    "two\nlines\tand \x00 \x1b[31m \ufeff controls \u6f22\u5b57\u6f22\u5b57\u6f22\u5b57\u6f22\u5b57\u6f22\u5b57",
)


def evaluation_page(names: tuple[str, ...] = PLAIN, path: str = "out/demo/model") -> str:
    """An evaluation with every chart and table, of sources and subsets with these names."""
    rng = np.random.default_rng(0)
    kinds = {"edges": [(0, 1), (0, 2), (1, 3)], "responses": 4, "scores": [3.0, 2.0, 1.0, 0.0]}
    groups = [
        group(k, source=names[k % len(names)], subset=names[-1 - k % 3], lengths=list(rng.integers(5, 50, 4)), **kinds)
        for k in range(120)
    ]
    rewards = list(rng.normal(size=(120, 4)) * 2 + np.array([1, 0, 0, -1]))
    near = Relevance(list(rng.normal(size=(120, 4)) / 9 + 0.5), 0.2)
    document: dict[str, Any] = {
        "model": {"path": path},
        "data": {"path": path, "part": "held-out part at heldout_fraction 0.3", "rejected": {names[0]: 7}},
        "truncated": 12,
        "unscored": {names[1]: 3},
        "relevance": {"gap": 0.2, "truncated": 3},
        "temperature_stored": None,
        "evaluation": evaluate(groups, rewards, bootstrap=Bootstrap(200), relevance=near).to_json(),
    }
    subsets = [{"name": name, "items": 1865, "unscored": 0, "score": 0.612} for name in names]
    document["evaluation"]["reward_bench_2"] = {"subsets": subsets, "overall": 0.612, "complete": True}
    document["verdict"] = words_of(document["evaluation"]["verdict"])
    return evaluation.render(document)


def empty_page() -> str:
    """An evaluation with nothing in it that could be drawn."""
    told = evaluate([group("a", [(0, 1)])], [[math.nan, 0.0]]).to_json()
    document = {"model": {"path": "m"}, "data": {"path": "d", "part": "all rows", "rejected": {}}, "evaluation": told}
    rest = {"truncated": 0, "unscored": {}, "temperature_stored": None, "verdict": words_of(told["verdict"])}
    return evaluation.render({**document, **rest})


def chart_page(words: Callable[[int], str] = lambda k: PLAIN[k % len(PLAIN)], large: float = 1.0) -> str:
    """Every kind of chart, with these words in all places that take words."""
    edges = [-4 + 0.5 * k for k in range(17)]
    kept = Counts(words(0), "kept", [int(200 * large * math.exp(-((edge - 1.5) ** 2))) for edge in edges[:-1]])
    dropped = Counts(words(1), "dropped", [int(600 * large * math.exp(-((edge + 1.5) ** 2))) for edge in edges[:-1]])
    near, far = Reference(0.5, f"threshold 0.5 {words(2)}"), Reference(-2.2, f"mean of the dropped -2.2 {words(3)}")
    pair = ((words(4), "before"), (words(5), "after"))
    styles = ("model", "length", "random", "oracle")
    waves = [
        Series(words(k), style, [(x / 2, Mark(large * math.sin(x / 9 + k))) for x in range(40)])
        for k, style in enumerate(styles)
    ]
    ticks = [(tick, f"{tick:g}") for tick in charts.round_ticks(0, 20)]
    across = {"x_title": f"reward {words(6)}", "x_format": "{:g}".format, "y_format": "{:,.0f}".format}
    marks = [Mark(0.6, 0.55, 0.65), Mark(0.5, 0.4, 0.6)]
    drawn = (
        charts.histogram(edges, [kept, dropped], references=[near, far], **across),
        charts.histogram(edges, [kept, dropped], overlaid=True, **across),
        charts.bar_rows([(words(k), [Bar(k * large, f"{k * large:,.0f}"), None]) for k in range(5)], names=pair),
        charts.bar_rows([(words(k), [Bar(k, words(k)), Bar(9 - k, words(k))]) for k in range(3)], names=pair),
        charts.dot_pairs([(words(k), k / 10, 0.5) for k in range(4)], names=pair, x_format="{:.0%}".format),
        charts.line_chart(waves, x_ticks=ticks, x_title=words(0), y_format="{:,.1f}".format, references=[near]),
        charts.line_chart(waves[:2], x_ticks=ticks, x_title=words(0), y_format=None),
        charts.calibration_chart(
            [Series(words(0), "random", [(k / 9, Mark(k / 12)) for k in range(10)])], x_title=words(1), y_title=words(2)
        ),
        charts.interval_chart(
            [(words(k), marks) for k in range(4)],
            names=[(words(0), "model"), (words(1), "length")],
            reference=0.5,
            x_format="{:.0%}".format,
        ),
    )
    sections = "".join(f"<section><h2>{number}</h2>{chart}</section>" for number, chart in enumerate(drawn, start=1))
    head = '<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Charts</title><style>'
    head += f"{STYLE}</style>"
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>Charts</h1><main>{sections}</main></body></html>'
    )


PAGES: dict[str, Callable[[], str]] = {
    "evaluation": evaluation_page,
    "evaluation, hostile names": lambda: evaluation_page(HOSTILE, HOSTILE[0] + HOSTILE[2]),
    "evaluation, hostile path": lambda: evaluation_page(HOSTILE[::-1], HOSTILE[3]),
    "evaluation, empty": empty_page,
    "charts": chart_page,
    "charts, hostile names": lambda: chart_page(lambda k: HOSTILE[k % len(HOSTILE)]),
    "charts, large numbers": lambda: chart_page(large=1e7),
}
