"""The sampled conversations of a report as HTML: text is escaped and cut, and marks that would leave their line are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jinja2

from pipelines.report.text import crop, sanitise
from pipelines.storage.canonical_json import Json

_MOST = 2_000  # characters of a response, and of a prompt

_TITLES = {
    "top": (
        "The highest rewards kept",
        "Are these really the best? Overrated ones show what the model likes too much.",
    ),
    "bottom": ("The lowest rewards of all", "Are these really bad? Good ones show what the model does not understand."),
    "border": (
        "At the border: the lowest kept, the highest dropped",
        "Would you have cut here? If the kept are bad, raise the threshold; if the dropped are good, lower it.",
    ),
    "close": (
        "The closest calls: the worst kept beside the best dropped of a prompt",
        "Can you tell which is better? If not, a margin would drop the prompt.",
    ),
}

_SECTION = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string("""\
{% macro turns(messages) %}
{% for turn in messages %}
<div class="turn {{ turn.role }}"><b>{{ turn.role }}</b><p dir="auto">{{ turn.content }}</p></div>
{% endfor %}
{% endmacro %}
{% macro facts(one) %}
<span class="{{ "keep" if one.kept else "drop" }}">{{ "kept" if one.kept else "dropped" }}</span> {{ one.facts }}
{% endmacro %}
<section class="wide samples">
<h2>{{ title }}</h2>
<p class="serves">{{ serves }}</p>
{% for group in groups %}
<details{% if loop.first %} open{% endif %}>
<summary>{{ loop.index }}.
{% if group | length > 1 %}margin {{ group[0].margin }}{% else %}{{ facts(group[0]) }}{% endif %}
</summary>
{% if group[0].left_out %}<p class="quiet">{{ group[0].left_out }}</p>{% endif %}
{{ turns(group[0].prompt) }}
<div class="{{ "pair" if group | length > 1 else "one" }}">
{% for one in group %}
<div>{% if group | length > 1 %}<p class="facts">{{ facts(one) }}</p>{% endif %}
{{ turns([one.response]) }}
<p class="quiet">{{ one.where }}</p></div>
{% endfor %}
</div>
</details>
{% endfor %}
</section>
""")


def sections(samples: Sequence[Json], unit: str) -> Iterator[str]:
    """Yield a section for each kind of sample in `samples`, rows of `samples.parquet`."""
    for kind, (title, serves) in _TITLES.items():
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in samples:
            if row["kind"] == kind:
                at = row["number"] if kind == "close" else len(groups)
                groups.setdefault(at, []).append(_describe(row, unit))
        if groups:
            yield _SECTION.render(title=title, serves=serves, groups=list(groups.values()))


def _describe(row: Json, unit: str) -> dict[str, Any]:
    *prompt, response = row["messages"]
    facts = [f"reward {row['reward']:.4g}", f"{row['size']:,} {unit}"]
    facts += [f"gold {row['gold']:.4g}"] if row["gold"] is not None else []
    facts += [f"spread {row['spread']:.3g}"] if row["spread"] is not None else []
    facts += [crop(row["source"], 60)] if row["source"] is not None else []
    turns, left_out = _last_turns(prompt)
    return {
        "kept": row["kept"],
        "facts": ", ".join(facts),
        "margin": "-" if row["margin"] is None else f"{row['margin']:.4g}",
        "prompt": turns,
        "left_out": "Earlier turns are omitted." if left_out or row["cut"] else "",
        "response": {"role": "assistant", "content": _cut(response["content"], _MOST)},
        "where": f"{crop(row['file'], 100)}, {row['place']}, prompt {row['prompt_id']}",
    }


def _last_turns(prompt: Sequence[Json]) -> tuple[list[dict[str, str]], bool]:
    """Return the last turns that fit, at least the very last, and whether turns are missing."""
    room, turns = _MOST, list[dict[str, str]]()
    for turn in reversed(prompt):
        if turns and room <= 0:
            return turns[::-1], True
        turns.append({"role": turn["role"], "content": _cut(turn["content"], max(room, 1))})
        room -= len(turn["content"])
    return turns[::-1], False


def _cut(text: str, most: int) -> str:
    """Return the beginning of a text, and the number of characters left out."""
    if len(text) <= most:
        return sanitise(text)
    return f"{sanitise(text[:most])}… ({len(text) - most:,} more characters)"
