"""The content of the manifest: settings, counts, warnings and shards of a selection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.config import RunConfig
from pipelines.corpus import InputFile
from pipelines.corpus.reward_source import name_of
from pipelines.export.shards import OutputShard
from pipelines.export.train_test_split import TRAIN
from pipelines.plan import Plan
from pipelines.score.ensemble import Standards
from pipelines.score.totals import Totals, skipped_files
from pipelines.select.length_correction import Curve
from pipelines.select.selection import offset_warning, selection_settings
from pipelines.select.summary import AlikeTexts, FragmentFacts, SelectionSummary, StepSum
from pipelines.storage.canonical_json import digest

MANIFEST_FORMAT = 1
_MANY_CUT = 0.01  # as a share of the scored responses
CUT_WARNING = (
    "did not fit into model.max_length with their prompts, and were scored cut: what the model read is less than what is "
    "exported; raise it, or leave them out with model.too_long=reject"
)
EMPTY_SPLIT = (
    "the split {} has no rows, and the card leaves it out: no kept prompt is on its side; choose another output.test_fraction "
    "or split_seed"
)


class Results(NamedTuple):
    """The results of the pipeline, in the order in which the manifest lists them."""

    totals: Totals
    summary: SelectionSummary
    files: Sequence[tuple[int, list[FragmentFacts]]]
    shards: Sequence[OutputShard]
    rejected: Sequence[str]  # names of files with rejected rows
    curve: Curve | None = None  # of a length correction
    standards: Standards | None = None  # of an ensemble
    skipped: Mapping[int, str] = {}  # unreadable files: number in the plan → reason
    report: Sequence[str] = ()  # names of the report's files
    evaluations: Mapping[str, Any] = {}  # of the models, by fingerprint


def make_manifest(config: RunConfig, plan: Plan, results: Results) -> dict[str, Any]:
    """The manifest: inputs by content, model by fingerprint, settings, counts and shards; no times and no paths."""
    manifest = _counts_and_files(config, plan, results)
    manifest["model"] = _model(config, plan, results.standards)
    if plan.measures:
        manifest["measures"] = [_measure(plan, one, results.summary) for one in plan.measures]
    if alike := list(_alike(results.summary, config)):
        manifest["alike"] = alike
    if config.signals:
        columns = {name: {"column": one.column} for name, one in config.signals.items() if one.column is not None}
        manifest["signals"] = dict(sorted({**columns, **plan.signals}.items()))
    if results.evaluations:
        manifest["evaluations"] = dict(results.evaluations)
    manifest["skipped_files"] = skipped_files(results.skipped, plan)
    manifest["controls"] = _controls(results.summary, config)
    if results.curve is not None:
        manifest["length_correction"] = results.curve.to_json()
    if config.output.test_fraction is not None:
        manifest["splits"] = _rows_by_split(results.shards)
    manifest["warnings"] = list(warnings_of(config, plan, manifest))
    manifest["report"] = list(results.report)
    return manifest


def warnings_of(config: RunConfig, plan: Plan, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Warnings for the users of the output."""
    if (offsets := offset_warning(config, plan)) is not None:
        yield offsets
    cut, scored = manifest["counts"]["truncated"], manifest["counts"]["scored"]
    if cut > _MANY_CUT * scored:
        yield f"{cut:,} of {scored:,} scored responses ({cut / scored:.1%}) {CUT_WARNING}"
    for name, cut in manifest["counts"].get("truncated_by_signals", {}).items():
        limit = plan.signals[name].get("embedding", {}).get("max_length")
        if limit is not None and cut > _MANY_CUT * scored:
            yield (
                f"{cut:,} of {scored:,} responses ({cut / scored:.1%}) have more than the {limit} tokens that the model of "
                f"signals.{name} reads, or their prompts have; it does not see the rest (signals.{name}.embedding.max_length)"
            )
    if left_out := manifest["counts"].get("left_out"):
        from rm.text.left_out import describe_left_out

        yield describe_left_out(left_out, scored, "scored responses")
    for name, rows in manifest.get("splits", {}).items():
        if not rows:
            yield EMPTY_SPLIT.format(name)


def _counts_and_files(config: RunConfig, plan: Plan, results: Results) -> dict[str, Any]:
    totals, summary = results.totals, results.summary
    counts = totals.to_json()
    rejected_counts = counts.pop("rejected")
    examples = counts.pop("examples")
    return {
        "format": MANIFEST_FORMAT,
        "fingerprint": plan.fingerprint,
        "mapping": plan.mapping.to_json(),
        "selection": selection_settings(config, plan),
        "inputs": [_input(plan.files[number], fragments) for number, fragments in results.files],
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
        "rejected_files": list(results.rejected),
        "steps": [_step(summary, number, step.name) for number, step in enumerate(config.select)],
        **_off_topic(config, summary),
        "mean_reward": {"kept": summary.kept.mean(), "dropped": summary.dropped.mean()},
        "shards": [shard.to_json() for shard in results.shards],
    }


def _measure(plan: Plan, settings: Mapping[str, Any], summary: SelectionSummary) -> dict[str, Any]:
    """A measure and the name of its folder; for test files, also how many responses share words with each file."""
    measure = {**settings, "fingerprint": plan.measure_fingerprint(settings)}
    if settings["kind"] == "ngrams":
        hits = [summary.hits[settings["name"], number] for number in range(len(settings["files"]))]
        measure["files"] = [{**file, "hits": count} for file, count in zip(settings["files"], hits, strict=True)]
    return measure


def _alike(summary: SelectionSummary, config: RunConfig) -> Iterator[dict[str, Any]]:
    """The groups of similar texts of each step that compares texts, and its settings."""
    for number, step in enumerate(config.select):
        rule = step.near_duplicates or step.diverse
        if rule is not None:
            groups = summary.alike.get(number, AlikeTexts())
            settings = {"step": number, "rule": step.name, "of": rule.of, "similarity": rule.similarity}
            yield {**settings, **groups._asdict()}


def _rows_by_split(shards: Iterable[OutputShard]) -> dict[str, int]:
    """The number of rows of each split by name; `train` comes first."""
    rows = {TRAIN: 0}
    for shard in shards:
        rows[shard.split] = rows.get(shard.split, 0) + shard.rows
    return rows


def _controls(summary: SelectionSummary, config: RunConfig) -> dict[str, Any]:
    """Mean rewards of two other selections: a random one of equal size, and the longest responses of each prompt (None where an
    earlier cut, or the selection of pairs, makes a comparison impossible)."""
    return {
        "random": summary.random_mean(),
        "longest": summary.longest.mean(),
        "equal": "tokens" if config.model is not None else "characters",
        "sample": len(summary.sample),
    }


def _model(config: RunConfig, plan: Plan, standards: Standards | None) -> dict[str, Any]:
    """The source of the rewards; for an ensemble also its members, and the numbers by which their rewards are combined."""
    if standards is not None:
        columns = (plan.model["members"], plan.identity["members"], standards.models)
        members = [
            {**name, **identity, **standard._asdict()} for name, identity, standard in zip(*columns, strict=True)
        ]
        name = ", ".join(member["name"] for member in members)
        return {"name": name, "revision": None, **plan.identity, "members": members, "responses": standards.responses}
    if config.model is None:
        return {"name": f"column {config.scores.column}", "revision": None, **plan.identity}
    (model,) = config.models
    return {"name": name_of(model), "revision": model.revision, **plan.identity}


def _step(summary: SelectionSummary, number: int, name: str) -> dict[str, Any]:
    """The counts of a step; zeros if no row reached it."""
    return summary.steps.get(number, StepSum(name, 0, 0, 0))._asdict()


def _off_topic(config: RunConfig, summary: SelectionSummary) -> dict[str, Any]:
    """The counts of the `on_topic` steps, if there are any."""
    rows, dropped = summary.everything.count, []
    for number, step in enumerate(config.select):
        left = summary.steps[number].rows if number in summary.steps else 0
        if step.on_topic is not None:
            settled = summary.gaps.get(number)
            more = {} if settled is None else settled._asdict()
            fields = {"step": number, "signal": step.on_topic.signal, "gap": step.on_topic.gap}
            dropped.append({**fields, **more, "dropped": rows - left})
        rows = left
    return {"on_topic": dropped} if dropped else {}


def _input(file: InputFile, fragments: Sequence[FragmentFacts]) -> dict[str, Any]:
    return {
        "key": file.key,
        "size": file.size,
        "rows": sum(fragment.rows for fragment in fragments),
        "responses": sum(fragment.responses for fragment in fragments),
        "scored": sum(fragment.scored for fragment in fragments),
        "content": digest([fragment.content_hash for fragment in fragments]),
    }
