"""Rows in the exact schemas of real data sets, column by column; the texts are our own."""

from __future__ import annotations

import json
from typing import Any

from support.preferences.cases import assistant, messages
from support.preferences.lists import NECTAR, ULTRAFEEDBACK
from support.preferences.pairs import SHP, ULTRAFEEDBACK_BINARIZED
from support.preferences.votes import HELPSTEER3, arena_row

TULU_PREFERENCE_MIX = [  # allenai/llama-3.1-tulu-3-8b-preference-mixture
    {
        "id": "ultrafeedback_17",
        "source": "ai2-adapt-dev/ultrafeedback_cleaned",
        "prompt": "Why?",
        "chosen": messages("Why?", "Because."),
        "rejected": messages("Why?", "No."),
    }
]


def _wildchat_turn(role: str, content: str) -> dict[str, Any]:
    place = (
        {"country": "Norway", "state": "Oslo", "hashed_ip": "ab12"}
        if role == "user"
        else dict.fromkeys(["country", "state"])
    )
    return {
        "content": content,
        "header": {"accept-language": "nb", "user-agent": "x"} if role == "user" else None,
        "language": "English",
        "redacted": False,
        "role": role,
        "timestamp": None if role == "user" else "2023-04-09T00:02:53+00:00",
        "toxic": False,
        "turn_identifier": 101002,
        **place,
    }


WILDCHAT = [  # allenai/WildChat-1M
    {
        "conversation_hash": "3d1f",
        "model": "gpt-4-0314",
        "timestamp": "2023-04-09T00:02:53+00:00",
        "conversation": [_wildchat_turn("user", "Hi"), _wildchat_turn("assistant", "Hello")],
        "turn": 1,
        "language": "English",
        "openai_moderation": [{"categories": {"hate": False}, "category_scores": {"hate": 0.1}, "flagged": False}],
        "detoxify_moderation": [{"toxicity": 0.1, "insult": 0.1}],
        "toxic": False,
        "redacted": False,
        "state": "Oslo",
        "country": "Norway",
        "hashed_ip": "ab12",
        "header": {"accept-language": "nb", "user-agent": "x"},
    }
]

_TOXIC = {"roberta-large": {"flagged": False, "probability": 0.01}, "t5-large": {"flagged": False, "score": 0.0}}
LMSYS_ARENA = [  # lmsys/chatbot_arena_conversations
    arena_row(
        f"{winner}?",
        winner,
        openai_moderation={"categories": {"hate": False}, "category_scores": {"hate": 0.1}, "flagged": False},
        toxic_chat_tag=_TOXIC,
    )
    for winner in ("model_a", "model_b", "tie", "tie (bothbad)")
]


def _battle(prompts: list[str], first: list[str], second: list[str], winner: str) -> dict[str, Any]:
    """A row of lmarena-ai/arena-human-preference-55k: turns as JSON text, and the winner in three columns."""
    return {
        "id": 30192,
        "model_a": "gpt-4-1106-preview",
        "model_b": "gpt-4-0613",
        "prompt": json.dumps(prompts),
        "response_a": json.dumps(first),
        "response_b": json.dumps(second),
        **{f"winner_{name}": int(name == winner) for name in ("model_a", "model_b", "tie")},
    }


ARENA_55K = [
    _battle(["Why?"], ["first"], ["second"], "model_a"),
    _battle(["How?"], ["first"], ["second"], "model_b"),
    _battle(["When?"], ["first"], ["second"], "tie"),
    _battle(["Hi", "Why?"], ["Hello", "first"], ["Ho", "second"], "model_a"),  # judged with different histories
]

_HARMS = dict.fromkeys(("Violence", "Animal Abuse", "White-Collar Crime"), False)
PKU_SAFERLHF = [  # PKU-Alignment/PKU-SafeRLHF
    {
        "prompt": "Why?",
        "response_0": "first",
        "response_1": "second",
        "prompt_source": "BeaverTails",
        "response_0_source": "Alpaca3-8B",
        "response_1_source": "WizardLM-30B-Uncensored",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "response_0_harm_category": _HARMS,
        "response_1_harm_category": _HARMS,
        "response_0_severity_level": 0,
        "response_1_severity_level": 2,
        "better_response_id": 1,
        "safer_response_id": 0,
        "response_0_sha256": "5af0",
        "response_1_sha256": "c3f1",
    }
]


def _oasst_row(number: int, parent: int | None, role: str, text: str, rank: float | None) -> dict[str, Any]:
    return {
        "message_id": f"id-{number}",
        "parent_id": None if parent is None else f"id-{parent}",
        "user_id": "c3fe",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.1, "insult": 0.1},
        "message_tree_id": "id-0",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [2]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    }


OPENASSISTANT = [  # OpenAssistant/oasst1
    _oasst_row(0, None, "prompter", "Why?", None),
    _oasst_row(1, 0, "assistant", "Because.", 0.0),
    _oasst_row(2, 0, "assistant", "No.", 1.0),
]

KTO = [  # trl-lib/kto-mix-14k
    {"prompt": messages("Why?"), "completion": assistant("Because."), "label": True},
    {"prompt": messages("Why?"), "completion": assistant("No."), "label": False},
]

TOOLS = [
    {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}
]
SHAREGPT_TOOLS = [  # as LLaMA-Factory reads it
    {
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "It is 4."},
        ],
        "system": "Be brief.",
        "tools": json.dumps(TOOLS),
    }
]

SCHEMAS = {
    "UltraFeedback": ULTRAFEEDBACK,
    "UltraFeedback binarized": ULTRAFEEDBACK_BINARIZED,
    "Nectar": NECTAR,
    "HelpSteer3": HELPSTEER3,
    "SHP": SHP,
    "Tulu preference mix": TULU_PREFERENCE_MIX,
    "WildChat": WILDCHAT,
    "LMSYS arena": LMSYS_ARENA,
    "arena 55k": ARENA_55K,
    "PKU-SafeRLHF": PKU_SAFERLHF,
    "OpenAssistant, flat": OPENASSISTANT,
    "KTO": KTO,
    "ShareGPT with tools": SHAREGPT_TOOLS,
}
