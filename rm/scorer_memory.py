"""The memory of a scorer's batches, measured when a model is loaded, and the token budget that fits into free memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm.checkpoint.memory_check import free_bytes
from rm.engine.attention_plan import most_gathered
from rm.engine.device import refuse_broken
from rm.engine.layout import Segment
from rm.engine.memory import PROBED_TOKENS, BatchMemory, BatchSize, Peaks, measure_peaks
from rm.identity import ModelError
from rm.text.templates import Encoded
from rm.together import draw_rows

if TYPE_CHECKING:
    from rm.scorer import Scorer

log = logging.getLogger(__name__)


def fit_batches(scorer: Scorer, *, given: bool, share: int | None) -> None:
    """Lower the token budget to fit beside the weights, and into this process's `share` of the memory.

    If the budget was set by the user, raise `ModelError` instead.
    """
    try:
        memory = measure_memory(scorer)
    except Exception as error:  # a model that fails on random tokens may still score real texts
        refuse_broken(error, trial=True)
        log.debug("the memory of a batch is not known: %s", type(error).__name__)
        return
    size = largest_batch(scorer)
    needed = memory.bytes(size)
    # a batch passes through the devices one after the other
    left = (*map(free_bytes, scorer.devices), share)
    free = min((number for number in left if number is not None), default=None)
    if free is None or needed <= free:
        return
    tokens = memory.tokens_within(free, size)
    if tokens < 1 or given:
        remedy = f"set model.tokens_per_batch: {tokens}" if tokens > 0 else "use a larger one, or a 16-bit model.dtype"
        raise ModelError(
            f"batches of {scorer.tokens_per_batch:,} tokens need {needed:,} bytes beside the weights, and {free:,} are free on "
            f"{scorer.device}; {remedy}"
        )
    log.warning("batches are limited to %d tokens: %d bytes are free on %s", tokens, free, scorer.device)
    scorer.tokens_per_batch = tokens


def measure_memory(scorer: Scorer, sample: Encoded | None = None) -> BatchMemory:
    """Return the memory of a batch beside the weights, by forwards of parts of a sample, which is random tokens by default."""
    if sample is None:
        [sample] = draw_rows(scorer.model, scorer.template, [(1, 2 * PROBED_TOKENS)])

    def measure(lengths: Sequence[int], prefix: int) -> tuple[int, Peaks]:
        rows = []
        for number, length in enumerate(lengths):
            own = (sample.ids[number:] * 2)[: length - prefix] if prefix else sample.ids[-length:]
            types = None if sample.types is None else sample.types[-length:]
            rows.append(sample._replace(ids=[*sample.ids[:prefix], *own], types=types))
        batch = [[*range(len(rows))]] if prefix else [[row] for row in range(len(rows))]
        return scorer._cost(rows, batch), measure_peaks(lambda: scorer._forward(rows, batch))

    return BatchMemory.of(measure, longest=len(sample.ids), packed=scorer.packed, shares=scorer.gathers)


def largest_batch(scorer: Scorer) -> BatchSize:
    """Return the size of the largest possible batch: rows of the maximum length, on a GPU with long prefixes."""
    tokens = scorer.tokens_per_batch
    longest = min(scorer.template.max_length, tokens)
    if not scorer.packed:
        return BatchSize.padded(tokens, longest)
    size = BatchSize.packed([Segment(0, (longest,))]).times(tokens / longest)
    if not scorer.gathers:
        return size
    config = scorer.model.model.config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return size._replace(gathered=most_gathered(heads, key_heads, tokens))
