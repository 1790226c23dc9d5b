"""Ensembles: one model in memory at a time, and the score files of all of them → those of the ensemble, which everything after
it reads like any other.

What is shuffled are descriptors of score files, a few hundred bytes a fragment and model. The score columns are read twice: the
rewards alone to standardise them, then whole to combine them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton
from apache_beam.utils.shared import Shared

from pipelines.combine import COMBINED, ROW, Moments, Standards, combine_tables, measure, merge_moments, standards_of
from pipelines.config import EnsembleConfig
from pipelines.errors import InputError, StorageError, carrying_errors
from pipelines.plan import Plan, plan_at
from pipelines.runtime.transforms import Gather, Spread
from pipelines.storage import objects
from pipelines.storage.files import join
from pipelines.storage.objects import Footer, ScoreFile

_Place = tuple[int, int, int]  # file, unit, fragment


_PLACEHOLDER = Shared()


class _Nothing:
    """Takes the place of a model."""


@dataclass(frozen=True)
class LoadAlone:
    """Loads a model when the one before it is out of memory. Beam keeps what was acquired last, and would let go of it only
    when the next one is there."""

    load: Callable[[Plan], Any]

    def __call__(self, plan: Plan) -> Any:
        _PLACEHOLDER.acquire(_Nothing)
        gc.collect()  # a model may be part of a cycle
        return self.load(plan)


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class CombineScores(beam.PTransform):  # type: ignore[misc]
    """Descriptors of each model, in the order of the plan's members → {scores: descriptors of the ensemble, standards}."""

    plan_path: str
    scores_path: str  # of the models, which errors name
    combined_path: str  # where the ensemble's are written

    def expand(self, scored: Sequence[Any]) -> dict[str, Any]:
        placed = [
            descriptors
            | f"PlaceScores{member}" >> beam.Map(by_place, member).with_output_types(tuple[_Place, tuple[int, bytes]])
            for member, descriptors in enumerate(scored)
        ]
        grouped = placed | "AllModels" >> beam.Flatten() | "GroupByFragment" >> beam.GroupByKey()
        matched = grouped | "MatchModels" >> beam.ParDo(MatchModels(self.plan_path, self.scores_path))
        moments = matched | "MeasureRewards" >> beam.ParDo(MeasureRewards())
        merged = moments | "MergeMoments" >> Gather(merge_moments)
        standards = merged | "Standardise" >> beam.ParDo(Standardise(self.plan_path))
        combined = matched | "CombineRewards" >> beam.ParDo(
            CombineRewards(self.plan_path, self.combined_path), AsSingleton(standards)
        ).with_output_types(bytes)
        return {"scores": combined | "KeepCombined" >> Spread(), "standards": standards}


def by_place(data: bytes, member: int) -> tuple[_Place, tuple[int, bytes]]:
    score_file = ScoreFile.from_bytes(data)
    return (score_file.file, score_file.footer.unit, score_file.footer.fragment), (member, data)


@dataclass(eq=False)
class MatchModels(beam.DoFn):  # type: ignore[misc]
    """(place, (member, descriptor) of every model) → descriptors in the order of members, all of the same text."""

    plan_path: str
    scores_path: str

    def process(self, element: tuple[_Place, Iterable[tuple[int, bytes]]]) -> Iterator[list[bytes]]:
        (file, _, _), parts = element
        found = dict(sorted(parts))
        with carrying_errors():
            plan = plan_at(self.plan_path)
            members = plan.model["members"]
            self._check(members, plan.files[file].path, found)
        yield [found[member] for member in range(len(members))]

    def _check(self, members: Sequence[Mapping[str, Any]], path: str, found: Mapping[int, bytes]) -> None:
        hashes = {member: ScoreFile.from_bytes(data).footer.content_hash for member, data in found.items()}
        there = min(hashes)
        for member in range(len(members)):
            if hashes.get(member) != hashes[there]:
                paths = {at: ScoreFile.from_bytes(data).path.rsplit("/", 1)[0] for at, data in found.items()}
                own = {at: join(self.scores_path, members[at]["fingerprint"]) for at in (there, member)}
                one, other = (f"model {members[at]['name']} in {paths.get(at, own[at])}" for at in (there, member))
                raise InputError(
                    f"input file {path} has changed between two scorings: the scores of {one} and of {other} are of different "
                    "text; remove the older of these folders and score again"
                )


class MeasureRewards(beam.DoFn):  # type: ignore[misc]
    """Descriptors of one fragment → moments of each model's rewards."""

    def process(self, descriptors: list[bytes]) -> Iterator[tuple[Moments, ...]]:
        with carrying_errors():
            files = map(ScoreFile.from_bytes, descriptors)
            yield measure([objects.read_columns(file.path, ["reward"], file.footer) for file in files])


@dataclass(eq=False)
class Standardise(beam.DoFn):  # type: ignore[misc]
    """Moments over all fragments → `Standards`; fails on models that cannot be standardised."""

    plan_path: str

    def process(self, moments: tuple[Moments, ...]) -> Iterator[Standards]:
        with carrying_errors():
            yield standards_of(moments, [member["name"] for member in plan_at(self.plan_path).model["members"]])


@dataclass(eq=False)
class CombineRewards(beam.DoFn):  # type: ignore[misc]
    """Descriptors of one fragment → the descriptor of the ensemble's score file, durable by then.

    Its name holds a hash of all that is in it: a grown corpus has other standards, and so other rewards for the same text, and a
    valid score file is never rewritten.
    """

    plan_path: str
    scores_path: str

    def process(self, descriptors: list[bytes], standards: Standards) -> Iterator[bytes]:
        with carrying_errors():
            plan = plan_at(self.plan_path)
            files = [ScoreFile.from_bytes(data) for data in descriptors]
            tables = read_tables(files)
            original = objects.original_schema(tables[0])
            ensemble = EnsembleConfig.model_validate(plan.identity["ensemble"])
            columns = combine_tables(tables, standards.models, ensemble=ensemble)
            if columns is None:
                paths = ", ".join(file.path for file in files)
                raise StorageError(f"the score files {paths} are not of the same rows; remove them and score again")
            footer = footer_of(plan, files[0], columns)
            path = objects.path_of(
                join(self.scores_path, plan.fingerprint),
                objects.name_of(
                    file_key=footer.file_key,
                    unit=footer.unit,
                    unit_start=footer.unit_start,
                    fragment=footer.fragment,
                    rows_per_fragment=plan.rows_per_fragment,
                ),
                objects.columns_hash(columns, footer.content_hash + original),
            )
            yield ScoreFile(path, files[0].file, objects.write(path, columns, footer, original)).to_bytes()


def read_tables(files: Sequence[ScoreFile]) -> list[pa.Table]:
    """The first score file whole, of the others what `combine_tables` needs. Raises `StorageError`."""
    whole = objects.read(files[0].path)
    if whole is None:
        raise StorageError(f"score file {files[0].path} is gone or damaged; run the same command again")
    return [whole[0], *(objects.read_columns(file.path, [*ROW, *COMBINED], file.footer) for file in files[1:])]


def footer_of(plan: Plan, first: ScoreFile, columns: pa.Table) -> Footer:
    """What the first model's footer says of the text, and what the combined columns say of the scores."""
    file = plan.files[first.file]
    return replace(
        first.footer,
        fingerprint=plan.fingerprint,
        file_size=file.size,
        file_version=file.version,
        **objects.outcome_of(columns),
    )
