"""Data for `benchmarks/selection.py`: score files as scoring publishes them, and a corpus of text with its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILES = 40
SOURCES = 8


def make_scores(root: Path, rows: int) -> None:
    """Write score files as scoring publishes them, `rows` responses in all, and a list of their descriptors."""
    import numpy as np
    import pyarrow as pa

    from pipelines.score import score_files

    rng = np.random.default_rng(0)
    prompts = max(1, rows // 10)
    weights = np.minimum(rng.pareto(1.5, prompts) + 0.2, 10_000.0)
    weights[0] = 10_000 * weights.mean() / (rows / prompts)
    prompt = rng.choice(prompts, size=rows, p=weights / weights.sum()).astype(np.int64)
    keys = rng.bytes(16 * prompts)
    key_table = np.frombuffer(keys, dtype="V16")
    per_file = -(-rows // FILES)
    descriptors = []
    for number in range(FILES):
        prompts_of_file = prompt[number * per_file : (number + 1) * per_file]
        count = len(prompts_of_file)
        null = rng.random(count) < 0.02
        reward = rng.normal(size=count).astype(np.float32)
        chars = rng.integers(20, 4000, count).astype(np.int32)
        columns = {
            "row": np.arange(count, dtype=np.int32),
            "response_index": np.zeros(count, dtype=np.int32),
            "prompt_key": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), count, [None, pa.py_buffer(key_table[prompts_of_file].tobytes())]
            ),
            "response_hash": rng.integers(0, 2**64, count, dtype=np.uint64),
            "reward": pa.array(reward, mask=null),
            "reason": pa.array(np.where(null, "nan_reward", None).tolist(), pa.string()),
            "prompt_tokens": rng.integers(5, 500, count).astype(np.int32),
            "response_tokens": chars // 4,
            "response_chars": chars,
            "row_bytes": chars.astype(np.int64) + 300,
            "truncated": pa.array(np.zeros(count, dtype=bool)),
            "source": pa.array([f"source-{n}" for n in range(SOURCES)]).take(pa.array(prompts_of_file % SOURCES)),
        }
        table = pa.table([pa.array(columns[f.name]) for f in score_files.COLUMNS], schema=score_files.COLUMNS)
        footer = score_files.Footer(
            fingerprint="benchmark", file_key=f"{number:02d}", file_size=1, file_version="1", unit=0, unit_start=0,
            fragment=0, rows=count, last=True, responses=count, scored=int((~null).sum()),
            rejected={"nan_reward": int(null.sum())}, first_rejected=[], truncated=0, tokens=0,
            text_bytes=int(chars.sum()) + 300 * count, content_hash="",
        )  # fmt: skip
        path = root / f"{number:02d}.parquet"
        path.write_bytes(score_files.encode(table, footer, ""))
        descriptors.append(score_files.ScoreFile(str(path), number, footer).to_bytes().decode())
    (root / "descriptors.json").write_text(json.dumps(descriptors))


def make_corpus(root: Path, rows: int) -> None:
    """Write a corpus of `rows` responses of about 1.5 KB, 10 to a prompt, with a column of rewards, and its score files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.commands.run import run_scoring

    rng = np.random.default_rng(1)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 11, 20_000)])
    (root / "in").mkdir()
    per_file = -(-rows // 8)
    for number in range(8):
        prompt = [f"prompt number {n // 10}: say it again" for n in range(number * per_file, (number + 1) * per_file)]
        text = [" ".join(words[rng.integers(0, len(words), 210)]) for _ in range(per_file)]
        table = pa.table({"prompt": prompt, "response": text, "reward": rng.normal(size=per_file).astype(np.float32)})
        pq.write_table(table, root / "in" / f"{number}.parquet", row_group_size=25_000, compression="zstd")
    run_scoring(export_config(root), scorer=None)


def export_config(root: Path, out: str = "out", *, report: bool = False) -> Any:
    from pipelines.config import RunConfig

    return RunConfig.model_validate(
        {
            "input": {"path": str(root / "in"), "rows_per_fragment": 25_000},
            "scores": {"path": str(root / "scores"), "column": "reward"},
            "output": {"path": str(root / out)},
            "report": {"write": report},
        }
    )
