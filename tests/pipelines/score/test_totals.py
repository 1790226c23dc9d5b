"""Totals of score files, and the limit on rejected responses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from pipelines.config import Limits
from pipelines.errors import RejectedError, StorageError
from pipelines.score.score_files import Footer, ScoreFile
from pipelines.score.totals import Totals, check_limits, read_totals, sum_totals, totals_of

FOOTER = Footer(
    fingerprint="f", file_key="a.parquet", file_size=1, file_version="v", unit=0, unit_start=100, fragment=0, rows=3,
    last=True, responses=10, scored=8, rejected={"empty": 2}, first_rejected=[[1, "empty"], [2, "empty"]], truncated=4,
    tokens=50, text_bytes=60, content_hash="c",
)  # fmt: skip
TOTALS = Totals(
    rows=3, read=10, scored=8, rejected=Counter(empty=2), truncated=4, tokens=50,
    examples=(("a.parquet", 100, 1, "empty"), ("a.parquet", 100, 2, "empty")),
)  # fmt: skip


def test_of_one_file_and_of_several():
    one = totals_of(ScoreFile("p", 0, FOOTER).to_bytes())
    assert one == TOTALS
    both = sum_totals([one, replace(one, rejected=Counter(bad_json=2), examples=())])
    assert (both.rows, both.read, both.scored, both.truncated, both.tokens) == (6, 20, 16, 8, 100)
    assert both.rejected == {"empty": 2, "bad_json": 2}
    assert sum_totals([]) == Totals()


def test_counts_of_what_few_corpora_have_are_written_where_they_are_not_zero():
    assert "cut_prompts" not in TOTALS.to_json()
    assert Totals.from_json(TOTALS.to_json()) == TOTALS
    cut = replace(TOTALS, cut_prompts=3, left_out=Counter(name=2))
    assert cut.to_json()["left_out"] == {"name": 2}
    assert Totals.from_json(cut.to_json()) == cut
    both = sum_totals([cut, TOTALS, cut])
    assert (both.cut_prompts, both.left_out) == (6, {"name": 4})


def test_totals_that_a_job_has_not_left_are_an_error_with_the_remedy(tmp_path):
    with pytest.raises(StorageError, match=r"totals\.json is not there; run the same command again"):
        read_totals(str(tmp_path / "totals.json"))
    (tmp_path / "totals.json").write_text(json.dumps(TOTALS.to_json()))
    assert read_totals(str(tmp_path / "totals.json")) == TOTALS


@pytest.mark.parametrize(("limit", "fails"), [(0.2, False), (0.19, True), (1.0, False), (0.0, True)])
def test_the_limit_itself_is_within_it(limit, fails):
    limits = Limits(max_rejected_fraction=limit)
    if not fails:
        assert check_limits(TOTALS, limits) is TOTALS
        return
    with pytest.raises(RejectedError) as raised:
        check_limits(TOTALS, limits)
    assert str(raised.value) == (
        "2 of 10 responses were rejected (20.0000%: empty 2; first: a.parquet row 102 empty, a.parquet row 103 empty), more than "
        f"limits.max_rejected_fraction={limit}; fix the input, or raise the limit: nothing is scored again"
    )


@pytest.mark.parametrize(
    ("rejected", "read", "fails"),
    [
        (5, 5, True),
        (4, 5, False),
        (1, 1, True),
        (6, 500, True),
        (5, 500, False),
        (10, 10_000, False),
        (11, 10_000, True),
    ],
)
def test_without_a_limit_five_responses_may_be_rejected_and_more_of_a_large_corpus(rejected, read, fails):
    totals = Totals(read=read, scored=read - rejected, rejected=Counter(empty_response=rejected))
    if not fails:
        assert check_limits(totals, Limits()) is totals
        return
    with pytest.raises(RejectedError) as raised:
        check_limits(totals, Limits(), listed="scores/rejected/x.txt")
    message = str(raised.value)
    assert "more than limits.max_rejected_fraction allows (0.001, or 5, if not all)" in message
    assert message.endswith("nothing is scored again; the rejected rows are listed in scores/rejected/x.txt")


def test_reasons_come_by_count_and_the_model_is_named_where_there_are_several():
    many = replace(TOTALS, scored=4, rejected=Counter(empty=2, bad_json=3, too_long=1))
    with pytest.raises(
        RejectedError, match=r"6 of 10 responses were rejected by model m \(60\.0000%: bad_json 3, empty 2, too"
    ):
        check_limits(many, Limits(max_rejected_fraction=0.5), model="m")


def test_nothing_read_is_within_any_limit():
    assert check_limits(Totals(), Limits(max_rejected_fraction=0.0)) == Totals()


@pytest.mark.parametrize("scored", [7, 9])
def test_a_lost_response_is_noticed(scored):
    with pytest.raises(
        StorageError, match=rf"count 10 responses read, {scored} scored and 2 rejected, which does not add up; remove"
    ):
        check_limits(replace(TOTALS, scored=scored), Limits(max_rejected_fraction=1.0))
