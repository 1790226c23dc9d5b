"""The head of a language model, which turns hidden states into the logits of next tokens, beside a reward model's backbone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rm.checkpoint.reward_model import is_causal
from rm.checkpoint.weight_files import loaded_files
from rm.identity import ModelError

_OLDER = re.compile(r"^lm_head\.")  # GPT-NeoX stores it as embed_out


class TextHead:
    """`logits(states [N, H]) -> [N, V]` as the language model of a checkpoint computes them, with any steps after its head.

    A head tied to the embeddings is those of the reward model, and trains with them; any other head is not trained.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        self._model, self._tokens = model, tokens

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token after each state, without tokens that were added for padding."""
        logits: torch.Tensor = self._model(inputs_embeds=states[None], use_cache=False).logits
        return logits[0, :, : self._tokens]


class _States:
    """The output of a backbone: its states, and None for every other attribute that a head may read."""

    def __init__(self, states: torch.Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Ran(nn.Module):
    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> _States:
        return _States(inputs_embeds)


def load_text_head(directory: Path, classifier: Any) -> TextHead:
    """Load the head of the language model in `directory`, in the type and on the device of the `classifier` of its backbone.

    Raises `ModelError` if the architecture, or the checkpoint, has none.
    """
    if not is_causal(classifier):
        raise _refusal(directory, f"{type(classifier).__name__} is an encoder, which predicts no next token")
    config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        known = type(model.base_model) is type(classifier.base_model) and model.base_model is not model
        head = _fill(directory, model, classifier)
        states = classifier.get_input_embeddings().weight.new_zeros(1, classifier.config.get_text_config().hidden_size)
        with torch.no_grad():
            head.logits(states)
    except ModelError:
        raise
    except Exception as error:  # no such class for this architecture, or one that asks its backbone for more
        raise _refusal(directory, f"{type(classifier).__name__} has no language model that can be used") from error
    if not known:
        raise _refusal(directory, f"{type(model).__name__} has another structure than {type(classifier).__name__}")
    return head


def _fill(directory: Path, model: Any, classifier: Any) -> TextHead:
    """Take the backbone out of a language model, and load its head. Raises `ModelError` if the directory has none."""
    embeddings, output = classifier.get_input_embeddings(), model.get_output_embeddings()
    setattr(model, model.base_model_prefix, _Ran())
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    wanted = [name for name, value in model.named_parameters() if not (tied and value is output.weight)]
    stored = _read_tensors(directory, wanted)
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise _refusal(directory, f"its files have no {missing[0]}, as those of reward models have none")
    tokens = len(output.weight)
    for name, value in stored.items():
        module, _, last = name.rpartition(".")
        value = value.to(embeddings.weight.device, classifier.dtype)
        setattr(model.get_submodule(module), last, nn.Parameter(value, requires_grad=False))
    if tied:
        output.weight = embeddings.weight
    return TextHead(model.train(classifier.training), tokens)


def _read_tensors(directory: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of these names in the directory's files, also under older names."""
    tensors = dict[str, torch.Tensor]()
    for file in loaded_files(directory):
        with safe_open(file, framework="pt") as opened:
            held = set(opened.keys())
            tensors |= {
                name: opened.get_tensor(known)
                for name in names
                for known in (name, _OLDER.sub("embed_out.", name))
                if known in held
            }
    return tensors


def _refusal(directory: Path, reason: str) -> ModelError:
    return ModelError(
        f"train.language_loss needs the head of a language model, and model.path {str(directory)!r} has none: {reason}; "
        "start from the language model itself, or remove train.language_loss"
    )
