"""Estimate of the savings by `score.colocate`, from the rows that the survey has read.

The prompts with the smallest hashes are a random sample of prompts, each with all its responses from anywhere in the corpus. They
are also the prompts that a run with `score.colocate` scores first, so they are counted in the pieces of such a run. If the corpus
was not read whole, the count is a bound, since unread responses are missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.commands.estimate.quantity import Quantity, product_of
from pipelines.commands.estimate.sampling_error import Block, sampled_total
from pipelines.commands.estimate.survey import BlockOfRows
from pipelines.commands.estimate.token_forecast import Forecast
from pipelines.corpus.fragments import PromptGroup, groups_of
from pipelines.score.colocation import keys_of, prompt_text
from rm.conversations import Conversation

if TYPE_CHECKING:
    from rm.dry_run import DryRun

_PIECES = 4  # the most pieces that are counted


class ColocationGain(NamedTuple):
    """Tokens that the model would compute for the remaining rows, without and with `score.colocate`, and which is configured."""

    without: Quantity
    colocated: Quantity
    configured: bool

    def to_json(self) -> dict[str, Any]:
        gain = self.without.value / self.colocated.value if self.colocated.value else 1.0
        ways = {"off_computed_tokens": self.without, "prompt_computed_tokens": self.colocated}
        return {"configured": "prompt" if self.configured else None, **ways, "gain": gain}


def with_colocation(
    forecast: Forecast,
    waiting: Sequence[BlockOfRows],
    dry_run: DryRun,
    *,
    whole: bool,
    responses: int,
    colocated: bool,
) -> tuple[Forecast, ColocationGain | None]:
    """Return the forecast under the configured setting, and the gain; None if nothing remains, or the model shares no prompts.

    `responses` is the largest size of a piece; `whole` is True if `waiting` is the whole unscored part.
    """
    if not (dry_run.packed and dry_run.model.causal and forecast.left_tokens.high):
        return forecast, None
    share = colocated_share(waiting, dry_run, whole=whole, responses=responses, apart=forecast.computed_share)
    gain = ColocationGain(forecast.left_computed, product_of(forecast.left_tokens, share), colocated)
    if colocated:
        forecast = forecast._replace(left_computed=gain.colocated, computed_share=share)
    return forecast, gain


def colocated_share(
    waiting: Sequence[BlockOfRows], dry_run: DryRun, *, whole: bool, responses: int, apart: Quantity
) -> Quantity:
    """Return the tokens that go through the model for each token of a response with its prompt, if prompts are scored together.

    `apart` is the same share for responses scored in file order, and the result if no prompt is in two blocks. From a sample, the
    ratio of the two is estimated on the same prompts: it varies less from prompt to prompt than either.
    """
    places: dict[Conversation, dict[int, list[str]]] = {}
    for number, block in enumerate(waiting):
        for prompt, texts in groups_of(block.rows):
            places.setdefault(prompt, {}).setdefault(number, []).extend(texts)
    if all(len(parts) == 1 for parts in places.values()):
        return apart if whole else Quantity(apart.value, 0.0, apart.high, "at_most")
    prompts = sorted((keys_of(prompt_text(prompt), [""])[0], prompt) for prompt in places)
    ordered = [(prompt, list(itertools.chain.from_iterable(places[prompt].values()))) for _, prompt in prompts]
    pieces = list(cut_pieces(ordered, responses=responses))
    chosen = pieces[:_PIECES]
    counts = [dry_run.count(piece) for piece in chosen]
    joined = [float(work.computed_tokens) for _, work in counts]
    read = sum(float(tokens.sum()) for counted, _ in counts for tokens in counted)
    if not read:
        return apart
    if whole and len(chosen) == len(pieces):
        return Quantity.exact(sum(joined) / read)
    lying = [_count_apart(piece, places, dry_run) for piece in chosen]
    blocks = [Block(alone, 1, 0.0, [(0.0, once)]) for alone, once in zip(lying, joined, strict=True) if alone]
    if not whole:
        ratio = sum(joined) / max(1.0, sum(lying))
        return Quantity(apart.value * min(1.0, ratio), 0.0, apart.high, "at_most")
    measure = sum(lying) * len(pieces) / len(chosen)
    return product_of(apart, sampled_total(blocks, Quantity.exact(measure)).times(1 / measure))


def _count_apart(
    piece: Sequence[PromptGroup], places: Mapping[Conversation, Mapping[int, list[str]]], dry_run: DryRun
) -> float:
    """Return the tokens computed for a piece's texts if each block is scored separately."""
    blocks: dict[int, list[PromptGroup]] = {}
    for prompt, texts in piece:
        chosen = set(texts)
        for number, block_texts in places[prompt].items():
            blocks.setdefault(number, []).append((prompt, [text for text in block_texts if text in chosen]))
    return sum(float(dry_run.count(groups)[1].computed_tokens) for groups in blocks.values())


def cut_pieces(groups: Sequence[PromptGroup], *, responses: int) -> Iterator[list[PromptGroup]]:
    """Yield prompts with all their responses, cut as `score.colocation.split_texts` cuts: by the number of different responses.

    Equal responses stay together.
    """
    piece: list[PromptGroup] = []
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
