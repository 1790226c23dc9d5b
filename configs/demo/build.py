"""Derive the demo's files from `responses.jsonl`, the source of all its texts.

    python configs/demo/build.py

Two thirds of the prompts become `preferences.jsonl`. The remaining third becomes the corpus, one response per row with its
quality label, in `heldout.parquet` and `heldout.jsonl.gz`.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
QUALITIES = ("helpful", "thin", "beside_the_point", "careless")  # best first
JUDGED = [(0, 1), (0, 2), (0, 3)]  # the order of poor answers is a matter of taste, and not judged


def load() -> list[dict[str, str]]:
    return [json.loads(line) for line in (HERE / "responses.jsonl").read_text(encoding="utf-8").splitlines()]


def preferences(prompts: list[dict[str, str]]) -> list[dict[str, str]]:
    """Comparisons from two thirds of the prompts."""
    return [
        {"prompt": item["prompt"], "chosen": item[QUALITIES[better]], "rejected": item[QUALITIES[worse]]}
        for number, item in enumerate(prompts)
        if number % 3 != 2
        for better, worse in JUDGED
    ]


def heldout(prompts: list[dict[str, str]]) -> list[dict[str, str]]:
    """The remaining third, one response per row, in random order within a prompt."""
    rows = []
    shuffle = random.Random(0).shuffle
    for item in prompts[2::3]:
        group = [
            {"prompt": item["prompt"], "response": item[quality], "quality": quality, "source": item["task"]}
            for quality in QUALITIES
        ]
        shuffle(group)
        rows += group
    return rows


def main() -> None:
    prompts = load()
    with (HERE / "preferences.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in preferences(prompts))
    rows = heldout(prompts)
    pq.write_table(pa.Table.from_pylist(rows), HERE / "heldout.parquet", compression="zstd")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / "heldout.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
