"""DropDuplicates removes near-duplicates from the rows of all partitions; only candidates are shuffled, signatures read again.

    rows  →  nodes by unit                       and score files by unit  →  band hashes, by hash
    those that share a band  →  wanted by unit, with nodes and score files  →  their signatures, by group
    signatures of a group  →  edges  →  the nodes that go, on one worker  →  by partition, to the rows

The cost for 1e9 rows at a similarity of 0.8, which has 39 bands: nodes are shuffled twice (32 bytes each, 64 GB); side files are
read twice (256 bytes a row, 256 GB each time), the second time only those with a candidate; band hashes are shuffled once, 39 of
24 bytes a row (940 GB). A worker holds one bucket of bands at a time, about 50 MB, or the signatures of one bucket of groups.
Signatures are shuffled only for rows that share a band with another, once for each set of such rows. The edges, and the nodes
that they connect, are in the memory of one worker: some 300 bytes for each pair of similar texts that share a group; equal texts
are paired only with the first. So 1e8 near-duplicates take 30 GB there; with more, drop exact duplicates first. A group of m
different texts costs m**2 / 2 comparisons of 128 values, which takes long for many texts from one template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsIter, TaggedOutput

from pipelines.config import Step
from pipelines.corpus import UnitKey
from pipelines.runtime.arrow_ipc import Tag
from pipelines.runtime.step_times import timing
from pipelines.runtime.threaded_dofn import ThreadedDoFn, TimedDoFn
from pipelines.runtime.transforms import PCollection
from pipelines.score import score_files
from pipelines.score.minhash import signature_column
from pipelines.score.minhash import unpack as unpack_signatures
from pipelines.score.score_files import ScoreFile
from pipelines.select import duplicates
from pipelines.select.candidates import pack_places
from pipelines.select.columns import Needs, pack, unpack
from pipelines.select.duplicates import BAND, DROPPED, EDGE, MEMBER, NODE, WANTED, Structured, rule_of
from pipelines.select.summary import SelectionSummary

_NODES, _FILE, _WANTED = Tag(b"n"), Tag(b"f"), Tag(b"w")  # of the elements that are gathered by unit
_ROWS, _GONE = Tag(b"r"), Tag(b"g")  # by partition
_HELD = 1 << 20  # band hashes of a unit, before they are shuffled

Keyed = tuple[int, bytes]


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class DropDuplicates(beam.PTransform):  # type: ignore[misc]
    """{rows: (partition, packed candidates), descriptors} → {rows, dropped: `DROPPED` as bytes, by partition, summary}."""

    step: Step
    number: int  # of the step
    needs: Needs
    buckets: int  # of the hash space

    def expand(self, sources: dict[str, PCollection[Any]]) -> dict[str, PCollection[Any]]:
        rows = sources["rows"]
        of_step = (self.step, self.number)
        nodes = rows | "ListNodes" >> beam.ParDo(ListNodes(*of_step, self.needs)).with_output_types(Keyed)
        files = sources["descriptors"] | "KeyByUnit" >> beam.Map(key_by_unit).with_output_types(Keyed)
        bands = self._by_unit("Bands", (nodes, files), HashBands(*of_step, self.buckets))
        shared = bands | "GroupByHash" >> beam.GroupByKey()
        wanted = shared | "FindGroups" >> beam.ParDo(FindGroups(*of_step)).with_output_types(Keyed)
        members = self._by_unit("Members", (nodes, files, wanted), ReadMembers(*of_step, self.buckets))
        groups = members | "GatherGroups" >> beam.GroupByKey()
        edges = groups | "CompareGroups" >> beam.ParDo(CompareGroups(*of_step)).with_output_types(bytes)
        once = rows.pipeline | "Once" >> beam.Impulse()
        resolve = beam.ParDo(Resolve(*of_step), AsIter(edges)).with_output_types(Keyed, summary=SelectionSummary)
        resolved = once | "Resolve" >> resolve.with_outputs("summary", main="dropped")
        rows = self._without(rows, resolved.dropped)
        return {"rows": rows, "dropped": resolved.dropped, "summary": resolved.summary}

    def _by_unit(self, name: str, parts: tuple[PCollection[Keyed], ...], work: beam.DoFn) -> PCollection[Keyed]:
        grouped = parts | f"All{name}" >> beam.Flatten() | f"Group{name}" >> beam.GroupByKey()
        return grouped | f"Read{name}" >> beam.ParDo(work).with_output_types(Keyed)

    def _without(self, rows: PCollection[Keyed], dropped: PCollection[Keyed]) -> PCollection[Keyed]:
        tagged = rows | "TagRows" >> beam.Map(_tag, _ROWS).with_output_types(Keyed)
        gone = dropped | "TagDropped" >> beam.Map(_tag, _GONE).with_output_types(Keyed)
        grouped = (tagged, gone) | "RowsAndDropped" >> beam.Flatten() | "GroupRows" >> beam.GroupByKey()
        return grouped | "DropRows" >> beam.ParDo(DropRows(self.step, self.number, self.needs)).with_output_types(Keyed)


def _tag(element: Keyed, tag: Tag) -> Keyed:
    return element[0], tag.add(element[1])


@dataclass(eq=False)
class ListNodes(TimedDoFn):
    """A partition's rows → (packed `UnitKey`, its nodes)."""

    step: Step
    number: int
    needs: Needs

    def work(self, element: Keyed) -> list[Keyed]:
        with timing(self.number):
            rows = unpack([element[1]], self.needs)
            nodes = duplicates.nodes_of(rows, rule_of(self.step).of, partition=element[0])
            return list(_by_key(UnitKey.pack_columns(nodes["place"]["file"], nodes["place"]["unit"]), nodes, _NODES))


def key_by_unit(data: bytes) -> Keyed:
    descriptor = ScoreFile.from_bytes(data)
    return UnitKey(descriptor.file, descriptor.footer.unit).pack(), _FILE.add(data)


def _by_key(keys: Any, rows: Structured, tag: Tag | None = None) -> Iterator[Keyed]:
    """Rows in one element for each key."""
    if not len(rows):
        return
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(keys)], strict=True):
        data = rows[start:end].tobytes()
        yield int(keys[start]), data if tag is None else tag.add(data)


def _join(parts: Iterable[bytes], kind: np.dtype[Any]) -> Structured:
    return np.frombuffer(b"".join(parts), dtype=kind)


@dataclass(eq=False)
class _OfUnit(ThreadedDoFn):
    """Work on the nodes and the signatures of one unit."""

    step: Step
    number: int
    buckets: int

    def hold(self, element: tuple[int, Iterable[bytes]]) -> list[bytes]:
        return list(element[1])

    def work(self, parts: list[bytes]) -> list[Keyed]:
        with timing(self.number):
            return self.outputs(parts)

    def outputs(self, parts: list[bytes]) -> list[Keyed]:
        raise NotImplementedError

    def signatures(self, parts: list[bytes], places: Structured) -> Iterator[tuple[Any, Any]]:
        """(positions in `places`, their signatures), one score file after the other."""
        rule = rule_of(self.step)
        name = signature_column(rule.of, rule.words)
        wanted = pack_places(places["row"], places["response"])
        order = np.argsort(wanted)
        for data in _FILE.select(parts):
            file = ScoreFile.from_bytes(data)
            table = score_files.read_joined(file, ["row", "response_index", name])
            stored = pack_places(table["row"].to_numpy(), table["response_index"].to_numpy())
            if not len(stored):
                continue
            first = np.searchsorted(wanted, stored[0], sorter=order)
            last = np.searchsorted(wanted, stored[-1], side="right", sorter=order)
            at = order[first:last]
            rows = np.searchsorted(stored, wanted[at])
            inside = stored[rows] == wanted[at]
            if inside.any():
                yield at[inside], unpack_signatures(table[name])[rows[inside]]


class HashBands(_OfUnit):
    """(unit, its nodes and score files) → (bucket, `BAND`s)."""

    def outputs(self, parts: list[bytes]) -> list[Keyed]:
        nodes = _join(_NODES.select(parts), NODE)
        needed = duplicates.needed_of(rule_of(self.step).similarity)
        bundles: list[Structured] = []
        outputs: list[Keyed] = []
        for at, signatures in self.signatures(parts, nodes["place"]):
            hashes = duplicates.band_hashes(signatures, needed)
            bands = np.zeros(hashes.size, dtype=BAND)
            bands["hash"], bands["place"] = hashes.ravel(), np.repeat(nodes["place"][at], hashes.shape[1])
            bundles.append(bands)
            if sum(map(len, bundles)) > _HELD:
                outputs += self._release(bundles)
                bundles = []
        return [*outputs, *self._release(bundles)]

    def _release(self, bundles: list[Structured]) -> Iterator[Keyed]:
        bands = np.concatenate([np.zeros(0, dtype=BAND), *bundles])
        yield from _by_key(bands["hash"] % np.uint64(self.buckets), bands)


@dataclass(eq=False)
class FindGroups(TimedDoFn):
    """(bucket, `BAND`s) → (packed `UnitKey`, `WANTED` rows)."""

    step: Step
    number: int

    def work(self, element: tuple[int, Iterable[bytes]]) -> list[Keyed]:
        with timing(self.number):
            wanted = duplicates.groups_of(_join(element[1], BAND))
            return list(
                _by_key(UnitKey.pack_columns(wanted["place"]["file"], wanted["place"]["unit"]), wanted, _WANTED)
            )


class ReadMembers(_OfUnit):
    """(unit, its nodes, score files and wanted rows) → (bucket, `MEMBER`s of groups)."""

    def outputs(self, parts: list[bytes]) -> list[Keyed]:
        wanted = duplicates.unique(_join(_WANTED.select(parts), WANTED))
        outputs: list[Keyed] = []
        if not len(wanted):
            return outputs
        nodes = _join(_NODES.select(parts), NODE)
        keys = pack_places(nodes["place"]["row"], nodes["place"]["response"])
        order = np.argsort(keys)
        node_of = order[
            np.searchsorted(keys, pack_places(wanted["place"]["row"], wanted["place"]["response"]), sorter=order)
        ]
        for at, signatures in self.signatures(parts, wanted["place"]):
            members = np.zeros(len(at), dtype=MEMBER)
            members["group"], members["node"], members["signature"] = (
                wanted["group"][at],
                nodes[node_of[at]],
                signatures,
            )
            outputs += _by_key(members["group"] % np.uint64(self.buckets), members)
        return outputs


@dataclass(eq=False)
class CompareGroups(ThreadedDoFn):
    """(bucket, `MEMBER`s) → `EDGE`s as bytes."""

    step: Step
    number: int

    def hold(self, element: tuple[int, Iterable[bytes]]) -> list[bytes]:
        return list(element[1])

    def work(self, parts: list[bytes]) -> list[bytes]:
        with timing(self.number):
            needed = duplicates.needed_of(rule_of(self.step).similarity)
            edges = duplicates.unique(duplicates.compare_groups(_join(parts, MEMBER), needed))
            return [edges.tobytes()] if len(edges) else []


@dataclass(eq=False)
class Resolve(TimedDoFn):
    """Edges → (partition, the rows to drop), and a summary of the groups of similar texts."""

    step: Step
    number: int

    def work(self, _impulse: bytes, edges: Iterable[bytes]) -> list[Any]:
        with timing(self.number):
            parts = (np.frombuffer(data, dtype=EDGE) for data in edges)
            drop = duplicates.drop_alike if self.step.near_duplicates is not None else duplicates.drop_covered
            dropped = drop(parts)
            summary = SelectionSummary(alike={self.number: duplicates.count_groups(dropped)})
            return [TaggedOutput("summary", summary), *_by_key(dropped["partition"], dropped)]


@dataclass(eq=False)
class DropRows(TimedDoFn):
    """(partition, its rows and those to drop) → (partition, rows)."""

    step: Step
    number: int
    needs: Needs

    def work(self, element: tuple[int, Iterable[bytes]]) -> list[Keyed]:
        partition, parts = element[0], list(element[1])
        with timing(self.number):
            dropped = _join(_GONE.select(parts), DROPPED)
            tables = [unpack([data], self.needs) for data in _ROWS.select(parts)]
            staying = [rows.take(duplicates.stays(rows, rule_of(self.step).of, dropped)) for rows in tables]
            return [(partition, pack(rows, self.needs)) for rows in staying]


def merge_dropped(parts: Iterable[Any]) -> bytes:
    """All rows to drop, as bytes; mergeable."""
    return b"".join(part if isinstance(part, bytes) else part[1] for part in parts)
