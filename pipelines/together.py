"""What `score.colocate` would save, told before anything is scored: `bestkept plan`'s estimate from the rows it has looked at.

Of all rows that were read, those of the prompts whose hash is smallest are a sample of prompts, drawn at random and each with all
its responses, wherever they lie. They are also what a run with `score.colocate` scores first, so they are counted in its very
pieces. Of a corpus that was not read whole, responses in places that nobody looked at are missing: then the count is a bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.colocated import keys_of, prompt_text
from pipelines.estimate import Block, Quantity, product_of, sampled_total
from pipelines.forecast import Forecast, Group, groups_of
from pipelines.survey import BlockOfRows
from rm.conversations import Conversation

if TYPE_CHECKING:
    from rm.forecast import Forecaster

_PIECES = 4  # that are counted


class Together(NamedTuple):
    """Tokens that the model would compute of what is left, and which of the two ways is configured."""

    apart: Quantity
    together: Quantity
    colocated: bool

    def to_json(self) -> dict[str, Any]:
        gain = self.apart.value / self.together.value if self.together.value else 1.0
        ways = {"off_computed_tokens": self.apart, "prompt_computed_tokens": self.together}
        return {"configured": "prompt" if self.colocated else None, **ways, "gain": gain}


def told_together(
    found: Forecast,
    waiting: Sequence[BlockOfRows],
    forecaster: Forecaster,
    *,
    whole: bool,
    responses: int,
    colocated: bool,
) -> tuple[Forecast, Together | None]:
    """The forecast of the way that is configured, and both ways; None where nothing is left, or the model shares no prompts.

    `responses` is the most of a piece, `whole` whether `waiting` is all that is left.
    """
    if not (forecaster.packed and forecaster.model.causal and found.left_tokens.high):
        return found, None
    share = computed_together(waiting, forecaster, whole=whole, responses=responses, apart=found.computed_share)
    both = Together(found.left_computed, product_of(found.left_tokens, share), colocated)
    if colocated:
        found = found._replace(left_computed=both.together, computed_share=share)
    return found, both


def computed_together(
    waiting: Sequence[BlockOfRows], forecaster: Forecaster, *, whole: bool, responses: int, apart: Quantity
) -> Quantity:
    """Tokens that go through the model by token that its responses have with their prompts, were all responses to a prompt scored
    together. `apart` is the same as they lie, and holds where no prompt is in two places."""
    places: dict[Conversation, list[list[str]]] = {}
    for block in waiting:
        own: dict[Conversation, list[str]] = {}
        for prompt, texts in groups_of(block.rows):
            own.setdefault(prompt, []).extend(texts)
        for prompt, texts in own.items():
            places.setdefault(prompt, []).append(texts)
    if all(len(parts) == 1 for parts in places.values()):
        return apart if whole else Quantity(apart.value, 0.0, apart.high, "at_most")
    prompts = sorted((keys_of(prompt_text(prompt), [""])[0], prompt) for prompt in places)
    ordered = [(prompt, list(itertools.chain.from_iterable(places[prompt]))) for _, prompt in prompts]
    counts: list[Block] = []
    pieces = list(in_pieces(ordered, responses=responses))
    for piece in pieces[:_PIECES]:
        counted, work = forecaster.count(piece)
        asked = sum(float(tokens.sum()) for tokens in counted)
        if asked:
            counts.append(Block(asked, 1, 0.0, [(0.0, float(work.computed_tokens))]))
    asked = sum(block.measure for block in counts)
    if not asked:
        return apart
    value = sum(computed for block in counts for _, computed in block.pairs) / asked
    if not whole:
        return Quantity(min(value, apart.value), 0.0, apart.high, "at_most")
    if len(pieces) <= _PIECES:
        return Quantity.exact(value)
    scale = asked * len(pieces) / len(counts)
    share = sampled_total(counts, Quantity.exact(scale)).times(1 / scale)
    return Quantity(share.value, share.low, min(share.high, max(1.0, share.value)), "sampled")


def in_pieces(groups: Sequence[Group], *, responses: int) -> Iterator[list[Group]]:
    """Prompts with all their responses, cut as `colocated.pieces` cuts them: by how many different responses there are. Equal
    ones stay together."""
    piece: list[Group] = []
    size = 0
    for prompt, texts in groups:
        different = list(dict.fromkeys(texts))
        if size and size + len(different) > responses:
            yield piece
            piece, size = [], 0
        for start in range(0, len(different), responses):
            chosen = set(different[start : start + responses])
            piece.append((prompt, [text for text in texts if text in chosen]))
            size += len(chosen)
            if start + responses < len(different):
                yield piece
                piece, size = [], 0
    if piece:
        yield piece
