"""The whole graph in one screen: plan → score (→ combine, of several models) → select → export → finish.

`run` is all of it; `score` ends after scoring; `select` starts from score files that are there. Read this first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from pipelines.config import Limits, RunConfig
from pipelines.export.output_columns import Shape
from pipelines.export.train_test_split import Split
from pipelines.export.transform import Export
from pipelines.finish.transform import Finish
from pipelines.finish.versions import VersionRun
from pipelines.plan import Plan, PlanPaths
from pipelines.report.numbers import ReportSettings
from pipelines.report.transform import Observe
from pipelines.runtime.transforms import Gather
from pipelines.score.colocation_transform import Colocate
from pipelines.score.ensemble_transform import CombineScores
from pipelines.score.load_model import LoadAlone
from pipelines.score.skip_transform import LeaveOut
from pipelines.score.transform import ScoreCorpus
from pipelines.score.unit_scorer import ScorerFactory
from pipelines.score.unit_scores import ScoreDirectories, score_directories
from pipelines.score.work import CorpusShard
from pipelines.select.selection import Selection
from pipelines.select.transform import Select

log = logging.getLogger(__name__)


def build(
    pipeline: Any,
    config: RunConfig,
    paths: PlanPaths,
    plan: Plan,
    scorer: ScorerFactory | None,
    *,
    turn: VersionRun | None = None,
) -> None:
    """The graph of `run` (with a scorer) and of `select` (without)."""
    selection = Selection.of(config, plan)
    shape = Shape(config.output.shape, tuple(config.output.include_columns), tuple(config.output.add), plan.temperature)
    scored, parts = score_files(pipeline, paths, score_directories(config), scorer, **way_of(config))
    selected = scored | "Select" >> Select(selection, config.limits, with_schemas=shape.has_input_columns)
    split = Split(config.output.test_fraction, config.output.split_seed)
    bounds = (config.output.rows_per_shard, config.output.bytes_per_shard)
    shards = selected | "Export" >> Export(paths.whole, config.path, shape, selection.needs.kept, split, *bounds)
    if config.report.write:
        facts = facts_of(config, plan)
        observe = Observe(
            paths.whole, config.path, facts, selection.needs.kept, config.report.samples, selection.on_object_store
        )
        parts = {**parts, "report": {"scores": scored, "kept": selected["kept"]} | "Observe" >> observe}
    _ = {**selected, **parts, "shards": shards} | "Finish" >> Finish(paths.whole, config, turn)


def facts_of(config: RunConfig, plan: Plan) -> ReportSettings:
    """What a report is told."""
    unit = "tokens" if config.models else "characters"
    return ReportSettings(unit, plan.temperature, gold=config.report.gold, ensemble=len(config.models) > 1)


def score_files(
    pipeline: Any,
    paths: PlanPaths,
    directories: ScoreDirectories,
    scorer: ScorerFactory | None,
    *,
    limits: Limits,
    scratch: str | None = None,
    accelerator: str | None = None,
    colocate: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The descriptors that selection reads, and what else there is: `standards` of an ensemble, `skipped` files. With `scratch`,
    scores are read only, and what is combined of them goes there."""
    scored, parts = score_models(
        pipeline,
        paths,
        directories,
        scorer,
        limits=limits,
        read_only=scratch is not None,
        accelerator=accelerator,
        colocate=colocate,
    )
    if len(scored) == 1:
        return scored[0], parts
    combined = scored | "Combine" >> CombineScores(paths.whole, directories.path, scratch or directories.path)
    return combined["scores"], {**parts, "standards": combined["standards"]}


def score_models(
    pipeline: Any,
    paths: PlanPaths,
    directories: ScoreDirectories,
    scorer: ScorerFactory | None,
    *,
    limits: Limits,
    read_only: bool = False,
    accelerator: str | None = None,
    colocate: bool = False,
    shard: CorpusShard | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The descriptors of each model's score files, and `skipped` files where they may be. Models score one after the other: none
    finds another in its memory."""
    scored: list[dict[str, Any]] = []
    for number, path in enumerate(paths.members):
        own, load = ("", scorer) if len(paths.members) == 1 else (str(number), LoadAlone(scorer) if scorer else None)
        last = scored[-1]["scores"] if scored and scorer else None
        after = last | f"AwaitModel{number - 1}" >> Gather(no_more) if last else None
        regroup = (
            Colocate(path, directories, scorer=load, limits=limits, accelerator=accelerator)
            if colocate and load is not None
            else None
        )
        corpus = ScoreCorpus(
            path,
            directories,
            scorer=load,
            after=after,
            read_only=read_only,
            limits=limits,
            accelerator=accelerator,
            shard=shard,
            colocate=regroup,
        )
        scored.append(pipeline | f"Score{own}" >> corpus)
    if not limits.skip_bad_files:
        return tuple(each["scores"] for each in scored), {}
    parts = {f"{name}{number}": each[name] for number, each in enumerate(scored) for name in ("scores", "skipped")}
    left = parts | "LeaveOut" >> LeaveOut(paths.whole)
    return left["scores"], {"skipped": left["skipped"]}


def no_more(_scored: Iterable[Any]) -> bool:
    """What comes of a collection when it is complete."""
    return True


def way_of(config: RunConfig) -> dict[str, Any]:
    """How `score_models` goes about it."""
    colocate = config.score.colocate is not None
    return {"limits": config.limits, "accelerator": config.runner.accelerator, "colocate": colocate}
