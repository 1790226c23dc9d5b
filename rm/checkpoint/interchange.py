"""Conventions of other tools in a checkpoint's config.json that change the reward.

- OpenRLHF reads the last token that is not padding, by the attention mask; transformers and TRL read the last token that
  is not `pad_token_id`. They differ if a text ends with the pad token, so above all if pad and eos are one token.
- OpenRLHF's `normalize_reward` shifts and scales rewards by the config's `mean` and `std`.
- vLLM, transformers' pipelines and sentence-transformers squash a lone output unless the config tells them not to.

All functions take a config and no weights; their docstrings name the sources.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rm.identity import ModelError

log = logging.getLogger(__name__)

OPENRLHF_BUFFERS = ("mean", "std")
_OPENRLHF_KEYS = ("normalize_reward", "value_head_prefix", *OPENRLHF_BUFFERS)


def is_openrlhf(config: Any) -> bool:
    """Return whether OpenRLHF saved this: its `models/model.py` always sets `normalize_reward`, `cli/train_rm.py` the head."""
    return any(hasattr(config, key) for key in ("normalize_reward", "value_head_prefix"))


def pooling_pad_id(config: Any) -> int | None:
    """Return the token that a causal model's head skips at the end of a text; None if it skips none.

    transformers' rule (`GenericForSequenceClassification.forward`), which TRL trains with; for an OpenRLHF checkpoint
    OpenRLHF's (`eos_indices` in `_get_reward_model`), which takes the last attended token whatever it is.
    """
    pad: int | None = config.get_text_config().pad_token_id
    return None if is_openrlhf(config) else pad


def refuse_normalised(directory: Path, config: Any) -> None:
    """Raise `ModelError` if OpenRLHF would report `(r - mean) / std`: rewards here are the raw `r`."""
    mean, std = (getattr(config, key, neutral) for key, neutral in zip(OPENRLHF_BUFFERS, (0.0, 1.0), strict=True))
    if getattr(config, "normalize_reward", False) and (mean, std) != (0.0, 1.0):
        raise ModelError(
            f"model.path {str(directory)!r} asks in its config.json for rewards normalised as OpenRLHF does, "
            f"(r - {mean:g}) / {std:g}, and bestkept computes raw rewards; set normalize_reward to false in a copy of it "
            "(the order of rewards stays, thresholds are then on the raw scale)"
        )


def warn_of_pad_as_eos(directory: Path, config: Any) -> None:
    """Warn if pad and eos are one token, and name the token that is read, since other tools may read another."""
    text = config.get_text_config()
    eos = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    if text.pad_token_id is None or text.pad_token_id not in eos:
        return
    if is_openrlhf(config):
        log.warning(
            "%s has one token (%d) as pad and eos: it is scored at a text's closing eos, as OpenRLHF trained it; plain "
            "transformers scores before it and gives other rewards. For those, set pad_token_id to an unused token",
            directory,
            text.pad_token_id,
        )
        return
    log.warning(
        "%s has one token (%d) as pad and eos: if a text ends with it, the reward is read before it, as "
        "transformers and TRL do; tools that read the last token (vLLM) give other rewards. If it was trained with "
        "another pad token, set pad_token_id in config.json to that token; else retrain with `bestkept train`",
        directory,
        text.pad_token_id,
    )


def describe_as_reward_model(config: Any) -> None:
    """Set the config of a model to be trained to "one raw output", in the keys of every tool that reads it."""
    config.num_labels = 1
    # transformers' text-classification pipeline and vLLM's `get_classification_act_fn` apply a sigmoid otherwise
    config.problem_type = "regression"
    # the same for sentence-transformers' CrossEncoder and vLLM's `get_cross_encoder_act_fn`
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    # these describe the checkpoint that training starts from, not its result: OpenRLHF's marks; an older CrossEncoder's
    # activation; and how vLLM would make a head of the language model's tokens (`SequenceClassificationConfig`,
    # `seq_cls_model_loader`)
    stale = ("sbert_ce_default_activation_function", "classifier_from_token", "method", "use_pad_token")
    for key in (*_OPENRLHF_KEYS, *stale):
        if hasattr(config, key):
            delattr(config, key)
