"""Files of preferences, and the settings of reading them."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import READ_ROWS, write_jsonl

from pipelines.config.train import PreferenceColumns, PreferencesConfig
from rm.conversations import tools_in
from rm.preferences import (
    FORMATS,
    PreferenceError,
    ReadSettings,
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
        read_preferences(str(path), settings, read_rows=READ_ROWS)
    nothing = lambda *_, **__: iter(())  # noqa: E731
    with pytest.raises(PreferenceError, match=r"heldout.path 'x' has no rows; expected at least one comparison"):
        read_preferences("x", settings, read_rows=nothing, section="heldout")


def test_text_stored_as_binary_is_text(tmp_path):
    message = pa.list_(pa.struct([("role", pa.binary()), ("content", pa.binary())]))
    chosen = [[{"role": b"user", "content": b"q"}, {"role": b"assistant", "content": text}] for text in (b"a", b"\xff")]
    rejected = [[*row[:1], {"role": b"assistant", "content": b"b"}] for row in chosen]
    table = pa.table({"chosen": pa.array(chosen, message), "rejected": pa.array(rejected, message)})
    pq.write_table(table, tmp_path / "p.parquet")
    settings = ReadSettings(**PreferencesConfig(path=str(tmp_path / "p.parquet")).reading_options())
    (group,), rejections = read_preferences(str(tmp_path / "p.parquet"), settings, read_rows=READ_ROWS)
    assert (group.prompt, group.responses) == ((("user", "q"),), ("a", "b"))
    assert rejections == {"bad_utf8": 1}


SYSTEM_ROWS = [
    {"system": system, "question": "name a river", "chosen": "aye", "rejected": "no"}
    for system in ("Answer like a pirate", "Be brief", None, " ")
]


def test_a_system_column_is_named_and_read_where_it_is_asked_for(tmp_path, caplog):
    path = str(write_jsonl(tmp_path / "p.jsonl", SYSTEM_ROWS))
    (group,), _ = read_preferences(
        path, ReadSettings(**PreferencesConfig(path=path).reading_options()), read_rows=READ_ROWS
    )
    assert group.prompt == (("user", "name a river"),)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        f"data.path {path}: the column system holds text and is not read; to put it before the prompt: "
        "'data.columns={system: system}'"
    )
    caplog.clear()
    columns = {"system": "system"}
    groups, _ = read_preferences(
        path, ReadSettings(**PreferencesConfig(path=path, columns=columns).reading_options()), read_rows=READ_ROWS
    )
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
    taken = "responses begin with the text of their prompts, which is removed; to keep it: data.repeated_prompt=keep"
    assert reading_notes(rows, format, plain) == [taken]
    other = {"prompt": "Say hello.", "chosen": "Hello.", "rejected": "No."}
    groups, _ = read_preference_rows([*rows, other], plain)
    assert groups[1].responses == (rows[1]["chosen"], rows[1]["rejected"])
    assert reading_notes([*rows, other], format, plain) == [
        "1 of the first 4 rows have a response that begins with the prompt; it is kept; to remove it: "
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


def test_a_file_of_unreadable_rows_tells_their_reasons():
    def rows(path, settings, *, section):
        return ["bad_json", "bad_json", "deep_nesting"]

    with pytest.raises(
        PreferenceError, match=r"heldout\.path 'a' has no row that can be read; rejected: {'bad_json': 2, 'deep"
    ):
        read_preferences("a", PLAIN, read_rows=rows, section="heldout")


def test_rows_that_cannot_be_read_are_none_of_the_first_that_decide_on_repeated_prompts():
    rows = [
        {"prompt": f"Name river {n}.", "chosen": f"Name river {n}. Rhine", "rejected": f"Name river {n}. No"}
        for n in range(120)
    ]
    groups, rejections = read_preference_rows(["bad_json"] * 100 + rows, PLAIN)
    assert rejections == {"bad_json": 100}
    assert {text.strip() for group in groups for text in group.responses} == {"Rhine", "No"}
