"""`score`, `select` and `curate`: the commands `score`, `select` and `run`, on files or on rows in memory."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bestkept.inputs import Data, block_of, checked, is_in_memory, model_block, plain, with_files
from bestkept.results import Curated, Scores
from bestkept.rules import Rule, make_pairs
from pipelines.config import RunConfig, read_values
from pipelines.errors import BestkeptError, ConfigError, StorageError

if TYPE_CHECKING:
    import pyarrow

    from pipelines.commands.run import Outcome
    from pipelines.plan import Plan

Result = TypeVar("Result")

# Globals of the process, as loggers are: calls from several threads silence Beam together.
_silencing = threading.Lock()
_silenced = 0


def curate(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig | None = None,
    *,
    input: Data | None = None,
    model: Any = None,
    select: Sequence[Rule] | None = None,
    output: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Curated:
    """Score a corpus and keep the best responses, as `bestkept run` does: from files or rows in memory to a finished data set.

    `config` is the path of a YAML file, or its content. The other arguments override it: `input` is files, rows in memory, or the
    settings of the block `input`; `model` is a directory, a hub id, a `RewardModel`, a `Trained`, or a list of these for an
    ensemble; `select` is a list of steps, such as `[best_of_n(1)]`; `output` is the directory of the data set, or the block
    `output`; `settings` are further blocks, merged with those of `config`: `limits={"verify": True}`. Without an output, the
    data set is in a temporary directory, which is removed with the result. Rows in memory are kept in `scores/inputs/` of the
    output.

    The same call again reuses finished work, and resumes after an interruption. With `progress` a bar is shown in a terminal.
    Raises `BestkeptError`: `ConfigError`, `InputError`, `RejectedError`, `StorageError`, `ConflictError`, `ModelLoadError`.
    """
    values = _merged(_values_of(config), settings)
    if input is not None:
        values = _merged(values, {"input": block_of(input)})
    if model is not None:
        values["model"] = model_block(model)
    if select is not None:
        values["select"] = list(select)
    folder = _place_output(values, output)
    if make_pairs(select):
        values["output"].setdefault("shape", "preference")
    config = _prepared(values, "curate")

    def run() -> Outcome:
        from pipelines.commands.run import default_scorer, run_curation

        return run_curation(config, scorer=default_scorer(config))

    return _curated(config, _working(run, progress=progress), folder)


def score(
    data: Data,
    model: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Scores:
    """Score a corpus with a reward model, as `bestkept score` does, and return the rewards in the order of the corpus.

    `data` is files, rows in memory, or the settings of the block `input`; `model` is a directory, a hub id, a `RewardModel` or a
    `Trained`. `output` is a directory; the score files are in its folder `scores/`, and rows scored there are not scored again.
    Without an output they are in a temporary directory, which is removed with the result. `settings` are further blocks of a
    configuration.
    Raises as `curate` does.
    """
    if isinstance(model, list | tuple):
        raise ConfigError("score takes one model and returns its rewards; use curate to combine several models")
    values: dict[str, Any] = {**_merged(settings, {"input": block_of(data)}), "model": model_block(model)}
    folder = _place_output(values, output)
    config = _prepared(values, "score")

    def run() -> Outcome:
        from pipelines.commands.run import default_scorer, run_scoring

        return run_scoring(config, scorer=default_scorer(config))

    outcome = _working(run, progress=progress)
    if outcome.handed_over:
        raise ConfigError(
            "runner.options lets the service run on alone, so there are no rewards to return; remove no_wait_until_finish, "
            "dry_run or template_location from it"
        )
    counts = {name: value for name, value in outcome.totals.items() if name != "examples"}
    table = _scores_table(config, outcome.plan, {file["key"] for file in outcome.skipped})
    return Scores(config.scores_path, table, counts, config, folder)


def select(
    scores: Scores | Data,
    rules: Sequence[Rule],
    *,
    output: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    reward: str = "reward",
    progress: bool = False,
    **settings: Any,
) -> Curated:
    """Keep the best of the scored responses, as `bestkept select` does; no model is loaded.

    `scores` come from `score`, or are files or rows in memory with a column `reward`. `rules` apply in order, each to the
    responses that the previous rule kept: `[where("reward > 0"), best_of_n(1)]`. The rows of the result are those of the corpus
    with `reward`, `prompt_id` and `response_index` (with the prefix `bestkept_` where the corpus has such a column), or pairs
    where the last rule makes pairs; `output={"path": ..., "shape": "messages"}` sets another shape. Without an output, the
    result is in a temporary directory. Raises as `curate` does.
    """
    if isinstance(scores, Scores):
        values = scores.config.model_dump(exclude_unset=True)
        del values["output"]
        values = _merged(_merged(values, settings), {"scores": {"path": scores.path}})
    else:
        values = _merged(settings, {"input": block_of(scores), "scores": {"column": reward}})
    values["select"] = list(rules)
    folder = _place_output(values, output)
    values["output"].setdefault("shape", "preference" if make_pairs(values["select"]) else "original")
    config = _prepared(values, "select")

    def run() -> Outcome:
        from pipelines.commands.run import run_curation

        return run_curation(config, scorer=None)

    return _curated(config, _working(run, progress=progress), folder)


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the blocks of `values`, with the settings of `more` over theirs."""
    merged = dict(values)
    for name, value in more.items():
        known = merged.get(name)
        merged[name] = {**known, **value} if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def _values_of(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, RunConfig):
        return config.model_dump(exclude_unset=True)
    return {**config} if isinstance(config, Mapping) else read_values(RunConfig, os.fspath(config))


def _place_output(values: dict[str, Any], output: Any) -> Any:
    """Set the block `output`; return its temporary directory, or None if a directory is given."""
    given = {} if output is None else {**output} if isinstance(output, Mapping) else {"path": os.fspath(output)}
    known = values.get("output")
    values["output"] = {**(known if isinstance(known, Mapping) else {}), **given}
    if "path" in values["output"]:
        return None
    folder = tempfile.TemporaryDirectory(prefix="bestkept-", ignore_cleanup_errors=True)
    values["output"]["path"] = os.path.join(folder.name, "out")
    return folder


def _prepared(values: dict[str, Any], where: str) -> RunConfig:
    """Return the configuration in `values`, with rows in memory as a file, written only after all settings are checked."""
    block = values.get("input")
    if not isinstance(block, Mapping) or block.get("path") is None or not is_in_memory(block["path"]):
        return checked(RunConfig, values, where)
    from pipelines.storage.files import absolute, join

    config = checked(RunConfig, {**values, "input": {**block, "path": "in-memory"}}, where)
    folder = join(absolute(config.scores_path), "inputs")
    return checked(RunConfig, {**values, "input": plain(with_files(block, folder, name="the data"))}, where)


def _working(work: Callable[[], Result], *, progress: bool) -> Result:
    """Return the result of `work`, with progress shown or not. Our own errors are raised without the engine's tracebacks, except
    those that ask for a bug report."""
    from pipelines.commands.progress_bar import showing_progress
    from pipelines.runtime import progress as state

    _load_beam()
    state.reset()
    try:
        with _without_engine_logs(), showing_progress() if progress else nullcontext():
            return work()
    except StorageError:
        raise
    except BestkeptError as error:
        raise error.with_traceback(None) from None
    finally:
        _release_model()


def _load_beam() -> None:
    """Load Beam in a separate thread: a Google package keeps an error of its import, and with it every frame below."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(import_module, "apache_beam").result()


def _release_model() -> None:
    """Free the memory of the model: the next call loads its own."""
    if "pipelines.score.load_model" in sys.modules:
        from pipelines.score.load_model import release_model

        release_model()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


@contextmanager
def _without_engine_logs() -> Iterator[None]:
    """Keep Beam's log lines off standard error while it runs: they quote rows, and errors that end a run are raised anyway."""
    global _silenced
    root, beam, silent = logging.getLogger(), logging.getLogger("apache_beam"), logging.NullHandler()
    handlers = list(root.handlers)
    with _silencing:
        _silenced += 1
        beam.addHandler(silent)
        beam.propagate = False
    try:
        yield
    finally:
        with _silencing:
            _silenced -= 1
            beam.propagate = not _silenced
            beam.removeHandler(silent)
        for handler in root.handlers[:]:
            if (
                handler not in handlers and type(handler) is logging.StreamHandler
            ):  # added by `basicConfig`, which Beam calls
                root.removeHandler(handler)


def _curated(config: RunConfig, outcome: Outcome, folder: Any) -> Curated:
    return Curated(outcome.output(config), outcome.manifest or {}, outcome.already_complete, folder)


def _scores_table(config: RunConfig, plan: Plan, skipped: set[str]) -> pyarrow.Table:
    """Return the contents of the score files, in the order of the corpus, as `Scores.table` describes them."""
    import pyarrow as pa

    from pipelines.corpus import split_units
    from pipelines.score import score_files
    from pipelines.score.unit_scorer import UnitScorer
    from pipelines.score.unit_scores import score_directories

    finder = UnitScorer(plan, score_directories(config), None, read_only=True, limits=config.limits)
    names = ["reward", "reason", "prompt_tokens", "response_tokens", "truncated", "source"]
    names += [f"carry.{name}" for name in plan.mapping.carry]
    parts = []
    for number, file in enumerate(plan.files):
        if file.key in skipped:
            continue
        rows = 0  # in the previous units
        for unit in split_units(file, as_planned=True):
            unit_rows = 0
            for found in finder.score_unit(number, unit, finder.read_leading(number, unit)):
                unit_rows += found.footer.rows
                scores = score_files.read_columns(found.path, ["row", "response_index", *names], found.footer)
                place = {
                    "file": pa.array([file.key] * scores.num_rows, pa.string()),
                    "row": pa.array(scores["row"].to_numpy().astype(np.int64) + rows),
                    "response_index": scores["response_index"],
                }
                texts = {name: scores[name] for name in names}
                parts.append(pa.table({**place, **{name: _decoded(column) for name, column in texts.items()}}))
            rows += unit_rows
    return pa.concat_tables(parts)


def _decoded(column: Any) -> Any:
    """Return a column without dictionary encoding."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
