"""The prompts of a table are computed once, and a table of other rows never has those of another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.selection_tables import candidates

from pipelines.select import candidates as module
from pipelines.select.candidates import Candidates, Labels, pack_places, place_order
from pipelines.select.columns import Needs, concatenate, keep_needed


def table() -> Candidates:
    """Six responses to three prompts, of which two share the first half of their key, none of them side by side."""
    keys = [(7, 2), (3, 5), (7, 1), (7, 2), (3, 5), (7, 1)]
    return candidates([(*key, float(number), number, 0, 0, number, 0) for number, key in enumerate(keys)])


def check_prompts(rows: Candidates) -> None:
    """The prompts that a table remembers are those of its own keys."""
    order, starts = rows.prompts
    keys = list(zip(rows.key_high[order].tolist(), rows.key_low[order].tolist(), strict=True))
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert keys == sorted(keys)
    assert starts.tolist() == [at for at, key in enumerate(keys) if not at or key != keys[at - 1]]


def test_sorted_by_prompt_holds_the_same_rows_and_prompts_together():
    rows = table()
    ordered = rows.sorted_by_prompt()
    assert list(zip(ordered.key_high.tolist(), ordered.key_low.tolist(), strict=True)) == [
        (3, 5), (3, 5), (7, 1), (7, 1), (7, 2), (7, 2),
    ]  # fmt: skip
    assert sorted(ordered.row.tolist()) == list(range(6))
    assert all(rows.reward[row] == reward for row, reward in zip(ordered.row, ordered.reward, strict=True))
    check_prompts(ordered)
    assert ordered.prompts[0].tolist() == list(range(6))
    assert ordered.prompts[1].tolist() == [0, 2, 4]


def test_a_table_of_other_rows_has_prompts_of_its_own():
    rows = table()
    check_prompts(rows)
    ordered = rows.sorted_by_prompt()
    for source in (rows, ordered):
        check_prompts(source.take(np.array([5, 0, 3])))
        check_prompts(source.take(np.array([True, False, True, True, False, True])))
        check_prompts(source.slice(1, 5))
        check_prompts(source)


def test_other_columns_of_the_same_rows_share_the_prompts(monkeypatch):
    sorts = []
    sort = module._sort_by_prompt
    monkeypatch.setattr(module, "_sort_by_prompt", lambda *keys: sorts.append(1) or sort(*keys))
    rows = table()
    changed = rows.with_columns(reward=-rows.reward)
    assert changed.prompts is rows.prompts
    check_prompts(changed)
    check_prompts(changed.sorted_by_prompt())
    assert sorts == [1]


def test_no_rows_have_no_prompts():
    rows = candidates([])
    assert len(rows.sorted_by_prompt()) == 0
    assert [part.tolist() for part in rows.prompts] == [[], []]


def test_packed_places_come_in_the_order_of_the_input():
    row, response = np.array([1, 0, 1, 0], np.int32), np.array([0, 9, 2**31 - 1, 1], np.int32)
    packed = pack_places(row, response)
    assert packed.dtype == np.uint64
    assert packed.tolist() == [2**32, 9, 2**32 + 2**31 - 1, 1]
    rows = candidates([(1, 1, 0.0, 0, 0, 0, 0, 0)] * 4, row=row, response=response)
    assert place_order(rows).tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("bits", [0, 12, 40, 56, 64])
def test_many_keys_are_sorted_like_few(bits):
    """Keys that differ in few bits, in the upper ones, or in the lowest alone, beside keys that share one half."""
    rng = np.random.default_rng(bits)
    high = rng.integers(0, 2**bits, 3 * module._FEW, dtype=np.uint64) if bits < 64 else None
    if high is None:  # pairs that the 48 sorted bits do not tell apart, and that lie apart
        high = np.repeat(rng.integers(0, 2**63, module._FEW, dtype=np.uint64) << np.uint64(1), 3)
        high[2::3] += np.uint64(1)
        high = rng.permutation(high)
    low = rng.integers(0, 3, len(high), dtype=np.uint64)
    order, starts = module._sort_by_prompt(high, low)
    expected = np.lexsort((low, high))
    assert (high[order] == high[expected]).all()
    assert (low[order] == low[expected]).all()
    assert sorted(order.tolist()) == list(range(len(high)))
    keys = np.stack([high[order], low[order]], axis=1)
    assert starts.tolist() == np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1))).tolist()


def test_a_single_value_for_all_rows_of_all_parts_takes_no_memory_after_concatenation():
    needs = Needs(length=True, rival=True)
    parts = [replace(table(), unit=np.broadcast_to(np.int32(unit), (len(table()),))) for unit in (3, 3, 4)]
    empty = parts[2].slice(0, 0)
    same, different = concatenate([parts[0], empty, parts[1]], needs), concatenate(parts, needs)
    assert same.unit.strides == (0,)
    assert np.array_equal(same.unit, [3] * 2 * len(table()))
    assert np.array_equal(different.unit, np.repeat([3, 3, 4], len(table())))
    assert all(np.array_equal(getattr(same, name), np.tile(getattr(table(), name), 2)) for name in ("row", "reward"))
    assert len(concatenate([empty, empty], needs)) == 0


def test_a_single_value_for_all_rows_is_one_of_each_row_under_a_mask():
    rows = replace(table(), unit=np.broadcast_to(np.int32(3), (len(table()),)))
    mask = np.arange(len(rows)) % 2 == 0
    for chosen in (mask, np.flatnonzero(mask)):
        taken = rows.take(chosen)
        assert taken.unit.tolist() == [3] * int(mask.sum())
        assert taken.row.tolist() == rows.row[mask].tolist()


def test_what_only_early_steps_read_is_not_kept():
    labels = {name: Labels(np.zeros(len(table()), dtype=np.int32), ("a",)) for name in ("source", "topic")}
    values = {name: np.full(len(table()), at, dtype=np.float32) for at, name in enumerate(("x", "y", "done", "sum"))}
    rows = replace(table(), labels=labels, values=values)
    kept = keep_needed(rows, Needs(labels=("topic",), values=("y",), marks=("done",), computed=("sum",)))
    assert [*kept.labels] == ["topic"]
    assert {name: column.tolist() for name, column in kept.values.items()} == {
        name: values[name].tolist() for name in ("y", "done", "sum")
    }
    assert kept.reward is rows.reward


def test_columns_that_rules_compute_are_not_shuffled_before_the_rules():
    needs = Needs(length=True, raw=True, rank=True, margin=True, rival=True, other=True)
    assert set(needs.columns) - set(needs.read.columns) == {
        *(
            "rank",
            "margin",
            "rival",
            "other_file",
            "other_unit",
            "other_row",
            "other_response",
            "other_hash",
            "other_raw",
        )
    }
