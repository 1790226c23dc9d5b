"""`train` and `evaluate`: the commands of the same names, on files or on preferences in memory."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestkept.inputs import Data, block_of, checked, is_in_memory, model_block, plain, with_files
from pipelines.config import EvaluateConfig, TrainConfig
from pipelines.config.train import PreferencesConfig

if TYPE_CHECKING:
    from bestkept.scoring import RewardModel

_FOLDER = ".preferences"


@dataclass(frozen=True)
class Evaluation:
    """The agreement of a reward model with preferences."""

    verdict: str
    """`better_than_length`, `not_better_than_length`, `not_better_than_chance`, `worse` or `unknown`."""
    sentence: str
    """The verdict as a sentence, with its numbers."""
    warnings: tuple[str, ...]
    """Limits of the verdict, as sentences."""
    accuracy: float | None
    """Share, from 0 to 1, of the comparisons on which the model agrees with the judgement; None without comparisons."""
    interval: tuple[float | None, float | None]
    """The ends of the 95 % interval of `accuracy`, over prompts."""
    figures: dict[str, Any]
    """All numbers, as `evaluation.json` has them under `evaluation`."""
    path: str | None = None
    """The directory of `evaluation.json` and `evaluation.html`; None if they were not written."""

    @classmethod
    def of(cls, figures: Mapping[str, Any], path: str | None = None) -> Evaluation:
        """Return the evaluation with these numbers."""
        from pipelines.report import verdict

        words = verdict.words_of({**figures["verdict"], "stress": figures["stress"]})
        model = figures["accuracy"]["overall"]["model"]
        return cls(
            verdict=words["verdict"],
            sentence=words["sentence"],
            warnings=tuple(words["warnings"]),
            accuracy=model["value"],
            interval=(model["low"], model["high"]),
            figures=dict(figures),
            path=path,
        )

    def __str__(self) -> str:
        """Return the verdict and its warnings as text."""
        return " ".join([self.sentence, *self.warnings])


@dataclass(frozen=True)
class Trained:
    """A trained reward model, accepted as `model` by `score`, `curate`, `evaluate` and `train`."""

    path: str
    """The directory of the checkpoint: an ordinary `AutoModelForSequenceClassification` with its tokenizer."""
    prompts: int
    """Number of prompts in the training data."""
    judgements: dict[str, int]
    """Numbers of judgements by kind: comparisons, and labels of single responses."""
    rejected: dict[str, int]
    """Numbers of rows that could not be used, by reason."""
    notes: tuple[str, ...]
    """Notes on data that were ignored or converted."""
    steps: int
    """Optimiser steps."""
    loss: float
    """The mean training loss, in nats."""
    learning_rate: float
    """The peak learning rate."""
    heldout: Evaluation | None
    """The evaluation on held-out prompts; None if none were held out."""

    def load(self, **settings: Any) -> RewardModel:
        """Return the model for scoring; `settings` are those of `RewardModel`."""
        from bestkept.scoring import RewardModel

        return RewardModel(self.path, **settings)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Restore the caller's random state at the end: a training seeds those of Python, numpy and torch."""
    python = random.getstate()  # before the imports, some of which draw random numbers
    import numpy as np
    import torch

    numpy = np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@_own_random_numbers()
def train(
    data: Any,
    *,
    model: Any,
    output: str | os.PathLike[str],
    heldout: Data | float | None = None,
    progress: bool = False,
    **settings: Any,
) -> Trained:
    """Train a reward model on preferences, as `bestkept train` does.

    `data` is files, rows in memory in any format of preferences, the settings of a block `data` with either under `path`, or a
    list of these for several sources. `model` is the backbone: a directory, a hub id, or the settings of a block `model`.
    `output` is the directory for the checkpoint; the same call resumes an interrupted training. `heldout` is the share of the
    prompts (from 0 to 1) to measure accuracy on, or separate preferences for that. `settings` are blocks of a configuration
    (`stress={"prompts": 0}`), or settings of the block `train` by name: `epochs=2, learning_rate=1e-4`. With `progress` a
    bar is shown in a terminal, and lines are logged elsewhere.

    Raises `ConfigError`, `InputError`, `ModelLoadError` and `StorageError`.
    """
    from pipelines.commands.progress_bar import showing_nothing, showing_training
    from pipelines.commands.train import train_model

    blocks = {name: value for name, value in settings.items() if name in TrainConfig.model_fields}
    options = {name: value for name, value in settings.items() if name not in blocks}
    sources = [block_of(one) for one in (data if _are_sources(data) else [data])]
    values: dict[str, Any] = {**blocks, "model": model_block(model), "output": {"path": os.fspath(output)}}
    if options:
        values["train"] = {**blocks.get("train", {}), **options}
    if heldout is not None:
        values["heldout"] = {"fraction": heldout} if isinstance(heldout, int | float) else block_of(heldout)
    placeholders = {**values, "data": [{**one, "path": _placeholder(one)} for one in sources]}
    if "path" in values.get("heldout", {}):
        placeholders["heldout"] = {**values["heldout"], "path": _placeholder(values["heldout"])}
    checked(TrainConfig, placeholders, "train")
    with _folder_in(os.fspath(output)) as folder:
        values["data"] = [with_files(one, folder, name="data") for one in sources]
        if "heldout" in values:
            values["heldout"] = with_files(values["heldout"], folder, name="heldout")
        config = checked(TrainConfig, values, "train")
        result = train_model(config, showing_training if progress else showing_nothing)
    return Trained(
        path=config.output.path,
        prompts=result.groups,
        judgements=dict(result.judgements),
        rejected=dict(result.rejected),
        notes=tuple(result.notes),
        steps=result.steps,
        loss=result.train_loss,
        learning_rate=result.learning_rate,
        heldout=None if result.heldout is None else Evaluation.of(result.heldout.to_json()),
    )


def evaluate(
    model: Any,
    data: Data,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Evaluation:
    """Measure the agreement of a reward model with preferences, as `bestkept evaluate` does.

    `model` is a directory, a hub id, a `RewardModel` or a `Trained`; `data` is files, or rows in memory in any format of
    preferences. Where the model is a local directory, temperature and verdict are stored in it, unless `store_temperature=False`.
    `output` is a directory for `evaluation.json` and `evaluation.html`, which are not written without it. `settings` are blocks
    of a configuration: `stress={"prompts": 0}`, `bootstrap={"resamples": 500}`.

    Raises `ConfigError`, `InputError`, `ModelLoadError` and `StorageError`.
    """
    from pipelines.commands.evaluate import evaluate_model
    from pipelines.commands.progress_bar import showing_batches, showing_nothing, showing_work

    source = block_of(data)
    with tempfile.TemporaryDirectory(prefix="bestkept-") as folder:
        values = {**settings, "model": model_block(model), "output": {"path": output or os.path.join(folder, "out")}}
        checked(EvaluateConfig, {**values, "data": {**source, "path": _placeholder(source)}}, "evaluate")
        values["data"] = with_files(source, folder, name="data")
        shown: tuple[Callable[..., Any], Callable[..., Any]] = (showing_nothing, showing_nothing)
        if progress:
            shown = (showing_batches, showing_work)
        document = evaluate_model(checked(EvaluateConfig, values, "evaluate"), *shown)
    return Evaluation.of(document["evaluation"], None if output is None else os.fspath(output))


def _are_sources(data: Any) -> bool:
    """Return True for a list of sources (paths, rows in memory or blocks), False for rows: a block has a `path`, no columns."""
    if not isinstance(data, list | tuple) or not data:
        return False
    fields = PreferencesConfig.model_fields.keys()
    return not all(isinstance(one, Mapping) and not ("path" in one and one.keys() <= fields) for one in data)


def _placeholder(block: Mapping[str, Any]) -> Any:
    """Return the path of a block for a first check of all settings, before rows in memory are written."""
    path = block.get("path")
    return "in-memory" if path is not None and is_in_memory(path) else plain(path)


@contextmanager
def _folder_in(output: str) -> Iterator[str]:
    """Provide a folder for rows in memory while a model is trained: inside the output, so that the same call finds the same files
    after an interruption. The folder is removed at the end, and the output with it if it is otherwise empty."""
    if "://" in output:  # refused when the training begins
        with tempfile.TemporaryDirectory(prefix="bestkept-") as folder:
            yield folder
        return
    root = Path(output).expanduser().absolute()
    existed = root.exists()
    try:
        yield str(root / _FOLDER)
    finally:
        shutil.rmtree(root / _FOLDER, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                root.rmdir()
