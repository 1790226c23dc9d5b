"""The charts of a report on rows of preferences, each with the decision that it serves. Pure: from report.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.report.charts import Bar, Counts, Reference, bar_rows, histogram
from pipelines.report.text import percent_interval, short
from pipelines.storage.canonical_json import Json


def preference_charts(judged: Json) -> Iterator[dict[str, Any]]:
    """Yield the charts of the part `preferences` of `report.json`."""
    yield _margins(judged)
    yield _sources(judged)


def _margins(judged: Json) -> dict[str, Any]:
    bins = judged["margins"]
    series = [
        Counts(*names, bins[names[0]]) for names in (("kept", "kept"), ("flipped", "oracle"), ("dropped", "dropped"))
    ]
    note = (
        f"The model orders {percent_interval(judged['agreement'])} % of {judged['pairs']:,} pairs as judged (95 % interval for "
        f"independent pairs; equal rewards count half). Kept as judged: {judged['kept']:,}; flipped: {judged['flipped']:,}."
    )
    if judged["incomplete"]:
        note += f" Rows that lack a reward on one side, and form no pair: {judged['incomplete']:,}."
    return {
        "title": "Margins of the preferences",
        "serves": "preferences.min_margin and flip: on the far left are pairs that the model is sure are reversed, "
        "in the middle those that it cannot decide.",
        "svg": histogram(
            bins["edges"],
            [part for part in series if sum(part.counts)],
            x_title="chosen reward minus rejected reward",
            x_format=short,
            y_format=short,
            subject="pairs",
            y_title="pairs",
            references=[Reference(0.0, "level")] if bins["edges"][0] < 0 < bins["edges"][-1] else [],
        ),
        "note": note,
    }


def _sources(judged: Json) -> dict[str, Any]:
    def bar(count: float, whole: int) -> Bar:
        return Bar(count / whole, f"{count / whole:.0%} of {whole:,}")

    rows = [
        (
            "all others" if row["others"] else "(no source)" if row["name"] is None else row["name"],
            [bar(row["agreed"] + row["level"] / 2, row["pairs"]), bar(row["flipped"], row["pairs"])],
        )
        for row in judged["sources"]
    ]
    return {
        "title": "Agreement and flips by source",
        "serves": "whether a source's judgements can be trusted: agreement near 50 % is chance, and a source with most "
        "of the flips is noisier than others, or unfamiliar to the model.",
        "svg": bar_rows(rows, names=(("agreement", "kept"), ("flipped", "oracle")), whole=1.0),
        "note": "",
    }
