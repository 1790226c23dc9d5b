"""Export: read the rows of kept responses again, check that they are what was scored, write deterministic shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import AsIter, AsSingleton

from pipelines import originals
from pipelines.candidates import Candidates
from pipelines.columnar import Needs, from_ipc, pack, to_ipc, unpack
from pipelines.errors import InputError
from pipelines.inputs import seekable, split_units
from pipelines.kept import changed, read_kept, read_rejected
from pipelines.plan import Plan
from pipelines.records import KeptUnit, Shard
from pipelines.shapes import Kept, Shape, schema_of, to_table
from pipelines.shards import ShardPlan, plan_shards, rows_within
from pipelines.storage.files import join
from pipelines.storage.publish import create_or_equal
from pipelines.workers import carrying_errors, plan_at

_ROWS_AT_ONCE = 2048
_ROW_GROUP_BYTES = 64 * 2**20  # of text; below the 100 MB that readers of row groups expect at most
_TEXTS = pa.schema([("key_high", pa.uint64()), ("key_low", pa.uint64()), ("text", pa.large_string())])


Place = tuple[int, int, int]  # file, unit, fragment


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Export(beam.PTransform):  # type: ignore[misc]
    """{kept: KeptUnit, files, schemas} → `Shard`s, published."""

    plan_path: str
    output: str
    shape: Shape
    needs: Needs
    rows_per_shard: int
    bytes_per_shard: int

    def expand(self, selected: dict[str, Any]) -> Any:
        kept = selected["kept"]
        counts = kept | "CountKept" >> beam.Map(count_kept, self.needs) | "ListCounts" >> beam.combiners.ToList()
        bounds = (self.rows_per_shard, self.bytes_per_shard)
        shards = counts | "PlanShards" >> beam.Map(make_shard_plan, self.plan_path, bounds, AsIter(selected["files"]))
        schema = selected["schemas"] | "ListSchemas" >> beam.CombineGlobally(first_places)
        jobs = shards | "ListJobs" >> beam.FlatMap(lambda plan: [(job, b"") for job in range(len(plan.jobs))])
        pieces = kept | "DealKept" >> beam.FlatMap(deal, self.needs, AsSingleton(shards))
        work = {"pieces": pieces, "jobs": jobs}
        if self.needs.other:
            fetch = FetchRejected(self.plan_path, self.needs)
            elsewhere = pieces | "FindRejected" >> beam.FlatMap(rejected_elsewhere, self.needs)
            work["texts"] = elsewhere | "GroupRejects" >> beam.GroupByKey() | "FetchRejected" >> beam.ParDo(fetch)
        grouped = work | "GroupByJob" >> beam.CoGroupByKey()
        write = WriteShards(self.plan_path, self.output, self.shape, self.needs)
        return grouped | "WriteShards" >> beam.ParDo(write, AsSingleton(shards), AsSingleton(schema))


def count_kept(kept: KeptUnit, needs: Needs) -> tuple[int, int, int]:
    """(file, unit, kept responses)"""
    return kept.file, kept.unit, from_ipc([kept.kept], needs.schema).num_rows


def make_shard_plan(
    counts: Sequence[tuple[int, int, int]],
    plan_path: str,
    bounds: tuple[int, int],
    files: Iterable[tuple[int, list[list[Any]]]],
) -> ShardPlan:
    """Shards of at most `bounds` rows and bytes of text; the bytes are those of the mean row of its file."""
    rows_per_shard, bytes_per_shard = bounds
    with carrying_errors():
        streamed = [not seekable(file) for file in plan_at(plan_path).files]
    kept = dict.fromkeys(range(len(streamed)), 0)
    for file, _, count in counts:
        kept[file] += count
    sizes = {file: [sum(fragment[at] for fragment in fragments) for at in (6, 4)] for file, fragments in files}
    text_bytes = sum(kept[file] * text // max(1, responses) for file, (text, responses) in sizes.items())
    rows = rows_within(bytes_per_shard, rows_per_shard, rows=sum(kept.values()), text_bytes=text_bytes)
    return plan_shards(counts, rows_per_shard=rows, streamed=streamed)


def first_places(schemas: Iterable[list[tuple[str, Place]]]) -> list[tuple[str, Place]]:
    """Distinct schemas, each with the first place (file, unit, fragment) in the corpus that has it; mergeable."""
    first: dict[str, Place] = {}
    for schema, place in itertools.chain.from_iterable(schemas):
        first[schema] = min(first.get(schema, place), place)
    return list(first.items())


def deal(kept: KeptUnit, needs: Needs, shards: ShardPlan) -> Iterator[tuple[int, KeptUnit]]:
    """A unit's kept responses → (job, its piece of them)."""
    rows = unpack([kept.kept], needs)
    for job, start, end in shards.pieces(kept.file, kept.unit, len(rows)):
        yield job, kept._replace(kept=pack(rows.take(np.arange(start, end)), needs))


def rejected_elsewhere(piece: tuple[int, KeptUnit], needs: Needs) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """(file, (job, pairs whose rejected response lies in it)), for other files than the chosen one's."""
    job, kept = piece
    rows = unpack([kept.kept], needs)
    for file in np.unique(rows.other_file):
        if file != kept.file:
            yield int(file), (job, pack(rows.take(rows.other_file == file), needs))


@dataclass(eq=False)
class FetchRejected(beam.DoFn):  # type: ignore[misc]
    """The one place where text is shuffled: rejected responses that lie in another file than their chosen ones."""

    plan_path: str
    needs: Needs

    def process(self, element: tuple[int, Iterable[tuple[int, bytes]]]) -> Iterator[tuple[int, bytes]]:
        file, wanted = element
        with carrying_errors():
            for job, rows in wanted:
                found = list(
                    zip(*read_rejected(plan_at(self.plan_path), file, unpack([rows], self.needs)), strict=True)
                )
                yield job, to_ipc(pa.table(found, schema=_TEXTS))


@dataclass(eq=False)
class WriteShards(beam.DoFn):  # type: ignore[misc]
    """One job: read its rows in place order, and publish its shards one after the other."""

    plan_path: str
    output: str
    shape: Shape
    needs: Needs

    def process(
        self, element: tuple[int, dict[str, Any]], shards: ShardPlan, schemas: list[tuple[str, Place]]
    ) -> Iterator[Shard]:
        job, grouped = element
        in_order = sorted(schemas, key=lambda entry: entry[1])  # columns in order of their first appearance
        original = originals.unify(originals.load(text) for text, _ in in_order)
        with carrying_errors():
            missing = [name for name in self.shape.include if name not in original.names]
            if missing:
                raise InputError(
                    f"output.include_columns names {missing[0]!r}, and the input has {', '.join(original.names)}; "
                    "name one of these"
                )
            schema = schema_of(self.shape, original)
            kept = self._read(plan_at(self.plan_path), sorted(grouped["pieces"]), _texts(grouped.get("texts", ())))
            for number in range(*shards.jobs[job]):
                rows = min(shards.rows_per_shard, shards.total - number * shards.rows_per_shard)
                name = f"data/train-{number:05d}-of-{shards.shards:05d}.parquet"
                yield self._write(name, schema, itertools.islice(kept, rows), rows)

    def _read(self, plan: Plan, pieces: Sequence[KeptUnit], texts: Mapping[tuple[int, int], str]) -> Iterator[Kept]:
        for piece in pieces:
            wanted = unpack([piece.kept], self.needs)
            file = plan.files[piece.file]
            unit = next((unit for unit in split_units(file) if unit.number == piece.unit), None)
            if unit is None:
                raise changed(file)
            texts_here = {**texts, **self._rejected_here(plan, piece.file, wanted)} if self.needs.other else {}
            yield from read_kept(plan, file, unit, wanted, texts_here, more_columns=self.shape.more_columns)

    def _rejected_here(self, plan: Plan, file: int, wanted: Candidates) -> Mapping[tuple[int, int], str]:
        here = wanted.take(wanted.other_file == file)
        return {(high, low): text for high, low, text in read_rejected(plan, file, here)}

    def _write(self, name: str, schema: pa.Schema, kept: Iterator[Kept], rows: int) -> Shard:
        written = size = 0

        def write(file: BinaryIO) -> None:
            nonlocal written, size
            with pq.ParquetWriter(
                file,
                pa.schema([field.remove_metadata() for field in schema.remove_metadata()]),
                compression="zstd",
                compression_level=3,
                write_page_index=True,
                use_content_defined_chunking=True,
            ) as writer:
                for group in row_groups(kept, schema, self.shape):
                    writer.write_table(group, row_group_size=group.num_rows)
                    written += group.num_rows
            if written != rows:
                raise InputError(
                    f"{name} got {written} rows instead of {rows}: an input changed while it was read; run again"
                )
            size = file.tell()

        digest = create_or_equal(join(self.output, name), write)
        return Shard(name, rows, size, digest)


def _texts(parts: Iterable[bytes]) -> dict[tuple[int, int], str]:
    table = from_ipc(parts, _TEXTS)
    high, low, text = (table[name].to_pylist() for name in _TEXTS.names)
    return dict(zip(zip(high, low, strict=True), text, strict=True))


def row_groups(kept: Iterator[Kept], schema: pa.Schema, shape: Shape) -> Iterator[pa.Table]:
    """Kept responses as tables of about `_ROW_GROUP_BYTES` of text, made columnar a few rows at a time."""
    parts: list[pa.Table] = []
    size = 0
    while rows := list(itertools.islice(kept, _ROWS_AT_ONCE)):
        part = to_table(rows, schema, shape)
        if size and size + part.nbytes > _ROW_GROUP_BYTES:
            yield pa.concat_tables(parts)
            parts, size = [], 0
        parts.append(part)
        size += part.nbytes
    if parts:
        yield pa.concat_tables(parts)
