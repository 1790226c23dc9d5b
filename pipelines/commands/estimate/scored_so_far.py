"""What of a corpus has been scored under a plan: its score files, listed once, read in threads, of very many a sample."""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.commands.estimate.quantity import Quantity
from pipelines.corpus import InputFile
from pipelines.plan import Plan
from pipelines.score import score_files
from pipelines.score.score_files import Footer
from pipelines.storage.files import join, names_in

MOST_READ = 4_000  # score files, about 2 ms each
_THREADS = 16

FragmentPlace = tuple[str, int, int]  # file key, unit, fragment


@dataclass(frozen=True)
class ScoredSoFar:
    """Valid score files of the files as they are now, each fragment once; `tokens` as the manifest counts them."""

    fragments: Quantity
    responses: Quantity
    tokens: Quantity
    places: frozenset[FragmentPlace]  # of those that were read
    whole: bool  # all were read


def count_scored(plan: Plan, directories: tuple[str, ...], *, seed: int) -> ScoredSoFar:
    """What these directories (of one fingerprint) hold of the plan's fragments.

    A file that has changed since it was scored counts as not scored, though a run may find its text to be the same.
    """
    found: dict[str, str] = {}  # the same name is the same fragment: the first directory counts, as it does in a run
    for directory in directories:
        for name in names_in(directory):
            if name.endswith(".parquet"):
                found.setdefault(name, join(directory, name))
    paths = list(found.values())
    read = paths if len(paths) <= MOST_READ else random.Random(seed).sample(paths, MOST_READ)
    files = {file.key: file for file in plan.files}
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(lambda path: _read_footer(path, files, plan), read))
    there = {(own.file_key, own.unit, own.fragment): own for own in footers if own is not None}
    factor = len(paths) / len(read) if read else 1.0
    return ScoredSoFar(
        _extrapolate([1.0] * len(there), factor, len(read)),
        _extrapolate([float(own.responses) for own in there.values()], factor, len(read)),
        _extrapolate([float(own.tokens) for own in there.values()], factor, len(read)),
        frozenset(there),
        factor == 1.0,
    )


def _read_footer(path: str, files: Mapping[str, InputFile], plan: Plan) -> Footer | None:
    """Its footer, if it is a valid score file of one of these files as it is now, cut as the plan cuts."""
    there = score_files.read(path)
    if there is None:
        return None
    own, file = there[1], files.get(there[1].file_key)
    name = score_files.name_of(
        file_key=own.file_key,
        unit=own.unit,
        unit_start=own.unit_start,
        fragment=own.fragment,
        rows_per_fragment=plan.rows_per_fragment,
    )
    current = file is not None and (own.file_size, own.file_version) == (file.size, file.version)
    mine = own.fingerprint == plan.fingerprint and path.rsplit("/", 1)[-1].startswith(name)
    return own if current and mine else None


def _extrapolate(values: list[float], factor: float, drawn: int) -> Quantity:
    """The sum over all score files, of which the `drawn` ones have these values, the others none; a simple random sample."""
    total = sum(values)
    if factor == 1.0:
        return Quantity.exact(total)
    mean = total / drawn
    variance = (sum(value**2 for value in values) - drawn * mean**2) / (drawn - 1)
    half = 1.96 * factor * (drawn * variance * (1 - 1 / factor)) ** 0.5
    return Quantity(total * factor, max(total, total * factor - half), total * factor + half, "sampled")
