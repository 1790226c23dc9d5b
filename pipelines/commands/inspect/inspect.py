"""`bestkept inspect`: describes how files are read, before a run spends time on them. Reads a bounded part, writes no file.

The result is one mapping, which `--json` prints: files, rows, columns, and the files as a corpus and as preferences, if they can
be read as such. `tables.py` renders it for people.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands.inspect.preferences import describe_preferences
from pipelines.commands.inspect.sample import FIRST_ROWS, ROWS_A_PLACE, SampledRows, all_units, count_rows, sample_rows
from pipelines.commands.inspect.statistics import (
    PromptResponses,
    column_statistics,
    response_statistics,
    token_statistics,
)
from pipelines.config import InspectConfig
from pipelines.corpus import InputFile, column_names
from pipelines.corpus.columns.detection import AmbiguousError, Detection, UndetectedError, detect
from pipelines.corpus.columns.row_mapping import RowMapping, parse_row
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import with_codec
from pipelines.corpus.listing import first_columns, list_files
from pipelines.errors import InputError, join_names
from pipelines.storage.models import carrying_model_errors, reading_directory
from rm.conversations import Conversation, UnusableError, describe_response, to_messages, tools_in

if TYPE_CHECKING:
    from rm.preview import Preview

_FILES_COMPARED = 32
_FILES_LISTED = 20


def inspect(config: InspectConfig, *, shown: int) -> dict[str, Any]:
    """Return the description of the files, with the first `shown` conversations.

    Raises `InputError` for files that cannot be read, and `ModelLoadError`. A format that cannot be detected is not an error: the
    mapping then contains the question for the user, see `question`.
    """
    limit = config.limits.max_row_bytes
    files = [with_codec(file) for file in list_files(config.files)]
    names, first, where = first_columns(files, max_row_bytes=limit)
    detected = _detect(config, names, first, where)
    mapping = detected.mapping if isinstance(detected, Detection) else None
    if mapping is not None:
        _refuse_mixed(files, mapping, max_row_bytes=limit)
    preview = _preview(config)
    units = all_units(files)
    sampled = sample_rows(units, mapping.needed_columns() if mapping else [], max_row_bytes=limit)
    counted = count_rows(units, max_row_bytes=limit)
    rows = [row.value for row in sampled.rows if not isinstance(row.value, str)]
    names = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    roles = {name: role for role, name in mapping.to_json().items() if isinstance(name, str)} if mapping else {}
    with carrying_model_errors():
        corpus = _describe_corpus(detected, sampled, preview, shown=shown)
        preferences = describe_preferences(
            config.data, names, [row.value for row in sampled.rows], preview=preview, shown=shown
        )
    return {
        "path": config.input.path,
        "files": _describe_files(files),
        "rows": {"count": counted.rows, "exact": counted.exact},
        "looked_at": _describe_sample(sampled),
        "columns": column_statistics(names, rows, roles),
        "corpus": corpus,
        "preferences": preferences,
        "model": _describe_model(config, preview),
    }


@contextmanager
def named_path(path: str) -> Iterator[str]:
    """The path to inspect; for `-`, a temporary file with the lines of standard input."""
    if path != "-":
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        name = Path(directory, "stdin.jsonl")
        with name.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield str(name)


def question(document: Mapping[str, Any]) -> str | None:
    """Return the question to answer before a run if the files are neither a corpus nor preferences for certain; else None."""
    views = [document["corpus"], document["preferences"]]
    if any(view["detected"] for view in views):
        return None
    ambiguous = [view for view in views if view["ambiguous"]] or views[:1]
    return "; or, for `bestkept train`: ".join(view["question"] for view in ambiguous)


def _detect(
    config: InspectConfig, names: Sequence[str], rows: Sequence[RowValues], where: str
) -> Detection | InputError:
    """Return the detected mapping, or the error as part of the answer; raise it if the user configured how to read the files."""
    try:
        settings = config.input
        return detect(
            names,
            rows=rows,
            format=settings.format,
            columns=settings.columns,
            where=where,
            response=settings.response,
            repeated_prompt=settings.repeated_prompt,
        )
    except InputError as error:
        if {"format", "columns"} & config.input.model_fields_set:
            raise
        return error


def _refuse_mixed(files: Sequence[InputFile], mapping: RowMapping, *, max_row_bytes: int) -> None:
    """Raise `InputError` if one of some files, spread over all, lacks a mapped column of the first file."""
    needed = [name for name in (mapping.messages, mapping.prompt, mapping.response, mapping.responses) if name]
    needed = [mapping.column_of(name) for name in needed]
    step = max(1, len(files) // _FILES_COMPARED)
    for file in files[::step]:
        names = column_names(file, max_row_bytes=max_row_bytes)
        missing = [name for name in needed if name not in names]
        if names and missing:
            raise InputError(
                f"input file {file.path} has no column {missing[0]!r} (it has {join_names(names)}), and {files[0].path} has; all "
                "files of input.path must have the same columns: inspect and run them separately, with separate patterns"
            )


def _preview(config: InspectConfig) -> Preview | None:
    if config.model is None:
        return None
    from rm.preview import Preview

    directory = reading_directory(config.model.path, config.model.revision)
    with carrying_model_errors():
        return Preview.load(directory, max_length=config.model.max_length)


def _describe_model(config: InspectConfig, preview: Preview | None) -> dict[str, Any] | None:
    if config.model is None or preview is None:
        return None
    return {
        "path": config.model.path,
        "template": preview.template.kind,
        "max_length": preview.template.max_length,
        "special_tokens": preview.special_tokens,
    }


def _describe_files(files: Sequence[InputFile]) -> dict[str, Any]:
    names = ((file.layout or file.kind, file.codec) for file in files)
    kinds = Counter(".".join(filter(None, name)) for name in names)
    return {
        "count": len(files),
        "bytes": sum(file.size for file in files),
        "kinds": dict(sorted(kinds.items())),
        "first": [{"key": file.key, "bytes": file.size} for file in files[:_FILES_LISTED]],
    }


def _describe_sample(sampled: SampledRows) -> dict[str, Any]:
    described = "all rows"
    if not sampled.whole:
        described = f"the first {FIRST_ROWS:,} rows"
        if sampled.places:
            described += f", and up to {ROWS_A_PLACE} from each of {sampled.places} places spread over the rest"
    return {"rows": len(sampled.rows), "all": sampled.whole, "places": sampled.places, "described": described}


def _describe_corpus(
    detected: Detection | InputError, sampled: SampledRows, preview: Preview | None, *, shown: int
) -> dict[str, Any]:
    if isinstance(detected, InputError):
        ambiguous = isinstance(detected, AmbiguousError)
        ways = [way.setting for way in detected.readings] if isinstance(detected, AmbiguousError) else []
        why = detected.why if isinstance(detected, UndetectedError) else detected.message
        return {"detected": False, "ambiguous": ambiguous, "why": why, "question": detected.message, "settings": ways}
    samples = [parse_row(row.value, detected.mapping) for row in sampled.rows]
    rejected: Counter[str] = Counter()
    first: dict[str, str] = {}
    usable_rows: list[PromptResponses] = []
    examples: list[dict[str, Any]] = []
    for row, sample in zip(sampled.rows, samples, strict=True):
        reasons = [reason for reason in sample.reasons if reason is not None]
        rejected.update(reasons)
        for reason in reasons:
            first.setdefault(reason, f"{row.file.key}, {row.place}")
        usable = [response for response in sample.responses if response is not None]
        if sample.prompt is not None and usable:
            usable_rows.append(PromptResponses(sample.prompt, usable))
            if len(examples) < shown:
                examples.append(_example(sample.prompt, usable, preview, place=f"{row.file.key}, {row.place}"))
    read = sum(len(sample.responses) for sample in samples)
    return {
        "detected": True,
        "ambiguous": False,
        "format": detected.mapping.format,
        "mapping": {name: value for name, value in detected.mapping.to_json().items() if value},
        "response": detected.response and {"taken": detected.response.taken, "why": detected.response.why},
        "setting": detected.reading.setting,
        "why": detected.reading.why,
        "others": [{"why": other.why, "setting": other.setting} for other in detected.alternatives],
        "notes": [*detected.notes, *(preview.warnings(usable_rows) if preview else [])],
        "responses_read": read,
        "rejected": {reason: {"responses": rejected[reason], "first": first[reason]} for reason in sorted(rejected)},
        "rejected_fraction": rejected.total() / read if read else None,
        "figures": response_statistics(usable_rows),
        "tokens": preview and token_statistics(usable_rows, preview.lengths, max_length=preview.template.max_length),
        "first": examples,
    }


def _example(prompt: Conversation, responses: Sequence[str], preview: Preview | None, *, place: str) -> dict[str, Any]:
    example: dict[str, Any] = {
        "place": place,
        "prompt": to_messages(prompt),
        "responses": [*map(describe_response, responses)],
    }
    if (tools := tools_in(prompt)) is not None:
        example["tools"] = tools
    if preview is not None:
        try:
            example["as_read"] = preview.describe(prompt, responses[0])
        except UnusableError as error:
            example["as_read"] = {"rejected": error.reason}
    return example
