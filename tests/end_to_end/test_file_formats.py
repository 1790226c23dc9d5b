"""Corpora in the formats that people have, through the whole graph: the same rows give the same output, whatever holds them."""

from __future__ import annotations

import gzip
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.corpora import write_jsonl
from support.file_formats import FORMATS, array, arrow, lines, parquet, table
from support.stubs import StubFactory

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.inspect.inspect import inspect
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import InspectConfig, RunConfig
from pipelines.corpus import files
from pipelines.errors import InputError

ROWS = [
    {
        "prompt": f"q{n // 2}",
        "response": f'a "{n}",\nsecond line\té',
        "id": n,
        "score": n / 4,
        "note": "" if n % 3 else "x",
    }
    for n in range(12)
]
BAD = {"prompt": "q0", "response": "", "id": 12, "score": 3.0, "note": "x"}
ALL = [*ROWS[:5], BAD, *ROWS[5:]]


HIDDEN = {"gzip named jsonl": "jsonl.gz", "bzip2 named jsonl": "jsonl.bz2"}
LINES = ("jsonl.bz2", "jsonl.xz", *HIDDEN)


@pytest.fixture
def curate(tmp_path, stub_model):
    """Runs a corpus without any selection, and with its own columns in the output: (configuration, manifest)."""

    def run(
        path: Path | list[str], *, name: str = "out", split: str | None = None, **limits: Any
    ) -> tuple[RunConfig, dict[str, Any]]:
        input = {"path": path if isinstance(path, list) else str(path), "split": split, "rows_per_fragment": 4}
        values = {"input": input, "model": {"path": str(stub_model)}, "select": []}
        values |= {"output": {"path": str(tmp_path / name), "shape": "original"}, "limits": limits}
        config = RunConfig.model_validate(values)
        return config, run_curation(config, scorer=StubFactory()).manifest

    return run


@pytest.fixture(params=[False, True], ids=["whole", "rewritten"])
def rewritten(request, monkeypatch) -> bool:
    if request.param:
        monkeypatch.setattr(files, "LARGE_BYTES", 10)
    return bool(request.param)


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_of_every_format_are_scored_and_exported_as_they_are(curate, tmp_path, name, rewritten):
    file_name, encode = FORMATS[name]
    path = tmp_path / "in" / file_name
    path.parent.mkdir()
    path.write_bytes(encode(ALL))
    config, manifest = curate(path)
    counts = manifest["counts"]
    assert (counts["read"], counts["scored"], counts["rejected_total"]) == (13, 12, 1)
    out = tmp_path / "out"
    rows = pq.read_table(out / "data").to_pylist()
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    (rejected,) = pq.read_table(out / "rejected").to_pylist()
    assert (rejected["reason"], rejected["place"]) == ("empty_response", "line 6" if name in LINES else "row 6")
    samples = pq.read_table(out / "samples.parquet").to_pylist()
    assert {sample["messages"][-1]["content"] for sample in samples} <= {row["response"] for row in ROWS}
    assert samples
    explained = explain(config, f"{file_name}:1", with_text=True)
    own = [row["response"] for row in rows if row["prompt_id"] == rows[0]["prompt_id"]]
    assert explained["prompt_id"] == rows[0]["prompt_id"]
    assert [row["text"] for row in explained["rows"]][:2] == own[:2]
    assert explain(config, f"{file_name}:{rejected['place']}")["rows"][-1]["rejected"] == "empty_response"
    word = "line" if name in LINES else "row"
    assert [row["place"] for row in explained["rows"]] == [f"{word} 1", f"{word} 2", f"{word} 6"][
        : len(explained["rows"])
    ]
    assert (tmp_path / "out" / "scores" / "rewritten").exists() == (rewritten and name not in HIDDEN)


TOLD = {
    **{name: encode for name, (_, encode) in FORMATS.items() if not name.startswith(("csv", "tsv"))},
    "jsonl": lambda rows: b"\n" + lines(rows),
    "parquet": parquet,
}


@pytest.mark.parametrize("name", TOLD)
def test_a_file_named_outright_is_told_by_its_first_bytes(curate, tmp_path, name, rewritten):
    (tmp_path / "data.txt").write_bytes(TOLD[name](ALL))
    config, manifest = curate(tmp_path / "data.txt")
    assert (manifest["counts"]["read"], manifest["counts"]["scored"]) == (13, 12)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    explained = explain(config, rows[0]["prompt_id"])
    if name != "parquet":
        assert [row["place"] for row in explained["rows"]][:2] == ["row 1", "row 2"]
    path = {"path": str(tmp_path / "data.txt")}
    kinds = inspect(InspectConfig.model_validate({"input": path, "data": path}), shown=1)["files"]["kinds"]
    word = name.split(" with")[0].split(" of")[0].removeprefix("pretty ")
    assert kinds == {HIDDEN.get(name, word): 1}


@pytest.mark.parametrize("data", [table(ROWS), gzip.compress(table(ROWS)), b"PK\x03\x04", b"", b"text"], ids=range(5))
def test_a_file_that_neither_name_nor_content_tells_is_refused_with_the_remedy(curate, tmp_path, data):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data").write_bytes(data)
    with pytest.raises(InputError, match=r"neither its name tells it.* such as .*data\.csv"):
        curate(tmp_path / "in" / "data")


def test_what_a_glob_or_a_directory_matches_is_told_by_its_name_alone(curate, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.txt").write_bytes(lines(ROWS))
    for path in (tmp_path / "in", tmp_path / "in" / "*.txt"):
        with pytest.raises(InputError, match=r"no known kind.*leave it out.*or name it outright"):
            curate(path)


def test_a_damaged_file_of_no_known_name_is_left_out_by_name(curate, tmp_path):
    (tmp_path / "data").write_bytes(gzip.compress(lines(ROWS))[:9])
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    paths = [str(tmp_path / "data"), str(tmp_path / "a.jsonl")]
    with pytest.raises(InputError, match=r"data is cut or damaged"):
        curate(paths)
    _, manifest = curate(paths, skip_bad_files=True)
    assert [(skipped["key"], skipped["reason"]) for skipped in manifest["skipped_files"]] == [(paths[0], "truncated")]


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_file_of_every_format_is_an_error_or_left_out_by_name(curate, tmp_path, name):
    file_name, encode = FORMATS[name]
    (tmp_path / "in").mkdir()
    data = encode(ROWS[:7])
    cut = data[: data.rindex(b'"')] if name.startswith(("csv", "tsv")) and not name.endswith(".xz") else data[:-9]
    (tmp_path / "in" / f"b{file_name}").write_bytes(cut)
    (tmp_path / "in" / file_name).write_bytes(encode(ROWS))
    with pytest.raises(InputError, match=f"b{file_name} is cut or damaged|b{file_name} cannot be read"):
        curate(tmp_path / "in")
    _, manifest = curate(tmp_path / "in", skip_bad_files=True)
    reason = (
        "damaged" if name.startswith("arrow") and manifest["skipped_files"][0]["reason"] == "damaged" else "truncated"
    )
    assert manifest["skipped_files"] == [{"key": f"b{file_name}", "reason": reason}]
    assert manifest["counts"]["scored"] == 12


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_utf_16_is_named_as_such(curate, tmp_path, name):
    text = {"a.jsonl": lines, "a.json": array, "a.csv": table}[name](ROWS).decode()
    (tmp_path / name).write_bytes(text.encode("utf-16"))
    with pytest.raises(InputError, match="it is UTF-16 text; write it as UTF-8"):
        curate(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_reads_every_format_and_names_it(tmp_path, name):
    file_name, encode = FORMATS[name]
    (tmp_path / file_name).write_bytes(encode(ALL))
    path = {"path": str(tmp_path / file_name)}
    document = inspect(InspectConfig.model_validate({"input": path, "data": path}), shown=1)
    kind = HIDDEN.get(name, name.split(" with")[0].split(" of")[0].removeprefix("pretty "))
    assert document["files"]["kinds"] == {kind: 1}
    assert document["rows"] == {"count": 13, "exact": True}
    assert document["corpus"]["rejected"]["empty_response"]["first"].endswith("line 6" if name in LINES else "row 6")


def test_values_of_arrow_that_json_has_not_are_text_or_null(curate, tmp_path):
    rows = [
        {
            "when": datetime(2024, 5, 6, tzinfo=UTC),
            "raw": b"\xff\x00",
            "text": b"plain",
            "score": math.nan,
            "n": [1, None],
        }
    ]
    rows = [{"prompt": "q", "response": "a", **rows[0]}]
    (tmp_path / "a.arrow").write_bytes(arrow(rows))
    curate(tmp_path / "a.arrow")
    (row,) = pq.read_table(tmp_path / "out" / "data").to_pylist()
    expected = {"when": "2024-05-06T00:00:00+00:00", "raw": "/wA=", "text": "plain", "score": None, "n": [1, None]}
    assert {name: row[name] for name in expected} == expected


def test_what_save_to_disk_writes_is_read_by_split(curate, tmp_path):
    import datasets

    splits = {"train": datasets.Dataset.from_list(ROWS[:6]), "test": datasets.Dataset.from_list(ROWS[6:])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "test": 1})
    (tmp_path / "saved" / "train" / "cache-1234.arrow").write_bytes(arrow(ROWS))
    with pytest.raises(InputError, match=r"several splits: test, train; name one of them: input\.split=NAME"):
        curate(tmp_path / "saved")
    for name, expected in (("train", ROWS[:6]), ("test", ROWS[6:])):
        curate(tmp_path / "saved", name=name, split=name)
        curate(tmp_path / "saved" / name, name=f"{name}-alone")
        for out in (name, f"{name}-alone"):
            rows = pq.read_table(tmp_path / out / "data").to_pylist()
            assert [{key: row[key] for key in ROWS[0]} for row in rows] == expected


def test_scores_of_a_csv_are_numbers(tmp_path):
    """`scores.column` reads rewards out of a table, where every cell is text."""
    (tmp_path / "a.csv").write_bytes(table(ROWS))
    values = {"input": {"path": str(tmp_path / "a.csv")}, "scores": {"column": "score"}}
    config = RunConfig.model_validate({**values, "output": {"path": str(tmp_path / "out")}})
    run_curation(config, scorer=None)
    rewards = pq.read_table(tmp_path / "out" / "data")["reward"].to_pylist()
    assert sorted(rewards) == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]


def test_a_large_gzip_named_jsonl_is_one_unit(tmp_path, stub_model, monkeypatch):
    monkeypatch.setattr(files, "RANGE_BYTES", 40)
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(lines(ROWS)))
    values = {"input": {"path": str(tmp_path / "a.jsonl")}, "model": {"path": str(stub_model)}}
    config = RunConfig.model_validate({**values, "output": {"path": str(tmp_path / "out")}})
    assert run_scoring(config, scorer=StubFactory()).totals["scored"] == 12
