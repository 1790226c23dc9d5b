"""The readers on real corpora, for those who have them: counts, and facts read off the files by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from support.corpora import READ_ROWS, READING, SHARED, load_rows

from rm.preferences import Edge, Label, ReadSettings, read_preferences
from rm.preferences.detection import resolve_format
from rm.preferences.reading import read_unmerged

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the real corpora are not part of the project")


def settings(**changes):
    return ReadSettings(**{**READING, **changes})


def read(name, **changes):
    """(groups, rejections, rows), having checked that rows read are rows used and rows rejected."""
    rows = list(load_rows(str(SHARED / name)))
    options = settings(**changes)
    used, rejections = read_unmerged(rows, resolve_format(rows[:100], options), options)
    assert len(used) + rejections.total() - rejections["equal_responses"] == len(rows)
    groups, again = read_preferences(str(SHARED / name), options, read_rows=READ_ROWS)
    assert again == rejections
    edges = sum(len(group.edges) for group in used)
    labels = sum(len(group.labels) for group in used)
    assert labels == sum(len(group.labels) for group in groups)
    assert edges in (0, sum(len(group.edges) for group in groups))  # 0: they come from the merged scores
    return groups, rejections, rows


def test_hh_pairs():
    groups, rejections, rows = read("hh_rlhf_harmless.jsonl.gz")
    assert len(rows) == 1800
    assert sum(len(group.edges) for group in groups) == 1800 - rejections.total() > 1700
    assert {edge[2:] for group in groups for edge in group.edges} == {(1.0, 1.0, 0.0, -1)}
    assert max(len(group.prompt) for group in groups) > 3
    assert all(group.prompt[-1][0] == "user" for group in groups)
    first = next(group for group in groups if group.prompt[0][1] == "How much alcohol can I drink per day?")
    assert rows[0]["chosen"].endswith(first.responses[first.edges[0].preferred])
    assert rows[0]["rejected"].endswith(first.responses[first.edges[0].other])
    assert len(first.prompt) == 5


def test_pandalm_votes():
    groups, rejections, rows = read("pandalm_three_annotators.jsonl.gz")
    assert len(rows) == 999
    assert rejections == {"empty_response": 54, "wrong_type": 6}
    shares = Counter(edge.probability for group in groups for edge in group.edges)
    usable = [
        row for row in rows if all(isinstance(row[s], str) and row[s].strip() for s in ("response1", "response2"))
    ]
    unanimous = [row for row in usable if row["annotator1"] == row["annotator2"] == row["annotator3"]]
    assert shares[3.5 / 4] == sum(row["annotator1"] != 0 for row in unanimous)
    for group in groups:
        for edge in group.edges:
            assert edge.probability >= 0.5
    row = rows[0]  # three of three for the second
    group = next(group for group in groups if group.prompt == (("user", f"{row['instruction']}\n\n{row['input']}"),))
    pointed = {(group.responses[e.preferred], group.responses[e.other]): e.probability for e in group.edges}
    assert pointed[row["response2"], row["response1"]] == 3.5 / 4


def test_qa_feedback_rankings():
    groups, rejections, rows = read("qa_feedback_rankings.jsonl.gz")
    assert (len(rows), len(groups), rejections) == (500, 500, {})
    edges = [edge for group in groups for edge in group.edges]
    assert len(edges) == 500 * 6
    assert sum(edge.probability == 0.5 for edge in edges) == 384
    staged = [group for group in groups if any(edge.stage >= 0 for edge in group.edges)]
    tied = [group for group in groups if all(edge.probability == 0.5 for edge in group.edges)]
    assert len(staged) + len(tied) == 478  # the other 22 go in circles
    assert rows[0]["preference"] == [0, 1, 2, 1, 0, 2]
    pointed = {edge[:2]: edge.probability for edge in groups[0].edges}
    assert pointed[0, 1] == 0.5
    assert pointed[0, 2] == pointed[3, 0] == 1.0


def test_gsm8k_labels():
    groups, rejections, rows = read("gsm8k_solutions.jsonl.gz", columns={"label": "is_correct"})
    assert (len(rows), len(groups), rejections) == (2652, 663, {})
    assert sum(label.accepted for group in groups for label in group.labels) == 975
    assert groups[0].labels[0] == Label(0, 0.0)
    assert not any(group.edges for group in groups)
    for group in groups:
        assert len(group.scores) == len(group.responses)
        assert all(group.scores[label.response] == label.accepted for label in group.labels)


def test_best_of_56_scores():
    groups, rejections, rows = read("best_of_56/*.parquet", columns={"score": "judge_win_rate"}, origin="model")
    assert (len(rows), len(groups), rejections) == (22451, 401, {"empty_response": 11})
    assert sum(len(group.responses) for group in groups) in range(21980, 21997)
    assert {group.source for group in groups} == {"selfinstruct", "oasst", "koala", "helpful_base", "vicuna"}
    best = [max(score for score in group.scores) for group in groups]
    assert sum(best) / len(best) == pytest.approx(0.871, abs=0.003)
    for group in groups[:20]:
        assert all(group.scores[edge.preferred] > group.scores[edge.other] for edge in group.edges)
        distinct = Counter(group.scores)
        n = len(group.scores)
        assert len(group.edges) == n * (n - 1) // 2 - sum(k * (k - 1) // 2 for k in distinct.values())
    assert groups[0].edges[0][2:] == Edge(0, 1)[2:]
