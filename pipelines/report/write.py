"""`report.html` of an output, written from what lies there: by a run when it ends, or again by `bestkept report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.finish.claim import read_manifest
from pipelines.finish.versions import followed
from pipelines.report.numbers import FORMAT
from pipelines.report.pages import comparison
from pipelines.report.pages import run as selection
from pipelines.storage import publish
from pipelines.storage.files import absolute, join, read_bytes

NAME = "report.html"


def write_report(output: str, manifest: Mapping[str, Any], *, run: Mapping[str, Any] | None) -> str:
    """Draw the report of an output from its files and `manifest`, and put it there; its path.

    It is a view: nothing depends on it, and it is written anew whenever asked for. Raises `InputError` where the numbers are
    missing or of another version, `StorageError`.
    """
    page = selection.render(manifest, read_numbers(output), read_samples(output), run)
    path = join(output, NAME)
    publish.replace(path, page.encode())
    return path


def rebuild(output: str) -> str:
    """`bestkept report OUT`: write `report.html` again; its path. Of a root of versions, that of the latest."""
    output = followed(output)
    return write_report(output, _manifest(output), run=_run(output))


def compare(one: str, other: str, *, write: str) -> str:
    """`bestkept report A B`: write a page that compares two outputs to the file `write`; its path."""
    one, other = followed(one), followed(other)
    manifests = [_manifest(output) for output in (one, other)]
    page = comparison.render(apart(one, other), manifests, [read_numbers(output) for output in (one, other)])
    path = absolute(write)
    publish.replace(path, page.encode())
    return path


def apart(one: str, other: str) -> tuple[str, str]:
    """Two paths without the parts that they have in common at either end."""
    parts = [path.rstrip("/").split("/") for path in (one, other)]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and parts[0][end] == parts[1][end]:
            for own in parts:
                own.pop(end)
    return "/".join(parts[0]), "/".join(parts[1])


def read_numbers(output: str) -> dict[str, Any]:
    """`report.json`. Raises `InputError`."""
    path = join(output, "report.json")
    data = read_bytes(path)
    if data is None:
        raise InputError(
            f"{output} has no report.json: it was selected with report.write=false, or by a version without reports; select "
            "again into another output.path (nothing is scored again with scores.path)"
        )
    try:
        numbers: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is damaged; select again into another output.path") from error
    if numbers.get("format") != FORMAT:
        raise InputError(f"{path} is of format {numbers.get('format')}, and this version reads {FORMAT}; select again")
    return numbers


def read_samples(output: str) -> list[dict[str, Any]]:
    """The rows of `samples.parquet`; none where it is not there. Raises `InputError` where it cannot be read."""
    path = join(output, "samples.parquet")
    data = read_bytes(path)
    try:
        rows: list[dict[str, Any]] = [] if data is None else pq.read_table(pa.BufferReader(data)).to_pylist()
    except pa.ArrowException as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); select again into another output.path"
        ) from error
    return rows


def _manifest(output: str) -> dict[str, Any]:
    manifest = read_manifest(output)
    if manifest is None:
        raise InputError(f"{output} has no manifest.json; give the output.path of a run that has ended")
    return manifest


def _run(output: str) -> dict[str, Any] | None:
    data = read_bytes(join(output, "run.json"))
    try:
        run: dict[str, Any] | None = None if data is None else json.loads(data)
    except ValueError:
        return None
    return run
