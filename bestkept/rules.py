"""The rules of `select` as functions, made from the settings classes: `best_of_n(2, min_margin=0.1)` is
`{"best_of_n": {"keep": 2, "min_margin": 0.1}}`, a step as a configuration has it.

The first setting of a rule may be positional, all others are keywords; `help(best_of_n)` lists them. A wrong one raises
`ConfigError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any, TypeAlias

from bestkept.inputs import checked
from pipelines.config import Step
from pipelines.config.settings_list import meaning_of, model_in

Rule: TypeAlias = dict[str, Any]
"""A step of `select`: the name of its rule, and its settings."""


def _function_of(name: str) -> Callable[..., Rule]:
    field = Step.model_fields[name]
    kind = model_in(field.annotation)[0]
    fields = {"expression": field} if kind is None else dict(kind.model_fields)
    first = next(iter(fields), "")

    def rule(*values: Any, **settings: Any) -> Rule:
        if len(values) > 1 or (values and first in settings):
            raise TypeError(f"{name}() takes one positional argument, {first}; pass all other settings by name")
        given = {**dict(zip([first], values, strict=False)), **settings}
        step = {name: given.get("expression") if kind is None and given.keys() == {"expression"} else given}
        checked(Step, step, f"{name}()")
        return step

    parameters = [
        Parameter(
            key,
            Parameter.POSITIONAL_OR_KEYWORD if key == first else Parameter.KEYWORD_ONLY,
            default=Parameter.empty if one.is_required() or kind is None else one.default,
            annotation=str if kind is None else one.annotation,
        )
        for key, one in fields.items()
    ]
    lines = [f"{key}: {meaning_of(one)}" for key, one in fields.items()] if kind is not None else []
    rule.__name__ = rule.__qualname__ = name
    rule.__module__ = __name__
    rule.__doc__ = "\n\n".join([meaning_of(field), *lines])
    rule.__signature__ = Signature(parameters, return_annotation=Rule)  # type: ignore[attr-defined]
    return rule


best_of_n = _function_of("best_of_n")
threshold = _function_of("threshold")
top = _function_of("top")
pairs = _function_of("pairs")
preferences = _function_of("preferences")
drop_prompts = _function_of("drop_prompts")
where = _function_of("where")
reward = _function_of("reward")
near_duplicates = _function_of("near_duplicates")
decontaminate = _function_of("decontaminate")
diverse = _function_of("diverse")
on_topic = _function_of("on_topic")
length_correction = _function_of("length_correction")
random = _function_of("random")
longest = _function_of("longest")


def make_pairs(rules: Any) -> bool:
    """Return True if the last of a list of rules keeps pairs, whose output has the shape `preference`."""
    last = rules[-1] if isinstance(rules, list | tuple) and rules else None
    return isinstance(last, Mapping) and not {"pairs", "preferences"}.isdisjoint(last)
