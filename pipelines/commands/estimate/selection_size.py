"""The size of what a selection shuffles and keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import zstandard

from pipelines.commands.estimate.quantity import Quantity, weakest
from pipelines.commands.estimate.survey import Survey
from pipelines.config import RunConfig, Step

_KEPT_ROW_BYTES = 64  # of a row of the output beside its text: its prompt's id, above all
_TEXT_ROWS = 1_000  # compressed, to see how small text gets

SHUFFLE_BYTES = 48  # a row, in a selection that needs whole prompts; see `pipelines.selection`


class CandidateCounts(NamedTuple):
    """What a step of the selection is given."""

    responses: float
    prompts: float
    sizes: Mapping[int, float] | None = (
        None  # prompts by how many responses they have; None: not known, and all is at most
    )


def kept_responses(steps: Sequence[Step], given: CandidateCounts) -> tuple[float, bool]:
    """(responses that the steps keep, whether that is exact rather than at most), if nothing is rejected.

    What depends on rewards beyond their order is taken to drop nothing: a bound.
    """
    known = given.sizes is not None
    for step in steps:
        best, top = step.best_of_n, step.top
        rule = best or step.random or step.longest
        if rule is not None:
            given = _best_of_each(given, rule.keep, least=1 if best is None else best.min_candidates)
            known = known and (best is None or not (best.min_margin or best.min_probability))
        elif top is not None:
            plain = top.per is None and top.tokens is None
            amount = float(top.target_rows(None, int(given.responses))) if plain else given.responses
            given, known = CandidateCounts(amount, min(given.prompts, amount)), known and plain
        elif step.pairs is not None:
            given, known = _best_of_each(given, 1, least=2), False
        elif step.length_correction is None:
            known = False
        known = known and (given.sizes is not None or step is steps[-1])
    return given.responses, known


def _best_of_each(given: CandidateCounts, keep: int, *, least: int) -> CandidateCounts:
    """At most `keep` of each prompt that has at least `least` responses."""
    if given.sizes is None:
        kept = min(given.responses, given.prompts * keep)
        return CandidateCounts(kept, min(given.prompts, kept))
    sizes: dict[int, float] = {}
    for size, prompts in given.sizes.items():
        if size >= least:
            sizes[min(size, keep)] = sizes.get(min(size, keep), 0.0) + prompts
    return CandidateCounts(sum(size * prompts for size, prompts in sizes.items()), sum(sizes.values()), sizes)


def selection_size(config: RunConfig, surveyed: Survey) -> dict[str, Any]:
    """What the selection shuffles and keeps, if the model rejects nothing."""
    given, responses = _count_candidates(surveyed), surveyed.responses
    kept, known = kept_responses(config.select, given)
    basis = weakest("exact" if known else "at_most", responses.basis)
    text, compression = _response_bytes(surveyed)
    sides = 2 if config.output.shape == "preference" else 1
    size = kept * (text * sides * compression + _KEPT_ROW_BYTES)
    return {
        "shuffle_bytes": Quantity(SHUFFLE_BYTES * responses.value, 0.0, SHUFFLE_BYTES * responses.high, "at_most"),
        "prompts": Quantity(given.prompts, given.prompts, given.prompts, "exact" if given.sizes else "at_most"),
        "kept": Quantity(kept, kept if basis == "exact" else 0.0, kept, basis),
        "output_bytes": Quantity(size, 0.0, size, weakest("sampled", basis)),
    }


def _count_candidates(surveyed: Survey) -> CandidateCounts:
    """Usable responses and their prompts; of a corpus that was not read whole, at most as many prompts as rows, less what
    repeats inside the blocks."""
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
    """(bytes of a response with its prompt, what of that zstandard leaves), of rows spread over the blocks."""
    texts: list[bytes] = []
    each = max(1, _TEXT_ROWS // max(1, len(surveyed.blocks)))
    for block in surveyed.blocks:
        for row in block.rows[:: max(1, len(block.rows) // each)]:
            if row.parsed.prompt is not None:
                prompt = "".join(content for _, content in row.parsed.prompt)
                texts += [(prompt + text).encode() for text in row.parsed.responses if text is not None]
    size = sum(map(len, texts))
    if not size:
        return 0.0, 1.0
    return size / len(texts), len(zstandard.compress(b"\n".join(texts), 3)) / size
