"""Models and texts of the benchmark for GPUs, and its results; needs only `rm`, torch and transformers."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from rm.checkpoint.reward_model import Float32Head, RewardModel
from rm.engine.device import default_tokens_per_batch
from rm.scorer import Scorer, Window
from rm.text.templates import Encoded
from rm.together import PADDED

PAD = 0
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "qwen3_0.6b": ("Qwen3", {"layers": 28, "hidden": 1024, "inner": 3072, "heads": 16, "key_heads": 8, "width": 128}),
    "gemma2_2b": ("Gemma2", {"layers": 26, "hidden": 2304, "inner": 9216, "heads": 8, "key_heads": 4, "width": 256}),
    "llama_8b": ("Llama", {"layers": 32, "hidden": 4096, "inner": 14336, "heads": 32, "key_heads": 8, "width": 128}),
}
WORK = {"P200_R350_N16": (200, 350, 16), "P1000_R500_N8": (1000, 500, 8), "P50_R200_N2": (50, 200, 2)}
WAYS = ("shared", "unshared", "padded", "padded_32")
VOCABULARY = 32_000  # embeddings compute nothing, so a small one is as good
MAX_LENGTH = 2048


class Bench:
    """The device, its limits, and the results so far."""

    def __init__(self, *, dry: bool, seconds: float) -> None:
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.until = time.monotonic() + seconds
        self.window_secs = 0.0 if dry else 4.0  # of each measurement, after its first batch
        self.results: dict[str, Any] = {
            "checks": {},
            "rates": {},
            "training": {},
            "memory": {},
            "skipped": [],
            "failed": {},
        }

    def step(self, name: str, run: Callable[[], Any], *, needs_secs: float) -> Any:
        """Run a step if there is time for it; an error ends the step, not the benchmark."""
        if time.monotonic() + (0 if self.dry else needs_secs) > self.until:
            self.results["skipped"].append(name)
            return None
        try:
            return run()
        except Exception as error:
            self.results["failed"][name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            error.__traceback__ = None  # its frames hold tensors
            return None
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def clock(self) -> float:
        """The time when the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def build(bench: Bench, name: str) -> RewardModel:
    """Build a model of random weights on the device, packed where it can be."""
    kind, size = MODELS[name]
    if bench.dry:
        size = {"layers": 2, "hidden": 32, "inner": 48, "heads": 4, "key_heads": 2, "width": 8}
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=size["layers"],
        hidden_size=size["hidden"],
        intermediate_size=size["inner"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["key_heads"],
        head_dim=size["width"],
        vocab_size=100 if bench.dry else VOCABULARY,
        max_position_embeddings=4096,
        num_labels=1,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    try:
        with torch.device(bench.device):
            model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    finally:
        torch.set_default_dtype(before)
    return RewardModel(Float32Head.wrap(model))


def scorer_of(bench: Bench, model: RewardModel, *, packed: bool) -> Scorer:
    template: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=PAD), max_length=MAX_LENGTH)
    budget = 512 if bench.dry else default_tokens_per_batch("cuda", training=False)
    return Scorer(model, template, budget, bench.device, packed, way=PADDED)


@contextlib.contextmanager
def plain_attention(model: RewardModel) -> Iterator[None]:
    """Let the model have transformers' attention meanwhile."""
    implementation = model.model.config._attn_implementation
    training = model.model.training
    try:
        yield
    finally:
        model.model.train(training)
        if model.model.config._attn_implementation != implementation:
            model.model.set_attn_implementation(implementation)


def draw_window(bench: Bench, shape: tuple[int, int, int], groups: int, *, share: bool) -> Window:
    """Draw `groups` prompts with their responses, lengths of which vary by a quarter around their mean."""
    prompt, response, count = (max(2, size // 20) for size in shape) if bench.dry else shape
    generator = torch.Generator().manual_seed(groups)
    top = 100 if bench.dry else VOCABULARY
    window = Window([], [], [], [])

    def ids(mean: int) -> list[int]:
        length = int(torch.randint(max(1, mean * 3 // 4), mean * 5 // 4 + 1, (1,), generator=generator))
        return torch.randint(3, top, (length,), generator=generator).tolist()

    for group in range(groups):
        start = ids(prompt)
        members = []
        for index in range(count):
            own = ids(response)
            members.append(len(window.rows))
            window.rows.append(Encoded(start + own, None, len(start), len(own), False))
            window.places.append([(group, index)])
        window.groups.extend([members] if share else [[row] for row in members])
    return window
