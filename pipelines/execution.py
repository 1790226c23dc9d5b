"""Running a graph to its end, wherever it runs, and noting what it took."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import following, progress
from pipelines.config import RunnerConfig
from pipelines.errors import BestkeptError, carrying_errors, failure
from pipelines.plan import plan_at
from pipelines.records import Totals
from pipelines.runners import hands_over, runner_of
from pipelines.skipped import names_of
from pipelines.storage import canonical_json, publish

log = logging.getLogger(__name__)


def execute(
    runner: RunnerConfig, options: PipelineOptions, build_graph: Callable[[Any], None]
) -> dict[str, int] | None:
    """Build and run to the end, and return what the model's counters say, or None where the runner goes on alone; a
    `BestkeptError` of a worker is raised here.

    Raises `StorageError` for anything else, naming type and place but not the message, which may hold row text.
    """
    chosen = runner_of(runner)
    progress.stage("scoring")
    try:
        pipeline = beam.Pipeline(runner=chosen, options=options)
        build_graph(pipeline)
        result = pipeline.run()
        if hands_over(options):
            log.info("%s goes on alone: what it has made is complete when manifest.json is there", runner.name)
            return None
        return following.wait(result, counts_here=runner.name == "local")
    except BestkeptError:
        raise
    except Exception as error:
        raise failure(error, "the pipeline") from error


def publish_totals(totals: Totals, path: str, *, replace: bool = False) -> None:
    """Write them; with `replace`, as skipped files make it necessary, over those of a run that could read other files."""
    with carrying_errors():
        (publish.replace if replace else publish.create_or_equal)(path, canonical_json.to_json(totals.to_json()))


def publish_skipped(left_out: dict[int, str], path: str, plan_path: str) -> None:
    with carrying_errors():
        publish.replace(path, json.dumps(names_of(left_out, plan_at(plan_path))).encode())
