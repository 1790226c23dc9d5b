"""Runs of words that are shared with test prompts: the index of the tests, and hits, against sets of tuples."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import Decontaminate
from pipelines.corpus.ngram_index import INDEX, NgramIndex, index_of, resolve_measures
from pipelines.errors import InputError, StorageError
from pipelines.score.ngram_hits import NgramHits, count_files, count_hits, first_hit, hits_column, hits_of, read_index

TEXT = st.lists(st.sampled_from(["a", "B", "c!", "d"]), max_size=9).map(" ".join)


def grams(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.lower().replace("!", "").split()
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """(prompts of each file, column, n) → settings and index."""

    def make(files, *, column="question", ngram=3):
        folder = tmp_path_factory.mktemp("tests")
        for number, prompts in enumerate(files):
            rows = [json.dumps({column: prompt, "answer": "x"}) for prompt in prompts]
            (folder / f"{number}.jsonl").write_text("\n".join(rows))
        settings, data = index_of(Decontaminate(against=[str(folder)], ngram=ngram).measure)
        return settings, NgramIndex.from_bytes(data)

    return make


@given(
    st.lists(st.lists(TEXT.filter(str.strip), min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(TEXT, max_size=5),
)
def test_hits_are_those_of_sets(index, files, texts):
    settings, made = index(files)
    expected = [
        sum(1 << number for number, file in enumerate(files) if any(grams(text, 3) & grams(p, 3) for p in file))
        for text in texts
    ]
    hits = hits_of(texts, made, 3)
    assert hits.tolist() == expected
    assert count_files(hits).tolist() == [one.bit_count() for one in expected]
    table = pa.table({hits_column("leaks"): hits})
    assert count_hits(table, ["leaks"]) == {
        ("leaks", number): count for number in range(3) if (count := sum(one >> number & 1 for one in expected))
    }
    assert [file["prompts"] for file in settings["files"]] == [*map(len, files)]
    for text, bits in zip(texts, expected, strict=True):
        hit = first_hit(text, made, 3)
        assert (hit is None) == (bits == 0)
        if hit is not None:
            assert tuple(hit.words.split()) in grams(text, 3)
            assert hit.files == [
                n for n, file in enumerate(files) if any(tuple(hit.words.split()) in grams(p, 3) for p in file)
            ]


def test_prompts_are_read_from_files_of_any_kind(tmp_path, caplog):
    rows = [{"id": 1, "messages": [{"role": "user", "content": "one two three four"}]}, {"id": 2, "messages": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"Q": "five six seven"}\n{"Q": "too short"}\n')
    settings, data = index_of(Decontaminate(against=[str(tmp_path / "a.parquet")], ngram=3).measure)
    assert settings["files"] == [{"name": "a.parquet", "prompts": 1, "ngrams": 2}]
    assert hits_of(["two three FOUR"], NgramIndex.from_bytes(data), 3).tolist() == [1]
    other = Decontaminate(against=[str(tmp_path / "b.jsonl.gz")], ngram=3, column="Q")
    settings, data = index_of(other.measure)
    assert settings["files"] == [{"name": "b.jsonl.gz", "prompts": 2, "ngrams": 1}]
    assert "1 of 2 test prompts have fewer than 3 words" in caplog.text
    with pytest.raises(
        InputError, match=r"decontaminate\.against: of the columns of .*b\.jsonl\.gz \(Q\), none is known"
    ):
        index_of(other.model_copy(update={"column": None}).measure)
    with pytest.raises(InputError, match=r"none is 'q'; name the one that holds them in decontaminate\.column"):
        index_of(other.model_copy(update={"column": "q"}).measure)
    with pytest.raises(InputError, match=r"decontaminate\.against: .*nothing"):
        index_of(Decontaminate(against=[str(tmp_path / "nothing.jsonl")]).measure)


def test_a_plan_has_no_paths_and_other_tests_another_hash(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a b c d"}')
    measure = Decontaminate(against=[str(path)], ngram=3).measure
    (first,), indexes = resolve_measures([measure])
    assert str(tmp_path) not in json.dumps(first)
    assert list(indexes) == [first["index"]]
    path.write_text('{"prompt": "a b c e"}')
    (second,), _ = resolve_measures([measure])
    assert first["index"] != second["index"]
    assert first["name"] == second["name"]


def row(number, prompt, *responses):
    parsed = SimpleNamespace(prompt=None if prompt is None else (("user", prompt),), responses=list(responses))
    return SimpleNamespace(number=number, parsed=parsed)


def test_a_fragment_is_measured_in_prompts_and_responses(tmp_path, index):
    settings, made = index([["a b c"], ["b c d e"]])
    (tmp_path / INDEX).write_bytes(made.to_bytes())
    measure = NgramHits(settings["name"], 3, settings["index"], (str(tmp_path),))
    rows = [row(0, "A, b; c", "x", "c d e"), row(1, None, "a b c"), row(2, "x", None, "b c d")]
    numbers, hits = measure.measure(SimpleNamespace(rows=rows))  # type: ignore[arg-type]
    assert hits.to_pylist() == [1, 3, 0, 0, 2]
    assert numbers.to_pylist() == [1.0, 2.0, 0.0, 0.0, 1.0]
    assert measure.schema.types == [numbers.type, hits.type]
    (tmp_path / INDEX).write_bytes(b"damaged")
    read_index.cache_clear()
    with pytest.raises(StorageError, match=r"ngrams\.bin is gone or damaged; remove it"):
        measure.measure(SimpleNamespace(rows=rows))  # type: ignore[arg-type]


def test_sixty_four_files_are_told_apart(index):
    _, made = index([[f"w{n} w{n} w{n}"] for n in range(64)])
    hits = hits_of(["w63 w63 w63 w0 w0 w0"], made, 3)
    assert sorted(first_hit("w63 w63 w63", made, 3).files) != []  # type: ignore[union-attr]
    assert count_files(hits).tolist() == [2]
    assert np.bitwise_count(hits).tolist() == [2]
