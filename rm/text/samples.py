"""Truncates tokenised samples that are longer than the model's limit.

Samples are truncated separately, or the prompt of several responses equally. The oldest turns of a prompt are dropped first,
then the left of the rest, then the end of a response. Two responses of 2 and 4 tokens to a prompt of 9, for a model that reads
10 tokens, separately and together:

    9 + 2, 9 + 4  →  8 + 2, 6 + 4
    9 + 2, 9 + 4  →  6 + 2, 6 + 4
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rm.conversations import TOOLS, Conversation, UnusableError
from rm.text.spans import Spans


class Encoded(NamedTuple):
    """One prompt and response as the model reads them: T tokens, `prompt_tokens + response_tokens`."""

    ids: list[int]  # [T]
    types: list[int] | None  # [T] token type ids, for the encoders that have them
    prompt_tokens: int  # including special and template tokens
    response_tokens: int
    truncated: bool
    left_out: frozenset[str] = frozenset()  # keys of messages, and `tools`, that the template does not render
    response_start: int = 0  # index of the response's first token


class TokenizedSample(NamedTuple):
    """A whole sample of any length, and the positions of its prompt and response."""

    encoded: Encoded
    spans: Spans


def without_oldest_turns(prompt: Conversation) -> Iterator[Conversation]:
    """Yield ever shorter prompts, each without one more of the oldest turns; tools and the system turn stay."""
    fixed = next((at for at, (role, _) in enumerate(prompt) if role not in (TOOLS, "system")), 0)
    for first in range(fixed + 1, len(prompt)):
        if prompt[first][0] != "tool":  # a result without its call
            yield (*prompt[:fixed], *prompt[first:])


def fit(
    sample: TokenizedSample, shorter: Iterable[TokenizedSample | UnusableError], *, max_length: int
) -> Encoded | UnusableError:
    """Return the first of the `shorter` forms of a sample that fits; if none does, the last one, truncated."""
    for form in shorter:
        if isinstance(form, UnusableError):
            continue  # a template may refuse to start with the assistant's turn; drop one turn more
        sample = form
        if len(sample.encoded.ids) <= max_length:
            return sample.encoded._replace(truncated=True)
    prompt = sample.spans.prompt_end - sample.spans.prompt_start
    return _cut(sample, min(len(sample.encoded.ids) - max_length, prompt), max_length=max_length)


def fit_together(
    samples: Sequence[TokenizedSample | UnusableError],
    shorter: Iterable[Sequence[TokenizedSample | UnusableError]],
    *,
    max_length: int,
) -> list[Encoded | UnusableError]:
    """Truncate the prompt of several responses equally, to leave room for the longest of them, up to half of `max_length`.

    `shorter` yields the same samples with shorter prompts. A response that still does not fit is cut at its end, so that one
    very long response does not remove the prompt of the others.
    """
    forms, is_cut = samples, False
    if _excess(samples, max_length) > 0:
        for form in shorter:
            pairs = zip(form, samples, strict=True)
            if any(isinstance(one, UnusableError) and not isinstance(whole, UnusableError) for one, whole in pairs):
                continue
            forms, is_cut = form, True
            if _excess(forms, max_length) <= 0:
                break
    excess = max(0, _excess(forms, max_length))
    spans = [one.spans for one in forms if not isinstance(one, UnusableError)]
    from_prompt = min([excess, *(span.prompt_end - span.prompt_start for span in spans)])
    fitted: list[Encoded | UnusableError] = []
    for one in forms:
        if isinstance(one, UnusableError):
            fitted.append(one)
        elif from_prompt or len(one.encoded.ids) > max_length:
            fitted.append(_cut(one, from_prompt, max_length=max_length))
        else:
            fitted.append(one.encoded._replace(truncated=True) if is_cut else one.encoded)
    return fitted


def _excess(samples: Sequence[TokenizedSample | UnusableError], max_length: int) -> int:
    """Count the tokens by which the longest sample does not fit, responses counted up to half of `max_length`."""
    rows = [one.encoded for one in samples if not isinstance(one, UnusableError)]
    return max((row.prompt_tokens + min(row.response_tokens, max_length // 2) for row in rows), default=0) - max_length


def _cut(sample: TokenizedSample, from_prompt: int, *, max_length: int) -> Encoded | UnusableError:
    """Drop tokens at the left of the prompt's last turn, then at the end of the response."""
    encoded, spans = sample
    from_response = max(0, len(encoded.ids) - from_prompt - max_length)
    if from_response > spans.response_end - spans.response_start:
        return UnusableError("too_long")  # the template alone is longer than the model
    cuts = (
        slice(spans.prompt_start, spans.prompt_start + from_prompt),
        slice(spans.response_end - from_response, spans.response_end),
    )
    ids, types = list(encoded.ids), None if encoded.types is None else list(encoded.types)
    for cut in sorted(cuts, key=lambda piece: -piece.start):
        del ids[cut]
        if types is not None:
            del types[cut]
    prompt_tokens, response_tokens = encoded.prompt_tokens - from_prompt, encoded.response_tokens - from_response
    start = encoded.response_start - from_prompt
    return Encoded(ids, types, prompt_tokens, response_tokens, True, encoded.left_out, start)
