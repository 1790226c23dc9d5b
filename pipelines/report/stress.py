"""The stress tests of an evaluation in words, from its figures in JSON (`rm.evaluate.stress.Stress`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pipelines.report.text import percent_interval
from pipelines.storage.canonical_json import Json

AGAINST = {
    "other_prompt": "a response to another prompt",
    "similar_prompt": "a response to a similar prompt",
    "truncated": "its first half",
    "shuffled": "its sentences in another order",
    "repeated": "itself twice",
    "padded": "itself between polite phrases",
    "list": "itself as a list with a heading",
    "emoji": "itself with emoji",
    "plain": "itself without Markdown",
}
_WANTED = {
    "other_prompt": "near 100",
    "similar_prompt": "near 100",
    "truncated": "near 100",
    "shuffled": "near 100",
    "repeated": "near 100",
    "padded": "50 or more",
    "list": "near 50",
    "emoji": "50 or more",
    "plain": "near 50",
}
COLUMNS = ("the response against", "prompts", "preferred, %", "wanted")
_PROMPTS = ("similar_prompt", "other_prompt")
_ANSWERS = 0.9
"""The minimum rate at which a model that reads prompts prefers the response to the given prompt over one to a similar prompt."""


def rows(stress: Json) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the table of tests, by `COLUMNS`."""
    for test in stress["tests"]:
        name = test["name"]
        yield AGAINST[name], f"{test['prompts']:,}", percent_interval(test["preferred"]), _WANTED[name]


def advice(stress: Json | None, *, used: Collection[str]) -> Iterator[str]:
    """Yield lines with a symptom and the training setting known to act on it, without the settings in `used`."""
    failed = {} if stress is None else {test["name"]: _fails(test) for test in stress["tests"]}
    if "foreign" not in used and (failed.get("similar_prompt") or failed.get("other_prompt")):
        yield "it hardly reads the prompt: train.foreign={per_group: 2, similar: 0.5, weight: 0.5}"
    cures = {"length_balance": "train.length_balance=true", "length_head": "train.length_head={}"}
    left = [setting for name, setting in cures.items() if name not in used]
    if left and (failed.get("repeated") or failed.get("padded")):
        yield f"it rewards length as such: {', or '.join(left)}"


def _fails(test: Json) -> bool:
    """Return whether a model is shown to fail a test: all of the interval is below the passing rate."""
    high, passes = test["preferred"]["high"], _ANSWERS if test["name"] in _PROMPTS else 0.5
    return high is not None and high < passes


def warnings(stress: Json | None) -> Iterator[str]:
    """Yield sentences on tests that the model is shown to fail."""
    tests = {} if stress is None else {test["name"]: test for test in stress["tests"]}
    for name in _PROMPTS:
        test = tests.get(name)
        if test and _fails(test):
            yield (
                f"It prefers the right response to {AGAINST[name]} in only {percent_interval(test['preferred'])} % of "
                f"{test['prompts']:,} prompts: it judges the text more than whether the text answers the prompt."
            )
            break
    for name, words in (
        ("repeated", "saying everything twice"),
        ("padded", "adding polite phrases"),
        ("emoji", "adding emoji"),
    ):
        test = tests.get(name)
        if test and _fails(test):
            lower, higher = sorted(1 - test["preferred"][end] for end in ("low", "high"))
            raised = {"value": 1 - test["preferred"]["value"], "low": lower, "high": higher}
            yield f"In {percent_interval(raised)} % of {test['prompts']:,} prompts, {words} raises the reward."
