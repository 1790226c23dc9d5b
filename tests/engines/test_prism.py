"""Runs on Prism, an engine of Beam that shares no code with its Python runner, with corpus and output on an S3 server.

The bytes are those of the run in memory, whatever is asked for, and however the engine deals the work.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from services.engines import engines
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import DecodingFactory, NamedFactory, StubFactory, save_named_model, scored_rows

from pipelines import curate
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.runtime import execute, progress

pytestmark = engines("prism", "beam-boot", "versitygw")
ROWS, FILES, ROWS_PER_FRAGMENT = 48, 6, 4
ALIKE = {"words": 1, "similarity": 0.65}  # two answers of one generator share four of six words
RULES = {
    "cuts": [{"where": "reward > -0.9"}, {"top": {"fraction": 0.8, "per": "generator"}}, {"top": {"rows": 20}}],
    "prompts": [{"length_correction": {}}, {"drop_prompts": {"min_spread": 0.1}}, {"best_of_n": {"keep": 2}}],
    "pairs": [{"reward": "reward * 2"}, {"threshold": {"min_z": -1.5}}, {"pairs": {"min_gap": 0.1}}],
    "texts": [
        *({"top": {"tokens": 900}}, {"longest": {"keep": 3}}, {"random": {"keep": 2}}),
        {"decontaminate": {"against": ["TESTS"], "ngram": 3}},
        *({"near_duplicates": {"of": "response", **ALIKE}}, {"diverse": {"rows": 3, **ALIKE}}),
    ],
}


def hashes(contents: dict[str, bytes]) -> dict[str, str]:
    """Hashes of what must be the same; claim.json names the plan, and that where the corpus is."""
    names = ("manifest.json", "README.md", "data/", "report.json", "samples.parquet")
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if name.startswith(names)}


class Both:
    """Runs of one corpus, in memory with files on the disk and on Prism with files on the S3 server."""

    def __init__(self, root: Path, bucket, prism, stub_model: Path) -> None:
        self.root, self.bucket, self.prism, self.model = root, bucket, prism, stub_model
        for number in range(FILES):
            path = write_jsonl(root / "in" / f"{number}.jsonl", corpus_rows()[number::FILES])
            bucket.put(f"in/{number}.jsonl", path.read_bytes())
        self.tests = write_jsonl(root / "tests.jsonl", [{"prompt": "prompt number 3"}])

    def here(self, scorer, **changes) -> dict[str, str]:
        """What a run in memory gives."""
        run_curation(self._config(str(self.root), **changes), scorer=scorer)
        out = self.root / "out"
        files = [path for path in out.rglob("*") if path.is_file() and path.name not in TIMED]
        return hashes({str(path.relative_to(out)): path.read_bytes() for path in files})

    def there(self, scorer, **changes):
        """(its outcome, what it gives) of a run on Prism."""
        runner = {"name": "PortableRunner", "options": self.prism.options}
        outcome = run_curation(self._config(self.bucket.url, **changes, runner=runner), scorer=scorer)
        return outcome, hashes(self.bucket.contents("out"))

    def _config(self, root: str, **changes) -> RunConfig:
        select = changes.get("select", [{}])
        shape = "preference" if {"pairs", "preferences"} & {*select[-1]} else "messages"
        for step in select:
            if "decontaminate" in step:
                step["decontaminate"]["against"] = [str(self.tests)]
        carry = {"format": "preferences"} if "preferences" in select[-1] else {"carry": ["generator"]}
        values = {
            "input": {"path": f"{root}/in/*.jsonl", "rows_per_fragment": ROWS_PER_FRAGMENT, **carry}
            | changes.pop("input", {}),
            "model": {"path": str(self.model)},
            "output": {"path": f"{root}/out", "rows_per_shard": 4, "shape": shape},
        }
        return RunConfig.model_validate(values | changes)


@pytest.fixture
def both(tmp_path, bucket, prism, stub_model) -> Both:
    return Both(tmp_path, bucket, prism, stub_model)


@pytest.mark.parametrize("select", RULES.values(), ids=RULES)
def test_every_rule_keeps_the_same_bytes(both, select):
    outcome, contents = both.there(StubFactory(), select=select)
    assert contents == both.here(StubFactory(), select=select)
    assert 0 < outcome.manifest["counts"]["kept"] < ROWS


def test_an_ensemble_and_a_signal(both, tmp_path):
    anna, bo, carol = ({"path": str(save_named_model(tmp_path / "models" / name))} for name in ("anna", "bo", "carol"))
    select = [{"on_topic": {"signal": "carol", "gap": 0.1}}, {"best_of_n": {"keep": 2, "min_candidates": 1}}]
    changes = {"model": [anna, bo], "signals": {"carol": {"model": carol}}, "select": select}
    outcome, contents = both.there(NamedFactory(str(tmp_path / "log")), **changes)
    assert contents == both.here(NamedFactory(str(tmp_path / "log")), **changes)
    assert 0 < outcome.manifest["steps"][0]["rows"] < ROWS


def test_pairs_of_a_preference_corpus(both):
    for number in range(FILES):
        rows = [{"prompt": f"prompt {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(24)[number::6]]
        path = write_jsonl(both.root / "in" / f"{number}.jsonl", rows)
        both.bucket.put(f"in/{number}.jsonl", path.read_bytes())
    select = [{"preferences": {"min_margin": 0.1}}]
    outcome, contents = both.there(StubFactory(), select=select)
    assert contents == both.here(StubFactory(), select=select)
    assert 0 < outcome.manifest["counts"]["kept"] < 24


def test_texts_that_are_colocated(both, tmp_path):
    log = tmp_path / "log"
    _, contents = both.there(StubFactory(log=str(log)), score={"colocate": "prompt"})
    assert scored_rows(log) == ROWS
    assert contents == both.here(StubFactory())


def test_progress_moves_and_run_json_counts_what_was_scored(both, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "EVERY_SECS", 0.1)
    seen, stop = set(), threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            seen.add(progress.current().published)

    progress.reset()
    threading.Thread(target=look, daemon=True).start()
    both.there(StubFactory(log=str(tmp_path / "log"), secs=0.7))
    stop.set()
    now, contents = progress.current(), both.bucket.contents("out")
    assert json.loads(contents["run.json"])["throughput"]["rows"] == ROWS
    assert now.scored == scored_rows(tmp_path / "log") == ROWS
    assert now.fragments == len([name for name in contents if name.startswith("scores/") and "/plans/" not in name])
    assert seen & set(range(1, ROWS)), "it moved while the job ran"


def test_files_that_are_dealt_out_by_fragments(both, tmp_path, monkeypatch):
    """As row groups of days are: here an element is every n-th row of a file."""
    monkeypatch.setattr(curate, "ELEMENT_SECS", 1e-9)
    log, decoded = tmp_path / "log", tmp_path / "decoded"
    rows = {"rows_per_fragment": 1}
    _, contents = both.there(DecodingFactory(log=str(log), decoded=str(decoded)), input=rows)
    assert scored_rows(log) == ROWS
    assert len(decoded.read_text().splitlines()) == FILES, "each once by the one worker"
    assert contents == both.here(StubFactory(), input=rows)


def test_what_the_engine_splits_off_is_scored_once(both, tmp_path):
    """While a scorer sleeps, Prism takes what is left of a bundle and deals it out as others."""
    log, said = tmp_path / "log", both.prism.log.read_text().count("split elements")
    _, contents = both.there(StubFactory(log=str(log), secs=1.0))
    assert both.prism.log.read_text().count("split elements") > said, "it has split none"
    assert scored_rows(log) == ROWS
    assert contents == both.here(StubFactory())
