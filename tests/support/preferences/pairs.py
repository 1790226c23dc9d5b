"""Rows of the formats with two responses, one of them preferred."""

from __future__ import annotations

from support.preferences.cases import CHAT, FormatCase, assistant, messages, user

from rm.preferences import Edge, Group

HH = [
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.",
    }
]


TRL_TEXT = [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}]


TRL_MESSAGES = [
    {"prompt": messages("What is the sky?"), "chosen": assistant("It is blue."), "rejected": assistant("It is green.")}
]


TRL_IMPLICIT_TEXT = [{"chosen": "The sky is blue.", "rejected": "The sky is black."}]


TRL_IMPLICIT_MESSAGES = [
    {
        "chosen": messages("What is the sky?", "It is blue."),
        "rejected": messages("What is the sky?", "It is green."),
    }
]


OPENRLHF = [
    {
        "input": messages("Hi", "Hello", "Why?"),
        "chosen": assistant("Because."),
        "rejected": assistant("No."),
        "margin": 1.5,
    },
    {"input": messages("Next?"), "chosen": assistant("Yes."), "rejected": assistant("No."), "margin": None},
]


OPENRLHF_IMPLICIT = [
    {
        "chosen": messages("Hi", "Hello", "Why?", "Because."),
        "rejected": messages("Hi", "Hello", "Why?", "No."),
        "margin": 0.25,
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

CASES = {
    "hh": FormatCase("hh", HH, {}, [Group(CHAT, ("Because.", "No."), (Edge(0, 1),))]),
    "trl-text": FormatCase(
        "prompt_chosen_rejected", TRL_TEXT, {}, [Group(user("The sky is"), (" blue.", " green."), (Edge(0, 1),))]
    ),
    "trl-messages": FormatCase(
        "prompt_chosen_rejected",
        TRL_MESSAGES,
        {},
        [Group(user("What is the sky?"), ("It is blue.", "It is green."), (Edge(0, 1),))],
    ),
    "trl-implicit-text": FormatCase(
        "chosen_rejected_text", TRL_IMPLICIT_TEXT, {}, [Group(user("The sky is"), ("blue.", "black."), (Edge(0, 1),))]
    ),
    "trl-implicit-messages": FormatCase(
        "chosen_rejected_messages",
        TRL_IMPLICIT_MESSAGES,
        {},
        [Group(user("What is the sky?"), ("It is blue.", "It is green."), (Edge(0, 1),))],
    ),
    "openrlhf": FormatCase(
        "prompt_chosen_rejected",
        OPENRLHF,
        {},
        [
            Group(CHAT, ("Because.", "No."), (Edge(0, 1, margin=1.5),)),
            Group(user("Next?"), ("Yes.", "No."), (Edge(0, 1),)),
        ],
    ),
    "openrlhf-implicit": FormatCase(
        "chosen_rejected_messages",
        OPENRLHF_IMPLICIT,
        {},
        [Group(CHAT, ("Because.", "No."), (Edge(0, 1, margin=0.25),))],
    ),
    "ultrafeedback-binarized": FormatCase(
        "ultrafeedback_binarized",
        ULTRAFEEDBACK_BINARIZED,
        {"gap_use": "margin", "gap_scale": 0.5},
        [Group(user("Why?"), ("Because.", "No."), (Edge(0, 1, margin=1.25),), "model", scores=(8.5, 6.0))],
    ),
    "shp": FormatCase(
        "shp",
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
    "shp-min-gap": FormatCase(
        "shp",
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
    "rewardbench": FormatCase(
        "rewardbench",
        REWARDBENCH,
        {},
        [Group(user("Why?"), ("Because.", "No."), (Edge(0, 1),), subset="alpacaeval-easy")],
    ),
    "scored-pairs": FormatCase(
        "scored_pairs",
        [{"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 4}],
        {"origin": "implicit"},
        [Group(user("Why?"), ("a", "b"), (Edge(0, 1),), "implicit", scores=(9.0, 4.0))],
    ),
}
