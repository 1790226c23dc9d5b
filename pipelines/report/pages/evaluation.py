"""The evaluation page: one self-contained HTML file, from the numbers of evaluation.json alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pipelines.report import evaluation_tables, gate, stress
from pipelines.report.charts import Mark, Series, calibration_chart, interval_chart, line_chart
from pipelines.report.pages import base
from pipelines.report.text import crop, number, number_interval, percent, percent_interval
from pipelines.storage.canonical_json import Json

_PAGE = """\
{% extends "page" %}
{% block header %}
<h1>Evaluation of <code>{{ model.path | crop }}</code></h1>
<p class="lead">{{ verdict.sentence }}</p>
{% for warning in verdict.warnings %}<p class="lead warning"><strong>Caution:</strong> {{ warning }}</p>
{% endfor %}
<p class="lead quiet">Measured on <code>{{ data.path | crop }}</code>, {{ data.part }}. Intervals are at 95 %, from
{{ resamples }} resamples of prompts, each with all its comparisons.</p>
{% endblock %}
{% block main %}
{% for table in data_tables %}
<section class="wide">
<h2>{{ table.title }}</h2>
<div class="scroll" role="region" tabindex="0" aria-label="{{ table.title }}">
<table{% if not table.columns %} class="words"{% endif %}>
{% if table.columns %}
<thead><tr>{% for name in table.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>{% for row in table.rows %}
<tr><th scope="row"{% if row[0] | length > 9 %} class="name"{% endif %}>{{ row[0] | crop(80) }}</th>
{%- for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}</tbody>
</table></div>
</section>
{% endfor %}
{% endblock %}
"""

_NAMES = (("model", "model"), ("the best rule without a model", "length"))
_MOST_ROWS = 24


def render(document: Json) -> str:
    """Return the page for an evaluation, from the content of evaluation.json. It has no script and no external reference."""
    evaluation = document["evaluation"]
    return base.render(
        _PAGE,
        title=f"Evaluation of {crop(document['model']['path'])}",
        model=document["model"],
        data=document["data"],
        resamples=f"{evaluation['bootstrap']['resamples']:,}",
        verdict=document["verdict"],
        charts=list(_charts(evaluation)),
        data_tables=list(_data_tables(document)),
    )


def _mark(estimate: Json) -> Mark | None:
    return None if estimate["value"] is None else Mark(estimate["value"], estimate["low"], estimate["high"])


def _charts(evaluation: Json) -> Iterator[dict[str, Any]]:
    if evaluation["accuracy"]["overall"]["comparisons"]:
        yield _accuracy(evaluation["accuracy"])
    if evaluation["best_of_n"]:
        yield best_of_n(evaluation["best_of_n"])
    if evaluation["calibration"]:
        yield _calibration(evaluation["calibration"])
    if len(evaluation["margins"]) > 1:
        yield _margins(evaluation["margins"], evaluation["calibration"])


def _accuracy(accuracy: Json) -> dict[str, Any]:
    rows = [
        (label, [_mark(row["model"]), _mark(row["length"])])
        for label, row in evaluation_tables.accuracy_rows(accuracy)
        if row["comparisons"]
    ]
    left_out = len(rows) - _MOST_ROWS
    return {
        "title": "Accuracy",
        "serves": "whether to trust the model, and on which data: it should be clearly better than a coin toss (dashed) "
        "and than length alone.",
        "svg": interval_chart(rows[:_MOST_ROWS], names=_NAMES, reference=0.5, x_format=lambda v: f"{v:.0%}"),
        "note": " ".join(
            [evaluation_tables.EXPLORATORY] * (len(rows) > 1)
            + [f"{left_out} more kinds are in the table below."] * (left_out > 0)
        ),
    }


def best_of_n(curve: Json) -> dict[str, Any]:
    """Return the chart of a curve in JSON (`rm.evaluate.BestOfNCurve`): by gold, the gain of the choice over others;
    otherwise its levels."""
    points, gold = curve["points"], curve["measured_by"] == "gold"
    lines = {"over a random one": "over_random", "over the longest": "over_longest"}
    if not gold:
        lines = {name: name for name in ("model", *evaluation_tables.best_of_n_rivals(curve))}
    series = []
    for name, key in lines.items():
        marks = [(math.log2(point["n"]), _mark(point[key])) for point in points]
        known = [(x, mark) for x, mark in marks if mark is not None]
        style = "length" if "longest" in name else "model" if gold else name
        series.append(Series(name, style, known))
    last = points[-1]
    note = "KL from the policy, in nats, is "
    note += ", ".join(f"{p['kl']:.2f} at n = {p['n']}" for p in points if p["n"] > 1) + "."
    if gold:
        levels = [f"{name} {last[name]['value']:.3g}" for name in ("model", *evaluation_tables.best_of_n_rivals(curve))]
        note = f"Mean gold scores at n = {last['n']}: {', '.join(levels)}. {note}"
    fewer = {point["prompts"] for point in points}
    if len(fewer) > 1:
        note += f" Each point uses the prompts with at least n responses, {min(fewer):,} to {max(fewer):,} of them."
    return {
        "title": "Gain of the best of n, by gold score" if gold else "Best of n, by the reward itself",
        "serves": "how many responses per prompt are worth generating, and whether choosing by reward "
        "beats choosing by length."
        if gold
        else "how far more responses per prompt raise the reward; without gold scores, it does not show "
        "whether that helps.",
        "svg": line_chart(
            series,
            x_ticks=[(math.log2(point["n"]), str(point["n"])) for point in points],
            x_title="responses per prompt (n)",
            y_format=lambda value: f"{value:.3g}",
            y_title="gold of the best minus that of the other choice" if gold else "mean reward",
        ),
        "note": note,
    }


def _calibration(calibration: Json) -> dict[str, Any]:
    series = [_bins("as it is", "random", calibration["before"])]
    temperature = calibration["temperature"]
    note = f"T = {evaluation_tables.temperature_words(temperature)}."
    if temperature["helps"]:
        series.append(_bins("with temperature", "model", calibration["after"]))
        note = f"T = {temperature['value']:.4g} over all {calibration['comparisons']:,} comparisons"
        note += ", at the bound of the search." if temperature["at_bound"] else "."
        note += " Each half of the prompts is drawn with the T of the other half."
    return {
        "title": "Calibration",
        "serves": "whether reward gaps may be read as probabilities, as margins and soft labels do: they may if points are "
        "on the diagonal.",
        "svg": calibration_chart(series, x_title="probability the model states", y_title="observed"),
        "note": note,
    }


def _bins(name: str, style: str, fit: Json) -> Series:
    return Series(name, style, [(bin["predicted"], Mark(bin["observed"])) for bin in fit["bins"]])


def _margins(margins: list[Json], calibration: Json) -> dict[str, Any]:
    series = [Series("accuracy", "model", [(k, Mark(bin["accuracy"])) for k, bin in enumerate(margins)])]
    helps = calibration["temperature"]["helps"]
    name, key = ("stated, with temperature", "predicted_after") if helps else ("stated", "predicted")
    series.append(Series(name, "random", [(k, Mark(bin[key])) for k, bin in enumerate(margins)]))
    return {
        "title": "Agreement by margin",
        "serves": "which min_margin to select with: below the gap at which accuracy is near 50 %, the choice is a coin toss.",
        "svg": line_chart(
            series,
            x_ticks=[(k, f"{bin['gap']:.2g}") for k, bin in enumerate(margins)],
            x_title="mean reward gap of the bin",
            y_format=lambda value: f"{value:.0%}",
            y_title="share of comparisons ordered as judged",
        ),
        "note": f"Each point is based on about {margins[0]['comparisons']:,} comparisons.",
    }


def _data_tables(document: Json) -> Iterator[dict[str, Any]]:
    evaluation = document["evaluation"]
    yield _table("Figures", ("", ""), evaluation_tables.summary_rows(document))
    yield _accuracy_table(evaluation["accuracy"])
    if evaluation["calibration"]:
        yield _calibration_table(evaluation["calibration"])
    if evaluation["best_of_n"]:
        yield _best_of_n_table(evaluation["best_of_n"])
    if evaluation["reward_bench_2"]:
        yield _reward_bench_table(evaluation["reward_bench_2"])
    if evaluation["stress"]:
        yield _table("Stress tests", stress.COLUMNS, stress.rows(evaluation["stress"]))
    if evaluation["gated"]:
        title = gate.title(evaluation["gated"])
        yield _table(title[0].upper() + title[1:], gate.COLUMNS, gate.rows(evaluation))


def _accuracy_table(accuracy: Json) -> dict[str, Any]:
    counts = ("comparisons", "prompts", "n", "ties", "unscored")
    rates = ("model", "best rule", "difference", "lengths matched", "best rule", "difference", "n")
    rows = (
        (
            label,
            *(f"{row[name]:,}" for name in ("prompts", "comparisons", "ties", "unscored")),
            percent_interval(row["model"]),
            evaluation_tables.length_interval(row),
            percent_interval(row["difference"], sign=True),
            percent_interval(row["matched"]),
            evaluation_tables.length_interval({"rule": row["matched_rule"], "length": row["matched_length"]}),
            percent_interval(row["matched_difference"], sign=True),
            f"{row['matched_comparisons']:,}",
        )
        for label, row in evaluation_tables.accuracy_rows(accuracy)
    )
    return _table("Accuracy in %", (*counts, *rates), rows)


def _calibration_table(calibration: Json) -> dict[str, Any]:
    fits = [("as it is", calibration["before"])]
    if calibration["temperature"]["helps"]:
        fits.append(("with temperature", calibration["after"]))
    rows = ((label, *(number(fit[k], 4) for k in ("nll", "brier", "ece"))) for label, fit in fits)
    return _table("Calibration", ("probabilities", "NLL (coin 0.6931)", "Brier (coin 0.25)", "ECE"), rows)


def _best_of_n_table(curve: Json) -> dict[str, Any]:
    rivals = evaluation_tables.best_of_n_rivals(curve)
    names = ("model", *rivals, "over_random", "over_longest")
    rows = (
        (
            str(point["n"]),
            f"{point['kl']:.3f}",
            f"{point['prompts']:,}",
            *(number_interval(point[name]) for name in names),
        )
        for point in curve["points"]
    )
    columns = ("n", "KL", "prompts", "model", *rivals, "model over random", "model over longest")
    return _table("Best of n", columns, rows)


def _reward_bench_table(scores: Json) -> dict[str, Any]:
    rows = [(s["name"], f"{s['items']:,}", f"{s['unscored']:,}", percent(s["score"])) for s in scores["subsets"]]
    mean = "mean" if scores["complete"] else "mean of these"
    rows.append((mean, "", "", percent(scores["overall"])))
    return _table("RewardBench 2", ("subset", "items", "unscored", "score in %"), rows)


def _table(title: str, columns: tuple[str, ...], rows: Any) -> dict[str, Any]:
    return {"title": title, "columns": columns if any(columns) else (), "rows": list(rows)}
