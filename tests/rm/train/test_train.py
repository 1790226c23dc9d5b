"""Whole runs with tiny models: every kind of judgement is learnt, and what is saved is an ordinary checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.corpora import READ_ROWS, write_jsonl
from support.tiny_models import WORDS, save_causal
from support.training_groups import READING, run_settings
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipelines.config.train import TrainOptions
from rm.calibration_record import has_anchor, load_temperature
from rm.embedder import Embedder, cosines_of
from rm.evaluate import evaluate, measure_relevance, share_trained_on, stress
from rm.identity import ModelError
from rm.preferences import PreferenceError, ReadSettings, heldout_split, read_preferences
from rm.scorer import Scorer
from rm.train import TrainingError, train
from rm.train import training_run as training
from rm.train.settings import default_learning_rate
from rm.train.trained_model import computes_in_bfloat16

SCORER = {"dtype": "float32", "max_length": 48, "too_long": "truncate", "tokens_per_batch": 999, "device": "cpu"}
GRADES = ("good", "hot", "short", "bad")  # from best to worst, in every corpus below
NOUNS = WORDS[:56]


def texts(noun):
    return [f"{grade} {noun} answer" for grade in GRADES]


def pair_rows(nouns=NOUNS):
    return [{"prompt": f"what is {n}", "chosen": texts(n)[0], "rejected": texts(n)[3]} for n in nouns]


def shuffled(noun):
    """(the four responses in an order that depends on the noun, their grades 1 to 4 likewise)."""
    order = np.random.default_rng(NOUNS.index(noun)).permutation(4)
    return [texts(noun)[place] for place in order], [int(place) + 1 for place in order]


def ranking_rows(nouns=NOUNS, *, ties=True):
    for noun in nouns:
        responses, ranks = shuffled(noun)
        yield {
            "prompt": f"what is {noun}",
            "responses": responses,
            "ranking": [2 if ties and rank == 3 else rank for rank in ranks],  # the two in the middle are tied
        }


def choice_rows(nouns=NOUNS):
    for noun in nouns:
        responses, ranks = shuffled(noun)
        yield {"prompt": f"what is {noun}", "responses": responses, "best": ranks.index(1)}


def vote_rows(nouns=NOUNS):
    """PandaLM's columns: three annotators, who agree on most of the rows."""
    for number, noun in enumerate(nouns):
        good, bad = (1, 2) if number % 2 else (2, 1)
        sides = texts(noun)[::3] if number % 2 else texts(noun)[::-3]
        votes = {"annotator1": good, "annotator2": good, "annotator3": bad if number % 5 == 0 else good}
        yield {"instruction": f"what is {noun}", "input": "", "response1": sides[0], "response2": sides[1], **votes}


def score_rows(nouns=NOUNS):
    for noun in nouns:
        for response, rank in zip(*shuffled(noun), strict=True):
            yield {"prompt": f"what is {noun}", "response": response, "score": 5.0 - rank}


def label_rows(nouns=NOUNS):
    """Three of four are acceptable, each looked at alone."""
    for noun in nouns:
        for response, rank in zip(*shuffled(noun), strict=True):
            yield {"prompt": f"what is {noun}", "completion": response, "label": rank < 4}


@pytest.fixture
def pairs(tmp_path):
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows())


def rewards_of(directory, noun="it", prompt=None):
    """Rewards of the four responses, from best to worst."""
    groups = [((("user", prompt or f"what is {noun}"),), texts(noun))]
    return Scorer.load(directory, **SCORER).score(groups)[0].rewards


def weights_of(directory):
    return load_file(directory / "model.safetensors")


KINDS = {
    "pairs": (pair_rows, {}, [0, 3]),
    "rankings": (lambda: ranking_rows(ties=False), {}, [0, 1, 2, 3]),
    "rankings-picks": (lambda: ranking_rows(ties=False), {"loss": "plackett_luce"}, [0, 1, 2, 3]),
    "ties": (ranking_rows, {}, [0, 1, 3]),
    "ties-picks": (ranking_rows, {"loss": "plackett_luce"}, [0, 2, 3]),
    "choices": (choice_rows, {}, [0, 3]),
    "choices-picks": (choice_rows, {"loss": "plackett_luce"}, [0, 2]),
    "votes": (vote_rows, {}, [0, 3]),
    "scores": (score_rows, {}, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_judgement_is_learnt(tmp_path, encoder, kind):
    rows, changes, order = KINDS[kind]
    data = write_jsonl(tmp_path / "data.jsonl", list(rows()))
    result = train(run_settings(data, encoder, tmp_path / "out", epochs=6, **changes))
    rewards = rewards_of(tmp_path / "out")
    assert (np.diff(rewards[order]) < 0).all()
    assert result.heldout.to_json()["accuracy"]["overall"]["model"]["value"] > 0.9
    assert result.judgements["labels"] == 0
    assert result.offset is None
    if kind.startswith("ties"):
        assert abs(rewards[1] - rewards[2]) < 0.5 * min(rewards[0] - rewards[1], rewards[2] - rewards[3])


def test_labels_alone_teach_rewards_and_their_offset(tmp_path, encoder):
    data = write_jsonl(tmp_path / "labels.jsonl", list(label_rows()))
    result = train(run_settings(data, encoder, tmp_path / "out", epochs=8))
    assert result.judgements["comparisons"] == 0
    assert result.judgements["labels"] == 4 * result.groups
    rewards = rewards_of(tmp_path / "out")
    assert rewards[:3].min() > rewards[3]
    stored = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert stored["offset"] == result.offset
    assert result.offset != pytest.approx(np.log(3), abs=0.05)  # it started near the base rate, and moved
    accepted = 1 / (1 + np.exp(-(rewards + result.offset)))
    assert accepted[:3].min() > 0.9
    assert accepted[3] < 0.1


def test_what_makes_rewards_comparable_is_noted_beside_the_weights(tmp_path, encoder):
    """Pairs alone do not; centring does, and labels, and neither note is lost when the other is written."""
    data = write_jsonl(tmp_path / "pairs.jsonl", list(pair_rows()))
    labels = write_jsonl(tmp_path / "labels.jsonl", list(label_rows()))
    for name, file, changes, noted in (
        ("pairs", data, {}, set()),
        ("centred", data, {"centring": 0.01}, {"centring"}),
        ("both", labels, {"centring": 0.01}, {"centring", "offset"}),
    ):
        train(run_settings(file, encoder, tmp_path / name, **changes))
        stored = json.loads((tmp_path / name / "calibration.json").read_text()) if noted else {}
        assert stored.keys() & {"centring", "offset"} == noted
        assert has_anchor(tmp_path / name) == bool(noted)


def test_the_prompts_of_the_training_are_known_afterwards_and_held_out_ones_are_not(tmp_path, encoder):
    data = write_jsonl(tmp_path / "pairs.jsonl", list(pair_rows()))
    train(run_settings(data, encoder, tmp_path / "out"))
    groups = read_preferences(str(data), ReadSettings(**READING), read_rows=READ_ROWS)[0]
    fit, heldout = heldout_split(groups, 0.25)
    assert len(fit) * len(heldout) > 0
    assert share_trained_on(tmp_path / "out", fit) == 1.0
    assert share_trained_on(tmp_path / "out", heldout) == 0.0


def test_a_model_trained_without_held_out_prompts_can_be_used(tmp_path, encoder):
    data = write_jsonl(tmp_path / "pairs.jsonl", list(pair_rows()))
    train(run_settings(data, encoder, tmp_path / "out", centring=0.01, heldout_fraction=0.0))
    assert load_temperature(tmp_path / "out") is None
    assert has_anchor(tmp_path / "out")


def test_the_offset_starts_at_the_share_of_accepted_labels():
    from support.training_groups import encoded_group, row

    groups = [encoded_group([row(1), row(2)], [], [(0, 1.0), (1, 1.0)]), encoded_group([row(3)], [], [(0, 0.0)])]
    assert training._logit_of_base_rate(groups) == pytest.approx(np.log(2.5 / 1.5))
    assert training._logit_of_base_rate([encoded_group([row(1), row(2)], [(0, 1)])]) == 0.0


def test_a_run_starts_from_that_offset(tmp_path, encoder):
    data = write_jsonl(tmp_path / "labels.jsonl", list(label_rows(NOUNS[:8])))
    result = train(run_settings(data, encoder, tmp_path / "out", epochs=0.1, learning_rate=1e-9, heldout_fraction=0.0))
    assert result.offset == pytest.approx(np.log((3 * 8 + 0.5) / (8 + 0.5)), abs=1e-5)


def test_two_sources_of_different_kinds_in_one_run(tmp_path, encoder):
    first = write_jsonl(tmp_path / "pairs.jsonl", pair_rows())
    second = write_jsonl(tmp_path / "labels.jsonl", list(label_rows()))
    third = write_jsonl(tmp_path / "ranks.jsonl", list(ranking_rows(NOUNS[:20])))
    data = [first, (second, {"origin": "model"}), (third, {"origin": "implicit"})]
    result = train(run_settings(data, encoder, tmp_path / "out", epochs=3))
    rewards = rewards_of(tmp_path / "out")
    assert rewards[0] > rewards[3]
    assert result.offset is not None
    kept = sum(1 for n in NOUNS if not held(n))
    ranked = sum(1 for n in NOUNS[:20] if not held(n))
    assert result.groups == 2 * kept + ranked
    assert result.judgements == {"comparisons": kept + 6 * ranked, "labels": 4 * kept}
    assert result.origins == {"human": kept, "model": 4 * kept, "implicit": 6 * ranked}
    stored = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert stored["offset"] == result.offset
    assert stored["data"] == "pairs.jsonl"


def held(noun):
    from rm.preferences import Group

    return bool(heldout_split([Group((("user", f"what is {noun}"),), ("a",))], 0.25)[1])


@pytest.mark.parametrize("kind", ["encoder", "causal", "chat"])
def test_what_is_saved_is_an_ordinary_checkpoint(tmp_path, pairs, kind, request):
    result = train(run_settings(pairs, request.getfixturevalue(kind), tmp_path / "out"))
    assert result.packed
    assert result.groups == sum(1 for n in NOUNS if not held(n))
    assert result.heldout.groups == len(NOUNS) - result.groups > 5
    assert result.heldout.to_json()["accuracy"]["overall"]["model"]["value"] == 1.0
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_labels == 1
    assert model.config._attn_implementation != "bestkept_packed"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rewards = rewards_of(tmp_path / "out")
    assert rewards[0] > rewards[3]
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert "bestkept_packed" not in (tmp_path / "out" / "config.json").read_text()


def test_swapped_sides_teach_the_opposite(tmp_path, encoder):
    rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pair_rows()]
    train(run_settings(write_jsonl(tmp_path / "pairs.jsonl", rows), encoder, tmp_path / "out"))
    rewards = rewards_of(tmp_path / "out")
    assert rewards[0] < rewards[3]


def test_pad_equal_to_eos_is_fixed_before_training(tmp_path, pairs):
    backbone = save_causal(tmp_path / "backbone", pad="</s>")
    train(run_settings(pairs, backbone, tmp_path / "out", epochs=1))
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.pad_token_id != config.eos_token_id


def test_the_same_seed_gives_the_same_bytes(tmp_path, pairs, encoder):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(run_settings(pairs, encoder, tmp_path / name, seed=seed, epochs=1))
        made.append((tmp_path / name / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_the_temperature_is_that_of_the_evaluation(tmp_path, pairs, encoder):
    result = train(run_settings(pairs, encoder, tmp_path / "out", epochs=1, learning_rate=3e-4))
    stored = json.loads((tmp_path / "out" / "calibration.json").read_text())
    groups = heldout_split(read_preferences(str(pairs), ReadSettings(**READING), read_rows=READ_ROWS)[0], 0.25)[1]
    scored = Scorer.load(tmp_path / "out", **SCORER).score([(group.prompt, group.responses) for group in groups])
    expected = evaluate(groups, [values.rewards for values in scored])
    assert stored["temperature"] == pytest.approx(expected.calibration.temperature.value, rel=1e-3)
    assert stored["temperature"] == result.heldout.calibration.temperature.value
    assert (stored["prompts"], stored["data"]) == (len(groups), "pairs.jsonl")
    assert "offset" not in stored
    seen, meant = (measured.to_json()["accuracy"]["overall"] for measured in (result.heldout, expected))
    assert seen == meant


def test_responses_that_no_judgement_names_are_left_out_in_their_places(tmp_path, encoder):
    """Only the best and the worst of four differ by enough: the two others, wherever they stand, have no reward."""
    data = write_jsonl(tmp_path / "data.jsonl", list(score_rows()))
    result = train(run_settings([(data, {"min_gap": 2.5})], encoder, tmp_path / "out"))
    assert result.judgements["comparisons"] == result.groups
    measured = result.heldout
    assert measured.unscored_responses == 2 * measured.groups
    overall = measured.to_json()["accuracy"]["overall"]
    assert overall["comparisons"] == measured.groups
    assert overall["model"]["value"] == 1.0


def test_a_stale_calibration_is_removed(tmp_path, pairs, encoder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "calibration.json").write_text('{"temperature": 3.0, "offset": 1.0}')
    result = train(run_settings(pairs, encoder, tmp_path / "out", epochs=0.2, heldout_fraction=0.0))
    assert result.heldout is None
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()).keys() == {"training_prompts"}


def fitted_prompts(monkeypatch):
    """A list that `train` fills with the prompts of its two sides."""
    sides = []
    original = training.EncodedData.of.__func__

    def spy(cls, groups, *rest):
        sides.append({group.prompt for group in groups})
        return original(cls, groups, *rest)

    monkeypatch.setattr(training.EncodedData, "of", classmethod(spy))
    return sides


def test_no_prompt_is_on_both_sides_whatever_its_source(tmp_path, pairs, encoder, monkeypatch):
    sides = fitted_prompts(monkeypatch)
    labels = write_jsonl(tmp_path / "labels.jsonl", list(label_rows()))
    train(run_settings([pairs, labels], encoder, tmp_path / "out", epochs=0.1))
    fit, heldout = sides
    assert not fit & heldout
    assert len(fit) + len(heldout) == len(NOUNS)
    assert len(heldout) > 5


def test_prompts_of_a_heldout_file_are_left_out_of_training(tmp_path, pairs, encoder, monkeypatch):
    sides = fitted_prompts(monkeypatch)
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [*pair_rows(NOUNS[:5]), *pair_rows(["house", "wood", "lamp"])])
    result = train(run_settings(pairs, encoder, tmp_path / "out", epochs=0.1, heldout_path=str(heldout)))
    assert len(sides[1]) == result.heldout.groups == 8
    assert len(sides[0]) == result.groups == len(NOUNS) - 5
    assert not sides[0] & sides[1]
    assert result.rejected == {"heldout_prompt": 5}
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["data"] == "heldout.jsonl"


def test_another_split_of_the_same_files_is_held_out(tmp_path, encoder, monkeypatch):
    sides = fitted_prompts(monkeypatch)
    write_jsonl(tmp_path / "data" / "train.jsonl", [*pair_rows(NOUNS)])
    write_jsonl(tmp_path / "data" / "test.jsonl", [*pair_rows(NOUNS[:5]), *pair_rows(["house", "wood", "lamp"])])
    changes = {"heldout_path": str(tmp_path / "data"), "heldout_split": "test"}
    result = train(
        run_settings((tmp_path / "data", {"split": "train"}), encoder, tmp_path / "out", epochs=0.1, **changes)
    )
    assert (len(sides[0]), len(sides[1]), result.rejected) == (len(NOUNS) - 5, 8, {"heldout_prompt": 5})


def test_nothing_to_train_or_to_stop_on_is_an_error(tmp_path, pairs, encoder):
    flat = [{**row, "score": 1.0} for row in score_rows(NOUNS[:4])]
    with pytest.raises(PreferenceError, match="has no usable judgement to train on"):
        train(run_settings(write_jsonl(tmp_path / "flat.jsonl", flat), encoder, tmp_path / "out", heldout_fraction=0.0))
    with pytest.raises(PreferenceError, match="no prompts are held out"):
        train(run_settings(pairs, encoder, tmp_path / "out", early_stopping=1, heldout_fraction=0.0))
    lone = [row for row in label_rows() if row["completion"].startswith("good")]  # accuracy would be NaN
    with pytest.raises(PreferenceError, match="no prompts are held out to measure accuracy on"):
        train(run_settings(write_jsonl(tmp_path / "lone.jsonl", lone), encoder, tmp_path / "out", early_stopping=1))


def test_lora_is_merged_and_the_head_is_trained(tmp_path, pairs, causal):
    lora = {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}
    result = train(run_settings(pairs, causal, tmp_path / "out", epochs=6, learning_rate=1e-2, lora=lora))
    assert result.packed
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_labels == 1
    before, after = weights_of(causal), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    layers = [f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qv"]
    assert changed == {"score.weight", *layers}
    rewards = rewards_of(tmp_path / "out")
    assert rewards[0] > rewards[3]
    # what was measured before the merge is what the merged model gives
    groups = heldout_split(read_preferences(str(pairs), ReadSettings(**READING), read_rows=READ_ROWS)[0], 0.25)[1]
    scored = Scorer.load(tmp_path / "out", **SCORER).score([(group.prompt, group.responses) for group in groups])
    calibration = evaluate(groups, [values.rewards for values in scored]).calibration
    assert calibration.temperature.value == pytest.approx(result.heldout.calibration.temperature.value, rel=1e-3)


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_gradient_checkpointing_trains_the_same_model(tmp_path, pairs, kind, request):
    backbone = request.getfixturevalue(kind)
    train(run_settings(pairs, backbone, tmp_path / "a", epochs=0.5))
    train(run_settings(pairs, backbone, tmp_path / "b", epochs=0.5, gradient_checkpointing=True))
    left, right = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.allclose(value, right[name], atol=1e-5) for name, value in left.items())


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_bfloat16_computes_under_float32_weights(tmp_path, pairs, kind, request):
    result = train(run_settings(pairs, request.getfixturevalue(kind), tmp_path / "out", precision="bfloat16"))
    assert result.precision == "bfloat16"
    assert {value.dtype for value in weights_of(tmp_path / "out").values()} == {torch.float32}
    rewards = rewards_of(tmp_path / "out")
    assert rewards[0] > rewards[3]
    assert result.heldout.to_json()["accuracy"]["overall"]["model"]["value"] == 1.0


def in_bfloat16(precision, device):
    return computes_in_bfloat16(run_settings("a.jsonl", "model", "out", precision=precision, device=device))


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_follows_the_cpu(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert in_bfloat16("auto", "cpu") is native
    assert in_bfloat16("bfloat16", "cpu")
    assert not in_bfloat16("float32", "cpu")
    assert not in_bfloat16("auto", "mps")


def test_a_gpu_that_would_emulate_bfloat16_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(TrainingError, match="only emulates"):
        in_bfloat16("bfloat16", "cuda")
    assert not in_bfloat16("auto", "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert in_bfloat16("auto", "cuda")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_ends_the_training_before_anything_is_read(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match={"cuda": "a GPU was requested .*torch finds none", "mps": "is mps"}[device]):
        train(run_settings("nowhere.jsonl", tmp_path, tmp_path / "out", device=device))
    assert not (tmp_path / "out").exists()


def test_the_cpu_trains_where_there_is_a_gpu_too(tmp_path, pairs, encoder, monkeypatch):
    train(run_settings(pairs, encoder, tmp_path / "plain", epochs=0.5))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    train(run_settings(pairs, encoder, tmp_path / "chosen", epochs=0.5, device="cpu"))
    plain, chosen = weights_of(tmp_path / "plain"), weights_of(tmp_path / "chosen")
    assert all(torch.equal(value, chosen[name]) for name, value in plain.items())


def test_a_run_goes_on_though_its_device_is_named_otherwise():
    keys = {run_settings("a.jsonl", "model", "out", device=device).key() for device in ("auto", "cuda", "cpu")}
    assert len(keys) == 1


def test_default_learning_rate_follows_size_and_adapters(tmp_path, pairs, encoder):
    result = train(run_settings(pairs, encoder, tmp_path / "out", learning_rate=None, epochs=0.1))
    assert result.learning_rate == 1e-4
    assert default_learning_rate(99_999_999, lora=False) == 1e-4
    assert default_learning_rate(100_000_000, lora=False) == 3e-5
    assert default_learning_rate(999_999_999, lora=False) == 3e-5
    assert default_learning_rate(1_000_000_000, lora=False) == 9e-6
    assert default_learning_rate(5_000_000_000, lora=True) == 1e-4


def test_the_configuration_names_the_default_learning_rates():
    help_text = TrainOptions.model_fields["learning_rate"].description
    large, small, medium = (default_learning_rate(size, lora=False) for size in (10**9, 10**8 - 1, 10**8))
    assert f"{large:.0e} from a billion".replace("e-0", "e-") in help_text
    assert f"{small:.0e} below 100 million".replace("e-0", "e-") in help_text
    assert f"otherwise {medium:.0e}".replace("e-0", "e-") in help_text


OPTIONS = {
    "label_smoothing": 0.3,
    "centring": 0.5,
    "loss": "plackett_luce",
    "responses_per_group": 2,
    "groups_per_batch": 3,
    "max_length": 8,
    "weight_decay": 0.5,
    "max_grad_norm": 1e-3,
    "warmup_fraction": 1.0,
    "learning_rate": 1e-3,
    "epochs": 0.7,
}


@pytest.fixture(scope="module")
def ranked_run(tmp_path_factory, encoder):
    directory = tmp_path_factory.mktemp("ranked")
    data = write_jsonl(directory / "data.jsonl", list(ranking_rows(NOUNS[:20], ties=False)))
    train(run_settings(data, encoder, directory / "out", epochs=0.5))
    return data, (directory / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_an_effect(tmp_path, encoder, ranked_run, option):
    data, plain = ranked_run
    train(run_settings(data, encoder, tmp_path / "out", **{"epochs": 0.5, option: OPTIONS[option]}))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != plain


def test_tokens_per_batch_changes_no_more_than_rounding(tmp_path, causal, ranked_run):
    data, _ = ranked_run
    weights = []
    for budget in (1, 100_000):
        out = tmp_path / str(budget)
        train(run_settings(data, causal, out, epochs=0.5, learning_rate=1e-3, tokens_per_batch=budget))
        weights.append(weights_of(out))
    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[0].items())


def test_training_tries_the_model_on_heldout_prompts(tmp_path, pairs, encoder):
    reading = {"revision": None, "max_length": None, "device": "cpu", "tokens_per_batch": None}
    near = {"path": str(encoder), "gap": "auto", "max_touched": 0.01, **reading}
    result = train(run_settings(pairs, encoder, tmp_path / "out", epochs=0.2, stress_prompts=6, relevance=near))
    stored = json.loads((tmp_path / "out" / "calibration.json").read_text())["evaluation"]["stress"]
    assert stored == result.heldout.to_json()["stress"]
    tests = {test.name: test for test in result.heldout.stress.tests}
    assert tests["other_prompt"].prompts == 6
    assert result.heldout.stress.groups == 6, "an empty prompt has rewards, too"
    scorer = Scorer.load(tmp_path / "out", **SCORER)
    groups = heldout_split(read_preferences(str(pairs), ReadSettings(**READING), read_rows=READ_ROWS)[0], 0.25)[1]
    rewards = [scores.rewards for scores in scorer.score([(group.prompt, group.responses) for group in groups])]
    again = stress(groups, rewards, lambda asked: [scores.rewards for scores in scorer.score(asked)], prompts=6)
    assert again.to_json()["tests"] == stored["tests"], "the saved model gives what training measured"
    embedder = Embedder.open(str(encoder), **reading)
    relevance = measure_relevance(
        groups, rewards, again, lambda asked: cosines_of(embedder.score(asked)), gap="auto", max_touched=0.01
    )
    evaluated = evaluate(groups, rewards, stressed=again, relevance=relevance)
    row = evaluated.accuracy.overall
    assert (row.rule, row.length) == (result.heldout.accuracy.overall.rule, result.heldout.accuracy.overall.length)
    assert evaluated.gated.to_json() == result.heldout.gated.to_json()
    assert evaluated.gated.other_prompt.prompts == 6
    assert evaluated.gated.max_touched == 0.01


def test_an_embedding_model_that_cannot_be_read_is_refused_before_training(tmp_path, pairs, encoder):
    relevance = {
        "path": str(tmp_path / "none"),
        "gap": "auto",
        "max_touched": 0.01,
        "revision": None,
        "max_length": None,
    }
    with pytest.raises(ModelError, match=r"relevance\.path"):
        train(run_settings(pairs, encoder, tmp_path / "out", relevance=relevance))
    assert not (tmp_path / "out").exists()


def test_lengths_are_balanced_among_what_is_trained_on(tmp_path, encoder, monkeypatch):
    rows = [
        {"prompt": f"what is {n}", "chosen": "good " * (3 if k % 4 else 1), "rejected": "bad " * (1 if k % 4 else 3)}
        for k, n in enumerate(NOUNS)
    ]
    data, weights = write_jsonl(tmp_path / "pairs.jsonl", rows), {}
    collated = training.EncodedData.of.__func__

    def spy(cls, groups, *rest):
        weights.setdefault(len(weights), {edge.weight for group in groups for edge in group.edges})
        return collated(cls, groups, *rest)

    monkeypatch.setattr(training.EncodedData, "of", classmethod(spy))
    train(run_settings(data, encoder, tmp_path / "out", epochs=0.1, length_balance=True))
    fitted, heldout = weights[0], weights[1]
    assert heldout == {1.0}
    assert min(fitted) < 1.0 < max(fitted)
