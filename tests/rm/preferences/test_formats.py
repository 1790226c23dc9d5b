"""Every reader on rows in the exact published schema (columns and types as on the hub), the groups written by hand."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import READING

from rm.preferences import (
    FORMATS,
    Edge,
    Group,
    Label,
    PreferenceError,
    ReadSettings,
    detect_format,
    read_preference_rows,
    read_preferences,
)
from rm.preferences.reading import read_unmerged


def settings(**changes):
    return ReadSettings(**{**READING, **changes})


def user(text):
    return (("user", text),)


def messages(*turns):
    return [{"role": role, "content": content} for role, content in zip(["user", "assistant"] * 4, turns, strict=False)]


def said(text):
    return [{"role": "assistant", "content": text}]


CHAT = (("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))

HH = [
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.",
    }
]
TRL_TEXT = [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}]
TRL_MESSAGES = [
    {"prompt": messages("What is the sky?"), "chosen": said("It is blue."), "rejected": said("It is green.")}
]
TRL_IMPLICIT_TEXT = [{"chosen": "The sky is blue.", "rejected": "The sky is black."}]
TRL_IMPLICIT_MESSAGES = [
    {
        "chosen": messages("What is the sky?", "It is blue."),
        "rejected": messages("What is the sky?", "It is green."),
    }
]
OPENRLHF = [
    {"input": messages("Hi", "Hello", "Why?"), "chosen": said("Because."), "rejected": said("No."), "margin": 1.5},
    {"input": messages("Next?"), "chosen": said("Yes."), "rejected": said("No."), "margin": None},
]
OPENRLHF_IMPLICIT = [
    {
        "chosen": messages("Hi", "Hello", "Why?", "Because."),
        "rejected": messages("Hi", "Hello", "Why?", "No."),
        "margin": 0.25,
    }
]
UNPAIRED_TEXT = [
    {"prompt": "The sky is", "completion": " blue.", "label": True},
    {"prompt": "The sky is", "completion": " green.", "label": False},
]
UNPAIRED_MESSAGES = [
    {"prompt": messages("What is the sky?"), "completion": said("It is blue."), "label": True},
    {"prompt": messages("What is the sea?"), "completion": said("It is dry."), "label": False},
]
GSM8K = [
    {"prompt": "1 + 1?", "response": "A: 2", "generator": "6b", "is_correct": True},
    {"prompt": "1 + 1?", "response": "A: 3", "generator": "175b", "is_correct": False},
]
BEST_OF = [
    {"prompt": "Why?", "response": "a", "generator": "m1", "source": "koala", "judge_win_rate": 0.25},
    {"prompt": "How?", "response": "x", "generator": "m1", "source": "oasst", "judge_win_rate": 0.5},
    {"prompt": "Why?", "response": "b", "generator": "m2", "source": "koala", "judge_win_rate": 0.75},
]


def annotation(rating):
    return {"Rating": rating, "Rationale": "It is."}


def completion(response, overall, fine):
    return {
        "annotations": {
            "helpfulness": {"Type": ["1"], "Rationale": "r", "Rating": "4", "Rationale For Rating": "r"},
            "honesty": annotation("5"),
            "instruction_following": annotation("N/A"),
            "truthfulness": {"Type": ["None"], "Rationale": "r", "Rating": "5", "Rationale For Rating": "r"},
        },
        "custom_system_prompt": "You are a helpful assistant.",
        "model": "alpaca-7b",
        "principle": "helpfulness",
        "response": response,
        "critique": "Good.",
        "overall_score": overall,
        "fine-grained_score": fine,
    }


ULTRAFEEDBACK = [
    {
        "source": "evol_instruct",
        "instruction": "Why?",
        "models": ["alpaca-7b", "gpt-4", "bard"],
        "completions": [completion("a", 6.0, 4.75), completion("b", 8.5, 4.0), completion("c", 6.0, 3.5)],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
]
ULTRAFEEDBACK_BINARIZED = [
    {
        "prompt": "Why?",
        "prompt_id": "0a1b",
        "chosen": messages("Why?", "Because."),
        "rejected": messages("Why?", "No."),
        "messages": messages("Why?", "Because."),
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    },
    {
        "prompt": "How?",
        "prompt_id": "0a1c",
        "chosen": messages("How?", "So."),
        "rejected": messages("How?", "Thus."),
        "messages": messages("How?", "So."),
        "score_chosen": 7.0,
        "score_rejected": 7.0,
    },
]
NECTAR = [
    {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why? \n\nAssistant: ",
        "answers": [
            {"answer": "b", "model": "gpt-4", "rank": 2.0},
            {"answer": "a", "model": "gpt-3.5-turbo", "rank": 1.0},
            {"answer": "c", "model": "llama-2-7b-chat", "rank": 3.0},
        ],
        "turns": 2,
        "num_responses": 3,
        "source": ["ultrachat", "flan"],
        "good_natured": True,
    }
]


def shp_row(a, b, labels, score_a, score_b):
    return {
        "post_id": "qt3nxl",
        "domain": "askculinary_train",
        "upvote_ratio": 0.98,
        "history": "How do I peel it?",
        "c_root_id_A": "hk1",
        "c_root_id_B": "hk2",
        "created_at_utc_A": 1636822112,
        "created_at_utc_B": 1636822110,
        "score_A": score_a,
        "score_B": score_b,
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": labels,
        "seconds_difference": 2.0,
        "score_ratio": 2.0,
    }


SHP = [shp_row("With a knife.", "You do not.", 1, 8, 2), shp_row("You do not.", "Boil it.", 0, 2, 40)]


def helpsteer2_row(prompt, strength):
    return {
        "split": "train",
        "prompt": prompt,
        "response_1": "first",
        "response_2": "second",
        "preference_strength": strength,
        "preference_statement": "Response 2 is better.",
        "preference_elaboration": "It is longer.",
        "three_most_similar_preferences": [{"statement": "s", "elaboration": "e", "strength": strength}],
        "all_preferences_unprocessed": [
            {"strength": strength, "justification": "j"},
            {"strength": -100, "justification": "j"},
        ],
    }


HELPSTEER2 = [
    helpsteer2_row("Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?", 2),
    helpsteer2_row("How?", -1),
    helpsteer2_row("When?", 0),
]


def helpsteer3_row(prompt, overall, *scores):
    return {
        "domain": "stem",
        "language": "english",
        "context": messages(prompt),
        "response1": "first",
        "response2": "second",
        "overall_preference": overall,
        "individual_preference": [
            {"score": score, "reasoning": "r", "feedback1": "f", "feedback2": "f"} for score in scores
        ],
    }


HELPSTEER3 = [helpsteer3_row("Why?", 2, 3, 1, 0), helpsteer3_row("How?", -1, -2, -1), helpsteer3_row("When?", 0, 1, -1)]
REWARDBENCH = [
    {
        "prompt": "Why?",
        "chosen": "Because.",
        "chosen_model": "GPT4-Turbo",
        "rejected": "No.",
        "rejected_model": "alpaca-7b",
        "subset": "alpacaeval-easy",
        "id": 0,
    }
]


def rewardbench2_row(id, prompt, chosen, rejected, subset):
    return {
        "id": id,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["Human"],
        "subset": subset,
        "additional_metadata": {
            "category": None,
            "correct": None,
            "index": None,
            "instruction_id_list": None,
            "label": None,
            "method": None,
            "models": None,
            "prompt_norm": None,
            "subcategory": None,
            "valid": None,
        },
    }


REWARDBENCH2 = [
    rewardbench2_row("13", "Why?", ["a"], ["b", "c", "d"], "Factuality"),
    rewardbench2_row("ref:7", "Name a colour.", ["red"], ["loud", "wet"], "Ties"),
    rewardbench2_row("tied:7", "Name a colour.", ["red", "blue"], ["loud", "wet"], "Ties"),
]


def pandalm_row(input, *verdicts):
    return {
        "idx": 0,
        "motivation_app": "Grammarly",
        "cmp_key": "bloom-7b_llama-7b",
        "instruction": "Rewrite it.",
        "input": input,
        "response1": "first",
        "response2": "second",
        **{f"annotator{n}": verdict for n, verdict in enumerate(verdicts, 1)},
    }


PANDALM = [pandalm_row("It is.", 2, 2, 0), pandalm_row("", 1, 1, 1), pandalm_row("So.", 1, 0, 2)]


def qa_row(question, preference):
    return {"question": question, **{f"prediction {n}": f"p{n}" for n in range(1, 5)}, "preference": preference}


QA_FEEDBACK = [
    qa_row("Why?", [2, 0, 1, 1, 1, 1]),  # 2 over 1 = 3 over 4
    qa_row("How?", [1, 2, 0, 1, 1, 1]),  # 1 over 2 over 3 over 1: no ranking
]

CASES = {
    "hh": (HH, {}, [Group(CHAT, ("Because.", "No."), (Edge(0, 1),))]),
    "trl-text": (TRL_TEXT, {}, [Group(user("The sky is"), (" blue.", " green."), (Edge(0, 1),))]),
    "trl-messages": (
        TRL_MESSAGES,
        {},
        [Group(user("What is the sky?"), ("It is blue.", "It is green."), (Edge(0, 1),))],
    ),
    "trl-implicit-text": (TRL_IMPLICIT_TEXT, {}, [Group(user("The sky is"), ("blue.", "black."), (Edge(0, 1),))]),
    "trl-implicit-messages": (
        TRL_IMPLICIT_MESSAGES,
        {},
        [Group(user("What is the sky?"), ("It is blue.", "It is green."), (Edge(0, 1),))],
    ),
    "openrlhf": (
        OPENRLHF,
        {},
        [
            Group(CHAT, ("Because.", "No."), (Edge(0, 1, margin=1.5),)),
            Group(user("Next?"), ("Yes.", "No."), (Edge(0, 1),)),
        ],
    ),
    "openrlhf-implicit": (OPENRLHF_IMPLICIT, {}, [Group(CHAT, ("Because.", "No."), (Edge(0, 1, margin=0.25),))]),
    "unpaired-text": (
        UNPAIRED_TEXT,
        {},
        [Group(user("The sky is"), (" blue.", " green."), labels=(Label(0, 1.0), Label(1, 0.0)), scores=(1.0, 0.0))],
    ),
    "unpaired-messages": (
        UNPAIRED_MESSAGES,
        {},
        [
            Group(user("What is the sky?"), ("It is blue.",), labels=(Label(0, 1.0),), scores=(1.0,)),
            Group(user("What is the sea?"), ("It is dry.",), labels=(Label(0, 0.0),), scores=(0.0,)),
        ],
    ),
    "gsm8k": (
        GSM8K,
        {"columns": {"label": "is_correct"}},
        [Group(user("1 + 1?"), ("A: 2", "A: 3"), labels=(Label(0, 1.0), Label(1, 0.0)), scores=(1.0, 0.0))],
    ),
    "best-of": (
        BEST_OF,
        {"columns": {"score": "judge_win_rate"}, "origin": "model", "gap_use": "margin", "gap_scale": 2.0},
        [
            Group(user("Why?"), ("a", "b"), (Edge(1, 0, margin=1.0),), "model", scores=(0.25, 0.75), source="koala"),
            Group(user("How?"), ("x",), (), "model", scores=(0.5,), source="oasst"),
        ],
    ),
    "ultrafeedback": (
        ULTRAFEEDBACK,
        {},
        [
            Group(
                user("Why?"),
                ("a", "b", "c"),
                (Edge(1, 0), Edge(1, 2)),
                "model",
                scores=(6.0, 8.5, 6.0),
                source="evol_instruct",
            )
        ],
    ),
    "ultrafeedback-aspects": (
        ULTRAFEEDBACK,
        {"columns": {"score": "fine-grained_score"}, "min_gap": 0.75, "gap_use": "weight"},
        [
            Group(
                user("Why?"),
                ("a", "b", "c"),
                (Edge(0, 1, weight=0.75), Edge(0, 2, weight=1.25)),
                "model",
                scores=(4.75, 4.0, 3.5),
                source="evol_instruct",
            )
        ],
    ),
    "ultrafeedback-binarized": (
        ULTRAFEEDBACK_BINARIZED,
        {"gap_use": "margin", "gap_scale": 0.5},
        [Group(user("Why?"), ("Because.", "No."), (Edge(0, 1, margin=1.25),), "model", scores=(8.5, 6.0))],
    ),
    "nectar": (
        NECTAR,
        {},
        [
            Group(
                CHAT,
                ("b", "a", "c"),
                (Edge(1, 0, stage=0), Edge(1, 2, stage=0), Edge(0, 2, stage=1)),
                "model",
                source="ultrachat+flan",
            )
        ],
    ),
    "shp": (
        SHP,
        {"gap_use": "weight", "gap_scale": 0.5},
        [
            Group(
                user("How do I peel it?"),
                ("With a knife.", "You do not.", "Boil it."),
                (Edge(0, 1, weight=3.0), Edge(2, 1, weight=19.0)),
                "implicit",
                scores=(8.0, 2.0, 40.0),
                subset="askculinary_train",
            )
        ],
    ),
    "shp-min-gap": (
        SHP,
        {"min_gap": 7.0},
        [
            Group(
                user("How do I peel it?"),
                ("You do not.", "Boil it."),
                (Edge(1, 0),),
                "implicit",
                scores=(2.0, 40.0),
                subset="askculinary_train",
            )
        ],
    ),
    "helpsteer2": (
        HELPSTEER2,
        {"gap_use": "margin"},
        [
            Group(CHAT, ("first", "second"), (Edge(1, 0, margin=2.0),)),
            Group(user("How?"), ("first", "second"), (Edge(0, 1, margin=1.0),)),
            Group(user("When?"), ("first", "second"), (Edge(0, 1, 0.5),)),
        ],
    ),
    "helpsteer3": (
        HELPSTEER3,
        {"vote_smoothing": 0.5, "gap_use": "margin"},
        [
            # two for the second, one tie: (2 + 1/2 + 1/2) / (3 + 1); two of two for the first: (2 + 1/2) / (2 + 1)
            Group(user("Why?"), ("first", "second"), (Edge(1, 0, 0.75, margin=2.0),), subset="stem"),
            Group(user("How?"), ("first", "second"), (Edge(0, 1, 2.5 / 3, margin=1.0),), subset="stem"),
            Group(user("When?"), ("first", "second"), (Edge(0, 1, 0.5),), subset="stem"),
        ],
    ),
    "rewardbench": (
        REWARDBENCH,
        {},
        [Group(user("Why?"), ("Because.", "No."), (Edge(0, 1),), subset="alpacaeval-easy")],
    ),
    "rewardbench2": (
        REWARDBENCH2,
        {},
        [
            Group(
                user("Why?"),
                ("a", "b", "c", "d"),
                (Edge(0, 1, stage=0), Edge(0, 2, stage=0), Edge(0, 3, stage=0)),
                scores=(1.0, 0.0, 0.0, 0.0),
                subset="Factuality",
                item="13",
            ),
            Group(
                user("Name a colour."),
                ("red", "loud", "wet"),
                (Edge(0, 1, stage=0), Edge(0, 2, stage=0)),
                scores=(1.0, 0.0, 0.0),
                subset="Ties",
                item="ref:7",
            ),
            Group(
                user("Name a colour."),
                ("red", "blue", "loud", "wet"),
                (Edge(0, 2, stage=0), Edge(0, 3, stage=0), Edge(1, 2, stage=1), Edge(1, 3, stage=1)),
                scores=(1.0, 1.0, 0.0, 0.0),
                subset="Ties",
                item="tied:7",
            ),
        ],
    ),
    "pandalm": (
        PANDALM,
        {"vote_smoothing": 1.0},
        [
            # two for the second, one tie: (2 + 1/2 + 1) / (3 + 2); three of three: (3 + 1) / (3 + 2)
            Group(user("Rewrite it.\n\nIt is."), ("first", "second"), (Edge(1, 0, 0.7),)),
            Group(user("Rewrite it."), ("first", "second"), (Edge(0, 1, 0.8),)),
            Group(user("Rewrite it.\n\nSo."), ("first", "second"), (Edge(0, 1, 0.5),)),
        ],
    ),
    "qa-feedback": (
        QA_FEEDBACK,
        {},
        [
            Group(
                user("Why?"),
                ("p1", "p2", "p3", "p4"),
                (
                    Edge(1, 0, stage=0),
                    Edge(1, 2, stage=0),
                    Edge(1, 3, stage=0),
                    Edge(0, 3, stage=1),
                    Edge(2, 3, stage=2),
                    Edge(0, 2, 0.5),
                ),
            ),
            Group(
                user("How?"),
                ("p1", "p2", "p3", "p4"),
                (Edge(0, 1), Edge(2, 0), Edge(0, 3, 0.5), Edge(1, 2), Edge(1, 3), Edge(2, 3)),
            ),
        ],
    ),
    "ranking": (
        [{"prompt": "Why?", "responses": ["a", "b", "c"], "ranking": [2, 1, 2], "subset": "s"}],
        {},
        [Group(user("Why?"), ("a", "b", "c"), (Edge(1, 0, stage=0), Edge(1, 2, stage=0), Edge(0, 2, 0.5)), subset="s")],
    ),
    "choice": (
        [{"question": "Why?", "responses": ["a", "b", "c"], "best": 1}],
        {},
        [Group(user("Why?"), ("a", "b", "c"), (Edge(1, 0, stage=0), Edge(1, 2, stage=0)))],
    ),
    "scored-list": (
        [{"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [1, None, 3]}],
        {"min_gap": 2.0, "gap_use": "weight", "gap_scale": 3.0},
        [Group(user("Why?"), ("a", "b", "c"), (Edge(2, 0, weight=6.0),), scores=(1.0, None, 3.0))],
    ),
    "scored-pairs": (
        [{"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 4}],
        {"origin": "implicit"},
        [Group(user("Why?"), ("a", "b"), (Edge(0, 1),), "implicit", scores=(9.0, 4.0))],
    ),
}

NAMES = {
    "hh": "hh",
    "trl-text": "prompt_chosen_rejected",
    "trl-messages": "prompt_chosen_rejected",
    "trl-implicit-text": "chosen_rejected_text",
    "trl-implicit-messages": "chosen_rejected_messages",
    "openrlhf": "prompt_chosen_rejected",
    "openrlhf-implicit": "chosen_rejected_messages",
    "unpaired-text": "labels",
    "unpaired-messages": "labels",
    "gsm8k": "labels",
    "best-of": "scores",
    "ultrafeedback": "ultrafeedback",
    "ultrafeedback-aspects": "ultrafeedback",
    "ultrafeedback-binarized": "ultrafeedback_binarized",
    "nectar": "nectar",
    "shp": "shp",
    "shp-min-gap": "shp",
    "helpsteer2": "helpsteer2",
    "helpsteer3": "helpsteer3",
    "rewardbench": "rewardbench",
    "rewardbench2": "rewardbench2",
    "pandalm": "pandalm",
    "qa-feedback": "qa_feedback",
    "ranking": "ranking",
    "choice": "choice",
    "scored-list": "scored_list",
    "scored-pairs": "scored_pairs",
}


@pytest.mark.parametrize("case", CASES)
def test_a_published_schema_gives_the_groups_written_by_hand(case):
    rows, changes, expected = CASES[case]
    groups, rejections = read_preference_rows(rows, settings(**changes))
    assert groups == expected
    tied = {"ultrafeedback-binarized", "shp-min-gap"}
    assert rejections == ({"below_min_gap": 1} if case in tied else {})


@pytest.mark.parametrize("case", CASES)
def test_the_format_is_told_from_the_row_and_can_be_named(case):
    rows, changes, expected = CASES[case]
    columns = changes.get("columns", {})
    assert {detect_format(row, columns) for row in rows} == {NAMES[case]}
    assert read_preference_rows(rows, settings(**{**changes, "format": NAMES[case]}))[0] == expected


def test_every_format_has_a_case():
    assert set(NAMES.values()) == set(FORMATS)
    assert NAMES.keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_file_gives_the_same_groups_as_its_rows(tmp_path, case, kind):
    rows, changes, expected = CASES[case]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_preferences(str(path), settings(**changes))[0] == expected


def test_who_judged_is_the_users_word_where_it_is_given():
    for case, (rows, changes, expected) in CASES.items():
        groups, _ = read_preference_rows(rows, settings(**{**changes, "origin": "human"}))
        assert {group.origin for group in groups} == {"human"}, case
        assert len(groups) == len(expected)


@pytest.mark.parametrize(
    ("columns", "rows", "name"),
    [
        ({"prompt": "ask", "response": "say", "score": "votes"}, [{"ask": "q", "say": "a", "votes": 3}], "scores"),
        ({"chosen": "good", "rejected": "bad"}, [{"query": "q", "good": "a", "bad": "b"}], "prompt_chosen_rejected"),
        ({"responses": "all", "best": "pick"}, [{"prompt": "q", "all": ["a", "b"], "pick": 0}], "choice"),
        ({"label": "ok"}, [{"prompt": "q", "response": "a", "ok": 1, "score": 2.0}], "labels"),
        ({"score": "score"}, [{"prompt": "q", "response": "a", "label": 1, "score": 2.0}], "scores"),
        (
            {"source": "from", "subset": "part"},
            [{"prompt": "q", "chosen": "a", "rejected": "b", "from": "x", "part": "y"}],
            "prompt_chosen_rejected",
        ),
    ],
)
def test_columns_of_any_name(columns, rows, name):
    assert detect_format(rows[0], columns) == name
    (group,), rejections = read_preference_rows(rows, settings(columns=columns))
    assert (group.prompt, group.responses[0], not rejections) == (user("q"), "a", True)
    assert (group.source, group.subset) == (("x", "y") if "source" in columns else (None, None))


def test_rows_that_cannot_be_used_are_counted_by_reason():
    def reasons(rows):
        return read_preference_rows(rows, settings())[1]

    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert reasons([{**pair, "rejected": "a"}]) == {"equal_sides": 1}
    assert reasons([{**pair, "margin": "wide"}, {**pair, "margin": float("nan")}]) == {"bad_margin": 2}
    assert reasons([{**HH[0], "rejected": "\n\nHuman: other\n\nAssistant: No."}]) == {"prompts_differ": 1}
    assert reasons([{"chosen": "one thing", "rejected": "another"}]) == {"empty_prompt": 1}
    scored = {"prompt": "q", "response": "a", "score": 1.0}
    bad = [{**scored, "score": value} for value in (None, float("nan"), float("inf"), "7", "", [1])]
    assert reasons([scored, *bad]) == {"bad_score": 6}
    label = {"prompt": "q", "completion": "a", "label": True}
    assert reasons([label, *({**label, "label": value} for value in (None, 2, -1, "yes"))]) == {"bad_label": 4}
    ranked = {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2]}
    bad = [{**ranked, "ranking": value} for value in (None, [1], [1, None], [1, float("nan")], "12")]
    assert reasons([ranked, *bad]) == {"bad_ranking": 5}
    assert reasons([ranked, {**ranked, "responses": ["a"], "ranking": [1]}]) == {"too_few_responses": 1}
    best = {"prompt": "q", "responses": ["a", "b"], "best": 0}
    assert reasons([best, *({**best, "best": value} for value in (2, -1, None, 0.5, "a"))]) == {"bad_choice": 5}
    grades = {"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2.0]}
    bad = [{**grades, "scores": value} for value in ([1.0], [None, None], [1.0, float("nan")], None)]
    assert reasons([grades, *bad]) == {"bad_score": 4}
    assert reasons([SHP[0], {**SHP[0], "labels": 2}, {**SHP[0], "labels": 0}]) == {"bad_label": 1, "below_min_gap": 1}
    assert reasons([HELPSTEER2[0], helpsteer2_row("q", -100), helpsteer2_row("q", 4)]) == {"bad_preference": 2}
    assert reasons([HELPSTEER3[0], helpsteer3_row("q", 1, 1, 9)]) == {"bad_preference": 1}
    assert reasons([pandalm_row("", 1, 2, 3), pandalm_row("", None, None)]) == {"bad_vote": 1, "no_votes": 1}
    assert reasons([qa_row("q", [1, 1]), qa_row("q", [1, 1, 1, 1, 1, 3]), qa_row("q", None)]) == {"bad_preference": 3}
    both = rewardbench2_row("1", "q", ["a", "b"], ["b"], "Math")
    assert reasons([REWARDBENCH2[0], both]) == {"equal_sides": 1}
    assert reasons([*NECTAR, {**NECTAR[0], "answers": ["b", "a"]}, {**NECTAR[0], "answers": None}]) == {"wrong_type": 2}


def test_equal_responses_in_a_list_are_one_and_what_was_between_them_is_counted():
    rows = [{"prompt": "q", "responses": ["a", "b", "a", "c"], "ranking": [1, 2, 1, 3]}]
    groups, rejections = read_preference_rows(rows, settings())
    edges = (Edge(0, 1), Edge(0, 2), Edge(0, 1), Edge(0, 2), Edge(1, 2))
    assert groups == [Group(user("q"), ("a", "b", "c"), edges)]
    assert rejections == {"equal_responses": 1}
    rows = [{"prompt": "q", "responses": ["a", "b", "a"], "scores": [1.0, 4.0, 2.0]}]
    groups, rejections = read_preference_rows(rows, settings())
    assert groups == [Group(user("q"), ("a", "b"), (Edge(1, 0),), scores=(1.5, 4.0))]
    assert rejections == {"equal_responses": 1}
    rows = [{"prompt": "q", "responses": ["a", "a"], "best": 0}]
    assert read_preference_rows(rows, settings()) == ([], {"equal_sides": 1})


def test_without_individual_scores_the_overall_one_is_the_only_vote():
    row = {**helpsteer3_row("q", -3), "individual_preference": None}
    (group,), _ = read_preference_rows([row], settings())
    assert group.edges == (Edge(0, 1, 0.75),)  # (1 + 1/2) / (1 + 1)


def test_a_conversation_that_goes_on_after_the_prompt_keeps_its_turns():
    row = {
        "prompt": messages("Hi"),
        "chosen": messages("Hi", "Hello", "Why?", "Because."),
        "rejected": messages("Hi", "Hello", "Why?", "No."),
    }
    (group,), _ = read_preference_rows([row], settings())
    assert (group.prompt, group.responses) == (CHAT, ("Because.", "No."))
    cut = {**row, "chosen": row["chosen"][1:], "rejected": row["rejected"][1:]}
    assert read_preference_rows([cut], settings())[0] == [group]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"prompt": "x", "chosen": "y"}], {}, "columns chosen, prompt, which fit no known format"),
        ([{"prompt": "x", "response": "y", "label": 1, "score": 2}], {}, "fit the formats labels, scores"),
        ([{"prompt": "x"}], {"format": "xml"}, r"data\.format is 'xml'; expected auto or one of rewardbench2"),
        (
            [{"prompt": "x", "chosen": "a", "rejected": "b"}],
            {"format": "shp"},
            "is shp, and the rows have no column history",
        ),
        ([{"prompt": "x", "response": "y", "score": 1}], {"columns": {"score": "win"}}, r"columns\.score is 'win'"),
        (HH, {"columns": {"label": "chosen"}}, "the format hh of the rows takes only"),
        (HH, {"format": "hh", "columns": {"label": "chosen"}}, "names label, for which the format hh has no place"),
        (HH, {"min_gap": 1.0}, "min_gap and data.gap_use act on scores, and the format hh has none"),
        ([], {}, "no rows"),
        ([], {"format": "hh"}, "no rows"),
    ],
)
def test_what_cannot_be_told_is_an_error_with_the_remedy_and_without_row_text(rows, changes, message):
    with pytest.raises(PreferenceError, match=message) as caught:
        read_preference_rows(rows, settings(**changes))
    assert "Because" not in str(caught.value)


def test_the_first_row_that_is_whole_tells_the_format():
    rows = [{"chosen": None, "rejected": None}, HH[0]]
    groups, rejections = read_preference_rows(rows, settings())
    assert (len(groups), rejections) == (1, {"null_prompt": 1})


odd = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "rank", "score"]), inner)
    ),
    max_leaves=4,
)


@given(st.data())
def test_a_row_of_another_shape_never_stops_the_reading(data):
    case = data.draw(st.sampled_from(sorted(CASES)))
    rows, changes, _ = CASES[case]
    name = data.draw(st.sampled_from(sorted(rows[0])))
    broken = {**rows[0], name: data.draw(odd)}
    missing = {key: value for key, value in rows[0].items() if key != name}
    named = settings(**{**changes, "format": NAMES[case]})
    used, rejections = read_unmerged([rows[0], broken, missing], FORMATS[NAMES[case]], named)
    assert len(used) + rejections.total() - rejections["equal_responses"] == 3
    read_preference_rows([rows[0], broken, missing], named)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(
        PreferenceError, match=r"data\.columns\.score is 'win', and the rows have no such column.*win_rate"
    ):
        detect_format({"prompt": "p", "response": "r", "win_rate": 0.5}, {"score": "win"})


def test_two_prompts_that_differ_are_a_question_and_each_answer_decides():
    rows = [{"prompt": "a", "question": "a", "chosen": "c", "rejected": "d"}] * 2
    assert read_preference_rows(rows, settings())[0][0].prompt == (("user", "a"),)
    rows = [rows[0], {**rows[0], "question": "b"}]
    with pytest.raises(PreferenceError, match="each of which may hold the prompt") as asked:
        read_preference_rows(rows, settings())
    assert asked.value.settings == ["'data.columns={prompt: prompt}'", "'data.columns={prompt: question}'"]
    prompts = [group.prompt for group in read_preference_rows(rows, settings(columns={"prompt": "question"}))[0]]
    assert prompts == [(("user", "a"),), (("user", "b"),)]


@pytest.mark.parametrize(
    ("row", "message", "ways"),
    [
        (
            {"prompt": "p", "response": "r", "id": 3, "ok": True, "n_tokens": 7, "win_rate": 0.5},
            "as `bestkept run` scores them",
            ["'data.columns={label: ok}'", "'data.columns={score: win_rate}'"],
        ),
        ({"prompt": "p", "response": "r"}, "a corpus without judgements is what `bestkept run` scores", []),
        ({"messages": [{"role": "user", "content": "p"}]}, "a corpus without judgements", []),
        ({"Chosen": "a b", "Rejected": "a c"}, "did you mean", ["'data.columns={chosen: Chosen, rejected: Rejected}'"]),
        (
            {"prompt": "p", "response": "r", "label": 1, "score": 2},
            "say which is meant: data.format=labels or data.format=scores",
            ["data.format=labels", "data.format=scores"],
        ),
    ],
)
def test_what_is_no_preference_is_told_what_to_say(row, message, ways):
    with pytest.raises(PreferenceError, match=message) as refused:
        read_preference_rows([row], settings())
    assert refused.value.settings == ways
