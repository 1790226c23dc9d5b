"""The documentation site: it builds without a warning, and the errors that docs/faq.md quotes are those of the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")

ROOT = Path(__file__).parents[2]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(root / "mkdocs.yml"),
        "--site-dir",
        str(site),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's banner, which speaks of a warning
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=quiet)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    made = build(ROOT, tmp_path / "site")
    assert made.returncode == 0, made.stderr[-2000:]
    assert "WARNING" not in made.stderr, made.stderr[-2000:]
    first = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="first-hour/"' in first  # links of the README lead to pages of the site
    assert "LICENSE" not in first
    assert not re.search(r'href="(\.\./)*(configs/|pipelines/|CONTRIBUTING)', first)
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "site" / page.stem / "index.html").exists(), page.name


@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path: Path):
    import shutil

    for name in ("docs", "mkdocs.yml", "README.md"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    page = tmp_path / "docs" / "faq.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[nowhere](nowhere.md)\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "site").returncode != 0


def messages() -> list[str]:
    """The text of every string in the code; what is filled in is `...`."""
    texts = []
    for folder in ("pipelines", "rm"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append(
                        "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_the_errors_of_the_faq_are_those_of_the_code():
    faq = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    quotes = re.findall(r'^\*\*[^*]*?"([^"]+)"', faq, flags=re.M)
    assert len(quotes) > 8
    texts = messages()
    for quote in quotes:
        parts = [part.strip() for part in quote.split("...") if part.strip()]
        assert any(all(part in text for part in parts) for text in texts), quote


def test_the_prose_linter_finds_a_planted_fault_of_each_kind(tmp_path: Path):
    import runpy

    linter = runpy.run_path(str(ROOT / "docs" / "check_prose.py"))
    faults = ["nobody reads it", "it is told by name", "that one, too.", "Of the draws.", "keep what is left"]
    faults += ["it shall not", "it goes on", "doubled texts", "all but for one", "as was said of it"]
    assert len(faults) == len(linter["HOUSE"])
    for fault in faults:
        assert [advice for _, advice in linter["_against_house"](fault)], fault
    of_pages = [
        "drawn anew",
        "a file that is not there.",
        "it means nothing",
        "it stands in the log",
        "r less the mean",
    ]
    of_pages += ["two forwards", "a page, too."]
    assert len(of_pages) == len(linter["PAGE_HOUSE"])
    for fault in of_pages:
        assert [advice for _, advice in linter["_against_house"](fault, linter["PAGE_HOUSE"])], fault
    page, module = tmp_path / "page.md", tmp_path / "module.py"
    page.write_text("Text.\n\n```\nnobody\n```\n\nIt is a `nobody`, alot.\n")
    module.write_text('"""Of the draws."""\nnobody = 1\n')
    assert [re.search(r":(\d+): ", problem)[1] for problem in linter["_problems"](module)] == ["1"]
    assert ["alot" in problem for problem in linter["_problems"](page)] in ([], [True])
