"""The command as a user meets it: exit code, the last line, what is on disk. Real (tiny) models, no stub."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support.checkpoints import rename_tensors
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.tiny_models import save_causal, save_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).parents[2]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def last(self) -> str:
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def bestkept(bestkept):
    return lambda *words: Result(*bestkept(*words))


@pytest.fixture
def config(tmp_path, encoder):
    rows = corpus_rows(5)
    values = {
        "input": {"path": str(write_jsonl(tmp_path / "in" / "a.jsonl", rows))},
        "model": {"path": str(encoder)},
        "output": {"path": str(tmp_path / "out")},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_run_prints_a_summary_and_writes_the_argmax_of_every_prompt(bestkept, config, encoder, tmp_path):
    result = bestkept("run", config)
    assert result.code == 0
    for words in ("read", "20 responses in 20 rows", "scored", "rejected", "5 for 5 prompts", "mean reward", "out"):
        assert words in result.out
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    rewards: dict[str, list[tuple[float, str]]] = {}
    for row in corpus_rows(5):
        with torch.inference_mode():
            reward = model(**tokenizer(row["prompt"], row["response"], return_tensors="pt")).logits[0, 0].item()
        rewards.setdefault(row["prompt"], []).append((reward, row["response"]))
    kept = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len(kept) == 5
    for row in kept:
        best, response = max(rewards[row["messages"][0]["content"]])
        assert row["messages"][1]["content"] == response
        assert row["reward"] == pytest.approx(best, abs=1e-5)


def test_second_run_says_that_all_is_there(bestkept, config):
    bestkept("run", config)
    again = bestkept("run", config)
    assert (again.code, "already complete" in again.out) == (0, True)


def test_score_and_select(bestkept, config, tmp_path):
    assert bestkept("select", config).code == 3
    scored = bestkept("score", config)
    assert scored.code == 0
    assert "20" in scored.out
    assert not (tmp_path / "out" / "data").exists()
    assert bestkept("select", config).code == 0
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 5


def test_an_ensemble_scores_and_selects(bestkept, config, encoder, tmp_path):
    other = save_encoder(tmp_path / "other", seed=1)
    both = f"model=[{{path: {encoder}}}, {{path: {other}}}]"
    missing = bestkept("select", config, both)
    assert (missing.code, "not scored yet" in missing.last) == (3, True)
    scored = bestkept("score", config, both)
    assert scored.code == 0
    assert [line.split()[3] for line in scored.out.splitlines() if "│ model " in line].count("other") == 1
    assert re.search(r"scored by this run +│ 40 ", scored.out)
    selected = bestkept("select", config, both, "ensemble.combine=min")
    assert (selected.code, "5 for 5 prompts" in selected.out) == (0, True)
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 5
    again = bestkept(
        "run",
        config,
        both,
        "ensemble.combine=min",
        f"output.path={tmp_path}/again",
        f"scores.path={tmp_path}/out/scores",
    )
    assert re.search(r"scored by this run +│ 0 ", again.out)


def bad(bestkept, config, *overrides: object) -> Result:
    result = bestkept("run", config, *overrides)
    assert "Traceback" not in result.err
    assert result.last.startswith("bestkept: ")
    return result


def test_missing_column(bestkept, config):
    result = bad(bestkept, config, "input.columns={response: reply}")
    assert result.code == 3
    assert "'reply'" in result.last
    assert "prompt, response, generator" in result.last


def test_columns_that_cannot_be_told(bestkept, config, tmp_path):
    path = write_jsonl(tmp_path / "b.jsonl", [{"left": "a", "right": "b"}])
    result = bad(bestkept, config, f"input.path={path}")
    assert result.code == 3
    assert "input.columns={prompt: COLUMN, response: COLUMN}" in result.last


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.path=x", "model=[{path: x}]", "model.path=y"], "it is a list, give it whole: model=[...]"),
        (
            ["model=[{path: x}, {path: y}]", "select=[{best_of_n: {min_probability: 0.7}}]"],
            "an ensemble has no calibration",
        ),
        (["ensemble.combine=min"], "model names 1 of the two or more models"),
    ],
)
def test_mistakes_with_ensembles(bestkept, config, overrides, words):
    result = bad(bestkept, config, *overrides)
    assert (result.code, words in result.last) == (2, True), result.last


def test_empty_glob(bestkept, config, tmp_path):
    result = bad(bestkept, config, f"input.path={tmp_path}/none-*.parquet")
    assert (result.code, "none-*.parquet' matches no file" in result.last) == (3, True)


def test_unknown_config_key(bestkept, config):
    result = bad(bestkept, config, "model.max_lenght=3")
    assert (result.code, "did you mean 'max_length'?" in result.last) == (2, True)


def test_unknown_beam_flag(bestkept, config, tmp_path):
    result = bad(bestkept, config, "--max_num_wokers=3")
    assert (result.code, "did you mean --max_num_workers?" in result.last) == (2, True)
    assert not (tmp_path / "out").exists()


def test_known_beam_flags_pass(bestkept, config):
    assert bestkept("run", config, "--job_name", "mine", "--temp_location=/tmp/x").code == 0


@pytest.mark.parametrize("flag", ["--runner=DaskRunner", "--direct_running_mode=multi_threading"])
def test_unsafe_ways_to_run_are_refused_with_the_reason(bestkept, config, flag):
    assert bad(bestkept, config, flag).code == 2


def test_a_bad_flag_value_is_not_repeated(bestkept, config):
    result = bad(bestkept, config, "--s3_secret_access_key=HUNTER2", "--num_workers=HUNTER3")
    assert (result.code, "--num_workers" in result.last) == (2, True)
    assert "HUNTER" not in result.out + result.err


def test_runner_options_that_are_false_become_flags_or_errors(bestkept, config):
    from pipelines.config import RunnerConfig
    from pipelines.runtime.beam_options import pipeline_options

    options = pipeline_options(RunnerConfig(options={"use_public_ips": False, "streaming": True}), [])
    assert options.get_all_options()["use_public_ips"] is False
    result = bad(bestkept, config, "runner.options={streaming: false}")
    assert (result.code, "no --no_streaming" in result.last) == (2, True)


def test_an_unexpected_error_is_one_line_with_its_place(bestkept, config, monkeypatch):
    from pipelines import plan

    monkeypatch.setattr(plan, "list_files", lambda *_, **__: {}["secret row text"])
    result = bad(bestkept, config)
    assert (result.code, "unexpected KeyError at pipelines/" in result.last) == (5, True)
    assert "secret" not in result.err


@pytest.mark.parametrize("changes", [{"model_type": "clip"}, {"hidden_act": "nope"}, {"hidden_size": "wide"}])
def test_a_config_that_builds_no_model(bestkept, config, tmp_path, changes):
    directory = save_encoder(tmp_path / "model")
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**values, **changes}))
    assert bad(bestkept, config, f"model.path={directory}").code == 7


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"null"),
        ("tokenizer.json", b'{"a":' * 50_000),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("model.safetensors", b'\x07\0\0\0\0\0\0\0{"a":1}'),
        ("model.safetensors", "model.safetensors"),
        ("config.json", "config.json"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("adapter_config.json", b"{}"),
    ],
)
def test_a_malformed_model_file_ends_with_its_name(bestkept, config, tmp_path, name, content):
    """`content` of type text is what a link leads to."""
    directory = save_encoder(tmp_path / "model")
    (directory / name).unlink(missing_ok=True)
    if isinstance(content, str):
        (directory / name).symlink_to(content)
    else:
        (directory / name).write_bytes(content)
    result = bad(bestkept, config, f"model.path={directory}")
    assert (result.code, name in result.last) == (7, True), result.last


def test_model_directory_without_weights(bestkept, config, tmp_path, encoder):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text((encoder / "config.json").read_text())
    result = bad(bestkept, config, f"model.path={directory}")
    assert (result.code, "has no weights" in result.last) == (7, True)


def test_two_output_model(bestkept, config, tmp_path):
    result = bad(bestkept, config, f"model.path={save_encoder(tmp_path / 'two', labels=2)}")
    assert (result.code, "has 2 outputs" in result.last) == (7, True)
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("name", [None, "my_head.weight"])
def test_head_missing_or_of_another_name(bestkept, config, tmp_path, name):
    directory = save_causal(tmp_path / "model")
    rename_tensors(directory, {"score.weight": name})
    result = bad(bestkept, config, f"model.path={directory}")
    assert (result.code, "missing score.weight" in result.last) == (7, True)


def test_malformed_line_null_and_empty_response(bestkept, config, tmp_path):
    path = tmp_path / "in" / "a.jsonl"
    secret = "xyzzy-secret"
    bad_rows = [{"prompt": secret, "response": None}, {"prompt": secret, "response": " "}]
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in bad_rows) + f'{{"prompt": "{secret}", "resp\n')
    assert bestkept("run", config, f"output.path={tmp_path}/few").code == 0, "three of a small corpus end no run"
    result = bad(bestkept, config, "limits.max_rejected_fraction=0.1")
    assert result.code == 4
    for words in ("3 of 23", "bad_json 1", "empty_response 1", "null_response 1", "max_rejected_fraction"):
        assert words in result.last
    assert secret not in result.err + result.out
    assert bestkept("run", config, "limits.max_rejected_fraction=0.2").code == 0
    rejected = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert [(row["place"], row["reason"]) for row in rejected] == [
        ("line 21", "null_response"),
        ("line 22", "empty_response"),
        ("line 23", "bad_json"),
    ]


def test_truncated_gz(bestkept, config, tmp_path):
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in corpus_rows(50)).encode())[:-20])
    result = bad(bestkept, config, f"input.path={path}")
    assert (result.code, "b.jsonl.gz is cut or damaged" in result.last) == (3, True)


def test_truncated_parquet(bestkept, config, tmp_path):
    import pyarrow as pa

    path = tmp_path / "b.parquet"
    pq.write_table(pa.Table.from_pylist(corpus_rows(50)), path)
    path.write_bytes(path.read_bytes()[:-20])
    result = bad(bestkept, config, f"input.path={path}")
    assert (result.code, "b.parquet is cut or damaged" in result.last) == (3, True)


def test_output_not_writable_is_found_before_the_model_loads(bestkept, config, tmp_path, monkeypatch):
    from rm.scorer import Scorer

    monkeypatch.setattr(Scorer, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    result = bad(bestkept, config, f"output.path={tmp_path}/file/out")
    assert result.code == 2
    assert f"cannot write {tmp_path}/file/out" in result.last
    assert "choose another output.path" in result.last


def test_another_selection_exits_6_and_says_how_to_keep_the_scores(bestkept, config, tmp_path):
    bestkept("run", config)
    result = bad(bestkept, config, "select=[]")
    assert (result.code, f"scores.path={tmp_path}/out/scores" in result.last) == (6, True)


def test_missing_config_file(bestkept, tmp_path):
    result = bad(bestkept, tmp_path / "none.yaml")
    assert (result.code, "cannot read the configuration" in result.last) == (2, True)


KILLER = """
import sys
sys.path.insert(0, {tests!r})
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig, load
from support.stubs import StubFactory
run_curation(load(RunConfig, {config!r}), scorer=StubFactory(log={log!r}, die_after={die_after}))
"""


def test_kill_9_while_scoring_then_the_same_command(tmp_path, stub_model):
    """Finished fragments are not scored again, and the bytes are those of an undisturbed run."""
    from support.stubs import StubFactory, scored_rows

    from pipelines.commands.run import run_curation
    from pipelines.config import RunConfig, load

    log, rows = tmp_path / "log", corpus_rows()
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    trees = []
    for name, die_after in (("calm", None), ("killed", 3)):
        values = {
            "input": {"path": str(tmp_path / "in" / "*"), "rows_per_fragment": 8},
            "model": {"path": str(stub_model)},
            "output": {"path": str(tmp_path / name)},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        if die_after is not None:
            tests = str(Path(__file__).parents[1])
            script = KILLER.format(tests=tests, config=str(path), log=str(log), die_after=die_after)
            killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
            assert killed.returncode == -9
            assert scored_rows(log) == 3 * 8
            assert not (tmp_path / name / "manifest.json").exists()
        run_curation(load(RunConfig, str(path)), scorer=StubFactory(log=str(log) if die_after else None))
        files = sorted(
            file
            for file in (tmp_path / name).rglob("*")
            if file.is_file() and file.name not in TIMED and "plans" not in file.parts
        )
        trees.append({str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files})
    assert scored_rows(log) == 48
    assert trees[0] == trees[1]


def test_sigterm_ends_with_143():
    script = "import os, time; from pipelines import cli\n"
    script += "cli.app = lambda **_: (os.kill(os.getpid(), 15), time.sleep(30))\ncli.main()"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 143
    assert "same command again" in ended.stderr


def test_train_and_use_the_model(bestkept, config, tmp_path, encoder):
    rng = np.random.default_rng(0)
    pairs = [
        {"prompt": f"what is {w}", "chosen": f"good {w} answer", "rejected": f"bad {w} reply", "rater": "r"}
        for w in rng.permutation(["hot", "word", "time", "day", "way", "number", "thing", "look"] * 3)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    values = {
        "data": {"path": str(path)},
        "heldout": {"fraction": 0.3},
        "model": {"path": str(encoder), "max_length": 32},
        "train": {"epochs": 8, "learning_rate": 3e-3, "groups_per_batch": 4},
        "output": {"path": str(tmp_path / "trained")},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    result = bestkept("train", tmp_path / "train.yaml")
    assert result.code == 0, result.err
    assert "held-out accuracy" in result.out
    assert re.search(r"judged by\W+human \d", result.out)
    assert "columnswithtextorliststhatarenotread:rater" in re.sub(r"\W*│\W*|\s", "", result.out)
    assert re.search(r"held-out accuracy, %\W+100\.0", result.out)
    assert sorted(os.listdir(tmp_path / "trained")) == [
        "calibration.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert bestkept("run", config, f"model.path={tmp_path}/trained").code == 0


def test_the_lora_configuration_runs_with_its_extra_alone(bestkept, tmp_path, causal, monkeypatch):
    monkeypatch.setattr("rm.train.settings.find_spec", lambda name: object() if name == "peft" else None)
    rows = [{"prompt": f"what is {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in ("the", "a", "to")]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    words = [f"data.path={data}", f"model.path={causal}", f"output.path={tmp_path / 'out'}"]
    result = bestkept("train", ROOT / "configs/train_lora.yaml", *words)
    assert result.code == 0, result.err
    assert (tmp_path / "out/model.safetensors").exists()


def test_train_errors(bestkept, tmp_path, encoder):
    values = {
        "data": {"path": str(write_jsonl(tmp_path / "pairs.jsonl", [{"a": 1}]))},
        "model": {"path": str(encoder)},
        "output": {"path": str(tmp_path / "trained")},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    result = bestkept("train", tmp_path / "train.yaml")
    assert (result.code, "data has columns a, which fit no" in result.last) == (3, True)
    result = bestkept("train", tmp_path / "train.yaml", "train.report_to=[tensorbord]")
    assert (result.code, "unknown tracker 'tensorbord'" in result.last) == (2, True)
    result = bestkept("train", tmp_path / "train.yaml", "data.path=nowhere.jsonl")
    assert (result.code, "matches no file" in result.last) == (3, True)
    result = bestkept("train", tmp_path / "train.yaml", "--epochs=3")
    assert (result.code, "unknown option --epochs" in result.last) == (2, True)
    assert not (tmp_path / "trained").exists(), "nothing is made before the checks"


def test_train_expands_the_home_directory(monkeypatch):
    from pipelines.commands.train import settings_of
    from pipelines.config import TrainConfig

    monkeypatch.setenv("HOME", "/home/me")
    values = {"data": {"path": "~/p"}, "heldout": {"path": "~/h"}, "model": {"path": "m"}, "output": {"path": "~/o"}}
    settings = settings_of(TrainConfig.model_validate(values))
    paths = (settings.sources[0][0], settings.heldout_path, settings.output_path)
    assert paths == ("/home/me/p", "/home/me/h", "/home/me/o")


def test_a_held_out_split_is_one_of_the_first_of_data():
    from pipelines.commands.train import settings_of
    from pipelines.config import TrainConfig

    values = {"data": {"path": "p", "split": "train"}, "model": {"path": "m"}, "output": {"path": "o"}}
    for heldout, expected in [
        ({}, (None, None)),
        ({"split": "test"}, ("p", "test")),
        ({"path": "h"}, ("h", None)),
        ({"path": "h", "split": "dev"}, ("h", "dev")),
    ]:
        settings = settings_of(TrainConfig.model_validate({**values, "heldout": heldout}))
        assert (settings.heldout_path, settings.heldout_split) == expected
        assert settings.sources[0][1]["split"] == "train"
