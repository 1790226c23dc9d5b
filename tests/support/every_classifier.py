"""A tiny random reward model of every architecture for sequence classification in transformers, if one can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.tiny_models import word_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from rm.checkpoint.reward_model import is_causal
from rm.scorer import Scorer

ALL = tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
POSITIONS = 128
WIDTH = 32

_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "d_embed"), WIDTH),
    **dict.fromkeys(("intermediate_size", "d_inner", "d_ff", "hidden_dim", "ffn_dim", "feed_forward_size", "dff"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "n_inner"), 64),
    **dict.fromkeys(("ffn_hidden_size", "shared_expert_intermediate_size", "attention_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "rotary_dim", "attention_head_size"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok",), 2),
}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MIXED = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_SPECIAL = {
    "albert": {"num_hidden_groups": 1},
    "axk1": _LATENT,
    "axk2": {
        **_LATENT,
        "mlp_layer_types": ["dense", "sparse"],
        "index_head_dim": 16,
        "index_n_heads": 2,
        "gated_norm_rank": 8,
    },
    "bigbird_pegasus": {"attention_type": "original_full"},
    "canine": {"downsampling_rate": 4, "local_transformer_stride": 16},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "ctrl": {"dff": 64},
    "deberta": {"pooler_hidden_size": WIDTH},
    "deberta-v2": {"pooler_hidden_size": WIDTH},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "window_size": 8,
    },
    "hunyuan_v1_dense": {"head_dim": 8, "rope_parameters": _ROPE},
    "hunyuan_v1_moe": {"head_dim": 8, "rope_parameters": _ROPE, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "markuplm": {"initializer_range": 0.1},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 8, "rope_parameters": _ROPE},
    "mistral4": {**_LATENT, "head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16},
    "nemotron": {
        "head_dim": 8,
        "num_key_value_heads": 2,
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
    },
    "perceiver": {
        "num_latents": 8,
        "d_latents": WIDTH,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "qwen3_5_text": _MIXED,
    "qwen3_next": _MIXED,
    "reformer": {
        "attn_layers": ["local", "local"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 16,
        "hidden_size": WIDTH,
        "is_decoder": False,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 40,
        "shape_embed_dim": 8,
        "shape_vocab_size": 40,
    },
    "t5": {"decoder_start_token_id": 0},
    "xlnet": {"d_head": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
UNMADE = {
    "layoutlmv2": "needs a library that is not installed",
    "zamba": "shares weights between layers that a tiny one does not have",
    "zamba2": "shares weights between layers that a tiny one does not have",
}


def load_scorer(
    directory: Path, *, dtype: str = "float32", tokens_per_batch: int = 4096, max_length: int = 64
) -> Scorer:
    """A model, ready to score on the CPU."""
    return Scorer.load(
        directory,
        dtype=dtype,
        max_length=max_length,
        too_long="truncate",
        tokens_per_batch=tokens_per_batch,
        device="cpu",
    )


def save_tiny(directory: Path, kind: str, **changes: Any) -> Path:
    """Save a tiny random model of a `model_type` with a tokenizer. Raises whatever the architecture does."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(_tiny_config(kind, **changes))
    for parameter in model.parameters():
        if parameter.is_floating_point():  # no zero bias, no layer norm of ones: a lost one must show
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    tokenizer = word_tokenizer(pair=not is_causal(model))
    if not getattr(model.config, "type_vocab_size", 0):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _tiny_config(kind: str, **changes: Any) -> Any:
    tokenizer = word_tokenizer(pair=True)
    full = AutoConfig.for_model(kind).to_dict()
    small = {**_shrink(full, len(tokenizer)), **_SPECIAL.get(kind, {}), "num_labels": 1, **changes}
    small |= {"pad_token_id": tokenizer.pad_token_id}
    for name, token in (("bos_token_id", 4), ("eos_token_id", 3), ("cls_token_id", 2), ("sep_token_id", 3)):
        if name in full:
            small[name] = token
    small.pop("model_type")
    if kind == "qwen3_5":
        small["text_config"] |= _MIXED
    return AutoConfig.for_model(kind, **small)


def _shrink(values: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in (
            "layer_types",
            "layers_block_type",
            "architectures",
            "transformers_version",
            "id2label",
            "label2id",
        ):
            continue
        if isinstance(value, dict) and "model_type" in value:
            small[name] = _shrink(value, vocabulary)
        elif name == "vocab_size":
            small[name] = vocabulary
        elif name in ("initializer_range", "init_std"):
            small[name] = 0.3
        elif isinstance(value, float) and ("dropout" in name or name.endswith(("pdrop", "drop"))):
            small[name] = 0.0
        elif isinstance(value, int) and not isinstance(value, bool) and name in _SIZES:
            small[name] = _SIZES[name]
        elif name.endswith("token_id") and isinstance(value, int):
            small[name] = min(value, vocabulary - 1)
        else:
            small[name] = value
    return small
