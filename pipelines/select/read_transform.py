"""Reads score files into candidates by partition of the key space. All data needed before the shuffle are read here, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from apache_beam.pvalue import TaggedOutput

from pipelines.runtime.arrow_ipc import to_ipc
from pipelines.runtime.threaded_dofn import ThreadedCalls, ThreadedDoFn
from pipelines.score import score_files
from pipelines.score.exact_sum import ExactSum
from pipelines.score.ngram_hits import count_hits, hits_column
from pipelines.score.rejected import rejected_rows
from pipelines.score.score_files import ScoreFile
from pipelines.select.candidates import Candidates
from pipelines.select.columns import concatenate, keep_needed, pack, score_columns, scores_to_candidates, sizes_of
from pipelines.select.length_correction import HashSample
from pipelines.select.prefilter import shrink
from pipelines.select.selection import Selection, apply_early_steps
from pipelines.select.summary import FragmentFacts, SelectionSummary, StepCounts

_BLOCK_ROWS = 200_000  # partitioned at a time, at least, if there are as many partitions as these hold; 10 MB
_PART_ROWS = 1_000  # per partition in such a block, with fewer partitions
_HELD_ROWS = 5_000_000  # held per bundle before they are shuffled: 250 MB
_MOST_HELD = 0.7  # the share of `_HELD_ROWS` that may stay after a prefilter; with more, all are shuffled


class _FileContent(NamedTuple):
    """The content of one score file: the rows to partition, and all other outputs."""

    candidates: Candidates
    outputs: list[TaggedOutput]


class ReadScores(ThreadedDoFn):
    """Descriptor → (partition, candidates); also the facts of fragments and the rejected rows by input file, the schema of the
    input, and a summary."""

    def __init__(self, selection: Selection, with_schemas: bool) -> None:
        self._selection = selection
        self._with_schemas = with_schemas

    def waits_for_store(self) -> bool:
        return self._selection.on_object_store

    def start_bundle(self) -> None:
        super().start_bundle()
        self._jobs = ThreadedCalls()
        self._block: list[Candidates] = []
        self._held: dict[int, list[Candidates]] = {}  # by partition

    def work(self, data: bytes, _within_limits: Any, *sides: Any) -> _FileContent:
        descriptor, needs = ScoreFile.from_bytes(data), self._selection.reading
        footer = descriptor.footer
        columns = score_columns(needs)
        extra = ["row", "response_index", "reason"] if footer.rejected else ["row"] if self._with_schemas else []
        leaks = self._selection.leaks
        extra += map(hits_column, leaks)
        scores = score_files.read_joined(descriptor, list(dict.fromkeys([*columns, *extra])))
        everything = scores_to_candidates(scores, file=descriptor.file, unit=footer.unit, needs=needs)
        candidates, counts = apply_early_steps(everything, self._selection, sides, until=len(self._selection.steps))
        candidates = keep_needed(self._selection.early_parts.evaluate(candidates), self._selection.needs.read)
        outputs = [TaggedOutput("fragments", (descriptor.file, FragmentFacts.of(descriptor).to_bytes()))]
        if footer.rejected:
            rejected = to_ipc(rejected_rows(scores, footer.unit_start))
            outputs.append(TaggedOutput("rejected", (descriptor.file, rejected)))
        if self._with_schemas:
            place = (descriptor.file, footer.unit, footer.fragment)
            outputs.append(TaggedOutput("schemas", [(score_files.original_schema(scores), place)]))
        summary = _summary(everything, counts, self._selection)
        if leaks:
            summary.hits = count_hits(scores.filter(scores["reward"].is_valid()), leaks)
        outputs.append(TaggedOutput("summary", summary))
        return _FileContent(candidates, outputs)

    def collect(self, content: _FileContent) -> Iterator[Any]:
        yield from content.outputs
        self._block.append(content.candidates)
        if sum(map(len, self._block)) >= min(_BLOCK_ROWS, _PART_ROWS * self._selection.partitions):
            self._hold(self._jobs.put(_partition_block, self._block, self._selection))
            self._block = []
            if self._rows() > _HELD_ROWS:
                yield from self._make_room()

    def close(self) -> Iterator[Any]:
        self._hold(self._jobs.drain())
        if self._block:
            self._hold([_partition_block(self._block, self._selection)])
        yield from self._release()

    def _hold(self, blocks: Iterable[list[tuple[int, Candidates]]]) -> None:
        for block in blocks:
            for number, candidates in block:
                self._held.setdefault(number, []).append(candidates)

    def _rows(self) -> int:
        return sum(len(part) for parts in self._held.values() for part in parts)

    def _make_room(self) -> Iterator[tuple[int, bytes]]:
        """Prefilter the held rows, if a rule allows that, and release them if too many remain."""
        self._hold(self._jobs.drain())
        if self._selection.prefilter is not None:
            held, self._held = self._held, {}
            self._hold([[result] for result in self._for_each_partition(_combine, held)])
        if self._rows() > _MOST_HELD * _HELD_ROWS:
            yield from self._release()

    def _release(self) -> Iterator[tuple[int, bytes]]:
        held, self._held = self._held, {}
        yield from self._for_each_partition(_pack, held)

    def _for_each_partition(self, call: Any, held: dict[int, list[Candidates]]) -> Iterator[Any]:
        """The results of `call` for each partition; its rows are freed before the next partition."""
        for number in sorted(held):
            yield from self._jobs.put(call, number, held.pop(number), self._selection)
        yield from self._jobs.drain()


def _summary(everything: Candidates, counts: StepCounts, selection: Selection) -> SelectionSummary:
    sizes = sizes_of(everything, selection.needs)
    return SelectionSummary(
        candidates=len(everything),
        prompts=None if selection.early else 0,
        steps=counts,
        everything=ExactSum.of(everything.raw),
        size=int(sizes.sum(dtype=np.int64)),
        sample=HashSample.of(everything.with_columns(tokens=sizes, reward=everything.raw)),
    )


def _partition_block(parts: list[Candidates], selection: Selection) -> list[tuple[int, Candidates]]:
    return list(split_by_partition(concatenate(parts, selection.needs.read), selection))


def split_by_partition(candidates: Candidates, selection: Selection) -> Iterator[tuple[int, Candidates]]:
    """Split candidates by ranges of the key's high half: all responses to a prompt are in one partition."""
    high = candidates.key_high >> np.uint64(32)
    part = ((high * np.uint64(selection.partitions)) >> np.uint64(32)).astype(np.uint16)
    order = np.argsort(part, kind="stable")  # 16 bits: a radix sort
    counts = np.bincount(part, minlength=selection.partitions)
    ordered, end = candidates.take(order), 0
    for number in np.flatnonzero(counts).tolist():
        start, end = end, end + int(counts[number])
        yield number, ordered.slice(start, end)


def _combine(number: int, parts: list[Candidates], selection: Selection) -> tuple[int, Candidates]:
    whole = concatenate(parts, selection.needs.read)
    rule = selection.prefilter
    return number, whole if rule is None else shrink(whole, rule, needs=selection.needs)


def _pack(number: int, parts: list[Candidates], selection: Selection) -> tuple[int, bytes]:
    return number, pack(_combine(number, parts, selection)[1], selection.needs.read)
