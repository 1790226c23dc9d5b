"""What a command says and where: plain, quiet, as JSON lines; and what the file with the libraries' messages may hold."""

from __future__ import annotations

import io
import json
import logging
import stat
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory, StubScorer

from pipelines.commands import printing, progress_bar, run
from pipelines.commands.printing import print_tables
from pipelines.commands.progress_bar import progress_fields, shows_bar
from pipelines.runtime import logs, progress
from pipelines.runtime.logs import set_output_mode

CANARY = "CANARY-77e2"


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    set_output_mode([])
    logs.discard()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary directory."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def config(tmp_path, stub_model, monkeypatch):
    """12 prompts of 4 responses; rewards from a stub."""
    monkeypatch.setattr(run, "default_scorer", lambda _: StubFactory())
    rows = [{**row, "prompt": f"{CANARY} {row['prompt']}"} for row in corpus_rows()]
    values = {
        "input": {"path": str(write_jsonl(tmp_path / "in.jsonl", rows)), "rows_per_fragment": 8},
        "model": {"path": str(stub_model)},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "config.yaml"


@pytest.fixture
def bestkept(bestkept, temporary):
    """With a temporary directory of its own."""
    return bestkept


def test_plainly_each_thing_is_said_once(bestkept, config, temporary):
    code, out, err = bestkept("run", config)
    assert code == 0
    lines = err.splitlines()
    assert len(lines) == len(set(lines)), err
    assert "no verdict is stored" in lines[0]
    assert lines[1].startswith("reading 1 file;")
    assert out.count("12 for 12 prompts") == 1
    assert "\x1b" not in out + err, "no colours and no cursor movements in a pipe"
    assert list(temporary.glob("bestkept-*")) == [], "nobody needs the log of what went well"


def test_a_second_command_in_the_same_process_says_its_lines_once(bestkept, config):
    bestkept("run", config)
    err = bestkept("run", config, f"output.path={config.parent}/again")[2]
    assert err.count("reading 1 file;") == 1


@pytest.mark.parametrize(("command", "made"), [("run", "out"), ("score", "out/scores")])
def test_quiet_prints_the_path_alone(bestkept, config, tmp_path, command, made):
    code, out, err = bestkept(command, config, "--quiet")
    assert (code, out, err) == (0, f"{tmp_path / made}\n", "")
    assert (tmp_path / made).is_dir()


def test_quiet_says_errors_all_the_same_and_no_warnings(bestkept, config):
    code, out, err = bestkept(
        "--quiet", "run", config, "select=[{top: {fraction: 0.5}}]", "limits.max_rejected_fraction=7"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    code, _, err = bestkept("--quiet", "run", config, "select=[{top: {fraction: 0.5}}]")
    assert (code, err) == (0, ""), "rewards of different prompts are compared: a warning"
    assert "top" in bestkept("run", config, "select=[{top: {fraction: 0.5}}]", f"output.path={config.parent}/b")[2]


def test_json_lines_hold_everything_on_one_stream(bestkept, config, tmp_path):
    code, out, err = bestkept("run", config, "--json-logs")
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert all(list(line)[:3] == ["time", "level", "message"] for line in lines)
    assert "no verdict is stored" in lines[0]["message"]
    assert lines[1]["message"].startswith("reading 1 file;")
    last = lines[-1]
    expected = {"message": "done", "read": 48, "rows": 48, "scored": 48, "scored_by_run": 48, "kept": 12, "prompts": 12}
    assert {key: last[key] for key in expected} == expected
    assert last["output"] == str(tmp_path / "out")
    assert last["mean_reward"]["kept"] > last["mean_reward"]["dropped"]
    again = json.loads(bestkept("run", config, "--json-logs")[2].splitlines()[-1])
    assert (again["message"], again["scored_by_run"], again["kept"]) == ("already complete", 0, 12)
    quiet = bestkept("run", config, "--json-logs", "--quiet", f"output.path={tmp_path}/q")[2].splitlines()
    assert [json.loads(line)["message"] for line in quiet] == ["done"]


def test_a_failing_scorer_leaves_a_log_without_the_row(bestkept, config, temporary, monkeypatch):
    """Beam quotes the element that a step failed on; the file has types and places."""

    def fail(self, groups):
        logging.getLogger("apache_beam.made_up").error(f"cannot do {groups}")
        raise RuntimeError(f"{groups}")

    monkeypatch.setattr(StubScorer, "score", fail)
    code, out, err = bestkept("run", config)
    assert code == 5
    (log,) = temporary.glob("bestkept-*.log")
    lines = err.splitlines()
    assert (lines[-2], lines[-1].startswith("bestkept: ")) == (f"more in {log}", True)
    text = log.read_text()
    assert "apache_beam.made_up" in text
    assert "text left out" in text
    assert "RuntimeError" in err
    assert "pipelines/score/transform.py" in text
    assert CANARY not in text + out + err
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    logs.discard()
    last = json.loads(bestkept("run", config, "--json-logs")[2].splitlines()[-1])
    assert (last["level"], last["exit_code"]) == ("ERROR", 5)
    assert CANARY not in Path(last["log"]).read_text()


def test_of_a_library_the_file_has_constants_of_its_source_only(temporary):
    logs.set_up()
    library, secret = logging.getLogger("somelib.part"), CANARY
    library.warning("a constant with a gap: %s", secret)
    library.warning(f"put together: {secret}")
    library.warning("joined " + secret)
    library.warning(secret)
    try:
        raise ValueError(secret)
    except ValueError:
        library.exception("it failed")
    library.info("of no interest")
    logging.getLogger("pipelines.part").info("ours, %s", "in full")
    (log,) = temporary.glob("bestkept-*.log")
    text = log.read_text()
    assert CANARY not in text
    assert "WARNING somelib.part (test_logs.py:" in text
    assert "a constant with a gap: %s" in text
    assert text.count("text left out") == 3
    assert "it failed\n  ValueError\n" in text
    assert "of no interest" not in text
    assert "ours, in full" in text
    logs.discard()
    assert not log.exists()


def test_the_terminal_has_our_lines_only_and_follows_standard_error(temporary, monkeypatch, capsys):
    early = logging.StreamHandler(sys.stderr)  # what `logging.info` of a library adds where there is no handler yet
    logging.getLogger().addHandler(early)
    logs.set_up()
    assert early not in logging.getLogger().handlers
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    logging.getLogger("rm.part").warning("ours")
    logging.getLogger("apache_beam").error("theirs")
    logging.getLogger().error("nobody's")
    assert other.getvalue() == "ours\n"


def test_what_transformers_says_goes_to_the_file_too(temporary, capfd):
    import rm.checkpoint.load  # noqa: F401

    logs.set_up()
    capfd.readouterr()
    logging.getLogger("transformers.made_up").warning("a row of %s tokens", 7)
    assert capfd.readouterr() == ("", "")
    (log,) = temporary.glob("bestkept-*.log")
    assert log.read_text().count("a row of %s tokens") == 1


def test_progress_has_its_numbers_as_fields():
    now = progress.Progress(
        stage="scoring",
        total_bytes=1000,
        input_bytes=100,
        fragments=2,
        found=1,
        found_bytes=100,
        found_responses=10,
        scored=30,
        tokens=600,
        scored_bytes=300.0,
        since=5.0,
    )
    assert progress_fields(now, 15.0) == {
        "stage": "scoring",
        "share": 0.4,
        "responses": 40,
        "rows_per_sec": 3.0,
        "tokens_per_sec": 60.0,
        "fragments": 2,
        "fragments_found": 1,
        "rows_written": 0,
        "rows_to_write": 0,
    }
    assert progress_fields(progress.Progress(), 15.0)["rows_per_sec"] is None


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_path_stays_in_one_line_in_a_pipe_and_is_folded_not_cut_on_a_terminal(monkeypatch, terminal):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(printing, "PlainConsole", lambda **_: console)
    table = Table(show_header=False)
    table.add_row("output", "/srv/" + "x" * 150)
    print_tables(table)
    written = stream.getvalue()
    assert written.count("x") == 150
    assert (max(map(len, written.splitlines())) <= 80) is terminal
    assert ("x" * 150 in written) is not terminal


@pytest.mark.parametrize(
    ("words", "terminal", "wanted"),
    [([], True, True), ([], False, False), (["--quiet"], True, False), (["--json-logs"], True, False)],
)
def test_a_bar_is_for_somebody_who_watches(monkeypatch, words, terminal, wanted):
    monkeypatch.setattr(progress_bar, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=terminal))
    set_output_mode(words)
    assert shows_bar() is wanted


def test_training_and_evaluation_speak_alike(bestkept, tmp_path, encoder):
    words = [f"{word} {number}" for word in ("hot", "word", "time", "day") for number in range(6)]
    pairs = [{"prompt": f"what is {w}", "chosen": f"good {w} answer", "rejected": f"bad {w} reply"} for w in words]
    values = {
        "data": {"path": str(write_jsonl(tmp_path / "pairs.jsonl", pairs))},
        "heldout": {"fraction": 0.3},
        "model": {"path": str(encoder), "max_length": 32},
        "output": {"path": str(tmp_path / "trained")},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    code, out, err = bestkept("train", tmp_path / "train.yaml", "--json-logs")
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["step"] for line in lines if "loss" in line and "step" in line] == [1, 2, 3]
    last = lines[-1]
    assert (last["message"], last["output"]) == ("trained", str(tmp_path / "trained"))
    assert last["judgements"]["comparisons"] + last["heldout_accuracy"]["comparisons"] == len(pairs)
    assert 0 <= last["heldout_accuracy"]["model"]["value"] <= 1
    heldout = write_jsonl(tmp_path / "heldout.jsonl", pairs)
    code, out, err = bestkept(
        "--quiet", "evaluate", tmp_path / "trained", heldout, f"output.path={tmp_path}/evaluation"
    )
    assert (code, out, err) == (0, f"{tmp_path}/evaluation\n", "")
    again = bestkept("evaluate", tmp_path / "trained", heldout, f"output.path={tmp_path}/evaluation", "--json-logs")
    last = json.loads(again[2].splitlines()[-1])
    assert (last["message"], last["output"]) == ("evaluated", f"{tmp_path}/evaluation")
    assert last["accuracy"]["comparisons"] == len(pairs)


@pytest.mark.parametrize("wanted", [True, False])
def test_work_whose_end_is_unknown_is_shown_on_a_terminal_alone(monkeypatch, wanted):
    from rich.console import Console

    shown = io.StringIO()
    monkeypatch.setattr(progress_bar, "Console", lambda **_: Console(file=shown, force_terminal=True, width=80))
    monkeypatch.setattr(progress_bar, "shows_bar", lambda: wanted)
    with progress_bar.showing_work("reading preferences"):
        pass
    assert ("reading preferences" in shown.getvalue()) is wanted
    with progress_bar.showing_work("reading") as show:
        show("measuring", 0.0, 15.0)
        show("measuring", 10.0, 15.0)
    assert ("measuring" in shown.getvalue()) is wanted
