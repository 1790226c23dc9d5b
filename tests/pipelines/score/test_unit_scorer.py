"""Score columns of one fragment: from a scorer, and from rewards that the rows carry."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpora import write_jsonl
from support.stubs import StubScorer, forget_units, stub_reward

from pipelines import plan as plans
from pipelines.corpus import split_units
from pipelines.corpus.columns.row_mapping import ParsedRow, RowMapping
from pipelines.corpus.fragments import Fragment, Row, groups_of
from pipelines.errors import ModelLoadError
from pipelines.plan import Plan, make_plans
from pipelines.runtime import progress
from pipelines.score import unit_scores
from pipelines.score.score_columns import GroupResult, score_columns, usable_rows
from pipelines.score.score_files import COLUMNS
from pipelines.score.transform import ScoreUnits
from pipelines.score.unit_scorer import UnitScorer, score_in_line
from pipelines.score.unit_scores import score_directories, scores_path
from rm.conversations import from_prompt, response_hash
from rm.scorer import GroupScores

MAPPING = RowMapping("prompt_response", "p", "r", carry=("author",))
PLAN = Plan((), MAPPING, 8, 2**20, {"dtype": "float32"}, {}, "f")
PROMPT = from_prompt("p")
KEY = bytes(range(16))


def row(number: int, *responses: str | None, prompt: bool = True, rewards=None) -> Row:
    """A row whose unusable responses, given as None, are empty."""
    reasons = ["empty_response" if response is None else None for response in responses]
    parsed = ParsedRow(PROMPT if prompt else None, list(responses), reasons)
    return Row(number, parsed, KEY if prompt else None, 10 + number, 0, 0, "web", (f"author {number}",), {}, rewards)


def fragment(*rows: Row) -> Fragment:
    return Fragment(0, list(rows), last=True)


def score_fragment(scorer, rows: Fragment, plan: Plan):
    return score_columns(rows, None if scorer is None else scorer.score(groups_of(usable_rows(rows))), plan)


def test_every_response_has_a_row_and_unusable_ones_keep_their_reasons():
    rows = fragment(row(0, "one two", None, "UNSCORABLE"), row(1, None, prompt=False), row(4, "three"))
    columns, tokens, _ = score_fragment(StubScorer(), rows, PLAN)
    assert columns.schema.names == [*COLUMNS.names, "carry.author"]
    assert columns.select(COLUMNS.names).schema == COLUMNS
    assert columns.drop_columns(["response_hash", "reward"]).to_pydict() == {
        "row": [0, 0, 0, 1, 4],
        "response_index": [0, 1, 2, 0, 0],
        "prompt_key": [KEY, KEY, KEY, None, KEY],
        "reason": [None, "empty_response", "nan_reward", "empty_response", None],
        "prompt_tokens": [1, 0, 1, 0, 1],
        "response_tokens": [2, 0, 1, 0, 1],
        "response_chars": [7, 0, 10, 0, 5],
        "row_bytes": [10, 10, 10, 11, 14],
        "truncated": [False] * 5,
        "source": ["web"] * 5,
        "carry.author": ["author 0"] * 3 + ["author 1", "author 4"],
    }
    texts = ["one two", None, "UNSCORABLE", None, "three"]
    assert columns["response_hash"].to_pylist() == [None if text is None else response_hash(text) for text in texts]
    one, three = (float(stub_reward(PROMPT, text)) for text in ("one two", "three"))
    assert columns["reward"].to_pylist() == [one, None, None, None, three]
    assert tokens == 3 + 4


def test_carried_rewards_have_no_tokens_and_a_missing_one_is_a_rejection():
    rows = fragment(row(0, "a", None, "b", rewards=(1.5, 7.0, None)), row(1, "c", rewards=(-2.0,)))
    columns, tokens, _ = score_fragment(None, rows, PLAN)
    assert columns["reward"].to_pylist() == [1.5, None, None, -2.0]
    assert columns["reason"].to_pylist() == [None, "empty_response", "no_reward", None]
    assert columns["response_tokens"].to_pylist() == [0] * 4
    assert tokens == 0


def test_an_empty_fragment_has_all_columns():
    columns, tokens, _ = score_fragment(StubScorer(), fragment(), PLAN)
    assert columns.schema.names == [*COLUMNS.names, "carry.author"]
    assert (columns.num_rows, tokens) == (0, 0)


def test_a_scorer_that_loses_a_response_is_an_error():
    class Short(StubScorer):
        def score(self, groups):
            return super().score([(prompt, texts[1:]) for prompt, texts in groups])

    with pytest.raises(ValueError, match="expected 2 items"):
        score_fragment(Short(), fragment(row(0, "a", "b")), PLAN)

    class Fewer(StubScorer):
        def score(self, groups):
            return super().score(groups[1:])

    with pytest.raises(ValueError, match="shorter"):
        score_fragment(Fewer(), fragment(row(0, "a"), row(1, "b")), PLAN)


@pytest.mark.parametrize(("responses", "broken"), [(15, False), (16, True)])
def test_a_model_without_any_reward_is_to_blame(responses, broken):
    rows = fragment(*(row(number, "UNSCORABLE") for number in range(responses)))
    if broken:
        with pytest.raises(ModelLoadError, match=r"gives NaN for every response of a fragment \(16 responses\)"):
            score_fragment(StubScorer(), rows, PLAN)
    else:
        assert score_fragment(StubScorer(), rows, PLAN)[0]["reason"].to_pylist() == ["nan_reward"] * responses
    rows = replace(rows, rows=[*rows.rows, row(99, "fine")])
    assert score_fragment(StubScorer(), rows, PLAN)[0]["reward"].null_count == responses


def test_a_group_result_has_no_reward_where_it_has_a_reason():
    scores = GroupScores.empty(2)._replace(rewards=np.array([0.5, np.nan], np.float32), reasons=[None, "too_long"])
    result = GroupResult.of(scores)
    assert result == GroupResult([0.5, None], [None, "too_long"], [0, 0], [0, 0], [False, False])
    assert GroupResult.of(result) is result


class Preparing(StubScorer):
    """Scores a fragment only once the next one is prepared."""

    def __init__(self):
        super().__init__()
        self.prepared, self.scored = [threading.Event() for _ in range(4)], []

    def prepare(self, groups):
        groups = tuple(groups)  # another type, so that it is known again
        self.prepared[int(groups[0][1][0].split()[1])].set()
        return groups

    def score(self, groups, following=lambda: None):
        number = int(groups[0][1][0].split()[1])
        if number < 3:
            assert self.prepared[number + 1].wait(30)
            deadline = time.monotonic() + 30
            while (then := following()) is None and time.monotonic() < deadline:
                time.sleep(0.001)
            assert int(then[0][1][0].split()[1]) == number + 1
        else:
            assert following() is None
        self.scored.append((number, type(groups)))
        return super().score(groups)


def test_the_next_fragment_is_read_and_prepared_while_one_is_scored(tmp_path, make_config):
    rows = [{"prompt": f"p {number // 2}", "response": f"r {number // 2} {number}"} for number in range(8)]
    config = make_config(write_jsonl(tmp_path / "in.jsonl", rows), input={"rows_per_fragment": 2})
    plan, scorer = make_plans(config).whole, Preparing()
    [unit] = split_units(plan.files[0])
    unit_scorer = UnitScorer(plan, score_directories(config), lambda *_: scorer)
    scorer.prepared[
        1
    ].set()  # it may be read before there is a scorer, and is then prepared when that asks what follows
    files = list(unit_scorer.score_unit(0, unit, []))
    assert scorer.scored == [(0, list), (1, tuple), (2, tuple), (3, tuple)]
    assert [(file.footer.fragment, file.footer.scored) for file in files] == [(number, 2) for number in range(4)]
    assert list(unit_scorer.score_unit(0, unit, [])) == files  # found, and neither prepared nor scored
    assert len(scorer.scored) == 4


def test_a_unit_is_begun_before_the_one_before_it_is_scored(tmp_path, make_config):
    """The first fragment of a file is prepared while the last of another one is scored, and is what its device goes on with."""
    for number in range(4):
        rows = [{"prompt": f"p {number}", "response": f"r {number} {place}"} for place in range(2)]
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows)
    config = make_config(tmp_path / "in" / "*.jsonl")
    plan, scorer = make_plans(config).whole, Preparing()
    unit_scorer = UnitScorer(plan, score_directories(config), lambda *_: scorer)
    units = [(number, unit) for number, file in enumerate(plan.files) for unit in split_units(file)]
    assert len(units) == 4
    scorer.prepared[1].set()  # it is read before there is a scorer, and prepared when that asks what follows
    files = list(score_in_line(unit_scorer.begin_unit(number, unit, []) for number, unit in units))
    assert scorer.scored == [(0, list), *((number, tuple) for number in range(1, 4))]
    assert [(file.file, file.footer.scored) for file in files] == [(number, 2) for number in range(4)]


class Stripes:
    """A corpus of one row group with eleven fragments, scored in stripes."""

    def __init__(self, root: Path, make_config, monkeypatch, rows: int = 32, rows_per_fragment: int = 3):
        texts = {name: [f"{name} {number}" for number in range(rows)] for name in ("prompt", "response")}
        pq.write_table(pa.table(texts), root / "in.parquet")
        settings = {"input": {"rows_per_fragment": rows_per_fragment}, "scores": {"path": str(root / "scores")}}
        self.config = make_config(root / "in.parquet", select=[{"near_duplicates": {}}], **settings)
        self.plan, self.scorer, self.decoded = make_plans(self.config).whole, StubScorer(), 0
        [self.unit] = split_units(self.plan.files[0])
        forget_units()

        def counted(*arguments, **named):
            self.decoded += 1
            return read(*arguments, **named)

        read = plans.read_raw_fragments
        monkeypatch.setattr(plans, "read_raw_fragments", counted)

    def score(self, stripes: int, order, **limits) -> list:
        """Score stripes in this order; the descriptors of all fragments."""
        self.decoded = self.scorer.calls = 0
        forget_units()
        progress.reset()
        limited = self.config.limits.model_copy(update=limits)
        scorer = UnitScorer(self.plan, score_directories(self.config), lambda *_: self.scorer, limits=limited)
        files, existing = [], scorer.read_leading(0, self.unit)
        for stripe in order:
            part = {"stripe": stripe, "stripes": stripes}
            files += scorer.score_unit(0, self.unit, existing, **part)
        return sorted(files, key=lambda file: file.footer.fragment)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}


@pytest.fixture
def corpus(tmp_path, make_config, monkeypatch) -> Stripes:
    return Stripes(tmp_path, make_config, monkeypatch)


@pytest.mark.parametrize("stripes", [4, 20])
def test_stripes_give_the_files_of_the_unit_and_decode_it_once(corpus, tmp_path, stripes):
    whole = corpus.score(1, [0])
    assert (corpus.scorer.calls, corpus.decoded, len(whole)) == (11, 1, 11)
    expected = contents(tmp_path / "scores")
    for path in (tmp_path / "scores").rglob("*.parquet"):
        path.unlink()
    assert corpus.score(stripes, reversed(range(stripes))) == whole
    assert contents(tmp_path / "scores") == expected
    assert (corpus.scorer.calls, corpus.decoded) == (11, 1)
    assert progress.current().input_bytes == corpus.unit.input_bytes
    # all is there: nothing is read, whichever stripe holds the last fragment, or none
    for again in (stripes, 1, 3):
        assert corpus.score(again, range(again)) == whole
        assert (corpus.scorer.calls, corpus.decoded) == (0, 0)
        now = progress.current()
        assert (now.found, now.found_bytes) == (11, corpus.unit.input_bytes)
    corpus.score(3, range(3), verify=True)
    assert (corpus.scorer.calls, corpus.decoded) == (0, 1)


def test_score_files_are_looked_for_once_for_all_stripes(corpus, monkeypatch):
    whole = corpus.score(1, [0])
    looked: list[str] = []
    read = unit_scores.score_files.read
    monkeypatch.setattr(unit_scores.score_files, "read", lambda path: (looked.append(path), read(path))[1])
    path = make_plans(corpus.config).save(scores_path(corpus.config)).members[0]
    score = ScoreUnits(path, score_directories(corpus.config), lambda _: corpus.scorer)
    found = [
        run for stripe in range(4) for run in score.begin_unit(0, corpus.unit, stripe=stripe, stripes=4).score_files()
    ]
    assert sorted(found, key=lambda file: file.footer.fragment) == whole
    assert sorted(looked) == sorted(
        {file.path for file in whole} | {side.path for file in whole for side in file.sides}
    )


@pytest.mark.parametrize("missing", [[0], [10], [1, 2, 9]])
def test_stripes_score_what_is_missing_alone(corpus, tmp_path, missing):
    whole = corpus.score(1, [0])
    expected = contents(tmp_path / "scores")
    for number in missing:
        Path(whole[number].path).unlink()
    assert corpus.score(4, [3, 1, 0, 2]) == whole
    assert contents(tmp_path / "scores") == expected
    assert (corpus.scorer.calls, corpus.decoded) == (len(missing), 1)
    now = progress.current()
    assert (now.found, now.fragments) == (11 - len(missing), 11)


def test_stripes_make_missing_side_files(corpus, tmp_path):
    whole = corpus.score(1, [0])
    expected = contents(tmp_path / "scores")
    Path(whole[7].sides[0].path).unlink()
    assert corpus.score(4, range(4)) == whole
    assert contents(tmp_path / "scores") == expected
    assert (corpus.scorer.calls, corpus.decoded) == (0, 1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_stripes_in_any_order_give_every_fragment_once(make_config, tmp_path, data):
    """However many there are, whoever was interrupted where, whatever was removed."""
    rows, rows_per_fragment = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 8))
    stripes = data.draw(st.integers(1, 9))
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        corpus = Stripes(root, make_config, patch, rows, rows_per_fragment)
        whole = corpus.score(1, [0])
        expected, fragments = contents(root / "scores"), -(-rows // rows_per_fragment)
        missing = data.draw(st.sets(st.integers(0, fragments - 1)))
        for number in missing:
            Path(whole[number].path).unlink()
        for number in data.draw(st.sets(st.integers(0, fragments - 1))):
            Path(whole[number].sides[0].path).unlink()
        assert corpus.score(stripes, data.draw(st.permutations(range(stripes)))) == whole
        assert contents(root / "scores") == expected
        assert (corpus.scorer.calls, corpus.decoded <= 1) == (len(missing), True)
        now = progress.current()
        assert (now.found, now.fragments) == (fragments - len(missing), fragments)
        assert now.found_responses + now.published == rows
