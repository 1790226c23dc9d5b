"""Runs, scores and selects: takes a configuration and flags, and returns an outcome."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.commands.verdict import log_verdicts
from pipelines.config import RunConfig
from pipelines.corpus.reward_source import name_of
from pipelines.curate import build, build_complete, build_scoring
from pipelines.errors import ConfigError
from pipelines.finish import claim, hub
from pipelines.finish.drift_check import check_drift
from pipelines.finish.hub import PushResult
from pipelines.finish.versions import VersionRun, into_version, is_latest, set_latest, take_turn
from pipelines.plan import Plan, PlanPaths, Plans, make_plans, sweep, with_absolute_paths
from pipelines.report.write import write_report
from pipelines.runtime import counters, progress
from pipelines.runtime.beam_options import makes_template, prepare_options
from pipelines.runtime.execute import execute
from pipelines.score.load_model import LoadScorer
from pipelines.score.rejected import list_path
from pipelines.score.totals import Totals, check_limits, check_shard, read_totals
from pipelines.score.unit_scorer import ScorerFactory
from pipelines.score.unit_scores import score_directories, scores_path
from pipelines.score.work import CorpusShard
from pipelines.score.workers.launcher import Job, run_workers
from pipelines.select.selection import OFFSET_WARNING, Selection, offset_warning, owner_of
from pipelines.storage.files import absolute, join, read_bytes
from pipelines.storage.owner import Owner

log = logging.getLogger(__name__)

Begin = Callable[[Plan, str, str | None], None]
"""(plan, directory of the output, its version): called once everything is prepared, before any work."""


@dataclass(frozen=True)
class Outcome:
    """The result of a `run`, `select` or `score`."""

    plan: Plan
    manifest: dict[str, Any] | None  # of `run` and `select`
    totals: dict[str, Any]  # of `score`
    secs: float
    already_complete: bool = False
    members: tuple[dict[str, Any], ...] = ()  # of `score` with several models: name, fingerprint and totals of each
    skipped: tuple[dict[str, str], ...] = ()  # files that could not be read: key and reason
    pushed: PushResult | None = None  # the upload for `output.push_to_hub`
    handed_over: bool = False  # the runner continues alone; its end is unknown
    version_run: VersionRun | None = None  # of `run` and `select` with output.versions
    record: dict[str, Any] | None = None  # the content of run.json, where this run has written it

    def output(self, config: RunConfig) -> str:
        """Return the path of the data set."""
        return config.path if self.version_run is None else self.version_run.path


@dataclass(frozen=True)
class Run:
    """A prepared `run` or `select`: its inputs are frozen and its output is claimed, and no work is done yet."""

    config: RunConfig  # with absolute paths; with output.versions, its output is the version
    options: Any  # Beam's
    plans: Plans
    scorer: ScorerFactory | None
    owner: Owner
    version_run: VersionRun | None
    same_plan: bool  # an earlier run has claimed the output for this very plan
    started: float  # monotonic seconds


@dataclass(frozen=True)
class ScoringRun:
    """A prepared `score` of the whole corpus or of a shard."""

    config: RunConfig  # with absolute paths
    options: Any  # Beam's
    plans: Plans
    paths: PlanPaths
    shard: CorpusShard | None
    started: float  # monotonic seconds

    @property
    def record_path(self) -> str:
        return join(scores_path(self.config), f"run{self._suffix}.json")

    @property
    def totals_paths(self) -> list[str]:
        """The files for the totals of each model."""
        return [self._path("totals", plan) for plan in self.plans.members]

    @property
    def rejected_paths(self) -> list[str]:
        """The files for the list of each model's rejected responses, if there are too many of them."""
        return [list_path(scores_path(self.config), plan.hash, self._suffix) for plan in self.plans.members]

    @property
    def skipped_path(self) -> str:
        """The file for the list of skipped input files."""
        return self._path("skipped", self.plans.whole)

    def _path(self, name: str, plan: Plan) -> str:
        return join(scores_path(self.config), plan.fingerprint, f"{name}-{plan.hash[:32]}{self._suffix}.json")

    @property
    def _suffix(self) -> str:
        return "" if self.shard is None else f"-{self.shard.index}-of-{self.shard.count}"


def run_curation(
    config: RunConfig, flags: Sequence[str] = (), *, scorer: ScorerFactory | None, begin: Begin | None = None
) -> Outcome:
    """Run the whole graph, and upload the output where `output.push_to_hub` is set. Raises `BestkeptError`."""
    target = config.output.push_to_hub
    hub.check(target)
    outcome = run_graph(config, flags, scorer=scorer, begin=begin)
    if target is None or outcome.manifest is None:
        return outcome
    if not is_latest(outcome.version_run):
        log.warning(
            "a later run ended first, so nothing is uploaded to %s: it would replace a newer version", target.repo
        )
        return outcome
    progress.set_stage("uploading")
    return replace(outcome, pushed=hub.push(absolute(outcome.output(config)), target, outcome.manifest))


def run_graph(
    config: RunConfig, flags: Sequence[str] = (), *, scorer: ScorerFactory | None, begin: Begin | None = None
) -> Outcome:
    """Run the whole graph; without a `scorer`, select from existing scores. Raises `BestkeptError`."""
    # 1. prepare: check the settings, freeze the plans, claim the output
    run = prepare(config, flags, scorer=scorer)
    config, plan = run.config, run.plans.whole
    if begin is not None:
        begin(plan, config.path, None if run.version_run is None else run.version_run.version)
    # 2. return if an earlier run has completed this output
    if (complete := complete_outcome(run)) is not None:
        if makes_template(run.options):  # a launch must stage a job, even if there is no work
            log.info("the output is complete; the job only reports this")
            execute(config.runner, run.options, lambda pipeline: build_complete(pipeline, run.version_run))
        return complete
    # 3. score with the worker processes of this machine, if there are several
    paths = run.plans.save(scores_path(config))
    count = len(plan.files)
    log.info("reading %s file%s; fingerprint %s", f"{count:,}", "" if count == 1 else "s", plan.fingerprint)
    worker_counters = score_with_workers(config, run.plans, paths, scorer)
    # 4. execute the graph, which finds what the workers have scored
    job_counters = execute(
        config.runner,
        run.options,
        lambda pipeline: build(pipeline, config, paths, plan, scorer, version_run=run.version_run),
    )
    # 5. conclude: record the throughput, pass on the warnings of the manifest
    return conclude(run, worker_counters, job_counters)


def prepare(config: RunConfig, flags: Sequence[str], *, scorer: ScorerFactory | None) -> Run:
    """Check the settings, freeze the plans, take a version's turn and claim the output. Raises `BestkeptError`."""
    started = time.monotonic()
    options = prepare_options(config, flags, scores=scorer is not None)  # before anything is touched
    config = with_absolute_paths(config)
    plans = make_plans(config)
    plan = plans.whole
    Selection.of(config, plan)  # raises if a step is impossible
    warn_of_offsets(config, plan)
    log_verdicts(config, plan)
    progress.set_total_bytes(plan.input_bytes * len(plans.members))
    version_run = take_turn(config, plans, owner_of(config, plan).selection)
    config = into_version(config, version_run)
    owner = owner_of(config, plan)
    known_by = {"inputs": owner.inputs, "selection": owner.selection, "plan": plan.hash}
    same_plan = claim.claim(owner.output, **known_by, evaluations=plan.evaluations)
    sweep(scores_path(config), plans, config.path)
    return Run(config, options, plans, scorer, owner, version_run, same_plan, started)


def warn_of_offsets(config: RunConfig, plan: Plan) -> None:
    """Warn once if a rule compares rewards across prompts and the model does not promise that they are comparable."""
    if (offsets := offset_warning(config, plan)) is not None:
        log.warning("%s", offsets)


def warn_of_nothing_kept(manifest: Mapping[str, Any]) -> None:
    """Warn if responses were scored and none is kept, and name the step that drops the last ones."""
    counts = manifest["counts"]
    step = next((step for step in manifest["steps"] if not step["rows"]), None)
    if not counts["scored"] or counts["kept"] or step is None:
        return
    lone = step["rule"] in ("best_of_n", "pairs") and counts["prompts"] == counts["scored"]
    log.warning(
        "nothing was kept: of %s scored responses, the step %s left none; %s",
        f"{counts['scored']:,}",
        step["rule"],
        "every prompt has one response, and the step chooses among several: use top, threshold or where"
        if lone
        else "loosen its settings; `bestkept select --explain PROMPT` says why each response to a prompt is dropped",
    )


def complete_outcome(run: Run) -> Outcome | None:
    """Return the outcome of an earlier run that has completed this output; None if there is work to do.

    Raises `InputError` if that run rejected more rows than `limits` allow now, and `ConflictError` if the output belongs to
    another selection or contains other shards.
    """
    if not run.same_plan or run.config.limits.verify:
        return None
    manifest = claim.read_complete_manifest(run.owner)
    if manifest is None or manifest.get("skipped_files"):  # a file that was unreadable then may be readable now
        return None
    counts = {**manifest["counts"], "rejected": manifest["rejected"], "examples": manifest["first_rejected"]}
    check_limits(Totals.from_json(counts), run.config.limits, listed=join(run.owner.output, "rejected"))
    check_drift(run.version_run, run.config.limits)
    set_latest(run.version_run)
    secs = time.monotonic() - run.started
    return Outcome(run.plans.whole, manifest, {}, secs, already_complete=True, version_run=run.version_run)


def conclude(run: Run, worker_counters: Mapping[str, int], job_counters: Mapping[str, int] | None) -> Outcome:
    """Write `run.json`, log the manifest's warnings, and write the report again with the throughput.

    `job_counters` is None if the runner continues alone: then there is no manifest yet, and nothing to do.
    """
    secs = time.monotonic() - run.started
    path, plan = run.config.path, run.plans.whole
    if job_counters is None:
        return Outcome(plan, None, {}, secs, handed_over=True, version_run=run.version_run)
    counted = counters.add_counters(worker_counters, job_counters)
    manifest = claim.require_manifest(path)
    command = "select" if run.scorer is None else "run"
    times = counters.times_of([step.name for step in run.config.select], counted)
    more = {"steps": times, **{name: manifest.get(name) for name in ("signals", "on_topic")}}
    record = counters.write_run_record(join(path, "run.json"), command, secs, counted, more=more)
    for warning in manifest.get("warnings", ()):
        if OFFSET_WARNING not in warning:  # `prepare` has logged that one
            log.warning("%s", warning)
    warn_of_nothing_kept(manifest)
    if run.config.report.write and counted.get("rows"):
        progress.set_stage("reporting")
        write_report(path, manifest, run=record)
    skipped = tuple(manifest.get("skipped_files", ()))
    return Outcome(plan, manifest, {}, secs, skipped=skipped, version_run=run.version_run, record=record)


def run_scoring(
    config: RunConfig,
    flags: Sequence[str] = (),
    *,
    scorer: ScorerFactory | None,
    shard: CorpusShard | None = None,
    begin: Begin | None = None,
) -> Outcome:
    """Score the corpus with every model, or a shard of it, and stop.

    Raises `BestkeptError`, also for too many rejected rows; those of a shard only cause a warning, since the limit applies to
    the whole corpus.
    """
    # 1. prepare: check the settings, freeze the plans
    run = prepare_scoring(config, flags, scorer=scorer, shard=shard)
    if begin is not None:
        begin(run.plans.whole, scores_path(run.config), None)
    # 2. score with the worker processes of this machine, if there are several
    worker_counters = score_with_workers(run.config, run.plans, run.paths, scorer, shard=shard)
    # 3. execute the graph, which finds what the workers have scored
    totals, rejected, skipped = run.totals_paths, run.rejected_paths, run.skipped_path
    job_counters = execute(
        run.config.runner,
        run.options,
        lambda pipeline: build_scoring(
            pipeline, run.config, run.paths, scorer, totals=totals, rejected=rejected, skipped=skipped, shard=shard
        ),
    )
    # 4. conclude: record the throughput, check the limits
    return conclude_scoring(run, worker_counters, job_counters)


def prepare_scoring(
    config: RunConfig, flags: Sequence[str], *, scorer: ScorerFactory | None, shard: CorpusShard | None
) -> ScoringRun:
    """Check the settings, freeze the plans and write them. Raises `BestkeptError`."""
    started = time.monotonic()
    options = prepare_options(config, flags, scores=scorer is not None)
    if shard is not None and config.runner.name != "local":
        raise ConfigError(
            f"--shard is for machines without an engine, and runner.name is {config.runner.name}, which distributes the work; "
            "remove one of them"
        )
    if shard is not None and config.score.colocate is not None:
        raise ConfigError(
            "--shard scores files separately, and score.colocate regroups the whole corpus; remove one of them"
        )
    config = with_absolute_paths(config)
    plans, scores = make_plans(config), scores_path(config)
    log_verdicts(config, plans.whole)
    progress.set_total_bytes(plans.whole.input_bytes * len(plans.members) // (1 if shard is None else shard.count))
    sweep(scores, plans)
    return ScoringRun(config, options, plans, plans.save(scores), shard, started)


def conclude_scoring(
    run: ScoringRun, worker_counters: Mapping[str, int], job_counters: Mapping[str, int] | None
) -> Outcome:
    """Write `run.json` and read the totals. Raises `InputError` if `limits` do not allow them."""
    secs = time.monotonic() - run.started
    plan, limits = run.plans.whole, run.config.limits
    if job_counters is None:
        return Outcome(plan, None, {}, secs, handed_over=True)
    counted = counters.add_counters(worker_counters, job_counters)
    record = counters.write_run_record(run.record_path, "score", secs, counted)
    skipped = tuple(json.loads(read_bytes(run.skipped_path) or b"[]")) if limits.skip_bad_files else ()
    totals = [read_totals(path) for path in run.totals_paths]
    if len(totals) == 1:
        check_shard(totals[0], limits, run.shard, listed=run.rejected_paths[0])
        return Outcome(plan, None, totals[0].to_json(), secs, skipped=skipped, record=record)
    members, alone = [], [{"name": name_of(model), "fingerprint": plan.fingerprint} for model in run.config.models]
    named = [*plan.model.get("members", alone), *plan.signals.values()]
    for member, member_totals, listed in zip(named, totals, run.rejected_paths, strict=True):
        check_shard(member_totals, limits, run.shard, model=member["name"], listed=listed)
        members.append({"name": member["name"], "fingerprint": member["fingerprint"], **member_totals.to_json()})
    return Outcome(plan, None, {}, secs, members=tuple(members), skipped=skipped, record=record)


def score_with_workers(
    config: RunConfig, plans: Plans, paths: PlanPaths, scorer: ScorerFactory | None, *, shard: CorpusShard | None = None
) -> dict[str, int]:
    """Let the `runner.workers` processes, if there are several, score everything that is not scored yet; return their
    counters."""
    if config.runner.workers == 1 or scorer is None:
        return {}
    limits = config.limits.model_copy(update={"verify": False})  # the graph verifies all scores afterwards
    return run_workers(Job(paths, score_directories(config), scorer, limits), plans, config.runner.workers, shard)


def default_scorer(config: RunConfig) -> ScorerFactory | None:
    """Return the loader of a plan's model; None if the corpus contains the rewards."""
    return LoadScorer() if config.models else None
