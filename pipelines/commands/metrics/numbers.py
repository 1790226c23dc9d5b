"""The metrics of a command that has ended, each from its only source. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.storage.canonical_json import Json

PREFIX = "bestkept_"
_HELP = {  # name → (unit as UCUM writes it, meaning)
    "exit_code": ("1", "Exit code of the last command: 0 is done; docs/operating.md lists the others."),
    "duration_seconds": ("s", "Time that the last command took."),
    "last_run_timestamp_seconds": ("s", "Unix time at which the last command ended."),
    "last_success_timestamp_seconds": ("s", "Unix time at which a command last ended with 0."),
    "build_info": ("1", "Always 1; the label has the version of bestkept."),
    "rows_read": ("{row}", "Rows of the corpus."),
    "responses_read": ("{response}", "Responses of the corpus; read = scored + rejected."),
    "responses_scored": ("{response}", "Responses with a reward, including those scored by earlier runs."),
    "responses_scored_by_run": ("{response}", "Responses scored by the last command itself."),
    "responses_rejected": ("{response}", "Responses that were rejected, by reason."),
    "responses_truncated": ("{response}", "Scored responses that did not fit into model.max_length, and were cut."),
    "responses_kept": ("{response}", "Responses kept by the selection."),
    "prompts_scored": ("{prompt}", "Prompts with a scored response."),
    "prompts_kept": ("{prompt}", "Prompts with a kept response."),
    "tokens_scored": ("{token}", "Tokens of the scored responses and their prompts."),
    "tokens_kept": ("{token}", "Tokens of the kept responses and their prompts."),
    "characters_kept": ("{character}", "Characters of the kept responses, if no model has a tokenizer."),
    "reward_mean": ("1", "Mean reward of the kept and of the dropped responses."),
    "reward_shift_standard_deviations": (
        "1",
        "Mean reward of the new rows minus that of the previous version, in standard deviations of the old rewards.",
    ),
    "rejected_shift_ratio": (
        "1",
        "Share of rejected responses among the new rows, minus that of the previous version.",
    ),
    "forward_seconds": ("s", "Time that the last command spent in the model, over all workers."),
    "tokens_read_per_second": ("{token}/s", "Tokens read per second in the model."),
    "judgements": ("{judgement}", "Judgements that a training has read, by kind."),
    "loss": ("1", "Mean loss of a training."),
    "heldout_accuracy_ratio": ("1", "Share of held-out comparisons that a trained model orders as judged."),
}


class Metric(NamedTuple):
    """A value, its name without `PREFIX`, and its labels."""

    name: str
    value: float | None  # None if unknown; such metrics are omitted
    labels: Mapping[str, str] = {}

    @property
    def number(self) -> float:
        return float(self.value or 0)

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def unit(self) -> str:
        return _HELP[self.name][0]

    @property
    def help(self) -> str:
        return _HELP[self.name][1]


@dataclass(frozen=True)
class Ended:
    """The documents of a command that has ended; empty if it has none."""

    exit_code: int
    secs: float
    finished: float  # Unix time
    version: str  # of bestkept
    last_success: float | None = None  # Unix time
    counts: Json = field(default_factory=dict)  # from a manifest, from totals, or from an error
    manifest: Json = field(default_factory=dict)
    members: tuple[Json, ...] = ()  # totals of several models, with their names
    scored_by_run: int | None = None
    run: Json = field(default_factory=dict)  # run.json
    drift: Json = field(default_factory=dict)  # drift.json
    training: Any = None  # a `TrainResult`


def metrics_of(ended: Ended) -> list[Metric]:
    """Return all known metrics; those with the same name are adjacent."""
    known = sorted(_metrics(ended), key=lambda metric: list(_HELP).index(metric.name))
    return [metric for metric in known if metric.value is not None]


def _metrics(ended: Ended) -> Iterator[Metric]:
    yield Metric("exit_code", ended.exit_code)
    yield Metric("duration_seconds", round(ended.secs, 3))
    yield Metric("last_run_timestamp_seconds", round(ended.finished, 3))
    yield Metric("build_info", 1, {"version": ended.version})
    if ended.last_success is not None:
        yield Metric("last_success_timestamp_seconds", round(ended.last_success, 3))
    if ended.scored_by_run is not None:
        yield Metric("responses_scored_by_run", ended.scored_by_run)
    if ended.counts:
        yield from _counts(ended.counts, {})
    for member in ended.members:
        yield from _counts(member, {"model": str(member["name"]), "fingerprint": str(member["fingerprint"])})
    if ended.manifest:
        yield from _selection(ended.manifest)
    if throughput := ended.run.get("throughput"):
        yield Metric("forward_seconds", throughput["forward_secs"])
        yield Metric("tokens_read_per_second", throughput["tokens_read_per_sec"])
    if ended.drift:
        yield Metric("reward_shift_standard_deviations", (ended.drift["reward"] or {}).get("shift"))
        yield Metric("rejected_shift_ratio", ended.drift["rejected_shift"])
    if ended.training is not None:
        yield from _training(ended.training)


def _counts(counts: Json, labels: Mapping[str, str]) -> Iterator[Metric]:
    for name, key in (("rows_read", "rows"), ("responses_read", "read"), ("responses_scored", "scored")):
        yield Metric(name, counts[key], labels)
    yield Metric("responses_truncated", counts["truncated"], labels)
    for reason, count in counts["rejected"].items():
        yield Metric("responses_rejected", count, {**labels, "reason": reason})
    if counts["tokens"]:
        yield Metric("tokens_scored", counts["tokens"], labels)


def _selection(manifest: Json) -> Iterator[Metric]:
    counts = manifest["counts"]
    yield Metric("responses_kept", counts["kept"])
    yield Metric("prompts_scored", counts["prompts"])
    yield Metric("prompts_kept", counts["kept_prompts"])
    yield Metric(f"{manifest['controls']['equal']}_kept", counts["kept_size"])
    for side in ("kept", "dropped"):
        yield Metric("reward_mean", manifest["mean_reward"][side], {"side": side})


def _training(result: Any) -> Iterator[Metric]:
    for kind, count in result.judgements.items():
        yield Metric("judgements", count, {"kind": kind})
    yield Metric("loss", result.train_loss)
    if result.heldout is not None:
        yield Metric("heldout_accuracy_ratio", result.heldout.to_json()["accuracy"]["overall"]["model"]["value"])
