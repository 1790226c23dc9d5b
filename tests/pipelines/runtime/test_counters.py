from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import default_scorer, run_curation, run_scoring
from pipelines.errors import ModelLoadError
from pipelines.runtime.counters import COUNTERS, rates

TOTALS = dict(zip(COUNTERS, (300, 4000, 2500, 500, 80_000, 400_000, 2_000_000), strict=True))


def test_rates_by_hand():
    assert rates(TOTALS) == {
        "rows": 300,
        "tokens_read": 4000,
        "tokens_computed": 2500,
        "forward_secs": 2.0,
        "rows_per_sec": 150.0,
        "tokens_read_per_sec": 2000.0,
        "tokens_computed_per_sec": 1250.0,
        "padding_ratio": 0.2,
        "sharing_ratio": 2.0,
        "teraflops_per_sec": 0.04,
        "model_flops_utilisation": 0.2,
    }
    assert rates({**TOTALS, "peak_megaflops": 0})["model_flops_utilisation"] is None
    nothing = rates(dict.fromkeys(COUNTERS, 0))
    assert nothing["tokens_read"] == 0
    assert nothing["rows_per_sec"] is nothing["padding_ratio"] is nothing["sharing_ratio"] is None
    assert rates({}) == {}


@pytest.mark.parametrize("error", [NotImplementedError(), PermissionError("a secret")])
def test_a_runner_that_does_not_tell_its_counters_fails_no_run(error, tmp_path, make_config, monkeypatch, caplog):
    def refuse(self):
        raise error

    monkeypatch.setattr("apache_beam.runners.portability.fn_api_runner.fn_runner.RunnerResult.metrics", refuse)
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()))
    assert run_curation(config, scorer=StubFactory()).manifest["counts"]["kept"] == 12
    assert json.loads((tmp_path / "out" / "run.json").read_text())["throughput"] == {}
    assert f"({type(error).__name__}): run.json has no throughput" in caplog.text
    assert "secret" not in caplog.text


def scored_tokens(directory: Path) -> tuple[int, int]:
    tables = [pq.read_table(path) for path in directory.rglob("*.parquet")]
    return sum(table.num_rows for table in tables), sum(
        sum(table["prompt_tokens"].to_pylist()) + sum(table["response_tokens"].to_pylist()) for table in tables
    )


def test_run_json_says_what_the_model_did(tmp_path, make_config, causal):
    rows = [{**row, "prompt": f"{row['prompt']} " + "how long " * 8} for row in corpus_rows(6, 4)]
    path = write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    config = make_config(path, input={"rows_per_fragment": 9}, model={"path": str(causal), "tokens_per_batch": 100})
    run_scoring(config, scorer=default_scorer(config))
    record = tmp_path / "out" / "scores" / "run.json"
    scored = json.loads(record.read_text())
    assert scored["command"] == "score"
    done = scored["throughput"]
    count, tokens = scored_tokens(tmp_path / "out" / "scores")
    assert (done["rows"], done["tokens_read"]) == (count, tokens) == (24, tokens)
    assert done["tokens_computed"] < tokens / 1.2
    assert done["sharing_ratio"] == tokens / done["tokens_computed"]
    assert done["padding_ratio"] == 0
    assert 0 < done["forward_secs"] < scored["secs"]
    assert done["model_flops_utilisation"] is None  # what a CPU could do is not known

    run_curation(config, scorer=default_scorer(config))  # all of it was scored before
    again = json.loads((tmp_path / "out" / "run.json").read_text())
    assert again["command"] == "run"
    assert again["throughput"]["rows"] == again["throughput"]["tokens_computed"] == 0
    assert again["launcher"].keys() == {"python", "platform", "cores"}
    config = make_config(path, input={"rows_per_fragment": 9}, model={"path": str(causal)}, select=[])
    config = config.model_copy(
        update={
            "output": config.output.model_copy(update={"path": str(tmp_path / "all")}),
            "scores": config.scores.model_copy(update={"path": str(tmp_path / "out" / "scores")}),
        }
    )
    run_curation(config, scorer=None)
    assert json.loads((tmp_path / "all" / "run.json").read_text())["command"] == "select"


def test_padding_is_counted_where_rows_are_padded(tmp_path, make_config, encoder, monkeypatch):
    monkeypatch.setattr("rm.scorer.enable_packing", lambda *_, **__: False)
    rows = [{"prompt": "p", "response": "good " * (1 + number % 7)} for number in range(14)]
    config = make_config(write_jsonl(tmp_path / "a.jsonl", rows), model={"path": str(encoder)})
    run_curation(config, scorer=default_scorer(config))
    done = json.loads((tmp_path / "out" / "run.json").read_text())["throughput"]
    assert done["sharing_ratio"] == 1
    assert done["padding_ratio"] == (done["tokens_computed"] - done["tokens_read"]) / done["tokens_computed"] > 0.1


@pytest.mark.parametrize(("count", "fails"), [(15, False), (16, True)])
def test_a_model_that_fails_on_everything_ends_the_run(count, fails, tmp_path, make_config, encoder, monkeypatch):
    def broken(self, rows, batch):
        raise IndexError("row text")

    monkeypatch.setattr("rm.scorer.Scorer._forward_packed", broken)
    rows = [{"prompt": f"p{number}", "response": "good"} for number in range(count)]
    config = make_config(
        write_jsonl(tmp_path / "a.jsonl", rows),
        model={"path": str(encoder)},
        limits={"max_rejected_fraction": 1.0},
        select=[],
    )
    if fails:
        with pytest.raises(ModelLoadError, match=r"fails on every response of a fragment \(16 responses\)") as error:
            run_curation(config, scorer=default_scorer(config))
        assert "row text" not in str(error.value)
    else:
        outcome = run_curation(config, scorer=default_scorer(config))
        assert outcome.manifest["rejected"] == {"model_error": count}


def test_the_report_shows_the_throughput_of_the_run_that_scored(tmp_path, make_config, causal):
    write_jsonl(tmp_path / "in" / "a.jsonl", corpus_rows(3, 2))
    config = make_config(tmp_path / "in", model={"path": str(causal)})
    run_curation(config, scorer=default_scorer(config))
    rates = json.loads((tmp_path / "out" / "run.json").read_text())["throughput"]
    assert f"6 responses, {rates['tokens_read']:,} tokens, in " in (tmp_path / "out" / "report.html").read_text()
    again = make_config(tmp_path / "in", model={"path": str(causal)}, output={"path": str(tmp_path / "again")})
    again = again.model_copy(update={"scores": config.scores.model_copy(update={"path": config.scores_path})})
    run_curation(again, scorer=None)
    assert "Throughput" not in (tmp_path / "again" / "report.html").read_text(), "nothing was scored"
