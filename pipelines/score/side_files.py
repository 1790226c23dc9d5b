"""Side files: columns measured on the text without a model, one file per fragment beside its score file. No Beam.

A plan names its measures. Each has a directory, named by a fingerprint of the measure, without the model: a new measure leaves
score files and other side files unchanged. A side file has the format, name and durability of a score file, with other columns:
row, response_index and response_hash, equal to those of the score file of the same text, and those of the measure. It is made
while the text is read to be scored, or, if the score file exists already, by reading only the text.

Example:

    side_files = UnitSideFiles(plan, directories, file_number, unit)
    side_files.add_existing(score_files)          # the same descriptors, with the side files that exist already
    side_files.ensure(fragment, score_file)       # the same descriptor, with all side files, now durable
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from pipelines.corpus import Fragment, Unit
from pipelines.errors import InputError
from pipelines.plan import Plan
from pipelines.score import score_files
from pipelines.score.column_signal import ColumnSignal
from pipelines.score.minhash import MinHash
from pipelines.score.ngram_hits import NgramHits
from pipelines.score.score_files import ScoreFile, SideFile
from pipelines.score.unit_scores import LookUp, ScoreDirectories, UnitScores
from rm.conversations import response_hash


class Measure(Protocol):
    """Columns that are derived only from the rows of a fragment."""

    @property
    def schema(self) -> pa.Schema:
        """The columns; their names are unique among all measures and score files."""
        ...

    def beside(self, fragment: Fragment) -> str:
        """A hash of the data that are read but not covered by `Fragment.content_hash`; empty if there are none."""
        ...

    def measure(self, fragment: Fragment) -> list[pa.Array]:
        """The columns' values, one for each response in order, including rejected ones."""
        ...


_KINDS: Mapping[str, Any] = {"column": ColumnSignal, "minhash": MinHash, "ngrams": NgramHits}


def measure_of(settings: Mapping[str, Any], directories: tuple[str, ...]) -> Measure:
    """The measure with the settings of a plan; `directories` are those of its side files."""
    measure: Measure = _KINDS[settings["kind"]].from_settings(settings)
    return replace(measure, directories=directories) if isinstance(measure, NgramHits) else measure


@dataclass(frozen=True)
class UnitSideFiles:
    """Finds and makes the side files of one unit."""

    plan: Plan
    directories: ScoreDirectories
    file_number: int
    unit: Unit

    @cached_property
    def _measures(self) -> list[tuple[Measure, UnitScores]]:
        """Each measure of the plan, with the places of its files."""
        files = [self._files_of(self.plan.measure_fingerprint(settings)) for settings in self.plan.measures]
        return [
            (measure_of(settings, one.directories), one)
            for settings, one in zip(self.plan.measures, files, strict=True)
        ]

    def _files_of(self, fingerprint: str) -> UnitScores:
        plan = replace(self.plan, fingerprint=fingerprint)
        return UnitScores(plan, self.directories.of(fingerprint), self.file_number, self.unit)

    def add_existing(self, existing: Sequence[ScoreFile], look_up: LookUp = map) -> list[ScoreFile]:
        """The same descriptors, with their side files up to the first for which one is missing or was made from other text."""
        leading = [
            _of_same_text(existing, files.read_leading(look_up), measure.schema.names)
            for measure, files in (self._measures if existing else ())
        ]
        if not leading:
            return list(existing)
        whole = min(map(len, leading))
        named = zip(existing, *leading, strict=False)
        return [*(replace(first, sides=tuple(sides)) for first, *sides in named), *existing[whole:]]

    def has_all(self, score_file: ScoreFile) -> bool:
        return len(score_file.sides) == len(self.plan.measures)

    def ensure(self, fragment: Fragment, score_file: ScoreFile, *, read_only: bool = False) -> ScoreFile:
        """The descriptor of a fragment's score file with all its side files; missing ones are made.

        With `read_only`, raises `InputError` for a missing side file.
        """
        sides = []
        for measure, files in self._measures:
            content_hash, beside = score_file.footer.content_hash, measure.beside(fragment)
            path, existing = files.find(fragment.index, content_hash, beside)
            if existing is None or score_files.original_schema(existing[0]) != beside:
                if read_only:
                    raise InputError(
                        f"{files.file.path} has rows for which there is no {measure.schema.names[0]} yet (looked in "
                        f"{' and '.join(files.directories)}); run `bestkept select` with the same configuration first: it "
                        "reads the text, and needs no model"
                    )
                columns = side_table(fragment, measure)
                score_files.write(path, columns, files.footer(fragment, columns, content_hash, 0, {}), beside)
            sides.append(SideFile(path, tuple(measure.schema.names)))
        return replace(score_file, sides=tuple(sides))


def _of_same_text(
    existing: Iterable[ScoreFile], side_files: Iterable[ScoreFile], names: Sequence[str]
) -> list[SideFile]:
    pairs = zip(existing, side_files, strict=False)
    same = itertools.takewhile(lambda pair: pair[0].footer.content_hash == pair[1].footer.content_hash, pairs)
    return [SideFile(side.path, tuple(names)) for _, side in same]


def side_table(fragment: Fragment, measure: Measure) -> pa.Table:
    """The columns of a fragment's side file, one row per response, aligned with its score file."""
    texts = [(row.number, index, text) for row in fragment.rows for index, text in enumerate(row.parsed.responses)]
    places: dict[str, list[Any]] = {
        "row": [row for row, _, _ in texts],
        "response_index": [index for _, index, _ in texts],
        "response_hash": [None if text is None else response_hash(text) for _, _, text in texts],
    }
    columns = {name: pa.array(values, score_files.COLUMNS.field(name).type) for name, values in places.items()}
    return pa.table({**columns, **dict(zip(measure.schema.names, measure.measure(fragment), strict=True))})
