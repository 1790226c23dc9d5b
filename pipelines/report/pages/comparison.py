"""Comparison of two reports: two selections of the same scores, or the same selection by two models. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from pipelines.report.charts import Bar, bar_rows, dot_pairs
from pipelines.report.drift import drift
from pipelines.report.pages import base
from pipelines.report.pages.drift_table import drift_rows
from pipelines.report.pages.run_charts import kept_and_dropped
from pipelines.report.pages.source_charts import source_name
from pipelines.report.text import crop
from pipelines.storage.canonical_json import Json

_PAGE = """\
{% extends "page" %}
{% block header %}
<h1>{{ names[0] }} <span class="quiet">and</span> {{ names[1] }}</h1>
<p>{{ verdict }}</p>
{% endblock %}
{% block main %}
<section class="wide">
<h2>In numbers</h2>
<div class="scroll"><table>
<thead><tr><td></td><th>{{ names[0] }}</th><th>{{ names[1] }}</th></tr></thead>
<tbody>
{% for name, one, other in rows %}
<tr><th>{{ name }}</th><td>{{ one }}</td><td>{{ other }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endblock %}
"""


def agreement(one: Json, other: Json) -> dict[str, Any]:
    """Return the agreement of two reports on the `prompts` and `responses` that both have in their samples.

    `one`, `other` and `both` count the responses kept by each and by both. `choices` counts prompts with two or more common
    responses, `best` those with the same best response. `pairs` counts pairs of responses to a prompt that neither report
    scores equally, `order` those in the same order.
    """
    counts = dict.fromkeys(("prompts", "responses", "one", "other", "both", "choices", "best", "pairs", "order"), 0)
    for key in one["prompts"].keys() & other["prompts"].keys():
        first, second = ({row[0]: row[1:] for row in report["prompts"][key]} for report in (one, other))
        common = sorted(first.keys() & second.keys())
        if not common:
            continue
        counts["prompts"] += 1
        counts["responses"] += len(common)
        counts["one"] += sum(first[at][1] for at in common)
        counts["other"] += sum(second[at][1] for at in common)
        counts["both"] += sum(first[at][1] and second[at][1] for at in common)
        if len(common) > 1:
            counts["choices"] += 1
            best = [max(common, key=lambda at, side=side: (side[at][0], at)) for side in (first, second)]  # type: ignore[misc]
            counts["best"] += best[0] == best[1]
        for left, right in combinations(common, 2):
            gaps = (first[left][0] - first[right][0], second[left][0] - second[right][0])
            if gaps[0] and gaps[1]:
                counts["pairs"] += 1
                counts["order"] += (gaps[0] > 0) == (gaps[1] > 0)
    return counts


def render(names: tuple[str, str], manifests: Sequence[Json], reports: Sequence[Json]) -> str:
    """Return the page for two outputs, from their names, manifests and numbers."""
    counts = agreement(*reports)
    same_scores = manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    short_names = (crop(names[0], 60), crop(names[1], 60))
    return base.render(
        _PAGE,
        title=" and ".join(short_names),
        names=short_names,
        verdict=_verdict(counts, same_scores=same_scores),
        charts=list(_charts(short_names, reports, counts, same_scores=same_scores)),
        rows=[*_rows(manifests, reports), *_drift_rows(manifests, reports)],
    )


def _verdict(counts: Json, *, same_scores: bool) -> str:
    scores = "The rewards come from the same model" if same_scores else "The rewards come from different models"
    if not counts["prompts"]:
        return f"{scores}, and the samples have no prompt in common: the outputs come from different corpora."
    words = (
        f"{scores}. The samples have {counts['prompts']:,} prompts with {counts['responses']:,} responses in common. The "
        f"first output keeps {counts['one']:,} of these, the second {counts['other']:,}, and both keep {counts['both']:,}."
    )
    if not same_scores and counts["choices"]:
        words += f" The same response is best for {counts['best'] / counts['choices']:.0%} of the prompts."
    return words


def _charts(
    names: tuple[str, str], reports: Sequence[Json], counts: Json, *, same_scores: bool
) -> Iterator[dict[str, Any]]:
    if counts["prompts"]:
        yield _agreement(names, counts, same_scores=same_scores)
    yield _sources(names, reports)
    for name, report in zip(names, reports, strict=True):
        if report["histogram"] is not None:
            yield _rewards(name, report["histogram"])


def _agreement(names: tuple[str, str], counts: Json, *, same_scores: bool) -> dict[str, Any]:
    shares = [
        (f"{name}: kept by both", counts["both"], counts[side])
        for name, side in zip(names, ("one", "other"), strict=True)
    ]
    if not same_scores:
        shares += [("same best response", counts["best"], counts["choices"])]
        shares += [("same order of pairs", counts["order"], counts["pairs"])]
    rows = [(label, [Bar(part / whole, f"{part / whole:.0%} of {whole:,}")]) for label, part, whole in shares if whole]
    return {
        "title": "Agreement",
        "serves": "whether the choice between the two matters at all; where they differ, read what each keeps.",
        "svg": bar_rows(
            rows,
            names=(("", "kept"),),
            whole=1.0,
            sentence=lambda label, _, words: f"{label}: this holds for {words}.",
        ),
        "note": "" if same_scores else "At random, half of the pairs would be in the same order.",
    }


def _sources(names: tuple[str, str], reports: Sequence[Json]) -> dict[str, Any]:
    shares: list[dict[str, float]] = []
    for report in reports:
        kept = sum(row["kept"] for row in report["sources"]) or 1
        shares.append({source_name(row): row["kept"] / kept for row in report["sources"]})
    labels = list(dict.fromkeys([*shares[0], *shares[1]]))
    return {
        "title": "Sources of kept responses",
        "serves": "whether one of the two favours a source.",
        "svg": dot_pairs(
            [(label, shares[0].get(label, 0.0), shares[1].get(label, 0.0)) for label in labels],
            names=((names[0], "before"), (names[1], "after")),
            x_format=lambda value: f"{value:.0%}",
        ),
        "note": "",
    }


def _rewards(name: str, bins: Json) -> dict[str, Any]:
    return {
        "title": f"Rewards of {name}",
        "serves": "how strict the selection is on its own scale; rewards of different models are not comparable.",
        "svg": kept_and_dropped(bins, x_title="reward"),
        "note": "",
    }


def _rows(manifests: Sequence[Json], reports: Sequence[Json]) -> Iterator[tuple[str, str, str]]:
    def both(name: str, values: Sequence[Any]) -> tuple[str, str, str]:
        return (name, *("-" if value is None else value for value in values))  # type: ignore[return-value]

    def mean(report: Json) -> str | None:
        kept = report["sides"]["kept"]
        return f"{kept['characters'] / kept['rows']:,.0f}" if kept["rows"] else None

    yield both("reward model", [crop(m["model"]["name"], 60) for m in manifests])
    yield both("fingerprint", [m["fingerprint"] for m in manifests])
    yield both("selection", [", ".join(step["rule"] for step in m["steps"]) or "none" for m in manifests])
    for name in ("scored", "kept", "kept_prompts"):
        yield both(name.replace("_", " "), [f"{m['counts'][name]:,}" for m in manifests])
    for side in ("kept", "dropped"):
        values = [m["mean_reward"][side] for m in manifests]
        yield both(f"mean reward of the {side}", [None if value is None else f"{value:.4g}" for value in values])
    yield both("mean characters of the kept", [mean(report) for report in reports])
    golds = [(report["gold_means"] or {}).get("kept") for report in reports]
    if any(gold is not None for gold in golds):
        yield both("mean gold of the kept", [None if gold is None else f"{gold:.4g}" for gold in golds])


def _drift_rows(manifests: Sequence[Json], reports: Sequence[Json]) -> Iterator[tuple[str, str, str]]:
    """Yield rows on the new rows of the second output against those of the first, if it has grown from the first."""
    found = drift((manifests[0], reports[0]), (manifests[1], reports[1]))
    if found["rows"] == "new" and found["reward"] is not None:
        yield from drift_rows(found)
