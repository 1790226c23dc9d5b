"""Dataflow without the service: what is refused before submission, and the job as it would be submitted."""

from __future__ import annotations

import importlib.util
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from support.corpora import corpus_rows, write_jsonl
from support.dataflow_job import job_of
from support.stubs import StubFactory

from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig, RunnerConfig, load
from pipelines.errors import ConfigError, Exit
from pipelines.runtime import beam_options, dataflow
from pipelines.runtime.beam_options import hands_over, pipeline_options, prepare_options

CONFIGS = Path(__file__).parents[3] / "configs"
GPU, CPU = str(CONFIGS / "dataflow_gpu.yaml"), str(CONFIGS / "dataflow_cpu.yaml")
ENSEMBLE = ("model=[{path: /m/a, dtype: bfloat16}, {path: /m/b, dtype: bfloat16}]", "limits.skip_bad_files=true")
PAIRS = (
    "select=[{length_correction: {}}, {top: {fraction: 0.5}}, {best_of_n: {keep: 2}}, {top: {rows: 9}}, {pairs: {}}]",
    "output.shape=preference",
)
has_client = importlib.util.find_spec("google.cloud.dataflow_v1beta3") is not None
needs_client = pytest.mark.skipif(not has_client, reason="apache-beam[gcp] is not installed")


def refusal(config: RunConfig, *, scores: bool = True) -> str:
    options = pipeline_options(config.runner, []).get_all_options()
    with pytest.raises(ConfigError) as raised:
        dataflow.check(config, options, scores=scores)
    assert raised.value.exit_code is Exit.CONFIG
    return raised.value.message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runner.options.project=null", r"options\.project is missing; .*=my-project"),
        ("runner.options.region=", r"options\.region is missing; .*=us-central1"),
        ("runner.options.temp_location=", r"options\.temp_location is missing; .*=gs://my-bucket/tmp"),
        ("runner.options.temp_location=/tmp", r"options\.temp_location is '/tmp'; expected gs://BUCKET/FOLDER"),
        ("runner.options.staging_location=s3://b/x", r"options\.staging_location is 's3://b/x'; expected gs://"),
        ("input.path=corpus/*.parquet", r"input\.path is 'corpus/\*\.parquet', which workers do not see; .*storage cp"),
        ("input.path=[gs://bucket/a.jsonl, /b.jsonl]", r"input\.path is '/b\.jsonl', which workers do not see; .*"),
        (
            "output.path=s3://b/out",
            r"output\.path is 's3://b/out', which workers do not see; expected gs://BUCKET/\.\.\.",
        ),
        ("scores.path=scores", r"scores\.path is 'scores', which workers do not see; .*"),
        ("scores.also=[gs://bucket/s, old]", r"scores\.also is 'old', which workers do not see; .*"),
        (
            "model.path=Qwen/Qwen3-0.6B",
            r"model\.path is 'Qwen/Qwen3-0\.6B', a hub id, .*`bestkept model fetch Qwen/Qwen3-0\.6B gs://BUCKET/models/NAME`.*",
        ),
        (
            "signals={s: {model: {path: org/hub-id, dtype: float32}}}",
            r"signals\.s\.model\.path is 'org/hub-id', a hub id, .*",
        ),
        ("model.path=./reward", r"model\.path is '\./reward', a relative path, .*model fetch \./reward gs://.*"),
        ("model.path=s3://b/reward", r"model\.path is 's3://b/reward', another store, .*model fetch ID_OR_DIR gs://.*"),
        ("model.path=gs://b", r"model\.path is 'gs://b', another store, .*"),
        (
            "model=[{path: /a, dtype: float32}, {path: b, dtype: float32}]",
            r"model\.1\.path is 'b', a relative path, .*",
        ),
        ("runner.options.sdk_container_image=", r"options\.sdk_container_image is missing; .*Python's minor version.*"),
        ("runner.options.streaming=true", r"options\.streaming is set, and bestkept runs in batches only; remove it"),
        ("runner.options.max_num_workers=0", r"options\.max_num_workers is 0; expected 1 or more"),
        ("runner.options.disk_size_gb=24", r"options\.disk_size_gb is 24; expected 25 or more, to hold the image"),
        ("model.dtype=auto", r"model\.dtype is 'auto', .*the launcher, and that has no nvidia-l4; .*bfloat16.*"),
        (
            "model=[{path: /a, dtype: float32}, {path: /b}]",
            r"model\.1\.dtype is 'auto', .*",
        ),
        (
            "runner.accelerator=type:nvidia-l4;count:2;machine_type:g2-standard-24;install-nvidia-driver",
            r".*count:2; .*",
        ),
        ("runner.options.num_workers=0", r"options\.num_workers is 0; expected 1 or more"),
        (
            "runner.options.num_workers=9",
            r"options\.num_workers is 9, more than runner\.options\.max_num_workers, 8; expected 8 or fewer",
        ),
        (
            "runner.options.experiments=[use_multiple_sdk_containers]",
            r".*experiments names use_multiple_sdk_containers.*",
        ),
        ("runner.options.flexrs_goal=COST_OPTIMIZED", r".*flexrs_goal is given, and FlexRS has no GPUs; .*"),
        (
            "runner.options.dataflow_service_options=[worker_accelerator=type:nvidia-l4]",
            r".*names worker_accelerator, a GPU on every worker, .*runner\.accelerator=type:.*",
        ),
        (
            "runner.options.disk_size_gb=49",
            r".*disk_size_gb is 49; an image with CUDA and weights needs 50 or more: .*=100",
        ),
        ("runner.options.disk_size_gb=null", r".*disk_size_gb is missing; .* needs 50 or more: .*=100"),
        (
            "runner.options.max_num_workers=null",
            r".*max_num_workers is missing, and every worker has a GPU that is paid for.*",
        ),
        (
            "runner.accelerator=type:nvidia-l4;count:1;install-nvidia-driver",
            r"runner\.options\.machine_type is n2-standard-4, which has no nvidia-l4; expected g2-\.\.\.",
        ),
        (
            "runner.accelerator=type:nvidia-tesla-t4;count:1;machine_type:g2-standard-8;install-nvidia-driver",
            r"runner\.accelerator has machine_type:g2-standard-8, which has no nvidia-tesla-t4; expected n1-\.\.\.",
        ),
    ],
)
def test_each_mistake_is_named_and_nothing_else_is(override, message):
    found = refusal(with_options(override))
    assert re.fullmatch(rf"not ready for Dataflow: (runner\.)?{message}.*", found), found
    assert found.count("; expected") + found.count("is missing") <= 2


@pytest.mark.parametrize("path", ["/models/reward", "gs://bucket/models/reward"])
def test_weights_are_in_the_image_or_on_a_bucket(path):
    config = with_options(f"model.path={path}")
    dataflow.check(config, pipeline_options(config.runner, []).get_all_options(), scores=True)


def with_options(*overrides: str) -> RunConfig:
    return load(RunConfig, GPU, overrides)


def test_a_gpu_needs_a_machine_type_and_any_new_one_is_taken():
    accelerator = "runner.accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    found = refusal(with_options(accelerator, "runner.options.machine_type=null"))
    assert (
        "machine_type is missing, and nvidia-l4 needs one that has it: runner.options.machine_type=g2-standard-8"
        in found
    )
    config = with_options("runner.accelerator=type:nvidia-b9;count:1;machine_type:z9;install-nvidia-driver:550.1")
    dataflow.check(config, pipeline_options(config.runner, []).get_all_options(), scores=True)


def test_a_job_without_autoscaling_names_its_workers_and_needs_no_most_of_them():
    fixed = "runner.options.autoscaling_algorithm=NONE"
    found = refusal(with_options(fixed, "runner.options.num_workers=null"))
    assert "autoscaling_algorithm is NONE, and runner.options.num_workers is missing" in found
    config = with_options(fixed, "runner.options.num_workers=8", "runner.options.max_num_workers=null")
    dataflow.check(config, pipeline_options(config.runner, []).get_all_options(), scores=True)


def test_everything_is_said_at_once():
    values = {
        "input": {"path": "in.jsonl"},
        "model": {"path": "owner/name"},
        "output": {"path": "out"},
        "runner": {"name": "DataflowRunner", "accelerator": "type:nvidia-l4;count:4;install-nvidia-driver"},
    }
    found = refusal(RunConfig.model_validate(values))
    for part in (
        "project",
        "region",
        "temp_location",
        "sdk_container_image",
        "max_num_workers",
        "machine_type",
        "disk_size_gb",
    ):
        assert f"runner.options.{part} is missing" in found
    for part in ("input.path is", "output.path is", "model.path is", "model.dtype is", "count:4"):
        assert part in found
    assert "scores.path" not in found, "its default lies in output.path, and that is said"


def test_credentials_in_a_path_stay_out_of_the_message():
    config = with_options()
    options = {**pipeline_options(config.runner, []).get_all_options(), "temp_location": "http://user:hunter2@host/x"}
    with pytest.raises(ConfigError) as raised:
        dataflow.check(config, options, scores=True)
    assert "hunter2" not in raised.value.message
    assert "temp_location" in raised.value.message


def test_selection_asks_for_no_gpu_and_for_no_more_than_a_cpu_job_does(caplog, monkeypatch):
    monkeypatch.setattr(beam_options, "find_spec", lambda name: object())
    config = with_options("runner.options.max_num_workers=null", "model.dtype=auto")
    with caplog.at_level(logging.INFO):
        options = prepare_options(config, [], scores=False).get_all_options()
    assert "nothing is scored, so runner.accelerator is not requested" in caplog.text
    assert options["experiments"] is None
    assert options["number_of_worker_harness_threads"] is None


def test_one_process_and_few_threads_where_there_is_a_gpu_and_it_is_said(caplog, monkeypatch):
    monkeypatch.setattr(beam_options, "find_spec", lambda name: object())
    with caplog.at_level(logging.INFO):
        options = prepare_options(with_options(), ["--experiments=own"], scores=True).get_all_options()
    assert sorted(options["experiments"]) == ["no_use_multiple_sdk_containers", "own"]
    assert options["number_of_worker_harness_threads"] == 2
    assert options["sdk_location"] == "container"
    assert (
        "for Dataflow: --sdk_location=container --number_of_worker_harness_threads=2 --experiments=no_use"
        in caplog.text
    )
    own = ["--number_of_worker_harness_threads=7", "--experiments=no_use_multiple_sdk_containers", "--sdk_location=x"]
    options = prepare_options(with_options(), own, scores=True).get_all_options()
    assert options["number_of_worker_harness_threads"] == 7
    assert options["experiments"] == ["no_use_multiple_sdk_containers"]
    assert options["sdk_location"] == "x"
    cpu = prepare_options(load(RunConfig, CPU), [], scores=True).get_all_options()
    assert (cpu["experiments"], cpu["number_of_worker_harness_threads"]) == (None, None)


def test_without_the_client_nothing_is_begun(monkeypatch):
    monkeypatch.setattr(beam_options, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bestkept\[gcp\]'"):
        run_curation(load(RunConfig, CPU), scorer=StubFactory())


@pytest.mark.parametrize("name", ["FlinkRunner", "SparkRunner", "PortableRunner", "DataflowRunner"])
def test_hub_ids_are_for_this_machine(make_config, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config("in.jsonl", model={"path": "owner/name"}, runner={"name": name})
    with pytest.raises(
        ConfigError,
        match=r"model\.path 'owner/name' is a hub id, and workers of .* do not see.*`bestkept model fetch owner/name gs://BUCKET",
    ):
        prepare_options(config, [], scores=True)
    if name != "DataflowRunner":
        (tmp_path / "owner" / "name").mkdir(parents=True)
        prepare_options(config, [], scores=True)
    prepare_options(make_config("in.jsonl", model={"path": "owner/name"}), [], scores=True)


@pytest.mark.parametrize(
    "value", ["nvidia-l4", "type:nvidia-l4;count:1", "type:nvidia-l4;count:0;install-nvidia-driver", "count:1;type:a"]
)
def test_an_accelerator_is_written_as_the_service_reads_it(value):
    with pytest.raises(ValueError, match="expected type:GPU;count:N;install-nvidia-driver:latest"):
        RunnerConfig(name="DataflowRunner", accelerator=value)


def test_an_accelerator_is_not_for_this_machine():
    with pytest.raises(ValueError, match="no effect without name: DataflowRunner"):
        RunnerConfig(accelerator="type:nvidia-l4;count:1;install-nvidia-driver")


@pytest.mark.parametrize("flag", ["--no_wait_until_finish", "--template_location=gs://b/t", "--dry_run=True"])
def test_a_launcher_that_need_not_wait_does_not(flag):
    assert hands_over(pipeline_options(RunnerConfig(), [flag]))
    assert not hands_over(pipeline_options(RunnerConfig(), []))


def test_what_is_handed_over_is_not_called_done(make_config, tmp_path, caplog):
    write_jsonl(tmp_path / "in.jsonl", corpus_rows())
    config = make_config(tmp_path / "in.jsonl")
    with caplog.at_level(logging.INFO):
        outcome = run_curation(config, ["--no_wait_until_finish"], scorer=StubFactory())
        scored = run_scoring(config, ["--no_wait_until_finish"], scorer=StubFactory())
    assert outcome.handed_over
    assert outcome.manifest is None
    assert scored.handed_over
    assert "continues alone" in caplog.text
    assert not (tmp_path / "out" / "run.json").exists()
    assert not run_curation(config, scorer=StubFactory()).handed_over


@lru_cache
def job(path: str, *overrides: str, scores: bool = True) -> Any:
    return job_of(load(RunConfig, path, overrides), scores=scores)


def steps(proto: Any) -> dict[str, Any]:
    return {transform.unique_name: transform for transform in proto.components.transforms.values()}


def hinted(proto: Any) -> dict[str, list[bytes]]:
    """Steps whose environment has hints."""
    environments = proto.components.environments
    return {
        name: [*environments[step.environment_id].resource_hints.values()]
        for name, step in steps(proto).items()
        if step.environment_id and environments[step.environment_id].resource_hints
    }


def coder_of(proto: Any, coder: str) -> list[str]:
    """The URNs of a coder and all in it."""
    found = proto.components.coders[coder]
    return [found.spec.urn, *(urn for part in found.component_coder_ids for urn in coder_of(proto, part))]


COLOCATED = ("score.colocate=prompt",)
SKIPPING = "limits.skip_bad_files=true"
ALL = [(GPU,), (CPU,), (GPU, *ENSEMBLE), (CPU, *PAIRS), (GPU, *ENSEMBLE, *COLOCATED)]
NAMES = ["gpu", "cpu", "ensemble", "pairs", "colocated"]


@needs_client
@pytest.mark.parametrize("which", ALL, ids=NAMES)
def test_what_is_shuffled_is_typed_and_never_pickled(which):
    proto = job(*which).proto_pipeline
    shuffles = {"beam:transform:group_by_key:v1", "beam:transform:reshuffle:v1"}
    found = [
        step
        for step in steps(proto).values()
        if step.spec.urn in shuffles and "/ReshufflePerKey" not in step.unique_name
    ]
    assert len(found) >= 9
    for step in found:
        for collection in step.inputs.values():
            urns = coder_of(proto, proto.components.pcollections[collection].coder_id)
            assert set(urns) <= {
                f"beam:coder:{name}:v1" for name in ("bytes", "varint", "kv", "tuple", "string_utf8")
            }, (
                step.unique_name,
                urns,
            )


@needs_client
@pytest.mark.parametrize(
    ("which", "models"),
    [((GPU,), [""]), ((GPU, *ENSEMBLE), ["0", "1"]), ((GPU, SKIPPING), [""])],
    ids=["one", "ensemble", "skipping"],
)
def test_the_gpu_is_for_scoring_alone_and_nothing_is_fused_with_it(which, models):
    proto = job(*which).proto_pipeline
    accelerator = b"type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest"
    assert hinted(proto) == {f"Score{own}/ScoreUnits/ParDo(ScoreUnits)": [accelerator] for own in models}
    for own in models:
        step = steps(proto)[f"Score{own}/ScoreUnits/ParDo(ScoreUnits)"]
        (before,) = step.inputs.values()
        assert before in steps(proto)[f"Score{own}/SpreadUnits"].outputs.values()
        leaves = [
            other
            for other in steps(proto).values()
            if set(other.inputs.values()) & set(step.outputs.values())
            and not step.unique_name.startswith(other.unique_name)
        ]
        after = {leaf.unique_name for leaf in leaves if f"Score{own}/KeepScored/" not in leaf.unique_name}
        bad_files = {f"Score{own}/EitherSkipped"} if SKIPPING in which else set()
        assert after == {f"Score{own}/KeepScored"} | bad_files, "descriptors, and names of bad files"
        assert steps(proto)[f"Score{own}/KeepScored"].spec.urn == "beam:transform:reshuffle:v1"


@needs_client
@pytest.mark.parametrize(("more", "models"), [((), [""]), (ENSEMBLE, ["0", "1"])], ids=["one", "ensemble"])
def test_where_texts_are_colocated_the_gpu_sees_them_alone(more, models):
    """Not the steps that read them, nor those that write score files: between them and the model everything is shuffled."""
    proto = job(GPU, *more, *COLOCATED).proto_pipeline
    accelerator = b"type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest"
    scoring = [f"Score{own}/Colocate/ScorePrompts" for own in models]
    assert hinted(proto) == {name: [accelerator] for name in scoring}
    made = steps(proto)
    for own in models:
        within = f"Score{own}/Colocate"
        (before,) = made[f"{within}/ScorePrompts"].inputs.values()
        assert before in made[f"{within}/GroupByPrompt"].outputs.values()
        (results,) = made[f"{within}/ScorePrompts"].outputs.values()
        readers = {name for name, step in made.items() if results in step.inputs.values()}
        assert readers == {f"{within}/UnitsAndResults"}
        (both,) = made[f"{within}/UnitsAndResults"].outputs.values()
        readers = {name for name, step in made.items() if both in step.inputs.values()}
        assert readers == {f"{within}/GroupResults"}
        for shuffle in ("GroupByPrompt", "GroupResults"):
            assert made[f"{within}/{shuffle}"].spec.urn == "beam:transform:group_by_key:v1"
            (collection,) = made[f"{within}/{shuffle}"].inputs.values()
            coder = proto.components.pcollections[collection].coder_id
            assert coder_of(proto, coder) == ["beam:coder:kv:v1", "beam:coder:varint:v1", "beam:coder:bytes:v1"]
    assert not hinted(job(CPU, *COLOCATED).proto_pipeline)


@needs_client
def test_selection_colocates_nothing():
    names = steps(job(GPU, *COLOCATED, scores=False).proto_pipeline)
    assert not [name for name in names if "Colocate" in name]


@needs_client
def test_the_job_does_not_grow_with_the_corpus():
    """The service takes 20 MB at most, and workers read the list of files from the plan."""
    many = job_of(load(RunConfig, GPU, ()), files=50_000).proto_pipeline
    assert many.ByteSize() < 200_000
    assert abs(many.ByteSize() - job(GPU).proto_pipeline.ByteSize()) < 1_000
    assert [*hinted(many)] == ["Score/ScoreUnits/ParDo(ScoreUnits)"]


@needs_client
def test_no_gpu_where_none_is_asked_for():
    assert not hinted(job(CPU).proto_pipeline)
    assert not hinted(job(GPU, scores=False).proto_pipeline)


@needs_client
@pytest.mark.parametrize("which", ALL, ids=NAMES)
def test_no_two_steps_have_one_name(which):
    proto = job(*which).proto_pipeline
    assert len(steps(proto)) == len(proto.components.transforms)


@needs_client
def test_the_steps_keep_their_names():
    """What dashboards and alerts know them by."""
    for path in (GPU, CPU):
        found = {name for name in steps(job(path).proto_pipeline) if name.count("/") <= 1}
        assert sorted(found - {"ref_AppliedPTransform_AppliedPTransform_1"}) == STEPS.split(), "that one is the whole"


@needs_client
def test_options_reach_the_job():
    from apache_beam.options.pipeline_options import GoogleCloudOptions
    from apache_beam.runners.dataflow.internal import apiclient

    made = job(GPU)
    environment = apiclient.Environment(
        proto_pipeline_staged_url="gs://b/p",
        packages=[],
        options=made.options,
        environment_version="1",
        proto_pipeline=made.proto_pipeline,
    ).proto
    (pool,) = environment.worker_pools
    assert pool.machine_type == "n2-standard-4"
    assert pool.disk_size_gb == 100
    assert (pool.num_workers, pool.autoscaling_settings.max_num_workers) == (4, 8)
    assert pool.num_threads_per_worker == 2
    images = {image.container_image for image in pool.sdk_harness_container_images}
    assert images == {"us-central1-docker.pkg.dev/my-project/bestkept/bestkept-gpu:0.1.0"}
    assert len(pool.sdk_harness_container_images) == 2, "one environment with the GPU, one without"
    assert "no_use_multiple_sdk_containers" in environment.experiments
    assert "use_multiple_sdk_containers" not in environment.experiments
    assert environment.service_account_email == "bestkept-worker@my-project.iam.gserviceaccount.com"
    google = made.options.view_as(GoogleCloudOptions)
    assert (google.project, google.region) == ("my-project", "us-central1")
    assert google.temp_location.startswith("gs://my-bucket/tmp/")
    assert google.staging_location.startswith("gs://my-bucket/tmp/")


STEPS = """
Export
Export/AllParts
Export/CountKept
Export/DealKept
Export/GroupByJob
Export/ListJobs
Export/Once
Export/PlanShards
Export/WriteShards
Finish
Finish/Finish
Finish/GroupRejected
Finish/PublishManifest
Finish/SumSelection
Finish/WriteRejected
Observe
Observe/GroupByUnit
Observe/GroupSamples
Observe/Merge
Observe/ObserveUnits
Observe/PickSamples
Observe/PlaceKept
Observe/PlaceScores
Observe/PublishReport
Observe/ReadSamples
Observe/Report
Observe/ScoresAndKept
Score
Score/KeepScored
Score/ListFiles
Score/ReadPlan
Score/RewriteLarge
Score/ScoreUnits
Score/SplitUnits
Score/SpreadFiles
Score/SpreadUnits
Select
Select/ApplyRules0
Select/CheckLimits
Select/CountRows
Select/GroupByFile
Select/GroupByUnit
Select/KeepRejecting
Select/ReadScores
Select/ShuffleCandidates
Select/SortFragments
Select/SortKept
Select/SumTotals
"""
