"""The model on a GPU, in under eight minutes and without a network: correctness, speed, and the limiting factor.

    python benchmarks/gpu.py [--dry] [--seconds 450] [--models qwen3_0.6b gemma2_2b llama_8b]

Needs this repository's `rm`, torch, transformers and numpy, but not Beam. Weights are random, in the shapes of real models,
and token ids are random: P of a prompt, R of each of N responses. The script prints one line of JSON:

- `checks`: the largest difference between packed rewards and those of single rows, as a share of their spread, in float32 and
  in bfloat16, compared with that of unpacked rows in bfloat16;
- `rates`: rows/s and the share of the device's peak FLOP/s for each model, each P/R/N and each method: `shared` (packed, with
  a group's prompt computed once, as in `bestkept`), `unshared` (packed), `padded` (transformers, rows by length, the same
  token budget) and `padded_32` (32 rows by length, as in CrossEncoder). Utilisation counts everything that a method computes,
  including padding;
- `training`: steps/s and utilisation of forward, backward and AdamW on packed pairs;
- `memory`: the predicted and the measured peak of a full batch, and the effect of a planted out-of-memory error on batches and
  rewards.

Measurements for which no time was left are in `skipped`, failed ones in `failed`. `--dry` runs all of them on a CPU with tiny
shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.gpu_setup import (
    MAX_LENGTH,
    MODELS,
    PAD,
    WAYS,
    WORK,
    Bench,
    build,
    draw_window,
    plain_attention,
    scorer_of,
)

from rm.checkpoint.reward_model import RewardModel
from rm.engine.device import default_tokens_per_batch, peak_flops
from rm.engine.layout import lay_out
from rm.engine.memory import BatchSize, measure_peaks
from rm.engine.packed_forward import enable_packing, in_float32, packed_rewards
from rm.scorer import Scorer, Window
from rm.scorer_memory import measure_memory as measure_batches
from rm.train.losses import bradley_terry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--seconds", type=float, default=450, help="after which no measurement begins")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; --dry runs on the CPU, with tiny shapes")
    bench = Bench(dry=args.dry, seconds=args.seconds)
    started = time.monotonic()
    for name in args.models:
        bench.step(name, lambda name=name: measure_model(bench, name), needs_secs=25)  # type: ignore[misc]
    bench.results |= {
        "device": torch.cuda.get_device_name() if bench.device == "cuda" else "cpu",
        "dtype": str(bench.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "secs": round(time.monotonic() - started, 1),
    }
    print(json.dumps(bench.results))


def measure_model(bench: Bench, name: str) -> None:
    """Measure all there is of one model."""
    small = name != "llama_8b"
    model = build(bench, name)
    results, scorer = bench.results, scorer_of(bench, model, packed=False)
    with plain_attention(model):
        results["checks"][name] = bench.step(f"{name} check", lambda: compare(bench, model), needs_secs=10)
    for work, shape in WORK.items():
        rates = results["rates"].setdefault(name, {})
        rates[work] = {}
        for way in WAYS:
            rates[work][way] = bench.step(
                f"{name} {work} {way}",
                lambda way=way, shape=shape: measure_way(bench, scorer, way, shape),
                needs_secs=12,  # type: ignore[misc]
            )
    results["memory"][name] = bench.step(f"{name} memory", lambda: measure_memory(bench, scorer), needs_secs=10)
    if small:
        results["training"][name] = bench.step(f"{name} training", lambda: train(bench, scorer), needs_secs=15)


def measure_way(bench: Bench, scorer: Scorer, way: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Score windows of some batches in one way until the time is over; return rows/s and the share of the peak."""
    model = scorer.model.model
    if not way.startswith("padded"):
        with plain_attention(scorer.model):  # back to it, whatever happens
            if not enable_packing(model, causal=True, max_length=MAX_LENGTH):
                return {"refused": True}
            scorer.packed = True
            try:
                return run_windows(bench, scorer, way, shape)
            finally:
                scorer.packed = False
    return run_windows(bench, scorer, way, shape)


def run_windows(bench: Bench, scorer: Scorer, way: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    prompt, response, count = shape
    tokens = 6 * scorer.tokens_per_batch  # some batches
    groups = 2 if bench.dry else max(2, tokens // (prompt + response * count))
    window = draw_window(bench, shape, groups, share=way == "shared")
    computed: list[Any] = []
    scorer.on_batch = computed.append
    score = (
        (lambda: score_by_32(bench, scorer, window, computed))
        if way == "padded_32"
        else (lambda: scorer._forward_all(window))
    )
    score()  # kernels are chosen, memory is allocated
    computed.clear()
    started, rows = bench.clock(), 0
    while rows == 0 or bench.clock() - started < bench.window_secs:
        score()
        rows += len(window.rows)
    secs = bench.clock() - started
    total = sum(work.computed_tokens if hasattr(work, "computed_tokens") else work for work in computed)
    return {
        "rows_per_sec": round(rows / secs, 2),
        "tokens_per_sec": round(total / secs),
        **utilisation(bench, scorer, total, secs),
    }


def utilisation(bench: Bench, scorer: Scorer, tokens: float, secs: float, *, passes: int = 1) -> dict[str, float]:
    """Return the share of the device's peak by 2 x parameters x tokens, attention not counted; nothing without a peak."""
    peak = peak_flops(bench.device, bench.dtype)
    if peak is None:
        return {}
    return {"utilisation": round(2.0 * scorer.model.computing_parameters * tokens * passes / secs / peak, 4)}


def score_by_32(bench: Bench, scorer: Scorer, window: Window, computed: list[Any]) -> None:
    """Score rows sorted by length, 32 at a time."""
    order = sorted(range(len(window.rows)), key=lambda row: -len(window.rows[row].ids))
    for start in range(0, len(order), 32):
        with torch.inference_mode():
            _, tokens = scorer._forward_padded(window.rows, [[row] for row in order[start : start + 32]])
        computed.append(tokens)


def compare(bench: Bench, model: RewardModel) -> dict[str, Any]:
    """Compare packed rewards with those of rows one by one, in float32 and in the type of the run."""
    window = draw_window(bench, WORK["P50_R200_N2"], 3, share=True)
    rows = [torch.tensor([row.ids], device=bench.device) for row in window.rows]
    groups: Any = [[(window.rows[row].ids, None) for row in group] for group in window.groups]
    layout = lay_out(groups, share=True, pad=PAD)

    def alone() -> torch.Tensor:
        return torch.stack([model.model(input_ids=row).logits[0, 0] for row in rows]).float()

    with torch.inference_mode():
        own = alone()
        with in_float32(model.model):
            exact = alone()
        if not enable_packing(model.model, causal=True, max_length=MAX_LENGTH):
            return {"packed": False}
        packed = packed_rewards(model.model, layout, causal=True)
        with in_float32(model.model):
            wide = packed_rewards(model.model, layout, causal=True)
    errors = {"float32": wide, str(bench.dtype).removeprefix("torch."): packed, "rows_alone": own}
    spread = exact.std()
    return {"packed": True, **{name: float((value - exact).abs().max() / spread) for name, value in errors.items()}}


def measure_memory(bench: Bench, scorer: Scorer) -> dict[str, Any]:
    """Compare the predicted peak of a full batch with the true one; then take memory away until a batch fails."""
    with plain_attention(scorer.model):
        scorer.packed = enable_packing(scorer.model.model, causal=True, max_length=MAX_LENGTH)
        window = draw_window(bench, WORK["P200_R350_N16"], 8, share=True)
        memory = measure_batches(scorer, window.rows[0])
        batch = max(scorer._plan(window.rows, window.groups), key=lambda batch: scorer._cost(window.rows, batch))
        tokens = scorer._cost(window.rows, batch)
        true = true_peak(bench, lambda: scorer._forward(window.rows, batch).read())
        size = BatchSize.packed(scorer._lay_out(window.rows, batch).segments)
        results = {"batch_tokens": tokens, "predicted_bytes": memory.bytes(size), "true_bytes": true}
        results |= plant_out_of_memory(bench, scorer, window, tokens=tokens, limit=true // 3)
    scorer.packed = False
    return results


def true_peak(bench: Bench, run: Callable[[], Any]) -> int:
    """Return the bytes that `run` holds at most beyond what was there."""
    if bench.device != "cuda":
        return max(measure_peaks(run).values())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def plant_out_of_memory(bench: Bench, scorer: Scorer, window: Window, *, tokens: int, limit: int) -> dict[str, Any]:
    """Score a window as it is, and with memory for a third of its largest batch, of `tokens`; compare budgets and rewards."""
    expected, _ = scorer._forward_all(window)
    budget, forward = scorer.tokens_per_batch, scorer._forward
    with contextlib.ExitStack() as stack:
        if bench.device == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + limit) / total))
            stack.callback(torch.cuda.set_per_process_memory_fraction, 1.0)
        else:

            def fail_when_large(rows: Any, batch: Any) -> Any:
                if scorer._cost(rows, batch) > tokens // 3:
                    raise torch.OutOfMemoryError("planted")
                return forward(rows, batch)

            scorer._forward = fail_when_large  # type: ignore[method-assign]
            stack.callback(vars(scorer).pop, "_forward")
        rewards, failures = scorer._forward_all(window)
    after, scorer.tokens_per_batch = scorer.tokens_per_batch, budget
    error = float(abs(rewards - expected).max() / expected.std())
    return {"planted": {"tokens_before": budget, "tokens_after": after, "failures": len(failures), "error": error}}


def train(bench: Bench, scorer: Scorer) -> dict[str, Any]:
    """Take steps on packed pairs of P50 R200, as many as fit into the budget of training."""
    model = scorer.model.model
    with plain_attention(scorer.model):
        model.train()
        if not enable_packing(model, causal=True, max_length=MAX_LENGTH):
            return {"refused": True}
        shape, budget = WORK["P50_R200_N2"], 128 if bench.dry else default_tokens_per_batch("cuda", training=True)
        window = draw_window(bench, shape, 2 if bench.dry else budget // 450, share=True)
        groups: Any = [[(window.rows[row].ids, None) for row in group] for group in window.groups]
        layout = lay_out(groups, share=True, pad=PAD)
        edges = torch.tensor([group[:2] for group in window.groups], device=bench.device)
        ones = torch.ones(len(edges), device=bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def step() -> None:
            bradley_terry(packed_rewards(model, layout, causal=True), edges, ones, ones).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        started, steps = bench.clock(), 0
        while steps == 0 or bench.clock() - started < bench.window_secs:
            step()
            steps += 1
        secs = bench.clock() - started
    model.eval()
    rates = utilisation(bench, scorer, steps * len(layout.ids), secs, passes=3)
    return {"steps_per_sec": round(steps / secs, 3), "tokens_per_step": len(layout.ids), **rates}


if __name__ == "__main__":
    main()
