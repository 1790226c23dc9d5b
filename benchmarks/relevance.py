"""A relevance filter before best-of-n by length: the foreign responses that it drops, and its cost without any.

    python benchmarks/relevance.py [--quick] [--json] [--prompts 250] [--candidates 16] [--planted 4] [--data FOLDER]

The prompts are those of best_of_56, with responses of 16 of its 56 models each, chosen by a hash. Responses to the most
similar prompt (by shared rare words), or to a random prompt, are planted in each prompt. The longest response is chosen, with
and without the step `on_topic`, whose signal is the cosine in all-MiniLM-L6-v2, at several gaps and at the one determined by
the corpus. Figures are the share of prompts with a planted response as their choice, the shares of planted and own responses
that the filter drops, and the gold score of the choice without planted responses, with its paired difference from the choice
by length alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
from support.harness import data_file, finish, minilm, options

from pipelines.config.prompt_rules import OnTopic
from pipelines.select.candidates import Candidates, zero_columns
from pipelines.select.on_topic import foreign_column, measure_distances, on_topic
from rm.checkpoint.embedding_config import read_embedding
from rm.conversations import count_characters, from_prompt
from rm.embedder import Embedder
from rm.evaluate import Bootstrap, paired_difference
from rm.preferences.similar import similar_prompts
from rm.relevance_gap import SettledGap, settle_gap

GAPS = (0.1, 0.15, 0.2, 0.25, 0.3)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder of Parquet files of the shape of best_of_56")
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--planted", type=int, default=4)
    args = parser.parse_args()
    if args.quick:
        args.prompts = 40
    prompts, rows = read(data_file(args.data, "best_of_56"), args.prompts, args.candidates)
    conversations = [from_prompt(prompt) for prompt in prompts]
    nearest = [near[0] if near else -1 for near in similar_prompts(conversations, count=1)]
    embedder = Embedder.load(minilm(), read_embedding(minilm(), None), device="cpu")
    every = sorted({*prompts, *(row["response"] for mine in rows for row in mine)})
    embedded = embedder.embed(every)
    vectors = dict(zip(every, embedded / np.linalg.norm(embedded, axis=1, keepdims=True), strict=True))
    figures: dict[str, float] = {"prompts": len(prompts), "responses": sum(map(len, rows))}
    for kind in ("none", "similar", "chance"):
        planted = [[] if kind == "none" else draw(rows, nearest, at, args.planted, kind) for at in range(len(rows))]
        texts = [[row["response"] for row in mine] + more for mine, more in zip(rows, planted, strict=True)]
        marks = [
            [row["judge_win_rate"] for row in mine] + [np.nan] * len(more)
            for mine, more in zip(rows, planted, strict=True)
        ]
        gold = np.concatenate(marks)
        table = tabulate(prompts, texts, vectors)
        measured = measure(table, ~np.isnan(gold), gold, planted=kind != "none")
        figures |= {f"{kind}_{name}": value for name, value in measured.items()}
    finish(figures, as_json=args.json)


def read(folder: Path, count: int, candidates: int) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """The first prompts by a hash, and so many rows of each."""

    def order(text: str) -> int:
        return xxhash.xxh3_64_intdigest(text.encode())

    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            by_prompt.setdefault(row["prompt"], []).append(row)
    prompts = sorted(by_prompt, key=order)[:count]
    chosen = [
        sorted(by_prompt[prompt], key=lambda row: order(prompt + row["generator"]))[:candidates] for prompt in prompts
    ]
    return prompts, chosen


def draw(rows: Sequence[Sequence[dict[str, Any]]], nearest: Sequence[int], at: int, count: int, kind: str) -> list[str]:
    """Responses to the most similar prompt of the one at this place, or to one by chance."""
    dice = np.random.default_rng(at)
    other = nearest[at] if kind == "similar" else (at + int(dice.integers(1, len(rows)))) % len(rows)
    return [] if other < 0 else [rows[other][int(n)]["response"] for n in dice.permutation(len(rows[other]))[:count]]


def tabulate(prompts: Sequence[str], texts: Sequence[Sequence[str]], vectors: Mapping[str, np.ndarray]) -> Candidates:
    """The responses as selection has them, with their cosines and those with responses to the next prompt."""
    sizes = [len(group) for group in texts]
    columns: dict[str, Any] = {
        **zero_columns(sum(sizes)),
        "key_high": np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes),
        "length": np.array([count_characters(text) for group in texts for text in group], dtype=np.int32),
    }
    cosines, foreign = [], []
    for at, (prompt, group) in enumerate(zip(prompts, texts, strict=True)):
        other = texts[(at + 1) % len(texts)]
        cosines += [vectors[prompt] @ vectors[text] for text in group]
        foreign += [vectors[prompt] @ vectors[other[n % len(other)]] for n in range(len(group))]
    values = {"relevance": np.array(cosines, dtype=np.float32)}
    return Candidates(**columns, values={**values, foreign_column("relevance"): np.array(foreign, dtype=np.float32)})


def measure(table: Candidates, own: np.ndarray, gold: np.ndarray, *, planted: bool) -> dict[str, float]:
    """The figures of the choice by length, without a gate and behind each."""
    settled = settle_gap(measure_distances(table, "relevance"), OnTopic().max_touched)
    figures = {
        "auto_gap": settled.gap,
        "auto_caught": 100 * (settled.caught or 0),
        "auto_off_topic": 100 * (settled.off_topic or 0),
    }
    gates: dict[str, tuple[OnTopic, SettledGap | None] | None] = {"length": None}
    gates |= {f"gap_{gap}": (OnTopic(gap=gap), None) for gap in GAPS} | {"auto": (OnTopic(), settled)}
    plain = choose(table, np.ones(len(table), dtype=bool))
    for name, gate in gates.items():
        kept = np.ones(len(table), dtype=bool) if gate is None else on_topic(table, *gate)
        choice = choose(table, kept)
        figures[f"{name}_own_dropped"] = 100 * float((~kept[own]).mean())
        if planted:
            figures[f"{name}_planted_dropped"] = 100 * float((~kept[~own]).mean())
            figures[f"{name}_planted_chosen"] = 100 * float((~own[choice]).mean())
        else:
            difference = paired_difference(gold[choice], gold[plain], np.arange(len(choice)), bootstrap=Bootstrap())
            figures[f"{name}_gold"] = float(gold[choice].mean())
            figures |= {f"{name}_gold_{end}": getattr(difference, end) for end in ("value", "low", "high")}
    return figures


def choose(table: Candidates, kept: np.ndarray) -> np.ndarray:
    """The longest of the kept responses to each prompt."""
    order = np.lexsort((-table.length[kept], table.key_high[kept]))
    rows = np.flatnonzero(kept)[order]
    return rows[np.unique(table.key_high[rows], return_index=True)[1]]


if __name__ == "__main__":
    main()
