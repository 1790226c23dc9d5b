"""CombineScores combines the score files of several models into those of the ensemble, which later stages read like any others.

Only descriptors of score files are shuffled, a few hundred bytes for each fragment and model. The score columns are read twice:
only the rewards to standardise them, then all columns to combine them.

    descriptors of each model  →  by fragment, one of each model  →  moments  →  `Standards` of the whole corpus
    descriptors of a fragment and `Standards`  →  the descriptor of the ensemble's score file
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from pipelines.config import EnsembleConfig
from pipelines.errors import InputError, StorageError, carrying_errors
from pipelines.plan import plan_at
from pipelines.runtime.transforms import Gather, PCollection, Spread
from pipelines.score import score_files
from pipelines.score.ensemble import (
    Moments,
    Standards,
    combine_tables,
    footer_of,
    measure,
    merge_moments,
    read_tables,
    standards_of,
)
from pipelines.score.score_files import ScoreFile
from pipelines.storage.files import join

FragmentPlace = tuple[int, int, int]  # file, unit, fragment


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class CombineScores(beam.PTransform):  # type: ignore[misc]
    """Descriptors of each model, in the order of the plan's members → {scores: descriptors of the ensemble, standards}."""

    plan_path: str
    scores_path: str  # directory of the models' score files, named in errors
    combined_path: str  # directory that the ensemble's score files are written to

    def expand(self, scored: Sequence[PCollection[bytes]]) -> dict[str, PCollection[Any]]:
        matched = self._match(scored)
        standards = self._standardise(matched)
        combine = beam.ParDo(CombineRewards(self.plan_path, self.combined_path), AsSingleton(standards))
        combined = matched | "CombineRewards" >> combine.with_output_types(bytes)
        return {"scores": combined | "KeepCombined" >> Spread(), "standards": standards}

    def _match(self, scored: Sequence[PCollection[bytes]]) -> PCollection[list[bytes]]:
        """The descriptors of each fragment, one of each model."""
        return group_by_fragment(scored) | "MatchModels" >> beam.ParDo(MatchModels(self.plan_path, self.scores_path))

    def _standardise(self, matched: PCollection[list[bytes]]) -> PCollection[Standards]:
        moments = matched | "MeasureRewards" >> beam.ParDo(MeasureRewards())
        merged = moments | "MergeMoments" >> Gather(merge_moments)
        return merged | "Standardise" >> beam.ParDo(Standardise(self.plan_path))


def group_by_fragment(
    scored: Sequence[PCollection[bytes]],
) -> PCollection[tuple[FragmentPlace, Iterable[tuple[int, bytes]]]]:
    """Group the descriptors of each fragment, each with the number of its collection."""
    placed = [
        descriptors
        | f"PlaceScores{number}"
        >> beam.Map(key_by_place, number).with_output_types(tuple[FragmentPlace, tuple[int, bytes]])
        for number, descriptors in enumerate(scored)
    ]
    return placed | "AllModels" >> beam.Flatten() | "GroupByFragment" >> beam.GroupByKey()


def key_by_place(data: bytes, member: int) -> tuple[FragmentPlace, tuple[int, bytes]]:
    """A model's descriptor → (place of the fragment, (member, descriptor))."""
    score_file = ScoreFile.from_bytes(data)
    return (score_file.file, score_file.footer.unit, score_file.footer.fragment), (member, data)


@dataclass(eq=False)
class MatchModels(beam.DoFn):  # type: ignore[misc]
    """(place, (member, descriptor) of each model) → descriptors in the order of members. Raises `InputError` if they are not
    of the same text, or one is missing."""

    plan_path: str
    scores_path: str

    def process(self, element: tuple[FragmentPlace, Iterable[tuple[int, bytes]]]) -> Iterator[list[bytes]]:
        (file, _, _), parts = element
        descriptors = dict(sorted(parts))
        with carrying_errors():
            plan = plan_at(self.plan_path)
            members = plan.model["members"]
            self._check(members, plan.files[file].path, descriptors)
        yield [descriptors[member] for member in range(len(members))]

    def _check(self, members: Sequence[Mapping[str, Any]], path: str, descriptors: Mapping[int, bytes]) -> None:
        files = {member: ScoreFile.from_bytes(data) for member, data in descriptors.items()}
        hashes = {member: score_file.footer.content_hash for member, score_file in files.items()}
        first = min(hashes)
        for member in range(len(members)):
            if hashes.get(member) != hashes[first]:
                one, other = (self._describe(members[at], files.get(at)) for at in (first, member))
                raise InputError(
                    f"input file {path} has changed between two scorings: the scores of {one} and of {other} are of different "
                    "text; remove the older of these folders and score again"
                )

    def _describe(self, model: Mapping[str, Any], score_file: ScoreFile | None) -> str:
        """The model's name and the folder of its scores."""
        if score_file is None:
            return f"model {model['name']} in {join(self.scores_path, model['fingerprint'])}"
        return f"model {model['name']} in {score_file.path.rsplit('/', 1)[0]}"


class MeasureRewards(beam.DoFn):  # type: ignore[misc]
    """Descriptors of one fragment → moments of each model's rewards."""

    def process(self, descriptors: list[bytes]) -> Iterator[tuple[Moments, ...]]:
        with carrying_errors():
            files = map(ScoreFile.from_bytes, descriptors)
            yield measure([score_files.read_columns(file.path, ["reward"], file.footer) for file in files])


@dataclass(eq=False)
class Standardise(beam.DoFn):  # type: ignore[misc]
    """Moments over all fragments → `Standards`. Raises for models that cannot be standardised, see `standards_of`."""

    plan_path: str

    def process(self, moments: tuple[Moments, ...]) -> Iterator[Standards]:
        with carrying_errors():
            yield standards_of(moments, [member["name"] for member in plan_at(self.plan_path).model["members"]])


@dataclass(eq=False)
class CombineRewards(beam.DoFn):  # type: ignore[misc]
    """Descriptors of one fragment → the descriptor of the ensemble's score file, which is already durable.

    The file's name contains a hash of its content: a grown corpus has other standards, and so other rewards for the same text,
    and a valid score file is never rewritten.
    """

    plan_path: str
    scores_path: str

    def process(self, descriptors: list[bytes], standards: Standards) -> Iterator[bytes]:
        with carrying_errors():
            plan = plan_at(self.plan_path)
            files = [ScoreFile.from_bytes(data) for data in descriptors]
            tables = read_tables(files)
            original = score_files.original_schema(tables[0])
            ensemble = EnsembleConfig.model_validate(plan.identity["ensemble"])
            columns = combine_tables(tables, standards.models, ensemble=ensemble, names=plan.identity.get("names", ()))
            if columns is None:
                paths = ", ".join(file.path for file in files)
                raise StorageError(f"the score files {paths} do not have the same rows; remove them and score again")
            footer = footer_of(plan, files, columns)
            path = score_files.path_of(
                join(self.scores_path, plan.fingerprint),
                score_files.name_of(
                    file_key=footer.file_key,
                    unit=footer.unit,
                    unit_start=footer.unit_start,
                    fragment=footer.fragment,
                    rows_per_fragment=plan.rows_per_fragment,
                ),
                score_files.columns_hash(columns, footer.content_hash + original),
            )
            written = score_files.write(path, columns, footer, original)
            yield ScoreFile(path, files[0].file, written, files[0].sides).to_bytes()
