"""JoinSignals adds the score files of further models to those of the rewards, as named columns for expressions.

Only descriptors are shuffled, a few hundred bytes for each fragment and model; no score file is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam

from pipelines.errors import InputError, carrying_errors
from pipelines.plan import plan_at
from pipelines.runtime.transforms import PCollection, Spread
from pipelines.score.ensemble_transform import FragmentPlace, group_by_fragment
from pipelines.score.score_files import ScoreFile, SideFile


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class JoinSignals(beam.PTransform):  # type: ignore[misc]
    """(descriptors of the rewards, those of each signal's model in the order of the plan) → descriptors of the rewards with the
    others as side files."""

    plan_path: str

    def expand(self, scored: Sequence[PCollection[bytes]]) -> PCollection[bytes]:
        joined = group_by_fragment(scored) | "NameSignals" >> beam.ParDo(NameSignals(self.plan_path)).with_output_types(
            bytes
        )
        return joined | "KeepJoined" >> Spread()


@dataclass(eq=False)
class NameSignals(beam.DoFn):  # type: ignore[misc]
    """(place, (number, descriptor) of each) → the first descriptor, with the others as its side files.

    Raises `InputError` if they are not of the same text, or one is missing.
    """

    plan_path: str

    def process(self, element: tuple[FragmentPlace, Iterable[tuple[int, bytes]]]) -> Iterator[bytes]:
        with carrying_errors():
            plan = plan_at(self.plan_path)
            files = {number: ScoreFile.from_bytes(data) for number, data in element[1]}
            sides = []
            for number, name in enumerate(plan.signals, start=1):
                if (
                    number not in files
                    or 0 not in files
                    or files[number].footer.content_hash != files[0].footer.content_hash
                ):
                    raise InputError(
                        f"input file {plan.files[element[0][0]].path} has changed between two scorings: the scores of "
                        f"signals.{name} are of different text than the rewards; remove the older of their folders and score "
                        "again"
                    )
                columns = {f"signal.{name}": "reward"}
                if "embedding" in plan.signals[name]:
                    columns[f"signal.foreign({name})"] = "signal.foreign"
                truncated = (files[number].footer.truncated,)
                sides.append(SideFile(files[number].path, (*columns,), (*columns.values(),), truncated))
            yield replace(files[0], sides=(*files[0].sides, *sides)).to_bytes()
