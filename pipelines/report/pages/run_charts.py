"""The charts of the report on a run, each with the decision that it serves. Pure: from manifest.json and report.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.report.charts import (
    Bar,
    Counts,
    Mark,
    Reference,
    Series,
    bar_rows,
    histogram,
    interval_chart,
    line_chart,
    round_ticks,
)
from pipelines.report.gains import RIVALS, RULES
from pipelines.report.pages.answer import describe_compared, describe_part
from pipelines.report.pages.evaluation import best_of_n
from pipelines.report.pages.preference_charts import preference_charts
from pipelines.report.pages.source_charts import SIDES, by_source, mix
from pipelines.report.text import describe_gap, number, number_interval, share, short
from pipelines.storage.canonical_json import Json


def charts(manifest: Json, report: Json) -> Iterator[dict[str, Any]]:
    """Yield the title, purpose, drawing and note of each chart that the corpus has data for; charts by gold come first."""
    if by_gold := (report.get("gains") or {}).get("gold"):
        yield _gains(report, by_gold)
        if report["best_of_n"] is not None:
            yield _best_of_n(report)
    yield _funnel(manifest, report["unit"])
    if report["histogram"] is not None:
        yield _rewards(manifest, report["histogram"])
        yield _yield(report)
        yield _mean_by_yield(report)
    if report.get("preferences") is not None:
        yield from preference_charts(report["preferences"])
    if report["best_of_n"] is not None and not by_gold:
        yield _best_of_n(report)
    if report["length"] is not None:
        yield _length(report)
    if len(report["sources"]) > 1:
        yield by_source(report)
        yield mix(report)
    if report["margins"] is not None:
        yield _margins(report["margins"])
        if report["margins"]["probabilities"] is not None:
            yield _probabilities(report["margins"])
    if report["disagreement"] is not None:
        yield _disagreement(report["disagreement"])
    if report["overlap"] is not None:
        yield _overlap(report["overlap"])


def kept_and_dropped(bins: Json, *, x_title: str, references: Sequence[Reference] = ()) -> Markup:
    """Return a histogram of `bins`, which have edges and the counts of both sides."""
    series = [Counts(name, style, bins[name]) for name, style in SIDES]
    return histogram(
        bins["edges"],
        series,
        x_title=x_title,
        x_format=short,
        y_format=short,
        subject="responses",
        y_title="responses",
        references=references,
    )


def _gains(report: Json, by_gold: Json) -> dict[str, Any]:
    rows = []
    for rule in RIVALS:
        estimate = by_gold[f"over_{rule}"]
        if estimate["value"] is not None:
            mark = Mark(estimate["value"], estimate["low"], estimate["high"])
            rows.append((RULES[rule].format(report["unit"]), [mark]))
    return {
        "title": "Better than simple rules, by gold",
        "serves": "whether the selection is worth its cost: right of the dashed line it is better than "
        "the rule; where an interval crosses the line, neither is shown to be better.",
        "svg": interval_chart(
            rows, names=(("gold of the kept minus that of the rule", "kept"),), reference=0.0, x_format=short
        ),
        "note": f"Gold is the column {report['gold']}. The chart is drawn from {describe_compared(report, by_gold)}.",
    }


def _funnel(manifest: Json, unit: str) -> dict[str, Any]:
    counts = manifest["counts"]
    stages = [("scored", counts["scored"], counts["prompts"], counts["size"])]
    stages += [(step["rule"], step["rows"], step["prompts"], step["size"]) for step in manifest["steps"]]

    def bar(value: int | None, whole: int | None) -> Bar | None:
        return None if value is None or not whole else Bar(value / whole, f"{value:,} ({share(value / whole)})")

    most = (counts["scored"], counts["prompts"] or max((s[2] or 0 for s in stages), default=0), counts["size"])
    rows = [
        (f"{place}. {name}" if place else name, [bar(value, whole) for value, whole in zip(values, most, strict=True)])
        for place, (name, *values) in enumerate(stages)
    ]
    rejected = sum(manifest["rejected"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest["rejected"].items())
    note = f"Of {counts['read']:,} responses read, {rejected:,} were rejected" + (f": {reasons}." if reasons else ".")
    if counts.get("cut_prompts"):
        note += f" {counts['cut_prompts']:,} repeated their prompts, which were removed."
    for gate in manifest.get("on_topic", ()):
        note += f" Dropped as off topic: {gate['dropped']:,} (step {gate['step'] + 1}, {describe_gap(gate)})."
    if any(prompts is None for _, _, prompts, _ in stages):
        note += " Prompts are not counted for steps that come before responses are grouped by prompt."
    return {
        "title": "What each step kept",
        "serves": "whether a step is too strict or has no effect, and whether the result is large enough for training.",
        "svg": bar_rows(
            rows,
            names=(("responses", "kept"), ("prompts", "oracle"), (unit, "length")),
            sentence=lambda label, name, words: (
                f"{words} of the {name} {'were scored' if label == 'scored' else f'remain after step {label}'}."
            ),
        ),
        "note": note,
    }


def _rewards(manifest: Json, bins: Json) -> dict[str, Any]:
    lines = [
        Reference(float(step["threshold"]["min_reward"]), f"min_reward {step['threshold']['min_reward']:g}")
        for step in manifest["selection"]["select"]
        if step.get("threshold", {}).get("min_reward") is not None
    ]
    note = ""
    if bins["below"] or bins["above"]:
        note = f"The outermost bars include {bins['below'] + bins['above']:,} responses beyond the range."
    return {
        "title": "Rewards",
        "serves": "whether a threshold can separate good from bad: see where the kept responses begin, and whether "
        "there is a valley or only a slope.",
        "svg": kept_and_dropped(bins, x_title="reward", references=lines),
        "note": note,
    }


def _yield(report: Json) -> dict[str, Any]:
    points = report["yield"]
    rows, size = points[0]["rows"], points[0]["size"] or 1
    series = [
        Series("responses", "kept", [(p["threshold"], Mark(p["rows"] / rows)) for p in points]),
        Series(report["unit"], "length", [(p["threshold"], Mark(p["size"] / size)) for p in points]),
    ]
    ticks = round_ticks(points[0]["threshold"], points[-1]["threshold"])
    return {
        "title": "What a threshold would keep",
        "serves": "min_reward from the amount of data needed, or how much data a threshold costs.",
        "svg": line_chart(
            series,
            x_ticks=[(t, short(t)) for t in ticks],
            x_title="min_reward",
            y_format=lambda value: f"{value:.0%}",
            y_title="share kept",
        ),
        "note": f"The curves count {rows:,} scored responses with {short(size)} {report['unit']}, regardless of the selection.",
    }


def _mean_by_yield(report: Json) -> dict[str, Any]:
    points = report["yield"]
    share = [(p["rows"] / points[0]["rows"], Mark(p["mean"])) for p in points]
    return {
        "title": "Mean reward of the best share",
        "serves": "top.fraction: where the curve flattens, keeping more costs little reward.",
        "svg": line_chart(
            [Series("mean reward of the best", "kept", share[::-1])],
            x_ticks=[(k / 4, f"{k / 4:.0%}") for k in range(5)],
            x_title="share of responses kept, the best first",
            y_format=short,
            y_title="mean reward",
        ),
        "note": "",
    }


def _best_of_n(report: Json) -> dict[str, Any]:
    curve = report["best_of_n"]
    chart, graded = best_of_n(curve), curve["measured_by"] == "gold"
    prompts, what = curve["points"][0]["prompts"], "gold scores" if graded else "responses"  # all that have a choice
    note = (
        f"The chart is drawn from {describe_part(report)} {prompts:,} prompts with two or more {what}. {chart['note']}"
    )
    return {**chart, "note": f"{note} Gold is the column {report['gold']}." if graded else note}


def _length(report: Json) -> dict[str, Any]:
    bins = report["length"]["bins"]
    series = [
        Series("uncorrected", "model", [(math.log2(max(1.0, b["characters"])), Mark(b["reward"])) for b in bins]),
        Series("corrected", "length", [(math.log2(max(1.0, b["characters"])), Mark(b["corrected"])) for b in bins]),
    ]
    low, high = (round(math.log2(max(1.0, bins[at]["characters"]))) for at in (0, -1))
    means = [
        side["characters"] / side["rows"]
        for side in (report["sides"]["kept"], report["sides"]["dropped"])
        if side["rows"]
    ]
    note = "The corrected line is the reward minus a smooth fit on length, as length_correction computes it."
    within = report["length_correlation"]["within_prompt"]
    if within["value"] is not None:
        note += f" Within prompts, the correlation of reward and length is {number_interval(within)} (Spearman)."
    if len(means) == 2 and means[1]:
        note += (
            f" Kept responses are {means[0] / means[1]:.2f} times as long as dropped ones ({means[0]:,.0f} characters)."
        )
    return {
        "title": "Reward and length",
        "serves": "whether length_correction is needed: a rising line, with kept responses much longer than dropped ones, "
        "means that the model rewards length.",
        "svg": line_chart(
            series,
            x_ticks=[(at, f"{2**at:,}") for at in range(low, max(high, low + 1) + 1)],
            x_title="characters of the response",
            y_format=short,
            y_title="mean reward",
        ),
        "note": note,
    }


def _margins(margins: Json) -> dict[str, Any]:
    return {
        "title": "Lead of the best response",
        "serves": "best_of_n.min_margin: for prompts on the left, the lead is small, and another model could choose differently.",
        "svg": histogram(
            margins["edges"],
            [Counts("prompts", "kept", margins["counts"])],
            x_title="reward of the best minus that of the second best",
            x_format=short,
            y_format=short,
            y_title="prompts",
            references=[Reference(margins["median"], f"median {short(margins['median'])}")],
        ),
        "note": f"The bars count {margins['prompts']:,} prompts with two or more responses, the last bar all larger leads.",
    }


def _probabilities(margins: Json) -> dict[str, Any]:
    sure = margins["probabilities"]
    return {
        "title": "Probability that the best is preferred",
        "serves": "best_of_n.min_probability: at 50 % the model cannot tell the best from the second best.",
        "svg": histogram(
            sure["edges"],
            [Counts("prompts", "kept", sure["counts"])],
            x_title="probability that the best is better",
            x_format=lambda value: f"{value:.0%}",
            y_format=short,
            y_title="prompts",
        ),
        "note": f"The probability is σ(lead / T) with T = {margins['temperature']:.4g} from the model's calibration; its mean is "
        f"{sure['mean']:.0%}.",
    }


def _disagreement(disagreement: Json) -> dict[str, Any]:
    return {
        "title": "Disagreement of the models",
        "serves": "between mean, min and lower_bound: if kept responses are to the right of dropped ones, the selection "
        "prefers responses on which the models disagree.",
        "svg": kept_and_dropped(disagreement, x_title="spread of the standardised rewards"),
        "note": f"The mean is {number(disagreement['kept_mean'])} for kept responses and "
        f"{number(disagreement['dropped_mean'])} for dropped ones.",
    }


def _overlap(overlap: Json) -> dict[str, Any]:
    rows = [
        (words, [Bar(overlap[name], share(overlap[name]))])
        for name, words in (
            ("longest", "are the longest"),
            ("shortest", "are the shortest"),
            ("random", "would be kept by chance"),
        )
        if name in overlap
    ]
    return {
        "title": "Overlap with simpler rules",
        "serves": "whether the reward model is needed: if nearly all kept responses are the longest anyway, choosing by "
        "length would do.",
        "svg": bar_rows(
            rows,
            names=(("", "kept"),),
            whole=1.0,
            sentence=lambda label, _, words: f"Among the kept responses, {words} {label}.",
        ),
        "note": f"The bars are shares of {overlap['responses']:,} kept responses in the sample, to prompts that also lose some.",
    }
