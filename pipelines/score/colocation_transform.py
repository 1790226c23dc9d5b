"""`score.colocate: prompt`: texts regrouped by prompt before they are scored, so that what a prompt's responses share runs once
though they lie in different files. The opt-in exception to "text is never shuffled".

Units that wait for scores → their texts, by a partition of the prompts → scored in pieces, the results durable by then → each
unit's results, of which its score files are made as if the model had been asked there: the same names, footers and columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from pipelines.config import Limits
from pipelines.corpus import Fragment, Unit, UnitKey, UnreadableError
from pipelines.errors import InputError, StorageError, carrying_errors
from pipelines.plan import plan_at
from pipelines.runtime import progress
from pipelines.runtime.arrow_ipc import Tag, from_ipc, to_ipc
from pipelines.runtime.threaded_dofn import map_ahead
from pipelines.score.colocation import (
    RESULTS,
    Bucket,
    Bundle,
    Results,
    bits_of,
    bucket_of,
    directory_of,
    keys_of,
    pieces,
    prompt_text,
    publish_results,
    read_results,
    score_piece,
)
from pipelines.score.load_model import acquire_scorer
from pipelines.score.skip_transform import skipped
from pipelines.score.unit_scorer import NO_LIMITS, Scorer, ScorerFactory, UnitScorer, shown, waiting_fragments
from pipelines.score.unit_scores import ScoreDirectories, UnitScores
from pipelines.storage import publish

_HELD_BYTES = 32 * 2**20  # of text in a bundle, before it is shuffled
_UNIT, _RESULTS = Tag(b"U"), Tag(b"R")  # of the elements that GroupResults gathers by unit


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Colocate(beam.PTransform):  # type: ignore[misc]
    """(file number, unit) → {scores: `ScoreFile` descriptors as bytes, skipped: (file, reason)}, as `ScoreUnits` gives them."""

    plan_path: str
    directories: ScoreDirectories
    scorer: ScorerFactory
    limits: Limits = NO_LIMITS
    accelerator: str | None = None  # a hint for the workers of ScorePrompts, see `RunnerConfig`

    def expand(self, units: Any) -> dict[str, Any]:
        keyed, bad = tuple[int, bytes], tuple[int, str]
        shuffled = units | "ShuffleTexts" >> beam.ParDo(
            ShuffleTexts(self.plan_path, self.directories, self.limits)
        ).with_output_types(keyed, units=keyed, scores=bytes, skipped=bad).with_outputs(
            "units", "scores", "skipped", main="texts"
        )
        hints = {} if self.accelerator is None else {"accelerator": self.accelerator}
        results = (
            shuffled.texts
            | "GroupByPrompt" >> beam.GroupByKey()
            | "ScorePrompts"
            >> beam.ParDo(ScorePrompts(self.plan_path, self.directories, self.scorer))
            .with_resource_hints(**hints)
            .with_output_types(keyed)
        )
        written = (
            (shuffled.units, results)
            | "UnitsAndResults" >> beam.Flatten()
            | "GroupResults" >> beam.GroupByKey()
            | "WriteScores"
            >> beam.ParDo(WriteScores(self.plan_path, self.directories, self.limits))
            .with_output_types(bytes, skipped=bad)
            .with_outputs("skipped", main="scores")
        )
        return {
            "scores": (shuffled.scores, written.scores) | "FoundAndWritten" >> beam.Flatten(),
            "skipped": (shuffled.skipped, written.skipped) | "EitherUnread" >> beam.Flatten(),
        }


@dataclass(eq=False)
class ShuffleTexts(beam.DoFn):  # type: ignore[misc]
    """(file number, unit) → (bucket, texts of fragments that have no score file yet); what waits for their results, as (unit,
    content hashes); and the descriptors of a unit whose score files are all there."""

    plan_path: str
    directories: ScoreDirectories
    limits: Limits

    def start_bundle(self) -> None:
        self._held: dict[int, Bundle] = {}
        self._held_bytes = 0

    def process(self, element: tuple[int, tuple[int, ...]]) -> Iterator[Any]:
        file_number, unit = element[0], Unit(*element[1])
        with carrying_errors():
            plan = plan_at(self.plan_path)
            place = UnitScores(plan, self.directories.of(plan.fingerprint), file_number, unit)
            found = place.found_in_order(map_ahead if self.directories.on_object_store(plan) else map)
            whole = bool(found) and found[-1].footer.last
            if whole and not self.limits.verify:
                for score_file in shown(found, unit):
                    yield beam.pvalue.TaggedOutput("scores", score_file.to_bytes())
                return
            hashes: dict[int, str] = {}
            try:
                for fragment, content_hash in () if whole else waiting_fragments(place, found):
                    hashes[fragment.index] = content_hash
                    self._hold(fragment, place, bits=bits_of(plan))
                    if self._held_bytes > _HELD_BYTES:
                        yield from self._released()
            except UnreadableError as error:
                yield skipped(file_number, error, self.limits)
                return
        described = json.dumps({"unit": unit, "hashes": sorted(hashes.items())}).encode()
        yield beam.pvalue.TaggedOutput("units", (UnitKey(file_number, unit.number).pack(), _UNIT.add(described)))

    def finish_bundle(self) -> Iterator[Any]:
        for output in self._released():
            yield GlobalWindows.windowed_value(output)

    def _hold(self, fragment: Fragment, place: UnitScores, *, bits: int) -> None:
        unit = UnitKey(place.file_number, place.unit.number).pack()
        seen = fragment.rows[-1].seen_bytes - fragment.rows[0].seen_bytes if fragment.rows else 0
        share = seen / max(1, len(fragment.rows) - 1)  # of the stored bytes, a row
        for row in fragment.rows:
            responses = [response for response in row.parsed.responses if response is not None]
            if row.parsed.prompt is None or not responses:
                continue
            prompt = prompt_text(row.parsed.prompt)
            keys = keys_of(prompt, responses)
            bundle = self._held.setdefault(bucket_of(keys[0], bits), Bundle())
            self._held_bytes += bundle.add(prompt, responses, keys, unit=unit, input_bytes=share)

    def _released(self) -> Iterator[tuple[int, bytes]]:
        held, self._held, self._held_bytes = self._held, {}, 0
        for bucket in sorted(held):
            yield bucket, held.pop(bucket).to_bytes()


class ScorePrompts(beam.DoFn):  # type: ignore[misc]
    """(bucket, its texts) → (unit, the results of its texts), durable by then. Only what no earlier run has left is scored."""

    def __init__(self, plan_path: str, directories: ScoreDirectories, scorer: ScorerFactory) -> None:
        self._plan_path = plan_path
        self._directories = directories
        self._make_scorer = scorer
        self._shared = Shared()

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        number, parts = element
        with carrying_errors():
            plan = plan_at(self._plan_path)
            bucket = Bucket.of(parts)
            directory = directory_of(self._directories.of(plan.fingerprint)[0], number, bits_of(plan))
            publish.sweep([directory])
            tables = read_results(directory, plan.fingerprint)
            known = Results.of(tables).rows
            each = bucket.input_bytes / bucket.texts.num_rows
            for piece in pieces(bucket.without(known), responses=plan.rows_per_fragment):
                scorer = acquire_scorer(self._shared, self._make_scorer, plan)
                progress.begin_fragment(input_bytes=round(each * piece.num_rows), responses=piece.num_rows)
                results = score_piece(scorer, piece, plan)
                tables.append(publish_results(directory, results, plan.fingerprint))
            for unit, own in Results.of(tables).of_units(bucket.waiting):
                yield unit, _RESULTS.add(to_ipc(own))


@dataclass(eq=False)
class WriteScores(beam.DoFn):  # type: ignore[misc]
    """(unit, what it is and the results of its texts) → one descriptor per fragment, each of them durable by then."""

    plan_path: str
    directories: ScoreDirectories
    limits: Limits

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        file_number, parts = UnitKey.unpack(element[0]).file, list(element[1])
        with carrying_errors():
            plan = plan_at(self.plan_path)
            path = plan.files[file_number].path
            described = next(_UNIT.select(parts), None)
            if described is None and self.limits.skip_bad_files:  # it broke after some of its texts were shuffled
                return
            if described is None:
                raise StorageError(f"the texts of {path} were shuffled without their unit; run the same command again")
            fields = json.loads(described)
            results = Results.of([from_ipc([part], RESULTS) for part in _RESULTS.select(parts)])

            known = partial(_known, results, dict(fields["hashes"]), path)
            unit_scorer = UnitScorer(plan, self.directories, known, limits=self.limits)
            try:
                unit = Unit(*fields["unit"])
                for score_file in unit_scorer.score_unit(file_number, unit, unit_scorer.found(file_number, unit)):
                    yield score_file.to_bytes()
            except UnreadableError as error:
                yield skipped(file_number, error, self.limits)


def _known(results: Results, hashes: dict[int, str], path: str, fragment: Fragment, content_hash: str) -> Scorer:
    """What scores a fragment without a model. Raises `InputError` where it is not what was shuffled."""
    if hashes.get(fragment.index) != content_hash:
        raise InputError(
            f"input file {path} has changed while it was scored, or one of its score files has gone; run the same command again"
        )
    return results
