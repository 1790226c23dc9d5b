"""Refuses models that transformers would load but that give no reward, or a wrong one; the error has the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm.checkpoint.weight_files import require_files, tensor_beside, tensor_shapes
from rm.identity import ModelError

_VALUE_HEADS = ("value_head.bin", "v_head.bin")  # pickled ones, as older tools save them
_SHOWN = 4


def refuse_other_heads(directory: Path, config: Any, names: Sequence[str]) -> None:
    """Raise `ModelError` if the model scores tokens, or keeps its head (one of these layers) in a separate file."""
    require_files(directory)
    architectures = getattr(config, "architectures", None)
    for architecture in architectures if isinstance(architectures, list) else ():
        if str(architecture).endswith("ForTokenClassification"):
            raise ModelError(
                f"model.path {str(directory)!r} is a {architecture}, which scores single tokens and not a response; choose a "
                "...ForSequenceClassification checkpoint with one output, or train one from it with `bestkept train`"
            )
    weights = {f"{name}.weight" for name in names}
    if weights & {name for name, _ in tensor_shapes(directory)}:
        return
    beside = tensor_beside(directory, sorted(weights))
    pickled = [name for name in _VALUE_HEADS if (directory / name).is_file()]
    if beside or pickled:
        place = f"{beside[0]} ({beside[1]})" if beside else pickled[0]
        raise ModelError(
            f"model.path {str(directory)!r} keeps its head in a separate file, {place}, as LLaMA-Factory and TRL's value-head "
            "models do; transformers does not read it. Write it into model.safetensors as score.weight, in a copy whose "
            "config.json names the ...ForSequenceClassification class with one output (its bias shifts all rewards equally "
            "and can be dropped), or train one from it with `bestkept train`"
        )


def describe_layers(unexpected: Sequence[str], names: Sequence[str]) -> str | None:
    """Return a description of a checkpoint's head if it has several layers (`score.0.weight`); else None."""
    inner = [name for name in unexpected for head in names if name.startswith(f"{head}.") and name.count(".") > 1]
    if not inner:
        return None
    return (
        f"its head has several layers ({inner[0]}), which this class does not compute; choose a checkpoint with one linear "
        "layer as its head, or train one from it with `bestkept train`"
    )


def refuse_templates(directory: Path, tokenizer: Any) -> None:
    """Raise `ModelError` if it is ambiguous which chat template the model was trained with."""
    template = getattr(tokenizer, "chat_template", None)
    templates = template if isinstance(template, dict) else {"default": template}
    if (directory / "additional_chat_templates" / "default.jinja").exists():
        raise ModelError(
            f"model.path {str(directory)!r} has its chat template in additional_chat_templates/default.jinja; move it to "
            "chat_template.jinja beside the weights"
        )
    if "default" not in templates:
        raise ModelError(
            f"model.path {str(directory)!r} has chat templates named {', '.join(sorted(map(str, templates)))} and none named "
            "default; in a copy of it, put the template that it was trained with into chat_template.jinja"
        )
    default = templates["default"]
    if template is not None and not isinstance(default, str):
        raise ModelError(
            f"model.path {str(directory)!r} has a chat_template of type {type(default).__name__}; expected text; restore "
            "tokenizer_config.json from the model's source"
        )


def embedded_tokens(model: Any) -> int | None:
    """Return the number of tokens that a model has an embedding for; None for a model of characters, which has no such table."""
    try:
        return len(model.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError, TypeError):
        return None


def refuse_unembedded(directory: Path, tokenizer: Any, model: Any) -> None:
    """Raise `ModelError` if the tokenizer has tokens without an embedding in the model.

    A pad token without one is removed from the tokenizer: no text contains it, and padding is masked anyway.
    """
    rows = embedded_tokens(model)
    if rows is None:
        return
    outside = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if [token for _, token in outside] == [tokenizer.pad_token]:
        tokenizer.pad_token = None
        return
    if outside:
        named = ", ".join(f"{token!r} ({number})" for number, token in outside[:_SHOWN])
        more = f" and {len(outside) - _SHOWN:,} more" if len(outside) > _SHOWN else ""
        raise ModelError(
            f"model.path {str(directory)!r} has {rows:,} embeddings, and its tokenizer {outside[-1][0] + 1:,} tokens; without an "
            f"embedding: {named}{more}; use the tokenizer that it was trained with, or resize the model's embeddings "
            f"(resize_token_embeddings({outside[-1][0] + 1})) and train it again"
        )


def refuse_switching(directory: Path, config: Any, max_length: int) -> None:
    """Raise `ModelError` if a short row changes how the model reads every later row, as with BigBird's sparse attention.

    transformers switches such a model to full attention for good at the first batch of short rows, so a long row's reward would
    depend on the rows before it.
    """
    if getattr(config, "attention_type", None) != "block_sparse":
        return
    limit = (5 + 2 * config.num_random_blocks) * config.block_size
    if max_length > limit:
        raise ModelError(
            f"model.path {str(directory)!r} has sparse attention (attention_type block_sparse), which transformers turns off for "
            f"good at the first row of up to {limit:,} tokens, and rows can have {max_length:,}; set model.max_length to {limit} "
            "or less, or attention_type to original_full in its config.json"
        )
