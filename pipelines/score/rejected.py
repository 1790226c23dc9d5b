"""Tables of rejected responses from score files: places and reasons, never text. No Beam."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa

from pipelines.corpus import place_of
from pipelines.score import score_files
from pipelines.score.score_files import ScoreFile
from pipelines.storage import publish
from pipelines.storage.files import join

MOST_LISTED = 100_000
"""Limit of rows in the list of a run with too many rejected responses: enough for a person, even if a billion are rejected."""

REJECTED = pa.schema(
    [
        pa.field("row", pa.int32()),
        pa.field("response_index", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("unit_start", pa.int64()),
    ]
)


def list_path(scores: str, plan_hash: str, suffix: str = "") -> str:
    """The path of the list of a plan's rejected responses, below a directory of scores.

    It is outside the output, which would otherwise belong to this input and refuse the corrected one. It has no suffix of Parquet
    or JSONL, because patterns for score files and for inputs would match it.
    """
    return join(scores, "rejected", f"{plan_hash[:32]}{suffix}.txt")


def rejected_rows(scores: pa.Table, unit_start: int) -> pa.Table:
    """The places of the rejected responses of a score file, and the reasons."""
    rejected = scores.select(["row", "response_index", "reason"]).filter(scores["reason"].is_valid())
    rejected = rejected.set_column(2, "reason", rejected["reason"].cast(pa.string()))
    return rejected.append_column("unit_start", pa.array([unit_start] * rejected.num_rows, type=pa.int64()))


def rejected_table(file_key: str, rows: pa.Table) -> pa.Table:
    """The rejected responses of a file for users, in order, with places in words."""
    rows = rows.sort_by([(name, "ascending") for name in ("unit_start", "row", "response_index")])
    places = [
        place_of(file_key, start, row)
        for start, row in zip(*(rows[c].to_pylist() for c in ("unit_start", "row")), strict=True)
    ]
    return pa.table(
        {
            "file": pa.array([file_key] * rows.num_rows, pa.string()),
            "place": pa.array(places, pa.string()),
            "response_index": rows["response_index"],
            "reason": rows["reason"],
        }
    )


def has_rejected(data: bytes) -> bool:
    """Return whether the score file of a descriptor has rejected responses."""
    return bool(ScoreFile.from_bytes(data).footer.rejected)


def write_list(descriptors: Iterable[bytes], path: str) -> None:
    """Write the first `MOST_LISTED` rejected responses of these score files as JSON lines at `path`.

    Raises `StorageError`.
    """
    rejecting = [ScoreFile.from_bytes(data) for data in descriptors if has_rejected(data)]
    tables: list[pa.Table] = []
    for file in sorted(rejecting, key=lambda file: (file.file, file.footer.unit, file.footer.fragment)):
        scores = score_files.read_columns(file.path, ["row", "response_index", "reason"], file.footer)
        tables.append(rejected_table(file.footer.file_key, rejected_rows(scores, file.footer.unit_start)))
        if sum(table.num_rows for table in tables) >= MOST_LISTED:
            break
    if tables:
        rows = pa.concat_tables(tables).slice(0, MOST_LISTED).to_pylist()
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace")
        if not publish.create(path, data):
            publish.replace(path, data)  # the list of a run that could read other files
