"""Corpora of very many files are planned by listing them: the launcher opens one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.plan import Plan, make_plans
from pipelines.score.unit_scores import scores_path

FILES = 20_000
_watched: list[str] = []  # what audit hooks have seen; they cannot be taken away again
_below: list[str] = []


def _note(event: str, arguments: tuple) -> None:
    if (
        event == "open"
        and _below
        and isinstance(arguments[0], str | os.PathLike)
        and str(arguments[0]).startswith(_below[0])
    ):
        _watched.append(str(arguments[0]))


sys.addaudithook(_note)


@pytest.fixture
def opened(tmp_path):
    """Paths of the corpus that this process opens, in order."""
    _below[:], _watched[:] = [str(tmp_path / "in")], []
    yield _watched
    _below.clear()


def planned(config) -> Plan:
    """The plan as a worker finds it."""
    return Plan.load(make_plans(config).save(scores_path(config)).whole)


@pytest.mark.slow
def test_the_launcher_opens_one_of_many_small_files(tmp_path, make_config, opened):
    for folder in range(FILES // 1000):
        Path(tmp_path, "in", f"{folder:02d}").mkdir(parents=True)
        for number in range(1000):
            Path(tmp_path, "in", f"{folder:02d}", f"{number:03d}.jsonl").write_bytes(
                b'{"prompt": "p", "response": "r"}\n'
            )
    opened.clear()
    plan = planned(make_config(tmp_path / "in"))
    assert len(plan.files) == FILES
    assert [file.key for file in plan.files] == sorted(file.key for file in plan.files)
    assert plan.input_bytes == FILES * 33
    assert set(opened) == {str(tmp_path / "in" / "00" / "000.jsonl")}, "for its compression, and for its first rows"


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_of_one_large_file_the_launcher_reads_the_beginning(tmp_path, make_config, opened, kind, monkeypatch):
    rows = [{"prompt": f"p{n}", "response": f"r{n}"} for n in range(20_000)]
    path = tmp_path / "in" / f"a.{kind}"
    path.parent.mkdir()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from pipelines.corpus import first_rows

    seen = []
    for name in ("json_rows", "batch_rows"):
        read = getattr(first_rows, name)
        monkeypatch.setattr(
            first_rows, name, lambda *args, read=read, **more: (seen.append(1) or row for row in read(*args, **more))
        )
    assert len(planned(make_config(path)).files) == 1
    assert set(opened) == {str(path)}
    assert 0 < len(seen) <= 100
