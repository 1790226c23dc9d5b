"""Models that transformers would load, and that would give no reward or a wrong one."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import rename_tensors
from support.every_classifier import save_tiny
from support.tiny_models import CHAT_TEMPLATE, save_causal, save_encoder, save_language_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from rm.checkpoint.load import load_backbone_for_training, load_tokenizer
from rm.dry_run import DryRun
from rm.identity import (
    MODEL_FILES,
    ModelError,
    effective_max_length,
    model_hashes,
    resolve_model,
    resolve_without_weights,
)
from rm.preview import Preview
from rm.scorer import Scorer

GROUP = ((("user", "what is the answer"),), ["good answer", "bad reply , more words here"])


def load(directory):
    resolve_model(str(directory))
    return Scorer.load(
        directory, dtype="float32", max_length=64, too_long="truncate", tokens_per_batch=500, device="cpu"
    )


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def add_adapter(directory):
    peft = pytest.importorskip("peft")
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(directory)
    return directory


def test_an_adapter_beside_whole_weights_is_refused(tmp_path):
    directory = add_adapter(save_causal(tmp_path))
    message = r"adapter_config\.json, adapter_model\.safetensors\) beside whole weights.*remove.*merge_and_unload"
    for resolve in (resolve_model, resolve_without_weights):
        with pytest.raises(ModelError, match=message):
            resolve(str(directory))


@pytest.mark.parametrize("absent", [["model.safetensors"], ["model.safetensors", "config.json"]])
def test_an_adapter_by_itself_is_told_as_such(tmp_path, absent):
    directory = add_adapter(save_causal(tmp_path))
    for name in absent:
        (directory / name).unlink()
    with pytest.raises(ModelError, match=r"is an adapter \(adapter_config\.json.*not a whole model; merge it"):
        resolve_model(str(directory))


def test_the_hashes_cover_an_adapters_configuration(tmp_path):
    directory = save_causal(tmp_path)
    (directory / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in model_hashes(directory)


def save_value_head(directory, name="value_head.safetensors"):
    save_language_model(directory)
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    if name.endswith("bin"):
        (directory / name).write_bytes(b"x")
    else:
        save_file(head, directory / name)
    return directory


@pytest.mark.parametrize("name", ["value_head.safetensors", "value_head.bin"])
def test_a_value_head_in_a_file_of_its_own_is_told(tmp_path, name):
    with pytest.raises(ModelError, match=rf"head in a separate file, {name}.*score\.weight.*bestkept train"):
        load(save_value_head(tmp_path, name))


def test_training_starts_from_the_weights_beside_a_value_head(tmp_path):
    head = load_backbone_for_training(save_value_head(tmp_path)).model.score.weight
    assert not torch.equal(head, torch.ones_like(head))


def test_a_head_in_place_is_read_whatever_lies_beside(tmp_path):
    directory = save_causal(tmp_path)
    expected = load(directory).score([GROUP])[0].rewards
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, directory / "value_head.safetensors")
    assert (load(directory).score([GROUP])[0].rewards == expected).all()


def test_a_token_classifier_is_told_as_such(tmp_path):
    directory = save_causal(tmp_path)
    change(directory / "config.json", architectures=["LlamaForTokenClassification"])
    with pytest.raises(ModelError, match="LlamaForTokenClassification, which scores single tokens"):
        load(directory)


@pytest.mark.parametrize("value", [5, "LlamaForTokenClassification", {"a": 1}, [5], None, True])
def test_architectures_that_are_no_list_of_names_are_passed_over(tmp_path, value):
    """transformers does not look at them either, where the class is known."""
    directory = save_causal(tmp_path)
    expected = load(directory).score([GROUP])[0].rewards
    change(directory / "config.json", architectures=value)
    assert (load(directory).score([GROUP])[0].rewards == expected).all()


def test_a_head_of_several_layers_is_told_as_such(tmp_path):
    directory = save_causal(tmp_path)
    rename_tensors(directory, {"score.weight": "score.0.weight"})
    with pytest.raises(ModelError, match=r"head has several layers \(score\.0\.weight\)"):
        load(directory)


def name_templates(directory, **templates):
    folder = directory / "additional_chat_templates"
    folder.mkdir()
    for name, text in templates.items():
        (folder / f"{name}.jinja").write_text(text)
    return directory


def test_named_templates_without_a_default_are_refused_with_their_names(tmp_path):
    directory = name_templates(save_causal(tmp_path), rag=CHAT_TEMPLATE, tool_use=CHAT_TEMPLATE)
    with pytest.raises(ModelError, match=r"templates named rag, tool_use and none named default.*chat_template\.jinja"):
        load(directory)
    with pytest.raises(ModelError, match="rag, tool_use"):
        Preview.load(directory, max_length=64)


def test_named_templates_in_the_older_form_are_refused_too(tmp_path):
    directory = save_causal(tmp_path)
    change(directory / "tokenizer_config.json", chat_template=[{"name": "rag", "template": CHAT_TEMPLATE}])
    with pytest.raises(ModelError, match="templates named rag and none named default"):
        load_tokenizer(directory)


def test_a_default_among_named_templates_is_used(tmp_path):
    plain, named = (save_causal(tmp_path / name, chat=True) for name in ("plain", "named"))
    name_templates(named, rag="{{ 1 }}")
    rewards = [load(directory).score([GROUP])[0].rewards for directory in (plain, named)]
    assert (rewards[0] == rewards[1]).all()


def test_a_default_template_that_no_fingerprint_covers_is_refused(tmp_path):
    directory = name_templates(save_causal(tmp_path, chat=True), default="{{ 1 }}")
    with pytest.raises(ModelError, match=r"move it to chat_template\.jinja"):
        load(directory)


@pytest.mark.parametrize("template", [5, {"default": 5}, [{"name": "default", "template": None}]])
def test_a_template_is_text(tmp_path, template):
    directory = save_causal(tmp_path)
    change(directory / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ModelError, match=r"chat_template|no usable tokenizer"):
        load_tokenizer(directory)


def save_with_tokens(directory, *tokens, pad="[PAD]", save=save_causal):
    save(directory)
    tokenizer = word_tokenizer(pair=save is save_encoder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("save", [save_causal, save_encoder])
def test_tokens_without_an_embedding_are_refused_with_both_numbers(tmp_path, save):
    directory = save_with_tokens(tmp_path, "<tool>", "<result>", save=save)
    rows = json.loads((directory / "config.json").read_text())["vocab_size"]
    message = (
        rf"has {rows} embeddings.* {rows + 2} tokens; without an.*'<tool>' \({rows}\), .*_embeddings\({rows + 2}\)"
    )
    with pytest.raises(ModelError, match=message):
        load(directory)
    with pytest.raises(ModelError, match=message):
        DryRun.of(directory, max_length=64, too_long="truncate", tokens_per_batch=500, device="cpu")


@pytest.mark.parametrize("packed", [True, False])
def test_a_pad_token_alone_needs_no_embedding(tmp_path, packed, monkeypatch):
    if not packed:
        monkeypatch.setattr("rm.scorer.enable_packing", lambda *_, **__: False)
    plain, padded = save_causal(tmp_path / "plain"), save_with_tokens(tmp_path / "padded", "<|pad|>", pad="<|pad|>")
    rewards = [load(directory).score([GROUP])[0].rewards for directory in (plain, padded)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


def opened_while(function, directory):
    """Return the names of a directory's files that Python opens in `function`, relative to it."""
    names, active = set(), [True]

    def audit(event, arguments):
        if event == "open" and active[0] and isinstance(arguments[0], str) and arguments[0].startswith(str(directory)):
            names.add(arguments[0][len(str(directory)) + 1 :])

    sys.addaudithook(audit)
    try:
        function()
    finally:
        active[0] = False
    return names


@pytest.mark.parametrize("save", [save_causal, save_encoder])
def test_every_file_that_is_read_is_hashed(tmp_path, save):
    directory = save(tmp_path)
    for name in ("generation_config.json", "preprocessor_config.json", "processor_config.json", "added_tokens.json"):
        (directory / name).write_text("{}")
    read = opened_while(lambda: load(directory), directory)
    assert {"config.json", "tokenizer_config.json"} <= read
    assert read <= set(model_hashes(directory)), MODEL_FILES


@pytest.mark.parametrize("name", ["config", "tokenizer"])
def test_a_file_named_after_a_version_of_transformers_is_hashed(tmp_path, name):
    directory = save_causal(tmp_path)
    (directory / f"{name}.4.0.0.json").write_bytes((directory / f"{name}.json").read_bytes())
    holder = directory / ("config.json" if name == "config" else "tokenizer_config.json")
    key = "configuration_files" if name == "config" else "fast_tokenizer_files"
    change(holder, **{key: [f"{name}.json", f"{name}.4.0.0.json"]})
    assert load_file(directory / "model.safetensors")
    load(directory)
    assert f"{name}.4.0.0.json" in model_hashes(directory)


def test_attention_that_a_short_row_changes_for_good_is_refused_beyond_its_limit(tmp_path):
    """BigBird: up to 4 tokens for each of 5 + 2 * 3 blocks it attends in full, and one such row makes it do so for good."""
    directory = save_tiny(tmp_path, "big_bird", block_size=4)
    settings = {"too_long": "truncate", "tokens_per_batch": 500, "device": "cpu"}
    for load_model in (partial(Scorer.load, dtype="float32"), DryRun.of):
        load_model(directory, max_length=44, **settings)
        with pytest.raises(ModelError, match=r"rows can have 45; set model\.max_length to 44 or less"):
            load_model(directory, max_length=45, **settings)


def test_a_tokenizer_that_fails_when_it_is_called_is_refused_at_load(tmp_path):
    """Found by fuzzing: a limit that is text is no error before the first text is tokenised."""
    path = save_encoder(tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": "1e3"}))
    with pytest.raises(ModelError, match=r"has no usable tokenizer \(TypeError\); save it beside the weights"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_token_for_unknown_characters_is_refused_at_load(tmp_path):
    """Found by fuzzing: the first text with such a character would end the run."""
    path = save_encoder(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["unk_token"] = "[NONE]"
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="has no usable tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", [["bert"], {"a": 1}, None, 3])
def test_a_type_of_model_that_is_no_text_ends_as_an_error_of_the_model(tmp_path, value):
    """Found by fuzzing."""
    path = save_encoder(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": value}))
    assert effective_max_length(tmp_path, 32) == 32
    with pytest.raises(ModelError):
        load(tmp_path)
