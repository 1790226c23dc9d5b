"""Near-duplicates: time and memory beside rensa and datasketch, recall on planted copies, false positives.

    python benchmarks/near_duplicates.py [--quick] [--json] [--responses 1000000] [--without datasketch]

Each program has the same responses in memory and one thread, and answers the same question: which pairs are near-duplicates, by
128 values over runs of 3 words. The peers get their runs from a plain split into words, which is part of their time as reading
the words is of ours. Each runs in a process of its own, and its peak of memory is that beyond the texts. Recall is the share of
planted copies that are connected with their original, for each kind of change and for pairs whose true Jaccard similarity is 0.8
or more. A false pair is reported as similar at 0.8, and its true similarity is less than 0.7. `near_duplicates_time_vs_peer` is
our CPU time over that of the fastest peer. `--quick` has 20,000 responses and takes a minute.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from support.harness import data_file, finish, options

SIMILARITY, WORDS = 0.8, 3
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
    from pipelines.runtime.machine import reuse_freed_memory
    from pipelines.score.minhash import signatures_of
    from pipelines.select import duplicates

    reuse_freed_memory()  # as every step does
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
    started = time.process_time()
    pairs = program(texts)
    secs = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send({"cpu_secs": secs, "peak_mb": (peak - before) / 1024, "pairs": pairs})


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


def quality(count: int, pairs: list[tuple[int, int]]) -> dict[str, float]:
    """Recall in % on planted copies, by kind of change and for those that are similar enough, and false pairs in % of 5,000."""
    texts = list(make_texts(count))
    label = dict(pairs)
    connected: dict[str, list[bool]] = {}
    for number, (text, kind, source) in enumerate(texts):
        if kind:
            hit = label.get(number, number) == label.get(source, source)
            connected.setdefault(kind.replace(" ", "_"), []).append(hit)
            if true_similarity(text, texts[source][0]) >= SIMILARITY:
                connected.setdefault("similar", []).append(hit)
    looked_at = pairs[:5000]
    false = sum(true_similarity(texts[one][0], texts[other][0]) < 0.7 for one, other in looked_at)
    shares = {f"recall_{name}": 100 * sum(hits) / len(hits) for name, hits in connected.items()}
    return shares | {"false_pairs": 100 * false / max(1, len(looked_at))}


def on_best_of_56(folder: Path) -> dict[str, float]:
    """Near-duplicate responses of a real corpus, and how many of them have a true similarity of less than 0.7."""
    texts = [text or "" for text in pq.read_table(folder, columns=["response"])["response"].to_pylist()]
    pairs = ours(texts)
    false = sum(true_similarity(texts[one], texts[other]) < 0.7 for one, other in pairs)
    return {"best_of_56_dropped": len(pairs), "best_of_56_below_0.7": false}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--responses", type=int, default=1_000_000)
    parser.add_argument("--without", nargs="*", default=[], choices=["rensa", "datasketch"])
    parser.add_argument("--data", type=Path, help="folder of Parquet files of the shape of best_of_56")
    arguments = parser.parse_args()
    count = 20_000 if arguments.quick else arguments.responses
    programs = [program for program in (ours, rensa, datasketch) if program.__name__ not in arguments.without]
    figures: dict[str, float] = {"responses": count}
    for program in programs:
        result = measure(program, count)
        values = {"cpu_secs": result["cpu_secs"], "peak_mb": result["peak_mb"], **quality(count, result["pairs"])}
        figures |= {f"{program.__name__}_{name}": value for name, value in values.items()}
    peers = [figures[f"{program.__name__}_cpu_secs"] for program in programs if program is not ours]
    if peers:
        figures["near_duplicates_time_vs_peer"] = figures["ours_cpu_secs"] / min(peers)
    finish(figures | on_best_of_56(data_file(arguments.data, "best_of_56")), as_json=arguments.json)


if __name__ == "__main__":
    main()
