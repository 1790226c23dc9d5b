"""The responses of a trial: the selection, random ones, the longest ones, and references on which no arm is trained.

Each set is selected again from the score files of the run by its own rules, into a temporary directory. The trial therefore reads
the format of an output, whatever the layout of the corpus and the store.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.config.corpus import InputConfig
from pipelines.config.trial import HELDOUT
from pipelines.corpus import read_fragments, split_units
from pipelines.corpus.columns.detection import detect
from pipelines.corpus.listing import first_columns, list_files
from pipelines.errors import ConfigError, InputError
from pipelines.plan import Plan
from pipelines.storage.files import absolute
from rm.conversations import (
    Conversation,
    UnusableError,
    from_messages,
    from_response,
    prompt_key,
    with_tools,
)

log = logging.getLogger(__name__)

MOST_PROMPTS = 20_000
"""The most prompts whose responses are read: those with the smallest ids, which are hashes."""
_ROWS_PER_FRAGMENT = 4096


class Example(NamedTuple):
    """A response to a prompt."""

    key: bytes  # of the prompt
    prompt: Conversation
    response: str


@dataclass(frozen=True)
class References:
    """Responses to prompts on which no arm is trained, and their source: file, gold or test."""

    kind: str
    examples: list[Example]

    @property
    def keys(self) -> set[bytes]:
        return {example.key for example in self.examples}


def read_arms(
    config: RunConfig, manifest: Mapping[str, Any], references: References, *, seeds: int, scratch: Path
) -> dict[str, list[list[Example]]]:
    """Return the responses of `selection`, `random` and `longest` for each seed, without the references' prompts.

    A random arm has as many responses to each prompt as the selection keeps per kept prompt, different ones for each seed.
    """
    counts = manifest["counts"]
    keep = math.ceil(counts["kept"] / max(1, counts["kept_prompts"]))
    selection = _selected(config, config.select, scratch / "selection")
    # without this step, a model with several outputs has no reward
    combined = [step for step in config.select if step.reward is not None]
    drawn = _selected(config, [*combined, {"random": {"keep": keep * seeds}}], scratch / "random")
    longest = _selected(config, [*combined, {"longest": {"keep": keep}}], scratch / "longest")
    arms = {name: _without(rows, references.keys) for name, rows in (("selection", selection), ("longest", longest))}
    pool = _without(drawn, references.keys)
    arms_by_seed = {name: [rows] * seeds for name, rows in arms.items()}
    arms_by_seed["random"] = [_draw(pool, keep=keep, seed=seed) for seed in range(seeds)]
    return {
        name: [_shuffled(rows, seed) for seed, rows in enumerate(arms_by_seed[name])]
        for name in ("selection", "random", "longest")
    }


def read_references(config: RunConfig, plan: Plan, *, reference: str | None, most: int, scratch: Path) -> References:
    """Return the references: those of a file, else the best by `report.gold`, else the test split.

    Raises `ConfigError` if none of these sources exists, and `InputError` if the source is empty.
    """
    if reference is not None:
        kind, examples, share = "file", _file_examples(reference, plan.max_row_bytes), 1.0
    elif config.report.gold is not None:
        kind, share = "gold", HELDOUT
        examples = iter(_selected(config, [{"best_of_n": {}}], scratch / "gold", column=config.report.gold))
    elif config.output.test_fraction is not None:
        kind, share = "test", 1.0
        examples = iter(_selected(config, config.select, scratch / "test", split="test"))
    else:
        raise ConfigError(
            "the trial has no reference responses; give --reference FILE, name a column of true worth as report.gold, or "
            "select with output.test_fraction"
        )
    by_prompt: dict[bytes, list[Example]] = {}
    for example in examples:
        by_prompt.setdefault(example.key, []).append(example)
    held = heapq.nlargest(min(most, math.ceil(share * len(by_prompt))), by_prompt)
    if len(held) < 2:
        where = repr(reference) if reference is not None else {"gold": "report.gold", "test": "the test split"}[kind]
        raise InputError(f"{where} has {len(held)} prompts with a reference response, and a trial needs two or more")
    return References(kind, [example for key in held for example in by_prompt[key]])


def _file_examples(path: str, max_row_bytes: int) -> Iterator[Example]:
    """Yield the prompts and responses of a file of references, in any layout of a corpus."""
    input = InputConfig(path=path)
    files = list_files(input)
    names, rows, where = first_columns(files, max_row_bytes=max_row_bytes)
    mapping = detect(names, rows=rows, format=input.format, columns=input.columns, where=where).mapping
    for file in files:
        for unit in split_units(file):
            fragments = read_fragments(
                file, unit, mapping, rows_per_fragment=_ROWS_PER_FRAGMENT, max_row_bytes=max_row_bytes
            )
            for fragment in fragments:
                for row in fragment.rows:
                    prompt = row.parsed.prompt
                    for text in row.parsed.responses if prompt is not None else ():
                        if prompt is not None and text is not None:
                            yield Example(prompt_key(prompt), prompt, text)


def _selected(
    config: RunConfig, steps: Sequence[Any], folder: Path, *, column: str | None = None, split: str = "train"
) -> list[Example]:
    """Select again by these steps, or by the rewards of a `column`, into `folder`; return the kept responses."""
    values = config.model_dump(exclude_unset=True)
    paired = any(getattr(step, "makes_pairs", False) for step in steps)
    output: dict[str, Any] = {"path": str(folder), "shape": "preference" if paired else "prompt_completion"}
    if config.output.test_fraction is not None and list(steps) == list(config.select):
        output |= {"test_fraction": config.output.test_fraction, "split_seed": config.output.split_seed}
    limits = config.limits.model_dump(exclude_unset=True)
    for name in ("max_reward_shift", "max_rejected_shift", "require_verdict", "verify"):
        limits.pop(name, None)
    values |= {"select": list(steps), "output": output, "limits": limits, "report": {"write": False}, "runner": {}}
    values["scores"] = {**values.get("scores", {}), "path": absolute(config.scores_path)}
    if column is not None:
        for name in ("model", "ensemble", "score", "signals"):
            values.pop(name, None)
        values["scores"] = {"column": column, "path": str(folder / "scores")}
    with _quietly():
        run_curation(RunConfig.model_validate(values), scorer=None)
    return list(
        _read(folder / "data", split, prompts="largest" if column is not None or split == "test" else "smallest")
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the log lines of a selection that the user did not request."""
    logger = logging.getLogger("pipelines")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read(folder: Path, split: str, *, prompts: str) -> Iterator[Example]:
    """Yield the rows of an output of pairs or of prompts and completions, of at most `MOST_PROMPTS` prompts."""
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    ids = set[str]().union(*(pq.read_table(shard, columns=["prompt_id"])["prompt_id"].to_pylist() for shard in shards))
    chosen = (heapq.nlargest if prompts == "largest" else heapq.nsmallest)(MOST_PROMPTS, ids)
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches():
            wanted = pc.is_in(batch["prompt_id"], value_set=pa.array(chosen, pa.string()))
            for row in batch.filter(wanted).to_pylist():
                try:
                    prompt = with_tools(from_messages(_bare(row["prompt"])), row.get("tools"))
                    response = from_response(_bare(row.get("completion") or row["chosen"]), after=prompt, several=True)
                except UnusableError:  # scored rows are usable; a guard against other readers of JSON
                    continue
                yield Example(prompt_key(prompt), prompt, response)


def _bare(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages without null values: keys that only other messages have."""
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _without(rows: Sequence[Example], keys: set[bytes]) -> list[Example]:
    return [row for row in rows if row.key not in keys]


def _draw(rows: Sequence[Example], *, keep: int, seed: int) -> list[Example]:
    """Return `keep` responses to each prompt, different ones for each seed as long as there are enough."""
    by_prompt: dict[bytes, list[Example]] = {}
    for row in rows:
        by_prompt.setdefault(row.key, []).append(row)
    drawn = []
    for group in by_prompt.values():
        group.sort(key=lambda row: _hash(row, 0))
        places = {(seed * keep + number) % len(group) for number in range(keep)}
        drawn += [group[at] for at in sorted(places)]
    return drawn


def _shuffled(rows: Sequence[Example], seed: int) -> list[Example]:
    """Return rows in an order by prompt that is the same for all arms of a seed."""
    return sorted(rows, key=lambda row: (hashlib.sha256(seed.to_bytes(8, "big") + row.key).digest(), _hash(row, seed)))


def _hash(row: Example, seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big") + row.key + row.response.encode("utf-8", "surrogatepass")).digest()
