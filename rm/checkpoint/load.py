"""Loads a pretrained backbone with one scalar head: strictly for scoring, or initialised for training.

Everything goes through `AutoModelForSequenceClassification`, so that other libraries can load our checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rm.checkpoint.eight_bits import quantise
from rm.checkpoint.interchange import (
    OPENRLHF_BUFFERS,
    describe_as_reward_model,
    is_openrlhf,
    refuse_normalised,
    warn_of_pad_as_eos,
)
from rm.checkpoint.placement import plan_placement, spread
from rm.checkpoint.randomness import hold_routers, switch_off_dropout
from rm.checkpoint.refusals import describe_layers, refuse_other_heads, refuse_templates
from rm.checkpoint.reward_model import Float32Head, RewardModel, head_name, head_of, is_causal
from rm.checkpoint.weight_files import refuse_damaged, require_files, tensor_shapes
from rm.identity import ModelError

transformers.utils.logging.disable_default_handler()  # its records go to the program's handlers, not to standard error
transformers.utils.logging.enable_propagation()

_HEAD_ALIASES = ("score", "classifier", "reward_head", "regression_head", "value_head", "v_head", "v_head.summary")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}


def reads_last_token(directory: Path) -> bool:
    """Return what `is_causal` returns for the directory's model, from its config alone. Raises `ModelError`."""
    return is_causal(_build_on_meta(directory, _load_config(directory)))


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer beside the weights. Raises `ModelError` if it is missing or not a fast one."""
    if not any(True for pattern in ("tokenizer.json", "vocab.*", "*.model") for _ in directory.glob(pattern)):
        # transformers would create an empty tokenizer for some architectures, and every text would have the same reward
        raise ModelError(f"{directory} has no tokenizer files; save the tokenizer beside the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
        if tokenizer.is_fast:
            tokenizer("a \u2603", verbose=False)  # some faults show only here, such as a missing unknown token
    except Exception as error:  # whatever this version of the library raises, the remedy is the same
        refuse_damaged(directory)
        raise ModelError(
            f"{directory} has no usable tokenizer ({type(error).__name__}); save it beside the weights"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{directory} has only a slow tokenizer; save it once with AutoTokenizer(..., use_fast=True)")
    refuse_templates(directory, tokenizer)
    return tokenizer


def load_for_scoring(
    directory: Path,
    *,
    dtype: str,
    device: str,
    devices: Sequence[str] = (),
    outputs: Mapping[str, int] = MappingProxyType({}),
) -> RewardModel:
    """Load a trained reward model, every weight of it from the checkpoint, straight to its device, or several `devices`.

    8-bit weights are made in the machine's memory. `outputs` are names and numbers of the outputs of a head with several.

    Raises `ModelError` for a missing or unexpected weight, a head of unknown name, or more than one output without names:
    transformers itself would draw a missing head at random and continue.
    """
    config = _load_config(directory)
    config.num_labels, mapping = _require_outputs(directory, config, outputs)
    empty = _build_on_meta(directory, config)
    refuse_other_heads(directory, config, [*_HEAD_ALIASES, head_name(empty).removesuffix(".weight")])
    several = len(devices) > 1
    placement = {"": device}
    if several and dtype != "int8":
        placement = plan_placement(empty, devices, itemsize=_DTYPES[dtype].itemsize)
    straight: dict[str, Any] = {"device_map": placement} if several or device != "cpu" else {}
    model, info = _from_pretrained(
        directory,
        num_labels=config.num_labels,
        dtype=_DTYPES[dtype],
        key_mapping=mapping,
        **({} if dtype == "int8" else straight),
    )
    _check_complete(directory, model, info)
    reward_model = RewardModel(Float32Head.wrap(model))
    if dtype == "int8":
        quantise(reward_model.model)
        if several:
            placement = plan_placement(model, devices, itemsize=None)
    if reward_model.causal:
        warn_of_pad_as_eos(directory, model.config)
    if several:
        spread(model, placement)
        return reward_model.eval()
    return reward_model.to(device).eval()


def load_encoder(directory: Path, *, device: str) -> Any:
    """Load a backbone without a head, in float32, every weight of it but a pooler's from the checkpoint. Raises `ModelError`."""
    config = _load_config(directory)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{directory} has both an encoder and a decoder ({config.model_type}); choose an embedding model with only one"
        )
    model, info = _from_pretrained(directory, kind=AutoModel, config=config, dtype=torch.float32)
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lost = sorted(key for key in absent if "pooler" not in key)
    if lost:
        raise ModelError(f"{directory} lacks {len(lost)} weights ({_join_names(lost)}); fetch it again")
    model.config.use_cache = False
    return model.to(device).eval()


def build_without_weights(directory: Path, *, outputs: Mapping[str, int] = MappingProxyType({})) -> RewardModel:
    """Build a directory's model without weights, on the device `meta`. Raises `ModelError`, but not for missing weights."""
    config = _load_config(directory)
    config.num_labels, _ = _require_outputs(directory, config, outputs)
    with torch.device("meta"):
        return RewardModel(AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)).eval()


def _require_outputs(directory: Path, config: Any, wanted: Mapping[str, int]) -> tuple[int, dict[str, str] | None]:
    """Return the number of outputs of the stored head, and the renaming (expression → name) that it needs.

    Raises `ModelError` for more than one output without names, and for names that the head does not fit.
    """
    refuse_normalised(directory, config)
    outputs, mapping = _stored_head(directory, config)
    if outputs is None:  # no head at all: loading raises that, with the names
        return 1, mapping
    labels = {
        int(number): str(label)
        for number, label in (config.id2label or {}).items()
        if not re.fullmatch(r"LABEL_\d+", str(label))
    }
    named = (
        f" (in config.json {_join_names([f'{label}: {number}' for number, label in labels.items()])})" if labels else ""
    )
    if not wanted:
        if outputs != 1:
            raise ModelError(
                f"model.path {str(directory)!r} has {outputs} outputs{named}, and the reward must be one of them; name it, and "
                "others to use, with model.outputs={NAME: NUMBER}, numbered from 0; or choose a checkpoint with one output, or "
                "train one with `bestkept train`"
            )
        return 1, mapping
    for name, number in wanted.items():
        if number >= outputs:
            raise ModelError(
                f"model.outputs.{name} is {number}, and model.path {str(directory)!r} has {outputs} outputs{named}; expected 0 "
                f"to {outputs - 1}"
            )
        known = {_plain(label): at for at, label in labels.items()}
        if known.get(_plain(name), number) != number:
            raise ModelError(
                f"model.outputs.{name} is {number}, and config.json of model.path {str(directory)!r} gives that name to output "
                f"{known[_plain(name)]}; correct the number, or choose another name"
            )
    return outputs, mapping


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.casefold())


def load_backbone_for_training(directory: Path, *, dtype: str = "float32") -> RewardModel:
    """Load a pretrained backbone in `dtype` under a scalar head in float32, without dropout and router noise.

    The head is one linear layer without bias (a shift of all rewards changes no comparison; classes of encoders that
    demand a bias have it at zero, frozen), drawn with std 1/sqrt(H + 1) (Stiennon et al. 2020, appendix). A checkpoint
    that has a one-output head keeps it, whatever known name it is stored under. The config describes the result to
    every tool that reads it (`rm.checkpoint.interchange.describe_as_reward_model`).
    Raises `ModelError` if any weight of the backbone is missing.
    """
    config = _load_config(directory)
    outputs, mapping = _stored_head(directory, config)
    describe_as_reward_model(config)
    switch_off_dropout(config)
    model, info = _from_pretrained(
        directory, config=config, dtype=_DTYPES[dtype], key_mapping=mapping if outputs == 1 else None
    )
    model._weight_conversions = None  # transformers would save the head under the name that the checkpoint had
    hold_routers(model)
    head = head_of(Float32Head.wrap(model))
    new = {name for name, _ in model.named_parameters() if name.startswith(head_name(model).removesuffix(".weight"))}
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    # layers between backbone and head, and poolers, may be new: they train from their initialisation with the head
    backbone = f"{model.base_model_prefix}."
    lost = sorted(key for key in absent - new if key.startswith(backbone) and "pooler" not in key)
    if lost:
        raise ModelError(
            f"model.path {str(directory)!r} lacks {len(lost)} backbone weights ({_join_names(lost)}); fetch it again"
        )
    if head_name(model) in absent:
        nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    if head.bias is not None:
        nn.init.zeros_(head.bias)
        head.bias.requires_grad_(False)
    return RewardModel(model)


def ensure_distinct_pad(model: Any, tokenizer: Any) -> None:
    """Give a causal model a pad token that is not its eos, in model and tokenizer, both changed in place.

    With pad == eos, transformers pools before the closing eos, which silently shifts rewards (by 6, with a spread of
    2.4, on one published checkpoint). Embeddings get one more row if the pad token has none, tied or not: it is never
    attended to, so it needs no training. Checkpoints saved afterwards have the new `vocab_size` and `pad_token_id`.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        unk = tokenizer.unk_token
        if unk is not None and unk not in (tokenizer.eos_token, tokenizer.bos_token):
            tokenizer.pad_token = unk
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report and progress bars off the terminal; this module checks the report and raises."""
    logger, verbosity = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
        logger.setLevel(verbosity)


def _load_config(directory: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # whatever this version of the library raises, the model cannot be used
        refuse_damaged(directory)
        raise ModelError(
            f"model.path {str(directory)!r} has a config.json that transformers {transformers.__version__} cannot use "
            f"without remote code ({type(error).__name__}); choose a natively supported architecture"
        ) from error


def _from_pretrained(
    directory: Path, *, kind: Any = AutoModelForSequenceClassification, **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """Return (model, transformers' report on its weights); the caller must check the report. Raises `ModelError`."""
    require_files(directory)
    with quiet_transformers():
        try:
            model, info = kind.from_pretrained(
                str(directory),
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                **settings,
            )
        except Exception as error:  # whatever this version of the library raises, the model cannot be used
            refuse_damaged(directory)
            raise _load_error(directory, error, kind) from error
    return model, info


def _load_error(directory: Path, error: Exception, kind: Any = AutoModelForSequenceClassification) -> ModelError:
    cause = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no message"
    purpose = "an embedding model" if kind is AutoModel else "a sequence classifier"
    return ModelError(
        f"model.path {str(directory)!r} cannot be loaded as {purpose} ({type(error).__name__}: {cause}); "
        f"choose a checkpoint that {kind.__name__} loads"
    )


def _build_on_meta(directory: Path, config: Any) -> Any:
    """Build the model with names and shapes but without weights or memory. Raises `ModelError`."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # no such class for this architecture, or settings it cannot be built from
        raise _load_error(directory, error) from error


def _stored_head(directory: Path, config: Any) -> tuple[int | None, dict[str, str] | None]:
    """Return the number of outputs of the stored head (None: no head), and the renaming (expression → name) it needs."""
    shapes = dict(tensor_shapes(directory))
    head = head_name(_build_on_meta(directory, config))
    if head in shapes:
        return shapes[head][0], None
    stem = head.removesuffix(".weight")
    prefix = getattr(config, "value_head_prefix", None)  # OpenRLHF's, free to choose
    for alias in (*([prefix] if isinstance(prefix, str) else []), *_HEAD_ALIASES):
        if f"{alias}.weight" in shapes:
            return shapes[f"{alias}.weight"][0], {rf"^{re.escape(alias)}\.(weight|bias)$": rf"{stem}.\1"}
    return None, None


def _check_complete(directory: Path, model: Any, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    # OpenRLHF's buffers for `normalize_reward`, which `refuse_normalised` has checked
    known = OPENRLHF_BUFFERS if is_openrlhf(model.config) else ()
    unexpected = sorted(key for key in info["unexpected_keys"] if key not in known)
    mismatched = sorted(key for key, *_ in info["mismatched_keys"])
    if not (missing or unexpected or mismatched):
        return
    head = head_name(model)
    problems = [f"missing {_join_names(missing)}"] if missing else []
    problems += [f"unexpected {_join_names(unexpected)}"] if unexpected else []
    problems += [f"wrong shape {_join_names(mismatched)}"] if mismatched else []
    layers = describe_layers(unexpected, _HEAD_ALIASES)
    remedy = layers or (
        f"its scalar head must be stored as {head!r} (known other names: {', '.join(_HEAD_ALIASES)}); "
        "a base model becomes a reward model with `bestkept train`"
        if head in missing
        else "the files do not belong to this architecture; fetch the checkpoint again"
    )
    raise ModelError(
        f"model.path {str(directory)!r} does not fill {type(model).__name__}: {'; '.join(problems)}; {remedy}"
    )


def _join_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
