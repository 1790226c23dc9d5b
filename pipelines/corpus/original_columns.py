"""The input's own columns: their types, inferred during scoring, and their values, converted for the output. Pure.

JSON has no schema, and the files of a corpus may differ in types. Types are inferred for each fragment and unified over all
fragments. A column without a common type is written as JSON text in every shard.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence

import pyarrow as pa

from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.nested_values import holds_json, to_json_array

_AS_JSON = {b"bestkept": b"json"}


def infer(rows: Sequence[RowValues]) -> pa.Schema:
    """Infer the schema of these rows, with columns in order of first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([_infer_column(name, [row.get(name) for row in rows]) for name in names])


def _infer_column(name: str, values: Sequence[object]) -> pa.Field:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeError):
        kind = None
    if kind is None or _has_empty_struct(kind):
        return pa.field(name, pa.string(), metadata=_AS_JSON)
    return pa.field(name, kind)


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Return whether a type contains a struct without fields, which Parquet cannot store."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Unify schemas; a column without a common type becomes JSON text, and a column of nulls becomes text."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            known = fields.get(field.name)
            fields[field.name] = field if known is None else _unify_fields(known, field)
    return pa.schema(
        [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in fields.values()]
    )


def _unify_fields(left: pa.Field, right: pa.Field) -> pa.Field:
    as_json = pa.field(left.name, pa.string(), metadata=_AS_JSON)
    if as_json.metadata in (left.metadata, right.metadata):
        return as_json
    try:
        both = [pa.schema([field.remove_metadata()]) for field in (left, right)]
        return pa.unify_schemas(both, promote_options="permissive").field(0)
    except pa.ArrowException:
        return as_json


def to_array(values: Sequence[object], field: pa.Field) -> pa.Array:
    """Convert a column's values to its unified type."""
    if field.metadata == _AS_JSON:
        values = [None if value is None else json.dumps(value, sort_keys=True, default=str) for value in values]
    elif holds_json(field.type):
        return to_json_array(values, field.type)
    elif pa.types.is_floating(field.type):
        values = [float(value) if isinstance(value, int) else value for value in values]
    return pa.array(values, type=field.type)


def dump(schema: pa.Schema) -> str:
    """Write a schema as base64 text, for a footer."""
    plain = pa.schema([field if field.metadata == _AS_JSON else field.remove_metadata() for field in schema])
    return base64.b64encode(plain.serialize().to_pybytes()).decode()


def load(text: str) -> pa.Schema:
    """Read a schema that `dump` has written; see `without_views`."""
    return without_views(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))))


def without_views(schema: pa.Schema) -> pa.Schema:
    """Return a schema with plain text and bytes in place of views, which many of Arrow's functions do not support."""
    return pa.schema([field.with_type(_without_views(field.type)) for field in schema], schema.metadata)


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_views(kind.value_type)))
    return kind
