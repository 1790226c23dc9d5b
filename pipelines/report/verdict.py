"""The verdict on a reward model in words, from its figures in JSON (`rm.evaluate.verdict.Verdict`)."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.report import stress
from pipelines.report.text import crop, percent, percent_interval
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
    """Yield the verdict on each model of a run in one line, or the way to get one, and whether it is a warning; nothing if
    the rewards came with the corpus."""
    for name, evaluation in _evaluations_of(manifest):
        words = NO_VERDICT if evaluation is None else told(evaluation)
        yield name + words, evaluation is not None and evaluation["verdict"] != BETTER


def paragraphs_of(manifest: Json) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield the same as sentences, with the limits of the verdict separately."""
    for name, evaluation in _evaluations_of(manifest):
        if evaluation is None:
            yield f"{name}{NO_VERDICT}.", False, []
            continue
        words = f"{name}{sentence(evaluation)} {_measured_on(evaluation)}"
        yield words, evaluation["verdict"] != BETTER, [name + warning for warning in warnings(evaluation)]


def _evaluations_of(manifest: Json) -> Iterator[tuple[str, Json | None]]:
    """Yield (beginning of a line, stored evaluation) of each model; the name begins the line if there are several."""
    model, evaluations = manifest["model"], manifest.get("evaluations", {})
    if "column" in model:
        return
    members = model.get("members") or [{**model, "fingerprint": manifest["fingerprint"]}]
    for member in members:
        name = f"{crop(member['name'])}: " if len(members) > 1 else ""
        yield name, evaluations.get(member["fingerprint"])


def told(evaluation: Json) -> str:
    """Return a stored verdict in words, with the data that it was measured on."""
    words = " ".join((sentence(evaluation), *warnings(evaluation)))
    return f"{words} {_measured_on(evaluation)}"


def _measured_on(evaluation: Json) -> str:
    return f"Measured on {crop(evaluation['data'])}, {evaluation['part']}."


def words_of(evaluation: Json) -> Json:
    """Return the verdict as evaluation.json has it: its name, its sentence, and its limits."""
    return {
        "verdict": evaluation["verdict"],
        "sentence": sentence(evaluation),
        "warnings": list(warnings(evaluation)),
    }


def label(evaluation: Json) -> str:
    """Return a phrase, such as `not shown to be better than length`."""
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
    """Return the verdict with its figures, over all comparisons and over pairs of similar length."""
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
    """Yield sentences on the limits of the verdict."""
    accuracy = evaluation["length_matched"]["accuracy"]
    if trained_on := evaluation.get("trained_on"):
        yield (
            f"The model was trained on {percent(trained_on)} % of these prompts, so the figures show in part what it remembers: "
            "evaluate it on others, such as those that data.heldout_fraction keeps out of training."
        )
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
