"""The tables that `bestkept evaluate` prints, from the numbers of evaluation.json."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from pipelines.report import gate, stress
from pipelines.report.text import number, number_interval, percent, percent_interval
from pipelines.storage.canonical_json import Json


def units_of(evaluation: Json) -> dict[str, str]:
    """Return the units of the numbers in `evaluation`, by their places in it; numbers not listed are counts."""
    raw, curve = "raw output of the reward model", evaluation["best_of_n"]
    gold = curve is not None and curve["measured_by"] == "gold"
    return {
        "verdict": "share of comparisons, 0 to 1",
        "accuracy": "share of comparisons, 0 to 1",
        "separation.auc": "probability, 0 to 1",
        "calibration.temperature": f"{raw}, per nat of log-odds",
        "calibration.nll": "nats per comparison",
        "calibration.brier": "squared probability, 0 to 1",
        "calibration.ece": "probability, 0 to 1",
        "calibration.bins": "probability, 0 to 1",
        "length_correlation": "correlation, -1 to 1",
        "margins.gap": raw,
        "margins": "share of comparisons, 0 to 1",
        "best_of_n.kl": "nats",
        "best_of_n": "gold score, as in the data" if gold else raw,
        "reward_bench_2": "share of items, 0 to 1",
        "stress.tests": "share of prompts, 0 to 1",
        "stress.without_prompt": "correlation, -1 to 1",
        "gated.gap": "cosine, 0 to 2",
        "gated.max_touched": "share of responses, 0 to 1",
        "gated.caught": "share of responses to other prompts, 0 to 1",
        "gated.unknown": "responses",
        "gated.other_prompt": "share of prompts, 0 to 1",
        "gated.similar_prompt": "share of prompts, 0 to 1",
        "gated.best_of_all": "gold score, as in the data",
        "gated.best_over_model": "gold score, as in the data",
        "gated": "share of comparisons, 0 to 1",
    }


EXPLORATORY = "Rows by kind are exploratory; their intervals are widened to hold jointly within a kind (Bonferroni)."


def accuracy_rows(accuracy: Json) -> Iterator[tuple[str, Json]]:
    """Yield (label, row) of the whole, then of each kind that has several values: a single one would repeat the whole."""
    yield "all", accuracy["overall"]
    for kind in ("origin", "source", "subset"):
        rows = accuracy[f"by_{kind}"]
        for row in rows if len(rows) > 1 else ():
            yield f"{kind} {row['name']}", row


def length_interval(row: Json) -> str:
    """Return `shorter 55.6 [52.1, 59.0]`: the best rule without a model, and its accuracy in percent."""
    return f"{row['rule']} {percent_interval(row['length'])}"


def evaluation_tables(document: Json, *, written_to: str) -> Iterator[Table]:
    """Yield all tables of an evaluation, except those without data."""
    evaluation = document["evaluation"]
    yield _verdict(document["verdict"])
    yield _accuracy(evaluation["accuracy"])
    if evaluation["calibration"]:
        yield _calibration(evaluation["calibration"])
    if evaluation["best_of_n"]:
        yield _best_of_n(evaluation["best_of_n"])
    if evaluation["reward_bench_2"]:
        yield _reward_bench(evaluation["reward_bench_2"])
    if evaluation["stress"]:
        yield _stress(evaluation["stress"])
    if evaluation["gated"]:
        yield _gated(evaluation)
    yield _summary(document, written_to)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _verdict(verdict: Json) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for words in (verdict["sentence"], *verdict["warnings"]):
        table.add_row(words)
    return table


def _accuracy(accuracy: Json) -> Table:
    title = "accuracy in % [95 % interval, clustered by prompt]"
    table = _table(title, "comparisons", "n", "model", "best rule", "difference")
    rows = list(accuracy_rows(accuracy))
    for label, row in rows:
        cells = (percent_interval(row["model"]), length_interval(row))
        table.add_row(label, f"{row['comparisons']:,}", *cells, percent_interval(row["difference"], sign=True))
    table.caption, table.caption_justify = EXPLORATORY if len(rows) > 1 else None, "left"
    return table


def _calibration(calibration: Json) -> Table:
    table = _table("calibration", "", "NLL", "Brier", "ECE")
    for label, key in (("as it is", "before"), ("with temperature", "after")):
        if (fit := calibration[key]) and (key == "before" or calibration["temperature"]["helps"]):
            table.add_row(label, *(number(fit[name], 4) for name in ("nll", "brier", "ece")))
    table.add_row("a coin", "0.6931", "0.2500", "")
    return table


def _best_of_n(curve: Json) -> Table:
    measure = "gold score" if curve["measured_by"] == "gold" else "reward, no gold in the data"
    rivals = best_of_n_rivals(curve)
    table = _table(f"best of n ({measure})", "n", "KL", "prompts", "model", *rivals)
    for point in curve["points"]:
        others = (number(point[name]["value"]) for name in rivals)
        cells = (number(point["kl"], 2), f"{point['prompts']:,}", number_interval(point["model"]), *others)
        table.add_row(str(point["n"]), *cells)
    return table


def best_of_n_rivals(curve: Json) -> tuple[str, ...]:
    """Return the other ways to choose; if measured by the reward itself, the model is the oracle."""
    return ("random", "longest", "oracle") if curve["measured_by"] == "gold" else ("random", "longest")


def _reward_bench(scores: Json) -> Table:
    table = _table("RewardBench 2", "subset", "items", "score in %")
    for subset in scores["subsets"]:
        table.add_row(subset["name"], f"{subset['items']:,}", percent(subset["score"]))
    table.add_row("mean" if scores["complete"] else "mean of these", "", percent(scores["overall"]))
    return table


def _stress(stressed: Json) -> Table:
    table = _table("stress tests", *stress.COLUMNS)
    for cells in stress.rows(stressed):
        table.add_row(*cells)
    return table


def _gated(evaluation: Json) -> Table:
    table = _table(gate.title(evaluation["gated"]), *gate.COLUMNS)
    for cells in gate.rows(evaluation):
        table.add_row(*cells)
    return table


def summary_rows(document: Json) -> Iterator[tuple[str, str]]:
    """Yield (label, words) of everything that fits on one line."""
    evaluation = document["evaluation"]
    overall, correlation = evaluation["accuracy"]["overall"], evaluation["length_correlation"]
    unscored = document["unscored"]
    yield (
        "evaluated",
        f"{evaluation['prompts']:,} prompts, {evaluation['responses']:,} responses, {document['data']['part']}",
    )
    for reason, count in document["data"]["rejected"].items():
        yield f"rejected: {reason}", f"{count:,}"
    for reason, count in unscored.items():
        yield f"unscored: {reason}", f"{count:,}"
    yield "truncated", f"{document['truncated']:,}"
    if near := document.get("relevance"):
        yield "relevance", f"the embedding model reads only a part of {near['truncated']:,} responses or prompts"
    yield (
        "comparisons",
        f"{overall['comparisons']:,}, {overall['ties']:,} ties left out, {overall['unscored']:,} unscored",
    )
    matched = f"{percent_interval(overall['matched'])} of {overall['matched_comparisons']:,}"
    yield "accuracy, lengths matched", matched
    yield (
        "reward and length",
        (
            f"{number_interval(correlation['within_prompt'])} within prompts (Spearman), "
            f"{number(correlation['overall'])} overall (Pearson)"
        ),
    )
    if stressed := evaluation["stress"]:
        words = f"{number_interval(stressed['without_prompt'])} with the rewards of the responses alone (Spearman within prompts)"
        yield "reward without its prompt", words
    if separation := evaluation["separation"]:
        yield "accepted above rejected", f"{number(separation['auc'])} (AUC across prompts)"
    if calibration := evaluation["calibration"]:
        yield "temperature", temperature_words(calibration["temperature"])


def temperature_words(temperature: Json) -> str:
    """Return `1.85`, with remarks."""
    if not temperature["helps"]:
        return "1: a temperature fitted on half of the prompts does not help on the other half"
    bound = (
        ", at the bound of the search: too few errors or too little signal to fit" if temperature["at_bound"] else ""
    )
    return f"{temperature['value']:.4g}{bound}"


def _summary(document: Json, written_to: str) -> Table:
    table = Table(show_header=False, box=box.SIMPLE, pad_edge=False)
    for label, words in summary_rows(document):
        table.add_row(label, words)
    table.add_row("temperature stored", document["temperature_stored"] or "no")
    table.add_row("written", f"{written_to.rstrip('/')}/evaluation.json, evaluation.html")
    return table
