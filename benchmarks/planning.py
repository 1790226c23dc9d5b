"""The time to plan 100,000 small files, and files with a million rows; and the cost of small files in scoring.

`plan_...` is the time to list and freeze the inputs, write the plan file and read it again, as every worker does. `score_...`
is the time of `bestkept score` on small files of one row, with rewards from the rows, minus that on one file with all of these
rows: the cost per file. Each is measured in a separate process, whose peak memory excludes imports.

    python benchmarks/planning.py [--quick] [--json] [--files 100000] [--rows 1000000] [--scored 2000]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.harness import finish, options, resident_mb

_FILES_A_FOLDER = 1_000
_QUICK = 10  # --quick divides all sizes by this


def rows(first: int, count: int) -> Iterator[dict[str, Any]]:
    for number in range(first, first + count):
        yield {"prompt": f"prompt {number // 4}", "response": f"answer {number}", "reward": number % 7}


def write_lines(path: Path, first: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(first, count))


def make_small(root: Path, count: int) -> None:
    """Write files of one row."""
    for number in range(count):
        write_lines(root / f"{number // _FILES_A_FOLDER:04d}" / f"{number:07d}.jsonl", number, 1)


def make_parquet(path: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows(0, count))), path, row_group_size=10_000)


def config_of(corpus: str, output: str) -> Any:
    from pipelines.config import RunConfig

    return RunConfig.model_validate(
        {"input": {"path": corpus}, "scores": {"column": "reward"}, "output": {"path": output}}
    )


def plan(corpus: str, output: str) -> dict[str, float]:
    from pipelines.plan import Plan, make_plans
    from pipelines.score.unit_scores import scores_path

    config = config_of(corpus, output)
    before, started = resident_mb("VmHWM"), time.monotonic()
    paths = make_plans(config).save(scores_path(config))
    frozen = time.monotonic()
    loaded_plan = Plan.load(paths.whole)
    assert loaded_plan.hash
    loaded = time.monotonic()
    figures = {"files": len(loaded_plan.files), "secs": frozen - started, "load_secs": loaded - frozen}
    return {**figures, "mb": resident_mb("VmHWM") - before, "plan_mb": Path(paths.whole).stat().st_size / 1e6}


def score(corpus: str, output: str) -> dict[str, float]:
    from pipelines.commands.run import run_scoring

    config = config_of(corpus, output)
    before, started = resident_mb("VmHWM"), time.monotonic()
    done = run_scoring(config, scorer=None).totals
    return {"rows": done["rows"], "secs": time.monotonic() - started, "mb": resident_mb("VmHWM") - before}


WORK = {"plan": plan, "score": score}


def measure(work: str, corpus: Path, output: Path) -> dict[str, float]:
    """Measure `WORK[work]` in a process of its own."""
    command = [sys.executable, __file__, "--work", work, str(corpus), str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="small ones to be planned")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a large file")
    parser.add_argument("--scored", type=int, default=2_000, help="small files to be scored")
    parser.add_argument("--work", nargs=3, help="for its own processes")
    args = parser.parse_args()
    if args.work:
        print(json.dumps(WORK[args.work[0]](*args.work[1:])))
        return
    share = _QUICK if args.quick else 1
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_small(root / "small", args.files // share)
        write_lines(root / "lines" / "a.jsonl", 0, args.rows // share)
        make_parquet(root / "groups" / "a.parquet", args.rows // share)
        for name in ("small", "lines", "groups"):
            measured = measure("plan", root / name, root / f"{name}-planned")
            figures |= {f"plan_{name}_{key}": value for key, value in measured.items()}
        make_small(root / "scored", args.scored // share)
        write_lines(root / "same" / "a.jsonl", 0, args.scored // share)
        for name in ("scored", "same"):
            measured = measure("score", root / name, root / f"{name}-out")
            figures |= {f"score_{name}_{key}": value for key, value in measured.items()}
        beyond = figures["score_scored_secs"] - figures["score_same_secs"]
        figures["score_ms_per_file"] = 1e3 * beyond / (args.scored // share)
    finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
