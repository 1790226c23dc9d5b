"""The verdict on a reward model in words, from its figures in JSON (`rm.evaluate.verdict.Verdict`)."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.report import stress
from pipelines.report.text import crop, percent_interval
from pipelines.storage.canonical_json import Json

BETTER, UNKNOWN = "better_than_length", "unknown"
NO_VERDICT = (
    "no verdict is stored with it: `bestkept evaluate MODEL PREFERENCES` says whether it is better than chance and than length, "
    "and stores that beside the weights"
)

_LABELS = {
    BETTER: "better than chance and than length",
    "not_better_than_length": "not shown to be better than length",
    "not_better_than_chance": "not shown to be better than chance",
}


def lines_of(manifest: Json) -> Iterator[tuple[str, bool]]:
    """The verdict on each model of a run in one line, or the way to get one, and whether to be warned by it; nothing where the
    rewards came with the corpus."""
    for name, evaluation in _evaluations_of(manifest):
        words = NO_VERDICT if evaluation is None else told(evaluation)
        yield name + words, evaluation is not None and evaluation["verdict"] != BETTER


def paragraphs_of(manifest: Json) -> Iterator[tuple[str, bool, list[str]]]:
    """The same as sentences, with what the verdict does not hold for apart from it."""
    for name, evaluation in _evaluations_of(manifest):
        if evaluation is None:
            yield f"{name}{NO_VERDICT}.", False, []
            continue
        words = f"{name}{sentence(evaluation)} {_measured_on(evaluation)}"
        yield words, evaluation["verdict"] != BETTER, [name + warning for warning in warnings(evaluation)]


def _evaluations_of(manifest: Json) -> Iterator[tuple[str, Json | None]]:
    """(beginning of a line, stored evaluation) of each model; the name begins it where there are several."""
    model, evaluations = manifest["model"], manifest.get("evaluations", {})
    if "column" in model:
        return
    members = model.get("members") or [{**model, "fingerprint": manifest["fingerprint"]}]
    for member in members:
        name = f"{crop(member['name'])}: " if len(members) > 1 else ""
        yield name, evaluations.get(member["fingerprint"])


def told(evaluation: Json) -> str:
    """A stored verdict in words, with what it was measured on."""
    words = " ".join((sentence(evaluation), *warnings(evaluation)))
    return f"{words} {_measured_on(evaluation)}"


def _measured_on(evaluation: Json) -> str:
    return f"Measured on {crop(evaluation['data'])}, {evaluation['part']}."


def words_of(evaluation: Json) -> Json:
    """The verdict as evaluation.json has it: its name, its sentence, and what it does not hold for."""
    return {
        "verdict": evaluation["verdict"],
        "sentence": sentence(evaluation),
        "warnings": list(warnings(evaluation)),
    }


def label(evaluation: Json) -> str:
    """A phrase, such as `not shown to be better than length`."""
    whole, verdict = evaluation["all"], evaluation["verdict"]
    if verdict == UNKNOWN:
        return "no verdict: fewer than six prompts have a comparison that could be scored"
    worse = f"worse than taking the {whole['rule']} response"
    if verdict == "worse":
        return "worse than chance" if whole["accuracy"]["high"] < 0.5 else worse
    if verdict == "not_better_than_chance" and whole["over_length"]["high"] < 0:
        return f"{_LABELS[verdict]}, and {worse}"
    return _LABELS[verdict]


def sentence(evaluation: Json) -> str:
    """The verdict with the figures that it rests on, over all comparisons and over pairs of similar length."""
    whole, matched = evaluation["all"], evaluation["length_matched"]
    words = label(evaluation)
    words = words[0].upper() + words[1:]
    if not whole["comparisons"]:
        return f"{words}."
    words += f": {_figures(whole, 'comparisons')}"
    if matched["comparisons"]:
        words += f"; {_figures(matched, 'pairs of similar length')}"
    return f"{words}."


def _figures(part: Json, what: str) -> str:
    return (
        f"of {part['comparisons']:,} {what} it orders {percent_interval(part['accuracy'])} % as judged, "
        f"{percent_interval(part['over_length'], sign=True)} points against taking the {part['rule']} response "
        f"({percent_interval(part['length'])} %)"
    )


def warnings(evaluation: Json) -> Iterator[str]:
    """Sentences on what the verdict does not hold for."""
    accuracy = evaluation["length_matched"]["accuracy"]
    yield from stress.warnings(evaluation.get("stress"))
    if evaluation["verdict"] == UNKNOWN:
        return
    if accuracy["low"] is None:
        yield "Fewer than two prompts have pairs of similar length, so nothing shows that it judges more than length."
    elif accuracy["low"] <= 0.5:
        yield (
            f"On pairs of similar length it is not shown to be better than chance ({percent_interval(accuracy)} %): what it "
            "adds may rest on length."
        )
