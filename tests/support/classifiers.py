"""Tiny random sequence classifiers of many architectures, some of which cannot take packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny_models import word_tokenizer

VOCABULARY, LENGTH = 40, 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2 * LENGTH,
    "num_labels": 1,
    "pad_token_id": 1,
    "initializer_range": 0.4,
}
SHARED = {**SIZES, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
MODERN = {
    **SIZES,
    "local_attention": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
CAUSAL = {
    "Llama": SHARED,
    "Qwen2": SHARED,
    "Qwen3": {**SHARED, "head_dim": 8},
    "Mistral": {**SHARED, "sliding_window": None},
    "Mistral-wide": {**SHARED, "sliding_window": LENGTH},
    "Mistral-window": {**SHARED, "sliding_window": 8},
    "Qwen2-window": {**SHARED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    "Gemma": {**SHARED, "head_dim": 8},
    "Gemma2": {**SHARED, "head_dim": 8, "attn_logit_softcapping": 2.0, "sliding_window": 6},
    "GptOss": {
        **SHARED,
        "head_dim": 8,
        "sliding_window": 6,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "GPT2": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 2 * LENGTH,
        "num_labels": 1,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "initializer_range": 0.4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "GPTNeoX": {**SIZES, "hidden_dropout": 0.0, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 3},
}
ENCODERS = {
    "Bert": {**SIZES, **STILL},
    "Roberta": {**SIZES, **STILL, "bos_token_id": 0, "eos_token_id": 2},
    "ModernBert": MODERN,
    "ModernBert-mean": {**MODERN, "classifier_pooling": "mean"},
    "Electra": {**SIZES, **STILL, "embedding_size": 12, "summary_last_dropout": 0.0},
}
ALL = {**CAUSAL, **ENCODERS}


def build(name: str, **changes: Any) -> Any:
    """Build a tiny random sequence classifier in train mode, with the attention that transformers chooses."""
    kind = name.partition("-")[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**ALL.get(name, SIZES), **changes})
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for parameter in model.parameters():  # no zero bias, no layer norm of ones: a lost one must show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


REFUSED = {
    "DebertaV2": {**SIZES, **STILL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DistilBert": {
        "vocab_size": VOCABULARY,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "num_labels": 1,
        "pad_token_id": 1,
        "max_position_embeddings": 2 * LENGTH,
        "initializer_range": 0.4,
        "seq_classif_dropout": 0.0,
    },
    "MPNet": {**SIZES, **STILL},
}


def save(directory: Path, name: str, **changes: Any) -> Path:
    """Save a tiny model with a tokenizer as a checkpoint directory; `changes` go to its configuration."""
    causal = name in CAUSAL
    tokenizer = word_tokenizer(pair=not causal)
    if name.partition("-")[0] != "Bert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    changes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if causal:
        changes |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    build(name, **changes).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_wide(directory: Path, name: str, **changes: Any) -> Path:
    """Save a model like `save`, of hidden size 64 and with room for 600 tokens."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_position_embeddings": 600}
    save(directory, name, **{**sizes, **changes})
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.model_max_length = 600
    tokenizer.save_pretrained(directory)
    return directory
