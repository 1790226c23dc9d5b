"""Scoring compared with sentence-transformers' CrossEncoder and transformers' pipeline: the same weights, texts and rewards.

    python benchmarks/scoring.py [--quick] [--json] [--only causal_bo16 ...] [--threads N]
    python benchmarks/scoring.py --device cuda --shape 8b [--json]      # a known shape with random weights, bfloat16

The causal model is SmolLM2-135M, the encoder all-MiniLM-L6-v2, both in float32 with a random head and without a chat template,
so that all tools read the same tokens; their rewards must agree. gemma2 and modernbert are small models of these shapes with
random weights: capped logits and windows of 256 tokens, and windows of 128. bo16 is 16 responses to a prompt, hh is pairs
after long conversations, prefix2 and prefix8 are 16 responses to a prompt twice and eight times as long as each. CrossEncoder
runs at the best of several batch sizes, the pipeline at 8. Rounds are interleaved in rotating order after a warm-up; a figure
`..._vs_PEER` is the median over rounds of the other tool's seconds divided by those of bestkept, including tokenisation.
`unshared` is bestkept with every response separate. FLOPs are 2 x parameters x computed tokens, without embeddings and
attention; bestkept computes a shared prompt once, and padding is not counted for any tool.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from support.harness import CACHE, ROOT, data_file, finish, minilm_reward, options, resident_mb, smollm2
from support.scoring_peers import (
    SHAPES,
    Setup,
    cross_encoder_rewards,
    exact_rewards,
    load_cross_encoder,
    load_pipeline,
    load_scorer,
    our_rewards,
    pipeline_rewards,
    plain_rewards,
    scores,
    shaped,
    unshared_rewards,
)
from support.scoring_texts import Group, Texts, best_of, fitting, pairs, synthetic

sys.path.insert(0, str(ROOT))

CAUSAL = ("causal_bo16", "causal_hh", "causal_prefix2", "causal_prefix8")
ENCODER = ("encoder_bo16", "encoder_hh")
GEMMA2 = ("gemma2_bo16", "gemma2_hh")
MODERNBERT = ("modernbert_bo16", "modernbert_hh")
WORKLOADS = (*CAUSAL, *ENCODER, *GEMMA2, *MODERNBERT)
PREFIXES = {"causal_prefix2": (400, 200), "causal_prefix8": (800, 100)}  # tokens of prompt and response
TOLERANCE = 1e-3
"""Share of the rewards' standard deviation beyond which tools do not score the same texts with the same weights."""

Contender = Callable[[Texts], np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the workloads."""

    rounds: int
    groups: int  # of best-of-16
    pairs: int
    synthetic: int  # groups of each prefix workload
    shrink: int  # those have their lengths divided by this
    max_length: int  # of the causal model
    most_tokens: int  # of a group that it scores; larger ones are left out, so that a round stays short
    checked: int  # rows of each workload scored one by one as well
    encoder_times: int  # multiplies the groups and pairs for the smaller model


QUICK = Sizes(
    rounds=3, groups=1, pairs=8, synthetic=1, shrink=6, max_length=512, most_tokens=1900, checked=4, encoder_times=1
)
FULL = Sizes(
    rounds=5, groups=1, pairs=8, synthetic=1, shrink=2, max_length=1024, most_tokens=3000, checked=8, encoder_times=4
)
GPU = Sizes(
    rounds=5,
    groups=32,
    pairs=256,
    synthetic=8,
    shrink=1,
    max_length=2048,
    most_tokens=2**20,
    checked=8,
    encoder_times=4,
)


@dataclass
class Bench:
    """The settings of the benchmark, and its results so far."""

    args: Any
    sizes: Sizes
    figures: dict[str, float] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)  # ours by row-by-row transformers
    mismatches: list[str] = field(default_factory=list)  # tools whose rewards are not ours

    def chosen(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if self.args.only is None or name in self.args.only]


def main() -> None:
    bench = settings()
    if bench.args.measure_memory is not None:
        print(peak_growth(bench, groups=bench.args.measure_memory))
        return
    if bench.args.shape:
        shape_figures(bench)
    else:
        for directory, names, max_length in (
            (smollm2, CAUSAL, bench.sizes.max_length),
            (minilm_reward, ENCODER, 512),
            (shaped_as("gemma2", smollm2), GEMMA2, bench.sizes.max_length),
            (shaped_as("modernbert", minilm_reward), MODERNBERT, 512),
        ):
            if chosen := bench.chosen(names):
                setup = Setup(directory(bench.args.cache), bench.args.device, "float32", max_length)
                model_figures(bench, setup, chosen)
        if bench.chosen(("memory",)):
            memory_figure(bench)
        if bench.errors:
            bench.figures["max_relative_error"] = max(bench.errors)
    finish(bench.figures, as_json=bench.args.json)
    if bench.mismatches:
        sys.exit(f"rewards differ by more than {TOLERANCE:g} of their spread: {'; '.join(bench.mismatches)}")


def shaped_as(shape: str, words: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Return what makes a model of this shape in float32, with the tokenizer of another."""
    return lambda cache: shaped(cache, shape, tokenizer=words(cache), device="cpu", dtype="float32")


def settings() -> Bench:
    import argparse

    import torch

    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, "memory"], metavar="WORKLOAD",
                        help=f"some of {', '.join(WORKLOADS)}, memory")  # fmt: skip
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="one by default: the ratios are as with more, and hold when something else runs",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--groups", type=int, help="best-of-16 groups")
    parser.add_argument("--pairs", type=int, help="HH-RLHF pairs")
    parser.add_argument("--best-of", type=Path, help="a folder of prompt, response, generator; default: best_of_56")
    parser.add_argument("--hh", type=Path, help="HH-RLHF rows; default: the harmless sample")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where models are kept; default {CACHE}")
    parser.add_argument("--shape", choices=SHAPES, help="a model of this shape with drawn weights, in bfloat16")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer of --shape: a folder; default: SmolLM2's")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the device; default: H100, bfloat16")
    parser.add_argument("--measure-memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shape in ("gemma2", "modernbert"):
        parser.error(f"--shape {args.shape} is measured by --only {args.shape}_bo16")
    if args.shape and set(args.only or ()) - set(CAUSAL):
        parser.error(f"--shape is a causal model; --only takes {', '.join(CAUSAL)} with it")
    torch.set_num_threads(args.threads)
    sizes = QUICK if args.quick else GPU if args.device.startswith("cuda") else FULL
    changes = {name: value for name in ("rounds", "groups", "pairs") if (value := getattr(args, name)) is not None}
    return Bench(args, replace(sizes, **changes))


# workloads


def texts_of(bench: Bench, name: str, template: Any) -> Texts:
    sizes = bench.sizes
    encodes = name in (*ENCODER, *MODERNBERT)
    times, most = (sizes.encoder_times, 2**20) if encodes else (1, sizes.most_tokens)
    if name.endswith("hh"):
        groups: Iterator[Group] = pairs(data_file(bench.args.hh, "hh_rlhf_harmless.jsonl.gz"))
        return Texts.of(fitting(groups, template, count=times * sizes.pairs, most_tokens=most), template)
    path = data_file(bench.args.best_of, "best_of_56")
    if name.endswith("bo16"):
        return Texts.of(fitting(best_of(path), template, count=times * sizes.groups, most_tokens=most), template)
    prompt, response = (tokens // sizes.shrink for tokens in PREFIXES[name])
    groups = synthetic(path, template, prompt_tokens=prompt, response_tokens=response)
    return Texts.of(fitting(groups, template, count=sizes.synthetic), template)


# the contest


def model_figures(bench: Bench, setup: Setup, names: list[str]) -> None:
    """Measure each workload of one model: ours against its peers, and ours against transformers row by row."""
    from rm.engine.device import native_bfloat16

    scorer, pipe = load_scorer(setup), load_pipeline(setup)
    encoder = load_cross_encoder(setup) if any(name not in PREFIXES for name in names) else None
    for name in names:
        texts = texts_of(bench, name, scorer.template)
        contenders: dict[str, Contender] = {"ours": lambda texts: our_rewards(scorer, texts)}
        if name in PREFIXES:
            contenders["unshared"] = lambda texts: unshared_rewards(scorer, texts)
        else:
            contenders["crossencoder"] = best_batch(encoder, texts, device=setup.device)
            if name in CAUSAL:
                contenders["pipeline"] = lambda texts: pipeline_rewards(pipe, texts, max_length=setup.max_length)
            if name == "causal_bo16" and native_bfloat16(setup.device):
                half = load_scorer(replace(setup, dtype="bfloat16"))
                contenders["ours_bfloat16"] = lambda texts, half=half: our_rewards(half, texts)
        secs, rewards = compete(bench, name, texts, contenders, tokens=texts.tokens(scorer.template))
        ours = rewards["ours"]
        rows = np.unique(np.linspace(0, len(ours) - 1, bench.sizes.checked).round().astype(int))
        some = [texts.rendered[row] for row in rows]
        plain = plain_rewards(pipe, some)
        bench.errors.append(error := relative_difference(ours[rows], plain, spread=ours.std()))
        if name == "causal_bo16":
            exact = exact_rewards(pipe, some)
            bench.figures["ours_error_to_float64"] = relative_difference(ours[rows], exact, spread=ours.std())
            bench.figures["one_by_one_error_to_float64"] = relative_difference(plain, exact, spread=ours.std())
        if not error <= TOLERANCE:
            bench.mismatches.append(f"{name}, ours and plain transformers {error:.2g}")
        for peer in contenders:
            if peer == "ours_bfloat16":
                bench.figures["bf16_vs_float32"] = ratio(secs["ours"], secs[peer])
            elif peer != "ours":
                bench.figures[f"{name}_vs_{peer}"] = ratio(secs[peer], secs["ours"])


def best_batch(encoder: Any, texts: Texts, *, device: str) -> Contender:
    """Return CrossEncoder at its best batch size; each is tried once after a warm-up."""
    sizes = (4, 8, 16, 32, *((64, 128) if device.startswith("cuda") else ()))
    cross_encoder_rewards(encoder, texts.few(), batch_size=8)
    secs: dict[int, float] = {}
    for size in sizes:
        if secs and (size >= 2 * len(texts.rendered) or secs[max(secs)] > 1.25 * min(secs.values())):
            break  # larger ones pad more and more
        began = time.perf_counter()
        cross_encoder_rewards(encoder, texts, batch_size=size)
        secs[size] = time.perf_counter() - began
    best = min(secs, key=lambda size: secs[size])
    print(f"crossencoder: batch size {best}, of " + ", ".join(f"{size}: {s:.2f} s" for size, s in secs.items()))
    return lambda texts: cross_encoder_rewards(encoder, texts, batch_size=best)


def compete(
    bench: Bench, name: str, texts: Texts, contenders: dict[str, Contender], *, tokens: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Return the seconds of every round and the last rewards of each contender; note and print those with other rewards."""
    for run in contenders.values():
        run(texts.few())
    order = list(contenders)
    secs: dict[str, list[float]] = {contender: [] for contender in order}
    rewards = {}
    for number in range(bench.sizes.rounds):
        turn = number % len(order)
        for contender in order[turn:] + order[:turn]:
            began = time.perf_counter()
            rewards[contender] = contenders[contender](texts)
            secs[contender].append(time.perf_counter() - began)
    rows, spread = len(texts.rendered), rewards["ours"].std()
    print(f"{name}: {len(texts.groups)} groups, {rows} rows, {tokens} tokens")
    for contender in order:
        median = statistics.median(secs[contender])
        difference = relative_difference(rewards[contender], rewards["ours"], spread=spread)
        print(
            f"    {contender:14s} {median:8.2f} s {rows / median:9.2f} rows/s {tokens / median:9.0f} tokens/s"
            f"   rewards differ from ours by {difference:.1e} of their spread",
            flush=True,
        )
        exact = contender != "ours_bfloat16" and not bench.args.shape  # bfloat16 differs with every batching
        if exact and not difference <= TOLERANCE:
            bench.mismatches.append(f"{name}, ours and {contender} {difference:.2g}")
    return secs, rewards


def ratio(numerator: list[float], denominator: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(numerator, denominator, strict=True))


def relative_difference(one: np.ndarray, other: np.ndarray, *, spread: float) -> float:
    return float(np.abs(one - other).max() / spread)


# memory: a Linux process of its own for each size


def memory_figure(bench: Bench) -> None:
    if not Path("/proc/self/clear_refs").exists() or bench.args.device != "cpu":
        print("memory: measured on Linux, on the CPU only")
        return
    grown = []
    for groups in (1, 4):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure-memory", str(groups)]
        runs = []
        for _ in range(1 if bench.args.quick else 3):  # the allocator's gaps differ from run to run
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(float(child.stdout.split()[-1]))
        grown.append(statistics.median(runs))
        print(f"memory: {16 * groups} rows take {grown[-1]:.0f} MB at the peak, over the loaded model", flush=True)
    bench.figures["memory_4x_rows_ratio"] = grown[1] / grown[0]


def peak_growth(bench: Bench, *, groups: int) -> float:
    """MB of resident memory that scoring takes at its peak, over that of the process with the model in memory.

    Rows are of one length, and a group is a little more than the token budget: more groups are more batches of one shape.
    """
    budget = 1024
    tokens = budget // 16
    setup = Setup(smollm2(bench.args.cache), "cpu", "float32", 2048)
    scorer = load_scorer(setup, tokens_per_batch=budget)
    path = data_file(bench.args.best_of, "best_of_56")
    made = synthetic(path, scorer.template, prompt_tokens=tokens, response_tokens=tokens)
    work = fitting(made, scorer.template, count=groups)
    for parameter in scorer.model.parameters():
        parameter.sum()  # weights are mapped from their file: now all of them are in memory
    scores(scorer, [((("user", "Hello"),), ["Hello to you"])])
    ctypes.CDLL(None).malloc_trim(0)  # or the peak hides in what loading left behind
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    scores(scorer, work)
    return resident_mb("VmHWM") - before


# a known shape with random weights


def shape_figures(bench: Bench) -> None:
    """Measure ours and CrossEncoder in bfloat16: pairs and tokens a second, and the share of the device's FLOP/s put to use."""
    args = bench.args
    tokenizer = args.tokenizer or smollm2(args.cache)
    directory = shaped(args.cache, args.shape, tokenizer=tokenizer, device=args.device)
    setup = Setup(directory, args.device, "bfloat16", bench.sizes.max_length)
    scorer, encoder = load_scorer(setup), load_cross_encoder(setup)
    computed = []
    scorer.on_batch = lambda work: computed.append(work.computed_tokens - work.padding_tokens)
    flops_per_token = 2 * scorer.model.computing_parameters
    for name in bench.chosen(CAUSAL) if args.only else ["causal_bo16"]:
        texts = texts_of(bench, name, scorer.template)
        tokens = texts.tokens(scorer.template)
        contenders: dict[str, Contender] = {"ours": lambda texts: our_rewards(scorer, texts)}
        contenders["crossencoder"] = best_batch(encoder, texts, device=args.device)
        secs, _ = compete(bench, name, texts, contenders, tokens=tokens)
        computed.clear()
        our_rewards(scorer, texts)
        prefix = f"{args.shape}_{name}"
        bench.figures[f"{prefix}_vs_crossencoder"] = ratio(secs["crossencoder"], secs["ours"])
        for tool, ran in (("ours", sum(computed)), ("crossencoder", tokens)):
            median = statistics.median(secs[tool])
            bench.figures[f"{prefix}_{tool}_pairs_per_sec"] = len(texts.rendered) / median
            bench.figures[f"{prefix}_{tool}_tokens_per_sec"] = tokens / median
            bench.figures[f"{prefix}_{tool}_mfu"] = flops_per_token * ran / median / (args.peak_tflops * 1e12)


if __name__ == "__main__":
    main()
