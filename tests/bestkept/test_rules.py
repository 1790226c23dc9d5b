"""Rules as functions: steps as a configuration has them, with the same defaults and the same errors."""

from __future__ import annotations

import inspect

import pytest

from bestkept import ConfigError, best_of_n, length_correction, pairs, random, rules, threshold, top, where


def test_a_rule_is_a_step_of_a_configuration():
    assert best_of_n(2, min_margin=0.1) == {"best_of_n": {"keep": 2, "min_margin": 0.1}}
    assert best_of_n() == {"best_of_n": {}}
    assert where("reward > 0") == where(expression="reward > 0") == {"where": "reward > 0"}
    assert top(0.5) == {"top": {"fraction": 0.5}}
    assert threshold(min_z=1.0) == {"threshold": {"min_z": 1.0}}
    assert length_correction() == {"length_correction": {}}
    assert random(3, seed=1) == {"random": {"keep": 3, "seed": 1}}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: best_of_n(0), r"best_of_n\(\): best_of_n.keep is 0: Input should be greater than or equal to 1"),
        (lambda: best_of_n(kep=1), "unknown key 'best_of_n.kep'; did you mean 'keep'?"),
        (lambda: top(), "expected exactly one of fraction, rows and tokens"),
        (lambda: where("rewrd > 0 and"), r"where\(\): where is 'rewrd > 0 and'"),
        (lambda: where(), "where"),
        (lambda: pairs(rejected="wrost"), "did you mean 'worst'?"),
    ],
)
def test_a_mistake_is_that_of_a_configuration(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_one_setting_at_most_is_given_by_place():
    with pytest.raises(TypeError, match="takes one positional argument, keep"):
        best_of_n(1, 2)
    with pytest.raises(TypeError, match="takes one positional argument, keep"):
        best_of_n(1, keep=2)


def test_help_lists_all_settings_with_their_defaults_and_meanings():
    signature = str(inspect.signature(best_of_n))
    assert signature.startswith("(keep: int = 1, *, min_candidates: int = 2,")
    assert "min_candidates: Prompts with fewer scored responses are dropped" in inspect.getdoc(best_of_n)
    assert best_of_n.__name__ == "best_of_n"
    assert str(inspect.signature(rules.diverse)).startswith("(rows: int, *, of:")
