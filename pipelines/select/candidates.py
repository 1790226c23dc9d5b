"""Scored responses as aligned columns, and their fixed order. No Beam, no files.

The order between equal rewards: smaller content hash of the response, then file, unit, row and position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.corpus.word_hashes import splitmix
from pipelines.score.prompt_values import Positions, Prompts

Mask = npt.NDArray[np.bool_]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The increment of splitmix64: 2**64 over the golden ratio, made odd."""

_SIGN = np.uint32(0x80000000)
_FEW = 4096  # keys, up to which a comparison sort is as fast


@dataclass(frozen=True)
class Labels:
    """A column of text as codes: `values[codes[i]]`, None if the code is -1."""

    codes: npt.NDArray[np.int32]
    values: tuple[str, ...]

    def take(self, positions: Positions) -> Labels:
        return Labels(self.codes.take(positions), self.values)

    def equal(self, value: str) -> Mask:
        """The mask of the rows with this text."""
        code = self.values.index(value) if value in self.values else -2
        mask: Mask = self.codes == code
        return mask

    def name_of(self, code: int) -> str | None:
        return None if code < 0 else self.values[code]


@dataclass
class _PromptCache:
    """A cache of the prompts of some rows; tables of the same rows share it."""

    prompts: Prompts | None = None


@dataclass(frozen=True)
class Candidates:
    """Aligned columns, one entry per scored response."""

    key_high: npt.NDArray[np.uint64]  # the prompt key's two halves: compared in full, never truncated
    key_low: npt.NDArray[np.uint64]
    reward: npt.NDArray[np.float32]  # the value that rules compare: corrected for length if a step says so
    response_hash: npt.NDArray[np.uint64]
    # place: file number in the plan, unit in the file, row in the unit, response in the row
    file: npt.NDArray[np.int32]
    unit: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    response: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]  # of prompt and response
    length: npt.NDArray[np.int32]  # characters of the response
    raw: npt.NDArray[np.float32]  # the model's reward
    rank: npt.NDArray[np.int32]  # within the prompt, 1 is best; 0 if not needed
    margin: npt.NDArray[np.float32]  # to the next worse response; NaN for the worst
    rival: npt.NDArray[np.float32]  # the reward of the longest response in its place, for the report
    # pairs: place, content hash and reward of the rejected response
    other_file: npt.NDArray[np.int32]
    other_unit: npt.NDArray[np.int32]
    other_row: npt.NDArray[np.int32]
    other_response: npt.NDArray[np.int32]
    other_hash: npt.NDArray[np.uint64]
    other_raw: npt.NDArray[np.float32]
    labels: Mapping[str, Labels] = field(default_factory=dict)
    values: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Further numbers that expressions read, and results of evaluated parts; see `pipelines.select.expressions`."""
    _cache: _PromptCache = field(default_factory=_PromptCache, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def prompts(self) -> Prompts:
        """Positions sorted by prompt, and where each prompt starts among them; computed once."""
        if self._cache.prompts is None:
            self._cache.prompts = _sort_by_prompt(self.key_high, self.key_low)
        return self._cache.prompts

    def sorted_by_prompt(self) -> Candidates:
        """The same rows, those of a prompt together."""
        order, starts = self.prompts
        return replace(self.take(order), _cache=_PromptCache((np.arange(len(order)), starts)))

    def slice(self, start: int, end: int) -> Candidates:
        """The entries of a range; nothing is copied."""
        columns: dict[str, Any] = {name: getattr(self, name)[start:end] for name in COLUMN_NAMES}
        if self.raw is self.reward:
            columns["raw"] = columns["reward"]
        labels = {name: Labels(column.codes[start:end], column.values) for name, column in self.labels.items()}
        return Candidates(**columns, labels=labels, values={n: v[start:end] for n, v in self.values.items()})

    def take(self, chosen: npt.NDArray[np.generic]) -> Candidates:
        """The entries at these positions, or under this mask."""
        positions = np.flatnonzero(chosen) if chosen.dtype == bool else np.asarray(chosen, dtype=np.intp)
        columns: dict[str, Any] = {}
        for name in COLUMN_NAMES:
            column = getattr(self, name)
            if column.strides == (0,) and len(column):  # a single value for all rows takes no memory, also after this
                columns[name] = np.broadcast_to(column[:1], (len(positions),))
            elif name == "raw" and column is self.reward:
                columns[name] = columns["reward"]
            else:
                columns[name] = column.take(positions)
        return Candidates(
            **columns,
            labels={name: labels.take(positions) for name, labels in self.labels.items()},
            values={name: column.take(positions) for name, column in self.values.items()},
        )

    def with_values(self, values: Mapping[str, npt.NDArray[Any]]) -> Candidates:
        """The same rows with further numbers."""
        return replace(self, values={**self.values, **values}) if values else self

    def with_columns(self, **columns: npt.NDArray[np.generic]) -> Candidates:
        """The same rows with other columns, but with the same keys."""
        return replace(self, **columns)  # type: ignore[arg-type]

    def paired_with(self, other: Candidates) -> Candidates:
        """The same rows as chosen responses, each with the corresponding row of `other` as its rejected response."""
        return self.with_columns(
            other_file=other.file,
            other_unit=other.unit,
            other_row=other.row,
            other_response=other.response,
            other_hash=other.response_hash,
            other_raw=other.raw,
        )


COLUMN_NAMES = tuple(entry.name for entry in fields(Candidates) if entry.name not in ("labels", "values", "_cache"))


def ascending_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Unsigned integers, of the same width, in the order of the values; -0.0 is 0.0. No NaN."""
    bits = (values.astype(np.float32, copy=False) + np.float32(0.0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def best_first(candidates: Candidates) -> tuple[Positions, Positions]:
    """Positions sorted by prompt, and within a prompt from best to worst in the fixed order; and where prompts start.

    Two sorts of 64-bit integers replace one by eight columns; rows that they leave equal are sorted by all columns.
    """
    return order_within(candidates, worst_bits(candidates.reward))


def worst_bits(rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Unsigned integers, the smallest for the highest reward."""
    return ~ascending_bits(rewards)


def order_within(candidates: Candidates, values: npt.NDArray[np.uint32]) -> tuple[Positions, Positions]:
    """Like `best_first`, the smallest of `values` first instead of the highest reward."""
    order, starts = candidates.prompts
    if not len(order):
        return order, starts
    group = np.repeat(np.arange(len(starts), dtype=np.uint64), group_sizes(starts, len(order)))
    return order[_sort_with_ties(candidates, order, (group << np.uint64(32)) | values[order])], starts


def first_within(candidates: Candidates, values: npt.NDArray[np.uint32]) -> tuple[Positions, Positions]:
    """(the position of each prompt's first under `order_within`, its number of responses), without sorting within prompts."""
    order, starts = candidates.prompts
    sizes = group_sizes(starts, len(order))
    if not len(order):
        return order, sizes
    ordered = values[order]
    at = np.flatnonzero(ordered == np.repeat(np.minimum.reduceat(ordered, starts), sizes))
    least = order[at]
    if len(least) == len(starts):  # no ties
        return least, sizes
    ends = np.searchsorted(at, np.append(starts[1:], len(order)))
    counts = np.diff(ends, prepend=0)
    firsts = least[ends - counts]
    tied = counts > 1
    rows = least[np.repeat(tied, counts)]
    group = np.repeat(np.arange(int(tied.sum())), counts[tied])
    rows = rows[np.lexsort((*tie_break(candidates.take(rows)), group))]
    firsts[tied] = rows[np.cumsum(counts[tied]) - counts[tied]]
    return firsts, sizes


def first_of_texts(candidates: Candidates) -> Positions:
    """Positions of the best response of each prompt and text, ascending."""
    order, starts = best_first(candidates)
    prompt = np.repeat(np.arange(len(starts)), group_sizes(starts, len(order)))
    by_text = np.lexsort((np.arange(len(order)), candidates.response_hash[order], prompt))
    texts, prompts = candidates.response_hash[order[by_text]], prompt[by_text]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (texts[1:] != texts[:-1]) | (prompts[1:] != prompts[:-1])
    return np.sort(order[by_text[first]])


def _sort_by_prompt(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> Prompts:
    """`Candidates.prompts`; sorted rows are not sorted again."""
    same = high[1:] == high[:-1]
    if len(high) and np.all((high[1:] > high[:-1]) | (same & (low[1:] >= low[:-1]))):
        return np.arange(len(high)), np.flatnonzero(np.append(True, ~same | (low[1:] != low[:-1])))
    order = _order_of_keys(high)
    high, low = high[order], low[order]
    same, other = high[1:] == high[:-1], low[1:] != low[:-1]
    if np.any(same & other) or np.any(high[1:] < high[:-1]):  # keys that share 64 bits, or the 48 that were sorted by
        by_both = np.lexsort((low, high))
        order, high, low = order[by_both], high[by_both], low[by_both]
        same, other = high[1:] == high[:-1], low[1:] != low[:-1]
    first = np.ones(min(1, len(order)), dtype=bool)
    return order, np.flatnonzero(np.append(first, ~same | other))


def _order_of_keys(keys: npt.NDArray[np.uint64]) -> Positions:
    """Positions sorted by the upper 48 of the bits in which the keys differ: three sorts of 16 bits, which take linear time."""
    if len(keys) < _FEW:
        return np.argsort(keys)
    least = keys.min()
    unused = min(63, 64 - int(keys.max() - least).bit_length())
    digits = ((keys - least) << np.uint64(unused)).astype("<u8").view("<u2").reshape(-1, 4)
    order = np.argsort(digits[:, 1], kind="stable")
    for digit in (2, 3):
        order = order[np.argsort(digits[order, digit], kind="stable")]
    return order


def group_sizes(starts: Positions, count: int) -> Positions:
    """The number of rows of each group, for `count` rows whose groups begin at `starts`."""
    return np.diff(np.append(starts, count))


def group_ranks(starts: Positions, count: int) -> Positions:
    """The position of each of `count` rows within its group, from 0."""
    return np.arange(count) - np.repeat(starts, group_sizes(starts, count))


def count_prompts(candidates: Candidates) -> int:
    """Distinct prompts."""
    return len(candidates.prompts[1])


def place_order(candidates: Candidates) -> Positions:
    """Positions in the order of the input, for rows of one unit; pairs with one chosen response in the order of the rejected."""
    places = pack_places(candidates.row, candidates.response)
    order = np.argsort(places)
    if not (places[order[1:]] == places[order[:-1]]).any():
        return order
    c = candidates
    return np.lexsort((c.other_response, c.other_row, c.other_unit, c.other_file, places))


def pack_places(row: npt.NDArray[np.int32], response: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """`row << 32 | response`: integers in the order of the input, for responses of one unit."""
    return (row.astype(np.uint64) << np.uint64(32)) | response.astype(np.uint64)


def tie_break(candidates: Candidates) -> Sequence[npt.NDArray[np.generic]]:
    """The columns that decide between equal rewards, as `np.lexsort` takes them: the first criterion last."""
    c = candidates
    return c.response, c.row, c.unit, c.file, c.response_hash


def hash_rows(candidates: Candidates, seed: int = 0) -> npt.NDArray[np.uint64]:
    """A well-mixed hash of prompt and response, whatever the row's place: repeatable randomness."""
    with np.errstate(over="ignore"):
        prompt = candidates.key_low + GOLDEN * np.uint64(seed + 1)
    return splitmix(candidates.response_hash ^ prompt)


def _sort_with_ties(candidates: Candidates, order: Positions, keys: npt.NDArray[np.uint64]) -> Positions:
    by_key = np.argsort(keys)
    keys = keys[by_key]
    equal = keys[1:] == keys[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        part = candidates.take(order[by_key[tied]])
        by_key[tied] = by_key[tied][np.lexsort((*tie_break(part), keys[tied]))]
    return by_key


def zero_columns(count: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    """Zeros for every column, in place of columns that no rule needs. They take no memory."""
    kinds = {
        "key_high": np.uint64, "key_low": np.uint64, "response_hash": np.uint64,
        "reward": np.float32, "raw": np.float32, "margin": np.float32, "rival": np.float32,
        "other_hash": np.uint64, "other_raw": np.float32,
    }  # fmt: skip
    return {name: np.broadcast_to(np.zeros(1, kinds.get(name, np.int32)), (count,)) for name in COLUMN_NAMES}
