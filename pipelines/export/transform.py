"""Export reads the rows of kept responses again, checks that they are the scored ones, and writes deterministic shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import AsIter, AsSingleton

from pipelines.corpus import is_seekable, original_columns, unit_of
from pipelines.errors import InputError, carrying_errors, join_names
from pipelines.export.hf_features import memory_bytes
from pipelines.export.kept_columns import is_plain, read_tables, text_bytes
from pipelines.export.kept_rows import RejectedTexts, input_changed, read_kept, read_rejected
from pipelines.export.output_columns import Shape, schema_of, to_table
from pipelines.export.shards import OutputShard, SplitPlans, plan_shards, rows_at_once, rows_within
from pipelines.export.train_test_split import Split
from pipelines.plan import Plan, plan_at
from pipelines.runtime import progress
from pipelines.runtime.arrow_ipc import Tag, from_ipc, to_ipc
from pipelines.runtime.threaded_dofn import read_ahead
from pipelines.runtime.transforms import Gather, PCollection
from pipelines.select.candidates import Candidates
from pipelines.select.columns import KeptUnit, Needs, pack, unpack
from pipelines.select.summary import FragmentFacts
from pipelines.storage.owner import Owner

_ROWS_AT_ONCE = 2048
_TABLES_AHEAD = 2  # of each unit that is read; up to 32 MB each
_ROW_GROUP_BYTES = 32 * 2**20  # of text; readers expect 100 MB at most, and three are in memory
_TEXTS = pa.schema(
    [("key_high", pa.uint64()), ("key_low", pa.uint64()), ("hash", pa.uint64()), ("text", pa.large_string())]
)


FragmentPlace = tuple[int, int, int]  # file, unit, fragment
_Part = tuple[int, bytes]  # of a job: rows or texts, as the tag says
_KEPT, _TEXT = Tag(b"k"), Tag(b"t")


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Export(beam.PTransform):  # type: ignore[misc]
    """{kept: KeptUnit, files, schemas} → `OutputShard`s, published."""

    plan_path: str
    owner: Owner
    shape: Shape
    needs: Needs
    split: Split
    rows_per_shard: int
    bytes_per_shard: int

    def expand(self, selected: dict[str, Any]) -> PCollection[Any]:
        shards = self._plan_shards(selected["kept"], selected["files"])
        schemas: Any = []
        if self.shape.has_input_columns:
            schemas = AsSingleton(selected["schemas"] | "ListSchemas" >> Gather(merge_schema_places))
        jobs = shards | "ListJobs" >> beam.FlatMap(list_jobs).with_output_types(_Part)
        deal = beam.FlatMap(deal_kept, self.needs, self.split, AsSingleton(shards)).with_output_types(_Part)
        pieces = selected["kept"] | "DealKept" >> deal
        parts = [pieces, jobs] + ([self._fetch_rejected(pieces)] if self.needs.other else [])
        grouped = parts | "AllParts" >> beam.Flatten() | "GroupByJob" >> beam.GroupByKey()
        write = WriteShards(self.plan_path, self.owner, self.shape, self.needs)
        return grouped | "WriteShards" >> beam.ParDo(write, AsSingleton(shards), schemas)

    def _plan_shards(
        self, kept: PCollection[KeptUnit], files: PCollection[tuple[int, list[FragmentFacts]]]
    ) -> PCollection[SplitPlans]:
        counts = kept | "CountKept" >> beam.Map(count_kept, self.needs, self.split)
        bounds = (self.rows_per_shard, self.bytes_per_shard)
        plan = beam.Map(make_shard_plans, self.plan_path, self.split, bounds, AsIter(counts), AsIter(files))
        return kept.pipeline | "Once" >> beam.Impulse() | "PlanShards" >> plan

    def _fetch_rejected(self, pieces: PCollection[_Part]) -> PCollection[_Part]:
        """The rejected responses of pairs that are in another file than their chosen ones."""
        find = beam.FlatMap(find_rejected_elsewhere, self.needs).with_output_types(tuple[int, _Part])
        fetch = beam.ParDo(FetchRejected(self.plan_path, self.needs)).with_output_types(_Part)
        wanted = pieces | "FindRejected" >> find | "GroupRejects" >> beam.GroupByKey()
        return wanted | "FetchRejected" >> fetch


def count_kept(kept: KeptUnit, needs: Needs, split: Split) -> tuple[int, int, list[int]]:
    """(file, unit, kept responses of each split)"""
    return kept.file, kept.unit, [*map(len, split.parts(unpack([kept.kept], needs)))]


def make_shard_plans(
    _impulse: bytes,
    plan_path: str,
    split: Split,
    bounds: tuple[int, int],
    counts: Iterable[tuple[int, int, list[int]]],
    files: Iterable[tuple[int, list[FragmentFacts]]],
) -> SplitPlans:
    """Shards of at most `bounds` rows and bytes of text; the bytes are those of the mean row of its file."""
    rows_per_shard, bytes_per_shard = bounds
    with carrying_errors():
        streamed = [not is_seekable(file) for file in plan_at(plan_path).files]
    kept = dict.fromkeys(range(len(streamed)), 0)
    counts = list(counts)
    for file, _, parts in counts:
        kept[file] += sum(parts)
    kept_bytes, at_once = 0, {}
    message_keys: set[str] = set()
    for file, fragments in files:
        text = sum(fragment.text_bytes for fragment in fragments)
        responses = sum(fragment.responses for fragment in fragments)
        kept_bytes += kept[file] * text // max(1, responses)
        message_keys.update(*(fragment.message_keys for fragment in fragments))
        at_once[file] = rows_at_once((fragment.unit, fragment.fragment, fragment.rows) for fragment in fragments)
    progress.begin_export(sum(kept.values()))
    rows = rows_within(bytes_per_shard, rows_per_shard, rows=sum(kept.values()), text_bytes=kept_bytes)
    by_split = [[(file, unit, parts[at]) for file, unit, parts in counts] for at in range(len(split.names))]
    plans = [plan_shards(part, rows_per_shard=rows, streamed=streamed) for part in by_split]
    return SplitPlans(dict(zip(split.names, plans, strict=True)), at_once, frozenset(message_keys))


def merge_schema_places(schemas: Iterable[list[tuple[str, FragmentPlace]]]) -> list[tuple[str, FragmentPlace]]:
    """Distinct schemas, each with the first place (file, unit, fragment) in the corpus that has it; mergeable."""
    first: dict[str, FragmentPlace] = {}
    for schema, place in itertools.chain.from_iterable(schemas):
        first[schema] = min(first.get(schema, place), place)
    return list(first.items())


def list_jobs(shards: SplitPlans) -> list[_Part]:
    """Every job, including jobs without rows, as a part without content."""
    return [(job, b"") for job in range(shards.jobs)]


def deal_kept(kept: KeptUnit, needs: Needs, split: Split, shards: SplitPlans) -> Iterator[_Part]:
    """A unit's kept responses → (job, its share of them, a `KeptUnit`)."""
    for name, rows in zip(split.names, split.parts(unpack([kept.kept], needs)), strict=True):
        for job, start, end in shards.pieces(name, kept.file, kept.unit, len(rows)):
            yield job, _KEPT.add(kept._replace(kept=pack(rows.take(np.arange(start, end)), needs)).to_bytes())


def find_rejected_elsewhere(piece: _Part, needs: Needs) -> Iterator[tuple[int, _Part]]:
    """(file, (job, pairs whose rejected response is in it)), for files other than the chosen response's."""
    job, kept = piece[0], KeptUnit.from_bytes(_KEPT.remove(piece[1]))
    rows = unpack([kept.kept], needs)
    for file in np.unique(rows.other_file):
        if file != kept.file:
            yield int(file), (job, pack(rows.take(rows.other_file == file), needs))


@dataclass(eq=False)
class FetchRejected(beam.DoFn):  # type: ignore[misc]
    """(file, pairs of jobs) → (job, texts): the only place where text is shuffled."""

    plan_path: str
    needs: Needs

    def process(self, element: tuple[int, Iterable[tuple[int, bytes]]]) -> Iterator[tuple[int, bytes]]:
        file, wanted = element
        with carrying_errors():
            for job, rows in wanted:
                rejected = read_rejected(plan_at(self.plan_path), file, unpack([rows], self.needs))
                columns = list(zip(*rejected, strict=True))
                yield job, _TEXT.add(to_ipc(pa.table(columns, schema=_TEXTS)))


@dataclass(eq=False)
class WriteShards(beam.DoFn):  # type: ignore[misc]
    """One job: read its rows in place order, and publish its shards one after the other."""

    plan_path: str
    owner: Owner
    shape: Shape
    needs: Needs

    def process(
        self, element: tuple[int, Iterable[bytes]], shards: SplitPlans, schemas: list[tuple[str, FragmentPlace]]
    ) -> Iterator[OutputShard]:
        job, parts = element[0], list(element[1])
        in_order = sorted(schemas, key=lambda entry: entry[1])  # columns in order of their first appearance
        original = original_columns.unify(original_columns.load(text) for text, _ in in_order)
        with carrying_errors():
            missing = [name for name in self.shape.include if name not in original.names]
            if missing:
                raise InputError(
                    f"output.include_columns names {missing[0]!r}, and the input has {join_names(original.names)}; "
                    "choose from these"
                )
            shape = self.shape._replace(message_keys=shards.message_keys)
            schema = schema_of(shape, original)
            pieces = sorted(map(KeptUnit.from_bytes, _KEPT.select(parts)))
            texts = _texts(_TEXT.select(parts))
            tables = self._read(pieces, texts, schema, shape, shards.rows_at_once)
            kept = RowQueue(tables)
            for name, rows in shards.shards_of(job):
                yield self._write(name, schema, kept, rows, shards.counts)

    def _read(
        self,
        pieces: Sequence[KeptUnit],
        texts: RejectedTexts,
        schema: pa.Schema,
        shape: Shape,
        at_once: Mapping[int, int],
    ) -> Iterator[pa.Table]:
        plan = plan_at(self.plan_path)
        plain = pa.schema([field.remove_metadata() for field in schema.remove_metadata()])

        def read(piece: KeptUnit) -> Iterator[pa.Table]:
            wanted, file = unpack([piece.kept], self.needs), plan.files[piece.file]
            unit = unit_of(file, piece.unit)
            if unit is None:
                raise input_changed(file)
            if is_plain(file, plan.mapping, shape):
                most = at_once[piece.file]
                yield from read_tables(file, unit, plan.mapping, wanted, shape, plain, most_rows=most)
                return
            here = {**texts, **self._rejected_here(plan, piece.file, wanted)} if self.needs.other else {}
            kept = read_kept(plan, file, unit, wanted, here, more_columns=shape.more_columns)
            while rows := list(itertools.islice(kept, _ROWS_AT_ONCE)):
                yield to_table(rows, schema, shape)

        return read_ahead([partial(read, piece) for piece in pieces], most=_TABLES_AHEAD)

    def _rejected_here(self, plan: Plan, file: int, wanted: Candidates) -> RejectedTexts:
        here = wanted.take(wanted.other_file == file)
        return {(high, low, content): text for high, low, content, text in read_rejected(plan, file, here)}

    def _write(self, name: str, schema: pa.Schema, kept: RowQueue, rows: int, counts: Mapping[str, int]) -> OutputShard:
        written = size = in_memory = 0

        def write(file: BinaryIO) -> None:
            nonlocal written, size, in_memory
            with pq.ParquetWriter(
                file,
                pa.schema([field.remove_metadata() for field in schema.remove_metadata()]),
                compression="zstd",
                compression_level=3,
                write_page_index=True,
                use_content_defined_chunking=True,
            ) as writer:
                # the next group is read while this one is written
                for group in read_ahead([lambda: row_groups(kept, rows)], most=1):
                    writer.write_table(group, row_group_size=group.num_rows)
                    written += group.num_rows
                    progress.add_exported(group.num_rows)
                    in_memory += memory_bytes(group)
            if written != rows:
                raise InputError(
                    f"{name} got {written} rows instead of {rows}: an input changed while it was read; run again"
                )
            size = file.tell()

        digest = self.owner.publish(name, write, shards=counts)
        return OutputShard(name, rows, size, digest, in_memory)


def _texts(parts: Iterable[bytes]) -> dict[tuple[int, int, int], str]:
    table = from_ipc(parts, _TEXTS)
    high, low, content, text = (table[name].to_pylist() for name in _TEXTS.names)
    return dict(zip(zip(high, low, content, strict=True), text, strict=True))


class RowQueue:
    """Rows of a sequence of tables, taken from the front in any number."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._rest: list[pa.Table] = []

    def take(self, count: int) -> pa.Table | None:
        """The next `count` rows as one table, fewer at the end; None if there are none."""
        while (available := sum(table.num_rows for table in self._rest)) < count:
            table = next(self._tables, None)
            if table is None:
                break
            self._rest.append(table)
        if not min(available, count):
            return None
        whole = pa.concat_tables(self._rest)
        self._rest = [whole.slice(count)] if available > count else []
        return whole.slice(0, count).combine_chunks()


def row_groups(kept: RowQueue, rows: int) -> Iterator[pa.Table]:
    """The next `rows` kept responses as tables of about `_ROW_GROUP_BYTES` of text."""
    parts: list[pa.Table] = []
    size = 0
    while rows and (part := kept.take(min(rows, _ROWS_AT_ONCE))) is not None:
        rows -= part.num_rows
        part_bytes = text_bytes(part)
        if size and size + part_bytes > _ROW_GROUP_BYTES:
            yield pa.concat_tables(parts)
            parts, size = [], 0
        parts.append(part)
        size += part_bytes
    if parts:
        yield pa.concat_tables(parts)
