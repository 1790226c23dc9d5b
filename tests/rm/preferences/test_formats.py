"""Every format: from rows in the published schema to the groups written by hand, and rows that are broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import READ_ROWS
from support.file_formats import is_flat, write_as
from support.preferences import lists, pairs, votes
from support.preferences.cases import settings

from rm.preferences import (
    FORMATS,
    PreferenceError,
    detect_format,
    read_preference_rows,
    read_preferences,
    read_unmerged,
)

CASES = {**pairs.CASES, **lists.CASES, **votes.CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_published_schema_gives_the_groups_written_by_hand(case):
    _, rows, changes, expected = CASES[case]
    groups, rejections = read_preference_rows(rows, settings(**changes))
    assert groups == expected
    tied = {"ultrafeedback-binarized", "shp-min-gap"}
    assert rejections == ({"below_min_gap": 1} if case in tied else {})


@pytest.mark.parametrize("case", CASES)
def test_the_format_is_told_from_the_row_and_can_be_named(case):
    name, rows, changes, expected = CASES[case]
    columns = changes.get("columns", {})
    assert {detect_format(row, columns) for row in rows} == {name}
    assert read_preference_rows(rows, settings(**{**changes, "format": name}))[0] == expected


def test_every_format_has_a_case():
    assert {case.format for case in CASES.values()} == set(FORMATS)
    assert len(CASES) == len(pairs.CASES) + len(lists.CASES) + len(votes.CASES)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (name, kind)
        for name, case in CASES.items()
        for kind in ("parquet", "jsonl", "array.gz", "csv of Excel", "tsv", "arrow")
        if is_flat(case.rows) or kind not in ("csv of Excel", "tsv")  # cells hold no lists
    ],
)
def test_a_file_gives_the_same_groups_as_its_rows(tmp_path, case, kind):
    _, rows, changes, expected = CASES[case]
    path = write_as(tmp_path, kind, rows)
    assert read_preferences(str(path), settings(**changes), read_rows=READ_ROWS)[0] == expected


def test_who_judged_is_the_users_word_where_it_is_given():
    for case, (_, rows, changes, expected) in CASES.items():
        groups, _ = read_preference_rows(rows, settings(**{**changes, "origin": "human"}))
        assert {group.origin for group in groups} == {"human"}, case
        assert len(groups) == len(expected)


odd = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "rank", "score"]), inner)
    ),
    max_leaves=4,
)


@given(st.data())
def test_a_row_of_another_shape_never_stops_the_reading(data):
    case = data.draw(st.sampled_from(sorted(CASES)))
    format_name, rows, changes, _ = CASES[case]
    name = data.draw(st.sampled_from(sorted(rows[0])))
    broken = {**rows[0], name: data.draw(odd)}
    missing = {key: value for key, value in rows[0].items() if key != name}
    named = settings(**{**changes, "format": format_name})
    used, rejections = read_unmerged([rows[0], broken, missing], FORMATS[format_name], named)
    assert len(used) + rejections.total() - rejections["equal_responses"] == 3
    try:
        read_preference_rows([rows[0], broken, missing], named)
    except PreferenceError:
        assert format_name == "verdicts"  # a value that names none of the responses leaves a doubt, and is asked about
