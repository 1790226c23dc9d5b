"""Every kind of bad row through the whole graph: it is rejected with its reason and its place, never with its text, and nothing
else changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory, loads, scored_rows, stub_reward

from pipelines.commands.run import default_scorer, run_curation
from pipelines.config import RunConfig
from pipelines.errors import Exit, RejectedError
from rm.conversations import Conversation, from_prompt, prompt_key, response_hash
from rm.scorer import Scorer

SECRET = "xyzzy-secret"
AT = 7  # rows before the bad one
GOOD = corpus_rows(4)


def bad_line(**changes: Any) -> bytes:
    return json.dumps({"prompt": f"p {SECRET}", "response": f"r {SECRET}", **changes}).encode()


def with_text(text: str) -> bytes:
    """A row with this JSON as a further value."""
    return bad_line(extra="HERE").replace(b'"HERE"', text.encode())


BAD_LINES = {
    "null prompt": (bad_line(prompt=None), "null_prompt"),
    "null response": (bad_line(response=None), "null_response"),
    "no response": (json.dumps({"prompt": SECRET}).encode(), "null_response"),
    "empty prompt": (bad_line(prompt=""), "empty_prompt"),
    "blank prompt": (bad_line(prompt=" \n\t"), "empty_prompt"),
    "empty response": (bad_line(response=""), "empty_response"),
    "blank response": (bad_line(response="\u3000 "), "empty_response"),
    "a number for a response": (bad_line(response=7), "wrong_type"),
    "an object for a prompt": (bad_line(prompt={"text": SECRET}), "wrong_type"),
    "true for a prompt": (bad_line(prompt=True), "wrong_type"),
    "not UTF-8": (bad_line().replace(b"r xyzzy", b"r \xff\xfe xyzzy"), "bad_utf8"),
    "UTF-8 of a surrogate": (bad_line().replace(b"r xyzzy", b"r \xed\xa0\x80 xyzzy"), "bad_utf8"),
    "lone surrogate": (bad_line(response=f"{SECRET} \ud800"), "lone_surrogate"),
    "lone surrogate in a prompt": (bad_line(prompt=f"{SECRET} \udfff"), "lone_surrogate"),
    "lone surrogate in a name": (bad_line(**{"\ud800": 1}), "lone_surrogate"),
    "cut line": (bad_line()[:-9], "bad_json"),
    "no JSON": (f"{{prompt: {SECRET}".encode(), "bad_json"),
    "two values": (bad_line() + b" 1", "bad_json"),
    "a control character": (bad_line().replace(b"r xyzzy", b"r \x01 xyzzy"), "bad_json"),
    "a list": (f'["{SECRET}"]'.encode(), "not_an_object"),
    "a text": (f'"{SECRET}"'.encode(), "not_an_object"),
    "a key twice": (b'{"response": "a", ' + bad_line()[1:], "duplicate_key"),
    "a key twice deeper down": (with_text('{"a": [{"b": 1, "b": 1}]}'), "duplicate_key"),
    "NaN": (with_text("NaN"), "nan_literal"),
    "Infinity": (with_text("[1, Infinity]"), "nan_literal"),
    "-Infinity": (with_text("-Infinity"), "nan_literal"),
    "1e999": (with_text("1e999"), "huge_number"),
    "-1e999": (with_text("[-1e999]"), "huge_number"),
    "thousands of digits": (with_text("9" * 5000), "huge_number"),
    "33 levels": (with_text("[" * 32 + "]" * 32), "deep_nesting"),
    "5,000 levels": (b'{"a": ' + b"[" * 5000, "deep_nesting"),
    "100,000 levels": (b'{"a": ' + b"[" * 100_000, "row_too_large"),
    "too large": (bad_line(response=SECRET + "r" * 300_000), "row_too_large"),
}

FINE_LINES = {
    "32 levels": with_text("[" * 31 + "]" * 31),
    "32 levels, more brackets": with_text("[" * 31 + "]" * 30 + ", {}, []]"),
    "a large number": with_text("1.7e308"),
    "hundreds of digits": with_text("9" * 400),
    "many brackets in a text": with_text(json.dumps("[{" * 500)),
    "a key twice in two objects": with_text('[{"a": 1}, {"a": 1}]'),
    "a byte order mark": b"\xef\xbb\xbf" + bad_line(),
    "spaces around": b" \t" + bad_line() + b" \r",
}


def jsonl(path: Path, line: bytes) -> Path:
    lines = [json.dumps(row).encode() for row in GOOD]
    path.write_bytes(b"\n".join([*lines[:AT], line, *lines[AT:]]) + b"\n")
    return path


def mixed(good: Sequence[Any], bad: Mapping[str, Any]) -> tuple[list[Any], dict[str, int]]:
    """Good rows with the bad ones in between, and where each of these is, counted from 1."""
    rows, places, waiting = [], {}, list(good)
    for number, (name, row) in enumerate(bad.items()):
        rows += waiting[:1] if number % 2 else []
        waiting = waiting[1:] if number % 2 else waiting
        rows.append(row)
        places[name] = len(rows)
    return rows + waiting, places


def rewards(out: Path) -> dict[tuple[bytes, int], float]:
    """The rewards in all score files by prompt and response."""
    tables = [pq.read_table(path) for path in (out / "scores").rglob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist() if row["reward"] is not None]
    return {(row["prompt_key"], row["response_hash"]): row["reward"] for row in rows}


def key_of(row: dict[str, str]) -> tuple[bytes, int]:
    prompt: Conversation = from_prompt(row["prompt"])
    return prompt_key(prompt), response_hash(row["response"])


EXPECTED = {key_of(row): float(stub_reward(from_prompt(row["prompt"]), row["response"])) for row in GOOD}


def best() -> set[str]:
    by_prompt: dict[str, list[tuple[float, str]]] = {}
    for row in GOOD:
        by_prompt.setdefault(row["prompt"], []).append((EXPECTED[key_of(row)], row["response"]))
    return {max(candidates)[1] for candidates in by_prompt.values()}


def kept(out: Path) -> set[str]:
    return {messages[-1]["content"] for messages in pq.read_table(out / "data")["messages"].to_pylist()}


def assert_no_secret(out: Path) -> None:
    """The text of a bad row is nowhere, and so its hash is not, either."""
    for path in out.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
            if path.suffix == ".parquet":
                assert SECRET not in str(pq.read_table(path).to_pylist()), path


@dataclass
class Rejection:
    """A corpus with bad rows, run twice: with the usual limit, and with a higher one."""

    out: Path
    expected: dict[str, tuple[str, str]]  # of each bad row: place and reason

    def run(self, path: Path, stub_model: Path, **changes: Any) -> Rejection:
        limits = {"max_rejected_fraction": 0.001, **changes.pop("limits", {})}
        values = {"input": {"path": str(path), **changes}, "model": {"path": str(stub_model)}}
        values |= {"output": {"path": str(self.out)}, "limits": limits}
        log = self.out.parent / "log"
        with pytest.raises(RejectedError) as caught:
            run_curation(RunConfig.model_validate(values), scorer=StubFactory(log=str(log)))
        self.error = caught.value
        assert not (self.out / "data").exists()
        assert not (self.out / "manifest.json").exists()
        listed = self.error.message.split("; the rejected rows are listed in ")[1]
        assert listed.startswith(str(self.out / "scores" / "rejected"))
        self.listed = [json.loads(line) for line in Path(listed).read_text().splitlines()]
        raised = RunConfig.model_validate({**values, "limits": {**limits, "max_rejected_fraction": 0.9}})
        self.manifest = run_curation(raised, scorer=StubFactory(log=str(log))).manifest
        self.work = loads(log), scored_rows(log)
        self.rejected = pq.read_table(self.out / "rejected").to_pylist()
        return self

    def check(self, file: str) -> None:
        """Exit code and message of the first run, all that the second left, and that it scored nothing."""
        reasons = Counter(reason for _, reason in self.expected.values())
        bad, read = len(self.expected), len(self.expected) + len(GOOD)
        message = self.error.message
        assert message.startswith(f"{bad} of {read} responses were rejected ({bad / read:.4%}: ")
        listed = message.split("%: ")[1].split("; first: ")[0]
        assert {name: int(count) for name, count in map(str.split, listed.split(", "))} == reasons
        first = ", ".join(f"{file} {place} {reason}" for place, reason in list(self.expected.values())[:3])
        assert f"; first: {first}), more than limits.max_rejected_fraction=0.001; fix the input, or raise" in message
        assert self.error.exit_code == Exit.REJECTED == 4
        assert self.work == (1, len(GOOD)), "one load, nothing scored again, and no bad row at all"
        counts = self.manifest["counts"]
        assert (counts["read"], counts["scored"], counts["rejected_total"]) == (read, len(GOOD), bad)
        assert self.manifest["rejected"] == reasons
        assert rewards(self.out) == EXPECTED
        assert kept(self.out) == best()
        assert [(row["file"], row["place"], row["reason"]) for row in self.rejected] == [
            (file, *entry) for entry in self.expected.values()
        ]
        assert self.listed == self.rejected, "what the first run said is on disk is what the second has published"
        assert all(row.keys() == {"file", "place", "response_index", "reason"} for row in self.rejected)
        assert SECRET not in message
        assert_no_secret(self.out)

    def reason(self, name: str) -> str | None:
        place, _ = self.expected[name]
        return next((row["reason"] for row in self.rejected if row["place"] == place), None)


def rejection(
    root: Path, stub_model: Path, path: Path, bad: Mapping[str, str], places: Mapping[str, int], **changes: Any
) -> Rejection:
    word = "row" if path.suffix == ".parquet" else "line"
    expected = {name: (f"{word} {places[name]}", reason) for name, reason in bad.items()}
    return Rejection(root / "out", expected).run(path, stub_model, **changes)


@pytest.fixture(scope="module")
def lines(tmp_path_factory, stub_model) -> Rejection:
    root = tmp_path_factory.mktemp("lines")
    texts, places = mixed(
        [json.dumps(row).encode() for row in GOOD], {name: line for name, (line, _) in BAD_LINES.items()}
    )
    (root / "a.jsonl").write_bytes(b"\n".join(texts))
    reasons = {name: reason for name, (_, reason) in BAD_LINES.items()}
    limits = {"max_row_bytes": 200_000}
    return rejection(root, stub_model, root / "a.jsonl", reasons, places, limits=limits, rows_per_fragment=10)


def test_bad_lines_all_together(lines):
    lines.check("a.jsonl")


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line(lines, name):
    assert lines.reason(name) == BAD_LINES[name][1]


def test_lines_that_are_odd_but_fine(tmp_path, make_config):
    """The other side of each boundary."""
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(FINE_LINES.values()))
    done = run_curation(
        make_config(tmp_path / "a.jsonl", output={"shape": "original"}, select=[]), scorer=StubFactory()
    )
    assert done.manifest["rejected"] == {}
    exported = pq.read_table(tmp_path / "out" / "data")["extra"].to_pylist()
    values = [json.loads(line.removeprefix(b"\xef\xbb\xbf")).get("extra") for line in FINE_LINES.values()]
    assert [None if value is None else json.loads(value) for value in exported] == values


MESSAGES = {
    "role nobody has": ([{"role": "judge", "content": "x"}], "bad_role"),
    "role of another type": ([{"role": ["user"], "content": "x"}], "bad_role"),
    "no role": ([{"content": "x"}], "bad_role"),
    "system in the middle": ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "bad_role"),
    "user at the end": ([{"role": "user", "content": "x"}], "last_turn_not_assistant"),
    "assistant alone": ([{"role": "assistant", "content": "x"}], "empty_prompt"),
    "a text for a message": (["x"], "wrong_type"),
    "no messages": ([], "last_turn_not_assistant"),
    "null": (None, "null_prompt"),
    "null content": ([{"role": "user", "content": None}, {"role": "assistant", "content": "y"}], "null_prompt"),
    "empty answer": ([{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}], "empty_response"),
    "an image": (
        [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "y"}],
        "content_parts",
    ),
    "a call by the user": (
        [{"role": "user", "content": "x", "tool_calls": [{"id": 1}]}, {"role": "assistant", "content": "y"}],
        "tool_calls",
    ),
    "a call that is none": (
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": ["x"]}],
        "bad_tool_calls",
    ),
    "reasoning that is no text": (
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning_content": 3}],
        "bad_reasoning_content",
    ),
    "a noncharacter in front": (
        [{"role": "user", "content": "\ufdd0x"}, {"role": "assistant", "content": "y"}],
        "noncharacter",
    ),
}


@pytest.fixture(scope="module")
def conversations(tmp_path_factory, stub_model) -> Rejection:
    root = tmp_path_factory.mktemp("conversations")
    secret = {
        name: json.loads(json.dumps(messages).replace('"x"', f'"x {SECRET}"').replace('"y"', f'"y {SECRET}"'))
        for name, (messages, _) in MESSAGES.items()
    }
    good = [[{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}] for r in GOOD]
    rows, places = mixed(good, secret)
    path = write_jsonl(root / "a.jsonl", [{"messages": messages} for messages in rows])
    return rejection(root, stub_model, path, {name: reason for name, (_, reason) in MESSAGES.items()}, places)


def test_bad_conversations_all_together(conversations):
    conversations.check("a.jsonl")


@pytest.mark.parametrize("name", MESSAGES)
def test_a_bad_conversation(conversations, name):
    assert conversations.reason(name) == MESSAGES[name][1]


def test_a_bad_response_in_a_list_is_named_by_its_index(tmp_path, stub_model):
    rows = [{"prompt": row["prompt"], "responses": [row["response"]]} for row in GOOD]
    rows[AT]["responses"] = [None, *rows[AT]["responses"]]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = rejection(tmp_path, stub_model, path, {"null": "null_response"}, {"null": AT + 1})
    found.check("a.jsonl")
    assert [row["response_index"] for row in found.rejected] == [0]


@pytest.mark.parametrize("column", ["system", "input"])
def test_a_column_beside_the_prompt_of_another_type_is_not_left_out_silently(tmp_path, stub_model, column):
    rows: list[Any] = [{**row, "more": None} for row in GOOD]
    rows.insert(AT, {"prompt": SECRET, "response": SECRET, "more": ["be", "brief"]})
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    format, columns = (
        "alpaca" if column == "input" else "auto",
        {"prompt": "prompt", "response": "response", column: "more"},
    )
    changes = {"format": format, "columns": columns}
    rejection(tmp_path, stub_model, path, {"list": "wrong_type"}, {"list": AT + 1}, **changes).check("a.jsonl")


def text_column(values: list[bytes | None]) -> pa.Array:
    """A string column of these very bytes, valid or not."""
    return pa.array(values, pa.binary()).view(pa.string())


FAR = 10**18  # microseconds: the year 33658
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "null prompt": ({"prompt": None}, "null_prompt"),
    "empty response": ({"response": b"  "}, "empty_response"),
    "not UTF-8": ({"response": SECRET.encode() + b"\xff\xfe"}, "bad_utf8"),
    "prompt not UTF-8": ({"prompt": SECRET.encode() + b"\x80"}, "bad_utf8"),
    "UTF-8 of a surrogate": ({"response": SECRET.encode() + b"\xed\xa0\x80"}, "bad_utf8"),
    "too large": ({"response": SECRET.encode() * 1000}, "row_too_large"),
    "the year 33658": ({"response": SECRET.encode(), "when": FAR}, "bad_value"),
}


@pytest.fixture(scope="module")
def values(tmp_path_factory, stub_model) -> Rejection:
    root = tmp_path_factory.mktemp("values")
    good = [{name: row[name].encode() for name in ("prompt", "response")} for row in GOOD]
    bad = {name: {"prompt": b"p", "response": b"r", **changes} for name, (changes, _) in BAD_VALUES.items()}
    rows, places = mixed(good, bad)
    table = pa.table({name: text_column([row[name] for row in rows]) for name in ("prompt", "response")})
    when = pa.array([row.get("when", 0) for row in rows], pa.timestamp("us"))
    pq.write_table(table.append_column("when", when), root / "a.parquet", row_group_size=5)
    changes = {"limits": {"max_row_bytes": 2000}, "carry": ["when"]}
    reasons = {name: reason for name, (_, reason) in BAD_VALUES.items()}
    return rejection(root, stub_model, root / "a.parquet", reasons, places, **changes)


def test_bad_parquet_values_all_together(values):
    values.check("a.parquet")


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_parquet_value(values, name):
    assert values.reason(name) == BAD_VALUES[name][1]


def test_values_that_scoring_does_not_read_are_exported_as_far_as_they_can_be(tmp_path, make_config):
    broken = text_column([b"fine", b"\xff"] * 8)
    nested = pa.ListArray.from_arrays(pa.array(range(17), pa.int32()), broken)
    structs = pa.StructArray.from_arrays([broken], ["inner"])
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 8, pa.int32()), text_column([b"a", b"\xff"]))
    when = pa.array([0] * AT + [FAR] * (16 - AT), pa.timestamp("us"))
    path = tmp_path / "a.parquet"
    more = {"nested": nested, "structs": structs, "dictionary": dictionary, "when": when}
    pq.write_table(pa.table({name: [row[name] for row in GOOD] for name in ("prompt", "response")} | more), path)
    done = run_curation(make_config(path, select=[], output={"shape": "original"}), scorer=StubFactory())
    assert done.manifest["rejected"] == {}
    table = pq.read_table(tmp_path / "out" / "data")
    assert table["nested"].to_pylist() == [["fine"], ["\ufffd"]] * 8
    assert table["structs"].to_pylist() == [{"inner": "fine"}, {"inner": "\ufffd"}] * 8
    assert table["dictionary"].to_pylist() == ["a", "\ufffd"] * 8
    assert table["when"].cast(pa.int64()).to_pylist() == when.cast(pa.int64()).to_pylist()


class Breaking(Scorer):
    """A real scorer that a row with the word `bad` breaks, in the way that `how` says."""

    how = ""

    def _forward(self, rows, batch):
        marked = [self._bad in rows[row].ids for run in batch for row in run]
        if any(marked) and self.how != "nan_reward":
            raise torch.OutOfMemoryError("no memory") if self.how == "out_of_memory" else RuntimeError("device error")
        launched = super()._forward(rows, batch)

        def read():
            rewards = launched.read()
            rewards[marked] = float("nan")
            return rewards

        return launched._replace(read=read)

    @property
    def _bad(self) -> int:
        return self.template.tokenizer.convert_tokens_to_ids("bad")


@pytest.mark.parametrize("reason", ["nan_reward", "model_error", "out_of_memory", "too_long"])
def test_a_row_that_the_model_fails_on(tmp_path, make_config, encoder, monkeypatch, reason):
    """With a real model, one batch or many: the others have the rewards that they have without that row."""
    monkeypatch.setattr("rm.scorer.Scorer", Breaking)
    monkeypatch.setattr(Breaking, "how", reason)
    response = "hot " * 80 if reason == "too_long" else f"bad {SECRET}"
    model = {"path": str(encoder), "too_long": "reject"}
    alone = make_config(
        write_jsonl(tmp_path / "alone.jsonl", GOOD), model=model, output={"path": str(tmp_path / "alone")}
    )
    run_curation(alone, scorer=default_scorer(alone))
    path = jsonl(tmp_path / "a.jsonl", bad_line(response=response, prompt="the word"))
    config = make_config(path, model=model, limits={"max_rejected_fraction": 0.05})
    with pytest.raises(RejectedError, match=rf"1 of 17 .*: {reason} 1; first: a\.jsonl line 8 {reason}\)") as caught:
        run_curation(config, scorer=default_scorer(config))
    assert SECRET not in caught.value.message
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: pytest.fail("nothing is scored again"))
    raised = config.model_copy(update={"limits": config.limits.model_copy(update={"max_rejected_fraction": 0.1})})
    done = run_curation(raised, scorer=default_scorer(raised))
    assert done.manifest["rejected"] == {reason: 1}
    assert rewards(tmp_path / "out") == pytest.approx(rewards(tmp_path / "alone"), abs=1e-5)
    assert kept(tmp_path / "out") == kept(tmp_path / "alone")
    [row] = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert (row["file"], row["place"], row["reason"]) == ("a.jsonl", "line 8", reason)
    assert_no_secret(tmp_path / "out")


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_key_twice_in_every_row_is_named_as_such(tmp_path, bestkept, encoder, command):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "prompt": "b", "response": "c", "chosen": "c", "rejected": "d", "grade": 1}\n' * 3)
    (tmp_path / "c.yaml").write_text(
        f"input: {{path: {path}}}\nscores: {{column: grade}}\noutput: {{path: {tmp_path}/out}}\n"
    )
    words = [tmp_path / "c.yaml"] if command == "run" else [encoder, path, f"output.path={tmp_path}/out"]
    code, _, err = bestkept(command, *words)
    last = err.strip().splitlines()[-1]
    assert (code, "key twice" in last, "write each key once" in last) == (3, True, True), last
