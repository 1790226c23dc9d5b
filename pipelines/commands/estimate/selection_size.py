"""Sizes of a selection: bytes shuffled, responses kept and bytes written, if the model rejects no response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import zstandard

from pipelines.commands.estimate.quantity import Quantity, weakest
from pipelines.commands.estimate.survey import Survey
from pipelines.config import RunConfig, Step
from pipelines.score.minhash import VALUES
from pipelines.select.duplicates import BAND, NODE, needed_of, rule_of
from pipelines.select.selection import top_of

_KEPT_ROW_BYTES = 64  # of a row of the output in addition to its text: mostly its prompt's id
_TEXT_ROWS = 1_000  # compressed to measure the ratio

SHUFFLE_BYTES = 48  # a row, in a selection that needs whole prompts; see `pipelines.select.columns`


class CandidateCounts(NamedTuple):
    """Responses and prompts that reach a step of the selection."""

    responses: float
    prompts: float
    sizes: Mapping[int, float] | None = None
    """Prompts by number of responses; None if that is unknown, in which case the counts are upper bounds."""


def kept_responses(steps: Sequence[Step], counts: CandidateCounts) -> tuple[float, bool]:
    """Return (responses that the steps keep, whether that is exact rather than a bound), if nothing is rejected.

    A step that depends on more than the order of rewards is assumed to drop nothing, which makes the result a bound.
    """
    counts, known = _after(steps, counts)
    return counts.responses, known


def _after(steps: Sequence[Step], counts: CandidateCounts) -> tuple[CandidateCounts, bool]:
    """Return the counts that the steps keep, and whether they are exact."""
    known = counts.sizes is not None
    for step in steps:
        best, top = step.best_of_n, top_of(step)
        rule = best or step.random or step.longest
        if rule is not None:
            counts = _best_of_each(counts, rule.keep, least=1 if best is None else best.min_candidates)
            known = known and (best is None or not (best.min_margin or best.min_probability or best.distinct))
        elif top is not None:
            plain = top.per is None and top.tokens is None
            amount = float(top.target_rows(None, int(counts.responses))) if plain else counts.responses
            known = known and plain and step.diverse is None
            counts = CandidateCounts(amount, min(counts.prompts, amount))
        elif step.pairs is not None:
            counts, known = _best_of_each(counts, step.pairs.pairs_per_prompt or 1, least=2), False
        elif step.preferences is not None:
            counts, known = counts._replace(responses=counts.responses / 2, sizes=None), False
        elif step.length_correction is None:
            known = False
        known = known and (counts.sizes is not None or step is steps[-1])
    return counts, known


def shuffled_bytes(steps: Sequence[Step], counts: CandidateCounts) -> float:
    """Return an upper bound of the bytes that a selection shuffles, without signatures of texts that turn out to be similar.

    A step that compares texts shuffles all rows that reach it again, and for each text its reward and place twice, and the hashes
    of its bands.
    """
    total = SHUFFLE_BYTES * counts.responses
    for number, step in enumerate(steps):
        if step.compares_texts:
            rule, (reaching, _) = rule_of(step), _after(steps[:number], counts)
            texts = reaching.prompts if rule.of == "prompt" else reaching.responses
            bands = VALUES - needed_of(rule.similarity) + 1
            total += SHUFFLE_BYTES * reaching.responses + (2 * NODE.itemsize + bands * BAND.itemsize) * texts
    return total


def _best_of_each(counts: CandidateCounts, keep: int, *, least: int) -> CandidateCounts:
    """Return at most `keep` of each prompt that has at least `least` responses."""
    if counts.sizes is None:
        kept = min(counts.responses, counts.prompts * keep)
        return CandidateCounts(kept, min(counts.prompts, kept))
    sizes: dict[int, float] = {}
    for size, prompts in counts.sizes.items():
        if size >= least:
            sizes[min(size, keep)] = sizes.get(min(size, keep), 0.0) + prompts
    return CandidateCounts(sum(size * prompts for size, prompts in sizes.items()), sum(sizes.values()), sizes)


def selection_size(config: RunConfig, surveyed: Survey) -> dict[str, Any]:
    """Return the sizes of the selection, as `bestkept plan --json` lists them."""
    counts, responses = _count_candidates(surveyed), surveyed.responses
    kept, known = kept_responses(config.select, counts)
    basis = weakest("exact" if known else "at_most", responses.basis)
    text, compression = _response_bytes(surveyed)
    each = shuffled_bytes(config.select, counts) / counts.responses if counts.responses else SHUFFLE_BYTES
    sides = 2 if config.output.shape == "preference" else 1
    size = kept * (text * sides * compression + _KEPT_ROW_BYTES)
    return {
        "shuffle_bytes": Quantity(each * responses.value, 0.0, each * responses.high, "at_most"),
        "prompts": Quantity(counts.prompts, counts.prompts, counts.prompts, "exact" if counts.sizes else "at_most"),
        "kept": Quantity(kept, kept if basis == "exact" else 0.0, kept, basis),
        "output_bytes": Quantity(size, 0.0, size, weakest("sampled", basis)),
    }


def _count_candidates(surveyed: Survey) -> CandidateCounts:
    """Return usable responses and their prompts; in a sampled corpus, at most one prompt per row, minus repeats in the blocks."""
    usable: Counter[bytes] = Counter()
    rows = distinct = 0
    for block in surveyed.blocks:
        rows, distinct = rows + len(block.rows), distinct + len({row.group_key for row in block.rows})
        for row in block.rows if surveyed.whole else ():
            if row.group_key is not None:
                usable[row.group_key] += sum(text is not None for text in row.parsed.responses)
    if surveyed.whole:
        sizes = Counter(count for count in usable.values() if count)
        return CandidateCounts(
            float(usable.total()), float(sizes.total()), {size: float(n) for size, n in sizes.items()}
        )
    return CandidateCounts(surveyed.responses.value, surveyed.rows.value * distinct / max(1, rows), None)


def _response_bytes(surveyed: Survey) -> tuple[float, float]:
    """Return (bytes of a response with its prompt, their share after zstandard compression) for rows spread over the blocks."""
    texts: list[bytes] = []
    rows_per_block = max(1, _TEXT_ROWS // max(1, len(surveyed.blocks)))
    for block in surveyed.blocks:
        for row in block.rows[:: max(1, len(block.rows) // rows_per_block)]:
            if row.parsed.prompt is not None:
                prompt = "".join(content for _, content in row.parsed.prompt)
                texts += [(prompt + text).encode() for text in row.parsed.responses if text is not None]
    size = sum(map(len, texts))
    if not size:
        return 0.0, 1.0
    return size / len(texts), len(zstandard.compress(b"\n".join(texts), 3)) / size
