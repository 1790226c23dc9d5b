"""Drift between two outputs, against the rewards that they were made of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.report import numbers
from pipelines.report.drift import drift
from pipelines.report.observations import ROWS, Observations
from pipelines.report.pages.comparison import _drift_rows


def output(*nights, fingerprint="f", rejected=0, sources=("a",)):
    """An output of one file a night, with these rewards."""
    rewards = np.concatenate(nights).astype(np.float32)
    count = len(rewards)
    columns = {name: np.zeros(count) for name in ROWS.names}
    columns |= {
        "reward": rewards,
        "key_low": np.arange(count),
        "length": np.full(count, 10),
        "kept": np.arange(count) % 2 == 0,
        "source": [sources[k * len(sources) // count] for k in range(count)],
        "gold": pa.nulls(count, pa.float64()),
        "spread": pa.nulls(count, pa.float32()),
    }
    table = pa.table({name: pa.array(columns[name]).cast(ROWS.field(name).type) for name in ROWS.names})
    manifest = {
        "fingerprint": fingerprint,
        "inputs": [{"key": f"{k}.jsonl", "content": str(k)} for k in range(len(nights))],
        "counts": {"read": count + rejected, "scored": count, "kept": (count + 1) // 2},
        "rejected": {"empty_response": rejected} if rejected else {},
    }
    observed = Observations.of(table)
    parts = {"sides": numbers._sides(observed), "sources": numbers._sources(observed)}
    return manifest, numbers._round({**parts, "histogram": numbers._histogram_to_draw(observed, [])})


def night(seed, count=400, mean=5.0, std=1.0):
    return np.random.default_rng(seed).normal(mean, std, count)


@pytest.mark.parametrize("nights", [1, 4])
def test_a_night_at_a_fifth_of_the_rewards_is_told_from_those_before(nights):
    before = [night(seed) for seed in range(nights)]
    found = drift(output(*before), output(*before, night(9) / 5))
    assert (found["rows"], found["responses"]) == ("new", {"old": 400 * nights, "new": 400})
    old, new = np.concatenate(before), night(9) / 5
    assert found["reward"]["old"] == pytest.approx(old.mean(), abs=0.05)
    assert found["reward"]["new"] == pytest.approx(new.mean(), abs=0.1)
    assert found["reward"]["shift"] == pytest.approx((new.mean() - old.mean()) / old.std(), rel=0.05)
    assert found["reward"]["ks"] > 0.97


@pytest.mark.parametrize("mean", [15.0, 25.0, 55.0])
def test_a_night_beyond_the_range_of_those_before_is_told_from_them(mean):
    """Though its report has bins of another width."""
    before = [night(seed) for seed in range(4)]
    found = drift(output(*before), output(*before, night(9, mean=mean)))
    assert found["reward"]["shift"] == pytest.approx(mean - 5, rel=0.2)  # bins as wide as that range needs
    assert found["reward"]["ks"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("mean", "std"), [(0.95, 0.01), (5.0, 0.05), (10.0, 0.1)])
def test_rewards_of_small_spread_are_compared(mean, std):
    found = drift(output(night(0, mean=mean, std=std)), output(*(night(seed, mean=mean, std=std) for seed in (0, 1))))
    assert found["reward"]["shift"] == pytest.approx(0.0, abs=0.2)
    assert found["reward"]["new"] == pytest.approx(mean, abs=std)


def test_rewards_that_were_all_equal_have_no_shift():
    """In units of a standard deviation of 0."""
    found = drift(output(np.ones(40)), output(np.ones(40), np.zeros(40)))
    assert (found["responses"]["new"], found["reward"]["std"], found["reward"]["shift"], found["reward"]["ks"]) == (
        40,
        0,
        None,
        1,
    )


def test_a_hundred_stationary_nights_shift_little():
    old = [night(1000)]
    shifts = [drift(output(*old), output(*old, night(seed)))["reward"]["shift"] for seed in range(100)]
    assert max(map(abs, shifts)) < 0.5
    assert np.std(shifts) == pytest.approx(1 / 20, rel=0.3)  # 1 / sqrt(400), the old mean being given


def test_a_corpus_that_is_another_one_is_compared_as_a_whole():
    one, other = output(night(0)), output(night(1, mean=6.0))
    other[0]["inputs"][0]["content"] = "changed"
    found = drift(one, other)
    assert (found["rows"], found["responses"]["new"]) == ("all", 400)
    assert found["reward"]["shift"] == pytest.approx(1.0, abs=0.15)
    assert found["characters"] == [10.0, 10.0]


def test_rewards_of_other_models_are_not_compared():
    found = drift(output(night(0)), output(night(0), night(1), fingerprint="g"))
    assert (found["rows"], found["reward"]) == ("all", None)


def test_nothing_new_is_no_drift():
    found = drift(output(night(0)), output(night(0)))
    assert (found["responses"]["new"], found["reward"], found["rejected_shift"]) == (0, None, None)


def test_rejected_and_sources_are_those_of_the_new_rows():
    old = night(0)
    found = drift(output(old, rejected=4), output(old, night(1), rejected=104, sources=("a", "b")))
    assert found["rejected"] == {"empty_response": [4 / 404, 100 / 500]}
    assert found["rejected_shift"] == pytest.approx(100 / 500 - 4 / 404)
    assert found["sources"] == {"a": [1.0, 0.0], "b": [0.0, 1.0]}


def test_a_comparison_shows_the_new_rows_against_the_old_ones():
    old, new = output(night(0)), output(night(0), night(1) / 5, rejected=100)
    rows = {name: values for name, *values in _drift_rows([old[0], new[0]], [old[1], new[1]])}
    assert rows["responses: old rows, new rows"] == ["400", "400"]
    assert float(rows["shift of the mean, in standard deviations of the old rewards"][1]) == pytest.approx(
        -4.0, abs=0.3
    )
    assert rows["rejected as empty_response, %"] == ["0.0", "20.0"]
    assert list(_drift_rows([new[0], old[0]], [new[1], old[1]])) == []


def test_sources_add_up_where_the_largest_ones_change():
    """Each report lists its twelve largest sources: what only one of them lists is counted with the others."""
    names = [f"s{k:02d}" for k in range(20)]
    old_sources = names[:12] * 3 + names[12:]
    new_sources = names[8:] * 6 + names[:8]
    old = output(night(0, count=len(old_sources)), sources=old_sources)
    both = output(night(0, count=len(old_sources)), night(1, count=len(new_sources)), sources=old_sources + new_sources)
    for one, other in ((old, both), (both, old)):
        found = drift(one, other)
        for side in (0, 1):
            shares = [pair[side] for pair in found["sources"].values()]
            assert sum(shares) == pytest.approx(1.0)
            assert min(shares) >= 0.0
    found = drift(old, both)
    count = len(new_sources)
    assert found["sources"]["s10"] == pytest.approx([3 / len(old_sources), 6 / count])
    assert "s00" not in found["sources"]
    assert set(found["sources"]) == {"s08", "s09", "s10", "s11", "(others)"}


def test_drift_names_its_units():
    found = drift(output(night(0)), output(night(0), night(1)))
    assert found["units"]["shift"] == "standard deviations of the old rewards"
