"""Small files that unpack to large ones, and rows that are nothing but structure: refused in bounded memory.

Each case is read in a process of its own, whose peak memory is what it had after imports and little more.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

MIB = 2**20
READ = """
import json, resource, sys
from collections import Counter
from pathlib import Path
import pipelines.score.transform
from pipelines.errors import InputError
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.files import InputFile, kind_of, split_units
from pipelines.corpus.fragments import original_schema, read_fragments

resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1 / 1024)
path, limit = Path(sys.argv[1]), int(sys.argv[2])
file = InputFile(str(path), path.name, *kind_of(path.name), path.stat().st_size, "v")
mapping = RowMapping(format="prompt_response", prompt="prompt", response="response")
before, reasons, error = peak(), Counter(), None
try:
    for unit in split_units(file):
        for fragment in read_fragments(file, unit, mapping, rows_per_fragment=2048, max_row_bytes=limit):
            fragment.content_hash(), original_schema(file, fragment)
            reasons.update(str(row.parsed.reasons[0]) for row in fragment.rows)
except InputError as caught:
    error = caught.message
print(json.dumps({"grown": int(peak() - before), "reasons": reasons, "error": error}))
"""
ROOT = Path(__file__).parents[2]


def read(path: Path, *, max_row_bytes: int = 16 * MIB) -> dict[str, object]:
    command = [sys.executable, "-c", READ, str(path), str(max_row_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def zstd(path: Path, chunk: bytes, count: int, **settings: int) -> Path:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=False, **settings)
    with path.open("wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as writer:
        for _ in range(count):
            writer.write(chunk)
    return path


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_zeros_without_a_line_end(tmp_path, kind):
    """1 GB in a file of 1 MB or 32 KB: one row that is too large."""
    path = tmp_path / f"a.jsonl.{kind}"
    if kind == "gz":
        with gzip.open(path, "wb", 1) as file:
            for _ in range(300):
                file.write(bytes(MIB))
    else:
        zstd(path, bytes(MIB), 1000)
    found = read(path)
    assert found["reasons"] == {"row_too_large": 1}
    assert found["grown"] < 200 * MIB


def test_a_zstd_window_beyond_what_a_reader_must_have(tmp_path):
    found = read(zstd(tmp_path / "a.jsonl.zst", b'{"prompt": "p", "response": "r"}\n', 10, window_log=30))
    assert "its zstd window is over 128 MiB; compress it again without --long" in str(found["error"])
    assert found["grown"] < 200 * MIB


HEAD = b'{"prompt": "p", "response": "r", "x": '
STRUCTURES = {
    "lists in a list": (HEAD + b"[" + b"[]," * 5_000_000 + b"[]]}", "row_too_large"),
    "objects in a list": (HEAD + b"[" + b'{"":{}},' * 1_900_000 + b"{}]}", "row_too_large"),
    "lists in lists": (b"[" * 15_000_000, "row_too_large"),
    "objects in objects": (b'{"a":' * 3_000_000, "row_too_large"),
    "half as many lists": (HEAD + b"[" + b"[]," * 1_000_000 + b"[]]}", "None"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("half")) for name in STRUCTURES]
)
def test_rows_of_nothing_but_structure(tmp_path, name):
    """Five rows below max_row_bytes that would take some 400 MB each."""
    row, reason = STRUCTURES[name]
    (tmp_path / "a.jsonl").write_bytes((row + b"\n") * 5)
    found = read(tmp_path / "a.jsonl")
    assert found["reasons"] == {reason: 5}
    assert found["grown"] < 700 * MIB


@pytest.mark.slow
def test_one_long_value_in_a_dictionary_for_many_rows(tmp_path):
    """5 MB of prompt, once in the file, for 300 rows: 1.5 GB where all of them are decoded at once."""
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 5_000_000]))
    pq.write_table(pa.table({"prompt": rows, "response": ["r"] * 300}), tmp_path / "a.parquet", compression="zstd")
    found = read(tmp_path / "a.parquet")
    assert found["reasons"] == {"None": 300}
    assert found["grown"] < 600 * MIB


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(16 * MIB, "row_too_large"), pytest.param(200 * MIB, "None", marks=pytest.mark.slow)],
)
def test_a_row_of_100_mb(tmp_path, limit, reason):
    row = json.dumps({"prompt": "p", "response": "r" * 100_000_000}).encode()
    (tmp_path / "a.jsonl").write_bytes(row + b"\n" + b'{"prompt": "p", "response": "r"}\n')
    found = read(tmp_path / "a.jsonl", max_row_bytes=limit)
    assert found["reasons"] == ({"None": 2} if reason == "None" else {"row_too_large": 1, "None": 1})
    assert found["grown"] < 800 * MIB


@pytest.mark.slow
def test_a_long_compressed_file_streams(tmp_path):
    """300 MB of rows of 1 to 5 KB."""
    dice = random.Random(0)
    chunk = b"".join(
        json.dumps({"prompt": f"p{n}", "response": dice.randbytes(dice.randint(500, 2500)).hex()}).encode() + b"\n"
        for n in range(1000)
    )
    count = 300 * MIB // len(chunk)
    found = read(zstd(tmp_path / "a.jsonl.zst", chunk, count))
    assert found["reasons"] == {"None": 1000 * count}
    assert found["grown"] < 200 * MIB
