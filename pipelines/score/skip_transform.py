"""`limits.skip_bad_files`: leaves out files that cannot be read completely, between scoring and the stages after it.

They are known only when all workers are done: a file may be damaged at its end, and one of several models may have the scores of
a file that another could no longer read.

Example with two models, the second of which could not read file 3:

    {"scores0": of files 0 to 3, "skipped0": {}, "scores1": of files 0 to 2, "skipped1": (3, "truncated")}
    →  {"scores": (of files 0 to 2, of files 0 to 2), "skipped": {3: "truncated"}}
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from pipelines.config import Limits
from pipelines.corpus import UnreadableError
from pipelines.errors import InputError, carrying_errors
from pipelines.plan import plan_at
from pipelines.runtime.transforms import Gather, PCollection
from pipelines.score.score_files import ScoreFile

log = logging.getLogger(__name__)


def skip_or_raise(file_number: int, error: UnreadableError, limits: Limits, *, is_logged: bool = False) -> Any:
    """The element of a step's output `skipped` for a file that cannot be read; raises the error if `limits` do not allow files
    to be skipped. With `is_logged`, it has been logged before."""
    if not limits.skip_bad_files:
        raise error
    if not is_logged:
        log.warning("%s (skipped)", error.message)
    return beam.pvalue.TaggedOutput("skipped", (file_number, error.reason))


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class LeaveOut(beam.PTransform):  # type: ignore[misc]
    """{scores0, skipped0, scores1, ...} → {scores: a tuple with those of each model, of files that every model could read;
    skipped: one mapping, file number → reason}."""

    plan_path: str

    def expand(self, scored: dict[str, PCollection[Any]]) -> dict[str, Any]:
        models = range(len(scored) // 2)
        listed = tuple(scored[f"skipped{number}"] for number in models) | "AllSkipped" >> beam.Flatten()
        merged = listed | "MergeSkipped" >> Gather(merge_skipped)
        left_out = merged | "CheckSkipped" >> beam.ParDo(CheckSkipped(self.plan_path))
        readable = tuple(
            scored[f"scores{number}"] | f"KeepReadable{number}" >> beam.Filter(is_readable, AsSingleton(left_out))
            for number in models
        )
        return {"scores": readable, "skipped": left_out}


def merge_skipped(parts: Iterable[tuple[int, str] | dict[int, str]]) -> dict[int, str]:
    """File number → the alphabetically first of its reasons."""
    merged: dict[int, str] = {}
    for part in parts:
        for file, reason in part.items() if isinstance(part, dict) else [part]:
            merged[file] = min(reason, merged.get(file, reason))
    return dict(sorted(merged.items()))


@dataclass(eq=False)
class CheckSkipped(beam.DoFn):  # type: ignore[misc]
    """Raises `InputError` if no file remains."""

    plan_path: str

    def process(self, merged: dict[int, str]) -> Iterator[dict[int, str]]:
        with carrying_errors():
            files = plan_at(self.plan_path).files
            if len(merged) == len(files):
                raise InputError(
                    f"none of the {len(files)} files of input.path can be read; the first is {files[0].path} ({merged[0]})"
                )
        yield merged


def is_readable(descriptor: bytes, left_out: Mapping[int, str]) -> bool:
    return ScoreFile.from_bytes(descriptor).file not in left_out
