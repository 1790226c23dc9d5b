"""Writes `report.html` of an output from its files: when a run ends, and again by `bestkept report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.report.numbers import FORMAT
from pipelines.report.pages import run as selection
from pipelines.report.trial import read_trial
from pipelines.storage import publish
from pipelines.storage.files import join, read_bytes
from rm.conversations import load_json

NAME, DRIFT = "report.html", "drift.json"


def write_report(output: str, manifest: Mapping[str, Any], *, run: Mapping[str, Any] | None) -> str:
    """Draw the report of an output from its files and `manifest`, write it there, and return its path.

    Nothing depends on the report, so it may be written any number of times. Raises `InputError` if the numbers are missing or
    of another version, and `StorageError`.
    """
    numbers, samples = read_numbers(output), read_samples(output)
    page = selection.render(manifest, numbers, samples, run, drift=read_drift(output), trial=read_trial(output))
    path = join(output, NAME)
    publish.replace(path, page.encode())
    return path


def read_numbers(output: str) -> dict[str, Any]:
    """Return `report.json`. Raises `InputError`."""
    path = join(output, "report.json")
    data = read_bytes(path)
    if data is None:
        raise InputError(
            f"{output} has no report.json: it was selected with report.write=false, or by a version without reports; select "
            "again into another output.path (nothing is scored again with scores.path)"
        )
    try:
        numbers: dict[str, Any] = load_json(data)
    except ValueError as error:
        raise InputError(f"{path} is damaged; select again into another output.path") from error
    if numbers.get("format") != FORMAT:
        raise InputError(f"{path} is of format {numbers.get('format')}, and this version reads {FORMAT}; select again")
    return numbers


def read_drift(output: str) -> dict[str, Any] | None:
    """Return `drift.json`; None if it is missing or damaged."""
    data = read_bytes(join(output, DRIFT))
    try:
        found: dict[str, Any] | None = None if data is None else load_json(data)
    except ValueError:
        return None
    return found


def read_samples(output: str) -> list[dict[str, Any]]:
    """Return the rows of `samples.parquet`; none if it is missing. Raises `InputError` if it cannot be read."""
    path = join(output, "samples.parquet")
    data = read_bytes(path)
    try:
        rows: list[dict[str, Any]] = [] if data is None else pq.read_table(pa.BufferReader(data)).to_pylist()
    except pa.ArrowException as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); select again into another output.path"
        ) from error
    return rows
