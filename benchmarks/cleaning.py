"""Wrong labels in a preference set: the share of planted ones that the step `preferences` finds, and the effect of cleaning.

    python benchmarks/cleaning.py [--quick] [--json] [--data FILE] [--pairs N] [--seeds N]

Pairs of HH-RLHF are divided by prompt into three parts. A judge is trained on the first part (all-MiniLM-L6-v2, one epoch). In
the second part, 20 % of the pairs are flipped; the judge scores them as `bestkept run` does with `input.format=preferences`,
and as many pairs as were flipped, those with the lowest margins, are classified as flipped. The precision of this, which is
also its recall, is compared with that of chance and of length: the pairs whose chosen response is shorter, or longer, by most,
whichever finds more. Then models are trained on the second part unchanged, without the classified pairs, and without as many
random pairs, and compared on the third part. These are ten trainings of 600 pairs: about an hour on 2 cores, or some minutes
with `--layers 1 --max-length 64`.
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.harness import ROOT, data_file, finish, first_layers, options

sys.path.insert(0, str(ROOT))

FLIPPED = 0.2
QUICK = 60  # pairs in each part: enough to try the script, and far too few to measure anything

Rows = list[dict[str, Any]]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="pairs of chosen and rejected transcripts")
    parser.add_argument("--pairs", type=int, default=600, help="pairs in each part")
    parser.add_argument("--seeds", type=int, default=3, help="models trained on each set")
    parser.add_argument("--layers", type=int, default=6, help="of MiniLM's six, the first so many")
    parser.add_argument("--max-length", type=int, default=128, help="tokens, the last of each conversation")
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    pairs, seeds = (QUICK, 1) if args.quick else (args.pairs, args.seeds)
    with tempfile.TemporaryDirectory() as folder:
        trained = {"layers": args.layers, "max_length": args.max_length, "epochs": args.epochs}
        backbone = Backbone(first_layers(Path(folder) / "backbone", args.layers), args.max_length, args.epochs)
        data = data_file(args.data, "hh_rlhf_harmless.jsonl.gz")
        figures = trained | measure(data, Path(folder), backbone, pairs=pairs, seeds=seeds)
    finish(figures, as_json=args.json)


@dataclass(frozen=True)
class Backbone:
    """The model that is trained, and how."""

    path: Path
    max_length: int
    epochs: int


def measure(data: Path, folder: Path, backbone: Backbone, *, pairs: int, seeds: int) -> dict[str, float]:
    judged, dirty, test = parts_of(data, pairs)
    chance = random.Random(0)
    flipped = set(chance.sample(range(len(dirty)), round(FLIPPED * len(dirty))))
    for at, row in enumerate(dirty):
        row |= {"number": at, "flipped": at in flipped}
        if at in flipped:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    tests = write(folder / "test.jsonl", test)
    judge = folder / "judge"
    figures = {
        "judge_accuracy": train_on(judged, tests, judge, backbone=backbone, seed=0),
        "pairs": len(dirty),
        "flips": len(flipped),
    }
    margins = margins_of(judge, write(folder / "dirty.jsonl", dirty), folder / "scored", max_length=backbone.max_length)
    lengths = {row["number"]: len(row["chosen"]) - len(row["rejected"]) for row in dirty}
    figures |= {"judge_agreement_with_dirty": share(margins, lambda number, m: m > 0)}
    suspects = lowest(margins, len(flipped))
    shorter, longer = lowest(lengths, len(flipped)), lowest({n: -v for n, v in lengths.items()}, len(flipped))
    figures |= {
        "flips_found_by_margin": len(suspects & flipped) / len(flipped),
        "flips_found_by_length": max(len(shorter & flipped), len(longer & flipped)) / len(flipped),
        "flips_found_by_chance": FLIPPED,
        "auc_margin": area(margins, flipped),
        "auc_length": max(area(lengths, flipped), 1 - area(lengths, flipped)),
    }
    by_chance = set(chance.sample(range(len(dirty)), len(flipped)))
    sets = {
        "dirty": dirty,
        "cleaned": [row for row in dirty if row["number"] not in suspects],
        "thinned": [row for row in dirty if row["number"] not in by_chance],
    }
    accuracies: dict[str, list[float]] = {name: [] for name in sets}
    for seed in range(1, seeds + 1):
        for name, rows in sets.items():
            accuracies[name].append(train_on(rows, tests, folder / f"{name}-{seed}", backbone=backbone, seed=seed))
            print(name, seed, accuracies[name][-1], flush=True)
    for name, values in accuracies.items():
        figures |= {f"accuracy_{name}": statistics.mean(values), f"accuracy_{name}_least": min(values)}
        figures |= {f"accuracy_{name}_most": max(values)}
    gains = [a - b for a, b in zip(accuracies["cleaned"], accuracies["dirty"], strict=True)]
    return figures | {"gain_of_cleaning": statistics.mean(gains), "test_pairs": len(test)}


def parts_of(data: Path, pairs: int) -> tuple[Rows, Rows, Rows]:
    """Three parts of at most so many pairs each; no prompt is in two."""
    from rm.conversations import UnusableError, from_hh, prompt_key, split_last

    parts: tuple[Rows, Rows, Rows] = ([], [], [])
    opener = gzip.open if data.name.endswith(".gz") else open
    with opener(data, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            try:
                (prompt, chosen), (_, rejected) = (split_last(from_hh(row[side])) for side in ("chosen", "rejected"))
            except UnusableError:  # an empty response
                continue
            if chosen != rejected:
                parts[prompt_key(prompt)[0] % 3].append({"chosen": row["chosen"], "rejected": row["rejected"]})
    return parts[0][:pairs], parts[1][:pairs], parts[2][:pairs]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train_on(rows: Rows, tests: Path, output: Path, *, backbone: Backbone, seed: int) -> float:
    """Train a model on some pairs, leave it at `output`, and return its accuracy on the test pairs."""
    from pipelines.commands.train import settings_of
    from pipelines.config import TrainConfig, load
    from rm.train import train

    started = time.monotonic()
    sides = [{name: row[name] for name in ("chosen", "rejected")} for row in rows]
    overrides = [
        f"data.path={write(output.with_suffix('.jsonl'), sides)}",
        f"heldout.path={tests}",
        f"model.path={backbone.path}",
        f"model.max_length={backbone.max_length}",
        f"output.path={output}",
        f"train.epochs={backbone.epochs}",
        "train.learning_rate=1e-4",
        f"train.seed={seed}",
    ]
    result = train(settings_of(load(TrainConfig, str(ROOT / "configs" / "train_pairs.yaml"), overrides)))
    assert result.heldout is not None
    print(f"trained on {len(rows)} pairs in {time.monotonic() - started:.0f} s", flush=True)
    return float(result.heldout.accuracy.overall.model.value)


def margins_of(model: Path, pairs: Path, output: Path, *, max_length: int) -> dict[int, float]:
    """The margins of pairs by their number, from a run over them as a corpus."""
    import pyarrow.parquet as pq

    from pipelines.commands.run import run_curation
    from pipelines.config import RunConfig
    from pipelines.score.load_model import LoadScorer

    config = RunConfig.model_validate(
        {
            "input": {"path": str(pairs), "format": "preferences"},
            "model": {"path": str(model), "max_length": max_length},
            "select": [{"preferences": {"keep": "all"}}],
            "output": {"path": str(output), "shape": "preference", "include_columns": ["number"]},
            "limits": {"max_rejected_fraction": 0.5},
        }
    )
    run_curation(config, scorer=LoadScorer())
    rows = pq.read_table(output / "data").to_pylist()
    return {row["number"]: row["chosen_reward"] - row["rejected_reward"] for row in rows}


def share(margins: dict[int, float], test: Any) -> float:
    return sum(test(number, margin) for number, margin in margins.items()) / len(margins)


def lowest(values: dict[int, float] | dict[int, int], count: int) -> set[int]:
    return set(sorted(values, key=lambda number: (values[number], number))[:count])


def area(values: dict[int, Any], flipped: Sequence[int] | set[int]) -> float:
    """The chance that a flipped pair has a lower value than one that is not; ties count half."""
    low = [value for number, value in values.items() if number in flipped]
    high = [value for number, value in values.items() if number not in flipped]
    wins = sum((a < b) + (a == b) / 2 for a in low for b in high)
    return wins / (len(low) * len(high))


if __name__ == "__main__":
    main()
