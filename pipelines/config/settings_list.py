"""The settings of each command as a flat list, made from the models: name, type, default, meaning."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from pipelines.config import EvaluateConfig, RunConfig, TrainConfig

KINDS: dict[str, type[BaseModel]] = {"run": RunConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


@dataclass(frozen=True)
class Setting:
    """One field that takes a value."""

    name: str  # `model.path`; `select[].top.rows` of a step
    type: str
    default: str  # as YAML, or `required`
    meaning: str

    @property
    def first_sentence(self) -> str:
        return _SENTENCE_END.split(self.meaning, maxsplit=1)[0]

    def in_brief(self) -> str:
        """Type, default and the first sentence, for `--help`."""
        default = "required" if self.default == "required" else f"default {self.default}"
        return f"{self.type}; {default}. {self.first_sentence}"


def settings_of(command: str) -> list[Setting]:
    """The settings of `run`, `train` or `evaluate`, in the order of the models."""
    return [row for _, rows in sections(command) for row in rows]


def sections(command: str) -> list[tuple[str, list[Setting]]]:
    """Return (title, settings) for each block of the file and each rule, and `others` for fields of no block."""
    found: dict[str, list[Setting]] = {}
    for title, row in _walk(KINDS[command], ()):
        found.setdefault(title, []).append(row)
    return list(found.items())


def block_meanings(command: str) -> dict[str, str]:
    """Return the docstrings of the blocks and the rules, by the titles of `sections`."""
    found = {name: meaning_of(field) for name, field in KINDS[command].model_fields.items()}
    rules = model_in(KINDS[command].model_fields["select"].annotation)[0] if "select" in found else None
    for name, field in rules.model_fields.items() if rules else ():
        if model_in(field.annotation)[0] is not None:
            found[f"select: {name}"] = meaning_of(field)
    return found


def _walk(kind: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, Setting]]:
    for name, field in kind.model_fields.items():
        inner, is_list = model_in(field.annotation)
        here = (*path, name)
        if inner is None:
            title = _title(here if path == ("select[]",) else path)  # a rule of one value has a section of its own
            yield title, Setting(".".join(here), type_of(field), default_of(field), meaning_of(field))
        else:
            listed = is_list and not any(isinstance(one, BeforeValidator) for one in field.metadata)
            yield from _walk(inner, (*path, f"{name}[]") if listed else here)


def _title(path: tuple[str, ...]) -> str:
    if not path:
        return "others"
    return path[0] if path[0] != "select[]" else f"select: {path[-1]}"


def model_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the model that a field contains, and whether only in a list."""
    bare = alternatives(annotation)
    listed = [alternatives(get_args(one)[0])[0] for one in bare if get_origin(one) is list]
    for kinds, is_list in ((bare, False), (listed, True)):
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                return kind, is_list
    return None, False


def type_of(field: FieldInfo) -> str:
    """Return `integer >= 1`, `a | b`, `text or list of text`; null is omitted, since the default shows it."""
    arguments = [one for one in alternatives(field.annotation) if one is not type(None)]
    shown = " | ".join(map(_type_name, arguments))
    bounds = [
        f"{sign} {getattr(one, key)!r}" for one in field.metadata for key, sign in _BOUNDS.items() if hasattr(one, key)
    ]
    return f"{shown} {', '.join(bounds)}".strip()


def alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for argument in get_args(annotation) for one in alternatives(argument)]
    return [annotation]


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        inner = " or ".join(map(_type_name, alternatives(arguments[0])))
        return f"list of {inner}"
    if origin is dict:
        values = " or ".join(map(_type_name, alternatives(arguments[1])))
        return f"mapping of {_type_name(arguments[0])} to {values}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return " | ".join(f"{{{name}: ...}}" for name in annotation.model_fields)
    return _NAMES[annotation]


def default_of(field: FieldInfo) -> str:
    return "required" if field.is_required() else as_yaml(field.default)


def as_yaml(value: Any) -> str:
    """Return a default in the flow style of YAML, on one line."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and value not in ("null", "true", "false"):
        return value
    return json.dumps(value)


def meaning_of(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())
