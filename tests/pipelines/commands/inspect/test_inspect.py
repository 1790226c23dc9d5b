"""`bestkept inspect`: its numbers against brute force, what is shown, and that a bounded part is read."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import SHARED, corpus_rows, write_jsonl
from transformers import AutoTokenizer

from pipelines.commands.inspect import sample
from pipelines.commands.inspect.sample import all_units, count_rows, sample_rows, spread
from pipelines.commands.inspect.statistics import PromptResponses, distribution, response_statistics
from pipelines.commands.inspect.tables import format_size, shortened, visible
from pipelines.config import InputConfig
from pipelines.corpus import InputFile, Unit
from pipelines.corpus.listing import list_files

LIMIT = 2**24


@pytest.fixture
def bestkept(bestkept, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return bestkept


@pytest.fixture
def inspected(bestkept):
    def run(*words: object):
        code, out, err = bestkept("inspect", *words, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


def rank(values: list[int], share: float) -> int:
    """The nearest rank: the least value that this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def by_hand(values: list[int]) -> dict[str, int]:
    return {"median": rank(values, 0.5), "p95": rank(values, 0.95), "max": max(values)}


MIXED = [
    {"prompt": "how are you", "response": "good", "source": "a"},
    {"prompt": "how are you", "response": "good", "source": "a"},
    {"prompt": [{"role": "user", "content": "how are you"}], "response": "bad bad", "source": "b"},
    {"prompt": "what is it", "response": "  ", "source": "b"},
    {"prompt": None, "response": "good", "source": None},
    {"prompt": "", "response": "good"},
    {
        "prompt": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}],
        "response": "it is long",
    },
    {"prompt": "hi", "response": 3},
    {
        "prompt": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "cc"))],
        "response": "x",
    },
]


def test_the_numbers_of_a_small_corpus(tmp_path, inspected):
    path = write_jsonl(tmp_path / "a.jsonl", MIXED)
    with path.open("a") as file:
        file.write("\nnot json\n[1]\nnot json\n")
    found = inspected(path, "--rows", 2)
    assert found["path"] == str(path)
    assert found["rows"] == {"count": 12, "exact": True}
    assert found["looked_at"] == {"rows": 12, "all": True, "places": 0, "described": "all rows"}
    assert found["files"]["kinds"] == {"jsonl": 1}
    assert found["files"]["bytes"] == path.stat().st_size
    assert found["columns"] == [
        {"name": "prompt", "kind": "text", "role": "prompt", "null": 1, "blank": 1},
        {"name": "response", "kind": "text", "role": "response", "null": 0, "blank": 1},
        {"name": "source", "kind": "text", "role": "source", "null": 5, "blank": 0},
    ]
    corpus = found["corpus"]
    assert corpus["mapping"] == {
        "format": "prompt_response",
        "prompt": "prompt",
        "response": "response",
        "source": "source",
    }
    assert corpus["responses_read"] == 12
    assert corpus["rejected"] == {
        "bad_json": {"responses": 2, "first": "a.jsonl, line 10"},
        "empty_prompt": {"responses": 1, "first": "a.jsonl, line 6"},
        "empty_response": {"responses": 1, "first": "a.jsonl, line 4"},
        "not_an_object": {"responses": 1, "first": "a.jsonl, line 11"},
        "null_prompt": {"responses": 1, "first": "a.jsonl, line 5"},
        "wrong_type": {"responses": 1, "first": "a.jsonl, line 8"},
    }
    assert corpus["rejected_fraction"] == 7 / 12
    assert corpus["figures"] == {
        "prompts": 3,
        "responses": 5,
        "prompts_with_system": 1,
        "prompts_of_several_turns": 1,
        "prompt_characters": {"median": 10, "p95": 11, "max": 11},
        "response_characters": {"median": 4, "p95": 10, "max": 10},
        "responses_per_prompt": {"median": 1, "p95": 3, "max": 3},
        "repeated_prompts": 2,
        "repeated_responses": 1,
    }
    assert [example["place"] for example in corpus["first"]] == ["a.jsonl, line 1", "a.jsonl, line 2"]
    assert corpus["first"][0]["prompt"] == [{"role": "user", "content": "how are you"}]
    assert corpus["first"][0]["responses"] == ["good"]
    assert (corpus["tokens"], found["model"]) == (None, None)
    assert found["preferences"]["detected"] is False


def test_figures_against_brute_force():
    rows = [
        PromptResponses((("user", "q" * (7 * n % 11 + 1)),), [f"{'r' * (n * k % 13)}." for k in range(n % 4 + 1)])
        for n in range(200)
    ]
    found = response_statistics(rows)
    prompts = {prompt for prompt, _ in rows}
    pairs = [(prompt, response) for prompt, responses in rows for response in responses]
    assert found["prompts"] == len(prompts) == 11
    assert found["responses"] == len(pairs)
    assert found["repeated_prompts"] == 200 - 11
    assert found["repeated_responses"] == len(pairs) - len(set(pairs))
    assert found["prompt_characters"] == by_hand([len(prompt[0][1]) for prompt in prompts])
    assert found["response_characters"] == by_hand([len(response) for _, response in pairs])
    assert found["responses_per_prompt"] == by_hand(list(Counter(prompt for prompt, _ in pairs).values()))
    assert distribution([]) is None
    assert distribution(range(1, 101)) == {"median": 50, "p95": 95, "max": 100}


def test_tokens_against_transformers(tmp_path, inspected, chat):
    """Every length as `apply_chat_template` gives it; over the limit are those that are longer, not as long."""
    rows = [{"prompt": "how many " * (n % 9 + 1), "response": "good day " * (n % 17 + 1)} for n in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(chat)

    def tokens(row) -> int:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))

    lengths = [tokens(row) for row in rows]
    limit = rank(lengths, 0.5)
    found = inspected(path, f"model.path={chat}", f"model.max_length={limit}")
    measured = found["corpus"]["tokens"]
    assert measured["together"] == by_hand(lengths)
    assert measured["response"] == by_hand([len(tokenizer(row["response"].strip())["input_ids"]) for row in rows])
    assert measured["over_max_length"] == sum(length > limit for length in lengths)
    assert 0 < measured["over_max_length"] < 40
    assert measured["over_max_length_fraction"] == measured["over_max_length"] / 40
    assert (measured["max_length"], measured["rejected"]) == (limit, {})
    assert found["model"]["template"] == "chat"
    lengths_of_prompts = [
        n - len(tokenizer(row["response"].strip())["input_ids"]) for n, row in zip(lengths, rows, strict=True)
    ]
    assert measured["prompt"] == by_hand(lengths_of_prompts)


def test_special_tokens_are_marked_where_the_template_writes_them_and_nowhere_else(tmp_path, inspected, bestkept, chat):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "how <|assistant|> are", "response": "good </s> day"}])
    read = inspected(path, f"model.path={chat}")["corpus"]["first"][0]["as_read"]
    marked = [piece["text"] for piece in read["pieces"] if piece["special"]]
    assert marked == ["<s>", "<|user|>", "</s>", "<|assistant|>", "</s>"]
    assert [piece["special"] for piece in read["pieces"]] == [True, True, False, True, True, False, True]
    plain = ["".join(piece["text"].split()) for piece in read["pieces"] if not piece["special"]]
    assert plain == ["how<|assistant|>are", "good</s>day"]
    assert read["truncated"] is False
    code, out, err = bestkept("inspect", path, f"model.path={chat}")
    assert code == 0, err
    assert out.count("⟦") == len(marked)
    assert "⟦<s>⟧⟦<|user|>⟧" in out
    assert out.count("⟦<|assistant|>⟧") == 1
    assert "\x1b" not in out


def test_words_that_the_tokenizer_does_not_know_are_no_special_tokens(tmp_path, inspected, chat):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "how zebra", "response": "good"}])
    pieces = inspected(path, f"model.path={chat}")["corpus"]["first"][0]["as_read"]["pieces"]
    assert [piece["text"] for piece in pieces if "UNK" in piece["text"]] == ["how [UNK]"]
    assert not any(piece["special"] for piece in pieces if "UNK" in piece["text"])


def test_an_encoder_reads_a_pair_and_a_causal_model_plain_text(tmp_path, inspected, encoder, causal):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "how are you", "response": "good day"}])
    for model, kind, marked in (
        (encoder, "pair", ["[CLS]", "[SEP]", "[SEP]"]),
        (causal, "plain", ["</s>"]),
    ):
        found = inspected(path, f"model.path={model}")
        pieces = found["corpus"]["first"][0]["as_read"]["pieces"]
        assert found["model"]["template"] == kind
        assert [piece["text"] for piece in pieces if piece["special"]] == marked
        assert found["corpus"]["first"][0]["as_read"]["tokens"] == found["corpus"]["tokens"]["together"]["max"]


def test_what_is_too_long_is_shown_as_it_is_cut(tmp_path, inspected, bestkept, chat):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "how " * 50, "response": "good"}])
    found = inspected(path, f"model.path={chat}", "model.max_length=20")
    read = found["corpus"]["first"][0]["as_read"]
    assert (read["tokens"], read["truncated"]) == (20, True)
    assert sum(piece["text"].count("how") for piece in read["pieces"]) == 14
    assert found["corpus"]["tokens"]["together"]["max"] == 56
    assert "20 tokens, cut to 20: " in bestkept("inspect", path, f"model.path={chat}", "model.max_length=20")[1]


def test_no_weights_are_needed_and_a_model_that_is_none_is_named(tmp_path, inspected, bestkept, chat):
    import shutil

    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows(2, 2))
    bare = tmp_path / "bare"
    shutil.copytree(chat, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert inspected(path, f"model.path={bare}")["corpus"]["tokens"]["over_max_length"] == 0
    code, out, err = bestkept("inspect", path, f"model.path={tmp_path / 'none'}")
    assert (code, out) == (7, "")
    assert "is not a directory" in err


def test_files_that_can_be_both_are_shown_as_both(tmp_path, inspected, bestkept):
    rows = [{"prompt": f"p{n // 2}", "response": f"answer {n}", "score": n % 2, "source": "s"} for n in range(6)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = inspected(path, "--rows=1")
    assert found["corpus"]["format"] == "prompt_response"
    view = found["preferences"]
    assert view["format"] == "scores"
    assert view["judgements"] == {"groups": 3, "comparisons": 3, "ties": 0, "labels": 0}
    assert view["rows_used"] == 6
    [example] = view["first"]
    assert example["responses"] == ["answer 0", "answer 1"]
    assert example["comparisons"] == [{"preferred": 1, "other": 0, "probability": 1.0}]
    code, out, _ = bestkept("inspect", path, "--rows=1")
    assert code == 0
    assert "can be read in both ways" in out
    assert "judged: 2 beats 1" in out
    assert out.index("for bestkept run") < out.index("for bestkept train")


def test_preferences_and_what_a_corpus_would_need_to_be_some(tmp_path, inspected, bestkept):
    pairs = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}" if n else "good 0"} for n in range(4)]
    view = inspected(write_jsonl(tmp_path / "pairs.jsonl", pairs))["preferences"]
    assert (view["format"], view["rows_used"], view["rejected"]) == ("prompt_chosen_rejected", 3, {"equal_sides": 1})
    assert view["others"] == [
        {"why": "the rows also fit chosen_rejected_text", "setting": "data.format=chosen_rejected_text"}
    ]
    assert view["figures"]["response_characters"] == by_hand(
        [len(f"{w} {n}") for n in (1, 2, 3) for w in ("good", "bad")]
    )
    rows = [{"prompt": "p", "response": f"a{n}", "is_correct": n > 1, "win_rate": n / 4, "id": n} for n in range(4)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = inspected(path)["preferences"]
    ways = ["'data.columns={label: is_correct}'", "'data.columns={score: win_rate}'"]
    assert (found["detected"], found["ambiguous"], found["settings"]) == (False, True, ways)
    named = inspected(path, "data.columns={label: is_correct}")["preferences"]
    assert (named["format"], named["judgements"]["labels"]) == ("labels", 4)
    assert "accepted or not" in bestkept("inspect", path, "data.columns={label: is_correct}")[1]


QUESTIONS = {
    "two responses": (
        [{"prompt": "SECRET", "response": "a", "output": "b"}],
        "'input.columns={prompt: prompt, response: response}' or 'input.columns={prompt: prompt, response: output}'",
    ),
    "two prompts of pairs": (
        [{"prompt": "SECRET", "question": "b", "chosen": "c", "rejected": "d"}],
        "'data.columns={prompt: prompt}' or 'data.columns={prompt: question}'",
    ),
    "capitals": (
        [{"Prompt": "SECRET", "Chosen": "c", "Rejected": "d"}],
        "did you mean 'data.columns={prompt: Prompt, chosen: Chosen, rejected: Rejected}'?",
    ),
    "neither": (
        [{"title": "SECRET", "n": 3}],
        "name them, for example input.columns={prompt: COLUMN, response: COLUMN}",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_cannot_be_told_ends_with_a_question(tmp_path, bestkept, name):
    rows, asked = QUESTIONS[name]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    code, out, err = bestkept("inspect", path)
    assert code == 3
    assert asked in err.strip().splitlines()[-1]
    assert "SECRET" not in err
    assert "columns, in the rows looked at" in out, "what is known is shown all the same"
    code, text, _ = bestkept("inspect", path, "--json")
    assert code == 3
    assert json.loads(text)["columns"][0]["name"] == next(iter(rows[0]))


def test_settings_that_do_not_fit_are_errors_and_not_answers(tmp_path, bestkept):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows(2, 2))
    for setting, code, message in (
        ("input.columns={prompt: q}", 3, "input.columns.prompt is 'q'"),
        ("data.columns={label: q}", 3, "'q'"),
        ("data.format=hh", 3, "data.format is hh"),
        ("input.carry=[generator]", 2, "unknown key 'input.carry'"),
        ("model.dtype=float32", 2, "unknown key 'model.dtype'"),
        ("input.path=b.jsonl", 2, "input.path and data.path differ"),
        ("--fast", 2, "--fast"),
    ):
        found, out, err = bestkept("inspect", path, setting)
        assert (found, out) == (code, ""), (setting, err)
        assert message in err


def test_files_of_different_shapes_are_refused(tmp_path, bestkept):
    write_jsonl(tmp_path / "in" / "a.jsonl", corpus_rows(2, 2))
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"question": "SECRET", "answer": "SECRET"}])
    code, _, err = bestkept("inspect", tmp_path / "in")
    assert code == 3
    assert re.search(r"b\.jsonl has no column 'prompt' \(it has question, answer\), and .*a\.jsonl has", err)
    pq.write_table(pa.table({"prompt": ["p"], "response": ["r"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["p"], "output": ["r"]}), tmp_path / "b.parquet")
    code, _, err = bestkept("inspect", tmp_path / "*.parquet")
    assert code == 3
    assert "b.parquet has no column 'response' (it has prompt, output)" in err


def units_of(path: Path | str):
    return all_units(list_files(InputConfig(path=str(path))))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_million_rows_are_inspected_by_reading_a_bounded_part(tmp_path, monkeypatch, suffix):
    rows = 1_000_000
    path = tmp_path / f"a.{suffix}"
    text = "".join(f'{{"prompt": "question {n:07}", "response": "{"answer " * (n % 5)}"}}\n' for n in range(rows))
    if suffix == "jsonl":
        path.write_text(text)
    elif suffix == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode(), 1))
    else:
        columns = {
            "prompt": [f"question {n:07}" for n in range(rows)],
            "response": ["answer " * (n % 5) for n in range(rows)],
        }
        pq.write_table(pa.table(columns), path, row_group_size=rows // 50)
    monkeypatch.setattr(sample, "COUNTED_BYTES", 2**20)
    read = {"rows": 0}
    real = sample.SampledRow

    def counting(*fields):
        read["rows"] += 1
        return real(*fields)

    monkeypatch.setattr(sample, "SampledRow", counting)
    units = units_of(path)
    looked = sample_rows(units, ["prompt", "response"], max_row_bytes=LIMIT)
    assert read["rows"] <= sample.FIRST_ROWS + sample.SPREAD * sample.ROWS_A_PLACE + 1
    numbers = [int(row.value["prompt"].split()[1]) for row in looked.rows]
    assert numbers[: sample.FIRST_ROWS] == list(range(sample.FIRST_ROWS))
    assert numbers == sorted(set(numbers)), "no row twice"
    counted = count_rows(units, max_row_bytes=LIMIT)
    if suffix == "jsonl.gz":
        assert (looked.places, looked.whole) == (0, False)
    else:
        assert looked.places == sample.SPREAD
        assert len(numbers) == sample.FIRST_ROWS + sample.SPREAD * sample.ROWS_A_PLACE
        starts = numbers[sample.FIRST_ROWS :: sample.ROWS_A_PLACE]
        wanted = [rows * (2 * n + 1) / 16 for n in range(8)]
        assert all(abs(start - there) < rows / 40 for start, there in zip(starts, wanted, strict=True))
    assert counted.exact == (suffix == "parquet")
    assert counted.rows == (rows if counted.exact else pytest.approx(rows, rel=0.03))


def test_the_first_rows_of_several_files_go_on_where_one_ends(tmp_path):
    for name in "abc":
        rows = [{"prompt": f"{name}{n}", "response": "r"} for n in range(900)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    looked = sample_rows(units_of(tmp_path), ["prompt"], max_row_bytes=LIMIT)
    prompts = [row.value["prompt"] for row in looked.rows]
    everything = [f"{name}{n}" for name in "abc" for n in range(900)]
    assert prompts[:2000] == everything[:2000]
    assert len(set(prompts)) == len(prompts)
    assert looked.rows[950].place == "line 51"
    whole = sample_rows(units_of(tmp_path / "[ab].jsonl"), ["prompt"], max_row_bytes=LIMIT)
    assert (len(whole.rows), whole.whole) == (1800, True)


def test_places_lie_behind_the_first_rows(tmp_path):
    rows = [{"prompt": f"{n}", "response": "r" * 1000} for n in range(4000)]
    looked = sample_rows(units_of(write_jsonl(tmp_path / "a.jsonl", rows)), ["prompt"], max_row_bytes=LIMIT)
    numbers = [int(row.value["prompt"]) for row in looked.rows]
    assert len(numbers) > sample.FIRST_ROWS
    assert numbers == sorted(set(numbers))


def test_places_are_spread_by_bytes_and_do_not_overlap():
    plain = InputFile("a.jsonl", "a.jsonl", "jsonl", None, 800, "")
    packed = InputFile("b.jsonl.gz", "b.jsonl.gz", "jsonl", "gz", 800, "")
    found = spread([(plain, Unit(0, 0, 800, 800)), (packed, Unit(0, 0, 800, 800))])
    assert [(file.path, unit.start, unit.end) for file, unit in found] == [
        ("a.jsonl", 100, 300),
        ("a.jsonl", 300, 500),
        ("a.jsonl", 500, 700),
        ("a.jsonl", 700, 800),
        ("b.jsonl.gz", 0, 800),
    ]


def test_a_row_that_is_too_large_is_a_reason_in_both_kinds(tmp_path):
    rows = [{"prompt": "p", "response": "r" * size} for size in (3000, 10)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        looked = sample_rows(units_of(tmp_path / name), ["prompt", "response"], max_row_bytes=2000)
        assert [row.value for row in looked.rows] == ["row_too_large", rows[1]]


def test_text_does_not_steer_the_terminal_and_is_not_markup(tmp_path, bestkept):
    row = {"prompt": "[red]\x1b[31mhi\r\x9b", "response": "a" * 5000}
    out = bestkept("inspect", write_jsonl(tmp_path / "a.jsonl", [row]))[1]
    assert "user: [red]␛[31mhi␍�" in out
    assert "\x1b" not in out
    assert "[... 4,300 characters ...]" in out
    assert shortened("x" * 700) == "x" * 700
    assert len(shortened("x" * 701).replace(" [... 1 characters ...] ", "")) == 700
    assert visible("a\tb\nc\ud800").plain == "a\tb\nc?"
    assert [format_size(n) for n in (999, 1000, 1_234_567)] == ["999 bytes", "1.0 kB", "1.2 MB"]


def test_without_a_model_nothing_heavy_is_imported(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows(2, 2))
    code = (
        "import sys; sys.argv = ['bestkept', 'inspect', sys.argv[1]]\n"
        "from pipelines import cli\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'apache_beam', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stderr


@pytest.mark.skipif(not SHARED.exists(), reason="the real corpora are not part of the project")
def test_real_files(inspected):
    found = inspected(SHARED / "best_of_56")
    assert (found["rows"], found["files"]["count"]) == ({"count": 22451, "exact": True}, 8)
    assert found["preferences"]["settings"] == ["'data.columns={score: judge_win_rate}'"]
    for name, rows, format in (
        ("hh_rlhf_harmless", 1800, "hh"),
        ("pandalm_three_annotators", 999, "pandalm"),
        ("qa_feedback_rankings", 500, "qa_feedback"),
    ):
        found = inspected(SHARED / f"{name}.jsonl.gz")
        assert found["rows"] == {"count": rows, "exact": True}
        assert (found["corpus"]["detected"], found["preferences"]["format"]) == (False, format)
        assert found["preferences"]["rows_used"] + sum(found["preferences"]["rejected"].values()) == rows
    found = inspected(SHARED / "gsm8k_solutions.jsonl.gz")
    assert found["rows"] == {"count": 2652, "exact": True}
    assert found["preferences"]["settings"] == ["'data.columns={label: is_correct}'"]


def test_text_stored_as_binary_is_shown_as_text_and_images_are_not_read(inspected, tmp_path):
    texts = {name: pa.array([f"{name} {n}".encode() for n in range(5)], pa.binary()) for name in ("prompt", "response")}
    image = pa.array([b"\xff" * 2**17] * 5, pa.binary())
    hashes = pa.array([b"\xff\xfe"] * 5, pa.binary())
    pq.write_table(pa.table({**texts, "image": image, "hash": hashes}), tmp_path / "a.parquet", use_dictionary=False)
    corpus = inspected(tmp_path / "a.parquet")
    assert corpus["corpus"]["format"] == "prompt_response"
    assert corpus["corpus"]["rejected"] == {}
    assert [column["kind"] for column in corpus["columns"]] == ["text", "text", None, "other"]
    pairs = {"prompt": texts["prompt"], "chosen": texts["response"], "rejected": texts["prompt"]}
    pq.write_table(pa.table(pairs), tmp_path / "b.parquet")
    preferences = inspected(tmp_path / "b.parquet")["preferences"]
    assert (preferences["format"], preferences["rows_used"]) == ("prompt_chosen_rejected", 5)


def test_a_text_column_of_preferences_that_nobody_reads_is_named(inspected, tmp_path):
    row = {"system": "Answer like a pirate", "question": "name a river", "chosen": "aye", "rejected": "no"}
    path = write_jsonl(tmp_path / "a.jsonl", [row] * 3)
    (note,) = inspected(path)["preferences"]["notes"]
    assert "the column system holds text and is not read; to put it before the prompt: 'data.columns={system" in note
    named = inspected(path, "data.columns={system: system}")["preferences"]
    assert named["notes"] == []
    assert named["figures"]["prompts_with_system"] == 1


def test_rows_of_preferences_that_cannot_be_read_are_counted_by_reason(inspected, tmp_path):
    pair = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"})
    (tmp_path / "a.jsonl").write_text("\n".join([pair, "{", pair, '{"prompt": NaN}', pair.replace('"b"', '"a"')]))
    view = inspected(tmp_path / "a.jsonl")["preferences"]
    rejected = {"bad_json": 1, "equal_sides": 1, "nan_literal": 1}
    assert (view["rows_used"], view["rejected"], view["notes"]) == (2, rejected, [])


def test_lists_of_grades_in_parquet_are_read_and_embeddings_are_not(inspected, tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 2.0], "embedding": [0.5 + n for n in range(4096)]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    document = inspected(tmp_path / "a.parquet")
    assert document["preferences"]["judgements"]["comparisons"] == 1
    kinds = {column["name"]: column["kind"] for column in document["columns"]}
    assert (kinds["scores"] is None, kinds["embedding"] is None) == (False, True)


@pytest.mark.parametrize("setting", ["input.split", "data.split"])
def test_one_split_is_inspected(tmp_path, bestkept, inspected, setting):
    for number, name in enumerate(["train", "test"]):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}] * (1 + number))
    assert "several splits: test, train" in bestkept("inspect", tmp_path / "in")[2]
    assert inspected(tmp_path / "in", f"{setting}=test")["rows"]["count"] == 2
    code, _, err = bestkept("inspect", tmp_path / "in", "input.split=train", "data.split=test")
    assert (code, "input.split and data.split differ" in err) == (2, True)


def test_a_hyphen_is_standard_input(tmp_path):
    lines = b'{"prompt": "q", "response": "a"}\n{"prompt": "q", "response": ""}\n'
    command = [sys.executable, "-m", "pipelines.cli", "inspect", "-", "--json"]
    answer = subprocess.run(command, input=lines, capture_output=True, check=True).stdout
    document = json.loads(answer)
    assert (document["path"], document["rows"]["count"]) == ("-", 2)
    assert document["corpus"]["rejected"] == {"empty_response": {"responses": 1, "first": "stdin.jsonl, line 2"}}
