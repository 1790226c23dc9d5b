"""Packed rows against plain transformers, one row at a time: rewards, and the gradient of every parameter."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
import transformers
from support.classifiers import ALL, CAUSAL, ENCODERS, LENGTH, REFUSED, VOCABULARY, build
from transformers.modeling_layers import GradientCheckpointingLayer

from rm.engine import packed_attention, packed_forward
from rm.engine.attention_plan import AttentionPlan
from rm.engine.layout import lay_out
from rm.engine.packed_attention import ATTENTION_NAME
from rm.engine.packed_forward import enable_packing, first_position, packed_rewards
from rm.train.losses import bradley_terry


def rows_of(name):
    """Groups of `(ids, types)`: a shared prefix, none at all, one response, equal rows, one the start of another."""
    draw = torch.randint(4, VOCABULARY, (90,), generator=torch.Generator().manual_seed(3)).tolist()
    if name in ENCODERS:
        groups = [[draw[:7] + draw[20:24], draw[:7] + draw[30:38]], [draw[40:43]], [draw[50:58], draw[60:65], draw[:3]]]
    else:
        groups = [
            [draw[:7] + draw[20:24], draw[:7] + draw[30:31], draw[:7] + draw[32:41]],
            [draw[40:44], [draw[40] + 1 - 2 * (draw[40] == VOCABULARY - 1), *draw[45:52]]],  # nothing in common
            [draw[60:66]],
            [draw[70:76], draw[70:76], draw[70:73]],
            [[*draw[80:84], 1, draw[84], 1], [*draw[80:84], 1]],  # pad inside, and at the end
        ]
    typed = name == "Bert"
    return [[(row, [int(at > 3) for at in range(len(row))] if typed else None) for row in group] for group in groups]


def padded_rewards(model, groups):
    """The reference: every row by itself through transformers' own forward."""
    rewards = []
    for row, types in (row for group in groups for row in group):
        inputs = {"input_ids": torch.tensor([row])}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor([types])
        rewards.append(model(**inputs).logits[0, 0])
    return torch.stack(rewards)


def layout_of(name, model, groups):
    return lay_out(groups, share=name in CAUSAL, pad=1, first_position=first_position(model.config))


def gradients(model, rewards, groups):
    """Gradients of a Bradley-Terry loss over neighbours in every group, and of first rewards over groups: all rows take part."""
    edges, start, firsts = [], 0, []
    for rows in groups:
        edges += [[start + place, start + place + 1] for place in range(len(rows) - 1)]
        firsts.append(start)
        start += len(rows)
    edges += [[left, right] for left, right in itertools.pairwise(firsts)]
    model.zero_grad()
    count = len(edges)
    bradley_terry(rewards, torch.tensor(edges), torch.full((count,), 0.9), torch.ones(count)).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_equal_gradients(got, expected):
    assert got.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        limit = 1e-4 * max(float(value.abs().max()), 1e-2 * scale)  # a gradient of zero is a sum that cancels out
        assert float((got[name] - value).abs().max()) <= limit, name


@pytest.mark.parametrize("name", ALL)
def test_packed_equals_row_by_row_with_gradients(name):
    model = build(name)
    groups = rows_of(name)
    expected = padded_rewards(model, groups)
    reference = gradients(model, expected, groups)
    assert float(expected.detach().std()) > 0.05  # else agreeing says nothing
    assert enable_packing(model, causal=name in CAUSAL, max_length=LENGTH)
    assert model.training
    assert model.config._attn_implementation == ATTENTION_NAME
    got = packed_rewards(model, layout_of(name, model, groups), causal=name in CAUSAL)
    with torch.inference_mode():
        scored = packed_rewards(model, layout_of(name, model, groups), causal=name in CAUSAL)
    for rewards in (got, scored):
        assert rewards.dtype == torch.float32
        assert float((rewards - expected).detach().abs().max() / expected.detach().std()) < 1e-5
    assert_equal_gradients(gradients(model, got, groups), reference)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert"])
def test_gradient_checkpointing_changes_no_gradient(name):
    model = build(name)
    groups = rows_of(name)
    reference = gradients(model, padded_rewards(model, groups), groups)
    assert enable_packing(model, causal=name in CAUSAL, max_length=LENGTH)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    first = next(module for module in layer.modules() if hasattr(module, "weight"))
    first.register_forward_hook(lambda *_: calls.append(1))
    got = packed_rewards(model, layout_of(name, model, groups), causal=name in CAUSAL)
    assert_equal_gradients(gradients(model, got, groups), reference)
    assert len(calls) == 2  # once more in the backward pass


@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_groups_do_not_see_their_neighbours(name):
    model = build(name)
    groups = rows_of(name)
    assert enable_packing(model, causal=name in CAUSAL, max_length=LENGTH)
    together = packed_rewards(model, layout_of(name, model, groups), causal=name in CAUSAL)
    alone = [packed_rewards(model, layout_of(name, model, [group]), causal=name in CAUSAL) for group in groups]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_packing_cannot_do_is_refused_with_a_reason(name, caplog):
    model = build(name, **REFUSED[name])
    before = model.config._attn_implementation
    with caplog.at_level(logging.INFO, logger="rm.engine.packed_forward"):
        assert not enable_packing(model, causal=hasattr(model, "score"), max_length=LENGTH)
    assert caplog.messages[-1].startswith("computing with padding: ")
    assert model.config._attn_implementation == before != ATTENTION_NAME
    assert model.training
    rewards = model(input_ids=torch.tensor([[5, 6, 7], [5, 6, 8]])).logits  # it still works
    assert torch.isfinite(rewards).all()


def test_a_window_that_is_switched_off_is_no_hindrance():
    model = build("Qwen2", use_sliding_window=False, sliding_window=8)
    assert enable_packing(model, causal=True, max_length=LENGTH)


def refusal_of(model, caplog, *, max_length=LENGTH):
    with caplog.at_level(logging.INFO, logger="rm.engine.packed_forward"):
        assert not enable_packing(model, causal=True, max_length=max_length)
    return caplog.messages[-1]


@pytest.mark.parametrize(
    ("name", "lost", "reason"),
    [
        ("Mistral-window", "sliding_window", "attends to 8 tokens, fewer than max_length 32, by itself"),
        ("Gemma2", "sliding_window", "attends to 6 tokens"),
        ("Gemma2", "softcap", "caps attention logits at 2.0 by itself"),
    ],
)
def test_a_window_or_cap_that_layers_do_not_tell_is_a_hindrance(name, lost, reason, caplog, monkeypatch):
    original = packed_attention.packed_attention
    monkeypatch.setitem(
        transformers.AttentionInterface._global_mapping,
        ATTENTION_NAME,
        lambda *arguments, **rest: original(*arguments, **{key: value for key, value in rest.items() if key != lost}),
    )
    assert reason in refusal_of(build(name).eval(), caplog)


def test_a_window_that_is_off_by_one_is_caught_by_the_check(caplog, monkeypatch):
    original = AttentionPlan.mask
    monkeypatch.setattr(
        AttentionPlan,
        "mask",
        lambda self, *sizes, causal, window: original(self, *sizes, causal=causal, window=window and window + 1),
    )
    assert "of their spread" in refusal_of(build("Mistral-window").eval(), caplog)


def test_chunked_attention_is_a_hindrance_where_rows_may_be_longer(caplog):
    model = build("Llama").eval()
    model.config.attention_chunk_size = 16
    assert "attention_chunk_size 16 tokens, fewer than max_length 32" in refusal_of(model, caplog)
    assert enable_packing(model, causal=True, max_length=16)


def refused_by_the_check(name, caplog):
    model = build(name)
    before = model.config._attn_implementation
    with caplog.at_level(logging.INFO, logger="rm.engine.packed_forward"):
        assert not enable_packing(model, causal=name in CAUSAL, max_length=LENGTH)
    assert model.config._attn_implementation == before
    return "of their spread" in caplog.messages[-1]


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Roberta"])
def test_a_wrong_position_is_caught_by_the_check(name, caplog, monkeypatch):
    def shifted(*arguments, **rest):
        got = lay_out(*arguments, **rest)
        return got._replace(positions=[position * 2 for position in got.positions])

    monkeypatch.setattr(packed_forward, "lay_out", shifted)
    assert refused_by_the_check(name, caplog)


@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_a_wrong_pooling_place_is_caught_by_the_check(name, caplog, monkeypatch):
    def shifted(*arguments, **rest):
        got = lay_out(*arguments, **rest)
        return got._replace(pooled=[*got.pooled[1:], got.pooled[0]])

    monkeypatch.setattr(packed_forward, "lay_out", shifted)
    assert refused_by_the_check(name, caplog)


def flash(monkeypatch, changed):
    """Let the CPU's kernel do something else: `changed(original, query, key, value, causal, scale)`."""
    original = packed_attention._flash_cpu

    def call(query, key, value, dropout, causal, *, scale=None):
        return changed(original, query, key, value, causal, scale)

    monkeypatch.setattr(packed_attention, "_flash_cpu", call)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_a_mask_that_sees_the_future_is_caught_by_the_check(name, caplog, monkeypatch):
    flash(monkeypatch, lambda original, q, k, v, causal, scale: original(q, k, v, 0.0, False, scale=scale))
    assert refused_by_the_check(name, caplog)


def test_a_mask_over_the_prefix_is_caught_by_the_check(caplog, monkeypatch):
    flash(monkeypatch, lambda original, q, k, v, causal, scale: original(q, k, v, 0.0, True, scale=scale))
    assert refused_by_the_check("Llama", caplog)


def test_a_lost_scale_is_caught_by_the_check(caplog, monkeypatch):
    flash(monkeypatch, lambda original, q, k, v, causal, scale: original(q, k, v, 0.0, causal, scale=1.0))
    assert refused_by_the_check("Bert", caplog)


def test_a_lost_prefix_is_caught_by_the_check(caplog, monkeypatch):
    monkeypatch.setattr(packed_attention, "_merge_attentions", lambda own, *_: own)
    assert refused_by_the_check("Llama", caplog)


def test_swapped_weights_of_the_merge_are_caught_by_the_check(caplog, monkeypatch):
    original = packed_attention._merge_attentions
    monkeypatch.setattr(packed_attention, "_merge_attentions", lambda own, a, other, b: original(own, b, other, a))
    assert refused_by_the_check("Llama", caplog)


def test_training_checks_the_way_with_gradients_too(caplog, monkeypatch):
    original = packed_attention.scaled_dot_product_attention

    def unmasked(query, key, value, *, attn_mask=None, **rest):
        return original(query, key, value, **rest)

    monkeypatch.setattr(packed_attention, "scaled_dot_product_attention", unmasked)
    assert refused_by_the_check("Llama", caplog)
    scored = build("Llama").eval()  # scoring never goes that way
    assert enable_packing(scored, causal=True, max_length=LENGTH)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert"])
def test_a_model_of_16_bits_is_as_it_was_after_the_check(name):
    model = build(name).bfloat16()
    before = {key: (value.data_ptr(), value.clone()) for key, value in model.named_parameters()}
    assert enable_packing(model, causal=name in CAUSAL, max_length=LENGTH)
    for key, value in model.named_parameters():
        pointer, content = before[key]
        assert value.dtype == torch.bfloat16
        assert value.data_ptr() == pointer
        assert torch.equal(value, content)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_that_16_bits_would_hide_is_caught_by_the_check(caplog, monkeypatch):
    original = packed_attention._merge_attentions
    monkeypatch.setattr(
        packed_attention, "_merge_attentions", lambda own, lse, other, rest: original(own, lse + 0.02, other, rest)
    )
    model = build("Llama").eval().bfloat16()
    with caplog.at_level(logging.INFO, logger="rm.engine.packed_forward"):
        assert not enable_packing(model, causal=True, max_length=LENGTH)
    assert "packed rewards differ by" in caplog.messages[-1]
    assert next(model.parameters()).dtype == torch.bfloat16


def test_a_kernel_that_is_wrong_in_16_bits_alone_is_caught_by_the_check(caplog, monkeypatch):
    flash(
        monkeypatch,
        lambda original, q, k, v, causal, scale: original(
            q, k, v, 0.0, causal and q.dtype == torch.float32, scale=scale
        ),
    )
    assert enable_packing(build("Llama").eval(), causal=True, max_length=LENGTH)
    with caplog.at_level(logging.INFO, logger="rm.engine.packed_forward"):
        assert not enable_packing(build("Llama").eval().bfloat16(), causal=True, max_length=LENGTH)
    assert "packed rewards in torch.bfloat16 are off by" in caplog.messages[-1]


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert", "Electra"])
def test_the_last_layer_computes_little_without_gradients_and_is_left_as_it_was(name, monkeypatch):
    """Tokens through the last layer's feed-forward part: all of them with gradients, those that are read without."""
    model, causal = build(name), name in CAUSAL
    assert enable_packing(model, causal=causal, max_length=LENGTH)
    layout = layout_of(name, model, rows_of(name))
    last = next(module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))[-1]
    through = last.mlp if causal else last.intermediate
    sizes = []
    handle = through.register_forward_hook(lambda _, arguments, __: sizes.append(arguments[0].shape[1]))
    packed_rewards(model, layout, causal=causal)
    with torch.no_grad():
        packed_rewards(model, layout, causal=causal)
    packed_rewards(model, layout, causal=causal)
    handle.remove()
    assert sizes == [len(layout.ids), len(layout.pooled), len(layout.ids)]
    assert "forward" not in vars(last)
