"""Fuzzing of everything that reads input: raw bytes as plain and compressed JSON lines, mutated Parquet files, JSON values in
place of whatever a row should hold; configurations, model directories and score files.

Whatever the bytes are, the outcome is a documented one: rows, each usable or with a reason, or an `InputError`. Never another
exception, never a row that is lost: and the same rows, however a plain file is cut into byte ranges. Of configurations and
directories, the command ends with a documented code and one line.

By hand: `make fuzz`, or `PYTHONPATH=.:tests python tests/bad_input/fuzz.py SECONDS TARGETS`, all where none is named. With
atheris installed, the bytes are led by coverage; else Hypothesis makes them. The suite runs a short form, `test_fuzz.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import types
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import fuzzed_configurations, fuzzed_directories
from support.fuzzing import mutated
from support.quick_beam import quick_beam

from pipelines.config import Columns
from pipelines.corpus import (
    InputFile,
    column_names,
    files,
    fragments,
    jsonl,
    kind_of,
    original_columns,
    parquet,
    read_fragments,
    read_rows,
    split_units,
)
from pipelines.corpus.columns import row_mapping
from pipelines.corpus.columns.detection import detect
from pipelines.corpus.columns.row_mapping import RowMapping, parse_row, rewards_of
from pipelines.corpus.fragments import Row, original_schema
from pipelines.errors import InputError
from pipelines.storage import decompress
from pipelines.storage.decompress import MAGIC
from rm import conversations

REASON = re.compile(r"[a-z0-9_]+")
MAX_ROW_BYTES = 4096
FORMATS = ("messages", "sharegpt", "prompt_response", "responses_list", "alpaca")
MAPPINGS = (
    RowMapping(format="prompt_response", prompt="prompt", response="response", source="source", carry=("c",)),
    RowMapping(format="messages", messages="messages", system="system", group_by=("c", "source")),
    RowMapping(format="responses_list", prompt="prompt", responses="responses", reward="c"),
    RowMapping(format="alpaca", prompt="prompt", input="input", response="response", system="system"),
)


def described(path: Path) -> InputFile:
    kind = kind_of(path.name)
    assert kind is not None
    return InputFile(str(path), path.name, *kind, path.stat().st_size, "v")


def rows_of(path: Path, mapping: RowMapping) -> list[Row] | None:
    """The rows of a file, each looked at; None where it is an `InputError`."""
    file = described(path)
    rows: list[Row] = []
    try:
        for unit in split_units(file):
            found = list(read_fragments(file, unit, mapping, rows_per_fragment=3, max_row_bytes=MAX_ROW_BYTES))
            assert [fragment.index for fragment in found] == list(range(len(found)))
            assert [fragment.last for fragment in found] == [False] * (len(found) - 1) + [True]
            here = [row for fragment in found for row in fragment.rows]
            assert [row.number for row in here] == list(range(len(here)))
            for fragment in found:
                assert fragment.content_hash() == fragment.content_hash()
                original_columns.load(original_columns.dump(original_schema(file, fragment)))
            check_export(file, unit, mapping, here)
            rows += here
    except InputError as error:
        if path.name not in error.message:
            raise
        return None
    for row in rows:
        check_row(row)
    return rows


def check_row(row: Row) -> None:
    """Usable or rejected, each response one or the other, and all of it text that can be stored."""
    prompt, responses, reasons, *_ = row.parsed
    assert len(responses) == len(reasons) >= 1
    for response, reason in zip(responses, reasons, strict=True):
        assert (response is None) != (reason is None)
        assert reason is None or REASON.fullmatch(reason)
        assert response is None or response.strip()
    assert prompt is not None or not any(responses)
    assert (row.group_key is None) == (prompt is None)
    for text in [row.source, *row.carry, *responses, *(content for _, content in prompt or ())]:
        assert text is None or text.encode().decode() == text
    assert row.rewards is None or len(row.rewards) == len(responses)


def check_export(file: InputFile, unit: Any, mapping: RowMapping, rows: list[Row]) -> None:
    """Read again, alone and with all columns, a row is the same; and its columns can be written."""
    import numpy as np

    numbers = np.array([row.number for row in rows if row.parsed.prompt is not None][::2], dtype=np.int64)
    again = list(read_rows(file, unit, mapping, numbers, more_columns=None, max_row_bytes=MAX_ROW_BYTES))
    if file.kind == "parquet" and len(again) < len(numbers):
        return  # columns that scoring did not read are damaged; `kept_rows` says that the file has changed
    assert [(row.number, row.parsed, row.group_key) for row in again] == [
        (row.number, row.parsed, row.group_key) for row in rows if row.number in set(numbers.tolist())
    ]
    if not again:
        return
    schema = original_columns.unify([original_columns.infer([row.original for row in again])])
    columns = [original_columns.to_array([row.original.get(field.name) for row in again], field) for field in schema]
    plain = pa.schema([field.remove_metadata() for field in schema])
    pq.write_table(pa.Table.from_arrays(columns, schema=plain), io.BytesIO())


def jsonl_bytes(data: bytes, directory: Path, mapping: RowMapping = MAPPINGS[0]) -> None:
    """Plain, then compressed: the same rows; and the same in ranges and chunks of any size."""
    if data.startswith(tuple(MAGIC)):  # read as what it is, whatever the file is called: `compressed_bytes`
        return
    path = directory / "a.jsonl"
    path.write_bytes(data)
    whole = rows_of(path, mapping)
    assert whole is not None, "no bytes make a plain file unreadable"
    lines = [line for line in data.split(b"\n") if line.strip() or len(line) > MAX_ROW_BYTES]
    assert len(whole) == len(lines), "read = usable + rejected"
    dice = random.Random(data)
    for _ in range(2):
        range_bytes, chunk = dice.randint(1, len(data) + 2), dice.randint(1, 70)
        with mock.patch.object(files, "RANGE_BYTES", range_bytes), mock.patch.object(jsonl, "_READ_BYTES", chunk):
            assert [row.parsed for row in rows_of(path, mapping) or []] == [row.parsed for row in whole]
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        packed = directory / f"a.jsonl{suffix}"
        packed.write_bytes(compress(data))
        assert [row.parsed for row in rows_of(packed, mapping) or []] == [row.parsed for row in whole]
    with contextlib.suppress(InputError):
        names = column_names(described(path), max_row_bytes=MAX_ROW_BYTES)
        detect(names, format="auto", columns=Columns(), carry=[], group_by=[], where="a.jsonl")


def compressed_bytes(data: bytes, directory: Path, suffix: str) -> None:
    """Bytes that claim to be compressed: what is read is a prefix of what Python's own reader gives, or an `InputError`."""
    path = directory / f"b.jsonl{suffix}"
    path.write_bytes(data)
    rows = rows_of(path, MAPPINGS[0])
    if suffix == ".gz" and rows is not None:
        text = gzip.decompress(data)
        assert len(rows) == sum(bool(line.strip()) or len(line) > MAX_ROW_BYTES for line in text.split(b"\n"))


def parquet_bytes(data: bytes, directory: Path) -> None:
    path = directory / "c.parquet"
    path.write_bytes(data)
    for mapping in MAPPINGS:
        rows_of(path, mapping)
    with contextlib.suppress(InputError):
        column_names(described(path), max_row_bytes=MAX_ROW_BYTES)


def json_row(row: dict[str, Any]) -> None:
    """Any values in any columns, under every mapping."""
    for mapping in MAPPINGS:
        sample = parse_row(row, mapping)
        assert len(sample.responses) == len(sample.reasons) >= 1
        assert all(
            (response is None) != (reason is None)
            for response, reason in zip(sample.responses, sample.reasons, strict=True)
        )
        if mapping.reward:
            rewards = rewards_of(row, mapping, len(sample.responses))
            assert all(reward is None or reward == reward for reward in rewards)


def parquet_sample() -> bytes:
    """A small file with every shape and two row groups, to be mutated."""
    rows = [
        {
            "prompt": f"p{n}",
            "response": f"r{n}",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{n}"}],
            "responses": ["x", None, f"y{n}"],
            "system": None,
            "input": "i",
            "source": "s",
            "c": n / 2,
        }
        for n in range(8)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=5, compression="none")
    return sink.getvalue()


SAMPLE = parquet_sample()


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**300, 10**310),
    st.floats(),
    st.text(max_size=8),
    st.text(st.characters(categories=["Cs", "Lu", "Zs", "Cc"]), max_size=4),
)
keys = st.one_of(
    st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls", "prompt", "response"]),
    st.text(max_size=3),
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "judge", None, 3])
messages = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": roles, "from": roles, "content": scalars, "value": scalars, "tool_calls": scalars}
    ),
    max_size=4,
)
values = st.recursive(
    scalars | messages,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
columns = ["prompt", "response", "responses", "messages", "system", "input", "source", "c"]
rows = st.dictionaries(st.sampled_from([*columns, "other"]) | st.text(max_size=2), values, max_size=8)
good = st.fixed_dictionaries(
    {"prompt": st.text(max_size=9), "response": st.text(max_size=9)}, optional={"c": values, "source": values}
)
json_lines = st.builds(
    lambda row, ascii: json.dumps(row, ensure_ascii=ascii).encode(errors="surrogatepass"), good | rows, st.booleans()
)
pieces = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b" ",
    b"\0",
    b"\n",
]
broken = st.builds(
    lambda line, at, piece: line[: at % (len(line) + 1)] + piece + line[at % (len(line) + 1) :],
    json_lines,
    st.integers(0, 500),
    st.sampled_from(pieces) | st.binary(max_size=4),
)
raw_lines = st.binary(max_size=40) | st.lists(st.sampled_from(pieces), max_size=9).map(b"".join)
deep = st.builds(
    lambda n, close: b'{"c": ' + b"[" * n + b"]" * n * close + b"}" * close, st.integers(1, 3000), st.booleans()
)
texts = st.builds(
    lambda lines, end: b"\n".join(lines) + end,
    st.lists(json_lines | broken | raw_lines | deep, max_size=9),
    st.sampled_from([b"", b"\n", b"\r\n"]),
)
packed = st.builds(
    lambda text, seed, compress: mutated(compress(text), random.Random(seed)),
    texts,
    st.integers(0, 2**32),
    st.sampled_from([gzip.compress, zstandard.compress, zlib.compress]),
)
parquets = st.builds(lambda seed: mutated(SAMPLE, random.Random(seed)), st.integers(0, 2**40)) | st.binary(max_size=60)

TARGETS: dict[str, tuple[Any, Callable[[Any, Path], None]]] = {
    "jsonl": (st.tuples(texts, st.sampled_from(MAPPINGS)), lambda case, root: jsonl_bytes(case[0], root, case[1])),
    "gz": (packed | st.binary(max_size=60), lambda data, root: compressed_bytes(data, root, ".gz")),
    "zst": (packed | st.binary(max_size=60), lambda data, root: compressed_bytes(data, root, ".zst")),
    "parquet": (parquets, parquet_bytes),
    "values": (rows, lambda row, _root: json_row(row)),
    "configuration": (fuzzed_configurations.configurations, fuzzed_configurations.check_configuration),
    "scores": (fuzzed_directories.seeds, fuzzed_directories.check_scores),
    "model": (fuzzed_directories.seeds, fuzzed_directories.check_model),
}
WHOLE_RUNS = ("configuration", "scores", "model")  # slower by far


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bestkept-fuzz-") as directory:
        yield Path(directory)


def run(name: str, *, examples: int, derandomize: bool = True) -> None:
    """So many examples for one target; what fails is made small by Hypothesis and raised."""
    strategy, check = TARGETS[name]
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    with scratch() as root:
        quiet(given(strategy)(lambda case: check(case, root)))()


def by_hypothesis(secs: float, names: Sequence[str]) -> None:
    until, done = time.monotonic() + secs, Counter[str]()
    with quick_beam(), mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        while time.monotonic() < until:
            for name in names:
                examples = 30 if name in WHOLE_RUNS else 300
                run(name, examples=examples, derandomize=False)
                done[name] += examples
            sys.stderr.write(f"examples: {dict(done)}; ends of configurations: {dict(fuzzed_configurations.ends)}\n")


def by_atheris(secs: float) -> None:
    """One byte says which reader, the rest is its file."""
    import atheris

    root = Path(tempfile.mkdtemp(prefix="bestkept-fuzz-"))

    def one(data: bytes) -> None:
        kind, rest = data[0] % 5 if data else 0, data[1:]
        if kind == 0:
            jsonl_bytes(rest, root, MAPPINGS[len(rest) % len(MAPPINGS)])
        elif kind in (1, 2):
            compressed_bytes(rest, root, (".gz", ".zst")[kind - 1])
        elif kind == 3:
            parquet_bytes(rest, root)
        else:
            parquet_bytes(mutated(SAMPLE, random.Random(rest)), root)

    corpus = Path(tempfile.mkdtemp(prefix="bestkept-corpus-"))
    text = b'{"prompt": "p", "response": "r", "c": [1, {"a": 1.5}]}\n{"messages": [{"role": "user", "content": "x"}]}\n'
    for number, seed in enumerate(
        [b"\0" + text, b"\1" + gzip.compress(text), b"\2" + zstandard.compress(text), b"\3" + SAMPLE]
    ):
        (corpus / str(number)).write_bytes(seed)
    for module in (jsonl, parquet, fragments, decompress, row_mapping, conversations):
        for each in vars(module).values():
            if isinstance(each, types.FunctionType) and each.__module__ == module.__name__:
                atheris.instrument_func(each)
    atheris.Setup([sys.argv[0], f"-max_total_time={int(secs)}", "-max_len=8192", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    secs = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    names = sys.argv[2:] or list(TARGETS)
    try:
        import atheris  # noqa: F401
    except ImportError:
        by_hypothesis(secs, names)
    else:
        by_hypothesis(secs / 2, names)
        by_atheris(secs / 2)


if __name__ == "__main__":
    main()
