"""Rows of the formats with graded verdicts and votes of several annotators."""

from __future__ import annotations

from support.preferences.cases import CHAT, FormatCase, messages, user

from rm.preferences import Edge, Group


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


def arena_row(question, winner, **more):
    return {
        "question_id": "58210e39b3fd4441a2bd4a518bb44c2d",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": winner,
        "judge": "arena_user_973",
        "conversation_a": messages(question, "first"),
        "conversation_b": messages(question, "second"),
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.13,
        **more,
    }


ARENA = [arena_row(f"{winner}?", winner) for winner in ("model_a", "model_b", "tie", "tie (bothbad)")]

CASES = {
    "arena": FormatCase(
        "verdicts",
        ARENA,
        {},
        [
            Group(user(f"{winner}?"), ("first", "second"), (edge,))
            for winner, edge in [
                ("model_a", Edge(0, 1)),
                ("model_b", Edge(1, 0)),
                ("tie", Edge(0, 1, 0.5)),
                ("tie (bothbad)", Edge(0, 1, 0.5)),
            ]
        ],
    ),
    "helpsteer2": FormatCase(
        "helpsteer2",
        HELPSTEER2,
        {"gap_use": "margin"},
        [
            Group(CHAT, ("first", "second"), (Edge(1, 0, margin=2.0),)),
            Group(user("How?"), ("first", "second"), (Edge(0, 1, margin=1.0),)),
            Group(user("When?"), ("first", "second"), (Edge(0, 1, 0.5),)),
        ],
    ),
    "helpsteer3": FormatCase(
        "helpsteer3",
        HELPSTEER3,
        {"vote_smoothing": 0.5, "gap_use": "margin"},
        [
            # two for the second, one tie: (2 + 1/2 + 1/2) / (3 + 1); two of two for the first: (2 + 1/2) / (2 + 1)
            Group(user("Why?"), ("first", "second"), (Edge(1, 0, 0.75, margin=2.0),), subset="stem"),
            Group(user("How?"), ("first", "second"), (Edge(0, 1, 2.5 / 3, margin=1.0),), subset="stem"),
            Group(user("When?"), ("first", "second"), (Edge(0, 1, 0.5),), subset="stem"),
        ],
    ),
    "pandalm": FormatCase(
        "pandalm",
        PANDALM,
        {"vote_smoothing": 1.0},
        [
            # two for the second, one tie: (2 + 1/2 + 1) / (3 + 2); three of three: (3 + 1) / (3 + 2)
            Group(user("Rewrite it.\n\nIt is."), ("first", "second"), (Edge(1, 0, 0.7),)),
            Group(user("Rewrite it."), ("first", "second"), (Edge(0, 1, 0.8),)),
            Group(user("Rewrite it.\n\nSo."), ("first", "second"), (Edge(0, 1, 0.5),)),
        ],
    ),
}
