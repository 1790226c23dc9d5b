"""Usage errors, `--help`, completion: what happens before a configuration is used. No model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipelines import cli
from pipelines.commands import app as invocation
from pipelines.commands.app import complete_settings
from pipelines.runtime import logs

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
        (["zzz"], "unknown command 'zzz'; expected one of run, plan, score, select"),
        (["run"], "CONFIG is missing; `bestkept run --help` says what it takes"),
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


@pytest.mark.parametrize("command", ["run", "score", "select", "train", "evaluate"])
def test_help_lists_every_setting_within_80_columns(bestkept, command):
    from pipelines.config.settings_list import settings_of

    code, out, _ = bestkept(command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    kind = command if command in ("train", "evaluate") else "run"
    assert len(settings_of(kind)) > 20
    for row in settings_of(kind):
        assert f"  {row.name} " in out or f"  {row.name}\n" in out
    assert f"bestkept config {kind}" in out


def test_the_help_of_all_commands_is_not_cut(bestkept):
    out = bestkept("--help")[1]
    assert "..." not in out.replace("[ARGS]...", "")
    assert max(map(len, out.splitlines())) <= 80
    assert "--show-completion" in out


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
