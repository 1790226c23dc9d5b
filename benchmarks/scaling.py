"""Two workers of this machine compared with one process with all its cores, and a simulation of a thousand machines.

    python benchmarks/scaling.py [--quick] [--json] [--rounds 3] [--price 0.85] [--fragment-secs 20]

Both score the same generated corpus of random words, with a causal model of 30 layers, alternately. `workers2_vs_1` is the
ratio of tokens per second, a median over the rounds, from the first batch to the last score file; `..._whole_run` includes
starting the processes and loading two models. The simulation (support/scaling_model.py) uses the measured times of the
fragments, scaled to those of a GPU, and is a mean over five draws.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.harness import CACHE, finish, options, smollm2
from support.scaling_model import Circumstances, Forecast, mean, simulate, units_of

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "you",
    "that",
    "it",
    "was",
    "for",
    "are",
    "with",
    "his",
    "they",
    "this",
    "have",
    "word",
]
ROWS_PER_FRAGMENT = 16
CORPUS_FRAGMENTS = 50_000  # of 2,048 rows: 100 million responses


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=None, help="default: 5, quick: 3")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where the model is kept; default {CACHE}")
    parser.add_argument("--fragment-secs", type=float, default=20.0, help="of a fragment on the simulated workers")
    parser.add_argument("--price", type=float, default=0.85, help="of a simulated worker and hour")
    parser.add_argument("--child", nargs=2, metavar=("WORKERS", "ROOT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(score(int(args.child[0]), Path(args.child[1]), smollm2(args.cache))))
        return
    rounds, rows = args.rounds or (3 if args.quick else 5), 256 if args.quick else 768
    smollm2(args.cache)
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder) / "in", rows)
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for number in range(rounds):
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                runs[workers].append(run_once(workers, Path(folder), args.cache))
                run = runs[workers][-1]
                rate = run["tokens"] / run["secs"]
                print(f"round {number + 1}, workers {workers}: {rate:,.0f} tokens/s, {run['whole_secs']:.1f} s")
    figures = compare(runs)
    fragments = np.array([secs for run in runs[1] for secs in run["fragments"]])
    figures |= simulate_fleets(fragments, mean_secs=args.fragment_secs, price=args.price)
    finish(figures, as_json=args.json)


def make_corpus(folder: Path, rows: int, *, files: int = 8) -> None:
    """Write prompts with four responses each, of lognormal lengths; the responses of a prompt stand together."""
    rng = np.random.default_rng(0)

    def text(median: float) -> str:
        return " ".join(rng.choice(WORDS, int(np.clip(rng.lognormal(np.log(median), 0.5), 4, 300))))

    folder.mkdir(parents=True)
    prompts = [text(40) for _ in range(rows // 4)]
    for number in range(files):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            for prompt in prompts[number::files]:
                file.writelines(json.dumps({"prompt": prompt, "response": text(80)}) + "\n" for _ in range(4))


def run_once(workers: int, root: Path, cache: Path) -> dict[str, Any]:
    """Score the corpus from the start in a process of its own, and return its figures."""
    shutil.rmtree(root / "out", ignore_errors=True)
    command = [sys.executable, __file__, "--cache", str(cache), "--child", str(workers), str(root)]
    started = time.monotonic()
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**json.loads(process.stdout.splitlines()[-1]), "whole_secs": time.monotonic() - started}


def score(workers: int, root: Path, model: Path) -> dict[str, Any]:
    """Score the corpus; return tokens, seconds from the first batch to the last score file, and those of each fragment."""
    from pipelines.commands.run import default_scorer, run_scoring
    from pipelines.config import RunConfig
    from pipelines.runtime import progress

    config = RunConfig.model_validate(
        {
            "input": {"path": str(root / "in"), "rows_per_fragment": ROWS_PER_FRAGMENT},
            "model": {"path": str(model), "dtype": "float32", "max_length": 1024},
            "output": {"path": str(root / "out")},
            "runner": {"workers": workers},
        }
    )
    begun: list[float] = []
    ended: list[float] = []
    begin, fragment = progress.begin_fragment, progress.add_fragment
    progress.begin_fragment = lambda **counts: (begun.append(time.monotonic()), begin(**counts))[1]  # type: ignore[misc,func-returns-value]
    progress.add_fragment = lambda **counts: (ended.append(time.monotonic()), fragment(**counts))[1]  # type: ignore[misc,func-returns-value]
    settle, settled = progress.settle, []
    progress.settle = lambda: (settled.append(time.monotonic()), settle())[1]  # type: ignore[misc,func-returns-value]
    outcome = run_scoring(config, scorer=default_scorer(config))
    since = progress.current().since
    assert since is not None
    end = settled[0] if settled else ended[-1]
    fragment_secs = [] if settled else [two - one for one, two in zip(begun, ended, strict=True)]
    return {"tokens": outcome.totals["tokens"], "secs": end - since, "fragments": fragment_secs}


def compare(runs: dict[int, list[dict[str, Any]]]) -> dict[str, float]:
    rate = {
        workers: statistics.median(run["tokens"] / run["secs"] for run in rounds) for workers, rounds in runs.items()
    }
    whole = {workers: statistics.median(run["whole_secs"] for run in rounds) for workers, rounds in runs.items()}
    return {
        "workers2_vs_1": rate[2] / rate[1],
        "workers2_vs_1_whole_run": whole[1] / whole[2],
        "tokens_per_sec_1": rate[1],
        "tokens_per_sec_2": rate[2],
    }


def simulate_fleets(fragments: np.ndarray, *, mean_secs: float, price: float) -> dict[str, float]:
    """Print the table of docs/machines.md, and return its figures."""
    spread = float(fragments.std() / fragments.mean())
    print(
        f"\n{CORPUS_FRAGMENTS:,} fragments of {mean_secs:.0f} s, coefficient of variation {spread:.2f} as measured here"
    )
    print(f"{'':34s}{'workers':>8s}{'hours':>8s}{'efficiency':>12s}{'cost':>10s}{'preempted':>11s}")
    figures = {"fragment_secs_cv": spread}
    for per_unit in (32, 4):
        units = units_of(fragments, fragments=CORPUS_FRAGMENTS, per_unit=per_unit, mean_secs=mean_secs)
        for rate in (0.0, 0.1):
            machines = Circumstances(preemptions_per_hour=rate, price_per_hour=price)
            for workers in (1, 10, 100, 1000):
                forecast = mean([simulate(units, workers, machines, seed=seed) for seed in range(5)])
                print_forecast(per_unit, rate, forecast)
                if rate:
                    figures[f"efficiency_{workers}_workers_{per_unit}_per_unit"] = forecast.efficiency
    return figures


def print_forecast(per_unit: int, rate: float, run: Forecast) -> None:
    label = f"{per_unit} fragments a unit, {f'{rate:g} preempted/h' if rate else 'none preempted'}"
    numbers = f"{run.workers:8,d}{run.secs / 3600:8.1f}{run.efficiency:12.1%}{run.cost:10,.0f}{run.preempted:11,d}"
    print(f"{label:34s}{numbers}")


if __name__ == "__main__":
    main()
