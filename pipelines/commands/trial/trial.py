"""`bestkept trial OUT CONFIG`: does a selection make better training data than random responses, and than the longest?"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from pipelines.commands.printing import print_result
from pipelines.commands.report import rebuild
from pipelines.commands.signals import ending_with
from pipelines.commands.trial.arms import Example, References, read_arms, read_references
from pipelines.config import RunConfig
from pipelines.config.trial import QUICK, STUDENT, WHOLE, TrialSizes
from pipelines.errors import ConfigError, InputError, ModelLoadError, reporting_broken_devices
from pipelines.finish import dataset_card
from pipelines.finish.claim import read_manifest
from pipelines.finish.versions import latest_or_self
from pipelines.plan import Plan, make_plans, with_absolute_paths
from pipelines.report import trial as words
from pipelines.select.selection import selection_settings
from pipelines.storage import publish
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import join, read_bytes
from pipelines.storage.models import whole_directory
from rm.conversations import load_json

if TYPE_CHECKING:
    from rm.trial import Student, Tokens

log = logging.getLogger(__name__)

_ARMS = ("selection", "random", "longest")
_IN_WORDS = {"selection": "the selection", "random": "random responses", "longest": "the longest responses"}
_RESAMPLES = 2000
_TAIL = 2.5  # percent of the resamples beyond each end of an interval
_STARTS_ANEW = "; nothing is written, and the same command starts again"


@dataclass(frozen=True)
class TrialOptions:
    """The options of the command."""

    student: str | None = None
    reference: str | None = None
    judge: str | None = None
    quick: bool = False
    seeds: int | None = None
    steps: int | None = None

    @property
    def sizes(self) -> TrialSizes:
        """The sizes of the trial: those that are given, and the defaults of a quick or a whole trial for the others."""
        given = {name: value for name in ("seeds", "steps") if (value := getattr(self, name)) is not None}
        return (QUICK if self.quick else WHOLE)._replace(**given)


def run_trial(output: str, config: RunConfig, options: TrialOptions, *, as_json: bool = False) -> dict[str, Any]:
    """Run the trial, print its result, write `trial.json`, and add it to report and card; return the content of `trial.json`.

    Raises `ConfigError` (another configuration than the output's, no reference, peft missing), `InputError`, `ModelLoadError`,
    `StorageError`.
    """
    if find_spec("peft") is None:
        raise ConfigError("bestkept trial needs peft, not installed; run: pip install 'bestkept[lora]'")
    output, config, sizes = latest_or_self(output), with_absolute_paths(config), options.sizes
    manifest = read_manifest(output)
    if manifest is None:
        raise InputError(f"{output} has no manifest.json; give the output.path of a finished run")
    plan = make_plans(config).whole
    _refuse_other_run(output, manifest, config, plan)
    student = whole_directory(options.student or STUDENT, None)
    judge = None if options.judge is None else whole_directory(options.judge, None)
    with ending_with(lambda: _STARTS_ANEW), tempfile.TemporaryDirectory(prefix="bestkept-trial-") as scratch:
        folder = Path(scratch)
        references = read_references(config, plan, reference=options.reference, most=sizes.references, scratch=folder)
        log.info(
            "selecting again, for %d held-out references: the selection, random, the longest", len(references.examples)
        )
        arms = read_arms(config, manifest, references, seeds=sizes.seeds, scratch=folder)
        figures = _measure(arms, references, sizes, student=student, judge=judge)
    judged = figures.pop("judged")
    document = {
        "format": words.FORMAT,
        "student": {"name": _name(options.student or STUDENT), **figures.pop("student")},
        **figures,
        "judge": None if judged is None else {
            "name": _name(options.judge or ""), "selected": _is_one_of(options.judge or "", config), "unit": "reward", **judged
        },
    }  # fmt: skip
    document["sentence"], document["warnings"] = words.sentence(document), list(words.warnings(document))
    publish.replace(join(output, words.NAME), to_json(document))
    _tell(output, manifest)
    if as_json:
        sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        facts = {"sentence": document["sentence"], "warnings": document["warnings"]}
        place = join(output, words.NAME)
        print_result("tried", facts, path=place, table=lambda: [_table(document, place)])
    return document


def _refuse_other_run(output: str, manifest: Mapping[str, Any], config: RunConfig, plan: Plan) -> None:
    """Raise `ConfigError` if an output was not made with this configuration."""
    settings = load_json(to_json(selection_settings(config, plan)))
    differing = [name for name, value in settings.items() if manifest["selection"].get(name) != value]
    if manifest["fingerprint"] != plan.fingerprint:
        differing = ["model, or the columns of input"]
    if differing:
        raise ConfigError(
            f"{output} was not made with this configuration: {', '.join(differing)} differ; give the file and the settings of "
            "that run"
        )


def _measure(
    arms: Mapping[str, Sequence[Sequence[Example]]],
    references: References,
    sizes: TrialSizes,
    *,
    student: Path,
    judge: Path | None,
) -> dict[str, Any]:
    """Fine-tune and measure a student for each arm and seed; return the figures."""
    from rm.engine.device import default_device
    from rm.identity import ModelError
    from rm.trial import Student

    try:
        with reporting_broken_devices():
            model = Student.load(student, max_length=sizes.max_length, device=default_device())
            held = [
                (example, row) for example in references.examples if (row := model.encode(*example[1:])) is not None
            ]
            references = References(references.kind, [example for example, _ in held])
            if len(references.keys) < 2:
                raise InputError(
                    f"the student can lay out the references of {len(references.keys)} prompts, and a trial needs two or more; "
                    "choose another --student, or other references"
                )
            rows = {name: [_encoded(model, part, sizes) for part in arms[name]] for name in _ARMS}
            steps = _equal_steps(rows, sizes)
            likelihoods, answers = _fine_tunes(model, rows, held, sizes, steps, sampled=judge is not None)
            layout = {"layout": model.layout, "max_length": model.max_length}
            del model
            rewards = None if judge is None else _rewards(judge, references, answers, sizes)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    untrained = likelihoods.pop("untrained")
    return {
        "student": {**layout, "rank": sizes.rank, "learning_rate": sizes.learning_rate},
        "references": {"kind": references.kind, "prompts": len(references.keys)},
        "steps": steps,
        "steps_asked": sizes.steps,
        "tokens_per_step": sizes.tokens_per_step,
        "seeds": sizes.seeds,
        "likelihood": {"unit": "nats per token", "untrained": float(untrained.mean()), **compare(likelihoods)},
        "judged": None if rewards is None else compare(rewards),
    }


def _encoded(model: Student, examples: Sequence[Example], sizes: TrialSizes) -> list[Tokens]:
    """Return an arm's responses as tokens, in order, as many as the steps use."""
    rows: list[Tokens] = []
    tokens = 0
    for example in examples:
        if tokens >= sizes.steps * sizes.tokens_per_step:
            break
        row = model.encode(example.prompt, example.response)
        if row is not None:
            rows.append(row)
            tokens += row.response
    return rows


def _equal_steps(rows: Mapping[str, Sequence[Sequence[Tokens]]], sizes: TrialSizes) -> int:
    """Return the number of steps for which every arm has tokens. Raises `InputError` if it is zero."""
    tokens = {name: min(sum(row.response for row in part) for part in parts) for name, parts in rows.items()}
    least = min(tokens, key=lambda name: tokens[name])
    steps = min(sizes.steps, tokens[least] // sizes.tokens_per_step)
    if steps < 1:
        more = "" if sizes.tokens_per_step == QUICK.tokens_per_step else ", or --quick"
        raise InputError(
            f"{_IN_WORDS[least]} have {tokens[least]:,} tokens besides the held-out prompts, and a step takes "
            f"{sizes.tokens_per_step:,}; the trial needs a larger selection{more}"
        )
    return steps


def _fine_tunes(
    model: Student,
    rows: Mapping[str, Sequence[Sequence[Tokens]]],
    held: Sequence[tuple[Example, Tokens]],
    sizes: TrialSizes,
    steps: int,
    *,
    sampled: bool,
) -> tuple[dict[str, np.ndarray], dict[str, list[list[str]]]]:
    """Return the log-likelihoods [seeds, prompts] of the references after each arm's fine-tunes, and sampled answers by seed."""
    from rm.trial import Tuning, into_steps

    prompts = {example.key: example.prompt for example, _ in held}

    def measure() -> np.ndarray:
        return _by_prompt([example.key for example, _ in held], model.log_likelihoods([row for _, row in held]))

    likelihoods = {"untrained": measure()[None]}
    values: dict[str, list[np.ndarray]] = {name: [] for name in _ARMS}
    answers: dict[str, list[list[str]]] = {name: [] for name in _ARMS}
    for seed in range(sizes.seeds):
        for name in _ARMS:
            parts = into_steps(rows[name][seed], sizes.tokens_per_step, steps)
            with model.tuned(parts, Tuning(sizes.rank, sizes.learning_rate, seed)):
                values[name].append(measure())
                if sampled:
                    answers[name].append(
                        model.answers(list(prompts.values()), seed=seed, most_tokens=sizes.answer_tokens)
                    )
            log.info(
                "seed %d of %d, fine-tuned on %s: a token of the references has a log-likelihood of %.4f (untrained %.4f)",
                seed + 1, sizes.seeds, _IN_WORDS[name], values[name][-1].mean(), likelihoods["untrained"].mean(),
            )  # fmt: skip
    return likelihoods | {name: np.stack(parts) for name, parts in values.items()}, answers


def _by_prompt(keys: Sequence[bytes], values: np.ndarray) -> np.ndarray:
    """Return the mean of each prompt's values, in the order in which prompts first appear."""
    places = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    index = [places[key] for key in keys]
    means: np.ndarray = np.bincount(index, weights=values) / np.bincount(index)
    return means


def _rewards(
    judge: Path, references: References, answers: Mapping[str, Sequence[Sequence[str]]], sizes: TrialSizes
) -> dict[str, np.ndarray]:
    """Return the judge's rewards [seeds, prompts] of sampled answers; NaN if an answer cannot be scored, such as an empty one."""
    from rm.engine.device import default_device
    from rm.identity import resolve_dtype
    from rm.scorer import Scorer

    log.info("scoring the answers of the students with the judge")
    prompts = list({example.key: example.prompt for example in references.examples}.values())
    device = default_device()
    scorer = Scorer.load(
        judge,
        dtype=resolve_dtype("auto", device),
        max_length=2 * sizes.max_length,
        too_long="truncate",
        tokens_per_batch=None,
        device=device,
    )

    def score(texts: Sequence[str]) -> list[float]:
        groups = [(prompt, [text]) for prompt, text in zip(prompts, texts, strict=True)]
        return [float(scores.rewards[0]) for scores in scorer.score(groups)]

    return {name: np.array([score(texts) for texts in parts]) for name, parts in answers.items()}


def compare(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the means of each arm's values [seeds, prompts], and the selection's differences from the others, paired by both.

    Intervals come from resampled prompts and seeds. Prompts for which a value is missing (NaN) in any arm are omitted.
    """
    usable = ~np.isnan(np.concatenate([values[name] for name in _ARMS])).any(axis=0)
    arms = {name: values[name][:, usable] for name in _ARMS}
    return {
        "prompts": int(usable.sum()),
        "arms": {name: float(part.mean()) if part.size else None for name, part in arms.items()},
        "differences": {name: estimate(arms["selection"] - arms[name]) for name in _ARMS[1:]},
    }


def estimate(differences: np.ndarray) -> dict[str, float | None]:
    """Return the mean of `differences` [seeds, prompts] and its 95 % interval over both, which needs two or more prompts."""
    seeds, prompts = differences.shape
    if prompts < 2:
        return {"value": float(differences.mean()) if prompts else None, "low": None, "high": None}
    random = np.random.default_rng(0)
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), _RESAMPLES)  # [R, S]
    of_prompts = random.multinomial(prompts, np.full(prompts, 1 / prompts), _RESAMPLES)  # [R, P]
    means = ((of_seeds @ differences) * of_prompts).sum(axis=1) / (seeds * prompts)
    low, high = np.percentile(means, [_TAIL, 100 - _TAIL])
    return {"value": float(differences.mean()), "low": float(low), "high": float(high)}


def _tell(output: str, manifest: Mapping[str, Any]) -> None:
    """Add the result to the card, and to the report if there is one."""
    path = join(output, "README.md")
    card = read_bytes(path)
    if card is not None:
        publish.replace(path, dataset_card.with_trial(card.decode(), words.read_trial(output)).encode())
    if manifest["report"]:
        rebuild(output)


def _name(path: str) -> str:
    """Return the last part of a path, or a hub id; the rest of a path stays private."""
    return path.rstrip("/").rsplit("/", 1)[-1] if "://" in path or os.path.isdir(os.path.expanduser(path)) else path


def _is_one_of(judge: str, config: RunConfig) -> bool:
    models = [*config.models, *config.signal_models.values()]
    return _place(judge) in {_place(model.path) for model in models}


def _place(path: str) -> str:
    """One name for each local directory; for other paths, the path itself."""
    local = os.path.expanduser(path)
    return os.path.realpath(local) if os.path.isdir(local) else path.rstrip("/")


def _table(document: Mapping[str, Any], place: str) -> Table:
    table = Table(show_header=False, title="trial", title_justify="left")
    table.add_row("result", document["sentence"])
    for warning in document["warnings"]:
        table.add_row("", warning)
    table.add_row("fine-tunes", _budget(document))
    shown: list[tuple[str, Mapping[str, Any], Callable[[float], str]]] = [
        ("log-likelihood per token", document["likelihood"], lambda value: f"{value:.4f}")
    ]
    if document["judge"] is not None:
        shown.append((f"reward by {document['judge']['name']}", document["judge"], lambda value: f"{value:.4f}"))
    for title, figures, form in shown:
        arms = ", ".join(f"{name} {form(value)}" for name, value in figures["arms"].items() if value is not None)
        more = f", untrained {form(figures['untrained'])}" if "untrained" in figures else ""
        table.add_row(title, arms + more)
    table.add_row("written", place)
    return table


def _budget(document: Mapping[str, Any]) -> str:
    return (
        f"{document['seeds']} seeds, each {document['steps']:,} steps of {document['tokens_per_step']:,} response tokens; "
        f"adapters of rank {document['student']['rank']}, learning rate {document['student']['learning_rate']:g}"
    )
