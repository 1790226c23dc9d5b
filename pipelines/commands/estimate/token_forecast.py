"""Forecast of the tokens that one model reads and computes for a surveyed corpus, and of the savings by sharing.

Rows are drawn at random and read with the model's own tokenizer and template.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipelines.commands.estimate.quantity import Quantity, product_of, total_of
from pipelines.commands.estimate.sampling_error import Block, sampled_total, whole_total
from pipelines.commands.estimate.scored_so_far import ScoredSoFar
from pipelines.commands.estimate.survey import BlockOfRows, Survey
from pipelines.corpus import Row
from pipelines.corpus.fragments import PromptGroup, groups_of
from pipelines.errors import ModelLoadError
from pipelines.plan import Plan
from pipelines.storage.models import small_directory

if TYPE_CHECKING:
    from rm.dry_run import DryRun


SAMPLE_RESPONSES = 4_096
SHARING_BLOCKS = 4
_SHARING_RESPONSES = 4_096  # of one block
_CHARACTERS_PER_TOKEN = 4


class Forecast(NamedTuple):
    """Numbers of tokens and responses for one model; `left` in a name means the unscored part."""

    scored: ScoredSoFar
    left_responses: Quantity
    tokens: Quantity  # of the corpus, every response with its prompt, as the manifest counts them
    left_tokens: Quantity
    left_computed: Quantity
    computed_share: Quantity  # tokens computed per token of a response with its prompt
    sampled_responses: int  # whose tokens were counted


def load_dry_run(plan: Plan, *, device: str | None) -> DryRun:
    """Return the plan's model without its weights, for `device` (cpu or cuda; None for that of this machine).

    Raises `ModelLoadError`.
    """
    from rm.dry_run import DryRun, ModelError
    from rm.scores import Outputs

    try:
        return DryRun.of(
            small_directory(plan.model),
            max_length=plan.model["max_length"],
            too_long=plan.model["too_long"],
            tokens_per_batch=plan.model["tokens_per_batch"],
            device=device,
            outputs=Outputs.of(plan.model.get("outputs")),
        )
    except ModelError as error:
        raise ModelLoadError(str(error)) from error


def forecast_tokens(plan: Plan, surveyed: Survey, dry_run: DryRun, scored: ScoredSoFar, *, seed: int) -> Forecast:
    """Return the tokens of the corpus and of its unscored part, from score files and from rows drawn from the rest."""
    draw = random.Random(seed)
    waiting = unscored_blocks(plan, surveyed, scored)
    left = surveyed.responses
    if scored.responses.value:
        below, above = surveyed.responses.low - scored.responses.high, surveyed.responses.high - scored.responses.low
        value = max(0.0, surveyed.responses.value - scored.responses.value)
        left = Quantity(value, max(0.0, below), max(0.0, above), left.basis if scored.whole else "sampled")
    if not waiting or not left.high:
        nothing = Quantity.exact(0.0)
        return Forecast(scored, nothing, scored.tokens, nothing, nothing, Quantity.exact(1.0), 0)
    blocks, sampled = sample_tokens(waiting, dry_run, draw)
    if surveyed.whole and scored.whole:
        left_tokens = whole_total(blocks)
    else:
        responses = sum(block.responses for block in waiting)
        measured = [block._replace(measure=rows.responses) for block, rows in zip(blocks, waiting, strict=True)]
        left_tokens = sampled_total(measured, left) if responses else Quantity.exact(0.0)
    share = computed_share(waiting, dry_run, draw)
    computed = product_of(left_tokens, share)
    tokens = total_of([scored.tokens, left_tokens])
    return Forecast(scored, left, tokens, left_tokens, computed, share, sampled)


def unscored_blocks(plan: Plan, surveyed: Survey, scored: ScoredSoFar) -> list[BlockOfRows]:
    """Return the blocks that have no valid score file, among those whose score files were read."""
    return [
        block
        for block in surveyed.blocks
        if (plan.files[block.file].key, block.unit, block.fragment) not in scored.places
    ]


def sample_tokens(waiting: Sequence[BlockOfRows], dry_run: DryRun, draw: random.Random) -> tuple[list[Block], int]:
    """Return the blocks with the tokens of rows drawn proportionally from each, and the number of responses counted."""
    rows = sum(len(block.rows) for block in waiting)
    responses = sum(block.responses for block in waiting)
    share = min(1.0, SAMPLE_RESPONSES / max(1, responses))
    limit = _CHARACTERS_PER_TOKEN * dry_run.template.max_length
    drawn, blocks, sampled = [], [], 0
    for block in waiting:
        count = min(len(block.rows), max(2, math.ceil(share * len(block.rows))))
        drawn.append(draw.sample(block.rows, count) if rows > count or share < 1 else block.rows)
    for block, rows_drawn in zip(waiting, drawn, strict=True):
        pairs = [(float(text_size(row, limit)), 0.0) for row in rows_drawn]
        usable = [at for at, row in enumerate(rows_drawn) if row.parsed.prompt is not None]
        counted, _ = dry_run.count(groups_of(rows_drawn))
        for at, tokens in zip(usable, counted, strict=True):
            pairs[at] = (pairs[at][0], float(tokens.sum()))
            sampled += len(tokens)
        size = float(sum(text_size(row, limit) for row in block.rows))
        blocks.append(Block(block.measure, len(block.rows), size, pairs))
    return blocks, sampled


def text_size(row: Row, limit: int) -> int:
    """Return the characters of a row's responses, each with its prompt and up to `limit`, at which the model stops reading."""
    if row.parsed.prompt is None:
        return 0
    prompt = sum(len(content) for _, content in row.parsed.prompt)
    return sum(min(limit, prompt + len(text)) for text in row.parsed.responses if text is not None)


def computed_share(waiting: Sequence[BlockOfRows], dry_run: DryRun, draw: random.Random) -> Quantity:
    """Return the tokens that go through the model for each token of a response with its prompt.

    Shared prompts and equal texts are computed once; padding counts. The value comes from a few whole fragments, and the interval
    from their differences.
    """
    of_runs = [block for block in waiting if block.fragment is not None] or list(waiting)
    chosen = draw.sample(of_runs, min(SHARING_BLOCKS, len(of_runs)))
    counts: list[Block] = []
    for block in chosen:
        counted, work = dry_run.count(_first_groups(groups_of(block.rows), _SHARING_RESPONSES))
        tokens_read = sum(float(tokens.sum()) for tokens in counted)
        if tokens_read:
            counts.append(Block(tokens_read, 1, 0.0, [(0.0, float(work.computed_tokens))]))
    read = sum(block.measure for block in counts)
    if not read:
        return Quantity.exact(1.0)
    if len(chosen) == len(waiting):
        return Quantity.exact(sum(work for block in counts for _, work in block.pairs) / read)
    rows = sum(len(block.rows) for block in waiting) / sum(len(block.rows) for block in chosen)
    share = sampled_total(counts, Quantity.exact(read * rows)).times(1 / (read * rows))
    most = max(1.0, share.value) if dry_run.packed else share.high  # no token is computed twice, except padding
    return Quantity(share.value, max(share.low, share.value / 2), min(share.high, most), "sampled")


def _first_groups(groups: Sequence[PromptGroup], responses: int) -> list[PromptGroup]:
    """Return the first groups, up to `responses` responses."""
    kept: list[PromptGroup] = []
    for prompt, texts in groups:
        if responses <= 0:
            break
        kept.append((prompt, texts[:responses]))
        responses -= len(texts)
    return kept
