"""The conversations that a report shows: their choice, and their text, cut at a bounded length. No Beam, no file access."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.corpus import Row
from pipelines.report.observations import TIES, Observations, key_text
from rm.conversations import describe_message, response_hash, to_messages

KINDS = ("top", "bottom", "border", "close")
"""The highest rewards kept, the lowest of all, both sides of the border (the lowest kept, the highest dropped), and prompts
whose worst kept and best dropped responses are closest."""

_MOST_CHARACTERS = 20_000  # of one text
_MOST_TURNS = 20  # of a prompt, from its end


class ResponsePlace(NamedTuple):
    """The place of a sampled response, and the hash that it must have."""

    file: int
    unit: int
    row: int
    response: int
    response_hash: int


_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("number", pa.int32()),  # within its kind, from 1; both sides of a close call share it
        pa.field("kept", pa.bool_()),
        pa.field("reward", pa.float32()),
        pa.field("margin", pa.float32()),  # of a close call: its kept reward less its dropped one
        pa.field("prompt_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("size", pa.int32()),  # tokens of prompt and response; characters where there is no tokenizer
        pa.field("characters", pa.int32()),  # of the response
        pa.field("gold", pa.float64()),
        pa.field("spread", pa.float32()),
        pa.field("messages", pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))),
        pa.field("cut", pa.bool_()),  # whether any text or turn of it is missing here
        pa.field("file", pa.string()),
        pa.field("place", pa.string()),
    ]
)


class Pick(NamedTuple):
    """A response to show."""

    kind: str
    number: int
    place: ResponsePlace
    known: dict[str, Any]  # columns of `_SCHEMA` that need no text


class SampleText(NamedTuple):
    """The conversation at a place."""

    place: ResponsePlace
    messages: list[dict[str, str]]
    cut: bool
    file: str
    where: str


def pick(observed: Observations, count: int) -> list[Pick]:
    """`count` responses of each kind; fewer where the corpus has fewer."""
    if not count:
        return []
    rows = _sort_best_first(observed.extremes)
    kept, dropped = rows.filter(rows["kept"]), rows.filter(pc.invert(rows["kept"]))
    half = count // 2
    border = [kept.slice(max(0, len(kept) - (count - half))), dropped.slice(0, half)]
    chosen = {
        "top": kept.slice(0, count),
        "bottom": rows.take(pa.array(range(len(rows) - 1, max(-1, len(rows) - 1 - count), -1), pa.int64())),
        "border": pa.concat_tables(border),
    }
    picks = [
        _pick(kind, number + 1, row, None)
        for kind, table in chosen.items()
        for number, row in enumerate(table.to_pylist())
    ]
    for number, (margin, *both) in enumerate(find_closest_calls(observed.sample, count)):
        picks += [_pick("close", number + 1, observed.sample.slice(at, 1).to_pylist()[0], margin) for at in both]
    return picks


def find_closest_calls(sample: pa.Table, count: int) -> list[tuple[float, int, int]]:
    """(margin, position of the worst kept response, of the best dropped one) of the prompts with the smallest gap between
    these, in either direction; the smallest first, then in the order of the sample."""
    reward, kept = sample["reward"].to_numpy().astype(np.float64), sample["kept"].to_numpy()
    calls = []
    for start, end in prompt_bounds(sample):
        rows = np.arange(start, end)
        inside, outside = rows[kept[start:end]], rows[~kept[start:end]]
        if len(inside) and len(outside):
            worst, best = inside[np.argmin(reward[inside])], outside[np.argmax(reward[outside])]
            calls.append((float(reward[worst] - reward[best]), int(worst), int(best)))
    return sorted(calls, key=lambda call: (abs(call[0]), call[1]))[:count]


def prompt_bounds(sample: pa.Table) -> list[tuple[int, int]]:
    """Start and end of each prompt in a sample, which has those of a prompt together."""
    high, low = sample["key_high"].to_numpy(), sample["key_low"].to_numpy()
    changes = np.flatnonzero((high[1:] != high[:-1]) | (low[1:] != low[:-1])) + 1
    bounds = [0, *changes.tolist(), len(high)] if len(high) else [0]
    return list(itertools.pairwise(bounds))


def sample_text(place: ResponsePlace, row: Row, file: str, where: str) -> SampleText | None:
    """The conversation at a place; None where it is not the one that was scored."""
    texts = row.parsed.responses
    text = texts[place.response] if place.response < len(texts) else None
    if row.parsed.prompt is None or text is None or response_hash(text) != place.response_hash:
        return None
    turns = row.parsed.prompt[-_MOST_TURNS:]
    whole = to_messages(turns, text)
    texts_shown = [{"role": message["role"], "content": describe_message(message)} for message in whole]
    messages = [{**message, "content": message["content"][:_MOST_CHARACTERS]} for message in texts_shown]
    return SampleText(place, messages, messages != texts_shown or len(turns) < len(row.parsed.prompt), file, where)


def samples_table(picks: Sequence[Pick], texts: Iterable[SampleText]) -> bytes:
    """`samples.parquet`: the picks whose text is known, in their order."""
    known = {one.place: one for one in texts}
    rows = [
        {"kind": one.kind, "number": one.number, **one.known}
        | {"messages": text.messages, "cut": text.cut, "file": text.file, "place": text.where}
        for one in picks
        if (text := known.get(one.place)) is not None
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _sort_best_first(rows: pa.Table) -> pa.Table:
    """Best first, and the fixed order between equals."""
    return rows.sort_by([("reward", "descending"), *((name, "ascending") for name in reversed(TIES))])


def _pick(kind: str, number: int, row: dict[str, Any], margin: float | None) -> Pick:
    place = ResponsePlace(*(row[name] for name in ResponsePlace._fields))
    known = {name: row[name] for name in ("kept", "reward", "source", "size", "gold", "spread")}
    known |= {"characters": row["length"], "margin": margin}
    known["prompt_id"] = key_text(row["key_high"], row["key_low"])
    return Pick(kind, number, place, known)
