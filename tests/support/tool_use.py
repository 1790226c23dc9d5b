"""Conversations with tools, calls, results and reasoning, and a tiny model whose template renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOOL_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|> tools {{ tools | tojson }} {{ eos_token }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|> "
    "{% if m.reasoning_content %}think {{ m.reasoning_content }} so {% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %} call {{ call['function'] | tojson }}{% endfor %}"
    "{% if m.name %} by {{ m.name }}{% endif %}{% if m.tool_call_id %} to {{ m.tool_call_id }}{% endif %}"
    " {{ eos_token }}{% endfor %}"
)


def save_tool_model(directory: Path) -> Path:
    """Save a random reward model that reads tools, calls, their results and reasoning."""
    from support.tiny_models import save_causal

    save_causal(directory, chat=True)
    (directory / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**settings, key: 1024}))
    return directory


def tool(name: str, **kinds: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in kinds.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOLS = [tool("weather", city="string"), tool("add", a="integer", b="integer"), tool("now")]


def call(name: str, number: int, **arguments: Any) -> dict[str, Any]:
    return {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def trajectory(prompt: int, sample: int) -> list[dict[str, Any]]:
    """Sample number `sample` of the answers to prompt number `prompt`: reasoning, a call, its result and an answer."""
    name, arguments = [("weather", {"city": f"c{prompt}"}), ("add", {"a": prompt, "b": sample}), ("now", {})][
        sample % 3
    ]
    called = {"role": "assistant", "content": None, "tool_calls": [call(name, sample, **arguments)]}
    result = {
        "role": "tool",
        "content": json.dumps({"is": prompt + sample}),
        "tool_call_id": f"call-{sample}",
        "name": name,
    }
    answer = {"role": "assistant", "content": f"it is {prompt + sample}", "reasoning_content": f"look at {sample}"}
    return [called, result, answer]


def corpus(prompts: int, samples: int) -> list[dict[str, Any]]:
    """Whole conversations with tools: `samples` answers to each of some prompts."""
    return [
        {"messages": [{"role": "user", "content": f"what is {prompt}"}, *trajectory(prompt, sample)], "tools": TOOLS}
        for prompt in range(prompts)
        for sample in range(samples)
    ]
