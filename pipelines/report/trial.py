"""The result of `bestkept trial` in words, from `trial.json` beside the report."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipelines.report.text import crop
from pipelines.storage.canonical_json import Json
from pipelines.storage.files import join, read_bytes
from rm.conversations import load_json

NAME, FORMAT = "trial.json", 1
CONTROLS = {"random": "random responses", "longest": "the longest"}
_REFERENCES = {
    "file": "given references",
    "gold": "the best responses by the gold column",
    "test": "the test split",
}


def read_trial(output: str) -> Json | None:
    """Read the result of an output's trial; None if there is none that this version can read."""
    data = read_bytes(join(output, NAME))
    try:
        document = None if data is None else load_json(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) and document.get("format") == FORMAT else None


def label(estimate: Json) -> str:
    """Return `better than`, `worse than` or `not shown to differ from`, by the position of 0 relative to the interval."""
    if estimate["low"] is None or estimate["low"] <= 0 <= estimate["high"]:
        return "not shown to differ from"
    return "better than" if estimate["low"] > 0 else "worse than"


def sentence(trial: Json) -> str:
    """Return the result in one sentence, with its figures: the gain in probability of a reference token."""
    verdicts = ", ".join(f"{label(trial['likelihood']['differences'][name])} {CONTROLS[name]}" for name in CONTROLS)
    figures = " and ".join(
        f"{_percent(trial['likelihood']['differences'][name])} % against {CONTROLS[name]}" for name in CONTROLS
    )
    words = (
        f"As training data for {crop(trial['student']['name'])} the selection is {verdicts}: after a fine-tune on it, a token of "
        f"{trial['references']['prompts']:,} held-out references ({_REFERENCES[trial['references']['kind']]}) is more probable "
        f"by {figures}, at equal tokens and steps"
    )
    judge = trial["judge"]
    if judge is not None:
        rewards = " and ".join(f"{_number(judge['differences'][name])} against {CONTROLS[name]}" for name in CONTROLS)
        words += f"; the rewards of its answers by {crop(judge['name'])} differ by {rewards}"
    return f"{words}."


def warnings(trial: Json) -> Iterator[str]:
    """Yield sentences on the limits of the result."""
    if trial["references"]["kind"] == "test":
        yield (
            "The references were kept by the same selection: that they become more probable shows that the student learns what "
            "is selected, not that it is good. Give --reference FILE, or report.gold."
        )
    if trial["judge"] is not None and trial["judge"]["selected"]:
        yield "The judge is a model that made the selection, which favours it."
    if trial["steps"] < trial["steps_asked"]:
        yield f"The smallest set suffices for {trial['steps']:,} of {trial['steps_asked']:,} steps, so all take that many."


def paragraph(trial: Json) -> str:
    """Return the result and its limits as one paragraph."""
    return " ".join((sentence(trial), *warnings(trial)))


def _percent(estimate: Json) -> str:
    """Return nats as a percentage of probability: `3.1 [2.0, 4.2]`."""
    values = [estimate["value"], estimate["low"], estimate["high"]]
    shown = ["-" if value is None else f"{100 * math.expm1(value):+.1f}" for value in values]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _number(estimate: Json) -> str:
    values = [estimate["value"], estimate["low"], estimate["high"]]
    shown = ["-" if value is None else f"{value:+.3f}" for value in values]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
