"""Features of a schema, and bytes of rows in memory, as `datasets` writes them into a dataset card. Pure functions.

They are computed here because importing `datasets` takes seconds on every worker, and its conversion of features to YAML is
private. Tests compare the results with those of `datasets`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_SAME_NAMES = {
    *("null", "bool", "string", "large_string", "binary", "large_binary"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}
_NAMES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
_OFFSET_BYTES = 4  # Arrow's offset of a string or a list, one per row; twice as much for the large types


def features_of(schema: pa.Schema) -> list[dict[str, Any]] | None:
    """The features of a data set with these columns, as a card lists them; None if `datasets` has no name for a type."""
    try:
        return [{"name": field.name, **_feature(field.type)} for field in schema]
    except KeyError:
        return None


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind]}
    if pa.types.is_fixed_size_list(kind):
        return {"list": _inner(kind), "length": kind.list_size}
    if pa.types.is_list(kind):
        return {"list": _inner(kind)}
    if pa.types.is_large_list(kind):
        return {"large_list": _inner(kind)}
    return {"dtype": _dtype(kind)}


def _inner(kind: pa.DataType) -> Any:
    """The content of a list: the bare name of a type, the fields of a struct, or a feature."""
    feature = _feature(kind.value_type)
    return next(iter(feature.values())) if list(feature) in (["dtype"], ["struct"]) else feature


def _dtype(kind: pa.DataType) -> str:
    """The name that `datasets` has for a type. Raises `KeyError` if it has none."""
    if pa.types.is_dictionary(kind):
        return _dtype(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return f"fixed_size_binary[{kind.byte_width}]"
    if isinstance(kind, pa.JsonType):
        return "json"
    text = str(kind)
    if text in _SAME_NAMES or text.startswith(
        ("timestamp[", "time32[", "time64[", "duration[", "decimal128(", "decimal256(")
    ):
        return text
    return _NAMES[text]


def memory_bytes(table: pa.Table) -> int:
    """Bytes of the rows as Arrow tables without unused space, whatever their chunks.

    This is the `num_bytes` of `datasets`, except for the validity bitmaps of columns without a null.
    """
    return sum(_bytes(column.chunks, column.type) for column in table.columns)


def _bytes(chunks: Sequence[pa.Array], kind: pa.DataType) -> int:
    if isinstance(kind, pa.JsonType):
        return _bytes([chunk.storage for chunk in chunks], kind.storage_type)
    rows = sum(map(len, chunks))
    validity = -(-rows // 8) if any(chunk.null_count for chunk in chunks) else 0
    if pa.types.is_struct(kind):
        parts = [chunk.flatten() for chunk in chunks]
        return validity + sum(_bytes([part[at] for part in parts], field.type) for at, field in enumerate(kind))
    wide = pa.types.is_large_list(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    offsets = rows * _OFFSET_BYTES * (2 if wide else 1)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return validity + offsets + _bytes([chunk.flatten() for chunk in chunks], kind.value_type)
    if any(is_kind(kind) for is_kind in _TEXT):
        return validity + offsets + sum(int(pc.sum(pc.binary_length(chunk)).as_py() or 0) for chunk in chunks)
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind):
        return validity + -(-rows * int(kind.bit_width) // 8)
    return sum(int(chunk.nbytes) for chunk in chunks)


_TEXT: list[Callable[[pa.DataType], bool]] = [
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
]
