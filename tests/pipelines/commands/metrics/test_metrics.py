"""What machines are told of a command: each receiver is asked with the parser or the classes of its own package."""

from __future__ import annotations

import json
import socket
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families
from services.receiver import receiving
from support.corpora import write_jsonl

from pipelines.commands.metrics import sinks
from pipelines.commands.metrics.lineage import dataset_name
from pipelines.commands.metrics.numbers import Ended, Metric, metrics_of
from pipelines.commands.metrics.reporting import Reporting
from pipelines.commands.metrics.textfile import text_of
from pipelines.commands.metrics.trackers import run_name
from pipelines.errors import RejectedError, from_text

SECRET = "a text that nobody else may see"
VARIABLES = ("OTEL_", "OPENLINEAGE", "MLFLOW_", "TRACKIO_")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def nightly(tmp_path):
    """A configuration that selects from rewards in a column; its corpus has two responses to each of 20 prompts."""
    write_rows(tmp_path, 0)
    config = tmp_path / "nightly.yaml"
    values = {
        "input": {"path": str(tmp_path / "in")},
        "scores": {"column": "judge"},
        "output": {"path": str(tmp_path / "out")},
    }
    config.write_text(json.dumps(values))
    return config


def write_rows(tmp_path, bad):
    rows = [
        {"prompt": f"{SECRET} {k // 2}", "response": "" if k < bad else f"{SECRET} {k}", "judge": float(k)}
        for k in range(40)
    ]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)


def samples_of(path):
    families = list(text_string_to_metric_families(path.read_text()))
    assert len({family.name for family in families}) == len(families)  # those of one name stand together
    assert all(family.documentation and family.type == "gauge" for family in families)
    return {(one.name, *(v for k, v in one.labels.items() if k not in ("command", "config"))): one.value
            for family in families for one in family.samples}  # fmt: skip


def test_the_textfile_of_a_run_and_of_one_that_fails_after_it(nightly, bestkept, tmp_path):
    file = tmp_path / "collected" / "bestkept.prom"
    assert bestkept("run", nightly, "--metrics", file)[0] == 0
    told = samples_of(file)
    assert (told["bestkept_exit_code",], told["bestkept_responses_read",], told["bestkept_responses_kept",]) == (
        0,
        40,
        20,
    )
    assert told["bestkept_reward_mean", "kept"] == 20.0
    assert told["bestkept_prompts_kept",] == 20
    assert told["bestkept_characters_kept",] > 0
    assert told["bestkept_duration_seconds",] > 0
    success = told["bestkept_last_success_timestamp_seconds",]
    assert success == told["bestkept_last_run_timestamp_seconds",]

    write_rows(tmp_path, 12)
    code, _, err = bestkept("run", nightly, f"output.path={tmp_path / 'other'}", "--metrics", file)
    failed = samples_of(file)
    assert (code, failed["bestkept_exit_code",]) == (4, 4), err
    assert failed["bestkept_responses_rejected", "empty_response"] == 12
    assert failed["bestkept_last_success_timestamp_seconds",] == success
    assert failed["bestkept_last_run_timestamp_seconds",] > success
    assert ("bestkept_responses_kept",) not in failed

    assert bestkept("run", nightly, "output.shap=x", "--metrics", file)[0] == 2
    assert samples_of(file)["bestkept_exit_code",] == 2
    assert samples_of(file)["bestkept_last_success_timestamp_seconds",] == success
    assert SECRET not in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["bestkept.prom"]


def test_a_score_is_counted_too_and_a_file_that_cannot_be_written_ends_with_2(nightly, bestkept, tmp_path):
    file = tmp_path / "score.prom"
    assert bestkept("score", nightly, "--metrics", file)[0] == 0
    told = samples_of(file)
    assert (told["bestkept_responses_scored",], told["bestkept_responses_scored_by_run",]) == (40, 40)
    for place in (tmp_path, "gs://bucket/x.prom", tmp_path / "score.prom" / "x.prom"):
        code, _, err = bestkept("select", nightly, "--metrics", place)
        assert code == 2, err
        assert f"--metrics {place}" in err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_labels_may_hold_anything():
    name = 'a\\b"c\nd{e="f"}\udcff'
    metrics = [Metric("exit_code", 0), Metric("responses_rejected", 3, {"reason": name})]
    (first, second) = text_string_to_metric_families(text_of(metrics, {"config": name}))
    assert first.samples[0].labels["config"] == second.samples[0].labels["reason"] == name.replace("\udcff", "?")


def test_a_collector_gets_the_same_numbers(nightly, bestkept, tmp_path, monkeypatch):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    with receiving() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        assert bestkept("run", nightly, "--metrics", tmp_path / "a.prom")[0] == 0
    ((path, body),) = collector.posts
    assert path == "/v1/metrics"
    (resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "bestkept"
    told = samples_of(tmp_path / "a.prom")
    points = {
        (
            metric.name,
            *(a.value.string_value for a in point.attributes if a.key not in ("command", "config")),
        ): point.as_double
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.gauge.data_points
    }
    assert points == told
    units = {metric.name: metric.unit for scope in resource.scope_metrics for metric in scope.metrics}
    assert (units["bestkept_duration_seconds"], units["bestkept_responses_kept"]) == ("s", "{response}")
    assert SECRET.encode() not in body


def read_event(body):
    """An event in the classes of the client, which check its types of run, times and ids."""
    from openlineage.client import event_v2

    event = json.loads(body)
    assert event.pop("schemaURL").startswith("https://openlineage.io/spec/")
    kinds = {"run": event_v2.Run, "job": event_v2.Job}
    event |= {name: kind(**event[name]) for name, kind in kinds.items()}
    event["inputs"] = [event_v2.InputDataset(**one) for one in event["inputs"]]
    event["outputs"] = [event_v2.OutputDataset(**one) for one in event["outputs"]]
    event["eventType"] = event_v2.RunState[event["eventType"]]
    return event_v2.RunEvent(**event)


def test_lineage_begins_and_completes_or_fails(nightly, bestkept, tmp_path, monkeypatch):
    with receiving() as marquez:
        monkeypatch.setenv("OPENLINEAGE_URL", marquez.url)
        assert bestkept("run", nightly, "output.versions=true")[0] == 0
        write_rows(tmp_path, 12)
        assert bestkept("run", nightly, "output.versions=true")[0] == 4
    monkeypatch.undo()
    start, complete, again, fail = (read_event(body) for path, body in marquez.posts if path == "/api/v1/lineage")
    assert [one.eventType.name for one in (start, complete, again, fail)] == ["START", "COMPLETE", "START", "FAIL"]
    assert start.run.runId == complete.run.runId != again.run.runId == fail.run.runId
    assert start.job.name == complete.job.name == again.job.name, "one job, though the corpus has changed"
    assert [(one.namespace, one.name) for one in complete.inputs] == [("file", str(tmp_path / "in"))]
    (output,) = complete.outputs
    assert output.name == str(tmp_path / "out"), "one data set of many versions"
    version = json.loads((tmp_path / "out" / "latest.json").read_text())["version"]
    assert output.facets["version"]["datasetVersion"] == version
    assert output.outputFacets["outputStatistics"]["rowCount"] == 20
    assert "12 of 40 responses were rejected" in fail.run.facets["errorMessage"]["message"]
    assert complete.run.facets["processing_engine"]["name"] == "bestkept"
    assert not any(SECRET.encode() in body for _, body in marquez.posts)


def test_a_receiver_that_is_not_there_is_one_warning(nightly, bestkept, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    config = {"transport": {"type": "http", "url": nowhere, "retry": {"total": 0}}}
    (tmp_path / "openlineage.yml").write_text(json.dumps(config))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", nowhere)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    code, _, err = bestkept("run", nightly)
    assert code == 0, err
    assert err.count("the metrics of this command did not reach OpenLineage") == 1
    assert err.count(f"the metrics of this command did not reach {nowhere}") == 1


@pytest.mark.slow
def test_trackers_get_numbers_and_settings(nightly, bestkept, tmp_path, monkeypatch):
    import mlflow

    told = {}

    class Run:
        def __init__(self, **values):
            told.update(values)

    monkeypatch.setattr(mlflow, "start_run", Run)
    monkeypatch.setattr(mlflow, "log_params", lambda values: told.update(settings=values))
    monkeypatch.setattr(mlflow, "log_metrics", lambda values: told.update(numbers=values))
    monkeypatch.setattr(mlflow, "set_tags", lambda values: told.update(tags=values))
    monkeypatch.setattr(mlflow, "end_run", lambda status: (told.update(status=status), print("View run at: http://x")))
    options = ("report.report_to=[mlflow]", "runner.options={password: hidden}")
    code, out, _ = bestkept("select", nightly, *options[:1], "--quiet")
    assert (code, out.strip()) == (0, str(tmp_path / "out")), "what a tracker prints is no result"
    assert (told["run_name"], told["status"], told["numbers"]["responses_kept"]) == ("out", "FINISHED", 20)
    assert told["numbers"]["reward_mean/kept"] == 20.0
    assert told["settings"]["scores.column"] == "judge"
    write_rows(tmp_path, 12)
    assert bestkept("select", nightly, *options, f"output.path={tmp_path / 'b'}")[0] in (2, 4)
    assert "hidden" not in str(told)

    def broken(values):
        raise OSError("no disk")

    monkeypatch.setattr(mlflow, "log_metrics", broken)
    assert bestkept("select", nightly, *options[:1], f"output.path={tmp_path / 'c'}")[0] in (0, 4)
    assert told["status"] == "FAILED"


@pytest.mark.slow
def test_trackio_keeps_a_run_and_says_nothing_on_standard_output(nightly, bestkept, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    code, out, err = bestkept("run", nightly, "report.report_to=[trackio]", "--quiet")
    assert (code, out.strip()) == (0, str(tmp_path / "out")), err
    import sqlite3

    import trackio.utils

    (base,) = trackio.utils.TRACKIO_DIR.glob("bestkept.db")
    with sqlite3.connect(base) as database:
        assert "responses_kept" in str(database.execute("select metrics from metrics").fetchall()[-1])


@pytest.mark.parametrize(
    ("name", "variable", "setting"),
    [("openlineage.client", "OPENLINEAGE_URL", None), ("mlflow", None, "mlflow"), ("trackio", None, "trackio")],
)
def test_a_missing_package_ends_before_the_run(nightly, bestkept, tmp_path, monkeypatch, name, variable, setting):
    monkeypatch.setattr(sinks, "is_installed", lambda module: module != name)
    if variable:
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    words = [f"report.report_to=[{setting}]"] if setting else []
    code, _, err = bestkept("run", nightly, *words)
    assert code == 2
    assert f"needs {name}, not installed; run: pip install" in err
    assert not (tmp_path / "out").exists()


def test_a_collector_without_the_sdk_is_left_alone(nightly, bestkept, monkeypatch):
    from pipelines.commands.metrics import otlp

    monkeypatch.setattr(otlp, "is_installed", lambda _: False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = bestkept("run", nightly)
    assert code == 0
    assert "pip install 'bestkept[metrics]'" in err


def test_nothing_is_imported_where_nothing_is_set_up(nightly, bestkept, monkeypatch):
    names = ("opentelemetry.sdk.metrics", "openlineage.client", "mlflow", "trackio")
    before = {name for name in names if name in sys.modules}
    assert bestkept("select", nightly)[0] == 0
    assert {name for name in names if name in sys.modules} == before


def test_datasets_are_named_as_openlineage_has_it():
    assert dataset_name("/srv/in") == ("file", "/srv/in")
    assert dataset_name("gs://bucket/a/b") == ("gs://bucket", "a/b")
    assert dataset_name("s3://bucket") == ("s3://bucket", "/")


def test_counts_travel_with_an_error():
    error = from_text(f"RuntimeError: {RejectedError('too many', counts={'read': 3}).pack()}")
    assert (type(error), error.counts) == (RejectedError, {"read": 3})


def test_two_models_of_one_name_are_told_apart():
    counts = {"rows": 1, "read": 1, "scored": 1, "truncated": 0, "rejected": {}, "tokens": 3, "name": "rm"}
    members = tuple({**counts, "fingerprint": fingerprint} for fingerprint in "ab")
    told = [(one.name, *sorted(one.labels.items())) for one in metrics_of(Ended(0, 1.0, 2.0, "1", members=members))]
    assert len(told) == len(set(told))


def test_runs_of_versions_are_named_by_their_output():
    assert run_name(sinks.Job((), "/d/nightly/versions/abcdefgh12", "abcdefgh12")) == "nightly abcdefgh"


def test_one_process_of_a_training_on_several_devices_speaks(monkeypatch, tmp_path):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert Reporting("train", "c.yaml", str(tmp_path / "x.prom"))._sinks == []


def test_an_explanation_has_no_metrics(nightly, bestkept, tmp_path):
    code, _, err = bestkept("select", nightly, "--explain", "q", "--metrics", tmp_path / "x.prom")
    assert code == 2
    assert "--metrics is for a selection" in err
    assert not (tmp_path / "x.prom").exists()
