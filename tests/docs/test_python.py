"""docs/python.md: every snippet runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_jsonl
from support.tiny_models import save_encoder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"


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
    assert known["frame"]["reward"].tolist() == pytest.approx(known["scores"].rewards.tolist(), abs=1e-5)
    assert capsys.readouterr().out.splitlines()[-1] == "CONFIG curate: unknown key 'selct'; did you mean 'select'?"
