"""Export: read the inputs of kept responses again, check that they are what was scored, write deterministic shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import AsSingleton

from pipelines import originals
from pipelines.columnar import CANDIDATES, from_ipc, to_candidates, to_ipc
from pipelines.errors import InputError
from pipelines.inputs import InputFile, Unit, seekable, split_units
from pipelines.plan import Plan
from pipelines.records import KeptFile, Shard
from pipelines.rules import Candidates
from pipelines.shapes import Kept, schema_of, to_table
from pipelines.shards import ShardPlan, plan_shards
from pipelines.storage.files import join
from pipelines.storage.publish import create_or_equal
from pipelines.workers import carrying_errors, plan_at

_ROW_GROUP_BYTES = 64 * 2**20  # of row text; below the 100 MB that readers of row groups expect at most


Place = tuple[int, int, int]  # file, unit, fragment


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Export(beam.PTransform):  # type: ignore[misc]
    """{kept: KeptFile, schemas} → `Shard`s, published."""

    plan_path: str
    output: str
    shape: str
    rows_per_shard: int

    def expand(self, selected: dict[str, Any]) -> Any:
        kept = selected["kept"]
        shards = (
            kept
            | "CountKept" >> beam.Map(count_units)
            | "ListCounts" >> beam.combiners.ToList()
            | "PlanShards" >> beam.Map(make_shard_plan, self.plan_path, self.rows_per_shard)
        )
        schema = selected["schemas"] | "ListSchemas" >> beam.CombineGlobally(first_places)
        jobs = shards | "ListJobs" >> beam.FlatMap(lambda plan: [(job, b"") for job in range(len(plan.jobs))])
        pieces = kept | "DealKept" >> beam.FlatMap(deal, AsSingleton(shards))
        work = {"pieces": pieces, "jobs": jobs} | "GroupByJob" >> beam.CoGroupByKey()
        write = WriteShards(self.plan_path, self.output, self.shape)
        return work | "WriteShards" >> beam.ParDo(write, AsSingleton(shards), AsSingleton(schema))


def count_units(kept: KeptFile) -> tuple[int, list[tuple[int, int]]]:
    """(file, [(unit, kept responses), ...])"""
    units, counts = np.unique(from_ipc([kept.kept], CANDIDATES)["unit"].to_numpy(), return_counts=True)
    return kept.file, [(int(unit), int(count)) for unit, count in zip(units, counts, strict=True)]


def make_shard_plan(
    counts: Sequence[tuple[int, list[tuple[int, int]]]], plan_path: str, rows_per_shard: int
) -> ShardPlan:
    with carrying_errors():
        streamed = [not seekable(file) for file in plan_at(plan_path).files]
    return plan_shards(counts, rows_per_shard=rows_per_shard, streamed=streamed)


def first_places(schemas: Iterable[list[tuple[str, Place]]]) -> list[tuple[str, Place]]:
    """Distinct schemas, each with the first place (file, unit, fragment) in the corpus that has it; mergeable."""
    first: dict[str, Place] = {}
    for schema, place in itertools.chain.from_iterable(schemas):
        first[schema] = min(first.get(schema, place), place)
    return list(first.items())


def deal(kept: KeptFile, shards: ShardPlan) -> Iterator[tuple[int, tuple[int, bytes, list[tuple[int, int, str]]]]]:
    """A file's kept responses → (job, (file, its piece, fragments to check))."""
    table = from_ipc([kept.kept], CANDIDATES)
    for job, start, end in shards.pieces(kept.file, table.num_rows):
        piece = table.slice(start, end - start)
        units = set(piece["unit"].to_pylist())
        checks = [check for check in kept.fragments if check[0] in units]
        yield job, (kept.file, to_ipc(piece), checks)


@dataclass(eq=False)
class WriteShards(beam.DoFn):  # type: ignore[misc]
    """One job: stream its inputs in place order, and publish its shards one after the other."""

    plan_path: str
    output: str
    shape: str

    def process(
        self, element: tuple[int, dict[str, Any]], shards: ShardPlan, schemas: list[tuple[str, Place]]
    ) -> Iterator[Shard]:
        job, grouped = element
        in_order = sorted(schemas, key=lambda entry: entry[1])  # columns in order of their first appearance
        original = originals.unify(originals.load(text) for text, _ in in_order)
        schema = schema_of(self.shape, original)
        with carrying_errors():
            plan = plan_at(self.plan_path)
            kept = self._read(plan, sorted(grouped["pieces"], key=lambda piece: piece[0]))
            for number in range(*shards.jobs[job]):
                rows = min(shards.rows_per_shard, shards.total - number * shards.rows_per_shard)
                name = f"data/train-{number:05d}-of-{shards.shards:05d}.parquet"
                yield self._write(name, schema, itertools.islice(kept, rows), rows)

    def _read(self, plan: Plan, pieces: Sequence[tuple[int, bytes, list[tuple[int, int, str]]]]) -> Iterator[Kept]:
        for file_number, data, checks in pieces:
            wanted = to_candidates(from_ipc([data], CANDIDATES))
            content = {(unit, fragment): value for unit, fragment, value in checks}
            file = plan.files[file_number]
            units = {unit.number: unit for unit in split_units(file)}
            for number in np.unique(wanted.unit):
                if int(number) not in units:
                    raise changed(file)
                part = wanted.take(wanted.unit == number)
                yield from read_kept(
                    plan, file, units[int(number)], part, content, all_columns=self.shape == "original"
                )

    def _write(self, name: str, schema: pa.Schema, kept: Iterator[Kept], rows: int) -> Shard:
        written = size = 0

        def write(file: BinaryIO) -> None:
            nonlocal written, size
            plain = schema.remove_metadata()
            with pq.ParquetWriter(
                file,
                pa.schema([field.remove_metadata() for field in plain]),
                compression="zstd",
                compression_level=3,
                write_page_index=True,
                use_content_defined_chunking=True,
            ) as writer:
                for group in row_groups(kept):
                    writer.write_table(to_table(group, schema, self.shape), row_group_size=len(group))
                    written += len(group)
            if written != rows:
                raise InputError(
                    f"{name} got {written} rows instead of {rows}: an input changed while it was read; run again"
                )
            size = file.tell()

        digest = create_or_equal(join(self.output, name), write)
        return Shard(name, rows, size, digest)


def row_groups(kept: Iterator[Kept]) -> Iterator[list[Kept]]:
    """Kept responses in groups of about `_ROW_GROUP_BYTES` of text; always at least one group's worth of rows."""
    group: list[Kept] = []
    size = 0
    for item in kept:
        group.append(item)
        size += item.row.row_bytes
        if size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_kept(
    plan: Plan,
    file: InputFile,
    unit: Unit,
    wanted: Candidates,
    content: dict[tuple[int, int], str],
    *,
    all_columns: bool,
) -> Iterator[Kept]:
    """The kept responses of one unit, in place order (`wanted` is sorted so).

    Raises `InputError` where a fragment that holds one of them is not what was scored.
    """
    position = 0
    for fragment in plan.fragments(file, unit, all_columns=all_columns):
        end = position
        if fragment.rows:
            end = position + int(np.searchsorted(wanted.row[position:], fragment.rows[-1].number, side="right"))
        if end > position:
            if fragment.content_hash() != content.get((unit.number, fragment.index)):
                raise changed(file)
            first = fragment.rows[0].number
            for at in range(position, end):
                row = fragment.rows[int(wanted.row[at]) - first]
                key = int(wanted.key_high[at]) << 64 | int(wanted.key_low[at])
                yield Kept(row, int(wanted.response[at]), float(wanted.reward[at]), f"{key:032x}")
        position = end
        if position == len(wanted):
            return
    raise changed(file)


def changed(file: InputFile) -> InputError:
    return InputError(
        f"input file {file.path} has changed since it was scored; restore it, or choose another output.path and run again: "
        "what has not changed is not scored again"
    )
