"""The tools of the scoring benchmark, which load the same model directory and return rewards.

Every `rewards` function takes the same rows and returns their rewards in order, including tokenisation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.harness import make_once
from support.scoring_texts import Group, Texts

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
    },
    "0.6b": {  # Qwen3-0.6B
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "8b": {  # Llama-3.1-8B
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "gemma2": {  # small: capped logits, and windows in every other layer
        "model_type": "gemma2",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 256,
    },
    "modernbert": {  # small: an encoder with windows in two of three layers
        "model_type": "modernbert",
        "hidden_size": 384,
        "intermediate_size": 576,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "local_attention": 128,
        "classifier_pooling": "mean",
    },
}


@dataclass(frozen=True)
class Setup:
    """The settings that all tools share."""

    directory: Path
    device: str
    dtype: str
    max_length: int


def shaped(cache: Path, shape: str, *, tokenizer: Path, device: str, dtype: str = "bfloat16") -> Path:
    """A reward model of a known model's shape, with random weights made on the device, kept in `cache`."""

    def make(directory: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        from rm.checkpoint.interchange import describe_as_reward_model
        from rm.checkpoint.load import ensure_distinct_pad, quiet_transformers

        words = AutoTokenizer.from_pretrained(tokenizer)
        sizes = {"vocab_size": len(words), "max_position_embeddings": 8192, **SHAPES[shape]}
        special = {
            f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")
        }
        config = AutoConfig.for_model(**special, **sizes)
        describe_as_reward_model(config)
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, dtype))
        torch.nn.init.normal_(model.get_submodule("score" if hasattr(model, "score") else "classifier").weight)
        ensure_distinct_pad(model, words)
        with quiet_transformers():
            model.save_pretrained(directory)
        words.save_pretrained(directory)

    return make_once(cache / f"shape-{shape}", make)


# ours


def load_scorer(setup: Setup, *, tokens_per_batch: int | None = None) -> Any:
    from rm.scorer import Scorer

    return Scorer.load(
        setup.directory,
        dtype=setup.dtype,
        max_length=setup.max_length,
        too_long="truncate",
        tokens_per_batch=tokens_per_batch,
        device=setup.device,
    )


def scores(scorer: Any, groups: Sequence[Group]) -> list[Any]:
    """Score each group; end the benchmark where the Scorer read anything but the whole text of every row."""
    results: list[Any] = scorer.score(groups)
    reasons = {reason for group in results for reason in group.reasons if reason is not None}
    if reasons or any(group.truncated.any() for group in results):
        sys.exit(
            f"some rows were cut or rejected ({', '.join(reasons) or 'cut'}): the tools would not score the same texts"
        )
    return results


def our_rewards(scorer: Any, texts: Texts) -> np.ndarray:
    return np.concatenate([group.rewards for group in scores(scorer, texts.groups)])


def unshared_rewards(scorer: Any, texts: Texts) -> np.ndarray:
    """Ours without sharing: one response of each group a call, since a call brings equal prompts together."""
    width = len(texts.groups[0][1])
    columns = []
    for place in range(width):
        results = scores(scorer, [(prompt, [responses[place]]) for prompt, responses in texts.groups])
        columns.append([float(group.rewards[0]) for group in results])
    return np.array(columns, dtype=np.float32).T.ravel()


# sentence-transformers


def load_cross_encoder(setup: Setup) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    from rm.checkpoint.load import quiet_transformers

    with quiet_transformers():
        return CrossEncoder(
            str(setup.directory),
            device=setup.device,
            max_length=setup.max_length,
            activation_fn=torch.nn.Identity(),
            model_kwargs={"dtype": getattr(torch, setup.dtype)},
        )


def cross_encoder_rewards(encoder: Any, texts: Texts, *, batch_size: int) -> np.ndarray:
    """It takes pairs only; an empty first text makes a pair of the one string that a causal model reads."""
    inputs = [("", first) if second is None else (first, second) for first, second in texts.rendered]
    rewards: np.ndarray = encoder.predict(inputs, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
    return rewards


# transformers


def load_pipeline(setup: Setup) -> Any:
    import torch
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    from rm.checkpoint.load import quiet_transformers

    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            setup.directory, dtype=getattr(torch, setup.dtype)
        ).to(setup.device)
    tokenizer = AutoTokenizer.from_pretrained(setup.directory)
    transformers.logging.set_verbosity_error()  # it says with every call that a data set would be faster; it is not here
    return pipeline("text-classification", model=model.eval(), tokenizer=tokenizer, device=setup.device)


def pipeline_rewards(pipe: Any, texts: Texts, *, max_length: int) -> np.ndarray:
    outputs = pipe(
        [first for first, _ in texts.rendered],
        batch_size=8,
        function_to_apply="none",
        truncation=True,
        max_length=max_length,
    )
    return np.array([output["score"] for output in outputs], dtype=np.float32)


def plain_rewards(pipe: Any, rendered: Sequence[tuple[str, str | None]]) -> np.ndarray:
    """The reference: the pipeline's model by itself, one row at a time, nothing padded; returned as float64."""
    import torch

    rewards = []
    with torch.inference_mode():
        for first, second in rendered:
            inputs = pipe.tokenizer(first, second, return_tensors="pt").to(pipe.model.device)
            rewards.append(float(pipe.model(**inputs).logits[0, 0]))
    return np.array(rewards)


def exact_rewards(pipe: Any, rendered: Sequence[tuple[str, str | None]]) -> np.ndarray:
    """The same in float64: the reference for rounding in float32."""
    kind = pipe.model.dtype
    pipe.model.double()
    try:
        return plain_rewards(pipe, rendered)
    finally:
        pipe.model.to(kind)  # float32 goes to float64 and back unchanged
