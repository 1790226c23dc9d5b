"""`bestkept evaluate`: reads and scores preferences, passes the rewards to `rm.evaluate`, prints and writes its evaluation."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands.app import COMMAND_LINE, is_file
from pipelines.commands.printing import print_result
from pipelines.commands.progress_bar import ShowPart, showing_batches, showing_nothing, showing_work
from pipelines.config import EvaluateConfig, ModelConfig, load, validate
from pipelines.config.signals import RelevanceConfig
from pipelines.corpus.own_files import Place, refuse_places
from pipelines.corpus.preference_rows import preference_rows
from pipelines.errors import ConfigError, InputError, ModelLoadError, StorageError, reporting_broken_devices
from pipelines.report import evaluation_tables, verdict
from pipelines.report.pages import evaluation as page
from pipelines.report.text import percent
from pipelines.storage import files, publish
from pipelines.storage.files import check_writable
from pipelines.storage.models import whole_directory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rm.conversations import Conversation
    from rm.evaluate import Evaluation, Relevance, Stress
    from rm.preferences import Group
    from rm.scorer import GroupScores, Scorer, Work

log = logging.getLogger(__name__)

_MOST_TRAINED_ON = 0.05  # share of the prompts with which a verdict still counts
_TRAINED_ON = (
    "the model was trained on %s %% of these prompts; temperature and verdict are not stored; evaluate it on others, such as "
    "those that data.heldout_fraction keeps out of training, or set store_temperature=true"
)
_GATE = {"gap", "max_touched"}  # the settings of a gate, not of its embedding model

Showing = Callable[[int], AbstractContextManager[Callable[["Work"], None]]]
"""Takes the number of responses, and gives a body the function that it reports each batch to, such as `showing_batches`."""
Working = Callable[[str], AbstractContextManager[ShowPart]]
"""Takes words for some work, and shows them during a body, such as `showing_work`."""


@dataclass(frozen=True)
class _ScoredGroups:
    """The scores of all groups, and the settings of the scorer that gave them."""

    scores: list[GroupScores]
    stressed: Stress | None
    max_length: int
    dtype: str
    relevance: Relevance | None = None
    relevance_cut: int = 0  # responses of which the embedding model reads only a part, or of whose prompts

    @property
    def rewards(self) -> list[npt.NDArray[np.float32]]:
        return [score.rewards for score in self.scores]

    @property
    def truncated(self) -> int:
        return sum(int(score.truncated.sum()) for score in self.scores)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(reason for score in self.scores for reason in score.reasons if reason is not None))


def run_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """`evaluate_model`, and print the tables."""
    document, place = evaluate_model(config, showing_batches, showing_work), config.output.path
    facts = {
        "verdict": document["verdict"],
        "accuracy": document["evaluation"]["accuracy"]["overall"],
        "gated": document["evaluation"]["gated"],
        "temperature_stored": document["temperature_stored"],
    }
    print_result(
        "evaluated", facts, path=place, table=lambda: evaluation_tables.evaluation_tables(document, written_to=place)
    )
    return document


def evaluate_model(config: EvaluateConfig, showing: Showing, working: Working = showing_nothing) -> dict[str, Any]:
    """Evaluate, write evaluation.json and evaluation.html, and print nothing; return the content of evaluation.json.

    `showing` shows the scoring, `working` all other work that may take seconds. Raises `ConfigError`, `InputError`,
    `ModelLoadError` or `StorageError`.
    """
    _refuse_own_output(config)
    if files.is_local(config.output.path):
        check_writable(config.output.path, named=config.output.path)
    temperature_directory = _temperature_directory(config)
    with working("reading preferences"):
        from rm.embedder import refuse_relevance
        from rm.evaluate import Bootstrap, evaluate, share_trained_on
        from rm.identity import ModelError

        groups, rejected = _read(config)
        directory = whole_directory(config.model.path, config.model.revision)
    try:
        trained_on = share_trained_on(directory, groups)
        if config.store_temperature is None and trained_on is not None and trained_on > _MOST_TRAINED_ON:
            temperature_directory = None
            log.warning(_TRAINED_ON, percent(trained_on))
        if config.relevance is not None:
            refuse_relevance(**config.relevance.model_dump(exclude=_GATE))
        with reporting_broken_devices():
            scored = _score(config, directory, groups, showing, working)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    with working("computing the evaluation"):
        evaluation = evaluate(
            groups,
            scored.rewards,  # and no lengths: token counts are cut where the text is
            bootstrap=Bootstrap(config.bootstrap.resamples, config.bootstrap.seed),
            stressed=scored.stressed,
            relevance=scored.relevance,
        )
    stored = None
    if temperature_directory is not None:
        stored = _store(temperature_directory, evaluation, groups, config, trained_on)
    figures = evaluation.to_json()
    document: dict[str, Any] = {
        "verdict": verdict.words_of({**figures["verdict"], "stress": figures["stress"], "trained_on": trained_on}),
        "model": {**config.model.model_dump(), "dtype": scored.dtype, "max_length": scored.max_length},
        "data": {
            "path": config.data.path,
            "part": _part(config),
            "rejected": dict(sorted(rejected.items())),
            "trained_on": trained_on,
        },
        "truncated": scored.truncated,
        "unscored": dict(sorted(scored.reasons.items())),
        "temperature_stored": stored,
        "units": evaluation_tables.units_of(figures),
        "evaluation": figures,
    }
    if config.relevance is not None:
        document["relevance"] = {**config.relevance.model_dump(), "truncated": scored.relevance_cut}
    _write(config.output.path, document)
    return document


def evaluation_config(words: Sequence[str]) -> EvaluateConfig:
    """Return the configuration given by `MODEL DATA KEY.SUB=VALUE...`, a YAML file with settings, or settings alone.

    Raises `ConfigError`.
    """
    remedy = "`bestkept evaluate --help` shows its arguments"
    if not words:
        raise ConfigError(f"MODEL is missing; {remedy}")
    if words[0].endswith((".yaml", ".yml")) and not Path(words[0]).is_dir():
        return load(EvaluateConfig, words[0], words[1:])
    places = [word for word in words if is_file(word)][:2]
    settings = [word for word in words if word not in places]
    named = {word.partition("=")[0] for word in settings}
    free = [key for key in ("model", "data") if f"{key}.path" not in named]
    if len(places) == 1 and free == ["model", "data"]:
        raise ConfigError(f"DATA is missing; {remedy}")
    values = {key: {"path": place} for key, place in zip(free, places, strict=False)}
    return validate(EvaluateConfig, values, settings, where=COMMAND_LINE)


def _refuse_own_output(config: EvaluateConfig) -> None:
    places = [Place("output.path", config.output.path, ("evaluation.json", "evaluation.html"))]
    if Path(config.model.path).expanduser().is_dir():
        places.append(Place("model.path", config.model.path, ("calibration.json",)))
    refuse_places("data.path", [config.data.path], places)


def _part(config: EvaluateConfig) -> str:
    fraction, split = config.data.heldout_fraction, config.data.split
    part = f"held-out part at heldout_fraction {fraction:g}" if fraction else "all rows"
    return part if split is None else f"{part} of the split {split}"


def _read(config: EvaluateConfig) -> tuple[list[Group], Counter[str]]:
    from rm.preferences import PreferenceError, ReadSettings, heldout_split, read_preferences

    try:
        groups, rejected = read_preferences(
            os.path.expanduser(config.data.path),
            ReadSettings(**config.data.reading_options()),
            read_rows=partial(preference_rows, max_row_bytes=config.limits.max_row_bytes),
        )
    except PreferenceError as error:
        raise InputError(str(error)) from error
    if config.data.heldout_fraction:
        groups = heldout_split(groups, config.data.heldout_fraction)[1]
    if not any(group.edges or group.labels or group.scores for group in groups):
        raise InputError(
            f"data.path {config.data.path!r} ({_part(config)}) contains nothing to evaluate; rejected: {dict(rejected)}"
        )
    return groups, rejected


def load_scorer(model: ModelConfig, directory: Path) -> Scorer:
    """Load the scorer of a model with its settings, from a local directory. Raises `rm.identity.ModelError`."""
    from rm.engine.device import resolve_device
    from rm.identity import resolve_dtype
    from rm.scorer import Scorer
    from rm.scores import Outputs

    return Scorer.load(
        directory,
        dtype=resolve_dtype(model.dtype, model.device),
        max_length=model.max_length,
        too_long=model.too_long,
        tokens_per_batch=model.tokens_per_batch,
        device=resolve_device(model.device),
        devices=model.devices,
        outputs=Outputs.of(model.used_outputs),
    )


def _score(
    config: EvaluateConfig, directory: Path, groups: Sequence[Group], showing: Showing, working: Working
) -> _ScoredGroups:
    from rm.evaluate import Bootstrap, stress
    from rm.identity import resolve_dtype

    dtype = resolve_dtype(config.model.dtype, config.model.device)
    with working("loading the model"):
        scorer = load_scorer(config.model, directory)

    def score(asked: Sequence[tuple[Conversation, Sequence[str]]]) -> list[GroupScores]:
        with showing(sum(len(responses) for _, responses in asked)) as report:
            scorer.on_batch = report
            return scorer.score(asked)

    scores = score([(group.prompt, group.responses) for group in groups])
    stressed = stress(
        groups,
        [one.rewards for one in scores],
        lambda asked: [one.rewards for one in score(asked)],
        prompts=config.stress.prompts,
        bootstrap=Bootstrap(config.bootstrap.resamples, config.bootstrap.seed),
    )
    relevance, cut = None, 0
    if config.relevance is not None:
        rewards = [one.rewards for one in scores]
        relevance, cut = _measure_relevance(config.relevance, groups, rewards, stressed, showing)
    return _ScoredGroups(scores, stressed, scorer.template.max_length, dtype, relevance, cut)


def _measure_relevance(
    settings: RelevanceConfig,
    groups: Sequence[Group],
    rewards: Sequence[npt.NDArray[np.float32]],
    stressed: Stress | None,
    showing: Showing,
) -> tuple[Relevance | None, int]:
    """Return the cosines of prompts and responses, and the number of responses in the groups that are only read in part."""
    from rm.embedder import Embedder, cosines_of
    from rm.evaluate import UNSETTLED, measure_relevance

    embedder = Embedder.open(**settings.model_dump(exclude=_GATE))
    cut = []

    def measure(asked: Sequence[tuple[Conversation, Sequence[str]]]) -> Any:
        with showing(sum(1 + len(responses) for _, responses in asked)) as report:  # prompts are embedded, too
            embedder.on_batch = report
            scores = embedder.score(asked)
        cut.append(sum(int(one.truncated.sum()) for one in scores))
        return cosines_of(scores)

    gate = settings.model_dump(include=_GATE)
    relevance = measure_relevance(groups, rewards, stressed, measure, **gate)
    if relevance is None:
        log.warning(UNSETTLED)
    return relevance, cut[0]


def _temperature_directory(config: EvaluateConfig) -> Path | None:
    """Return the directory for the temperature, or None if it is not stored; called before scoring."""
    directory = Path(config.model.path).expanduser()
    if config.store_temperature is False:
        return None
    if not directory.is_dir():
        if config.store_temperature:
            raise ConfigError(
                f"store_temperature is true and model.path {config.model.path!r} is not a local directory; "
                "copy the model to one, or leave store_temperature out"
            )
        return None
    if os.access(directory, os.W_OK):
        return directory
    if config.store_temperature:
        raise StorageError(
            f"cannot write {directory}/calibration.json; grant write access, or set store_temperature=false"
        )
    return None


def _store(
    directory: Path, evaluation: Evaluation, groups: Sequence[Group], config: EvaluateConfig, trained_on: float | None
) -> str | None:
    from rm.evaluate import store_temperature

    if evaluation.calibration is None:
        return None
    known_by = {"data": config.data.path, "fitted_on": _part(config)}
    try:
        path = store_temperature(
            directory,
            evaluation.calibration,
            verdict=evaluation.verdict,
            groups=groups,
            stressed=evaluation.stress,
            output=config.model.reward_of,
            trained_on=trained_on,
            **known_by,
        )
        return str(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {directory}/calibration.json: {files.describe(error)}; set store_temperature=false"
        ) from error


def _write(path: str, document: dict[str, Any]) -> None:
    root = files.absolute(path)
    if files.is_local(root):
        try:
            os.makedirs(files.filesystem(root)[1], exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {files.describe(error)}; choose another output.path") from error
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    publish.replace(files.join(root, "evaluation.html"), page.render(document).encode())
    publish.replace(files.join(root, "evaluation.json"), text.encode())
