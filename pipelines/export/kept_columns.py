"""Reads kept responses again as columns: the fast alternative to `kept_rows`, for Parquet with plain text prompts and responses.

No row becomes a Python object, and each is still checked to be the text that was scored. Tests compare the result with that
of `kept_rows` and `output_columns` for the same rows. No Beam.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus import InputFile, Unit, take_batches
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.parquet import parquet_schema
from pipelines.export.kept_rows import input_changed
from pipelines.export.output_columns import Shape, probability_of
from pipelines.select.candidates import Candidates
from rm.conversations import (
    STRUCTURED,
    Conversation,
    UnusableError,
    from_prompt,
    prompt_key,
    response_hash,
    to_messages,
)

_SHAPES = ("messages", "prompt_completion")
_ROLES = pa.array(["user", "assistant"])
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def is_plain(file: InputFile, mapping: RowMapping, shape: Shape) -> bool:
    """Return whether the rows of a file can be read as columns."""
    if file.kind != "parquet" or shape.name not in _SHAPES or shape.include or shape.message_keys or mapping.group_by:
        return False
    if mapping.format == "hh" or mapping.cut_prompt:
        return False
    if mapping.prompt is None or mapping.input is not None or mapping.system is not None or mapping.tools is not None:
        return False
    schema = parquet_schema(file)
    texts = [mapping.prompt] + [name for name in (mapping.response, mapping.source) if name is not None]
    if mapping.responses is not None and (
        mapping.responses not in schema.names
        or not pa.types.is_list(kind := schema.field(mapping.responses).type)
        or not _is_text(kind.value_type)
    ):
        return False
    return all(name in schema.names and _is_text(schema.field(name).type) for name in texts)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def read_tables(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    wanted: Candidates,
    shape: Shape,
    schema: pa.Schema,
    *,
    most_rows: int,
) -> Iterator[pa.Table]:
    """The kept responses of one unit, in place order (`wanted` is sorted so), as tables of `schema`; at most `most_rows` rows of
    the unit are decoded at a time.

    Raises `InputError` if a prompt or a response is not what was scored.
    """
    columns = [
        name for name in (mapping.prompt, mapping.response, mapping.responses, mapping.source) if name is not None
    ]
    found = 0
    for low, high, batch in take_batches(file, unit, wanted.row, columns, most_rows=most_rows):
        found += high - low
        part = wanted.slice(low, high)
        texts = batch[mapping.prompt].cast(pa.string()), _responses(batch, mapping, part, file)
        turns = _structured_prompts(texts[0], file)
        keys = _prompt_ids(file, part, *texts, turns=turns)
        source = batch[mapping.source].cast(pa.string()) if mapping.source else pa.nulls(len(part), pa.string())
        more = {"prompt_id": keys, "source": source}
        columns_by_name = _make_columns(part, *texts, turns=turns, shape=shape, more=more)
        yield pa.table([columns_by_name[name] for name in schema.names], schema=schema)
    if found != len(wanted):
        raise input_changed(file)


def _responses(batch: pa.RecordBatch, mapping: RowMapping, part: Candidates, file: InputFile) -> pa.Array:
    if mapping.responses is None:
        if part.response.any():
            raise input_changed(file)
        return batch[mapping.response].cast(pa.string())
    lists = batch[mapping.responses]
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    if np.any(part.response >= lengths):
        raise input_changed(file)
    starts = np.cumsum(lengths) - lengths
    return lists.flatten().take(pa.array(starts + part.response)).cast(pa.string())


def _structured_prompts(prompts: pa.Array, file: InputFile) -> list[Conversation] | None:
    """All prompts as conversations if any may be more than one turn; else None. Raises `InputError`."""
    if not pc.any(pc.match_substring_regex(prompts, STRUCTURED)).as_py():
        return None
    try:
        return [from_prompt(text) for text in prompts.to_pylist()]
    except (UnusableError, UnicodeDecodeError):
        raise input_changed(file) from None


def _prompt_ids(
    file: InputFile,
    part: Candidates,
    prompts: pa.Array,
    responses: pa.Array,
    *,
    turns: Sequence[Conversation] | None,
) -> pa.Array:
    """The prompt keys in hexadecimal. Raises `InputError` if a prompt or a response is not what was scored."""
    if prompts.null_count or responses.null_count:
        raise input_changed(file)
    try:
        keys = b"".join(map(prompt_key, turns or [(("user", text),) for text in prompts.to_pylist()]))
    except UnicodeDecodeError:
        raise input_changed(file) from None
    halves = np.frombuffer(keys, dtype=">u8").reshape(-1, 2)
    hashes = np.fromiter(map(response_hash, _utf8(responses)), np.uint64, len(responses))
    same = (hashes == part.response_hash) & (halves[:, 0] == part.key_high) & (halves[:, 1] == part.key_low)
    if not same.all():
        raise input_changed(file)
    width = 2 * 16
    offsets = np.arange(0, width * (len(part) + 1), width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(part), pa.py_buffer(offsets), pa.py_buffer(keys.hex().encode()))


def _utf8(texts: pa.Array) -> Iterator[memoryview]:
    """The bytes of each text, directly from the buffers; no text is null."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(texts) + 1, 4 * texts.offset).tolist() if len(texts) else [0]
    whole = memoryview(data or b"")
    return (whole[start:end] for start, end in itertools.pairwise(bounds))


def _make_columns(
    part: Candidates,
    prompts: pa.Array,
    responses: pa.Array,
    *,
    turns: Sequence[Conversation] | None,
    shape: Shape,
    more: dict[str, pa.Array],
) -> dict[str, pa.Array]:
    """Columns by name, as `output_columns.to_table` makes them from rows."""
    columns = {"reward": pa.array(part.raw, pa.float32()), **more}
    if "rank" in shape.add:
        columns["rank"] = pa.array(part.rank, pa.int32())
    if "margin" in shape.add or "probability" in shape.add:
        margins = [None if np.isnan(margin) else margin for margin in part.margin.tolist()]
        columns["margin"] = pa.array(margins, pa.float32())
        probabilities = [probability_of(margin, shape.temperature) for margin in margins]
        columns["probability"] = pa.array(probabilities, pa.float32())
    if shape.name == "messages" and turns is not None:
        whole = [to_messages(*pair) for pair in zip(turns, responses.to_pylist(), strict=True)]
        return {"messages": pa.array(whole, _MESSAGES), **columns}
    if shape.name == "messages":
        return {"messages": _messages([prompts, responses], first=0), **columns}
    plain = turns is None
    prompt = _messages([prompts], first=0) if plain else pa.array([*map(to_messages, turns or ())], _MESSAGES)
    return {"prompt": prompt, "completion": _messages([responses], first=1), **columns}


def _messages(texts: list[pa.Array], *, first: int) -> pa.Array:
    """One list of messages per row, with a text from each column."""
    count, turns = len(texts[0]), len(texts)
    order = np.arange(turns * count).reshape(turns, count).T.ravel()
    contents = pa.concat_arrays(texts).take(pa.array(order))
    roles = _ROLES.take(pa.array(np.tile(np.arange(first, first + turns), count)))
    messages = pa.StructArray.from_arrays([roles, contents], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(0, turns * count + 1, turns, dtype=np.int32)), messages)


def text_bytes(table: pa.Table) -> int:
    """Bytes of text in a table, nested or not, whatever the layout of its buffers."""
    return sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks)


def _text_bytes(array: pa.Array) -> int:
    if isinstance(array.type, pa.JsonType):
        return _text_bytes(array.storage)
    if pa.types.is_struct(array.type):
        return sum(map(_text_bytes, array.flatten()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _text_bytes(array.flatten())
    if _is_text(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return int(pc.sum(pc.binary_length(array)).as_py() or 0)
    return 0
