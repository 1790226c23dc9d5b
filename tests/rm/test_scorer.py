from __future__ import annotations

import numpy as np
import pytest
import torch
from support.scorers import load, some_groups
from support.tiny_models import WORDS, save_causal
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm.engine.device import DeviceError
from rm.scorer import ModelError, Scorer

PROMPT = (("user", "what is the answer"),)
OTHER = (("user", "the word of him"),)


def plain_reward(directory, template, prompt, response) -> float:
    """The rewards of the checkpoint by transformers alone, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    first, second = template.render(prompt, response)
    inputs = tokenizer(first, second, return_tensors="pt", add_special_tokens=template.kind != "chat")
    with torch.inference_mode():
        return model(**inputs).logits[0, 0].item()


@pytest.mark.parametrize("kind", ["encoder", "causal", "chat"])
@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10_000])
def test_equals_one_by_one_scoring_in_order(kind, tokens_per_batch, request):
    directory = request.getfixturevalue(kind)
    scorer, groups = load(directory, tokens_per_batch=tokens_per_batch), some_groups()
    results = scorer.score(groups)
    expected = [
        [plain_reward(directory, scorer.template, prompt, response) for response in responses]
        for prompt, responses in groups
    ]
    spread = np.std(np.concatenate([np.array(values) for values in expected]))
    assert spread > 0.05, "a model without spread would pass any comparison"
    assert [len(result.rewards) for result in results] == [len(responses) for _, responses in groups]
    for result, values in zip(results, expected, strict=True):
        assert result.rewards.dtype == np.float32
        tolerance = 1e-5 * spread + 8 * np.spacing(np.abs(np.float32(values)))
        assert np.all(np.abs(result.rewards - np.float32(values)) <= tolerance)
        assert result.reasons == [None] * len(values)


def test_pad_equal_to_eos_scores_as_transformers_does_for_one_row(tmp_path):
    directory = save_causal(tmp_path / "model", pad="</s>")
    scorer, groups = load(directory), some_groups(4)
    expected = np.array(
        [plain_reward(directory, scorer.template, prompt, r) for prompt, responses in groups for r in responses],
        dtype=np.float32,
    )
    rewards = np.concatenate([result.rewards for result in scorer.score(groups)])
    allowed = 1e-5 * expected.std() + 8 * np.spacing(np.abs(expected)).max()  # a batch rounds unlike a lone row
    assert np.abs(rewards - expected).max() <= allowed


def test_exact_duplicates_are_forwarded_once(encoder):
    scorer = load(encoder)
    single = scorer.score([(PROMPT, ["good"])])[0].rewards[0]
    forwarded = []
    scorer.on_batch = forwarded.append
    results = scorer.score([(PROMPT, ["good", "good"]), (OTHER, []), (PROMPT, ["good"])])
    assert [(work.rows, work.read_tokens) for work in forwarded] == [(1, 8)]
    assert [reward for result in results for reward in result.rewards] == [single] * 3


def test_work_is_counted(causal, encoder, monkeypatch):
    """Tokens by hand: prompts of 4, responses of 1, 3 and 1, each with eos; the first two share prompt and "good"."""
    work = []
    scorer = load(causal)
    scorer.on_batch = work.append
    scorer.score([(PROMPT, ["good", "good good bad"]), (OTHER, ["bad"])])
    [done] = work
    assert (done.rows, done.read_tokens, done.computed_tokens, done.padding_tokens) == (3, 6 + 8 + 6, 5 + 1 + 3 + 6, 0)
    weights = sum(p.numel() for n, p in scorer.model.model.named_parameters() if "embed" not in n)
    assert done.flops == 2 * weights * done.computed_tokens
    assert done.secs > 0
    assert done.peak_flops == 0  # not known for a CPU
    monkeypatch.setattr("rm.scorer.peak_flops", lambda device, dtype: 1e12)
    scorer.score([(PROMPT, ["good"])])
    assert work[-1].peak_flops == pytest.approx(1e12 * work[-1].secs)
    work.clear()
    padded = load(encoder)
    padded.packed, padded.on_batch = False, work.append
    padded.model.model.set_attn_implementation("sdpa")
    padded.score([(PROMPT, ["good", "good good bad"])])
    [done] = work
    assert (done.rows, done.read_tokens, done.computed_tokens, done.padding_tokens) == (2, 8 + 10, 20, 2)


def test_nothing_to_score(encoder):
    assert load(encoder).score([]) == []
    empty = load(encoder).score([(PROMPT, [])])
    assert len(empty) == 1
    assert empty[0].rewards.shape == (0,)


def test_rejections_stand_beside_scored_neighbours(encoder):
    scorer = load(encoder, max_length=12, too_long="reject")
    short, long = "good", " ".join(WORDS[:30])
    result = scorer.score([(PROMPT, [short, long, short])])[0]
    alone = load(encoder, max_length=12, too_long="reject").score([(PROMPT, [short])])[0]
    assert result.reasons == [None, "too_long", None]
    assert np.isnan(result.rewards[1])
    assert result.rewards[0] == result.rewards[2] == alone.rewards[0]


def test_an_unusable_text_is_rejected_wherever_it_stands(encoder):
    scorer = load(encoder, max_length=12, too_long="reject")
    short, long = "good day", " ".join(WORDS[:40])
    results = scorer.score([(PROMPT, [long, short, long]), (PROMPT, [long])])
    assert [result.reasons for result in results] == [["too_long", None, "too_long"], ["too_long"]]


def test_truncation_is_flagged_and_counted_in_tokens(encoder):
    result = load(encoder, max_length=12).score([(PROMPT, ["good", " ".join(WORDS[:30])])])[0]
    assert result.truncated.tolist() == [False, True]
    assert (result.prompt_tokens + result.response_tokens).tolist() == [8, 12]


def test_nan_rewards_are_rejected(encoder):
    scorer = load(encoder)
    with torch.no_grad():
        scorer.model.model.classifier.weight.fill_(float("nan"))
    result = scorer.score([(PROMPT, ["good"])])[0]
    assert result.reasons == ["nan_reward"]


def failing(scorer, monkeypatch, problem):
    """Let the scorer's forward raise `problem(rows, computed tokens)` where that gives an error; sizes tried so far."""
    sizes = []
    for way in ("_forward_packed", "_forward_padded"):
        original = getattr(scorer, way)

        def forward(rows, batch, original=original):
            sizes.append(scorer._cost(rows, batch))
            error = problem([rows[row] for run in batch for row in run], sizes[-1])
            if error is not None:
                raise error
            return original(rows, batch)

        monkeypatch.setattr(scorer, way, forward)
    return sizes


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.reasons == other.reasons
        assert one.rewards == pytest.approx(other.rewards, abs=1e-5, nan_ok=True)


MEMORY = [
    torch.OutOfMemoryError("none left"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("kind", ["encoder", "causal", "padded"])
@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_and_remembers(kind, error, request, monkeypatch, caplog):
    directory = request.getfixturevalue("encoder" if kind == "padded" else kind)
    expected = load(directory).score(some_groups())
    scorer = load(directory, tokens_per_batch=1000)
    if kind == "padded":
        scorer.packed = False
        scorer.model.model.set_attn_implementation("sdpa")
    limit = 60
    sizes = failing(scorer, monkeypatch, lambda rows, tokens: error if tokens > limit else None)
    assert_equal(scorer.score(some_groups()), expected)
    assert limit // 3 < scorer.tokens_per_batch < 2 * limit
    assert max(sizes) > limit, "the budget was never exceeded, so nothing was tested"
    assert "out of memory: from now on batches have at most" in caplog.text
    sizes.clear()
    scorer.score(some_groups())
    assert max(sizes) <= limit  # it is remembered


def test_a_row_that_never_fits_is_rejected_alone(causal, monkeypatch):
    scorer = load(causal)
    groups = [(PROMPT, ["good", "bad " * 20, "good bad"]), (OTHER, ["good"])]
    expected = scorer.score(groups)
    failing(scorer, monkeypatch, lambda rows, tokens: MEMORY[0] if tokens > 20 else None)
    results = scorer.score(groups)
    assert results[0].reasons == [None, "out_of_memory", None]
    assert np.isnan(results[0].rewards[1])
    assert results[0].rewards[[0, 2]] == pytest.approx(expected[0].rewards[[0, 2]], abs=1e-5)
    assert results[1].rewards == pytest.approx(expected[1].rewards, abs=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_a_row_that_breaks_the_model_is_found_and_rejected(kind, request, monkeypatch, caplog):
    scorer = load(request.getfixturevalue(kind))
    groups = [*some_groups(), (PROMPT, ["good", "bad bad bad", "good bad"])]
    expected = scorer.score(groups)
    broken = scorer.template.encode(PROMPT, "bad bad bad").ids
    failing(scorer, monkeypatch, lambda rows, _: IndexError("row text") if any(r.ids == broken for r in rows) else None)
    results = scorer.score(groups)
    assert results[-1].reasons == [None, "model_error", None]
    assert_equal(results[:-1], expected[:-1])
    assert results[-1].rewards[[0, 2]] == pytest.approx(expected[-1].rewards[[0, 2]], abs=1e-5)
    assert f"the model fails on a row of {len(broken)} tokens (IndexError)" in caplog.text
    assert "row text" not in caplog.text


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: unspecified launch failure"), RuntimeError("the model has broken")]
)
def test_a_device_that_breaks_is_no_row_s_fault(causal, monkeypatch, error):
    scorer = load(causal)
    scorer.score([(PROMPT, ["good"])])
    failing(scorer, monkeypatch, lambda rows, _: error)
    with pytest.raises(DeviceError, match=type(error).__name__):
        scorer.score(some_groups())


def test_a_device_that_breaks_at_the_first_batch_is_not_asked_again(causal, monkeypatch):
    scorer = load(causal)
    tried = failing(scorer, monkeypatch, lambda *_: torch.AcceleratorError("CUDA error: unspecified launch failure"))
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        scorer.score(some_groups())
    assert len(tried) == 1


@pytest.mark.parametrize(
    "trial",
    ["rm.engine.packed_forward.packed_rewards", "rm.together._rewards_alone", "rm.scorer_memory.measure_memory"],
)
def test_a_device_that_breaks_in_a_trial_at_load_rules_no_way_out(encoder, monkeypatch, trial):
    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(trial, fail)
    if "together" in trial:
        monkeypatch.setattr("rm.scorer.enable_packing", lambda *_, **__: False)
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        load(encoder)


def test_rows_of_one_prompt_share_it_wherever_they_stand(causal):
    """A corpus of one response a row, its prompts interleaved, costs what the same in groups costs."""
    prompts = [(("user", f"{word} " * 20),) for word in ("long", "make", "thing")]
    responses = [f"good {word}" for word in WORDS[:8]]
    groups = [(prompt, responses) for prompt in prompts]
    rows = [(prompt, [response]) for response in responses for prompt in prompts]
    computed = []
    for corpus in (groups, rows):
        scorer, work = load(causal), []
        scorer.on_batch = work.append
        rewards = [result.rewards for result in scorer.score(corpus)]
        computed.append(sum(done.computed_tokens for done in work))
        if corpus is groups:
            expected = np.stack(rewards)
    assert pytest.approx(expected, abs=1e-5) == np.concatenate(rewards).reshape(8, 3).T
    assert computed[0] == computed[1]
    assert computed[0] < 3 * (21 + 8 * 4)


def test_a_response_that_does_not_fit_leaves_the_others_their_prompt(causal):
    """It is scored with the left of its prompt cut off, and so has nothing in common with them at the front."""
    prompt, short = (("user", "the " * 20),), ["good day", "a bad way", "some word"]
    scorer, work = load(causal, max_length=40), []
    scorer.on_batch = work.append
    (alone,) = scorer.score([(prompt, short)])
    computed = work.pop().computed_tokens
    (result,) = scorer.score([(prompt, [short[0], "hot " * 30, *short[1:]])])
    assert result.truncated.tolist() == [False, True, False, False]
    assert work.pop().computed_tokens == computed + 40
    np.testing.assert_allclose(result.rewards[[0, 2, 3]], alone.rewards, rtol=0, atol=1e-5)


def test_a_group_that_is_cut_together_shares_its_prompt_whatever_the_windows(causal):
    prompt, responses = (("user", "the " * 30 + "good " * 20),), ["good day", "hot " * 12, "a bad way", *WORDS[:30]]
    rewards = []
    for budget in (40, 1000):
        scorer, work = load(causal, max_length=40, too_long="truncate_group", tokens_per_batch=budget), []
        scorer.on_batch = work.append
        (result,) = scorer.score([(prompt, responses)])
        assert result.truncated.all()
        assert len(set(result.prompt_tokens.tolist())) == 1
        rewards.append(result.rewards)
    computed, read = (sum(getattr(done, name) for done in work) for name in ("computed_tokens", "read_tokens"))
    assert read - computed > (len(responses) - 1) * (result.prompt_tokens[0] - 3)  # the prompt ran once
    np.testing.assert_allclose(*rewards, rtol=0, atol=1e-5)


def test_a_cut_group_s_prefix_is_repeated_and_the_budget_kept(causal):
    scorer, work = load(causal, tokens_per_batch=40, max_length=128), []
    scorer.on_batch = work.append
    groups = [((("user", "long " * 20),), [f"{word} good" for word in WORDS[:20]])]
    expected = load(causal, tokens_per_batch=1000, max_length=128).score(groups)
    assert scorer.score(groups)[0].rewards == pytest.approx(expected[0].rewards, abs=1e-5)
    assert max(done.computed_tokens for done in work) <= 40
    assert 2 <= len(work) <= 5


def test_bfloat16_on_a_gpu_that_emulates_it_is_refused(causal, monkeypatch):
    monkeypatch.setattr("rm.scorer.native_bfloat16", lambda device: False)
    with pytest.raises(ModelError, match="only emulates bfloat16; use float16, float32 or auto"):
        Scorer.load(causal, dtype="bfloat16", max_length=64, too_long="truncate", tokens_per_batch=None, device="cuda")
