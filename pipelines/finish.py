"""Finish: rejected rows, dataset card, and last of all the manifest, on one barrier element."""

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
from pipelines.corpus import InputFile, place_of
from pipelines.errors import carrying_errors
from pipelines.export.shards import Shard
from pipelines.export.train_test_split import TRAIN
from pipelines.plan import Plan, name_of, plan_at
from pipelines.report import card
from pipelines.reporting import write_report
from pipelines.runtime.arrow_ipc import from_ipc
from pipelines.runtime.transforms import Gather
from pipelines.score.ensemble import Standards
from pipelines.score.skip_transform import names_of
from pipelines.score.totals import Totals
from pipelines.select.length_correction import Curve
from pipelines.select.summary import SelectionSummary, StepSum, merge_summaries
from pipelines.storage.canonical_json import digest, to_json
from pipelines.storage.files import join, open_for_reading
from pipelines.storage.publish import create_or_equal
from pipelines.versions import Turn, point

MANIFEST_FORMAT = 1

_REJECTED = pa.schema(
    [
        pa.field("row", pa.int32()),
        pa.field("response_index", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("unit_start", pa.int64()),
    ]
)


_OPTIONAL = ("curve", "standards", "skipped")  # parts that only some runs have
_MANY_CUT = 0.01  # of the scored responses
CUT_WARNING = (
    "did not fit into model.max_length with their prompts, and were scored cut: what the model read is less than what is "
    "exported; raise it, or leave them out with model.too_long=reject"
)
OFFSET_WARNING = (
    "compares rewards of different prompts, and a model trained on pairs alone leaves a free offset per prompt: prefer rules "
    "within a prompt (best_of_n, min_z, a reference), or train with train.centring or accept/reject labels"
)


EMPTY_SPLIT = (
    "the split {} has no rows, and the card leaves it out: no kept prompt is on its side; choose another output.test_fraction "
    "or split_seed"
)


def selection_settings(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What decides the output, given the score files."""
    output = config.output
    settings: dict[str, Any] = {
        "select": [step.model_dump(exclude_none=True) for step in config.select],
        "shape": output.shape,
        "rows_per_shard": output.rows_per_shard,
        "bytes_per_shard": output.bytes_per_shard,
        "include_columns": output.include_columns,
        "add": output.add,
        "license": output.license,
    }
    if any(step.needs_temperature for step in config.select) or "probability" in output.add:
        settings["temperature"] = plan.temperature
    if output.test_fraction is not None:
        settings |= {"test_fraction": output.test_fraction, "split_seed": output.split_seed}
    return settings


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Finish(beam.PTransform):  # type: ignore[misc]
    """{selected..., shards, standards of an ensemble, skipped files} → the manifest, published after everything it names."""

    plan_path: str
    config: RunConfig
    turn: Turn | None = None  # of a run that writes a version

    def expand(self, parts: dict[str, Any]) -> Any:
        rejected = (
            parts["rejected"]
            | "GroupRejected" >> beam.GroupByKey()
            | "WriteRejected" >> beam.ParDo(WriteRejected(self.plan_path, self.config.path))
        )
        summary = parts["summaries"] | "SumSelection" >> Gather(merge_summaries)
        more: dict[str, Any] = {name: AsSingleton(parts[name]) for name in _OPTIONAL if name in parts}
        if "report" in parts:
            more["report"] = AsIter(parts["report"])
        barrier = parts["shards"].pipeline | "Finish" >> beam.Impulse()
        return barrier | "PublishManifest" >> beam.ParDo(
            PublishManifest(self.plan_path, self.config, self.turn),
            totals=AsSingleton(parts["totals"]),
            summary=AsSingleton(summary),
            files=AsIter(parts["files"]),
            shards=AsIter(parts["shards"]),
            rejected=AsIter(rejected),
            **more,
        )


@dataclass(eq=False)
class WriteRejected(beam.DoFn):  # type: ignore[misc]
    """(file, its rejected rows) → `rejected/<file number>.parquet`: where and why, never what."""

    plan_path: str
    output: str

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[str]:
        number, parts = element
        with carrying_errors():
            file = plan_at(self.plan_path).files[number]
        rows = from_ipc(parts, _REJECTED).sort_by(
            [(name, "ascending") for name in ("unit_start", "row", "response_index")]
        )
        places = [
            place_of(file.key, start, row)
            for start, row in zip(*(rows[c].to_pylist() for c in ("unit_start", "row")), strict=True)
        ]
        table = pa.table(
            {
                "file": pa.array([file.key] * rows.num_rows),
                "place": pa.array(places),
                "response_index": rows["response_index"],
                "reason": rows["reason"],
            }
        )

        def write(stream: BinaryIO) -> None:
            pq.write_table(table, stream, compression="zstd")

        with carrying_errors():
            name = f"rejected/{number:05d}.parquet"
            create_or_equal(join(self.output, name), write)
            yield name


@dataclass(eq=False)
class PublishManifest(beam.DoFn):  # type: ignore[misc]
    plan_path: str
    config: RunConfig
    turn: Turn | None = None

    def process(
        self,
        _impulse: bytes,
        totals: Totals,
        summary: SelectionSummary,
        files: Iterable[tuple[int, list[list[Any]]]],
        shards: Iterable[Shard],
        rejected: Iterable[str],
        curve: Curve | None = None,
        standards: Standards | None = None,
        skipped: Mapping[int, str] | None = None,
        report: Iterable[str] = (),
    ) -> Iterator[dict[str, Any]]:
        with carrying_errors():
            plan = plan_at(self.plan_path)
            names = (sorted(files), sorted(shards), sorted(rejected))
            manifest = make_manifest(self.config, plan, totals, summary, *names)
            manifest["model"] = model_of(self.config, plan, standards)
            manifest["skipped_files"] = names_of(skipped or {}, plan)
            manifest["controls"] = controls(summary, self.config)
            if curve is not None:
                manifest["length_correction"] = curve.to_json()
            if self.config.output.test_fraction is not None:
                manifest["splits"] = rows_of_splits(names[1])
            manifest["warnings"] = list(warnings_of(self.config, plan, manifest))
            manifest["report"] = sorted(report)
            output = self.config.path
            text = card.render(manifest, names[1], first_schema(output, names[1]), license=self.config.output.license)
            create_or_equal(join(output, "README.md"), text.encode())
            content = to_json(manifest)
            if manifest[
                "report"
            ]:  # of the manifest as it is read; the launcher, which may not be waiting, adds throughput
                write_report(output, json.loads(content), run=None)
            create_or_equal(join(output, "manifest.json"), content)
            point(self.turn)
            yield manifest


def warnings_of(config: RunConfig, plan: Plan, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What whoever uses the output must know of it."""
    crossing = [step.name for step in config.select if step.crosses_prompts]
    if crossing and not plan.comparable:
        yield f"{crossing[0]} {OFFSET_WARNING}"
    cut, scored = manifest["counts"]["truncated"], manifest["counts"]["scored"]
    if cut > _MANY_CUT * scored:
        yield f"{cut:,} of {scored:,} scored responses ({cut / scored:.1%}) {CUT_WARNING}"
    for name, rows in manifest.get("splits", {}).items():
        if not rows:
            yield EMPTY_SPLIT.format(name)


def make_manifest(
    config: RunConfig,
    plan: Plan,
    totals: Totals,
    summary: SelectionSummary,
    files: Sequence[tuple[int, list[list[Any]]]],
    shards: Sequence[Shard],
    rejected: Sequence[str],
) -> dict[str, Any]:
    """The manifest: inputs by content, model by fingerprint, settings, counts and shards; no times, no places."""
    counts = totals.to_json()
    rejected_counts = counts.pop("rejected")
    examples = counts.pop("examples")
    return {
        "format": MANIFEST_FORMAT,
        "fingerprint": plan.fingerprint,
        "mapping": plan.mapping.to_json(),
        "selection": selection_settings(config, plan),
        "inputs": [_input(plan.files[number], fragments) for number, fragments in files],
        "counts": {
            **counts,
            "rejected_total": totals.rejected.total(),
            "prompts": summary.prompts,
            "kept": summary.kept.count,
            "kept_prompts": summary.kept_prompts,
            "size": summary.size,
            "kept_size": summary.kept_size,
        },
        "rejected": rejected_counts,
        "first_rejected": examples,
        "rejected_files": list(rejected),
        "steps": [_step(summary, number, step.name) for number, step in enumerate(config.select)],
        "mean_reward": {"kept": summary.kept.mean(), "dropped": summary.dropped.mean()},
        "shards": [shard.to_json() for shard in shards],
    }


def rows_of_splits(shards: Iterable[Shard]) -> dict[str, int]:
    """The rows of each split by its name; `train` comes first."""
    rows = {TRAIN: 0}
    for shard in shards:
        rows[shard.split] = rows.get(shard.split, 0) + shard.rows
    return rows


def first_schema(output: str, shards: Sequence[Shard]) -> pa.Schema:
    """The columns of the data set, as its first shard has them."""
    with open_for_reading(join(output, shards[0].name)) as file:
        return pq.read_schema(file)


def controls(summary: SelectionSummary, config: RunConfig) -> dict[str, Any]:
    """Mean rewards of what else could have been kept: by chance at equal size, and the longest of each prompt (None where an
    earlier cut, or pairs, leave nothing to compare with)."""
    return {
        "random": summary.random_mean(),
        "longest": summary.longest.mean(),
        "equal": "tokens" if config.model is not None else "characters",
        "sample": len(summary.sample),
    }


def model_of(config: RunConfig, plan: Plan, standards: Standards | None) -> dict[str, Any]:
    """Where the rewards come from; of an ensemble all that it takes to compute them from those of its members."""
    if standards is not None:
        columns = (plan.model["members"], plan.identity["members"], standards.models)
        members = [{**named, **own, **standard._asdict()} for named, own, standard in zip(*columns, strict=True)]
        name = ", ".join(member["name"] for member in members)
        return {"name": name, "revision": None, **plan.identity, "members": members, "responses": standards.responses}
    if config.model is None:
        return {"name": f"column {config.scores.column}", "revision": None, **plan.identity}
    (model,) = config.models
    return {"name": name_of(model), "revision": model.revision, **plan.identity}


def _step(summary: SelectionSummary, number: int, name: str) -> dict[str, Any]:
    """What a step kept: nothing, where nothing was left for any worker to see."""
    return summary.steps.get(number, StepSum(name, 0, 0, 0))._asdict()


def _input(file: InputFile, fragments: list[list[Any]]) -> dict[str, Any]:
    content = digest([value for _, _, value, *_ in fragments])
    rows, responses, scored = (sum(fragment[position] for fragment in fragments) for position in (3, 4, 5))
    return {
        "key": file.key,
        "size": file.size,
        "rows": rows,
        "responses": responses,
        "scored": scored,
        "content": content,
    }
