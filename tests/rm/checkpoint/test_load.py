from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.checkpoints import rename_tensors
from support.tiny_models import save_causal, save_encoder, save_language_model, word_tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from rm.checkpoint.load import ensure_distinct_pad, load_backbone_for_training, load_for_scoring, load_tokenizer
from rm.checkpoint.lora import add_lora
from rm.identity import ModelError, effective_max_length, identify, resolve_model


def score_weight(directory):
    return load_for_scoring(directory, dtype="float32", device="cpu").model.score.weight


def test_a_missing_head_is_an_error_not_a_random_head(tmp_path):
    directory = save_causal(tmp_path)
    rename_tensors(directory, {"score.weight": None})
    with pytest.raises(ModelError, match=r"missing score\.weight.*bestkept train"):
        load_for_scoring(directory, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "alias", ["classifier.weight", "v_head.summary.weight", "value_head.weight", "reward_head.weight"]
)
def test_known_head_names_are_mapped(tmp_path, alias):
    directory = save_causal(tmp_path)
    expected = load_file(directory / "model.safetensors")["score.weight"]
    rename_tensors(directory, {"score.weight": alias})
    assert torch.equal(score_weight(directory), expected)


def test_an_unknown_head_name_is_named_in_the_error(tmp_path):
    directory = save_causal(tmp_path)
    rename_tensors(directory, {"score.weight": "my_head.weight"})
    with pytest.raises(ModelError, match=r"missing score\.weight; unexpected my_head\.weight.*known other names"):
        load_for_scoring(directory, dtype="float32", device="cpu")


def test_a_missing_backbone_weight_is_an_error(tmp_path):
    directory = save_causal(tmp_path)
    rename_tensors(directory, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        load_for_scoring(directory, dtype="float32", device="cpu")


def test_two_outputs_are_refused(tmp_path):
    directory = save_encoder(tmp_path, labels=2)
    with pytest.raises(ModelError, match="has 2 outputs"):
        load_for_scoring(directory, dtype="float32", device="cpu")


def test_two_outputs_are_refused_whatever_the_config_says(tmp_path):
    directory = save_encoder(tmp_path, labels=2)
    config = json.loads((directory / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "LABEL_0"}, {"LABEL_0": 0}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has 2 outputs"):
        load_for_scoring(directory, dtype="float32", device="cpu")


def test_a_cut_checkpoint_is_an_error(tmp_path):
    directory = save_causal(tmp_path)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is cut"):
        load_for_scoring(directory, dtype="float32", device="cpu")


def test_head_computes_in_float32_under_bfloat16_weights(tmp_path):
    model = load_for_scoring(save_causal(tmp_path), dtype="bfloat16", device="cpu")
    assert model.model.score.weight.dtype == torch.float32
    assert model.model.model.embed_tokens.weight.dtype == torch.bfloat16
    rewards = model(torch.tensor([[7, 8, 9]]), torch.tensor([3]))
    assert rewards.dtype == torch.float32


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pickled.*safe_serialization"):
        resolve_model(str(tmp_path))


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no weights"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match="not a directory"):
        resolve_model(str(tmp_path / "nowhere"))


def test_an_unreachable_hub_id_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="could not be fetched from the hub"):
        resolve_model("nobody/no-such-model")


def test_new_head_has_the_documented_spread_and_no_bias(tmp_path):
    torch.manual_seed(0)
    tokenizer = word_tokenizer(pair=True)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=1024, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    head = load_backbone_for_training(tmp_path).model.classifier
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert head.bias.item() == 0
    assert not head.bias.requires_grad


def test_a_trained_head_is_kept_also_without_its_bias(tmp_path):
    directory = save_encoder(tmp_path)
    trained = load_file(directory / "model.safetensors")["classifier.weight"]
    rename_tensors(directory, {"classifier.bias": None})
    head = load_backbone_for_training(directory).model.classifier
    assert torch.equal(head.weight, trained)
    assert head.bias.item() == 0


def test_dropout_is_off_for_training(tmp_path):
    model = load_backbone_for_training(save_encoder(tmp_path)).model
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_a_damaged_backbone_is_not_trained(tmp_path):
    directory = save_encoder(tmp_path)
    rename_tensors(directory, {"bert.encoder.layer.0.output.dense.weight": None})
    with pytest.raises(ModelError, match="lacks 1 backbone weights"):
        load_backbone_for_training(directory)


def test_pad_is_made_distinct_from_eos(tmp_path):
    directory = save_causal(tmp_path, pad="</s>")
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = word_tokenizer(pair=False)
    tokenizer.pad_token = "</s>"
    ensure_distinct_pad(model, tokenizer)
    assert tokenizer.pad_token == "[UNK]"
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer.pad_token, tokenizer.unk_token = "</s>", "</s>"
    ensure_distinct_pad(model, tokenizer)
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id < model.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "Llama", "Qwen3", "GPT2"])
def test_a_bare_backbone_becomes_a_checkpoint_with_the_names_of_its_class(tmp_path, architecture):
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=70, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    getattr(transformers, f"{architecture}Model")(config).save_pretrained(tmp_path / "backbone")
    model = load_backbone_for_training(tmp_path / "backbone").model
    model.save_pretrained(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(model.state_dict())
    loaded = load_for_scoring(tmp_path / "out", dtype="float32", device="cpu")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_made_for_the_pad_token_is_saved_and_loads(tmp_path, tied, dtype):
    start = save_language_model(tmp_path / "lm", pad="</s>", unk=None, tied=tied)
    before = load_file(start / "model.safetensors")["model.embed_tokens.weight"]
    tokenizer, reward_model = load_tokenizer(start), load_backbone_for_training(start, dtype=dtype)
    ensure_distinct_pad(reward_model.model, tokenizer)
    assert reward_model.model.config.tie_word_embeddings is tied
    reward_model.model.save_pretrained(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in saved if "embed" in name or "lm_head" in name} == {"model.embed_tokens.weight"}
    rows = saved["model.embed_tokens.weight"]
    assert len(rows) == json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(before) + 1
    assert torch.equal(rows[:-1].float(), before.to(rows.dtype).float())
    loaded = load_for_scoring(tmp_path / "out", dtype="float32", device="cpu")
    assert loaded.model.config.pad_token_id == tokenizer.pad_token_id == len(before)
    ids = torch.tensor([[7, 8, 5], [9, 5, tokenizer.pad_token_id]])
    alone = loaded(ids[1:, :2], torch.tensor([2]))
    assert loaded(ids, torch.tensor([3, 2]))[1].item() == pytest.approx(alone.item(), abs=1e-5)


def test_a_pad_token_without_a_row_gets_one(tmp_path):
    start = save_language_model(tmp_path)
    tokenizer, model = load_tokenizer(start), load_backbone_for_training(start).model
    tokenizer.add_special_tokens({"pad_token": "<|added and never resized|>"})
    ensure_distinct_pad(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id < model.get_input_embeddings().weight.shape[0]


def test_training_in_bfloat16_keeps_the_head_in_float32(tmp_path):
    torch.manual_seed(0)
    start = save_language_model(tmp_path)
    reward_model = load_backbone_for_training(start, dtype="bfloat16")
    kinds = {name: parameter.dtype for name, parameter in reward_model.model.named_parameters()}
    assert kinds.pop("score.weight") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    rewards = reward_model(torch.tensor([[7, 8, 9]]), torch.tensor([3]))
    assert rewards.dtype == torch.float32
    assert {parameter.dtype for parameter in load_backbone_for_training(start).parameters()} == {torch.float32}
    head = reward_model.model.score.weight
    assert not torch.equal(head, head.bfloat16().float()), "drawn in float32"


@pytest.mark.parametrize("save", [save_language_model, save_encoder])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, save, dtype):
    directory = save(tmp_path)

    def gradients(checkpointing):
        torch.manual_seed(0)
        reward_model = load_backbone_for_training(directory, dtype=dtype).train()
        if checkpointing:
            reward_model.model.gradient_checkpointing_enable({"use_reentrant": False})
            assert any(getattr(layer, "gradient_checkpointing", False) for layer in reward_model.model.modules())
        reward_model(torch.tensor([[7, 8, 9, 5]]), torch.tensor([4])).sum().backward()
        return {name: p.grad for name, p in reward_model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(
        gradient is not None and gradient.abs().sum() > 0 for name, gradient in plain.items() if "weight" in name
    )
    assert all(torch.allclose(checkpointed[name], plain[name], atol=1e-6) for name in plain)


def test_a_missing_tokenizer_is_an_error_not_an_empty_one(tmp_path):
    directory = save_encoder(tmp_path)
    for file in directory.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer files"):
        load_tokenizer(directory)


def test_layers_between_backbone_and_head_may_be_new(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    RobertaModel(RobertaConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)
    model = load_backbone_for_training(tmp_path).model
    assert model.classifier.out_proj.out_features == 1
    assert model.classifier.out_proj.bias.requires_grad is False


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        ({"max_position_embeddings": 512}, {}, 512),
        ({"max_position_embeddings": 512}, {"model_max_length": 128}, 128),
        ({"max_position_embeddings": 9999}, {"model_max_length": 1e30}, 4096),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, {}, 513),
        ({"text_config": {"max_position_embeddings": 256}}, {}, 256),
        ({"n_positions": 1024}, {}, 1024),
    ],
)
def test_effective_length_is_the_least_of_all_limits(tmp_path, config, tokenizer, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert effective_max_length(tmp_path, 4096) == expected


def test_the_fingerprint_sees_weights_tokenizer_and_settings(tmp_path):
    directory = save_causal(tmp_path)
    settings = {"max_length": 50, "too_long": "truncate", "dtype": "float32"}
    base = identify(directory, **settings).fingerprint(mapping={})
    assert identify(directory, **settings).fingerprint(mapping={}) == base
    changed = [
        identify(directory, **{**settings, "max_length": 49}).fingerprint(mapping={}),
        identify(directory, **{**settings, "too_long": "reject"}).fingerprint(mapping={}),
        identify(directory, **{**settings, "dtype": "bfloat16"}).fingerprint(mapping={}),
        identify(directory, **settings).fingerprint(mapping={"prompt": "q"}),
    ]
    tokenizer = directory / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    changed.append(identify(directory, **settings).fingerprint(mapping={}))
    rename_tensors(directory, {"score.weight": "classifier.weight"})
    changed.append(identify(directory, **settings).fingerprint(mapping={}))
    assert len({base, *changed}) == 7


def test_close_rewards_do_not_tie_under_autocast(tmp_path):
    """16 + 4 and 16 + 4 + 0.01: every term has a bfloat16, and of the sums only 20 has one."""
    directory = save_causal(tmp_path)
    for model in (
        load_backbone_for_training(directory).model,
        add_lora(load_backbone_for_training(directory).model, rank=2, alpha=4).get_base_model(),
        load_for_scoring(directory, dtype="bfloat16", device="cpu").model,
    ):
        for parameter in model.score.parameters():
            parameter.data.fill_(1.0)
        width = next(model.score.parameters()).shape[1]
        hidden = torch.zeros(2, width, dtype=torch.bfloat16)
        hidden[:, :2] = torch.tensor([16.0, 4.0])
        hidden[1, 2] = 0.01
        for mode in (torch.enable_grad, torch.inference_mode):  # a step, and the evaluation between steps
            with mode(), torch.autocast("cpu", torch.bfloat16):
                rewards = model.score(hidden)[:, 0]
            assert rewards.dtype == torch.float32
            assert rewards.tolist() == pytest.approx([20.0, 20.01], abs=1e-4)
