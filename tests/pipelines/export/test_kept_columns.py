"""Kept responses as columns equal those made row by row; and a changed input is noticed on the fast way too."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates

from pipelines import corpus
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.corpus import InputFile, split_units
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.errors import InputError
from pipelines.export import transform
from pipelines.export.kept_columns import is_plain, read_tables, text_bytes
from pipelines.export.kept_rows import read_kept
from pipelines.export.output_columns import Shape, schema_of, to_table
from pipelines.export.transform import RowQueue, row_groups
from pipelines.plan import Plan
from rm.conversations import prompt_key, response_hash

ROW_MAPPING = RowMapping("prompt_response", prompt="p", response="r", source="s")
LIST_MAPPING = RowMapping("responses_list", prompt="p", responses="r", source="s")
SHAPES = [
    Shape("messages"),
    Shape("prompt_completion", add=("rank", "margin", "probability"), temperature=0.7),
]
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
rows_of_lists = st.lists(
    st.tuples(texts, st.lists(texts, min_size=1, max_size=3), st.sampled_from(["a", None])), min_size=1, max_size=9
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


def file_of(directory, rows, *, lists=True, large=False):
    text = pa.large_string() if large else pa.string()
    responses = [responses if lists else responses[0] for _, responses, _ in rows]
    columns = {
        "p": pa.array([prompt for prompt, _, _ in rows], text),
        "r": pa.array(responses, pa.list_(text) if lists else text),
        "s": pa.array([source for _, _, source in rows], text),
    }
    path = directory / "x.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4)
    corpus.parquet.parquet_schema.cache_clear()
    return InputFile(str(path), "x.parquet", "parquet", None, path.stat().st_size, "1")


def wanted_of(rows, unit, *, lists=True):
    """All responses of the unit's rows, as a selection that keeps everything but each third would name them."""
    found = []
    for number, (prompt, responses, _) in enumerate(rows[unit.start : unit.end]):
        key = int.from_bytes(prompt_key((("user", prompt),)), "big")
        for index, text in enumerate(responses if lists else responses[:1]):
            place = (0, unit.number, number, index)
            found.append((key >> 64, key & (2**64 - 1), 0.25 * len(found), response_hash(text), *place))
    found = [row for at, row in enumerate(found) if at % 3 != 2]
    margin = [float("nan") if at % 2 else 0.5 * at for at in range(len(found))]
    table = candidates(found, rank=list(range(1, len(found) + 1)))
    return table.with_columns(margin=pa.array(margin, pa.float32()).to_numpy())


def by_rows(file, unit, mapping, wanted, shape, schema):
    plan = Plan.__new__(Plan)
    object.__setattr__(plan, "mapping", mapping)
    object.__setattr__(plan, "max_row_bytes", 2**20)
    return to_table(list(read_kept(plan, file, unit, wanted, {}, more_columns=())), schema, shape)


@settings(max_examples=60, deadline=None)
@given(rows_of_lists, st.booleans(), st.booleans(), st.sampled_from(SHAPES), st.sampled_from([1, 3, 1024]))
def test_columns_equal_rows(directory, rows, lists, large, shape, most_rows):
    file, mapping = file_of(directory, rows, lists=lists, large=large), LIST_MAPPING if lists else ROW_MAPPING
    assert is_plain(file, mapping, shape)
    schema = schema_of(shape, pa.schema([]))
    for unit in split_units(file):
        wanted = wanted_of(rows, unit, lists=lists)
        if len(wanted):
            tables = list(read_tables(file, unit, mapping, wanted, shape, schema, most_rows=most_rows))
            assert pa.concat_tables(tables).combine_chunks().equals(by_rows(file, unit, mapping, wanted, shape, schema))


CHANGES = {
    "another response": {"r": [["one", "other"], ["three"]]},
    "another prompt": {"p": ["first", "changed"]},
    "a response that is gone": {"r": [["one"], ["three"]]},
    "the last response is gone": {"r": [["one", "two"], []]},
    "a null response": {"r": [["one", None], ["three"]]},
    "a null list": {"r": [None, ["three"]]},
    "a null prompt": {"p": [None, "second"]},
    "a row that is gone": {"p": ["first"], "r": [["one", "two"]], "s": ["a"]},
    "a column that is gone": {"r": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_scored_is_noticed(directory, change):
    rows = [("first", ["one", "two"], "a"), ("second", ["three"], None)]
    file = file_of(directory, rows)
    (unit,) = split_units(file)
    wanted = candidates(
        [
            (
                *divmod(int.from_bytes(prompt_key((("user", prompt),)), "big"), 2**64),
                0.0,
                response_hash(text),
                0,
                0,
                row,
                at,
            )
            for row, (prompt, responses, _) in enumerate(rows)
            for at, text in enumerate(responses)
        ]
    )
    shape, table = SHAPES[0], pq.read_table(file.path)
    schema = schema_of(shape, pa.schema([]))
    assert sum(t.num_rows for t in read_tables(file, unit, LIST_MAPPING, wanted, shape, schema, most_rows=64)) == 3
    columns = {name: table[name] for name in table.column_names}
    for name, values in CHANGES[change].items():
        if values is None:
            del columns[name]
        else:
            columns[name] = pa.array(values, table.schema.field(name).type)
    pq.write_table(pa.table(columns), file.path)
    with pytest.raises(InputError, match=r"changed since it was scored|lost its column") as caught:
        list(read_tables(file, unit, LIST_MAPPING, wanted, shape, schema, most_rows=64))
    assert "two" not in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "shape"),
    [
        (ROW_MAPPING, Shape("messages", include=("s",))),
        (ROW_MAPPING, Shape("original")),
        (ROW_MAPPING, Shape("preference")),
        (RowMapping("prompt_response", prompt="p", response="r", group_by=("s",)), Shape("messages")),
        (RowMapping("prompt_response", prompt="p", response="r", system="s"), Shape("messages")),
        (RowMapping("alpaca", prompt="p", response="r", input="s"), Shape("messages")),
        (RowMapping("messages", messages="r"), Shape("messages")),
        (RowMapping("prompt_response", prompt="p", response="n"), Shape("messages")),
        (RowMapping("responses_list", prompt="p", responses="n"), Shape("messages")),
    ],
)
def test_what_is_more_than_plain_text_goes_row_by_row(directory, mapping, shape):
    file = file_of(directory, [("p", ["r"], "s")], lists=False)
    assert not is_plain(file, mapping, shape)


@pytest.mark.parametrize("shape", ["messages", "prompt_completion"])
def test_both_ways_publish_the_same_bytes(tmp_path, monkeypatch, shape):
    rows = [(f"prompt {n // 4}", [f"answer {n} " + "é" * n, "other"], "ab"[n % 2]) for n in range(41)]
    (tmp_path / "in").mkdir()
    file_of(tmp_path / "in", rows)
    scored = pq.read_table(tmp_path / "in" / "x.parquet")
    rewards = pa.array([[n / 7, -n / 7] for n in range(41)])
    pq.write_table(scored.append_column("w", rewards), tmp_path / "in" / "x.parquet", row_group_size=4)

    def run(name):
        config = RunConfig.model_validate(
            {
                "input": {"path": str(tmp_path / "in"), "columns": {"prompt": "p", "responses": "r", "source": "s"}},
                "scores": {"column": "w", "path": str(tmp_path / "scores")},
                "select": [{"best_of_n": {"keep": 8}}],
                "output": {
                    "path": str(tmp_path / name),
                    "shape": shape,
                    "rows_per_shard": 11,
                    "add": ["rank", "margin"],
                },
            }
        )
        run_curation(config, scorer=None)
        return {path.name: path.read_bytes() for path in (tmp_path / name / "data").iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(transform, "read_kept", None)
        by_columns = run("columns")
    monkeypatch.setattr(transform, "read_tables", None)
    monkeypatch.setattr(transform, "is_plain", lambda *_: False)
    assert len(by_columns) == 8
    found = [
        row for name in sorted(by_columns) for row in pq.read_table(tmp_path / "columns" / "data" / name).to_pylist()
    ]
    contents = [(row["messages"] if shape == "messages" else row["completion"])[-1]["content"] for row in found]
    expected = [text for _, responses, _ in rows for text in responses]
    assert contents == expected, "in the order of the input, responses of a row in theirs"
    assert by_columns == run("rows")


@pytest.mark.parametrize(("rows_per_fragment", "largest"), [(7, 7), (64, 64), (2000, 90)])
def test_no_more_rows_are_decoded_at_once_than_a_fragment_has(tmp_path, monkeypatch, rows_per_fragment, largest):
    """90 rows of a row group: a dictionary may hold one long text for all, and what bounds a fragment's bytes bounds these."""
    rows = [(f"prompt {n // 2}", f"response {n}", None) for n in range(90)]
    table = {"p": [row[0] for row in rows], "r": [row[1] for row in rows], "w": [float(n) for n in range(90)]}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(table), tmp_path / "in" / "a.parquet")
    config = RunConfig.model_validate(
        {
            "input": {
                "path": str(tmp_path / "in"),
                "columns": {"prompt": "p", "response": "r"},
                "rows_per_fragment": rows_per_fragment,
            },
            "scores": {"column": "w"},
            "output": {"path": str(tmp_path / "out")},
        }
    )
    run_scoring(config, scorer=None)
    decoded = []
    batches = pq.ParquetFile.iter_batches

    def spied(self, size, **options):
        for batch in batches(self, size, **options):
            decoded.append(batch.num_rows)
            yield batch

    read = transform.read_tables

    def export_only(*told, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pq.ParquetFile, "iter_batches", spied)
            yield from read(*told, **options)

    monkeypatch.setattr(transform, "read_tables", export_only)
    run_curation(config, scorer=None)
    assert (sum(decoded), max(decoded)) == (90, largest)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 6), st.integers(1, 40), st.integers(1, 60))
def test_row_groups_do_not_depend_on_how_rows_arrive(sizes, at_once, group_bytes, shard):
    total = sum(sizes)
    whole = pa.table({"text": ["x" * (at % 5) for at in range(total)], "number": range(total)})
    pieces, start = [], 0
    for size in sizes:
        pieces.append(whole.slice(start, size))
        start += size

    def groups(tables):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transform, "_ROWS_AT_ONCE", at_once)
            patch.setattr(transform, "_ROW_GROUP_BYTES", group_bytes)
            rows, found = RowQueue(iter(tables)), []
            for first in range(0, total, shard):
                found.append([group.to_pydict() for group in row_groups(rows, min(shard, total - first))])
            return found

    in_pieces = groups(pieces)
    assert in_pieces == groups([whole] if total else [])
    numbers = [number for shards in in_pieces for group in shards for number in group["number"]]
    assert numbers == list(range(total))
    for shards in in_pieces:
        for group in shards:
            assert sum(map(len, group["text"])) <= max(group_bytes, 4 * at_once)


def test_text_bytes_count_text_alone_wherever_it_is():
    messages = [
        [{"role": "user", "content": "four"}],
        [{"role": "user", "content": "é"}, {"role": "u", "content": None}],
    ]
    table = pa.table({"messages": messages, "reward": [1.0, 2.0], "source": ["ab", None]})
    assert text_bytes(table) == 4 + 4 + 4 + 2 + 1 + 2
    assert text_bytes(table.slice(1)) == 4 + 2 + 1
