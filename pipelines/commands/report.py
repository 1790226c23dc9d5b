"""`bestkept report`: draws the report of an output again, or compares two outputs."""

from __future__ import annotations

from typing import Any

from pipelines.errors import InputError
from pipelines.finish.claim import read_manifest
from pipelines.finish.versions import latest_or_self
from pipelines.report.pages import comparison
from pipelines.report.write import read_numbers, write_report
from pipelines.storage import publish
from pipelines.storage.files import absolute, join, read_bytes
from rm.conversations import load_json


def rebuild(output: str) -> str:
    """Write `report.html` of an output, or of the latest version under a root of versions, again; return its path."""
    output = latest_or_self(output)
    return write_report(output, _manifest(output), run=_run(output))


def compare(one: str, other: str, *, write: str) -> str:
    """Write a page that compares two outputs to the file `write`; return its path."""
    one, other = latest_or_self(one), latest_or_self(other)
    manifests = [_manifest(output) for output in (one, other)]
    page = comparison.render(distinct_parts(one, other), manifests, [read_numbers(output) for output in (one, other)])
    path = absolute(write)
    publish.replace(path, page.encode())
    return path


def distinct_parts(one: str, other: str) -> tuple[str, str]:
    """Return two paths without their common parts at either end."""
    parts = [path.rstrip("/").split("/") for path in (one, other)]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and parts[0][end] == parts[1][end]:
            for path_parts in parts:
                path_parts.pop(end)
    return "/".join(parts[0]), "/".join(parts[1])


def _manifest(output: str) -> dict[str, Any]:
    manifest = read_manifest(output)
    if manifest is None:
        raise InputError(f"{output} has no manifest.json; give the output.path of a finished run")
    return manifest


def _run(output: str) -> dict[str, Any] | None:
    data = read_bytes(join(output, "run.json"))
    try:
        run: dict[str, Any] | None = None if data is None else load_json(data)
    except ValueError:
        return None
    return run
