"""Decodes a unit for the stripes that a process reads, and keeps the other fragments on the local disk.

A stripe is every n-th fragment of a unit (see `score.work`). A row group can only be decoded from its first row, so the rows of
all its fragments go, as they are decoded, into a temporary file without a name, which ends with the process at the latest. A
process keeps the 64 units that were used last. Together they take at most a quarter of the free space of that disk; those used
longest ago make room for others. A unit that would take more than that quarter alone, or has values that are no JSON, such as
times, is decoded for each of its stripes.

A million rows with 2 kB of text take 12 s of one core to decode, 6 s to keep and 5 s to read back, and 2 GB of disk, which is
less if the text compresses well (measured on 50,000 of them); in memory there is one fragment.

Example, of a unit with five fragments, whichever stripe is read first:

    [raw.index for raw in read_stripe(key, read, stripe=1, stripes=3)]  →  [1, 4], after `read()` was read to its end
    [raw.index for raw in read_stripe(key, read, stripe=0, stripes=3)]  →  [0, 3], without `read`
"""

from __future__ import annotations

import logging
import marshal
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import IO, NamedTuple

import pyarrow as pa

from pipelines.corpus.files import RawRow
from pipelines.corpus.fragments import RawFragment

log = logging.getLogger(__name__)

Read = Callable[[], Iterator[RawFragment]]
"""Reads a unit's fragments from the first on."""

_PARTS = 4  # of the free space of the disk, of which units take one
_MOST_UNITS = 64  # each has one or two open files, and a process may have a thousand
_CODEC = pa.Codec("lz4")


class _Place(NamedTuple):
    """A fragment in the file."""

    start: int
    stored: int  # bytes
    whole: int  # bytes, decompressed


class _NotKeptError(Exception):
    """A fragment was not kept: there is no room for its unit, or reading the unit has failed before."""


class _DecodedUnit:
    """The fragments of a unit, decoded when they are first requested, from any thread."""

    def __init__(self, read: Read) -> None:
        self._fragments = read()
        self._file: IO[bytes] | None = None
        self._places: list[_Place] = []
        self._ended = False
        self._lock = threading.Lock()
        self.stored_bytes = 0

    def fragment(self, index: int) -> RawFragment | None:
        """The fragment with this index; None after the last. Raises what reading the unit raises, and `_NotKeptError`."""
        while True:
            with self._lock:  # not for longer than one fragment takes: other threads may want an earlier one
                if index < len(self._places) and self._file is not None:
                    place = self._places[index]
                    self._file.seek(place.start)
                    stored = self._file.read(place.stored)
                    break
                if self._ended:
                    return None
                self._keep_next()
        rows, first, last, input_bytes = marshal.loads(_CODEC.decompress(stored, place.whole))
        return RawFragment(index, first, [RawRow(*row) for row in rows], last, input_bytes)

    def _keep_next(self) -> None:
        raw = next(self._fragments, None)
        if raw is None:  # its last fragment has not come
            raise _NotKeptError
        try:
            whole = marshal.dumps((list(map(tuple, raw.rows)), raw.first, raw.last, raw.input_bytes))
            stored = _CODEC.compress(whole, asbytes=True)
            _make_room(self, len(stored))
            self._file = self._file or tempfile.TemporaryFile(prefix="bestkept-")  # noqa: SIM115
            self._file.seek(self.stored_bytes)
            self._file.write(stored)
            self._file.flush()
        except Exception as error:  # the disk, or a value such as a time, which `marshal` lacks
            log.info(
                "decoded rows are not kept (%s): their unit is decoded for each of its stripes", type(error).__name__
            )
            self._file, self._places, self._fragments, self.stored_bytes = None, [], iter(()), 0
            raise _NotKeptError from None
        self._places.append(_Place(self.stored_bytes, len(stored), len(whole)))
        self.stored_bytes += len(stored)
        if raw.last:
            self._ended, self._fragments = True, iter(())  # the reader holds rows, and a file


_units: OrderedDict[Hashable, _DecodedUnit] = OrderedDict()  # of this process, the one used last at the end
_holders = 0
_lock = threading.Lock()


def read_stripe(key: Hashable, read: Read, *, stripe: int, stripes: int) -> Iterator[RawFragment]:
    """Read the fragments whose number is `stripe` modulo `stripes`; `key` identifies the unit, its content and how it is read.
    Raises what `read` raises."""
    if stripes == 1:
        yield from read()
        return
    index = stripe
    with _lock:
        unit = _units.pop(key, None) or _DecodedUnit(read)
        _units[key] = unit
        while len(_units) > _MOST_UNITS:
            _units.popitem(last=False)
    try:
        while (raw := unit.fragment(index)) is not None:
            yield raw
            index += stripes
        return
    except _NotKeptError:
        pass  # the error would keep its rows
    except Exception:
        with _lock:
            _units.pop(key, None)  # the next attempt reads from the beginning
        raise
    yield from (raw for raw in read() if raw.index >= index and raw.index % stripes == stripe)


def keep_at_most(units: int) -> None:
    """Keep so many units in this process, those used last."""
    global _MOST_UNITS
    _MOST_UNITS = units


def hold() -> None:
    """Keep units until `release` was called as often as this."""
    global _holders
    with _lock:
        _holders += 1


def release() -> None:
    """Delete all units if every `hold` has had its `release`."""
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0:
            _units.clear()


def _make_room(unit: _DecodedUnit, more_bytes: int) -> None:
    """Delete other units if, with them, this one would take more than its share of the disk. Raises `_NotKeptError` if it would
    do so alone."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    with _lock:
        kept = sum(
            one.stored_bytes for one in {unit, *_units.values()}
        )  # this one may have been deleted, and still be read
        most = (free + kept) // _PARTS
        for key, other in list(_units.items()):
            if kept + more_bytes <= most:
                return
            if other is not unit:
                kept -= other.stored_bytes
                del _units[key]
    if kept + more_bytes > most:
        raise _NotKeptError
