"""The part of a corpus that is already scored: a plan's score files, listed once and read in threads, or a sample of them."""

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
from pipelines.storage.files import REQUESTS_AT_ONCE, join, names_in

MOST_READ = 4_000  # score files, about 2 ms each

FragmentPlace = tuple[str, int, int]  # file key, unit, fragment


@dataclass(frozen=True)
class ScoredSoFar:
    """Valid score files of the current input files, each fragment once; `tokens` as the manifest counts them."""

    fragments: Quantity
    responses: Quantity
    tokens: Quantity
    places: frozenset[FragmentPlace]  # of the score files that were read
    whole: bool  # True if all score files were read


def count_scored(plan: Plan, directories: tuple[str, ...], *, seed: int) -> ScoredSoFar:
    """Return the scored part of the plan's fragments in these directories (of one fingerprint).

    A file that has changed since it was scored counts as not scored, although a run may find that its text is the same.
    """
    paths_by_name: dict[str, str] = {}  # one name is one fragment: the first directory counts, as in a run
    for directory in directories:
        for name in names_in(directory):
            if name.endswith(".parquet"):
                paths_by_name.setdefault(name, join(directory, name))
    paths = list(paths_by_name.values())
    read = paths if len(paths) <= MOST_READ else random.Random(seed).sample(paths, MOST_READ)
    files = {file.key: file for file in plan.files}
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        footers = list(pool.map(lambda path: _read_footer(path, files, plan), read))
    valid = {(footer.file_key, footer.unit, footer.fragment): footer for footer in footers if footer is not None}
    factor = len(paths) / len(read) if read else 1.0
    return ScoredSoFar(
        _extrapolate([1.0] * len(valid), factor, len(read)),
        _extrapolate([float(footer.responses) for footer in valid.values()], factor, len(read)),
        _extrapolate([float(footer.tokens) for footer in valid.values()], factor, len(read)),
        frozenset(valid),
        factor == 1.0,
    )


def _read_footer(path: str, files: Mapping[str, InputFile], plan: Plan) -> Footer | None:
    """Return the footer if this is a valid score file of the current state of one of these files, cut as the plan cuts."""
    content = score_files.read(path)
    if content is None:
        return None
    footer, file = content[1], files.get(content[1].file_key)
    name = score_files.name_of(
        file_key=footer.file_key,
        unit=footer.unit,
        unit_start=footer.unit_start,
        fragment=footer.fragment,
        rows_per_fragment=plan.rows_per_fragment,
    )
    current = file is not None and (footer.file_size, footer.file_version) == (file.size, file.version)
    matching = footer.fingerprint == plan.fingerprint and path.rsplit("/", 1)[-1].startswith(name)
    return footer if current and matching else None


def _extrapolate(values: list[float], factor: float, drawn: int) -> Quantity:
    """Return the sum over all score files from a simple random sample of `drawn` files; files without a value count as zero."""
    total = sum(values)
    if factor == 1.0:
        return Quantity.exact(total)
    mean = total / drawn
    variance = (sum(value**2 for value in values) - drawn * mean**2) / (drawn - 1)
    half = 1.96 * factor * (drawn * variance * (1 - 1 / factor)) ** 0.5
    return Quantity(total * factor, max(total, total * factor - half), total * factor + half, "sampled")
