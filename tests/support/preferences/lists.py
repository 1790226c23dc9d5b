"""Rows of the formats with many responses to a prompt, all in one row or one per row."""

from __future__ import annotations

from support.preferences.cases import CHAT, FormatCase, assistant, messages, user

from rm.preferences import Edge, Group, Label

UNPAIRED_TEXT = [
    {"prompt": "The sky is", "completion": " blue.", "label": True},
    {"prompt": "The sky is", "completion": " green.", "label": False},
]


UNPAIRED_MESSAGES = [
    {"prompt": messages("What is the sky?"), "completion": assistant("It is blue."), "label": True},
    {"prompt": messages("What is the sea?"), "completion": assistant("It is dry."), "label": False},
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


def qa_row(question, preference):
    return {"question": question, **{f"prediction {n}": f"p{n}" for n in range(1, 5)}, "preference": preference}


QA_FEEDBACK = [
    qa_row("Why?", [2, 0, 1, 1, 1, 1]),  # 2 over 1 = 3 over 4
    qa_row("How?", [1, 2, 0, 1, 1, 1]),  # 1 over 2 over 3 over 1: no ranking
]

CASES = {
    "unpaired-text": FormatCase(
        "labels",
        UNPAIRED_TEXT,
        {},
        [Group(user("The sky is"), (" blue.", " green."), labels=(Label(0, 1.0), Label(1, 0.0)), scores=(1.0, 0.0))],
    ),
    "unpaired-messages": FormatCase(
        "labels",
        UNPAIRED_MESSAGES,
        {},
        [
            Group(user("What is the sky?"), ("It is blue.",), labels=(Label(0, 1.0),), scores=(1.0,)),
            Group(user("What is the sea?"), ("It is dry.",), labels=(Label(0, 0.0),), scores=(0.0,)),
        ],
    ),
    "gsm8k": FormatCase(
        "labels",
        GSM8K,
        {"columns": {"label": "is_correct"}},
        [Group(user("1 + 1?"), ("A: 2", "A: 3"), labels=(Label(0, 1.0), Label(1, 0.0)), scores=(1.0, 0.0))],
    ),
    "best-of": FormatCase(
        "scores",
        BEST_OF,
        {"columns": {"score": "judge_win_rate"}, "origin": "model", "gap_use": "margin", "gap_scale": 2.0},
        [
            Group(user("Why?"), ("a", "b"), (Edge(1, 0, margin=1.0),), "model", scores=(0.25, 0.75), source="koala"),
            Group(user("How?"), ("x",), (), "model", scores=(0.5,), source="oasst"),
        ],
    ),
    "ultrafeedback": FormatCase(
        "ultrafeedback",
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
    "ultrafeedback-aspects": FormatCase(
        "ultrafeedback",
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
    "nectar": FormatCase(
        "nectar",
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
    "rewardbench2": FormatCase(
        "rewardbench2",
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
    "qa-feedback": FormatCase(
        "qa_feedback",
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
    "ranking": FormatCase(
        "ranking",
        [{"prompt": "Why?", "responses": ["a", "b", "c"], "ranking": [2, 1, 2], "subset": "s"}],
        {},
        [Group(user("Why?"), ("a", "b", "c"), (Edge(1, 0, stage=0), Edge(1, 2, stage=0), Edge(0, 2, 0.5)), subset="s")],
    ),
    "choice": FormatCase(
        "choice",
        [{"question": "Why?", "responses": ["a", "b", "c"], "best": 1}],
        {},
        [Group(user("Why?"), ("a", "b", "c"), (Edge(1, 0, stage=0), Edge(1, 2, stage=0)))],
    ),
    "scored-list": FormatCase(
        "scored_list",
        [{"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [1, None, 3]}],
        {"min_gap": 2.0, "gap_use": "weight", "gap_scale": 3.0},
        [Group(user("Why?"), ("a", "b", "c"), (Edge(2, 0, weight=6.0),), scores=(1.0, None, 3.0))],
    ),
}
