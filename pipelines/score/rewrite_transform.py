"""Rewrites large compressed files once, before they are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from pipelines.config import Limits
from pipelines.corpus import InputFile, UnreadableError, rewritten_copy
from pipelines.corpus.rewrite import rewrite
from pipelines.errors import InputError, carrying_errors
from pipelines.plan import Plan, plan_at
from pipelines.score.skip_transform import skipped


@dataclass(eq=False)
class RewriteLarge(beam.DoFn):  # type: ignore[misc]
    """File number → the same, with its copy there if it is to have one; in `skipped`, those that cannot be read."""

    plan_path: str
    limits: Limits
    read_only: bool = False

    def process(self, file_number: int) -> Iterator[Any]:
        with carrying_errors():
            plan = plan_at(self.plan_path)
            file = plan.files[file_number]
            try:
                if file.copy is not None:
                    self._ensure(file, file.copy, plan.max_row_bytes)
                yield file_number
            except UnreadableError as error:
                yield skipped(file_number, error, self.limits)

    def _ensure(self, file: InputFile, copy: str, max_row_bytes: int) -> None:
        if not self.read_only:
            rewrite(file, copy, max_row_bytes=max_row_bytes, verify=self.limits.verify)
        elif rewritten_copy.read_index(copy) is None:
            raise InputError(
                f"the copy of {file.path} in {copy}, whose units were scored, is gone; run `bestkept score` or `bestkept select` "
                "with the same configuration first: it is written anew"
            )


def rewrite_large(plan: Plan) -> None:
    """Make the copies of a plan's files, before its work is dealt out by units. A file that cannot be read is left to whoever
    opens it for its rows, and finds the same."""
    for file in plan.files:
        if file.copy is not None:
            with suppress(UnreadableError):
                rewrite(file, file.copy, max_row_bytes=plan.max_row_bytes)
