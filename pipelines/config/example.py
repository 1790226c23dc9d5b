"""An example configuration with every setting, and the JSON schema, both made from the models so that they stay current."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.config.model import EnsembleConfig
from pipelines.config.rules import BestOfN, Step
from pipelines.config.settings_list import KINDS, as_yaml, meaning_of, model_in, type_of
from pipelines.errors import ConfigError

_WIDTH = 100
_OF_THE_EXAMPLE: tuple[type[BaseModel], ...] = (BestOfN,)  # optional, but shown


def example(command: str) -> str:
    """Return YAML with every setting of `run`, `train` or `evaluate` at its default, which loads as is. Raises `ConfigError`
    for another name."""
    kind = _kind(command)
    head = (
        f"# bestkept {command} CONFIG KEY.SUB=VALUE ...; every setting with its default. Only the paths are required.\n"
    )
    if command == "evaluate":
        head = "# The settings of `bestkept evaluate MODEL DATA KEY.SUB=VALUE ...`, which takes no file.\n"
    return head + "\n".join(_block(kind, indent=0)) + "\n"


def json_schema(command: str) -> str:
    """JSON schema (2020-12) of the file. Raises `ConfigError` for another name."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_kind(command).model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def _kind(command: str) -> type[BaseModel]:
    if command not in KINDS:
        raise ConfigError(f"there is no configuration {command!r}; expected one of {', '.join(KINDS)}")
    return KINDS[command]


def _block(kind: type[BaseModel], *, indent: int) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield from _comment(meaning_of(field), indent)
        inner = model_in(field.annotation)[0]
        if inner is None:
            yield from _value(name, field, indent)
        elif inner is Step:
            yield f"{' ' * indent}{name}:"
            yield from _rules(indent=indent + 2)
        else:
            lines = [f"{' ' * indent}{name}:", *_block(inner, indent=indent + 2)]
            yield from lines if _is_given(inner, field) else _commented_out(lines, indent)


def _is_given(inner: type[BaseModel], field: FieldInfo) -> bool:
    """Return whether the example includes the block: not `ensemble`, which takes two models, nor blocks that are off by
    default."""
    optional = field.default is None and not field.is_required()
    return inner is not EnsembleConfig and (not optional or "ModelConfig" in inner.__name__)


def _rules(*, indent: int) -> Iterator[str]:
    for name, field in Step.model_fields.items():
        inner = model_in(field.annotation)[0]
        yield from _comment(meaning_of(field), indent)
        if inner is None:
            lines = [f"{' ' * indent}- {name}: {as_yaml((field.examples or [None])[0])}  # {type_of(field)}"]
        else:
            lines = [f"{' ' * indent}- {name}:", *_block(inner, indent=indent + 4)]
        yield from lines if inner in _OF_THE_EXAMPLE else _commented_out(lines, indent)


def _value(name: str, field: FieldInfo, indent: int) -> Iterator[str]:
    required = field.is_required()
    value = (field.examples or [""])[0] if required else field.default
    more = f"  # {type_of(field)}{'; required' if required else ''}"
    yield f"{' ' * indent}{name}: {as_yaml(value)}{more}"


def _comment(text: str, indent: int) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _commented_out(lines: list[str], indent: int) -> Iterator[str]:
    """Yield lines with `# ` at the indent of the block, so that removing it leaves YAML; comments inside get a second one."""
    for line in lines:
        yield f"{line[:indent]}# {line[indent:]}"
