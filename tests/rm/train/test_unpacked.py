"""Training on rows that are not packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.every_classifier import save_tiny

from rm.checkpoint.load import load_backbone_for_training, load_tokenizer
from rm.text.templates import Template
from rm.together import EQUAL_LENGTHS, choose_way
from rm.train.data import Collator, EncodedGroup
from rm.train.loss_network import GroupNetwork


@pytest.mark.parametrize("kind", ["xlnet", "convbert"])
def test_a_model_that_reads_the_padding_trains_on_rows_as_they_are_alone(kind, tmp_path):
    """The rewards of a micro-batch of mixed lengths, in its order, and its gradients reach the backbone."""
    loaded = load_backbone_for_training(save_tiny(tmp_path / "model", kind))
    template = Template.of(load_tokenizer(tmp_path / "model"), causal=False, max_length=64, too_long="truncate")
    way = choose_way(loaded, template, split=None)
    assert way == EQUAL_LENGTHS
    network = GroupNetwork(loaded.model, causal=False, way=way)
    rows = template.encode_group((("user", "what is the answer"),), ["good", "the word " * 9, "bad", "to be of it"])
    edges = np.array([[0, 1, 1.0, 1.0, 0.0, -1.0], [2, 3, 1.0, 1.0, 0.0, -1.0]])
    group = EncodedGroup(rows, edges, np.empty((0, 3)), (0, 1, 2, 3))
    collate = Collator(packed=False, causal=False, pad=0, first_position=0, tokens_per_batch=1000, picks=False)
    rewards = network(collate.micro_batch([group]))
    alone = torch.stack([loaded.model(input_ids=torch.tensor([row.ids])).logits[0, 0] for row in rows])
    assert float((rewards - alone).detach().abs().max()) <= 1e-5 * float(alone.detach().std())
    rewards[0].backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in loaded.model.base_model.parameters())
