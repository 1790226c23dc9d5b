from __future__ import annotations

import pytest
import torch
from support.classifiers import build
from torch import nn

from rm.engine import onednn
from rm.engine.onednn import fuse_linear_layers

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def rewards(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits[:, 0]


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
def test_rewards_stay_and_every_linear_map_of_the_layers_is_replaced(name, activation):
    model = build(name, hidden_act=activation).eval()
    expected = rewards(model)
    others = sum(isinstance(module, nn.Linear) for module in model.modules()) - 2 * 6
    assert others >= 1
    assert float(expected.std()) > 0.05
    assert fuse_linear_layers(model) == 2 * 6
    assert not any(isinstance(module, nn.Linear) for module in model.base_model.encoder.modules())
    assert isinstance(model.base_model.encoder.layer[0].intermediate.intermediate_act_fn, nn.Identity) == (
        activation == "gelu"
    )
    assert torch.allclose(rewards(model), expected, atol=1e-5)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == others  # head and pooler stay


@pytest.mark.parametrize(("name", "kind"), [("Bert", torch.bfloat16), ("Llama", torch.float32)])
def test_other_types_and_causal_models_are_left_alone(name, kind):
    model = build(name).eval().to(kind)
    assert fuse_linear_layers(model) == 0
    assert sum(isinstance(module, nn.Linear) for module in model.base_model.modules()) >= 12


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_a_layer_whose_replacement_differs_stays(activation, monkeypatch, caplog):
    original = onednn._Linear.forward

    def wrong(self, hidden):
        output = original(self, hidden)
        return output * 1.001 if self._activation == activation else output

    monkeypatch.setattr(onednn._Linear, "forward", wrong)
    model = build("Bert").eval()
    expected = rewards(model)
    with caplog.at_level("DEBUG", logger="rm.engine.onednn"):
        assert fuse_linear_layers(model) == (2 if activation == "none" else 10)
    assert torch.allclose(rewards(model), expected, atol=1e-5)
    assert caplog.messages[-1].endswith("of 12 linear layers use oneDNN")


def test_a_torch_without_these_operations_changes_nothing(monkeypatch):
    class Missing:
        def __getattr__(self, name):
            raise AttributeError(name)

    model = build("Bert").eval()
    expected = rewards(model)
    monkeypatch.setattr(onednn.torch.ops, "mkldnn", Missing(), raising=False)
    assert fuse_linear_layers(model) == 0
    assert torch.equal(rewards(model), expected)
