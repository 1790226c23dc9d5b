"""Files of preferences, and the settings of reading them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
import typing
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.corpora import write_jsonl

from pipelines.config.train import PreferenceColumns, PreferencesConfig
from rm.conversations import tools_in
from rm.preferences import (
    FORMATS,
    PreferenceError,
    ReadSettings,
    load_rows,
    read_preference_rows,
    read_preferences,
    reading_notes,
)
from rm.preferences.formats import EVERYWHERE

PLAIN = ReadSettings(**PreferencesConfig(path="x").reading_options())


def test_an_error_names_the_file(tmp_path):
    path = write_jsonl(tmp_path / "odd.jsonl", [{"text": "x"}])
    settings = ReadSettings(**PreferencesConfig(path=str(path)).reading_options())
    with pytest.raises(PreferenceError, match=r"odd\.jsonl': data has columns text, which fit no known format"):
        read_preferences(str(path), settings)
    path.write_text("")
    with pytest.raises(PreferenceError, match=r"odd\.jsonl' has no rows"):
        read_preferences(str(path), settings)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst", "p.parquet"])
def test_files_of_every_kind(tmp_path, monkeypatch, name):
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    compress = {"p.jsonl.gz": gzip.compress, "p.jsonl.zst": zstandard.compress}.get(name, bytes)
    if name == "p.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(compress(text))
    assert list(load_rows(str(tmp_path / name))) == rows


@pytest.mark.parametrize("name", ["p.json", "p.json.gz", "p.csv", "p.tsv.xz", "p.jsonl.bz2", "p.jsonl.xz", "p.arrow"])
def test_the_other_formats_that_people_have(tmp_path, name):
    rows = [{"prompt": "p", "chosen": f"{n}", "rejected": 'a "b",\nNA', "score_chosen": n + 0.5} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.startswith("p.json") and not name.startswith("p.jsonl"):
        text = json.dumps(rows, indent=1)
    if name.startswith(("p.csv", "p.tsv")):
        sink = io.StringIO()
        writer = csv.DictWriter(sink, list(rows[0]), delimiter="," if name.startswith("p.csv") else "\t")
        writer.writeheader()
        writer.writerows(rows)
        text = sink.getvalue()
    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(text.encode()))
    if name == "p.arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(tmp_path / name, table.schema) as sink:
            sink.write_table(table)
    assert list(load_rows(str(tmp_path / name))) == rows
    groups, rejected = read_preferences(str(tmp_path / name), PLAIN)
    assert (len(groups[0].edges), rejected) == (3, {})


@pytest.mark.parametrize("name", ["p", "p.txt"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_a_file_named_outright_is_told_by_its_first_bytes(tmp_path, name, compress):
    rows = [{"prompt": "p", "chosen": f"{n}", "rejected": "b"} for n in range(3)]
    path = tmp_path / name
    for text in ("\n" + "".join(json.dumps(row) + "\n" for row in rows), json.dumps(rows)):
        path.write_bytes(compress(text.encode()))
        for place in (str(path), path.as_uri()):
            assert list(load_rows(place)) == rows
    path.write_bytes(compress(b"prompt,chosen,rejected\np,a,b\n"))
    with pytest.raises(PreferenceError, match=r"no known kind.*name it for what it is"):
        list(load_rows(str(path)))


def test_tables_named_outright_are_told_by_their_first_bytes(tmp_path):
    rows = [{"prompt": "p", "chosen": f"{n}", "rejected": "b"} for n in range(3)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "p")
    with pa.ipc.new_stream(tmp_path / "s", table.schema) as sink:
        sink.write_table(table)
    with pa.ipc.new_file(tmp_path / "f.feather", table.schema) as sink:
        sink.write_table(table)
    for name in ("p", "s", "f.feather"):
        assert list(load_rows(str(tmp_path / name))) == rows
    (tmp_path / "damaged").write_bytes(gzip.compress(b"{}")[:5])
    for name in ("damaged", "gone"):
        with pytest.raises(PreferenceError, match=f"{name}' cannot be read|{name}' matches no file"):
            list(load_rows(str(tmp_path / name)))
    for place in ((tmp_path / "gone").as_uri(), "unknown://gone"):
        with pytest.raises(PreferenceError, match="gone' cannot be read"):
            list(load_rows(place))


def test_a_server_that_fails_while_the_kind_is_told_is_an_error_with_its_name(monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("500, message='Internal Server Error'")  # aiohttp's is no OSError either

    monkeypatch.setattr("fsspec.open", fail)
    with pytest.raises(PreferenceError, match=r"https://host/data' cannot be read \(RuntimeError\)"):
        list(load_rows("https://host/data"))


def test_a_directory_is_read_where_its_files_are_of_one_split(tmp_path):
    import datasets

    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    parts = {"train": datasets.Dataset.from_list(rows * 2), "test": datasets.Dataset.from_list(rows)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(
        PreferenceError, match=r"several splits: test, train; give those of one, with a pattern such as"
    ):
        list(load_rows(str(tmp_path / "saved")))
    assert [len(list(load_rows(str(tmp_path / "saved" / name)))) for name in parts] == [2, 1]
    write_jsonl(tmp_path / "saved" / "train" / "more.jsonl", rows)
    with pytest.raises(PreferenceError, match="holds files of several kinds"):
        list(load_rows(str(tmp_path / "saved" / "train")))


def test_a_file_that_exists_wins_over_the_same_text_as_a_pattern(tmp_path):
    write_jsonl(tmp_path / "shard1.jsonl", [{"prompt": "p", "chosen": "wrong", "rejected": "file"}])
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    path = write_jsonl(tmp_path / "shard[1].jsonl", rows)
    assert list(load_rows(str(path))) == rows
    assert [row["chosen"] for row in load_rows(f"{tmp_path}/shard[0-9].jsonl")] == ["wrong"]


def test_text_stored_as_binary_is_text(tmp_path):
    message = pa.list_(pa.struct([("role", pa.binary()), ("content", pa.binary())]))
    chosen = [[{"role": b"user", "content": b"q"}, {"role": b"assistant", "content": text}] for text in (b"a", b"\xff")]
    rejected = [[*row[:1], {"role": b"assistant", "content": b"b"}] for row in chosen]
    table = pa.table({"chosen": pa.array(chosen, message), "rejected": pa.array(rejected, message)})
    pq.write_table(table, tmp_path / "p.parquet")
    settings = ReadSettings(**PreferencesConfig(path=str(tmp_path / "p.parquet")).reading_options())
    (group,), rejections = read_preferences(str(tmp_path / "p.parquet"), settings)
    assert (group.prompt, group.responses) == ((("user", "q"),), ("a", "b"))
    assert rejections == {"bad_utf8": 1}


SYSTEM_ROWS = [
    {"system": system, "question": "name a river", "chosen": "aye", "rejected": "no"}
    for system in ("Answer like a pirate", "Be brief", None, " ")
]


def test_a_system_column_is_named_and_read_where_it_is_asked_for(tmp_path, caplog):
    path = str(write_jsonl(tmp_path / "p.jsonl", SYSTEM_ROWS))
    (group,), _ = read_preferences(path, ReadSettings(**PreferencesConfig(path=path).reading_options()))
    assert group.prompt == (("user", "name a river"),)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        f"data.path {path}: the column system holds text and is not read; to put it before the prompt: "
        "'data.columns={system: system}'"
    )
    caplog.clear()
    columns = {"system": "system"}
    groups, _ = read_preferences(path, ReadSettings(**PreferencesConfig(path=path, columns=columns).reading_options()))
    prompts = [group.prompt for group in groups]
    briefed = [(("system", text), ("user", "name a river")) for text in ("Answer like a pirate", "Be brief")]
    assert prompts == [*briefed, (("user", "name a river"),)]
    assert not caplog.records


def test_a_system_text_goes_before_the_prompt_of_any_format(tmp_path):
    settings = ReadSettings(**PreferencesConfig(path="x", columns={"system": "rules"}).reading_options())
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    (group,), rejections = read_preference_rows([{**row, "rules": "Be brief"}, {**row, "rules": 7}], settings)
    assert group.prompt == (("system", "Be brief"), ("user", "q"))
    assert rejections == {"wrong_type": 1}


def test_columns_with_text_are_named_unless_they_are_read():
    settings = ReadSettings(**PreferencesConfig(path="x", columns={"prompt": "ask"}).reading_options())
    pair = {"chosen": "a", "rejected": "b", "ask": "q"}
    rows = [{**pair, "context": "c", "input": None, "history": "h", "system_prompt": ""}, {**pair, "input": "i"}]
    rows[0] |= {"model": "m", "tags": ["t"], "length": 7, "empty": "", "source": "s", "question": None}
    format = FORMATS["prompt_chosen_rejected"]
    notes = reading_notes(rows, format, settings)
    assert notes == [
        *(
            f"the column {name} holds text and is not read; {use}: 'data.columns={{prompt: ask, {role}: {name}}}'"
            for name, role, use in [
                ("context", "context", "to append it to the prompt"),
                ("input", "context", "to append it to the prompt"),
                ("history", "history", "to put it before the prompt"),
            ]
        ),
        "columns with text or lists that are not read: model, tags",
    ]
    (note,) = reading_notes([{**pair, "system_prompt": "s"}], format, settings)
    assert note.endswith("to put it before the prompt: 'data.columns={prompt: ask, system: system_prompt}'")
    alpaca = {"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"}
    plain = ReadSettings(**PreferencesConfig(path="x").reading_options())
    assert reading_notes([alpaca], format, plain) == []
    records = [
        {"response": text, "overall_score": score, "custom_system_prompt": "s"} for score, text in enumerate("ab")
    ]
    (note,) = reading_notes([{"instruction": "q", "completions": records}], FORMATS["ultrafeedback"], plain)
    assert note == "the field completions.custom_system_prompt holds text and is not read"


def test_history_and_context_belong_to_the_prompt_of_any_format():
    columns = {"system": "rules", "history": "before", "context": "passage"}
    settings = ReadSettings(**PreferencesConfig(path="x", columns=columns).reading_options())
    pair = {"prompt": "Why?", "chosen": "a", "rejected": "b", "rules": None, "before": None, "passage": None}
    earlier = (("user", "Hi"), ("assistant", "Hello"))
    histories = [
        [["Hi", "Hello"]],
        ["Hi", "Hello"],
        json.dumps([["Hi", "Hello"]]),
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "\n\nHuman: Hi\n\nAssistant: Hello",
    ]
    for history in histories:
        (group,), _ = read_preference_rows([{**pair, "before": history, "rules": "Be brief"}], settings)
        assert group.prompt == (("system", "Be brief"), *earlier, ("user", "Why?"))
    (group,), _ = read_preference_rows([{**pair, "passage": "Of rivers."}], settings)
    assert group.prompt == (("user", "Why?\n\nOf rivers."),)
    (group,), _ = read_preference_rows([{**pair, "passage": histories[3]}], settings)
    assert group.prompt == (*earlier, ("user", "Why?"))
    (group,), _ = read_preference_rows([{**pair, "before": "", "passage": " ", "rules": ""}], settings)
    assert group.prompt == (("user", "Why?"),)
    for history in ("once upon a time", ["Hi"], [["Hi", None]], 7):
        assert read_preference_rows([{**pair, "before": history}], settings) == ([], {"bad_history": 1})


def test_tools_beside_the_prompt_are_carried():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    plain = ReadSettings(**PreferencesConfig(path="x").reading_options())
    named = ReadSettings(**PreferencesConfig(path="x", columns={"tools": "functions"}).reading_options())
    for row, settings in [
        ({"tools": tools}, plain),
        ({"tools": json.dumps(tools)}, plain),
        ({"functions": tools, "tools": "hammer"}, named),
    ]:
        (group,), _ = read_preference_rows([{**pair, **row}], settings)
        assert (tools_in(group.prompt), group.prompt[1:]) == (tools, (("user", "2+2?"),))
    format = FORMATS["prompt_chosen_rejected"]
    assert reading_notes([{**pair, "tools": tools}], format, plain) == []
    assert reading_notes([{**pair, "tools": "hammer"}], format, plain) == [
        "columns with text or lists that are not read: tools"
    ]
    assert read_preference_rows([{**pair, "functions": "hammer"}], named) == ([], {"bad_tools": 1})


def test_a_prompt_that_all_responses_repeat_is_taken_off_once():
    plain = ReadSettings(**PreferencesConfig(path="x").reading_options())
    asked = ["Name a river.", "Is the sky blue?", "Name a river."]
    rows = [{"prompt": q, "chosen": f"{q}\n\nAye {n}", "rejected": f" {q} {q} No {n}"} for n, q in enumerate(asked)]
    groups, _ = read_preference_rows(rows, plain)
    assert groups[1].responses == ("Aye 1", "Is the sky blue? No 1")
    assert groups[0].responses == ("Aye 0", "Name a river. No 0", "Aye 2", "Name a river. No 2")
    format = FORMATS["prompt_chosen_rejected"]
    taken = "responses begin with the text of their prompts, which is taken off once; as they are: data.repeated_prompt=keep"
    assert reading_notes(rows, format, plain) == [taken]
    other = {"prompt": "Say hello.", "chosen": "Hello.", "rejected": "No."}
    groups, _ = read_preference_rows([*rows, other], plain)
    assert groups[1].responses == (rows[1]["chosen"], rows[1]["rejected"])
    assert reading_notes([*rows, other], format, plain) == [
        "1 of the first 4 rows have a response that begins with the prompt; it is read as it is; to take it off: "
        "data.repeated_prompt=cut"
    ]
    said = {name: replace(plain, repeated_prompt=name) for name in ("cut", "keep")}
    groups, _ = read_preference_rows([*rows, other], said["cut"])
    assert [group.responses for group in groups][1:] == [("Aye 1", "Is the sky blue? No 1"), ("Hello.", "No.")]
    groups, _ = read_preference_rows(rows, said["keep"])
    assert groups[1].responses == (rows[1]["chosen"], rows[1]["rejected"])
    assert all(reading_notes([*rows, other], format, settings) == [] for settings in said.values())
    later = [
        rows[0] | {"prompt": f"Name a river {n}?", "chosen": f"Name a river {n}? a", "rejected": "b"}
        for n in range(100)
    ]
    groups, _ = read_preference_rows([*later, other], plain)
    assert {group.responses for group in groups} == {("a", "b"), ("Hello.", "No.")}


def test_a_response_that_is_its_prompt_and_no_more_is_refused_where_prompts_are_taken_off():
    plain = ReadSettings(**PreferencesConfig(path="x").reading_options())
    asked = [f"Name river number {n}." for n in range(20)]
    rows = [{"prompt": text, "chosen": f"{text} The Rhine", "rejected": f"{text} No"} for text in asked]
    rows[3]["rejected"], rows[4]["rejected"] = asked[3], "Not so"
    groups, rejections = read_preference_rows(rows, plain)
    assert rejections == {"empty_response": 1}
    assert {group.responses for group in groups} == {("The Rhine", "No"), ("The Rhine", "Not so")}


def test_responses_that_begin_like_a_short_prompt_are_whole():
    plain = ReadSettings(**PreferencesConfig(path="x").reading_options())
    rows = [{"prompt": "Hello", "chosen": "Hello there!", "rejected": "Hello you"}]
    assert read_preference_rows(rows, plain)[0][0].responses == ("Hello there!", "Hello you")
    rows = [{"prompt": "Count from one to 1", "completion": "Count from one to 10", "label": True}]
    assert read_preference_rows(rows, plain)[0][0].responses == ("Count from one to 10",)


def test_a_transcript_of_the_prompt_and_one_more_turn_is_that_turn():
    plain = ReadSettings(**PreferencesConfig(path="x").reading_options())
    whole = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    sides = {name: f"{whole} {name}" for name in ("chosen", "rejected")}
    for prompt in (whole, whole.removesuffix("\n\nAssistant:")):
        (group,), _ = read_preference_rows([{"prompt": prompt, **sides}], plain)
        assert [role for role, _ in group.prompt] == ["user", "assistant", "user"]
        assert group.responses == ("chosen", "rejected")
    (group,), _ = read_preference_rows([{"prompt": "Other?", **sides}], plain)
    assert group.responses == (sides["chosen"], sides["rejected"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PreferenceError, match="matches no file"):
        list(load_rows(str(tmp_path / "none.jsonl")))
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(PreferenceError, match="no known kind"):
        list(load_rows(str(tmp_path / "a.xlsx")))
    path = write_jsonl(tmp_path / "b.jsonl", [{"chosen": "a"}] * 50)
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-12])
    with pytest.raises(PreferenceError, match="cannot be read"):
        list(load_rows(str(tmp_path / "b.jsonl.gz")))


def test_the_configuration_names_every_format_and_role():
    names = typing.get_args(PreferencesConfig.model_fields["format"].annotation)
    assert names == ("auto", *FORMATS)
    roles = {role for format in FORMATS.values() for role in (*format.roles, *format.inner)} | {*EVERYWHERE}
    assert set(PreferenceColumns.model_fields) == roles


def test_the_configuration_gives_the_settings_of_reading():
    config = PreferencesConfig(path="x.jsonl", columns={"score": "win_rate"}, min_gap=0.1, gap_use="margin")
    read = ReadSettings(**config.reading_options())
    assert {field.name for field in fields(read)} == config.reading_options().keys()
    assert (read.format, read.origin, read.columns) == ("auto", None, {"score": "win_rate"})
    assert (read.vote_smoothing, read.min_gap, read.gap_use, read.gap_scale) == (0.5, 0.1, "margin", 1.0)


def test_the_preferences_know_no_torch():
    code = "import sys; import rm.preferences; assert not {'torch', 'transformers', 'pipelines'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
