"""Statistics of a sample of prompts and responses (lengths, responses per prompt, repetitions) and of its columns. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.corpus.columns.value_kinds import FirstRows, RowValues
from rm.conversations import TOOLS, Conversation, count_characters, prompt_key

Lengths = Callable[[Conversation, Sequence[str]], Sequence[tuple[int, int] | str]]
"""(prompt, responses) → for each response (tokens of the prompt, tokens of the response), or why it has no tokens."""


class PromptResponses(NamedTuple):
    """A prompt with the usable responses of one row."""

    prompt: Conversation
    responses: Sequence[str]


def distribution(values: Iterable[int]) -> dict[str, int] | None:
    """Return `median`, `p95` and `max`: the smallest values that 50 %, 95 % and all values do not exceed; None without values."""
    array = np.fromiter(values, dtype=np.int64)
    if not len(array):
        return None
    median, p95 = (int(np.percentile(array, share, method="inverted_cdf")) for share in (50, 95))
    return {"median": median, "p95": p95, "max": int(array.max())}


def response_statistics(rows: Sequence[PromptResponses]) -> dict[str, Any]:
    """Return statistics of usable rows; lengths are in characters, those of prompts over distinct prompts.

    `repeated_prompts` counts rows whose prompt occurs in an earlier row, `repeated_responses` responses that equal an earlier one
    to the same prompt.
    """
    prompts: dict[bytes, Conversation] = {}
    counts: Counter[bytes] = Counter()
    seen: set[tuple[bytes, str]] = set()
    repeated_prompts = 0
    for prompt, responses in rows:
        key = prompt_key(prompt)
        repeated_prompts += key in prompts
        prompts.setdefault(key, prompt)
        counts[key] += len(responses)
        seen.update((key, response) for response in responses)
    total = counts.total()
    return {
        "prompts": len(prompts),
        "responses": total,
        "prompts_with_system": sum(any(role == "system" for role, _ in prompt[:2]) for prompt in prompts.values()),
        "prompts_of_several_turns": sum(
            sum(role not in ("system", TOOLS) for role, _ in one) > 1 for one in prompts.values()
        ),
        "prompt_characters": distribution(
            sum(count_characters(content) for _, content in prompt) for prompt in prompts.values()
        ),
        "response_characters": distribution(
            count_characters(response) for _, responses in rows for response in responses
        ),
        "responses_per_prompt": distribution(counts.values()),
        "repeated_prompts": repeated_prompts,
        "repeated_responses": total - len(seen),
    }


def token_statistics(rows: Sequence[PromptResponses], lengths: Lengths, *, max_length: int) -> dict[str, Any]:
    """Return the lengths in tokens of responses with their prompts, and the number of pairs longer than `max_length`."""
    measured = [length for prompt, responses in rows for length in lengths(prompt, responses)]
    pairs = [length for length in measured if not isinstance(length, str)]
    over = sum(sum(pair) > max_length for pair in pairs)
    return {
        "max_length": max_length,
        "prompt": distribution(prompt for prompt, _ in pairs),
        "response": distribution(response for _, response in pairs),
        "together": distribution(map(sum, pairs)),
        "over_max_length": over,
        "over_max_length_fraction": over / len(pairs) if pairs else None,
        "rejected": dict(sorted(Counter(length for length in measured if isinstance(length, str)).items())),
    }


def column_statistics(
    names: Sequence[str], rows: Sequence[RowValues], roles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return, for every column, the kind of most of its values, the numbers of nulls and blank texts, and its role or None."""
    kinds = FirstRows(names, rows).kinds
    described = []
    for name in names:
        values = [row.get(name) for row in rows]
        described.append(
            {
                "name": name,
                "kind": kinds[name],
                "role": roles.get(name),
                "null": sum(value is None for value in values),
                "blank": sum(isinstance(value, str) and not value.strip() for value in values),
            }
        )
    return described
