"""Reads kept responses again, and checks that each is the text that was scored. No Beam."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines.corpus import InputFile, Row, Unit, read_rows, split_units
from pipelines.errors import InputError
from pipelines.export.output_columns import KeptResponse
from pipelines.plan import Plan
from pipelines.select.candidates import Candidates
from rm.conversations import response_hash

RejectedTexts = Mapping[tuple[int, int, int], str]
"""Prompt key (high, low) and content hash of a rejected response → its text."""


def read_kept(
    plan: Plan,
    file: InputFile,
    unit: Unit,
    wanted: Candidates,
    rejected: RejectedTexts,
    *,
    more_columns: Sequence[str] | None,
) -> Iterator[KeptResponse]:
    """The kept responses of one unit, in place order (`wanted` is sorted so).

    Raises `InputError` if a prompt or a response is not the one that was scored: prompts are identified by 128 bits of hash,
    responses by 64 bits.
    """
    highs, lows, hashes = wanted.key_high.tolist(), wanted.key_low.tolist(), wanted.response_hash.tolist()
    responses, rewards = wanted.response.tolist(), wanted.raw.tolist()
    ranks, margins, others = wanted.rank.tolist(), wanted.margin.tolist(), wanted.other_raw.tolist()
    other_hashes, flipped = wanted.other_hash.tolist(), (wanted.response > wanted.other_response).tolist()
    for at, row in _rows(plan, file, unit, wanted, more_columns=more_columns):
        key = highs[at] << 64 | lows[at]
        if row.group_key != key.to_bytes(16, "big") or not _is(row, responses[at], hashes[at]):
            raise input_changed(file)
        margin = None if np.isnan(margins[at]) else margins[at]
        text = rejected.get((highs[at], lows[at], other_hashes[at]), "")
        kept = KeptResponse(row, responses[at], rewards[at], f"{key:032x}", ranks[at], margin, text, others[at])
        yield kept._replace(flipped=flipped[at])


def read_rejected(plan: Plan, file_number: int, wanted: Candidates) -> Iterator[tuple[int, int, int, str]]:
    """(key high, key low, content hash, text) of the rejected responses of pairs, whose places (`other_...`) lie in this file."""
    file = plan.files[file_number]
    units = {unit.number: unit for unit in split_units(file)}
    for number in np.unique(wanted.other_unit):
        if int(number) not in units:
            raise input_changed(file)
        part = wanted.take(wanted.other_unit == number)
        part = part.with_columns(row=part.other_row, response=part.other_response, response_hash=part.other_hash)
        part = part.take(np.lexsort((part.response, part.row)))
        for at, row in _rows(plan, file, units[int(number)], part, more_columns=()):
            index, content = int(part.response[at]), int(part.response_hash[at])
            if not _is(row, index, content):
                raise input_changed(file)
            yield int(part.key_high[at]), int(part.key_low[at]), content, row.parsed.responses[index] or ""


def input_changed(file: InputFile) -> InputError:
    return InputError(
        f"input file {file.path} has changed since it was scored; restore it, or choose another output.path and run again: "
        "unchanged fragments are not scored again"
    )


def _rows(
    plan: Plan, file: InputFile, unit: Unit, wanted: Candidates, *, more_columns: Sequence[str] | None
) -> Iterator[tuple[int, Row]]:
    """(position in `wanted`, its row); several positions may share a row."""
    numbers, starts = np.unique(wanted.row, return_index=True)
    ends = [*starts[1:], len(wanted)]
    rows = read_rows(file, unit, plan.mapping, numbers, more_columns=more_columns, max_row_bytes=plan.max_row_bytes)
    found = 0
    for row, start, end in zip(rows, starts, ends, strict=False):
        found += 1
        for at in range(start, end):
            yield at, row
    if found != len(numbers):
        raise input_changed(file)


def _is(row: Row, index: int, expected: int) -> bool:
    texts = row.parsed.responses
    text = texts[index] if index < len(texts) else None
    return text is not None and response_hash(text) == expected
