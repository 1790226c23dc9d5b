"""The texts of the scoring benchmark: groups of real responses, and groups of a given shape cut from real text.

Every text fits the model's limit: longer ones are truncated beforehand, since the tools would truncate them at different ends.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

Conversation = tuple[tuple[str, str], ...]
Group = tuple[Conversation, list[str]]
LEAST_ROOM_TOKENS = 32
"""A prompt that leaves less than this to its responses is left out."""


@dataclass(frozen=True)
class Texts:
    """Groups as the Scorer takes them, and each row as the tools are given it: one string, or an encoder's two."""

    groups: list[Group]
    rendered: list[tuple[str, str | None]]

    @classmethod
    def of(cls, groups: Iterable[Group], template: Any) -> Texts:
        kept = list(groups)
        return cls(kept, [template.render(prompt, response) for prompt, responses in kept for response in responses])

    def tokens(self, template: Any) -> int:
        """The number of tokens of all rows, each read whole."""
        rows = (template.encode(prompt, response) for prompt, responses in self.groups for response in responses)
        return sum(len(row.ids) for row in rows)

    def few(self) -> Texts:
        """Four rows of the first group, to warm up with."""
        prompt, responses = self.groups[0]
        return Texts([(prompt, responses[:4])], self.rendered[: min(4, len(responses))])


def best_of(path: Path, *, responses: int = 16) -> Iterator[Group]:
    """Yield prompts in random order, each with `responses` responses of random generators."""
    prompts = responses_by_prompt(path)
    rng = np.random.default_rng(0)
    for number in rng.permutation(len(prompts)):
        prompt, answers = prompts[number]
        if len(answers) >= responses:
            chosen = rng.choice(len(answers), responses, replace=False)
            yield (("user", prompt),), [answers[index] for index in chosen]


def responses_by_prompt(path: Path) -> list[tuple[str, list[str]]]:
    """Every prompt with its responses, in the order of the file's generators; empty ones left out."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["prompt", "response", "generator"]).sort_by("generator")
    prompts: dict[str, list[str]] = {}
    for prompt, response in zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True):
        if response.strip():
            prompts.setdefault(prompt, []).append(response)
    return sorted(prompts.items())


def pairs(path: Path) -> Iterator[Group]:
    """Yield HH-RLHF pairs in random order: the conversation before the answer, and the two answers to it."""
    from rm.conversations import UnusableError, from_hh, split_last

    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for number in np.random.default_rng(0).permutation(len(rows)):
        try:
            sides = [split_last(from_hh(rows[number][side])) for side in ("chosen", "rejected")]
        except UnusableError:
            continue
        if sides[0][0] == sides[1][0]:
            yield sides[0][0], [response for _, response in sides]


def synthetic(
    path: Path, template: Any, *, prompt_tokens: int, response_tokens: int, responses: int = 16
) -> Iterator[Group]:
    """Yield groups of one shape, of about so many tokens, cut one behind the other from the corpus' responses."""
    text = "\n\n".join(answers[0] for _, answers in responses_by_prompt(path))
    offsets = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = offsets["offset_mapping"]
    at = 0

    def cut(tokens: int) -> str:
        nonlocal at
        piece = text[spans[at][0] : spans[at + tokens - 1][1]]
        at += tokens
        return piece

    while at + prompt_tokens + responses * response_tokens <= len(spans):
        prompt = cut(prompt_tokens)
        yield (("user", prompt),), [cut(response_tokens) for _ in range(responses)]


def fitting(groups: Iterable[Group], template: Any, *, count: int, most_tokens: int = 2**20) -> list[Group]:
    """The first `count` groups of at most so many tokens, responses cut at their end to fit `template.max_length`; prompts
    that leave no room are left out."""
    kept = list(islice((fit for group in groups if (fit := _fit(group, template, most_tokens=most_tokens))), count))
    if len(kept) < count:
        sys.exit(
            f"only {len(kept)} of {count} groups fit {template.max_length} tokens; name a larger file (see --help)"
        )
    return kept


def _fit(group: Group, template: Any, *, most_tokens: int) -> Group | None:
    prompt, responses = group
    alone = template.encode(prompt, "x")
    room = template.max_length - len(alone.ids) - 4  # a cut text may take a few tokens more when it is tokenised again
    if alone.truncated or room < LEAST_ROOM_TOKENS:
        return None
    cut = [_cut(response, template.tokenizer, tokens=room) for response in responses]
    rows = [template.encode(prompt, response) for response in cut]
    if any(row.truncated for row in rows) or sum(len(row.ids) for row in rows) > most_tokens:
        return None
    return prompt, cut


def _cut(text: str, tokenizer: Any, *, tokens: int) -> str:
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(spans) <= tokens else text[: spans[tokens - 1][1]]
