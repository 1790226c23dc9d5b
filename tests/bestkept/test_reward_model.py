"""`RewardModel`: every form of input gives the rewards of the command, in order; and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.corpora import corpus_rows

from bestkept import ConfigError, InputError, ModelLoadError, RewardModel

ROWS = corpus_rows(4, 3)
PROMPTS, RESPONSES = [row["prompt"] for row in ROWS], [row["response"] for row in ROWS]


def chat(row):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


@pytest.fixture(scope="module")
def model(encoder):
    return RewardModel(encoder, device="cpu")


@pytest.fixture(scope="module")
def rewards(model):
    return model.score(PROMPTS, RESPONSES)


def test_rewards_are_one_float_a_response_in_order(model, rewards):
    assert (rewards.dtype, rewards.shape) == (np.float32, (len(ROWS),))
    assert len({*rewards.tolist()}) > 1
    assert np.array_equal(model.score(PROMPTS[::-1], RESPONSES[::-1]), rewards[::-1])


def test_every_form_of_input_has_the_same_rewards(model, rewards):
    from datasets import Dataset

    lists = {prompt: [row["response"] for row in ROWS if row["prompt"] == prompt] for prompt in dict.fromkeys(PROMPTS)}
    grouped = sorted(range(len(ROWS)), key=lambda at: list(lists).index(PROMPTS[at]))
    for scored in (
        model.score([chat(row) for row in ROWS]),
        model.score([[turn] for turn in ({"role": "user", "content": text} for text in PROMPTS)], RESPONSES),
        model.score(PROMPTS, [[chat(row)[1]] for row in ROWS]),
        model.score(ROWS),
        model.score([{"messages": chat(row)} for row in ROWS]),
        model.score(Dataset.from_list(ROWS)),
        model.score(pd.DataFrame(ROWS)),
        model.score(pd.Series(PROMPTS), pd.Series(RESPONSES)),
        model.score(pa.Table.from_pylist(ROWS)),
        model.predict(list(zip(PROMPTS, RESPONSES, strict=True))),
    ):
        assert scored.dtype == np.float32
        assert np.array_equal(scored, rewards)
    assert np.allclose(model.score(list(lists), list(lists.values())), rewards[grouped])
    assert np.allclose(model.score(chat(ROWS[0])), rewards[:1])
    assert np.allclose(model.score(PROMPTS[0], RESPONSES[0]), rewards[:1])
    assert np.allclose(model.predict((PROMPTS[0], RESPONSES[0])), rewards[0])


def test_what_cannot_be_scored_is_nan_and_counted(model, rewards, caplog):
    responses = [*RESPONSES[:2], "", None, 5]
    with caplog.at_level("WARNING"):
        scored = model.score(PROMPTS[:5], responses)
    assert np.isnan(scored).tolist() == [False, False, True, True, True]
    assert np.allclose(scored[:2], rewards[:2])
    assert "3 of 5 responses have no reward: empty_response 1, null_response 1, wrong_type 1" in caplog.text
    assert "generator" not in caplog.text


def test_rank_is_that_of_a_cross_encoder(model):
    responses = [*RESPONSES[:5], ""]
    ranked = model.rank(PROMPTS[0], responses, return_documents=True)
    scores = model.score(PROMPTS[0], responses)
    assert [one["corpus_id"] for one in ranked] == [*np.argsort(-scores[:5], kind="stable").tolist(), 5]
    assert all(one["text"] == responses[one["corpus_id"]] for one in ranked)
    assert math.isnan(ranked[-1]["score"])
    assert model.rank(PROMPTS[0], iter(RESPONSES[:5]), 2) == [
        {"corpus_id": one["corpus_id"], "score": one["score"]} for one in ranked[:2]
    ]


def test_probabilities_follow_the_gap_and_the_temperature(model, encoder, tmp_path):
    import json
    import shutil

    one, other = model.score(PROMPTS[0], RESPONSES[:2]).tolist()
    expected = 1 / (1 + math.exp(-(one - other) / 0.5))
    assert model.probability(PROMPTS[0], *RESPONSES[:2], temperature=0.5) == pytest.approx(expected)
    both = model.probability(PROMPTS[:2], RESPONSES[:2], RESPONSES[2:4], temperature=0.5)
    assert (both.dtype, both.shape) == (np.float32, (2,))
    with pytest.raises(ConfigError, match=r"has no calibration.json with a temperature; run `bestkept evaluate`"):
        model.probability("a", "b", "c")
    shutil.copytree(encoder, tmp_path / "m")
    (tmp_path / "m" / "calibration.json").write_text(json.dumps({"temperature": 0.5}))
    calibrated = RewardModel(tmp_path / "m")
    assert calibrated.temperature == 0.5
    assert calibrated.probability(PROMPTS[0], *RESPONSES[:2]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda model: model.score(["a", "b"]), ConfigError, "the input is prompts without responses"),
        (lambda model: model.score(["a", "b"], ["c"]), ConfigError, "there are 2 prompts and 1 responses"),
        (lambda model: model.score([{"a": 1}]), InputError, "columns"),
        (lambda model: model.score([]), InputError, "has no rows"),
        (lambda model: model.score({"prompt": "a"}), ConfigError, "of type dict; expected a path"),
        (lambda model: model.predict(["a", "b", "c"]), ConfigError, "predict takes pairs"),
        (lambda _: RewardModel("no/such/model"), ModelLoadError, "no/such/model"),
        (lambda model: RewardModel(model.path, dtyp="int8"), ConfigError, "unknown key 'dtyp'; did you mean 'dtype'"),
    ],
)
def test_what_is_refused(model, call, kind, words):
    with pytest.raises(kind, match=words):
        call(model)


@pytest.mark.slow
def test_predict_and_rank_agree_with_sentence_transformers(encoder):
    import torch
    from sentence_transformers import CrossEncoder

    theirs, ours = CrossEncoder(str(encoder), device="cpu"), RewardModel(encoder, device="cpu")
    pairs = list(zip(PROMPTS, RESPONSES, strict=True))
    identity = torch.nn.Identity()
    assert np.allclose(theirs.predict(pairs, activation_fn=identity), ours.predict(pairs), atol=1e-4)
    ranked = theirs.rank(PROMPTS[0], RESPONSES[:4], activation_fn=identity, return_documents=True)
    for one, other in zip(ranked, ours.rank(PROMPTS[0], RESPONSES[:4], return_documents=True), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert (one["corpus_id"], one["text"]) == (other["corpus_id"], other["text"])
