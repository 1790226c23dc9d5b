"""Converts data and settings from Python to what the commands read: rows in memory to a file, paths and tuples to YAML's types.

A file of rows is named by a hash of its content, so that the same call finds its earlier work.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel

from pipelines.config import validate
from pipelines.errors import ConfigError, InputError

if TYPE_CHECKING:
    import datasets
    import pandas
    import pyarrow

Path: TypeAlias = "str | os.PathLike[str]"
Rows: TypeAlias = "Sequence[Mapping[str, Any]] | datasets.Dataset | pandas.DataFrame | pyarrow.Table"
"""Rows in memory: a list of mappings (column → value), a data set, a frame or a table."""
Data: TypeAlias = "Path | Sequence[Path] | Rows | Mapping[str, Any]"
"""The path of files (also a directory, a glob or a URL), several paths, rows in memory, or the settings of a block of the
configuration, with one of these under `path`."""

Config = TypeVar("Config", bound=BaseModel)


def is_in_memory(data: object) -> bool:
    """Return True for rows in memory, False for a path or a list of paths."""
    if isinstance(data, str | os.PathLike):
        return False
    return not (isinstance(data, list | tuple) and data and all(isinstance(one, str | os.PathLike) for one in data))


def plain(value: Any) -> Any:
    """Return settings with paths as strings and tuples as lists, as YAML has them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def checked(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    """Return the configuration in `values`. Raises `ConfigError` that lists all mistakes, as for a file."""
    return validate(kind, plain(values), [], where=where)


def block_of(data: Data) -> dict[str, Any]:
    """Return the block of a configuration with `data` under `path`; a block is returned unchanged."""
    _refuse_splits(data)
    return {**data} if isinstance(data, Mapping) else {"path": data}


def model_block(model: Any) -> Any:
    """Return the block `model` for a path, a block, a `RewardModel`, a `Trained`, or a list of these."""
    if isinstance(model, str | os.PathLike):
        return {"path": os.fspath(model)}
    if isinstance(model, Mapping):
        return {**model}
    if isinstance(model, list | tuple):
        return [model_block(one) for one in model]
    if hasattr(model, "path"):
        return {**getattr(model, "settings", {}), "path": model.path}
    raise ConfigError(
        f"the model is of type {type(model).__name__}; expected a directory, a hub id, a RewardModel, the result of "
        "`train`, or a mapping of settings with a path"
    )


def with_files(block: Mapping[str, Any], folder: str, *, name: str) -> dict[str, Any]:
    """Write rows in memory to a file in `folder`, and return the block with its path; error messages begin with `name`.

    Raises `InputError` for rows that cannot be written to a file, `ConfigError`, and `StorageError`.
    """
    from pipelines.storage import publish
    from pipelines.storage.files import join

    data = block.get("path")
    if data is None or not is_in_memory(data):
        return {**block, **({} if data is None else {"path": plain(data)})}
    content, suffix = _to_bytes(data, name)
    path = join(folder, f"in-memory-{hashlib.sha256(content).hexdigest()[:32]}{suffix}")
    publish.create(path, content)
    return {**block, "path": path}


def rows_of(data: Rows, *, name: str) -> list[dict[str, Any]]:
    """Return rows in memory as mappings of plain Python values. Raises `InputError`, and `ConfigError` for anything but rows."""
    if isinstance(data, list | tuple):
        return [dict(row) for row in _mappings(data, name)]
    rows: list[dict[str, Any]] = _to_table(data, name).to_pylist()
    return rows


def _refuse_splits(data: object) -> None:
    if isinstance(data, Mapping) and type(data).__name__ in ("DatasetDict", "IterableDatasetDict"):
        raise ConfigError(
            f"the data set has the splits {', '.join(data)}; pass one of them: data[{next(iter(data))!r}]"
        )


def _to_bytes(data: Any, name: str) -> tuple[bytes, str]:
    """Return rows as the content of a file, and the suffix of its name: lists as lines of JSON, all others as Parquet."""
    if isinstance(data, list | tuple):
        return b"".join(_line(row, name) for row in _mappings(data, name)), ".jsonl"
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    table = _to_table(data, name)
    try:
        pq.write_table(table, sink)
    except pa.ArrowException as error:
        raise InputError(
            f"{name} has a column that Parquet cannot store ({type(error).__name__}); remove it"
        ) from error
    return sink.getvalue(), ".parquet"


def _to_table(data: Any, name: str) -> pyarrow.Table:
    import pyarrow as pa

    if type(data).__module__.startswith("datasets.") and hasattr(data, "with_format") and hasattr(data, "__len__"):
        data = data.with_format("arrow")[:]
    elif type(data).__module__.startswith("pandas") and hasattr(data, "columns"):
        data = _from_pandas(data, name)
    elif hasattr(data, "__arrow_c_stream__") and not hasattr(data, "to_frame"):  # no single column
        data = pa.table(data)
    else:
        raise ConfigError(
            f"{name} is of type {type(data).__name__}; expected a path, a list of mappings, a datasets.Dataset, a pandas "
            "DataFrame or an Arrow table (for a streamed data set, the path of its files)"
        )
    _refuse_empty(data, name)
    return data


def _from_pandas(frame: Any, name: str) -> pyarrow.Table:
    import pyarrow as pa

    columns = {}
    for column in frame.columns:
        try:
            columns[str(column)] = pa.Array.from_pandas(frame[column])
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputError(
                f"the column {column!r} of {name} has values of several types ({type(error).__name__}); convert them to one "
                "type, or pass the rows as a list: frame.to_dict('records')"
            ) from error
    return pa.table(columns)


def _refuse_empty(data: Any, name: str) -> None:
    if not len(data):
        raise InputError(f"{name} has no rows; expected at least one")


def _mappings(rows: Sequence[Any], name: str) -> Sequence[Mapping[str, Any]]:
    _refuse_empty(rows, name)
    other = next((row for row in rows if not isinstance(row, Mapping)), None)
    if other is not None or any(row is None for row in rows):
        raise ConfigError(
            f"{name} is a list that contains {type(other).__name__}; expected mappings of column to value, or paths only"
        )
    return rows


def _line(row: Mapping[str, Any], name: str) -> bytes:
    try:
        try:
            text = json.dumps(row, default=_as_json, allow_nan=False)
        except ValueError:  # NaN, which pandas and others write for null
            text = json.dumps(_without_nan(row), default=lambda value: _without_nan(_as_json(value)), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        bad = next((key for key, value in row.items() if not _is_json(value)), "?")
        raise InputError(
            f"the column {bad!r} of {name} has a value that JSON cannot represent ({type(error).__name__}); remove it, or "
            "convert it to text or a number"
        ) from error
    return text.encode() + b"\n"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(_without_nan(value), default=_as_json)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _as_json(value: Any) -> Any:
    """Return the JSON form of a numpy value, a date or UTF-8 bytes."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value
