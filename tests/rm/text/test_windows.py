from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.text.windows import PendingText, deduplicate, map_ahead, split_into_windows

prompt = st.sampled_from(["", "a", "bb", "cccc"]).map(lambda text: (("user", text),))
groups = st.lists(st.tuples(prompt, st.lists(st.text("xy", max_size=4), max_size=5)), max_size=8)


def everyone(asked):
    return sorted(
        (place, one.prompt, response)
        for one in asked
        for response, places in zip(one.responses, one.places, strict=True)
        for place in places
    )


@given(groups)
def test_each_text_once_and_no_position_lost(given_groups):
    asked = deduplicate(given_groups)
    texts = [(one.prompt, response) for one in asked for response in one.responses]
    assert len(texts) == len(set(texts))
    assert len({one.prompt for one in asked}) == len(asked)
    assert everyone(asked) == sorted(
        ((group, index), prompt, response)
        for group, (prompt, responses) in enumerate(given_groups)
        for index, response in enumerate(responses)
    )


@given(groups, st.integers(1, 30), st.booleans())
def test_windows_hold_everything_and_keep_to_their_size(given_groups, characters, share):
    asked = deduplicate(given_groups)
    cut = list(split_into_windows(asked, characters=characters, share=share))
    assert everyone(one for window in cut for one in window) == everyone(asked)
    order = [(one.prompt, response) for window in cut for one in window for response in one.responses]
    assert order == [(one.prompt, response) for one in asked for response in one.responses]

    def size(window):
        prompts = [(len(one.prompt[0][1]), 1 if share else len(one.responses), one.prompt) for one in window]
        if share and len(window) > 1 and window[-1].prompt == window[-2].prompt:
            prompts.pop()  # that of the window behind this one
        return sum(length * times for length, times, _ in prompts) + sum(
            len(r) for one in window for r in one.responses
        )

    for window in cut:
        texts = sum(len(one.responses) for one in window)
        assert texts >= 1
        assert all(one.responses for one in window)
        assert texts == 1 or size(window) <= characters
    for window, following in itertools.pairwise(cut):
        first = PendingText(following[0].prompt, following[0].responses[:1], following[0].places[:1])
        assert size([*window, first]) > characters  # as full as the order allows


def test_the_first_windows_are_small_and_each_is_half_as_large_again_as_the_one_before():
    asked = deduplicate([((("user", "p"),), [f"{number:03}" for number in range(200)])])
    sizes = [
        [len(one.responses) for one in window]
        for window in split_into_windows(asked, characters=91, share=True, first=10)
    ]
    assert sizes[:7] == [[3], [4], [7], [10], [16], [24], [30]]  # one character of each is the prompt's
    assert sum(map(sum, sizes)) == 200
    assert list(split_into_windows(asked, characters=91, first=1000)) == list(split_into_windows(asked, characters=91))


def test_the_next_is_made_while_the_last_is_worked_on():
    begun = [threading.Event() for _ in range(3)]

    def make(number):
        begun[number].set()
        return number * 10

    results = []
    for result in map_ahead(make, range(3)):
        following = result // 10 + 1
        if following < 3:
            assert begun[following].wait(10)
        results.append(result)
    assert results == [0, 10, 20]
    assert list(map_ahead(make, [])) == []


def test_no_more_than_one_is_made_ahead():
    made = []
    stream = map_ahead(lambda number: made.append(number) or number, iter(range(10)))
    assert next(stream) == 0
    assert len(made) <= 2
    stream.close()


def test_an_error_ahead_is_raised_in_its_turn():
    def make(number):
        if number == 1:
            raise ValueError("second")
        return number

    stream = map_ahead(make, range(3))
    assert next(stream) == 0
    with pytest.raises(ValueError, match="second"):
        next(stream)
