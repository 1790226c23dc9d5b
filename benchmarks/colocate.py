"""`score.colocate: prompt` compared with scoring without it, on a corpus whose responses to one prompt are in different files.

    python benchmarks/colocate.py [--quick] [--json] [--corpus FOLDER --prompts N] [--threads N]

The script makes the corpus: prompts of 150 words, and a file for each of 8 generators with one response of 50 words to each
prompt. `--corpus` adds rows of real Parquet files: those of the first N prompts of the first file, from all files. The model
is SmolLM2-135M in float32 with a random head. Both methods score the same files with a newly loaded model, in rotating order.
`..._gain` is the seconds of forward passes without colocation divided by those with it, `..._tokens_gain` the same for
computed tokens, and `..._cpu_gain` for the processor time of the whole command, including loading, reading and shuffling,
which other processes do not falsify; all are medians over rounds. `..._apart` is the largest difference between two rewards
divided by their standard deviation.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from support.harness import CACHE, ROOT, finish, options, smollm2

sys.path.insert(0, str(ROOT))

TOLERANCE = 1e-3
"""Share of the rewards' standard deviation beyond which the two ways do not score the same texts."""
FILES = 8
PROMPT_WORDS, RESPONSE_WORDS = 150, 50
WORDS = [
    "river",
    "the",
    "counts",
    "of",
    "seven",
    "green",
    "and",
    "letters",
    "walk",
    "to",
    "paper",
    "houses",
    "in",
    "winter",
]


def main() -> None:
    import torch

    parser = options(__doc__)
    parser.add_argument("--corpus", type=Path, help="a folder of Parquet files with the columns prompt and response")
    parser.add_argument("--prompts", type=int, help="how many; default 4 with --quick, else 16")
    parser.add_argument("--rounds", type=int, help="default 1 with --quick, else 3")
    parser.add_argument("--max-length", type=int, default=1024, help="of the model, in tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where the model is kept; default {CACHE}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = args.prompts or (4 if args.quick else 16)
    model = smollm2(args.cache)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpora = {"made": make_corpus(Path(folder) / "made", prompts)}
        if args.corpus is not None:
            corpora["real"] = copy_part(args.corpus, Path(folder) / "real", prompts)
        for name, corpus in corpora.items():
            rounds = args.rounds or (1 if args.quick else 3)
            settings = {"path": str(model), "dtype": "float32", "max_length": args.max_length}
            figures |= contest(name, corpus, settings, Path(folder) / f"{name}-out", rounds=rounds)
    finish(figures, as_json=args.json)
    wrong = [f"{name} {value:.2g}" for name, value in figures.items() if name.endswith("_apart") and value > TOLERANCE]
    if wrong:
        sys.exit(f"rewards differ by more than {TOLERANCE:g} of their standard deviation: {', '.join(wrong)}")


def make_corpus(folder: Path, prompts: int) -> Path:
    """Write a file for each generator, with one response to each prompt."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    prompt_texts = [text(PROMPT_WORDS) for _ in range(prompts)]
    folder.mkdir()
    for number in range(FILES):
        rows = {"prompt": prompt_texts, "response": [text(RESPONSE_WORDS) for _ in prompt_texts]}
        pq.write_table(pa.table(rows), folder / f"generator-{number}.parquet")
    return folder


def copy_part(corpus: Path, folder: Path, prompts: int) -> Path:
    """Copy the rows of the first prompts from all files of a corpus."""
    folder.mkdir()
    files = sorted(corpus.glob("*.parquet"))
    if not files:
        sys.exit(f"{corpus} has no *.parquet; name a folder of them with the columns prompt and response")
    chosen = pq.read_table(files[0], columns=["prompt"])["prompt"].unique().slice(0, prompts)
    for path in files:
        table = pq.read_table(path, columns=["prompt", "response"])
        pq.write_table(table.filter(pc.is_in(table["prompt"], chosen)), folder / path.name)
    return folder


def contest(name: str, corpus: Path, model: dict[str, Any], out: Path, *, rounds: int) -> dict[str, float]:
    """Score the same files both ways, in turn, and return the figures of the comparison."""
    ways: list[str | None] = [None, "prompt"]
    runs: dict[str | None, list[dict[str, Any]]] = {way: [] for way in ways}
    rewards = {}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            place = out / f"{way}-{number}"
            began = time.process_time()
            runs[way].append(score(corpus, model, place, way))
            runs[way][-1]["cpu_secs"] = time.process_time() - began
            rewards[way] = np.concatenate(list(rewards_in(place)))
    rows = len(rewards[None])
    print(f"{name}: {rows} responses in {len(list(corpus.iterdir()))} files")
    for way in ways:
        run = runs[way][-1]["throughput"]
        secs = statistics.median(entry["throughput"]["forward_secs"] for entry in runs[way])
        cpu = statistics.median(entry["cpu_secs"] for entry in runs[way])
        print(
            f"    colocate {way or 'off':6s} {run['tokens_read']:9,d} tokens read {run['tokens_computed']:9,d} computed"
            f" {secs:8.2f} s of forwards {cpu:8.2f} s of processor time in all",
            flush=True,
        )

    def gain(*path: str) -> float:
        def value(run: Any) -> float:
            for step in path:
                run = run[step]
            return float(run)

        return statistics.median(value(a) / value(b) for a, b in zip(runs[None], runs["prompt"], strict=True))

    return {
        f"{name}_gain": gain("throughput", "forward_secs"),
        f"{name}_tokens_gain": gain("throughput", "tokens_computed"),
        f"{name}_cpu_gain": gain("cpu_secs"),
        f"{name}_apart": float(np.nanmax(np.abs(rewards["prompt"] - rewards[None])) / np.nanstd(rewards[None])),
    }


def score(corpus: Path, model: dict[str, Any], out: Path, colocate: str | None) -> dict[str, Any]:
    """Score the corpus and return the content of `run.json`."""
    from pipelines.commands.run import default_scorer, run_scoring
    from pipelines.config import RunConfig

    values = {
        "input": {"path": str(corpus)},
        "model": model,
        "output": {"path": str(out)},
        "score": {"colocate": colocate},
    }
    config = RunConfig.model_validate(values)
    run_scoring(config, scorer=default_scorer(config))
    record: dict[str, Any] = json.loads((out / "scores" / "run.json").read_text())
    return record


def rewards_in(out: Path) -> Iterator[np.ndarray]:
    """Read the rewards of all score files, which have the same names in both runs."""
    for path in sorted(out.glob("scores/*/*.parquet")):
        yield pq.read_table(path, columns=["reward"])["reward"].to_numpy()


if __name__ == "__main__":
    main()
