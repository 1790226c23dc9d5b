from __future__ import annotations

import gzip
import io
import json
import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import corpus_rows, write_jsonl

from pipelines.corpus import InputFile, column_names, files, fragments, jsonl, kind_of, read_fragments, split_units
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.errors import InputError
from pipelines.storage.decompress import decompress

MAPPING = RowMapping(format="prompt_response", prompt="prompt", response="response")
LIMIT = 1 << 20


def input_file(path) -> InputFile:
    kind, compression = kind_of(path.name)
    return InputFile(str(path), path.name, kind, compression, path.stat().st_size, "v1")


def read(path, *, rows_per_fragment=5, max_row_bytes=LIMIT, mapping=MAPPING):
    file = input_file(path)
    sizes = {"rows_per_fragment": rows_per_fragment, "max_row_bytes": max_row_bytes}
    return [list(read_fragments(file, unit, mapping, **sizes)) for unit in split_units(file)]


def samples(units):
    return [row.parsed for unit in units for fragment in unit for row in fragment.rows]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(text))
    else:
        path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_every_kind_gives_the_same_rows_in_order(tmp_path, name):
    rows = corpus_rows()
    got = samples(read(write(tmp_path / name, rows)))
    assert [(sample.prompt[0][1], sample.responses) for sample in got] == [
        (row["prompt"], [row["response"]]) for row in rows
    ]


def test_fragments_are_numbered_cut_and_closed(tmp_path):
    (unit,) = read(write(tmp_path / "a.jsonl", corpus_rows()[:11]))
    assert [(fragment.index, len(fragment.rows), fragment.last) for fragment in unit] == [
        (0, 5, False),
        (1, 5, False),
        (2, 1, True),
    ]
    assert [row.number for fragment in unit for row in fragment.rows] == list(range(11))


def test_a_full_last_fragment_is_the_last(tmp_path):
    (unit,) = read(write(tmp_path / "a.jsonl", corpus_rows()[:10]))
    assert [(len(fragment.rows), fragment.last) for fragment in unit] == [(5, False), (5, True)]


def test_fragments_are_cut_by_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(fragments, "FRAGMENT_BYTES", 100)
    rows = [{"prompt": "p", "response": "r" * 60}] * 5
    (unit,) = read(write(tmp_path / "a.jsonl", rows))
    assert [len(fragment.rows) for fragment in unit] == [2, 2, 1]


def test_row_groups_are_units_and_are_decoded_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", corpus_rows()[:20])
    decoded = []
    original = pq.ParquetFile.iter_batches

    def counted(self, *args, row_groups, **kwargs):
        decoded.append(row_groups)
        return original(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    units = read(path, rows_per_fragment=2)
    assert [len(unit) for unit in units] == [4, 4, 3]
    assert decoded == [[0], [1], [2]]


line = st.one_of(
    st.builds(lambda n: json.dumps({"prompt": "p" * n, "response": "r"}).encode(), st.integers(0, 60)),
    st.sampled_from([b"", b"  ", b"{bad", b"[]", b"\xff\xfe"]),
)


@settings(max_examples=150)
@given(st.lists(line, max_size=20), st.integers(1, 90), st.integers(1, 40), st.booleans())
def test_byte_ranges_split_lines_without_loss(tmp_path_factory, lines, range_bytes, chunk, final_newline):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if final_newline else b""))
    with pytest.MonkeyPatch.context() as patch:
        whole = samples(read(path))
        patch.setattr(files, "RANGE_BYTES", range_bytes)
        patch.setattr(jsonl, "_READ_BYTES", chunk)
        assert samples(read(path)) == whole
    assert len(whole) == sum(bool(text.strip()) for text in lines)


def test_one_bad_response_in_a_list_rejects_only_itself(tmp_path):
    mapping = RowMapping(format="responses_list", prompt="prompt", responses="responses")
    rows = [{"prompt": "p", "responses": ["a", "", None, "b"]}, {"prompt": "", "responses": ["a", "b"]}]
    rows += [{"prompt": "p", "responses": []}, {"prompt": "p", "responses": None}]
    got = samples(read(write_jsonl(tmp_path / "a.jsonl", rows), mapping=mapping))
    assert [(sample.responses, sample.reasons) for sample in got] == [
        (["a", None, None, "b"], [None, "empty_response", "null_response", None]),
        ([None, None], ["empty_prompt", "empty_prompt"]),
        ([None], ["null_response"]),
        ([None], ["null_response"]),
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_a_cut_file_is_noticed(tmp_path, name, cut):
    path = write(tmp_path / name, corpus_rows(200))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(InputError, match=r"a\.(jsonl|parquet).* is cut or damaged|cannot be read"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_not_compressed_at_all_is_noticed(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"prompt": "p", "response": "r"}\n')
    with pytest.raises(InputError, match="not valid"):
        read(tmp_path / name)


@pytest.mark.parametrize("compression", ["gz", "zst"])
@given(parts=st.lists(st.binary(max_size=2000), min_size=1, max_size=4), cut=st.integers(1, 20))
@settings(max_examples=60)
def test_decompression_reads_all_members_and_notices_every_cut(compression, parts, cut):
    compress = gzip.compress if compression == "gz" else zstandard.compress
    data = b"".join(compress(part) for part in parts)
    assert b"".join(decompress(io.BytesIO(data), compression)) == b"".join(parts)
    last = len(compress(parts[-1]))
    if last > cut:
        with pytest.raises(EOFError):
            list(decompress(io.BytesIO(data[:-cut]), compression))


@pytest.mark.parametrize(("compression", "data"), [("gz", b""), ("zst", b""), ("gz", bytes(5000))])
def test_no_member_at_all_is_a_cut_file_too(compression, data):
    """What a crash leaves behind: an empty file, or one of zeros."""
    with pytest.raises(EOFError):
        list(decompress(io.BytesIO(data), compression))


def test_zero_padding_after_gzip_is_no_data():
    data = gzip.compress(b"text") + b"\0" * 40_000
    assert b"".join(decompress(io.BytesIO(data), "gz")) == b"text"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p", "response": "r"}\n')
    assert samples(read(tmp_path / "a.jsonl"))[0].reasons == [None]


def test_large_compressed_files_stream(tmp_path):
    # incompressible lines, 40 MB of them; what is held at once must stay far below
    import tracemalloc

    rng = random.Random(0)
    with zstandard.open(tmp_path / "a.jsonl.zst", "wb") as file:
        for _ in range(4000):
            file.write(json.dumps({"prompt": "p", "response": rng.randbytes(5000).hex()}).encode() + b"\n")
    file = input_file(tmp_path / "a.jsonl.zst")
    tracemalloc.start()
    count = 0
    for fragment in read_fragments(file, split_units(file)[0], MAPPING, rows_per_fragment=64, max_row_bytes=LIMIT):
        count += len(fragment.rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000
    assert peak < 8e6


def test_columns_come_from_a_footer_or_the_first_lines(tmp_path):
    assert column_names(input_file(write(tmp_path / "a.parquet", corpus_rows())), max_row_bytes=LIMIT) == [
        "prompt",
        "response",
        "generator",
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"b": 2, "a": 1}])
    assert column_names(input_file(path), max_row_bytes=LIMIT) == ["a", "b"]


def test_the_content_hash_sees_text_order_and_reasons(tmp_path):
    def content(rows):
        return read(write_jsonl(tmp_path / "a.jsonl", rows))[0][0].content_hash()

    rows = corpus_rows()[:4]
    base = content(rows)
    assert content(rows) == base
    assert content([{**row, "generator": "other"} for row in rows]) == base
    variants = [rows[::-1], rows[:-1], [*rows[:-1], {**rows[-1], "response": None}]]
    variants += [[{**rows[0], "response": "changed"}, *rows[1:]], [{**rows[0], "prompt": "changed"}, *rows[1:]]]
    hashes = [content(variant) for variant in variants]
    assert len({base, *hashes}) == len(hashes) + 1


def test_the_content_hash_sees_the_rewards_that_rows_carry(tmp_path):
    mapping = replace(MAPPING, reward="reward")

    def content(*rewards):
        rows = [{**row, "reward": reward} for row, reward in zip(corpus_rows(), rewards, strict=False)]
        return read(write_jsonl(tmp_path / "a.jsonl", rows), mapping=mapping)[0][0].content_hash()

    assert content(0.25, 0.5) == content(0.25, 0.5)
    assert len({content(0.25, 0.5), content(0.5, 0.25), content(0.25, 0.75), content(0.25, None)}) == 4


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_row_of_the_limit_is_read_and_a_byte_more_is_refused(tmp_path, name):
    path = write(tmp_path / name, corpus_rows()[:1])
    ((((row,),),),) = [[[fragment.rows] for unit in read(path) for fragment in unit]]
    for limit, reason in ((row.row_bytes, None), (row.row_bytes - 1, "row_too_large")):
        (parsed,) = samples(read(path, max_row_bytes=limit))
        assert parsed.reasons == [reason]
