"""Rows as the bytes of files, in the formats that users have."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard


def array(rows: list[dict[str, Any]], **options: Any) -> bytes:
    return json.dumps(rows, **options).encode()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def arrow(rows: list[dict[str, Any]], *, file: bool = False) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return sink.getvalue()


FORMATS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = {
    "array": ("a.json", array),
    "pretty array with a BOM": ("a.json", lambda rows: b"\xef\xbb\xbf" + array(rows, indent=2, ensure_ascii=False)),
    "array.gz": ("a.json.gz", lambda rows: gzip.compress(array(rows))),
    "csv": ("a.csv", table),
    "csv with a BOM": ("a.csv", lambda rows: b"\xef\xbb\xbf" + table(rows)),
    "csv of Excel": ("a.csv", lambda rows: table(rows, ";")),
    "csv.xz": ("a.csv.xz", lambda rows: lzma.compress(table(rows))),
    "tsv": ("a.tsv", lambda rows: table(rows, "\t")),
    "arrow": ("a.arrow", arrow),
    "arrow of Feather": ("a.feather", lambda rows: arrow(rows, file=True)),
    "jsonl.bz2": ("a.jsonl.bz2", lambda rows: bz2.compress(lines(rows))),
    "jsonl.xz": ("a.jsonl.xz", lambda rows: lzma.compress(lines(rows))),
    "bzip2 named jsonl": ("a.jsonl", lambda rows: bz2.compress(lines(rows), 1)),
    "gzip named jsonl": ("a.jsonl", lambda rows: gzip.compress(lines(rows))),
}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue()


EVERY_FORMAT = {
    **FORMATS,
    "jsonl": ("a.jsonl", lines),
    "jsonl.gz": ("a.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
    "jsonl.zst": ("a.jsonl.zst", lambda rows: zstandard.compress(lines(rows))),
    "parquet": ("a.parquet", parquet),
}


def write_as(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows to a folder in one of `EVERY_FORMAT`."""
    file_name, encode = EVERY_FORMAT[name]
    (folder / file_name).write_bytes(encode(rows))
    return folder / file_name


def is_flat(rows: list[dict[str, Any]]) -> bool:
    """Whether rows can be those of a table as text."""
    return not any(isinstance(value, list | dict) for row in rows for value in row.values())
