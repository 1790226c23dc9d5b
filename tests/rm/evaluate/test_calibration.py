from __future__ import annotations

import errno
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_groups import group

from rm import hash_cache
from rm.evaluate import calibrate, fit_temperature, load_temperature, store_temperature, tabulate
from rm.evaluate.calibration import calibration, cross_fitted_gaps, measure_fit
from rm.identity import ModelError, identify
from rm.preferences import heldout_split

LN3 = math.log(3)  # σ(ln 3) = 3/4


def logistic(x):
    return 1 / (1 + np.exp(-np.asarray(x, dtype=float)))


def nll_at(temperature, gap, probability):
    p = logistic(gap / temperature)
    return -np.mean(probability * np.log(p) + (1 - probability) * np.log(1 - p))


def test_nll_and_brier_by_hand():
    # predictions 3/4, 3/4, 1/4 against 1, 0, 1/2
    got = measure_fit(np.array([LN3, LN3, -LN3]), np.array([1.0, 0.0, 0.5]))
    assert got.nll == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4) + (math.log(1 / 4) + math.log(3 / 4)) / 2) / 3)
    assert got.brier == pytest.approx(((1 / 4) ** 2 + (3 / 4) ** 2 + (1 / 4) ** 2) / 3)


def test_ece_by_hand():
    """60 predictions of 3/4 and 30 of 1/4, each block in a bin of its own because equal predictions stay together."""
    gap = np.array([LN3] * 60 + [-LN3] * 30)
    probability = np.array([1.0] * 30 + [0.0] * 30 + [1.0] * 6 + [0.0] * 24)
    got = measure_fit(gap, probability)
    assert [(bin.comparisons, bin.predicted, bin.observed) for bin in got.bins] == [
        (30, pytest.approx(0.25), pytest.approx(0.2)),
        (60, pytest.approx(0.75), pytest.approx(0.5)),
    ]
    assert got.ece == pytest.approx((30 * 0.05 + 60 * 0.25) / 90)


def test_fifteen_bins_of_equal_mass():
    gap = np.linspace(-3, 3, 150)
    got = measure_fit(gap, (gap > 0).astype(float))
    assert [bin.comparisons for bin in got.bins] == [10] * 15
    edges = np.array_split(np.arange(150), 15)
    p, y = logistic(gap), gap > 0
    assert got.ece == pytest.approx(np.mean([abs(p[part].mean() - y[part].mean()) for part in edges]))


def test_extreme_gaps_stay_finite():
    got = measure_fit(np.array([5000.0, -5000.0]), np.array([0.0, 0.0]))
    assert got.nll == pytest.approx(2500.0)


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=2, max_size=30))
def test_temperature_is_no_worse_than_a_fine_grid(rows):
    gap, probability = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    got = fit_temperature(gap, probability)
    scale = math.sqrt(float(np.mean(gap**2)))
    if scale < 1e-6:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        grid = [measure_fit(gap / t, probability).nll for t in scale * np.geomspace(1 / 100, 100, 400)]
    assert measure_fit(gap / got.value, probability).nll <= min(grid) + 1e-9


def test_temperature_recovers_the_scale_that_the_labels_were_drawn_with():
    rng = np.random.default_rng(0)
    true = rng.normal(scale=2.0, size=20_000)
    labels = (rng.random(20_000) < logistic(true)).astype(float)
    assert fit_temperature(3.0 * true, labels).value == pytest.approx(3.0, rel=0.05)
    assert fit_temperature(0.1 * true, labels).value == pytest.approx(0.1, rel=0.05)


def test_temperature_by_hand():
    """Gap 2 is right three times of four: the best p is 3/4, so 2/T = ln 3. Twice the gap, twice the temperature."""
    gap, labels = np.full(4, 2.0), np.array([1.0, 1.0, 1.0, 0.0])
    assert fit_temperature(gap, labels).value == pytest.approx(2 / LN3)
    assert fit_temperature(2 * gap, labels).value == pytest.approx(4 / LN3)
    assert not fit_temperature(gap, labels).at_bound


def test_degenerate_temperatures_are_bounded_and_say_so():
    separated = fit_temperature(np.array([1.0, -2.0]), np.array([1.0, 0.0]))
    assert separated.at_bound
    assert separated.value == pytest.approx(math.sqrt(2.5) / 100)
    for labels in ([0.0, 1.0], [0.5, 0.5]):  # always wrong; all ties
        got = fit_temperature(np.array([1.0, -2.0]), np.array(labels))
        assert (got.at_bound, got.value) == (True, pytest.approx(math.sqrt(2.5) * 100))
    constant = fit_temperature(np.zeros(3), np.array([1.0, 0.0, 1.0]))
    assert (constant.value, constant.at_bound) == (1.0, False)
    with pytest.raises(ValueError, match="no comparison"):
        fit_temperature(np.array([]), np.array([]))


def sample(prompts=400, *, scale=4.0, seed=0):
    """One comparison a prompt, with labels drawn at temperature `scale`; the better of the two stands first or second."""
    rng = np.random.default_rng(seed)
    groups, rewards = [], []
    for number in range(prompts):
        r = rng.normal(size=2) * 6
        first = rng.random() < logistic((r[0] - r[1]) / scale)
        groups.append(group(number, [(0, 1) if first else (1, 0)]))
        rewards.append(r)
    return groups, rewards


def test_after_is_measured_on_the_half_that_the_temperature_was_not_fitted_on():
    groups, rewards = sample(60)
    table = tabulate(groups, rewards, rewards)
    scaled = cross_fitted_gaps(table)
    a, b = (fit_temperature(table.gap[side], table.probability[side]).value for side in (table.half, ~table.half))
    assert a != b
    np.testing.assert_allclose(scaled[table.half] * b, table.gap[table.half])
    np.testing.assert_allclose(scaled[~table.half] * a, table.gap[~table.half])
    got = calibration(table)
    assert got.after == measure_fit(scaled, table.probability)
    assert got.before == measure_fit(table.gap, table.probability)
    assert got.temperature == fit_temperature(table.gap, table.probability)


def test_scaling_helps_an_overconfident_model():
    got = calibrate(*sample())
    assert got.temperature.value == pytest.approx(4.0, rel=0.25)
    assert got.after.nll < got.before.nll
    assert got.after.ece < got.before.ece
    assert (got.comparisons, got.prompts) == (400, 400)


def test_a_prompt_is_in_one_half_with_all_its_comparisons():
    groups = [group(number, [(0, 1), (1, 2), (0, 2)], responses=3) for number in range(40)]
    table = tabulate(groups, [[3.0, 2.0, 1.0]] * 40, [[1, 1, 1]] * 40)
    for cluster in np.unique(table.cluster):
        assert len(set(table.half[table.cluster == cluster])) == 1
    assert 0 < table.half.sum() < len(table)


def test_the_halves_halve_what_a_small_held_out_part_holds():
    groups = heldout_split([group(number, [(0, 1)]) for number in range(4000)], 0.003)[1]
    half = tabulate(groups, [[1.0, 0.0]] * len(groups), [[1, 1]] * len(groups)).half
    assert 0 < half.sum() < len(half)


def test_one_prompt_has_no_honest_after():
    got = calibrate([group("a", [(0, 1)])], [[1.0, 0.0]])
    assert got.after is None


def test_reading_the_preferred_response_first_does_not_flatter():
    """A model that is right half of the time and sure of itself: were side i the winner, its bins would all be 1."""
    rng = np.random.default_rng(0)
    groups = [group(number, [(0, 1)], lengths=[10 + number % 7, 30]) for number in range(600)]
    got = calibrate(groups, [[10.0 * rng.choice([-1, 1]), 0.0] for _ in groups])
    assert got.before.ece == pytest.approx(0.5, abs=0.08)


def test_the_temperature_stays_with_the_model_and_out_of_its_fingerprint(encoder, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(encoder, model)
    settings = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}
    before = identify(model, **settings).fingerprint()
    assert load_temperature(model) is None
    got = calibrate(*sample(50))
    path = store_temperature(model, got, data="/secret/place/pairs.jsonl.gz", fitted_on="all rows")
    assert load_temperature(model) == got.temperature.value
    assert identify(model, **settings).fingerprint() == before
    assert json.loads(path.read_text()) == {
        "temperature": got.temperature.value,
        "at_bound": False,
        "comparisons": 50,
        "prompts": 50,
        "data": "pairs.jsonl.gz",
        "fitted_on": "all rows",
    }
    again = calibrate(*sample(50, seed=1))
    store_temperature(model, again, data="b", fitted_on="all rows")
    assert load_temperature(model) == again.temperature.value
    assert [file.name for file in model.iterdir() if file.name.startswith(".")] == []


def test_a_failed_write_leaves_the_old_temperature(tmp_path, monkeypatch):
    got = calibrate(*sample(20))
    store_temperature(tmp_path, got, data="a", fitted_on="all rows")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        store_temperature(tmp_path, calibrate(*sample(20, seed=1)), data="a", fitted_on="all rows")
    assert load_temperature(tmp_path) == got.temperature.value
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_umask_is_respected(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = store_temperature(tmp_path, calibrate(*sample(20)), data="a", fitted_on="all rows")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_cache_of_hashes_that_cannot_be_written_costs_nothing(encoder, tmp_path, monkeypatch, number):
    """The identity is the same, and no half of the cache stays."""
    monkeypatch.setattr(hash_cache, "_CLOCK_TICK_NS", 0)  # the model may have been made this very moment
    settings = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}
    expected = identify(encoder, **settings)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert identify(encoder, **settings) == expected
    assert list((tmp_path / "bestkept").iterdir()) == []
    assert identify(encoder, **settings) == expected
    assert [path.name for path in (tmp_path / "bestkept").iterdir()] == ["sha256.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"temperature": "warm"}', '{"temperature": 0}', '{"temperature": NaN}']
)
def test_a_damaged_temperature_is_an_error_and_not_ignored(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ModelError, match=r"calibration\.json"):
        load_temperature(tmp_path)
