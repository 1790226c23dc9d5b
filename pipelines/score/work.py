"""What there is to score, cut into pieces and dealt out: the same pieces for every process that asks, by the plan alone.

A piece is a file; a file larger than the pieces wanted is cut into its units, for which its footer is opened: of fewer files
than there are pieces. What is scored already does not count: every process must come to the same answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from pipelines.corpus import InputFile, Unit, UnreadableError, rewritten_copy, split_units
from pipelines.errors import ConfigError
from pipelines.plan import plan_at
from pipelines.score.rewrite_transform import rewrite_large

PIECES_PER_HAND = 8  # so that the last piece of one does not keep the others waiting for long
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class Share:
    """The part `index` of `count` (from 0) of a corpus, balanced by stored bytes."""

    index: int
    count: int

    @classmethod
    def of(cls, text: str) -> Share:
        """`0/4` to `3/4`. Raises `ConfigError` for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise ConfigError(f"--shard is {text!r}; expected I/N, from 0/N to (N-1)/N: --shard 0/4")
        share = cls(int(index), int(count))
        if share.index >= share.count:
            raise ConfigError(
                f"--shard is {text!r}; of N shards the first is 0 and the last is N-1: expected --shard 0/4 to 3/4"
            )
        return share

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Piece(NamedTuple):
    """Something to score: a file, one unit of it, or every so manieth fragment of a unit."""

    file: int  # index in the plan
    unit: Unit | None  # None: all units of the file
    stored_bytes: int
    stripe: int = 0  # fragments whose number is `stripe` modulo `stripes`
    stripes: int = 1


def cut(files: Sequence[InputFile], pieces: Iterable[Piece], most_bytes: int) -> list[Piece]:
    """The same work in pieces of at most `most_bytes`, as far as units go; a file that cannot be read stays one piece, for
    whoever opens it to find."""
    pieces = list(pieces)
    large = [piece for piece in pieces if piece.unit is None and piece.stored_bytes > most_bytes]
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        opened = dict(zip(large, pool.map(lambda piece: _units(files[piece.file], piece), large), strict=True))
    return [part for piece in pieces for part in opened.get(piece, [piece])]


def _units(file: InputFile, whole: Piece) -> list[Piece]:
    if file.copy is not None and rewritten_copy.read_index(file.copy) is None:  # it could not be rewritten
        return [whole]
    try:
        units = split_units(file)
    except UnreadableError:
        return [whole]
    return [Piece(whole.file, unit, unit.input_bytes) for unit in units]


def stripe(pieces: Iterable[Piece], hands: int) -> list[Piece]:
    """The same work, largest first, units cut into stripes of fragments where other hands would wait for a whole one at the end.

    No piece is more than half of a hand's part of what is left from it on (guided self-scheduling, Polychronopoulos and Kuck
    1987). Each stripe reads the unit and scores its own fragments, so few units are striped, and the last ones finest.
    """
    ordered = largest_first(pieces)
    left_bytes = sum(piece.stored_bytes for piece in ordered)
    striped: list[Piece] = []
    for piece in ordered:
        most_bytes = max(1, left_bytes // (2 * hands))
        left_bytes -= piece.stored_bytes
        count = -(-piece.stored_bytes // most_bytes) if piece.unit is not None else 1
        each = piece.stored_bytes // max(1, count)
        striped += [piece._replace(stripe=k, stripes=count, stored_bytes=each) for k in range(count)] or [piece]
    return striped


def whole_files(files: Sequence[InputFile]) -> list[Piece]:
    return [Piece(number, None, file.size) for number, file in enumerate(files)]


def deal(pieces: Iterable[Piece], hands: int) -> list[list[Piece]]:
    """The pieces in so many hands, the largest first, each to the hand that holds least (longest processing time first, Graham
    1969): no hand holds more than another by more than its own last piece."""
    dealt: list[list[Piece]] = [[] for _ in range(hands)]
    held = [(0, hand) for hand in range(hands)]
    for piece in largest_first(pieces):
        stored_bytes, hand = heapq.heappop(held)
        dealt[hand].append(piece)
        heapq.heappush(held, (stored_bytes + max(1, piece.stored_bytes), hand))
    return dealt


def largest_first(pieces: Iterable[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: (-piece.stored_bytes, piece.file, piece.unit or (), piece.stripe))


def share_of(files: Sequence[InputFile], share: Share) -> list[Piece]:
    """The pieces of one share; those of all shares together are all there is, each once."""
    most_bytes = sum(file.size for file in files) // (PIECES_PER_HAND * share.count)
    return deal(cut(files, whole_files(files), most_bytes), share.count)[share.index]


@lru_cache(maxsize=4)
def units_of_share(plan_path: str, share: Share) -> dict[int, frozenset[int] | None]:
    """File number → the numbers of its units that are in the share; None: all."""
    found: dict[int, set[int] | None] = {}
    plan = plan_at(plan_path)
    rewrite_large(plan)  # not each share its own files: units are dealt out, and of all
    for piece in share_of(plan.files, share):
        if piece.unit is None:
            found[piece.file] = None
        else:
            units = found.setdefault(piece.file, set())
            assert units is not None, "a file is one piece, or its units are"
            units.add(piece.unit.number)
    return {file: None if units is None else frozenset(units) for file, units in sorted(found.items())}


def units_in(file_number: int, file: InputFile, plan_path: str, share: Share | None) -> Iterator[Unit]:
    """The units of a file, those of the share alone where there is one. Raises `InputError`."""
    wanted = None if share is None else units_of_share(plan_path, share)[file_number]
    yield from (unit for unit in split_units(file) if wanted is None or unit.number in wanted)
