"""Usage errors, `--help`, completion: what happens before a configuration is used. No model is loaded."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import typer

from pipelines import cli
from pipelines.commands import app as invocation
from pipelines.commands.app import complete_settings
from pipelines.commands.help_pages import EXAMPLES, _fold
from pipelines.commands.init import jobs
from pipelines.config import RunConfig, TrainConfig
from pipelines.errors import ConfigError
from pipelines.runtime import logs
from pipelines.runtime.machine import count_cores, tool_version

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bestkept(capsys, monkeypatch):
    """(words) → exit code, standard output, lines of standard error."""

    def run(*words: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["bestkept", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err.splitlines()

    return run


@pytest.fixture(autouse=True)
def _plain_output_mode():
    yield
    logs.set_output_mode([])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["zzz"], "unknown command 'zzz'; expected one of init, inspect, train, evaluate, plan, run"),
        (["run"], "CONFIG is missing; give a file, which `bestkept init` writes, or settings such as input.path="),
        (
            ["train", "data.pth=x"],
            "bestkept: command line: data.0.path is missing; it is required; unknown key 'data.0.pth'",
        ),
        (["run", "output.path=x", "configs/best_of_n.yaml"], "; a configuration file comes before all settings"),
        (["evaluate"], "MODEL is missing; `bestkept evaluate --help`"),
        (["evaluate", "nowhere.yaml"], "cannot read the configuration 'nowhere.yaml'"),
        (["init", "train_pair"], "there is no job 'train_pair'; did you mean 'train_pairs'?"),
        (["select", "configs/best_of_n.yaml", "--text"], "--text has no effect without --explain PROMPT"),
        (["evaluate", "x"], "DATA is missing; `bestkept evaluate --help`"),
        (["--vresion"], "unknown option --vresion; "),
        (["--quite", "run", "x"], "unknown option --quite; did you mean --quiet?"),
        (["config", "--schmea"], "unknown option --schmea; did you mean --schema?"),
        (["config", "rn"], "there is no configuration 'rn'; expected one of run, train, evaluate"),
        (["select", "x", "--explain"], "option '--explain' requires an argument; "),
        (["train", "configs/train_pairs.yaml", "--quite"], "unknown option --quite; did you mean --quiet?"),
        (
            ["train", "configs/train_pairs.yaml", "--epochs=3"],
            "unknown option --epochs; `bestkept train` takes key.sub",
        ),
        (["run", "configs/best_of_n.yml"], "did you mean 'configs/best_of_n.yaml'?"),
        (["run", "best_of_n.yaml"], "did you mean 'configs/best_of_n.yaml'?"),
        (["run", "threshold"], "did you mean 'configs/threshold.yaml'?"),
        (["run", "--quiet", "qqqq.txt"], "'qqqq.txt': No such file or directory; give the path of a YAML file"),
        (
            ["run", "configs/best_of_n.yaml", "output.shape=mesages"],
            "output.shape is 'mesages': expected one of messages, ",
        ),
        (["run", "configs/best_of_n.yaml", "output.shape=mesages"], "; did you mean 'messages'?"),
        (["run", "configs/best_of_n.yaml", "output.shape=zzz"], "preference, original"),
        (["run", "configs/ensemble.yaml", "ensemble.combine=lower_bond"], "did you mean 'lower_bound'?"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(bestkept, monkeypatch, words, said):
    monkeypatch.chdir(ROOT)
    code, out, err = bestkept(*words)
    assert (code, out, len(err)) == (2, "", 1), err
    assert err[0].startswith("bestkept: ")
    assert said in err[0]
    assert "No such" not in err[0] or "No such file" in err[0]


def test_a_misspelt_option_of_ours_is_not_taken_for_one_of_beams(bestkept, monkeypatch):
    monkeypatch.chdir(ROOT)
    for given, meant in (("--explian=x", "--explain"), ("--json-log", "--json-logs")):
        code, _, err = bestkept("select", "configs/best_of_n.yaml", given)
        assert (code, f"did you mean {meant}?" in err[-1]) == (2, True), err


@pytest.mark.parametrize("words", [["--json-logs", "rnu"], ["run", "nowhere.yaml", "--json-logs"], ["--json-logs"]])
def test_errors_are_json_lines_too(bestkept, words):
    code, _, err = bestkept(*words)
    if words == ["--json-logs"]:
        assert code in (0, 2)
        return
    (line,) = map(json.loads, err)
    assert (line["level"], line["exit_code"], code) == ("ERROR", 2, 2)
    assert list(line)[:3] == ["time", "level", "message"]


def test_options_count_wherever_they_stand_but_not_behind_a_double_dash():
    for words in (["--quiet", "run", "x"], ["run", "--quiet", "x"], ["run", "x", "--quiet"]):
        logs.set_output_mode(words)
        assert logs.output_mode() == logs.OutputMode(quiet=True)
    logs.set_output_mode(["run", "x", "--", "--quiet", "--json-logs"])
    assert logs.output_mode() == logs.OutputMode()


def test_a_field_does_not_hide_level_time_or_message():
    line = json.loads(logs.json_line("INFO", "done", level="x", message="y", time="z", rows=3))
    assert (line["level"], line["message"], line["rows"]) == ("INFO", "done", 3)
    assert line["time"].startswith("20")


def test_any_function_decorated_as_a_command_has_them(capsys, monkeypatch):
    app = invocation.App(cls=invocation.Group, callback=invocation.describe_program, rich_markup_mode=None)
    seen = []

    @app.command()
    def one(name: str, count: int = 1) -> None:
        """Do one thing."""
        seen.append((name, count, logs.output_mode().quiet))

    app.command(name="another")(one)
    monkeypatch.setattr(cli, "app", app)
    for words in (["one", "--quiet", "a", "--count", "3"], ["--quiet", "one", "a"], ["one", "b"]):
        monkeypatch.setattr(sys, "argv", ["bestkept", *words])
        with pytest.raises(SystemExit):
            cli.main()
    assert seen == [("a", 3, True), ("a", 1, True), ("b", 1, False)]
    monkeypatch.setattr(sys, "argv", ["bestkept", "one", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    assert "--quiet" in out
    assert "--json-logs" in out
    assert one("direct") is None, "the function itself is as it was"


HELP = Path(__file__).with_name("help")


def commands_of(group: typer.main.TyperGroup, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, *names, name)
        else:
            yield *names, name


COMMANDS = list(commands_of(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_as_it_was_looked_at(bestkept, monkeypatch, words):
    """`UPDATE_HELP=1 pytest -k looked_at` writes the files anew; look at them before you commit."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = bestkept(*words, "--help")
    assert (code, err, bestkept(*words, "-h")[1]) == (0, [], out)
    file = HELP / f"{'-'.join(words) or 'bestkept'}.txt"
    if os.environ.get("UPDATE_HELP"):
        file.write_text(out)
    assert out == file.read_text()
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    examples = lines.index("Examples:") if "Examples:" in lines else len(lines)
    assert examples <= 36, "more than a screen before the examples"
    if words not in ((), ("model",)):
        assert "Examples:" in lines
    assert not [
        file.name for file in HELP.iterdir() if file.stem not in {"-".join(one) or "bestkept" for one in COMMANDS}
    ]


def test_examples_are_commands_that_would_be_understood(monkeypatch):
    monkeypatch.chdir(ROOT / "configs")
    names = {" ".join(words) for words in COMMANDS}
    for name, examples in EXAMPLES.items():
        assert name in names
        for line, _ in examples:
            words = shlex.split(line.rpartition("| ")[2].partition(" > ")[0])
            assert words[0] == "bestkept"
            if name:
                assert line.rpartition("| ")[2].startswith(f"bestkept {name}")
            if words[1] in ("run", "plan", "score", "select", "train"):
                kind = TrainConfig if words[1] == "train" else RunConfig
                settings = [word for word in words[3:] if re.match(r"[\w.]+=", word)]
                invocation.load_config(kind, words[2], settings)
            if words[1] == "init" and len(words) > 2 and words[2] != "--list":
                assert words[2] in jobs()


def test_an_example_is_folded_into_lines_that_can_be_pasted():
    line = "bestkept select a.yaml 'select=[{top: {fraction: 0.1}}]' output.path=" + "x" * 30
    folded = list(_fold(line, 60))
    assert shlex.split("\n".join(folded).replace("\\\n", " ")) == shlex.split(line)
    assert len(folded) > 1
    assert all(part.endswith(" \\") for part in folded[:-1])
    assert all("'" not in part or part.count("'") == 2 for part in folded)


def test_without_words_the_help_is_shown(bestkept):
    assert bestkept() == (0, bestkept("--help")[1], [])
    assert bestkept("model")[:2] == (0, bestkept("model", "-h")[1])


def test_version(bestkept):
    assert bestkept("--version") == (0, f"bestkept {tool_version()}\n", [])


def test_no_file_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["input.path=corpus/*.parquet", "model.path=model", "output.path=out", "--runner=x"]
    config, flags = invocation.load_run_config(words[0], words[1:])
    assert (config.output.path, flags, [step.name for step in config.select]) == ("out", ["--runner=x"], ["best_of_n"])
    (tmp_path / "a=b").write_text("input: {path: x}\nmodel: {path: m}\noutput: {path: from-file}\n")
    assert invocation.load_run_config("a=b", [])[0].output.path == "from-file"  # a file, whatever it is called
    assert invocation.config_name("a=b") == "a=b"
    assert invocation.config_name("input.path=x") == "command line"


def test_a_mistake_is_blamed_on_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "input: {path: x, columns: {prompt: 3}}\nmodel: {path: m}\noutput: {path: o, shape: zzz}\n"
    )
    with pytest.raises(ConfigError) as raised:
        invocation.load_run_config("a.yaml", ["output.shpe=messages", "limits.verify=maybe"])
    file, _, line = raised.value.message.partition("; command line: ")
    assert file.startswith("a.yaml: ")
    assert "input.columns.prompt" in file
    assert "output.shape is 'zzz'" in file
    assert "unknown key 'output.shpe'" in line
    assert "limits.verify is 'maybe'" in line


def test_init_writes_each_job_once(bestkept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bestkept("init") == (0, "best_of_n.yaml\n", [])
    assert Path("best_of_n.yaml").read_text() == (ROOT / "configs" / "best_of_n.yaml").read_text()
    code, _, err = bestkept("init", "best_of_n")
    assert (code, "best_of_n.yaml exists and is not overwritten" in err[0]) == (2, True)
    listed = bestkept("init", "--list")[1].splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert all(len(line.split()) > 3 and "bestkept " not in line for line in listed)


def test_env_says_versions_and_devices_and_no_credentials(bestkept, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, _ = bestkept("env", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["bestkept"], facts["cores"]) == (tool_version(), count_cores())
    assert facts["packages"]["apache-beam"] == metadata.version("apache-beam")
    assert "hf_secret" not in out
    assert "torch devices" in bestkept("env")[1]


def test_help_of_a_command_imports_neither_torch_nor_beam():
    script = "import sys; sys.argv = ['bestkept', 'run', '--help']\nfrom pipelines import cli\n"
    script += "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
    script += "heavy = {'torch', 'apache_beam', 'transformers', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
    script += "assert not heavy, heavy"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr


class FakeContext:
    def __init__(self, settings: str | None) -> None:
        self.command = type("Command", (), {"settings": settings})


@pytest.mark.parametrize(
    ("kind", "typed", "offered"),
    [
        ("run", "output.sh", ["output.shape="]),
        (
            "run",
            "limits.",
            [
                f"limits.{name}="
                for name in (
                    *("max_row_bytes", "max_rejected_fraction", "skip_bad_files", "trust_unversioned"),
                    *("max_reward_shift", "max_rejected_shift", "require_verdict", "verify"),
                )
            ],
        ),
        ("train", "train.lora.r", ["train.lora.rank="]),
        ("evaluate", "bootstrap.s", ["bootstrap.seed="]),
        ("run", "output.shape=m", []),
        ("run", "select", []),
        (None, "output.", []),
    ],
)
def test_settings_are_completed(kind, typed, offered):
    found = complete_settings(FakeContext(kind), typed)  # type: ignore[arg-type]
    assert [name for name, _ in found] == offered
    assert all(meaning for _, meaning in found)


def test_a_shell_gets_commands_options_and_settings(tmp_path):
    def complete(*words: str) -> list[str]:
        import os

        more = {"_BESTKEPT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        command = [sys.executable, "-c", "from pipelines.cli import main; main()"]
        ended = subprocess.run(
            command, env={**os.environ, **more}, capture_output=True, text=True, cwd=ROOT, check=False
        )
        return ended.stdout.split()

    assert complete("bestkept", "sel") == ["select"]
    assert complete("bestkept", "run", "x.yaml", "scores.") == ["scores.path=", "scores.also=", "scores.column="]
    assert "--json-logs" in complete("bestkept", "run", "--j")


def test_typer_is_what_the_commands_stand_on():
    assert isinstance(cli.app, typer.Typer)


@pytest.mark.parametrize(("number", "code"), [(15, 143), (2, 130)])
def test_a_signal_ends_with_a_json_line_where_these_are_asked_for(number, code):
    script = "import os, sys, time; from pipelines import cli\nsys.argv = ['bestkept', 'run', 'x', '--json-logs']\n"
    script += f"cli.app = lambda **_: (os.kill(os.getpid(), {number}), time.sleep(30))\ncli.main()"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == code
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["level"], line["exit_code"]) == ("ERROR", code)
    assert "same command again" in line["message"]
