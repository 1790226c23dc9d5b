"""What files of the field's formats are taken for, and how those that cannot be told are refused: on disk, as a user has them."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.corpora import write_jsonl

from pipelines.config import Columns, InputConfig
from pipelines.corpus.columns.detection import AmbiguousError, detect
from pipelines.corpus.columns.row_mapping import RowMapping, parse_row, rewards_of
from pipelines.corpus.listing import first_columns, list_files
from pipelines.errors import InputError
from rm.conversations import to_messages

LIMIT = 2**24


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def turn(name: str, value: str) -> dict[str, str]:
    return {"from": name, "value": value}


USER, SYSTEM, REPLY = message("user", "2+2?"), message("system", "Be brief."), message("assistant", "4")
ASKED = (("user", "2+2?"),)
BRIEFED = (("system", "Be brief."), *ASKED)
LONG = (("user", "hi"), ("assistant", "hello"), *ASKED)
DIALOGUE = [message("user", "hi"), message("assistant", "hello"), USER, REPLY]
SHAREGPT = [turn("human", "hi"), turn("gpt", "hello"), turn("human", "2+2?"), turn("gpt", "4")]

FORMATS = {
    "messages": ({"messages": DIALOGUE}, {"format": "messages", "messages": "messages"}, LONG, ["4"]),
    "OpenAI chat fine-tuning": (
        {"messages": [SYSTEM, USER, {**REPLY, "weight": 1}]},
        {"format": "messages", "messages": "messages"},
        BRIEFED,
        ["4"],
    ),
    "content parts": (
        {
            "messages": [
                message(role, [{"type": "text", "text": text}]) for role, text in (("user", "2+2?"), ("assistant", "4"))
            ]
        },
        {"format": "messages", "messages": "messages"},
        ASKED,
        ["4"],
    ),
    "ShareGPT": (
        {"id": "a", "conversations": SHAREGPT},
        {"format": "messages", "messages": "conversations"},
        LONG,
        ["4"],
    ),
    "ShareGPT with system": (
        {"conversations": [turn("system", "Be brief."), turn("human", "2+2?"), turn("gpt", "4")]},
        {"format": "messages", "messages": "conversations"},
        BRIEFED,
        ["4"],
    ),
    "OpenHermes": (
        {"conversations": SHAREGPT, "source": "airoboros", "category": "math", "system_prompt": None, "id": None},
        {"format": "messages", "messages": "conversations", "source": "source"},
        LONG,
        ["4"],
    ),
    "Magpie": (
        {
            "instruction": "2+2?",
            "response": "4",
            "conversations": [turn("human", "2+2?"), turn("gpt", "4")],
            "gen_input_configs": {"temperature": 1.0, "pre_query_template": "<|user|>"},
            "model": "m",
        },
        {"format": "messages", "messages": "conversations"},
        ASKED,
        ["4"],
    ),
    "both messages and conversations, the same": (
        {"conversations": SHAREGPT, "messages": DIALOGUE},
        {"format": "messages", "messages": "messages"},
        LONG,
        ["4"],
    ),
    "UltraChat": (
        {"prompt": "hi", "prompt_id": "x", "messages": DIALOGUE},
        {"format": "messages", "messages": "messages"},
        LONG,
        ["4"],
    ),
    "prompt and response": (
        {"prompt": "2+2?", "response": "4", "source": "me", "id": 3},
        {"format": "prompt_response", "prompt": "prompt", "response": "response", "source": "source"},
        ASKED,
        ["4"],
    ),
    "prompt and completion": (
        {"prompt": "2+2?", "completion": "4"},
        {"format": "prompt_response", "prompt": "prompt", "response": "completion"},
        ASKED,
        ["4"],
    ),
    "TRL, conversational prompt and completion": (
        {"prompt": DIALOGUE[:3], "completion": [REPLY]},
        {"format": "prompt_response", "prompt": "prompt", "response": "completion"},
        LONG,
        ["4"],
    ),
    "messages as prompt, text as response": (
        {"prompt": [SYSTEM, USER], "response": "4"},
        {"format": "prompt_response", "prompt": "prompt", "response": "response"},
        BRIEFED,
        ["4"],
    ),
    "open messages and the response beside them": (
        {"messages": DIALOGUE[:3], "response": "4"},
        {"format": "prompt_response", "prompt": "messages", "response": "response"},
        LONG,
        ["4"],
    ),
    "a message as response": (
        {"prompt": "2+2?", "response": REPLY},
        {"format": "prompt_response", "prompt": "prompt", "response": "response"},
        ASKED,
        ["4"],
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "2+2", "output": "4"},
        {"format": "alpaca", "prompt": "instruction", "input": "input", "response": "output"},
        (("user", "Add.\n\n2+2"),),
        ["4"],
    ),
    "Alpaca with its rendered text": (
        {"instruction": "Add.", "input": "", "output": "4", "text": "Below is an instruction ...", "prompt": "Below"},
        {"format": "alpaca", "prompt": "instruction", "input": "input", "response": "output"},
        (("user", "Add."),),
        ["4"],
    ),
    "AlpacaEval": (
        {"instruction": "2+2?", "output": "4", "generator": "m", "dataset": "koala"},
        {"format": "prompt_response", "prompt": "instruction", "response": "output"},
        ASKED,
        ["4"],
    ),
    "Dolly": (
        {"instruction": "Sum?", "context": "2 and 2", "response": "4", "category": "closed_qa"},
        {"format": "alpaca", "prompt": "instruction", "input": "context", "response": "response"},
        (("user", "Sum?\n\n2 and 2"),),
        ["4"],
    ),
    "OpenOrca": (
        {"id": "n", "system_prompt": "Be brief.", "question": "2+2?", "response": "4"},
        {"format": "prompt_response", "prompt": "question", "response": "response"},
        ASKED,
        ["4"],
    ),
    "question and answer": (
        {"question": "2+2?", "answer": "4"},
        {"format": "prompt_response", "prompt": "question", "response": "answer"},
        ASKED,
        ["4"],
    ),
    "query and response": (
        {"query": "2+2?", "response": "4", "type": "GSM"},
        {"format": "prompt_response", "prompt": "query", "response": "response"},
        ASKED,
        ["4"],
    ),
    "problem and solution": (
        {"problem": "2+2?", "solution": "4"},
        {"format": "prompt_response", "prompt": "problem", "response": "solution"},
        ASKED,
        ["4"],
    ),
    "input and output": (
        {"input": "2+2?", "output": "4"},
        {"format": "prompt_response", "prompt": "input", "response": "output"},
        ASKED,
        ["4"],
    ),
    "generated text": (
        {"prompt": "2+2?", "generated_text": "4"},
        {"format": "prompt_response", "prompt": "prompt", "response": "generated_text"},
        ASKED,
        ["4"],
    ),
    "a list of responses": (
        {"prompt": "2+2?", "responses": ["4", "5"]},
        {"format": "responses_list", "prompt": "prompt", "responses": "responses"},
        ASKED,
        ["4", "5"],
    ),
    "outputs as texts": (
        {"prompt": "2+2?", "outputs": ["4", "5"]},
        {"format": "responses_list", "prompt": "prompt", "responses": "outputs"},
        ASKED,
        ["4", "5"],
    ),
    "the chosen one among the responses": (
        {"prompt": "2+2?", "responses": ["4", "5"], "response": "5"},
        {"format": "responses_list", "prompt": "prompt", "responses": "responses"},
        ASKED,
        ["4", "5"],
    ),
    "one name, a list of values": (
        {"prompt": "2+2?", "output": ["4", "5"]},
        {"format": "responses_list", "prompt": "prompt", "responses": "output"},
        ASKED,
        ["4", "5"],
    ),
    "vLLM outputs": (
        {"prompt": "2+2?", "outputs": [{"index": 0, "text": "4", "finish_reason": "stop"}, {"index": 1, "text": "5"}]},
        {"format": "responses_list", "prompt": "prompt", "responses": "outputs", "field": "text"},
        ASKED,
        ["4", "5"],
    ),
    "candidates as records": (
        {"prompt": "2+2?", "candidates": [{"response": "4", "model": "a"}, {"response": "5", "model": "b"}]},
        {"format": "responses_list", "prompt": "prompt", "responses": "candidates", "field": "response"},
        ASKED,
        ["4", "5"],
    ),
    "candidates as messages": (
        {"prompt": [USER], "candidates": [REPLY, message("assistant", "5")]},
        {"format": "responses_list", "prompt": "prompt", "responses": "candidates", "field": "content"},
        ASKED,
        ["4", "5"],
    ),
    "UltraFeedback": (
        {
            "source": "sharegpt",
            "instruction": "2+2?",
            "models": ["a", "b"],
            "completions": [{"model": m, "response": r, "overall_score": 8.5} for m, r in (("a", "4"), ("b", "5"))],
            "correct_answers": ["None"],
        },
        {
            "format": "responses_list",
            "prompt": "instruction",
            "responses": "completions",
            "source": "source",
            "field": "response",
        },
        ASKED,
        ["4", "5"],
    ),
    "choices of an API": (
        {
            "messages": [SYSTEM, USER],
            "choices": [{"index": n, "message": message("assistant", text)} for n, text in enumerate("45")],
        },
        {"format": "responses_list", "prompt": "messages", "responses": "choices", "field": "message"},
        BRIEFED,
        ["4", "5"],
    ),
    "choices of a completion": (
        {"prompt": "2+2?", "choices": [{"text": "4", "logprobs": None}, {"text": "5", "logprobs": None}]},
        {"format": "responses_list", "prompt": "prompt", "responses": "choices", "field": "text"},
        ASKED,
        ["4", "5"],
    ),
    "HH transcripts": (
        {"text": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2+2?\n\nAssistant: 4"},
        {"format": "hh", "messages": "text"},
        LONG,
        ["4"],
    ),
    "UltraFeedback binarized, as SFT data": (
        {"prompt": "2+2?", "prompt_id": "x", "chosen": [USER, REPLY], "rejected": [USER, message("assistant", "5")]}
        | {"messages": [USER, REPLY], "score_chosen": 9.0, "score_rejected": 3.0},
        {"format": "messages", "messages": "messages"},
        ASKED,
        ["4"],
    ),
}


def detected(path, *, format="auto", **columns):
    config = InputConfig(path=str(path), format=format, columns=Columns(**columns))
    names, rows, where = first_columns(list_files(config), max_row_bytes=LIMIT)
    return detect(names, rows=rows, format=format, columns=config.columns, where=where)


def write(path, rows, kind: str):
    if kind == "jsonl":
        return write_jsonl(path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), path / "a.parquet")
    return path / "a.parquet"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name, kind):
    row, expected, prompt, responses = FORMATS[name]
    found = detected(write(tmp_path, [row, row], kind))
    assert {key: value for key, value in found.mapping.to_json().items() if value} == expected
    assert RowMapping.from_json(found.mapping.to_json()) == found.mapping
    [read] = {str(parse_row(each, found.mapping)) for each in (row, row)}
    assert read == str(parse_row(row, found.mapping))
    sample = parse_row(row, found.mapping)
    assert (sample.prompt, sample.responses) == (prompt, responses)
    assert sample.reasons == [None] * len(responses)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_said_of_a_reading_asks_for_it(tmp_path, name):
    """`input.columns` as it is shown, given back, reads the same."""
    row = FORMATS[name][0]
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    found = detected(path)
    settings = dict(word.split("=", 1) for word in shlex.split(found.reading.setting))
    columns = yaml.safe_load(settings["input.columns"])
    again = detected(path, format=settings.get("input.format", "auto"), **columns)
    assert again.mapping == found.mapping


def test_mappings_of_formats_that_were_known_before_have_no_new_fields(tmp_path):
    """They are part of the fingerprint of score files."""
    found = detected(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "response": "r"}]))
    assert list(found.mapping.to_json()) == [
        "format",
        "messages",
        "prompt",
        "response",
        "responses",
        "input",
        "system",
        "source",
        "carry",
        "group_by",
    ]


PAIR = {"prompt": "2+2?", "response": "4"}

AMBIGUOUS = {
    "two prompts": (
        {"prompt": "2+2?", "instruction": "Add.", "response": "4"},
        [
            "'input.columns={prompt: prompt, response: response}'",
            "'input.columns={prompt: instruction, response: response}'",
        ],
    ),
    "two responses": (
        {"prompt": "2+2?", "response": "4", "output": "four"},
        ["'input.columns={prompt: prompt, response: response}'", "'input.columns={prompt: prompt, response: output}'"],
    ),
    "a response and a reference answer": (
        {"question": "2+2?", "answer": "4", "response": "It is 5."},
        [
            "'input.columns={prompt: question, response: response}'",
            "'input.columns={prompt: question, response: answer}'",
        ],
    ),
    "messages and other conversations": (
        {"messages": DIALOGUE, "conversations": SHAREGPT[:2]},
        ["'input.columns={messages: messages}'", "'input.columns={messages: conversations}'"],
    ),
    "two lists": (
        {"prompt": "2+2?", "responses": ["4"], "outputs": ["5"]},
        [
            "'input.columns={prompt: prompt, responses: responses}'",
            "'input.columns={prompt: prompt, responses: outputs}'",
        ],
    ),
    "a list and a response that is not in it": (
        {"prompt": "2+2?", "responses": ["4", "5"], "response": "6"},
        [
            "'input.columns={prompt: prompt, responses: responses}'",
            "'input.columns={prompt: prompt, response: response}'",
        ],
    ),
    "conversations and a list of responses": (
        {"messages": [USER, REPLY], "problem": "2+2?", "generations": ["4", "5"]},
        ["'input.columns={messages: messages}'", "'input.columns={prompt: problem, responses: generations}'"],
    ),
    "Alpaca with two outputs": (
        {"instruction": "Add.", "input": "2+2", "output": "4", "response": "four"},
        [
            "'input.columns={prompt: instruction, input: input, response: output}'",
            "'input.columns={prompt: instruction, input: input, response: response}'",
        ],
    ),
    "records with two texts": (
        {"prompt": "2+2?", "outputs": [{"text": "4", "content": "four"}]},
        [
            "'input.columns={prompt: prompt, responses: outputs.text}'",
            "'input.columns={prompt: prompt, responses: outputs.content}'",
        ],
    ),
    "an open conversation and another prompt": (
        {"messages": DIALOGUE[:3], "prompt": "2+2?", "response": "4"},
        [
            "'input.columns={prompt: messages, response: response}'",
            "'input.columns={prompt: prompt, response: response}'",
        ],
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_columns_are_a_question_and_each_answer_decides(tmp_path, name):
    row, ways = AMBIGUOUS[name]
    path = write_jsonl(tmp_path / "a.jsonl", [row, row])
    with pytest.raises(AmbiguousError) as refused:
        detected(path)
    assert [way.setting for way in refused.value.readings] == ways
    assert " or ".join(ways) in refused.value.message
    mappings = [detected(path, **yaml.safe_load(shlex.split(way)[0].split("=", 1)[1])).mapping for way in ways]
    assert len(set(mappings)) == len(ways)
    for mapping in mappings:
        assert parse_row(row, mapping).reasons in ([None], [None, None])


def test_columns_that_say_the_same_are_not_ambiguous_until_one_row_differs(tmp_path):
    row = {"prompt": "2+2?", "instruction": "2+2?", "response": "4"}
    path = write_jsonl(tmp_path / "a.jsonl", [row] * 5)
    assert detected(path).mapping.prompt == "prompt"
    write_jsonl(path, [row, row, {**row, "instruction": "3+3?"}, row])
    with pytest.raises(AmbiguousError, match="prompt: instruction"):
        detected(path)


def test_one_response_that_is_not_in_its_list_is_enough_to_ask(tmp_path):
    row = {"prompt": "2+2?", "responses": ["4", "5"], "response": "5"}
    path = write_jsonl(tmp_path / "a.jsonl", [row] * 3)
    assert detected(path).mapping.responses == "responses"
    write_jsonl(path, [row, {**row, "response": "6"}, row])
    with pytest.raises(AmbiguousError, match="response: response"):
        detected(path)


def test_a_column_of_another_kind_is_no_candidate(tmp_path):
    """MMLU-like choices, an integer answer, a null column, and messages kept as text."""
    rows = [{**PAIR, "answer": 3, "output": None, "choices": ["3", "4"], "messages": "[]", "completions": 2}] * 3
    for kind in ("jsonl", "parquet"):
        found = detected(write(tmp_path, rows, kind))
        assert found.mapping.to_json() == RowMapping("prompt_response", prompt="prompt", response="response").to_json()


def test_columns_that_are_left_out_are_told(tmp_path):
    row = {"question": "2+2?", "answer": "4", "system_prompt": "Be brief.", "context": "of integers", "input": ""}
    found = detected(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert [tuple(left) for left in found.unread] == [
        ("system_prompt", "'input.columns={prompt: question, response: answer, system: system_prompt}'"),
        ("context", "'input.columns={prompt: question, response: answer, input: context}'"),
    ]
    read = detected(tmp_path / "a.jsonl", prompt="question", response="answer", system="system_prompt", input="context")
    assert read.unread == ()
    assert parse_row(row, read.mapping).prompt == (("system", "Be brief."), ("user", "2+2?\n\nof integers"))
    dolly = detected(write_jsonl(tmp_path / "b.jsonl", [FORMATS["Dolly"][0]]))
    assert dolly.notes == [
        "the column context is read as part of the prompt; without it: "
        "'input.columns={prompt: instruction, response: response}'"
    ]
    assert detected(tmp_path / "b.jsonl", prompt="instruction", response="response", input="context").notes == []
    assert detected(tmp_path / "b.jsonl", prompt="instruction", response="response").mapping.input is None
    assert detected(tmp_path / "b.jsonl", source="category").mapping.input == "context"


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


REFUSED = {
    "no text column": ({"a.jsonl": lines('{"x": 1, "y": 2.5}', '{"x": 2, "y": 0}')}, "no column holds text"),
    "prompt without response": (
        {"a.jsonl": lines('{"prompt": "SECRET", "id": 1}')},
        r"prompt holds prompts.*generate them first.*input\.columns=\{prompt: prompt, response: COLUMN\}",
    ),
    "another case": (
        {
            "a.jsonl": lines(
                '{"Prompt": "SECRET", "Model Response": "SECRET"}', '{"Prompt": "SECRET", "Response": "SECRET"}'
            )
        },
        r"did you mean 'input\.columns=\{prompt: Prompt, response: Response\}'\?",
    ),
    "pairs": (
        {"a.jsonl": lines('{"prompt": "SECRET", "chosen": "SECRET a", "rejected": "SECRET b"}')},
        r"\(the format prompt_chosen_rejected\).*bestkept train.*'input\.columns=\{prompt: prompt, response: chosen\}'",
    ),
    "HelpSteer2 preference": (
        {"a.jsonl": json.dumps({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 2})},
        r"preferences \(the format helpsteer2\).*bestkept train",
    ),
    "one text": (
        {"a.jsonl": lines('{"text": "SECRET SECRET"}')},
        r"where its prompt ends is not known.*input\.format=hh",
    ),
    "open conversations": (
        {"a.jsonl": json.dumps({"messages": [USER]})},
        r"messages ends with the user's turn.*input\.columns=\{prompt: messages, response: COLUMN\}",
    ),
    "answers of a batch": (
        {
            "a.jsonl": json.dumps(
                {"id": "b", "custom_id": "1", "response": {"status_code": 200, "body": {}}, "error": None}
            )
        },
        "join the two files by custom_id",
    ),
    "an empty file": ({"a.jsonl": ""}, "names 1 files, and none has a usable row"),
    "an empty Parquet file": ({"a.parquet": ""}, "is empty; expected a Parquet file"),
    "an array named as lines": (
        {"a.jsonl": '[\n {"prompt": "SECRET", "response": "SECRET"}\n]'},
        r"name it \.json, or.*jq -c",
    ),
    "an array on one line": (
        {"a.jsonl": '[{"prompt": "SECRET", "response": "SECRET"}]'},
        r"a JSON array.*jq -c '\.\[\]'",
    ),
    "objects over lines": (
        {"a.json": '{\n "prompt": "SECRET",\n "response": "SECRET"\n}\n'},
        r"several lines.*jq -c \. FILE",
    ),
    "a workbook": ({"a.xlsx": "SECRET"}, r"no known kind.*read_excel\(\.\.\.\)\.to_parquet"),
    "a directory without files": ({"in/_hidden.jsonl": "{}"}, "matches no file"),
    "unknown columns": (
        {"a.jsonl": lines('{"foo": "SECRET", "bar": "SECRET"}')},
        r"name them, for example input\.columns=",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path, name):
    files, pattern = REFUSED[name]
    for place, text in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
    with pytest.raises(InputError, match=pattern) as refused:
        detected(tmp_path)
    assert refused.value.exit_code == 3
    assert "SECRET" not in refused.value.message
    assert not isinstance(refused.value, AmbiguousError)


def test_names_that_need_quotes_are_quoted(tmp_path):
    row = {"Prompt": "p", "Response ": "r"}
    with pytest.raises(InputError, match=r"""\{prompt: Prompt, response: "Response "\}"""):
        detected(write_jsonl(tmp_path / "a.jsonl", [row]))


def test_fields_of_records_are_named_with_a_dot_unless_a_column_is_called_so(tmp_path):
    row = {"prompt": "p", "outputs": [{"text": "a", "content": "b"}], "outputs.text": ["c"]}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    for named, expected in (("outputs.content", "b"), ("outputs.text", "c")):
        mapping = detected(path, prompt="prompt", responses=named).mapping
        assert parse_row(row, mapping).responses == [expected]
        assert mapping.columns() == ["prompt", named if expected == "c" else "outputs"]
    with pytest.raises(InputError, match=r"input\.columns\.responses is 'output\.text'.*no such column"):
        detected(path, prompt="prompt", responses="output.text")


def test_a_field_that_no_record_has_is_refused_before_anything_is_scored(tmp_path):
    records = [{"response": "a", "overall_score": 2}, {"response": "b", "critique": "c"}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "q", "completions": records}])
    with pytest.raises(
        InputError, match=r"'completions\.answer'.*no record in .* has a field 'answer'; name one of resp"
    ):
        detected(path, prompt="instruction", responses="completions.answer")
    assert detected(path, prompt="instruction", responses="completions.critique").mapping.field == "critique"


def test_records_without_their_field_are_rejected_one_by_one():
    mapping = RowMapping("responses_list", prompt="prompt", responses="outputs", field="text")
    sample = parse_row({"prompt": "p", "outputs": [{"text": "a"}, {"other": "b"}, {"text": 3}, None, "e"]}, mapping)
    assert sample.responses == ["a", None, None, None, "e"]
    assert sample.reasons == [None, "null_response", "wrong_type", "null_response", None]
    mapping = RowMapping("responses_list", prompt="prompt", responses="choices", field="message")
    asks = {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}
    sample = parse_row({"prompt": "p", "choices": [{"message": REPLY}, {"message": asks}, {"message": USER}]}, mapping)
    assert (sample.responses[0], sample.responses[2]) == ("4", None)
    assert to_messages((), sample.responses[1]) == [asks]
    assert sample.reasons == [None, None, "last_turn_not_assistant"]


def test_tool_and_function_turns_are_read_or_rejected_with_their_reason(tmp_path):
    rows = [
        {"conversations": [turn("human", "2+2?"), turn("gpt", "4")]},
        {"conversations": [turn("human", "2+2?"), turn("function_call", "{}"), turn("gpt", "4")]},
        {"conversations": [turn("human", "2+2?"), turn("function_call", '{"name": "add"}'), turn("gpt", "4")]},
        {"conversations": [turn("human", "2+2?"), turn("tool", "4"), turn("gpt", "4")]},
    ]
    mapping = replace(detected(write_jsonl(tmp_path / "a.jsonl", rows)).mapping, after_last_user=False)
    samples = [parse_row(row, mapping) for row in rows]
    assert [sample.reasons for sample in samples] == [[None], ["bad_function_call"], [None], [None]]
    call = {"type": "function", "function": {"name": "add"}}
    assert to_messages(samples[2].prompt, "4")[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert to_messages(samples[3].prompt, "4")[1] == {"role": "tool", "content": "4"}


def test_transcripts_by_name(tmp_path):
    row = {"story": "Human: 2+2?\n\nAssistant: 4", "text": "unlike"}
    found = detected(write_jsonl(tmp_path / "a.jsonl", [row]), format="hh", messages="story")
    assert parse_row(row, found.mapping).prompt == ASKED
    assert parse_row({"story": "no marker"}, found.mapping).reasons == ["bad_hh_format"]
    with pytest.raises(InputError, match="cannot tell"):
        detected(tmp_path / "a.jsonl")


def test_a_place_that_a_format_has_not_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": DIALOGUE, "input": "x"}])
    with pytest.raises(InputError, match=r"input\.columns\.input is 'input', and the format messages has no place"):
        detected(path, input="input")


def test_a_run_keeps_the_best_of_records_and_says_what_it_leaves_out(tmp_path, make_config, caplog):
    from support.stubs import StubFactory, stub_reward

    from pipelines.commands.run import run_curation, run_scoring

    rows = [
        {"prompt": f"p{n}", "system": "Be brief.", "outputs": [{"text": f"answer {n} {k}"} for k in range(4)]}
        for n in range(5)
    ]
    config = make_config(write_jsonl(tmp_path / "in" / "a.jsonl", rows))
    run_curation(config, scorer=StubFactory())
    assert "the column system holds text and is not read; to put it into the prompt: 'input.columns=" in caplog.text
    kept = pq.read_table(tmp_path / "out" / "data").to_pylist()
    best = {
        row["prompt"]: max(
            (float(stub_reward((("user", row["prompt"]),), output["text"])), output["text"])
            for output in row["outputs"]
        )
        for row in rows
    }
    assert {row["messages"][0]["content"]: (row["reward"], row["messages"][1]["content"]) for row in kept} == best
    write_jsonl(tmp_path / "in" / "a.jsonl", [{**PAIR, "output": "four"}])
    with pytest.raises(AmbiguousError, match="response: output"):
        run_scoring(make_config(tmp_path / "in", output={"path": str(tmp_path / "other")}), scorer=StubFactory())


def test_only_the_first_rows_are_read(tmp_path, monkeypatch):
    """A file of a million bytes a row group is opened, and a few of its pages decoded."""
    from pipelines.corpus import first_rows

    path = tmp_path / "a.jsonl"
    path.write_text(lines(*[json.dumps(PAIR)] * 100, *["not json"] * 1000, json.dumps({"x": 1})))
    names, rows, _ = first_columns(list_files(InputConfig(path=str(path))), max_row_bytes=LIMIT)
    assert (names, len(rows)) == (["prompt", "response"], 100)
    table = pa.table({"prompt": ["p"] * 100, "image": [b"x" * 70_000] * 100, "vector": [[1.0, 2.0]] * 100})
    pq.write_table(table, tmp_path / "b.parquet", use_dictionary=False)
    names, rows, _ = first_columns(list_files(InputConfig(path=str(tmp_path / "b.parquet"))), max_row_bytes=LIMIT)
    assert names == ["prompt", "image", "vector"]
    assert rows == [{"prompt": "p"}] * first_rows._PARQUET_ROWS


OPEN = {"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2+2?\n\nAssistant:", "response": " 4"}


def test_prompts_that_are_open_transcripts_are_turns(tmp_path):
    found = detected(write_jsonl(tmp_path / "a.jsonl", [OPEN] * 3))
    assert parse_row(OPEN, found.mapping).prompt == LONG
    assert found.mapping == RowMapping("hh", prompt="prompt", response="response")
    plain = "input.format=prompt_response 'input.columns={prompt: prompt, response: response}'"
    assert found.notes == [f"the prompts in prompt are transcripts, read as turns; as plain text: {plain}"]
    system = {**OPEN, "prompt": f"Be brief.{OPEN['prompt']}"}
    assert parse_row(system, found.mapping).prompt == (("system", "Be brief."), *LONG)
    assert parse_row({**OPEN, "prompt": "2+2?"}, found.mapping).prompt == ASKED
    assert parse_row({**OPEN, "prompt": "\n\nHuman: 2+2?\n\nAssistant: 4"}, found.mapping).reasons == [
        "prompt_ends_with_assistant"
    ]
    lists = [{"prompt": OPEN["prompt"], "responses": ["4", "5"]}]
    read = detected(write_jsonl(tmp_path / "b.jsonl", lists))
    assert parse_row(lists[0], read.mapping)[:3] == (LONG, ["4", "5"], [None, None])


def test_prompts_of_ordinary_text_stay_text_and_transcripts_among_them_are_told(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [OPEN, *[{"prompt": f"q{n}", "response": "a"} for n in range(2)]])
    found = detected(path)
    assert found.mapping == RowMapping("prompt_response", prompt="prompt", response="response")
    turns = "input.format=hh 'input.columns={prompt: prompt, response: response}'"
    assert found.notes == [f"1 of the first 3 prompts in prompt are transcripts, and read as text; as turns: {turns}"]
    read = detected(path, format="hh", prompt="prompt", response="response")
    assert parse_row(OPEN, read.mapping).prompt == LONG
    assert read.notes == []
    text = detected(write_jsonl(tmp_path / "b.jsonl", [OPEN]), format="prompt_response")
    assert parse_row(OPEN, text.mapping).prompt == (("user", OPEN["prompt"]),)
    assert len(text.notes) == 1


def test_prompts_that_nearly_all_responses_repeat_are_taken_off(tmp_path):
    asked = [f"Name river number {n}, please." for n in range(10)]
    rows = [{"prompt": text, "generated_text": f"{text} The Rhine."} for text in asked]
    rows[7]["generated_text"], rows[8]["generated_text"] = "The Elbe.", asked[8]
    found = detected(write_jsonl(tmp_path / "a.jsonl", rows))
    assert found.mapping.cut_prompt
    assert found.mapping.to_json()["cut_prompt"] is True
    assert found.notes == [
        "responses begin with the text of their prompts, which is removed; to keep it: input.repeated_prompt=keep"
    ]
    assert [parse_row(row, found.mapping)[1:4] for row in rows[6:9]] == [
        (["The Rhine."], [None], 1),
        (["The Elbe."], [None], 0),
        ([None], ["empty_response"], 0),
    ]
    columns = Columns()
    kept = detect(list(rows[0]), rows=rows, format="auto", columns=columns, where="a", repeated_prompt="keep")
    assert kept.notes == []
    assert "cut_prompt" not in kept.mapping.to_json()
    assert parse_row(rows[0], kept.mapping).responses == [rows[0]["generated_text"]]


def test_prompts_that_few_responses_repeat_are_told_and_taken_off_where_the_user_says_so(tmp_path):
    asked = [f"Name river number {n}, please." for n in range(10)]
    rows = [{"prompt": text, "generated_text": f"{text if n < 2 else ''} The Rhine."} for n, text in enumerate(asked)]
    found = detected(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (
        found.mapping.to_json() == RowMapping("prompt_response", prompt="prompt", response="generated_text").to_json()
    )
    assert found.notes == [
        "2 of the first 10 responses begin with their whole prompt, and are read as they are; to take it off: "
        "input.repeated_prompt=cut"
    ]
    cut = detect(list(rows[0]), rows=rows, format="auto", columns=Columns(), where="a", repeated_prompt="cut")
    assert [parse_row(row, cut.mapping).responses for row in rows] == [["The Rhine."]] * 2 + [[" The Rhine."]] * 8
    short = [{"prompt": "Hi", "response": "Hi there"}, {"prompt": "Count to 1", "response": "Count to 10"}]
    assert detected(write_jsonl(tmp_path / "b.jsonl", short)).notes == []


def test_transcripts_and_lists_that_repeat_their_prompts_lose_them(tmp_path):
    rows = [{"prompt": OPEN["prompt"], "responses": [f"{OPEN['prompt']} {word}" for word in ("yes", "no")]}]
    found = detected(write_jsonl(tmp_path / "a.jsonl", rows))
    assert parse_row(rows[0], found.mapping)[1:4] == (["yes", "no"], [None, None], 2)
    code = "def add(one, two):"
    rows = [{"prompt": f"{code}\n", "responses": [f"{code}\n    return one + two", f"{code}\n\n    pass", None]}]
    found = detected(write_jsonl(tmp_path / "b.jsonl", rows))
    assert parse_row(rows[0], found.mapping).responses == ["    return one + two", "    pass", None]


RATED = {
    "instruction": "2+2?",
    "completions": [
        {"response": "4", "overall_score": 8.5, "annotations": {"honesty": {"Rating": "5"}}},
        {"response": "5", "overall_score": None, "annotations": {"honesty": {"Rating": "1"}}},
    ],
}


def test_rewards_and_any_role_may_be_fields_of_records():
    found = detect(
        list(RATED), rows=[RATED], format="auto", columns=Columns(), where="a", reward="completions.overall_score"
    )
    assert found.mapping.columns() == ["instruction", "completions"]
    assert parse_row(RATED, found.mapping).responses == ["4", "5"]
    assert rewards_of(RATED, found.mapping, 2) == [8.5, None]
    assert RowMapping.from_json(json.loads(json.dumps(found.mapping.to_json()))) == found.mapping
    broken = [{"completions": []}, {"completions": None}, {"completions": [3, {"overall_score": "7"}]}]
    assert [rewards_of(row, found.mapping, 2) for row in broken] == [[None, None]] * 3
    row = {"request": {"prompt": "2+2?", "meta": {"id": 7}}, "reply": {"text": "4"}, "request.x": "whole name"}
    columns = Columns(prompt="request.prompt", response="reply.text", source="request.x")
    read = detect(list(row), rows=[row], format="auto", columns=columns, where="a", carry=["request.meta.id"])
    assert read.mapping.paths == ("request.prompt", "request.meta.id")
    assert read.mapping.columns() == ["request", "reply", "request.x"]
    assert parse_row(row, read.mapping)[:2] == (ASKED, ["4"])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            "completions.score",
            "scores.column is 'completions.score', and no record in the column 'completions' of a has",
        ),
        (
            "completion.overall_score",
            "scores.column is 'completion.overall_score', and a has no such column; name one of ",
        ),
        ("completions.annotations.honesty.Rating", "holds texts, and the reward is numbers"),
        ("completions", "holds records, and the reward is numbers"),
        ("instruction", "holds text, and the reward is numbers"),
    ],
)
def test_a_path_to_no_rewards_is_an_error_that_names_what_there_is(reward, message):
    with pytest.raises(InputError, match=message):
        detect(list(RATED), rows=[RATED], format="auto", columns=Columns(), where="a", reward=reward)


def test_a_column_of_functions_is_told_with_the_setting_that_reads_it(tmp_path):
    rows = [{"prompt": "2+2?", "response": "4", "functions": [{"name": "add", "parameters": {}}]}]
    (note,) = detected(write_jsonl(tmp_path / "a.jsonl", rows)).notes
    assert note == (
        "the column functions holds text and is not read; to put it into the prompt: "
        "'input.columns={prompt: prompt, response: response, tools: functions}'"
    )
    read = detected(tmp_path / "a.jsonl", tools="functions")
    assert (read.notes, parse_row(rows[0], read.mapping).prompt[1:]) == ([], ASKED)


def test_earlier_turns_in_a_column_of_lists_are_told_where_they_are_not_read(tmp_path):
    rows = [{"prompt": "2+2?", "response": "4", "history": [["hi", "hello"]]}]
    assert detected(write_jsonl(tmp_path / "a.jsonl", rows)).notes == ["the column history holds text and is not read"]
