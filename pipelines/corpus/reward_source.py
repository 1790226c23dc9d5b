"""The source of rewards: what identifies a model, or a column of the corpus, and what a model makes of the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config import ModelConfig, RunConfig
from pipelines.corpus.columns.row_mapping import RowMapping, parse_row
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.errors import ModelLoadError
from pipelines.storage.canonical_json import digest
from pipelines.storage.models import installed_versions, locate, reading_directory
from rm.conversations import holds_more


def name_of(model: ModelConfig) -> str:
    """The hub id of a model, or the last part of its path; the rest of a path stays private."""
    path = model.path.rstrip("/")
    return path.rsplit("/", 1)[-1] if "://" in path or Path(path).expanduser().is_dir() else path


def template_warnings(model: ModelConfig, rows: Sequence[RowValues], mapping: RowMapping) -> list[str]:
    """Return what the model's template refuses or leaves out of the first rows, where these hold more than texts."""
    samples = [parse_row(row, mapping) for row in rows]
    groups = [(row.prompt, [text for text in row.responses if text is not None]) for row in samples if row.prompt]
    if not any(holds_more(prompt, response) for prompt, responses in groups for response in responses):
        return []  # the tokenizer need not be loaded
    from rm.identity import ModelError
    from rm.preview import Preview

    try:
        preview = Preview.load(reading_directory(model.path, model.revision), max_length=model.max_length)
    except (ModelError, ModelLoadError):
        return []  # loading it for scoring says why
    return preview.warnings(groups)


def reward_fields(config: RunConfig, model: ModelConfig | None, mapping: RowMapping) -> dict[str, Any]:
    """The fields of a plan that identify the source of rewards: a model, or a column of the corpus."""
    from rm.closing_token import reading_mark
    from rm.identity import ModelError, has_anchor, identify, load_evaluation, load_temperature, resolve_dtype

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
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
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
