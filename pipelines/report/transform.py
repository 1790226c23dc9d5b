"""Observe: score files and kept responses → the numbers of the report, and a few conversations to read.

It costs one more reading of score files, 44 bytes a row. Descriptors of score files and places of kept rows travel by unit, and
so does the text of the samples, some dozens of conversations cut at a bounded length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton

from pipelines.corpus import UnitKey, place_of, read_rows, unit_of
from pipelines.errors import carrying_errors
from pipelines.plan import plan_at
from pipelines.report.numbers import ReportSettings, report_numbers
from pipelines.report.observations import ROWS, Observations, merge_observations
from pipelines.report.samples import ResponsePlace, SampleText, pick, sample_text, samples_table
from pipelines.runtime.arrow_ipc import Tag, from_ipc
from pipelines.runtime.threaded_dofn import ThreadedDoFn, map_ahead
from pipelines.runtime.transforms import Gather, PCollection
from pipelines.score import score_files
from pipelines.score.score_files import ScoreFile
from pipelines.select.candidates import pack_places
from pipelines.select.columns import KeptUnit, Needs, key_halves, score_column, to_labels
from pipelines.storage.files import join
from pipelines.storage.owner import Owner
from pipelines.storage.publish import create

_SCORES, _KEPT = Tag(b"s"), Tag(b"k")


def columns_of(settings: ReportSettings) -> list[str]:
    """The columns of score files that a report reads."""
    plain = ["reward", "prompt_key", "response_hash", "row", "response_index", "response_chars", "source"]
    plain += ["prompt_tokens", "response_tokens"] * (settings.unit == "tokens") + ["spread"] * settings.ensemble
    return plain + ([score_column(settings.gold)] if settings.gold is not None else []) + signal_columns(settings)


def signal_columns(settings: ReportSettings) -> list[str]:
    """The columns of score files and of those beside them that hold the signals, in their order."""
    return [f"signal.{name}" for name in settings.signals]


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Observe(beam.PTransform):  # type: ignore[misc]
    """{scores: descriptors, kept: KeptUnit} → the names of `report.json` and `samples.parquet`, which it publishes."""

    plan_path: str
    owner: Owner
    settings: ReportSettings
    kept: Needs
    samples: int
    on_object_store: bool = False  # see `Selection`

    def expand(self, parts: dict[str, Any]) -> PCollection[Any]:
        observed = self._observe(parts["scores"], parts["kept"])
        texts = self._read_samples(observed)
        publish = PublishReport(self.owner, self.settings, self.samples)
        barrier = parts["scores"].pipeline | "Report" >> beam.Impulse()
        return barrier | "PublishReport" >> beam.ParDo(publish, AsSingleton(observed), AsIter(texts))

    def _observe(self, descriptors: PCollection[bytes], units: PCollection[KeptUnit]) -> PCollection[Observations]:
        scores = descriptors | "PlaceScores" >> beam.Map(key_scores).with_output_types(tuple[int, bytes])
        kept = units | "PlaceKept" >> beam.Map(key_kept, self.kept).with_output_types(tuple[int, bytes])
        joined = (scores, kept) | "ScoresAndKept" >> beam.Flatten() | "GroupByUnit" >> beam.GroupByKey()
        observe = beam.ParDo(ObserveUnits(self.settings, self.on_object_store))
        return joined | "ObserveUnits" >> observe | "Merge" >> Gather(merge_observations)

    def _read_samples(self, observed: PCollection[Observations]) -> PCollection[SampleText]:
        pick_samples = beam.FlatMap(list_samples, self.samples).with_output_types(tuple[int, bytes])
        places = observed | "PickSamples" >> pick_samples
        return places | "GroupSamples" >> beam.GroupByKey() | "ReadSamples" >> beam.ParDo(ReadSamples(self.plan_path))


def key_scores(data: bytes) -> tuple[int, bytes]:
    """(packed `UnitKey`, a descriptor)"""
    descriptor = ScoreFile.from_bytes(data)
    return UnitKey(descriptor.file, descriptor.footer.unit).pack(), _SCORES.add(data)


def key_kept(kept: KeptUnit, needs: Needs) -> tuple[int, bytes]:
    """(packed `UnitKey`, the places of its kept responses as `pack_places` packs them)"""
    rows = from_ipc([kept.kept], needs.schema)
    places = pack_places(rows["row"].to_numpy(), rows["response"].to_numpy())
    return UnitKey(kept.file, kept.unit).pack(), _KEPT.add(places.tobytes())


@dataclass(eq=False)
class ObserveUnits(ThreadedDoFn):
    """A unit's score files and kept places → its `Observations`."""

    settings: ReportSettings
    on_object_store: bool

    def waits_for_store(self) -> bool:
        return self.on_object_store

    def hold(self, element: tuple[int, Iterable[bytes]]) -> list[bytes]:
        return list(element[1])

    def work(self, parts: list[bytes]) -> list[Observations]:
        kept = [np.frombuffer(part, np.uint64) for part in _KEPT.select(parts)]
        places = np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.uint64)
        files = map(ScoreFile.from_bytes, _SCORES.select(parts))
        read = partial(rows_of, settings=self.settings, kept=places)
        of = self.settings
        observe = partial(Observations.of, preferences=of.preferences, graded=of.gold is not None)
        return [merge_observations(map(observe, (map_ahead if self.on_object_store else map)(read, files)))]


def rows_of(file: ScoreFile, settings: ReportSettings, kept: Any) -> pa.Table:
    """The scored responses of a score file in the columns of `ROWS`, and then its signals; `kept` are ascending places of those
    that were kept."""
    scores = score_files.read_joined(file, columns_of(settings))
    if scores["reward"].null_count:
        scores = scores.filter(scores["reward"].is_valid())
    count = scores.num_rows
    high, low = key_halves(scores["prompt_key"])
    row, response = scores["row"].to_numpy(), scores["response_index"].to_numpy()
    places = pack_places(row, response)
    at = np.searchsorted(kept, places)
    is_kept = np.zeros(count, bool)
    inside = at < len(kept)
    is_kept[inside] = kept[at[inside]] == places[inside]
    length = scores["response_chars"].to_numpy()
    tokens = ("prompt_tokens", "response_tokens")
    size = sum(scores[name].to_numpy() for name in tokens) if settings.unit == "tokens" else length
    columns = {
        "key_high": high,
        "key_low": low,
        "response_hash": scores["response_hash"].to_numpy(),
        "file": np.full(count, file.file, np.int32),
        "unit": np.full(count, file.footer.unit, np.int32),
        "row": row,
        "response": response,
        "reward": scores["reward"].to_numpy(),
        "size": size,
        "length": length,
        "kept": is_kept,
        "source": scores["source"],
        "gold": pa.nulls(count, pa.float64())
        if settings.gold is None
        else gold_of(scores[score_column(settings.gold)]),
        "spread": scores["spread"] if settings.ensemble else pa.nulls(count, pa.float32()),
    }
    signals = {column: scores[column] for column in signal_columns(settings)}
    return pa.table({**{name: columns[name] for name in ROWS.names}, **signals})


def gold_of(column: pa.ChunkedArray) -> pa.Array:
    """Numbers that a carried column holds as text, `true` and `false` as 1 and 0; null where it holds anything else."""
    labels = to_labels(column)
    values = np.array([*map(_number, labels.values), np.nan])
    return pa.array(values[labels.codes], from_pandas=True)  # -1 is the last


def _number(text: str) -> float:
    try:
        value = {"true": 1.0, "false": 0.0}.get(text.lower())
        value = float(text) if value is None else value
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan


def list_samples(observed: Observations, count: int) -> Iterator[tuple[int, bytes]]:
    """(packed `UnitKey`, a place whose text is wanted)"""
    for place in sorted({sample.place for sample in pick(observed, count)}):
        file, unit, row, response, expected = place
        yield UnitKey(file, unit).pack(), json.dumps([row, response, expected]).encode()


@dataclass(eq=False)
class ReadSamples(beam.DoFn):  # type: ignore[misc]
    """(packed `UnitKey`, places) → the conversations there, as they are now; one that has changed since it was scored is left
    out."""

    plan_path: str

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[SampleText]:
        key, places = UnitKey.unpack(element[0]), [tuple(json.loads(place)) for place in element[1]]
        with carrying_errors():
            plan = plan_at(self.plan_path)
            file = plan.files[key.file]
            unit = unit_of(file, key.unit)
            if unit is None:
                return
            numbers = np.unique([row for row, *_ in places])
            for row in read_rows(file, unit, plan.mapping, numbers, more_columns=(), max_row_bytes=plan.max_row_bytes):
                position = place_of(file.key, unit.start, row.number)
                for at, response, expected in places:
                    place = ResponsePlace(*key, at, response, expected)
                    if at == row.number and (text := sample_text(place, row, file.key, position)) is not None:
                        yield text


@dataclass(eq=False)
class PublishReport(beam.DoFn):  # type: ignore[misc]
    """Writes `samples.parquet`, then `report.json`; existing ones stay: an output belongs to one selection of one corpus."""

    owner: Owner
    settings: ReportSettings
    samples: int

    def process(self, _impulse: bytes, observed: Observations, texts: Iterable[SampleText]) -> Iterator[str]:
        with carrying_errors():
            samples = samples_table(pick(observed, self.samples), texts)
            numbers = json.dumps(report_numbers(observed, self.settings), sort_keys=True).encode()
            self.owner.settle()
            for name, data in (("samples.parquet", samples), ("report.json", numbers)):
                create(join(self.owner.output, name), data)
                yield name
