"""An evaluation on prompts of the training is noticed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_groups import group

from rm.calibration_record import load_temperature
from rm.conversations import prompt_key
from rm.evaluate import share_trained_on, store_centring, store_offset, store_trained_prompts, trained_prompts
from rm.identity import ModelError


def groups_of(numbers):
    return [group(number) for number in numbers]


@pytest.mark.parametrize(("evaluated", "share"), [(range(40), 1.0), (range(40, 90), 0.0), (range(30, 70), 0.25)])
def test_of_few_prompts_the_share_is_exact(tmp_path, evaluated, share):
    store_trained_prompts(tmp_path, groups_of([*range(40), 0, 1]))
    assert share_trained_on(tmp_path, groups_of(evaluated)) == share
    assert json.loads((tmp_path / "calibration.json").read_text())["training_prompts"]["prompts"] == 40


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(1, 8))
def test_the_share_is_that_of_the_prompts_in_the_range_of_the_sample(tmp_path_factory, trained, evaluated, size):
    directory = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_prompts, "_SAMPLE", size)
        store_trained_prompts(directory, groups_of(sorted(trained)))
    place = {number: prompt_key(group(number).prompt)[8:14] for number in range(61)}
    sample = sorted(trained, key=place.__getitem__)[:size]
    largest = b"\xff" * 6 if len(trained) <= size else place[sample[-1]]
    compared = [number for number in evaluated if place[number] <= largest]
    expected = sum(number in sample for number in compared) / len(compared) if compared else None
    assert share_trained_on(directory, groups_of(evaluated)) == expected


def test_of_many_prompts_the_share_is_estimated(tmp_path):
    store_trained_prompts(tmp_path, groups_of(range(5000)))
    assert share_trained_on(tmp_path, groups_of(range(2500, 7500))) == pytest.approx(0.5, abs=0.05)
    assert (tmp_path / "calibration.json").stat().st_size < 9_000


def test_a_model_without_a_sample_is_unknown(tmp_path):
    assert share_trained_on(tmp_path, groups_of(range(3))) is None
    store_centring(tmp_path, 0.1)
    assert share_trained_on(tmp_path, groups_of(range(3))) is None


@pytest.mark.parametrize("stored", [1, {"prompts": 1}, {"prompts": "x", "sample": ""}, {"prompts": 1, "sample": "?"}])
def test_a_damaged_sample_is_an_error(tmp_path, stored):
    (tmp_path / "calibration.json").write_text(json.dumps({"training_prompts": stored}))
    with pytest.raises(ModelError, match=r"calibration\.json holds no sample .* remove training_prompts"):
        share_trained_on(tmp_path, groups_of(range(3)))


@pytest.mark.parametrize(
    "store",
    [
        lambda directory: store_trained_prompts(directory, groups_of(range(3))),
        lambda directory: store_centring(directory, 0.1),
        lambda directory: store_offset(directory, 0.5),
    ],
)
def test_a_model_trained_without_held_out_prompts_has_no_temperature(tmp_path, store):
    store(tmp_path)
    assert load_temperature(tmp_path) is None
