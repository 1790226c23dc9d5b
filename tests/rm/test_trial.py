"""The student of a trial: its layout, its steps, its likelihoods by hand, and fine-tunes that leave it as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_models import save_language_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rm.conversations import from_messages, from_response, with_tools
from rm.identity import ModelError
from rm.trial import Student, Tokens, Tuning, _looks_both_ways, into_steps

PROMPT = (("user", "what is it"),)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def student(directory):
    return Student.load(directory, max_length=64, device="cpu")


def test_responses_are_trained_with_the_token_that_ends_them(student):
    row = student.encode(PROMPT, "good answer")
    tokens = student.tokenizer.convert_ids_to_tokens(row.ids)
    assert student.layout == "chat"
    assert tokens[row.prompt :] == [
        "<|assistant|>",
        "good",
        "answer",
        "</s>",
    ]  # this template opens no answer by itself
    assert tokens[: row.prompt] == ["<s>", "<|user|>", "what", "is", "it", "</s>"]
    assert row.response == 4


def test_without_a_chat_template_prompts_are_plain_text_and_the_log_says_so(directory, tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = None
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    student = Student.load(tmp_path, max_length=64, device="cpu")
    assert student.layout == "plain"
    assert "no chat template: it reads the prompt as plain text" in caplog.text
    row = student.encode((*PROMPT, ("assistant", "good"), ("user", "is it")), "good answer")
    assert student.tokenizer.convert_ids_to_tokens(row.ids[row.prompt :]) == ["good", "answer", "</s>"]
    tools = [{"type": "function", "function": {"name": "a"}}]
    assert student.encode(with_tools(PROMPT, tools), "good") is None


def test_long_texts_are_cut_where_the_prompt_begins_and_the_response_ends(student):
    row = student.encode((("user", "the " * 100 + "day"),), "good " * 100)
    assert (len(row.ids), row.prompt) == (64, 32)
    tokens = student.tokenizer.convert_ids_to_tokens(row.ids)
    assert tokens[30:34] == ["day", "</s>", "<|assistant|>", "good"]
    assert tokens[-1] == "good"


@pytest.mark.parametrize("layout", ["chat", "plain"])
def test_special_tokens_that_a_text_spells_are_read_as_text(directory, layout):
    student = Student.load(directory, max_length=64, device="cpu")
    if layout == "plain":
        student.tokenizer.chat_template = None
    assert student.layout == layout
    tokens = ("</s>", "<|user|>", "<|assistant|>")
    special = set(student.tokenizer.convert_tokens_to_ids(tokens))
    plain = student.encode((("user", "what is it day"),), "good day answer")
    spelt = student.encode((("user", f"what is {' '.join(tokens)} it day"),), f"good {' '.join(tokens)} day answer")
    for row in (plain, spelt):  # only the template writes them
        counts = [sum(one in special for one in part) for part in (row.ids[: row.prompt], row.ids[row.prompt :])]
        assert counts == ([2, 2] if layout == "chat" else [0, 1])
    assert spelt.ids[-1] == student.tokenizer.eos_token_id


def test_steps_have_equal_tokens_to_within_a_row():
    rows = [Tokens([0] * (3 + size), 3) for size in (5, 3, 9, 4, 2, 7, 8, 1, 9, 9)]
    parts = into_steps(rows, 10, 4)
    assert [[row.response for row in part] for part in parts] == [[5, 3, 9], [4], [2, 7], [8, 1, 9]]
    with pytest.raises(ValueError, match="too few"):
        into_steps(rows, 10, 6)


def test_likelihoods_are_those_of_one_row_alone(student, directory):
    rows = [student.encode(PROMPT, text) for text in ("good", "bad answer to the day", "the " * 20)]
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    expected = []
    for row in rows:
        with torch.inference_mode():
            logs = model(torch.tensor([row.ids])).logits[0].log_softmax(1)
        expected.append(np.mean([logs[at - 1, row.ids[at]].item() for at in range(row.prompt, len(row.ids))]))
    assert student.log_likelihoods(rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_fine_tune_makes_its_responses_likelier_and_is_taken_off_again(student):
    rows = [student.encode((("user", f"what is {n}"),), "good answer to it") for n in range(24)]
    other = [student.encode(PROMPT, "bad reply")]
    before = student.log_likelihoods(rows[:4] + other)
    weights = {name: value.clone() for name, value in student.model.state_dict().items()}
    parts = into_steps(rows, 25, 5)
    tuned = []
    for seed in (0, 0, 1):
        with student.tuned(parts, Tuning(rank=4, learning_rate=2e-2, seed=seed)):
            tuned.append(student.log_likelihoods(rows[:4] + other))
        assert np.array_equal(student.log_likelihoods(rows[:4] + other), before)
    assert (tuned[0][:4] > before[:4] + 0.5).all()
    assert np.array_equal(tuned[0], tuned[1])
    assert not np.array_equal(tuned[0], tuned[2])
    after = student.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in after.items())


def test_answers_depend_on_the_seed_alone(student):
    prompts = [PROMPT, (("user", "how many long words can you write " * 3),), (("user", "day"),)]
    answers = [student.answers(prompts, seed=seed, most_tokens=5) for seed in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]
    assert len(answers[0]) == 3
    assert all(len(text.split()) <= 5 for text in answers[0])


def test_what_is_no_causal_language_model_is_refused(encoder, causal):
    with pytest.raises(ModelError, match=r"is not a causal language model|cannot be loaded as a causal"):
        Student.load(encoder, max_length=64, device="cpu")
    with pytest.raises(ModelError, match="lacks 1 of its weights"):
        Student.load(causal, max_length=64, device="cpu")


def opened_otherwise(student):
    """Give the student a template in which an answer does not begin as the opening of one, as Qwen3's does."""
    student.tokenizer.chat_template = (
        "{% for m in messages %}<|{{m.role}}|>{{m.content or ''}}{% for c in m.tool_calls or [] %} call {{c.function.name}}"
        "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|> good day{% endif %}"
    )
    return student


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "a", "arguments": {}}}],
}


def test_what_only_a_template_can_write_is_left_out(directory):
    student = opened_otherwise(Student.load(directory, max_length=64, device="cpu"))
    call = from_response([CALL], after=PROMPT, several=True)
    several = from_response(
        [CALL, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "it is 7"}],
        after=PROMPT,
        several=True,
    )
    assert student.encode(PROMPT, call) is None
    assert student.encode(PROMPT, several) is None
    assert student.encode(PROMPT, "good") is not None


def test_a_plain_student_reads_no_calls_and_no_results(directory):
    student = Student.load(directory, max_length=64, device="cpu")
    student.tokenizer.chat_template = None
    assert student.layout == "plain"
    two = from_response(
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], after=PROMPT, several=True
    )
    assert student.encode(PROMPT, two) is None
    turns = [("user", "what"), ("assistant", "hm"), ("tool", "7"), ("user", "and")]
    prompt = from_messages([{"role": role, "content": content} for role, content in turns])
    assert student.encode(prompt, "good") is None


def test_a_step_runs_in_batches_that_fit(student, monkeypatch):
    rows = [student.encode((("user", f"what is {'the ' * n}"),), "good answer") for n in range(12)]
    widths = []
    student.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    likelihoods = []
    for budget in (10_000, 60):
        monkeypatch.setattr("rm.trial._BATCH_TOKENS", budget)
        widths.clear()
        with student.tuned([rows], Tuning(rank=4, learning_rate=2e-2, seed=0)):
            assert max(count * width for count, width in widths) <= max(budget, 40)
            likelihoods.append(student.log_likelihoods(rows))
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=0.05)  # in 16 bits


def test_experts_do_not_look_ahead():
    from transformers import MixtralConfig

    for seed in range(10):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 4000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8}
        model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, **heads)).eval()
        assert not _looks_both_ways(model)
