"""The model behind a relevance gate in tables and words, from its figures in JSON (`rm.evaluate.gate.Gated`)."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config.prompt_rules import OnTopic
from pipelines.report.stress import AGAINST
from pipelines.report.text import number, number_interval, percent, percent_interval
from pipelines.storage.canonical_json import Json

COLUMNS = ("measure", "model alone", "behind the gate", "difference")
_TESTS = ("other_prompt", "similar_prompt")


def title(gated: Json) -> str:
    """Return a heading with the gap, the share of comparisons that the gate decides, and the number of unknown cosines."""
    decides = f"; it decides {percent(gated['decided'])} % of comparisons" if gated["comparisons"] else ""
    settled = "" if gated["max_touched"] is None else ", settled on these data"
    return f"behind the relevance gate (gap {gated['gap']:.3g}{settled}{decides}{_unknown(gated)})"


def rows(evaluation: Json) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a table by `COLUMNS`, of an evaluation with a gate."""
    gated, overall = evaluation["gated"], evaluation["accuracy"]["overall"]
    difference = percent_interval(gated["over_model"], sign=True)
    yield "accuracy, %", percent_interval(overall["model"]), percent_interval(gated["accuracy"]), difference
    yield "accuracy where the gate decides, %", "", percent_interval(gated["nearer"]), ""
    yield "accuracy over the nearer or longer response", "", "", percent_interval(gated["over_rule"], sign=True)
    yield "accuracy, lengths matched, %", percent_interval(overall["matched"]), percent_interval(gated["matched"]), ""
    tested = _alone(evaluation)
    for name in _TESTS:
        if test := gated[name]:
            words = f"preferred to {AGAINST[name]}, %"
            yield words, percent_interval(tested[name]), percent_interval(test["preferred"]), ""
    if gated["caught"] is not None:
        yield "responses to other prompts beyond the gap, %", "", percent(gated["caught"]), ""
    if best := gated["best_of_all"]:
        over = gated["best_over_model"]
        alone = number(best["value"] - over["value"])
        yield "gold score of the best of all", alone, number_interval(best), number_interval(over, sign=True)


def words(gated: Json) -> str:
    """Return the accuracy behind the gate, and what the gate does, in one line."""
    line = "no comparison could be scored"
    if gated["comparisons"]:
        difference = percent_interval(gated["over_model"], sign=True)
        line = f"{percent_interval(gated['accuracy'])}, {difference} points against the model alone; "
        line += f"the gate, with a gap of {gated['gap']:.3g}, decides {percent(gated['decided'])} % of comparisons"
    if test := gated["similar_prompt"]:
        line += f", and {AGAINST['similar_prompt']} loses in {percent_interval(test['preferred'])} %"
    return line + _unknown(gated)


def _unknown(gated: Json) -> str:
    """Return how many responses have no cosine, after a semicolon; nothing if all have one."""
    count = gated["unknown"]
    return f"; {count:,} response{' has' if count == 1 else 's have'} no cosine" if count else ""


def advice(evaluation: Json | None) -> Iterator[str]:
    """Yield a line if the model is shown to be better behind the gate, by judgements, by gold scores or against responses to
    other prompts, and neither by judgements nor by gold scores to be worse."""
    gated = None if evaluation is None else evaluation["gated"]
    if evaluation is None or gated is None:
        return
    low, high = gated["over_model"]["low"], gated["over_model"]["high"]
    tested = _alone(evaluation)
    apart = any(
        _above(gated[name]["preferred"]["low"], tested[name]["high"]) for name in _TESTS if gated[name] is not None
    )
    best = gated["best_over_model"] or {"low": None, "high": None}
    if _above(0.0, high) or _above(0.0, best["high"]):
        return
    better = _above(low, 0.0) or _above(best["low"], 0.0)
    if better or apart:
        gain = "it is better" if better else "responses to other prompts lose more often"
        step = f"select=[{{on_topic: {{signal: relevance{_setting(gated)}}}}}, ...]"
        yield f"{gain} behind the relevance gate: bestkept run, with signals.relevance and {step}"


def _setting(gated: Json) -> str:
    """Return the settings of the step that are not its defaults."""
    if (touched := gated["max_touched"]) is None:
        return f", gap: {gated['gap']}"
    return "" if touched == OnTopic().max_touched else f", max_touched: {touched}"


def _alone(evaluation: Json) -> dict[str, Json]:
    """Return the estimates of the stress tests of the model alone, by name."""
    return {test["name"]: test["preferred"] for test in (evaluation["stress"] or {"tests": ()})["tests"]}


def _above(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound
