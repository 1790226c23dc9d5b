"""Divides the scoring work into pieces and assigns them to shards of a corpus and to workers. No Beam.

A piece is a file, or a unit of a file larger than the wanted size. Only the footers of these files are opened, and there are
fewer of them than pieces. The pieces depend only on the plan, not on existing scores: every process must compute the same ones.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from pipelines.corpus import InputFile, Unit, UnreadableError, rewritten_copy, split_units
from pipelines.corpus.fragments import FRAGMENT_BYTES
from pipelines.corpus.rewrite import rewrite
from pipelines.errors import ConfigError
from pipelines.plan import Plan, plan_at
from pipelines.runtime import machine
from pipelines.storage.models import weight_bytes

PIECES_PER_WORKER = 8  # or shard: the others then do not wait long for the last piece
_FOOTERS_AT_ONCE = 16
ELEMENT_SECS = 600.0  # the wanted maximum of work in an element of ScoreUnits
_GPU_FLOPS = 30e12  # a quarter of an L4's peak in 16 bits
_CPU_FLOPS = 50e9
_UNPACKED = 3  # bytes of text for a stored byte
_ROW_BYTES = 512  # of text in a row


@dataclass(frozen=True)
class CorpusShard:
    """Part `index` (from 0) of a corpus divided into `count`, balanced by stored bytes: `--shard INDEX/COUNT`."""

    index: int
    count: int

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str] = os.environ) -> CorpusShard:
        """Parse `0/4` to `3/4`, `auto` (both numbers from a scheduler's variables) or `auto/4` (only the first from them). Raises
        `ConfigError` for anything else."""
        if text.partition("/")[0] == "auto":
            text = _shard_of_task(text, environment)
        index, slash, count = text.partition("/")
        if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise ConfigError(f"--shard is {text!r}; expected I/N, from 0/N to (N-1)/N, or auto: --shard 0/4")
        shard = cls(int(index), int(count))
        if shard.index >= shard.count:
            raise ConfigError(
                f"--shard is {text!r}; of N shards the first is 0 and the last is N-1: expected --shard 0/4 to 3/4"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


# Variables with a task's number in its array, and those with the number of tasks, which Kubernetes does not set.
_TASKS = {
    "JOB_COMPLETION_INDEX": None,
    "SLURM_ARRAY_TASK_ID": "SLURM_ARRAY_TASK_COUNT",
    "CLOUD_RUN_TASK_INDEX": "CLOUD_RUN_TASK_COUNT",
    "AWS_BATCH_JOB_ARRAY_INDEX": "AWS_BATCH_JOB_ARRAY_SIZE",
}


def _shard_of_task(text: str, environment: Mapping[str, str]) -> str:
    """Return `I/N` for `auto` or `auto/N` in a task of an array. Raises `ConfigError` if the environment lacks them."""
    present = [name for name in _TASKS if environment.get(name)]
    if len(present) != 1:
        raise ConfigError(
            f"--shard is {text!r}, and the environment has {' and '.join(present) or 'no number of a task'}; expected one of "
            f"{', '.join(_TASKS)}, as a scheduler sets it for the tasks of an array: give the numbers, --shard I/N"
        )
    name = present[0]
    index, (_, slash, count) = environment[name], text.partition("/")
    if slash:
        return f"{index}/{count}"
    count = environment.get(_TASKS[name] or "", "")
    if not count:
        raise ConfigError(
            f"--shard is {text!r}, and beside {name}={index} nothing says how many tasks there are; give their number N (of a "
            "Kubernetes Job its completions): --shard auto/N"
        )
    if name.startswith("SLURM"):
        index = _slurm_index(index, count, environment)
    return f"{index}/{count}"


def _slurm_index(index: str, count: str, environment: Mapping[str, str]) -> str:
    """Return a task's number from 0: `sbatch --array` may begin with any number. Raises `ConfigError` for arrays with gaps."""
    first, last = (environment.get(f"SLURM_ARRAY_TASK_{end}", "") for end in ("MIN", "MAX"))
    if not all(number.isascii() and number.isdigit() for number in (index, count, first, last)):
        return index  # parsed or refused by the caller
    if int(last) - int(first) + 1 != int(count):
        raise ConfigError(
            f"--shard is 'auto', and the {count} tasks of this Slurm array are not all from {first} to {last}; submit an array "
            "without gaps, or give the number of all: --shard auto/N"
        )
    return str(int(index) - int(first))


class WorkPiece(NamedTuple):
    """A file, one unit of it, or every n-th fragment of a unit."""

    file: int  # index in the plan
    unit: Unit | None  # None: all units of the file
    stored_bytes: int
    stripe: int = 0  # fragments whose number is `stripe` modulo `stripes`
    stripes: int = 1


UnitFields = tuple[int, tuple[int, ...], tuple[int, int]]
"""File number, the fields of a `Unit`, and (stripe, stripes): an element of ScoreUnits."""


def stripes_of(file_number: int, unit: Unit, plan: Plan, most_bytes: float) -> list[UnitFields]:
    """Divide a unit into stripes with at most about `most_bytes` of text, but not into more stripes than it has fragments.

    Text is what is stored, times `_UNPACKED` if that is compressed. Rows that no footer counts are assumed to have `_ROW_BYTES`;
    if they are longer, some stripes are empty, which costs a worker at most the time to decode the unit once.
    """
    file = plan.files[file_number]
    is_packed = file.kind == "parquet" or file.compression is not None
    text_bytes = unit.input_bytes * (_UNPACKED if is_packed else 1)
    is_counted = file.kind == "parquet" or file.copy is not None
    rows = unit.end - unit.start if is_counted else text_bytes / _ROW_BYTES
    fragments = max(1, math.ceil(max(rows / plan.rows_per_fragment, text_bytes / FRAGMENT_BYTES)))
    most = max(1, int(min(fragments, most_bytes * fragments / max(1, text_bytes))))  # fragments in a stripe
    stripes = math.ceil(fragments / most)
    return [(file_number, tuple(unit), (stripe, stripes)) for stripe in range(stripes)]


def bytes_in(secs: float, plan: Plan) -> float:
    """Return the bytes of text that the plan's model scores in this time on the slowest device that is likely.

    A forward takes 2 operations per parameter and token; a parameter has 2 bytes, and a token 4. If the plan leaves the device
    open, it is that of this worker. The result only decides how finely work is divided.
    """
    if secs == math.inf or not plan.model:  # without a model, rewards come from a column
        return math.inf
    device = plan.model["device"]
    on_gpu = bool(machine.list_gpus()) if device == "auto" else device != "cpu"
    flops = _GPU_FLOPS if on_gpu else _CPU_FLOPS
    parameters = max(1.0, weight_bytes(plan.model) / 2)
    return secs * flops / (2 * parameters) * 4


def split_large(files: Sequence[InputFile], pieces: Iterable[WorkPiece], most_bytes: int) -> list[WorkPiece]:
    """Split whole files of more than `most_bytes` into their units. A file that cannot be read stays one piece; the error is
    raised where its rows are read."""
    pieces = list(pieces)
    large = [piece for piece in pieces if piece.unit is None and piece.stored_bytes > most_bytes]
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        split = dict(zip(large, pool.map(lambda piece: _units(files[piece.file], piece), large), strict=True))
    return [part for piece in pieces for part in split.get(piece, [piece])]


def _units(file: InputFile, whole: WorkPiece) -> list[WorkPiece]:
    if file.copy is not None and rewritten_copy.read_index(file.copy) is None:  # it could not be rewritten
        return [whole]
    try:
        units = split_units(file, as_planned=True)
    except UnreadableError:
        return [whole]
    return [WorkPiece(whole.file, unit, unit.input_bytes) for unit in units]


def stripe(pieces: Iterable[WorkPiece], workers: int) -> list[WorkPiece]:
    """Order pieces by size, the largest first, and split units into stripes of fragments where workers would otherwise wait for
    a whole unit at the end.

    No stripe is more than half of a worker's share of the remaining work (guided self-scheduling, Polychronopoulos and Kuck
    1987). Each worker that gets a stripe decodes the whole unit, so few units are striped; the last stripes are smallest.
    """
    ordered = largest_first(pieces)
    left_bytes = sum(piece.stored_bytes for piece in ordered)
    striped: list[WorkPiece] = []
    for piece in ordered:
        most_bytes = max(1, left_bytes // (2 * workers))
        left_bytes -= piece.stored_bytes
        count = max(1, -(-piece.stored_bytes // most_bytes)) if piece.unit is not None else 1
        stripe_bytes = piece.stored_bytes // count
        striped += [piece._replace(stripe=k, stripes=count, stored_bytes=stripe_bytes) for k in range(count)]
    return striped


def whole_files(files: Sequence[InputFile]) -> list[WorkPiece]:
    """Each file as one piece."""
    return [WorkPiece(number, None, file.size) for number, file in enumerate(files)]


def deal(pieces: Iterable[WorkPiece], shards: int) -> list[list[WorkPiece]]:
    """Assign pieces to shards: the largest first, each to the shard with the fewest bytes (longest processing time first, Graham
    1969). No shard exceeds another by more than its own last piece."""
    dealt: list[list[WorkPiece]] = [[] for _ in range(shards)]
    held = [(0, shard) for shard in range(shards)]
    for piece in largest_first(pieces):
        held_bytes, shard = heapq.heappop(held)
        dealt[shard].append(piece)
        heapq.heappush(held, (held_bytes + max(1, piece.stored_bytes), shard))
    return dealt


def largest_first(pieces: Iterable[WorkPiece]) -> list[WorkPiece]:
    """Pieces by size, then by file, unit and stripe."""
    return sorted(pieces, key=lambda piece: (-piece.stored_bytes, piece.file, piece.unit or (), piece.stripe))


def pieces_of_shard(files: Sequence[InputFile], shard: CorpusShard) -> list[WorkPiece]:
    """The pieces of one shard; every piece of the corpus is in exactly one."""
    most_bytes = sum(file.size for file in files) // (PIECES_PER_WORKER * shard.count)
    return deal(split_large(files, whole_files(files), most_bytes), shard.count)[shard.index]


@lru_cache(maxsize=4)
def units_of_shard(plan_path: str, shard: CorpusShard) -> dict[int, frozenset[int] | None]:
    """File number → the numbers of its units that are in the shard; None: all."""
    plan = plan_at(plan_path)
    make_copies(plan)  # of all files, not only the shard's: the division needs units, and only copies have them
    units: dict[int, set[int] | None] = {}
    for piece in pieces_of_shard(plan.files, shard):
        if piece.unit is None:
            units[piece.file] = None
        else:
            numbers = units.setdefault(piece.file, set())
            assert numbers is not None, "a file is one piece, or its units are"
            numbers.add(piece.unit.number)
    return {file: None if numbers is None else frozenset(numbers) for file, numbers in sorted(units.items())}


def make_copies(plan: Plan) -> None:
    """Rewrite the plan's large compressed files, before its work is divided by units. A file that cannot be read is left out
    here; the error is raised where its rows are read."""
    for file in plan.files:
        if file.copy is not None:
            with suppress(UnreadableError):
                rewrite(file, file.copy, max_row_bytes=plan.max_row_bytes)


def units_in(file_number: int, file: InputFile, plan_path: str, shard: CorpusShard | None) -> Iterator[Unit]:
    """The units of a file; with a `shard`, only those in it. Raises `InputError`."""
    wanted = None if shard is None else units_of_shard(plan_path, shard)[file_number]
    yield from (unit for unit in split_units(file, as_planned=True) if wanted is None or unit.number in wanted)
