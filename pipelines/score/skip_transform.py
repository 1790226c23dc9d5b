"""`limits.skip_bad_files`: files that cannot be read are left out as a whole, between scoring and all that comes after it.

Which ones is known only when all workers are done: a file may break at its end, and of several models one may still find the
scores of a file that another can no longer read.
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


def skipped(file_number: int, error: UnreadableError, limits: Limits) -> Any:
    """What a step with the output `skipped` emits for a file that cannot be read; raises the error where that is not to be
    skipped."""
    if not limits.skip_bad_files:
        raise error
    log.warning("%s (skipped)", error.message)
    return beam.pvalue.TaggedOutput("skipped", (file_number, error.reason))


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class LeaveOut(beam.PTransform):  # type: ignore[misc]
    """{scores0, skipped0, scores1, ...} of each model → {scores: those of files that every model could read, of each model;
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
    """File number → the first of its reasons by name."""
    merged: dict[int, str] = {}
    for part in parts:
        for file, reason in part.items() if isinstance(part, dict) else [part]:
            merged[file] = min(reason, merged.get(file, reason))
    return dict(sorted(merged.items()))


@dataclass(eq=False)
class CheckSkipped(beam.DoFn):  # type: ignore[misc]
    """Fails where no file is left."""

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
