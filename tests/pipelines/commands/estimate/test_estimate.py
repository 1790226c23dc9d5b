"""`bestkept plan`: what it foresees is what a run then does; tiny real models."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.corpora import SHARED, corpus_rows, write_jsonl
from support.tiny_models import save_encoder

from pipelines.commands.estimate import benchmark, cost, estimate, survey, token_forecast
from pipelines.commands.estimate.estimate import PlanOptions, check_cost, plan_run
from pipelines.commands.estimate.hardware import PRICES
from pipelines.commands.estimate.quantity import Quantity
from pipelines.commands.estimate.scored_so_far import count_scored
from pipelines.commands.estimate.selection_size import CandidateCounts, shuffled_bytes
from pipelines.commands.estimate.table import plan_table
from pipelines.commands.run import default_scorer, run_curation, run_scoring
from pipelines.config import ModelConfig, RunConfig, Step
from pipelines.corpus import files as input_files
from pipelines.corpus import rewritten_copy
from pipelines.errors import ConfigError, CostError, ModelLoadError
from pipelines.plan import make_plans

NO_BENCHMARK = PlanOptions(benchmark=False)
AGAIN = {"prompt": "prompt number 3", "response": "answer 21 of generator 0", "generator": "again"}
ROWS = [*corpus_rows(12)[:6], AGAIN, *corpus_rows(12)[6:]]  # in the same fragment as the one that it repeats


@pytest.fixture(autouse=True)
def _one_draw(monkeypatch):
    """A 95 % interval misses once in twenty draws, and these would change with the time stamps of the files."""
    monkeypatch.setattr(estimate, "seed_of", lambda plan: 1)


@pytest.fixture
def config(tmp_path, causal):
    def make(model: Path | None = None, rows=ROWS, files: int = 3, **changes) -> RunConfig:
        for number in range(files):
            write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::files])
        values = {
            "input": {"path": str(tmp_path / "in"), "rows_per_fragment": 8},
            "model": {"path": str(model or causal)},
            "output": {"path": str(tmp_path / "out")},
            **changes,
        }
        return RunConfig.model_validate(values)

    return make


def run(settings: RunConfig):
    return run_curation(settings, scorer=default_scorer(settings)).manifest


def value(quantity) -> float:
    assert quantity["low"] == quantity["value"] == quantity["high"]
    assert quantity["basis"] == "exact"
    return quantity["value"]


@pytest.mark.parametrize("kind", ["encoder", "causal", "chat"])
def test_a_small_corpus_is_foreseen_to_the_token(config, request, kind):
    settings = config(request.getfixturevalue(kind))
    plan = plan_run(settings, options=NO_BENCHMARK)
    done = run(settings)
    counts = done["counts"]
    work = json.loads(Path(settings.path, "run.json").read_text())["throughput"]
    [model] = plan["models"]
    assert (value(plan["corpus"]["rows"]), value(plan["corpus"]["responses"])) == (counts["rows"], counts["read"])
    assert value(model["tokens"]) == counts["tokens"]
    assert value(plan["selection"]["kept"]) == counts["kept"]
    assert value(plan["selection"]["prompts"]) == counts["prompts"]
    assert model["computed_share"]["value"] <= 1
    assert model["left"]["computed_tokens"]["value"] == pytest.approx(work["tokens_computed"], rel=0.15)
    assert model["shares_prompts"] == (kind != "encoder")


def test_the_share_of_computed_tokens_is_that_of_the_run_where_all_fragments_are_counted(config, monkeypatch):
    monkeypatch.setattr(token_forecast, "SHARING_BLOCKS", 100)
    settings = config()
    [model] = plan_run(settings, options=NO_BENCHMARK)["models"]
    run(settings)
    work = json.loads(Path(settings.path, "run.json").read_text())["throughput"]
    assert model["left"]["computed_tokens"]["value"] == pytest.approx(work["tokens_computed"])
    assert work["tokens_computed"] < work["tokens_read"] < model["tokens"]["value"], "one text stands twice"


def test_a_sample_finds_the_tokens_within_its_interval(config, monkeypatch):
    monkeypatch.setattr(token_forecast, "SAMPLE_RESPONSES", 60)
    rows = [
        {"prompt": f"prompt {n % 40}", "response": "good answer " * (1 + n * 7919 % 23) + "bad " * (n % 3)}
        for n in range(400)
    ]
    settings = config(rows=rows)
    [model] = plan_run(settings, options=NO_BENCHMARK)["models"]
    truth = run(settings)["counts"]["tokens"]
    assert model["tokens"]["basis"] == "sampled"
    assert model["sampled_responses"] < 200
    assert model["tokens"]["low"] <= truth <= model["tokens"]["high"]
    assert model["tokens"]["value"] == pytest.approx(truth, rel=0.03)


def test_a_large_corpus_is_foreseen_from_blocks(config, monkeypatch):
    monkeypatch.setattr(survey, "WHOLE_BYTES", 0)
    rows = [{"prompt": f"prompt {n}", "response": "good answer " * (1 + n * 7919 % 9)} for n in range(900)]
    settings = config(rows=rows, files=30)
    plan = plan_run(settings, options=NO_BENCHMARK)
    counts = run(settings)["counts"]
    assert plan["corpus"]["read"] == "sample"
    for found, truth in [
        (plan["corpus"]["rows"], counts["rows"]),
        (plan["models"][0]["tokens"], counts["tokens"]),
    ]:
        assert found["basis"] == "sampled"
        assert found["low"] <= truth <= found["high"]
        assert found["value"] == pytest.approx(truth, rel=0.1)
    assert plan["selection"]["kept"]["basis"] == "at_most"
    assert plan["selection"]["kept"]["value"] >= 0.9 * counts["kept"]


def test_what_is_scored_is_counted_and_the_rest_is_left(config, tmp_path):
    settings = config()
    before = plan_run(settings, options=NO_BENCHMARK)["models"][0]
    assert value(before["scored"]["fragments"]) == 0
    run_scoring(settings, scorer=default_scorer(settings))
    names = sorted((tmp_path / "out" / "scores").glob("*/*.parquet"))
    assert len(names) == 7  # three files of 17, 16 and 16 rows
    kept = {path: pq.read_table(path) for path in names[:3]}
    names[3].write_bytes(names[3].read_bytes()[:-20] + b"x" * 20)  # damaged: not valid, not counted
    for path in names[4:]:
        path.unlink()
    model = plan_run(settings, options=NO_BENCHMARK)["models"][0]
    responses = sum(table.num_rows for table in kept.values())
    tokens = sum(sum(table[n].to_pylist()) for table in kept.values() for n in ("prompt_tokens", "response_tokens"))
    assert value(model["scored"]["fragments"]) == 3
    assert value(model["scored"]["responses"]) == responses
    assert value(model["scored"]["tokens"]) == tokens
    assert value(model["left"]["responses"]) == len(ROWS) - responses
    assert value(model["left"]["tokens"]) == before["tokens"]["value"] - tokens
    assert value(model["tokens"]) == before["tokens"]["value"]
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (1, 1))  # what has changed since is not scored
    again = plan_run(settings, options=NO_BENCHMARK)["models"][0]
    assert value(again["scored"]["fragments"]) == 0


def test_a_finished_run_has_nothing_left(config):
    settings = config()
    run(settings)
    plan = plan_run(settings)  # with a benchmark, which has nothing to do
    [model] = plan["models"]
    assert value(model["left"]["responses"]) == value(model["left"]["computed_tokens"]) == 0
    assert value(model["scored"]["responses"]) == len(ROWS)
    assert plan["ways"][0]["secs"]["high"] < 60
    assert plan["ways"][0]["speed"] == []


def test_of_very_many_score_files_a_sample_is_read(config, monkeypatch):
    settings = config(rows=[{"prompt": f"prompt {n}", "response": "good"} for n in range(480)])
    run_scoring(settings, scorer=default_scorer(settings))
    plan = make_plans(settings).whole
    monkeypatch.setattr("pipelines.commands.estimate.scored_so_far.MOST_READ", 20)
    found = count_scored(plan, (f"{settings.path}/scores/{plan.fingerprint}",), seed=1)
    assert not found.whole
    assert found.fragments.low <= 60 <= found.fragments.high
    assert found.responses.low <= 480 <= found.responses.high
    assert (found.responses.basis, len(found.places)) == ("sampled", 20)


def test_scores_in_other_directories_count_once(config, tmp_path):
    settings = config()
    run_scoring(settings, scorer=default_scorer(settings))
    plan = make_plans(settings).whole
    directory = f"{settings.path}/scores/{plan.fingerprint}"
    assert count_scored(plan, (str(tmp_path / "none"), directory, directory), seed=0).responses.value == len(ROWS)


def test_an_ensemble_counts_every_model(config, encoder, tmp_path):
    other = save_encoder(tmp_path / "other", seed=1)
    one = plan_run(config(encoder), options=PlanOptions(gpu="nvidia-l4"))
    values = config(encoder).model_dump(exclude_unset=True) | {"model": [{"path": str(encoder)}, {"path": str(other)}]}
    both = plan_run(RunConfig.model_validate(values), options=PlanOptions(gpu="nvidia-l4"))
    assert {model["name"] for model in both["models"]} == {encoder.name, "other"}
    tokens = [model["tokens"]["value"] for model in both["models"]]
    assert tokens == [one["models"][0]["tokens"]["value"]] * 2
    assert both["scores"]["bytes"]["value"] == 2 * one["scores"]["bytes"]["value"]


def test_without_a_benchmark_no_weight_is_read_and_the_time_is_not_known(config, monkeypatch):
    monkeypatch.setattr("rm.checkpoint.load.load_for_scoring", None)
    monkeypatch.setattr("rm.scorer.load_for_scoring", None)
    monkeypatch.setattr("safetensors.torch.load_file", None)
    [way] = plan_run(config(), options=NO_BENCHMARK)["ways"]
    assert (way["secs"], way["cost"], way["speed"], way["basis"]) == (None, None, [], "unknown")


def test_a_benchmark_measures_this_machine(config, monkeypatch):
    monkeypatch.setattr(benchmark, "BENCHMARK_SECS", 2.0)
    [way] = plan_run(config(), options=PlanOptions(machine="n1-standard-8"))["ways"]
    [speed] = way["speed"]
    assert speed["tokens_per_sec"]["low"] < speed["tokens_per_sec"]["value"] < speed["tokens_per_sec"]["high"]
    assert (speed["device"], speed["packed"], way["basis"]) == ("cpu", True, "measured")
    assert speed["responses"] == len(ROWS) - 1, "a small corpus is scored whole, and only once"
    assert 0 < way["secs"]["low"] < way["secs"]["value"] < way["secs"]["high"]
    assert way["cost"]["high"] == pytest.approx(0.38 * way["secs"]["high"] / 3600)


def test_workers_of_this_machine_share_the_work(config):
    work = Quantity(120.0, 100.0, 140.0, "measured")
    assert cost._over_workers(work, 1, gpu=True) == work
    assert cost._over_workers(work, 4, gpu=True) == Quantity(30.0, 25.0, 35.0 * 1.15, "measured")
    assert cost._over_workers(work, 2, gpu=False) == Quantity(120 / 1.1, 100 / 1.2, 140.0, "measured")
    settings = RunConfig.model_validate(config().model_dump(exclude_unset=True) | {"runner": {"workers": 2}})
    [way] = plan_run(settings, options=NO_BENCHMARK)["ways"]
    assert way["workers"] == 2


def remote(settings: RunConfig, accelerator: str | None = None, **options) -> RunConfig:
    runner = {"name": "DataflowRunner", "options": options, "accelerator": accelerator}
    return RunConfig.model_validate(settings.model_dump(exclude_unset=True) | {"runner": runner})


def test_a_job_elsewhere_is_estimated_for_the_gpu_that_it_names(config):
    gpu = "type:nvidia-l4;count:2;machine_type:g2-standard-8;install-nvidia-driver"
    settings = remote(config(), gpu, max_num_workers=5, machine_type="n1-standard-8")
    [way] = plan_run(settings)["ways"]
    assert (way["where"], way["machine"], way["workers"], way["basis"]) == ("nvidia-l4", "g2-standard-8", 5, "assumed")
    assert way["cost"]["high"] == pytest.approx(way["gpu_hours"]["high"] * 0.8536 * 2)
    assert way["secs"]["high"] >= 900
    flags = plan_run(settings, ["--max_num_workers=9"])["ways"]
    assert flags[0]["workers"] == 9


def test_options_of_dataflow_are_proposed_from_the_work_and_the_start(config):
    gpu = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest"
    plan = plan_run(remote(config(), gpu, max_num_workers=5, machine_type="n2-standard-4"))
    assert plan["proposed"] == {"num_workers": 1, "autoscaling_algorithm": "NONE"}
    cells = [str(cell) for column in plan_table(plan).columns for cell in column._cells]
    assert "--num_workers=1 --autoscaling_algorithm=NONE" in cells
    warning = "runner.options.machine_type applies to all workers"
    assert not any(warning in line for line in plan["warnings"])
    everywhere = plan_run(
        remote(config(), gpu.replace("machine_type:g2-standard-8;", ""), machine_type="g2-standard-8")
    )
    assert any(warning in line for line in everywhere["warnings"])
    assert plan_run(config(), options=NO_BENCHMARK)["proposed"] is None
    assert plan_run(remote(config()))["proposed"] is None


@pytest.mark.parametrize("of", ["prompt", "response"])
def test_steps_that_compare_texts_shuffle_the_hashes_of_their_bands_too(of):
    counts = CandidateCounts(1000.0, 100.0, {10: 100.0})
    steps = [Step.model_validate(step) for step in ({"best_of_n": {"keep": 2}}, {"near_duplicates": {"of": of}})]
    texts = 100 if of == "prompt" else 200  # after the first step
    assert shuffled_bytes(steps[:1], counts) == 48 * 1000
    assert shuffled_bytes(steps, counts) == 48 * 1000 + 48 * 200 + texts * (2 * 32 + 39 * 24)
    assert shuffled_bytes(steps[::-1], counts) == 48 * 2000 + (100 if of == "prompt" else 1000) * (2 * 32 + 39 * 24)


def test_the_start_takes_a_tenth_of_a_workers_time():
    work = Quantity(90_000.0, 80_000.0, 100_000.0, "assumed")
    assert cost.propose_workers(work, start=(100.0, 400.0), most=None) == 50  # 1,800 s of work, 200 s of start
    assert cost.propose_workers(work, start=(100.0, 400.0), most=8) == 8
    assert cost.propose_workers(Quantity(1.0, 1.0, 1.0, "assumed"), start=(100.0, 400.0), most=8) == 1


def test_a_gpu_without_kernels_of_torch_is_none_of_the_ways(config):
    ways = {way["where"]: way for way in plan_run(remote(config()))["ways"]}
    assert ways["nvidia-tesla-v100"]["fits"] is False
    assert "CUDA 13.0" in ways["nvidia-tesla-v100"]["why"]
    assert ways["nvidia-tesla-t4"]["fits"] is True


def test_a_job_elsewhere_without_a_named_gpu_is_estimated_for_all(config):
    plan = plan_run(remote(config()))
    assert len(plan["ways"]) == 10
    assert {way["where"] for way in plan["ways"] if way["cost"] is None} >= {"nvidia-b200"}, "no price, no cost"
    with pytest.raises(ConfigError, match="--gpu"):
        check_cost(plan, 1000.0)


def test_a_model_larger_than_the_gpu_is_refused_with_the_numbers(config, monkeypatch):
    monkeypatch.setattr("rm.dry_run.DryRun.shape", property(lambda _: SHAPE_OF_70B))
    with pytest.raises(ConfigError, match=r"70,000,000,000 parameters.*260\.8 GiB of weights.*24 GiB of nvidia-l4"):
        plan_run(config(), options=PlanOptions(gpu="nvidia-l4"))
    assert not any(way["fits"] for way in plan_run(remote(config()))["ways"])


def test_a_model_that_is_spread_over_gpus_takes_the_time_of_one_and_the_price_of_all(config, causal, monkeypatch):
    def plan(devices, dtype="float32", **options):
        model = {"path": str(causal), "devices": devices, "dtype": dtype}
        return plan_run(config().model_copy(update={"model": ModelConfig(**model)}), options=PlanOptions(**options))

    [one], [two] = (plan(number, gpu="nvidia-l4")["ways"] for number in (1, 2))
    assert (one["devices"], two["devices"]) == (1, 2)
    assert two["secs"] == one["secs"]
    for name in ("gpu_hours", "cost"):
        assert two[name]["high"] == pytest.approx(2 * one[name]["high"])
    warning = "model.devices spreads the model over 2 GPUs of each worker, which compute one after the other"
    assert any(warning in line for line in plan(2, gpu="nvidia-l4")["warnings"])
    monkeypatch.setattr("rm.dry_run.DryRun.shape", property(lambda _: SHAPE_OF_70B))
    name = "nvidia-a100-80gb"
    with pytest.raises(ConfigError, match=r"do not fit into the 80 GiB of nvidia-a100-80gb; .* a larger model.devices"):
        plan(1, gpu=name)
    with pytest.raises(ConfigError, match=r"of each of 3 nvidia-a100-80gb; "):
        plan(3, gpu=name)
    [spread] = plan("auto", gpu=name)["ways"]
    assert (spread["fits"], spread["devices"]) == (True, 5)
    assert "5 GPUs each" in "".join(
        str(cell) for column in plan_table(plan("auto", gpu=name)).columns for cell in column._cells
    )
    assert [way["devices"] for way in plan("auto", dtype="bfloat16", gpu=name)["ways"]] == [2]


SHAPE_OF_70B = {"parameters": 70 * 10**9, "computing_parameters": 69 * 10**9, "hidden": 8192, "intermediate": 28672}


def test_max_cost_on_both_sides_of_the_upper_end(config):
    plan = plan_run(config(), options=PlanOptions(gpu="nvidia-l4"))
    high = plan["ways"][0]["cost"]["high"]
    check_cost(plan, high)
    with pytest.raises(CostError, match=f"up to {high:,.2f} USD, more than --max-cost"):
        check_cost(plan, high * 0.999)
    with pytest.raises(ConfigError, match="--machine"):
        check_cost(plan_run(config(), options=NO_BENCHMARK), 1000.0)


def test_unknown_gpus_and_machines(config):
    with pytest.raises(ConfigError, match="'abacus' is not in the table"):
        plan_run(config(), options=PlanOptions(gpu="abacus"))
    with pytest.raises(ConfigError, match="'mainframe' has no price"):
        plan_run(config(), options=PlanOptions(machine="mainframe", benchmark=False))


def test_prices_of_ones_own_and_old_ones(config, tmp_path):
    values = yaml.safe_load(PRICES.read_text())
    values["machines"] = {"mine": {"hour": 100.0, "gpu": "nvidia-l4", "gpus": 1}}
    path = tmp_path / "mine.yaml"
    for date, warned in (("2001-01-01", True), ("2999-01-01", False)):
        path.write_text(yaml.safe_dump(values | {"date": date}))
        plan = plan_run(config(), options=PlanOptions(gpu="nvidia-l4", prices=str(path)))
        assert plan["ways"][0]["cost"]["high"] == pytest.approx(100 * plan["ways"][0]["gpu_hours"]["high"])
        assert any("days old" in line for line in plan["warnings"]) == warned


def test_rewards_that_the_corpus_carries_need_no_model(tmp_path):
    rows = [{**row, "judge": float(n)} for n, row in enumerate(corpus_rows(4))]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    values = {"input": {"path": str(path)}, "scores": {"column": "judge"}, "output": {"path": str(tmp_path / "out")}}
    plan = plan_run(RunConfig.model_validate(values))
    assert plan["models"] == []
    assert plan["ways"][0]["secs"]["high"] < 60
    assert plan["selection"]["kept"]["value"] == 4


def test_a_plan_writes_nothing(config, tmp_path):
    plan_run(config(), options=NO_BENCHMARK)
    assert not (tmp_path / "out").exists()


def test_a_large_compressed_file_is_foreseen_before_and_after_it_is_rewritten(config, tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "LARGE_BYTES", 0)
    monkeypatch.setattr(rewritten_copy, "PART_ROWS", 10)
    settings = config(files=0)
    source = tmp_path / "in" / "a.jsonl.gz"
    source.parent.mkdir()
    source.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
    before = plan_run(settings, options=NO_BENCHMARK)
    scores = f"{settings.path}/scores/rewritten"
    assert (
        before["warnings"][0]
        == f"1 compressed JSONL file is large, and will first be rewritten in {scores}, which takes about 0.0 GB"
    )
    assert not (tmp_path / "out").exists()
    done = run(settings)
    after = plan_run(settings, options=NO_BENCHMARK)
    assert value(before["corpus"]["rows"]) == value(after["corpus"]["rows"]) == done["counts"]["rows"] == len(ROWS)
    assert value(before["models"][0]["tokens"]) == value(after["models"][0]["tokens"]) == done["counts"]["tokens"]
    assert value(after["models"][0]["left"]["responses"]) == 0
    assert not any("rewritten" in line for line in after["warnings"])


def test_a_model_without_a_tokenizer_is_refused_as_it_is_by_a_run(make_config, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows(2))
    with pytest.raises(ModelLoadError):
        plan_run(make_config(path), options=NO_BENCHMARK)


@pytest.fixture
def bestkept(bestkept, config, tmp_path):
    path = tmp_path / "config.yaml"
    secret = [{"prompt": "xylophone of good", "response": f"zeppelin reply {n}"} for n in range(6)]
    path.write_text(
        yaml.safe_dump(config(rows=secret).model_dump(include={"input", "model", "output"}, exclude_none=True))
    )

    return lambda *words: bestkept("plan", path, *words)


def test_the_command_shows_one_screen_without_text_of_rows(bestkept):
    code, out, err = bestkept("--no-benchmark")
    assert code == 0
    assert "not known" in out
    assert "exact: all rows read" in out
    assert len(out.splitlines()) < 40
    assert not re.search("xylophone|zeppelin", out + err)


def test_the_command_as_json(bestkept):
    code, out, err = bestkept("--json", "--gpu", "nvidia-l4", "--max-cost", "100")
    plan = json.loads(out)
    assert code == 0
    keys = ["runner", "corpus", "models", "verdicts", "scores", "selection", "ways", "proposed", "prices", "warnings"]
    assert list(plan) == keys
    assert plan["corpus"]["files"] == 3
    assert not re.search("xylophone|zeppelin", out + err)
    assert plan_table(plan).row_count > 8


def test_the_command_ends_with_8_where_it_costs_too_much(bestkept):
    code, out, err = bestkept("--gpu", "nvidia-l4", "--max-cost", "0.001")
    assert code == 8
    assert "GPU-hours" in out, "what it would cost is shown all the same"
    assert "more than --max-cost 0.001" in err.strip().splitlines()[-1]
    assert bestkept("--gpu", "nvidia-l4", "--frobnicate=1")[0] == 2


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_prompts_and_responses(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(token_forecast, "SAMPLE_RESPONSES", 1_000)
    values = {
        "input": {"path": str(SHARED / "best_of_56" / "*.parquet")},
        "model": {"path": str(encoder)},
        "output": {"path": str(tmp_path / "out")},
    }
    settings = RunConfig.model_validate(values)
    plan = plan_run(settings, options=NO_BENCHMARK)
    assert value(plan["corpus"]["rows"]) == value(plan["corpus"]["responses"]) == 22_451
    assert value(plan["selection"]["prompts"]) == 401
    monkeypatch.setattr(token_forecast, "SAMPLE_RESPONSES", 10**9)
    truth = plan_run(settings, options=NO_BENCHMARK)["models"][0]["tokens"]["value"]
    assert plan["models"][0]["tokens"]["value"] == pytest.approx(truth, rel=0.03)
    assert plan["models"][0]["tokens"]["low"] <= truth <= plan["models"][0]["tokens"]["high"]
