"""Every kind of judgement, trained on 70 % of the prompts of a real corpus and measured on the other 30 %.

    python benchmarks/judgements.py [--quick] [--json] [--only scores votes ...] [--curve]

The backbone is all-MiniLM-L6-v2 (22 M parameters). Accuracy is measured on comparisons of held-out prompts, with a 95 %
interval that resamples prompts, and compared with that of taking the longer response, or the shorter one if that is better.
`scores` takes about 20 minutes on 2 cores, the others 2 to 5 each.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.harness import DATA, ROOT, data_file, finish, minilm, options

sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from rm.evaluate import Evaluation

HELD_OUT = 0.3  # of the prompts


@dataclass(frozen=True)
class Kind:
    """A configuration that the project ships, with the data it is tried on and the settings for so small a backbone."""

    name: str
    config: str
    data: str
    settings: tuple[str, ...]


KINDS = (
    Kind(
        "pairs",
        "train_pairs.yaml",
        "hh_rlhf_harmless.jsonl.gz",
        ("train.epochs=1", "train.learning_rate=5e-5", "train.groups_per_batch=8"),
    ),
    Kind(
        "votes",
        "train_votes.yaml",
        "pandalm_three_annotators.jsonl.gz",
        ("train.epochs=4", "train.learning_rate=1e-4", "train.groups_per_batch=4"),
    ),
    Kind(
        "rankings",
        "train_rankings.yaml",
        "qa_feedback_rankings.jsonl.gz",
        ("train.epochs=2", "train.learning_rate=1e-4"),
    ),
    Kind(
        "scores",
        "train_scores.yaml",
        "best_of_56/part-*.parquet",
        (
            "data.columns.score=judge_win_rate",
            "model.max_length=384",
            "train.epochs=0.5",
            "train.learning_rate=1e-4",
            "train.warmup_fraction=0.1",
        ),
    ),
    Kind(
        "accept_reject",
        "train_accept_reject.yaml",
        "gsm8k_solutions.jsonl.gz",
        ("data.columns.label=is_correct", "train.epochs=2", "train.learning_rate=1e-4"),
    ),
)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in KINDS])
    parser.add_argument("--curve", action="store_true", help="accept_reject on a quarter, half and all of its prompts")
    args = parser.parse_args()
    if args.curve:
        figures = learning_curve()
    else:
        chosen = args.only or (["votes"] if args.quick else [kind.name for kind in KINDS])
        figures = {
            f"{kind.name}_{name}": value
            for kind in KINDS
            if kind.name in chosen
            for name, value in measure(kind, quick=args.quick).items()
        }
    finish(figures, as_json=args.json)


def learning_curve() -> dict[str, float]:
    """Train accept/reject on fewer prompts; the held-out ones are always the same."""
    kind = next(kind for kind in KINDS if kind.name == "accept_reject")
    figures: dict[str, float] = {}
    for share in (0.25, 0.5, 1.0):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.jsonl"
            part.write_text("".join(thin(data_file(None, kind.data), share)), encoding="utf-8")
            measured = measure(replace(kind, data=str(part)), quick=False)
        figures |= {f"share_{share}_{name}": value for name, value in measured.items() if name.startswith("accuracy")}
    return figures


def thin(path: Path, share: float) -> Iterator[str]:
    """Yield the lines of held-out prompts and of this share of the others."""
    from rm.conversations import from_prompt, prompt_key

    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            place = int.from_bytes(prompt_key(from_prompt(json.loads(line)["prompt"]))[:8], "big") / 2**64
            if place < HELD_OUT + share * (1 - HELD_OUT):  # held out are those below HELD_OUT
                yield line


def evaluate_trained(kind: Kind, *more: str, quick: bool) -> Evaluation:
    """Train on the prompts that are not held out, with `more` settings; return the evaluation on those that are."""
    from pipelines.commands.train import settings_of
    from pipelines.config import TrainConfig, load
    from rm.train import train

    path = DATA / kind.data
    data_file(path.parent if "*" in path.name else path, kind.data)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"data.path={path}",
            f"model.path={minilm()}",
            "model.max_length=512",
            f"heldout.fraction={HELD_OUT}",
            f"output.path={folder}",
            *kind.settings,
            *(("train.epochs=1",) if quick else ()),
            *more,
        ]
        result = train(settings_of(load(TrainConfig, str(ROOT / "configs" / kind.config), overrides)))
    assert result.heldout is not None  # 30 % is held out
    return result.heldout


def measure(kind: Kind, *, quick: bool) -> dict[str, float]:
    heldout = evaluate_trained(kind, quick=quick)
    row = heldout.accuracy.overall
    figures = (
        with_interval("accuracy", row.model)
        | with_interval(row.rule, row.length)
        | with_interval("lengths_matched", row.matched)
    )
    figures |= {"comparisons": row.comparisons, "prompts": row.prompts}
    if heldout.best_of_n is not None:
        point = max((p for p in heldout.best_of_n.points if p.n <= 16), key=lambda p: p.n)
        for name in ("model", "longest", "random", "oracle", "over_longest"):
            figures |= with_interval(f"best_of_{point.n}_{name}", getattr(point, name))
    print(kind.name, {name: round(value, 3) for name, value in figures.items()}, flush=True)
    return figures


def with_interval(name: str, estimate: Any) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


if __name__ == "__main__":
    main()
