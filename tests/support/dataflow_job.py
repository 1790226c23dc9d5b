"""The Dataflow job of a configuration, built as for the service but not submitted: no credentials, no network."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import TestOptions

from pipelines import curate
from pipelines.commands.run import default_scorer
from pipelines.config import Columns, RunConfig
from pipelines.corpus import InputFile
from pipelines.corpus.columns.detection import detect
from pipelines.plan import Plan, PlanPaths
from pipelines.runtime.beam_options import make_runner, prepare_options


def plan_of(config: RunConfig, *, temperature: float | None = 1.5, files: int = 1) -> Plan:
    """A plan of files that nobody opens."""
    mapping = detect(
        ["prompt", "response", *config.input.carry, *([config.scores.column] if config.scores.column else [])],
        format="auto",
        columns=Columns(),
        carry=config.input.carry,
        group_by=[],
        where="test",
        reward=config.scores.column,
    ).mapping
    names = [f"part-{number:05}.parquet" for number in range(files)]
    inputs = tuple(InputFile(f"gs://bucket/corpus/{name}", name, "parquet", None, 2**20, "1") for name in names)
    members = [{"name": model.path, "fingerprint": "f"} for model in config.models]
    return Plan(inputs, mapping, 2048, 2**24, {"members": members}, {}, "f", temperature)


def job_of(config: RunConfig, *, scores: bool = True, files: int = 1) -> Any:
    """The `Job` of the graph of `run`, or of `select`."""
    options = prepare_options(config, ["--no_auth"], scores=scores)
    options.view_as(TestOptions).dry_run = True
    plan = plan_of(config, files=files)
    count = max(1, len(config.models))
    paths = PlanPaths("gs://bucket/whole.json", tuple(f"gs://bucket/{number}.json" for number in range(count)))
    pipeline = beam.Pipeline(runner=make_runner(config.runner), options=options)
    curate.build(pipeline, config, paths, plan, default_scorer(config) if scores else None)
    return pipeline.run().job
