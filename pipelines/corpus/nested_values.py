"""Restores the JSON objects that Arrow stores as structs or in JSON columns. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rm.conversations import load_json

_LISTS = {pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST, pa.lib.Type_LIST_VIEW}
_MESSAGE = {"role", "from"}  # a struct with one of these is a message


def needs_restoring(kind: pa.DataType, inside: bool = False) -> bool:
    """Return whether `restore` may change values of a type; it does not change plain messages and texts."""
    if isinstance(kind, pa.JsonType) or (inside and pa.types.is_map(kind)):
        return True
    if pa.types.is_struct(kind):
        message = not _MESSAGE.isdisjoint(kind.names)
        return (inside and not message) or any(needs_restoring(field.type, inside or message) for field in kind)
    return kind.id in _LISTS and needs_restoring(kind.value_type, inside)


def restore(value: Any, kind: pa.DataType, *, inside: bool = False) -> Any:
    """Return a value of Arrow with its JSON parsed, and without the nulls by which a struct marks absent keys.

    A struct has the keys of all rows: the arguments of one tool come with those of every other tool as null. Only structs
    `inside` messages (or tools) lose them; a message itself keeps its keys. Raises `ValueError` for JSON that is invalid or
    nested too deep.
    """
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return load_json(value)
    if pa.types.is_map(kind) and inside:
        return {key: restore(item, kind.item_type, inside=True) for key, item in value}
    if pa.types.is_struct(kind):
        message = not _MESSAGE.isdisjoint(kind.names)
        items = {field.name: restore(value[field.name], field.type, inside=inside or message) for field in kind}
        return {key: item for key, item in items.items() if item is not None} if inside and not message else items
    if kind.id in _LISTS:
        return [restore(item, kind.value_type, inside=inside) for item in value]
    return value


def _encode_json(value: Any, kind: pa.DataType) -> Any:
    """Return a value whose parts of JSON type are text, as Arrow requires."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.dumps(value, ensure_ascii=False)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _encode_json(value.get(field.name), field.type) for field in kind}
    if kind.id in _LISTS and isinstance(value, list):
        return [_encode_json(item, kind.value_type) for item in value]
    return value


def to_json_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array of a type that contains JSON."""
    return pa.array([_encode_json(value, kind) for value in values], _storage(kind)).cast(kind)


def _storage(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.JsonType):
        return kind.storage_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_storage(field.type)) for field in kind])
    return pa.list_(_storage(kind.value_type)) if kind.id in _LISTS else kind


def holds_json(kind: pa.DataType) -> bool:
    """Return whether a type is JSON, or a list or struct that contains JSON."""
    if pa.types.is_struct(kind):
        return any(holds_json(field.type) for field in kind)
    return isinstance(kind, pa.JsonType) or (kind.id in _LISTS and holds_json(kind.value_type))
