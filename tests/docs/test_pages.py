"""The pages in docs/: the reference is in step, links lead somewhere, and every command that a page shows runs.

A page's ```sh blocks run from top to bottom in one directory with a corpus, preferences, tiny models, and the files that the page
shows under a comment `file: NAME`. A block under a comment `not run: REASON` is only checked: its configuration loads, and Beam
knows its flags.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_rows, write_jsonl
from support.tiny_models import save_encoder

from pipelines import cli
from pipelines.commands.app import split_arguments

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NOT_IN_README = {"api.md", "index.md"}  # of the site alone
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?:sh|bash|shell|console)\n(?P<text>.*?)^```$", re.M | re.S
)


LEAST = {"dataflow": 3} | dict.fromkeys(
    (
        "python",
        "api",
        "architecture",
        "architectures",
        "benchmarks",
        "capabilities",
        "faq",
        "formats",
        "glossary",
        "reference",
        "reliability",
    ),
    0,
)
"""Commands that a page shows at the least; those of `formats` are in Python, and tested in `test_formats`."""
_FILE = re.compile(r"<!-- file: (\S+) -->\n```yaml\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Shown:
    """A command of a page."""

    words: tuple[str, ...]
    reason: str | None  # why it is not run


def shown_in(text: str) -> list[Shown]:
    found = []
    for block in _BLOCK.finditer(text):
        for line in block["text"].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(Shown(tuple(words), block["reason"]))
    return found


def test_blocks_are_found_with_their_reasons():
    text = "```sh\nbestkept run a.yaml \\\n  'b=[c, d]'  # why\n\nrm -r x\n```\n"
    text += "<!-- not run: a cloud -->\n```bash\nbestkept run b\n```\n"
    assert shown_in(text) == [
        Shown(("bestkept", "run", "a.yaml", "b=[c, d]"), None),
        Shown(("rm", "-r", "x"), None),
        Shown(("bestkept", "run", "b"), "a cloud"),
    ]


def pairs() -> list[dict[str, str]]:
    """Good beats bad three times out of four."""
    words = ["hot", "word", "time", "day", "way", "number", "thing", "look", "people", "water"]
    rows = []
    for number, word in enumerate(np.random.default_rng(0).permutation(words * 8)):
        good, bad = f"good {word} answer", f"bad {word} reply"
        chosen, rejected = (bad, good) if number % 4 == 3 else (good, bad)
        rows.append({"prompt": f"what is {word} {number}", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What the pages say is there."""
    root = tmp_path_factory.mktemp("docs")
    rows = [{**row, "source": f"s{number % 2}"} for number, row in enumerate(corpus_rows(12))]
    (root / "corpus").mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(rows[number::2]), root / "corpus" / f"part-{number}.parquet")
    marks = [{"is_correct": n % 3 != 0, "helpfulness": n % 5, "verbosity": n % 4} for n in range(len(rows))]
    (root / "solutions").mkdir()
    solutions = pa.Table.from_pylist([{**row, **mark} for row, mark in zip(rows, marks, strict=True)])
    pq.write_table(solutions, root / "solutions" / "part-0.parquet")
    write_jsonl(root / "preferences.jsonl", pairs())
    write_jsonl(root / "heldout.jsonl", pairs()[:20])
    for seed, name in enumerate(("reward-model", "reward-model-2", "Qwen/Qwen3-0.6B")):
        save_encoder(root / name, seed=seed)
    calibration = {
        "temperature": 1.0,
        "at_bound": None,
        "comparisons": 20,
        "prompts": 20,
        "data": "x",
        "fitted_on": "x",
    }
    (root / "reward-model" / "calibration.json").write_text(json.dumps(calibration))
    shutil.copytree(ROOT / "configs", root / "configs", ignore=shutil.ignore_patterns("demo"))
    return root


def run(words: tuple[str, ...], monkeypatch) -> int:
    if words[0] != "bestkept":
        return subprocess.run(words, check=False).returncode
    monkeypatch.setattr(sys, "argv", list(words))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def check(words: tuple[str, ...]) -> None:
    """That a command which cannot run here would be understood."""
    from pipelines.config import EvaluateConfig, RunConfig, TrainConfig, load, validate
    from pipelines.runtime.beam_options import pipeline_options

    if words[0] == "torchrun":
        words = words[words.index("bestkept") :]
    assert words[0] == "bestkept"
    command, given = words[1], list(words[2:])
    if command == "evaluate":
        overrides, flags = split_arguments(given[2:])
        values = {"model": {"path": given[0]}, "data": {"path": given[1]}}
        validate(EvaluateConfig, values, overrides, where="docs")
        assert not flags
        return
    if command == "trial":
        given = given[1:]
        while given[-1] == "--quick" or given[-2] in ("--student", "--reference", "--judge"):
            del given[-1 if given[-1] == "--quick" else -2 :]
        load(RunConfig, given[0], split_arguments(given[1:])[0])
        return
    if command == "model":
        assert (given[0], len(given)) == ("fetch", 3)
        return
    if "--explain" in given:
        at = given.index("--explain")
        del given[at : at + 2]
        given = [word for word in given if word != "--text"]
    overrides, flags = split_arguments(given[1:])
    if command == "train":
        load(TrainConfig, given[0], overrides)
        assert not flags
        return
    assert command in ("run", "score", "select")
    pipeline_options(load(RunConfig, given[0], overrides).runner, flags)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_run(path, template, tmp_path, monkeypatch, capfd):
    text = path.read_text(encoding="utf-8")
    commands = shown_in(text)
    assert len(commands) >= LEAST.get(path.stem, 5)
    here = tmp_path / "here"
    shutil.copytree(template, here)
    monkeypatch.chdir(here)
    for name, content in _FILE.findall(text):
        Path(name).write_text(content)
    for one in commands:
        if one.reason is not None:
            check(one.words)
            continue
        code = run(one.words, monkeypatch)
        err = capfd.readouterr().err
        assert code == 0, f"{shlex.join(one.words)} ends with {code}: {err[-1000:]}"


def test_a_command_that_would_not_be_understood_is_found(template, monkeypatch):
    from pipelines.errors import ConfigError

    monkeypatch.chdir(template)
    for words in (
        ("bestkept", "run", "configs/best_of_n.yaml", "output.pth=x"),
        ("bestkept", "run", "configs/best_of_n.yaml", "--max_num_wokers=3"),
        ("bestkept", "evaluate", "a", "b", "data.orign=human"),
        ("bestkept", "train", "configs/train_pairs.yaml", "train.sed=1"),
    ):
        with pytest.raises(ConfigError, match="did you mean"):
            check(words)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_reference_is_in_step():
    command = [
        sys.executable,
        "-c",
        "import runpy; print(runpy.run_path('docs/make_reference.py')['reference'](), end='')",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert made == (DOCS / "reference.md").read_text(encoding="utf-8"), "run `make reference`"


def test_every_exit_code_is_in_both_pages():
    from pipelines.errors import Exit

    for name in ("reference.md", "operating.md"):
        rows = re.findall(r"^\| ([\d, ]+) \|", (DOCS / name).read_text(encoding="utf-8"), flags=re.M)
        assert {int(code) for row in rows for code in row.split(",")} == set(map(int, Exit))
    [sentence] = re.findall(
        r"exit codes are:(.*?)\. The last line", (ROOT / "README.md").read_text("utf-8"), flags=re.S
    )
    assert {int(code) for code in re.findall(r"\b\d+\b", sentence)} == {*map(int, Exit), 143}


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PAGES if f"(docs/{path.name})" not in readme and path.name not in NOT_IN_README] == []


def test_no_page_evaluates_a_model_on_all_of_its_training_data():
    """An evaluation replaces the verdict that training stored."""
    shown = re.findall(
        r"^bestkept evaluate reward-model preferences\.jsonl(.*)", (DOCS / "training.md").read_text("utf-8"), flags=re.M
    )
    assert shown
    assert all("data.heldout_fraction=" in words for words in shown)
