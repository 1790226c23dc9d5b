"""The step `where`, against brute force over rows: None for null, and SQL's three-valued logic."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates

from pipelines.config import Step
from pipelines.config.expression import parse
from pipelines.errors import InputError
from pipelines.select.candidates import Candidates, Labels, zero_columns
from pipelines.select.expressions import EarlyParts, evaluate, name_of_result, numbers_of, where
from pipelines.select.rules import apply_rule

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}
SUMS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def computed(call: Any, *values: float | None) -> float | None:
    if any(value is None for value in values):
        return None
    try:
        return finite(call(*values))
    except (ArithmeticError, ValueError):
        return None


def single(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def compare(sign: str, left: Any, right: Any) -> bool | None:
    return None if left is None or right is None else SIGNS[sign](left, right)


def both(left: bool | None, right: bool | None) -> bool | None:
    return False if left is False or right is False else None if left is None or right is None else True


def negated(value: bool | None) -> bool | None:
    return None if value is None else not value


# (text, what it is for a row) of numbers and of conditions
NAMES = {"reward": "reward", "tokens": "tokens", "score": "score", "characters": "characters", "ok": "flag"}
written = st.sampled_from([0.1, 0.0, 1.0, 2.0, -3.5, 1e300, 0.2]).map(lambda x: (repr(x), lambda row, x=x: x))
named = st.sampled_from(sorted(NAMES)).map(lambda n: (n, lambda row, n=n: row[NAMES[n]]))


def _binary(sign, a, b):
    return f"({a[0]} {sign} {b[0]})", lambda row: computed(SUMS[sign], a[1](row), b[1](row))


def _call(name, a, b):
    if name == "coalesce":
        return f"coalesce({a[0]}, {b[0]})", lambda row: b[1](row) if a[1](row) is None else a[1](row)
    if name in ("min", "max"):
        return f"{name}({a[0]}, {b[0]})", lambda row: computed({"min": min, "max": max}[name], a[1](row), b[1](row))
    return f"{name}({a[0]})", lambda row: computed(abs if name == "abs" else getattr(math, name), a[1](row))


calls = st.sampled_from(
    ["coalesce", "min", "max", "abs", "sqrt"]
)  # log and exp differ in the last bit between libraries
numbers = st.recursive(
    written | named,
    lambda n: st.builds(_binary, st.sampled_from(list(SUMS)), n, n) | st.builds(_call, calls, n, n),
    max_leaves=4,
)


def _bare_with_written(sign, name, value):
    """A reward is compared with a number as float32, anything else as it is."""
    kind = single if name == "reward" else float
    return f"{name} {sign} {value!r}", lambda row: compare(sign, row[NAMES[name]], kind(value))


comparisons = st.builds(
    _bare_with_written, st.sampled_from(list(SIGNS)), st.sampled_from(sorted(NAMES)), st.sampled_from([0.1, 1.0])
)
comparisons |= st.builds(
    lambda sign, a, b: (f"({a[0]} + 0) {sign} {b[0]}", lambda row: compare(sign, a[1](row), b[1](row))),
    st.sampled_from(list(SIGNS)),
    numbers,
    numbers.map(lambda n: (f"({n[0]} * 1)", n[1])),
)
texts = st.sampled_from(["==", "!="]).flatmap(
    lambda sign: st.sampled_from(["a", "b", "z"]).map(
        lambda v: (f'generator {sign} "{v}"', lambda row: compare(sign, row["generator"], v))
    )
)
flags = st.just(("ok", lambda row: None if row["flag"] is None else row["flag"] == 1))
nulls = st.sampled_from(["generator", "score", "ok", "reward", "tokens"]).map(
    lambda n: (f"{n} is null", lambda row: row[NAMES.get(n, n)] is None)
)
memberships = st.just(
    ('generator not in ["a", "z"]', lambda row: negated(None if row["generator"] is None else row["generator"] in "az"))
) | st.just(("tokens in [1, 2.0]", lambda row: row["tokens"] in (1, 2)))
conditions = st.recursive(
    comparisons | texts | flags | nulls | memberships,
    lambda c: (
        st.builds(lambda a, b: (f"({a[0]} and {b[0]})", lambda row: both(a[1](row), b[1](row))), c, c)
        | st.builds(
            lambda a, b: (f"({a[0]} or {b[0]})", lambda row: negated(both(negated(a[1](row)), negated(b[1](row))))),
            c,
            c,
        )
        | c.map(lambda a: (f"not ({a[0]})", lambda row: negated(a[1](row))))
    ),
    max_leaves=6,
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "reward": st.sampled_from([0.1, 0.2, -0.0, 1.0, -2.5, 3e38]).map(single),
            "tokens": st.integers(0, 3),
            "characters": st.integers(0, 3),
            "generator": st.sampled_from([None, "a", "b"]),
            "score": st.sampled_from([None, 0.1, 1.0, -7.0, 1e200]),
            "flag": st.sampled_from([None, 0.0, 1.0]),
        }
    ),
    max_size=8,
)


def table(values):
    text = {None: None, 0.0: "false", 1.0: "true"}
    return candidates(
        [(0, 0, row["reward"], 0, 0, 0, at, 0) for at, row in enumerate(values)],
        labels={
            "generator": [row["generator"] for row in values],
            "score": [None if row["score"] is None else repr(row["score"]) for row in values],
            "ok": [text[row["flag"]] for row in values],
        },
        tokens=[row["tokens"] for row in values],
        length=[row["characters"] for row in values],
    )


@settings(max_examples=150)
@given(conditions, rows)
def test_an_expression_is_what_brute_force_says(condition, values):
    text, expected = condition
    step, rows = Step(where=text), table(values)
    wanted = [expected(row) for row in values]
    assert [(False, None, True)[value] for value in evaluate(rows, step)] == wanted
    kept = apply_rule(rows, step).row.tolist()
    assert kept == [at for at, value in enumerate(wanted) if value is True]
    marked = EarlyParts.of([step], []).evaluate(rows)
    assert apply_rule(marked, step).row.tolist() == kept
    assert name_of_result(step, parse(text).root) in marked.values
    assert numbers_of(rows, step)["true"] == wanted


def test_null_logic_is_that_of_sql():
    rows = table([{"reward": 0.5, "tokens": 1, "characters": 1, "generator": None, "score": None, "flag": None}])
    for text, kept in {
        "ok or true": 1, "ok and true": 0, "not ok": 0, "score / 0 is null": 1, "1 / 0 is null": 1, "score != 1": 0,
        'generator != "a"': 0, "not (score > 1 and false)": 1, "coalesce(score, 2) == 2": 1, "log(0) is null": 1,
        "sqrt(0 - 1) is null": 1, "exp(1000) is null": 1, "ok is null": 1, "reward is not null": 1, "(ok == true) is null": 1,
        "(reward > 0) + (tokens > 5) == 1": 1, "not coalesce(ok, false)": 1, "coalesce(ok, reward > 0)": 1, "coalesce(ok, ok)": 0,
    }.items():  # fmt: skip
        assert len(apply_rule(rows, Step(where=text))) == kept, text


def test_a_written_number_is_compared_like_min_reward():
    for number in (0.1, -0.1):
        rows = candidates([(0, 0, number, 0, 0, 0, 0, 0)])
        for text in ("reward >= {0}", "{0} <= reward", "reward == {0}", "not reward < {0}", "reward in [{0}]"):
            assert len(apply_rule(rows, Step(where=text.format(number)))) == 1, text.format(number)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x > 3", "the column 'x' is used as a number .* and 2 of its distinct values are not; .* x == "),
        ("x", "the column 'x' is used as a number"),
        ("y", "'y' is used as a condition, and has numbers other than 0 and 1; compare it: y > 0.5"),
    ],
)
def test_text_where_a_number_is_expected_is_an_error_without_the_text(text, message):
    rows = candidates(
        [(0, 0, 0.1, 0, 0, 0, at, 0) for at in range(3)], labels={"x": ["secret", "4_0", "3"], "y": ["3", "1", None]}
    )
    with pytest.raises(InputError, match=message) as raised:
        apply_rule(rows, Step(where=text))
    assert "secret" not in str(raised.value)
    assert f"`where: {text}`" in str(raised.value)


PIECES = [
    *"reward tokens ok score generator null true 1 0.5 -3 1e308 'a' ( ) and or not is in + - * / < >= == != , [ ]".split(),
    *"abs( log( exp( sqrt( min( max( coalesce( column('ok') z(reward) 'true' rank( prompt_z(".split(),
]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join), numbers, rows)
def test_fuzzed_expressions_end_in_a_value_or_one_clear_error(text, number, values):
    rows = table(values)
    for attempt in (text, f"{number[0]} > 0 or {text}", f"({text}) is null", f"not ({text})"):
        kept, error = _kept_or_error(rows, attempt)
        assert (kept is None) != (error is None)
        assert error is None or ("\n" not in error and len(error) < 1000)


def _kept_or_error(rows: Candidates, text: str) -> tuple[Any, str | None]:
    try:
        expression = parse(text)
        expression.check(["ok", "score", "generator"])
        return where(rows, Step(where=text)), None
    except (ValueError, InputError) as error:
        return None, str(error)


SAME_IN_SQL = [
    "reward > 0.2 and 20 <= tokens",
    "not ok or score / 0.5 < 1",
    'generator = "a" or generator is null',
    "coalesce(score, 0) * 2 - tokens / 50.0 > -1 and not (ok and reward < 0)",
    'generator in ["a", "c"] and score != 0.25',
    "tokens > 50 or score is null and reward <= 0",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", SAME_IN_SQL)
def test_duckdb_keeps_the_same_of_a_million_rows(text):
    duckdb = pytest.importorskip("duckdb")
    count, rng = 1_000_000, np.random.default_rng(7)
    reward, tokens = rng.normal(size=count).astype(np.float32), rng.integers(0, 100, count).astype(np.int32)
    reward[:1000] = np.float32(0.2)
    names, codes = ("a", "b", "c"), rng.integers(-1, 3, count).astype(np.int32)
    marks, mark_codes = ("0.25", "0.5", "-3"), rng.integers(-1, 3, count).astype(np.int32)
    flags = rng.integers(-1, 2, count).astype(np.int32)
    coded = {"generator": (codes, names), "score": (mark_codes, marks), "ok": (flags, ("false", "true"))}
    rows = Candidates(
        **{**zero_columns(count), "reward": reward, "raw": reward, "tokens": tokens},
        labels={name: Labels(*column) for name, column in coded.items()},
    )
    table = pa.table(
        {
            "place": np.arange(count),
            "reward": reward,
            "tokens": tokens,
            "generator": pa.array(names).take(pa.array(codes, mask=codes < 0)),
            "score": pa.array([float(mark) for mark in marks]).take(pa.array(mark_codes, mask=mark_codes < 0)),
            "ok": pa.array([False, True]).take(pa.array(flags, mask=flags < 0)),
        }
    )
    connection = duckdb.connect(config={"threads": 1})
    connection.register("scored", table)
    in_sql = text.replace('"', "'").replace("[", "(").replace("]", ")").replace("0.2 and", "0.2::FLOAT and")
    wanted = connection.execute(f"SELECT place FROM scored WHERE {in_sql} ORDER BY place").fetchnumpy()["place"]
    kept = np.flatnonzero(where(rows, Step(where=text.replace(" = ", " == "))))
    assert 0 < len(kept) < count
    assert np.array_equal(kept, wanted)
