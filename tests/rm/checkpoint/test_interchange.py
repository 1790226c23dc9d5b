"""Checkpoints of other trainers score here as they do there, and ours elsewhere as here."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import rename_tensors
from support.tiny_models import save_causal, save_encoder, save_language_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    LlamaPreTrainedModel,
)

from rm.checkpoint.load import ensure_distinct_pad, load_backbone_for_training, load_for_scoring, load_tokenizer
from rm.identity import ModelError
from rm.scorer import Scorer

PROMPT = "what is the answer"
CHOSEN = ["good answer", "the number is two , so write it", "yes"]
REJECTED = ["bad", "the the the the", "no way , look again and write more words than they asked for"]
RESPONSES = [*CHOSEN, *REJECTED]
CLOSE = {"rel": 1e-5, "abs": 5e-6}


def messages(response):
    return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]


def score(directory, *, tokens_per_batch=1000):
    scorer = Scorer.load(
        directory,
        dtype="float32",
        max_length=64,
        too_long="reject",
        tokens_per_batch=tokens_per_batch,
        device="cpu",
    )
    return scorer.score([((("user", PROMPT),), RESPONSES)])[0].rewards


def plain(directory, rows=None):
    """transformers alone, one row at a time: token ids, or else `RESPONSES` through the saved chat template."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32).eval()
    if rows is None:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        rows = [tokenizer.apply_chat_template(messages(text), return_dict=False) for text in RESPONSES]
    with torch.inference_mode():
        rewards = np.array([model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows], np.float32)
    assert rewards.std() > 0.05, "a model without spread would pass any comparison"
    return rewards


def edit_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def train_with_trl(start, out):
    """Two real steps of TRL's RewardTrainer. Gives the rewards of its own model, on its own padded batch."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    data = Dataset.from_dict(
        {"chosen": [messages(text) for text in CHOSEN], "rejected": [messages(text) for text in REJECTED]}
    )
    settings = RewardConfig(
        output_dir=str(out),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = RewardTrainer(model=str(start), args=settings, train_dataset=data)
    trainer.train()
    trainer.save_model(str(out))
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(CHOSEN))])
    with torch.inference_mode():
        return trainer.model.eval()(**batch).logits[:, 0].numpy()


@pytest.mark.parametrize("pad", ["[PAD]", None])  # None: TRL takes the eos
def test_a_checkpoint_of_trl_scores_as_in_trl(tmp_path, pad, caplog):
    trl = train_with_trl(save_language_model(tmp_path / "lm", pad=pad), tmp_path / "rm")
    assert score(tmp_path / "rm") == pytest.approx(trl, **CLOSE)
    assert score(tmp_path / "rm", tokens_per_batch=1) == pytest.approx(plain(tmp_path / "rm"), **CLOSE)
    assert ("as pad and eos" in caplog.text) == (pad is None)


def ours(tmp_path, start):
    """A checkpoint as training saves it, its head not the one it was drawn with."""
    tokenizer, reward_model = load_tokenizer(start), load_backbone_for_training(start)
    if reward_model.causal:
        ensure_distinct_pad(reward_model.model, tokenizer)
    reward_model.model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_ours_goes_on_in_trl(tmp_path):
    start = ours(tmp_path, save_language_model(tmp_path / "lm", pad="</s>"))
    before, trl = score(start), train_with_trl(start, tmp_path / "rm")
    assert AutoTokenizer.from_pretrained(tmp_path / "rm").pad_token == "[UNK]", "TRL keeps the distinct pad"
    assert score(tmp_path / "rm") == pytest.approx(trl, **CLOSE)
    moved = np.abs(trl - before).max()
    assert moved > 0.01, "two steps train something"
    weights = [load_file(path / "model.safetensors")["score.weight"] for path in (start, tmp_path / "rm")]
    assert torch.allclose(*weights, atol=0.021), "it went on from our head: Adam moves a weight by at most lr a step"


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("settings", [{}, {"function_to_apply": "none"}])  # by our config, and whatever a config says
def test_ours_in_a_transformers_pipeline(tmp_path, kind, settings):
    from transformers import pipeline

    start = save_language_model(tmp_path / "lm", pad="</s>") if kind == "causal" else save_encoder(tmp_path / "lm")
    directory = ours(tmp_path, start)
    pipe = pipeline("text-classification", model=str(directory), device="cpu", **settings)
    if kind == "causal":
        tokenizer = AutoTokenizer.from_pretrained(directory)
        texts = [tokenizer.apply_chat_template(messages(text), tokenize=False) for text in RESPONSES]
    else:
        texts = [{"text": PROMPT, "text_pair": text} for text in RESPONSES]
    rewards = score(directory)
    assert np.ptp(rewards) > 1e-4
    for batch_size in (1, 6):
        got = [answer["score"] for answer in pipe(texts, batch_size=batch_size)]
        assert got == pytest.approx(rewards, **CLOSE)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("unk", [None, "[UNK]"])  # None: the pad token needs a row of its own
def test_ours_says_in_its_files_what_vllm_reads(tmp_path, tied, unk):
    """vLLM, by model_executor/models/adapters.py and layers/pooler (July to November 2025)."""
    start = save_language_model(tmp_path / "lm", pad=None, unk=unk, tied=tied)
    rows = load_file(start / "model.safetensors")["model.embed_tokens.weight"]
    directory = ours(tmp_path, start)
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    # the registry goes by the architecture; for `<Arch>ForSequenceClassification` as_seq_cls_model wraps <Arch>ForCausalLM
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    # ... and gives it `score`, a ReplicatedLinear(hidden_size, num_labels, bias=False); config.json has id2label for it
    assert len(config["id2label"]) == AutoModelForSequenceClassification.from_pretrained(directory).num_labels == 1
    assert weights["score.weight"].shape == (1, config["hidden_size"])
    assert not [name for name in weights if name.startswith(("lm_head", "score.bias"))]
    assert {name.split(".")[0] for name in weights} == {"model", "score"}
    # get_classification_act_fn: a sigmoid unless the problem is a regression; get_cross_encoder_act_fn: the same
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    # load_weights and SequenceClassificationConfig would make a head from lm_head for either of these
    assert not {"classifier_from_token", "method"} & set(config)
    # embeddings are loaded by vocab_size; the pooler reads the last token, so pad must not decide what that is
    assert weights["model.embed_tokens.weight"].shape[0] == config["vocab_size"]
    assert torch.equal(weights["model.embed_tokens.weight"][: len(rows)], rows)
    assert config["vocab_size"] == len(rows) + (unk is None)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert config["pad_token_id"] == tokenizer.pad_token_id not in (None, config["eos_token_id"])
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < config["vocab_size"]
    assert (directory / "chat_template.jinja").is_file()
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(start).chat_template
    assert score(directory) == pytest.approx(plain(directory), **CLOSE), "and it loads strictly"
    last = [tokenizer.apply_chat_template(messages(text), return_dict=False)[-1] for text in RESPONSES]
    assert set(last) == {tokenizer.eos_token_id}, "what vLLM pools is what is pooled here: the closing eos"


def test_an_encoder_of_ours_has_a_bias_of_zero(tmp_path):
    start = save_encoder(tmp_path / "lm")
    tensors = load_file(start / "model.safetensors")
    tensors["classifier.bias"] += 3
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    directory = ours(tmp_path, start)
    saved = load_file(directory / "model.safetensors")
    assert saved["classifier.bias"].tolist() == [0.0]
    assert saved["classifier.weight"].shape == (1, 32)
    config = json.loads((directory / "config.json").read_text())
    assert (config["architectures"], config["problem_type"]) == (["BertForSequenceClassification"], "regression")
    assert score(directory) == pytest.approx(score(start) - 3, **CLOSE)


class OpenRlhfModel(LlamaPreTrainedModel):
    """The layout and pooling of OpenRLHF's reward model (openrlhf/models/model.py, `_get_reward_model`)."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        setattr(self, config.value_head_prefix, nn.Linear(config.hidden_size, 1, bias=False))
        self.register_buffer("mean", torch.tensor([config.mean]), persistent=config.persistent)
        self.register_buffer("std", torch.tensor([config.std]), persistent=config.persistent)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        hidden = self.model(input_ids, attention_mask=attention_mask, position_ids=positions)[0]
        values = getattr(self, self.config.value_head_prefix)(hidden)[..., 0]
        return values[:, -1]  # padded on the left: the last token that is attended to


def save_openrlhf(directory, *, head="score", pad="[PAD]", architecture="RewardModel", persistent=False, **config):
    """A directory as `train_rm` leaves it, and OpenRLHF's rewards of `RESPONSES` in one batch padded on the left."""
    start = save_language_model(directory, pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(start)
    fields = {"normalize_reward": False, "mean": 0.5, "std": 2.0, "value_head_prefix": head, **config}
    settings = LlamaConfig.from_pretrained(start)
    for key, value in {**fields, "persistent": persistent}.items():
        setattr(settings, key, value)
    model = OpenRlhfModel(settings).eval()
    model.save_pretrained(directory)
    edit_config(directory, architectures=[architecture])
    rows = [tokenizer.apply_chat_template(messages(text), return_dict=False) for text in RESPONSES]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        return model(ids, mask).numpy()


@pytest.mark.parametrize("head", ["score", "value_head", "my_head"])
@pytest.mark.parametrize("architecture", ["RewardModel", "LlamaForCausalLM", "LlamaForSequenceClassification"])
def test_a_checkpoint_of_openrlhf_scores_as_there_and_in_transformers(tmp_path, head, architecture, caplog):
    there = save_openrlhf(tmp_path, head=head, architecture=architecture)
    assert there.std() > 0.05
    assert score(tmp_path) == pytest.approx(there, **CLOSE)
    rename_tensors(tmp_path, {f"{head}.weight": "score.weight"})
    assert plain(tmp_path) == pytest.approx(there, **CLOSE)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_openrlhf_with_pad_as_eos_is_read_where_it_was_trained_and_says_so(tmp_path, caplog):
    there = save_openrlhf(tmp_path, pad="</s>")
    assert np.abs(plain(tmp_path) - there).max() > 0.1, "transformers reads another token"
    assert score(tmp_path) == pytest.approx(there, **CLOSE)
    assert "as OpenRLHF trained it" in caplog.text
    assert score(tmp_path, tokens_per_batch=1) == pytest.approx(there, **CLOSE)


def test_normalised_rewards_of_openrlhf_are_refused_with_the_remedy(tmp_path):
    there = save_openrlhf(tmp_path, normalize_reward=True)
    with pytest.raises(ModelError, match=r"\(r - 0\.5\) / 2.*normalize_reward to false"):
        score(tmp_path)
    edit_config(tmp_path, normalize_reward=False)
    assert score(tmp_path) == pytest.approx(there, **CLOSE)
    edit_config(tmp_path, normalize_reward=True, mean=0.0, std=1.0)
    assert score(tmp_path) == pytest.approx(there, **CLOSE), "normalising by 0 and 1 changes nothing"


def test_only_openrlhf_may_store_its_buffers_and_nothing_else(tmp_path):
    there = save_openrlhf(tmp_path, persistent=True)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {"mean", "std"} < set(tensors)
    assert score(tmp_path) == pytest.approx(there, **CLOSE)
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="unexpected extra;"):
        score(tmp_path)
    foreign = save_causal(tmp_path / "other", chat=True)
    tensors = load_file(foreign / "model.safetensors")
    save_file({**tensors, "mean": torch.zeros(1)}, foreign / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="unexpected mean;"):
        score(foreign)


def test_training_goes_on_from_openrlhf_with_its_head_and_without_its_marks(tmp_path):
    save_openrlhf(tmp_path / "start", head="value_head", normalize_reward=True, classifier_from_token=["yes"])
    head = load_file(tmp_path / "start" / "model.safetensors")["value_head.weight"]
    directory = ours(tmp_path, tmp_path / "start")
    assert torch.equal(load_file(directory / "model.safetensors")["score.weight"], head)
    marks = {"normalize_reward", "value_head_prefix", "mean", "std", "classifier_from_token"}
    assert not marks & set(json.loads((directory / "config.json").read_text()))
    assert score(directory) == pytest.approx(plain(directory), **CLOSE)


EOS, PAD = 5, 0


@pytest.mark.parametrize("pad", ["[PAD]", "</s>", None])
def test_pooling_is_that_of_transformers_row_by_row_and_in_a_batch(tmp_path, pad):
    directory = save_causal(tmp_path, pad=pad)
    rows = [
        [7, 20, 31, EOS],
        [7, 20, EOS, 8, 31, 40, EOS, 9],  # ends behind the last eos
        [7, PAD, PAD, 31, 42, EOS],  # pad inside the text
        [7, 20, 31, PAD],  # and at its end
        [7, 21, EOS, EOS, EOS],
        [EOS],
        [PAD, PAD],
        [33],
    ]
    expected = plain(directory, rows)
    model = load_for_scoring(directory, dtype="float32", device="cpu")
    longest = max(len(row) for row in rows)
    for filler in (PAD, EOS, 44):  # what stands behind a row does not matter
        ids = torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            batched = model(ids, torch.tensor([len(row) for row in rows]))
        assert batched.numpy() == pytest.approx(expected, **CLOSE)
    with torch.inference_mode():
        single = [model(torch.tensor([row]), torch.tensor([len(row)])).item() for row in rows]
    assert single == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    ("pad", "eos", "said"), [("</s>", EOS, 1), ("</s>", [3, EOS], 1), ("[PAD]", EOS, 0), (None, EOS, 0)]
)
def test_pad_as_eos_is_said_once_at_load(tmp_path, caplog, pad, eos, said):
    directory = save_causal(tmp_path, pad=pad)
    edit_config(directory, eos_token_id=eos)
    with caplog.at_level(logging.WARNING):
        model = load_for_scoring(directory, dtype="float32", device="cpu")
        for _ in range(2):
            model(torch.tensor([[7, EOS]]), torch.tensor([2]))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == said
    assert all("as pad and eos" in warning and "retrain" in warning for warning in warnings)


def test_the_trained_pad_token_makes_the_shift_go_away(tmp_path):
    """The remedy that the warning names, on a checkpoint whose config lost its pad token to eos."""
    directory = save_causal(tmp_path, chat=True)
    trained = score(directory)
    edit_config(directory, pad_token_id=EOS)
    assert np.abs(score(directory) - trained).max() > 0.05
    edit_config(directory, pad_token_id=PAD)
    assert score(directory) == pytest.approx(trained, **CLOSE)
