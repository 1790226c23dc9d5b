"""Divides the rows of a window into batches: packed, or padded where the architecture cannot take packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rm.engine.layout import common_prefix, cut_rows, plan_batches, plan_even
from rm.scores import Batch
from rm.text.templates import Encoded
from rm.together import PADDED, compatible_groups

_REPEATS = 20  # a group is cut where repeating its prefix costs less than this fraction (1/20) of it


@dataclass(frozen=True)
class BatchPlanner:
    """Plans batches of at most `budget` tokens, and of `full` tokens if possible."""

    budget: int
    full: int
    packed: bool
    causal: bool  # rows of a prompt share their first tokens
    way: str  # see `rm.together`
    split: int | None

    def plan(self, rows: Sequence[Encoded], groups: Sequence[Sequence[int]]) -> list[Batch]:
        """Divide these rows into batches; the batch to run first is the last of the list."""
        way, lengths = PADDED if self.packed else self.way, [len(row.ids) for row in rows]
        batches: list[Batch] = []
        for part in compatible_groups(groups, lengths, way=way, split=self.split):
            if self.packed:
                runs = [run for group in part for run in self._runs(rows, group)]
                costs = [self.cost(rows, [run]) for run in runs]
                plan = plan_even(costs, tokens_per_batch=self.budget, full=self.full)
            else:
                runs = [[row] for group in part for row in group]
                plan = plan_batches([lengths[row] for [row] in runs], tokens_per_batch=self.full)
            batches += [[runs[position] for position in batch] for batch in reversed(plan)]
        return batches

    def cost(self, rows: Sequence[Encoded], batch: Batch) -> int:
        """Count the tokens that the forward of a batch computes."""
        runs = [[rows[row].ids for row in run] for run in batch]
        if not self.packed:
            lengths = [len(ids) for run in runs for ids in run]
            return len(lengths) * max(lengths)
        return sum(sum(map(len, run)) - (len(run) - 1) * self._shared(run) for run in runs)

    def _runs(self, rows: Sequence[Encoded], group: Sequence[int]) -> list[list[int]]:
        """Return the group as one run, or as several if it is too large, or more than full with a prefix cheap to repeat."""
        ids = [rows[row].ids for row in group]
        shared = self._shared(ids)
        if not shared:
            return [[row] for row in group]
        most = min(self.budget, max(self.full, _REPEATS * shared))
        cuts = cut_rows([len(row) for row in ids], prefix=shared, tokens_per_batch=most)
        return [[group[position] for position in cut] for cut in cuts]

    def _shared(self, ids: Sequence[Sequence[int]]) -> int:
        """Count the tokens that are stored once for these rows: their common prefix, without a row's last token."""
        if not self.causal or len(ids) == 1:
            return 0
        return min(common_prefix(ids), *(len(row) - 1 for row in ids))
