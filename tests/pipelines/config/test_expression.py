"""Expressions: what is allowed, and one clear error with its position for all that is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import RunConfig, Step
from pipelines.config.expression import LONGEST, parse
from pipelines.config.rules import crossing_steps


@pytest.mark.parametrize(
    "text",
    [
        "reward > 0.2 and 20 <= tokens <= 2000",
        "not is_correct or x is null",
        'source in ["a", "b"] and column("odd name") != "c"',
        "coalesce(x, 0) * 2 - min(reward, 1, x) / -3 >= +1",
        "\n  reward > 1\n  and y is not null\n",
        "is_correct == true",
        "true",
        "not coalesce(is_correct, x > 1, false) and coalesce(x, true) > 0",
        "rank(x) + rank(-reward) > 3 and prompt_z(x) >= corpus_z(2 * x)",
        "rank > 3 and column('rank') < 2 and rank(prompt_z(corpus_z(rank))) > 1",
    ],
)
def test_expressions_that_are_allowed(text):
    parse(text).check(["is_correct", "x", "y", "odd name", "rank"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 3", "at character 3, this is not an expression; equality is written =="),
        ("x AND y", "at character 3, this is not an expression; write and"),
        ("reward >", "at character 9, this is not an expression"),
        ("", "it is empty"),
        ("reward + 1", "at character 1, expected a condition, such as reward > 0.5, got a number"),
        ("x > 3 # why", "at character 7, # is not allowed"),
        ("x == null", "at character 6, nothing is equal to null"),
        ("x > null", "at character 5, nothing is equal to null"),
        ("x is 3", "at character 6, after `is` comes null"),
        ("null is null", "null is null"),
        ("x > 1e999", "at character 5, this number is too large"),
        ("abz(x) > 1", "the function 'abz' is unknown; did you mean 'abs'?"),
        ("abs(x, 1) > 1", "abs takes 1 values, got 2"),
        ("abs(*x) > 1", "abs takes 1 values"),
        ("rank(x, y) > 1", "rank takes 1 values, got 2"),
        (
            "x > 1 and corpus_z(rank(x)) > 1",
            "at character 11, corpus_z takes a number of a single response, and rank compares several",
        ),
        ("corpus_z(1 + corpus_z(x)) > 1", "corpus_z takes a number of a single response, and corpus_z compares"),
        ("prompt_z(x == 'a') > 'b'", "compares numbers; compare texts with == or !="),
        (
            "z(x + 1) > 1",
            "z takes the name of a model (ensemble.names): z(helpful); prompt_z and corpus_z take any number",
        ),
        ("x ** 9 > 1", "this operator is not allowed; known are + - * /"),
        ("x > 1 | y > 2", "this operator is not allowed; write and, or"),
        ('x < "a"', "< compares numbers; compare texts with == or !="),
        ('x in "abc"', "after `in` comes a list"),
        ("x in []", "after `in` comes a list"),
        ("x in [y]", "the list after `in` may contain only numbers or texts"),
        ('x in ["a", 1]', "at character 12, expected a text, got a number"),
        ("column(3) > 1", "column takes the name of a column in quotes"),
        ("__import__('os')", "the function '__import__' is unknown"),
        ("x.__class__", "at character 1, this is not allowed"),
        ("(lambda: 1)()", "this is not allowed"),
        ("x if y else z", "this is not allowed"),
        ("x > 1j", "at character 5, this is not allowed"),
        ("-" * 100 + "1 > 0", "nested more than 50 deep"),
        ("(" * 900 + "x" + ")" * 900, "this is not an expression"),
        ("x" * (LONGEST + 1), "expected at most 2,000"),
        ("é == source and tokns > 3 +", "this is not an expression"),
    ],
)
def test_each_mistake_is_told_with_its_position(text, message):
    with pytest.raises(ValueError) as raised:
        parse(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("is_corect", "at character 1, 'is_corect' is unknown; did you mean 'is_correct'?"),
        ('source == "é" and zzz > 3', "at character 19, 'zzz' is unknown; known are reward"),
        (
            'column("tokens") > 3',
            "'tokens' is unknown; known are is_correct; add a column: input.carry=[is_correct, tokens]",
        ),
        ("reward", "reward is a number; compare it: reward > 0"),
        ("source > 3", 'source is text; compare it with a text: source == "..."'),
        ('tokens == "3"', "tokens is a number, and is compared with a text"),
    ],
)
def test_names_are_checked(text, message):
    with pytest.raises(ValueError) as raised:
        parse(text).check(["is_correct"])
    assert message in str(raised.value)


def test_a_signal_is_a_number_which_a_condition_compares():
    parse("good > 0.5 and good < 1").check([], ["good"])
    with pytest.raises(ValueError, match="good is a number; compare it: good > 0"):
        parse("good and good > 0.5").check([], ["good"])
    with pytest.raises(ValueError, match="good is a number, and is compared with a text"):
        parse('good == "yes"').check([], ["good"])


def _config(where: str, **changes: object) -> RunConfig:
    values = {"input": {"path": "x", "carry": ["is_correct"]}, "output": {"path": "y"}, "select": [{"where": where}]}
    return RunConfig.model_validate({"model": {"path": "m"}, **values, **changes})


def test_a_step_names_its_setting_and_its_expression():
    with pytest.raises(
        ValueError, match=r"select\.0\.where is 'is_corect': at character 1, 'is_corect' is unknown; did you mean"
    ):
        _config("is_corect")
    with pytest.raises(ValueError, match="at character 11, this is no"):
        Step(where="reward == == 3")
    with pytest.raises(
        ValueError, match=r"select\.0\.where names response_tokens, which a reward model's tokenizer counts"
    ):
        _config("response_tokens > 3", model=None, scores={"column": "reward"})
    assert _config("is_correct").select[0].crosses_prompts is False
    assert _config("is_correct and reward > 0").select[0].crosses_prompts is True


def _crossing(*steps: object, **changes: object) -> list[str]:
    values: dict[str, object] = {"input": {"path": "x", "carry": ["mark"]}, "output": {"path": "y"}, "select": steps}
    models = {"model": [{"path": "m"}, {"path": "n"}], "ensemble": {"names": ["good", "safe"]}}
    config = RunConfig.model_validate({**models, **values, **changes})
    return crossing_steps(config.select, ["reward", *config.numbers])


def test_a_step_crosses_prompts_where_a_models_number_counts_as_it_is():
    for text in ("reward > 0", "good > 0.5", "mark and z(safe) > 1", "corpus_z(good) > 1", "rank(good) + good > 3"):
        assert _crossing({"where": text}) == ["where"], text
    for text in ("rank(good) < 3", "prompt_z(z(safe)) > 1", "mark > 3", 'column("good") > 1 or tokens > 3'):
        carry = {"input": {"path": "x", "carry": ["mark", "good"]}} if "column" in text else {}
        if carry:
            carry["ensemble"] = {"names": ["kind", "safe"]}
        assert _crossing({"where": text}, **carry) == [], text
    top = {"top": {"rows": 3}}
    assert _crossing({"reward": "good + mark"}, top) == ["top"]
    assert _crossing({"reward": "rank(good) + mark"}, top, {"where": "reward > 3"}) == []
    assert _crossing({"reward": "rank(good) + mark"}, {"where": "reward > 3 and safe > 0"}) == ["where"]


def test_a_combined_reward_that_compares_responses_is_not_standardised_over_the_corpus():
    with pytest.raises(ValueError, match=r"select\.1\.where is .*: corpus_z takes the combined reward, which compares"):
        _crossing({"reward": "rank(good)"}, {"where": "corpus_z(reward) > 1"})
    _crossing({"reward": "rank(good) + corpus_z(reward)"}, {"where": "corpus_z(good) > 1"})


PIECES = [
    *"reward x source null true is not and or in ( ) [ ] , < <= == = + - * / ** 1 0.5 1e400 'a' \" ' abs( min( column(".split(),
    *"rank( corpus_z( prompt_z(".split(),
    *"# é : lambda .".split(),
    "\n",
    "\0",
]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(max_size=30), st.integers(0, 2**32))
def test_fuzzed_text_is_an_expression_or_one_clear_error(text, seed):
    dice = random.Random(seed)
    if dice.random() < 0.3:
        at = dice.randint(0, len(text))
        text = text[:at] + "reward > 1" + text[at:]
    error = _error_of(text)
    assert "\n" not in error
    assert len(error) < 500


def _error_of(text: str) -> str:
    """The one kind of error that may be raised, or no words."""
    try:
        parse(text).check(["x"])
    except ValueError as error:
        return str(error) if type(error) is ValueError else f"{type(error)}\n"
    return ""
