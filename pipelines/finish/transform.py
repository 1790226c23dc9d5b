"""Finish: rejected rows, the dataset card and, last, the manifest, on one barrier element."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import AsIter, AsSingleton

from pipelines.config import RunConfig
from pipelines.errors import carrying_errors
from pipelines.export.shards import OutputShard
from pipelines.finish import dataset_card
from pipelines.finish.claim import claimed_evaluations
from pipelines.finish.drift_check import check_drift, write_drift
from pipelines.finish.manifest import Results, make_manifest
from pipelines.finish.publication import publish
from pipelines.finish.versions import VersionRun
from pipelines.plan import plan_at
from pipelines.report.trial import read_trial
from pipelines.report.write import write_report
from pipelines.runtime.arrow_ipc import from_ipc
from pipelines.runtime.transforms import Gather, PCollection
from pipelines.score.ensemble import Standards
from pipelines.score.rejected import REJECTED, rejected_table
from pipelines.score.totals import Totals
from pipelines.select.length_correction import Curve
from pipelines.select.summary import FragmentFacts, SelectionSummary, merge_summaries
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import join, open_for_reading, read_bytes
from pipelines.storage.owner import Owner
from pipelines.storage.publish import replace


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Finish(beam.PTransform):  # type: ignore[misc]
    """{selected..., shards, standards of an ensemble, skipped files} → the manifest, published after all files that it names."""

    plan_path: str
    config: RunConfig
    owner: Owner
    turn: VersionRun | None = None  # of a run that writes a version

    def expand(self, parts: dict[str, Any]) -> PCollection[Any]:
        rejected = self._write_rejected(parts["rejected"])
        summary = parts["summaries"] | "SumSelection" >> Gather(merge_summaries)
        barrier = parts["shards"].pipeline | "Finish" >> beam.Impulse()
        return barrier | "PublishManifest" >> beam.ParDo(
            PublishManifest(self.plan_path, self.config, self.owner, self.turn),
            totals=AsSingleton(parts["totals"]),
            summary=AsSingleton(summary),
            files=AsIter(parts["files"]),
            shards=AsIter(parts["shards"]),
            rejected=AsIter(rejected),
            **_optional_inputs(parts),
        )

    def _write_rejected(self, rejected: PCollection[tuple[int, bytes]]) -> PCollection[str]:
        write = beam.ParDo(WriteRejected(self.plan_path, self.owner))
        return rejected | "GroupRejected" >> beam.GroupByKey() | "WriteRejected" >> write


def _optional_inputs(parts: dict[str, Any]) -> dict[str, Any]:
    """Side inputs that only some runs have: a curve, standards, skipped files, a report."""
    inputs: dict[str, Any] = {
        name: AsSingleton(parts[name]) for name in ("curve", "standards", "skipped") if name in parts
    }
    return {**inputs, "report": AsIter(parts["report"])} if "report" in parts else inputs


@dataclass(eq=False)
class WriteRejected(beam.DoFn):  # type: ignore[misc]
    """(file, its rejected rows) → `rejected/<file number>.parquet`: position and reason of each row, never its text."""

    plan_path: str
    owner: Owner

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[str]:
        number, parts = element
        with carrying_errors():
            file = plan_at(self.plan_path).files[number]
        table = rejected_table(file.key, from_ipc(parts, REJECTED))

        def write(stream: BinaryIO) -> None:
            pq.write_table(table, stream, compression="zstd")

        with carrying_errors():
            name = f"rejected/{number:05d}.parquet"
            self.owner.publish(name, write)
            yield name


@dataclass(eq=False)
class PublishManifest(beam.DoFn):  # type: ignore[misc]
    """Writes the dataset card, the report and, last, the manifest; then, for a run that writes a version, `latest.json`."""

    plan_path: str
    config: RunConfig
    owner: Owner
    turn: VersionRun | None = None

    def process(
        self,
        _impulse: bytes,
        totals: Totals,
        summary: SelectionSummary,
        files: Iterable[tuple[int, list[FragmentFacts]]],
        shards: Iterable[OutputShard],
        rejected: Iterable[str],
        curve: Curve | None = None,
        standards: Standards | None = None,
        skipped: Mapping[int, str] | None = None,
        report: Iterable[str] = (),
    ) -> Iterator[dict[str, Any]]:
        names = (sorted(files), sorted(shards), sorted(rejected))
        results = Results(totals, summary, *names, curve, standards, skipped or {}, sorted(report))
        with carrying_errors():
            self.owner.settle()  # from now on its claim does not change
            results = results._replace(evaluations=claimed_evaluations(self.owner.output))
            manifest = make_manifest(self.config, plan_at(self.plan_path), results)
            publish(
                manifest,
                self.owner,
                self.turn,
                describe=lambda: self._describe(manifest, results.shards),
                accept=lambda: check_drift(self.turn, self.config.limits),
            )
            yield manifest

    def _describe(self, manifest: dict[str, Any], shards: Sequence[OutputShard]) -> None:
        output, license = self.owner.output, self.config.output.license
        card = dataset_card.render(manifest, shards, first_schema(output, shards), license=license)
        path, told = join(output, "README.md"), dataset_card.with_trial(card, read_trial(output)).encode()
        standing = read_bytes(path)
        if standing is not None and dataset_card.with_trial(standing.decode(errors="replace"), None) == card:
            replace(path, told)  # it differs at most by the line of a trial whose file has appeared or been removed
        self.owner.publish("README.md", told)
        if manifest["report"]:
            # made from the manifest as readers parse it; the launcher, if it still waits, makes it again with throughput
            written = json.loads(to_json(manifest))
            write_drift(self.turn, written)
            write_report(output, written, run=None)


def first_schema(output: str, shards: Sequence[OutputShard]) -> pa.Schema:
    """The columns of the data set, as its first shard has them."""
    with open_for_reading(join(output, shards[0].name)) as file:
        return pq.read_schema(file)
