"""The first screen of a run's report: what was kept, whether it beats simple rules, and warnings. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pipelines.report.gains import RIVALS, RULES
from pipelines.report.text import crop, percent_interval
from pipelines.report.trial import paragraph
from pipelines.report.verdict import paragraphs_of
from pipelines.runtime.machine import tool_version
from pipelines.storage.canonical_json import Json, digest

_MANY_NEAR_TIES = 0.2  # as a share of the prompts
_MUCH_SHIFT, _MANY_REJECTED = 0.5, 0.01  # of drift, the limits that docs/operating.md advises

TEMPLATE = """\
<p class="lead">{{ answer.kept }}</p>
{% for words in answer.gain %}
<p class="lead">{{ words }}</p>
{% endfor %}
{% for words, bad in answer.models %}
<p class="lead{% if bad %} warning{% endif %}"><strong>Reward model:</strong> {{ words }}</p>
{% endfor %}
{% for warning in answer.warnings %}
<p class="lead warning"><strong>Caution:</strong> {{ warning }}</p>
{% endfor %}
{% if answer.rivals %}
<div class="scroll" role="region" tabindex="0" aria-label="Compared with simple rules"><table class="rivals">
<thead><tr>{% for name in answer.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in answer.rivals %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<p class="lead quiet">{{ answer.note }}</p>
<p class="lead quiet">{{ answer.identity }}</p>
"""


def answer(manifest: Json, report: Json, drift: Json, trial: Json | None = None) -> dict[str, Any]:
    """Return the values of `TEMPLATE`; `drift` is empty if there is no previous version."""
    gains = report.get("gains") or {}
    by_gold, by_reward = gains.get("gold"), gains.get("reward")
    rivals = list(_rivals(report, by_gold, by_reward)) if by_reward else []
    columns = ["compared with", *([f"by gold ({crop(report['gold'], 40)})"] if by_gold else [])]
    return {
        "kept": _kept(manifest, report["unit"]),
        "gain": [*_gain(report, by_gold, has_rivals=bool(rivals)), *([paragraph(trial)] if trial else [])],
        "models": [(words, bad) for words, bad, _ in paragraphs_of(manifest)],
        "warnings": [
            *(warning for *_, told in paragraphs_of(manifest) for warning in told),
            *(
                f"{words[0].upper()}{words[1:]}."
                for words in (*manifest["warnings"], *_warnings(manifest, report, drift))
            ),
        ],
        "columns": [*columns, "by the reward itself", "would also be kept"],
        "rivals": rivals,
        "note": _note(report, by_gold or by_reward) if by_reward else "",
        "identity": _identity(manifest),
    }


def estimate_words(estimate: Json) -> str:
    """Return `+0.23 [+0.20, +0.26]`: a difference with its interval, to about two digits of its width; it does not break
    inside brackets."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    if low is None or high <= low:
        return f"{value:+.3g}"
    digits = max(0, 1 - math.floor(math.log10((high - low) / 1.5)))
    return f"{value:+,.{digits}f} [{low:+,.{digits}f},\N{NO-BREAK SPACE}{high:+,.{digits}f}]"


def _kept(manifest: Json, unit: str) -> str:
    counts, mean = manifest["counts"], manifest["mean_reward"]
    if not counts["kept"]:
        return "Nothing was kept: see what each step kept, and loosen the step that dropped the last responses."
    prompts = f"{counts['kept_prompts']:,} {'prompt' if counts['kept_prompts'] == 1 else 'prompts'}"
    words = f"They belong to {prompts} and have {counts['kept_size']:,} {unit}"
    words += f", {counts['kept_size'] / counts['size']:.1%} of all scored {unit}." if counts["size"] else "."
    words += f" Their mean reward is {mean['kept']:.4g}"
    return words + (
        f"; that of the dropped responses is {mean['dropped']:.4g}." if mean["dropped"] is not None else "."
    )


def _gain(report: Json, by_gold: Json | None, *, has_rivals: bool) -> Iterator[str]:
    """Yield sentences on whether the selection is better than simple rules, and on how far the model agrees with judgements."""
    if judged := report.get("preferences"):
        yield (
            f"The model orders {percent_interval(judged['agreement'])} % of {judged['pairs']:,} pairs as they were judged. "
            f"{judged['kept']:,} were kept as judged, and {judged['flipped']:,} were flipped."
        )
    if not has_rivals:
        return
    if not by_gold:
        if report["gold"] is not None:
            yield f"No kept response in the sample has a gold score in the column {crop(report['gold'], 60)}."
        else:
            yield (
                "The corpus has no gold scores, so only a verdict on the reward model can show whether the kept responses are "
                "better: any selection by reward raises the rewards in the table."
            )
        return
    better, unsure, worse = list[str](), list[str](), list[str]()
    for name in RIVALS:
        estimate = by_gold[f"over_{name}"]
        if estimate["value"] is None:
            continue
        words = f"{RULES[name].format(report['unit'])} ({estimate_words(estimate)})"
        low, high = estimate["low"], estimate["high"]
        (unsure if low is None or low <= 0 <= high else better if low > 0 else worse).append(words)
    told = (("better than", better), ("worse than", worse), ("not shown to be better or worse than", unsure))
    parts = [f"{how} {_listed(names)}" for how, names in told if names]
    yield (
        f"By gold scores (column {crop(report['gold'], 60)}), the selection is {'; it is '.join(parts)}. Its mean is "
        f"{by_gold['kept']:.3g}."
    )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _rivals(report: Json, by_gold: Json | None, by_reward: Json) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: the rule, the differences from it, and the share of the kept responses that it would also
    keep."""
    overlap = report["overlap"] or {}
    for name in RIVALS:
        differences = [gain[f"over_{name}"] for gain in (by_gold, by_reward) if gain]
        share = overlap.get(name)
        words = RULES[name].format(report["unit"])
        cells = (estimate_words(estimate).replace("\N{NO-BREAK SPACE}", " ") for estimate in differences)
        yield (words, *cells, "-" if share is None else f"{share:.0%}")


def describe_compared(report: Json, gain: Json) -> str:
    """Return the prompts compared: `all 401 prompts`, or `a random sample of 9,000 prompts with gold scores`."""
    which, graded = describe_part(report), gain is report["gains"].get("gold")
    return f"{which} {gain['prompts']:,} prompts{' with gold scores' if graded else ''}"


def describe_part(report: Json) -> str:
    """Return `all` or `a random sample of`: the part of the prompts that choices are compared on."""
    return "all" if (report.get("gains") or {}).get("whole", report["whole"]) else "a random sample of"


def _note(report: Json, gain: Json) -> str:
    longest = "as many of each prompt as were kept" if gain["within_prompt"] else "as many of all prompts as were kept"
    return (
        f"Each difference is the mean of the kept responses minus that of the rule, with a 95 % interval from a bootstrap over "
        f"{describe_compared(report, gain)}. The longest and the shortest are {longest}."
    )


def _warnings(manifest: Json, report: Json, drift: Json) -> Iterator[str]:
    counts, rejected = manifest["counts"], sum(manifest["rejected"].values())
    if rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest["rejected"].items())
        yield f"{rejected:,} of {counts['read']:,} responses were rejected ({rejected / counts['read']:.2%}): {reasons}"
    near = (report["margins"] or {}).get("near_ties")
    if near and near["share"] > _MANY_NEAR_TIES and not report.get("preferences"):  # whose rows share responses
        yield (
            f"for {near['share']:.0%} of the prompts the choice is a near-tie: the best response leads by less than "
            f"{near['below']:.3g}, a tenth of the standard deviation of all rewards"
        )
    shift = (drift.get("reward") or {}).get("shift") if drift else None
    after = "new rows" if drift and drift["rows"] == "new" else "rows"
    if shift is not None and abs(shift) > _MUCH_SHIFT:
        yield (
            f"the mean reward of the {after} differs by {shift:+.2f} standard deviations from that of version {drift['against']}"
        )
    if drift and (drift["rejected_shift"] or 0) > _MANY_REJECTED:
        yield (
            f"the share of rejected responses among the {after} is {100 * drift['rejected_shift']:.1f} percentage points "
            f"higher than in version {drift['against']}"
        )


def _identity(manifest: Json) -> str:
    """Return the version of the tool, the model, and a hash of the data."""
    model, inputs = manifest["model"], manifest["inputs"]
    names = ", ".join(crop(member["name"], 80) for member in model.get("members") or [model])
    files = f"{len(inputs):,} {'file' if len(inputs) == 1 else 'files'}"
    data = digest([[file["key"], file["content"]] for file in inputs])[:16]
    return f"bestkept {tool_version()}; rewards: {names}, fingerprint {manifest['fingerprint']}; data: {files}, hash {data}."
