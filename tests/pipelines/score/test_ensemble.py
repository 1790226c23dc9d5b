"""The arithmetic of ensembles, by hand and against plain NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.config import EnsembleConfig
from pipelines.errors import InputError, ModelLoadError
from pipelines.score.ensemble import Standard, combine, combine_tables, measure, merge_moments, standards_of
from pipelines.score.score_files import COLUMNS

ONE = [2, 4, 4, 4, 5, 5, 7, 9]  # mean 5, population standard deviation 2
OTHER = [-1, -5, -1, -5, -1, -5, -1, -5]  # mean -3, population standard deviation 2
# z: -1.5 -0.5 -0.5 -0.5  0    0  1  2
#     1   -1    1   -1    1   -1  1 -1
BY_HAND = {
    "mean": [-0.25, -0.75, 0.25, -0.75, 0.5, -0.5, 1.0, 0.5],
    "min": [-1.5, -1.0, -0.5, -1.0, 0.0, -1.0, 1.0, -1.0],
    # the deviation of two is half their gap: 1.25 0.25 0.75 0.25 0.5 0.5 0 1.5, taken away twice
    "lower_bound": [-2.75, -1.25, -1.25, -1.25, -0.5, -1.5, 1.0, -2.5],
}


def ensemble(kind: str, penalty: float = 2.0) -> EnsembleConfig:
    return EnsembleConfig(combine=kind, **({"penalty": penalty} if kind == "lower_bound" else {}))


def table(rewards, *, reasons=None, **columns) -> pa.Table:
    """Score columns; a reward of None is a rejected row."""
    count = len(rewards)
    values = {
        "row": range(count),
        "response_index": [0] * count,
        "prompt_key": [bytes(16)] * count,
        "response_hash": range(100, 100 + count),
        "reward": rewards,
        "reason": reasons or ["bad" if reward is None else None for reward in rewards],
        "truncated": [False] * count,
        **{name: [1] * count for name in ("prompt_tokens", "response_tokens", "response_chars", "row_bytes")},
        "source": ["s"] * count,
        **columns,
    }
    return pa.table([pa.array(values[field.name], field.type) for field in COLUMNS], schema=COLUMNS)


def array(values) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("kind", BY_HAND)
def test_combinations_by_hand(kind):
    standards = standards_of(measure([table(ONE), table(OTHER)]), ["one", "other"])
    assert standards.models == (Standard(5.0, 2.0), Standard(-3.0, 2.0))
    assert standards.responses == 8
    combined, _ = combine([array(ONE), array(OTHER)], standards.models, ensemble=ensemble(kind))
    assert combined.dtype == np.float32
    assert combined.tolist() == BY_HAND[kind]


def test_the_deviation_of_three_models_by_hand():
    rewards, standards = [array([0]), array([3]), array([6])], [Standard(0.0, 1.0)] * 3
    lower, _ = combine(rewards, standards, ensemble=ensemble("lower_bound", 0.5))
    assert lower[0] == np.float32(3 - 0.5 * 6**0.5)  # squares of deviations: 9 + 0 + 9, by three


def test_the_penalty_is_one_by_default():
    rewards, standards = [array([1]), array([4])], [Standard(0.0, 1.0)] * 2
    combined, _ = combine(rewards, standards, ensemble=EnsembleConfig(combine="lower_bound"))
    assert combined.tolist() == [1.0]


def test_large_rewards_close_together_lose_nothing():
    rewards = table([16777214.0, 16777216.0])
    assert standards_of(measure([rewards]), ["m"]).models == (Standard(16777215.0, 1.0),)


numbers = st.one_of(st.none(), st.integers(-800, 800).map(lambda number: number / 8))


@st.composite
def scored(draw):
    """Rewards of 2 to 4 models for up to 20 responses, None where rejected; and a way to cut them into fragments."""
    models, count = draw(st.integers(2, 4)), draw(st.integers(0, 20))
    rewards = [draw(st.lists(numbers, min_size=count, max_size=count)) for _ in range(models)]
    return rewards, sorted(draw(st.lists(st.integers(0, count), max_size=3)))


def fragments(rewards, cuts):
    bounds = [0, *cuts, len(rewards[0])]
    return [[table(own[a:b]) for own in rewards] for a, b in itertools.pairwise(bounds)]


@given(scored(), st.sampled_from(list(BY_HAND)), st.floats(0, 5), st.randoms())
def test_equals_plain_numpy_whatever_the_fragments_and_their_order(given_scores, kind, penalty, random):
    rewards, cuts = given_scores
    plain = np.array(rewards, dtype=np.float64).reshape(len(rewards), -1)  # None becomes NaN
    shared = ~np.isnan(plain).any(axis=0)
    assume(shared.sum() >= 2)
    mean, std = plain[:, shared].mean(axis=1), plain[:, shared].std(axis=1)
    assume((std > 0).all())
    z = (plain - mean[:, None]) / std[:, None]
    expected = {"mean": z.mean(0), "min": z.min(0), "lower_bound": z.mean(0) - penalty * z.std(0)}[kind]

    parts = [measure(tables) for tables in fragments(rewards, cuts)]
    names = [f"m{n}" for n in range(len(rewards))]
    standards = standards_of(merge_moments([merge_moments([]), *parts, merge_moments([])]), names)
    random.shuffle(parts)
    half = len(parts) // 2
    assert standards_of(merge_moments([merge_moments(parts[:half]), merge_moments(parts[half:])]), names) == standards
    assert standards.responses == shared.sum()
    np.testing.assert_allclose([one.mean for one in standards.models], mean, atol=1e-12)
    np.testing.assert_allclose([one.std for one in standards.models], std, rtol=1e-9)

    settings = ensemble(kind, penalty)
    tables = fragments(rewards, cuts)
    combined = pa.concat_tables(combine_tables(part, standards.models, ensemble=settings) for part in tables)
    assert combined.schema == COLUMNS.append(pa.field("spread", pa.float32()))
    assert combined["spread"].is_valid().to_pylist() == shared.tolist()
    np.testing.assert_allclose(combined["spread"].drop_null().to_numpy(), z.std(0)[shared], rtol=1e-5, atol=1e-6)
    assert combined["reward"].is_valid().to_pylist() == shared.tolist()
    assert combined["reason"].is_null().to_pylist() == shared.tolist()
    np.testing.assert_allclose(combined["reward"].drop_null().to_numpy(), expected[shared], rtol=1e-6, atol=1e-6)
    whole = combine_tables([table(own) for own in rewards], standards.models, ensemble=settings)
    assert combined["reward"].to_pylist() == whole["reward"].to_pylist(), "to the bit, wherever the cuts are"


def test_the_first_model_speaks_for_the_text_and_each_may_reject_or_truncate():
    first = table(
        [1, None, None, 4],
        reasons=[None, "a", "b", None],
        prompt_tokens=[5, 6, 7, 8],
        truncated=[True, False, False, False],
    )
    second = table(
        [1, None, 3, None], reasons=[None, "c", None, "d"], source=["x"] * 4, truncated=[False, False, False, True]
    )
    combined = combine_tables([first, second], [Standard(0.0, 1.0)] * 2, ensemble=ensemble("mean"))
    assert combined["reward"].to_pylist() == [1.0, None, None, None]
    assert combined["reason"].to_pylist() == [None, "a", "b", "d"]
    assert combined["truncated"].to_pylist() == [True, False, False, True]
    for name in set(COLUMNS.names) - {"reward", "reason", "truncated"}:
        assert combined[name].equals(first[name])


@pytest.mark.parametrize("column", ["row", "response_index", "response_hash"])
def test_tables_of_other_rows_do_not_combine(column):
    other = table([1, 2, 3], **{column: [0, 2, 1]})
    assert combine_tables([table([1, 2, 3]), other], [Standard(0.0, 1.0)] * 2, ensemble=ensemble("mean")) is None


def test_what_cannot_be_standardised_is_named():
    with pytest.raises(ModelLoadError, match=r"model flat gives each of 3 responses the reward 0\.5, .*remove it"):
        standards_of(measure([table([1, 2, 4]), table([0.5, 0.5, 0.5])]), ["good", "flat"])
    alone = measure([table([1, 2, None]), table([None, 2, 3])])
    with pytest.raises(InputError, match=r"models a, b have only 1 scored in common.*two or more"):
        standards_of(alone, ["a", "b"])
    with pytest.raises(InputError, match="have only 0 scored in common"):
        standards_of(merge_moments([]), ["a", "b"])
