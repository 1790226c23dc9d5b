"""`score`, `select` and `curate`: rows in memory and files give what the command gives, and results in order."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from support.corpora import corpus_rows, write_jsonl

from bestkept import (
    BestkeptError,
    ConfigError,
    ConflictError,
    InputError,
    RejectedError,
    RewardModel,
    best_of_n,
    curate,
    pairs,
    score,
    select,
    where,
)
from pipelines.commands.run import default_scorer, run_curation

ROWS = corpus_rows(5, 3)


@pytest.fixture(autouse=True)
def _quiet(capfd):
    """Nothing is printed by any call, and no handler of a log stays behind."""
    before = list(logging.getLogger().handlers)
    yield
    out, err = capfd.readouterr()
    assert out == ""
    assert "apache_beam" not in err
    assert [handler for handler in logging.getLogger().handlers if handler not in before] == []


def kept(curated):
    return sorted((row["messages"][-1]["content"], row["reward"]) for row in curated.to_arrow().to_pylist())


@pytest.mark.slow
def test_curating_is_the_command_whatever_holds_the_rows(tmp_path, encoder, make_config):
    from datasets import Dataset

    path = write_jsonl(tmp_path / "in" / "a.jsonl", ROWS)
    config = make_config(path, model={"path": str(encoder)}, select=[best_of_n(1)])
    run_curation(config, scorer=default_scorer(config))
    shards = {name: (tmp_path / "out" / name).read_bytes() for name in ("data/train-00000-of-00001.parquet",)}
    given = {"file": path, "list": ROWS, "dataset": Dataset.from_list(ROWS), "frame": pd.DataFrame(ROWS)}
    for name, rows in {**given, "table": pa.Table.from_pylist(ROWS)}.items():
        curated = curate(input=rows, model=encoder, select=[best_of_n(1)], output=tmp_path / name)
        assert {shard: (tmp_path / name / shard).read_bytes() for shard in shards} == shards, name
        assert (len(curated), curated.counts["kept"], curated.path) == (5, 5, str(tmp_path / name))
        assert Path(curated.report).exists()
    again = curate(input=pd.DataFrame(ROWS), model=encoder, select=[best_of_n(1)], output=tmp_path / "frame")
    assert again.already_complete
    assert not curated.already_complete
    with pytest.raises(ConflictError):
        curate(input=ROWS, model=encoder, select=[best_of_n(2)], output=tmp_path / "frame")


@pytest.mark.slow
def test_results_in_each_form(tmp_path, encoder):
    curated = curate(input=ROWS, model=encoder, select=[best_of_n(1)], output={"test_fraction": 0.5})
    rows = curated.to_arrow("train").to_pylist() + curated.to_arrow("test").to_pylist()
    assert len(rows) == len(curated) == 5
    frame, data = curated.to_pandas("test"), curated.to_dataset("test")
    assert frame["messages"].tolist() == list(data["messages"]) == [row["messages"] for row in rows[-len(data) :]]
    with pytest.raises(ConfigError, match=r"no split 'dev': .* has test, train; name one of these"):
        curated.to_pandas("dev")
    folder = Path(curated.path)
    assert folder.exists()
    del curated
    gc.collect()
    assert not folder.exists(), "a temporary output goes with its result"


@pytest.mark.slow
def test_a_configuration_and_what_replaces_it(tmp_path, encoder):
    path = write_jsonl(tmp_path / "in" / "a.jsonl", ROWS)
    values = {
        "input": {"path": "elsewhere", "rows_per_fragment": 4},
        "model": {"path": str(encoder)},
        "output": {"path": str(tmp_path / "out"), "shape": "prompt_completion"},
        "limits": {"verify": True},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    one = curate(tmp_path / "run.yaml", input=path, limits={"max_rejected_fraction": 0.5})
    other = curate(values, input=ROWS, output=tmp_path / "other")
    assert one.to_arrow().to_pylist() == other.to_arrow().to_pylist()
    assert one.to_arrow().column_names[:2] == ["prompt", "completion"]
    assert len([*(tmp_path / "out" / "scores").rglob("*.parquet")]) == 4, "rows_per_fragment holds on"


def test_scores_are_in_the_order_of_the_rows(tmp_path, encoder):
    rows = [{"prompt": f"what {n}", "responses": [f"good {n}", "", f"bad {n} reply"]} for n in range(5)]
    settings = {"limits": {"max_rejected_fraction": 0.9}}
    scored = score(rows, encoder, output=tmp_path / "out", **settings)
    model = RewardModel(encoder)
    expected = model.score([row["prompt"] for row in rows], [row["responses"] for row in rows])
    assert scored.rewards.dtype == np.float32
    assert np.allclose(scored.rewards, expected, equal_nan=True, atol=1e-5)
    frame = scored.to_pandas()
    assert frame["row"].tolist() == [n for n in range(5) for _ in range(3)]
    assert frame["response_index"].tolist() == [0, 1, 2] * 5
    assert frame["reason"].dropna().tolist() == ["empty_response"] * 5
    assert (len(scored), scored.counts["scored"], scored.counts["rejected"]) == (15, 10, {"empty_response": 5})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again = score(rows, encoder, output=tmp_path / "out", **settings)
    assert np.array_equal(again.rewards, scored.rewards, equal_nan=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == before
    block = {"path": write_jsonl(tmp_path / "a.jsonl", rows), "rows_per_fragment": 2}
    fragments = score(block, encoder, **settings)
    assert fragments.to_pandas()["row"].tolist() == frame["row"].tolist()
    assert np.allclose(fragments.rewards, expected, equal_nan=True, atol=1e-5)


@pytest.mark.slow
def test_selections_share_scores_and_leave_rows_as_they_are(tmp_path, encoder):
    scored = score(pd.DataFrame(ROWS), encoder)
    best = select(scored, [best_of_n(1)])
    frame = pd.DataFrame(ROWS).assign(reward=scored.rewards)
    top = frame.loc[frame.groupby("prompt")["reward"].idxmax()]
    rows = best.to_pandas().sort_values("prompt")
    assert rows[["prompt", "response", "generator", "reward"]].to_dict("records") == top.sort_values("prompt").to_dict(
        "records"
    )
    from_frame = select(frame, [best_of_n(1)]).to_pandas().sort_values("prompt")
    assert from_frame["response"].tolist() == rows["response"].tolist()
    assert {"reward", "bestkept_reward"} <= {*from_frame.columns}
    judged = frame.rename(columns={"reward": "grade"})
    two = select(judged, [where("reward > -99"), pairs()], reward="grade", output=tmp_path / "pairs")
    assert len(two) == 5
    assert (two.to_pandas()["chosen_reward"] > two.to_pandas()["rejected_reward"]).all()
    as_messages = select(scored, [best_of_n(1)], output={"shape": "messages"})
    assert [row[0] for row in kept(as_messages)] == sorted(rows["response"])


@pytest.mark.slow
def test_pairs_need_no_word_on_the_shape(encoder):
    assert curate(input=ROWS, model=encoder, select=[pairs()]).to_arrow().column_names[:3] == [
        "prompt",
        "chosen",
        "rejected",
    ]


@pytest.mark.slow
def test_an_ensemble(encoder, causal):
    curated = curate(input=ROWS, model=[encoder, RewardModel(causal, max_length=32)], select=[best_of_n(1)])
    assert len(curated) == 5
    with pytest.raises(ConfigError, match="score takes one model"):
        score(ROWS, [encoder, causal])


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m: curate(), ConfigError, "curate: input is missing; it is required"),
        (
            lambda m: curate(input=ROWS, model=m, outptu="x"),
            ConfigError,
            "unknown key 'outptu'; did you mean 'output'?",
        ),
        (lambda m: curate(input=[1], model=m), ConfigError, "a list that contains int; expected mappings"),
        (lambda m: curate(input=[], model=m), InputError, "the data has no rows"),
        (lambda m: curate(input=3, model=m), ConfigError, "of type int; expected a path"),
        (lambda m: curate(input=ROWS, model=3), ConfigError, "the model is of type int; expected a directory"),
        (
            lambda m: curate(input=[{"prompt": "a", "x": object()}], model=m),
            InputError,
            "the column 'x' of the data has a value",
        ),
        (lambda m: curate(input=pd.DataFrame({"a": ["x", 1]}), model=m), InputError, "the column 'a' .* several types"),
        (lambda m: curate("nowhere.yaml"), ConfigError, "cannot read the configuration 'nowhere.yaml'"),
        (lambda m: select(ROWS, [best_of_n()]), InputError, "reward"),
    ],
)
def test_errors_are_raised_with_the_text_of_the_command(encoder, call, kind, words):
    with pytest.raises(kind, match=words):
        call(encoder)


def test_splits_are_named(encoder):
    from datasets import Dataset, DatasetDict

    data = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS))
    with pytest.raises(ConfigError, match=r"has the splits train, test; pass one of them: data\['train'\]"):
        score(data, encoder)


def test_an_error_of_a_worker_comes_without_the_engine(encoder, tmp_path):
    rows = [*ROWS, *({"prompt": "p", "response": ""} for _ in range(9))]
    with pytest.raises(RejectedError, match="9 of 24 responses were rejected") as caught:
        curate(input=rows, model=encoder, output=tmp_path / "out")
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    assert caught.value.counts["rejected"] == {"empty_response": 9}


@pytest.mark.slow
def test_rows_whose_values_differ_and_values_of_numpy_are_written(tmp_path, encoder):
    rows = [{**row, "n": np.int64(at), "x": float("nan"), f"only{at}": np.float32(at)} for at, row in enumerate(ROWS)]
    rows[1]["n"] = "text"
    curated = curate(input=rows, model=encoder, select=[], output={"path": tmp_path / "out", "shape": "original"})
    (path,) = (tmp_path / "out" / "scores" / "inputs").iterdir()
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written[2] == {**ROWS[2], "n": 2, "x": None, "only2": 2.0}
    assert len(curated) == len(ROWS)


def test_nothing_kept_is_warned_of(encoder, caplog):
    rows = [{"instruction": f"name {n}", "input": "", "output": f"thing {n}"} for n in range(4)]
    with caplog.at_level("WARNING"):
        curated = curate(input=rows, model=encoder, select=[best_of_n(1)])
    assert len(curated) == len(curated.to_pandas()) == 0
    assert (
        caplog.text.count("nothing was kept: of 4 scored responses, the step best_of_n left none; every prompt has one")
        == 1
    )


def test_settings_of_a_block_are_merged_with_what_the_rows_say(encoder):
    rows = [{**row, "gen": "a"} for row in corpus_rows(4)]
    scored = score(rows, str(encoder), input={"carry": ["gen"]}, limits={"max_rejected_fraction": 0.5})
    assert "carry.gen" in scored.table.column_names
    assert len(select(scored, [best_of_n(1)], input={"group_by": "prompt"}, limits={"verify": True})) == 4
    with pytest.raises(ConfigError, match="carrry"):
        score(rows, str(encoder), input={"carrry": ["gen"]})


def test_skipped_files_are_left_out_of_the_scores(tmp_path, encoder):
    for number in range(2):
        pa.parquet.write_table(pa.Table.from_pylist(corpus_rows(3)), tmp_path / f"{number}.parquet")
    (tmp_path / "2.parquet").write_bytes(b"PAR1 no such thing PAR1")
    scored = score(str(tmp_path / "*.parquet"), str(encoder), limits={"skip_bad_files": True})
    assert len(scored) == 2 * len(corpus_rows(3))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda encoder: select([{"prompt": "p", "response": "a", "reward": 1.0}], [best_of_n]),
        lambda encoder: select([{"prompt": "p", "response": "a", "reward": 1.0}], best_of_n(1)),
        lambda encoder: score(pd.Series(["a"]), str(encoder)),
    ],
)
def test_what_is_no_rule_and_no_rows_is_one_clear_error(encoder, wrong):
    with pytest.raises(BestkeptError):
        wrong(encoder)


def test_the_stop_button_stops_and_no_model_stays(encoder, monkeypatch):
    import os
    import signal
    import time

    from rm.scorer import Scorer

    def alive():
        gc.collect()
        return sum(type(one).__name__.endswith("ForSequenceClassification") for one in gc.get_objects())

    before = alive()
    score(corpus_rows(2), str(encoder))
    assert alive() <= before
    monkeypatch.setattr(Scorer, "score", lambda *_, **__: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            score(corpus_rows(2), str(encoder))
    finally:
        signal.signal(signal.SIGINT, handler)
