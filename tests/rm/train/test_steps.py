"""The course of a run: padded against packed, interruptions, early stopping, collapse, trackers."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support.corpora import write_jsonl
from support.every_classifier import save_tiny
from support.tiny_models import WORDS
from support.training_groups import run_settings
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm.train import SettingsError, TrainingError, last_checkpoint, refuse_missing_packages, train
from rm.train import trainer as trainers
from rm.train import training_run as training
from rm.train.progress import ReportProgress
from rm.train.trainer import GroupTrainer


@pytest.fixture
def rankings(tmp_path):
    rows = [
        {"prompt": f"what is {noun}", "responses": [f"{grade} {noun} answer" for grade in "abcde"], "ranking": ranks}
        for noun, ranks in zip(WORDS[:24], [[1, 2, 3, 4, 5], [2, 1, 3, 4, 4], [1, 1, 2, 3, 4]] * 8, strict=True)
    ]
    return write_jsonl(tmp_path / "rankings.jsonl", rows)


@pytest.fixture
def steps(monkeypatch):
    """Fills with (step, loss) of every optimiser step of every run."""
    seen = []
    original = GroupTrainer.training_step

    def spy(self, *arguments, **rest):
        loss = original(self, *arguments, **rest)
        seen.append((self.state.global_step, loss.item()))
        return loss

    monkeypatch.setattr(GroupTrainer, "training_step", spy)
    return seen


def interrupt(monkeypatch, at):
    """Training raises KeyboardInterrupt before its step `at`, once."""
    original = GroupTrainer.training_step

    def stopping(self, *arguments, **rest):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return original(self, *arguments, **rest)

    monkeypatch.setattr(GroupTrainer, "training_step", stopping)
    return lambda: monkeypatch.setattr(GroupTrainer, "training_step", original)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        *[("bradley_terry", "encoder"), ("plackett_luce", "causal")],
        *[
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [("bradley_terry", "causal"), ("plackett_luce", "encoder")]
        ],
    ],
)
def test_padded_and_packed_runs_have_the_same_losses(tmp_path, rankings, steps, monkeypatch, loss, kind, request):
    backbone = request.getfixturevalue(kind)
    changes = {"epochs": 1, "loss": loss, "learning_rate": 1e-3}
    packed = train(run_settings(rankings, backbone, tmp_path / "packed", **changes))
    seen = steps.copy()
    steps.clear()
    monkeypatch.setattr("rm.train.trained_model.enable_packing", lambda *_, **__: False)
    padded = train(run_settings(rankings, backbone, tmp_path / "padded", **changes))
    assert (packed.packed, padded.packed) == (True, False)
    assert len(seen) == packed.steps == padded.steps
    assert [value for _, value in seen] == pytest.approx([value for _, value in steps], rel=1e-4)
    assert packed.train_loss == pytest.approx(padded.train_loss, rel=1e-4)


RESUMED = {"responses_per_group": 2, "groups_per_batch": 5, "epochs": 3, "heldout_fraction": 0.2}


@pytest.fixture(scope="module")
def wholes():
    """Settings → what a whole run with them came to, for tests that interrupt others of these settings."""
    return {}


@pytest.fixture
def runs(tmp_path, tmp_path_factory, rankings, encoder, steps, monkeypatch, wholes):
    """Runs with `changes` once whole and once interrupted before the step `at` and continued:
    (results of both, losses of the whole by step, those before and after the interruption, weights of the whole)."""

    def both(at, **changes):
        values = {**RESUMED, "checkpoint_every": 3, **changes}
        if str(values) not in wholes:
            place = tmp_path_factory.mktemp("whole")
            result = train(run_settings(rankings, encoder, place, **values))
            wholes[str(values)] = result, dict(steps), (place / "model.safetensors").read_bytes()
            steps.clear()
        whole, expected, weights = wholes[str(values)]
        restore = interrupt(monkeypatch, at)
        with pytest.raises(KeyboardInterrupt):
            train(run_settings(rankings, encoder, tmp_path / "cut", **values))
        restore()
        before = dict(steps)
        steps.clear()
        continued = train(run_settings(rankings, encoder, tmp_path / "cut", **values))
        return whole, continued, expected, before, dict(steps), weights

    return both


# 19 or so groups of five are 3 draws each and about 12 steps an epoch: inside the first, at the boundary, beyond it
@pytest.mark.parametrize("at", [5, 14, 26])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, runs, at):
    whole, continued, expected, before, after, weights = runs(at)
    per_epoch = whole.steps / 3
    assert per_epoch == int(per_epoch)
    assert sorted(after) == list(range(at - at % 3, whole.steps))  # from the last checkpoint
    assert {**before, **after} == expected
    assert (tmp_path / "cut/model.safetensors").read_bytes() == weights
    assert continued.steps == whole.steps
    assert not (tmp_path / "cut/checkpoints").exists()
    assert continued.train_loss == pytest.approx(sum(after.values()) / len(after))


def test_a_checkpoint_at_the_end_of_an_epoch_is_continued_with_the_next_draws(runs):
    whole, _, expected, before, after, _ = runs(13, checkpoint_every=12)
    assert whole.steps == 3 * 12
    assert min(after) == 12
    assert {**before, **after} == expected


def test_every_epoch_of_a_run_draws_anew(tmp_path, rankings, encoder, monkeypatch):
    """Groups of five in draws of at most two: each response once an epoch, in other company the next time."""
    seen = []
    original = training.Draws.__getitem__

    def spy(self, position):
        draw = original(self, position)
        if self._draws[position][2] > 1:
            seen.append((self.epoch, self._draws[position][0], draw.members))
        return draw

    monkeypatch.setattr(training.Draws, "__getitem__", spy)
    monkeypatch.setattr(training, "refuse_steps", lambda *_: seen.clear())  # the largest step was looked for before
    result = train(run_settings(rankings, encoder, tmp_path / "out", **RESUMED))
    epochs = [{draw[1:] for draw in seen if draw[0] == epoch} for epoch in range(3)]
    assert len(seen) == 3 * 3 * result.groups == 3 * len(epochs[0])
    assert len(epochs[0] & epochs[1]) < len(epochs[0])
    assert len(epochs[1] & epochs[2]) < len(epochs[1])


@pytest.mark.slow
def test_checkpoints_by_the_clock_change_nothing_and_one_that_has_no_room_is_left_out(
    tmp_path, runs, rankings, encoder, caplog, monkeypatch
):
    """At a clock that asks for one at every step, the interrupted run goes on from the step at which it ended."""
    by_time = {"checkpoint_every": None, "checkpoint_secs": 0.0}
    whole, continued, expected, before, after, weights = runs(14, **by_time)
    assert sorted(after) == list(range(14, whole.steps))
    assert {**before, **after} == expected
    assert continued.steps == whole.steps
    assert (tmp_path / "cut/model.safetensors").read_bytes() == weights
    plain = train(run_settings(rankings, encoder, tmp_path / "plain", **RESUMED))
    assert plain.steps == whole.steps
    assert (tmp_path / "plain/model.safetensors").read_bytes() == weights

    monkeypatch.setattr("rm.train.checkpoints.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    restore = interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(rankings, encoder, tmp_path / "full", **RESUMED, **by_time))
    restore()
    assert last_checkpoint(str(tmp_path / "full")) is None
    (warning,) = [line for line in caplog.messages if line.startswith("no checkpoint is written")]
    size = sum(value.nbytes for value in load_file(tmp_path / "plain/model.safetensors").values())
    assert size <= int(re.search("takes ([0-9,]+) bytes", warning)[1].replace(",", "")) / 4 < size + 100


@pytest.mark.parametrize(
    "by_time", [{}, pytest.param({"checkpoint_secs": 0.0}, marks=pytest.mark.slow)], ids=["evaluations", "clock"]
)
def test_patience_is_kept_over_an_interruption(runs, tmp_path, monkeypatch, by_time):
    """Accuracy falls from the second evaluation on: three without a better one end the run, interrupted or not."""
    falling = {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5, 6: 0.4}
    original = GroupTrainer.evaluate

    def evaluate(self, *arguments, **rest):
        number = sum("eval_accuracy" in entry for entry in self.state.log_history) + 1
        monkeypatch.setattr(trainers, "judgement_accuracy", lambda *_: falling[number])
        return original(self, *arguments, **rest)

    monkeypatch.setattr(GroupTrainer, "evaluate", evaluate)
    changes = {"early_stopping": 3, "checkpoint_every": None, "epochs": 6, "responses_per_group": None, **by_time}
    whole, continued, expected, before, after, weights = runs(10, **changes)
    assert whole.steps == continued.steps == 4 * math.ceil(whole.groups / 5)
    assert {**before, **after} == expected
    assert (tmp_path / "cut/model.safetensors").read_bytes() == weights


def test_checkpoints_of_other_settings_are_refused(tmp_path, rankings, encoder, monkeypatch):
    restore = interrupt(monkeypatch, 4)
    values = {**RESUMED, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(rankings, encoder, tmp_path / "out", **values))
    restore()
    with pytest.raises(TrainingError, match="checkpoints of a run with other settings"):
        train(run_settings(rankings, encoder, tmp_path / "out", **{**values, "learning_rate": 1e-3}))
    result = train(run_settings(rankings, encoder, tmp_path / "out", **{**values, "report_to": ()}))
    assert result.steps > 4


def test_a_training_is_not_resumed_with_other_preferences(tmp_path, rankings, encoder, monkeypatch):
    restore, text = interrupt(monkeypatch, 4), rankings.read_text()
    values = {**RESUMED, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(rankings, encoder, tmp_path / "out", **values))
    restore()
    rows = [json.loads(line) for line in text.splitlines()]
    rankings.write_text("".join(json.dumps({**row, "ranking": row["ranking"][::-1]}) + "\n" for row in rows))
    with pytest.raises(
        TrainingError, match=r"^the preferences have changed since .*/out/checkpoints was written; restore them"
    ):
        train(run_settings(rankings, encoder, tmp_path / "out", **values))
    rankings.write_text(text)
    assert train(run_settings(rankings, encoder, tmp_path / "out", **values)).steps > 4


@pytest.mark.slow
def test_tied_weights_have_checkpoints(tmp_path, rankings, steps, monkeypatch):
    """Those of T5 have several names: safetensors refuses to write one tensor under two."""
    backbone = save_tiny(tmp_path / "t5", "t5")
    values = {"checkpoint_every": 2, "epochs": 1}
    train(run_settings(rankings, backbone, tmp_path / "whole", **values))
    expected = dict(steps)
    restore = interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(rankings, backbone, tmp_path / "cut", **values))
    restore()
    steps.clear()
    train(run_settings(rankings, backbone, tmp_path / "cut", **values))
    assert dict(steps) == {step: loss for step, loss in expected.items() if step >= 2}
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path, rankings, encoder, steps, monkeypatch):
    restore = interrupt(monkeypatch, 9)
    values = {**RESUMED, "checkpoint_every": 4}
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(rankings, encoder, tmp_path / "out", **values))
    restore()
    (tmp_path / "out/checkpoints/checkpoint-8/trainer_state.json").unlink()
    steps.clear()
    train(run_settings(rankings, encoder, tmp_path / "out", **values))
    assert steps[0][0] == 4


def test_the_number_decides_which_checkpoint_is_last(tmp_path, rankings, encoder, steps, monkeypatch):
    restore = interrupt(monkeypatch, 11)
    values = {**RESUMED, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(rankings, encoder, tmp_path / "out", **values))
    restore()
    assert len(list((tmp_path / "out/checkpoints").glob("checkpoint-*"))) == 2
    (tmp_path / "out/checkpoints/checkpoint-10").rename(tmp_path / "out/checkpoints/checkpoint-9")
    steps.clear()
    train(run_settings(rankings, encoder, tmp_path / "out", **values))
    assert steps[0][0] == 11


def test_settings_have_a_key_that_knows_what_decides_the_result(tmp_path):
    plain = run_settings("a.jsonl", tmp_path, tmp_path / "out")
    assert plain.key() == run_settings("a.jsonl", tmp_path, tmp_path / "elsewhere", report_to=("x",)).key()
    others = [
        {"seed": 1},
        {"loss": "plackett_luce"},
        {"lora": {"rank": 2, "alpha": 4, "targets": "all-linear"}},
        {"heldout_fraction": 0.3},
        {"tokens_per_batch": 7},
    ]
    paced = run_settings("a.jsonl", tmp_path, tmp_path / "out", checkpoint_every=7, checkpoint_secs=1.0)
    assert paced.key() == plain.key()
    keys = {run_settings("a.jsonl", tmp_path, tmp_path / "out", **change).key() for change in others}
    keys |= {run_settings(["a.jsonl", "b.jsonl"], tmp_path, tmp_path / "out").key()}
    keys |= {run_settings([("a.jsonl", {"min_gap": 1.0})], tmp_path, tmp_path / "out").key()}
    assert len(keys | {plain.key()}) == len(others) + 3


def test_early_stopping_keeps_the_best(tmp_path, rankings, encoder, monkeypatch):
    """Accuracies 0.5, 0.8, 0.6, 0.7: the run ends after the fourth, with the weights of the second."""
    told = iter([0.5, 0.8, 0.6, 0.7])
    kept = []
    original = GroupTrainer.evaluate

    def evaluate(self, *arguments, **rest):
        kept.append({name: value.clone() for name, value in self.model.model.state_dict().items()})
        return original(self, *arguments, **rest)

    monkeypatch.setattr(GroupTrainer, "evaluate", evaluate)
    monkeypatch.setattr(trainers, "judgement_accuracy", lambda *_: next(told))
    values = {"epochs": 8, "evaluations_per_epoch": 2, "early_stopping": 2, "learning_rate": 1e-3}
    result = train(run_settings(rankings, encoder, tmp_path / "out", **values))
    assert len(kept) == 4
    per_epoch = math.ceil(result.groups / 4)
    assert result.steps == 4 * (per_epoch // 2)
    saved = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(value, kept[1][name]) for name, value in saved.items())
    assert not all(torch.equal(value, kept[3][name]) for name, value in saved.items())


def test_evaluations_are_logged_and_counted(tmp_path, rankings, encoder, caplog):
    told = []
    with caplog.at_level(logging.INFO, logger="rm.train"):
        settings = run_settings(rankings, encoder, tmp_path / "out", epochs=2, evaluations_per_epoch=2)
        result = train(settings, told.append)
    between = math.ceil(result.groups / 4) // 2
    assert [now.step for now in told if now.event == "evaluation"] == list(range(between, result.steps + 1, between))
    for event in ("step", "log"):
        assert [now.step for now in told if now.event == event] == list(range(1, result.steps + 1))
    assert {now.steps for now in told} == {result.steps}
    assert [now.event for now in told[-3:]] == ["saved", "log", "evaluation"]
    logged = [now.loss for now in told if now.event == "log"]
    shown = [now.loss for now in told if now.event == "step"]
    assert shown[:3] == pytest.approx([sum(logged[: n + 1]) / (n + 1) for n in range(3)], abs=1e-4)
    assert [now.secs_left > 0 for now in told if now.event == "step"] == [True] * (result.steps - 1) + [False]
    assert told[-1].accuracy == pytest.approx(result.heldout.to_json()["accuracy"]["overall"]["model"]["value"])
    assert any(
        line.startswith(f"training all 0 M parameters on {result.groups} prompts: {result.steps} steps of up to 4, ")
        and line.endswith("; a model that guesses has a loss of 0.693 and an accuracy of 50 %")
        for line in caplog.messages
    )


def test_a_loss_that_is_not_finite_ends_the_run_at_once(tmp_path, rankings, encoder, steps, monkeypatch):
    original = trainers.GroupLoss.__call__
    monkeypatch.setattr(
        trainers.GroupLoss, "__call__", lambda *arguments: original(*arguments) * (math.nan if len(steps) == 2 else 1)
    )
    with pytest.raises(TrainingError, match="diverged at step 3"):
        train(run_settings(rankings, encoder, tmp_path / "out"))
    assert len(steps) == 2
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(("epochs", "message"), [(1, "every response has the reward"), (9, "for 20 steps")])
def test_a_collapsed_run_saves_nothing(tmp_path, rankings, encoder, monkeypatch, epochs, message):
    backbone = AutoModelForSequenceClassification.from_pretrained(encoder)
    torch.nn.init.zeros_(backbone.classifier.weight)
    backbone.save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "backbone")
    original = trainers.GroupLoss.__call__
    monkeypatch.setattr(trainers.GroupLoss, "__call__", lambda *arguments: original(*arguments) * 0)
    with pytest.raises(TrainingError, match=message):
        train(run_settings(rankings, tmp_path / "backbone", tmp_path / "out", epochs=epochs))
    assert not (tmp_path / "out/model.safetensors").exists()


def test_trackers_and_the_schedule_reach_the_trainer(tmp_path, rankings, encoder, monkeypatch):
    seen = []
    original = training.TrainingArguments

    def spy(**arguments):
        seen.append(arguments)
        return original(**{**arguments, "report_to": "none"})

    monkeypatch.setattr(training, "TrainingArguments", spy)
    monkeypatch.setattr("rm.train.settings._is_installed", lambda module: True)
    changes = {"report_to": ("tensorboard", "wandb"), "epochs": 0.5, "weight_decay": 0.02, "seed": 7}
    result = train(run_settings(rankings, encoder, tmp_path / "out", **changes))
    (arguments,) = seen
    assert arguments["report_to"] == ["tensorboard", "wandb"]
    assert arguments["max_steps"] == result.steps == round(math.ceil(result.groups / 4) * 0.5)
    assert arguments["warmup_steps"] == math.ceil(0.1 * result.steps)
    assert (arguments["weight_decay"], arguments["max_grad_norm"]) == (0.02, 1.0)
    assert (arguments["seed"], arguments["data_seed"], arguments["per_device_train_batch_size"]) == (7, 7, 4)
    monkeypatch.setattr(training, "TrainingArguments", lambda **rest: seen.append(rest) or original(**rest))
    train(run_settings(rankings, encoder, tmp_path / "none", epochs=0.1))
    assert seen[-1]["report_to"] == "none"


def test_a_groups_judgements_weigh_one_together(tmp_path, encoder, steps):
    """One ranking of five beside pairs: the first loss is the mean over groups, as computed from the untouched model."""
    rows = [{"prompt": "what is it", "responses": [f"{g} answer" for g in "abcde"], "ranking": [1, 2, 3, 4, 5]}]
    rows += [
        {"prompt": f"what is {n}", "responses": [f"{g} {n}" for g in "ab"], "ranking": [2, 1]}
        for n in ("the", "a", "to")
    ]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    values = {"epochs": 0.5, "heldout_fraction": 0.0}
    result = train(run_settings(data, encoder, tmp_path / "out", **values))
    assert result.judgements == {"comparisons": 10 + 3, "labels": 0}
    model = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    losses = []
    for row in rows:
        inputs = tokenizer([row["prompt"]] * len(row["responses"]), row["responses"], padding=True, return_tensors="pt")
        with torch.inference_mode():
            rewards = model(**inputs).logits[:, 0].tolist()
        ranks = row["ranking"]
        edges = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        losses.append(sum(math.log1p(math.exp(rewards[j] - rewards[i])) for i, j in edges) / len(edges))
    assert steps[0][1] == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_the_settings_file_is_written_before_the_first_checkpoint(tmp_path, rankings, encoder, monkeypatch):
    restore = interrupt(monkeypatch, 0)
    settings = run_settings(rankings, encoder, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    restore()
    assert json.loads((tmp_path / "out/checkpoints/settings.json").read_text()) == settings.key()


def test_groups_are_cut_anew_every_epoch(tmp_path, rankings, encoder, monkeypatch):
    drawn = []
    original = training.Draws.__getitem__

    def spy(self, position):
        drawn.append((self.epoch, position, original(self, position).members))
        return original(self, position)

    monkeypatch.setattr(training.Draws, "__getitem__", spy)
    train(run_settings(rankings, encoder, tmp_path / "out", epochs=2, responses_per_group=3, heldout_fraction=0.0))
    first, second = ({(position, members) for at, position, members in drawn if at == epoch} for epoch in (0, 1))
    assert {epoch for epoch, *_ in drawn} == {0, 1}
    assert len(first) == len(second) == 48  # 24 groups of 5, in draws of 3 and 2
    assert first != second


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.03, 0.5, 1.0])
def test_every_step_moves_the_weights(tmp_path, rankings, encoder, warmup_fraction):
    rates = []
    settings = run_settings(rankings, encoder, tmp_path / "out", epochs=2, warmup_fraction=warmup_fraction)
    result = train(settings, lambda now: rates.append(now.learning_rate) if now.event == "log" else None)
    warmup = math.ceil(warmup_fraction * result.steps)
    assert len(rates) == result.steps
    assert min(rates) > 0
    assert max(rates) <= 3e-3
    assert rates[:warmup] == pytest.approx([3e-3 * (step + 1) / (warmup + 1) for step in range(warmup)])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[warmup:]))
    if warmup < result.steps:
        assert rates[warmup] == pytest.approx(3e-3)


def test_a_run_of_one_step_trains(tmp_path, rankings, encoder):
    """The only step is one of the warm-up."""
    result = train(run_settings(rankings, encoder, tmp_path / "out", epochs=0.1, groups_per_batch=24))
    assert result.steps == 1
    before, after = (load_file(path / "model.safetensors") for path in (encoder, tmp_path / "out"))
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        ({"report_to": ("tensorboard",)}, {"tensorboard", "tensorboardX"}, "run: pip install tensorboard"),
        ({"report_to": ("comet_ml",)}, {"comet_ml"}, "run: pip install comet-ml"),
        ({"report_to": ("dagshub",)}, {"mlflow"}, "needs mlflow, not installed; run: pip install mlflow"),
        ({"report_to": ("tensorbord",)}, set(), "unknown tracker 'tensorbord'; expected some of azure_ml, clearml"),
        (
            {"lora": {"rank": 2, "alpha": 4, "targets": "all-linear"}},
            {"peft"},
            r"train.lora needs peft, not installed; run: pip install 'bestkept\[lora\]'",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(tmp_path, monkeypatch, changes, missing, message):
    monkeypatch.setattr("rm.train.settings.find_spec", lambda name: None if name in missing else object())
    with pytest.raises(SettingsError, match=message):
        train(run_settings("nowhere.jsonl", tmp_path / "no-model", tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_either_package_writes_for_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("rm.train.settings.find_spec", lambda name: object() if name == "tensorboardX" else None)
    refuse_missing_packages(run_settings("a.jsonl", tmp_path, tmp_path, report_to=("tensorboard", "none")))


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "targets": ["q_proj"]}], ids=["full", "lora"])
@pytest.mark.parametrize("failing", ["evaluation", "tracker", "statistics"])
def test_the_model_is_saved_before_anything_else_can_fail(tmp_path, rankings, causal, monkeypatch, failing, lora):
    values = {"epochs": 1, "lora": lora, "checkpoint_every": 2}
    train(run_settings(rankings, causal, tmp_path / "whole", **values))

    def fail(*_, **__):
        raise ConnectionError("the service is down")

    if failing == "evaluation":
        monkeypatch.setattr(GroupTrainer, "evaluate", fail)
    elif failing == "tracker":
        original = ReportProgress.on_log

        def on_log(self, args, state, control, logs=None, **rest):
            if state.global_step == state.max_steps:
                fail()
            original(self, args, state, control, logs, **rest)

        monkeypatch.setattr(ReportProgress, "on_log", on_log)
    else:
        monkeypatch.setattr("rm.train.heldout.evaluate", fail)
    with pytest.raises(ConnectionError):
        train(run_settings(rankings, causal, tmp_path / "cut", **values))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_what_adapters_leave_as_it_is_has_sixteen_bits(tmp_path, rankings, kind, request, monkeypatch):
    """The frozen weights round to bfloat16, adapters and head do not; what is merged and saved is float32."""
    backbone = request.getfixturevalue(kind)
    kinds = {}
    original = GroupTrainer.training_step

    def spy(self, model, *rest):
        for value in model.model.base_model.parameters():
            kinds.setdefault(value.requires_grad, set()).add(value.dtype)
        return original(self, model, *rest)

    monkeypatch.setattr(GroupTrainer, "training_step", spy)
    lora = {"rank": 2, "alpha": 4, "targets": "all-linear"}
    values = {"lora": lora, "precision": "bfloat16", "learning_rate": 1e-2, "epochs": 2}
    result = train(run_settings(rankings, backbone, tmp_path / "out", **values))
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}
    assert result.heldout is not None
    before, after = (load_file(path / "model.safetensors") for path in (backbone, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {torch.float32}
    norms = [name for name in before if "norm" in name.lower() and "weight" in name]
    assert all(torch.equal(after[name], before[name].bfloat16().float()) for name in norms)
    changed = [name for name in before if (after[name] - before[name].bfloat16().float()).abs().max() > 1e-4]
    assert any("proj" in name or "query" in name for name in changed)
    # beyond what bfloat16 could hold: the adapters were added in float32
    assert any(not torch.equal(after[name], after[name].bfloat16().float()) for name in changed)


def test_rows_are_tried_as_training_computes_them(tmp_path, rankings, encoder, monkeypatch):
    seen = []

    def spy(model, **_):
        seen.append((torch.is_autocast_enabled(model.device.type), torch.get_autocast_dtype(model.device.type)))
        return False

    monkeypatch.setattr("rm.train.trained_model.enable_packing", spy)
    train(run_settings(rankings, encoder, tmp_path / "half", epochs=0.1, precision="bfloat16"))
    train(run_settings(rankings, encoder, tmp_path / "full", epochs=0.1))
    assert seen[0] == (True, torch.bfloat16)
    assert not seen[1][0]


def test_settings_that_came_later_leave_the_key_as_it_was():
    def key(**changes):
        return run_settings("a.jsonl", Path("model"), Path("out"), read_rows=None, **changes).key()

    assert key() == key(stress_prompts=5, checkpoint_every=3, foreign=None, length_balance=False)
    used = [key(length_balance=True), key(foreign={"per_group": 2}), key(seed=1)]
    used += [key(length_head={"correlation": 1.0}), key(language_loss={"weight": 1.0})]
    assert len({key(), *used}) == 6
