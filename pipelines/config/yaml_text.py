"""YAML text → plain values; any text gives a value, or a `ConfigError` that states the place and the reason."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipelines.errors import ConfigError

DEEPEST = 32  # mappings and lists within one another
MOST_VALUES = 1_000_000  # anchors let a short text expand to any number
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that duplicate keys are errors, as are values that its constructors fail on."""

    level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.level > DEEPEST:  # levels of containers; Python's own limit differs by version
            raise _TooDeep
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    raise _DoubledKey(key.value, lines[key.tag, key.value], line)
                lines[key.tag, key.value] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # such as the 99th of May, or an integer of 5,000 digits
            raise yaml.constructor.ConstructorError(None, None, "no value", node.start_mark) from error


class _TooDeep(Exception):
    pass


class _DoubledKey(Exception):
    def __init__(self, key: str, first: int, second: int) -> None:
        lines = f"in lines {first} and {second}" if first < second else f"in line {first}"
        super().__init__(f"has the key {key!r} twice, {lines}; remove one of them")


def parse_yaml(text: str, *, where: str, remedy: str) -> Any:
    """Parse a YAML document. Errors begin with `where`, and for invalid YAML end with `remedy`. Raises `ConfigError`."""
    try:
        value = _Loader(text).get_single_data()
    except _DoubledKey as error:
        raise ConfigError(f"{where} {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter from the scanner, for an escape beyond Unicode
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where} is not valid YAML{place}; {remedy}") from error
    except _TooDeep as error:
        raise _too_deep(where) from error
    check_size(value, where=where)
    return value


def check_size(value: Any, *, where: str) -> None:
    """Raise `ConfigError` for a value of plain types that is nested too deeply, for example in itself, or is too large."""
    count, level = 0, [value]
    for _ in range(DEEPEST + 1):
        if any(isinstance(item, str) and _SURROGATE.search(item) for item in level):
            raise ConfigError(
                f"{where} contains half of a surrogate pair (\\ud800 to \\udfff), which is not a character; remove it"
            )
        containers = [item for item in level if isinstance(item, dict | list | tuple | set)]
        level = []
        for container in containers:
            level += [*container, *container.values()] if isinstance(container, dict) else container
            if (count := count + len(container)) > MOST_VALUES:
                raise ConfigError(
                    f"{where} contains more than {MOST_VALUES:,} values; give fewer (long lists of files as a pattern)"
                )
    if level:
        raise _too_deep(where)


def _too_deep(where: str) -> ConfigError:
    return ConfigError(
        f"{where} is nested deeper than {DEEPEST} levels; remove brackets, or an anchor that contains itself"
    )
