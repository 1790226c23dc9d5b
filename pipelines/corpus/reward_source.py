"""The source of rewards: the identity of a model or of a column of the corpus, and a model's warnings about the first rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config import ModelConfig, RunConfig
from pipelines.config.signals import EmbeddingConfig
from pipelines.corpus.columns.row_mapping import RowMapping, parse_row
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.errors import ModelLoadError
from pipelines.storage.canonical_json import digest
from pipelines.storage.models import installed_versions, locate, reading_directory
from rm.conversations import holds_more

log = logging.getLogger(__name__)


def name_of(model: ModelConfig | EmbeddingConfig) -> str:
    """The hub id of a model, or the last part of its path; the rest of a path stays private."""
    path = model.path.rstrip("/")
    return path.rsplit("/", 1)[-1] if "://" in path or Path(path).expanduser().is_dir() else path


def template_warnings(
    model: ModelConfig | EmbeddingConfig, rows: Sequence[RowValues], mapping: RowMapping
) -> list[str]:
    """Return warnings about what the model's template refuses or omits, if the first rows contain more than texts."""
    if isinstance(model, EmbeddingConfig):
        return []  # it reads only texts
    samples = [parse_row(row, mapping) for row in rows]
    groups = [(row.prompt, [text for text in row.responses if text is not None]) for row in samples if row.prompt]
    if not any(holds_more(prompt, response) for prompt, responses in groups for response in responses):
        return []  # the tokenizer need not be loaded
    from rm.identity import ModelError
    from rm.preview import Preview

    try:
        preview = Preview.load(reading_directory(model.path, model.revision), max_length=model.max_length)
    except (ModelError, ModelLoadError):
        return []  # loading it for scoring reports the reason
    return preview.warnings(groups)


def reward_fields(
    config: RunConfig, model: ModelConfig | EmbeddingConfig | None, mapping: RowMapping
) -> dict[str, Any]:
    """The fields of a plan that identify the source of rewards: a model, or a column of the corpus."""
    if isinstance(model, EmbeddingConfig):
        return _embedding_fields(config, model, mapping)
    from rm.calibration_record import has_anchor, load_evaluation, load_output, load_temperature
    from rm.closing_token import reading_mark
    from rm.identity import ModelError, identify, resolve_dtype

    context = {"mapping": mapping.to_json(), "max_row_bytes": config.limits.max_row_bytes}
    if model is None:
        fingerprint = digest({"column": config.scores.column, **context})[:24]
        return {"model": {}, "identity": {"column": config.scores.column}, "fingerprint": fingerprint}
    weights = locate(model.path, model.revision)
    try:
        identity = identify(
            weights.directory,
            max_length=model.max_length,
            too_long=model.too_long,
            dtype=resolve_dtype(model.dtype, model.device),
            hashes=weights.hashes,
            reading=reading_mark(weights.directory),
            outputs=model.used_outputs,
        )
        temperature, comparable = load_temperature(weights.directory), has_anchor(weights.directory)
        evaluation = load_evaluation(weights.directory)
        measured = load_output(weights.directory)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    if measured is not None and is_of_another_output(model, measured):
        temperature = evaluation = None
    fingerprint = identity.fingerprint(**context)
    return {
        "model": {
            **weights.planned,
            "versions": installed_versions(),
            "dtype": identity.dtype,
            "max_length": identity.max_length,
            "too_long": identity.too_long,
            "tokens_per_batch": model.tokens_per_batch,
            "device": "cuda" if config.runner.accelerator is not None else model.device,
            "devices": model.devices,
            **({} if model.used_outputs is None else {"outputs": model.used_outputs}),
        },
        "identity": identity.to_json(),
        "fingerprint": fingerprint,
        "temperature": temperature,
        "comparable": comparable,
        "evaluations": {} if evaluation is None else {fingerprint: evaluation},
    }


def _embedding_fields(config: RunConfig, model: EmbeddingConfig, mapping: RowMapping) -> dict[str, Any]:
    """The fields of a plan whose rewards are cosine similarities of prompt and response."""
    from rm.checkpoint.embedding_config import EMBEDDING_VERSION, read_embedding
    from rm.identity import ModelError, identify

    directory = locate(model.path, model.revision).directory
    try:
        settings = read_embedding(directory, model.max_length)
        # `loadable_directory` compares weights and tokenizer
        read = identify(directory, max_length=settings.max_length, too_long="truncate", dtype=model.dtype)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    identity: dict[str, Any] = {"weights": read.weights, "tokenizer": read.tokenizer, "embedding": settings.to_json()}
    identity["version"] = EMBEDDING_VERSION
    context = {"mapping": mapping.to_json(), "max_row_bytes": config.limits.max_row_bytes}
    return {
        "model": {
            "directory": str(directory.resolve()),
            "versions": installed_versions(),
            "dtype": model.dtype,
            "max_length": settings.max_length,
            "too_long": "truncate",
            "tokens_per_batch": model.tokens_per_batch,
            "device": "cuda" if config.runner.accelerator is not None else model.device,
            "devices": model.devices,
            "embedding": settings.to_json(),
            "outputs": {"names": {"foreign": 0}},  # a column of the score files beside the cosine
        },
        "identity": identity,
        "fingerprint": digest({"model": identity, **context})[:24],
        "temperature": None,
        "comparable": True,
        "evaluations": {},
    }


def is_of_another_output(model: ModelConfig, measured: tuple[str, int]) -> bool:
    """Return whether the `measured` output is not the reward, and log the consequences if so."""
    reward = model.reward_of or (None if model.outputs else ("the only one", 0))
    if reward is not None and reward[1] == measured[1]:
        return False
    log.warning(
        "model.path %s: its calibration.json was measured on output %d (%s), and the reward is %s, so that its temperature and "
        "verdict are not used; `bestkept evaluate` with the same model.reward_output measures the reward",
        name_of(model), measured[1], measured[0], "another number" if reward is None else f"output {reward[1]} ({reward[0]})",
    )  # fmt: skip
    return True
