"""The observations behind a report on a scored corpus and its selection: exact counts, samples of bounded size. Pure.

Observations of parts can be merged in any order with the same result: samples are the responses with the smallest hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.corpus.word_hashes import splitmix
from pipelines.report.histogram import Histogram, merge_histograms
from pipelines.report.judged_pairs import JudgedPairs, merge_pairs
from pipelines.score.exact_sum import ExactSum
from pipelines.select.candidates import GOLDEN, group_ranks
from pipelines.select.columns import to_labels

SAMPLE_ROWS = 8_192  # of the prompts in the sample, which are whole
GRADED_ROWS = 65_536  # the same, of the sample that gold is compared on: 6 MB, and seconds for its intervals
_PER_PROMPT = 256  # responses of one prompt in the sample
EXTREMES = 10  # responses of each kind
SOURCES = 64  # listed separately
OTHERS = "\0others"  # stands for all other sources

ROWS = pa.schema(
    [
        pa.field("key_high", pa.uint64()),  # of the prompt
        pa.field("key_low", pa.uint64()),
        pa.field("response_hash", pa.uint64()),
        pa.field("file", pa.int32()),
        pa.field("unit", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("response", pa.int32()),
        pa.field("reward", pa.float32()),  # the model's, not corrected
        pa.field("size", pa.int32()),  # tokens of prompt and response; characters where there is no tokenizer
        pa.field("length", pa.int32()),  # characters of the response
        pa.field("kept", pa.bool_()),
        pa.field("source", pa.string()),
        pa.field("gold", pa.float64()),  # null where nothing is known
        pa.field("spread", pa.float32()),  # standard deviation over the models of an ensemble
    ]
)
"""Responses as samples hold them."""

TIES = ("response", "row", "unit", "file", "response_hash")  # as `np.lexsort` wants them, the first criterion last

Sums = tuple[ExactSum, ExactSum]
"""The sums of a signal over the kept and over the dropped responses that have a value."""
Side = tuple[str | None, bool]
"""A source (None where a row names none), and whether its rows were kept."""


@dataclass(frozen=True)
class Observations:
    """Observations of a part of the corpus. Groups of the histogram are positions in `sides`."""

    sides: tuple[Side, ...] = ()
    histogram: Histogram = field(default_factory=Histogram)
    lengths: Mapping[Side, int] = field(default_factory=dict)  # sum of response characters
    # the highest and lowest rewards, of kept and of dropped
    extremes: pa.Table = field(default_factory=ROWS.empty_table)
    sample: pa.Table = field(default_factory=ROWS.empty_table)  # whole prompts
    graded: pa.Table = field(default_factory=ROWS.empty_table)  # these and more, where gold scores are read
    judged: JudgedPairs = field(default_factory=JudgedPairs)  # of rows of preferences
    signals: Mapping[str, Sums] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, *, preferences: bool = False, graded: bool = False) -> Observations:
        """Observe scored responses in the columns of `ROWS`, and in any others, which are signals by name; sources may be
        dictionary-encoded. For preferences, also observe pairs."""
        rows = table.select(ROWS.names)
        sides, groups = _sides(rows)
        lengths = np.bincount(groups, weights=_numbers(rows, "length"), minlength=len(sides))
        return cls(
            sides,
            Histogram.of(_numbers(rows, "reward"), _numbers(rows, "size"), groups),
            {side: int(total) for side, total in zip(sides, lengths, strict=True)},
            extremes_of(rows),
            sample_of(rows, SAMPLE_ROWS),
            sample_of(rows, GRADED_ROWS if graded else 0),
            JudgedPairs.of(rows) if preferences and len(rows) else JudgedPairs(),
            {name.partition(".")[2]: _sums(table, name) for name in table.column_names[len(ROWS) :]},
        )

    def counts(self) -> dict[Side, int]:
        """Responses by side."""
        return {self.sides[group]: int(rows.sum()) for group, rows in self.histogram.counts.items()}

    def sizes(self) -> dict[Side, int]:
        return {self.sides[group]: int(sizes.sum()) for group, sizes in self.histogram.sizes.items()}


def merge_observations(parts: Iterable[Observations]) -> Observations:
    """All parts as one; of more than `SOURCES` sources those with the smallest hashes stay, the others are one."""
    filled = [part for part in parts if part.sides]
    if not filled:
        return Observations()
    names = _name_sources({source for part in filled for source, _ in part.sides})
    sides = sorted({(names[source], kept) for part in filled for source, kept in part.sides}, key=_side_order)
    position = {side: number for number, side in enumerate(sides)}
    lengths: dict[Side, int] = {}
    histograms = []
    for part in filled:
        numbers = {group: position[names[source], kept] for group, (source, kept) in enumerate(part.sides)}
        histograms.append(part.histogram.regroup(numbers))
        for (source, kept), total in part.lengths.items():
            side = (names[source], kept)
            lengths[side] = lengths.get(side, 0) + total
    return Observations(
        tuple(sides),
        merge_histograms(histograms),
        {side: lengths[side] for side in sides},
        extremes_of(pa.concat_tables([part.extremes for part in filled])),
        sample_of(pa.concat_tables([part.sample for part in filled]), SAMPLE_ROWS),
        sample_of(pa.concat_tables([part.graded for part in filled]), GRADED_ROWS),
        merge_pairs(part.judged.renamed(names) for part in filled),
        {name: _add_up(part.signals[name] for part in filled) for name in filled[0].signals},
    )


def _sums(table: pa.Table, name: str) -> Sums:
    values, kept = _numbers(table, name), _kept(table)
    known = np.isfinite(values)
    return ExactSum.of(values[known & kept]), ExactSum.of(values[known & ~kept])


def _add_up(parts: Iterable[Sums]) -> Sums:
    kept, dropped = zip(*parts, strict=True)
    return sum(kept, ExactSum()), sum(dropped, ExactSum())


def key_text(high: int, low: int) -> str:
    """The id of a prompt, as in the column `prompt_id` of the output."""
    return f"{high << 64 | low:032x}"


def extremes_of(rows: pa.Table) -> pa.Table:
    """The `EXTREMES` highest and lowest rewards of the kept and of the dropped, by reward and then the fixed order."""
    reward, kept = _numbers(rows, "reward"), _kept(rows)
    chosen: list[npt.NDArray[np.intp]] = []
    for part in (np.flatnonzero(kept), np.flatnonzero(~kept)):
        for sign in (1, -1):
            values = sign * reward[part]
            likely = part
            if len(part) > EXTREMES:
                likely = part[values <= np.partition(values, EXTREMES - 1)[EXTREMES - 1]]
            order = np.lexsort((*_ties(rows, likely), sign * reward[likely]))
            chosen.append(likely[order[:EXTREMES]])
    every = np.unique(np.concatenate(chosen))
    return _take(rows, every[np.lexsort(_ties(rows, every))])


def sample_of(rows: pa.Table, most: int) -> pa.Table:
    """Whole prompts in random order until they have `most` responses, those of a prompt together.

    Prompts come in order of a hash of their keys; a larger corpus fills the sample sooner, so that its prompts are among those
    of each of its parts.
    """
    if not (rows.num_rows and most):
        return ROWS.empty_table()
    high, low = _numbers(rows, "key_high"), _numbers(rows, "key_low")
    with np.errstate(over="ignore"):  # another order than that of the keys, by which rows are partitioned
        chance = splitmix((high ^ low) + GOLDEN)
    chosen = np.arange(rows.num_rows)
    if len(chance) > 4 * most:  # most rows need not be sorted
        likely = np.flatnonzero(chance <= np.uint64(2**64 - 1) // np.uint64(len(chance) // (2 * most)))
        if _prompts_fill(chance[likely], most):
            chosen = likely
    order = np.lexsort((*_ties(rows, chosen), low[chosen], high[chosen], chance[chosen]))
    chosen = chosen[order]
    first = np.append(True, (high[chosen][1:] != high[chosen][:-1]) | (low[chosen][1:] != low[chosen][:-1]))
    starts = np.flatnonzero(first)
    few = group_ranks(starts, len(chosen)) < _PER_PROMPT
    chosen, first = chosen[few], first[few]
    rows_before = np.cumsum(few)[few] - 1  # rows before this one
    prompt = np.cumsum(first) - 1
    rows_before_prompt = rows_before[first][prompt]  # rows before this one's prompt
    return _take(rows, chosen[rows_before_prompt < most])


def _prompts_fill(chance: npt.NDArray[np.uint64], most: int) -> bool:
    """Return True if prompts with these hashes, one a row, fill a sample."""
    _, counts = np.unique(chance, return_counts=True)
    return int(np.minimum(counts, _PER_PROMPT).sum()) >= most


def _sides(rows: pa.Table) -> tuple[tuple[Side, ...], npt.NDArray[np.int64]]:
    """The distinct sides of some rows, and each row's position among them."""
    labels = to_labels(rows["source"])
    numbers = 2 * (labels.codes.astype(np.int64) + 1) + _kept(rows)
    present = np.flatnonzero(np.bincount(numbers)).tolist()
    names = _name_sources({labels.name_of((number >> 1) - 1) for number in present})
    side_of = {number: (names[labels.name_of((number >> 1) - 1)], bool(number & 1)) for number in present}
    sides = sorted(set(side_of.values()), key=_side_order)
    groups = np.zeros(max(present, default=0) + 1, np.int64)
    for number, side in side_of.items():
        groups[number] = sides.index(side)
    return tuple(sides), groups[numbers]


def _name_sources(sources: set[str | None]) -> dict[str | None, str | None]:
    """Each source → its name in the observations."""
    real = sorted(
        (source for source in sources if source is not None and source != OTHERS),
        key=lambda source: (xxhash.xxh3_64_intdigest(source.encode()), source),
    )
    names: dict[str | None, str | None] = {None: None, OTHERS: OTHERS}
    for place, source in enumerate(real):
        names[source] = source if place < SOURCES else OTHERS
    return names


def _side_order(side: Side) -> tuple[bool, str, bool]:
    source, kept = side
    return source is not None, source or "", kept


def _take(rows: pa.Table, chosen: npt.NDArray[np.intp]) -> pa.Table:
    return rows.take(pa.array(chosen)).cast(ROWS)


def _numbers(rows: pa.Table, name: str) -> Any:
    return rows[name].to_numpy()


def _kept(rows: pa.Table) -> npt.NDArray[np.bool_]:
    kept: npt.NDArray[np.bool_] = rows["kept"].to_numpy().astype(bool)
    return kept


def _ties(rows: pa.Table, at: npt.NDArray[np.intp]) -> list[npt.NDArray[np.generic]]:
    return [_numbers(rows, name)[at] for name in TIES]
