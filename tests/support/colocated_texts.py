"""Texts as `score.colocate` shuffles them."""

from __future__ import annotations

from pipelines.score.colocation import Bundle, keys_of, prompt_text
from rm.conversations import from_prompt

Texts = list[tuple[str, str, int]]
"""Prompt, response, unit."""


def bundled(texts: Texts, bundles: int = 1) -> list[bytes]:
    parts = []
    for number in range(bundles):
        bundle = Bundle()
        for name, response, unit in texts[number::bundles]:
            prompt = prompt_text(from_prompt(name))
            bundle.add(prompt, [response], keys_of(prompt, [response]), unit=unit, input_bytes=2.5)
        parts.append(bundle.to_bytes())
    return parts
