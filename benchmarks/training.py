"""Training compared with TRL's RewardTrainer: the same backbone, data, epochs, batch, learning rate, precision and seeds.

    python benchmarks/training.py [--quick] [--json] [--pairs HH.jsonl.gz] [--rankings QA.jsonl.gz]

Pairs are HH-RLHF strings, rankings are QA-feedback rows with four answers each (without ties, which TRL does not support). TRL
gets a ranking as its pairs, the only form that it reads. It runs with its fastest settings here: no gradient checkpointing,
and bfloat16 if the processor supports it, like bestkept. Rounds alternate; throughput ratios are medians over rounds, and
count only the training steps of both. Accuracy is measured on pairs held out from both, paired by item, over all seeds.
"""

from __future__ import annotations

import gzip
import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from support.harness import ROOT, data_file, finish, minilm, options

sys.path.insert(0, str(ROOT))

BATCH = 16
LEARNING_RATE = 1e-4  # TRL's default, and ours for a model of this size
MAX_LENGTH = 512
Row = dict[str, Any]


@dataclass
class Run:
    """One training run: its seconds in training steps, comparisons, and correctness of each held-out pair."""

    secs: float
    comparisons: int
    correct: np.ndarray

    @property
    def rate(self) -> float:
        return self.comparisons / self.secs


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pairs", type=Path, help="HH-RLHF rows; default: the harmless sample")
    parser.add_argument("--rankings", type=Path, help="QA-feedback rows; default: the QA-feedback sample")
    parser.add_argument("--train", type=int, default=800, help="pairs to train on; all others are held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    pairs = usable_pairs(read(data_file(args.pairs, "hh_rlhf_harmless.jsonl.gz")))
    rankings = read(data_file(args.rankings, "qa_feedback_rankings.jsonl.gz"))
    count, chosen_rankings, seeds = args.train, rankings[:40], args.seeds
    if args.quick:
        pairs, count, chosen_rankings, seeds = pairs[:260], 160, rankings[:24], seeds[:2]
    train_rows, heldout = pairs[:count], pairs[count:]
    ours, trl = [], []
    for seed in seeds:
        trl.append(show("pairs, TRL", train_trl(train_rows, heldout, seed=seed)))
        ours.append(show("pairs, bestkept", train_ours(train_rows, heldout, seed=seed)))
    figures = {"pairs_vs_trl": ratio(ours, trl), **accuracies(ours, trl)}
    ours, trl = [], []
    for seed in seeds:
        trl.append(show("rankings, TRL", train_trl(pairs_of(chosen_rankings), [], seed=seed)))
        ours.append(
            show("rankings, bestkept", train_ours(pairs_of(chosen_rankings), [], seed=seed, groups_per_batch=4))
        )
    finish({"rankings_vs_trl": ratio(ours, trl), **figures}, as_json=args.json)


def show(name: str, run: Run) -> Run:
    accuracy = f", accuracy {run.correct.mean():.3f}" if len(run.correct) else ""
    print(f"{name:20s} {run.rate:7.2f} comparisons/s over {run.secs:.0f} s{accuracy}", flush=True)
    return run


def ratio(ours: list[Run], trl: list[Run]) -> float:
    return statistics.median(our.rate / peer.rate for our, peer in zip(ours, trl, strict=True))


def accuracies(ours: list[Run], trl: list[Run]) -> dict[str, float]:
    from rm.evaluate import paired_difference

    our_points, trl_points = (np.stack([run.correct for run in runs]) for runs in (ours, trl))
    difference = paired_difference(our_points, trl_points, np.arange(our_points.shape[1]))
    return {
        "accuracy_ours": float(our_points.mean()),
        "accuracy_trl": float(trl_points.mean()),
        "accuracy_difference": float(difference[0]),
        "accuracy_difference_low": float(difference[1]),
        "accuracy_difference_high": float(difference[2]),
    }


# data: rows that both sides take whole


def read(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def usable_pairs(rows: list[Row]) -> list[Row]:
    """Pairs whose sides differ, share their prompt, and fit both: TRL drops longer ones, so both go without them."""
    from rm.preferences import read_preference_rows

    tokenizer = load_tokenizer()
    settings = hh_settings()
    kept = []
    for row in rows:
        lengths = [len(tokenizer(row[side] + tokenizer.eos_token)["input_ids"]) for side in ("chosen", "rejected")]
        if max(lengths) <= MAX_LENGTH and read_preference_rows([row], settings)[0]:
            kept.append(row)
    return kept


def pairs_of(rows: list[Row]) -> list[Row]:
    """The comparisons of rankings, ties left out, as HH-RLHF rows: TRL reads these, and ours merges them by prompt again."""
    pairs = []
    for row in rows:
        answers = [row[f"prediction {n}"] for n in range(1, 5)]
        text = [f"\n\nHuman: {row['question']}\n\nAssistant: {answer}" for answer in answers]
        for (i, j), verdict in zip(combinations(range(4), 2), row["preference"], strict=True):
            if verdict and answers[i] != answers[j]:
                better, worse = (i, j) if verdict == 1 else (j, i)
                pairs.append({"chosen": text[better], "rejected": text[worse]})
    return pairs


# the two trainers


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    tokenizer.eos_token = tokenizer.sep_token  # TRL closes every text with eos
    return tokenizer


def hh_settings() -> Any:
    from pipelines.config.train import PreferencesConfig
    from rm.preferences import ReadSettings

    return ReadSettings(**PreferencesConfig(path="rows", format="hh").reading_options())


def train_trl(rows: list[Row], heldout: list[Row], *, seed: int) -> Run:
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    from rm.engine.device import default_device, native_bfloat16

    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    set_seed(seed)
    tokenizer = load_tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=1, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            num_train_epochs=1,
            max_length=MAX_LENGTH,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(0.03 * math.ceil(len(rows) / BATCH)),
            seed=seed,
            bf16=native_bfloat16(default_device()),
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Dataset.from_list([{side: row[side] for side in ("chosen", "rejected")} for row in rows])
        trainer = RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
        outcome = trainer.train()
    sides = [[side_reward(model, tokenizer, row[side]) for row in heldout] for side in ("chosen", "rejected")]
    chosen, rejected = (np.array(values) for values in sides)
    return Run(outcome.metrics["train_runtime"], len(trainer.train_dataset), correctness(chosen, rejected))


def side_reward(model: Any, tokenizer: Any, text: str) -> float:
    import torch

    inputs = tokenizer(text + tokenizer.eos_token, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        return float(model.eval()(**inputs).logits[0, 0])


def train_ours(rows: list[Row], heldout: list[Row], *, seed: int, groups_per_batch: int = BATCH) -> Run:
    from pipelines.commands.train import settings_of
    from pipelines.config import TrainConfig
    from rm.identity import resolve_dtype
    from rm.preferences import read_preference_rows
    from rm.scorer import Scorer
    from rm.train import train

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = TrainConfig.model_validate(
            {
                "data": {"path": str(data), "format": "hh"},
                "heldout": {"fraction": 0.0},
                "model": {"path": str(minilm()), "max_length": MAX_LENGTH},
                "train": {"learning_rate": LEARNING_RATE, "groups_per_batch": groups_per_batch, "seed": seed},
                "output": {"path": f"{folder}/model"},
            }
        )
        result = train(settings_of(config))
        correct = np.empty(0)
        if heldout:
            scorer = Scorer.load(
                Path(folder) / "model",
                dtype=resolve_dtype("auto"),
                max_length=MAX_LENGTH,
                too_long="truncate",
                tokens_per_batch=None,
            )
            reading = hh_settings()
            groups = [read_preference_rows([row], reading)[0][0] for row in heldout]
            rewards = [scores.rewards for scores in scorer.score([(g.prompt, g.responses) for g in groups])]
            edges = [group.edges[0] for group in groups]
            chosen, rejected = (np.array([r[e[side]] for r, e in zip(rewards, edges, strict=True)]) for side in (0, 1))
            correct = correctness(chosen, rejected)
    comparisons = result.judgements["comparisons"]
    return Run(comparisons / result.judgements_per_sec, comparisons, correct)


def correctness(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """1 where chosen has the higher reward, 1/2 where they are equal."""
    points: np.ndarray = (1 + np.sign(chosen - rejected)) / 2
    return points


if __name__ == "__main__":
    main()
