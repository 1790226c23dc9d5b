"""A text that must not leak: it is in `data/` where it is kept, and nowhere else, whatever goes wrong."""

from __future__ import annotations

import gzip
import json
import logging
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.corpora import corpus_rows

from pipelines import cli
from pipelines.runtime import logs

CANARY = "CANARY-5f1d"
MAY_HOLD = {"data", "samples.parquet", "report.html"}


def holding(root: Path) -> set[str]:
    """Top-level names below an output of what holds the canary, compressed or not."""
    found = set()
    for path in filter(Path.is_file, root.rglob("*")):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            parquet = pq.ParquetFile(path)
            content += str(parquet.read().to_pylist()).encode() + str(parquet.schema_arrow.metadata).encode()
        if CANARY.encode() in content:
            found.add(path.relative_to(root).parts[0])
    return found


@pytest.fixture
def bestkept(capfd, caplog, monkeypatch):
    """Run the command; exit code, and all that it has said anywhere."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bestkept", *map(str, words)])
        capfd.readouterr()
        with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        ours = [
            record for record in caplog.records if logs.is_ours(record)
        ]  # the libraries' go to a file, looked at below
        logged = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in ours)
        return stop.value.code or 0, out + err + logged

    return run


def row(text: str = "", **more: object) -> dict[str, object]:
    return {"prompt": f"the word {CANARY} {text}", "response": f"good {CANARY} {text}", "source": "s", **more}


BAD = [
    json.dumps(row(response=None)),
    json.dumps(row(response=7)),
    json.dumps(row(response=f"{CANARY} \ud800")),
    json.dumps(row())[:-20],
    json.dumps(row(extra=float("nan"))),
    json.dumps(row())[:-1] + f', "{CANARY}": 1, "{CANARY}": 2}}',
    json.dumps([CANARY]),
    json.dumps(row(f"{CANARY} " * 200)),
]


@pytest.fixture
def config(tmp_path, encoder):
    """A corpus in which every row has the canary, the good and the bad."""
    good = [row(one["prompt"], response=f"{CANARY} {one['response']}") for one in corpus_rows(3)]
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join([*map(json.dumps, good), *BAD]) + "\n")
    values = {
        "input": {"path": str(tmp_path / "in" / "*"), "rows_per_fragment": 5},
        "model": {"path": str(encoder), "too_long": "reject"},
        "output": {"path": str(tmp_path / "out")},
        "limits": {"max_rejected_fraction": 0.9, "max_row_bytes": 4096},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "config.yaml"


def test_a_run_leaves_it_in_the_data_only(bestkept, config, tmp_path):
    code, said = bestkept("run", config)
    assert code == 0, said
    assert CANARY not in said
    found = holding(tmp_path / "out")
    assert "data" in found, "the canary is in the corpus, and this test can see it"
    assert found <= MAY_HOLD
    names = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"rejected", "manifest.json", "run.json", "scores", "claim.json", "README.md"} <= names
    assert pq.read_table(tmp_path / "out" / "rejected").num_rows == len(BAD)
    key = pq.read_table(tmp_path / "out" / "data")["prompt_id"][0].as_py()
    code, said = bestkept("select", config, "--explain", key, "--json")
    assert (code, CANARY in said) == (0, False)


def failing(name: str, config: Path, monkeypatch) -> list[str]:
    """Break something; the arguments for the run that meets it."""
    tmp_path = config.parent
    match name:
        case "too many rejected":
            return ["limits.max_rejected_fraction=0"]
        case "cut file":
            (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(BAD * 9).encode())[:-9])
        case "changed input":
            from pipelines.corpus import Fragment

            original, path = Fragment.content_hash, tmp_path / "in" / "a.jsonl"

            def change(self):
                content = original(self)
                path.write_text(path.read_text().replace("good", "GOOD").replace("answer", "ANSWER"))
                return content

            monkeypatch.setattr(Fragment, "content_hash", change)
        case "bug in scoring":
            from rm.scorer import Scorer

            monkeypatch.setattr(Scorer, "score", lambda self, groups: {}[str(groups)])
        case "bug in export":
            from pipelines.export import transform

            monkeypatch.setattr(transform, "to_table", lambda rows, *_: {}[str(rows)])
        case "bug in reading":
            monkeypatch.setattr("pipelines.corpus.fragments.parse_row", lambda row, _: {}[str(row)])
        case "model that fails on every row":
            from rm.scorer import Scorer

            def fail(self, rows, batch):
                raise RuntimeError(f"{CANARY} in {rows}")

            monkeypatch.setattr(Scorer, "_forward", fail)
        case "template that fails":
            from rm.text.templates import Template

            def refuse(self, prompt, response):
                raise ValueError(f"{prompt} {response}")

            monkeypatch.setattr(Template, "render", refuse)
    return []


FAILURES = {
    "too many rejected": 4,
    "cut file": 3,
    "changed input": 3,
    "bug in scoring": 5,
    "bug in export": 5,
    "bug in reading": 5,
    "model that fails on every row": 4,
    "template that fails": 5,
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_does_not_quote_it(bestkept, config, tmp_path, monkeypatch, name):
    """Not even where an exception has it in its message: the last line names type and place."""
    words = failing(name, config, monkeypatch)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    code, said = bestkept("run", config, *words)
    assert code == FAILURES[name], said
    noted = list((tmp_path / "tmp").glob("bestkept-*.log"))
    assert len(noted) == (code == 5), "what went wrong is noted where somebody must look into it"
    assert all(str(path) in said for path in noted)
    assert not any(CANARY in path.read_text() for path in noted)
    last = [line for line in said.splitlines() if line.startswith("bestkept: ")]
    assert len(last) == 1
    assert CANARY not in said
    assert holding(tmp_path / "out") <= MAY_HOLD
