"""Cures for a model that has learnt length instead of the prompt, compared with plain training on the same prompts.

    python benchmarks/robustness.py [--quick] [--json] [--only scores votes pairs] [--seeds 0 1 2]
                                    [--layers 6] [--gap auto] [--settings train.epochs=1 ...]

The corpora, backbone and settings are those of `judgements.py`: 30 % of the prompts are held out. The figures for each
training are held-out accuracy, also on pairs of similar length; the stress tests, as shares of held-out prompts in which the
response from the data has the higher reward; the rank correlation of rewards with those under an empty prompt; and the gold
score of the best of 16, if there is one. The `gated` figures are those of the model behind a relevance gate: untrained MiniLM
decides where its cosines differ by more than `--gap`, which is settled on the held-out responses by default.
`gated_decided_nearer` is the accuracy of the nearer response there, and `gated_caught` the share of responses to other prompts
beyond the gap.
`length` is the best of the longer, the shorter, and the nearer or longer response. Figures are means over seeds, in percent
except gaps, correlations and gold scores. All of them take about three hours on 2 cores; with `--layers 2 --settings
model.max_length=192 stress.prompts=100`, rough figures take minutes.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from judgements import KINDS, Kind, evaluate_trained
from support.harness import finish, first_layers, minilm, options

if TYPE_CHECKING:
    from rm.evaluate import Gated

WAYS = {
    "plain": (),
    "foreign": ("train.foreign={per_group: 2, similar: 0.5, weight: 0.5}",),
    "foreign_light": ("train.foreign={per_group: 2, similar: 0.5, weight: 0.1}",),
    "length_balance": ("train.length_balance=true",),
    "length_head": ("train.length_head={}",),
    "foreign_ties": ("train.foreign={per_group: 2, similar: 0.5, weight: 0.5, ties: true}",),
}
TESTS = ("other_prompt", "similar_prompt", "shuffled", "repeated", "padded")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=["scores", "votes", "pairs"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=6, help="of MiniLM's six, the first so many")
    parser.add_argument("--gap", default="auto", help="of cosines, beyond which the nearer response wins")
    parser.add_argument("--settings", nargs="+", default=[], help="more settings for every way, as key=value")
    args = parser.parse_args()
    names = args.only or (["votes"] if args.quick else ["scores", "votes", "pairs"])
    seeds = [0] if args.quick else args.seeds
    ways = args.ways or (["plain", "foreign"] if args.quick else list(WAYS))
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        backbone = first_layers(Path(folder) / "backbone", args.layers)
        gate = f"relevance={{path: {minilm()}, gap: {args.gap}}}"
        more = (f"model.path={backbone}", gate, *args.settings)
        for kind in (kind for kind in KINDS if kind.name in names):
            for way in ways:
                runs = [measure(kind, (*WAYS[way], *more), seed, quick=args.quick) for seed in seeds]
                means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
                print(kind.name, way, {name: round(value, 3) for name, value in means.items()}, flush=True)
                figures |= {f"{kind.name}_{way}_{name}": value for name, value in means.items()}
    finish(figures, as_json=args.json)


def measure(kind: Kind, way: tuple[str, ...], seed: int, *, quick: bool) -> dict[str, float]:
    """Train once and return what the model makes of the held-out prompts."""
    evaluation = evaluate_trained(kind, f"train.seed={seed}", "stress.prompts=300", *way, quick=quick)
    assert evaluation.stress is not None  # of more than one prompt
    assert evaluation.gated is not None
    row = evaluation.accuracy.overall
    figures = {"accuracy": 100 * row.model.value, "lengths_matched": 100 * row.matched.value}
    figures["length"] = 100 * row.length.value
    tests = {test.name: test.preferred.value for test in evaluation.stress.tests}
    figures |= {name: 100 * tests.get(name, math.nan) for name in TESTS}
    figures["without_prompt"] = evaluation.stress.without_prompt.value
    if evaluation.best_of_n is not None and evaluation.best_of_n.measured_by == "gold":
        point = max((p for p in evaluation.best_of_n.points if p.n <= 16), key=lambda p: p.n)
        figures |= {f"best_of_{point.n}": point.model.value, f"best_of_{point.n}_longest": point.longest.value}
    return figures | {f"gated_{name}": value for name, value in behind_gate(evaluation.gated).items()}


def behind_gate(gated: Gated) -> dict[str, float]:
    """Return what the gate changes."""
    figures = {"gap": gated.gap, "caught": 100 * (math.nan if gated.caught is None else gated.caught)}
    figures |= {"decided": 100 * gated.decided, "decided_nearer": 100 * gated.nearer.value}
    figures["accuracy"] = 100 * gated.accuracy.value
    figures |= {"over_model": 100 * gated.over_model.value, "over_rule": 100 * gated.over_rule.value}
    figures["lengths_matched"] = 100 * gated.matched.value
    for test in (gated.other_prompt, gated.similar_prompt):
        if test is not None:
            figures[test.name] = 100 * test.preferred.value
    if gated.best_of_all is not None and gated.best_over_model is not None:
        figures |= {"best": gated.best_of_all.value, "best_over_model": gated.best_over_model.value}
    return figures


if __name__ == "__main__":
    main()
