"""Survey of a corpus before it is scored: its numbers of rows and responses, and randomly drawn blocks of rows.

A small corpus is read whole. In a large one, Parquet footers give the number of rows (with more than `MOST_FOOTERS` files, a
random sample is opened), and blocks of consecutive rows are read at evenly spread places: the first rows of a Parquet row group,
of a compressed file or of a part of its rewritten copy, or, in plain JSONL, the rows after any byte.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import pyarrow.parquet as pq

from pipelines.commands.estimate.quantity import Quantity
from pipelines.commands.estimate.sampling_error import Block, sampled_total
from pipelines.corpus import InputFile, Row, Unit, UnreadableError, read_fragments, rewritten_copy, split_units
from pipelines.corpus.files import row_groups
from pipelines.corpus.jsonl import json_rows
from pipelines.corpus.unreadable import reading_input
from pipelines.plan import Plan
from pipelines.storage.files import REQUESTS_AT_ONCE, open_for_reading

WHOLE_BYTES = 64 * 2**20  # stored; a corpus up to this is read whole
WHOLE_FILES = 2_000
MOST_FOOTERS = 2_000
BLOCKS = 48
BLOCK_ROWS = 2_048
_SMALL_FILE = 4 * 2**20  # of plain JSONL; smaller files are read from the beginning
_COMPRESSED_BYTES = 2 * 2**20  # of a compressed file, read to estimate its number of rows
_COMPRESSED = 4  # assumed bytes of text per stored byte, for the decision whether to read all


class BlockOfRows(NamedTuple):
    """Consecutive rows of one file, and their place in it."""

    file: int
    unit: int
    fragment: int | None  # its number, if the block is exactly a fragment that a run would make
    measure: float  # rows of Parquet, bytes of JSONL
    rows: list[Row]

    @property
    def responses(self) -> int:
        return sum(len(row.parsed.responses) for row in self.rows)


@dataclass(frozen=True)
class Survey:
    """The size of a corpus and blocks of its rows. Blocks are parts of `measure`; if `whole`, the blocks are the corpus."""

    files: int
    rows: Quantity
    responses: Quantity
    measure: Quantity
    blocks: list[BlockOfRows]
    whole: bool
    footers: int = 0  # that were opened
    unreadable: int = 0  # files that were skipped by limits.skip_bad_files


def survey(plan: Plan, *, skip_bad_files: bool, seed: int) -> Survey:
    """Read the whole corpus, or a sample of it. Raises `InputError` for a file that cannot be read, unless these are skipped."""
    plan = replace(plan, files=tuple(map(without_missing_copy, plan.files)))
    stored = sum(file.size * (_COMPRESSED if file.codec else 1) for file in plan.files)
    if stored <= WHOLE_BYTES and len(plan.files) <= WHOLE_FILES:
        return _read_whole(plan, skip_bad_files=skip_bad_files)
    draw = random.Random(seed)
    if plan.files[0].kind == "parquet":
        return _sample_parquet(plan, draw, skip_bad_files=skip_bad_files)
    return _sample_json(plan, draw, skip_bad_files=skip_bad_files)


def without_missing_copy(file: InputFile) -> InputFile:
    """Return the file, without its rewritten copy if that has not been made."""
    return file if file.copy is None or rewritten_copy.is_whole(file.copy) else file._replace(copy=None)


def _read_whole(plan: Plan, *, skip_bad_files: bool) -> Survey:
    blocks: list[BlockOfRows] = []
    unreadable = 0
    for number, file in enumerate(plan.files):
        try:
            file_blocks = [
                BlockOfRows(number, unit.number, fragment.index, len(fragment.rows), fragment.rows)
                for unit in split_units(file)
                for fragment in plan.fragments(file, unit)
            ]
        except UnreadableError:
            if not skip_bad_files:
                raise
            unreadable += 1
            continue
        blocks += [block for block in file_blocks if block.rows]
    rows = Quantity.exact(sum(len(block.rows) for block in blocks))
    responses = Quantity.exact(sum(block.responses for block in blocks))
    return Survey(len(plan.files), rows, responses, rows, blocks, True, 0, unreadable)


class _Footer(NamedTuple):
    """Rows, responses and row groups of a file, from its Parquet footer."""

    file: int
    rows: int
    responses: int | None
    units: list[Unit]


def _read_footer(plan: Plan, number: int) -> _Footer:
    """Read the footer of a file.

    In a column of lists, responses are the values of its column chunks, and one for each empty list, as when rows are read; for
    lists inside lists, `responses` is None.
    """
    file = plan.files[number]
    with reading_input(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        meta, schema = parquet.metadata, parquet.schema
        units = row_groups(file, meta)
        name = plan.mapping.responses
        if name is None:
            return _Footer(number, meta.num_rows, meta.num_rows, units)
        leaves = [at for at in range(len(schema)) if schema.column(at).path.split(".")[0] == name]
        leaves = [at for at in leaves if schema.column(at).max_repetition_level <= 1]
        if not leaves:
            return _Footer(number, meta.num_rows, None, units)
        values = sum(meta.row_group(group).column(leaves[0]).num_values for group in range(meta.num_row_groups))
        return _Footer(number, meta.num_rows, values, units)


def _read_footers(plan: Plan, numbers: Sequence[int], *, skip_bad_files: bool) -> list[_Footer]:
    def read(number: int) -> _Footer | None:
        try:
            return _read_footer(plan, number)
        except UnreadableError:
            if not skip_bad_files:
                raise
            return None

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return [footer for footer in pool.map(read, numbers) if footer is not None]


def _sample_parquet(plan: Plan, draw: random.Random, *, skip_bad_files: bool) -> Survey:
    numbers = list(range(len(plan.files)))
    some = len(numbers) > MOST_FOOTERS
    opened = sorted(draw.sample(numbers, MOST_FOOTERS)) if some else numbers
    footers = _read_footers(plan, opened, skip_bad_files=skip_bad_files)
    sizes = Quantity.exact(sum(file.size for file in plan.files))
    if some:
        rows = sampled_total([_file_block(plan, footer, footer.rows) for footer in footers], sizes)
    else:
        rows = Quantity.exact(sum(footer.rows for footer in footers))
    units = [(footer.file, unit) for footer in footers for unit in footer.units if unit.end > unit.start]
    places = spread_evenly([unit.end - unit.start for _, unit in units], BLOCKS, draw)
    blocks, lost = _read_blocks(plan, [(*units[at], hits) for at, hits in places], skip_bad_files=skip_bad_files)
    counts = [footer.responses for footer in footers]
    if None in counts:
        responses = sampled_total([_known_block(block, block.responses) for block in blocks], rows)
    elif some:
        responses = sampled_total([_file_block(plan, footer, footer.responses or 0) for footer in footers], sizes)
    else:
        responses = Quantity.exact(sum(count or 0 for count in counts))
    files = len(plan.files)
    return Survey(files, rows, responses, rows, blocks, False, len(footers), len(opened) - len(footers) + lost)


def _sample_json(plan: Plan, draw: random.Random, *, skip_bad_files: bool) -> Survey:
    pieces = [(number, unit) for number, file in enumerate(plan.files) for unit in _readable_units(file)]
    sizes = [unit.input_bytes for _, unit in pieces]
    wanted: list[tuple[int, Unit, int]] = []
    for at, hits in spread_evenly(sizes, BLOCKS, draw):
        number, unit = pieces[at]
        file = plan.files[number]
        if file.compression is not None or file.size <= _SMALL_FILE:
            wanted.append((number, unit, hits))
            continue
        starts = [draw.randrange(file.size) for _ in range(hits)]
        wanted += [(number, Unit(0, start, file.size, file.size - start), 1) for start in starts]
    blocks, unreadable = _read_blocks(plan, wanted, skip_bad_files=skip_bad_files)
    measure = Quantity.exact(sum(sizes))
    rows = sampled_total([_known_block(block, len(block.rows)) for block in blocks], measure)
    responses = sampled_total([_known_block(block, block.responses) for block in blocks], measure)
    return Survey(len(plan.files), rows, responses, measure, blocks, False, 0, unreadable)


def _readable_units(file: InputFile) -> list[Unit]:
    """Return the units that can be read from their beginning: the file, or the parts of its rewritten copy."""
    return [Unit(0, 0, file.size, file.size)] if file.copy is None else split_units(file)


def _read_blocks(
    plan: Plan, wanted: Sequence[tuple[int, Unit, int]], *, skip_bad_files: bool
) -> tuple[list[BlockOfRows], int]:
    """Return the first blocks of each (file, unit, number of blocks), and the number of places that could not be read."""

    def read(place: tuple[int, Unit, int]) -> list[BlockOfRows] | None:
        try:
            return _first_blocks(plan, *place)
        except UnreadableError:
            if not skip_bad_files:
                raise
            return None

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        blocks = list(pool.map(read, wanted))
    return [block for of_place in blocks if of_place for block in of_place], blocks.count(None)


def _first_blocks(plan: Plan, number: int, unit: Unit, count: int) -> list[BlockOfRows]:
    """Return the first consecutive blocks of a unit, at most `count`."""
    file = plan.files[number]
    size = min(BLOCK_ROWS, plan.rows_per_fragment)
    fragments = read_fragments(file, unit, plan.mapping, rows_per_fragment=size, max_row_bytes=plan.max_row_bytes)
    of_a_run = size == plan.rows_per_fragment and (file.kind == "parquet" or file.copy is not None or unit.start == 0)
    per_row = _bytes_of_a_row(file, unit, plan.max_row_bytes) if file.compression else 0.0
    blocks = []
    for fragment in islice(fragments, count):
        if fragment.rows:
            rows = fragment.rows
            stored = len(rows) * per_row if file.compression else float(sum(row.row_bytes + 1 for row in rows))
            measure = float(len(rows)) if file.kind == "parquet" else stored
            index = fragment.index if of_a_run else None
            blocks.append(BlockOfRows(number, unit.number, index, measure, rows))
    return blocks


def _bytes_of_a_row(file: InputFile, unit: Unit, max_row_bytes: int) -> float:
    """Return the stored bytes per row of a compressed file, or of a unit of its rewritten copy.

    Only the first `_COMPRESSED_BYTES` of a file are read, up to the end of a decompressed chunk.
    """
    if file.copy is not None:
        return unit.input_bytes / max(1, unit.end - unit.start)
    rows = upto = 0
    for _, _, _, seen in json_rows(file, Unit(0, 0, file.size, file.size), max_row_bytes=max_row_bytes):
        if upto >= _COMPRESSED_BYTES and seen > upto:
            return upto / max(1, rows)
        rows, upto = rows + 1, seen
    return file.size / max(1, rows)


def spread_evenly(sizes: Sequence[int], count: int, draw: random.Random) -> Iterator[tuple[int, int]]:
    """Yield (index, hits) of the sizes hit by `count` points that are spread evenly over all sizes from a random start."""
    total = sum(sizes)
    if not total:
        return
    step = total / count
    at, end = draw.random() * step, 0
    for index, size in enumerate(sizes):
        end += size
        hits = 0
        while at < end:
            hits, at = hits + 1, at + step
        if hits:
            yield index, hits


def _file_block(plan: Plan, footer: _Footer, value: int) -> Block:
    """Return a whole file as a block, measured by its bytes."""
    return Block(float(plan.files[footer.file].size), 1, 0.0, [(0.0, float(value))])


def _known_block(block: BlockOfRows, value: int) -> Block:
    """Return a block whose value is known, not drawn."""
    return Block(block.measure, 1, 0.0, [(0.0, float(value))])
