"""Selection against what a user would write instead: DuckDB, Polars, and Beam row by row, on the same score files.

10 million scored rows of 1 million prompts in 40 score files: group sizes are skewed, up to 10,000; 2 % of the rewards are null.
Every tool gets 2 threads; rounds are interleaved and the median counts; each runs in a process of its own, imports not counted.
The rows that the tools select must be the same. Peak memory is that of our process, the interpreter and imports included.

    python benchmarks/selection.py [--quick] [--json] [--rows 10000000]
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.harness import COLLECTED, collect, finish, options

FILES = 40
SOURCES = 8
THREADS = 2
ROWWISE = 200_000  # rows for Beam row by row, which takes hours for all of them; its time grows with the rows
WORK: dict[str, Callable[[Path], Any]] = {}


def work(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    WORK[function.__name__] = function
    return function


# --- data ------------------------------------------------------------------------------------------------------------


def make_scores(root: Path, rows: int) -> None:
    """Write score files as scoring publishes them, `rows` responses in all, and a list of their descriptors."""
    import numpy as np
    import pyarrow as pa

    from pipelines.score import score_files

    rng = np.random.default_rng(0)
    prompts = max(1, rows // 10)
    weights = np.minimum(rng.pareto(1.5, prompts) + 0.2, 10_000.0)
    weights[0] = 10_000 * weights.mean() / (rows / prompts)
    prompt = rng.choice(prompts, size=rows, p=weights / weights.sum()).astype(np.int64)
    keys = rng.bytes(16 * prompts)
    key_table = np.frombuffer(keys, dtype="V16")
    per_file = -(-rows // FILES)
    descriptors = []
    for number in range(FILES):
        prompts_of_file = prompt[number * per_file : (number + 1) * per_file]
        count = len(prompts_of_file)
        null = rng.random(count) < 0.02
        reward = rng.normal(size=count).astype(np.float32)
        chars = rng.integers(20, 4000, count).astype(np.int32)
        columns = {
            "row": np.arange(count, dtype=np.int32),
            "response_index": np.zeros(count, dtype=np.int32),
            "prompt_key": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), count, [None, pa.py_buffer(key_table[prompts_of_file].tobytes())]
            ),
            "response_hash": rng.integers(0, 2**64, count, dtype=np.uint64),
            "reward": pa.array(reward, mask=null),
            "reason": pa.array(np.where(null, "nan_reward", None).tolist(), pa.string()),
            "prompt_tokens": rng.integers(5, 500, count).astype(np.int32),
            "response_tokens": chars // 4,
            "response_chars": chars,
            "row_bytes": chars.astype(np.int64) + 300,
            "truncated": pa.array(np.zeros(count, dtype=bool)),
            "source": pa.array([f"source-{n}" for n in range(SOURCES)]).take(pa.array(prompts_of_file % SOURCES)),
        }
        table = pa.table([pa.array(columns[f.name]) for f in score_files.COLUMNS], schema=score_files.COLUMNS)
        footer = score_files.Footer(
            fingerprint="benchmark", file_key=f"{number:02d}", file_size=1, file_version="1", unit=0, unit_start=0,
            fragment=0, rows=count, last=True, responses=count, scored=int((~null).sum()),
            rejected={"nan_reward": int(null.sum())}, first_rejected=[], truncated=0, tokens=0,
            text_bytes=int(chars.sum()) + 300 * count, content_hash="",
        )  # fmt: skip
        path = root / f"{number:02d}.parquet"
        path.write_bytes(score_files.encode(table, footer, ""))
        descriptors.append(score_files.ScoreFile(str(path), number, footer).to_bytes().decode())
    (root / "descriptors.json").write_text(json.dumps(descriptors))


def make_corpus(root: Path, rows: int) -> None:
    """Write a corpus of `rows` responses of about 1.5 KB, 10 to a prompt, with rewards of its own, and its score files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.commands.run import run_scoring

    rng = np.random.default_rng(1)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 11, 20_000)])
    (root / "in").mkdir()
    per_file = -(-rows // 8)
    for number in range(8):
        prompt = [f"prompt number {n // 10}: say it again" for n in range(number * per_file, (number + 1) * per_file)]
        text = [" ".join(words[rng.integers(0, len(words), 210)]) for _ in range(per_file)]
        table = pa.table({"prompt": prompt, "response": text, "reward": rng.normal(size=per_file).astype(np.float32)})
        pq.write_table(table, root / "in" / f"{number}.parquet", row_group_size=25_000, compression="zstd")
    run_scoring(export_config(root), scorer=None)


def export_config(root: Path, out: str = "out", *, report: bool = False) -> Any:
    from pipelines.config import RunConfig

    return RunConfig.model_validate(
        {
            "input": {"path": str(root / "in"), "rows_per_fragment": 25_000},
            "scores": {"path": str(root / "scores"), "column": "reward"},
            "output": {"path": str(root / out)},
            "report": {"write": report},
        }
    )


# --- ours ------------------------------------------------------------------------------------------------------------


def _select(root: Path, steps: list[Any]) -> tuple[float, Any]:
    import apache_beam as beam
    import numpy as np
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from pipelines.config import Limits, RunConfig
    from pipelines.select.columns import unpack
    from pipelines.select.selection import Selection, needs_of
    from pipelines.select.transform import Select

    config = RunConfig.model_validate(
        {"input": {"path": "x"}, "model": {"path": "x"}, "output": {"path": "x"}, "select": steps}
    )
    needs = needs_of(config)
    descriptors = [text.encode() for text in json.loads((root / "descriptors.json").read_text())]
    began = time.perf_counter()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    selection = Selection(tuple(config.select), needs, None, 16)
    selected = (
        pipeline
        | "Files" >> beam.Create(descriptors)
        | "Spread" >> beam.Reshuffle()
        | "Select" >> Select(selection, Limits(max_rejected_fraction=1.0), with_schemas=False)
    )
    _ = selected["kept"] | "Keep" >> beam.Map(collect)
    pipeline.run().wait_until_finish()
    secs = time.perf_counter() - began
    ids = [(k.file, unpack([k.kept], needs.kept).row) for k in COLLECTED]
    return secs, np.sort(np.concatenate([(np.int64(file) << 32) | row for file, row in ids]))


@work
def ours_best(root: Path) -> Any:
    return _select(root, [{"best_of_n": {"min_candidates": 1}}])


@work
def ours_top(root: Path) -> Any:
    return _select(root, [{"top": {"fraction": 0.1, "per": "source"}}])


@work
def ours_where(root: Path) -> Any:
    """A reward made of two numbers, a bound on it, on the tokens and on the source, then the best of each prompt."""
    steps = [
        {"reward": "reward - 0.0005 * response_tokens"},
        {"where": 'reward > -1 and 200 <= tokens <= 1000 and source not in ["source-1", "source-3"]'},
        {"best_of_n": {"min_candidates": 1}},
    ]
    return _select(root, steps)


@work
def ours_export(root: Path) -> Any:
    """Run without the report, which no other tool writes."""
    return _export(root, report=False)


@work
def ours_export_and_report(root: Path) -> Any:
    return _export(root, report=True)


def _export(root: Path, *, report: bool) -> Any:
    from pipelines.commands.run import run_curation

    out = f"out-{time.time_ns()}"
    config = export_config(root, out, report=report)
    began = time.perf_counter()
    outcome = run_curation(config, scorer=None)
    return time.perf_counter() - began, outcome.manifest["counts"]["kept"]  # type: ignore[index]


# --- peers -----------------------------------------------------------------------------------------------------------


def _duckdb(root: Path, query: str) -> tuple[float, Any]:
    import duckdb
    import numpy as np

    connection = duckdb.connect(config={"threads": THREADS})
    began = time.perf_counter()
    result = connection.execute(query.format(files=f"read_parquet('{root}/*.parquet', filename=true)")).fetchnumpy()
    secs = time.perf_counter() - began
    files = np.array([int(Path(name).stem) for name in result["filename"].tolist()], dtype=np.int64)
    return secs, np.sort((files << 32) | result["row"])


@work
def duckdb_best(root: Path) -> Any:
    """The same rows for certain: ties between equal rewards are broken, so that a second run keeps them too."""
    return _duckdb(
        root,
        "SELECT filename, row FROM {files} WHERE reward IS NOT NULL QUALIFY row_number() OVER "
        "(PARTITION BY prompt_key ORDER BY reward DESC, response_hash) = 1",
    )


@work
def duckdb_best_any_tie(root: Path) -> Any:
    """DuckDB's fastest form, in which any of several rows of equal reward may come out."""
    return _duckdb(
        root,
        "SELECT filename, row FROM {files} WHERE reward IS NOT NULL QUALIFY row_number() OVER "
        "(PARTITION BY prompt_key ORDER BY reward DESC) = 1",
    )


@work
def duckdb_where(root: Path) -> Any:
    """The same numbers for certain: in double precision, then rounded to float32."""
    return _duckdb(
        root,
        "WITH combined AS (SELECT filename, row, prompt_key, response_hash, source, prompt_tokens + response_tokens AS tokens, "
        "CAST(CAST(reward AS DOUBLE) - CAST(0.0005 AS DOUBLE) * response_tokens AS FLOAT) AS reward FROM {files}) "
        "SELECT filename, row FROM combined WHERE reward > -1 AND tokens BETWEEN 200 AND 1000 AND source NOT IN "
        "('source-1', 'source-3') QUALIFY row_number() OVER (PARTITION BY prompt_key ORDER BY reward DESC, response_hash) = 1",
    )


@work
def duckdb_top(root: Path) -> Any:
    return _duckdb(
        root,
        "SELECT filename, row FROM {files} WHERE reward IS NOT NULL QUALIFY row_number() OVER (PARTITION BY source "
        "ORDER BY reward DESC, response_hash) <= floor(0.1 * count(*) OVER (PARTITION BY source))",
    )


@work
def duckdb_top_by_quantile(root: Path) -> Any:
    """DuckDB's fastest form that keeps the same rows: a quantile first, and the window over what lies above it."""
    return _duckdb(
        root,
        "WITH cut AS (SELECT source, quantile_disc(reward, 0.9) AS least, floor(0.1 * count(reward)) AS wanted "
        "FROM {files} GROUP BY source) SELECT filename, row FROM {files} JOIN cut USING (source) WHERE reward >= least "
        "QUALIFY row_number() OVER (PARTITION BY source ORDER BY reward DESC, response_hash) <= "
        "any_value(wanted) OVER (PARTITION BY source)",
    )


@work
def polars_best(root: Path) -> Any:
    import numpy as np
    import polars as pl

    began = time.perf_counter()
    best = (
        pl.scan_parquet(f"{root}/*.parquet", include_file_paths="filename")
        .filter(pl.col("reward").is_not_null())
        .select("filename", "row", "prompt_key", "reward", "response_hash")
        .group_by("prompt_key")
        .agg(pl.struct("filename", "row").sort_by(["reward", "response_hash"], descending=[True, False]).first())
        .collect()
    )
    secs = time.perf_counter() - began
    places = best["filename"].struct.unnest()
    files = np.array([int(Path(name).stem) for name in places["filename"].to_list()], dtype=np.int64)
    return secs, np.sort((files << 32) | places["row"].to_numpy())


@work
def rowwise_best(root: Path) -> Any:
    """A GroupByKey over the first rows; the caller scales the time to all of them."""
    import apache_beam as beam
    import pyarrow.parquet as pq
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    names = ["prompt_key", "reward", "response_hash", "row"]
    part = pq.read_table(root / "00.parquet", columns=names).slice(0, ROWWISE)
    table = zip(*(part[name].to_pylist() for name in names), strict=True)
    # hashes are unsigned, Beam's integers signed: as bytes they keep their order
    rows = [(key, reward, hashed.to_bytes(8, "big"), row) for key, reward, hashed, row in table if reward is not None]
    began = time.perf_counter()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    _ = (
        pipeline
        | "Rows" >> beam.Create(rows)
        | "Key" >> beam.MapTuple(lambda key, reward, hashed, row: (key, (reward, hashed, row)))
        | "Group" >> beam.GroupByKey()
        | "Best" >> beam.MapTuple(lambda _, values: min(values, key=lambda row: (-row[0], row[1])))
        | "Keep" >> beam.Map(collect)
    )
    pipeline.run().wait_until_finish()
    return time.perf_counter() - began, part.num_rows


@work
def duckdb_export(root: Path) -> Any:
    """Join the text to its score, take the best of each prompt, write Parquet."""
    import duckdb

    connection = duckdb.connect(config={"threads": THREADS, "preserve_insertion_order": False})
    out = root / f"duckdb-{time.time_ns()}.parquet"
    began = time.perf_counter()
    connection.execute(f"""
        COPY (
            WITH best AS (
                SELECT filename, file_row_number FROM (
                    SELECT filename, file_row_number, prompt, reward
                    FROM read_parquet('{root}/in/*.parquet', filename=true, file_row_number=true)
                ) QUALIFY row_number() OVER (PARTITION BY prompt ORDER BY reward DESC) = 1
            )
            SELECT text.prompt, text.response, text.reward
            FROM read_parquet('{root}/in/*.parquet', filename=true, file_row_number=true) AS text
            JOIN best USING (filename, file_row_number)
        ) TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)
    """)
    secs = time.perf_counter() - began
    count = connection.execute(f"SELECT count(*) FROM '{out}'").fetchone()
    return secs, count[0] if count else 0


# --- the run ---------------------------------------------------------------------------------------------------------


def child(name: str, root: Path, result: Path) -> None:
    import numpy as np

    secs, selected = WORK[name](root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    rows = None
    if isinstance(selected, np.ndarray):
        np.save(result.with_suffix(".npy"), selected)
    else:
        rows = selected
    result.write_text(json.dumps({"secs": secs, "peak_gb": peak, "rows": rows}))


def make(name: str, root: Path, rows: int) -> None:
    """Make data in a process of its own: a child's peak memory is at least that of its parent."""
    root.mkdir()
    subprocess.run([sys.executable, __file__, "--make", name, str(root), str(rows)], check=True)


def measure(name: str, root: Path) -> dict[str, Any]:
    """Run `WORK[name]` once in a process of its own."""
    result = root / f"result-{name}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "POLARS_MAX_THREADS": str(THREADS)}
    subprocess.run([sys.executable, __file__, "--child", name, str(root), str(result)], check=True, env=environment)
    values: dict[str, Any] = json.loads(result.read_text())
    return values


def rounds(names: list[str], root: Path, count: int) -> dict[str, dict[str, Any]]:
    """Median seconds and largest peak of each, the rounds interleaved."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(count):
        for name in names:
            runs[name].append(measure(name, root))
    summary = {}
    for name, values in runs.items():
        summary[name] = {
            "secs": statistics.median(value["secs"] for value in values),
            "peak_gb": max(value["peak_gb"] for value in values),
            "rows": values[0]["rows"],
        }
        print(f"{name:22s} {summary[name]['secs']:8.2f} s   peak {summary[name]['peak_gb']:.2f} GB", flush=True)
    return summary


def check_same(root: Path, one: str, other: str) -> None:
    import numpy as np

    left, right = (np.load(root / f"result-{name}.npy") for name in (one, other))
    if not np.array_equal(left, right):
        sys.exit(f"{one} and {other} selected different rows: {len(left)} and {len(right)}")
    print(f"{one} and {other} selected the same {len(left):,} rows")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--text-rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["select", "export"])
    parser.add_argument("--scratch", type=Path, help="a folder for the data; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows = min(arguments.rows, 2_000_000)
        arguments.text_rows, arguments.rounds = min(arguments.text_rows, 100_000), 1
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        peaks = []
        if arguments.only != "export":
            peaks += selection_figures(Path(scratch), arguments, figures)
        if arguments.only != "select":
            peaks += export_figures(Path(scratch), arguments, figures)
    figures["peak_memory_gb"] = max(peaks)
    finish(figures, as_json=arguments.json)


def selection_figures(scratch: Path, arguments: Any, figures: dict[str, float]) -> list[float]:
    small, large = scratch / "small", scratch / "large"
    for root, rows in ((small, arguments.rows // 10), (large, arguments.rows)):
        make("scores", root, rows)
        print(f"{rows:,} rows made", flush=True)
    names = ["ours_best", "duckdb_best", "duckdb_best_any_tie", "polars_best"]
    names += ["ours_where", "duckdb_where", "ours_top", "duckdb_top", "duckdb_top_by_quantile"]
    measured = rounds(names, large, arguments.rounds)
    for name in names:
        kind = next(kind for kind in ("best", "where", "top") if kind in name)
        check_same(large, f"ours_{kind}", name)
    growth = rounds(["ours_best", "ours_top"], small, arguments.rounds)
    rowwise = measure("rowwise_best", large)
    whole = rowwise["secs"] * arguments.rows / rowwise["rows"]
    print(
        f"rowwise_best           {rowwise['secs']:8.2f} s for {rowwise['rows']:,} rows; {whole:.0f} s for all, in proportion"
    )
    secs = {name: values["secs"] for name, values in measured.items()}
    figures["best_of_1_time_vs_duckdb"] = secs["ours_best"] / secs["duckdb_best"]
    figures["best_of_1_time_vs_duckdb_any_tie"] = secs["ours_best"] / secs["duckdb_best_any_tie"]
    figures["best_of_1_time_vs_polars"] = secs["ours_best"] / secs["polars_best"]
    figures["best_of_1_time_vs_rowwise_beam"] = secs["ours_best"] / whole
    figures["where_time_vs_duckdb"] = secs["ours_where"] / secs["duckdb_where"]
    figures["top_fraction_time_vs_duckdb"] = secs["ours_top"] / secs["duckdb_top"]
    figures["top_fraction_time_vs_duckdb_by_quantile"] = secs["ours_top"] / secs["duckdb_top_by_quantile"]
    figures["best_of_1_secs"], figures["top_fraction_secs"] = secs["ours_best"], secs["ours_top"]
    figures["best_of_1_growth_for_10x_rows"] = secs["ours_best"] / growth["ours_best"]["secs"]
    figures["top_fraction_growth_for_10x_rows"] = secs["ours_top"] / growth["ours_top"]["secs"]
    return [measured[name]["peak_gb"] for name in ("ours_best", "ours_top")]


def export_figures(scratch: Path, arguments: Any, figures: dict[str, float]) -> list[float]:
    root = scratch / "text"
    make("corpus", root, arguments.text_rows)
    print(f"{arguments.text_rows:,} responses of text made", flush=True)
    measured = rounds(["ours_export", "ours_export_and_report", "duckdb_export"], root, arguments.rounds)
    if measured["ours_export"]["rows"] != measured["duckdb_export"]["rows"]:
        sys.exit(f"different numbers of rows: {measured}")
    figures["export_time_vs_duckdb"] = measured["ours_export"]["secs"] / measured["duckdb_export"]["secs"]
    figures["report_time_ratio"] = measured["ours_export_and_report"]["secs"] / measured["ours_export"]["secs"]
    figures["export_peak_memory_gb"] = measured["ours_export"]["peak_gb"]
    return [measured["ours_export"]["peak_gb"]]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["--make"]:
        {"scores": make_scores, "corpus": make_corpus}[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
