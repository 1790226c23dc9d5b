"""Selection compared with what a user would write instead: DuckDB, Polars, and Beam row by row, on the same score files.

The data are 10 million scored rows of 1 million prompts in 40 score files: group sizes are skewed, up to 10,000, and 2 % of
the rewards are null. Every tool has 2 threads; rounds are interleaved, and figures are medians. Each tool runs in a separate
process, and imports are not counted. The tools must select the same rows. Peak memory is that of bestkept's process, including
the interpreter and imports.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import selection_data, selection_ours, selection_peers
from support.harness import finish, options

PROGRAMS: dict[str, Callable[[Path], Any]] = {
    name: program
    for module in (selection_ours, selection_peers)
    for name, program in vars(module).items()
    if name.partition("_")[0] in ("ours", "duckdb", "polars", "rowwise")
}
"""What is measured, by name: a folder of data → (seconds, the rows that are selected, or how many)."""


def child(name: str, root: Path, result: Path) -> None:
    import numpy as np

    secs, selected = PROGRAMS[name](root)
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
    """Run a program once in a process of its own."""
    result = root / f"result-{name}.json"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(selection_peers.THREADS),
        "POLARS_MAX_THREADS": str(selection_peers.THREADS),
    }
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
        {"scores": selection_data.make_scores, "corpus": selection_data.make_corpus}[sys.argv[2]](
            Path(sys.argv[3]), int(sys.argv[4])
        )
    else:
        main()
