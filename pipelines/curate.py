"""The whole graph on one screen: plan → score (→ combine, for several models) → select → export → report → finish.

`bestkept run` is `build`; `bestkept select` is `build` without a scorer, from existing score files; `bestkept score` is
`build_scoring`, which ends after scoring. `commands/run.py` prepares and runs these graphs. Read this module first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter

from pipelines.config import RunConfig
from pipelines.errors import carrying_errors
from pipelines.export.output_columns import Shape
from pipelines.export.train_test_split import Split
from pipelines.export.transform import Export
from pipelines.finish.transform import Finish
from pipelines.finish.versions import VersionRun, set_latest
from pipelines.plan import Plan, PlanPaths
from pipelines.report.numbers import ReportSettings
from pipelines.report.transform import Observe
from pipelines.runtime.transforms import Gather
from pipelines.score.colocation_transform import Colocate
from pipelines.score.ensemble_transform import CombineScores
from pipelines.score.load_model import LoadAfterRelease
from pipelines.score.rejected import has_rejected, list_path
from pipelines.score.signals_transform import JoinSignals
from pipelines.score.skip_transform import LeaveOut
from pipelines.score.totals import list_beyond_limits, publish_skipped, publish_totals, sum_totals, totals_of
from pipelines.score.transform import ScoreCorpus
from pipelines.score.unit_scorer import ScorerFactory
from pipelines.score.unit_scores import score_directories
from pipelines.score.work import ELEMENT_SECS, CorpusShard
from pipelines.select.selection import Selection, owner_of
from pipelines.select.transform import Select


def build(
    pipeline: Any,
    config: RunConfig,
    paths: PlanPaths,
    plan: Plan,
    scorer: ScorerFactory | None,
    *,
    version_run: VersionRun | None = None,
) -> None:
    """Build the graph of `run` or, without a scorer, of `select`. Plan files are at `paths`; `plan` is the whole plan."""
    selection, shape, split = Selection.of(config, plan), Shape.of(config, plan), Split.of(config)
    scored, parts = score_files(pipeline, config, paths, scorer)
    listed = list_path(score_directories(config).path, plan.hash)
    select = Select(selection, config.limits, with_schemas=shape.has_input_columns, rejected_list=listed)
    selected = scored | "Select" >> select
    bounds = (config.output.rows_per_shard, config.output.bytes_per_shard)
    owner = owner_of(config, plan)
    export = Export(paths.whole, owner, shape, selection.needs.kept, split, *bounds)
    parts["shards"] = selected | "Export" >> export
    if config.report.write:
        facts, samples, on_store = ReportSettings.of(config, plan), config.report.samples, selection.on_object_store
        observe = Observe(paths.whole, owner, facts, selection.needs.kept, samples, on_store)
        parts["report"] = {"scores": scored, "kept": selected["kept"]} | "Observe" >> observe
    _ = {**selected, **parts} | "Finish" >> Finish(paths.whole, config, owner, version_run)


def build_complete(pipeline: Any, version_run: VersionRun | None) -> None:
    """Build the graph of a run whose output is complete: one step, which makes `latest.json` name its version."""
    _ = pipeline | "Complete" >> beam.Impulse() | "SetLatest" >> beam.Map(_set_latest, version_run)


def _set_latest(_impulse: bytes, version_run: VersionRun | None) -> bool:
    with carrying_errors():
        return set_latest(version_run)


def build_scoring(
    pipeline: Any,
    config: RunConfig,
    paths: PlanPaths,
    scorer: ScorerFactory | None,
    *,
    totals: Sequence[str],
    rejected: Sequence[str],
    skipped: str,
    shard: CorpusShard | None = None,
) -> None:
    """Build the graph of `score`.

    It publishes the totals of each model at the paths `totals`. If more responses are rejected than the limits allow, it lists
    them at the paths `rejected`. If files may be skipped, it lists the skipped ones at the path `skipped`.
    """
    scored, parts = score_models(pipeline, config, paths, scorer, shard=shard)
    for number, (descriptors, path) in enumerate(zip(scored, totals, strict=True)):
        model = str(number) if len(scored) > 1 else ""
        counts = descriptors | f"CountRows{model}" >> beam.Map(totals_of)
        summed = counts | f"SumTotals{model}" >> Gather(sum_totals)
        _ = summed | f"PublishTotals{model}" >> beam.Map(publish_totals, path, replace=config.limits.skip_bad_files)
        rejecting = AsIter(descriptors | f"KeepRejecting{model}" >> beam.Filter(has_rejected))
        _ = summed | f"ListRejected{model}" >> beam.Map(list_beyond_limits, rejecting, config.limits, rejected[number])
    if config.limits.skip_bad_files:
        _ = parts["skipped"] | "PublishSkipped" >> beam.Map(publish_skipped, skipped, paths.whole)


def score_files(
    pipeline: Any, config: RunConfig, paths: PlanPaths, scorer: ScorerFactory | None, *, scratch: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return descriptors of the score files that selection reads, and other parts by name: `standards` of an ensemble, `skipped`.

    With `scratch`, score files are only read, and combined ones are written to that directory.
    """
    directories = score_directories(config)
    scored, parts = score_models(pipeline, config, paths, scorer, read_only=scratch is not None)
    models = len(scored) - len(config.signal_models)
    rewards = scored[0]
    if models > 1:
        combine = CombineScores(paths.whole, directories.path, scratch or directories.path)
        combined = scored[:models] | "Combine" >> combine
        rewards, parts = combined["scores"], {**parts, "standards": combined["standards"]}
    if config.signal_models:
        rewards = (rewards, *scored[models:]) | "JoinSignals" >> JoinSignals(paths.whole)
    return rewards, parts


def score_models(
    pipeline: Any,
    config: RunConfig,
    paths: PlanPaths,
    scorer: ScorerFactory | None,
    *,
    read_only: bool = False,
    shard: CorpusShard | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the descriptors of each model's score files and, if files may be skipped, the `skipped` ones.

    Models score one after the other, so that no two share a worker's memory.
    """
    directories, limits, accelerator = score_directories(config), config.limits, config.runner.accelerator
    is_local = config.runner.name == "local"  # then `runner.workers` have divided the work before
    scored: list[dict[str, Any]] = []
    for number, path in enumerate(paths.members):
        model, load = (
            ("", scorer) if len(paths.members) == 1 else (str(number), LoadAfterRelease(scorer) if scorer else None)
        )
        last = scored[-1]["scores"] if scored and scorer else None
        after = last | f"AwaitModel{number - 1}" >> Gather(_is_complete) if last else None
        colocate = None
        if config.score.colocate is not None and load is not None and number not in config.embeddings:
            colocate = Colocate(path, directories, scorer=load, limits=limits, accelerator=accelerator)
        corpus = ScoreCorpus(
            path,
            directories,
            scorer=load,
            after=after,
            read_only=read_only,
            limits=limits,
            accelerator=accelerator,
            shard=shard,
            element_secs=math.inf if is_local else ELEMENT_SECS,
            colocate=colocate,
        )
        scored.append(pipeline | f"Score{model}" >> corpus)
    if not limits.skip_bad_files:
        return tuple(parts["scores"] for parts in scored), {}
    named = {f"{name}{number}": parts[name] for number, parts in enumerate(scored) for name in ("scores", "skipped")}
    left = named | "LeaveOut" >> LeaveOut(paths.whole)
    return left["scores"], {"skipped": left["skipped"]}


def _is_complete(_scored: Iterable[Any]) -> bool:
    """Return True; Beam calls it once the collection is complete."""
    return True
