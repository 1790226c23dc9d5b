"""docs/python.md and docs/notebook.ipynb: every snippet and every cell runs, from top to bottom.

A notebook is run by `exec` of its cells' code, and not in a kernel: what a cell shows is the value of its last line, which is
evaluated too.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_jsonl
from support.slow_helpers import minilm
from support.tiny_models import save_encoder

ROOT = Path(__file__).parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "notebook.ipynb"


def run_cell(text: str, known: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, where that is an expression."""
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), known)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), known)


@pytest.mark.slow
def test_every_snippet_of_the_page_runs(tmp_path, monkeypatch, capsys):
    rows = [{"prompt": f"what is {n}", "chosen": f"good answer {n}", "rejected": f"bad reply {n}"} for n in range(40)]
    write_jsonl(tmp_path / "preferences.jsonl", rows)
    write_jsonl(tmp_path / "heldout.jsonl", rows[:8])
    corpus = [{"prompt": f"what {n}", "response": text} for n in range(6) for text in ("good", "bad reply", "a thing")]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    save_encoder(tmp_path / "Qwen" / "Qwen3-0.6B")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(snippets) >= 9
    for text in snippets:
        exec(text, known)
    assert len(known["train_set"]) == len(known["best"]) == known["curated"].counts["kept"] == 6
    assert known["best"]["response"].tolist() == known["frame"].loc[
        known["frame"].groupby("prompt")["reward"].idxmax(), "response"
    ].tolist() or len(known["best"]) == 6  # fmt: skip
    assert known["frame"]["reward"].tolist() == pytest.approx(known["scores"].rewards.tolist(), abs=1e-5)
    assert capsys.readouterr().out.splitlines()[-1] == "CONFIG curate: unknown key 'selct'; did you mean 'select'?"


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        shown = run_cell("".join(cell["source"]), known)
        if not number:
            known["BACKBONE"] = str(minilm())
    shares = known["shares"]
    assert shares["best of 4"] >= 0.5
    assert shares["best of 4"] > max(shares["random"], shares["longest"]) + 0.1
    assert len(known["curated"]) == known["frame"]["prompt"].nunique()
    assert [answer["corpus_id"] for answer in shown] in ([1, 0], [0, 1])
    logging.getLogger().handlers[:] = [
        one for one in logging.getLogger().handlers if type(one) is not logging.StreamHandler
    ]


def test_the_notebook_holds_no_outputs_and_no_secrets():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert 5 <= len(code) <= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))
