"""Runs, scores and selects: a configuration and flags in, an outcome out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam

from pipelines.config import RunConfig
from pipelines.curate import build, score_models, way_of
from pipelines.errors import ConfigError
from pipelines.finish import claim, hub
from pipelines.finish.hub import PushResult
from pipelines.finish.manifest import OFFSET_WARNING, selection_settings
from pipelines.finish.versions import VersionRun, into_version, is_latest, set_latest, take_turn
from pipelines.plan import Plan, PlanPaths, Plans, make_plans, sweep, with_absolute_paths
from pipelines.report.write import write_report
from pipelines.runtime import counters, progress
from pipelines.runtime.beam_options import prepare_options
from pipelines.runtime.execute import execute
from pipelines.runtime.transforms import Gather
from pipelines.score.load_model import LoadScorer
from pipelines.score.totals import (
    Totals,
    check_limits,
    check_shard,
    publish_skipped,
    publish_totals,
    read_totals,
    sum_totals,
    totals_of,
)
from pipelines.score.unit_scorer import ScorerFactory
from pipelines.score.unit_scores import score_directories, scores_path
from pipelines.score.work import CorpusShard
from pipelines.score.workers import Job, score_ahead
from pipelines.select.selection import Selection
from pipelines.storage import canonical_json
from pipelines.storage.files import absolute, join, read_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a command ends with."""

    plan: Plan
    manifest: dict[str, Any] | None  # of `run` and `select`
    totals: dict[str, Any]  # of `score`
    secs: float
    already_complete: bool = False
    members: tuple[dict[str, Any], ...] = ()  # of `score` with several models: name, fingerprint and totals of each
    skipped: tuple[dict[str, str], ...] = ()  # files that could not be read: key and reason
    pushed: PushResult | None = None  # where `output.push_to_hub` has put it
    handed_over: bool = False  # the runner goes on alone; nothing is known of the end
    turn: VersionRun | None = None  # of `run` and `select` with output.versions

    def output(self, config: RunConfig) -> str:
        """Where the data set is."""
        return config.path if self.turn is None else self.turn.path


def warn_of_offsets(config: RunConfig, plan: Plan) -> None:
    """Once, where a rule compares rewards across prompts and nothing says that they can be."""
    crossing = [step.name for step in config.select if step.crosses_prompts]
    if crossing and not plan.comparable:
        log.warning("%s %s", crossing[0], OFFSET_WARNING)


def run_curation(config: RunConfig, flags: Sequence[str] = (), *, scorer: ScorerFactory | None) -> Outcome:
    """Run the whole graph, and upload the output where that is asked for. Raises `BestkeptError`."""
    target = config.output.push_to_hub
    hub.check(target)
    outcome = run_graph(config, flags, scorer=scorer)
    if target is None or outcome.manifest is None:
        return outcome
    if not is_latest(outcome.turn):
        log.warning(
            "a later run has ended before, so nothing is uploaded to %s: it would replace a newer version", target.repo
        )
        return outcome
    progress.set_stage("uploading")
    return replace(outcome, pushed=hub.push(absolute(outcome.output(config)), target, outcome.manifest))


def run_graph(config: RunConfig, flags: Sequence[str] = (), *, scorer: ScorerFactory | None) -> Outcome:
    """Run the whole graph; without a `scorer`, select from scores that are there. Raises `BestkeptError`."""
    started = time.monotonic()
    options = prepare_options(config, flags, scores=scorer is not None)  # before anything is touched
    config = with_absolute_paths(config)
    plans = make_plans(config)
    plan = plans.whole
    Selection.of(config, plan)
    warn_of_offsets(config, plan)
    progress.set_total_bytes(plan.input_bytes * len(plans.members))
    settings = canonical_json.digest(selection_settings(config, plan))
    turn = take_turn(config, plans, settings)
    config = into_version(config, turn)
    same_plan = claim.claim(config.path, inputs=plan.content_hash, selection=settings, plan=plan.hash)
    sweep(scores_path(config), plans, config.path)
    done = claim.read_complete_manifest(config.path) if same_plan and not config.limits.verify else None
    if done is not None and not done.get("skipped_files"):  # what could not be read then may be mended now
        counts = {**done["counts"], "rejected": done["rejected"], "examples": done["first_rejected"]}
        check_limits(Totals.from_json(counts), config.limits)
        set_latest(turn)
        return Outcome(plan, done, {}, time.monotonic() - started, already_complete=True, turn=turn)
    paths = plans.save(scores_path(config))
    log.info("curating %d files, fingerprint %s", len(plan.files), plan.fingerprint)
    ahead = score_with_workers(config, plans, paths, scorer)
    counted = execute(config.runner, options, lambda root: build(root, config, paths, plan, scorer, turn=turn))
    secs = time.monotonic() - started
    if counted is None:
        return Outcome(plan, None, {}, secs, handed_over=True, turn=turn)
    counted = counters.add_counters(ahead, counted)
    written = claim.require_manifest(config.path)
    ran = counters.write_run_record(join(config.path, "run.json"), "select" if scorer is None else "run", secs, counted)
    for warning in written.get("warnings", ()):
        if OFFSET_WARNING not in warning:  # that came before the work
            log.warning("%s", warning)
    if config.report.write and counted.get("rows"):  # once more, with what the model did and how fast
        write_report(config.path, written, run=ran)
    return Outcome(plan, written, {}, secs, skipped=tuple(written.get("skipped_files", ())), turn=turn)


def run_scoring(
    config: RunConfig, flags: Sequence[str] = (), *, scorer: ScorerFactory | None, shard: CorpusShard | None = None
) -> Outcome:
    """Score the corpus with every model, or a shard of it, and stop. Raises `BestkeptError`, for too many rejected rows too; of a
    shard these are only warned of, since the limit is one of the whole."""
    started = time.monotonic()
    options = prepare_options(config, flags, scores=scorer is not None)
    if shard is not None and config.runner.name != "local":
        raise ConfigError(
            f"--shard is for machines without an engine, and runner.name is {config.runner.name}, which spreads the work itself; "
            "remove one of them"
        )
    if shard is not None and config.score.colocate is not None:
        raise ConfigError(
            "--shard scores files by themselves, and score.colocate regroups the whole; remove one of them"
        )
    config = with_absolute_paths(config)
    plans, scores = make_plans(config), scores_path(config)
    progress.set_total_bytes(plans.whole.input_bytes * len(plans.members) // (1 if shard is None else shard.count))
    sweep(scores, plans)
    paths = plans.save(scores)
    skipping = config.limits.skip_bad_files
    part = "" if shard is None else f"-{shard.index}-of-{shard.count}"
    summaries = [join(scores, plan.fingerprint, f"totals-{plan.hash[:32]}{part}.json") for plan in plans.members]
    listed = join(scores, plans.whole.fingerprint, f"skipped-{plans.whole.hash[:32]}{part}.json")
    ahead = score_with_workers(config, plans, paths, scorer, shard=shard)

    def build_scoring(pipeline: Any) -> None:
        scored, parts = score_models(pipeline, paths, score_directories(config), scorer, shard=shard, **way_of(config))
        for number, (descriptors, summary) in enumerate(zip(scored, summaries, strict=True)):
            own = str(number) if len(scored) > 1 else ""
            _ = (
                descriptors
                | f"CountRows{own}" >> beam.Map(totals_of)
                | f"SumTotals{own}" >> Gather(sum_totals)
                | f"PublishTotals{own}" >> beam.Map(publish_totals, summary, replace=skipping)
            )
        if skipping:
            _ = parts["skipped"] | "PublishSkipped" >> beam.Map(publish_skipped, listed, paths.whole)

    counted = execute(config.runner, options, build_scoring)
    secs = time.monotonic() - started
    if counted is None:
        return Outcome(plans.whole, None, {}, secs, handed_over=True)
    counters.write_run_record(join(scores, f"run{part}.json"), "score", secs, counters.add_counters(ahead, counted))
    skipped = tuple(json.loads(read_bytes(listed) or b"[]")) if skipping else ()
    totals = [read_totals(summary) for summary in summaries]
    if len(totals) == 1:
        check_shard(totals[0], config.limits, shard)
        return Outcome(plans.whole, None, totals[0].to_json(), secs, skipped=skipped)
    members = []
    for named, one in zip(plans.whole.model["members"], totals, strict=True):
        check_shard(one, config.limits, shard, model=named["name"])
        members.append({"name": named["name"], "fingerprint": named["fingerprint"], **one.to_json()})
    return Outcome(plans.whole, None, {}, secs, members=tuple(members), skipped=skipped)


def score_with_workers(
    config: RunConfig, plans: Plans, paths: PlanPaths, scorer: ScorerFactory | None, *, shard: CorpusShard | None = None
) -> dict[str, int]:
    """Where `runner.workers` asks for them, let them score all that is not scored yet; what their models' counters say."""
    if config.runner.workers == 1 or scorer is None:
        return {}
    limits = config.limits.model_copy(update={"verify": False})  # by the graph, of all that is there then
    return score_ahead(Job(paths, score_directories(config), scorer, limits), plans, config.runner.workers, shard)


def default_scorer(config: RunConfig) -> ScorerFactory | None:
    """Loads the model of a plan; None where rewards come with the corpus."""
    return LoadScorer() if config.models else None
