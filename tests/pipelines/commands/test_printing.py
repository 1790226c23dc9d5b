"""Printing: names that look like markup or would steer the terminal are shown, in tables and in the last line."""

from __future__ import annotations

import os

import pytest
import yaml
from rich.table import Table
from support.corpora import write_jsonl

from pipelines.commands import printing
from pipelines.errors import InputError, escape_controls

ROWS = [{"prompt": f"p{n % 2}", "response": f"r{n}", "grade": n} for n in range(4)]


def configuration(tmp_path, **values):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    path = tmp_path / "run.yaml"
    corpus = {"input": {"path": str(tmp_path / "a.jsonl")}, "scores": {"column": "grade"}, "report": {"write": False}}
    path.write_text(yaml.safe_dump({**corpus, "output": {"path": str(tmp_path / "out")}, **values}))
    return path


def test_an_output_path_with_brackets_works_and_is_printed(tmp_path, bestkept):
    output = tmp_path / "run[1] [red]x[" / "b] :smile:"
    code, out, err = bestkept("run", configuration(tmp_path, output={"path": str(output)}))
    assert code == 0, err
    assert (output / "manifest.json").is_file()
    assert f"{output} " in out
    code, out, _ = bestkept("run", tmp_path / "run.yaml", "--quiet")
    assert (code, out) == (0, f"{output}\n")


def test_markup_that_does_not_close_is_no_error(capsys):
    table = Table(title="[/b] [bold]t")
    table.add_column("[/red]")
    table.add_row("[/x]\n\x1b[31m:smile:\u202e")
    printing.print_tables(table)
    out = capsys.readouterr().out
    assert "[/b] [bold]t" in out
    assert r"[/x]\n\x1b[31m:smile:\u202e" in out
    assert "[/red]" in out


@pytest.mark.parametrize("name", ["a\nb.txt", "a\x1b[2Jb.txt", "a\u2028b\u202e.txt", "a\r\x85b.txt", "a\udcffb.txt"])
def test_the_last_line_stays_one_line_whatever_files_are_called(tmp_path, bestkept, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).touch()
    code, _, err = bestkept("run", configuration(tmp_path, input={"path": str(tmp_path / "data")}))
    assert code == 3, err
    assert len(err.splitlines()) == 1
    assert escape_controls(name) in err


def test_the_last_line_stays_one_line_whatever_columns_are_called(tmp_path, bestkept):
    write_jsonl(tmp_path / "b.jsonl", [{"x\n\x1b[1m": "x", "y": 1}])
    code, _, err = bestkept("run", configuration(tmp_path, input={"path": str(tmp_path / "b.jsonl")}))
    assert (code, len(err.splitlines())) == (3, 1)
    assert r"x\n\x1b[1m" in err


def test_an_error_is_one_line_of_text_that_can_be_written():
    error = InputError("a\tb\n\udcff ä 🙂 👩‍🚀")
    assert error.message == r"a\tb\n\udcff ä 🙂 👩‍🚀"
    assert InputError(error.message).message == error.message


def test_a_path_by_itself_comes_out_as_it_came_in(tmp_path, capfdbinary, monkeypatch):
    from pipelines import cli

    root = os.fsdecode(bytes(tmp_path) + b"/\xff")
    version = os.path.join(root, "versions", "0123456789abcdef")
    monkeypatch.setattr("pipelines.finish.versions.latest_path", lambda root: version)
    monkeypatch.setattr("sys.argv", ["bestkept", "latest", root])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capfdbinary.readouterr().out
    assert (stop.value.code or 0, out) == (0, os.fsencode(version) + b"\n")
