"""Models of a few thousand parameters with a word-level tokenizer: real code paths in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = """
the a of to and in is it you that he was for on are with as his they be at one have this from or had by hot but some
what there we can out other were all your when up use word how said an each she which do their time if will way about
many then them would write like so these her long make thing see him two three has look more day could go good bad
reply short prompt answer number human assistant
""".split()


def word_tokenizer(*, pair: bool) -> Any:
    """Make a tokenizer with one token per word or character; `pair` gives BERT's `[CLS] A [SEP] B [SEP]` with token types."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    characters = [chr(code) for code in range(33, 127)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*specials, *WORDS, *characters, "Ġ"]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "</s>", "bos_token": "<s>"}
    if pair:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    extra = {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]} if not pair else {}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names, **extra)
    wrapped.model_input_names = ["input_ids", *(["token_type_ids"] if pair else []), "attention_mask"]
    return wrapped


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} {{ eos_token }}{% endfor %}"
)


def save_encoder(directory: Path, *, labels: int = 1, seed: int = 0) -> Path:
    """Save a random BERT reward model of hidden size 32."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = word_tokenizer(pair=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _llama_settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,
    }


def save_causal(directory: Path, *, chat: bool = False, pad: str | None = "[PAD]", seed: int = 0) -> Path:
    """Save a random Llama reward model of hidden size 32, with a chat template for `chat`."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = word_tokenizer(pair=False)
    tokenizer.pad_token = pad
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(**_llama_settings(tokenizer), num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_language_model(
    directory: Path, *, pad: str | None = "[PAD]", unk: str | None = "[UNK]", tied: bool = False, seed: int = 0
) -> Path:
    """Save a causal language model with a chat template and no reward head, from which training starts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer(pair=False)
    tokenizer.pad_token, tokenizer.unk_token, tokenizer.chat_template = pad, unk, CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(**_llama_settings(tokenizer), tie_word_embeddings=tied)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_sized(directory: Path, kind: str, *, hidden: int, layers: int, words: int = 0) -> Path:
    """Save a model with room for 256 tokens; `words` embeddings that no text has make its weights large."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    tokenizer = word_tokenizer(pair=kind == "encoder")
    tokenizer.model_max_length = 256
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer) + words,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
    }
    torch.manual_seed(0)
    if kind == "encoder":
        model: Any = BertForSequenceClassification(BertConfig(**sizes))
    else:
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, **ends, num_key_value_heads=2))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
