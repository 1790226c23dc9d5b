"""Near-duplicates: time and memory beside rensa and datasketch, recall on planted copies, false positives.

    python benchmarks/near_duplicates.py --quick --json near.json   # 20,000 responses, a minute
    python benchmarks/near_duplicates.py                            # 1,000,000 responses

Each program has the same responses in memory and one thread, and answers the same question: which pairs are near-duplicates, by
128 values over runs of 3 words. The peers get their runs from a plain split into words, which is part of their time as reading
the words is of ours. Each runs in a process of its own, whose peak of memory beyond the texts is told. Recall is by the kind of
change and by the true Jaccard similarity of a pair; false positives are pairs that are said to be alike at 0.8 and whose true
similarity is less than 0.7. The figure `near_duplicates_time_vs_peer` is our time over that of the fastest peer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SIMILARITY, WORDS = 0.8, 3
SHARED = Path(__file__).parents[2] / "shared" / "data"
KINDS = ("words swapped", "other case", "a sentence more")


def vocabulary() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10))) for _ in range(30_000)]


def make_texts(count: int) -> Iterator[tuple[str, str, int]]:
    """(text, kind of change or "", number of the text it was made from): every fifth text is a changed copy of another."""
    rng, words = random.Random(1), vocabulary()
    weights = np.cumsum(1.0 / np.arange(3, len(words) + 3)).tolist()
    originals: list[list[str]] = []
    for number in range(count):
        if number % 5 < 4:
            text = rng.choices(words, cum_weights=weights, k=rng.randrange(60, 240))
            originals.append(text)
            yield " ".join(text), "", number
            continue
        at = rng.randrange(max(0, len(originals) - 50_000), len(originals))
        kind = KINDS[number // 5 % 3]
        yield change(originals[at], kind, rng), kind, at // 4 * 5 + at % 4


def change(words: list[str], kind: str, rng: random.Random) -> str:
    words = list(words)
    if kind == "words swapped":
        for _ in range(max(1, len(words) // 100)):
            at = rng.randrange(len(words) - 1)
            words[at], words[at + 1] = words[at + 1], words[at]
    elif kind == "other case":
        return ", ".join(words).upper() + "."
    else:
        words += rng.sample(words, max(2, len(words) // 20))
    return " ".join(words)


def ours(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs of a text and the one that is kept in its stead, by the functions of the step `near_duplicates`."""
    from pipelines.score.minhash import signatures_of
    from pipelines.select import duplicates

    signatures = np.concatenate([signatures_of(texts[at : at + 2048], WORDS) for at in range(0, len(texts), 2048)])
    needed = duplicates.needed_of(SIMILARITY)
    nodes = np.zeros(len(texts), dtype=duplicates.NODE)
    nodes["worst"] = np.arange(len(texts))
    nodes["place"]["row"] = np.arange(len(texts))
    wanted = []
    buckets = max(1, len(texts) // 50_000)
    hashes = np.concatenate(
        [duplicates.band_hashes(signatures[at : at + 65_536], needed) for at in range(0, len(texts), 65_536)]
    )
    for bucket in range(buckets):
        row, band = np.nonzero(hashes % np.uint64(buckets) == bucket)
        bands = np.zeros(len(row), dtype=duplicates.BAND)
        bands["hash"], bands["place"] = hashes[row, band], nodes["place"][row]
        wanted.append(duplicates.groups_of(bands))
    every = duplicates.unique(np.concatenate(wanted))
    edges = []
    for bucket in range(buckets):
        part = every[every["group"] % np.uint64(buckets) == bucket]
        members = np.zeros(len(part), dtype=duplicates.MEMBER)
        at = part["place"]["row"]
        members["group"], members["node"], members["signature"] = part["group"], nodes[at], signatures[at]
        edges.append(duplicates.compare_groups(members, needed))
    dropped = duplicates.drop_alike(edges)
    return list(zip(dropped["place"]["row"].tolist(), dropped["kept"]["row"].tolist(), strict=True))


def shingles(text: str) -> list[str]:
    words = text.lower().replace(",", " ").replace(".", " ").split()
    return [" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))]


def rensa(texts: list[str]) -> list[tuple[int, int]]:
    from rensa import RMinHash, RMinHashLSH

    lsh = RMinHashLSH(threshold=SIMILARITY, num_perm=128, num_bands=16)
    sketches, pairs = [], []
    for number, text in enumerate(texts):
        sketch = RMinHash(num_perm=128, seed=1)
        sketch.update(shingles(text))
        other = next((at for at in lsh.query(sketch) if sketch.jaccard(sketches[at]) >= SIMILARITY), None)
        if other is not None:
            pairs.append((number, other))
        lsh.insert(number, sketch)
        sketches.append(sketch)
    return pairs


def datasketch(texts: list[str]) -> list[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=SIMILARITY, num_perm=128)
    sketches, pairs = [], []
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        other = next((at for at in lsh.query(sketch) if sketch.jaccard(sketches[at]) >= SIMILARITY), None)
        if other is not None:
            pairs.append((number, other))
        lsh.insert(number, sketch, check_duplication=False)
        sketches.append(sketch)
    return pairs


def _measure(program: Callable[[list[str]], list[tuple[int, int]]], count: int, answer: Any) -> None:
    texts = [text for text, _, _ in make_texts(count)]
    program(texts[:100])  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    pairs = program(texts)
    secs, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send({"secs": secs, "cpu_secs": cpu, "peak_mb": (peak - before) / 1024, "pairs": pairs})


def measure(program: Callable[[list[str]], list[tuple[int, int]]], count: int) -> dict[str, Any]:
    """Time and memory of a program in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(program, count, sender))
    process.start()
    result: dict[str, Any] = receiver.recv()
    process.join()
    return result


def true_similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts by the words that our signatures are made of."""
    from pipelines.corpus.word_hashes import ngrams_of, words_of

    first, second = (set(ngrams_of(words_of([text]), WORDS, shorter=True).hashes.tolist()) for text in (one, other))
    return len(first & second) / len(first | second) if first or second else float(one == other)


def recall(count: int, pairs: list[tuple[int, int]]) -> dict[str, Any]:
    """Shares of planted copies that are connected with their original, by kind and by true similarity; false pairs."""
    texts = list(make_texts(count))
    label = dict(pairs)
    together = lambda one, other: label.get(one, one) == label.get(other, other)  # noqa: E731
    by: dict[str, list[bool]] = {}
    for number, (text, kind, source) in enumerate(texts):
        if kind:
            similarity = true_similarity(text, texts[source][0])
            found = together(number, source)
            by.setdefault(kind, []).append(found)
            step = min(0.95, int(similarity * 20) / 20)
            by.setdefault(f"similarity {step:.2f} to {step + 0.05:.2f}", []).append(found)
            if similarity >= SIMILARITY + 0.09:
                by.setdefault("similarity of 0.89 and more", []).append(found)
    false = sum(true_similarity(texts[one][0], texts[other][0]) < 0.7 for one, other in pairs[:5000])
    return {
        "recall": {name: {"found": sum(found), "of": len(found)} for name, found in sorted(by.items())},
        "false_pairs": false,
        "pairs_looked_at": min(len(pairs), 5000),
    }


def on_best_of_56() -> dict[str, Any] | None:
    """Near-duplicate prompts and responses of a real corpus, and those that are not alike by true similarity."""
    paths = sorted(SHARED.glob("best_of_56*/**/*.parquet")) or sorted(SHARED.glob("**/best_of_56*.parquet"))
    if not paths:
        return None
    table = pq.read_table(paths)
    column = next(name for name in ("responses", "completions", "response", "text") if name in table.column_names)
    texts = [text for row in table[column].to_pylist() for text in (row if isinstance(row, list) else [row])]
    texts = [text if isinstance(text, str) else str(text) for text in texts]
    pairs = ours(texts)
    false = sum(true_similarity(texts[one], texts[other]) < 0.7 for one, other in pairs)
    return {"responses": len(texts), "near_duplicates": len(pairs), "of_these_below_0.7": false}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--responses", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="20,000 responses")
    parser.add_argument("--without", nargs="*", default=[], choices=["rensa", "datasketch"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = 20_000 if options.quick else options.responses
    programs = [program for program in (ours, rensa, datasketch) if program.__name__ not in options.without]
    results = {program.__name__: measure(program, count) for program in programs}
    quality = {name: recall(count, result.pop("pairs")) for name, result in results.items()}
    for name, result in results.items():
        print(f"{name:12} {result['cpu_secs']:8.1f} s of one core, {result['peak_mb']:8.0f} MB", file=sys.stderr)
    peers = [result["cpu_secs"] for name, result in results.items() if name != "ours"]
    figures: dict[str, Any] = {
        "responses": count,
        "programs": results,
        "quality": quality,
        "best_of_56": on_best_of_56(),
    }
    if peers:
        figures["near_duplicates_time_vs_peer"] = results["ours"]["cpu_secs"] / min(peers)
    text = json.dumps(figures, indent=1)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
