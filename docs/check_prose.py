"""A prose linter for pages, docstrings and messages: proselint, and the house style of CONTRIBUTING.md.

    python docs/check_prose.py [FILE ...]

Prints `FILE:LINE: what to write instead`, and exits with 1 if there are any problems. Code in pages is ignored; in Python files,
only string constants are checked, and only by the house style.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "benchmarks/*.md",
    "configs/*/*.md",
    "deploy/*/*.md",
    "deploy/*.md",
)
CODE = ("pipelines/**/*.py", "rm/**/*.py", "bestkept/**/*.py")
HOUSE = {
    r"\b(?:some|no)body\b|\bwho(?:m|so)?ever\b": "name the person or the process",
    r"\b(?:is|are|was|were|be|been|being) told\b|\btold (?:by|apart|from)\b": "detected, distinguished, reported",
    r",\s+too[.;:)]": "also, before the verb",
    r"(?:^|(?<=[.:] ))Of (?:the|a|an|one|all|two|each|several|what|every|`)": "a sentence with a subject",
    r"\bwhat (?:is left|there is|it comes to)\b|\bwhat is there\b": "a noun",
    r"\bfor ever\b|\bto be had\b|\bshall\b|\bmanieth\b|\bmend(?:s|ed|ing)?\b|\blest\b|\b[tw]?hence\b": "a plain word",
    r"\bgo(?:es)? on\b": "resume, continue",
    r"\bdoubled (?:texts|and)|\btaken for\b|\bputs? up with\b": "duplicate; read as; accept",
    r"\bbut for\b|\bas far as\b|(?i:\blikewise\b)": "except; if; the same",
    r"\bsaid (?:of|at)\b": "reported",
}
"""Patterns that the house style excludes, with what to write instead."""

PAGE_HOUSE = {
    r"\banew\b|\bat hand\b|\bmeanwhile\b|\bin work\b|\bas it is\b": "again, available, in the meantime, current, unchanged",
    r"\b(?:is|are) (?:not )?there(?: already)?[.,;:)]": "exists, is missing",
    r"\b(?:means?|says?|knows?|tells?) (?:nothing|little)\b": "what has no effect, or does not depend on what",
    r"\bstands? (?:in|at|on|there)\b|\blies?\b": "is, is stored",
    r"\bless (?:its|their|the|that|one)\b": "minus",
    r"\bforwards\b|\bcreate-only\b": "forward passes; only if absent",
    r",? too[,;.]": "also, before the verb",
}
"""Patterns that only pages must not have."""

OFF = ("typography", "lexical_illusions", "annotations", "industrial_language", "misc", "dates_times", "restricted")
"""Checks of proselint that do not fit technical pages: quotes in code, headings that repeat a word, and the like."""


def main(names: list[str]) -> int:
    CheckRegistry().register_many(__register__)
    problems = [problem for path in _files(names) for problem in _problems(path)]
    print("\n".join(problems) or "no problem")
    return int(bool(problems))


def _files(names: list[str]) -> list[Path]:
    patterns = (*PAGES, *CODE)
    return [Path(name).resolve() for name in names] or sorted({path for one in patterns for path in ROOT.glob(one)})


def _problems(path: Path) -> Iterator[str]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    if path.suffix == ".py":
        for line, string in _strings(text):
            yield from (f"{name}:{line + at}: {problem}" for at, problem in _against_house(string))
        return
    prose = _prose(text)
    yield from (f"{name}:{1 + at}: {problem}" for at, problem in _against_house(prose, HOUSE | PAGE_HOUSE))
    checks = {key: value and key not in OFF for key, value in DEFAULT["checks"].items()}
    for result in LintFile(str(name), prose).lint({**DEFAULT, "checks": checks}):
        yield f"{name}:{result.pos[0] - 1}: {result.check_result.message} ({result.check_result.check_path})"


def _against_house(text: str, house: dict[str, str] = HOUSE) -> Iterator[tuple[int, str]]:
    for pattern, advice in house.items():
        for match in re.finditer(pattern, text, flags=re.M):
            yield text.count("\n", 0, match.start()), f"{' '.join(match[0].split())!r}: {advice}"


def _strings(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _prose(page: str) -> str:
    """Return a page without its code; lines stay where they are."""
    page = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page, flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", "code", re.sub(r"\]\([^)]*\)", "]", page))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
