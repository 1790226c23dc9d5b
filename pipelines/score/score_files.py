"""The format of score files: one per fragment, the durable boundary between scoring and the stages after it. No Beam.

A score file has one row per response (or per unusable row). Its footer has a description, and a hash of the decoded columns and
the description, by which damage is detected. A valid score file is never rewritten.

Example:

    footer = write(path, columns, footer, original)  # the footer of the published file, which may have existed already
    columns, footer = read(path) or (None, None)     # None for a missing or damaged file
    read_columns(path, ["reward"], footer)           # some columns of a valid file
    read_joined(descriptor, ["reward", "minhash.prompt.3"])  # also those of its side files
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.errors import StorageError
from pipelines.storage import publish
from pipelines.storage.files import is_local, join, open_for_reading, read_bytes
from rm.conversations import load_json

EXAMPLES = 3

FORMAT = 2
_FOOTER = b"bestkept"
_OFTEN_EMPTY = ("message_keys", "cut_prompts", "left_out")
_HASH = b"bestkept.hash"
_ORIGINAL = b"bestkept.original"

COLUMNS = pa.schema(
    [
        pa.field("row", pa.int32()),  # within its unit
        pa.field("response_index", pa.int32()),
        pa.field("prompt_key", pa.binary(16)),  # null if the prompt is unusable
        pa.field("response_hash", pa.uint64()),
        pa.field("reward", pa.float32()),  # null if rejected
        pa.field("reason", pa.string()),  # null if scored
        pa.field("prompt_tokens", pa.int32()),
        pa.field("response_tokens", pa.int32()),
        pa.field("response_chars", pa.int32()),  # characters; 0 if rejected before scoring
        pa.field("row_bytes", pa.int64()),
        pa.field("truncated", pa.bool_()),
        pa.field("source", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Footer:
    """The description of a score file, in its metadata."""

    fingerprint: str
    file_key: str
    file_size: int
    file_version: str
    unit: int
    unit_start: int  # Parquet and rewritten copies: its first row in the file; JSONL: first byte of the range
    fragment: int
    rows: int
    last: bool  # of its unit
    responses: int  # read = scored + rejected
    scored: int
    rejected: dict[str, int]  # by reason
    first_rejected: list[list[Any]]  # [row in the unit, reason] of the first few
    truncated: int
    tokens: int
    text_bytes: int  # of all rows, each counted once
    content_hash: str
    format: int = FORMAT
    message_keys: list[str] = field(default_factory=list)  # keys of messages other than roles and texts, sorted
    cut_prompts: int = 0  # responses from which a repeated prompt was removed
    left_out: dict[str, int] = field(default_factory=dict)  # scored responses by key that the template leaves out

    def to_json(self) -> dict[str, Any]:
        """Return the fields, without the last ones if they are empty, so that files of plain texts keep their bytes."""
        return {name: value for name, value in asdict(self).items() if name not in _OFTEN_EMPTY or value}


class SideFile(NamedTuple):
    """A valid side file of the same rows (see `side_files`), and the columns that are read from it."""

    path: str
    columns: tuple[str, ...]
    stored: tuple[str, ...] = ()  # their names in the file, if different
    truncated: tuple[int, ...] = ()  # number of responses that the signal's model has truncated, if any


@dataclass(frozen=True)
class ScoreFile:
    """The descriptor of a valid score file: its path and footer, and its side files. A Beam element as JSON bytes."""

    path: str
    file: int  # index in the plan
    footer: Footer
    sides: tuple[SideFile, ...] = ()

    def to_bytes(self) -> bytes:
        fields = {"path": self.path, "file": self.file, "footer": self.footer.to_json()}
        return json.dumps({**fields, "sides": self.sides} if self.sides else fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ScoreFile:
        fields = json.loads(data)
        sides = tuple(SideFile(path, *map(tuple, columns)) for path, *columns in fields.get("sides", ()))
        return cls(fields["path"], fields["file"], Footer(**fields["footer"]), sides)


def name_of(*, file_key: str, unit: int, unit_start: int, fragment: int, rows_per_fragment: int) -> str:
    """The file name of a fragment's scores: a hash of the input's key and the fragment's range, not of text."""
    described = json.dumps([file_key, unit, unit_start, fragment, rows_per_fragment])
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def path_of(directory: str, name: str, variant: str | None = None) -> str:
    """The path of a fragment's scores. The name of a fragment whose content has changed also has a `variant`, a hash of it."""
    return join(directory, f"{name}.parquet" if variant is None else f"{name}-{variant}.parquet")


def encode(columns: pa.Table, footer: Footer, original: str) -> bytes:
    """A score file's bytes; `original` is the schema of the input's own columns (see `original_columns.dump`)."""
    described = json.dumps(footer.to_json(), sort_keys=True)
    metadata = {_FOOTER: described, _ORIGINAL: original, _HASH: columns_hash(columns, described + original)}
    table = columns.replace_schema_metadata({key: value.encode() for key, value in metadata.items()})
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=True, write_page_checksum=True, **_encoding(columns.schema))
    return sink.getvalue()


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Options of `pq.write_table`: dictionaries for text, differences for integers, no encoding of random bits.

    Compared with a dictionary and zstd for all columns, reading takes a third less time and files are a tenth smaller.
    """
    integers = [field.name for field in schema if field.type in (pa.int32(), pa.int64())]
    signatures = [name for name in schema.names if name.startswith("minhash.")]  # those of prompts repeat
    uncompressed = {*integers, *signatures, "reward", "response_hash"}
    return {
        "use_dictionary": [field.name for field in schema if pa.types.is_string(field.type)] + signatures,
        "column_encoding": dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        "compression": {name: "none" if name in uncompressed else "zstd" for name in schema.names},
    }


def decode(data: bytes) -> tuple[pa.Table, Footer] | None:
    """Table and footer of a score file; None if the bytes are incomplete or damaged."""
    try:
        # also detects a damaged checksum, at which `read_columns` would fail; read_table takes five times as long
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = parquet.read(use_threads=False)
        metadata = table.schema.metadata or {}
        described = metadata[_FOOTER].decode()
        if metadata[_HASH].decode() != columns_hash(table, described + metadata[_ORIGINAL].decode()):
            return None
        footer = Footer(**load_json(described))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None
    return (table, footer) if footer.format == FORMAT else None


def read(path: str) -> tuple[pa.Table, Footer] | None:
    """Table and footer of the score file at `path`; None if it is missing or damaged."""
    data = read_bytes(path)
    return None if data is None else decode(data)


def read_columns(path: str, names: list[str], footer: Footer) -> pa.Table:
    """Some columns of a score file that was valid earlier in this run; its page checksums are verified again. Sources, reasons
    and carried columns are dictionary-encoded.

    Raises `StorageError` if it is gone, damaged, or no longer the file that `footer` describes.
    """
    try:
        with _open(path) as file:
            texts = [name for name in names if name in ("source", "reason") or name.startswith("carry.")]
            parquet = pq.ParquetFile(file, page_checksum_verification=True, read_dictionary=texts)
            table = parquet.read(names, use_threads=False)  # callers read several files at once
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"score file {path} is gone or damaged ({type(error).__name__}); run the same command again"
        ) from error
    if table.num_rows != footer.responses:
        raise StorageError(f"score file {path} changed while it was read; run the same command again")
    return table


def read_joined(file: ScoreFile, names: list[str]) -> pa.Table:
    """`read_columns` of a score file and of its side files."""
    beside = {name for side in file.sides for name in side.columns}
    table = read_columns(file.path, [name for name in names if name not in beside], file.footer)
    for side in file.sides:
        stored = dict(zip(side.columns, side.stored or side.columns, strict=True))
        if wanted := [name for name in names if name in stored]:
            columns = read_columns(side.path, [stored[name] for name in wanted], file.footer)
            for name in wanted:
                table = table.append_column(name, columns[stored[name]])
    return table


def _open(path: str) -> Any:
    """Open a score file to read parts of it. An object in a store is read whole, which costs less than another request."""
    if is_local(path):
        return open_for_reading(path)
    data = read_bytes(path)
    if data is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
    return pa.BufferReader(data)


def original_schema(table: pa.Table) -> str:
    """The schema of the input's own columns, as passed to `encode`."""
    text: str = table.schema.metadata[_ORIGINAL].decode()
    return text


def write(path: str, columns: pa.Table, footer: Footer, original: str) -> Footer:
    """Publish a score file, unless a valid one with the same content exists.

    Returns the footer of the published file. Raises `StorageError`.
    """

    def accept(data: bytes) -> Footer | None:
        existing = decode(data)
        if existing is None:  # a flipped bit, or truncated by another program
            return None
        table, described = existing
        if described.content_hash != footer.content_hash or original_schema(table) != original:
            raise StorageError(f"{path} has the scores of other content; remove the scores directory and score again")
        return described

    return publish.settle(path, encode(columns, footer, original), accepts=accept, ours=footer)


def reasons_of(columns: pa.Table) -> dict[str, int]:
    """Rejected responses by reason."""
    return dict(sorted(Counter(reason for reason in columns["reason"].to_pylist() if reason is not None).items()))


def outcome_of(columns: pa.Table) -> dict[str, Any]:
    """The fields of a footer about the results of the responses; a side file has none."""
    if "reason" not in columns.column_names:
        return {"scored": columns.num_rows, "rejected": {}, "first_rejected": [], "truncated": 0}
    rejected = reasons_of(columns)
    return {
        "scored": columns.num_rows - sum(rejected.values()),
        "rejected": rejected,
        "first_rejected": first_rejected(columns),
        "truncated": int(np.count_nonzero(columns["truncated"].to_numpy())),
    }


def first_rejected(columns: pa.Table) -> list[list[Any]]:
    """Row and reason of the first rejected responses, as examples."""
    rejected = columns.filter(columns["reason"].is_valid()).slice(0, EXAMPLES)
    return [[row, reason] for row, reason in zip(*(rejected[c].to_pylist() for c in ("row", "reason")), strict=True)]


def columns_hash(table: pa.Table, described: str) -> str:
    """xxh3-128 over names, types, nulls and values of all columns, and the description."""
    digest = xxhash.xxh3_128(described.encode())
    for name in table.column_names:
        column = table[name].combine_chunks()
        digest.update(f"{name}:{column.type}:{len(column)}".encode())
        digest.update(np.packbits(column.is_null().to_numpy(zero_copy_only=False)).tobytes())
        for part in _values(column):
            digest.update(part)
    return digest.hexdigest()


def _values(column: Any) -> list[bytes]:
    """The non-null values as bytes, independent of offsets or padding of the buffers."""
    column = column.drop_null()
    if not len(column):
        return []
    if pa.types.is_string(column.type):
        offsets = np.frombuffer(column.buffers()[1], dtype=np.int32, count=len(column) + 1, offset=4 * column.offset)
        text = column.buffers()[2]
        return [np.diff(offsets).astype("<i8").tobytes(), b"" if text is None else text[offsets[0] : offsets[-1]]]
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        return [column.buffers()[1][width * column.offset : width * (column.offset + len(column))]]
    return [column.to_numpy(zero_copy_only=False).tobytes()]
