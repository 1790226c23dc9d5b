"""The gradient of a step, held-out accuracy, the loss of mixed judgements, and the collapse detector."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.tiny_models import save_causal, save_encoder
from support.training_groups import collator, encoded_group, row
from transformers import TrainingArguments

from rm.checkpoint.load import load_backbone_for_training
from rm.engine.packed_forward import enable_packing, first_position
from rm.train import TrainingError
from rm.train.length_head import LengthHeadSettings, add_length_head
from rm.train.loss_network import GroupLoss, GroupNetwork
from rm.train.losses import accept_reject, bradley_terry, centring_penalty, plackett_luce
from rm.train.rewards import is_flat, judgement_accuracy, refuse_collapse
from rm.train.trainer import GroupTrainer

PAIRS = GroupLoss("bradley_terry", 0.0, 0.0)


def mixed_groups(types):
    """Pairs, a ranking with a tie, a choice, and labels, alone and beside comparisons; rows of many lengths."""
    draw = np.random.default_rng(0).integers(9, 60, 200).tolist()
    rows = [row(*draw[at : at + 3 + at % 7], types=types) for at in range(0, 120, 8)]
    shared = [row(*draw[:4], *draw[at : at + 2 + at % 4], types=types) for at in range(120, 160, 8)]
    tie = (0, 1, 0.5, 1.0, 0.0, -1)
    ranking = [tie, (0, 2, 1, 1, 0, 0), (1, 2, 1, 1, 0.2, 1)]
    return [
        encoded_group(rows[:2], [(0, 1)]),
        encoded_group(rows[2:4], [(1, 0, 0.8, 2.5, 0.3)]),
        encoded_group(rows[4:7], ranking),
        encoded_group(shared, [(2, other, 1, 1, 0, 0) for other in (0, 1, 3, 4)], [(0, 1.0), (3, 0.0)]),
        encoded_group(rows[7:8], [], [(0, 1.0)]),
        encoded_group(rows[8:10], [], [(0, 0.0, 2.0), (1, 1.0)]),
    ]


def trainer_of(directory, tmp_path, *, loss=PAIRS, heldout=(), packed=True, budget=10_000):
    model = load_backbone_for_training(directory)
    if loss.length_head is not None:
        torch.manual_seed(1)
        add_length_head(model.model)
    words = model.model.get_input_embeddings().weight
    text_head = SimpleNamespace(logits=lambda states: states @ words.T) if loss.text_weight and model.causal else None
    pack = packed and enable_packing(model.model, causal=model.causal, max_length=48)
    assert pack == packed
    return GroupTrainer(
        loss=loss,
        heldout=heldout,
        model=GroupNetwork(model.model, causal=model.causal, offset=0.3, text_head=text_head),
        args=TrainingArguments(output_dir=str(tmp_path / "t"), use_cpu=True, report_to="none", label_names=[]),
        train_dataset=list(heldout),
        collator=collator(
            packed=packed,
            causal=model.causal,
            first_position=first_position(model.model.config),
            tokens_per_batch=budget,
            picks=loss.name == "plackett_luce",
            texts=text_head is not None,
        ),
    )


def step(trainer, groups):
    """(loss, gradients, number of micro-batches) of one optimiser step on these groups."""
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, trainer.data_collator(groups))
    gradients = {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}
    return loss.item(), gradients, len(trainer.collator.micro_batches(groups))


APART = LengthHeadSettings(correlation=0.7, orthogonality=0.3)
LOSSES = [
    PAIRS,
    GroupLoss("bradley_terry", 0.1, 0.05),
    GroupLoss("plackett_luce", 0.0, 0.05),
    GroupLoss("bradley_terry", 0.0, 0.05, APART, 0.5),
]


@pytest.mark.parametrize("loss", LOSSES, ids=["plain", "smoothed", "picks", "apart"])
@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_micro_batches_and_packing_change_neither_loss_nor_gradient(kind, loss, tmp_path):
    directory = (save_encoder if kind == "encoder" else save_causal)(tmp_path / "m")
    groups = mixed_groups(types=kind == "encoder")
    loss_of_all, expected, count = step(trainer_of(directory, tmp_path, loss=loss, packed=False), groups)
    assert count == 1
    assert "offset" in expected
    for packed, budget in ((False, 1), (False, 60), (True, 10_000), (True, 1), (True, 40)):
        value, gradients, count = step(trainer_of(directory, tmp_path, loss=loss, packed=packed, budget=budget), groups)
        assert count == {1: len(groups), 10_000: 1}.get(budget, count)
        assert 1 < count < len(groups) or budget in (1, 10_000)
        assert value == pytest.approx(loss_of_all, rel=1e-5)
        assert gradients.keys() == expected.keys()
        largest = max(float(reference.abs().max()) for reference in expected.values())
        for name, reference in expected.items():
            scale = max(float(reference.abs().max()), 1e-2 * largest)  # that of a key's bias is zero
            assert float((gradients[name] - reference).abs().max()) < 1e-4 * scale, name


def test_a_step_counts_judgements_and_tokens_and_skips_what_has_none(tmp_path):
    groups = [*mixed_groups(types=False), encoded_group([row(*range(9, 40))])]  # a draw without comparisons
    trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path, budget=1)
    loss, gradients, count = step(trainer, groups)
    assert count == len(groups)
    assert trainer.judgements == 1 + 1 + 3 + 4 + 2 + 1 + 2
    assert trainer.tokens == sum(len(encoded.ids) for group in groups[:-1] for encoded in group.responses)
    without = step(trainer_of(tmp_path / "m", tmp_path, budget=1), groups[:-1])
    assert loss == pytest.approx(without[0])
    assert all(torch.equal(gradients[name], value) for name, value in without[1].items())
    assert step(trainer_of(tmp_path / "m", tmp_path), groups[-1:])[0] == 0.0


class TestGroupLoss:
    rewards = torch.tensor([0.5, -1.0, 2.0, 0.1])
    offset = torch.tensor(0.4)

    def batch(self, *, picks=False):
        first = encoded_group([row(1), row(2), row(3)], [(0, 1, 1, 2, 0.5, 0), (0, 2, 1, 1, 0, 0)])
        return collator(picks=picks).micro_batch([first, encoded_group([row(4)], [], [(0, 1.0, 3.0)])])

    def test_comparisons_and_labels_by_hand(self):
        # two edges of weights 2 and 1, halved: 1.5 in all; one label of weight 3
        gaps = [0.5 + 1.0 - 0.5, 0.5 - 2.0]
        edges = [math.log1p(math.exp(-gap)) for gap in gaps]
        label = math.log1p(math.exp(-0.5))
        expected = (1.0 * edges[0] + 0.5 * edges[1] + 3 * label) / 4.5
        assert PAIRS(self.rewards, self.offset, self.batch()).item() == pytest.approx(expected, rel=1e-6)

    def test_the_offset_belongs_to_labels_alone(self):
        offset = torch.tensor(0.4, requires_grad=True)
        PAIRS(self.rewards, offset, self.batch()).backward()
        assert offset.grad.item() == pytest.approx(3 / 4.5 * (1 / (1 + math.exp(-0.5)) - 1), rel=1e-5)

    def test_smoothing_centring_and_picks_by_hand(self):
        batch = self.batch()
        label = accept_reject(self.rewards, self.offset, batch.labelled, batch.accepted, batch.label_weights)
        edges = (self.rewards, batch.edges)

        def whole(comparisons):
            return ((comparisons * 1.5 + label * 3) / 4.5).item()

        smooth = bradley_terry(*edges, torch.tensor([0.8, 0.8]), batch.weights, batch.margins)
        got = GroupLoss("bradley_terry", 0.2, 0.0)(self.rewards, self.offset, batch)
        assert got.item() == pytest.approx(whole(smooth), rel=1e-6)
        centred = bradley_terry(*edges, batch.probabilities, batch.weights, batch.margins)
        centred = centred + 0.1 * centring_penalty(*edges, batch.weights)
        got = GroupLoss("bradley_terry", 0.0, 0.1)(self.rewards, self.offset, batch)
        assert got.item() == pytest.approx(whole(centred), rel=1e-6)
        batch = self.batch(picks=True)
        pick = plackett_luce(*edges, batch.probabilities, batch.weights, batch.margins, batch.stages)
        got = GroupLoss("plackett_luce", 0.0, 0.0)(self.rewards, self.offset, batch)
        assert got.item() == pytest.approx(whole(pick), rel=1e-6)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [1, 11, 40, 10_000])  # groups larger than the budget are cut
def test_predict_gives_every_group_its_own_rewards_in_order(tmp_path, budget, packed):
    groups = mixed_groups(types=False)
    trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path, budget=budget, packed=packed)
    got = trainer.predict_rewards(groups)
    assert [len(values) for values in got] == [len(group.responses) for group in groups]
    for values, group in zip(got, groups, strict=True):
        rows = [torch.tensor([encoded.ids]) for encoded in group.responses]
        plain = load_backbone_for_training(tmp_path / "m").eval()
        expected = [plain(ids, torch.tensor([ids.shape[1]])).item() for ids in rows]
        assert values == pytest.approx(expected, abs=1e-5)


def test_heldout_loss_is_the_loss_of_one_batch(tmp_path):
    groups = mixed_groups(types=False)
    trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path, loss=LOSSES[1], heldout=groups, budget=40)
    metrics = trainer.evaluate()
    rewards = torch.from_numpy(np.concatenate(trainer.predict_rewards(groups)))
    whole = trainer._loss(rewards, torch.tensor(0.3), trainer.collator.micro_batch(groups))
    assert metrics["eval_loss"] == pytest.approx(whole.item(), rel=1e-5)
    assert metrics["eval_accuracy"] == judgement_accuracy(trainer.predict_rewards(groups), groups)
    assert trainer.state.log_history[-1]["eval_accuracy"] == metrics["eval_accuracy"]


def test_heldout_rewards_are_those_of_the_model_as_it_stands(tmp_path):
    groups = mixed_groups(types=False)
    trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path, heldout=groups)
    trainer.evaluate()
    first = trainer.heldout_rewards()
    with torch.no_grad():
        trainer.model.model.score.weight *= 2
    assert trainer.heldout_rewards() is first  # measured at this very step: not computed again
    trainer.state.global_step += 1
    anew = trainer.heldout_rewards()
    assert all(right == pytest.approx(2 * left, rel=1e-4) for left, right in zip(first, anew, strict=True))
    trainer.state.global_step -= 1
    trainer.args.load_best_model_at_end = True  # the weights may be those of another step
    assert trainer.heldout_rewards() is not first


def test_accuracy_by_hand():
    group = encoded_group([row(1)] * 3, [(0, 1), (1, 2), (0, 2, 0.2), (1, 0, 0.5), (2, 1, 0.4)])
    # right; equal (half); said the other way round (wrong); a tie (left out); equal, said the other way round (half)
    assert judgement_accuracy([np.array([2.0, 1.0, 1.0])], [group]) == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    # accepted against rejected of one group: 0 over 2 right, 1 over 2 equal; 0 and 1 say nothing to each other
    labels = encoded_group([row(1)] * 3, [], [(0, 1.0), (1, 1.0), (2, 0.0)])
    assert judgement_accuracy([np.array([3.0, 1.0, 1.0])], [labels]) == pytest.approx(0.75)
    assert judgement_accuracy([np.array([0.0, 5.0, 1.0])], [labels]) == pytest.approx(0.5)
    both = [np.array([2.0, 1.0, 1.0]), np.array([3.0, 1.0, 1.0])]
    assert judgement_accuracy(both, [group, labels]) == pytest.approx((2 + 1.5) / 6)
    assert math.isnan(judgement_accuracy([np.array([1.0])], [encoded_group([row(1)], [], [(0, 1.0)])]))


def test_flat_rewards():
    assert is_flat(np.array([5.0, 5.0 + 1e-6]))
    assert is_flat(np.array([1e4, 1e4 + 1e-3]))
    assert not is_flat(np.array([0.0, 1e-5]))
    assert not is_flat(np.array([1.0, 1.0, 1.1]))


def test_collapse_and_divergence_fail_loudly():
    with pytest.raises(TrainingError, match="collapsed"):
        refuse_collapse([np.full(3, 0.5, dtype=np.float32), np.full(1, 0.5, dtype=np.float32)])
    with pytest.raises(TrainingError, match="diverged"):
        refuse_collapse([np.array([0.5, np.nan])])
    with pytest.raises(TrainingError, match="diverged"):
        refuse_collapse([np.array([0.5, np.inf])])
    refuse_collapse([np.array([0.5, 0.1, 0.2])])


class TestWatch:
    flat, spread = torch.full((4,), 2.0), torch.tensor([1.0, 2.0])

    def test_twenty_flat_steps_in_a_row_are_a_collapse(self, tmp_path):
        trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path)
        loss = torch.tensor(0.7)
        for _ in range(19):
            trainer._watch(loss, self.flat)
        trainer._watch(loss, self.spread)  # starts the count anew
        for _ in range(19):
            trainer._watch(loss, self.flat)
        with pytest.raises(TrainingError, match="for 20 steps every response had the reward 2;"):
            trainer._watch(loss, self.flat)

    def test_a_step_of_one_response_is_no_sign_of_collapse(self, tmp_path):
        trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path)
        for _ in range(40):
            trainer._watch(torch.tensor(0.7), self.flat[:1])
        assert trainer._flat_steps == 0

    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite_ends_the_run_at_once(self, tmp_path, loss):
        trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path)
        with pytest.raises(TrainingError, match="diverged at step 1"):
            trainer._watch(torch.tensor(loss), self.spread)


def test_every_parameter_is_optimised_once_and_the_offset_faster(tmp_path):
    trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path)
    trainer.args.weight_decay = 0.1
    network = trainer.model
    network.model.score.weight.requires_grad_(False)
    optimizer = trainer.create_optimizer()
    decayed, plain, offset = optimizer.param_groups
    assert [id(value) for value in offset["params"]] == [id(network.offset)]
    assert offset["lr"] == pytest.approx(100 * decayed["lr"])
    assert plain["lr"] == decayed["lr"] == trainer.args.learning_rate
    assert (decayed["weight_decay"], plain["weight_decay"], offset["weight_decay"]) == (0.1, 0.0, 0.0)
    seen = [id(value) for group in optimizer.param_groups for value in group["params"]]
    trained = [id(value) for value in network.parameters() if value.requires_grad]
    assert sorted(seen) == sorted(trained)
    norms = {id(value) for name, value in network.named_parameters() if "norm" in name}
    assert norms <= {id(value) for value in plain["params"]}
    assert trainer.create_optimizer() is optimizer


def run_out_beyond(monkeypatch, limit):
    """Micro-batches of more than `limit` tokens run out of memory after they have left something in the gradient."""
    original = GroupTrainer._add_gradient

    def add_gradient(self, model, batch, share):
        result = original(self, model, batch, share)
        if batch.tokens > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result

    monkeypatch.setattr(GroupTrainer, "_add_gradient", add_gradient)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [10_000, 90])
def test_out_of_memory_halves_the_micro_batches_and_repeats_the_step(tmp_path, monkeypatch, caplog, packed, budget):
    directory, groups = save_causal(tmp_path / "m"), mixed_groups(types=False)
    loss, expected, _ = step(trainer_of(directory, tmp_path, packed=packed), groups)
    largest = max(trainer_of(directory, tmp_path, packed=packed, budget=1).collator.micro_batches(groups), key=tokens)
    run_out_beyond(monkeypatch, largest.tokens + 5)
    trainer = trainer_of(directory, tmp_path, packed=packed, budget=budget)
    value, gradients, count = step(trainer, groups)
    assert value == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(gradients[name], want, atol=1e-5) for name, want in expected.items())
    assert count > 1
    assert trainer.collator.tokens_per_batch < budget
    assert f"from now on train.tokens_per_batch is {trainer.collator.tokens_per_batch}" in caplog.text
    rows = sum(len(group.responses) for group in groups)
    assert trainer.judgements == sum(len(group.edges) + len(group.labels) for group in groups)
    assert trainer.tokens == sum(len(encoded.ids) for group in groups for encoded in group.responses) > rows


def tokens(batch):
    return batch.tokens


def test_a_group_that_does_not_fit_alone_is_named_with_what_makes_it_smaller(tmp_path, monkeypatch):
    groups = mixed_groups(types=False)
    run_out_beyond(monkeypatch, 20)
    with pytest.raises(TrainingError, match=r"responses to one prompt, \d+ tokens.*lower train.responses_per_group"):
        step(trainer_of(save_causal(tmp_path / "m"), tmp_path), groups)


def test_another_error_is_no_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(GroupTrainer, "_add_gradient", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        step(trainer_of(save_causal(tmp_path / "m"), tmp_path), mixed_groups(types=False))


def test_rewards_are_computed_in_smaller_batches_where_memory_runs_out(tmp_path, monkeypatch, caplog):
    groups = mixed_groups(types=False)
    trainer = trainer_of(save_causal(tmp_path / "m"), tmp_path)
    expected = trainer.predict_rewards(groups)
    original = GroupNetwork.forward

    def forward(self, batch):
        if batch.tokens > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, batch)

    monkeypatch.setattr(GroupNetwork, "forward", forward)
    got = trainer.predict_rewards(groups)
    assert all(left == pytest.approx(right, abs=1e-5) for left, right in zip(got, expected, strict=True))
    assert "out of memory: from now on" in caplog.text
    monkeypatch.setattr(GroupNetwork, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(TrainingError, match="out of memory with a single response"):
        trainer.predict_rewards(groups)
