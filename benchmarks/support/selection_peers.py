"""The same selections by other tools, for `benchmarks/selection.py`: DuckDB, Polars, and Beam row by row."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.harness import collect

THREADS = 2
ROWWISE = 200_000  # rows for Beam row by row, which takes hours for all of them; its time grows with the rows


def _duckdb(root: Path, query: str) -> tuple[float, Any]:
    import duckdb
    import numpy as np

    connection = duckdb.connect(config={"threads": THREADS})
    began = time.perf_counter()
    result = connection.execute(query.format(files=f"read_parquet('{root}/*.parquet', filename=true)")).fetchnumpy()
    secs = time.perf_counter() - began
    files = np.array([int(Path(name).stem) for name in result["filename"].tolist()], dtype=np.int64)
    return secs, np.sort((files << 32) | result["row"])


def duckdb_best(root: Path) -> Any:
    """Deterministic: ties between equal rewards are broken, so that a second run keeps the same rows."""
    return _duckdb(
        root,
        "SELECT filename, row FROM {files} WHERE reward IS NOT NULL QUALIFY row_number() OVER "
        "(PARTITION BY prompt_key ORDER BY reward DESC, response_hash) = 1",
    )


def duckdb_best_any_tie(root: Path) -> Any:
    """DuckDB's fastest form, which may return any of several rows of equal reward."""
    return _duckdb(
        root,
        "SELECT filename, row FROM {files} WHERE reward IS NOT NULL QUALIFY row_number() OVER "
        "(PARTITION BY prompt_key ORDER BY reward DESC) = 1",
    )


def duckdb_where(root: Path) -> Any:
    """Exactly the same numbers: in double precision, then rounded to float32."""
    return _duckdb(
        root,
        "WITH combined AS (SELECT filename, row, prompt_key, response_hash, source, prompt_tokens + response_tokens AS tokens, "
        "CAST(CAST(reward AS DOUBLE) - CAST(0.0005 AS DOUBLE) * response_tokens AS FLOAT) AS reward FROM {files}) "
        "SELECT filename, row FROM combined WHERE reward > -1 AND tokens BETWEEN 200 AND 1000 AND source NOT IN "
        "('source-1', 'source-3') QUALIFY row_number() OVER (PARTITION BY prompt_key ORDER BY reward DESC, response_hash) = 1",
    )


def duckdb_top(root: Path) -> Any:
    return _duckdb(
        root,
        "SELECT filename, row FROM {files} WHERE reward IS NOT NULL QUALIFY row_number() OVER (PARTITION BY source "
        "ORDER BY reward DESC, response_hash) <= floor(0.1 * count(*) OVER (PARTITION BY source))",
    )


def duckdb_top_by_quantile(root: Path) -> Any:
    """DuckDB's fastest form that keeps the same rows: a quantile first, and the window over the rows above it."""
    return _duckdb(
        root,
        "WITH cut AS (SELECT source, quantile_disc(reward, 0.9) AS least, floor(0.1 * count(reward)) AS wanted "
        "FROM {files} GROUP BY source) SELECT filename, row FROM {files} JOIN cut USING (source) WHERE reward >= least "
        "QUALIFY row_number() OVER (PARTITION BY source ORDER BY reward DESC, response_hash) <= "
        "any_value(wanted) OVER (PARTITION BY source)",
    )


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
